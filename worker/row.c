/*
 * A record becomes a line of COPY's text format: time, topic, payload.
 *
 * This runs for every record, so nothing here allocates but the buffer's own growth, and text is
 * copied byte by byte only where a byte of it needs an escape. Must never let a byte of topic or
 * payload end its field or line: neighbours would take the damage.
 */
#include "row.h"

#include <stdbool.h>
#include <string.h>
#include <time.h>

#include "clock.h"

/* Text is escaped in pieces, so that the buffer is asked for what is needed, not for the worst. */
#define PIECE 4096
/* A byte of plain text at its longest: \\u001f, and a byte of COPY text: \t. */
#define JSON_ESCAPE_MAX 7
#define COPY_ESCAPE_MAX 2

#define ONES UINT64_C(0x0101010101010101)
#define HIGHS UINT64_C(0x8080808080808080)

/*
 * May need an escape: control characters or a backslash among eight bytes. The usual trick with the
 * borrow of a subtraction; it may see one too many behind a true one, never one too few.
 */
static bool
word_is_special(uint64_t w)
{
	uint64_t backslash = w ^ (ONES * '\\');

	return ((((w - ONES * 0x20) & ~w) | ((backslash - ONES) & ~backslash)) & HIGHS) != 0;
}

static bool
is_plain(const uint8_t *p, size_t n)
{
	uint64_t w;

	for (; n >= sizeof(w); p += sizeof(w), n -= sizeof(w)) {
		memcpy(&w, p, sizeof(w));
		if (word_is_special(w))
			return false;
	}
	for (; n > 0; p++, n--) {
		if (*p < 0x20 || *p == '\\')
			return false;
	}
	return true;
}

/* COPY's escape for a byte; 0 if it stands for itself. */
static uint8_t
copy_escape(uint8_t c)
{
	switch (c) {
	case '\b':
		return 'b';
	case '\t':
		return 't';
	case '\n':
		return 'n';
	case '\v':
		return 'v';
	case '\f':
		return 'f';
	case '\r':
		return 'r';
	case '\\':
		return '\\';
	default:
		return 0;
	}
}

/* Appends n bytes as the content of a COPY field. Returns -1 when memory is short. */
int
row_append_escaped(struct buffer *out, const void *data, size_t n)
{
	const uint8_t *p = data;
	size_t piece, i;
	uint8_t esc, *to;

	for (; n > 0; p += piece, n -= piece) {
		piece = n < PIECE ? n : PIECE;
		if (is_plain(p, piece)) {
			if (buffer_append(out, p, piece) == -1)
				return -1;
			continue;
		}
		if (buffer_reserve(out, piece * COPY_ESCAPE_MAX) == -1)
			return -1;
		to = out->data + out->len;
		for (i = 0; i < piece; i++) {
			esc = copy_escape(p[i]);
			if (esc != 0)
				*to++ = '\\';
			*to++ = esc != 0 ? esc : p[i];
		}
		out->len = (size_t)(to - out->data);
	}
	return 0;
}

/*
 * Appends text as a JSON string within a COPY field: two layers of escapes at once. By hand because
 * json-c would need an object and a copy per record; text is UTF-8 without NUL, so only quotes,
 * backslashes and control characters are left to escape.
 */
static int
append_json_string(struct buffer *out, const uint8_t *p, size_t n)
{
	static const char hex[] = "0123456789abcdef";
	size_t piece, i;
	uint8_t *to;

	if (buffer_append(out, "\"", 1) == -1)
		return -1;
	for (; n > 0; p += piece, n -= piece) {
		piece = n < PIECE ? n : PIECE;
		if (buffer_reserve(out, piece * JSON_ESCAPE_MAX) == -1)
			return -1;
		to = out->data + out->len;
		for (i = 0; i < piece; i++) {
			if (p[i] == '"') {
				to = mempcpy(to, "\\\\\"", 3);
			} else if (p[i] == '\\') {
				to = mempcpy(to, "\\\\\\\\", 4);
			} else if (p[i] < 0x20) {
				to = mempcpy(to, "\\\\u00", 5);
				*to++ = (uint8_t)hex[p[i] >> 4];
				*to++ = (uint8_t)hex[p[i] & 15];
			} else {
				*to++ = p[i];
			}
		}
		out->len = (size_t)(to - out->data);
	}
	return buffer_append(out, "\"", 1);
}

static char *
put_digits(char *to, int n, int digits)
{
	int i;

	for (i = digits - 1; i >= 0; i--, n /= 10)
		to[i] = (char)('0' + n % 10);
	return to + digits;
}

/*
 * Writes microseconds since the epoch as PostgreSQL reads them under every DateStyle, without a
 * terminating NUL. The years are held within four digits: a clock beyond them is broken anyway, and
 * a time that PostgreSQL refuses would hold up the lane.
 */
void
row_format_time(char out[ROW_TIME_SIZE], int64_t us)
{
	static const int64_t latest = INT64_C(253402300799999999); /* the end of 9999 */
	static int64_t cached = -1;
	static char text[20];
	int64_t second;
	struct tm tm;
	time_t t;
	char *to;

	us = us < 0 ? 0 : us > latest ? latest : us;
	second = us / CLOCK_SECOND;
	if (second != cached) {
		t = (time_t)second;
		gmtime_r(&t, &tm);
		to = put_digits(text, tm.tm_year + 1900, 4);
		*to++ = '-';
		to = put_digits(to, tm.tm_mon + 1, 2);
		*to++ = '-';
		to = put_digits(to, tm.tm_mday, 2);
		*to++ = ' ';
		to = put_digits(to, tm.tm_hour, 2);
		*to++ = ':';
		to = put_digits(to, tm.tm_min, 2);
		*to++ = ':';
		to = put_digits(to, tm.tm_sec, 2);
		*to++ = '.';
		cached = second;
	}
	memcpy(out, text, sizeof(text));
	to = put_digits(out + sizeof(text), (int)(us % CLOCK_SECOND), 6);
	memcpy(to, "+00", 3);
}

/*
 * Appends the line of a record whose payload was judged to be of this kind (never PAYLOAD_DEAD) and
 * whose topic is text. Returns -1 with errno when memory is short; out is then as it was.
 */
int
row_append(struct buffer *out, const struct record *r, enum payload_kind kind)
{
	size_t before = buffer_size(out);
	int rc;

	/* Most often all that the line needs; buffer_append() then never has to grow it. */
	if (buffer_reserve(out, ROW_TIME_SIZE + r->topic.n + r->payload.n + 8) == -1)
		return -1;
	row_format_time((char *)out->data + out->len, r->time);
	out->len += ROW_TIME_SIZE;
	out->data[out->len++] = '\t';
	rc = row_append_escaped(out, r->topic.s, r->topic.n);
	if (rc == 0)
		rc = buffer_append(out, "\t", 1);
	if (rc == 0 && kind == PAYLOAD_JSON)
		rc = row_append_escaped(out, r->payload.s, r->payload.n);
	else if (rc == 0 && kind == PAYLOAD_TEXT)
		rc = append_json_string(out, (const uint8_t *)r->payload.s, r->payload.n);
	else if (rc == 0)
		rc = buffer_append(out, "null", 4);
	if (rc == 0)
		rc = buffer_append(out, "\n", 1);
	if (rc == -1)
		out->len = out->head + before;
	return rc;
}
