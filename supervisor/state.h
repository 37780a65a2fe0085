#ifndef SUPERVISOR_STATE_H
#define SUPERVISOR_STATE_H

#include <stdbool.h>

#include "config.h"

/* What an earlier run has left behind of the session that this one will ask for. */
struct state_session {
	bool known; /* this client id had one at this broker */
	bool same;  /* with the same filters and QoS */
};

int state_open(struct config *);
struct state_session state_load_session(const struct config *);
void state_save_session(const struct config *);

#endif
