#ifndef WORKER_REPORT_H
#define WORKER_REPORT_H

#include <stdbool.h>
#include <stdint.h>

#include "trouble.h"

struct batch;
struct channel;
struct isolation;
struct session;

/* What the supervisor is told. Times on the monotonic clock; the channel is the writer's. */
struct report {
	struct channel *channel;
	int lane;
	bool deaf; /* nobody reads at the other end */
	uint64_t watermark, rows, dead_letters, batches;
	const struct trouble *trouble; /* what is wrong now, NULL if nothing */
	int64_t next_trouble;
	int64_t dead_letters_logged_from;
	uint64_t dead_letters_logged, dead_letters_silent;
};

void report_init(struct report *, struct channel *, int lane);
void report_ready(struct report *, const struct session *);
void report_closed(struct report *, const struct session *);
void report_forgotten(struct report *, const char *stream);
void report_committed(
    struct report *, const struct batch *, const struct isolation *, int64_t duration);
void report_trouble(struct report *, const struct trouble *);
int64_t report_silent(struct report *, int64_t now);
int64_t report_heartbeat(struct report *, int64_t waiting_since, int64_t now);
void report_dead_letter(
    struct report *, const struct record *, const char *reason, const char *sqlstate, int64_t now);
void report_refused(struct report *, const struct isolation *, int64_t now);
void report_drained(struct report *);
bool report_waits(const struct report *);
void report_write(struct report *);
void report_finish(struct report *);

#endif
