#ifndef SUPERVISOR_SUSPECT_H
#define SUPERVISOR_SUSPECT_H

#include <stdbool.h>
#include <stdint.h>

/* Which records of a lane may have killed its writers. Numbers are seqs, 0 for none. */
struct suspect {
	uint64_t first, last; /* that every writer which died of it had in its hands */
	unsigned deaths;
	uint64_t condemned; /* the one that has killed alone */
};

bool suspect_is_crash(int status);
void suspect_death(struct suspect *, uint64_t first, uint64_t last);
void suspect_durable(struct suspect *, uint64_t watermark);
bool suspect_one_by_one(const struct suspect *);

#endif
