#ifndef SUPERVISOR_POLICY_H
#define SUPERVISOR_POLICY_H

#include <stdint.h>

enum policy_action {
	POLICY_RESPAWN,
	POLICY_STOP_SERVICE,
};

struct policy_verdict {
	enum policy_action action;
	int64_t delay;     /* microseconds until the respawn */
	unsigned failures; /* the history to hand in at the next death */
};

struct policy_verdict policy_death(int, int64_t, unsigned);
int64_t policy_backoff(int64_t, int64_t, unsigned);
int64_t policy_respawn_delay(unsigned);
const char *policy_meaning(int);

#endif
