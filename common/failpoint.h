#ifndef COMMON_FAILPOINT_H
#define COMMON_FAILPOINT_H

#include <stdbool.h>
#include <stddef.h>

/*
 * A place at which a test can kill or stop the process, or have a step fail: true means "pretend
 * that it failed". Nothing at all unless built with `make FAILPOINTS=1`.
 */
#ifdef FAILPOINTS
bool failpoint(const char *);
void failpoint_bytes(const void *, size_t);
#define FAILPOINT(name) failpoint(name)
#define FAILPOINT_BYTES(p, n) failpoint_bytes(p, n)
#else
#define FAILPOINT(name) false
#define FAILPOINT_BYTES(p, n) ((void)0)
#endif

#endif
