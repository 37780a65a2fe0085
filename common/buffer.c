/*
 * A byte buffer that grows at its tail and is eaten from its head.
 *
 * It has no limit of its own: whoever fills it must bound it (message.c caps every message before
 * it is unpacked, batch.c every batch). Must never end the process: a failed allocation is the
 * caller's to handle.
 */
#include "buffer.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define BUFFER_MIN 4096
/* An empty buffer larger than this is given back, so that one huge message does not stay. */
#define BUFFER_KEEP (1024 * 1024)

/* Makes room for n more bytes behind len. Returns 0, or -1 with errno ENOMEM; the content stays. */
int
buffer_reserve(struct buffer *b, size_t n)
{
	size_t want, cap;
	uint8_t *p;

	if (b->cap - b->len >= n)
		return 0;
	if (b->head > 0) {
		memmove(b->data, b->data + b->head, b->len - b->head);
		b->len -= b->head;
		b->head = 0;
		if (b->cap - b->len >= n)
			return 0;
	}
	if (n > SIZE_MAX / 2 - b->len) {
		errno = ENOMEM;
		return -1;
	}
	want = b->len + n;
	cap = b->cap > 0 ? b->cap : BUFFER_MIN;
	while (cap < want)
		cap *= 2;
	p = realloc(b->data, cap);
	if (p == NULL)
		return -1;
	b->data = p;
	b->cap = cap;
	return 0;
}

/* Copies n bytes to the tail. Returns 0, or -1 with errno ENOMEM. */
int
buffer_append(struct buffer *b, const void *p, size_t n)
{
	if (buffer_reserve(b, n) == -1)
		return -1;
	if (n > 0)
		memcpy(b->data + b->len, p, n);
	b->len += n;
	return 0;
}

/* Drops n bytes from the head; n must not exceed buffer_size(). */
void
buffer_consume(struct buffer *b, size_t n)
{
	b->head += n;
	if (b->head == b->len)
		buffer_clear(b);
}

void
buffer_clear(struct buffer *b)
{
	b->head = b->len = 0;
	if (b->cap > BUFFER_KEEP)
		buffer_free(b);
}

void
buffer_free(struct buffer *b)
{
	free(b->data);
	*b = (struct buffer){0};
}
