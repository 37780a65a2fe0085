/*
 * The streams of earlier runs: the last of them is closed in the database before the broker is
 * called, and the progress rows of all of them are removed.
 *
 * A writer does it, in the database: CLOSE makes sure that no writer of that stream commits any
 * more, and tells what it had committed; only when that is written down here may FORGET remove the
 * rows. Must never take messages from the broker before, since it could not be said which of them
 * are stored.
 */
#include <stdio.h>
#include <string.h>
#include <sysexits.h>

#include "clock.h"
#include "failpoint.h"
#include "log.h"
#include "service.h"

#define RETRY CLOCK_SECOND
#define LOGGED_EVERY (60 * CLOCK_SECOND)

/* ---- at the start ---- */

static int
unusable(const struct service *s)
{
	log_error("state_dir_unusable", LOG_S("state_dir", s->cfg->state_dir),
	    LOG_S("file", "state.db"), LOG_S("reason", s->store.file.why),
	    LOG_S("next", "giving up; is the disk full?"));
	return EX_CANTCREAT;
}

/*
 * After the list and the spool have been opened: is there anything that the broker may send again,
 * of which only the database knows whether it is stored? Returns 0, or the exit status with the
 * reason logged.
 */
int
past_open(struct service *s)
{
	s->past_left = true;
	s->doubtful = doubt_load(s) > 0;
	s->doubt_at = s->now + s->cfg->spool_after;
	s->closing = s->doubtful || s->spool.old_records > 0;
	if (s->doubtful)
		mqtt_hold(&s->mqtt);
	/* Noted before a writer can make a row of it. */
	if (store_note_stream(&s->store, s->stream) == -1)
		return unusable(s);
	if (!s->doubtful && store_begin_stream(&s->store, s->stream, &s->resume) == -1)
		return unusable(s);
	return 0;
}

/* What the start has to wait for. */
void
past_announce(const struct service *s)
{
	if (!s->doubtful)
		return;
	log_info("stream_to_close", LOG_S("stream", s->store.live),
	    LOG_U("messages", s->resume.tail - s->resume.head),
	    LOG_S("reason",
		"the run before does not know whether the broker got its acknowledgements"),
	    LOG_S("next", "asking the database which of them are stored, then calling the broker"));
}

/* ---- closing ---- */

static void
try_again(struct service *s, const char *why)
{
	s->errand_at = s->now + RETRY;
	if (!clock_lapsed(&s->errand_logged, LOGGED_EVERY, s->now))
		return;
	log_error(why == s->spool.file.why ? "spool_failed" : "state_not_written",
	    LOG_S("state_dir", s->cfg->state_dir), LOG_S("reason", why),
	    LOG_S("next",
		s->doubtful ? "the broker is not called before it can be written; trying again"
		    : s->closing
		    ? "what is in the spool is not stored before it can be written; trying again"
		    : "going on, and trying again"));
}

static void
log_closed(
    const struct service *s, const struct lane *l, size_t lanes, uint64_t stored, uint64_t gone)
{
	log_info("stream_closed", LOG_S("stream", s->store.live), LOG_U("stored", stored),
	    LOG_U("not_stored", gone),
	    LOG_S("next",
		s->in_doubt ? "what the broker has sent of them waits in the spool, and is stored "
			      "if it is not"
			    : "calling the broker; what it sends again of them is recognised"));
	if (lanes > 0 || s->store.database[0] == '\0')
		return;
	if (strcmp(s->store.database, l->database) == 0)
		log_warn("progress_missing", LOG_S("stream", s->store.live),
		    LOG_S("reason",
			"the database has no progress rows of the run before: was a backup "
			"restored, or have they been removed?"),
		    LOG_S("next",
			"what the broker sends again is stored; if the rows were removed by hand, "
			"duplicates are possible"));
}

/* The list's stream has been closed: from here on ours is live. */
static void
settle_list(struct service *s, const struct lane *l, const uint64_t *committed, size_t lanes)
{
	uint64_t stored, gone;

	if (doubt_settle(s, committed, MESSAGE_LANES_MAX, &stored, &gone) == -1) {
		try_again(s, s->spool.file.why);
		return;
	}
	doubt_give_back(s);
	if (store_begin_stream(&s->store, s->stream, &s->resume) == -1) {
		try_again(s, s->store.file.why);
		return;
	}
	if (FAILPOINT("after_close_is_noted"))
		lane_kill(&s->lanes[l->index], "failpoint");
	log_closed(s, l, lanes, stored, gone);
	s->doubtful = s->in_doubt = false;
}

static void
on_closed(struct service *s, const struct lane *l, const struct message *m)
{
	uint64_t committed[MESSAGE_LANES_MAX] = {0};
	int64_t stored;
	size_t i;

	for (i = 0; i < m->closed.count; i++) {
		if (m->closed.lanes[i].lane < MESSAGE_LANES_MAX)
			committed[m->closed.lanes[i].lane] = m->closed.lanes[i].committed;
	}
	/* First, so that of the list's stream nothing is sent when only this is written. */
	if (s->spool.old_records > 0) {
		if (FAILPOINT("before_spool_is_settled"))
			lane_kill(&s->lanes[l->index], "failpoint");
		stored = spool_close_stream(&s->spool, s->other, committed, MESSAGE_LANES_MAX);
		if (stored == -1) {
			try_again(s, s->spool.file.why);
			return;
		}
		s->spool_found -= (uint64_t)stored;
		if (FAILPOINT("after_spool_is_settled"))
			lane_kill(&s->lanes[l->index], "failpoint");
		log_info("spool_settled", LOG_S("stream", s->other), LOG_I("stored", stored),
		    LOG_U("left", s->spool.old_records));
	}
	if (s->doubtful && strcmp(s->other, s->store.live) == 0)
		settle_list(s, l, committed, m->closed.count);
	s->past_left = true;
}

/* A writer has done what it was asked for. */
void
past_answer(void *arg, struct lane *l, const struct message *m)
{
	struct service *s = arg;
	const struct text *stream = m->type == MESSAGE_CLOSED ? &m->closed.stream : &m->stream;

	if (s->asked != l || stream->n != strlen(s->other) ||
	    memcmp(stream->s, s->other, stream->n) != 0 ||
	    (m->type == MESSAGE_CLOSED) != (s->errand == MESSAGE_CLOSE)) {
		lane_kill(l, "it answers what it was not asked");
		return;
	}
	s->asked = NULL;
	if (m->type == MESSAGE_CLOSED)
		on_closed(s, l, m);
	else if (store_forget_stream(&s->store, s->other) == -1)
		try_again(s, s->store.file.why);
	else
		log_debug("stream_forgotten", LOG_S("stream", s->other));
}

/* ---- asking ---- */

/* The first READY says which database it is. */
static void
note_database(struct service *s, const struct lane *l)
{
	if (s->database_noted || s->closing)
		return;
	if (s->store.database[0] != '\0' && strcmp(s->store.database, l->database) != 0)
		log_warn("database_changed", LOG_S("was", s->store.database),
		    LOG_S("is", l->database),
		    LOG_S("reason", "the run before wrote into another database"),
		    LOG_S("next",
			"going on; what was received and not acknowledged is stored in this one, "
			"even if that one has it"));
	s->database_noted = store_note_database(&s->store, l->database) == 0;
}

static bool
is_waiting(struct service *s)
{
	if (s->asked == NULL)
		return s->now < s->errand_at;
	/* Its writer has died, and took the question along. */
	if (s->asked->pid != s->asked_pid || s->asked->state != LANE_READY)
		s->asked = NULL;
	return s->asked != NULL;
}

/* Asks a writer for the next thing that is to be done, if there is any. */
void
past_step(struct service *s)
{
	struct lane *l = NULL;
	int i;

	for (i = 0; i < s->lane_count && l == NULL; i++)
		l = s->lanes[i].state == LANE_READY ? &s->lanes[i] : NULL;
	if (l == NULL || s->state != STATE_RUN || is_waiting(s))
		return;
	note_database(s, l);
	if (s->doubtful)
		snprintf(s->other, sizeof(s->other), "%s", s->store.live);
	else if (s->closing)
		s->closing = spool_next_unclosed(&s->spool, s->stream, s->other) != 0;
	if (s->closing && s->other[0] == '\0') {
		try_again(s, s->spool.file.why);
		return;
	}
	if (s->closing) {
		s->errand = MESSAGE_CLOSE;
	} else {
		s->past_left = s->past_left && store_next_past(&s->store, s->stream, s->other) == 1;
		if (!s->past_left)
			return;
		s->errand = MESSAGE_FORGET;
	}
	if ((s->closing && FAILPOINT("before_close_is_asked")) ||
	    (!s->closing && FAILPOINT("before_forget_is_asked"))) {
		lane_kill(l, "failpoint");
		return;
	}
	if (!lane_ask(l, s->errand, s->other, s->now))
		return;
	s->asked = l;
	s->asked_pid = l->pid;
}

int64_t
past_deadline(const struct service *s)
{
	return s->asked == NULL && s->errand_at > s->now ? s->errand_at : CLOCK_NEVER;
}
