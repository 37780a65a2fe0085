#ifndef SUPERVISOR_GATE_H
#define SUPERVISOR_GATE_H

#include <stdbool.h>
#include <stdint.h>

/* What the supervisor may read and acknowledge is decided by this and nothing else. */
struct gate {
	uint64_t window;      /* unacknowledged messages at most */
	int64_t ack_interval; /* age of the oldest at most, microseconds */
	uint64_t held;        /* PUBACKs that wait in libmosquitto's queue on this connection */
	int64_t oldest;       /* when the first of them was read, CLOCK_NEVER if none is held */
	bool flushing;        /* the queue is half written */
};

/* The rest of the world, as the supervisor sees it at this moment. */
struct gate_view {
	uint64_t in_flight; /* records that are not durable */
	bool room;          /* the backlog is within its limits */
	bool stuck;         /* what was read cannot be noted in the state directory */
	bool spool_full;    /* more than the spool takes */
	int64_t now;
};

void gate_reset(struct gate *);
void gate_hold(struct gate *, int64_t);
bool gate_may_read(const struct gate *, const struct gate_view *);
bool gate_may_flush(const struct gate *, const struct gate_view *);
const char *gate_reason(const struct gate *, const struct gate_view *);

#endif
