/*
 * The records of one lane that are not yet known to be durable, in order, encoded as they go to the
 * writer: the memory of what was sent, since the kernel forgets what a dead writer had not read.
 *
 * The bytes stand in a chain of chunks, so that sending is a writev(2) straight out of it and
 * nothing is moved; a ring of small entries says where each record ends. Must never drop a record
 * that is neither durable nor another's to send again, and knows no limit: who appends must stop
 * reading in time.
 */
#include "backlog.h"

#include <stdlib.h>

#include "buffer.h"

/* Below malloc's mmap threshold, so that chunks come from and go to the heap cheaply. */
#define CHUNK_SIZE (size_t)(64 * 1024)
#define RING_MIN 256

struct backlog_chunk {
	struct backlog_chunk *next;
	struct buffer bytes; /* head moves as records become durable */
};

void
backlog_init(struct backlog *b)
{
	*b = (struct backlog){0};
}

static void
chunk_free(struct backlog_chunk *c)
{
	if (c == NULL)
		return;
	buffer_free(&c->bytes);
	free(c);
}

void
backlog_free(struct backlog *b)
{
	struct backlog_chunk *c;

	while ((c = b->first) != NULL) {
		b->first = c->next;
		chunk_free(c);
	}
	chunk_free(b->spare);
	free(b->ring);
	backlog_init(b);
}

static struct backlog_entry *
entry(const struct backlog *b, size_t i)
{
	return &b->ring[(b->head + i) & (b->capacity - 1)];
}

static int
ring_grow(struct backlog *b)
{
	size_t capacity = b->capacity > 0 ? b->capacity * 2 : RING_MIN, i;
	struct backlog_entry *ring;

	ring = reallocarray(NULL, capacity, sizeof(*ring));
	if (ring == NULL)
		return -1;
	for (i = 0; i < b->count; i++)
		ring[i] = *entry(b, i);
	free(b->ring);
	b->ring = ring;
	b->capacity = capacity;
	b->head = 0;
	return 0;
}

/* The last chunk with room for n more bytes, a new one if need be. */
static struct backlog_chunk *
chunk_for(struct backlog *b, size_t n)
{
	struct backlog_chunk *c = b->last;

	if (c != NULL && c->bytes.cap - c->bytes.len >= n)
		return c;
	c = b->spare;
	b->spare = NULL;
	if (c == NULL)
		c = calloc(1, sizeof(*c));
	if (c == NULL || buffer_reserve(&c->bytes, n > CHUNK_SIZE ? n : CHUNK_SIZE) == -1) {
		chunk_free(c);
		return NULL;
	}
	c->next = NULL;
	if (b->last != NULL)
		b->last->next = c;
	else
		b->first = c;
	if (b->at == NULL) {
		b->at = c;
		b->at_offset = 0;
	}
	b->last = c;
	return c;
}

/*
 * Appends a copy of the record; its seq must be higher than all before. Returns -1 with errno
 * ENOMEM, and then the backlog is as it was.
 */
int
backlog_append(struct backlog *b, const struct record *r)
{
	struct backlog_chunk *c;
	size_t before;

	if (b->count == b->capacity && ring_grow(b) == -1)
		return -1;
	c = chunk_for(b, message_record_max(r));
	if (c == NULL)
		return -1;
	before = c->bytes.len;
	if (message_encode_record(&c->bytes, r) == -1)
		return -1;
	b->count++;
	*entry(b, b->count - 1) = (struct backlog_entry){
	    .seq = r->seq, .length = (uint32_t)(c->bytes.len - before), .qos = r->qos};
	b->bytes += c->bytes.len - before;
	return 0;
}

/* The same with its n encoded bytes at hand. */
int
backlog_append_encoded(struct backlog *b, const struct record *r, const uint8_t *bytes, size_t n)
{
	struct backlog_chunk *c;

	if (b->count == b->capacity && ring_grow(b) == -1)
		return -1;
	c = chunk_for(b, n);
	if (c == NULL || buffer_append(&c->bytes, bytes, n) == -1)
		return -1;
	b->count++;
	*entry(b, b->count - 1) =
	    (struct backlog_entry){.seq = r->seq, .length = (uint32_t)n, .qos = r->qos};
	b->bytes += n;
	return 0;
}

/* The seq of the i-th record. */
uint64_t
backlog_seq(const struct backlog *b, size_t i)
{
	return entry(b, i)->seq;
}

/*
 * Appends to out the encoded records from the given one on, as long as they fit into most bytes,
 * but one at least. Returns how many; 0 if there are none or memory is short. Linear.
 */
size_t
backlog_copy(const struct backlog *b, size_t from, size_t most, struct buffer *out)
{
	const struct backlog_chunk *c = b->first;
	size_t skip = 0, n = 0, bytes = 0, i, step;

	for (i = 0; i < from; i++)
		skip += entry(b, i)->length;
	for (; i < b->count && (n == 0 || bytes + entry(b, i)->length <= most); i++, n++)
		bytes += entry(b, i)->length;
	if (buffer_reserve(out, bytes) == -1)
		return 0;
	for (; bytes > 0; c = c->next, skip -= step) {
		step = buffer_size(&c->bytes) < skip ? buffer_size(&c->bytes) : skip;
		if (buffer_size(&c->bytes) == step)
			continue;
		i = buffer_size(&c->bytes) - step < bytes ? buffer_size(&c->bytes) - step : bytes;
		buffer_append(out, buffer_head(&c->bytes) + step, i);
		bytes -= i;
	}
	return n;
}

/* Fills at most n parts with bytes that are not yet written; returns how many. */
int
backlog_unsent(const struct backlog *b, struct iovec *iov, int n)
{
	const struct backlog_chunk *c = b->at;
	size_t offset = b->at_offset;
	int i = 0;

	for (; c != NULL && i < n; c = c->next, offset = 0) {
		if (offset < c->bytes.len)
			iov[i++] = (struct iovec){c->bytes.data + offset, c->bytes.len - offset};
	}
	return i;
}

/* The same with what is not yet written of a single record, which is one part. */
int
backlog_unsent_one(const struct backlog *b, struct iovec *iov)
{
	size_t left;

	if (b->sent == b->count || backlog_unsent(b, iov, 1) == 0)
		return 0;
	left = entry(b, b->sent)->length - b->partial;
	if (iov->iov_len > left)
		iov->iov_len = left;
	return 1;
}

static void
note_reached(struct backlog *b, uint64_t seq)
{
	if (seq > b->reached)
		b->reached = seq;
}

/* n bytes of what backlog_unsent() gave have been written. */
void
backlog_mark_sent(struct backlog *b, size_t n)
{
	size_t left = n, step;

	while (left > 0) {
		step = b->at->bytes.len - b->at_offset;
		if (step > left)
			step = left;
		b->at_offset += step;
		left -= step;
		if (b->at_offset == b->at->bytes.len && b->at->next != NULL) {
			b->at = b->at->next;
			b->at_offset = 0;
		}
	}
	b->partial += n;
	while (b->sent < b->count && b->partial >= entry(b, b->sent)->length)
		b->partial -= entry(b, b->sent++)->length;
	if (b->partial > 0)
		note_reached(b, entry(b, b->sent)->seq);
	else if (b->sent > 0)
		note_reached(b, entry(b, b->sent - 1)->seq);
}

/* Drops n bytes from the head of the chain and the chunks that are empty then. */
static void
drop_bytes(struct backlog *b, size_t n)
{
	struct backlog_chunk *c;
	size_t step;

	while (n > 0) {
		c = b->first;
		step = buffer_size(&c->bytes);
		if (step > n)
			step = n;
		c->bytes.head += step;
		n -= step;
		if (buffer_size(&c->bytes) > 0)
			continue;
		b->first = c->next;
		if (b->last == c)
			b->last = NULL;
		if (b->at == c) {
			b->at = c->next;
			b->at_offset = 0;
		}
		/* One is kept, so that a quiet lane does not allocate for each record. */
		buffer_clear(&c->bytes);
		if (b->spare == NULL && c->bytes.cap == CHUNK_SIZE)
			b->spare = c;
		else
			chunk_free(c);
	}
}

/* Drops the first n records. */
static void
drop_records(struct backlog *b, size_t n)
{
	size_t bytes = 0, i;

	for (i = 0; i < n; i++)
		bytes += entry(b, i)->length;
	drop_bytes(b, bytes);
	b->head = n > 0 ? (b->head + n) & (b->capacity - 1) : b->head;
	b->count -= n;
	b->sent -= n < b->sent ? n : b->sent;
	b->bytes -= bytes;
}

/*
 * Everything up to seq is durable and is dropped. Returns how many records that were; -1 if no
 * record with that seq was sent and waits, so that the writer cannot know of it.
 */
int64_t
backlog_durable(struct backlog *b, uint64_t seq)
{
	size_t n = 0;

	while (n < b->sent && entry(b, n)->seq <= seq)
		n++;
	if (n == 0 || entry(b, n - 1)->seq != seq)
		return -1;
	drop_records(b, n);
	b->watermark = seq;
	return (int64_t)n;
}

/*
 * A new writer has found everything up to seq committed, by the one before; nothing of the backlog
 * has been sent to it yet. Returns how many records are dropped for it; -1 if nobody was ever sent
 * a record of that seq.
 */
int64_t
backlog_found(struct backlog *b, uint64_t seq)
{
	size_t n = 0;

	if (seq > b->reached && seq > b->watermark)
		return -1;
	while (n < b->count && entry(b, n)->seq <= seq)
		n++;
	if (n > 0 && (b->sent > 0 || b->partial > 0))
		return -1;
	drop_records(b, n);
	if (n > 0)
		backlog_rewind(b);
	if (seq > b->watermark)
		b->watermark = seq;
	return (int64_t)n;
}

/* Drops everything, of which nothing must have been sent. The watermark stays. */
void
backlog_discard(struct backlog *b)
{
	drop_records(b, b->count);
	backlog_rewind(b);
}

/* The writer has died: all that is not durable is to be sent again. */
void
backlog_rewind(struct backlog *b)
{
	b->sent = 0;
	b->partial = 0;
	b->at = b->first;
	b->at_offset = b->first != NULL ? b->first->bytes.head : 0;
}

/* How many of the records have that quality of service. Linear: for the end of a run only. */
size_t
backlog_count_qos(const struct backlog *b, uint8_t qos)
{
	size_t n = 0, i;

	for (i = 0; i < b->count; i++)
		n += entry(b, i)->qos == qos;
	return n;
}
