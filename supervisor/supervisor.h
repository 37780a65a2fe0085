#ifndef SUPERVISOR_SUPERVISOR_H
#define SUPERVISOR_SUPERVISOR_H

#include "config.h"

int supervisor_run(const struct config *);

#endif
