/*
 * The supervisor: one thread, one poll loop, and a stop in steps.
 *
 *     RUN     messages come in, records go out, commits open the gate
 *     SETTLE  intake is closed; commits still come in and acknowledgements go out; DISCONNECT
 *     DRAIN   what is in the backlogs goes to the writers
 *     FLUSH   the writers read to the end, commit and exit; a lane that still holds records gets
 *             another writer; what has not ended in time is killed
 *     DONE
 *
 * Must never block after its start, and never end because of what a broker, a payload, a database
 * or a writer said. Messages become records here and nowhere else, and each is counted once:
 * received = committed + dead-lettered + spooled + in flight.
 */
#include "supervisor.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>
#include <unistd.h>
#include <uuid/uuid.h>
#include <xxhash.h>

#include "children.h"
#include "clock.h"
#include "lane.h"
#include "log.h"
#include "mqtt.h"
#include "signals.h"

/*
 * For the broker to take the last acknowledgements. As long as it is commits that are waited for,
 * the time of the drain is used as well: what is committed while the session stands is
 * acknowledged, and does not come a second time. With 10 s each to drain and to flush, all fits a
 * container's 30 s.
 */
#define SETTLE_TIMEOUT (5 * CLOCK_SECOND)
#define LAST_ACKS_TIMEOUT CLOCK_SECOND
/*
 * The broker is called when all writers are ready, so that nobody's messages wait for nothing and
 * "mqtt connected" stands at the end of the log of a good start; or after this time.
 */
#define WRITERS_FIRST CLOCK_SECOND
/* After SIGKILL a process is gone at once, unless the kernel itself holds it. */
#define KILL_TIMEOUT CLOCK_SECOND
/* A pause in reading that is worth a line. */
#define PAUSE_LOGGED_AFTER (5 * CLOCK_SECOND)
#define PAUSE_LOGGED_EVERY (60 * CLOCK_SECOND)

enum state {
	STATE_RUN,
	STATE_SETTLE,
	STATE_DRAIN,
	STATE_FLUSH,
	STATE_DONE,
};

struct supervisor {
	const struct config *cfg;
	enum state state;
	int64_t deadline; /* of the state */
	int64_t drain_deadline;
	int signals;
	struct mqtt mqtt;
	struct lane *lanes;
	int lane_count;
	char stream[37];
	uint64_t seq; /* of the last record: also the count of those received */
	int64_t now;
	bool called;          /* the broker, for the first time */
	bool left;            /* mqtt_disconnected has been logged */
	bool killing;         /* the writers have got SIGKILL */
	int64_t paused_since; /* 0 while reading goes on */
	int64_t pause_logged;
	int exit_status;
};

/* ---- the balance ---- */

static struct lane_totals
totals(const struct supervisor *s)
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

static struct gate_view
view(const struct supervisor *s)
{
	struct gate_view v = {.now = s->now};
	uint64_t bytes = 0;
	int i;

	for (i = 0; i < s->lane_count; i++) {
		v.in_flight += s->lanes[i].backlog.count;
		bytes += s->lanes[i].backlog.bytes;
	}
	v.room =
	    v.in_flight < (uint64_t)s->cfg->queue_limit && bytes < (uint64_t)s->cfg->queue_bytes;
	return v;
}

/* ---- intake ---- */

/* A message becomes a record: of the lane of its topic, so that the order of a topic holds. */
static enum mqtt_receipt
receive(void *arg, struct record *r)
{
	struct supervisor *s = arg;
	struct lane *l = &s->lanes[XXH3_64bits(r->topic.s, r->topic.n) % (uint64_t)s->lane_count];

	r->seq = s->seq + 1;
	if (backlog_append(&l->backlog, r) == -1) {
		log_error("record_not_taken", LOG_ERRNO(errno),
		    LOG_U("payload_bytes", r->payload_size),
		    LOG_S("next", "dropping the connection, so that the broker sends it again"));
		return MQTT_NO_MEMORY;
	}
	s->seq++;
	return view(s).room ? MQTT_TAKEN : MQTT_TAKEN_FULL;
}

static void
call_broker_when_ready(struct supervisor *s)
{
	int i;

	for (i = 0; i < s->lane_count; i++) {
		if (s->lanes[i].state != LANE_READY)
			return;
	}
	s->called = true;
	mqtt_go(&s->mqtt, s->now);
}

/* A pause of milliseconds is how the gate works; one of seconds is news. */
static void
watch_pause(struct supervisor *s, const struct gate_view *v)
{
	const char *reason = gate_reason(&s->mqtt.gate, v);

	if (reason == NULL || s->mqtt.state != MQTT_OPEN || s->state != STATE_RUN) {
		if (s->pause_logged != 0 && reason == NULL && s->state == STATE_RUN)
			log_info("intake_resumed", LOG_T("after", s->now - s->paused_since));
		s->paused_since = s->pause_logged = 0;
		return;
	}
	if (s->paused_since == 0)
		s->paused_since = s->now;
	if (s->now - s->paused_since < PAUSE_LOGGED_AFTER ||
	    (s->pause_logged != 0 && s->now - s->pause_logged < PAUSE_LOGGED_EVERY))
		return;
	s->pause_logged = s->now;
	log_warn("intake_paused", LOG_S("reason", reason), LOG_T("for", s->now - s->paused_since),
	    LOG_U("in_flight", v->in_flight), LOG_U("unacknowledged", s->mqtt.gate.held),
	    LOG_S("next",
		"waiting for commits; the session is kept alive, the broker holds what comes"));
}

/* ---- stopping ---- */

static void
log_left(struct supervisor *s)
{
	if (s->left)
		return;
	s->left = true;
	log_info("mqtt_disconnected", LOG_S("broker", s->mqtt.broker),
	    LOG_U("unacknowledged", mqtt_unacknowledged(&s->mqtt)));
}

static void
enter_settle(struct supervisor *s, const char *reason)
{
	uint64_t in_flight = view(s).in_flight;
	int64_t patience = SETTLE_TIMEOUT + s->cfg->drain_timeout + s->cfg->flush_timeout;

	log_info("shutdown_initiated", LOG_S("reason", reason), LOG_U("in_flight", in_flight),
	    in_flight > 0 ? LOG_T("patience", patience) : LOG_S("patience", NULL),
	    LOG_S("next",
		in_flight > 0 ? "waiting for commits; a second signal ends it at once" : NULL));
	s->state = STATE_SETTLE;
	s->deadline = s->now + SETTLE_TIMEOUT;
	s->drain_deadline = s->deadline + s->cfg->drain_timeout;
	mqtt_close_intake(&s->mqtt);
	/* Without a session there is nothing to acknowledge, and no new one is begun. */
	if (s->mqtt.state != MQTT_OPEN)
		mqtt_abandon(&s->mqtt);
}

static void
enter_flush(struct supervisor *s, bool drained)
{
	uint64_t sent = 0;
	int i;

	for (i = 0; i < s->lane_count; i++)
		sent += s->lanes[i].sent;
	if (drained)
		log_info("queue_drained", LOG_U("sent", sent));
	else
		log_warn("queue_drain_timeout", LOG_U("remaining", view(s).in_flight),
		    LOG_U("sent", sent));
	/* What is with the writers is to be committed; a lane that got no writer keeps the rest. */
	for (i = 0; i < s->lane_count && !drained; i++)
		lane_finish(&s->lanes[i]);
	s->state = STATE_FLUSH;
	s->deadline = s->now + s->cfg->flush_timeout;
}

static void
kill_writers(struct supervisor *s, const char *reason)
{
	int i;

	log_warn("writers_killed", LOG_S("reason", reason), LOG_U("in_flight", view(s).in_flight));
	s->killing = true;
	s->deadline = s->now + KILL_TIMEOUT;
	for (i = 0; i < s->lane_count; i++)
		lane_kill_for_good(&s->lanes[i]);
}

static bool
all_handed_over(const struct supervisor *s)
{
	int i;

	for (i = 0; i < s->lane_count; i++) {
		if (!lane_handed_over(&s->lanes[i]))
			return false;
	}
	return true;
}

/* A second signal: no more patience. QoS 1 loses nothing even so, it stays with the broker. */
static void
hurry(struct supervisor *s, const char *reason)
{
	if (s->state == STATE_SETTLE || s->state == STATE_DRAIN) {
		mqtt_abandon(&s->mqtt);
		log_left(s);
		enter_flush(s, all_handed_over(s));
	}
	if (!s->killing)
		kill_writers(s, reason);
}

static void
finish(struct supervisor *s)
{
	struct lane_totals t = totals(s);
	uint64_t unacknowledged = mqtt_unacknowledged(&s->mqtt), in_flight = view(s).in_flight;
	uint64_t lost = 0;
	int i, alive = 0, killed = 0;

	for (i = 0; i < s->lane_count; i++) {
		killed += s->lanes[i].killed;
		lost += backlog_count_qos(&s->lanes[i].backlog, 0);
		alive += s->lanes[i].pid > 0;
	}
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
		s->exit_status = EX_TEMPFAIL;
	log_info("shutdown_complete", LOG_U("received", s->seq), LOG_U("committed", t.committed),
	    LOG_U("dead_lettered", t.dead_lettered), LOG_U("spooled", 0),
	    LOG_U("unacknowledged", unacknowledged));
	s->state = STATE_DONE;
}

static void
settle(struct supervisor *s)
{
	struct gate_view v = view(s);
	int i;

	if (s->mqtt.state == MQTT_OPEN && v.in_flight == 0 && s->mqtt.gate.held == 0)
		mqtt_leave(&s->mqtt, s->now);
	/* All durable, but late: the broker still gets a moment to take the acknowledgements. */
	if (v.in_flight > 0 && s->deadline < s->now + LAST_ACKS_TIMEOUT)
		s->deadline = s->now + LAST_ACKS_TIMEOUT;
	if (s->mqtt.state == MQTT_OPEN && (s->now >= s->deadline || s->now >= s->drain_deadline))
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
drain(struct supervisor *s)
{
	bool drained = all_handed_over(s);

	if (drained || s->now >= s->deadline)
		enter_flush(s, drained);
}

static void
flush(struct supervisor *s)
{
	struct lane *l;
	int i, open = 0;

	for (i = 0; i < s->lane_count; i++) {
		l = &s->lanes[i];
		if (lane_handed_over(l))
			lane_finish(l);
		/* Down for good: nothing is respawned after a kill, nor for nothing. */
		if (l->state == LANE_DOWN && (s->killing || l->backlog.count == 0))
			l->state = LANE_DONE;
		open += l->state != LANE_DONE;
	}
	if (open > 0 && s->now >= s->deadline && !s->killing)
		kill_writers(s, "--flush-timeout is over");
	else if (open == 0 || (s->killing && s->now >= s->deadline))
		finish(s);
}

/* Moves on as far as it goes: an idle stop passes through all states in one turn. */
static void
step(struct supervisor *s)
{
	enum state before;

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

/* ---- events ---- */

static void
reap(struct supervisor *s)
{
	int status, i, rc;
	pid_t pid;

	while ((pid = children_reap(&status)) != 0) {
		mqtt_reaped(&s->mqtt, pid);
		for (i = 0; i < s->lane_count && s->lanes[i].pid != pid; i++)
			;
		if (i == s->lane_count) {
			log_debug("child_reaped", LOG_I("pid", pid));
			continue;
		}
		rc = lane_died(&s->lanes[i], status, s->state == STATE_FLUSH, s->now);
		if (rc == 0)
			continue;
		s->exit_status = rc;
		if (s->state == STATE_RUN)
			enter_settle(s, "a writer's configuration cannot work");
		hurry(s, "a writer's configuration cannot work");
	}
}

static void
on_signals(struct supervisor *s)
{
	int signo;

	while ((signo = signals_next(s->signals)) != 0) {
		switch (signo) {
		case SIGCHLD:
			reap(s);
			break;
		case SIGTERM:
		case SIGINT:
			log_info("signal_received", LOG_S("signal", signals_name(signo)));
			if (s->state == STATE_RUN)
				enter_settle(s, NULL);
			else
				hurry(s, "a second signal");
			break;
		default:
			log_info("signal_ignored", LOG_S("signal", signals_name(signo)));
			break;
		}
	}
}

static int64_t
next_deadline(const struct supervisor *s)
{
	int64_t at = mqtt_deadline(&s->mqtt), other;
	int i;

	for (i = 0; i < s->lane_count; i++) {
		other = lane_deadline(&s->lanes[i]);
		at = other < at ? other : at;
	}
	/* Once the broker is being left, that has a deadline of its own. */
	if (s->state != STATE_RUN && s->mqtt.state != MQTT_LEAVING)
		at = s->deadline < at ? s->deadline : at;
	/* The kernel tells nobody that a reader has emptied a socket: look again soon. */
	if (s->state == STATE_DRAIN || s->state == STATE_FLUSH)
		at = s->now + 5 * CLOCK_MS < at ? s->now + 5 * CLOCK_MS : at;
	return at;
}

static void
loop(struct supervisor *s)
{
	struct pollfd *fds = calloc((size_t)s->lane_count + 2, sizeof(*fds));
	struct gate_view v = view(s);
	int i;

	if (fds == NULL) {
		log_error("out_of_memory", LOG_S("next", "giving up"));
		s->exit_status = EX_OSERR;
		return;
	}
	while (s->state != STATE_DONE) {
		fds[0] = (struct pollfd){.fd = s->signals, .events = POLLIN};
		mqtt_prepare(&s->mqtt, &fds[1], &v);
		for (i = 0; i < s->lane_count; i++)
			lane_prepare(&s->lanes[i], &fds[2 + i]);
		if (poll(fds, (nfds_t)s->lane_count + 2,
			clock_poll_timeout(s->now, next_deadline(s))) == -1)
			memset(fds, 0, ((size_t)s->lane_count + 2) * sizeof(*fds));
		s->now = clock_monotonic();

		/* Commits first: they make room and open the gate for what is read next. */
		for (i = 0; i < s->lane_count; i++)
			lane_dispatch(&s->lanes[i], fds[2 + i].revents, s->now);
		if (fds[0].revents != 0)
			on_signals(s);
		v = view(s);
		mqtt_gate(&s->mqtt, &v);
		mqtt_dispatch(&s->mqtt, fds[1].revents, &v);
		for (i = 0; i < s->lane_count; i++) {
			/* After a kill nothing is respawned. */
			if (!s->killing)
				lane_check(&s->lanes[i], s->now);
			if (!s->lanes[i].blocked)
				lane_send(&s->lanes[i], s->now);
		}
		v = view(s);
		mqtt_gate(&s->mqtt, &v);
		watch_pause(s, &v);
		if (!s->called)
			call_broker_when_ready(s);
		step(s);
	}
	free(fds);
}

static int
set_up(struct supervisor *s)
{
	static const int signals[] = {SIGTERM, SIGINT, SIGHUP, SIGCHLD, SIGUSR1, SIGUSR2};
	uuid_t uuid;
	int i;

	uuid_generate(uuid);
	uuid_unparse_lower(uuid, s->stream);
	s->signals = signals_open(signals, sizeof(signals) / sizeof(signals[0]));
	if (s->signals == -1) {
		log_error("start_failed", LOG_S("step", "signalfd"), LOG_ERRNO(errno));
		return EX_OSERR;
	}
	if (children_find_writer() == -1) {
		log_error("start_failed",
		    LOG_S("reason",
			"there is no ingestd-writer beside ingestd, nor in ../libexec/ingestd/"),
		    LOG_S("next", "giving up; install both programs together"));
		return EX_CONFIG;
	}
	s->lanes = calloc((size_t)s->cfg->writers, sizeof(*s->lanes));
	if (s->lanes == NULL ||
	    mqtt_init(&s->mqtt, s->cfg, receive, s, s->now + WRITERS_FIRST) == -1) {
		log_error("start_failed", LOG_ERRNO(errno));
		return EX_OSERR;
	}
	for (i = 0; i < s->cfg->writers; i++)
		lane_init(&s->lanes[i], i, s->cfg, s->stream);
	s->lane_count = (int)s->cfg->writers;
	return 0;
}

/* Runs until it is told to stop. Returns the exit status. cfg must be whole and checked. */
int
supervisor_run(const struct config *cfg)
{
	struct supervisor s = {.cfg = cfg, .now = clock_monotonic()};
	int i, rc;

	rc = set_up(&s);
	if (rc != 0)
		return rc;
	log_info("started", LOG_S("version", VERSION), LOG_I("pid", getpid()),
	    LOG_S("broker", s.mqtt.broker), LOG_S("client_id", cfg->client_id),
	    LOG_S("table", cfg->table), LOG_I("writers", s.lane_count), LOG_S("stream", s.stream),
	    LOG_S("state_dir", cfg->state_dir));
	for (i = 0; i < s.lane_count; i++)
		lane_spawn(&s.lanes[i], s.now);
	loop(&s);
	mqtt_abandon(&s.mqtt);
	for (i = 0; i < s.lane_count; i++)
		lane_free(&s.lanes[i]);
	free(s.lanes);
	close(s.signals);
	return s.exit_status;
}
