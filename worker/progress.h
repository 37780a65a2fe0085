#ifndef WORKER_PROGRESS_H
#define WORKER_PROGRESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PROGRESS_STREAM_LENGTH 36

/* How far this lane of this stream has come, as its row in ingestd.progress says. */
struct progress {
	char stream[PROGRESS_STREAM_LENGTH + 1]; /* a UUID */
	int lane;
	uint32_t session, instance; /* whose messages these are, and who takes them */
	bool held;                  /* this process has had the row: it must not make another */
	uint64_t committed;         /* seq */
	uint64_t dead_letters;
};

bool progress_is_stream(const char *, size_t);
char *progress_look_sql(const struct progress *);
char *progress_claim_sql(const struct progress *);
char *progress_take_sql(const struct progress *);
char *progress_move_sql(const struct progress *, uint64_t seq, uint64_t dead_letters);
char *progress_count_sql(const struct progress *, uint64_t dead_letters);
char *progress_close_sql(const char *stream);
char *progress_evict_sql(const char *stream, int lane);
char *progress_forget_sql(const char *stream, int lane);

#endif
