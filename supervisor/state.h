#ifndef SUPERVISOR_STATE_H
#define SUPERVISOR_STATE_H

#include "config.h"

int state_open(struct config *);

#endif
