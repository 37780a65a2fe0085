#ifndef WORKER_BATCH_H
#define WORKER_BATCH_H

#include <stdbool.h>

#include "buffer.h"
#include "message.h"
#include "payload.h"

/* Bytes of COPY text at which a batch is full; the last record may go beyond. */
#define BATCH_BYTES (1024 * 1024)

/* Where the line of a row ends in rows, and its record in records, counted from their heads. */
struct batch_row {
	size_t line_end;
	size_t record_end;
};

/* How the reasons begin that find fault with the topic, which a dead letter then does not hold as
 * it was. */
#define BATCH_TOPIC_REASON "the topic "

/* What goes into one transaction. oldest is on the monotonic clock. */
struct batch {
	struct buffer rows;
	struct buffer dead_letters;
	struct buffer records;  /* of the rows, encoded, for what the database may refuse */
	struct batch_row *ends; /* row_count of them */
	size_t ends_cap;
	uint64_t row_count;
	uint64_t dead_letter_count;
	uint64_t last_seq;
	int64_t oldest;
};

enum batch_result {
	BATCH_ROW,
	BATCH_DEAD_LETTER,
	BATCH_NO_MEMORY,
};

enum batch_result batch_add(
    struct batch *, const struct record *, int lane, int64_t now, struct payload_verdict *);
enum batch_result batch_condemn(
    struct batch *, const struct record *, int lane, int64_t now, const char *reason);
struct text batch_lines(const struct batch *, size_t first, size_t count);
int batch_record(const struct batch *, size_t row, struct message *);
int64_t batch_growth(uint64_t records, int64_t duration);
bool batch_full(const struct batch *, int64_t size);
void batch_clear(struct batch *);
void batch_free(struct batch *);

static inline uint64_t
batch_records(const struct batch *b)
{
	return b->row_count + b->dead_letter_count;
}

#endif
