#ifndef SUPERVISOR_RESOLVE_H
#define SUPERVISOR_RESOLVE_H

#include <stdbool.h>
#include <sys/types.h>

#define RESOLVE_MAX 16

struct resolve {
	int fd; /* readable when the answer comes, -1 when nothing is asked */
	pid_t pid;
	char text[2048];
	size_t len;
	char *address[RESOLVE_MAX]; /* numeric, into text */
	int count;
	const char *error;
};

void resolve_init(struct resolve *);
int resolve_start(struct resolve *, const char *);
bool resolve_read(struct resolve *);
void resolve_reaped(struct resolve *, pid_t);
void resolve_cancel(struct resolve *);

#endif
