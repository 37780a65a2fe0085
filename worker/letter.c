/*
 * A row of ingestd.dead_letter becomes the record again that it was made of: the other end of
 * dead_letter.c.
 *
 * Pure. Must never make more of a letter than it holds: a payload that was cut stays cut, and
 * properties that are not as dead_letter.c writes them are left out.
 */
#include "letter.h"

#include <errno.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "batch.h"
#include "dead_letter.h"

static int
hex_digit(char c)
{
	return c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10;
}

/* hex is as the server's encode() writes it. */
static int
read_payload(struct letter *l, const char *hex)
{
	size_t n = strlen(hex) / 2, i;

	buffer_clear(&l->payload);
	if (buffer_reserve(&l->payload, n) == -1)
		return -1;
	for (i = 0; i < n; i++)
		l->payload.data[i] =
		    (uint8_t)(hex_digit(hex[2 * i]) << 4 | hex_digit(hex[2 * i + 1]));
	l->payload.len = n;
	l->record.payload = (struct text){(const char *)l->payload.data, n};
	return 0;
}

static uint64_t
whole_size(size_t n, const char *detail)
{
	unsigned long long size;
	size_t kept;

	if (sscanf(detail, DEAD_LETTER_CUT, &size, &kept) != 2 || kept != n || size < n)
		return n;
	return size;
}

static bool
is_string(struct json_object *o)
{
	return json_object_is_type(o, json_type_string);
}

static struct text
text_of(struct json_object *o)
{
	return (struct text){json_object_get_string(o), (size_t)json_object_get_string_len(o)};
}

/* {"content-type": …, "user": [[name, value], …]} */
static void
read_properties(struct letter *l, const char *text)
{
	struct record *r = &l->record;
	struct json_object *o, *list, *pair;
	size_t i;

	json_object_put(l->properties);
	l->properties = *text != '\0' ? json_tokener_parse(text) : NULL;
	if (!json_object_is_type(l->properties, json_type_object))
		return;
	if (json_object_object_get_ex(l->properties, "content-type", &o) && is_string(o))
		r->content_type = text_of(o);
	if (!json_object_object_get_ex(l->properties, "user", &list) ||
	    !json_object_is_type(list, json_type_array))
		return;
	for (i = 0; i < json_object_array_length(list); i++) {
		pair = json_object_array_get_idx(list, i);
		if (!json_object_is_type(pair, json_type_array) ||
		    json_object_array_length(pair) != 2 ||
		    !is_string(json_object_array_get_idx(pair, 0)) ||
		    !is_string(json_object_array_get_idx(pair, 1)) ||
		    r->property_count == RECORD_PROPERTIES_MAX)
			continue;
		r->properties[2 * r->property_count] = text_of(json_object_array_get_idx(pair, 0));
		r->properties[2 * r->property_count + 1] =
		    text_of(json_object_array_get_idx(pair, 1));
		r->property_count++;
	}
}

/*
 * Makes the record of a row's columns, where NULL is the empty string. It points into them and into
 * l, and is good until either changes. l starts as all zeros. Returns -1 when memory is short.
 */
int
letter_read(struct letter *l, const char *const column[LETTER_COLUMN_COUNT])
{
	struct record *r = &l->record;

	*r = (struct record){
	    .time = strtoll(column[LETTER_RECEIVED], NULL, 10),
	    .topic = text_from(column[LETTER_TOPIC]),
	    .qos = (uint8_t)atoi(column[LETTER_QOS]),
	    .retain = *column[LETTER_RETAIN] == 't',
	};
	if (read_payload(l, column[LETTER_PAYLOAD]) == -1)
		return -1;
	r->payload_size = whole_size(r->payload.n, column[LETTER_DETAIL]);
	read_properties(l, column[LETTER_PROPERTIES]);
	return 0;
}

/* True when the reason tells that the topic was no text: the letter holds it escaped. */
bool
letter_has_lost_its_topic(const char *reason)
{
	return strncmp(reason, BATCH_TOPIC_REASON, strlen(BATCH_TOPIC_REASON)) == 0;
}

void
letter_free(struct letter *l)
{
	buffer_free(&l->payload);
	json_object_put(l->properties);
	*l = (struct letter){.properties = NULL};
}
