#ifndef COMMON_CLOCK_H
#define COMMON_CLOCK_H

#include <stdbool.h>
#include <stdint.h>

#define CLOCK_MS INT64_C(1000)
#define CLOCK_SECOND INT64_C(1000000)
#define CLOCK_NEVER INT64_MAX

int64_t clock_monotonic(void);
int64_t clock_realtime(void);
bool clock_lapsed(int64_t *last, int64_t every, int64_t now);
int clock_poll_timeout(int64_t now, int64_t deadline);

#endif
