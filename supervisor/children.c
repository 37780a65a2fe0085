/*
 * Spawn and reap: mechanism only; policy.c says what a death means.
 *
 * As PID 1 of a container every orphan lands here, so children_reap() takes whatever there is, and
 * the caller must not mind a pid that it does not know.
 */
#include "children.h"

#include <bsd/unistd.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "channel.h"
#include "signals.h"

static char writer_path[PATH_MAX];

/*
 * Looks for ingestd-writer beside this program (a build tree) and in ../libexec/ingestd (as `make
 * install` leaves it), so that a moved or freshly built pair never picks up another's half. Returns
 * -1 with errno when it is in neither place.
 */
int
children_find_writer(void)
{
	static const char *const places[] = {"ingestd-writer", "../libexec/ingestd/ingestd-writer"};
	char self[PATH_MAX], *slash;
	ssize_t n;
	size_t i;

	n = readlink("/proc/self/exe", self, sizeof(self) - 1);
	if (n == -1)
		return -1;
	self[n] = '\0';
	slash = strrchr(self, '/');
	slash[1] = '\0';
	for (i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
		if (snprintf(writer_path, sizeof(writer_path), "%s%s", self, places[i]) <
			(int)sizeof(writer_path) &&
		    access(writer_path, X_OK) == 0)
			return 0;
	}
	return -1;
}

/*
 * Becomes ingestd-writer with these arguments, of which the first is replaced by its name: for a
 * command that needs the database. Returns -1 with errno when that cannot be.
 */
int
children_become_writer(char **argv)
{
	static char name[] = "ingestd-writer";

	if (children_find_writer() == -1)
		return -1;
	argv[0] = name;
	return execv(writer_path, argv);
}

/*
 * Forks and executes a writer with fd as its descriptor 3; every other descriptor but 0, 1 and 2 is
 * closed there: a socket of another lane that stayed open would keep that lane's writer from
 * noticing the supervisor's death. fd stays open here. Returns -1 with errno.
 */
pid_t
children_spawn_writer(int fd)
{
	char *const argv[] = {"ingestd-writer", NULL};
	pid_t pid = fork();

	if (pid != 0)
		return pid;
	/* dup2() onto itself would keep close-on-exec: go over a copy. */
	if (fd == CHANNEL_WRITER_FD)
		fd = dup(fd);
	if (fd == -1 || dup2(fd, CHANNEL_WRITER_FD) == -1)
		_exit(127);
	closefrom(CHANNEL_WRITER_FD + 1);
	signals_reset_for_writer();
	execv(writer_path, argv);
	_exit(127);
}

/*
 * The next child that has ended, 0 if there is none. SIGCHLD coalesces: call it until it says 0.
 */
pid_t
children_reap(int *status)
{
	pid_t pid;

	do
		pid = waitpid(-1, status, WNOHANG);
	while (pid == -1 && errno == EINTR);
	return pid > 0 ? pid : 0;
}
