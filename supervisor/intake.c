/*
 * From message to record, and the balance: each message that is taken is counted once, and
 * received = committed + dead-lettered + spooled + in flight.
 *
 * A message that the broker sends again is told from a new one here, with resume.c, and what was
 * read is noted in the state directory before a writer gets it. Must never let a record out that is
 * not noted: after a kill -9 it would be stored, and not recognised when it comes again.
 */
#include <errno.h>

#include "clock.h"
#include "failpoint.h"
#include "log.h"
#include "service.h"

/* A state directory that takes no writes is tried again so often, and told of so often. */
#define SAVE_RETRY CLOCK_SECOND
#define SAVE_LOGGED_EVERY (60 * CLOCK_SECOND)

/* ---- the balance ---- */

struct lane_totals
intake_totals(const struct service *s)
{
	struct lane_totals t = {0};
	int i;

	for (i = 0; i < s->lane_count; i++) {
		t.committed += s->lanes[i].totals.committed;
		t.dead_lettered += s->lanes[i].totals.dead_lettered;
		t.rows += s->lanes[i].totals.rows;
		t.batches += s->lanes[i].totals.batches;
	}
	return t;
}

struct gate_view
intake_view(const struct service *s)
{
	struct gate_view v = {
	    .now = s->now,
	    .stuck = s->save_failed != 0 || (s->spool_failed != 0 && spooling_any(s)),
	    .spool_full = spooling_full(s),
	};
	uint64_t bytes = 0;
	int i;

	for (i = 0; i < s->lane_count; i++) {
		v.in_flight += lane_in_flight(&s->lanes[i]);
		bytes += buffer_size(&s->lanes[i].spool.pending.bytes);
		/* What is in the spool as well was let in before, and holds nothing up. */
		if (s->lanes[i].backlog.count > s->lanes[i].spool.in_backlog)
			bytes += s->lanes[i].backlog.bytes;
	}
	v.in_flight += doubt_pending(s);
	v.room =
	    v.in_flight < (uint64_t)s->cfg->queue_limit && bytes < (uint64_t)s->cfg->queue_bytes;
	return v;
}

/* Messages that this run has taken and not handed back, and what it has found in the spool. */
uint64_t
intake_received(const struct service *s)
{
	return s->seq - s->seq_base - s->handed_back + s->spool_found;
}

/* ---- taking ---- */

static enum mqtt_receipt
no_memory(const struct record *r)
{
	log_error("record_not_taken", LOG_ERRNO(errno), LOG_U("payload_bytes", r->payload_size),
	    LOG_S("next", "dropping the connection, so that the broker sends it again"));
	return MQTT_NO_MEMORY;
}

/* Into the backlog, or behind what the spool holds of the lane. */
static int
take(struct service *s, struct lane *l, const struct record *r)
{
	if (l->spool.on)
		return burst_add(&l->spool.pending, r);
	if (l->backlog.count == 0)
		l->spool.progress_at = s->now;
	return backlog_append(&l->backlog, r);
}

/* A message becomes a record: of the lane of its topic, so that the order of a topic holds. */
enum mqtt_receipt
intake_receive(void *arg, struct record *r, const struct mqtt_identity *id)
{
	struct service *s = arg;
	int lane = (int)(id->topic_hash % (uint64_t)s->lane_count);
	struct resume_entry entry = {
	    .hash = id->hash, .packet_id = r->packet_id, .lane = (uint8_t)lane};
	enum resume_verdict verdict = RESUME_NEW;
	uint64_t position;

	if (r->qos > 0)
		verdict = resume_receive(&s->resume, r->packet_id, id->hash, id->dup, &position);
	if (verdict == RESUME_DOUBTFUL)
		return doubt_put(s, r, position) == 0 ? MQTT_TAKEN : no_memory(r);
	if (verdict == RESUME_KNOWN)
		return FAILPOINT("after_recognised") ? MQTT_NO_MEMORY : MQTT_TAKEN;
	entry.seq = r->seq = s->seq + 1;
	if (take(s, &s->lanes[lane], r) == -1)
		return no_memory(r);
	s->seq++;
	/* Not before it is in the backlog: what is in the list and nowhere else would be lost. */
	if (verdict == RESUME_AGAIN)
		resume_update(&s->resume, position, r->seq, (uint8_t)lane);
	else if (r->qos > 0 && resume_note(&s->resume, &entry) == -1)
		return no_memory(r);
	return intake_view(s).room && spooling_may_grow(&s->lanes[lane]) ? MQTT_TAKEN
									 : MQTT_TAKEN_FULL;
}

/* ---- noting ---- */

static void
hold_back(struct service *s, bool held)
{
	int i;

	for (i = 0; i < s->lane_count; i++)
		s->lanes[i].held_back = held;
}

static void
save_failed(struct service *s)
{
	if (s->save_failed == 0)
		s->save_failed = s->now;
	s->save_at = s->now + SAVE_RETRY;
	hold_back(s, true);
	if (!clock_lapsed(&s->save_logged, SAVE_LOGGED_EVERY, s->now))
		return;
	log_error("state_not_written", LOG_S("state_dir", s->cfg->state_dir),
	    LOG_S("reason", s->store.file.why), LOG_T("for", s->now - s->save_failed),
	    LOG_S("next",
		"holding: nothing more is read or stored before it can be written; trying again "
		"every second"));
}

/*
 * Notes what was read since the last call. To be called before anything of that is sent. A stop
 * does not wait for a state directory that cannot be written: what it commits it acknowledges.
 */
void
intake_save(struct service *s)
{
	const struct resume *r = &s->resume;

	if (s->save_failed != 0 && s->state != STATE_RUN)
		hold_back(s, false);
	if ((r->dirty_from >= r->dirty_to && !r->cut && !r->proven && s->save_failed == 0) ||
	    (s->save_failed != 0 && s->now < s->save_at))
		return;
	if (store_save(&s->store, &s->resume) == -1) {
		save_failed(s);
		if (s->state != STATE_RUN)
			hold_back(s, false);
		return;
	}
	if (FAILPOINT("after_note_before_send"))
		mqtt_drop(&s->mqtt);
	if (s->save_failed != 0) {
		log_info("state_written", LOG_S("state_dir", s->cfg->state_dir),
		    LOG_T("after", s->now - s->save_failed));
		s->save_failed = s->save_logged = 0;
		hold_back(s, false);
	}
}

int64_t
intake_deadline(const struct service *s)
{
	return s->save_failed != 0 ? s->save_at : CLOCK_NEVER;
}

/*
 * Another instance has the session's messages, and this one has never been let into the database:
 * what it has read meanwhile was given to nobody, is not acknowledged, and stays with the broker.
 */
void
intake_hand_back(struct service *s)
{
	uint64_t lost = 0;
	int i;

	/* What is in the spool has been acknowledged, or may be: it is ours to deliver. */
	if (spooling_any(s))
		return;
	for (i = 0; i < s->lane_count; i++) {
		lost += backlog_count_qos(&s->lanes[i].backlog, 0);
		s->handed_back += s->lanes[i].backlog.count;
		backlog_discard(&s->lanes[i].backlog);
	}
	resume_clear(&s->resume);
	if (lost > 0)
		log_error("records_left", LOG_U("qos0_lost", lost),
		    LOG_S("reason", "another instance takes this session's messages"));
}
