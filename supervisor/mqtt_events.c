/*
 * What libmosquitto calls back: CONNACK, SUBACK, messages, DISCONNECT, its log.
 *
 * Must never call anything of libmosquitto that writes, nor destroy the client: these functions run
 * in the middle of its reading. An end of the connection is only noted (m->lost) for mqtt.c.
 */
#include "mqtt_events.h"

#include <errno.h>
#include <mosquitto.h>
#include <mqtt_protocol.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "log.h"
#include "state.h"

#define RESUBSCRIBE_AFTER (60 * CLOCK_SECOND)
/* What is kept of a payload that is over --payload-limit. */
#define OVERSIZE_KEPT 4096
#define PROPERTIES_BYTES (60 * 1024)
#define SUBOPT_RETAIN_NEW 0x10

/* The reason of the end that is coming, for the log line that tells of it. */
void
mqtt_set_why(struct mqtt *m, const char *text)
{
	snprintf(m->why, sizeof(m->why), "%s", text);
}

static void
on_log(struct mosquitto *mosq, void *arg, int level, const char *text)
{
	struct mqtt *m = arg;

	(void)mosq;
	/* OpenSSL's reasons come this way and no other. */
	if (level == MOSQ_LOG_ERR)
		mqtt_set_why(m, text);
	/* It says "sending" when it only queues: the gate decides, and mqtt.c says when they leave.
	 */
	if (strstr(text, "sending PUBACK") == NULL)
		log_debug("libmosquitto", LOG_S("text", text));
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

static void
on_connack(struct mosquitto *mosq, void *arg, int rc, int flags, const mosquitto_property *props)
{
	struct mqtt *m = arg;
	bool present = (flags & 1) != 0;
	uint16_t seconds = MQTT_KEEPALIVE_SECONDS;
	uint32_t expiry;

	m->refused = rc != 0;
	if (rc != 0) {
		snprintf(m->why, sizeof(m->why), "the broker refuses the connection: %s",
		    m->cfg->protocol == CONFIG_PROTOCOL_5 ? mosquitto_reason_string(rc)
							  : mosquitto_connack_string(rc));
		m->lost = true;
		return;
	}
	/* From here on it would have a line formatted for every message, for nobody to read. */
	if (!log_enabled(LOG_LEVEL_DEBUG))
		mosquitto_log_callback_set(mosq, NULL);
	m->why[0] = '\0';
	m->state = MQTT_OPEN;
	m->opened = m->misc_at = m->last_out = m->now;
	m->unacknowledged = 0;
	mosquitto_property_read_int16(props, MQTT_PROP_SERVER_KEEP_ALIVE, &seconds, false);
	m->keepalive = seconds * CLOCK_SECOND;
	log_info("mqtt_connected", LOG_S("message", "mqtt connected"), LOG_S("broker", m->broker),
	    LOG_S("protocol", m->cfg->protocol == CONFIG_PROTOCOL_5 ? "5" : "3.1.1"),
	    LOG_S("client_id", m->cfg->client_id), LOG_I("session_present", present));
	if (mosquitto_property_read_int32(
		props, MQTT_PROP_SESSION_EXPIRY_INTERVAL, &expiry, false) != NULL &&
	    expiry < (uint32_t)m->cfg->session_expiry)
		log_warn("mqtt_session_expiry_cut", LOG_U("seconds", expiry),
		    LOG_I("asked", m->cfg->session_expiry),
		    LOG_S("reason",
			"the broker keeps our session for less time than --session-expiry"));
	if (m->had_session && !present)
		log_error("mqtt_session_lost", LOG_S("broker", m->broker),
		    LOG_S("client_id", m->cfg->client_id),
		    LOG_S("reason",
			"the broker has forgotten the session: what it held for us, and what was "
			"published meanwhile, will not come"),
		    LOG_S("next", "going on with a new session"));
	if (!present)
		m->subscribed = false;
	m->had_session = true;
	/*
	 * Retain handling 1 of MQTT 5 makes a repeated SUBSCRIBE harmless. Under 3.1.1 each one
	 * brings all retained messages again, so there only what the broker cannot know is
	 * subscribed.
	 */
	if (m->cfg->protocol == CONFIG_PROTOCOL_5 || !m->subscribed)
		mqtt_subscribe(m);
	else
		log_info("mqtt_subscription_kept", LOG_I("filters", m->cfg->subscribe_count));
	errno = 0;
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

	(void)mosq;
	(void)mid;
	(void)props;
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
	if (m->subscribed)
		state_save_session(m->cfg);
	errno = 0;
}

static void
on_disconnect(struct mosquitto *mosq, void *arg, int rc, const mosquitto_property *props)
{
	struct mqtt *m = arg;

	(void)mosq;
	(void)props;
	m->lost = true;
	if (rc == MQTT_RC_SESSION_TAKEN_OVER)
		log_error("mqtt_session_taken_over", LOG_S("client_id", m->cfg->client_id),
		    LOG_S("reason",
			"another client has connected with this client id; two with the same id "
			"throw each other out for ever"),
		    LOG_S("next",
			"reconnecting; stop the other instance or give it its own --client-id"));
	/* Reasons of DISCONNECT start at 0x80, libmosquitto's own errors end far below. */
	if (rc >= 0x80)
		snprintf(m->why, sizeof(m->why), "the broker disconnects us: %s",
		    mosquitto_reason_string(rc));
}

/* Copies of what matters of the properties; free_texts() frees them. */
static void
read_properties(struct mqtt *m, struct record *r, const mosquitto_property *props)
{
	const mosquitto_property *p;
	char *name, *value;
	size_t bytes = 0;

	if (mosquitto_property_read_string(props, MQTT_PROP_CONTENT_TYPE, &value, false) != NULL) {
		r->content_type = text_from(value);
		bytes = r->content_type.n;
	}
	for (p = mosquitto_property_read_string_pair(
		 props, MQTT_PROP_USER_PROPERTY, &name, &value, false);
	     p != NULL; p = mosquitto_property_read_string_pair(
			    p, MQTT_PROP_USER_PROPERTY, &name, &value, true)) {
		bytes += strlen(name) + strlen(value);
		if (bytes > PROPERTIES_BYTES || r->property_count == RECORD_PROPERTIES_MAX) {
			free(name);
			free(value);
			m->properties_left_out++;
			continue;
		}
		r->properties[2 * r->property_count] = text_from(name);
		r->properties[2 * r->property_count + 1] = text_from(value);
		r->property_count++;
	}
}

static void
free_properties(struct record *r)
{
	size_t i;

	free((char *)(uintptr_t)r->content_type.s);
	for (i = 0; i < 2 * r->property_count; i++)
		free((char *)(uintptr_t)r->properties[i].s);
}

/* All of a payload, or the first bytes of one that is over --payload-limit. */
static size_t
kept_size(const struct config *cfg, size_t size)
{
	size_t limit = (size_t)cfg->payload_limit;

	if (size <= limit)
		return size;
	return limit < OVERSIZE_KEPT ? limit : OVERSIZE_KEPT;
}

static void
on_message(struct mosquitto *mosq, void *arg, const struct mosquitto_message *msg,
    const mosquitto_property *props)
{
	/* Static, because of its array of properties; only what is used of that is ever written. */
	static struct record r;
	struct mqtt *m = arg;
	enum mqtt_receipt receipt;
	size_t size = (size_t)msg->payloadlen;

	(void)mosq;
	r.time = clock_realtime();
	r.topic = text_from(msg->topic);
	r.payload_size = size;
	r.payload = (struct text){.s = msg->payload, .n = kept_size(m->cfg, size)};
	r.qos = (uint8_t)msg->qos;
	r.retain = msg->retain;
	r.packet_id = (uint16_t)msg->mid;
	r.content_type = (struct text){0};
	r.property_count = 0;
	if (props != NULL)
		read_properties(m, &r, props);
	if (msg->qos > 0)
		gate_hold(&m->gate, m->now);
	receipt = m->receive(m->arg, &r);
	if (props != NULL)
		free_properties(&r);
	m->full = receipt != MQTT_TAKEN;
	if (receipt == MQTT_NO_MEMORY) {
		/* Nothing of this connection may be acknowledged now: let the broker send it again.
		 */
		mqtt_set_why(m, "out of memory for a message; it stays with the broker");
		m->lost = true;
	}
	/*
	 * libmosquitto has just tried to write to its unread socketpair and may have left EAGAIN
	 * behind, which its read loop would take for an empty socket although OpenSSL holds more.
	 */
	errno = 0;
}

/* Sets all callbacks of a new client, whose user data must be the struct mqtt. */
void
mqtt_events_attach(struct mosquitto *mosq)
{
	mosquitto_log_callback_set(mosq, on_log);
	mosquitto_connect_v5_callback_set(mosq, on_connack);
	mosquitto_disconnect_v5_callback_set(mosq, on_disconnect);
	mosquitto_subscribe_v5_callback_set(mosq, on_suback);
	mosquitto_message_v5_callback_set(mosq, on_message);
}
