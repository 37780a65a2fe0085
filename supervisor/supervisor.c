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
 * or a writer said.
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
#include "log.h"
#include "service.h"
#include "signals.h"

/*
 * The broker is called when all writers are ready, so that nobody's messages wait for nothing and
 * "mqtt connected" stands at the end of the log of a good start; or after this time.
 */
#define WRITERS_FIRST CLOCK_SECOND

/* ---- the broker's turn ---- */

/*
 * Another instance takes this session's messages and is at the database. As long as that lasts the
 * broker is left alone: each of the two would take the session, and store what the other has.
 */
static void
leave_broker_alone(struct service *s)
{
	bool was_ready = false;
	struct lane *l;
	int i;

	if (s->claimed)
		return;
	s->claimed = true;
	for (i = 0; i < s->lane_count; i++) {
		l = &s->lanes[i];
		was_ready = was_ready || l->was_ready;
		/* One that has not looked yet would not wait as long as those that have. */
		if (l->state == LANE_STARTING && !l->claimed) {
			l->claimed = true;
			lane_kill(l, NULL);
		}
	}
	log_error("session_claimed", LOG_S("broker", s->mqtt.broker),
	    LOG_S("client_id", s->cfg->client_id),
	    LOG_S("reason", "another instance takes the messages of this session"),
	    LOG_S("next", "staying away from the broker until that one has gone"));
	mqtt_hold(&s->mqtt);
	if (!was_ready)
		intake_hand_back(s);
}

static void
call_broker_when_ready(struct service *s)
{
	bool ready = true;
	int i;

	if (s->state != STATE_RUN)
		return;
	for (i = 0; i < s->lane_count; i++) {
		if (s->lanes[i].claimed)
			leave_broker_alone(s);
		ready = ready && s->lanes[i].state == LANE_READY && !s->lanes[i].claimed;
	}
	if (!ready || s->doubtful || (s->called && !s->claimed))
		return;
	s->called = true;
	s->claimed = false;
	mqtt_go(&s->mqtt, s->now);
}

/* ---- events ---- */

static void
reap(struct service *s)
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
			shutdown_begin(s, "a writer's configuration cannot work");
		shutdown_hurry(s, "a writer's configuration cannot work");
	}
}

static void
on_signals(struct service *s)
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
				shutdown_begin(s, NULL);
			else
				shutdown_hurry(s, "a second signal");
			break;
		default:
			log_info("signal_ignored", LOG_S("signal", signals_name(signo)));
			break;
		}
	}
}

static int64_t
next_deadline(const struct service *s)
{
	const int64_t others[] = {intake_deadline(s), past_deadline(s), spooling_deadline(s),
	    doubt_deadline(s), watch_deadline(s)};
	int64_t at = mqtt_deadline(&s->mqtt), other;
	size_t n;
	int i;

	for (n = 0; n < sizeof(others) / sizeof(others[0]); n++)
		at = others[n] < at ? others[n] : at;

	for (i = 0; i < s->lane_count; i++) {
		other = lane_deadline(&s->lanes[i]);
		at = other < at ? other : at;
	}
	/* Once the broker is being left, that has a deadline of its own. */
	if (s->state != STATE_RUN && s->mqtt.state != MQTT_PARTING && s->mqtt.state != MQTT_LEAVING)
		at = s->deadline < at ? s->deadline : at;
	/* The kernel tells nobody that a reader has emptied a socket: look again soon. */
	if (s->state == STATE_DRAIN || s->state == STATE_FLUSH)
		at = s->now + 5 * CLOCK_MS < at ? s->now + 5 * CLOCK_MS : at;
	return at;
}

static void
loop(struct service *s)
{
	struct pollfd *fds = calloc((size_t)s->lane_count + 2, sizeof(*fds));
	struct gate_view v = intake_view(s);
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
		v = intake_view(s);
		mqtt_gate(&s->mqtt, &v);
		mqtt_dispatch(&s->mqtt, fds[1].revents, &v);
		intake_save(s);
		spooling_step(s);
		for (i = 0; i < s->lane_count; i++) {
			/* After a kill nothing is respawned. */
			if (!s->killing)
				lane_check(&s->lanes[i], s->now);
			if (!s->lanes[i].blocked)
				lane_send(&s->lanes[i], s->now);
		}
		v = intake_view(s);
		mqtt_gate(&s->mqtt, &v);
		watch_pressure(s, &v);
		past_step(s);
		doubt_step(s);
		call_broker_when_ready(s);
		shutdown_step(s);
	}
	free(fds);
}

/* What the state directory holds, and what has to be done with it. */
static int
open_state(struct service *s)
{
	int rc = store_open(&s->store, s->cfg->state_dir);

	resume_init(&s->resume, (uint64_t)s->cfg->receive_maximum);
	if (rc != 0)
		return rc;
	if (store_load(&s->store, &s->resume) == -1) {
		log_error("state_dir_unusable", LOG_S("state_dir", s->cfg->state_dir),
		    LOG_S("reason", s->store.file.why), LOG_S("next", "giving up"));
		return EX_CANTCREAT;
	}
	if (mqtt_init(&s->mqtt, s->cfg, &s->store, &s->resume, s->now + WRITERS_FIRST) == -1) {
		log_error("start_failed", LOG_ERRNO(errno));
		return EX_OSERR;
	}
	mqtt_receiver(&s->mqtt, intake_receive, s);
	rc = spool_feed_open(s);
	return rc != 0 ? rc : past_open(s);
}

/* Whose messages these are: all that take them under this name from this broker. */
static uint32_t
session_hash(const struct service *s)
{
	return (uint32_t)XXH3_64bits_withSeed(s->cfg->client_id, strlen(s->cfg->client_id),
	    XXH3_64bits(s->mqtt.broker, strlen(s->mqtt.broker)));
}

static int
set_up(struct service *s)
{
	static const int signals[] = {SIGTERM, SIGINT, SIGHUP, SIGCHLD, SIGUSR1, SIGUSR2};
	uuid_t uuid;
	int i, rc;

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
	rc = open_state(s);
	if (rc != 0)
		return rc;
	s->lanes = calloc((size_t)s->cfg->writers, sizeof(*s->lanes));
	if (s->lanes == NULL) {
		log_error("start_failed", LOG_ERRNO(errno));
		return EX_OSERR;
	}
	s->owner = (struct lane_owner){
	    .cfg = s->cfg,
	    .stream = s->stream,
	    .session = session_hash(s),
	    .instance = (uint32_t)XXH3_64bits(s->cfg->instance, strlen(s->cfg->instance)),
	    .answer = past_answer,
	    .arg = s,
	};
	for (i = 0; i < s->cfg->writers; i++) {
		lane_init(&s->lanes[i], i, &s->owner);
		/* Behind what earlier runs have left there. */
		s->lanes[i].spool.on = s->spool.old_records > 0;
	}
	s->lane_count = (int)s->cfg->writers;
	return 0;
}

/* Runs until it is told to stop. Returns the exit status. cfg must be whole and checked. */
int
supervisor_run(const struct config *cfg)
{
	struct service s = {.cfg = cfg, .now = clock_monotonic()};
	int i, rc;

	rc = set_up(&s);
	if (rc != 0) {
		store_close(&s.store);
		spool_close(&s.spool);
		resume_free(&s.resume);
		return rc;
	}
	log_info("started", LOG_S("version", VERSION), LOG_I("pid", getpid()),
	    LOG_S("broker", s.mqtt.broker), LOG_S("client_id", cfg->client_id),
	    LOG_S("table", cfg->table), LOG_I("writers", s.lane_count), LOG_S("stream", s.stream),
	    LOG_S("state_dir", cfg->state_dir));
	past_announce(&s);
	for (i = 0; i < s.lane_count; i++)
		lane_spawn(&s.lanes[i], s.now);
	loop(&s);
	mqtt_free(&s.mqtt);
	for (i = 0; i < s.lane_count; i++)
		lane_free(&s.lanes[i]);
	free(s.lanes);
	store_close(&s.store);
	spool_close(&s.spool);
	resume_free(&s.resume);
	close(s.signals);
	return s.exit_status;
}
