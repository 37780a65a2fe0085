/*
 * JSON's numbers, and which of them PostgreSQL's numeric can hold.
 *
 * The number is never computed: it reaches jsonb as it stands. By hand because json-c reads numbers
 * into 64 bits and doubles, which says nothing about numeric's limits: 131,072 digits before the
 * point, 16,383 behind it, trailing zeros and exponent included (numeric.c, set_var_from_str() and
 * make_result(); tried at each limit).
 */
#include "number.h"

#include <ctype.h>
#include <stdbool.h>
#include <stddef.h>

#define POWER_MAX 131071
#define SCALE_MAX 16383
/* From here on numeric refuses the exponent itself, even of zero: INT_MAX / 2. */
#define EXPONENT_LIMIT 1073741823

static const uint8_t *
skip_digits(const uint8_t *p, const uint8_t *end)
{
	while (p < end && isdigit(*p))
		p++;
	return p;
}

/* Reads the digits of an exponent up to end, stopping at the limit. */
static int64_t
exponent_of(const uint8_t *p, const uint8_t *end)
{
	int64_t e = 0;

	for (; p < end && e < EXPONENT_LIMIT; p++)
		e = e * 10 + (*p - '0');
	return e;
}

/* before: the digits before the point; [point, fraction_end): those behind it. */
static bool
fits(const uint8_t *before, const uint8_t *before_end, const uint8_t *point,
    const uint8_t *fraction_end, int64_t exponent)
{
	int64_t power, scale = (fraction_end - point) - exponent;
	const uint8_t *p;

	if (exponent >= EXPONENT_LIMIT || exponent <= -EXPONENT_LIMIT || scale > SCALE_MAX)
		return false;
	/* JSON has no leading zeros: the first digit counts unless it is the only one. */
	if (*before != '0') {
		power = before_end - before - 1;
	} else {
		for (p = point; p < fraction_end && *p == '0'; p++)
			;
		if (p == fraction_end)
			return true;
		power = -(p - point) - 1;
	}
	return power + exponent <= POWER_MAX;
}

/*
 * Reads the number at *at, of which there is at least one byte. If there is one, *at stands behind
 * it; else where it went wrong.
 */
enum number_result
number_scan(const uint8_t **at, const uint8_t *end)
{
	const uint8_t *p = *at, *before, *before_end, *point, *fraction_end, *digits;
	bool negative = false;
	int64_t exponent = 0;

	if (*p == '-')
		p++;
	before = p;
	p = skip_digits(p, end);
	if (p > before + 1 && *before == '0')
		p = before + 1;
	before_end = point = fraction_end = *at = p;
	if (p == before)
		return NUMBER_NONE;
	if (p < end && *p == '.') {
		point = p + 1;
		fraction_end = *at = p = skip_digits(point, end);
		if (p == point)
			return NUMBER_NONE;
	}
	if (p < end && (*p == 'e' || *p == 'E')) {
		p++;
		if (p < end && (*p == '+' || *p == '-'))
			negative = *p++ == '-';
		digits = p;
		*at = p = skip_digits(p, end);
		if (p == digits)
			return NUMBER_NONE;
		exponent = exponent_of(digits, p);
	}
	return fits(before, before_end, point, fraction_end, negative ? -exponent : exponent)
	    ? NUMBER_FITS
	    : NUMBER_TOO_LARGE;
}
