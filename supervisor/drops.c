/*
 * How many messages the broker has dropped, from the counter that it publishes. Pure decisions.
 *
 * Mosquitto publishes it when it has changed, and keeps it as a retained message for a minute. So
 * the first reading may be a retained one, of which nobody knows how old it is, or a change, of
 * which nobody knows how much it is. A broker that has been started anew counts from zero. Must
 * never take what may have been dropped before the watch for a loss.
 */
#include "drops.h"

#include "clock.h"

#define TOLD_EVERY (60 * CLOCK_SECOND)

/* A number and nothing else. */
static bool
parse(const char *text, size_t n, uint64_t *value)
{
	size_t i;

	*value = 0;
	for (i = 0; i < n; i++) {
		if (text[i] < '0' || text[i] > '9')
			return false;
		if (__builtin_mul_overflow(*value, 10, value) ||
		    __builtin_add_overflow(*value, (uint64_t)(text[i] - '0'), value))
			return false;
	}
	return n > 0;
}

/* From now on, microseconds since the epoch, no change of the counter is missed. */
void
drops_watched(struct drops *d, int64_t time)
{
	if (d->seen_at == 0)
		d->seen_at = time;
}

/*
 * The counter's text has come at this time, microseconds since the epoch. retained: as it stood
 * before. False if it is no number.
 */
bool
drops_read(struct drops *d, const char *text, size_t n, bool retained, int64_t time)
{
	uint64_t value, rise = 0;
	bool first = !d->known;

	if (!parse(text, n, &value))
		return false;
	if (!first)
		rise = value >= d->counter ? value - d->counter : value;
	else if (!retained && value > 0)
		rise = 1;
	d->at_least = d->at_least || (first && rise > 0);
	if (rise > 0 && d->sum == 0)
		d->since = d->seen_at != 0 ? d->seen_at : time;
	if (__builtin_add_overflow(d->sum, rise, &d->sum))
		d->sum = UINT64_MAX;
	d->known = true;
	d->counter = value;
	d->seen_at = time;
	return true;
}

/* True if a line is due, at most one a minute; or at once if it is now or never. */
bool
drops_due(struct drops *d, bool last, int64_t now, struct drops_line *line)
{
	if (d->sum == 0 || (!last && now < drops_deadline(d)))
		return false;
	*line = (struct drops_line){
	    .dropped = d->sum, .at_least = d->at_least, .since = d->since, .counter = d->counter};
	d->sum = 0;
	d->at_least = false;
	d->logged = true;
	d->said_at = now;
	return true;
}

/* When drops_due() has a line, as far as is known. */
int64_t
drops_deadline(const struct drops *d)
{
	if (d->sum == 0)
		return CLOCK_NEVER;
	return d->logged ? d->said_at + TOLD_EVERY : 0;
}
