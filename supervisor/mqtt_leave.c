/*
 * The end of a session: the last acknowledgements, the broker's word that it has got them,
 * DISCONNECT, and its end of file.
 *
 * The word is the answer to an UNSUBSCRIBE behind the acknowledgements. The end of the connection
 * is none: behind a proxy it tells nothing of a broker that had died before. What the broker sends
 * in front of its answer is declined: never acknowledged, it stays there.
 *
 * Must never write out what libmosquitto has queued for a message that was declined.
 */
#include "mqtt_leave.h"

#include <errno.h>
#include <fcntl.h>
#include <mosquitto.h>
#include <sys/socket.h>
#include <unistd.h>

#include "clock.h"
#include "failpoint.h"
#include "mqtt_connect.h"
#include "mqtt_socket.h"
#include "mqtt_subscribe.h"
#include "mqtt_wire.h"

/* For the question and the broker's word, and again for its end of file. */
#define LEAVE_TIMEOUT CLOCK_SECOND

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
	mqtt_forget_connection(m);
	resolve_cancel(&m->dialer.resolve);
	if (m->drain_fd != -1)
		close(m->drain_fd);
	m->drain_fd = -1;
	m->state = MQTT_CLOSED;
}

static void
write_out(struct mqtt *m)
{
	int rc = mosquitto_loop_write(m->mosq, 1);

	/* Its socket is closed as soon as DISCONNECT is written; the copy lives on. */
	if (!m->lost && rc == MOSQ_ERR_SUCCESS && mosquitto_want_write(m->mosq))
		return;
	if (rc != MOSQ_ERR_SUCCESS) {
		mqtt_abandon(m);
		return;
	}
	if (m->state == MQTT_PARTING)
		return;
	mosquitto_destroy(m->mosq);
	m->mosq = NULL;
	shutdown(m->drain_fd, SHUT_WR);
}

/*
 * DISCONNECT, then the broker's end of file for at most a second: closing a socket with unread
 * input sends a reset, and the broker might not get what was written last.
 */
static void
disconnect(struct mqtt *m)
{
	m->drain_fd = fcntl(mosquitto_socket(m->mosq), F_DUPFD_CLOEXEC, 3);
	m->state = MQTT_LEAVING;
	m->deadline = m->now + LEAVE_TIMEOUT;
	if (m->drain_fd == -1) {
		mqtt_abandon(m);
	} else if (m->declined > 0) {
		mqtt_wire_disconnect(m);
		mosquitto_destroy(m->mosq);
		m->mosq = NULL;
		shutdown(m->drain_fd, SHUT_WR);
	} else if (mosquitto_disconnect_v5(m->mosq, 0, NULL) != MOSQ_ERR_SUCCESS) {
		mqtt_abandon(m);
	} else {
		write_out(m);
	}
}

/* Begins the end. Only when nothing is held and nothing in flight. */
void
mqtt_leave(struct mqtt *m, int64_t now)
{
	if (m->state != MQTT_OPEN || m->ping_left > 0 || FAILPOINT("before_disconnect")) {
		mqtt_abandon(m);
		return;
	}
	m->now = now;
	if (!resume_unproven(m->resume)) {
		disconnect(m);
		return;
	}
	m->state = MQTT_PARTING;
	m->deadline = now + LEAVE_TIMEOUT;
	mqtt_ask_for_proof(m);
	write_out(m);
}

/* Half written, with nothing declined yet: it is read only when it is out. */
static bool
has_to_write(const struct mqtt *m)
{
	return m->declined == 0 && mosquitto_want_write(m->mosq);
}

/* There is something to read that poll(2) does not know of, and it may be read. */
static bool
has_to_read(const struct mqtt *m)
{
	return mqtt_socket_readable() && !has_to_write(m);
}

/* The broker's word, or what else it sends. */
static void
go_on_parting(struct mqtt *m, short revents)
{
	int rc = MOSQ_ERR_SUCCESS;

	if (has_to_write(m) && m->now < m->deadline) {
		write_out(m);
		return;
	}
	/* OpenSSL may hold more than poll(2) knows of: until EAGAIN. */
	for (errno = 0; ((revents & ~POLLOUT) != 0 || mqtt_socket_readable()) &&
	     m->state == MQTT_PARTING && errno != EAGAIN;) {
		errno = 0;
		rc = mqtt_socket_read(m->mosq);
		if (rc != MOSQ_ERR_SUCCESS || m->lost) {
			mqtt_abandon(m);
			return;
		}
		if (!resume_unproven(m->resume))
			break;
	}
	if (!resume_unproven(m->resume) || m->now >= m->deadline)
		disconnect(m);
}

static void
go_on_leaving(struct mqtt *m)
{
	static char ignored[64 * 1024];
	ssize_t n;

	if (m->mosq != NULL) {
		write_out(m);
		return;
	}
	n = recv(m->drain_fd, ignored, sizeof(ignored), MSG_DONTWAIT);
	if (n == 0 && FAILPOINT("after_disconnect"))
		m->unacknowledged = 0;
	if (n == 0 || (n == -1 && errno != EAGAIN && errno != EINTR))
		mqtt_abandon(m);
}

void
mqtt_leave_prepare(const struct mqtt *m, struct pollfd *p)
{
	if (m->state == MQTT_PARTING) {
		p->fd = mosquitto_socket(m->mosq);
		p->events = has_to_write(m) ? POLLOUT : POLLIN;
		return;
	}
	p->fd = m->drain_fd;
	p->events = m->mosq != NULL ? POLLOUT : POLLIN;
}

/* When mqtt_leave_dispatch() must be called at the latest. */
int64_t
mqtt_leave_deadline(const struct mqtt *m)
{
	return m->state == MQTT_PARTING && has_to_read(m) ? m->now : m->deadline;
}

void
mqtt_leave_dispatch(struct mqtt *m, short revents)
{
	if (m->state == MQTT_PARTING && (revents != 0 || has_to_read(m) || m->now >= m->deadline))
		go_on_parting(m, revents);
	else if (m->state == MQTT_LEAVING && revents != 0)
		go_on_leaving(m);
	if (m->state == MQTT_LEAVING && m->now >= m->deadline)
		mqtt_abandon(m);
}
