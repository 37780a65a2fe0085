/*
 * The gate: no PUBACK leaves before the message that it answers is durable. Pure decisions.
 *
 * libmosquitto queues a PUBACK for each message that it reads, and its queue goes out as a whole or
 * not at all. So it may go out only when everything that was read is durable, and nothing may be
 * read while it is half out: what came in then would be acknowledged with it.
 */
#include "gate.h"

#include <stddef.h>

#include "clock.h"

/* A new connection: the queue of the old one is gone, and the broker sends again. */
void
gate_reset(struct gate *g)
{
	g->held = 0;
	g->oldest = CLOCK_NEVER;
	g->flushing = false;
}

/* A message was read whose PUBACK now waits. */
void
gate_hold(struct gate *g, int64_t now)
{
	if (g->held++ == 0)
		g->oldest = now;
}

/* Why nothing may be read now, for the log; NULL if reading may go on. */
const char *
gate_reason(const struct gate *g, const struct gate_view *v)
{
	if (g->flushing)
		return "acknowledgements are being sent";
	if (v->stuck)
		return "the state directory cannot be written";
	if (v->spool_full)
		return "the spool is full (--spool-limit, or its disk)";
	if (!v->room)
		return "the backlog is full (--queue-limit, --queue-bytes)";
	if (g->held >= g->window)
		return "the window is full (--receive-maximum)";
	if (g->held > 0 && v->now - g->oldest >= g->ack_interval)
		return "the oldest message waits for its commit (--ack-interval)";
	return NULL;
}

bool
gate_may_read(const struct gate *g, const struct gate_view *v)
{
	return gate_reason(g, v) == NULL;
}

/* May what is held go out? Only if nothing at all is still on its way to the database. */
bool
gate_may_flush(const struct gate *g, const struct gate_view *v)
{
	return g->flushing || (g->held > 0 && v->in_flight == 0);
}
