/* Records that crash their writers, against lanes of which some do. */
#include "unit.h"

#include <signal.h>
#include <string.h>

#include "suspect.h"

#define EXITED(n) ((n) << 8)
#define RECORDS 400

static void
only_deaths_that_a_record_can_cause_count(void **state)
{
	static const int crashes[] = {SIGSEGV, SIGBUS, SIGABRT, SIGILL, SIGFPE, SIGTRAP, SIGSYS};
	size_t i, counted = 0;
	int n;

	(void)state;
	for (n = 1; n < 64; n++)
		counted += suspect_is_crash(n);
	assert_int_equal(counted, sizeof(crashes) / sizeof(crashes[0]));
	for (i = 0; i < counted; i++) {
		assert_true(suspect_is_crash(crashes[i]));
		assert_true(suspect_is_crash(crashes[i] | 0x80)); /* with a core */
	}
	assert_false(suspect_is_crash(SIGKILL));
	assert_false(suspect_is_crash(SIGTERM));
	for (n = 0; n < 256; n++)
		assert_false(suspect_is_crash(EXITED(n)));
}

static void
twice_together_and_once_alone_is_condemned(void **state)
{
	struct suspect s = {.deaths = 0};

	(void)state;
	suspect_death(&s, 10, 90);
	assert_false(suspect_one_by_one(&s));
	suspect_death(&s, 10, 200);
	assert_true(suspect_one_by_one(&s));
	assert_int_equal(s.first, 10);
	assert_int_equal(s.last, 90);
	assert_int_equal(s.condemned, 0);
	/* The first twenty are innocent. */
	suspect_durable(&s, 30);
	assert_true(suspect_one_by_one(&s));
	suspect_death(&s, 31, 31);
	assert_int_equal(s.condemned, 31);
	suspect_durable(&s, 30);
	assert_int_equal(s.condemned, 31);
	suspect_durable(&s, 31);
	assert_int_equal(s.condemned, 0);
	assert_false(suspect_one_by_one(&s));
}

static void
a_record_that_was_not_alone_is_never_condemned(void **state)
{
	struct suspect s = {.deaths = 0};
	int i;

	(void)state;
	for (i = 0; i < 100; i++) {
		suspect_death(&s, 5, 6);
		assert_int_equal(s.condemned, 0);
	}
	/* Nor one that has been alone, but not often enough. */
	s = (struct suspect){.deaths = 0};
	suspect_death(&s, 5, 5);
	suspect_death(&s, 5, 5);
	assert_int_equal(s.condemned, 0);
	suspect_death(&s, 5, 5);
	assert_int_equal(s.condemned, 5);
}

static void
deaths_with_other_records_in_hand_are_not_added_up(void **state)
{
	struct suspect s = {.deaths = 0};
	uint64_t i;

	(void)state;
	for (i = 1; i < 100; i++) {
		suspect_death(&s, 10 * i, 10 * i + 9);
		assert_false(suspect_one_by_one(&s));
		suspect_durable(&s, 10 * i + 9);
		assert_int_equal(s.deaths, 0);
	}
}

/*
 * A lane with killers among its records: all of them are condemned and nothing else is, and each
 * has killed three times at most, however many are in hand and whatever was committed before.
 */
static void
exactly_the_killers_are_condemned(void **state)
{
	struct suspect s;
	bool killer[RECORDS + 1], condemned[RECORDS + 1];
	unsigned deaths, killers;
	uint64_t durable, sent, i;
	int round;

	(void)state;
	for (round = 0; round < 3000; round++) {
		s = (struct suspect){.deaths = 0};
		memset(condemned, 0, sizeof(condemned));
		for (i = 1, killers = 0; i <= RECORDS; i++)
			killers += killer[i] = random_below(60) == 0;
		for (durable = deaths = 0; durable < RECORDS;) {
			suspect_durable(&s, durable);
			sent =
			    suspect_one_by_one(&s) ? durable + 1 : durable + 1 + random_below(100);
			if (sent > RECORDS)
				sent = RECORDS;
			if (sent == durable + 1 && s.condemned == sent) {
				condemned[sent] = true;
				durable = sent;
				continue;
			}
			for (i = durable + 1; i <= sent && !killer[i]; i++)
				;
			if (i > sent) {
				durable = sent;
				continue;
			}
			/* What stood before it may have been committed, as far as that is known. */
			durable += random_below(i - durable);
			deaths++;
			suspect_death(&s, durable + 1, sent);
		}
		assert_memory_equal(condemned + 1, killer + 1, RECORDS * sizeof(killer[0]));
		assert_true(deaths <= 3 * killers);
	}
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(only_deaths_that_a_record_can_cause_count),
	    cmocka_unit_test(twice_together_and_once_alone_is_condemned),
	    cmocka_unit_test(a_record_that_was_not_alone_is_never_condemned),
	    cmocka_unit_test(deaths_with_other_records_in_hand_are_not_added_up),
	    cmocka_unit_test(exactly_the_killers_are_condemned),
	};

	return cmocka_run_group_tests_name("suspect", tests, NULL, NULL);
}
