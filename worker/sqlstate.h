#ifndef WORKER_SQLSTATE_H
#define WORKER_SQLSTATE_H

#include "message.h"

enum trouble_class sqlstate_class(const char *);

#endif
