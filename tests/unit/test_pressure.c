/*
 * Which lines about backpressure, and about the broker's losses, are due: pure decisions.
 */
#include "unit.h"

#include <stdio.h>
#include <string.h>

#include "clock.h"
#include "drops.h"
#include "pressure.h"

#define S CLOCK_SECOND
#define LAST PRESSURE_DATABASE_UNREACHABLE /* any state without a grace */

/* A state that has held from 0 on, up to this moment, looked at every 10 ms; counts the lines. */
static int
lines_of(enum pressure_state state, int64_t until, struct pressure_line *last)
{
	struct pressure p = {0};
	int64_t now;
	int n = 0;

	for (now = 0; now <= until; now += 10 * CLOCK_MS)
		n += pressure_set(&p, state, true, 7, now, last);
	return n;
}

static void
every_state_has_its_name_its_grace_and_its_level(void **state)
{
	static const struct {
		enum pressure_state state;
		const char *name;
		int64_t grace;
		enum log_level level;
	} want[] = {
	    {PRESSURE_DATABASE_UNREACHABLE, "database_unreachable", 0, LOG_LEVEL_ERROR},
	    {PRESSURE_DATABASE_CONFIGURATION, "database_configuration", 0, LOG_LEVEL_ERROR},
	    {PRESSURE_SPOOLING, "spooling", 0, LOG_LEVEL_WARN},
	    {PRESSURE_SPOOL_FULL, "spool_full", 0, LOG_LEVEL_ERROR},
	    {PRESSURE_BACKLOG_FULL, "backlog_full", 5 * S, LOG_LEVEL_WARN},
	    {PRESSURE_GATE_WAITING, "gate_waiting", 5 * S, LOG_LEVEL_WARN},
	    {PRESSURE_BROKER_UNREACHABLE, "broker_unreachable", S, LOG_LEVEL_ERROR},
	};
	struct pressure_line line;
	size_t i;

	(void)state;
	assert_int_equal(sizeof(want) / sizeof(want[0]), PRESSURE_STATES);
	for (i = 0; i < PRESSURE_STATES; i++) {
		assert_int_equal(want[i].state, i);
		assert_string_equal(pressure_name(want[i].state), want[i].name);
		if (want[i].grace > 0)
			assert_int_equal(lines_of(want[i].state, want[i].grace - 1, &line), 0);
		assert_int_equal(lines_of(want[i].state, want[i].grace, &line), 1);
		assert_int_equal(line.phase, PRESSURE_BEGINS);
		assert_int_equal(line.state, i);
		assert_int_equal(line.lasted, want[i].grace);
		assert_int_equal(line.waiting, 7);
		assert_int_equal(pressure_level(&line), want[i].level);
		assert_int_equal(lines_of(want[i].state, want[i].grace + 60 * S, &line), 2);
		assert_int_equal(line.phase, PRESSURE_GOES_ON);
		assert_int_equal(pressure_level(&line), want[i].level);
		line.phase = PRESSURE_ENDS;
		assert_int_equal(pressure_level(&line), LOG_LEVEL_INFO);
	}
}

static void
it_is_told_once_a_minute_while_it_lasts(void **state)
{
	struct pressure_line line;

	(void)state;
	assert_int_equal(lines_of(LAST, 60 * S - 1, &line), 1);
	assert_int_equal(lines_of(LAST, 60 * S, &line), 2);
	assert_int_equal(lines_of(LAST, 3600 * S, &line), 61);
	assert_int_equal(line.lasted, 3600 * S);
	assert_int_equal(line.times, 1);
}

static void
the_end_says_how_long_it_took_and_how_many_waited_at_most(void **state)
{
	struct pressure p = {0};
	struct pressure_line line;

	(void)state;
	assert_false(pressure_set(&p, LAST, false, 0, 0, &line));
	assert_true(pressure_set(&p, LAST, true, 3, 10 * S, &line));
	assert_false(pressure_set(&p, LAST, true, 900, 20 * S, &line));
	assert_false(pressure_set(&p, LAST, true, 40, 24 * S, &line));
	assert_true(pressure_told(&p, LAST));
	assert_true(pressure_set(&p, LAST, false, 2, 25 * S, &line));
	assert_int_equal(line.phase, PRESSURE_ENDS);
	assert_int_equal(line.lasted, 15 * S);
	assert_int_equal(line.waiting, 900);
	assert_false(pressure_told(&p, LAST));
	assert_false(pressure_set(&p, LAST, false, 0, 26 * S, &line));
}

static void
what_is_over_within_its_grace_is_no_news_however_often_it_comes(void **state)
{
	struct pressure p = {0};
	struct pressure_line line;
	int64_t now;

	(void)state;
	for (now = 0; now < 3600 * S; now += 5 * S) {
		assert_false(pressure_set(&p, PRESSURE_GATE_WAITING, true, 1, now, &line));
		assert_false(
		    pressure_set(&p, PRESSURE_GATE_WAITING, true, 1, now + 5 * S - 1, &line));
		assert_false(
		    pressure_set(&p, PRESSURE_GATE_WAITING, false, 0, now + 5 * S - 1, &line));
	}
}

static void
the_grace_counts_into_how_long_it_lasted(void **state)
{
	struct pressure p = {0};
	struct pressure_line line;

	(void)state;
	assert_false(pressure_set(&p, PRESSURE_GATE_WAITING, true, 1, S, &line));
	assert_true(pressure_set(&p, PRESSURE_GATE_WAITING, true, 1, 7 * S, &line));
	assert_int_equal(line.lasted, 6 * S);
	assert_true(pressure_set(&p, PRESSURE_GATE_WAITING, false, 1, 9 * S, &line));
	assert_int_equal(line.lasted, 8 * S);
}

/* Twice a second for an hour: three begins and two ends, then a line a minute, then one end. */
static void
one_that_comes_and_goes_is_summed_up(void **state)
{
	struct pressure p = {0};
	struct pressure_line line, begun = {0};
	int64_t now, last = 0;
	int lines = 0;

	(void)state;
	for (now = 0; now < 3600 * S; now += S / 2) {
		if (pressure_set(&p, LAST, true, 5, now, &line)) {
			lines++;
			begun = line;
			if (lines > 5)
				assert_true(now - last >= 60 * S);
			last = now;
		}
		lines += pressure_set(&p, LAST, false, 0, now + S / 4, &line);
	}
	assert_true(lines >= 5 + 58 && lines <= 5 + 60);
	assert_int_equal(begun.phase, PRESSURE_GOES_ON);
	assert_true(begun.times > 7000);
	now = 3600 * S - S / 4;
	assert_true(pressure_told(&p, LAST));
	assert_false(pressure_set(&p, LAST, false, 0, now + 60 * S - 1, &line));
	assert_int_equal(pressure_deadline(&p), now + 60 * S);
	assert_true(pressure_set(&p, LAST, false, 0, now + 60 * S, &line));
	assert_int_equal(line.phase, PRESSURE_ENDS);
	assert_int_equal(line.lasted, now - S);
	assert_int_equal(line.times, 7198);
	assert_int_equal(line.waiting, 5);
	/* Calm again: told at once, and ended at once. */
	now += 61 * S;
	assert_true(pressure_set(&p, LAST, true, 5, now, &line));
	assert_true(pressure_set(&p, LAST, false, 5, now + S, &line));
	assert_int_equal(line.phase, PRESSURE_ENDS);
	assert_int_equal(line.times, 1);
}

static void
three_times_in_more_than_a_minute_are_told_one_by_one(void **state)
{
	struct pressure p = {0};
	struct pressure_line line;
	int64_t now;

	(void)state;
	for (now = 0; now < 3600 * S; now += 30 * S) {
		assert_true(pressure_set(&p, LAST, true, 1, now, &line));
		assert_int_equal(line.phase, PRESSURE_BEGINS);
		assert_true(pressure_set(&p, LAST, false, 1, now + S, &line));
		assert_int_equal(line.phase, PRESSURE_ENDS);
	}
}

/* The loop sleeps until the deadline: no line comes late, and a deadline never stays in the past.
 */
static void
the_deadline_is_when_the_next_line_is_due(void **state)
{
	struct pressure p = {0};
	struct pressure_line line;
	bool active = false;
	int64_t now = 0, at;
	int i, s;

	(void)state;
	assert_int_equal(pressure_deadline(&p), CLOCK_NEVER);
	pressure_set(&p, PRESSURE_GATE_WAITING, true, 1, S, &line);
	assert_int_equal(pressure_deadline(&p), 6 * S);
	assert_true(pressure_set(&p, PRESSURE_GATE_WAITING, true, 1, 6 * S, &line));
	assert_int_equal(pressure_deadline(&p), 66 * S);
	assert_true(pressure_set(&p, PRESSURE_GATE_WAITING, false, 1, 7 * S, &line));
	assert_int_equal(pressure_deadline(&p), CLOCK_NEVER);

	memset(&p, 0, sizeof(p));
	for (i = 0; i < 200000; i++) {
		now += (int64_t)random_below(20 * (uint64_t)S);
		at = pressure_deadline(&p);
		if (at < now)
			now = at;
		else
			active = random_below(2) != 0;
		for (s = 0; s < PRESSURE_STATES; s++)
			pressure_set(&p, (enum pressure_state)s, active, 1, now, &line);
		assert_true(pressure_deadline(&p) > now);
	}
}

/* ---- the broker's losses ---- */

#define READ(d, text, retained, time) drops_read(d, text, strlen(text), retained, time)

static void
only_a_number_is_a_reading(void **state)
{
	static const char *const bad[] = {"", " 1", "1 ", "-1", "+1", "1.0", "1e3", "0x10", "nan",
	    "18446744073709551616", "99999999999999999999999"};
	struct drops d = {0};
	struct drops_line line;
	size_t i;

	(void)state;
	assert_true(READ(&d, "0", true, 1));
	for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		assert_false(READ(&d, bad[i], false, 2));
	assert_false(drops_due(&d, true, 3, &line));
	assert_true(READ(&d, "18446744073709551615", false, 4));
	assert_true(drops_due(&d, false, 5, &line));
	assert_true(line.dropped == UINT64_MAX && line.since == 1);
}

static void
a_rise_is_a_loss_since_the_reading_before(void **state)
{
	struct drops d = {0};
	struct drops_line line;

	(void)state;
	assert_true(READ(&d, "40", true, 100 * S));
	assert_false(drops_due(&d, true, S, &line));
	assert_int_equal(drops_deadline(&d), CLOCK_NEVER);
	assert_true(READ(&d, "40", false, 110 * S));
	assert_false(drops_due(&d, true, S, &line));
	assert_true(READ(&d, "45", false, 120 * S));
	assert_true(drops_due(&d, false, 2 * S, &line));
	assert_int_equal(line.dropped, 5);
	assert_int_equal(line.since, 110 * S);
	assert_int_equal(line.counter, 45);
	assert_false(line.at_least);
	assert_false(drops_due(&d, true, 2 * S, &line));
}

static void
losses_are_told_once_a_minute_with_their_sum_or_at_the_very_end(void **state)
{
	struct drops d = {0};
	struct drops_line line;
	char text[32];
	uint64_t told = 0;
	int64_t t;
	int i, lines = 0;

	(void)state;
	READ(&d, "0", true, 0);
	for (i = 1; i <= 600; i++) {
		t = i * S;
		snprintf(text, sizeof(text), "%d", 10 * i);
		READ(&d, text, false, 1000 * S + t);
		if (drops_due(&d, false, t, &line)) {
			lines++;
			told += line.dropped;
		} else {
			assert_true(drops_deadline(&d) > t);
		}
	}
	assert_int_equal(lines, 10);
	assert_true(drops_due(&d, true, 600 * S, &line));
	/* The last reading that was told of was that of second 541. */
	assert_int_equal(line.since, 1541 * S);
	assert_int_equal(told + line.dropped, 6000);
}

static void
a_broker_that_starts_anew_counts_from_zero(void **state)
{
	struct drops d = {0};
	struct drops_line line;

	(void)state;
	READ(&d, "500", true, 1);
	READ(&d, "0", true, 2);
	assert_false(drops_due(&d, true, 0, &line));
	READ(&d, "500", true, 3);
	assert_true(drops_due(&d, true, 0, &line));
	assert_int_equal(line.dropped, 500);
	READ(&d, "7", true, 4);
	assert_true(drops_due(&d, true, 0, &line));
	assert_int_equal(line.dropped, 7);
}

/* Mosquitto's retained reading is gone after a minute: then the first that comes is a change. */
static void
a_first_reading_that_is_a_change_is_a_loss_of_unknown_size(void **state)
{
	struct drops d = {0};
	struct drops_line line;

	(void)state;
	drops_watched(&d, 50);
	assert_true(READ(&d, "1500", false, 90));
	assert_true(drops_due(&d, false, 1, &line));
	assert_true(line.at_least);
	assert_int_equal(line.dropped, 1);
	assert_int_equal(line.since, 50);
	/* From then on they are known. */
	READ(&d, "1503", false, 95);
	assert_true(drops_due(&d, true, 2, &line));
	assert_false(line.at_least);
	assert_int_equal(line.dropped, 3);
	assert_int_equal(line.since, 90);

	memset(&d, 0, sizeof(d));
	READ(&d, "0", false, 1);
	assert_false(drops_due(&d, true, 1, &line));
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(every_state_has_its_name_its_grace_and_its_level),
	    cmocka_unit_test(it_is_told_once_a_minute_while_it_lasts),
	    cmocka_unit_test(the_end_says_how_long_it_took_and_how_many_waited_at_most),
	    cmocka_unit_test(what_is_over_within_its_grace_is_no_news_however_often_it_comes),
	    cmocka_unit_test(the_grace_counts_into_how_long_it_lasted),
	    cmocka_unit_test(one_that_comes_and_goes_is_summed_up),
	    cmocka_unit_test(three_times_in_more_than_a_minute_are_told_one_by_one),
	    cmocka_unit_test(the_deadline_is_when_the_next_line_is_due),
	    cmocka_unit_test(only_a_number_is_a_reading),
	    cmocka_unit_test(a_rise_is_a_loss_since_the_reading_before),
	    cmocka_unit_test(losses_are_told_once_a_minute_with_their_sum_or_at_the_very_end),
	    cmocka_unit_test(a_broker_that_starts_anew_counts_from_zero),
	    cmocka_unit_test(a_first_reading_that_is_a_change_is_a_loss_of_unknown_size),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
