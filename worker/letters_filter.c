/*
 * An MQTT topic filter as a regular expression of PostgreSQL, so that the database itself chooses
 * exactly what the filter matches: MQTT 5.0, section 4.7.
 *
 * Pure. Must never let a character of the filter mean anything to the regular expression.
 */
#include "letters_filter.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

/* What begins every expression: advanced syntax, whatever regex_flavor, and the whole topic. */
#define START "***:^"
#define NO_DOLLAR "(?!\\$)"
#define ANY_LEVEL "[^/]*"
#define ANY_REST "(/.*)?"

/* A shared subscription's own filter is what stands behind $share/GROUP/. */
static const char *
without_share(const char *filter)
{
	const char *slash;

	if (strncmp(filter, "$share/", 7) != 0)
		return filter;
	slash = strchr(filter + 7, '/');
	return slash != NULL ? slash + 1 : filter;
}

/*
 * Returns the expression for a filter that topic_filter_error() has found to be one; the caller's
 * to free, NULL when memory is short.
 */
char *
letters_filter_regex(const char *filter)
{
	size_t longest = sizeof(ANY_REST);
	const char *p = without_share(filter);
	char *regex = malloc(sizeof(START) + sizeof(NO_DOLLAR) + longest * (strlen(p) + 1)), *to;

	if (regex == NULL)
		return NULL;
	to = stpcpy(regex, START);
	/* $SYS and its like are not meant by a filter that begins with a wildcard. */
	if (*p == '+' || *p == '#')
		to = stpcpy(to, NO_DOLLAR);
	for (; *p != '\0'; p++) {
		if (p[0] == '/' && p[1] == '#') {
			/* "a/#" is "a" as well. */
			to = stpcpy(to, ANY_REST);
			break;
		}
		if (*p == '#') {
			to = stpcpy(to, ".*");
		} else if (*p == '+') {
			to = stpcpy(to, ANY_LEVEL);
		} else {
			if ((unsigned char)*p < 0x80 && !isalnum((unsigned char)*p))
				*to++ = '\\';
			*to++ = *p;
		}
	}
	strcpy(to, "$");
	return regex;
}
