/* The breaker: a minute of rows, and when so many of them are refused that nothing more goes. */
#include "unit.h"

#include "breaker.h"
#include "clock.h"

/* Monotonic clocks do not start at 0. */
#define START (12345 * CLOCK_SECOND)

static void
less_than_a_thousand_rows_never_trip_it(void **state)
{
	struct breaker b;

	(void)state;
	breaker_init(&b, 50);
	assert_int_equal(breaker_trips(&b, 999, 999, START), 0);
	breaker_count(&b, 999, 999, START);
	assert_int_equal(breaker_trips(&b, 1, 1, START), 1000);
}

static void
it_is_more_than_the_share_that_trips_it(void **state)
{
	struct breaker b;
	int64_t share;

	(void)state;
	for (share = 1; share <= 100; share++) {
		breaker_init(&b, share);
		breaker_count(&b, 1000, 0, START);
		assert_int_equal(breaker_trips(&b, 1000, 20 * (uint64_t)share, START), 0);
		if (share <= 50)
			assert_int_equal(
			    breaker_trips(&b, 1000, 20 * (uint64_t)share + 1, START), 2000);
	}
	/* At 100 nothing does. */
	breaker_init(&b, 100);
	breaker_count(&b, 1000, 1000, START);
	assert_int_equal(breaker_trips(&b, 1000, 1000, START), 0);
}

static void
what_is_older_than_a_minute_does_not_count(void **state)
{
	struct breaker b;
	int second;

	(void)state;
	breaker_init(&b, 50);
	/* Ten a second, all refused: never a thousand in a minute. */
	for (second = 0; second < 1000; second++) {
		assert_int_equal(breaker_trips(&b, 10, 10, START + second * CLOCK_SECOND), 0);
		breaker_count(&b, 10, 10, START + second * CLOCK_SECOND);
	}
	/* Twenty a second reach it. */
	breaker_init(&b, 50);
	for (second = 0; second < 49; second++) {
		assert_int_equal(breaker_trips(&b, 20, 20, START + second * CLOCK_SECOND), 0);
		breaker_count(&b, 20, 20, START + second * CLOCK_SECOND);
	}
	assert_int_equal(breaker_trips(&b, 20, 20, START + 49 * CLOCK_SECOND), 1000);
}

static void
a_quiet_time_of_any_length_empties_it(void **state)
{
	struct breaker b;
	int64_t pause;

	(void)state;
	for (pause = 60; pause < 200; pause++) {
		breaker_init(&b, 50);
		breaker_count(&b, 900, 900, START);
		assert_int_equal(breaker_trips(&b, 100, 100, START + pause * CLOCK_SECOND), 0);
	}
	breaker_init(&b, 50);
	breaker_count(&b, 900, 900, START);
	assert_int_equal(breaker_trips(&b, 100, 100, START + 59 * CLOCK_SECOND), 1000);
}

static void
open_it_stays_until_the_batch_goes_through(void **state)
{
	struct breaker b;
	int64_t hour = START + 3600 * CLOCK_SECOND;

	(void)state;
	breaker_init(&b, 50);
	breaker_count(&b, 500, 500, START);
	assert_int_equal(breaker_trips(&b, 500, 500, START), 1000);
	/* An hour later the same batch is no better. */
	assert_int_equal(breaker_trips(&b, 500, 500, hour), 1000);
	/* Mended: it may go, and only from now on the minute is another one. */
	assert_int_equal(breaker_trips(&b, 500, 0, hour), 0);
	assert_true(b.open);
	breaker_count(&b, 500, 0, hour);
	assert_false(b.open);
	assert_int_equal(breaker_trips(&b, 499, 499, hour), 0);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(less_than_a_thousand_rows_never_trip_it),
	    cmocka_unit_test(it_is_more_than_the_share_that_trips_it),
	    cmocka_unit_test(what_is_older_than_a_minute_does_not_count),
	    cmocka_unit_test(a_quiet_time_of_any_length_empties_it),
	    cmocka_unit_test(open_it_stays_until_the_batch_goes_through),
	};

	return cmocka_run_group_tests_name("breaker", tests, NULL, NULL);
}
