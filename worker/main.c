/*
 * ingestd-writer: one lane's way into the database. Started by ingestd, with its channel on
 * descriptor 3; see writer.c. Or what `ingestd dead-letters` becomes; see letters.c.
 *
 * Must never do anything else before it knows that descriptor 3 is a channel: a person may have
 * called it.
 */
#include <bsd/unistd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sysexits.h>

#include "channel.h"
#include "letters.h"
#include "writer.h"

static int
is_socket(int fd)
{
	int type;
	socklen_t n = sizeof(type);

	return getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &n) == 0;
}

int
main(int argc, char **argv)
{
	/*
	 * First of all: libbsd moves the environment to where no title is written, but only if
	 * nobody has changed it before, and libpq reads PGPASSWORD and the like from it.
	 */
	setproctitle_init(argc, argv, environ);
	/* libpq looks up names inside PQconnectPoll(), where the loop stands still: not for long.
	 */
	setenv("RES_OPTIONS", "timeout:2 attempts:2", 0);
	if (argc > 1 && strcmp(argv[1], "dead-letters") == 0)
		return letters_run(argc - 1, argv + 1);
	if (!is_socket(CHANNEL_WRITER_FD)) {
		fputs("ingestd-writer is started by ingestd, with its channel on descriptor 3\n",
		    stderr);
		return EX_USAGE;
	}
	/* The parent has seen to it; a writer must not depend on that to survive Ctrl-C. */
	signal(SIGTERM, SIG_IGN);
	signal(SIGINT, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	return writer_run(CHANNEL_WRITER_FD);
}
