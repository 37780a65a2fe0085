#ifndef SUPERVISOR_SPOOL_H
#define SUPERVISOR_SPOOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "burst.h"
#include "dbfile.h"
#include "store.h"

/*
 * spool.db, which only this process has open. A row is a burst: records of one lane, encoded as
 * they go to the writer, in order. "old" are those of earlier streams, which come before all of
 * ours.
 */
struct spool {
	struct dbfile file;
	uint64_t bytes; /* of all rows */
	uint64_t old_records;
	int64_t next_id;
	int64_t old_place, old_id; /* of the last old row that is done with */
	bool used;                 /* since it was last shrunk */
	char client_id[256];
};

/* One row. records points into SQLite's memory until spool_done(). */
struct spool_row {
	int64_t id;
	int64_t place;        /* in the order in which the records came; 0 for behind all others */
	uint64_t first, last; /* seq */
	uint64_t count;
	const uint8_t *records;
	size_t n;
};

/* Takes n off a count that may be less exact than n. */
static inline void
spool_take_off(uint64_t *count, uint64_t n)
{
	*count -= n < *count ? n : *count;
}

int spool_open(struct spool *, const char *dir);
void spool_close(struct spool *);
int spool_begin(struct spool *);
int spool_commit(struct spool *);
int spool_roll_back(struct spool *);
int spool_put(struct spool *, const char *stream, int lane, const struct burst *, int64_t place);
int spool_next(struct spool *, const char *stream, int lane, uint64_t after, uint64_t upto,
    struct spool_row *);
int spool_next_old(
    struct spool *, const char *own, const struct spool_row *behind, struct spool_row *);
void spool_done(struct spool *);
int spool_remove(struct spool *, const struct spool_row *);
int64_t spool_remove_committed(struct spool *, const char *stream, int lane, uint64_t upto);
int spool_has(struct spool *, const char *stream, int lane, uint64_t seq);
int spool_next_unclosed(struct spool *, const char *own, char stream[STORE_STREAM_LENGTH + 1]);
int64_t spool_close_stream(
    struct spool *, const char *stream, const uint64_t *committed, int lanes);
int spool_set_aside(struct spool *, const struct spool_row *);
int spool_note(struct spool *, const char *client_id);
int spool_shrink(struct spool *);

#endif
