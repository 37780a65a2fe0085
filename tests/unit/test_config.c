/*
 * Options, units, filters, URLs: what is taken, what is refused, and that the refusal names option,
 * value and what is allowed.
 */
#include "unit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "buffer.h"
#include "config.h"
#include "topic.h"
#include "units.h"
#include "utf8.h"

static enum config_action
parse(struct config *cfg, struct config_error *err, const char *line)
{
	static char copy[512];
	char *argv[20] = {"ingestd"}, *rest = copy, *word;
	int argc = 1;
	enum config_action action;

	snprintf(copy, sizeof(copy), "%s", line);
	while ((word = strsep(&rest, " ")) != NULL)
		argv[argc++] = word;
	assert_int_equal(config_init(cfg), 0);
	action = config_from_arguments(cfg, argc, argv, err);
	if (action == CONFIG_RUN && config_check(cfg, err) == -1)
		action = CONFIG_BAD;
	return action;
}

static void
a_refusal_names_option_value_and_what_is_allowed(void **state)
{
	static const char *const cases[][2] = {
	    {"-q 1", "--subscribe: missing; give at least one topic filter"},
	    {"-s a/#/b", "--subscribe: 'a/#/b' is no topic filter: '#' must be the last level"},
	    {"-s a/b+", "--subscribe: 'a/b+' is no topic filter: '+' must stand alone"},
	    {"-s a --frobnicate", "--frobnicate: no such option"},
	    {"-s a --frobnicate=7", "--frobnicate: no such option"},
	    {"-s a -x", "-x: no such option"},
	    {"-s", "-s: a value is missing"},
	    {"-s a --batch-size", "--batch-size: a value is missing"},
	    {"-s a --batch-size 0", "--batch-size: '0' must be a whole number from 1 to 1000000"},
	    {"-s a --batch-size 12x", "--batch-size: '12x' must be a whole number"},
	    {"-s a --batch-size -1", "--batch-size: '-1' must be a whole number"},
	    {"-s a --batch-size 99999999999999999999",
		"--batch-size: '99999999999999999999' must be"},
	    {"-s a --drain-timeout 10parsecs",
		"--drain-timeout: '10parsecs' must be a time from 0ms to 1h, with ms, s, m or h"},
	    {"-s a --drain-timeout 10", "--drain-timeout: '10' must be a time"},
	    {"-s a --queue-bytes 10MB",
		"--queue-bytes: '10MB' must be a size from 64KiB to 1024GiB, in bytes or with KiB, "
		"MiB or GiB"},
	    {"-s a -q 2", "--qos: '2' must be a whole number from 0 to 1"},
	    {"-s a --protocol 4", "--protocol: '4' must be one of 5|3.1.1"},
	    {"-s a --log-level loud", "--log-level: 'loud' must be one of debug|info|warn|error"},
	    {"-s a -b http://x",
		"--broker: no broker's URL: it must start with mqtt:// or mqtts://"},
	    {"-s a -b mqtt://", "--broker: no broker's URL: it names no host"},
	    {"-s a -b mqtt://h:0", "--broker: no broker's URL: the port must be"},
	    {"-s a -b mqtt://h:1883/x", "--broker: no broker's URL: the port must be"},
	    {"-s a -t .x", "--table: '.x' must be NAME or SCHEMA.NAME"},
	    {"-s a stray", "argument 3: ingestd takes options only"},
	};
	struct config_error err;
	struct config cfg;
	size_t i;

	(void)state;
	for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		assert_int_equal(parse(&cfg, &err, cases[i][0]), CONFIG_BAD);
		assert_memory_equal(err.text, cases[i][1], strlen(cases[i][1]));
		config_free(&cfg);
	}
}

static void
a_password_is_never_in_a_refusal(void **state)
{
	struct config_error err;
	struct config cfg;

	(void)state;
	assert_int_equal(parse(&cfg, &err, "-s a -b mqtt://joe:s3cret@host:bad"), CONFIG_BAD);
	assert_null(strstr(err.text, "s3cret"));
	config_free(&cfg);
	assert_int_equal(parse(&cfg, &err, "-s a -b joe:s3cret@host"), CONFIG_BAD);
	assert_null(strstr(err.text, "s3cret"));
	config_free(&cfg);
}

static void
options_are_taken_with_their_units(void **state)
{
	struct config_error err;
	struct config cfg;

	(void)state;
	assert_int_equal(
	    parse(&cfg, &err,
		"-s a/# --subscribe=b/+ -b mqtts://u%40x:p%3A@[::1]:8884 --batch-interval 250ms "
		"--queue-bytes 3MiB -w 4 --protocol 3.1.1 --log-format=json"),
	    CONFIG_RUN);
	assert_int_equal(cfg.subscribe_count, 2);
	assert_string_equal(cfg.subscribe[1], "b/+");
	assert_true(cfg.url.tls);
	assert_string_equal(cfg.url.host, "::1");
	assert_string_equal(cfg.url.user, "u@x");
	assert_string_equal(cfg.url.password, "p:");
	assert_int_equal(cfg.url.port, 8884);
	assert_int_equal(cfg.batch_interval, 250000);
	assert_int_equal(cfg.queue_bytes, 3 << 20);
	assert_int_equal(cfg.writers, 4);
	assert_int_equal(cfg.protocol, CONFIG_PROTOCOL_311);
	assert_int_equal(cfg.log_format, LOG_FORMAT_JSON);
	assert_int_equal(cfg.drain_timeout, 10 * CLOCK_SECOND);
	assert_int_equal(cfg.receive_maximum, 65535);
	config_free(&cfg);
	assert_int_equal(parse(&cfg, &err, "--help"), CONFIG_HELP);
	config_free(&cfg);
	assert_int_equal(parse(&cfg, &err, "-V"), CONFIG_VERSION);
	config_free(&cfg);
}

static void
the_command_line_beats_the_environment(void **state)
{
	struct config_error err;
	struct config cfg;
	char *argv[] = {"ingestd", "-s", "c", "--writers", "3"};
	const char *unknown;
	int i = 0;

	(void)state;
	setenv("INGESTD_SUBSCRIBE", "a/#\nb/#\n", 1);
	setenv("INGESTD_WRITERS", "7", 1);
	setenv("INGESTD_BATCH_SIZE", "9", 1);
	setenv("INGESTD_WIRTERS", "1", 1);
	assert_int_equal(config_init(&cfg), 0);
	assert_int_equal(config_from_environment(&cfg, &err), 0);
	assert_int_equal(cfg.subscribe_count, 2);
	assert_int_equal(cfg.writers, 7);
	assert_int_equal(config_from_arguments(&cfg, 5, argv, &err), CONFIG_RUN);
	assert_int_equal(cfg.subscribe_count, 1);
	assert_string_equal(cfg.subscribe[0], "c");
	assert_int_equal(cfg.writers, 3);
	assert_int_equal(cfg.batch_size, 9);
	unknown = config_unknown_variable(&i);
	assert_non_null(unknown);
	assert_memory_equal(unknown, "INGESTD_WIRTERS=", 16);
	assert_null(config_unknown_variable(&i));
	config_free(&cfg);

	setenv("INGESTD_WRITERS", "many", 1);
	assert_int_equal(config_init(&cfg), 0);
	assert_int_equal(config_from_environment(&cfg, &err), -1);
	assert_string_equal(
	    err.text, "INGESTD_WRITERS: 'many' must be a whole number from 1 to 64");
	config_free(&cfg);
	unsetenv("INGESTD_SUBSCRIBE");
	unsetenv("INGESTD_WRITERS");
	unsetenv("INGESTD_BATCH_SIZE");
	unsetenv("INGESTD_WIRTERS");
}

static void
what_a_writer_is_told_is_what_it_reads(void **state)
{
	struct config_error err;
	struct config cfg, there;
	struct buffer text = {0};

	(void)state;
	assert_int_equal(
	    parse(&cfg, &err, "-s a -d host=db,password=a=b --batch-size 77 -t s.t"), CONFIG_RUN);
	assert_int_equal(config_to_text(&cfg, &text), 0);
	assert_int_equal(config_init(&there), 0);
	assert_int_equal(
	    config_from_text(&there, (char *)buffer_head(&text), buffer_size(&text), &err), 0);
	assert_string_equal(there.database, "host=db,password=a=b");
	assert_string_equal(there.table, "s.t");
	assert_int_equal(there.batch_size, 77);
	assert_int_equal(there.flush_timeout, cfg.flush_timeout);
	config_free(&there);
	assert_int_equal(config_init(&there), 0);
	assert_int_equal(config_from_text(&there, "broker=x\n", 9, &err), -1);
	assert_int_equal(config_from_text(&there, "batch-size\n", 11, &err), -1);
	assert_int_equal(config_from_text(&there, "batch-size=x\n", 13, &err), -1);
	config_free(&there);
	config_free(&cfg);
	buffer_free(&text);
}

static void
filters_are_judged_as_mqtt_says(void **state)
{
	static const char *const good[] = {"#", "+", "/", "a", "a/b/#", "+/+/#", "a//b", "$SYS/#",
	    "$share/g/a/#", "$share/g//", "sport/+/player1", "é/#"};
	static const char *const wrong[] = {"", "a#", "a/#/b", "#/a", "a+", "a/+b/c", "$share/g",
	    "$share//a", "$share/g+/a", "$share/g/", "\xff"};
	size_t i;

	(void)state;
	for (i = 0; i < sizeof(good) / sizeof(good[0]); i++)
		assert_null(topic_filter_error(good[i]));
	for (i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
		assert_non_null(topic_filter_error(wrong[i]));
}

static void
units_are_exact_and_never_overflow(void **state)
{
	int64_t n;
	char out[32];

	(void)state;
	assert_int_equal(units_duration("1h", &n), 0);
	assert_int_equal(n, 3600 * CLOCK_SECOND);
	assert_int_equal(units_duration("0", &n), 0);
	assert_int_equal(units_duration("9223372036854775807h", &n), -1);
	assert_int_equal(units_duration("", &n), -1);
	assert_int_equal(units_duration("ms", &n), -1);
	assert_int_equal(units_duration("1 s", &n), -1);
	assert_int_equal(units_size("64KiB", &n), 0);
	assert_int_equal(n, 65536);
	assert_int_equal(units_size("17179869184GiB", &n), -1);
	assert_int_equal(units_size("1kib", &n), -1);
	assert_int_equal(units_number("9223372036854775808", &n), -1);
	assert_string_equal(units_format_duration(1500 * CLOCK_MS, out, sizeof(out)), "1500ms");
	assert_string_equal(units_format_size(3 << 20, out, sizeof(out)), "3MiB");
	for (int i = 0; i < 10000; i++) {
		int64_t want = (int64_t)random_below(INT64_C(1) << 50), got;

		want -= want % CLOCK_MS;
		assert_int_equal(
		    units_duration(units_format_duration(want, out, sizeof(out)), &got), 0);
		assert_true(got == want);
	}
}

static void
utf8_is_what_postgresql_takes(void **state)
{
	static const char *const good[] = {"a", "é", "€", "\xf0\x9f\x98\x80", "\xef\xbf\xbf",
	    "\xed\x9f\xbf", "\xee\x80\x80", "\xf4\x8f\xbf\xbf"};
	static const char *const wrong[] = {"\x80", "\xc0\x80", "\xc1\xbf", "\xe0\x9f\xbf",
	    "\xed\xa0\x80", "\xf0\x8f\xbf\xbf", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xe2\x82",
	    "\xff"};
	uint8_t long_text[40];
	size_t i, bad;

	(void)state;
	for (i = 0; i < sizeof(good) / sizeof(good[0]); i++)
		assert_true(utf8_valid((const uint8_t *)good[i], strlen(good[i]), &bad));
	for (i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		assert_false(utf8_valid((const uint8_t *)wrong[i], strlen(wrong[i]), &bad));
		assert_int_equal(bad, 0);
	}
	for (i = 0; i < sizeof(long_text); i++) {
		memset(long_text, 'x', sizeof(long_text));
		long_text[i] = 0x80;
		assert_false(utf8_valid(long_text, sizeof(long_text), &bad));
		assert_int_equal(bad, i);
	}
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(a_refusal_names_option_value_and_what_is_allowed),
	    cmocka_unit_test(a_password_is_never_in_a_refusal),
	    cmocka_unit_test(options_are_taken_with_their_units),
	    cmocka_unit_test(the_command_line_beats_the_environment),
	    cmocka_unit_test(what_a_writer_is_told_is_what_it_reads),
	    cmocka_unit_test(filters_are_judged_as_mqtt_says),
	    cmocka_unit_test(units_are_exact_and_never_overflow),
	    cmocka_unit_test(utf8_is_what_postgresql_takes),
	};

	return cmocka_run_group_tests_name("config", tests, NULL, NULL);
}
