/*
 * mqtt://[USER[:PASSWORD]@]HOST[:PORT] and mqtts://…, with percent-encoding (RFC 3986) in user and
 * password and brackets around an IPv6 address.
 *
 * Must never put a password into an error: the errors are constant strings.
 */
#include "broker_url.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

static int
hex(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c = (char)tolower((unsigned char)c);
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* A decoded copy of s[0..n), NULL if an escape is malformed or stands for NUL. */
static char *
decode(const char *s, size_t n)
{
	char *out = calloc(1, n + 1), *p = out;
	size_t i;

	for (i = 0; out != NULL && i < n; i++) {
		if (s[i] != '%') {
			*p++ = s[i];
			continue;
		}
		if (i + 2 >= n || hex(s[i + 1]) == -1 || hex(s[i + 2]) == -1 ||
		    (s[i + 1] == '0' && s[i + 2] == '0')) {
			free(out);
			return NULL;
		}
		*p++ = (char)(hex(s[i + 1]) << 4 | hex(s[i + 2]));
		i += 2;
	}
	return out;
}

static const char *
parse_userinfo(const char *s, size_t n, struct broker_url *url)
{
	const char *colon = memchr(s, ':', n);
	size_t user = colon != NULL ? (size_t)(colon - s) : n;

	url->user = decode(s, user);
	if (url->user == NULL)
		return "the user has a bad percent escape";
	if (colon != NULL) {
		url->password = decode(colon + 1, n - user - 1);
		if (url->password == NULL)
			return "the password has a bad percent escape";
	}
	return NULL;
}

static const char *
parse_port(const char *s, struct broker_url *url)
{
	char *end;
	unsigned long n;

	if (!isdigit((unsigned char)*s))
		return "the port must be a number from 1 to 65535";
	n = strtoul(s, &end, 10);
	if (strcmp(end, "/") == 0)
		end++;
	if (*end != '\0' || n < 1 || n > UINT16_MAX)
		return "the port must be a number from 1 to 65535";
	url->port = (uint16_t)n;
	return NULL;
}

static const char *
parse(const char *text, struct broker_url *url)
{
	const char *p, *at, *end, *error;

	if (strncmp(text, "mqtts://", 8) == 0)
		url->tls = true;
	else if (strncmp(text, "mqtt://", 7) != 0)
		return "it must start with mqtt:// or mqtts://";
	p = text + (url->tls ? 8 : 7);
	url->port = url->tls ? 8883 : 1883;

	at = strrchr(p, '@');
	if (at != NULL) {
		error = parse_userinfo(p, (size_t)(at - p), url);
		if (error != NULL)
			return error;
		p = at + 1;
	}
	if (*p == '[') {
		end = strchr(++p, ']');
		if (end == NULL)
			return "the IPv6 address lacks its ']'";
		url->host = strndup(p, (size_t)(end - p));
		end++;
	} else {
		end = p + strcspn(p, ":/");
		url->host = strndup(p, (size_t)(end - p));
	}
	if (url->host == NULL || *url->host == '\0')
		return "it names no host";
	if (*end == '/')
		return end[1] == '\0' ? NULL : "nothing may follow the port";
	if (*end == ':')
		return parse_port(end + 1, url);
	return *end == '\0' ? NULL : "nothing may follow the host but a port";
}

/* Fills url. Returns NULL, or the rule that the text breaks, and then url is empty. */
const char *
broker_url_parse(const char *text, struct broker_url *url)
{
	const char *error;

	*url = (struct broker_url){0};
	error = parse(text, url);
	if (error != NULL)
		broker_url_free(url);
	return error;
}

void
broker_url_free(struct broker_url *url)
{
	free(url->host);
	free(url->user);
	free(url->password);
	*url = (struct broker_url){0};
}
