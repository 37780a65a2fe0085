/*
 * When so many rows are refused that it is not they that are at fault: --dead-letter-share.
 *
 * Pure. It judges a minute of one writer, and only a minute of BREAKER_LEAST rows and more. Once it
 * is open that minute ages no more: else it would forget while the batch is held, and let the next
 * thousand go. It must never close but by a batch that went through.
 */
#include "breaker.h"

#include <stddef.h>
#include <string.h>

#include "clock.h"

#define BREAKER_LEAST 1000

/* share is in percent; at 100 it never trips. */
void
breaker_init(struct breaker *b, int64_t share)
{
	*b = (struct breaker){.share = share};
}

/* Empties the seconds that have gone since the last call. now is on the monotonic clock. */
static void
turn(struct breaker *b, int64_t now)
{
	int64_t second = now / CLOCK_SECOND;

	if (second - b->newest >= BREAKER_SECONDS) {
		memset(b->seconds, 0, sizeof(b->seconds));
		b->newest = second;
	}
	while (b->newest < second)
		memset(&b->seconds[++b->newest % BREAKER_SECONDS], 0, sizeof(b->seconds[0]));
}

/* A batch of so many rows has been committed, so many of them as dead letters. */
void
breaker_count(struct breaker *b, uint64_t rows, uint64_t refused, int64_t now)
{
	turn(b, now);
	b->open = false;
	b->seconds[b->newest % BREAKER_SECONDS].rows += rows;
	b->seconds[b->newest % BREAKER_SECONDS].refused += refused;
}

/*
 * Whether a batch is to be held of which so many rows are decided, so many of them refused.
 * Returns 0 if not, else how many rows it has judged by.
 */
uint64_t
breaker_trips(struct breaker *b, uint64_t rows, uint64_t refused, int64_t now)
{
	size_t i;

	if (!b->open)
		turn(b, now);
	for (i = 0; i < BREAKER_SECONDS; i++) {
		rows += b->seconds[i].rows;
		refused += b->seconds[i].refused;
	}
	if (rows < BREAKER_LEAST || 100 * refused <= (uint64_t)b->share * rows)
		return 0;
	b->open = true;
	return rows;
}
