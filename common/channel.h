#ifndef COMMON_CHANNEL_H
#define COMMON_CHANNEL_H

#include <stdbool.h>
#include <sys/uio.h>

#include "buffer.h"
#include "message.h"

/* The writer finds its end here (see execve in supervisor/children.c). */
#define CHANNEL_WRITER_FD 3

/* One end of the socketpair. out holds small messages that wait; records come by iovec. */
struct channel {
	int fd;
	size_t cap;
	struct buffer in;
	struct buffer out;
};

enum channel_result {
	CHANNEL_OK,
	CHANNEL_AGAIN,
	CHANNEL_CLOSED,
	CHANNEL_ERROR,
};

int channel_pair(int[2]);
int channel_init(struct channel *, int, size_t);
void channel_close(struct channel *);
enum channel_result channel_read(struct channel *);
enum message_result channel_next(struct channel *, struct message *, struct message_fault *);
int channel_queue(struct channel *, const struct message *);
enum channel_result channel_write(struct channel *, const struct iovec *, int, size_t *);
bool channel_taken(const struct channel *);

#endif
