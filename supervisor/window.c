/*
 * Does the broker send less at a time than we would take? Pure decisions.
 *
 * A broker has a limit of its own on what one client may have unacknowledged: Mosquitto's for MQTT
 * 3.1.1 is 20. None tells it. But it shows: again and again exactly so many messages come, then
 * none until they are acknowledged, and at once the next. A publisher that keeps time may look the
 * same, so it is a hint. Must never take for it a pace that leaves gaps, nor a stream that is too
 * thin to be capped by anything.
 */
#include "window.h"

#include "clock.h"

#define PERIOD (2 * CLOCK_SECOND)
/* In a period: fewer rounds are no throughput to speak of. */
#define ROUNDS_LEAST 100
/* Behind the acknowledgements: the way there and back, and the broker's own time. */
#define AT_ONCE (3 * CLOCK_MS)
/* As many come together by chance. */
#define CHANCE 5

static bool
is_capped(const struct window *w)
{
	return w->rounds >= ROUNDS_LEAST && w->most >= CHANCE && w->full * 2 >= w->rounds &&
	    w->prompt * 10 >= w->rounds * 9;
}

/*
 * So many messages were acknowledged together, the first of which came at that time. Returns the
 * broker's limit when it has shown, once for a connection, else 0.
 */
uint64_t
window_round(struct window *w, uint64_t messages, int64_t first, int64_t now)
{
	uint64_t limit = 0;

	if (w->told || messages == 0)
		return 0;
	w->rounds++;
	w->prompt += first - w->last <= AT_ONCE;
	w->last = now;
	if (messages > w->most) {
		w->most = messages;
		w->full = 0;
	}
	w->full += messages == w->most;
	if (w->since == 0)
		w->since = now;
	if (now - w->since < PERIOD)
		return 0;
	if (is_capped(w)) {
		w->told = true;
		limit = w->most;
	}
	w->since = now;
	w->most = w->rounds = w->full = w->prompt = 0;
	return limit;
}
