#ifndef SUPERVISOR_BURST_H
#define SUPERVISOR_BURST_H

#include <stdint.h>

#include "buffer.h"
#include "message.h"

/* Records of one lane, in order, encoded as they go to the writer. All zero is an empty one. */
struct burst {
	struct buffer bytes;
	uint64_t count, first, last; /* first and last are seqs */
};

int burst_add(struct burst *, const struct record *);
void burst_clear(struct burst *);
void burst_free(struct burst *);

#endif
