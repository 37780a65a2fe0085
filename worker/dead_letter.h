#ifndef WORKER_DEAD_LETTER_H
#define WORKER_DEAD_LETTER_H

#include "buffer.h"
#include "message.h"

/* The columns that a line of dead_letter_append() fills, in its order. */
#define DEAD_LETTER_COLUMNS \
	"received, topic, payload, qos, retain, properties, lane, reason, sqlstate, detail"

/* The detail of one whose payload was not kept as a whole; for scanf(3) as well. */
#define DEAD_LETTER_CUT "the payload had %llu bytes, the first %zu were kept"

int dead_letter_append(struct buffer *, const struct record *, int lane, const char *reason);
int dead_letter_append_refused(struct buffer *, const struct record *, int lane, const char *reason,
    const char *sqlstate, const char *detail);

#endif
