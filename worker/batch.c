/*
 * A batch: the rows and dead letters of one transaction, as COPY text, until they are durable.
 *
 * A record becomes text the moment it is read, since it points into the channel's buffer. Must
 * never be cleared before its transaction is known to be committed.
 */
#include "batch.h"

#include <stdio.h>
#include <string.h>

#include "dead_letter.h"
#include "payload.h"
#include "row.h"
#include "utf8.h"

/* A byte of text may take seven in COPY's line, and PostgreSQL reads none of 1 GiB. */
#define TEXT_MAX (128 * 1024 * 1024)

static void
dead(struct payload_verdict *v, const char *text)
{
	v->kind = PAYLOAD_DEAD;
	snprintf(v->reason, sizeof(v->reason), "%s", text);
}

static void
judge(const struct record *r, struct payload_verdict *v)
{
	size_t bad;

	if (r->payload.n < r->payload_size) {
		v->kind = PAYLOAD_DEAD;
		snprintf(v->reason, sizeof(v->reason),
		    "payload of %llu bytes exceeds --payload-limit",
		    (unsigned long long)r->payload_size);
		return;
	}
	if (!utf8_valid((const uint8_t *)r->topic.s, r->topic.n, &bad)) {
		dead(v, "the topic is no UTF-8");
		return;
	}
	if (memchr(r->topic.s, '\0', r->topic.n) != NULL) {
		dead(v, "the topic holds a NUL byte");
		return;
	}
	payload_judge((const uint8_t *)r->payload.s, r->payload.n, v);
	if (v->kind == PAYLOAD_TEXT && r->payload.n > TEXT_MAX)
		dead(v, "text of more than 128 MiB");
}

/* Adds a record and says, in the verdict, what became of it. now is on the monotonic clock. */
enum batch_result
batch_add(struct batch *b, const struct record *r, int lane, int64_t now, struct payload_verdict *v)
{
	judge(r, v);
	if (v->kind == PAYLOAD_DEAD) {
		if (dead_letter_append(&b->dead_letters, r, lane, v->reason) == -1)
			return BATCH_NO_MEMORY;
	} else if (row_append(&b->rows, r, v->kind) == -1) {
		return BATCH_NO_MEMORY;
	}
	if (batch_records(b) == 0)
		b->oldest = now;
	/* After a replay the numbers may come again; the highest is the watermark. */
	if (r->seq > b->last_seq)
		b->last_seq = r->seq;
	if (v->kind == PAYLOAD_DEAD) {
		b->dead_letter_count++;
		return BATCH_DEAD_LETTER;
	}
	b->row_count++;
	return BATCH_ROW;
}

/* True when it should take no more; size is --batch-size. */
bool
batch_full(const struct batch *b, int64_t size)
{
	return batch_records(b) >= (uint64_t)size ||
	    buffer_size(&b->rows) + buffer_size(&b->dead_letters) >= BATCH_BYTES;
}

/* Ready for new records; last_seq too starts again. */
void
batch_clear(struct batch *b)
{
	buffer_clear(&b->rows);
	buffer_clear(&b->dead_letters);
	b->row_count = b->dead_letter_count = b->last_seq = 0;
}

void
batch_free(struct batch *b)
{
	buffer_free(&b->rows);
	buffer_free(&b->dead_letters);
	*b = (struct batch){0};
}
