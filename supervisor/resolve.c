/*
 * A host name to addresses without waiting: a short-lived child asks the resolver, which knows no
 * way but to block, and writes what it got into a pipe.
 *
 * Must never hold up the loop, whatever the name server does. The child dies by itself (alarm) and
 * holds no descriptor but its pipe, so that it never keeps a writer's channel open.
 */
#include "resolve.h"

#include <arpa/inet.h>
#include <bsd/stdlib.h>
#include <bsd/unistd.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* Longer than the stub resolver's own 5 s × 2 tries; the caller gives up sooner if it wants. */
#define CHILD_SECONDS 30

void
resolve_init(struct resolve *r)
{
	*r = (struct resolve){.fd = -1};
}

static void __attribute__((noreturn)) child(int fd, const char *host)
{
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_ADDRCONFIG}, *list, *ai;
	char name[INET6_ADDRSTRLEN + 20];
	sigset_t none;
	int error, i;

	for (i = 1; i < NSIG; i++)
		signal(i, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	if (dup2(fd, 3) == -1)
		_exit(1);
	closefrom(4);
	alarm(CHILD_SECONDS);
	setproctitle("resolving %s", host);
	error = getaddrinfo(host, NULL, &hints, &list);
	/* AI_ADDRCONFIG leaves nothing of "localhost" on a host that has loopback only. */
	if (error == EAI_NONAME || error == EAI_ADDRFAMILY || error == EAI_NODATA) {
		hints.ai_flags = 0;
		error = getaddrinfo(host, NULL, &hints, &list);
	}
	if (error != 0) {
		dprintf(3, "!%s", error == EAI_SYSTEM ? strerror(errno) : gai_strerror(error));
		_exit(1);
	}
	for (ai = list, i = 0; ai != NULL && i < RESOLVE_MAX; ai = ai->ai_next, i++) {
		if (getnameinfo(ai->ai_addr, ai->ai_addrlen, name, sizeof(name), NULL, 0,
			NI_NUMERICHOST) == 0)
			dprintf(3, "%s\n", name);
	}
	_exit(0);
}

/* Asks for the addresses of host; r->fd is to be polled for POLLIN. Returns -1 with errno. */
int
resolve_start(struct resolve *r, const char *host)
{
	int fd[2];

	resolve_cancel(r);
	if (pipe2(fd, O_CLOEXEC | O_NONBLOCK) == -1)
		return -1;
	r->pid = fork();
	if (r->pid == 0)
		child(fd[1], host);
	close(fd[1]);
	if (r->pid == -1) {
		close(fd[0]);
		return -1;
	}
	r->fd = fd[0];
	return 0;
}

static void
parse(struct resolve *r)
{
	char *rest = r->text, *line;

	if (r->len == 0) {
		r->error = "the resolver gave no answer";
		return;
	}
	if (*r->text == '!') {
		r->error = r->text + 1;
		return;
	}
	while ((line = strsep(&rest, "\n")) != NULL) {
		if (*line != '\0' && r->count < RESOLVE_MAX)
			r->address[r->count++] = line;
	}
}

/* Reads what came. True when the answer is whole: r->count addresses, or none and r->error. */
bool
resolve_read(struct resolve *r)
{
	ssize_t n;

	n = read(r->fd, r->text + r->len, sizeof(r->text) - 1 - r->len);
	if (n == -1 && (errno == EAGAIN || errno == EINTR))
		return false;
	if (n > 0) {
		r->len += (size_t)n;
		if (r->len < sizeof(r->text) - 1)
			return false;
	}
	r->text[r->len] = '\0';
	close(r->fd);
	r->fd = -1;
	parse(r);
	return true;
}

/* The loop has reaped that pid: it must not be killed any more, it may be another's by now. */
void
resolve_reaped(struct resolve *r, pid_t pid)
{
	if (r->pid == pid)
		r->pid = 0;
}

/* Forgets question and answer; a child that is still at it is killed, and reaped by the loop. */
void
resolve_cancel(struct resolve *r)
{
	if (r->fd != -1) {
		close(r->fd);
		if (r->pid > 0)
			kill(r->pid, SIGKILL);
	}
	resolve_init(r);
}
