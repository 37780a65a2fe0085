/*
 * The format "auto": what a payload is, and whether jsonb can hold it.
 *
 * JSON stays as it stands, other text becomes a JSON string, nothing becomes null, and what cannot
 * be stored is a dead letter with a reason. JSON is recognised by hand, and not by json-c, because
 * the question is PostgreSQL's: json-c, even strict, accepts what jsonb refuses (strings in single
 * quotes, NaN and Infinity, raw control characters in strings, \u0000, lone surrogates, numbers
 * outside of numeric), so that all of its tokens would have to be read a second time; and it builds
 * a tree only to have it thrown away, which for 16 MiB of "[{},{},…" took 4.3 GB. tests/system/
 * test_payload_against_jsonb.py asks PostgreSQL itself about every rule here.
 *
 * Must never call something JSON that jsonb refuses: the row would hold up its lane. In doubt a
 * payload is a dead letter, with its exact bytes.
 */
#include "payload.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "number.h"
#include "utf8.h"

/*
 * PAYLOAD_DEPTH_MAX: PostgreSQL 15 reads 14,554 arrays or 13,099 objects within one another with
 * the default max_stack_depth of 2 MB, but 630 objects with the smallest that can be set, 100 kB.
 * 512 is safe there too, and far from what any device sends.
 */

/*
 * jsonb's own limits: 2^28 - 1 bytes in a container, and arrays of 2^24 values and objects of 2^23
 * pairs are the largest whose working copies PostgreSQL can allocate. Per value the binary form
 * takes at most VALUE_OVERHEAD bytes more than the text.
 */
#define JSONB_BYTES_MAX 0x0fffffff
#define JSONB_VALUES_MAX (1 << 24)
#define JSONB_PAIRS_MAX (1 << 23)
#define VALUE_OVERHEAD 16

struct scan {
	const uint8_t *start, *p, *end;
	int depth;
	size_t values, pairs;
	struct payload_verdict *verdict;
};

static bool
is_space(uint8_t c)
{
	return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

static const uint8_t *
skip_space(const uint8_t *p, const uint8_t *end)
{
	while (p < end && is_space(*p))
		p++;
	return p;
}

/* Makes a dead letter of it; always false. */
static bool
dead(struct payload_verdict *v, const char *fmt, ...)
{
	va_list ap;

	v->kind = PAYLOAD_DEAD;
	va_start(ap, fmt);
	vsnprintf(v->reason, sizeof(v->reason), fmt, ap);
	va_end(ap);
	return false;
}

static size_t
offset(const struct scan *s)
{
	return (size_t)(s->p - s->start);
}

static bool
unexpected(struct scan *s)
{
	if (s->p == s->end)
		return dead(s->verdict, "no JSON: it ends too early, after %zu bytes", offset(s));
	if (isgraph(*s->p))
		return dead(s->verdict, "no JSON: unexpected '%c' at offset %zu", *s->p, offset(s));
	return dead(s->verdict, "no JSON: unexpected byte 0x%02x at offset %zu", *s->p, offset(s));
}

/* The four hexadecimal digits behind \u at p, -1 if they are none. */
static int
hex4(const uint8_t *p, const uint8_t *end)
{
	int value = 0, i;

	if (end - p < 4)
		return -1;
	for (i = 0; i < 4; i++) {
		if (!isxdigit(p[i]))
			return -1;
		value = value << 4 | (isdigit(p[i]) ? p[i] - '0' : (p[i] | 0x20) - 'a' + 10);
	}
	return value;
}

/* p stands on a backslash. */
static bool
scan_escape(struct scan *s)
{
	int unit, low;

	if (s->end - s->p < 2)
		return dead(s->verdict, "no JSON: a string is not closed");
	if (s->p[1] == '\0' || strchr("\"\\/bfnrt", s->p[1]) != NULL) {
		s->p += 2;
		return true;
	}
	unit = s->p[1] == 'u' ? hex4(s->p + 2, s->end) : -1;
	if (unit == -1)
		return dead(s->verdict, "no JSON: bad escape sequence at offset %zu", offset(s));
	if (unit == 0)
		return dead(s->verdict, "jsonb cannot hold \\u0000 (offset %zu)", offset(s));
	if (unit >= 0xd800 && unit <= 0xdfff) {
		low = -1;
		if (unit <= 0xdbff && s->end - s->p >= 12 && s->p[6] == '\\' && s->p[7] == 'u')
			low = hex4(s->p + 8, s->end);
		if (low < 0xdc00 || low > 0xdfff)
			return dead(s->verdict,
			    "jsonb cannot hold a lone surrogate, \\u%04x (offset %zu)", unit,
			    offset(s));
		s->p += 6;
	}
	s->p += 6;
	return true;
}

/* p stands on the opening quote. */
static bool
scan_string(struct scan *s)
{
	for (s->p++; s->p < s->end;) {
		uint8_t c = *s->p;

		if (c == '"') {
			s->p++;
			return true;
		}
		if (c < 0x20)
			return dead(s->verdict,
			    "no JSON: control character 0x%02x in a string, offset %zu", c,
			    offset(s));
		if (c != '\\')
			s->p++;
		else if (!scan_escape(s))
			return false;
	}
	return dead(s->verdict, "no JSON: a string is not closed");
}

static bool
scan_number(struct scan *s)
{
	const uint8_t *from = s->p;

	switch (number_scan(&s->p, s->end)) {
	case NUMBER_FITS:
		return true;
	case NUMBER_TOO_LARGE:
		return dead(s->verdict, "jsonb cannot hold the number %.*s%s",
		    (int)(s->p - from > 40 ? 40 : s->p - from), (const char *)from,
		    s->p - from > 40 ? "..." : "");
	default:
		return unexpected(s);
	}
}

/* The length of the literal at p, 0 if there is none. */
static size_t
literal(const uint8_t *p, const uint8_t *end)
{
	static const char *const words[] = {"true", "false", "null"};
	size_t i, n;

	for (i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
		n = strlen(words[i]);
		if ((size_t)(end - p) >= n && memcmp(p, words[i], n) == 0)
			return n;
	}
	return 0;
}

static bool
scan_literal(struct scan *s)
{
	size_t n = literal(s->p, s->end);

	if (n == 0)
		return unexpected(s);
	s->p += n;
	return true;
}

/* Moves to the next byte that counts; false at the end. */
static bool
next_token(struct scan *s)
{
	s->p = skip_space(s->p, s->end);
	return s->p < s->end || unexpected(s);
}

/* Behind a member: true if another follows, else *closed tells the container's end from an error.
 */
static bool
another_follows(struct scan *s, uint8_t close, bool *closed)
{
	*closed = false;
	if (!next_token(s))
		return false;
	if (*s->p == ',') {
		s->p++;
		s->values++;
		return true;
	}
	*closed = *s->p == close;
	if (!*closed)
		return unexpected(s);
	s->p++;
	return false;
}

static bool scan_value(struct scan *);

/* p stands on the opening bracket, here and below. */
static bool
scan_array(struct scan *s)
{
	bool closed;

	s->p++;
	if (!next_token(s))
		return false;
	if (*s->p == ']') {
		s->p++;
		return true;
	}
	do {
		if (!scan_value(s))
			return false;
	} while (another_follows(s, ']', &closed));
	return closed;
}

static bool
scan_pair(struct scan *s)
{
	if (!next_token(s))
		return false;
	if (*s->p != '"')
		return unexpected(s);
	if (!scan_string(s) || !next_token(s))
		return false;
	if (*s->p != ':')
		return unexpected(s);
	s->p++;
	s->pairs++;
	return scan_value(s);
}

static bool
scan_object(struct scan *s)
{
	bool closed;

	s->p++;
	if (!next_token(s))
		return false;
	if (*s->p == '}') {
		s->p++;
		return true;
	}
	do {
		if (!scan_pair(s))
			return false;
	} while (another_follows(s, '}', &closed));
	return closed;
}

/* Goes through one value to its end. Recursion is bounded by PAYLOAD_DEPTH_MAX. */
static bool
scan_value(struct scan *s)
{
	bool sound;

	if (!next_token(s))
		return false;
	switch (*s->p) {
	case '{':
	case '[':
		if (++s->depth > PAYLOAD_DEPTH_MAX)
			return dead(s->verdict, "nested deeper than %d levels", PAYLOAD_DEPTH_MAX);
		s->values++;
		sound = *s->p == '{' ? scan_object(s) : scan_array(s);
		s->depth--;
		return sound;
	case '"':
		return scan_string(s);
	case '-':
	case '0' ... '9':
		return scan_number(s);
	default:
		return scan_literal(s);
	}
}

/* For what starts like a container or a string, at first. */
static void
judge_json(const uint8_t *p, size_t n, const uint8_t *first, struct payload_verdict *v)
{
	struct scan s = {.start = p, .p = first, .end = p + n, .verdict = v};

	if (!scan_value(&s))
		return;
	s.p = skip_space(s.p, s.end);
	if (s.p < s.end)
		unexpected(&s);
	else if (s.values > JSONB_VALUES_MAX || s.pairs > JSONB_PAIRS_MAX ||
	    n + VALUE_OVERHEAD * (s.values + s.pairs) > JSONB_BYTES_MAX)
		dead(v, "jsonb cannot hold so many values: about %zu", s.values + s.pairs);
}

/* For what starts like a number or a literal: JSON if it is just that, text if there is more. */
static void
judge_scalar(const uint8_t *first, const uint8_t *end, struct payload_verdict *v)
{
	const uint8_t *p = first;
	enum number_result fits = NUMBER_FITS;

	if (*p == '-' || isdigit(*p))
		fits = number_scan(&p, end);
	else
		p += literal(p, end);
	if (p == first || fits == NUMBER_NONE || skip_space(p, end) != end) {
		v->kind = PAYLOAD_TEXT;
		return;
	}
	if (fits == NUMBER_TOO_LARGE)
		dead(v, "jsonb cannot hold the number %.*s%s",
		    (int)(p - first > 40 ? 40 : p - first), (const char *)first,
		    p - first > 40 ? "..." : "");
}

/* JSON behind a byte order mark was meant as JSON, and no jsonb takes the mark. */
static bool
has_marked_json(const uint8_t *p, const uint8_t *end)
{
	if (end - p < 3 || memcmp(p, "\xef\xbb\xbf", 3) != 0)
		return false;
	p = skip_space(p + 3, end);
	return p < end && (*p == '{' || *p == '[' || *p == '"');
}

/* Judges n bytes. */
void
payload_judge(const uint8_t *p, size_t n, struct payload_verdict *v)
{
	const uint8_t *end = p + n, *first, *nul;
	size_t bad;

	v->kind = PAYLOAD_JSON;
	if (n == 0) {
		v->kind = PAYLOAD_NULL;
		return;
	}
	if (!utf8_valid(p, n, &bad)) {
		dead(
		    v, "neither JSON nor text: byte 0x%02x at offset %zu is no UTF-8", p[bad], bad);
		return;
	}
	nul = memchr(p, '\0', n);
	if (nul != NULL) {
		dead(v, "neither JSON nor text: NUL byte at offset %zu", (size_t)(nul - p));
		return;
	}
	first = skip_space(p, end);
	if (first == end)
		v->kind = PAYLOAD_TEXT;
	else if (*first == '{' || *first == '[' || *first == '"')
		judge_json(p, n, first, v);
	else if (has_marked_json(first, end))
		dead(v, "no JSON: a byte order mark stands before it");
	else
		judge_scalar(first, end, v);
}
