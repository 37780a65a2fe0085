/*
 * A batch: the rows and dead letters of one transaction, as COPY text, until they are durable.
 *
 * A record becomes text the moment it is read, since it points into the channel's buffer. That of a
 * row is kept as well, as it came: the database may refuse the row, and a dead letter needs what no
 * row holds. Must never be cleared before its transaction is known to be committed.
 */
#include "batch.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "dead_letter.h"
#include "payload.h"
#include "row.h"
#include "utf8.h"

/* A byte of text may take seven in COPY's line, and PostgreSQL reads none of 1 GiB. */
#define TEXT_MAX (128 * 1024 * 1024)
/* A batch that has had more rows than this gives their index back. */
#define ENDS_KEEP 65536
/* For one transaction, where batches may grow. */
#define GROWTH_TIME (200 * CLOCK_MS)

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
		dead(v, BATCH_TOPIC_REASON "is no UTF-8");
		return;
	}
	if (memchr(r->topic.s, '\0', r->topic.n) != NULL) {
		dead(v, BATCH_TOPIC_REASON "holds a NUL byte");
		return;
	}
	payload_judge((const uint8_t *)r->payload.s, r->payload.n, v);
	if (v->kind == PAYLOAD_TEXT && r->payload.n > TEXT_MAX)
		dead(v, "text of more than 128 MiB");
}

/* Room for one more; as few as there are at first. */
static int
reserve_ends(struct batch *b)
{
	size_t cap = b->ends_cap > 0 ? 2 * b->ends_cap : 512;
	struct batch_row *p;

	if (b->row_count < b->ends_cap)
		return 0;
	p = reallocarray(b->ends, cap, sizeof(*p));
	if (p == NULL)
		return -1;
	b->ends = p;
	b->ends_cap = cap;
	return 0;
}

/* The line and the record, or neither. */
static int
add_row(struct batch *b, const struct record *r, enum payload_kind kind)
{
	size_t before = b->records.len;
	int rc;

	if (reserve_ends(b) == -1)
		return -1;
	if (r->encoded.n > 0)
		rc = buffer_append(&b->records, r->encoded.s, r->encoded.n);
	else
		rc = message_encode_record(&b->records, r);
	if (rc == 0)
		rc = row_append(&b->rows, r, kind);
	if (rc == -1) {
		b->records.len = before;
		return -1;
	}
	b->ends[b->row_count] = (struct batch_row){buffer_size(&b->rows), buffer_size(&b->records)};
	return 0;
}

/* It holds one record more. */
static enum batch_result
note(struct batch *b, const struct record *r, enum batch_result result, int64_t now)
{
	if (batch_records(b) == 0)
		b->oldest = now;
	/* After a replay the numbers may come again; the highest is the watermark. */
	if (r->seq > b->last_seq)
		b->last_seq = r->seq;
	if (result == BATCH_DEAD_LETTER)
		b->dead_letter_count++;
	else
		b->row_count++;
	return result;
}

/* Adds a record and says, in the verdict, what became of it. now is on the monotonic clock. */
enum batch_result
batch_add(struct batch *b, const struct record *r, int lane, int64_t now, struct payload_verdict *v)
{
	judge(r, v);
	if (v->kind == PAYLOAD_DEAD)
		return batch_condemn(b, r, lane, now, v->reason);
	if (add_row(b, r, v->kind) == -1)
		return BATCH_NO_MEMORY;
	return note(b, r, BATCH_ROW, now);
}

/* Adds a record that is to be a dead letter, without a look at its payload. */
enum batch_result
batch_condemn(struct batch *b, const struct record *r, int lane, int64_t now, const char *reason)
{
	if (dead_letter_append(&b->dead_letters, r, lane, reason) == -1)
		return BATCH_NO_MEMORY;
	return note(b, r, BATCH_DEAD_LETTER, now);
}

/* The lines of so many rows, good as long as the batch is not changed. */
struct text
batch_lines(const struct batch *b, size_t first, size_t count)
{
	size_t begin = first > 0 ? b->ends[first - 1].line_end : 0;

	return (struct text){(const char *)buffer_head(&b->rows) + begin,
	    b->ends[first + count - 1].line_end - begin};
}

/*
 * Decodes the record of a row; it points into the batch. Returns -1 if it is not what it was, which
 * only a fault in memory can bring about.
 */
int
batch_record(const struct batch *b, size_t row, struct message *m)
{
	size_t begin = row > 0 ? b->ends[row - 1].record_end : 0, used;
	size_t n = b->ends[row].record_end - begin;
	struct message_fault fault;

	return message_decode(buffer_head(&b->records) + begin, n, n, m, &used, &fault) ==
		    MESSAGE_OK &&
		m->type == MESSAGE_RECORD
	    ? 0
	    : -1;
}

/*
 * How many records a transaction should have at most, if one of so many took so long: a database
 * that is slow is not to be held up by one for so long that it looks dead.
 */
int64_t
batch_growth(uint64_t records, int64_t duration)
{
	return (int64_t)records * GROWTH_TIME / (duration > 0 ? duration : 1);
}

/* True when it should take no more; size is a number of records. */
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
	buffer_clear(&b->records);
	if (b->ends_cap > ENDS_KEEP) {
		free(b->ends);
		b->ends = NULL;
		b->ends_cap = 0;
	}
	b->row_count = b->dead_letter_count = b->last_seq = 0;
}

void
batch_free(struct batch *b)
{
	buffer_free(&b->rows);
	buffer_free(&b->dead_letters);
	buffer_free(&b->records);
	free(b->ends);
	*b = (struct batch){0};
}
