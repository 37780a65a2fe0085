/*
 * What passes libmosquitto by on its own socket: socket options, PINGREQ while the gate is shut,
 * and DISCONNECT when it is not to open any more.
 *
 * Must never write while libmosquitto's queue is half written, nor read a single byte.
 */
#include "mqtt_wire.h"

#include <fcntl.h>
#include <mosquitto.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/ssl.h>
#include <sys/socket.h>

/* Unanswered bytes for so long, and the connection is dead: well before the broker's 1.5 × 60 s. */
#define TCP_TIMEOUT_MS 30000

/* Options that libmosquitto leaves alone: a dead peer is to be noticed, and no child to inherit it.
 */
void
mqtt_wire_tune(int fd)
{
	int on = 1, idle = 15, interval = 5, count = 3, timeout = TCP_TIMEOUT_MS;

	setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof(idle));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof(interval));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof(count));
	setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &timeout, sizeof(timeout));
	/* libmosquitto sets no close-on-exec; children_spawn_writer() closes too, but a resolver
	 * forks. */
	fcntl(fd, F_SETFD, FD_CLOEXEC);
}

/* Why a connect failed, as an errno; 0 if it did not. */
int
mqtt_wire_error(int fd)
{
	int error = 0;
	socklen_t len = sizeof(error);

	getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &len);
	return error;
}

/* Gathers small writes into whole packets while on. A PUBACK is a write of four bytes. */
void
mqtt_wire_cork(int fd, int on)
{
	setsockopt(fd, IPPROTO_TCP, TCP_CORK, &on, sizeof(on));
}

/*
 * Has TCP acknowledge at once what was read. After an UNSUBACK there is nothing of ours to send
 * that the acknowledgement could ride on, the kernel would wait 40 ms for it, and a broker with
 * Nagle's algorithm on, as Mosquitto's default is, would hold the next PUBLISH back for as long.
 */
void
mqtt_wire_acknowledge(int fd)
{
	int on = 1;

	setsockopt(fd, IPPROTO_TCP, TCP_QUICKACK, &on, sizeof(on));
}

static ssize_t
write_past(struct mqtt *m, const uint8_t *p, int n)
{
	if (m->cfg->url.tls)
		return SSL_write(mosquitto_ssl_get(m->mosq), p, n);
	return send(mosquitto_socket(m->mosq), p, (size_t)n, MSG_NOSIGNAL | MSG_DONTWAIT);
}

/*
 * A PINGREQ past libmosquitto's queue, for while the gate is shut: the broker cuts a client that is
 * silent for 1.5 times the keepalive, and in the queue it would stand behind the held PUBACKs. The
 * queue is never half written here, so ours cannot fall into the middle of a packet. The answer
 * comes through libmosquitto, once we read again.
 */
void
mqtt_wire_ping(struct mqtt *m)
{
	static const uint8_t pingreq[] = {0xc0, 0x00};
	ssize_t n;

	if (m->ping_left == 0)
		m->ping_left = sizeof(pingreq);
	/* OpenSSL wants an unfinished write repeated from its start. */
	n = m->cfg->url.tls ? write_past(m, pingreq, sizeof(pingreq))
			    : write_past(m, pingreq + sizeof(pingreq) - m->ping_left, m->ping_left);
	if (n > 0)
		m->ping_left -= (int)n;
	if (m->ping_left == 0)
		m->last_out = m->now;
}

/*
 * DISCONNECT past the queue, in which acknowledgements stand that must not go out. A socket that
 * does not take these two bytes is closed without them, which costs a line in the broker's log.
 */
void
mqtt_wire_disconnect(struct mqtt *m)
{
	static const uint8_t disconnect[] = {0xe0, 0x00};

	if (m->ping_left == 0)
		(void)write_past(m, disconnect, sizeof(disconnect));
}
