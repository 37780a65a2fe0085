#ifndef COMMON_BUFFER_H
#define COMMON_BUFFER_H

#include <stddef.h>
#include <stdint.h>

/* Bytes [head, len) of data are waiting; owned by the buffer until buffer_free(). */
struct buffer {
	uint8_t *data;
	size_t head;
	size_t len;
	size_t cap;
};

int buffer_reserve(struct buffer *, size_t);
int buffer_append(struct buffer *, const void *, size_t);
void buffer_consume(struct buffer *, size_t);
void buffer_clear(struct buffer *);
void buffer_free(struct buffer *);

static inline size_t
buffer_size(const struct buffer *b)
{
	return b->len - b->head;
}

static inline uint8_t *
buffer_head(const struct buffer *b)
{
	return b->data + b->head;
}

#endif
