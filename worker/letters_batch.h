#ifndef WORKER_LETTERS_BATCH_H
#define WORKER_LETTERS_BATCH_H

#include <stdbool.h>

#include "batch.h"
#include "letter.h"
#include "letters_select.h"

/* A letter that cannot be stored, and why. */
struct letters_stay {
	int64_t id;
	bool changed; /* the reason is another than before */
	char reason[160];
	char sqlstate[6];
	char detail[800];
};

/* A letter that is a line of the batch. */
struct letters_line {
	int64_t id;
	size_t end; /* where the line ends in the batch's rows */
};

/* The letters of one transaction: lines for COPY, and what stays. stored grows as pieces go in. */
struct letters_batch {
	struct batch batch;
	struct letters_line *lines;
	size_t line_count, line_room;
	struct letters_stay *stays;
	size_t stay_count, stay_room;
	struct letters_ids stored;
};

int letters_batch_add(
    struct letters_batch *, const char *const[LETTER_COLUMN_COUNT], const struct record *);
int letters_batch_store(struct letters_batch *, struct letters_db *);
void letters_batch_clear(struct letters_batch *);
void letters_batch_free(struct letters_batch *);

#endif
