/*
 * Numbers, sizes (64MiB) and durations (500ms) as a person writes them.
 *
 * Strict: nothing before, between or behind, no signs, and an overflow is an error. Not libbsd's
 * strtonum() and dehumanize_number(): the former knows no units, the latter reads "1M" as a million
 * or as 1,048,576 by the flavour of its platform, and neither knows times.
 */
#include "units.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

struct unit {
	const char *name;
	int64_t factor;
};

/* Largest first; the empty name, if there is one, is what a bare number means. */
static const struct unit sizes[] = {{"GiB", INT64_C(1) << 30}, {"MiB", INT64_C(1) << 20},
    {"KiB", INT64_C(1) << 10}, {"", 1}, {NULL, 0}};
static const struct unit durations[] = {{"h", 3600 * CLOCK_SECOND}, {"m", 60 * CLOCK_SECOND},
    {"s", CLOCK_SECOND}, {"ms", CLOCK_MS}, {NULL, 0}};

static const char *
digits(const char *s, int64_t *n)
{
	*n = 0;
	if (!isdigit((unsigned char)*s))
		return NULL;
	for (; isdigit((unsigned char)*s); s++) {
		if (__builtin_mul_overflow(*n, 10, n) || __builtin_add_overflow(*n, *s - '0', n))
			return NULL;
	}
	return s;
}

static int
with_unit(const char *s, const struct unit *units, int64_t *n)
{
	const char *end = digits(s, n);

	for (; end != NULL && units->name != NULL; units++) {
		if (strcmp(units->name, end) == 0)
			return __builtin_mul_overflow(*n, units->factor, n) ? -1 : 0;
	}
	return -1;
}

/* Each returns 0 and sets *n, or -1 if the text is none. */
int
units_number(const char *s, int64_t *n)
{
	const char *end = digits(s, n);

	return end != NULL && *end == '\0' ? 0 : -1;
}

/* Bytes. */
int
units_size(const char *s, int64_t *n)
{
	return with_unit(s, sizes, n);
}

/* Microseconds. A bare 0 needs no unit. */
int
units_duration(const char *s, int64_t *n)
{
	*n = 0;
	return strcmp(s, "0") == 0 ? 0 : with_unit(s, durations, n);
}

static const char *
format(int64_t n, const struct unit *units, char *out, size_t size)
{
	while (units[1].name != NULL && (n % units->factor != 0 || n < units->factor))
		units++;
	snprintf(out, size, "%lld%s", (long long)(n / units->factor), units->name);
	return out;
}

/* In the largest unit that divides it; returns out. */
const char *
units_format_size(int64_t n, char *out, size_t size)
{
	return format(n, sizes, out, size);
}

const char *
units_format_duration(int64_t n, char *out, size_t size)
{
	return format(n, durations, out, size);
}
