/*
 * What a death means, and when the gate may open: pure decisions.
 */
#include "unit.h"

#include <signal.h>
#include <string.h>

#include "clock.h"
#include "gate.h"
#include "policy.h"

#define EXITED(n) ((n) << 8)

static void
the_first_death_is_free_and_the_next_cost_more_and_more(void **state)
{
	static const int64_t want[] = {
	    0, 100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000};
	struct policy_verdict v = {.failures = 0};
	size_t i;

	(void)state;
	for (i = 0; i < sizeof(want) / sizeof(want[0]); i++) {
		v = policy_death(SIGKILL, 0, v.failures);
		assert_int_equal(v.action, POLICY_RESPAWN);
		assert_int_equal(v.delay, want[i] * CLOCK_MS);
	}
	for (i = 0; i < 1000; i++)
		v = policy_death(EXITED(1), 0, v.failures);
	assert_int_equal(v.delay, 30 * CLOCK_SECOND);
}

static void
ten_seconds_of_health_are_forgiveness(void **state)
{
	struct policy_verdict v;

	(void)state;
	v = policy_death(SIGSEGV, 10 * CLOCK_SECOND - 1, 5);
	assert_int_equal(v.delay, 1600 * CLOCK_MS);
	v = policy_death(SIGSEGV, 10 * CLOCK_SECOND, 5);
	assert_int_equal(v.delay, 0);
	assert_int_equal(v.failures, 1);
}

static void
only_exit_78_stops_the_service(void **state)
{
	int status;

	(void)state;
	for (status = 0; status < 256; status++)
		assert_int_equal(policy_death(EXITED(status), 0, 0).action,
		    status == 78 ? POLICY_STOP_SERVICE : POLICY_RESPAWN);
	for (status = 1; status < 32; status++)
		assert_int_equal(policy_death(status, 0, 0).action, POLICY_RESPAWN);
}

static void
a_death_is_told_in_words(void **state)
{
	(void)state;
	assert_null(policy_meaning(SIGKILL));
	assert_string_equal(policy_meaning(SIGSEGV | 0x80), "it dumped core");
	assert_string_equal(policy_meaning(EXITED(65)), "it read malformed data on its channel");
	assert_string_equal(policy_meaning(EXITED(0)), "it left without being told to");
	assert_null(policy_meaning(EXITED(3)));
}

static void
the_gate_never_opens_while_anything_is_in_flight(void **state)
{
	struct gate g = {.window = 10, .ack_interval = CLOCK_SECOND};
	struct gate_view v;
	uint64_t in_flight = 0;
	int64_t now = 1;
	int i, flushed = 0;

	(void)state;
	gate_reset(&g);
	for (i = 0; i < 100000; i++) {
		now += (int64_t)random_below(CLOCK_SECOND / 20);
		v = (struct gate_view){
		    .in_flight = in_flight, .room = random_below(9) != 0, .now = now};
		if (gate_may_flush(&g, &v)) {
			assert_true(g.flushing || in_flight == 0);
			assert_true(g.held > 0);
			g.flushing = random_below(2) == 0;
			if (!g.flushing) {
				gate_reset(&g);
				flushed++;
			}
		}
		if (gate_may_read(&g, &v)) {
			assert_false(g.flushing);
			assert_true(v.room);
			assert_true(g.held < g.window);
			assert_true(g.held == 0 || now - g.oldest < g.ack_interval);
			gate_hold(&g, now);
			in_flight++;
		} else if (in_flight > 0 && random_below(3) == 0) {
			in_flight -= 1 + random_below(in_flight);
		}
	}
	assert_true(flushed > 1000);
}

static void
a_shut_gate_says_why(void **state)
{
	struct gate g = {.window = 2, .ack_interval = CLOCK_SECOND};
	struct gate_view v = {.room = true, .now = 5 * CLOCK_SECOND};

	(void)state;
	gate_reset(&g);
	assert_null(gate_reason(&g, &v));
	gate_hold(&g, v.now);
	assert_null(gate_reason(&g, &v));
	v.now += CLOCK_SECOND;
	assert_non_null(strstr(gate_reason(&g, &v), "--ack-interval"));
	gate_hold(&g, v.now);
	assert_non_null(strstr(gate_reason(&g, &v), "--receive-maximum"));
	v.room = false;
	assert_non_null(strstr(gate_reason(&g, &v), "--queue-limit"));
	g.flushing = true;
	assert_non_null(strstr(gate_reason(&g, &v), "being sent"));
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(the_first_death_is_free_and_the_next_cost_more_and_more),
	    cmocka_unit_test(ten_seconds_of_health_are_forgiveness),
	    cmocka_unit_test(only_exit_78_stops_the_service),
	    cmocka_unit_test(a_death_is_told_in_words),
	    cmocka_unit_test(the_gate_never_opens_while_anything_is_in_flight),
	    cmocka_unit_test(a_shut_gate_says_why),
	};

	return cmocka_run_group_tests_name("policy and gate", tests, NULL, NULL);
}
