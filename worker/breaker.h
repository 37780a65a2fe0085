#ifndef WORKER_BREAKER_H
#define WORKER_BREAKER_H

#include <stdbool.h>
#include <stdint.h>

#define BREAKER_SECONDS 60

/* Rows that the database was given in the last minute, by the second. */
struct breaker {
	int64_t share;  /* percent */
	int64_t newest; /* second */
	bool open;      /* too many: the minute stands still until a batch has gone through */
	struct {
		uint64_t rows, refused;
	} seconds[BREAKER_SECONDS];
};

void breaker_init(struct breaker *, int64_t share);
void breaker_count(struct breaker *, uint64_t rows, uint64_t refused, int64_t now);
uint64_t breaker_trips(struct breaker *, uint64_t rows, uint64_t refused, int64_t now);

#endif
