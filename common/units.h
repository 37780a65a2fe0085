#ifndef COMMON_UNITS_H
#define COMMON_UNITS_H

#include <stddef.h>
#include <stdint.h>

#include "clock.h"

int units_number(const char *, int64_t *);
int units_size(const char *, int64_t *);
int units_duration(const char *, int64_t *);
const char *units_format_size(int64_t, char *, size_t);
const char *units_format_duration(int64_t, char *, size_t);

#endif
