/*
 * What a session does with progress rows: claims the session's messages, takes its lane's row,
 * shuts and forgets other streams, and ends the backend of a predecessor that stands in the way.
 *
 * Must never call a row its own that another may still move, nor READY a lane of which it cannot be
 * said what is committed.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "failpoint.h"
#include "log.h"
#include "session_steps.h"

/*
 * An instance that has found another one here waits for as long after that was last seen: the other
 * may have lost its connections for a moment only, and has the messages in its hands.
 */
#define RIVAL_GONE_AFTER (30 * CLOCK_SECOND)

/* Two instances on one session would each store what the broker sends to both in turn. */
static enum session_event
give_way(struct session *s, bool rival, int64_t now)
{
	trouble_set(&s->trouble, TROUBLE_CLAIMED,
	    rival ? "another ingestd with the same client id and broker, and another state "
		    "directory, writes into this database: each would store what the other has "
		    "stored; stop one of them, or give it its own --client-id"
		  : "another ingestd with the same client id and broker, and another state "
		    "directory, has been here and may come back: it has to be away for 30 s");
	return session_fail(s, now);
}

static bool
sees_rival(const struct session *s)
{
	return strcmp(pg_value(&s->pg, 0, 0), "0") != 0;
}

/*
 * Nobody is to be kept away by one that does not stay: the sign goes up when all others are gone.
 * One of which there are only rows counts as just seen when we find them.
 */
enum session_event
session_on_looked(struct session *s, int64_t now)
{
	bool rival = sees_rival(s), left_rows = strcmp(pg_value(&s->pg, 0, 1), "0") != 0;

	if (rival || (left_rows && s->rival_seen == 0))
		s->rival_seen = now;
	if (s->rival_seen != 0 && now - s->rival_seen < RIVAL_GONE_AFTER)
		return give_way(s, rival, now);
	return session_step_own(s, SESSION_CLAIMING, progress_claim_sql(&s->progress), now);
}

/* Of two that put it up at the same moment each sees the other, and both give way. */
enum session_event
session_on_claimed(struct session *s, int64_t now)
{
	if (FAILPOINT("before_take"))
		return session_fail_with(s, "failpoint", now);
	if (sees_rival(s)) {
		s->rival_seen = now;
		return give_way(s, true, now);
	}
	return session_step_own(s, SESSION_TAKING, progress_take_sql(&s->progress), now);
}

enum session_event
session_on_taken(struct session *s, int64_t now)
{
	struct progress *p = &s->progress;
	uint64_t seq, dead_letters;

	if (s->pg.not_durable)
		return session_fail_with(
		    s, "the server stopped waiting for its synchronous standby", now);
	if (pg_rows(&s->pg) != 1 || (p->held && *pg_value(&s->pg, 0, 2) == 't'))
		return SESSION_FENCED;
	if (*pg_value(&s->pg, 0, 2) == 't') {
		trouble_set(&s->trouble, TROUBLE_CLAIMED,
		    "the stream %s has been closed by another ingestd with the same client id and "
		    "broker, which has taken over: stop that one, and start this one anew",
		    p->stream);
		return session_fail(s, now);
	}
	seq = strtoull(pg_value(&s->pg, 0, 0), NULL, 10);
	dead_letters = strtoull(pg_value(&s->pg, 0, 1), NULL, 10);
	/* Once it is ours nobody else moves it; a backup that is restored moves it back. */
	if (p->held && seq > p->committed && !(s->refused && seq == s->pending_seq))
		return SESSION_FENCED;
	if (p->held && seq < p->committed)
		log_error("database_went_back", LOG_U("committed", p->committed),
		    LOG_U("found", seq),
		    LOG_S("reason",
			"the progress row is older than what was committed: was a backup "
			"restored?"),
		    LOG_S("next",
			"going on from there; what was acknowledged meanwhile does not come "
			"again"));
	/* The commit whose answer was lost has happened. */
	if (s->refused && seq == s->pending_seq)
		session_note_committed(s, now);
	p->held = true;
	p->committed = seq;
	p->dead_letters = dead_letters;
	s->state = SESSION_READY;
	/* With a refused batch it is not well again before that one is committed. */
	if (s->refused)
		return SESSION_NOTHING;
	s->failures = 0;
	return SESSION_IS_READY;
}

/* ---- other streams ---- */

/*
 * Shuts another stream, so that none of its writers can commit any more, and reads how far it had
 * come; the session must be READY, as below. Waits for a transaction of theirs;
 * SESSION_CLOSED_STREAM follows, or trouble, after which it is to be called again.
 */
enum session_event
session_close_stream(struct session *s, const char *stream, int64_t now)
{
	snprintf(s->other, sizeof(s->other), "%s", stream);
	s->other_lane = -1;
	s->since = now;
	return session_step_own(s, SESSION_CLOSING, progress_close_sql(stream), now);
}

/* Removes a stream's progress rows, or its lane's; lane is -1 for all. SESSION_FORGOT follows. */
enum session_event
session_forget(struct session *s, const char *stream, int lane, int64_t now)
{
	snprintf(s->other, sizeof(s->other), "%s", stream);
	s->other_lane = lane;
	s->since = now;
	return session_step_own(s, SESSION_FORGETTING, progress_forget_sql(stream, lane), now);
}

enum session_event
session_on_closed(struct session *s, int64_t now)
{
	size_t i;

	if (s->pg.not_durable)
		return session_fail_with(
		    s, "the server stopped waiting for its synchronous standby", now);
	s->lane_count = (size_t)pg_rows(&s->pg);
	if (s->lane_count > MESSAGE_LANES_MAX)
		s->lane_count = MESSAGE_LANES_MAX;
	for (i = 0; i < s->lane_count; i++)
		s->lanes[i] =
		    (struct lane_progress){.lane = strtoull(pg_value(&s->pg, (int)i, 0), NULL, 10),
			.committed = strtoull(pg_value(&s->pg, (int)i, 1), NULL, 10)};
	s->state = SESSION_READY;
	return SESSION_CLOSED_STREAM;
}

/* A predecessor holds the row for too long: stopped, or cut off from its server. */
enum session_event
session_evict(struct session *s, int64_t now)
{
	bool taking = s->state == SESSION_TAKING;

	s->evicting_for = s->state;
	return session_step_own(s, SESSION_EVICTING,
	    progress_evict_sql(
		taking ? s->progress.stream : s->other, taking ? s->progress.lane : s->other_lane),
	    now);
}

enum session_event
session_on_evicted(struct session *s, int64_t now)
{
	const char *n = pg_value(&s->pg, 0, 0);

	if (strcmp(n, "0") == 0) {
		trouble_set(&s->trouble, LOCK_TIMED_OUT,
		    "a progress row is locked in ingestd.progress, and by no writer of ours");
		return session_fail(s, now);
	}
	log_warn("predecessor_ended", LOG_S("backends", n),
	    LOG_S("reason", "it held its progress row for 5 s"),
	    LOG_S("next", "what it had not committed is stored again"));
	if (s->evicting_for == SESSION_TAKING)
		return session_step_own(s, SESSION_TAKING, progress_take_sql(&s->progress), now);
	if (s->evicting_for == SESSION_FORGETTING)
		return session_step_own(
		    s, SESSION_FORGETTING, progress_forget_sql(s->other, s->other_lane), now);
	return session_step_own(s, SESSION_CLOSING, progress_close_sql(s->other), now);
}
