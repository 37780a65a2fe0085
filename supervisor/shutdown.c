/*
 * The stop, in steps; supervisor.c has the table.
 *
 *     SETTLE  intake is closed; commits still come in and acknowledgements go out; DISCONNECT
 *     DRAIN   what is in the backlogs goes to the writers
 *     FLUSH   the writers read to the end, commit and exit; a lane that still holds records gets
 *             another writer; what has not ended in time is killed
 *
 * Must never acknowledge what is not durable in order to be done sooner, and always be done in
 * time.
 */
#include <sysexits.h>

#include "clock.h"
#include "failpoint.h"
#include "log.h"
#include "service.h"

/*
 * For the broker to take the last acknowledgements. As long as it is commits that are waited for,
 * the time of the drain is used as well: what is committed while the session stands is
 * acknowledged, and does not come a second time. With 10 s each to drain and to flush, all fits a
 * container's 30 s.
 */
#define SETTLE_TIMEOUT (5 * CLOCK_SECOND)
#define LAST_ACKS_TIMEOUT CLOCK_SECOND
/* After SIGKILL a process is gone at once, unless the kernel itself holds it. */
#define KILL_TIMEOUT CLOCK_SECOND
/* For a writer whose database does not answer, when all that it holds is in the spool. */
#define SPOOLED_TIMEOUT CLOCK_SECOND

static void
log_left(struct service *s)
{
	if (s->left)
		return;
	s->left = true;
	log_info("mqtt_disconnected", LOG_S("broker", s->mqtt.broker),
	    LOG_U("unacknowledged", mqtt_unacknowledged(&s->mqtt)));
}

/* Enters SETTLE: nothing more is read from here on. reason is for the log, NULL for a signal. */
void
shutdown_begin(struct service *s, const char *reason)
{
	uint64_t in_flight = intake_view(s).in_flight;
	int64_t patience = SETTLE_TIMEOUT + s->cfg->drain_timeout + s->cfg->flush_timeout;

	log_info("shutdown_initiated", LOG_S("reason", reason), LOG_U("in_flight", in_flight),
	    in_flight > 0 ? LOG_T("patience", patience) : LOG_S("patience", NULL),
	    LOG_S("next",
		in_flight > 0 ? "waiting for commits; a second signal ends it at once" : NULL));
	s->state = STATE_SETTLE;
	s->deadline = s->now + SETTLE_TIMEOUT;
	s->drain_deadline = s->deadline + s->cfg->drain_timeout;
	mqtt_close_intake(&s->mqtt);
	if (FAILPOINT("after_intake_is_closed"))
		mqtt_abandon(&s->mqtt);
	/* Without a session there is nothing to acknowledge, and no new one is begun. */
	if (s->mqtt.state != MQTT_OPEN)
		mqtt_abandon(&s->mqtt);
}

static void
enter_flush(struct service *s, bool drained)
{
	uint64_t sent = 0;
	bool forget;
	int i;

	for (i = 0; i < s->lane_count; i++)
		sent += s->lanes[i].sent;
	if (drained)
		log_info("queue_drained", LOG_U("sent", sent));
	else
		log_warn("queue_drain_timeout", LOG_U("remaining", intake_view(s).in_flight),
		    LOG_U("sent", sent));
	/*
	 * When the broker has shown that it got every acknowledgement, nothing comes again, and
	 * nobody will ask what was committed.
	 */
	forget = s->resume.head == s->resume.tail && spooling_is_empty(s);
	if (forget) {
		/* Written down first: a list without its rows would look like a loss. */
		s->resume.cut = true;
		forget = store_save(&s->store, &s->resume) == 0;
	}
	for (i = 0; i < s->lane_count; i++)
		s->lanes[i].forget = forget;
	/* What is with the writers is to be committed; a lane that got no writer keeps the rest. */
	for (i = 0; i < s->lane_count && !drained; i++)
		lane_finish(&s->lanes[i]);
	s->state = STATE_FLUSH;
	s->deadline = s->now + s->cfg->flush_timeout;
	if (FAILPOINT("before_writers_are_told"))
		lane_kill(&s->lanes[0], "failpoint");
}

static void
kill_writers(struct service *s, const char *reason)
{
	int i;

	log_warn("writers_killed", LOG_S("reason", reason),
	    LOG_U("in_flight", intake_view(s).in_flight));
	s->killing = true;
	s->deadline = s->now + KILL_TIMEOUT;
	for (i = 0; i < s->lane_count; i++)
		lane_kill_for_good(&s->lanes[i]);
}

static bool
all_handed_over(const struct service *s)
{
	int i;

	for (i = 0; i < s->lane_count; i++) {
		if (!lane_handed_over(&s->lanes[i]))
			return false;
	}
	return true;
}

/* A second signal: no more patience. QoS 1 loses nothing even so, it stays with the broker. */
void
shutdown_hurry(struct service *s, const char *reason)
{
	if (s->state == STATE_SETTLE || s->state == STATE_DRAIN) {
		mqtt_abandon(&s->mqtt);
		log_left(s);
		enter_flush(s, all_handed_over(s));
	}
	if (!s->killing)
		kill_writers(s, reason);
}

/* Of what the broker has confirmed nothing is left in the list either. */
static void
save_last(struct service *s)
{
	if (s->resume.head == s->resume.tail)
		s->resume.cut = true;
	if (FAILPOINT("after_writers_are_gone") || store_save(&s->store, &s->resume) == -1 ||
	    store_sync(&s->store) == -1)
		log_warn("state_not_written", LOG_S("state_dir", s->cfg->state_dir),
		    LOG_S("reason", s->store.file.why),
		    LOG_S("next", "the next start asks the database what it needs not ask"));
}

static void
finish(struct service *s)
{
	struct lane_totals t = intake_totals(s);
	uint64_t unacknowledged = mqtt_unacknowledged(&s->mqtt), in_flight;
	uint64_t lost = 0;
	int i, alive = 0, killed = 0;

	for (i = 0; i < s->lane_count; i++) {
		killed += s->lanes[i].killed;
		if (!s->lanes[i].spool.on)
			lost += backlog_count_qos(&s->lanes[i].backlog, 0);
		alive += s->lanes[i].pid > 0;
	}
	spooling_finish(s);
	in_flight = intake_view(s).in_flight;
	log_info("workers_stopped", LOG_I("writers", s->lane_count), LOG_I("killed", killed),
	    LOG_I("left_behind", alive));
	log_info("batch_writer_flushed", LOG_U("records_written", t.rows),
	    LOG_U("batches_flushed", t.batches));
	log_info("db_pool_closed", LOG_I("connections", s->lane_count));
	if (in_flight > 0)
		log_error("records_left", LOG_U("qos0_lost", lost),
		    LOG_U("qos1_kept", in_flight - lost),
		    LOG_S("reason",
			"they could not be committed before the end; QoS 1 stays with the broker, "
			"QoS 0 does not come again"));
	if (s->exit_status == 0 && (unacknowledged > 0 || in_flight > 0))
		s->exit_status = s->spool_failed != 0 && in_flight > 0 ? EX_IOERR : EX_TEMPFAIL;
	save_last(s);
	log_info("shutdown_complete", LOG_U("received", intake_received(s)),
	    LOG_U("committed", t.committed), LOG_U("dead_lettered", t.dead_lettered),
	    LOG_U("spooled", spooling_count(s)), LOG_U("unacknowledged", unacknowledged));
	s->state = STATE_DONE;
}

static void
settle(struct service *s)
{
	struct gate_view v = intake_view(s);
	int i;

	if (s->mqtt.state == MQTT_OPEN && v.in_flight == 0 && s->mqtt.gate.held == 0 &&
	    !s->mqtt.gate.flushing)
		mqtt_leave(&s->mqtt, s->now);
	/* All durable, but late: the broker still gets a moment to take the acknowledgements. */
	if (v.in_flight > 0 && s->deadline < s->now + LAST_ACKS_TIMEOUT)
		s->deadline = s->now + LAST_ACKS_TIMEOUT;
	if (s->mqtt.state == MQTT_OPEN && (s->now >= s->deadline || s->now >= s->drain_deadline))
		mqtt_abandon(&s->mqtt);
	/* No new session is begun for a stop. */
	if (s->mqtt.state == MQTT_WAITING || s->mqtt.state == MQTT_CONNECTING)
		mqtt_abandon(&s->mqtt);
	if (s->mqtt.state != MQTT_CLOSED) {
		for (i = 0; i < s->lane_count; i++)
			lane_flush(&s->lanes[i], s->now);
		return;
	}
	log_left(s);
	s->state = STATE_DRAIN;
	/* What the settling did not use of its own time is no longer owed. */
	if (s->drain_deadline > s->now + s->cfg->drain_timeout)
		s->drain_deadline = s->now + s->cfg->drain_timeout;
	s->deadline = s->drain_deadline;
}

static void
drain(struct service *s)
{
	bool drained = all_handed_over(s);

	if (drained || s->now >= s->deadline)
		enter_flush(s, drained);
}

static void
flush(struct service *s)
{
	struct lane *l;
	int i, open = 0;

	for (i = 0; i < s->lane_count; i++) {
		l = &s->lanes[i];
		if (lane_handed_over(l))
			lane_finish(l);
		/* Down for good: nothing is respawned after a kill, nor for nothing. */
		if (l->state == LANE_DOWN && (s->killing || lane_in_flight(l) == 0))
			l->state = LANE_DONE;
		open += l->state != LANE_DONE;
		if (l->spool.on && lane_in_flight(l) == 0 && !l->killed &&
		    s->now >= s->deadline - s->cfg->flush_timeout + SPOOLED_TIMEOUT)
			lane_kill_for_good(l);
	}
	if (open > 0 && s->now >= s->deadline && !s->killing)
		kill_writers(s, "--flush-timeout is over");
	else if (open == 0 || (s->killing && s->now >= s->deadline))
		finish(s);
}

/* Moves on as far as it goes: an idle stop passes through all states in one turn. */
void
shutdown_step(struct service *s)
{
	enum service_state before;

	do {
		before = s->state;
		if (s->state == STATE_SETTLE)
			settle(s);
		else if (s->state == STATE_DRAIN)
			drain(s);
		else if (s->state == STATE_FLUSH)
			flush(s);
	} while (s->state != before && s->state != STATE_DONE);
}
