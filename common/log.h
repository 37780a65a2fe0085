#ifndef COMMON_LOG_H
#define COMMON_LOG_H

#include <stdint.h>

enum log_level {
	LOG_LEVEL_DEBUG,
	LOG_LEVEL_INFO,
	LOG_LEVEL_WARN,
	LOG_LEVEL_ERROR,
};

enum log_format {
	LOG_FORMAT_TEXT,
	LOG_FORMAT_JSON,
};

enum log_kind {
	LOG_KIND_END,
	LOG_KIND_STRING,
	LOG_KIND_SIGNED,
	LOG_KIND_UNSIGNED,
	LOG_KIND_DURATION,
	LOG_KIND_SKIP,
};

struct log_field {
	const char *key;
	enum log_kind kind;
	union {
		const char *s;
		int64_t i;
		uint64_t u;
	} v;
};

/* Fields of an event: a string (NULL leaves the field out), a number, microseconds shown as
 * seconds, and the sentence of an errno. */
#define LOG_S(k, x) ((struct log_field){.key = (k), .kind = LOG_KIND_STRING, .v.s = (x)})
#define LOG_I(k, x) ((struct log_field){.key = (k), .kind = LOG_KIND_SIGNED, .v.i = (x)})
#define LOG_U(k, x) ((struct log_field){.key = (k), .kind = LOG_KIND_UNSIGNED, .v.u = (x)})
#define LOG_T(k, x) ((struct log_field){.key = (k), .kind = LOG_KIND_DURATION, .v.i = (x)})
#define LOG_ERRNO(e) LOG_S("error", log_strerror(e))
#define LOG_END ((struct log_field){.kind = LOG_KIND_END})

#define LOG_FIELDS(...) ((const struct log_field[]){__VA_ARGS__ __VA_OPT__(, ) LOG_END})
#define log_debug(event, ...)                                                         \
	do {                                                                          \
		if (log_enabled(LOG_LEVEL_DEBUG))                                     \
			log_event(LOG_LEVEL_DEBUG, (event), LOG_FIELDS(__VA_ARGS__)); \
	} while (0)
#define log_info(event, ...) log_event(LOG_LEVEL_INFO, (event), LOG_FIELDS(__VA_ARGS__))
#define log_warn(event, ...) log_event(LOG_LEVEL_WARN, (event), LOG_FIELDS(__VA_ARGS__))
#define log_error(event, ...) log_event(LOG_LEVEL_ERROR, (event), LOG_FIELDS(__VA_ARGS__))

void log_init(enum log_level, enum log_format);
void log_lane(int);
int log_enabled(enum log_level);
void log_event(enum log_level, const char *, const struct log_field *);
const char *log_strerror(int);
const char *log_level_name(enum log_level);

#endif
