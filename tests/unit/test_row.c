/* COPY lines: what a reader of COPY's text format makes of them must be what was put in. */
#include "unit.h"

#include <json-c/json_tokener.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "batch.h"
#include "dead_letter.h"
#include "message.h"
#include "row.h"
#include "utf8.h"

#define FIELDS_MAX 16

/* A line read back: each field without its escapes, NULL for \N. */
struct line {
	int count;
	char *field[FIELDS_MAX];
	size_t n[FIELDS_MAX];
};

static int
unescape(int c)
{
	static const char codes[] = "bfnrtv\\", meant[] = "\b\f\n\r\t\v\\";
	const char *p = strchr(codes, c);

	assert_true(c != '\0' && p != NULL);
	return meant[p - codes];
}

/* Reads exactly one line, which must be all of the buffer. */
static void
parse(const struct buffer *b, struct line *l)
{
	const char *p = (const char *)buffer_head(b), *end = p + buffer_size(b), *start;
	char *to;

	*l = (struct line){.count = 0};
	assert_true(p < end && end[-1] == '\n');
	for (end--; p <= end; p++) {
		assert_true(l->count < FIELDS_MAX);
		to = l->field[l->count] = malloc((size_t)(end - p) + 1);
		for (start = p; p < end && *p != '\t'; p++) {
			assert_true(*p != '\n' && *p != '\r');
			if (*p == '\\' && p == start && p + 2 <= end && p[1] == 'N') {
				free(l->field[l->count]);
				to = l->field[l->count] = NULL;
				p++;
				continue;
			}
			*to++ = *p == '\\' ? (char)unescape(*++p) : *p;
		}
		if (to != NULL) {
			l->n[l->count] = (size_t)(to - l->field[l->count]);
			*to = '\0';
		}
		l->count++;
	}
}

static void
line_free(struct line *l)
{
	while (l->count > 0)
		free(l->field[--l->count]);
}

static struct record
make_record(const char *topic, const void *payload, size_t n)
{
	return (struct record){.seq = 7,
	    .time = INT64_C(1795366981123456),
	    .topic = text_from(topic),
	    .payload = {payload, n},
	    .payload_size = n,
	    .qos = 1};
}

static void
assert_field(const struct line *l, int i, const char *expected)
{
	assert_true(i < l->count);
	assert_string_equal(l->field[i], expected);
}

static void
a_row_holds_time_topic_and_the_payload_as_it_stood(void **state)
{
	static const char payload[] = "{\"a\": 21.10, \"b\": \"\\n\\\\\"}\n";
	struct record r = make_record("a/\tb\\c\n", payload, strlen(payload));
	struct buffer b = {0};
	struct line l;

	(void)state;
	assert_int_equal(row_append(&b, &r, PAYLOAD_JSON), 0);
	parse(&b, &l);
	assert_int_equal(l.count, 3);
	assert_field(&l, 0, "2026-11-22 17:03:01.123456+00");
	assert_field(&l, 1, "a/\tb\\c\n");
	assert_field(&l, 2, payload);
	line_free(&l);
	buffer_free(&b);
}

static void
a_backslash_and_a_dot_do_not_end_the_copy(void **state)
{
	struct record r = make_record("\\.", "\\.", 2);
	struct buffer b = {0};
	struct line l;

	(void)state;
	assert_int_equal(row_append(&b, &r, PAYLOAD_TEXT), 0);
	assert_null(memmem(b.data, b.len, "\t\\.\t", 4));
	parse(&b, &l);
	assert_field(&l, 1, "\\.");
	assert_field(&l, 2, "\"\\\\.\"");
	line_free(&l);
	buffer_free(&b);
}

static void
times_are_spelt_as_gmtime_says_and_hold_within_four_digits_of_year(void **state)
{
	char expected[40], got[ROW_TIME_SIZE + 1] = "";
	int64_t us;
	time_t t;
	struct tm tm;
	size_t n;
	int i;

	(void)state;
	for (i = 0; i < 20000; i++) {
		us = (int64_t)random_below(UINT64_C(253402300800000000));
		/* Near the one before, so that the cached second is met as well. */
		if (i % 2 == 1)
			us = us / 1000000 * 1000000 + (int64_t)random_below(1000000);
		t = us / 1000000;
		gmtime_r(&t, &tm);
		n = strftime(expected, sizeof(expected), "%Y-%m-%d %H:%M:%S", &tm);
		snprintf(expected + n, sizeof(expected) - n, ".%06d+00", (int)(us % 1000000));
		row_format_time(got, us);
		assert_string_equal(got, expected);
	}
	row_format_time(got, -1);
	assert_string_equal(got, "1970-01-01 00:00:00.000000+00");
	row_format_time(got, INT64_MAX);
	assert_string_equal(got, "9999-12-31 23:59:59.999999+00");
}

/* Random bytes with many that need an escape; as text when utf8 is set. */
static size_t
random_bytes(uint8_t *to, size_t max, bool utf8)
{
	static const char special[] = "\\\t\n\r\b\f\v\"'\x01\x1f\x7f{}.N";
	size_t n = random_below(max), i;

	for (i = 0; i < n; i++) {
		if (random_below(8) == 0)
			to[i] = (uint8_t)special[random_below(sizeof(special) - 1)];
		else
			to[i] = (uint8_t)(utf8 ? 1 + random_below(126) : random_below(256));
	}
	if (utf8 && n >= 4 && random_below(2))
		memcpy(to + random_below(n - 3), "\xf0\x9f\x98\x80", 4);
	return n;
}

static void
escaped_bytes_come_back_from_a_line_as_they_were(void **state)
{
	static uint8_t bytes[12000];
	struct buffer b = {0};
	struct line l;
	size_t n;
	int i;

	(void)state;
	for (i = 0; i < 20000; i++) {
		n = random_bytes(bytes, i % 100 == 0 ? sizeof(bytes) : 40, false);
		buffer_clear(&b);
		assert_int_equal(row_append_escaped(&b, bytes, n), 0);
		assert_int_equal(buffer_append(&b, "\n", 1), 0);
		parse(&b, &l);
		assert_int_equal(l.count, 1);
		assert_int_equal(l.n[0], n);
		assert_memory_equal(l.field[0], bytes, n);
		line_free(&l);
	}
	buffer_free(&b);
}

static void
text_becomes_a_json_string_that_means_the_same(void **state)
{
	static uint8_t bytes[12000];
	struct buffer b = {0};
	struct json_object *o;
	struct record r;
	struct line l;
	size_t n;
	int i;

	(void)state;
	for (i = 0; i < 20000; i++) {
		n = random_bytes(bytes, i % 100 == 0 ? sizeof(bytes) : 40, true);
		r = make_record("t", bytes, n);
		buffer_clear(&b);
		assert_int_equal(row_append(&b, &r, PAYLOAD_TEXT), 0);
		parse(&b, &l);
		o = json_tokener_parse(l.field[2]);
		assert_non_null(o);
		assert_int_equal(json_object_get_string_len(o), n);
		assert_memory_equal(json_object_get_string(o), bytes, n);
		json_object_put(o);
		line_free(&l);
	}
	buffer_free(&b);
}

static void
assert_hex(const char *hex, const uint8_t *bytes, size_t n)
{
	char two[3];
	size_t i;

	assert_int_equal(strlen(hex), 2 + 2 * n);
	assert_memory_equal(hex, "\\x", 2);
	for (i = 0; i < n; i++) {
		snprintf(two, sizeof(two), "%02x", bytes[i]);
		assert_memory_equal(hex + 2 + 2 * i, two, 2);
	}
}

static void
a_dead_letter_holds_the_exact_bytes_whatever_they_are(void **state)
{
	uint8_t payload[200], topic[60], name[40], value[40];
	struct buffer b = {0};
	struct record r;
	struct line l;
	size_t bad;
	int i, f;

	(void)state;
	for (i = 0; i < 20000; i++) {
		r = make_record("", payload, random_bytes(payload, sizeof(payload), false));
		r.topic = (struct text){(char *)topic, random_bytes(topic, sizeof(topic), false)};
		r.property_count = random_below(2);
		r.properties[0] =
		    (struct text){(char *)name, random_bytes(name, sizeof(name), false)};
		r.properties[1] =
		    (struct text){(char *)value, random_bytes(value, sizeof(value), false)};
		buffer_clear(&b);
		assert_int_equal(dead_letter_append(&b, &r, 3, "some reason"), 0);
		parse(&b, &l);
		assert_int_equal(l.count, 10);
		assert_hex(l.field[2], payload, r.payload.n);
		/* Nothing that a text column or jsonb would refuse. */
		for (f = 0; f < l.count; f++) {
			if (l.field[f] != NULL)
				assert_true(utf8_valid((uint8_t *)l.field[f], l.n[f], &bad) &&
				    strlen(l.field[f]) == l.n[f]);
		}
		if (l.field[5] != NULL)
			assert_null(strstr(l.field[5], "\\u0000"));
		line_free(&l);
	}
	buffer_free(&b);
}

static void
a_dead_letter_tells_where_it_came_from_and_why(void **state)
{
	struct record r = make_record("t/\xff", "ab", 2);
	struct buffer b = {0};
	struct line l;

	(void)state;
	r.retain = true;
	r.payload_size = 20;
	r.content_type = text_from("a/b");
	r.property_count = 1;
	r.properties[0] = text_from("k");
	r.properties[1] = (struct text){"v\0\\", 3};
	assert_int_equal(dead_letter_append(&b, &r, 1, "because"), 0);
	parse(&b, &l);
	assert_field(&l, 0, "2026-11-22 17:03:01.123456+00");
	assert_field(&l, 1, "t/\\xff");
	assert_field(&l, 2, "\\x6162");
	assert_field(&l, 3, "1");
	assert_field(&l, 4, "t");
	assert_field(&l, 5, "{\"content-type\":\"a/b\",\"user\":[[\"k\",\"v\\\\x00\\\\\"]]}");
	assert_field(&l, 6, "1");
	assert_field(&l, 7, "because");
	assert_null(l.field[8]);
	assert_field(&l, 9, "the payload had 20 bytes, the first 2 were kept");
	line_free(&l);
	buffer_free(&b);
}

static void
a_refused_row_s_dead_letter_holds_what_the_database_said_whatever_that_is(void **state)
{
	struct record r = make_record("t", "{}", 2);
	struct buffer b = {0};
	struct line l;

	(void)state;
	assert_int_equal(
	    dead_letter_append_refused(&b, &r, 1, "because", "22P02", "no\tint: \"\xc3\""), 0);
	parse(&b, &l);
	assert_int_equal(l.count, 10);
	assert_field(&l, 2, "\\x7b7d");
	assert_field(&l, 7, "because");
	assert_field(&l, 8, "22P02");
	/* Cut in the middle of a letter, it is still text. */
	assert_field(&l, 9, "no\tint: \"\\xc3\"");
	line_free(&l);
	buffer_free(&b);
}

/* Decoded or not, with dead letters between them, and after batch_clear() as well. */
static void
a_batch_gives_the_lines_and_the_record_of_each_row(void **state)
{
	char payload[300], topic[20];
	struct batch b = {0};
	struct payload_verdict v;
	struct record r;
	struct message m;
	struct text all, lines;
	size_t rows, i, n;
	int round;

	(void)state;
	for (round = 0; round < 20; round++) {
		rows = 1 + random_below(2000);
		for (i = 0; i < rows; i++) {
			n = (size_t)snprintf(
			    payload, sizeof(payload), "%zu%0*d", i, (int)random_below(200) + 1, 7);
			snprintf(topic, sizeof(topic), "t/%zu", i);
			r = make_record(topic, payload, n);
			r.seq = i;
			if (random_below(5) == 0) {
				r.payload = (struct text){"{", 1};
				r.payload_size = 1;
				assert_int_equal(batch_add(&b, &r, 0, 1, &v), BATCH_DEAD_LETTER);
				r = make_record(topic, payload, n);
				r.seq = i;
			}
			assert_int_equal(batch_add(&b, &r, 0, 1, &v), BATCH_ROW);
		}
		assert_int_equal(b.row_count, rows);
		all = batch_lines(&b, 0, rows);
		assert_int_equal(all.n, buffer_size(&b.rows));
		for (i = n = 0; i < rows; i++) {
			lines = batch_lines(&b, i, 1);
			assert_ptr_equal(lines.s, all.s + n);
			n += lines.n;
			assert_int_equal(lines.s[lines.n - 1], '\n');
			assert_int_equal(batch_record(&b, i, &m), 0);
			assert_int_equal(m.record.seq, i);
			snprintf(topic, sizeof(topic), "t/%zu", i);
			assert_int_equal(m.record.topic.n, strlen(topic));
			assert_memory_equal(m.record.topic.s, topic, strlen(topic));
			assert_non_null(
			    memmem(lines.s, lines.n, m.record.payload.s, m.record.payload.n));
		}
		assert_int_equal(n, all.n);
		batch_clear(&b);
	}
	/* What was decoded is kept as it came. */
	assert_int_equal(message_encode_record(&b.dead_letters, &r), 0);
	r.encoded =
	    (struct text){(char *)buffer_head(&b.dead_letters), buffer_size(&b.dead_letters)};
	assert_int_equal(batch_add(&b, &r, 0, 1, &v), BATCH_ROW);
	assert_int_equal(buffer_size(&b.records), r.encoded.n);
	assert_memory_equal(buffer_head(&b.records), r.encoded.s, r.encoded.n);
	batch_free(&b);
}

static void
a_batch_counts_what_it_holds_and_is_full_by_records_or_bytes(void **state)
{
	static char large[BATCH_BYTES];
	struct record r = make_record("t", "{}", 2);
	struct payload_verdict v;
	struct batch b = {0};

	(void)state;
	assert_int_equal(batch_add(&b, &r, 0, 1000, &v), BATCH_ROW);
	r.seq = 9;
	r.payload = (struct text){"\xff", 1};
	r.payload_size = 1;
	assert_int_equal(batch_add(&b, &r, 0, 2000, &v), BATCH_DEAD_LETTER);
	assert_int_equal(b.row_count, 1);
	assert_int_equal(b.dead_letter_count, 1);
	assert_int_equal(b.last_seq, 9);
	assert_int_equal(b.oldest, 1000);
	assert_false(batch_full(&b, 3));
	assert_true(batch_full(&b, 2));
	memset(large, 'x', sizeof(large));
	r.payload = (struct text){large, sizeof(large)};
	r.payload_size = sizeof(large);
	assert_int_equal(batch_add(&b, &r, 0, 3000, &v), BATCH_ROW);
	assert_true(batch_full(&b, 500));
	batch_clear(&b);
	assert_int_equal(batch_records(&b), 0);
	batch_free(&b);
}

static void
a_topic_that_text_cannot_hold_or_a_payload_that_was_cut_is_a_dead_letter(void **state)
{
	struct record r = make_record("a\xc0", "{}", 2);
	struct payload_verdict v;
	struct batch b = {0};

	(void)state;
	assert_int_equal(batch_add(&b, &r, 0, 0, &v), BATCH_DEAD_LETTER);
	assert_string_equal(v.reason, "the topic is no UTF-8");
	r.topic = (struct text){"a\0b", 3};
	assert_int_equal(batch_add(&b, &r, 0, 0, &v), BATCH_DEAD_LETTER);
	assert_string_equal(v.reason, "the topic holds a NUL byte");
	r.topic = text_from("a");
	r.payload_size = 20971520;
	assert_int_equal(batch_add(&b, &r, 0, 0, &v), BATCH_DEAD_LETTER);
	assert_string_equal(v.reason, "payload of 20971520 bytes exceeds --payload-limit");
	batch_free(&b);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(a_row_holds_time_topic_and_the_payload_as_it_stood),
	    cmocka_unit_test(a_backslash_and_a_dot_do_not_end_the_copy),
	    cmocka_unit_test(times_are_spelt_as_gmtime_says_and_hold_within_four_digits_of_year),
	    cmocka_unit_test(escaped_bytes_come_back_from_a_line_as_they_were),
	    cmocka_unit_test(text_becomes_a_json_string_that_means_the_same),
	    cmocka_unit_test(a_dead_letter_holds_the_exact_bytes_whatever_they_are),
	    cmocka_unit_test(a_dead_letter_tells_where_it_came_from_and_why),
	    cmocka_unit_test(
		a_refused_row_s_dead_letter_holds_what_the_database_said_whatever_that_is),
	    cmocka_unit_test(a_batch_gives_the_lines_and_the_record_of_each_row),
	    cmocka_unit_test(a_batch_counts_what_it_holds_and_is_full_by_records_or_bytes),
	    cmocka_unit_test(
		a_topic_that_text_cannot_hold_or_a_payload_that_was_cut_is_a_dead_letter),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
