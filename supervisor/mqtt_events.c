/*
 * What libmosquitto calls back: CONNACK, messages, DISCONNECT, its log.
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
#include <xxhash.h>

#include "clock.h"
#include "failpoint.h"
#include "log.h"
#include "mqtt_limits.h"
#include "mqtt_socket.h"
#include "mqtt_subscribe.h"

/* What is kept of a payload that is over --payload-limit. */
#define OVERSIZE_KEPT 4096
#define PROPERTIES_BYTES (60 * 1024)
/* libmosquitto cuts a line of its log off about here, the client id in front of DUP included. */
#define CLIENT_ID_SHOWN 500
/* How libmosquitto's log tells of a message before it hands it over; the DUP flag follows. */
#define LOG_OF_PUBLISH " received PUBLISH (d"

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
	/* In front of it stands "Client ID", which may hold anything. */
	size_t skip = strlen("Client ") + strlen(m->cfg->client_id);
	const char *publish = strlen(text) > skip ? strstr(text + skip, LOG_OF_PUBLISH) : NULL;

	(void)mosq;
	/* OpenSSL's reasons come this way and no other; DUP does as well. */
	if (level == MOSQ_LOG_ERR)
		mqtt_set_why(m, text);
	if (publish != NULL)
		m->dup = publish[strlen(LOG_OF_PUBLISH)] == '1';
	/* It says "sending" when it only queues: the gate decides, and mqtt.c says when they leave.
	 */
	if (strstr(text, "sending PUBACK") == NULL)
		log_debug("libmosquitto", LOG_S("text", text));
}

/*
 * As soon as DUP is of no interest any more: libmosquitto would have a line formatted for every
 * message, for nobody to read. Says what has come of the messages that were sent again.
 */
static void
stop_listening(struct mqtt *m)
{
	const struct resume *r = m->resume;

	if (!m->listening || resume_matching(r))
		return;
	m->listening = false;
	if (!log_enabled(LOG_LEVEL_DEBUG))
		mosquitto_log_callback_set(m->mosq, NULL);
	if (r->missing > 0 || r->unmatched > 0)
		log_warn("session_resumed", LOG_U("recognised", r->recognised),
		    LOG_U("unmatched", r->unmatched), LOG_U("missing", r->missing),
		    LOG_S("reason",
			r->missing > 0
			    ? "the broker does not send again what was received and not stored: "
			      "it has expired, or the broker has lost it"
			    : "the broker does not send again, or not in its order, what was not "
			      "acknowledged; all of that is stored"),
		    LOG_S("next", "going on; what does not match counts as new"));
	else if (r->recognised > 0)
		log_info("session_resumed", LOG_U("recognised", r->recognised));
}

static void
on_connack(struct mosquitto *mosq, void *arg, int rc, int flags, const mosquitto_property *props)
{
	struct mqtt *m = arg;
	bool present = (flags & 1) != 0;
	uint16_t seconds = MQTT_KEEPALIVE_SECONDS;
	uint32_t expiry;

	(void)mosq;
	m->refused = rc != 0;
	if (rc != 0) {
		snprintf(m->why, sizeof(m->why), "the broker refuses the connection: %s",
		    m->cfg->protocol == CONFIG_PROTOCOL_5 ? mosquitto_reason_string(rc)
							  : mosquitto_connack_string(rc));
		m->lost = true;
		return;
	}
	m->why[0] = '\0';
	m->state = MQTT_OPEN;
	m->opened = m->misc_at = m->last_out = m->now;
	m->unacknowledged = 0;
	m->away_since = 0;
	m->attempts = 0;
	m->failure[0] = '\0';
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
	m->rounds = (struct window){0};
	mqtt_limits_tell(m, props);
	if (!mqtt_socket_is_buffered())
		log_debug("mqtt_socket_unbuffered",
		    LOG_S("reason",
			"libmosquitto's read and write do not come by mqtt_socket.c: built without "
			"it, or libmosquitto binds them otherwise"),
		    LOG_S("next", "going on; each message costs some system calls more"));
	m->lost = FAILPOINT("after_connack");
	resume_connected(m->resume, present);
	if (m->had_session && !present)
		log_error("mqtt_session_lost", LOG_S("broker", m->broker),
		    LOG_S("client_id", m->cfg->client_id),
		    LOG_U("received_not_stored", m->resume->missing),
		    LOG_S("reason",
			"the broker has forgotten the session: what it held for us, and what was "
			"published meanwhile, will not come"),
		    LOG_S("next", "going on with a new session"));
	if (!m->had_session && present)
		log_warn("session_unknown", LOG_S("broker", m->broker),
		    LOG_S("client_id", m->cfg->client_id),
		    LOG_S("reason",
			"the broker has a session under this client id, of which this state "
			"directory knows nothing"),
		    LOG_S("next",
			"going on with it; what it sends again may have been stored before, by "
			"another state directory's run: duplicates are possible, losses are not"));
	if (resume_matching(m->resume) && strlen(m->cfg->client_id) > CLIENT_ID_SHOWN)
		log_warn("session_not_recognised",
		    LOG_U("messages", m->resume->tail - m->resume->head),
		    LOG_S("reason",
			"the client id has more than 500 bytes, and libmosquitto's log, which "
			"alone tells of DUP, is cut off before that"),
		    LOG_S("next", "what the broker sends again is stored again; use a shorter id"));
	m->had_session = true;
	m->listening = present;
	stop_listening(m);
	if (!present && !log_enabled(LOG_LEVEL_DEBUG))
		mosquitto_log_callback_set(m->mosq, NULL);
	mqtt_bring_subscriptions_up_to_date(m, present);
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
	struct mqtt_identity id;
	enum mqtt_receipt receipt;
	size_t size = (size_t)msg->payloadlen;

	(void)mosq;
	if (m->state == MQTT_PARTING) {
		m->declined++;
		errno = 0;
		return;
	}
	if (mqtt_sys_takes(m, msg)) {
		m->dup = false;
		errno = 0;
		return;
	}
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
	id.topic_hash = XXH3_64bits(r.topic.s, r.topic.n);
	id.hash = msg->qos > 0 ? XXH3_64bits_withSeed(msg->payload, size, id.topic_hash) : 0;
	id.dup = m->dup;
	m->dup = false;
	receipt = m->receive(m->arg, &r, &id);
	if (props != NULL)
		free_properties(&r);
	m->full = receipt != MQTT_TAKEN;
	stop_listening(m);
	if (receipt == MQTT_NO_MEMORY) {
		/* Nothing of this connection may be acknowledged now: let the broker send it again.
		 */
		mqtt_set_why(m, "out of memory for a message; it stays with the broker");
		m->lost = true;
	}
	/*
	 * libmosquitto may just have tried to write to an unread socketpair and have left EAGAIN
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
	mqtt_subscribe_attach(mosq);
	mosquitto_message_v5_callback_set(mosq, on_message);
}
