#ifndef SUPERVISOR_CHILDREN_H
#define SUPERVISOR_CHILDREN_H

#include <sys/types.h>

int children_find_writer(void);
int children_become_writer(char **);
pid_t children_spawn_writer(int);
pid_t children_reap(int *);

#endif
