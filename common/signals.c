/*
 * Signals as readable events: signalfd(2), never work in a handler.
 *
 * signals_open() blocks what it is asked for, so a process must call it before it forks or connects
 * anything; as PID 1 of a container there are no default actions to fall back on.
 */
#include "signals.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

/*
 * Blocks the n signals and returns a non-blocking descriptor that becomes readable when one comes;
 * -1 with errno. SIGPIPE is ignored on the way: a peer that has gone is an error of write(2).
 */
int
signals_open(const int *list, int n)
{
	sigset_t set;
	int i;

	signal(SIGPIPE, SIG_IGN);
	/* A limit on the size of files is an error of write(2) as well, and no end. */
	signal(SIGXFSZ, SIG_IGN);
	sigemptyset(&set);
	for (i = 0; i < n; i++)
		sigaddset(&set, list[i]);
	if (sigprocmask(SIG_BLOCK, &set, NULL) == -1)
		return -1;
	return signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
}

/* The next signal that came, 0 if there is none. Equal signals may have become one. */
int
signals_next(int fd)
{
	struct signalfd_siginfo info;

	if (read(fd, &info, sizeof(info)) != (ssize_t)sizeof(info))
		return 0;
	return (int)info.ssi_signo;
}

/*
 * Between fork and exec of a writer: default dispositions and an empty mask, but for what a writer
 * must not die of before its own signalfd stands. SIGUSR1 stays blocked, and so waits for it;
 * SIGTERM, SIGINT and SIGHUP are ignored for good, so that Ctrl-C in a terminal, which reaches the
 * whole process group, cannot cut a transaction.
 */
void
signals_reset_for_writer(void)
{
	sigset_t set;
	int i;

	for (i = 1; i < NSIG; i++)
		signal(i, SIG_DFL);
	signal(SIGTERM, SIG_IGN);
	signal(SIGINT, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_SETMASK, &set, NULL);
}

/* "SIGTERM" and so on; good until the next call. */
const char *
signals_name(int signo)
{
	static char text[24];
	const char *abbrev = sigabbrev_np(signo);

	if (abbrev == NULL)
		snprintf(text, sizeof(text), "signal %d", signo);
	else
		snprintf(text, sizeof(text), "SIG%s", abbrev);
	return text;
}
