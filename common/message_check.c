/*
 * Is this a message? Walks over the headers of a msgpack object before anybody unpacks it, and
 * finds every type, count and length in order and the whole within its cap, or says which byte is
 * wrong.
 *
 * By hand because msgpack-c trusts lengths: five bytes can make it ask for 96 GB. Must never
 * allocate, nor read behind the end of what is there.
 */
#include "message_check.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/*
 * What follows the type: u unsigned number, s string, b binary, o string or nil, l array of an even
 * number of strings, n array of an even number of unsigned numbers.
 */
static const struct message_layout layouts[] = {
    {MESSAGE_CONFIG, "CONFIG", "uussuuuuu"},
    {MESSAGE_RECORD, "RECORD", "uusbuuuuol"},
    {MESSAGE_FLUSH, "FLUSH", ""},
    {MESSAGE_CLOSE, "CLOSE", "s"},
    {MESSAGE_FORGET, "FORGET", "s"},
    {MESSAGE_CONDEMN, "CONDEMN", "us"},
    {MESSAGE_READY, "READY", "usuus"},
    {MESSAGE_COMMITTED, "COMMITTED", "uuuuu"},
    {MESSAGE_TROUBLE, "TROUBLE", "uss"},
    {MESSAGE_DRAINED, "DRAINED", "uuuu"},
    {MESSAGE_CLOSED, "CLOSED", "sn"},
    {MESSAGE_FORGOTTEN, "FORGOTTEN", "s"},
};

/* NULL for a type that there is not. */
const struct message_layout *
message_layout_of(uint64_t type)
{
	size_t i;

	for (i = 0; i < sizeof(layouts) / sizeof(layouts[0]); i++) {
		if (layouts[i].type == type)
			return &layouts[i];
	}
	return NULL;
}

/* Notes the fault at the cursor; returns MESSAGE_BAD. */
enum message_result
message_bad(struct message_cursor *c, const char *fmt, ...)
{
	va_list ap;

	c->fault->offset = (size_t)(c->p - c->start);
	va_start(ap, fmt);
	vsnprintf(c->fault->reason, sizeof(c->fault->reason), fmt, ap);
	va_end(ap);
	return MESSAGE_BAD;
}

/* Are n bytes there, and may they be? */
static enum message_result
need(struct message_cursor *c, size_t n)
{
	size_t before = (size_t)(c->p - c->start);

	if (n > c->cap - before)
		return message_bad(
		    c, "it announces %zu bytes more, past the limit of %zu", n, c->cap);
	return n > (size_t)(c->end - c->p) ? MESSAGE_MORE : MESSAGE_OK;
}

/* Reads a big-endian number of width bytes behind the byte at p, and moves over both. */
static enum message_result
read_number(struct message_cursor *c, size_t width, uint64_t *n)
{
	enum message_result rc = need(c, 1 + width);
	size_t i;

	if (rc != MESSAGE_OK)
		return rc;
	for (*n = 0, i = 1; i <= width; i++)
		*n = *n << 8 | c->p[i];
	c->p += 1 + width;
	return MESSAGE_OK;
}

static enum message_result
read_unsigned(struct message_cursor *c, uint64_t *n)
{
	enum message_result rc = need(c, 1);
	uint8_t head;

	if (rc != MESSAGE_OK)
		return rc;
	head = *c->p;
	if (head <= 0x7f) {
		*n = head;
		c->p++;
		return MESSAGE_OK;
	}
	if (head < 0xcc || head > 0xcf)
		return message_bad(c, "byte 0x%02x where an unsigned number belongs", head);
	return read_number(c, (size_t)1 << (head - 0xcc), n);
}

/*
 * Reads the length of a string, binary or array: fix and mask are its short form, from the first
 * of its long forms.
 */
static enum message_result
read_length(struct message_cursor *c, const char *what, uint8_t fix, uint8_t mask, uint8_t first,
    int forms, uint64_t *n)
{
	enum message_result rc = need(c, 1);
	size_t width;
	uint8_t head;

	if (rc != MESSAGE_OK)
		return rc;
	head = *c->p;
	if (mask != 0 && (head & mask) == fix) {
		*n = head & (uint8_t)~mask;
		c->p++;
		return MESSAGE_OK;
	}
	if (head < first || head >= first + forms)
		return message_bad(c, "byte 0x%02x where %s belongs", head, what);
	width = (size_t)1 << (head - first);
	if (forms == 2)
		width *= 2;
	return read_number(c, width, n);
}

static enum message_result
skip_bytes(struct message_cursor *c, uint64_t n)
{
	enum message_result rc = need(c, n);

	if (rc == MESSAGE_OK)
		c->p += n;
	return rc;
}

static enum message_result
skip_string(struct message_cursor *c)
{
	enum message_result rc;
	uint64_t n;

	rc = read_length(c, "a string", 0xa0, 0xe0, 0xd9, 3, &n);
	return rc == MESSAGE_OK ? skip_bytes(c, n) : rc;
}

static enum message_result
skip_list(struct message_cursor *c, bool numbers)
{
	enum message_result rc;
	uint64_t n, ignored;

	rc = read_length(c, "an array", 0x90, 0xf0, 0xdc, 2, &n);
	if (rc != MESSAGE_OK)
		return rc;
	if (n > 2 * (uint64_t)(numbers ? MESSAGE_LANES_MAX : RECORD_PROPERTIES_MAX) || n % 2 != 0)
		return message_bad(c, "a list of %llu elements", (unsigned long long)n);
	for (; n > 0 && rc == MESSAGE_OK; n--)
		rc = numbers ? read_unsigned(c, &ignored) : skip_string(c);
	return rc;
}

static enum message_result
skip_element(struct message_cursor *c, char kind)
{
	enum message_result rc;
	uint64_t n;

	switch (kind) {
	case 'u':
		return read_unsigned(c, &n);
	case 'b':
		rc = read_length(c, "binary", 0, 0, 0xc4, 3, &n);
		return rc == MESSAGE_OK ? skip_bytes(c, n) : rc;
	case 'l':
	case 'n':
		return skip_list(c, kind == 'n');
	case 'o':
		rc = need(c, 1);
		if (rc == MESSAGE_OK && *c->p == 0xc0) {
			c->p++;
			return MESSAGE_OK;
		}
		return rc == MESSAGE_OK ? skip_string(c) : rc;
	default:
		return skip_string(c);
	}
}

/* Walks over one message; on MESSAGE_OK the cursor stands behind it. */
enum message_result
message_check(struct message_cursor *c)
{
	const struct message_layout *layout;
	enum message_result rc;
	const char *kind;
	uint64_t count, type;

	rc = read_length(c, "a message (an array)", 0x90, 0xf0, 0xdc, 2, &count);
	if (rc != MESSAGE_OK)
		return rc;
	if (count == 0)
		return message_bad(c, "an empty array has no type");
	rc = read_unsigned(c, &type);
	if (rc != MESSAGE_OK)
		return rc;
	layout = message_layout_of(type);
	if (layout == NULL)
		return message_bad(c, "there is no message of type %llu", (unsigned long long)type);
	if (type != MESSAGE_RECORD && c->cap > MESSAGE_CONTROL_MAX)
		c->cap = MESSAGE_CONTROL_MAX;
	if (count != 1 + strlen(layout->elements))
		return message_bad(c, "%s has %zu elements, not %llu", layout->name,
		    1 + strlen(layout->elements), (unsigned long long)count);
	for (kind = layout->elements; *kind != '\0' && rc == MESSAGE_OK; kind++)
		rc = skip_element(c, *kind);
	return rc;
}
