/*
 * Does the broker's own limit of messages in flight show, and nothing else look like it?
 */
#include "unit.h"

#include "clock.h"
#include "window.h"

#define MS CLOCK_MS

struct pace {
	uint64_t usual; /* messages a round */
	uint64_t other; /* in each third round */
	int64_t gap;    /* from acknowledgements to the next message */
	int64_t took;   /* from there to the acknowledgements */
};

/* The first limit that it says within so long, or 0. */
static uint64_t
limit_within(struct window *w, const struct pace *p, int64_t time)
{
	uint64_t limit = 0;
	int64_t now = CLOCK_SECOND, end = now + time;
	int i;

	for (i = 0; now < end && limit == 0; i++) {
		limit = window_round(
		    w, i % 3 == 2 ? p->other : p->usual, now + p->gap, now + p->gap + p->took);
		now += p->gap + p->took;
	}
	return limit;
}

static void
a_limit_shows_within_some_seconds_and_is_told_once(void **state)
{
	static const struct pace capped = {.usual = 20, .other = 13, .gap = MS, .took = 2 * MS};
	struct window w = {0};

	(void)state;
	assert_int_equal(limit_within(&w, &capped, 5 * CLOCK_SECOND), 20);
	assert_int_equal(limit_within(&w, &capped, 60 * CLOCK_SECOND), 0);
}

static void
what_is_no_limit_is_not_taken_for_one(void **state)
{
	static const struct pace paces[] = {
	    /* A publisher that sends twenty at a time, with a pause. */
	    {.usual = 20, .other = 20, .gap = 5 * MS, .took = MS},
	    /* One message after the other. */
	    {.usual = 1, .other = 1, .gap = MS, .took = MS},
	    /* As many as there are. */
	    {.usual = 31, .other = 500, .gap = MS, .took = MS},
	    /* Too few rounds to speak of. */
	    {.usual = 20, .other = 20, .gap = 2 * MS, .took = 20 * MS},
	};
	struct window w;
	size_t i;

	(void)state;
	for (i = 0; i < sizeof(paces) / sizeof(paces[0]); i++) {
		w = (struct window){0};
		assert_int_equal(limit_within(&w, &paces[i], 60 * CLOCK_SECOND), 0);
	}
}

static void
what_shows_later_is_told_as_well(void **state)
{
	static const struct pace thin = {.usual = 1, .other = 2, .gap = 20 * MS, .took = MS};
	static const struct pace capped = {.usual = 32, .other = 32, .gap = MS, .took = MS};
	struct window w = {0};

	(void)state;
	assert_int_equal(limit_within(&w, &thin, 30 * CLOCK_SECOND), 0);
	w.since = w.last = 0;
	assert_int_equal(limit_within(&w, &capped, 10 * CLOCK_SECOND), 32);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(a_limit_shows_within_some_seconds_and_is_told_once),
	    cmocka_unit_test(what_is_no_limit_is_not_taken_for_one),
	    cmocka_unit_test(what_shows_later_is_told_as_well),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
