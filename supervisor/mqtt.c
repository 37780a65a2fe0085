/*
 * The MQTT session: all of libmosquitto, driven by our own loop.
 *
 * libmosquitto queues a PUBACK before it calls back and has no manual acknowledgement. With
 * mosquitto_threaded_set() and a loop of our own it only queues, and nothing leaves before
 * mosquitto_loop_write(): see gate.c for when that is called. Must never call mosquitto_loop(),
 * _loop_start() or _loop_forever(), which write when they like; nor mosquitto_disconnect() while
 * anything is held, since DISCONNECT goes out behind the held PUBACKs.
 */
#include "mqtt.h"

#include <errno.h>
#include <fcntl.h>
#include <mosquitto.h>
#include <openssl/ssl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "clock.h"
#include "failpoint.h"
#include "log.h"
#include "mqtt_connect.h"
#include "mqtt_events.h"
#include "mqtt_leave.h"
#include "mqtt_limits.h"
#include "mqtt_socket.h"
#include "mqtt_subscribe.h"
#include "mqtt_wire.h"

/*
 * Packets read in one turn of the loop, before the writers get their records. Fewer make many small
 * transactions out of a window of 500, which costs a quarter of the rate where a commit takes 2 ms.
 */
#define READ_BURST 1024
/* ---- reading and writing ---- */

static bool
is_half_written(const struct mqtt *m)
{
	return mosquitto_want_write(m->mosq) || mqtt_socket_unsent();
}

/* libmosquitto would like to write for the whole of a handshake that waits for the peer. */
static bool
has_to_write(const struct mqtt *m)
{
	SSL *ssl = mosquitto_ssl_get(m->mosq);

	return ssl != NULL && !SSL_is_init_finished(ssl) ? SSL_want_write(ssl) : is_half_written(m);
}

/* Writes out libmosquitto's whole queue, PUBACKs and all. Only gate_may_flush() may let it. */
static void
flush(struct mqtt *m)
{
	int fd = mosquitto_socket(m->mosq), rc;
	bool cork = !mqtt_socket_is_buffered();

	if (m->gate.held > 0 && FAILPOINT("before_ack")) {
		mqtt_lose(m, MOSQ_ERR_CONN_LOST);
		return;
	}
	if (!m->gate.flushing && resume_should_ask(m->resume, m->now))
		mqtt_ask_for_proof(m);
	/* From here on an acknowledgement may have left, whatever becomes of the rest. */
	resume_flushed(m->resume);
	if (cork)
		mqtt_wire_cork(fd, 1);
	errno = 0;
	rc = mqtt_socket_write(m->mosq);
	if (rc != MOSQ_ERR_SUCCESS || m->lost) {
		mqtt_lose(m, rc);
		return;
	}
	if (m->gate.held > 0 && FAILPOINT("in_ack")) {
		mqtt_lose(m, MOSQ_ERR_CONN_LOST);
		return;
	}
	if (cork)
		mqtt_wire_cork(fd, 0);
	rc = mqtt_socket_flush();
	if (rc != MOSQ_ERR_SUCCESS) {
		mqtt_lose(m, rc);
		return;
	}
	if (m->gate.held > 0 && FAILPOINT("after_ack")) {
		mqtt_lose(m, MOSQ_ERR_CONN_LOST);
		return;
	}
	m->last_out = m->now;
	m->gate.flushing = is_half_written(m);
	if (!m->gate.flushing) {
		if (m->gate.held > 0)
			log_debug("acknowledged", LOG_U("messages", m->gate.held));
		mqtt_limits_round(m);
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
		rc = mqtt_socket_read(m->mosq);
		if (rc != MOSQ_ERR_SUCCESS || m->lost) {
			mqtt_lose(m, rc);
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
			mqtt_lose(m, MOSQ_ERR_ERRNO);
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
	rc = mqtt_socket_write(m->mosq);
	if (rc == MOSQ_ERR_SUCCESS && !m->lost)
		rc = mqtt_socket_flush();
	if (rc != MOSQ_ERR_SUCCESS || m->lost)
		mqtt_lose(m, rc);
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
	/* The acknowledgements that no other question has followed. */
	if (resume_should_ask(m->resume, m->now))
		mqtt_ask_for_proof(m);
	errno = 0;
	rc = mosquitto_loop_misc(m->mosq);
	if (rc != MOSQ_ERR_SUCCESS || m->lost)
		mqtt_lose(m, rc);
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
		if (m->tcp_up && has_to_write(m))
			p->events |= POLLOUT;
		break;
	case MQTT_OPEN:
		p->fd = mosquitto_socket(m->mosq);
		m->reading = !m->intake_closed && gate_may_read(&m->gate, view);
		/* Not mosquitto_want_write(): that is true for as long as PUBACKs are held. */
		p->events =
		    (short)((m->reading ? POLLIN : POLLRDHUP) | (m->gate.flushing ? POLLOUT : 0));
		break;
	case MQTT_PARTING:
	case MQTT_LEAVING:
		mqtt_leave_prepare(m, p);
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
		if (m->on_hold || (revents == 0 && m->now < dialer_deadline(&m->dialer)))
			break;
		switch (dialer_step(&m->dialer, m->now)) {
		case DIALER_GO:
			mqtt_dial(m);
			break;
		case DIALER_FAILED:
			snprintf(
			    m->why, sizeof(m->why), "cannot resolve the name: %s", m->dialer.error);
			mqtt_lose(m, MOSQ_ERR_EAI);
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
			mqtt_lose(m, MOSQ_ERR_CONN_PENDING);
		}
		break;
	case MQTT_OPEN:
		m->full = false;
		/* Asked again: mqtt_gate() may have begun a flush since poll(2) was told to read.
		 */
		if (m->reading && (revents != 0 || mqtt_socket_readable()) &&
		    gate_may_read(&m->gate, view))
			read_packets(m, view);
		else if ((revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0)
			mqtt_lose(m, MOSQ_ERR_CONN_LOST);
		if (m->state == MQTT_OPEN)
			keep_alive(m, view);
		break;
	case MQTT_PARTING:
	case MQTT_LEAVING:
		mqtt_leave_dispatch(m, revents);
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
	m->now = view->now;
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
		return m->on_hold ? CLOCK_NEVER : dialer_deadline(&m->dialer);
	case MQTT_CONNECTING:
		return m->deadline;
	case MQTT_PARTING:
	case MQTT_LEAVING:
		return mqtt_leave_deadline(m);
	case MQTT_OPEN:
		if (m->reading && mqtt_socket_readable())
			return m->now;
		/* Not --ack-interval: the gate looks at it whenever there is something to read. */
		return m->misc_at;
	default:
		return CLOCK_NEVER;
	}
}

/* Messages that were read, now or by an earlier run, and whose PUBACK did not leave. */
uint64_t
mqtt_unacknowledged(const struct mqtt *m)
{
	if (m->state != MQTT_OPEN && m->state != MQTT_PARTING && m->state != MQTT_LEAVING)
		return m->unacknowledged;
	return m->gate.held + resume_outstanding(m->resume);
}

/* A child has been reaped; it may be the resolver's. */
void
mqtt_reaped(struct mqtt *m, pid_t pid)
{
	resolve_reaped(&m->dialer.resolve, pid);
}
