#ifndef SUPERVISOR_WINDOW_H
#define SUPERVISOR_WINDOW_H

#include <stdbool.h>
#include <stdint.h>

/* What was acknowledged together lately, on one connection. All zero for a new one. */
struct window {
	int64_t since;   /* begin of the period that is looked at */
	int64_t last;    /* when acknowledgements went out last */
	uint64_t most;   /* messages that were acknowledged together in this period */
	uint64_t rounds; /* in this period */
	uint64_t full;   /* of these, the ones with that many */
	uint64_t prompt; /* of these, the ones that followed at once on the one before */
	bool told;
};

uint64_t window_round(struct window *, uint64_t, int64_t, int64_t);

#endif
