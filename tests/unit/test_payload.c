/* The format "auto". PostgreSQL's own verdict is asked in
 * tests/system/test_payload_against_jsonb.py. */
#include "unit.h"

#include <json-c/json_tokener.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "payload.h"
#include "utf8.h"

struct example {
	const char *payload;
	enum payload_kind kind;
	const char *reason;
};

/* In memory of its very size, so that a sanitizer sees each byte read beyond it. */
static struct payload_verdict
judge(const void *data, size_t n)
{
	struct payload_verdict v = {.reason = ""};
	uint8_t *copy = malloc(n > 0 ? n : 1);

	assert_non_null(copy);
	if (n > 0)
		memcpy(copy, data, n);
	payload_judge(copy, n, &v);
	free(copy);
	return v;
}

static void
check(const struct example *e, size_t count)
{
	struct payload_verdict v;

	for (; count > 0; e++, count--) {
		v = judge(e->payload, strlen(e->payload));
		if (v.kind != e->kind || (e->reason != NULL && strcmp(v.reason, e->reason) != 0))
			fail_msg("'%s' is %d '%s', not %d '%s'", e->payload, v.kind, v.reason,
			    e->kind, e->reason != NULL ? e->reason : "");
	}
}

#define CHECK(examples) check(examples, sizeof(examples) / sizeof((examples)[0]))

static void
json_stays_json_and_other_text_becomes_text(void **state)
{
	static const struct example examples[] = {
	    {"", PAYLOAD_NULL, NULL},
	    {"{}", PAYLOAD_JSON, NULL},
	    {" [1, 2.50, {\"a\": null}] \r\n", PAYLOAD_JSON, NULL},
	    {"\"\\u00e9 \\ud83d\\ude00\"", PAYLOAD_JSON, NULL},
	    {"21.10", PAYLOAD_JSON, NULL},
	    {"-0.5e-3\n", PAYLOAD_JSON, NULL},
	    {"true", PAYLOAD_JSON, NULL},
	    {" null ", PAYLOAD_JSON, NULL},
	    {"Online", PAYLOAD_TEXT, NULL},
	    {"nan", PAYLOAD_TEXT, NULL},
	    {"NaN", PAYLOAD_TEXT, NULL},
	    {"True", PAYLOAD_TEXT, NULL},
	    {"truest", PAYLOAD_TEXT, NULL},
	    {"21.5 \xc2\xb0"
	     "C",
		PAYLOAD_TEXT, NULL},
	    {"007", PAYLOAD_TEXT, NULL},
	    {"1.", PAYLOAD_TEXT, NULL},
	    {"-", PAYLOAD_TEXT, NULL},
	    {"1e200000 is much", PAYLOAD_TEXT, NULL},
	    {" ", PAYLOAD_TEXT, NULL},
	    {"\x01", PAYLOAD_TEXT, NULL},
	    {"'a'", PAYLOAD_TEXT, NULL},
	    {"\xef\xbb\xbf"
	     "21.5",
		PAYLOAD_TEXT, NULL},
	};

	(void)state;
	CHECK(examples);
}

static void
what_was_meant_as_json_and_is_none_becomes_a_dead_letter_with_a_reason(void **state)
{
	static const struct example examples[] = {
	    {"{", PAYLOAD_DEAD, "no JSON: it ends too early, after 1 bytes"},
	    {"{\"a\":1,}", PAYLOAD_DEAD, "no JSON: unexpected '}' at offset 7"},
	    {"[1]x", PAYLOAD_DEAD, "no JSON: unexpected 'x' at offset 3"},
	    {"[01]", PAYLOAD_DEAD, "no JSON: unexpected '1' at offset 2"},
	    {"['a']", PAYLOAD_DEAD, "no JSON: unexpected ''' at offset 1"},
	    {"[NaN]", PAYLOAD_DEAD, "no JSON: unexpected 'N' at offset 1"},
	    {"[\v]", PAYLOAD_DEAD, "no JSON: unexpected byte 0x0b at offset 1"},
	    {"\"a\nb\"", PAYLOAD_DEAD, "no JSON: control character 0x0a in a string, offset 2"},
	    {"\"abc", PAYLOAD_DEAD, "no JSON: a string is not closed"},
	    {"\"\\x\"", PAYLOAD_DEAD, "no JSON: bad escape sequence at offset 1"},
	    {"\xef\xbb\xbf {}", PAYLOAD_DEAD, "no JSON: a byte order mark stands before it"},
	    {"{\"a\":\"\\u0000\"}", PAYLOAD_DEAD, "jsonb cannot hold \\u0000 (offset 6)"},
	    {"\"\\udc00\"", PAYLOAD_DEAD, "jsonb cannot hold a lone surrogate, \\udc00 (offset 1)"},
	    {"\"\\ud800\\u0041\"", PAYLOAD_DEAD,
		"jsonb cannot hold a lone surrogate, \\ud800 (offset 1)"},
	    {"1e200000", PAYLOAD_DEAD, "jsonb cannot hold the number 1e200000"},
	    {"[0e-16384]", PAYLOAD_DEAD, "jsonb cannot hold the number 0e-16384"},
	};

	(void)state;
	CHECK(examples);
}

static void
nul_and_broken_utf8_become_dead_letters_with_their_offset(void **state)
{
	struct payload_verdict v;

	(void)state;
	v = judge("ab\0c", 4);
	assert_int_equal(v.kind, PAYLOAD_DEAD);
	assert_string_equal(v.reason, "neither JSON nor text: NUL byte at offset 2");
	v = judge("{\"a\":1}\0", 8);
	assert_int_equal(v.kind, PAYLOAD_DEAD);
	v = judge("0123456789\xff", 11);
	assert_int_equal(v.kind, PAYLOAD_DEAD);
	assert_string_equal(v.reason, "neither JSON nor text: byte 0xff at offset 10 is no UTF-8");
	v = judge("\"\xed\xa0\x80\"", 5);
	assert_int_equal(v.kind, PAYLOAD_DEAD);
}

static void
numbers_are_held_to_the_limits_of_numeric(void **state)
{
	static const struct example examples[] = {
	    {"1e131071", PAYLOAD_JSON, NULL},
	    {"1e131072", PAYLOAD_DEAD, NULL},
	    {"0.00001e131076", PAYLOAD_JSON, NULL},
	    {"0.00001e131077", PAYLOAD_DEAD, NULL},
	    {"1e-16383", PAYLOAD_JSON, NULL},
	    {"1e-16384", PAYLOAD_DEAD, NULL},
	    {"1.0e-16383", PAYLOAD_DEAD, NULL},
	    {"0e1073741822", PAYLOAD_JSON, NULL},
	    {"0e1073741823", PAYLOAD_DEAD, NULL},
	    {"1e99999999999999999999999", PAYLOAD_DEAD, NULL},
	};
	char *digits = malloc(131073);

	(void)state;
	CHECK(examples);
	assert_non_null(digits);
	memset(digits, '1', 131073);
	assert_int_equal(judge(digits, 131072).kind, PAYLOAD_JSON);
	assert_int_equal(judge(digits, 131073).kind, PAYLOAD_DEAD);
	free(digits);
}

static void
nesting_ends_at_the_limit(void **state)
{
	char text[4 * PAYLOAD_DEPTH_MAX];
	int i;

	(void)state;
	for (i = 0; i <= PAYLOAD_DEPTH_MAX; i++) {
		memset(text, '[', (size_t)i + 1);
		memset(text + i + 1, ']', (size_t)i + 1);
		assert_int_equal(judge(text, 2 * ((size_t)i + 1)).kind,
		    i < PAYLOAD_DEPTH_MAX ? PAYLOAD_JSON : PAYLOAD_DEAD);
	}
}

/* ---- random input ---- */

/* Appends a random JSON text; returns its end. */
static char *
make_json(char *to, int depth)
{
	static const char *const scalars[] = {"0", "-1.50", "6e-7", "true", "false", "null", "\"\"",
	    "\"a\\n\\u00e9\"", "\"\\ud834\\udd1e\"", "12345678901234567890"};
	uint64_t kind = random_below(depth > 0 ? 4 : 2), members = random_below(4), i;

	if (kind < 2)
		return stpcpy(to, scalars[random_below(sizeof(scalars) / sizeof(scalars[0]))]);
	to = stpcpy(to, kind == 2 ? "[" : "{");
	for (i = 0; i < members; i++) {
		if (i > 0)
			to = stpcpy(to, random_below(2) ? "," : " ,\n");
		if (kind == 3)
			to = stpcpy(to, random_below(2) ? "\"k\":" : "\"\\\"\" : ");
		to = make_json(to, depth - 1);
	}
	return stpcpy(to, kind == 2 ? "]" : " }");
}

/* json-c takes more than jsonb does, but nothing less. */
static bool
json_c_takes(const char *text, size_t n)
{
	struct json_tokener *t = json_tokener_new_ex(PAYLOAD_DEPTH_MAX + 2);
	enum json_tokener_error error;
	struct json_object *o;

	json_tokener_set_flags(t, JSON_TOKENER_STRICT);
	o = json_tokener_parse_ex(t, text, (int)n);
	error = json_tokener_get_error(t);
	if (error == json_tokener_continue) {
		o = json_tokener_parse_ex(t, "", 1);
		error = json_tokener_get_error(t);
	}
	json_object_put(o);
	json_tokener_free(t);
	return error == json_tokener_success;
}

static void
every_generated_json_text_is_json(void **state)
{
	char text[65536];
	size_t n;
	int i;

	(void)state;
	for (i = 0; i < 20000; i++) {
		n = (size_t)(make_json(text, 5) - text);
		if (judge(text, n).kind != PAYLOAD_JSON)
			fail_msg("%.*s", (int)n, text);
	}
}

static void
a_cut_container_is_never_json(void **state)
{
	char text[65536];
	size_t n, cut;
	int i;

	(void)state;
	for (i = 0; i < 5000; i++) {
		n = (size_t)(make_json(text, 4) - text);
		if (text[0] != '{' && text[0] != '[')
			continue;
		cut = 1 + random_below(n - 1);
		if (cut < n)
			assert_int_equal(judge(text, cut).kind, PAYLOAD_DEAD);
	}
}

static void
whatever_is_called_json_json_c_takes_as_well(void **state)
{
	static const char bytes[] = "0123456789-+.eE\"\\{}[],:tfnul \n\ta'/u\x01\xc3\xa9";
	char text[65536];
	size_t n, at, bad;
	int i, seen = 0;

	(void)state;
	for (i = 0; i < 100000; i++) {
		n = (size_t)(make_json(text, 3) - text);
		at = random_below(n);
		text[at] = bytes[random_below(sizeof(bytes) - 1)];
		if (!utf8_valid((uint8_t *)text, n, &bad) || judge(text, n).kind != PAYLOAD_JSON)
			continue;
		seen++;
		if (!json_c_takes(text, n))
			fail_msg("%.*s", (int)n, text);
	}
	assert_true(seen > 1000);
}

static void
any_bytes_get_a_verdict_and_a_dead_letter_always_a_reason(void **state)
{
	struct payload_verdict v;
	uint8_t bytes[64];
	size_t n, i, bad;
	int round;

	(void)state;
	for (round = 0; round < 200000; round++) {
		n = random_below(sizeof(bytes) + 1);
		for (i = 0; i < n; i++)
			bytes[i] =
			    (uint8_t)(random_below(4) ? ' ' + random_below(95) : random_below(256));
		v = judge(bytes, n);
		if (v.kind == PAYLOAD_DEAD)
			assert_true(v.reason[0] != '\0' &&
			    utf8_valid((uint8_t *)v.reason, strlen(v.reason), &bad));
		else
			assert_true(utf8_valid(bytes, n, &bad) && memchr(bytes, '\0', n) == NULL);
	}
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(json_stays_json_and_other_text_becomes_text),
	    cmocka_unit_test(
		what_was_meant_as_json_and_is_none_becomes_a_dead_letter_with_a_reason),
	    cmocka_unit_test(nul_and_broken_utf8_become_dead_letters_with_their_offset),
	    cmocka_unit_test(numbers_are_held_to_the_limits_of_numeric),
	    cmocka_unit_test(nesting_ends_at_the_limit),
	    cmocka_unit_test(every_generated_json_text_is_json),
	    cmocka_unit_test(a_cut_container_is_never_json),
	    cmocka_unit_test(whatever_is_called_json_json_c_takes_as_well),
	    cmocka_unit_test(any_bytes_get_a_verdict_and_a_dead_letter_always_a_reason),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
