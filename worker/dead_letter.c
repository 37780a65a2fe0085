/*
 * A record that cannot become a row becomes a line of COPY's text format for ingestd.dead_letter:
 * its exact bytes, and why.
 *
 * Must never write what PostgreSQL could refuse, whatever the record holds: a refused dead letter
 * would hold up its lane, and there is no third place to put it.
 */
#include "dead_letter.h"

#include <errno.h>
#include <json-c/json.h>
#include <stdio.h>
#include <string.h>

#include "row.h"
#include "utf8.h"

static int
append(struct buffer *out, const char *s)
{
	return buffer_append(out, s, strlen(s));
}

/*
 * Appends bytes as text that PostgreSQL takes: what is no UTF-8, and NUL, stands there as \xNN, in
 * so many characters.
 */
static int
append_as_text(struct buffer *out, struct text t)
{
	const uint8_t *p = (const uint8_t *)t.s;
	size_t i = 0, len;
	char esc[8];

	for (; i < t.n; i += len) {
		len = utf8_sequence(p + i, t.n - i);
		if (len > 0 && p[i] != '\0') {
			if (buffer_append(out, p + i, len) == -1)
				return -1;
			continue;
		}
		len = 1;
		snprintf(esc, sizeof(esc), "\\x%02x", p[i]);
		if (append(out, esc) == -1)
			return -1;
	}
	return 0;
}

static int
append_bytea(struct buffer *out, struct text t)
{
	static const char hex[] = "0123456789abcdef";
	const uint8_t *p = (const uint8_t *)t.s;
	uint8_t *to;
	size_t i;

	/* bytea reads \x…; COPY takes one backslash of two away. */
	if (buffer_reserve(out, 3 + 2 * t.n) == -1)
		return -1;
	to = mempcpy(out->data + out->len, "\\\\x", 3);
	for (i = 0; i < t.n; i++) {
		*to++ = (uint8_t)hex[p[i] >> 4];
		*to++ = (uint8_t)hex[p[i] & 15];
	}
	out->len = (size_t)(to - out->data);
	return 0;
}

static struct json_object *
json_text(struct text t)
{
	struct buffer clean = {0};
	struct json_object *o = NULL;

	if (append_as_text(&clean, t) == 0)
		o = json_object_new_string_len(
		    clean.data != NULL ? (const char *)clean.data : "", (int)buffer_size(&clean));
	buffer_free(&clean);
	return o;
}

/* Adds o, which is then the parent's; NULL stands for want of memory. */
static int
add_to_array(struct json_object *array, struct json_object *o)
{
	if (o == NULL)
		return -1;
	if (json_object_array_add(array, o) == 0)
		return 0;
	json_object_put(o);
	return -1;
}

static int
add_to_object(struct json_object *object, const char *key, struct json_object *o)
{
	if (o == NULL)
		return -1;
	if (json_object_object_add(object, key, o) == 0)
		return 0;
	json_object_put(o);
	return -1;
}

/* {"content-type": …, "user": [[name, value], …]} */
static int
fill_properties(struct json_object *object, const struct record *r)
{
	struct json_object *list, *pair;
	size_t i;

	if (r->content_type.s != NULL &&
	    add_to_object(object, "content-type", json_text(r->content_type)) == -1)
		return -1;
	if (r->property_count == 0)
		return 0;
	list = json_object_new_array();
	if (add_to_object(object, "user", list) == -1)
		return -1;
	for (i = 0; i < r->property_count; i++) {
		pair = json_object_new_array();
		if (add_to_array(list, pair) == -1 ||
		    add_to_array(pair, json_text(r->properties[2 * i])) == -1 ||
		    add_to_array(pair, json_text(r->properties[2 * i + 1])) == -1)
			return -1;
	}
	return 0;
}

static int
append_properties(struct buffer *out, const struct record *r)
{
	struct json_object *object;
	const char *text = NULL;
	size_t n;
	int rc = -1;

	if (r->content_type.s == NULL && r->property_count == 0)
		return append(out, "\\N");
	object = json_object_new_object();
	if (object != NULL && fill_properties(object, r) == 0)
		text = json_object_to_json_string_length(
		    object, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE, &n);
	if (text != NULL)
		rc = row_append_escaped(out, text, n);
	json_object_put(object);
	return rc;
}

/* As a COPY field that a text column takes. */
static int
append_clean(struct buffer *out, struct text t)
{
	struct buffer clean = {0};
	int rc = append_as_text(&clean, t);

	if (rc == 0)
		rc = row_append_escaped(out, clean.data, buffer_size(&clean));
	buffer_free(&clean);
	return rc;
}

static int
append_line(struct buffer *out, const struct record *r, int lane, const char *reason,
    const char *sqlstate, const char *detail)
{
	char time[ROW_TIME_SIZE], text[160];

	row_format_time(time, r->time);
	if (buffer_append(out, time, sizeof(time)) == -1 || append(out, "\t") == -1 ||
	    append_clean(out, r->topic) == -1 || append(out, "\t") == -1 ||
	    append_bytea(out, r->payload) == -1)
		return -1;
	snprintf(text, sizeof(text), "\t%d\t%c\t", r->qos, r->retain ? 't' : 'f');
	if (append(out, text) == -1 || append_properties(out, r) == -1)
		return -1;
	snprintf(text, sizeof(text), "\t%d\t", lane);
	if (append(out, text) == -1 || append_clean(out, text_from(reason)) == -1 ||
	    append(out, "\t") == -1)
		return -1;
	if (sqlstate != NULL)
		return append_clean(out, text_from(sqlstate)) == -1 || append(out, "\t") == -1 ||
			append_clean(out, text_from(detail)) == -1 || append(out, "\n") == -1
		    ? -1
		    : 0;
	if (append(out, "\\N\t") == -1)
		return -1;
	if (r->payload.n == r->payload_size)
		return append(out, "\\N\n");
	snprintf(text, sizeof(text), DEAD_LETTER_CUT "\n", (unsigned long long)r->payload_size,
	    r->payload.n);
	return append(out, text);
}

static int
append_all(struct buffer *out, const struct record *r, int lane, const char *reason,
    const char *sqlstate, const char *detail)
{
	size_t before = buffer_size(out);

	if (append_line(out, r, lane, reason, sqlstate, detail) == 0)
		return 0;
	out->len = out->head + before;
	errno = ENOMEM;
	return -1;
}

/*
 * Appends the line of a record that cannot become a row; reason is words. Returns -1 with errno
 * when memory is short; out is then as it was.
 */
int
dead_letter_append(struct buffer *out, const struct record *r, int lane, const char *reason)
{
	return append_all(out, r, lane, reason, NULL, NULL);
}

/* The same for one that the database has refused, with its SQLSTATE and what it has said. */
int
dead_letter_append_refused(struct buffer *out, const struct record *r, int lane, const char *reason,
    const char *sqlstate, const char *detail)
{
	return append_all(out, r, lane, reason, sqlstate, detail);
}
