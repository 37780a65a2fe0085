/*
 * MQTT topic filters: MQTT 5.0, sections 4.7 and 4.8.2.
 *
 * Checked here, before a broker sees them: a broker answers a bad filter by closing the connection,
 * which would look like an outage.
 */
#include "topic.h"

#include <stddef.h>
#include <string.h>

#include "utf8.h"

#define TOPIC_MAX 65535
#define SHARE "$share/"

static const char *
levels_error(const char *filter)
{
	const char *p, *end;
	size_t len;

	if (*filter == '\0')
		return "the filter is empty";
	for (p = filter;; p = end + 1) {
		end = strchrnul(p, '/');
		len = (size_t)(end - p);
		if (memchr(p, '#', len) != NULL && (len != 1 || *end != '\0'))
			return "'#' must be the last level and stand alone in it";
		if (memchr(p, '+', len) != NULL && len != 1)
			return "'+' must stand alone in its level";
		if (*end == '\0')
			return NULL;
	}
}

/* NULL if a broker must accept the filter, else the rule that it breaks (a constant string). */
const char *
topic_filter_error(const char *filter)
{
	size_t len = strlen(filter), bad;
	const char *group;

	if (len > TOPIC_MAX)
		return "a filter has at most 65535 bytes";
	if (!utf8_valid((const uint8_t *)filter, len, &bad))
		return "a filter must be UTF-8";
	if (strncmp(filter, SHARE, strlen(SHARE)) != 0)
		return levels_error(filter);

	group = filter + strlen(SHARE);
	len = strcspn(group, "/");
	if (len == 0 || group[len] != '/' || strcspn(group, "+#") < len)
		return "a shared subscription is $share/GROUP/FILTER, without wildcards in GROUP";
	return levels_error(group + len + 1);
}
