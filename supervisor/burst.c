/*
 * Records that are gathered to become a row of the spool.
 *
 * Must never count a record that is not in the bytes.
 */
#include "burst.h"

/* Adds a copy of the record; its seq is higher than all before. Returns -1 when memory is short. */
int
burst_add(struct burst *b, const struct record *r)
{
	if (message_encode_record(&b->bytes, r) == -1)
		return -1;
	if (b->count++ == 0)
		b->first = r->seq;
	b->last = r->seq;
	return 0;
}

/* Empties it, and keeps its memory for the next. */
void
burst_clear(struct burst *b)
{
	buffer_clear(&b->bytes);
	b->count = 0;
}

void
burst_free(struct burst *b)
{
	buffer_free(&b->bytes);
	*b = (struct burst){0};
}
