#ifndef SUPERVISOR_DROPS_H
#define SUPERVISOR_DROPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What the broker's counter of dropped messages has shown. All zero before it is watched. */
struct drops {
	bool known;       /* it has been read */
	bool logged;      /* a line has been due */
	bool at_least;    /* sum is less than was dropped */
	uint64_t counter; /* the last reading */
	uint64_t sum;     /* dropped, and in no line yet */
	int64_t
	    seen_at;   /* the last reading, or the begin of the watch, 0 before; since the epoch */
	int64_t since; /* sum: all of it was dropped after this; since the epoch */
	int64_t said_at; /* the last line, of clock_monotonic() */
};

/* A line that is due: so many were dropped since then, microseconds since the epoch. */
struct drops_line {
	uint64_t dropped;
	bool at_least;
	int64_t since;
	uint64_t counter;
};

void drops_watched(struct drops *, int64_t);
bool drops_read(struct drops *, const char *, size_t, bool, int64_t);
bool drops_due(struct drops *, bool, int64_t, struct drops_line *);
int64_t drops_deadline(const struct drops *);

#endif
