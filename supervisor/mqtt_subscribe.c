/*
 * What the broker's session is subscribed to, and the note of that in the state directory:
 * SUBSCRIBE, UNSUBSCRIBE of filters that an earlier run had and this one has not, and their
 * answers.
 *
 * The note holds every filter that the session may have, so that none is ever left behind: old and
 * new ones before SUBSCRIBE goes out, the new ones alone when the broker has confirmed both.
 */
#include "mqtt_subscribe.h"

#include <errno.h>
#include <mosquitto.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "failpoint.h"
#include "log.h"
#include "mqtt_wire.h"

#define RESUBSCRIBE_AFTER (60 * CLOCK_SECOND)
#define SUBOPT_RETAIN_NEW 0x10
/*
 * A filter that nobody has: its UNSUBSCRIBE changes nothing, must be answered nevertheless
 * [MQTT-3.10.4-5], and is read by the broker behind the PUBACKs in front of it. A PINGREQ would do
 * as well, but libmosquitto has no callback for its answer.
 */
#define BARRIER_FILTER "$ingestd/acknowledged"

/* ---- the note ---- */

static bool
is_ours(const struct mqtt *m, const char *filter)
{
	int i;

	for (i = 0; i < m->cfg->subscribe_count; i++) {
		if (strcmp(m->cfg->subscribe[i], filter) == 0)
			return true;
	}
	return false;
}

/*
 * The QoS, then a filter a line. unconfirmed: with those that are to go, and a mark, since what was
 * asked for may never have reached the broker. NULL without memory.
 */
static char *
note_text(const struct mqtt *m, bool unconfirmed)
{
	char *text = NULL;
	size_t n;
	FILE *f = open_memstream(&text, &n);
	int i;

	if (f == NULL)
		return NULL;
	fprintf(f, "%s%d\n", unconfirmed ? "?" : "", (int)m->cfg->qos);
	for (i = 0; i < m->cfg->subscribe_count; i++)
		fprintf(f, "%s\n", m->cfg->subscribe[i]);
	for (i = 0; unconfirmed && i < m->gone_count; i++)
		fprintf(f, "%s\n", m->gone[i]);
	if (fclose(f) == 0)
		return text;
	free(text);
	return NULL;
}

/* Failure costs a warning: the next start knows less then, and loses nothing. */
static void
save_note(struct mqtt *m, bool unconfirmed)
{
	char *text = note_text(m, unconfirmed);

	if (text == NULL || store_save_session(m->store, m->broker, m->cfg->client_id, text) == -1)
		log_warn("session_not_noted", LOG_S("state_dir", m->cfg->state_dir),
		    LOG_S("reason", text == NULL ? "out of memory" : m->store->file.why),
		    LOG_S("next",
			"going on; the next start will not know what this session is "
			"subscribed to"));
	free(text);
}

/* Filters of the note that are not configured any more; they point into the note. */
static int
find_gone(struct mqtt *m, char *filters)
{
	char *line, *save = NULL, **list;

	strtok_r(filters, "\n", &save);
	while ((line = strtok_r(NULL, "\n", &save)) != NULL) {
		if (is_ours(m, line))
			continue;
		list = reallocarray(m->gone, (size_t)m->gone_count + 1, sizeof(*list));
		if (list == NULL)
			return -1;
		m->gone = list;
		list[m->gone_count++] = line;
	}
	return 0;
}

/*
 * Reads what the store knows of the session. Returns false when that is another session's: of
 * another broker, or under another client id. errno ENOMEM, and -1 in *failed, without memory.
 */
bool
mqtt_read_note(struct mqtt *m, int *failed)
{
	const struct store_session *s = &m->store->session;
	char *text;

	*failed = 0;
	if (!s->known)
		return true;
	if (strcmp(s->broker, m->broker) != 0 || strcmp(s->client_id, m->cfg->client_id) != 0)
		return false;
	m->had_session = true;
	text = note_text(m, false);
	m->subscribed = text != NULL && strcmp(text, s->filters) == 0;
	if (text == NULL || find_gone(m, s->filters) == -1)
		*failed = -1;
	free(text);
	return true;
}

/* ---- SUBSCRIBE and UNSUBSCRIBE ---- */

static void
unsubscribe_gone(struct mqtt *m)
{
	int rc;

	if (m->gone_count == 0)
		return;
	rc = mosquitto_unsubscribe_multiple(
	    m->mosq, &m->unsubscribe_mid, m->gone_count, m->gone, NULL);
	if (rc != MOSQ_ERR_SUCCESS)
		log_error("mqtt_unsubscribe_failed", LOG_S("reason", mosquitto_strerror(rc)),
		    LOG_S("next", "trying again at the next connect"));
}

/* Subscribes to all filters; a refusal, here or in SUBACK, is tried again later. */
void
mqtt_subscribe(struct mqtt *m)
{
	int options = m->cfg->protocol == CONFIG_PROTOCOL_5 ? SUBOPT_RETAIN_NEW : 0, rc;

	m->resubscribe_at = CLOCK_NEVER;
	rc = mosquitto_subscribe_multiple(m->mosq, NULL, m->cfg->subscribe_count, m->cfg->subscribe,
	    (int)m->cfg->qos, options, NULL);
	if (rc != MOSQ_ERR_SUCCESS) {
		log_error("mqtt_subscribe_failed", LOG_S("reason", mosquitto_strerror(rc)),
		    LOG_S("next", "trying again in 60 s"));
		m->resubscribe_at = m->now + RESUBSCRIBE_AFTER;
	}
}

/* After CONNACK. Under 3.1.1 each SUBSCRIBE brings all retained messages again, so there only what
 * the broker cannot know is subscribed; retain handling 1 of MQTT 5 makes it harmless. */
void
mqtt_bring_subscriptions_up_to_date(struct mqtt *m, bool session_present)
{
	if (!session_present) {
		m->subscribed = false;
		m->gone_count = 0;
	}
	if (!m->subscribed)
		save_note(m, true);
	if (m->cfg->protocol == CONFIG_PROTOCOL_5 || !m->subscribed)
		mqtt_subscribe(m);
	else
		log_info("mqtt_subscription_kept", LOG_I("filters", m->cfg->subscribe_count));
	unsubscribe_gone(m);
	mqtt_sys_subscribe(m, session_present);
}

static void
log_refused(struct mqtt *m, const char *filter, int code)
{
	log_error("mqtt_subscribe_refused", LOG_S("filter", filter),
	    LOG_S("reason",
		m->cfg->protocol == CONFIG_PROTOCOL_5 ? mosquitto_reason_string(code)
						      : "the broker gives none (an access list?)"),
	    LOG_S("next", "trying again in 60 s; nothing of this filter comes until then"));
	m->resubscribe_at = m->now + RESUBSCRIBE_AFTER;
}

static void
on_suback(struct mosquitto *mosq, void *arg, int mid, int n, const int *granted,
    const mosquitto_property *props)
{
	struct mqtt *m = arg;
	char filters[1024] = "", qos[256] = "";
	size_t f = 0, q = 0;
	int i, refused = 0;
	bool before = m->subscribed;

	(void)mosq;
	(void)props;
	errno = 0;
	if (n > 0 && mqtt_sys_answered(m, mid, granted[0]))
		return;
	for (i = 0; i < n && i < m->cfg->subscribe_count; i++) {
		const char *filter = m->cfg->subscribe[i];

		if (granted[i] >= 0x80) {
			refused++;
			log_refused(m, filter, granted[i]);
			continue;
		}
		if (granted[i] < m->cfg->qos)
			log_warn("mqtt_granted_less", LOG_S("filter", filter),
			    LOG_I("asked", m->cfg->qos), LOG_I("granted", granted[i]),
			    LOG_S("reason",
				"the broker sends these messages without waiting for an "
				"acknowledgement: they can be lost"));
		/* What does not fit is cut off, as the log does with any long value. */
		if (f < sizeof(filters))
			f += (size_t)snprintf(
			    filters + f, sizeof(filters) - f, "%s%s", f > 0 ? ", " : "", filter);
		if (q < sizeof(qos))
			q += (size_t)snprintf(
			    qos + q, sizeof(qos) - q, "%s%d", q > 0 ? "," : "", granted[i]);
	}
	if (f > 0)
		log_info("mqtt_subscribed", LOG_S("filters", filters), LOG_S("granted_qos", qos));
	m->subscribed = refused == 0;
	if (m->subscribed && !before && m->gone_count == 0)
		save_note(m, false);
	errno = 0;
}

/* Asks whether the broker has got the acknowledgements that stand in front of the question. */
void
mqtt_ask_for_proof(struct mqtt *m)
{
	if (mosquitto_unsubscribe(m->mosq, &m->barrier_mid, BARRIER_FILTER) == MOSQ_ERR_SUCCESS)
		resume_ask(m->resume, m->now);
}

static void
on_unsuback(struct mosquitto *mosq, void *arg, int mid, const mosquitto_property *props)
{
	struct mqtt *m = arg;
	int i;

	(void)mosq;
	(void)props;
	if (mid == m->barrier_mid && FAILPOINT("before_proof_counts"))
		m->lost = true;
	else if (mid == m->barrier_mid)
		resume_proven(m->resume);
	mqtt_wire_acknowledge(mosquitto_socket(m->mosq));
	if (m->gone_count > 0 && mid == m->unsubscribe_mid) {
		for (i = 0; i < m->gone_count; i++)
			log_info("mqtt_unsubscribed", LOG_S("filter", m->gone[i]),
			    LOG_S("reason",
				"an earlier run had it; what waits for it at the broker still "
				"comes"));
		m->gone_count = 0;
		save_note(m, !m->subscribed);
	}
	errno = 0;
}

/* Sets the callbacks of a new client, whose user data must be the struct mqtt. */
void
mqtt_subscribe_attach(struct mosquitto *mosq)
{
	mosquitto_subscribe_v5_callback_set(mosq, on_suback);
	mosquitto_unsubscribe_v5_callback_set(mosq, on_unsuback);
}
