/*
 * The connection to the broker: from an address to CONNECT, what its end means, and keeping away.
 *
 * Every connection gets a new struct mosquitto: destroying one writes nothing, so the PUBACKs of a
 * connection can never get into the next. Must never send a byte when a connection ends.
 */
#include "mqtt_connect.h"

#include <errno.h>
#include <mosquitto.h>
#include <mqtt_protocol.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "log.h"
#include "mqtt_events.h"
#include "mqtt_socket.h"
#include "mqtt_subscribe.h"

#define CONNECT_TIMEOUT (10 * CLOCK_SECOND)
#define WELL_AFTER (10 * CLOCK_SECOND)
#define TWIN_WITHIN (120 * CLOCK_SECOND)

/* The session that is known, and all that it may send again, is another broker's or client's. */
static void
log_changed(const struct mqtt *m)
{
	const struct store_session *s = &m->store->session;

	log_warn("session_changed", LOG_S("was_broker", s->broker),
	    LOG_S("was_client_id", s->client_id), LOG_S("broker", m->broker),
	    LOG_S("client_id", m->cfg->client_id),
	    LOG_U("unacknowledged", m->resume->tail - m->resume->head),
	    LOG_S(
		"reason", "this state directory knows the session of another broker or client id"),
	    LOG_S("next",
		"going on with the new one; what the old one holds stays there, and if the broker "
		"is the same by another name, what it sends again is stored again"));
}

/*
 * cfg, store and resume must outlive the session. The first attempt is made at first_attempt, or
 * when mqtt_go() says so. Returns -1 with errno.
 */
int
mqtt_init(struct mqtt *m, const struct config *cfg, struct store *store, struct resume *resume,
    int64_t first_attempt)
{
	int failed;

	*m = (struct mqtt){.cfg = cfg,
	    .store = store,
	    .resume = resume,
	    .drain_fd = -1,
	    .resubscribe_at = CLOCK_NEVER};
	m->gate.window = (uint64_t)cfg->receive_maximum;
	if (m->gate.window > RESUME_WINDOW_MOST)
		m->gate.window = RESUME_WINDOW_MOST;
	m->gate.ack_interval = cfg->ack_interval;
	gate_reset(&m->gate);
	dialer_init(&m->dialer, cfg->url.host, first_attempt);
	snprintf(m->broker, sizeof(m->broker),
	    strchr(cfg->url.host, ':') ? "[%.250s]:%u" : "%.250s:%u", cfg->url.host, cfg->url.port);
	mqtt_sys_init(m);
	if (!mqtt_read_note(m, &failed)) {
		log_changed(m);
		resume_clear(resume);
	}
	m->unacknowledged = resume->tail - resume->head;
	return failed == 0 && mosquitto_lib_init() == MOSQ_ERR_SUCCESS ? 0 : -1;
}

/* Who gets the messages; to be called before the first attempt. */
void
mqtt_receiver(struct mqtt *m, mqtt_receive *receive, void *arg)
{
	m->receive = receive;
	m->arg = arg;
}

void
mqtt_free(struct mqtt *m)
{
	mqtt_abandon(m);
	free(m->gone);
	m->gone = NULL;
	m->gone_count = 0;
}

/* Makes the first attempt now, or the first after mqtt_hold(). */
void
mqtt_go(struct mqtt *m, int64_t now)
{
	if (m->on_hold) {
		m->on_hold = false;
		m->dialer.retry_at = now;
	}
	if (m->state == MQTT_WAITING && m->dialer.failures == 0 && m->dialer.retry_at > now)
		m->dialer.retry_at = now;
}

void
mqtt_forget_connection(struct mqtt *m)
{
	if (m->mosq != NULL)
		mosquitto_destroy(m->mosq);
	m->mosq = NULL;
	mqtt_socket_end();
	if (m->state == MQTT_OPEN || m->state == MQTT_PARTING || m->state == MQTT_LEAVING)
		m->unacknowledged = m->gate.held + resume_outstanding(m->resume);
	gate_reset(&m->gate);
	m->lost = m->full = m->tcp_up = false;
	m->ping_left = 0;
	m->why[0] = '\0';
}

/*
 * Stays away from the broker until mqtt_go(). What is connected is cut, and nothing of it is
 * acknowledged.
 */
void
mqtt_hold(struct mqtt *m)
{
	m->on_hold = true;
	m->away_since = 0;
	m->attempts = 0;
	resolve_cancel(&m->dialer.resolve);
	if (m->state != MQTT_OPEN && m->state != MQTT_CONNECTING)
		return;
	mqtt_forget_connection(m);
	m->state = MQTT_WAITING;
}

/* Three ends of file within two minutes, each of a session that stood: most likely a twin. */
static void
look_for_twin(struct mqtt *m)
{
	memmove(m->closures, m->closures + 1, 2 * sizeof(m->closures[0]));
	m->closures[2] = m->now;
	if (m->closures[0] == 0 || m->now - m->closures[0] > TWIN_WITHIN)
		return;
	memset(m->closures, 0, sizeof(m->closures));
	log_error("mqtt_session_taken_over", LOG_S("client_id", m->cfg->client_id),
	    LOG_S("reason",
		"the broker has closed three connections within two minutes without giving a "
		"reason: probably another client uses this client id"),
	    LOG_S("next", "reconnecting; if there is one, stop it or give it its own --client-id"));
}

/* What a person may have to do about it. */
const char *
mqtt_retry_advice(const struct mqtt *m)
{
	return m->refused ? "trying again; user and password belong into --broker" : "trying again";
}

/* The first failure of a series is news, and the next are told by broker_unreachable. */
static void
log_failure(struct mqtt *m, int64_t pause)
{
	if (++m->attempts > 1)
		log_debug("mqtt_attempt_failed", LOG_S("broker", m->broker),
		    LOG_S("reason", m->failure), LOG_U("attempts", m->attempts),
		    LOG_T("retry_in", pause));
	else
		log_error("mqtt_connect_failed", LOG_S("broker", m->broker),
		    LOG_S("reason", m->failure), LOG_S("next", mqtt_retry_advice(m)),
		    LOG_T("retry_in", pause));
}

/* The connection, or the attempt, has ended. rc is libmosquitto's, used when nothing better is
 * known. */
void
mqtt_lose(struct mqtt *m, int rc)
{
	bool open = m->state == MQTT_OPEN;
	uint64_t held = m->gate.held;
	char why[sizeof(m->why)];
	int64_t pause;

	/* What libmosquitto makes of an end of file in the middle of a packet. */
	if (rc == MOSQ_ERR_ERRNO && errno == 0)
		rc = MOSQ_ERR_CONN_LOST;
	if (m->why[0] == '\0') {
		if (rc == MOSQ_ERR_CONN_LOST && !open)
			mqtt_set_why(m,
			    "the broker closed the connection before it answered CONNECT (is this "
			    "a TLS "
			    "listener spoken to in plain, or another service's port?)");
		else if (rc == MOSQ_ERR_PROTOCOL && !open)
			mqtt_set_why(
			    m, "what answers there does not speak MQTT (is this a TLS listener?)");
		else if (rc == MOSQ_ERR_CONN_LOST)
			mqtt_set_why(m, "the broker closed the connection");
		else
			mqtt_set_why(
			    m, rc == MOSQ_ERR_ERRNO ? strerror(errno) : mosquitto_strerror(rc));
	}
	/* What is heard of a peer that speaks no TLS; a bad certificate says so itself. */
	if (m->cfg->url.tls && !open &&
	    (strstr(m->why, "unexpected eof") != NULL || strstr(m->why, "wrong version") != NULL ||
		strstr(m->why, "reset by peer") != NULL)) {
		snprintf(why, sizeof(why), "%.180s (is this a listener without TLS?)", m->why);
		mqtt_set_why(m, why);
	}
	memcpy(why, m->why, sizeof(why));
	if (open)
		mqtt_sys_lost(m);
	mqtt_forget_connection(m);
	if (m->intake_closed) {
		log_warn("mqtt_connection_lost", LOG_S("broker", m->broker), LOG_S("reason", why),
		    LOG_U("unacknowledged", held), LOG_S("next", "none: stopping"));
		m->state = MQTT_CLOSED;
		return;
	}
	m->state = MQTT_WAITING;
	memcpy(m->failure, why, sizeof(m->failure));
	if (m->away_since == 0)
		m->away_since = m->now;
	if (open && m->now - m->opened >= WELL_AFTER)
		dialer_well(&m->dialer);
	pause = dialer_failed(&m->dialer, m->now);
	if (open)
		log_warn("mqtt_connection_lost", LOG_S("broker", m->broker), LOG_S("reason", why),
		    LOG_U("unacknowledged", held), LOG_T("retry_in", pause));
	else
		log_failure(m, pause);
	if (open && rc == MOSQ_ERR_CONN_LOST)
		look_for_twin(m);
}

/* Ends the connection, and another is made: what is held on it comes again. */
void
mqtt_drop(struct mqtt *m)
{
	if (m->state == MQTT_OPEN)
		mqtt_lose(m, MOSQ_ERR_CONN_LOST);
}

/* A new client, its options set as the configuration says. NULL when memory is short. */
static struct mosquitto *
new_client(struct mqtt *m)
{
	struct mosquitto *mosq = mqtt_socket_new(m->cfg->client_id, m);
	bool v5 = m->cfg->protocol == CONFIG_PROTOCOL_5;

	if (mosq == NULL)
		return NULL;
	mosquitto_threaded_set(mosq, true);
	mosquitto_int_option(
	    mosq, MOSQ_OPT_PROTOCOL_VERSION, v5 ? MQTT_PROTOCOL_V5 : MQTT_PROTOCOL_V311);
	mosquitto_int_option(mosq, MOSQ_OPT_TCP_NODELAY, 1);
	mosquitto_int_option(mosq, MOSQ_OPT_RECEIVE_MAXIMUM, (int)m->gate.window);
	mosquitto_username_pw_set(mosq, m->cfg->url.user, m->cfg->url.password);
	if (m->cfg->url.tls)
		mosquitto_int_option(mosq, MOSQ_OPT_TLS_USE_OS_CERTS, 1);
	mqtt_events_attach(mosq);
	return mosq;
}

void
mqtt_dial(struct mqtt *m)
{
	const char *host = m->dialer.address, *bind = NULL;
	mosquitto_property *props = NULL;
	int rc;

	m->refused = false;
	m->mosq = new_client(m);
	if (m->mosq == NULL) {
		mqtt_lose(m, MOSQ_ERR_NOMEM);
		return;
	}
	if (m->cfg->protocol == CONFIG_PROTOCOL_5) {
		mosquitto_property_add_int32(
		    &props, MQTT_PROP_SESSION_EXPIRY_INTERVAL, (uint32_t)m->cfg->session_expiry);
		/*
		 * The only call that takes properties waits for TCP. Without a host it keeps them,
		 * says MOSQ_ERR_INVAL, and the call below, which does not wait, sends them (tried).
		 */
		mosquitto_connect_bind_v5(m->mosq, NULL, 0, 0, NULL, props);
		mosquitto_property_free_all(&props);
	}
	if (m->cfg->url.tls) {
		/*
		 * TLS needs the name, for SNI and for the certificate. libmosquitto resolves it
		 * once more, which the resolver has just shown that it can; binding to any address
		 * of a family makes it take our address's family.
		 */
		bind = strchr(host, ':') != NULL ? "::" : "0.0.0.0";
		host = m->cfg->url.host;
	}
	m->state = MQTT_CONNECTING;
	if (m->away_since == 0)
		m->away_since = m->now;
	m->deadline = m->now + CONNECT_TIMEOUT;
	rc = mosquitto_connect_bind_async(
	    m->mosq, host, m->cfg->url.port, MQTT_KEEPALIVE_SECONDS, bind);
	if (rc > 0)
		mqtt_lose(m, rc);
	else
		mqtt_socket_begin(mosquitto_socket(m->mosq));
}
