#ifndef WORKER_PAYLOAD_H
#define WORKER_PAYLOAD_H

#include <stddef.h>
#include <stdint.h>

/* Containers within containers at most; payload.c says how it was measured. */
#define PAYLOAD_DEPTH_MAX 512

enum payload_kind {
	PAYLOAD_JSON, /* jsonb takes the bytes as they stand */
	PAYLOAD_TEXT, /* to be stored as a JSON string */
	PAYLOAD_NULL, /* empty: JSON null */
	PAYLOAD_DEAD, /* a dead letter, reason says why */
};

struct payload_verdict {
	enum payload_kind kind;
	char reason[160];
};

void payload_judge(const uint8_t *, size_t, struct payload_verdict *);

#endif
