/*
 * Failpoints: INGESTD_FAILPOINT=NAME:ACTION, with kill, stop or error as the action, lets a process
 * die, stand still or fail in the place of that name. INGESTD_FAILPOINT_ONCE names a directory in
 * which the first process to come there leaves a file NAME that holds its pid; later ones pass.
 * INGESTD_FAILPOINT_CRASH names bytes of which a writer dies, by signal INGESTD_FAILPOINT_SIGNAL,
 * 11 if there is none.
 *
 * For tests only: must never be part of a build that was not made with `make FAILPOINTS=1`.
 */
#include "failpoint.h"

#ifdef FAILPOINTS
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool
is_first(const char *name)
{
	const char *dir = getenv("INGESTD_FAILPOINT_ONCE");
	char path[4096];
	int fd;

	if (dir == NULL)
		return true;
	snprintf(path, sizeof(path), "%s/%s", dir, name);
	fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd == -1)
		return false;
	dprintf(fd, "%d\n", (int)getpid());
	close(fd);
	return true;
}

bool
failpoint(const char *name)
{
	const char *wanted = getenv("INGESTD_FAILPOINT");
	size_t n = strlen(name);

	if (wanted == NULL || strncmp(wanted, name, n) != 0 || wanted[n] != ':' || !is_first(name))
		return false;
	if (strcmp(wanted + n + 1, "kill") == 0)
		kill(getpid(), SIGKILL);
	else if (strcmp(wanted + n + 1, "stop") == 0)
		kill(getpid(), SIGSTOP);
	else
		return true;
	return false;
}

void
failpoint_bytes(const void *p, size_t n)
{
	const char *wanted = getenv("INGESTD_FAILPOINT_CRASH");
	const char *signum = getenv("INGESTD_FAILPOINT_SIGNAL");

	if (wanted != NULL && memmem(p, n, wanted, strlen(wanted)) != NULL)
		kill(getpid(), signum != NULL ? atoi(signum) : SIGSEGV);
}
#endif
