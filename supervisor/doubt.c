/*
 * Messages in doubt: an earlier run has received them, the broker has no acknowledgement of them,
 * and only the database knows whether it has them. As long as it answers, it is asked before the
 * broker is called. If it does not, the broker is called all the same after --spool-after, and what
 * it sends again of them goes to the spool as the records that they were, of their stream, lane and
 * seq; when the database is back, its progress rows say which of these it has.
 *
 * Must never call a message durable that is neither in the spool nor known to be committed.
 */
#include <string.h>

#include "clock.h"
#include "log.h"
#include "service.h"

/* 1 if a message of an earlier stream is in the spool, 0 if it is not, -1 if that cannot be read.
 */
static int
in_spool(struct service *s, const char *stream, const struct resume_entry *e)
{
	return s->spool.old_records == 0 ? 0 : spool_has(&s->spool, stream, e->lane, e->seq);
}

/*
 * After the list and the spool have been opened: what of the list is in the spool is durable; of a
 * run that never had the database, the rest is gone. Returns how many are in doubt.
 */
uint64_t
doubt_load(struct service *s)
{
	const char *running = s->store.running;
	struct resume_entry *e;
	uint64_t at, left = 0;
	uint8_t before;

	for (at = s->resume.head; at < s->resume.tail; at++) {
		e = resume_at(&s->resume, at);
		before = e->fate;
		if (e->fate == RESUME_LIVE && *running != '\0')
			e->fate = in_spool(s, running, e) == 1 ? RESUME_DURABLE : RESUME_GONE;
		else if (e->fate == RESUME_LIVE)
			e->fate = RESUME_DOUBT;
		if (e->fate == RESUME_DOUBT && in_spool(s, s->store.live, e) == 1)
			e->fate = RESUME_DURABLE;
		if (e->fate != before)
			resume_touch(&s->resume, at, at + 1);
		left += e->fate == RESUME_DOUBT;
	}
	return left;
}

/*
 * The stream in doubt is closed, and what of it is in the spool is not committed. Sets *stored to
 * how many of those that were still in doubt are stored, and *gone to how many are not. Returns -1
 * when the spool cannot be read: nothing is settled then.
 */
int
doubt_settle(
    struct service *s, const uint64_t *committed, size_t lanes, uint64_t *stored, uint64_t *gone)
{
	struct resume_entry *e;
	uint64_t at, n = 0, before = resume_count_gone(&s->resume);
	int found;

	for (at = s->resume.head; at < s->resume.tail; at++) {
		e = resume_at(&s->resume, at);
		if (e->fate != RESUME_DOUBT)
			continue;
		found = in_spool(s, s->store.live, e);
		if (found == -1)
			return -1;
		if (found == 1)
			e->fate = RESUME_DURABLE;
		n += found == 0;
	}
	resume_settle(&s->resume, committed, lanes);
	*gone = resume_count_gone(&s->resume) - before;
	*stored = n - *gone;
	return 0;
}

/* When the broker is called without waiting for the database any longer. */
int64_t
doubt_deadline(const struct service *s)
{
	return s->doubtful && !s->in_doubt && !s->claimed && s->cfg->spool_limit > 0 &&
		s->state == STATE_RUN
	    ? s->doubt_at
	    : CLOCK_NEVER;
}

/* Calls the broker if it is time to. */
void
doubt_step(struct service *s)
{
	int i;

	if (s->now < doubt_deadline(s) || s->claimed)
		return;
	s->doubt_at = s->now + CLOCK_SECOND;
	/* From now on the list has entries of two streams, and must say which are ours. */
	if (store_run_in_doubt(&s->store, s->stream, &s->resume) == -1) {
		log_error("state_not_written", LOG_S("state_dir", s->cfg->state_dir),
		    LOG_S("reason", s->store.file.why),
		    LOG_S(
			"next", "the broker is not called before it can be written; trying again"));
		return;
	}
	s->in_doubt = true;
	s->spooling_reason = "messages of an earlier run are in doubt";
	for (i = 0; i < s->lane_count; i++)
		s->lanes[i].spool.on = true;
	log_warn("stream_in_doubt", LOG_S("stream", s->store.live),
	    LOG_U("messages", s->resume.tail - s->resume.head),
	    LOG_S("reason", "the database has not said within --spool-after which of them it has"),
	    LOG_S("next",
		"calling the broker; what it sends goes to the spool, and the database is asked "
		"when it answers"));
	s->called = true;
	mqtt_go(&s->mqtt, s->now);
}

/* ---- what comes again ---- */

/*
 * A message in doubt has come again. Returns 0 when it is in the spool or on its way there, -1 when
 * memory is short.
 */
int
doubt_put(struct service *s, struct record *r, uint64_t position)
{
	const struct resume_entry *e = resume_at(&s->resume, position);
	struct burst *d;
	int found;

	if (e->lane >= MESSAGE_LANES_MAX)
		return -1;
	d = &s->doubt[e->lane];
	if (d->count > 0 && e->seq <= d->last && e->seq >= d->first)
		return 0;
	found = in_spool(s, s->store.live, e);
	if (found != 0)
		return found == 1 ? 0 : -1;
	r->seq = e->seq;
	if (burst_add(d, r) == -1)
		return -1;
	s->spool_found++;
	return 0;
}

/* Messages that are on their way to the spool. */
uint64_t
doubt_pending(const struct service *s)
{
	uint64_t n = 0;
	int i;

	for (i = 0; s->in_doubt && i < MESSAGE_LANES_MAX; i++)
		n += s->doubt[i].count;
	return n;
}

/*
 * The stream is closed, and these have not got into the spool: they are the broker's to send again,
 * on a new connection, where they are told by what the database has said.
 */
void
doubt_give_back(struct service *s)
{
	int i;

	if (doubt_pending(s) == 0)
		return;
	for (i = 0; i < MESSAGE_LANES_MAX; i++) {
		s->spool_found -= s->doubt[i].count;
		burst_free(&s->doubt[i]);
	}
	mqtt_drop(&s->mqtt);
}

/* Puts them into a transaction. Returns -1 with the reason in the spool's why. */
int
doubt_write(struct service *s)
{
	int i;

	for (i = 0; i < MESSAGE_LANES_MAX; i++) {
		if (s->doubt[i].count > 0 &&
		    spool_put(&s->spool, s->store.live, i, &s->doubt[i], 0) == -1)
			return -1;
	}
	return 0;
}

/* The transaction is on the disk. */
void
doubt_written(struct service *s)
{
	int i;

	for (i = 0; i < MESSAGE_LANES_MAX; i++) {
		s->spool.old_records += s->doubt[i].count;
		burst_free(&s->doubt[i]);
	}
}
