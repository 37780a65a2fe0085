/*
 * A lane whose writers crash: who had what in its hands, what may be sent next, and the order to
 * put the record aside that suspect.c has condemned.
 *
 * Must never give up a record by itself: the writer makes it a dead letter, in a transaction like
 * any other.
 */
#include <sys/wait.h>

#include "lane.h"
#include "log.h"
#include "signals.h"

#define REASON "crashed its writer"

/* A writer that was READY is dead; called before the backlog is rewound. */
void
lane_suspect_death(struct lane *l, int status)
{
	struct suspect *s = &l->suspect;
	const struct backlog *b = &l->backlog;
	size_t in_hand = b->sent + (b->partial > 0);
	uint64_t before = s->condemned;

	suspect_durable(s, b->watermark);
	if (l->ready_at == 0 || in_hand == 0 || !suspect_is_crash(status))
		return;
	suspect_death(s, backlog_seq(b, 0), backlog_seq(b, in_hand - 1));
	if (s->condemned != 0 && s->condemned != before)
		log_error("record_condemned", LOG_I("lane", l->index), LOG_U("seq", s->condemned),
		    LOG_S("signal", signals_name(WTERMSIG(status))), LOG_U("deaths", s->deaths),
		    LOG_S("reason", "alone in the hands of its writer it has crashed it"),
		    LOG_S("next", "the next writer makes a dead letter of it"));
	else if (s->deaths == 2)
		log_warn("records_suspected", LOG_I("lane", l->index), LOG_U("first", s->first),
		    LOG_U("last", s->last),
		    LOG_S("reason", "two writers have crashed with them in their hands"),
		    LOG_S("next", "sent one by one; what crashes a third becomes a dead letter"));
}

/* Sends ahead of the condemned record, which is the next, what is to become of it. */
static bool
announce(struct lane *l)
{
	struct message m = {.type = MESSAGE_CONDEMN};

	m.condemn.seq = l->suspect.condemned;
	m.condemn.reason = text_from(REASON);
	l->announced = channel_queue(&l->channel, &m) == 0;
	return l->announced;
}

/*
 * Fills at most n parts with what may be sent now, of the records that are not yet written; returns
 * how many. A writer that is suspected of nothing gets all there is.
 */
int
lane_suspect_unsent(struct lane *l, struct iovec *iov, int n)
{
	struct backlog *b = &l->backlog;

	suspect_durable(&l->suspect, b->watermark);
	if (!suspect_one_by_one(&l->suspect))
		return backlog_unsent(b, iov, n);
	if (b->sent > 0 || b->count == 0)
		return 0;
	if (b->partial == 0 && !l->announced && backlog_seq(b, 0) == l->suspect.condemned &&
	    !announce(l))
		return 0;
	return backlog_unsent_one(b, iov);
}
