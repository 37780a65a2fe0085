/*
 * The two clocks, in microseconds.
 *
 * Intervals, deadlines and backoff use the monotonic clock; only what a person or a table gets to
 * see uses the wall clock. Must never mix the two: the wall clock jumps.
 */
#include "clock.h"

#include <limits.h>
#include <time.h>

static int64_t
clock_read(clockid_t id)
{
	struct timespec ts;

	clock_gettime(id, &ts);
	return (int64_t)ts.tv_sec * CLOCK_SECOND + ts.tv_nsec / 1000;
}

/* Microseconds since an arbitrary point; never goes back. */
int64_t
clock_monotonic(void)
{
	return clock_read(CLOCK_MONOTONIC);
}

/* Microseconds since the epoch, UTC. */
int64_t
clock_realtime(void)
{
	return clock_read(CLOCK_REALTIME);
}

/*
 * For what is told at most so often: true the first time, when *last is 0, and when so much time
 * has passed since it was true, which is noted in *last.
 */
bool
clock_lapsed(int64_t *last, int64_t every, int64_t now)
{
	if (*last != 0 && now - *last < every)
		return false;
	*last = now;
	return true;
}

/*
 * poll(2)'s timeout for a deadline on the monotonic clock: milliseconds, rounded up so that the
 * loop does not spin through the last one; -1 for CLOCK_NEVER.
 */
int
clock_poll_timeout(int64_t now, int64_t deadline)
{
	int64_t ms;

	if (deadline == CLOCK_NEVER)
		return -1;
	if (deadline <= now)
		return 0;
	ms = (deadline - now + CLOCK_MS - 1) / CLOCK_MS;
	return ms > INT_MAX ? INT_MAX : (int)ms;
}
