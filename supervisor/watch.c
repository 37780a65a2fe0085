/*
 * What holds up the flow, looked at in every turn of the loop: which states hold, how many records
 * wait, and the lines that pressure.c finds due.
 *
 * Must never change anything of what it looks at.
 */
#include <stdio.h>
#include <time.h>

#include "clock.h"
#include "log.h"
#include "service.h"

/* ---- the database ---- */

/* The lanes in the same trouble with it. */
struct trouble {
	const struct lane *first; /* the one that is in it for longest, NULL if none is */
	int lanes;
	uint64_t waiting;
};

/* What a person has to mend, or what heals by itself. */
static struct trouble
find_trouble(const struct service *s, bool configuration)
{
	struct trouble t = {0};
	const struct lane *l;
	int i;

	for (i = 0; i < s->lane_count; i++) {
		l = &s->lanes[i];
		if (l->trouble_since == 0 ||
		    (l->trouble_class != TROUBLE_TRANSIENT) != configuration)
			continue;
		t.lanes++;
		t.waiting += l->backlog.count;
		if (t.first == NULL || l->trouble_since < t.first->trouble_since)
			t.first = l;
	}
	return t;
}

static const char *
next_of_trouble(const struct service *s, const struct lane *l)
{
	if (l->claimed)
		return "staying away from the broker until the other instance has been gone for "
		       "30 s";
	if (l->trouble_class == TROUBLE_DATA)
		return "holding; nothing is dropped; trying again every few seconds";
	if (s->cfg->spool_limit > 0 && l->trouble_class == TROUBLE_TRANSIENT)
		return "the writers go on trying; what is not committed within --spool-after goes "
		       "to the disk, and is acknowledged";
	if (s->cfg->spool_limit > 0)
		return "trying again every few seconds until it is mended; what is not committed "
		       "within --spool-after goes to the disk, and is acknowledged";
	return NULL;
}

static void
watch_trouble(struct service *s, enum pressure_state state, bool configuration)
{
	struct trouble t = find_trouble(s, configuration);
	struct pressure_line line;
	const struct lane *l = t.first;

	if (!pressure_set(&s->pressure, state, l != NULL, t.waiting, s->now, &line))
		return;
	if (l != NULL)
		pressure_log(&line, l->trouble_text, next_of_trouble(s, l),
		    LOG_FIELDS(LOG_I("lanes", t.lanes),
			LOG_S("class", trouble_name(l->trouble_class)),
			LOG_S("sqlstate",
			    *l->trouble_sqlstate != '\0' ? l->trouble_sqlstate : NULL)));
	else
		pressure_log(&line, NULL,
		    !configuration && pressure_told(&s->pressure, PRESSURE_DATABASE_CONFIGURATION)
			? "the database answers again, and refuses: see database_configuration"
			: NULL,
		    NULL);
}

/* ---- the spool, the backlog and the gate ---- */

static void
watch_spool(struct service *s)
{
	struct pressure_line line;
	bool full = spooling_full(s);

	if (pressure_set(&s->pressure, PRESSURE_SPOOLING, s->spooling_reason != NULL,
		spooling_count(s), s->now, &line))
		pressure_log(&line, line.phase == PRESSURE_ENDS ? NULL : s->spooling_reason, NULL,
		    LOG_FIELDS(LOG_U("bytes", s->spool.bytes)));
	if (!pressure_set(
		&s->pressure, PRESSURE_SPOOL_FULL, full, spooling_count(s), s->now, &line))
		return;
	pressure_log(&line,
	    line.phase == PRESSURE_ENDS ? NULL
		: s->spool_disk_full    ? "there is hardly room left on the disk of --state-dir"
					: "it has reached --spool-limit",
	    NULL, LOG_FIELDS(LOG_U("bytes", s->spool.bytes), LOG_I("limit", s->cfg->spool_limit)));
}

static void
watch_intake(struct service *s, const struct gate_view *v)
{
	const char *reason = gate_reason(&s->mqtt.gate, v);
	bool open = s->mqtt.state == MQTT_OPEN;
	const struct log_field *held = LOG_FIELDS(LOG_U("unacknowledged", s->mqtt.gate.held));
	struct pressure_line line;

	if (pressure_set(
		&s->pressure, PRESSURE_BACKLOG_FULL, !v->room, v->in_flight, s->now, &line))
		pressure_log(&line,
		    line.phase == PRESSURE_ENDS
			? NULL
			: "the backlog is full (--queue-limit, --queue-bytes)",
		    NULL, held);
	/* The same pause under its better name. */
	if (!v->room && !v->stuck)
		reason = NULL;
	if (!pressure_set(&s->pressure, PRESSURE_GATE_WAITING, open && reason != NULL, v->in_flight,
		s->now, &line))
		return;
	if (line.phase != PRESSURE_ENDS)
		pressure_log(&line, reason, NULL, held);
	else
		pressure_log(&line, NULL,
		    !open          ? "the connection has ended: the broker sends again what waited"
			: !v->room ? "the backlog has filled up meanwhile: reading waits for that"
				   : NULL,
		    NULL);
}

/* ---- the broker ---- */

static void
watch_broker(struct service *s)
{
	const struct mqtt *m = &s->mqtt;
	int64_t retry_in = m->state == MQTT_WAITING ? m->dialer.retry_at - s->now : 0;
	struct pressure_line line;

	if (!pressure_set(&s->pressure, PRESSURE_BROKER_UNREACHABLE, m->away_since != 0,
		mqtt_unacknowledged(m), s->now, &line))
		return;
	if (line.phase == PRESSURE_ENDS)
		pressure_log(&line, NULL,
		    m->on_hold ? "it is not called for now: see session_claimed" : NULL,
		    LOG_FIELDS(LOG_S("broker", m->broker)));
	else
		pressure_log(&line, *m->failure != '\0' ? m->failure : "no answer yet",
		    m->refused ? mqtt_retry_advice(m) : NULL,
		    LOG_FIELDS(LOG_S("broker", m->broker), LOG_U("attempts", m->attempts),
			retry_in > 0 ? LOG_T("retry_in", retry_in) : LOG_S("retry_in", NULL)));
}

/* A time as a person reads it. */
static void
format_time(char *out, size_t size, int64_t microseconds)
{
	time_t seconds = microseconds / CLOCK_SECOND;
	struct tm tm;

	*out = '\0';
	if (gmtime_r(&seconds, &tm) != NULL)
		strftime(out, size, "%Y-%m-%dT%H:%M:%SZ", &tm);
}

static void
watch_drops(struct service *s)
{
	struct drops_line line;
	char since[32];

	if (!drops_due(&s->mqtt.sys.drops, s->state != STATE_RUN, s->now, &line))
		return;
	format_time(since, sizeof(since), line.since);
	log_error("broker_dropped_messages", LOG_S("broker", s->mqtt.broker),
	    LOG_U(line.at_least ? "dropped_at_least" : "dropped", line.dropped),
	    LOG_S("since", since), LOG_U("counter", line.counter),
	    LOG_S("reason",
		"the broker has thrown messages away that it had acknowledged to their publishers, "
		"most likely because its queue for a client was full; it counts those of all "
		"clients together, so that they may or may not have been ours"),
	    LOG_S("next",
		"none: ingestd cannot get them back; set max_queued_messages 0 and "
		"max_queued_bytes 0 in mosquitto.conf, and see which client was away or slow"));
}

/* ---- the loop's hooks ---- */

/*
 * To be called in every turn of the loop, at its end. During a stop nothing is read and no broker
 * is called, so that only the database can still be news.
 */
void
watch_pressure(struct service *s, const struct gate_view *v)
{
	/* In this order, so that the better known is told before what it makes of the worse. */
	watch_trouble(s, PRESSURE_DATABASE_CONFIGURATION, true);
	watch_trouble(s, PRESSURE_DATABASE_UNREACHABLE, false);
	watch_spool(s);
	watch_drops(s);
	if (s->state != STATE_RUN)
		return;
	watch_intake(s, v);
	watch_broker(s);
}

/* When watch_pressure() may have a line although nothing else happens. */
int64_t
watch_deadline(const struct service *s)
{
	int64_t drops = drops_deadline(&s->mqtt.sys.drops),
		pressure = pressure_deadline(&s->pressure);

	if (s->state != STATE_RUN)
		return CLOCK_NEVER;
	return drops < pressure ? drops : pressure;
}
