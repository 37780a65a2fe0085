#ifndef COMMON_MESSAGE_CHECK_H
#define COMMON_MESSAGE_CHECK_H

#include "message.h"

/* All but RECORD are small; a longer one is a peer gone wrong. */
#define MESSAGE_CONTROL_MAX (64 * 1024)

struct message_layout {
	enum message_type type;
	const char *name;
	const char *elements;
};

struct message_cursor {
	const uint8_t *start, *p, *end;
	size_t cap;
	struct message_fault *fault;
};

const struct message_layout *message_layout_of(uint64_t);
enum message_result message_check(struct message_cursor *);
enum message_result message_bad(struct message_cursor *, const char *, ...)
    __attribute__((format(printf, 2, 3)));

#endif
