#ifndef SUPERVISOR_BACKLOG_H
#define SUPERVISOR_BACKLOG_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "message.h"

struct backlog_chunk;
struct buffer;

/* A record that is not yet durable: its number and the length of its encoded message. */
struct backlog_entry {
	uint64_t seq;
	uint32_t length;
	uint8_t qos;
};

struct backlog {
	struct backlog_entry *ring; /* capacity is a power of two */
	size_t capacity;
	size_t head;    /* index of the oldest entry */
	size_t count;   /* entries */
	size_t sent;    /* of these, wholly written to the channel */
	size_t partial; /* bytes of the next one that are written */
	size_t bytes;   /* of all entries */
	uint64_t watermark;
	uint64_t reached; /* highest seq of which a byte was ever written */
	struct backlog_chunk *first, *last, *spare;
	struct backlog_chunk *at; /* where the unsent bytes start */
	size_t at_offset;
};

void backlog_init(struct backlog *);
void backlog_free(struct backlog *);
int backlog_append(struct backlog *, const struct record *);
int backlog_append_encoded(struct backlog *, const struct record *, const uint8_t *, size_t);
size_t backlog_copy(const struct backlog *, size_t from, size_t most, struct buffer *);
uint64_t backlog_seq(const struct backlog *, size_t);
int backlog_unsent(const struct backlog *, struct iovec *, int);
int backlog_unsent_one(const struct backlog *, struct iovec *);
void backlog_mark_sent(struct backlog *, size_t);
int64_t backlog_durable(struct backlog *, uint64_t);
int64_t backlog_found(struct backlog *, uint64_t);
void backlog_discard(struct backlog *);
void backlog_rewind(struct backlog *);
size_t backlog_count_qos(const struct backlog *, uint8_t);

#endif
