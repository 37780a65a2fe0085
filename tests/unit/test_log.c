/*
 * Log lines: whatever a topic, a payload or a server says, a line stays a line.
 */
#include "unit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "log.h"

/* What log_event() writes, with its time cut off; good until the next call. */
static const char *
logged(enum log_format format, const struct log_field *fields)
{
	static char line[8192];
	int fd[2], saved = dup(STDERR_FILENO);
	ssize_t n;

	assert_int_equal(pipe(fd), 0);
	assert_int_not_equal(dup2(fd[1], STDERR_FILENO), -1);
	log_init(LOG_LEVEL_INFO, format);
	log_event(LOG_LEVEL_INFO, "event", fields);
	assert_int_not_equal(dup2(saved, STDERR_FILENO), -1);
	n = read(fd[0], line, sizeof(line) - 1);
	assert_true(n > 0);
	line[n] = '\0';
	close(fd[0]);
	close(fd[1]);
	close(saved);
	return format == LOG_FORMAT_TEXT ? strchr(line, ' ') + 1 : strstr(line, "\"level\"");
}

static void
text_is_logfmt(void **state)
{
	(void)state;
	assert_string_equal(logged(LOG_FORMAT_TEXT,
				LOG_FIELDS(LOG_S("a", "plain"), LOG_S("b", "two words"),
				    LOG_S("c", ""), LOG_S("none", NULL), LOG_I("d", -5),
				    LOG_U("e", UINT64_MAX), LOG_T("f", 1234567))),
	    "info event a=plain b=\"two words\" c=\"\" d=-5 e=18446744073709551615 f=1.235s\n");
}

static void
json_is_one_object_a_line(void **state)
{
	(void)state;
	assert_string_equal(
	    logged(LOG_FORMAT_JSON,
		LOG_FIELDS(LOG_S("a", "q\"b\\"), LOG_I("d", -5), LOG_T("f", 500000))),
	    "\"level\":\"info\",\"event\":\"event\",\"a\":\"q\\\"b\\\\\",\"d\":-5,\"f\":0.500}\n");
}

static void
nothing_in_a_value_ends_its_line_or_moves_the_cursor(void **state)
{
	(void)state;
	assert_string_equal(
	    logged(LOG_FORMAT_TEXT, LOG_FIELDS(LOG_S("a", "x\ny\tz\x1b[2J\x7f\xff\xc2\x9b é=\""))),
	    "info event a=\"x\\ny\\tz\\u001b[2J\\u007f\\xff\\xc2\\x9b é=\\\"\"\n");
	assert_string_equal(logged(LOG_FORMAT_JSON, LOG_FIELDS(LOG_S("a", "\n\xff\x01"))),
	    "\"level\":\"info\",\"event\":\"event\",\"a\":\"\\n\\\\xff\\u0001\"}\n");
}

static void
random_values_make_one_line_of_at_most_4096_bytes(void **state)
{
	char a[3000], b[3000], c[3000];
	const char *line;
	size_t i, n, len;
	int round;

	(void)state;
	for (round = 0; round < 3000; round++) {
		n = random_below(sizeof(a));
		for (i = 0; i < n; i++) {
			a[i] = (char)(1 + random_below(255));
			b[i] = (char)(1 + random_below(40));
			c[i] = (char)(0xe0 + random_below(31));
		}
		a[n] = b[n] = c[n] = '\0';
		line = logged(round % 2 ? LOG_FORMAT_TEXT : LOG_FORMAT_JSON,
		    LOG_FIELDS(LOG_S("a", a), LOG_S("b", b), LOG_S("c", c), LOG_S("d", a)));
		len = strlen(line);
		assert_true(len <= 4096);
		assert_ptr_equal(strchr(line, '\n'), line + len - 1);
		for (i = 0; i < len - 1; i++)
			assert_true((unsigned char)line[i] >= 0x20 && line[i] != 0x7f);
	}
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(text_is_logfmt),
	    cmocka_unit_test(json_is_one_object_a_line),
	    cmocka_unit_test(nothing_in_a_value_ends_its_line_or_moves_the_cursor),
	    cmocka_unit_test(random_values_make_one_line_of_at_most_4096_bytes),
	};

	return cmocka_run_group_tests_name("log", tests, NULL, NULL);
}
