/*
 * The MQTT session: all of libmosquitto, driven by our own loop.
 *
 * libmosquitto queues a PUBACK before it calls back and has no manual acknowledgement. With
 * mosquitto_threaded_set() and a loop of our own it only queues, and nothing leaves before
 * mosquitto_loop_write(): see gate.c for when that is called. Must never call mosquitto_loop(),
 * _loop_start() or _loop_forever(), which write when they like; nor mosquitto_disconnect() while
 * anything is held, since DISCONNECT goes out behind the held PUBACKs.
 *
 * Every connection gets a new struct mosquitto: destroying one writes nothing, so the PUBACKs of a
 * connection can never get into the next.
 */
#include "mqtt.h"

#include <errno.h>
#include <fcntl.h>
#include <mosquitto.h>
#include <mqtt_protocol.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "clock.h"
#include "log.h"
#include "mqtt_events.h"
#include "mqtt_wire.h"
#include "state.h"

#define CONNECT_TIMEOUT (10 * CLOCK_SECOND)
#define LEAVE_TIMEOUT CLOCK_SECOND
#define WELL_AFTER (10 * CLOCK_SECOND)
#define TWIN_WITHIN (120 * CLOCK_SECOND)
/*
 * Packets read in one turn of the loop, before the writers get their records. Fewer make many small
 * transactions out of a window of 500, which costs a quarter of the rate where a commit takes 2 ms.
 */
#define READ_BURST 1024

/* ---- connection ---- */

/*
 * cfg must outlive the session. The first attempt is made at first_attempt, or when mqtt_go() says
 * so. Returns -1 with errno.
 */
int
mqtt_init(struct mqtt *m, const struct config *cfg, mqtt_receive *receive, void *arg,
    int64_t first_attempt)
{
	struct state_session session = state_load_session(cfg);

	*m = (struct mqtt){.cfg = cfg, .receive = receive, .arg = arg, .drain_fd = -1};
	m->gate.window = (uint64_t)cfg->receive_maximum;
	m->gate.ack_interval = cfg->ack_interval;
	gate_reset(&m->gate);
	m->had_session = session.known;
	m->subscribed = session.same;
	if (session.known && !session.same)
		log_warn("mqtt_filters_changed", LOG_S("client_id", cfg->client_id),
		    LOG_S("reason",
			"filters or QoS differ from the last run's, and the broker's session keeps "
			"the old filters too: what matches those goes on coming"),
		    LOG_S("next", "going on; a new --client-id starts without them"));
	dialer_init(&m->dialer, cfg->url.host, first_attempt);
	snprintf(m->broker, sizeof(m->broker),
	    strchr(cfg->url.host, ':') ? "[%.250s]:%u" : "%.250s:%u", cfg->url.host, cfg->url.port);
	return mosquitto_lib_init() == MOSQ_ERR_SUCCESS ? 0 : -1;
}

/* Makes the first attempt now. */
void
mqtt_go(struct mqtt *m, int64_t now)
{
	if (m->state == MQTT_WAITING && m->dialer.failures == 0 && m->dialer.retry_at > now)
		m->dialer.retry_at = now;
}

static void
forget_connection(struct mqtt *m)
{
	if (m->mosq != NULL)
		mosquitto_destroy(m->mosq);
	m->mosq = NULL;
	m->unacknowledged += m->gate.held;
	gate_reset(&m->gate);
	m->lost = m->full = m->tcp_up = false;
	m->ping_left = 0;
	m->why[0] = '\0';
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

/* The connection, or the attempt, has ended. rc is libmosquitto's, used when nothing better is
 * known. */
static void
lose(struct mqtt *m, int rc)
{
	bool open = m->state == MQTT_OPEN;
	uint64_t held = m->gate.held;
	char why[sizeof(m->why)];
	int64_t pause;

	/* What OpenSSL makes of a peer that speaks no TLS; a bad certificate says so itself. */
	if (m->cfg->url.tls && !open &&
	    (strstr(m->why, "unexpected eof") != NULL || strstr(m->why, "wrong version") != NULL)) {
		snprintf(why, sizeof(why), "%.180s (is this a listener without TLS?)", m->why);
		mqtt_set_why(m, why);
	}
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
	memcpy(why, m->why, sizeof(why));
	forget_connection(m);
	if (m->intake_closed) {
		log_warn("mqtt_connection_lost", LOG_S("broker", m->broker), LOG_S("reason", why),
		    LOG_U("unacknowledged", held), LOG_S("next", "none: stopping"));
		m->state = MQTT_CLOSED;
		return;
	}
	m->state = MQTT_WAITING;
	if (open && m->now - m->opened >= WELL_AFTER)
		dialer_well(&m->dialer);
	pause = dialer_failed(&m->dialer, m->now);
	if (open)
		log_warn("mqtt_connection_lost", LOG_S("broker", m->broker), LOG_S("reason", why),
		    LOG_U("unacknowledged", held), LOG_T("retry_in", pause));
	else
		log_error("mqtt_connect_failed", LOG_S("broker", m->broker), LOG_S("reason", why),
		    LOG_S("next",
			m->refused ? "trying again; user and password belong into --broker"
				   : "trying again"),
		    LOG_T("retry_in", pause));
	if (open && rc == MOSQ_ERR_CONN_LOST)
		look_for_twin(m);
}

/* A new client, its options set as the configuration says. NULL when memory is short. */
static struct mosquitto *
new_client(struct mqtt *m)
{
	struct mosquitto *mosq = mosquitto_new(m->cfg->client_id, false, m);
	bool v5 = m->cfg->protocol == CONFIG_PROTOCOL_5;

	if (mosq == NULL)
		return NULL;
	mosquitto_threaded_set(mosq, true);
	mosquitto_int_option(
	    mosq, MOSQ_OPT_PROTOCOL_VERSION, v5 ? MQTT_PROTOCOL_V5 : MQTT_PROTOCOL_V311);
	mosquitto_int_option(mosq, MOSQ_OPT_TCP_NODELAY, 1);
	mosquitto_int_option(mosq, MOSQ_OPT_RECEIVE_MAXIMUM, (int)m->cfg->receive_maximum);
	mosquitto_username_pw_set(mosq, m->cfg->url.user, m->cfg->url.password);
	if (m->cfg->url.tls)
		mosquitto_int_option(mosq, MOSQ_OPT_TLS_USE_OS_CERTS, 1);
	mqtt_events_attach(mosq);
	return mosq;
}

static void
dial(struct mqtt *m)
{
	const char *host = m->dialer.address, *bind = NULL;
	mosquitto_property *props = NULL;
	int rc;

	m->refused = false;
	m->mosq = new_client(m);
	if (m->mosq == NULL) {
		lose(m, MOSQ_ERR_NOMEM);
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
	m->deadline = m->now + CONNECT_TIMEOUT;
	rc = mosquitto_connect_bind_async(
	    m->mosq, host, m->cfg->url.port, MQTT_KEEPALIVE_SECONDS, bind);
	if (rc > 0)
		lose(m, rc);
}

/* ---- reading and writing ---- */

/* Writes out libmosquitto's whole queue, PUBACKs and all. Only gate_may_flush() may let it. */
static void
flush(struct mqtt *m)
{
	int fd = mosquitto_socket(m->mosq), rc;

	mqtt_wire_cork(fd, 1);
	errno = 0;
	rc = mosquitto_loop_write(m->mosq, 1);
	if (rc != MOSQ_ERR_SUCCESS || m->lost) {
		lose(m, rc);
		return;
	}
	mqtt_wire_cork(fd, 0);
	m->last_out = m->now;
	m->gate.flushing = mosquitto_want_write(m->mosq);
	if (!m->gate.flushing) {
		if (m->gate.held > 0)
			log_debug("acknowledged", LOG_U("messages", m->gate.held));
		gate_reset(&m->gate);
	}
}

static void
read_packets(struct mqtt *m, const struct gate_view *view)
{
	enum mqtt_state before = m->state;
	int i, rc;

	for (i = 0; i < READ_BURST; i++) {
		errno = 0;
		rc = mosquitto_loop_read(m->mosq, 1);
		if (rc != MOSQ_ERR_SUCCESS || m->lost) {
			lose(m, rc);
			return;
		}
		/* SUBSCRIBE is to go out before the first message's PUBACK is queued in front of
		 * it. */
		if (errno == EAGAIN || m->state != before || m->full ||
		    !gate_may_read(&m->gate, view))
			return;
	}
}

static void
go_on_connecting(struct mqtt *m, short revents, const struct gate_view *view)
{
	int fd = mosquitto_socket(m->mosq), error, rc;

	if (!m->tcp_up && (revents & (POLLOUT | POLLERR | POLLHUP)) != 0) {
		error = mqtt_wire_error(fd);
		if (error != 0) {
			mqtt_set_why(m, strerror(error));
			lose(m, MOSQ_ERR_ERRNO);
			return;
		}
		m->tcp_up = true;
		mqtt_wire_tune(fd);
	}
	/* Under TLS a read is what drives the handshake. */
	if ((revents & POLLIN) != 0 || m->cfg->url.tls) {
		read_packets(m, view);
		if (m->state != MQTT_CONNECTING)
			return;
	}
	errno = 0;
	rc = mosquitto_loop_write(m->mosq, 1);
	if (rc != MOSQ_ERR_SUCCESS || m->lost)
		lose(m, rc);
}

static void
keep_alive(struct mqtt *m, const struct gate_view *view)
{
	int rc;

	if (m->now < m->misc_at)
		return;
	/* Moved on in every case: mqtt_deadline() would make a busy loop of one that has passed. */
	m->misc_at = m->now + CLOCK_SECOND;
	if (m->gate.flushing)
		return;
	/*
	 * Only while it is read: libmosquitto takes a PINGRESP that stands unread in the socket for
	 * one that did not come.
	 */
	if (m->gate.held > 0 || !m->reading || !gate_may_read(&m->gate, view) || m->ping_left > 0) {
		if (m->keepalive > 0 && m->now - m->last_out >= m->keepalive / 2)
			mqtt_wire_ping(m);
		return;
	}
	if (m->now >= m->resubscribe_at)
		mqtt_subscribe(m);
	errno = 0;
	rc = mosquitto_loop_misc(m->mosq);
	if (rc != MOSQ_ERR_SUCCESS || m->lost)
		lose(m, rc);
}

/* ---- leaving ---- */

/* No more messages are read from now on; acknowledgements may still go out. */
void
mqtt_close_intake(struct mqtt *m)
{
	m->intake_closed = true;
	m->reading = false;
}

/* Ends without another byte: what is held stays with the broker, which will send it again. */
void
mqtt_abandon(struct mqtt *m)
{
	forget_connection(m);
	resolve_cancel(&m->dialer.resolve);
	if (m->drain_fd != -1)
		close(m->drain_fd);
	m->drain_fd = -1;
	m->state = MQTT_CLOSED;
}

static void
send_disconnect(struct mqtt *m)
{
	int rc = mosquitto_loop_write(m->mosq, 1);

	/* Its socket is closed as soon as DISCONNECT is written; the copy lives on. */
	if (!m->lost && rc == MOSQ_ERR_SUCCESS && mosquitto_want_write(m->mosq))
		return;
	mosquitto_destroy(m->mosq);
	m->mosq = NULL;
	shutdown(m->drain_fd, SHUT_WR);
}

/*
 * DISCONNECT, then the broker's end of file for at most a second: closing a socket with unread
 * input sends a reset, and the broker might not get the last PUBACKs. Only when nothing is held and
 * nothing in flight.
 */
void
mqtt_leave(struct mqtt *m, int64_t now)
{
	if (m->state != MQTT_OPEN) {
		mqtt_abandon(m);
		return;
	}
	m->drain_fd = fcntl(mosquitto_socket(m->mosq), F_DUPFD_CLOEXEC, 3);
	m->state = MQTT_LEAVING;
	m->deadline = now + LEAVE_TIMEOUT;
	if (m->drain_fd == -1 || mosquitto_disconnect_v5(m->mosq, 0, NULL) != MOSQ_ERR_SUCCESS) {
		mqtt_abandon(m);
		return;
	}
	send_disconnect(m);
}

static void
go_on_leaving(struct mqtt *m)
{
	static char ignored[64 * 1024];
	ssize_t n;

	if (m->mosq != NULL) {
		send_disconnect(m);
		return;
	}
	n = recv(m->drain_fd, ignored, sizeof(ignored), MSG_DONTWAIT);
	if (n == 0 || (n == -1 && errno != EAGAIN && errno != EINTR))
		mqtt_abandon(m);
}

/* ---- the loop's hooks ---- */

/* Says in *p what to poll for. */
void
mqtt_prepare(struct mqtt *m, struct pollfd *p, const struct gate_view *view)
{
	*p = (struct pollfd){.fd = -1};
	m->reading = false;
	switch (m->state) {
	case MQTT_WAITING:
		p->fd = m->dialer.resolve.fd;
		p->events = POLLIN;
		break;
	case MQTT_CONNECTING:
		p->fd = mosquitto_socket(m->mosq);
		p->events = m->tcp_up ? POLLIN : POLLOUT;
		break;
	case MQTT_OPEN:
		p->fd = mosquitto_socket(m->mosq);
		m->reading = !m->intake_closed && gate_may_read(&m->gate, view);
		/* Not mosquitto_want_write(): that is true for as long as PUBACKs are held. */
		p->events =
		    (short)((m->reading ? POLLIN : POLLRDHUP) | (m->gate.flushing ? POLLOUT : 0));
		break;
	case MQTT_LEAVING:
		p->fd = m->drain_fd;
		p->events = m->mosq != NULL ? POLLOUT : POLLIN;
		break;
	case MQTT_CLOSED:
		break;
	}
}

/* Acts on what poll(2) said, and on deadlines; call it in every turn, with 0 if nothing came. */
void
mqtt_dispatch(struct mqtt *m, short revents, const struct gate_view *view)
{
	m->now = view->now;
	switch (m->state) {
	case MQTT_WAITING:
		if (revents == 0 && m->now < dialer_deadline(&m->dialer))
			break;
		switch (dialer_step(&m->dialer, m->now)) {
		case DIALER_GO:
			dial(m);
			break;
		case DIALER_FAILED:
			snprintf(
			    m->why, sizeof(m->why), "cannot resolve the name: %s", m->dialer.error);
			lose(m, MOSQ_ERR_EAI);
			break;
		case DIALER_WAIT:
			break;
		}
		break;
	case MQTT_CONNECTING:
		if (revents != 0)
			go_on_connecting(m, revents, view);
		if (m->state == MQTT_CONNECTING && m->now >= m->deadline) {
			mqtt_set_why(m,
			    m->tcp_up
				? "it took the connection but did not answer CONNECT within 10 s"
				: "no answer within 10 s");
			lose(m, MOSQ_ERR_CONN_PENDING);
		}
		break;
	case MQTT_OPEN:
		m->full = false;
		/* Asked again: mqtt_gate() may have begun a flush since poll(2) was told to read.
		 */
		if (m->reading && revents != 0 && gate_may_read(&m->gate, view))
			read_packets(m, view);
		else if ((revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0)
			lose(m, MOSQ_ERR_CONN_LOST);
		if (m->state == MQTT_OPEN)
			keep_alive(m, view);
		break;
	case MQTT_LEAVING:
		if (revents != 0)
			go_on_leaving(m);
		if (m->state == MQTT_LEAVING && m->now >= m->deadline)
			mqtt_abandon(m);
		break;
	case MQTT_CLOSED:
		break;
	}
}

/* Lets acknowledgements out if the gate may open. Call it after everything that makes records
 * durable. */
void
mqtt_gate(struct mqtt *m, const struct gate_view *view)
{
	if (m->state != MQTT_OPEN || m->ping_left > 0)
		return;
	/* With nothing held, the queue has only SUBSCRIBE and PINGREQ, which answer no message. */
	if (gate_may_flush(&m->gate, view) || (m->gate.held == 0 && mosquitto_want_write(m->mosq)))
		flush(m);
}

/* When mqtt_dispatch() must be called at the latest. */
int64_t
mqtt_deadline(const struct mqtt *m)
{
	switch (m->state) {
	case MQTT_WAITING:
		return dialer_deadline(&m->dialer);
	case MQTT_CONNECTING:
	case MQTT_LEAVING:
		return m->deadline;
	case MQTT_OPEN:
		/* Not --ack-interval: the gate looks at it whenever there is something to read. */
		return m->misc_at;
	default:
		return CLOCK_NEVER;
	}
}

/* Messages that were read and whose PUBACK did not leave. */
uint64_t
mqtt_unacknowledged(const struct mqtt *m)
{
	return m->unacknowledged + m->gate.held;
}

/* A child has been reaped; it may be the resolver's. */
void
mqtt_reaped(struct mqtt *m, pid_t pid)
{
	resolve_reaped(&m->dialer.resolve, pid);
}
