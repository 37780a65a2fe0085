/*
 * The MQTT socket, buffered both ways.
 *
 * libmosquitto reads a packet with three read(2) calls and writes each PUBACK with one of its own,
 * which is most of what a message costs; one more is a byte for each packet into a socketpair, to
 * wake a loop of its own that does not run here. So read, write, send and socketpair are defined
 * here: an executable's definition goes before the C library's, and the dynamic linker binds the
 * calls of libmosquitto, and of the OpenSSL underneath it, to these. While mqtt_socket_read() or
 * mqtt_socket_write() runs, the first three serve its one descriptor from a buffer, and gather what
 * is written for mqtt_socket_flush(); during mqtt_socket_new() there is no socketpair to be had.
 *
 * Must never come between any other descriptor and the kernel, nor act outside these three calls;
 * and never write past bytes that are still gathered. Where a libmosquitto calls something else,
 * nothing is gathered and all goes on as without this file: mqtt_socket_is_buffered() tells.
 * `make MQTT_SOCKET_BUFFER=0` leaves the four functions out.
 */
/* Fortified, some of these would be defined inline already. */
#undef _FORTIFY_SOURCE
#include "mqtt_socket.h"

#include <errno.h>
#include <mosquitto.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define BUFFER_SIZE ((size_t)64 * 1024)

/* Bytes [head, tail) are waiting. */
struct bytes {
	size_t head, tail;
	uint8_t at[BUFFER_SIZE];
};

static struct {
	int fd;     /* of the connection, -1 without one */
	int active; /* the same while libmosquitto is reading or writing, else -1 */
	bool gathering;
	bool creating;              /* a client */
	bool was_read, was_written; /* through here */
	struct bytes in, out;
} it = {.fd = -1, .active = -1};

/* As mosquitto_new() with a session that is kept, but without the socketpair. */
struct mosquitto *
mqtt_socket_new(const char *client_id, void *arg)
{
	struct mosquitto *mosq;

	it.creating = true;
	mosq = mosquitto_new(client_id, false, arg);
	it.creating = false;
	return mosq;
}

/* A new connection, whose bytes go through here from now on. */
void
mqtt_socket_begin(int fd)
{
	it.fd = fd;
	it.was_read = it.was_written = false;
	it.in.head = it.in.tail = it.out.head = it.out.tail = 0;
}

/* The connection has ended: what is buffered is of no interest any more. */
void
mqtt_socket_end(void)
{
	mqtt_socket_begin(-1);
}

/* Is there something to read that poll(2) does not know of? */
bool
mqtt_socket_readable(void)
{
	return it.in.head < it.in.tail;
}

/* Is there something that libmosquitto takes for written and the kernel has not got? */
bool
mqtt_socket_unsent(void)
{
	return it.out.head < it.out.tail;
}

/* Once something was read and written: did it come this way? */
bool
mqtt_socket_is_buffered(void)
{
	return it.was_read && it.was_written;
}

/* As mosquitto_loop_read(), whose notes on errno hold. */
int
mqtt_socket_read(struct mosquitto *mosq)
{
	int rc;

	it.active = it.fd;
	rc = mosquitto_loop_read(mosq, 1);
	it.active = -1;
	return rc;
}

/*
 * As mosquitto_loop_write(), but what it writes may still have to be sent: mqtt_socket_flush().
 * Not for a DISCONNECT, behind which libmosquitto closes the socket.
 */
int
mqtt_socket_write(struct mosquitto *mosq)
{
	int rc;

	it.active = it.fd;
	it.gathering = true;
	rc = mosquitto_loop_write(mosq, 1);
	it.gathering = false;
	it.active = -1;
	return rc;
}

/*
 * Sends what was gathered, or as much as the kernel takes: mqtt_socket_unsent() tells whether
 * there is a rest. Returns MOSQ_ERR_SUCCESS, or what libmosquitto makes of the error, with errno.
 */
int
mqtt_socket_flush(void)
{
	ssize_t n;

	while (mqtt_socket_unsent()) {
		n = sendto(it.fd, it.out.at + it.out.head, it.out.tail - it.out.head, MSG_NOSIGNAL,
		    NULL, 0);
		if (n == -1 && errno == EAGAIN)
			break;
		if (n == -1 && errno == EINTR)
			continue;
		if (n == -1)
			return errno == ECONNRESET ? MOSQ_ERR_CONN_LOST : MOSQ_ERR_ERRNO;
		it.out.head += (size_t)n;
	}
	if (!mqtt_socket_unsent())
		it.out.head = it.out.tail = 0;
	return MOSQ_ERR_SUCCESS;
}

#if MQTT_SOCKET_BUFFER

static size_t
least(size_t a, size_t b)
{
	return a < b ? a : b;
}

ssize_t
read(int fd, void *to, size_t n)
{
	struct bytes *in = &it.in;
	ssize_t got;

	if (fd != it.active || fd == -1)
		return syscall(SYS_read, fd, to, n);
	it.was_read = true;
	if (in->head == in->tail) {
		/* A large payload goes where it belongs at once. */
		if (n >= sizeof(in->at))
			return syscall(SYS_read, fd, to, n);
		got = syscall(SYS_read, fd, in->at, sizeof(in->at));
		if (got <= 0)
			return got;
		in->head = 0;
		in->tail = (size_t)got;
	}
	n = least(n, in->tail - in->head);
	memcpy(to, in->at + in->head, n);
	in->head += n;
	return (ssize_t)n;
}

/* Takes what there is room for, after a try to make some. Returns as write(2). */
static ssize_t
gather(const void *from, size_t n)
{
	struct bytes *out = &it.out;

	if (n > sizeof(out->at) - out->tail) {
		if (mqtt_socket_flush() != MOSQ_ERR_SUCCESS)
			return -1;
		memmove(out->at, out->at + out->head, out->tail - out->head);
		out->tail -= out->head;
		out->head = 0;
	}
	n = least(n, sizeof(out->at) - out->tail);
	if (n == 0) {
		errno = EAGAIN;
		return -1;
	}
	memcpy(out->at + out->tail, from, n);
	out->tail += n;
	return (ssize_t)n;
}

/* True when the bytes have to be gathered: by order, or since there are some in front of them. */
static bool
is_gathered(int fd, size_t n)
{
	if (fd != it.active || fd == -1)
		return false;
	it.was_written = true;
	return n > 0 && (it.gathering || mqtt_socket_unsent());
}

ssize_t
write(int fd, const void *from, size_t n)
{
	return is_gathered(fd, n) ? gather(from, n) : syscall(SYS_write, fd, from, n);
}

/* The same for later versions of libmosquitto. The flags say nothing that gather() does not do. */
ssize_t
send(int fd, const void *from, size_t n, int flags)
{
	return is_gathered(fd, n) ? gather(from, n) : sendto(fd, from, n, flags, NULL, 0);
}

/* libmosquitto goes on without one, and then does not write to it. */
int
socketpair(int domain, int type, int protocol, int pair[2])
{
	if (it.creating) {
		errno = EOPNOTSUPP;
		return -1;
	}
	return (int)syscall(SYS_socketpair, domain, type, protocol, pair);
}

#endif
