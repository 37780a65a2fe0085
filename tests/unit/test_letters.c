/* What `ingestd dead-letters` decides without a database: filters, what a terminal gets, letters.
 */
#include "unit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "dead_letter.h"
#include "letter.h"
#include "letters_bar.h"
#include "letters_filter.h"
#include "letters_text.h"

static void
a_filter_becomes_an_expression_in_which_nothing_else_has_a_meaning(void **state)
{
	static const char *const rows[][2] = {
	    {"a", "***:^a$"},
	    {"a/b", "***:^a\\/b$"},
	    {"#", "***:^(?!\\$).*$"},
	    {"+", "***:^(?!\\$)[^/]*$"},
	    {"+/b/#", "***:^(?!\\$)[^/]*\\/b(/.*)?$"},
	    {"/#", "***:^(/.*)?$"},
	    {"a/+/c", "***:^a\\/[^/]*\\/c$"},
	    {"$SYS/#", "***:^\\$SYS(/.*)?$"},
	    {".*[^$](|)\\{}?", "***:^\\.\\*\\[\\^\\$\\]\\(\\|\\)\\\\\\{\\}\\?$"},
	    {"\xc3\xb6/+", "***:^\xc3\xb6\\/[^/]*$"},
	    {"$share/group/+/x", "***:^(?!\\$)[^/]*\\/x$"},
	};
	size_t i;
	char *regex;

	(void)state;
	for (i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		regex = letters_filter_regex(rows[i][0]);
		assert_string_equal(regex, rows[i][1]);
		free(regex);
	}
}

static void
the_longest_expression_has_room(void **state)
{
	static const char *const pieces[] = {"+/", ".", "/", "a"};
	char filter[2000], *regex;
	size_t i, n;

	(void)state;
	for (i = 0; i < 1000; i++) {
		*filter = '\0';
		for (n = random_below(900); n > 0; n--)
			strcat(filter, pieces[random_below(4)]);
		strcat(filter, "/#");
		regex = letters_filter_regex(filter);
		assert_non_null(regex);
		free(regex);
	}
}

static void
text_is_escaped_and_cut_to_its_columns(void **state)
{
	static const struct {
		const char *text;
		size_t width;
		const char *shown;
		size_t columns;
	} rows[] = {
	    {"", 5, "", 0},
	    {"hello", 5, "hello", 5},
	    {"hello!", 5, "hell…", 5},
	    {"ö\xe2\x82\xac\xf0\x9f\x8c\xa1", 3, "ö\xe2\x82\xac\xf0\x9f\x8c\xa1", 3},
	    {"öäüß", 3, "öä…", 3},
	    {"a\nb\tc\rd", 20, "a\\nb\\tc\\rd", 10},
	    {"\x1b[31m", 20, "\\x1b[31m", 8},
	    {"\x7f", 20, "\\x7f", 4},
	    {"\xc2\x9b", 20, "\\u009b", 6},
	    {"\xe2\x80\xae", 20, "\\u202e", 6},
	    {"\xff\xfe", 20, "\\xff\\xfe", 8},
	    {"\xc3", 20, "\\xc3", 4},
	    /* An escape is never cut in two. */
	    {"ab\x1b[31m", 5, "ab…", 3},
	    {"\x1b\x1b", 4, "…", 1},
	    {"x", 0, "", 0},
	};
	char out[200];
	size_t i;

	(void)state;
	for (i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		assert_int_equal(letters_text_fit(out, sizeof(out), rows[i].text, rows[i].width),
		    rows[i].columns);
		assert_string_equal(out, rows[i].shown);
	}
}

static void
text_never_leaves_its_columns_nor_its_room(void **state)
{
	char text[64], *out;
	size_t i, j, n, width, size, columns, shown;

	(void)state;
	for (i = 0; i < 100000; i++) {
		n = random_below(sizeof(text));
		for (j = 0; j < n; j++)
			text[j] = (char)(1 + random_below(255));
		text[n] = '\0';
		width = random_below(40);
		size = 1 + random_below(4 * width + 2);
		/* Exactly so large, that a sanitizer sees a byte too many. */
		out = malloc(size);
		columns = letters_text_fit(out, size, text, width);
		assert_true(strlen(out) < size && columns <= width);
		for (j = shown = 0; out[j] != '\0'; j++) {
			assert_true((unsigned char)out[j] >= ' ' && out[j] != '\x7f');
			shown += (out[j] & 0xc0) != 0x80;
		}
		assert_int_equal(shown, columns);
		free(out);
	}
}

static void
the_bar_tells_how_far_it_is(void **state)
{
	static const struct {
		uint64_t done, total;
		int64_t elapsed;
		size_t width;
		const char *shown;
	} rows[] = {
	    {0, 1000, 0, 38, "replay [-------------------] 0/1000 0/s"},
	    {400, 1000, 2 * CLOCK_SECOND, 40, "replay [#######-----------] 400/1000 200/s"},
	    {999, 1000, CLOCK_SECOND, 35, "replay [############-] 999/1000 999/s"},
	    {1000, 1000, CLOCK_SECOND, 33, "replay [########] 1000/1000 1000/s"},
	    {1000, 1000, CLOCK_SECOND, 20, "1000/1000 1000/s"},
	    {1000, 1000, CLOCK_SECOND, 5, "1000/"},
	    {0, 0, 0, 24, "replay [#######] 0/0 0/s"},
	};
	char out[200];
	size_t i, n;

	(void)state;
	for (i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		n = letters_bar_format(out, sizeof(out), "replay", rows[i].done, rows[i].total,
		    rows[i].elapsed, strlen(rows[i].shown));
		assert_string_equal(out, rows[i].shown);
		assert_int_equal(n, strlen(out));
	}
	for (i = 0; i < 300; i++) {
		n = letters_bar_format(out, sizeof(out), "replay", UINT64_MAX, UINT64_MAX, 1, i);
		assert_true(n <= i && n < sizeof(out) && n == strlen(out));
	}
}

/* ---- letters ---- */

/* The columns as the server gives them, from the line that dead_letter_append() made. */
static void
columns_of_line(char *line, const char *column[LETTER_COLUMN_COUNT])
{
	/* received, topic, payload, qos, retain, properties, lane, reason, sqlstate, detail */
	static const int order[] = {LETTER_RECEIVED, LETTER_TOPIC, LETTER_PAYLOAD, LETTER_QOS,
	    LETTER_RETAIN, LETTER_PROPERTIES, LETTER_ID, LETTER_REASON, LETTER_SQLSTATE,
	    LETTER_DETAIL};
	char *field, *from, *to;
	size_t i;

	line[strcspn(line, "\n")] = '\0';
	for (i = 0; i < sizeof(order) / sizeof(order[0]); i++) {
		field = strsep(&line, "\t");
		assert_non_null(field);
		column[order[i]] = strcmp(field, "\\N") == 0 ? "" : field;
		for (from = to = field; *from != '\0'; *to++ = *from++)
			from += from[0] == '\\' && (from[1] == '\\' || from[1] == '"');
		*to = '\0';
	}
	assert_null(line);
	column[LETTER_RECEIVED] = "1700000000123456";
	column[LETTER_PAYLOAD] += 2;
}

static void
assert_text(struct text a, struct text b)
{
	assert_int_equal(a.n, b.n);
	assert_memory_equal(a.s, b.s, a.n);
}

static void
a_letter_becomes_the_record_that_it_was_made_of(void **state)
{
	static const char payload[] = "\0{\"a\":\xff\n\\";
	struct record made = {
	    .time = INT64_C(1700000000123456),
	    .topic = text_from("a/\xc3\xb6"),
	    .payload = {payload, sizeof(payload)},
	    .payload_size = sizeof(payload),
	    .qos = 1,
	    .retain = true,
	    .content_type = text_from("application/json"),
	    .property_count = 2,
	    .properties = {text_from("k"), text_from("v"), text_from("k"), text_from("")},
	};
	const char *column[LETTER_COLUMN_COUNT];
	struct buffer line = {0};
	struct letter l = {0};
	size_t i, round;

	(void)state;
	/* The second is cut, the third has no properties. */
	for (round = 0; round < 3; round++) {
		if (round == 1)
			made.payload_size = 20000000;
		if (round == 2) {
			made.content_type = (struct text){0};
			made.property_count = 0;
		}
		buffer_clear(&line);
		assert_int_equal(dead_letter_append(&line, &made, 3, "a reason"), 0);
		assert_int_equal(buffer_append(&line, "", 1), 0);
		columns_of_line((char *)buffer_head(&line), column);
		assert_string_equal(column[LETTER_REASON], "a reason");
		assert_int_equal(letter_read(&l, column), 0);
		assert_int_equal(l.record.time, made.time);
		assert_text(l.record.topic, made.topic);
		assert_text(l.record.payload, made.payload);
		assert_int_equal(l.record.payload_size, made.payload_size);
		assert_int_equal(l.record.qos, made.qos);
		assert_int_equal(l.record.retain, made.retain);
		assert_text(l.record.content_type, made.content_type);
		assert_int_equal(l.record.property_count, made.property_count);
		for (i = 0; i < 2 * made.property_count; i++)
			assert_text(l.record.properties[i], made.properties[i]);
	}
	letter_free(&l);
	buffer_free(&line);
}

static void
properties_of_another_shape_are_left_out(void **state)
{
	static const char *const texts[] = {"", "null", "[]", "7", "{", "{\"user\": 1}",
	    "{\"user\": [1, [\"a\"], [\"a\", 1], {}, null]}", "{\"content-type\": []}"};
	const char *column[LETTER_COLUMN_COUNT] = {
	    "1", "0", "t", "6162", "1", "f", "", "r", "", "the payload had 9 bytes"};
	struct letter l = {0};
	size_t i;

	(void)state;
	for (i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
		column[LETTER_PROPERTIES] = texts[i];
		assert_int_equal(letter_read(&l, column), 0);
		assert_int_equal(l.record.property_count, 0);
		assert_int_equal(l.record.content_type.n, 0);
		/* Nor is a detail of another shape believed. */
		assert_int_equal(l.record.payload_size, 2);
	}
	letter_free(&l);
}

static void
a_topic_is_lost_where_the_reason_says_so(void **state)
{
	(void)state;
	assert_true(letter_has_lost_its_topic("the topic is no UTF-8"));
	assert_true(letter_has_lost_its_topic("the topic holds a NUL byte"));
	assert_false(letter_has_lost_its_topic("no JSON: it ends too early, after 15 bytes"));
	assert_false(letter_has_lost_its_topic(""));
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(a_filter_becomes_an_expression_in_which_nothing_else_has_a_meaning),
	    cmocka_unit_test(the_longest_expression_has_room),
	    cmocka_unit_test(text_is_escaped_and_cut_to_its_columns),
	    cmocka_unit_test(text_never_leaves_its_columns_nor_its_room),
	    cmocka_unit_test(the_bar_tells_how_far_it_is),
	    cmocka_unit_test(a_letter_becomes_the_record_that_it_was_made_of),
	    cmocka_unit_test(properties_of_another_shape_are_left_out),
	    cmocka_unit_test(a_topic_is_lost_where_the_reason_says_so),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
