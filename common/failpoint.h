#ifndef COMMON_FAILPOINT_H
#define COMMON_FAILPOINT_H

#include <stdbool.h>

/*
 * A place at which a test can kill or stop the process, or have a step fail: true means "pretend
 * that it failed". Nothing at all unless built with `make FAILPOINTS=1`.
 */
#ifdef FAILPOINTS
bool failpoint(const char *);
#define FAILPOINT(name) failpoint(name)
#else
#define FAILPOINT(name) false
#endif

#endif
