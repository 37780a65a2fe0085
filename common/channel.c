/*
 * The stream between supervisor and writer: message.c's objects over a Unix socketpair, many to one
 * read and one write.
 *
 * Non-blocking at both ends. Must never be anybody's memory: the kernel throws away what a dead
 * reader had not read, so whoever sends keeps what matters until it is confirmed.
 */
#include "channel.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define READ_SIZE (128 * 1024)
#define IOV_MOST 32

/* Both ends close-on-exec and non-blocking. Returns -1 with errno. */
int
channel_pair(int fd[2])
{
	return socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fd);
}

/* cap bounds a message that comes in, in bytes. Returns -1 with errno if fd is no socket. */
int
channel_init(struct channel *ch, int fd, size_t cap)
{
	int type, flags;
	socklen_t len = sizeof(type);

	*ch = (struct channel){.fd = -1};
	if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) == -1)
		return -1;
	flags = fcntl(fd, F_GETFL);
	if (flags == -1 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) == -1)
		return -1;
	ch->fd = fd;
	ch->cap = cap;
	return 0;
}

void
channel_close(struct channel *ch)
{
	if (ch->fd != -1)
		close(ch->fd);
	buffer_free(&ch->in);
	buffer_free(&ch->out);
	*ch = (struct channel){.fd = -1};
}

static enum channel_result
result_of(int e)
{
	if (e == EAGAIN || e == EINTR)
		return CHANNEL_AGAIN;
	return e == EPIPE || e == ECONNRESET ? CHANNEL_CLOSED : CHANNEL_ERROR;
}

/* One read(2). The texts of messages decoded before are gone after it. */
enum channel_result
channel_read(struct channel *ch)
{
	ssize_t n;

	if (buffer_reserve(&ch->in, READ_SIZE) == -1)
		return CHANNEL_ERROR;
	n = read(ch->fd, ch->in.data + ch->in.len, READ_SIZE);
	if (n == -1)
		return result_of(errno);
	ch->in.len += (size_t)n;
	return n == 0 ? CHANNEL_CLOSED : CHANNEL_OK;
}

/* The next message of what was read. Its texts stay good until the next channel_read(). */
enum message_result
channel_next(struct channel *ch, struct message *m, struct message_fault *fault)
{
	enum message_result rc;
	size_t used;

	if (buffer_size(&ch->in) == 0) {
		buffer_clear(&ch->in);
		return MESSAGE_MORE;
	}
	rc = message_decode(buffer_head(&ch->in), buffer_size(&ch->in), ch->cap, m, &used, fault);
	/* Not buffer_consume(): that could free what m points into. */
	if (rc == MESSAGE_OK)
		ch->in.head += used;
	return rc;
}

/* Puts a small message behind those that wait to be written. Returns -1 when memory is short. */
int
channel_queue(struct channel *ch, const struct message *m)
{
	return message_encode(&ch->out, m);
}

/*
 * Writes what was queued and then the n parts of iov, in one sendmsg(2); *sent says how many bytes
 * of iov went. The caller must not queue a message while one of its records is half sent.
 */
enum channel_result
channel_write(struct channel *ch, const struct iovec *iov, int n, size_t *sent)
{
	struct iovec all[IOV_MOST + 1];
	struct msghdr msg = {.msg_iov = all};
	size_t queued = buffer_size(&ch->out);
	ssize_t done;

	*sent = 0;
	if (queued > 0)
		all[msg.msg_iovlen++] = (struct iovec){buffer_head(&ch->out), queued};
	if (n > IOV_MOST)
		n = IOV_MOST;
	if (n > 0)
		memcpy(all + msg.msg_iovlen, iov, (size_t)n * sizeof(*iov));
	msg.msg_iovlen += (size_t)n;
	if (msg.msg_iovlen == 0)
		return CHANNEL_OK;
	done = sendmsg(ch->fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
	if (done == -1)
		return result_of(errno);
	if ((size_t)done < queued) {
		buffer_consume(&ch->out, (size_t)done);
		return CHANNEL_OK;
	}
	*sent = (size_t)done - queued;
	buffer_clear(&ch->out);
	return CHANNEL_OK;
}

/* True when the peer has read all that was written: unix(7), SIOCOUTQ. */
bool
channel_taken(const struct channel *ch)
{
	int waiting;

	return buffer_size(&ch->out) == 0 && ioctl(ch->fd, SIOCOUTQ, &waiting) == 0 && waiting == 0;
}
