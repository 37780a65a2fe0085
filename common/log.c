/*
 * Log lines on standard error: one event a line, its name first, then key=value (logfmt), or one
 * JSON object a line.
 *
 * A line leaves in one write(2) of at most LINE_MAX_BYTES, so the lines of supervisor and writers
 * never mix (pipe(7): up to PIPE_BUF is atomic). Must never block the process on a reader that has
 * stopped: what does not fit is dropped and counted, and the next line that fits says how many.
 * Must never let a topic, a payload or a server's words break out of their line: control characters
 * and bytes that are no UTF-8 are escaped. JSON is escaped by hand because these strings may hold
 * any bytes, which a JSON library refuses, and the supervisor needs JSON for nothing else.
 */
#include "log.h"

#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "clock.h"
#include "utf8.h"

#define LINE_MAX_BYTES 4096
#define VALUE_MAX_BYTES 1200

static enum log_level threshold = LOG_LEVEL_INFO;
static enum log_format format = LOG_FORMAT_TEXT;
static int lane = -1;
static uint64_t dropped;

struct line {
	char text[LINE_MAX_BYTES];
	size_t len;
};

void
log_init(enum log_level level, enum log_format fmt)
{
	threshold = level;
	format = fmt;
}

/* From now on every line of this process carries lane=n. */
void
log_lane(int n)
{
	lane = n;
}

int
log_enabled(enum log_level level)
{
	return level >= threshold;
}

const char *
log_level_name(enum log_level level)
{
	static const char *const names[] = {"debug", "info", "warn", "error"};

	return names[level];
}

/* strerror(3) for one line: the text stays good until the next call. */
const char *
log_strerror(int e)
{
	static char text[128];

	return strerror_r(e, text, sizeof(text));
}

static void
put(struct line *l, const char *s, size_t n)
{
	/* Two bytes stay free for the closing brace and the newline. */
	if (n > sizeof(l->text) - 2 - l->len)
		n = sizeof(l->text) - 2 - l->len;
	memcpy(l->text + l->len, s, n);
	l->len += n;
}

static void
put_string(struct line *l, const char *s)
{
	put(l, s, strlen(s));
}

/*
 * Writes a value with everything escaped that could end the line, the field or the terminal's good
 * behaviour. A byte that is no UTF-8 becomes \xNN; JSON has no such escape and gets \\xNN.
 */
static void
put_escaped(struct line *l, const char *s)
{
	const char *hex = format == LOG_FORMAT_JSON ? "\\\\x%02x" : "\\x%02x";
	size_t left = strlen(s), start = l->len, n;
	char esc[16];

	while (left > 0) {
		unsigned char c = (unsigned char)*s;

		if (l->len - start > VALUE_MAX_BYTES || l->len + 64 > sizeof(l->text)) {
			put_string(l, "...");
			return;
		}
		n = utf8_sequence((const uint8_t *)s, left);
		if (n == 0 || (n == 2 && c == 0xc2 && (unsigned char)s[1] < 0xa0)) {
			snprintf(esc, sizeof(esc), hex, c);
			put_string(l, esc);
			n = 1;
		} else if (c == '"' || c == '\\') {
			put(l, "\\", 1);
			put(l, s, 1);
		} else if (c == '\n') {
			put(l, "\\n", 2);
		} else if (c == '\t') {
			put(l, "\\t", 2);
		} else if (c < 0x20 || c == 0x7f) {
			snprintf(esc, sizeof(esc), "\\u%04x", c);
			put_string(l, esc);
		} else {
			put(l, s, n);
		}
		s += n;
		left -= n;
	}
}

static bool
is_plain(const char *s)
{
	if (*s == '\0')
		return false;
	for (; *s != '\0'; s++) {
		if (*s <= ' ' || *s > '~' || *s == '"' || *s == '\\' || *s == '=')
			return false;
	}
	return true;
}

static void
put_field(struct line *l, const struct log_field *f)
{
	bool json = format == LOG_FORMAT_JSON;
	char number[40];

	if (f->kind == LOG_KIND_SKIP || (f->kind == LOG_KIND_STRING && f->v.s == NULL))
		return;
	if (json)
		put_string(l, ",\"");
	else
		put(l, " ", 1);
	put_string(l, f->key);
	put_string(l, json ? "\":" : "=");

	switch (f->kind) {
	case LOG_KIND_STRING:
		if (!json && is_plain(f->v.s)) {
			put_escaped(l, f->v.s);
			return;
		}
		put(l, "\"", 1);
		put_escaped(l, f->v.s);
		put(l, "\"", 1);
		return;
	case LOG_KIND_SIGNED:
		snprintf(number, sizeof(number), "%lld", (long long)f->v.i);
		break;
	case LOG_KIND_DURATION:
		/* Seconds with milliseconds, as a number in JSON and with its unit in text. */
		snprintf(number, sizeof(number), "%.3f%s", (double)f->v.i / CLOCK_SECOND,
		    json ? "" : "s");
		break;
	default:
		snprintf(number, sizeof(number), "%llu", (unsigned long long)f->v.u);
		break;
	}
	put_string(l, number);
}

static void
put_time(struct line *l)
{
	int64_t now = clock_realtime();
	time_t seconds = (time_t)(now / CLOCK_SECOND);
	struct tm tm;
	char text[40];
	size_t n;

	gmtime_r(&seconds, &tm);
	n = strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%S", &tm);
	snprintf(text + n, sizeof(text) - n, ".%03dZ", (int)(now % CLOCK_SECOND / CLOCK_MS));
	put_string(l, text);
}

static void
emit(struct line *l)
{
	struct pollfd pfd = {.fd = STDERR_FILENO, .events = POLLOUT};

	if (format == LOG_FORMAT_JSON)
		l->text[l->len++] = '}';
	l->text[l->len++] = '\n';
	/* A pipe that polls writable takes PIPE_BUF bytes at once (pipe(7)). */
	if (poll(&pfd, 1, 0) != 1 || (pfd.revents & POLLOUT) == 0 ||
	    write(STDERR_FILENO, l->text, l->len) == -1)
		dropped++;
	else
		dropped = 0;
}

/* Writes one event with its fields, an array that ends with LOG_END. Keeps errno. */
void
log_event(enum log_level level, const char *event, const struct log_field *fields)
{
	struct line l = {.len = 0};
	int saved = errno;

	if (!log_enabled(level))
		return;
	if (format == LOG_FORMAT_JSON) {
		put_string(&l, "{\"time\":\"");
		put_time(&l);
		put_string(&l, "\",\"level\":\"");
		put_string(&l, log_level_name(level));
		put_string(&l, "\",\"event\":\"");
		put_string(&l, event);
		put(&l, "\"", 1);
	} else {
		put_time(&l);
		put(&l, " ", 1);
		put_string(&l, log_level_name(level));
		put(&l, " ", 1);
		put_string(&l, event);
	}
	if (lane >= 0)
		put_field(&l, &LOG_I("lane", lane));
	for (; fields->kind != LOG_KIND_END; fields++)
		put_field(&l, fields);
	if (dropped > 0)
		put_field(&l, &LOG_U("log_lines_dropped", dropped));
	emit(&l);
	errno = saved;
}
