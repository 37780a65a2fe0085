#ifndef WORKER_LETTER_H
#define WORKER_LETTER_H

#include <stdbool.h>

#include "buffer.h"
#include "message.h"

struct json_object;

/* Microseconds since the epoch, exact under every version, and for a timestamp, which holds UTC. */
#define LETTERS_MICROSECONDS(column)                                              \
	"(extract(epoch FROM date_trunc('second', " column "))::bigint * 1000000" \
	" + mod(extract(microseconds FROM " column ")::bigint, 1000000))"

/* The columns that a letter is made of, in the order of enum letter_column. */
#define LETTER_COLUMNS                                                                           \
	"id, " LETTERS_MICROSECONDS("received") ", topic, encode(payload, 'hex'), qos, retain, " \
						"properties, reason, sqlstate, detail"

enum letter_column {
	LETTER_ID,
	LETTER_RECEIVED,
	LETTER_TOPIC,
	LETTER_PAYLOAD,
	LETTER_QOS,
	LETTER_RETAIN,
	LETTER_PROPERTIES,
	LETTER_REASON,
	LETTER_SQLSTATE,
	LETTER_DETAIL,
	LETTER_COLUMN_COUNT,
};

/* What a letter's record points into besides its columns; used again for the next letter. */
struct letter {
	struct record record;
	struct buffer payload;
	struct json_object *properties;
};

int letter_read(struct letter *, const char *const column[LETTER_COLUMN_COUNT]);
bool letter_has_lost_its_topic(const char *reason);
void letter_free(struct letter *);

#endif
