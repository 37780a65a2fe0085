#ifndef WORKER_ISOLATE_H
#define WORKER_ISOLATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Rows of a batch, by their number from 0. */
struct isolate_piece {
	size_t first;
	size_t count;
};

#define ISOLATE_PIECES 2

/* Where the search for the bad rows of a batch stands. */
struct isolate {
	size_t rows;       /* of the batch */
	size_t at;         /* those before it are decided */
	size_t refused_to; /* [at, refused_to) was refused together; at if that is not known */
	size_t named;      /* the row in there that the server has named, or ISOLATE_NONE */
	bool names;        /* it has named one when it refused a piece last */
	size_t size;       /* of the next piece where nothing is known */
	size_t good;       /* accepted in a row, since the last bad one */
	size_t bad;        /* found */
	size_t attempts;
	unsigned lies; /* how often the server has named a row that was not at fault */
};

#define ISOLATE_NONE SIZE_MAX

void isolate_start(struct isolate *, size_t rows, uint64_t line);
size_t isolate_next(const struct isolate *, struct isolate_piece[ISOLATE_PIECES]);
size_t isolate_answer(struct isolate *, size_t accepted, bool refused, uint64_t line);
uint64_t isolate_line(const char *context);

#endif
