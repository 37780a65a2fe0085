/*
 * The state directory: the lock that keeps a second instance out, the client id that must stay the
 * same, or the broker's queue for us is lost, and the name by which other instances know this one.
 *
 * Must never go on without the lock: two supervisors on one directory would undo each other's work.
 */
#include "state.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sysexits.h>
#include <unistd.h>
#include <uuid/uuid.h>

#include "log.h"

#define CLIENT_ID_MAX 65535

/* What --state-dir means when it is not given: systemd's, root's, or the user's own place. */
static char *
default_directory(void)
{
	const char *base;
	char *dir = NULL;

	base = getenv("STATE_DIRECTORY");
	if (base != NULL && *base != '\0')
		return strndup(base, strcspn(base, ":"));
	if (geteuid() == 0)
		return strdup("/var/lib/ingestd");
	base = getenv("XDG_STATE_HOME");
	if (base != NULL && *base == '/')
		return asprintf(&dir, "%s/ingestd", base) == -1 ? NULL : dir;
	base = getenv("HOME");
	if (base == NULL || *base != '/')
		return NULL;
	return asprintf(&dir, "%s/.local/state/ingestd", base) == -1 ? NULL : dir;
}

/* mkdir -p, private to us. */
static int
make_directory(const char *dir)
{
	char path[PATH_MAX], *p;

	if (strlen(dir) >= sizeof(path)) {
		errno = ENAMETOOLONG;
		return -1;
	}
	strcpy(path, dir);
	for (p = path + 1; *p != '\0'; p++) {
		if (*p != '/')
			continue;
		*p = '\0';
		if (mkdir(path, 0755) == -1 && errno != EEXIST)
			return -1;
		*p = '/';
	}
	return mkdir(path, 0700) == -1 && errno != EEXIST ? -1 : 0;
}

static int
open_directory(const char *dir)
{
	return open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

static int
refuse(const char *what, const char *dir, int e, const char *next)
{
	log_error("state_dir_unusable", LOG_S("state_dir", dir), LOG_S("step", what), LOG_ERRNO(e),
	    LOG_S("next", next));
	return EX_CANTCREAT;
}

/* The same of a file in it; errno says why. */
static int
refuse_file(const char *step, const char *file, const char *dir, const char *next)
{
	log_error("state_dir_unusable", LOG_S("state_dir", dir), LOG_S("file", file),
	    LOG_S("step", step), LOG_ERRNO(errno), LOG_S("next", next));
	return EX_CANTCREAT;
}

/* Takes the lock for as long as this process lives: the descriptor stays open on purpose. */
static int
take_lock(int dirfd, const char *dir)
{
	int fd = openat(dirfd, "lock", O_RDWR | O_CREAT | O_CLOEXEC, 0600);

	if (fd == -1)
		return refuse_file("open", "lock", dir,
		    "giving up; make the directory writable for this user or choose another with "
		    "--state-dir");
	if (flock(fd, LOCK_EX | LOCK_NB) == -1) {
		char pid[32] = "";
		ssize_t n = pread(fd, pid, sizeof(pid) - 1, 0);

		if (errno != EWOULDBLOCK)
			return refuse_file("lock", "lock", dir, "giving up");
		pid[n > 0 ? strcspn(pid, "\n") : 0] = '\0';
		log_error("state_dir_held", LOG_S("state_dir", dir), LOG_S("holder_pid", pid),
		    LOG_S("reason", "another ingestd is running on this state directory"),
		    LOG_S("next",
			"giving up; stop the other one, or give this one its own --state-dir"));
		return EX_TEMPFAIL;
	}
	if (ftruncate(fd, 0) == -1 || dprintf(fd, "%d\n", (int)getpid()) < 0)
		return refuse_file("write", "lock", dir, "giving up; is the disk full?");
	return 0;
}

/*
 * Written aside and moved into place: half a file would be another file. It survives the host's
 * death as well.
 */
static int
replace_file(int dirfd, const char *name, const void *data, size_t n)
{
	char aside[64];
	int fd, rc;

	snprintf(aside, sizeof(aside), "%s.new", name);
	fd = openat(dirfd, aside, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd == -1)
		return -1;
	rc = write(fd, data, n) == (ssize_t)n && fsync(fd) == 0 ? 0 : -1;
	close(fd);
	if (rc == 0)
		rc = renameat(dirfd, aside, dirfd, name);
	return rc == 0 ? fsync(dirfd) : rc;
}

/* A name that is made once and kept: the prefix and a UUID. */
static int
make_name(int dirfd, const char *dir, const char *file, const char *prefix, char **name)
{
	char text[64];
	uuid_t uuid;
	size_t n = (size_t)snprintf(text, sizeof(text), "%s", prefix);

	uuid_generate(uuid);
	uuid_unparse_lower(uuid, text + n);
	*name = strdup(text);
	strcat(text, "\n");
	if (*name == NULL || replace_file(dirfd, file, text, strlen(text)) == -1)
		return refuse_file("write", file, dir, "giving up");
	return 0;
}

/* The name in the file, which is made if it is not there. */
static int
read_name(int dirfd, const char *dir, const char *file, const char *prefix, char **name)
{
	static char text[CLIENT_ID_MAX + 2];
	int fd = openat(dirfd, file, O_RDONLY | O_CLOEXEC);
	ssize_t n;

	if (fd == -1 && errno == ENOENT)
		return make_name(dirfd, dir, file, prefix, name);
	if (fd == -1)
		return refuse_file("read", file, dir, "giving up");
	n = read(fd, text, sizeof(text) - 1);
	close(fd);
	text[n > 0 ? n : 0] = '\0';
	text[strcspn(text, "\n")] = '\0';
	if (*text == '\0') {
		log_error("state_dir_unusable", LOG_S("state_dir", dir), LOG_S("file", file),
		    LOG_S("reason", "the file is empty"),
		    LOG_S("next",
			"giving up; write the name into it, or remove it to get a new one: with a "
			"new client-id comes a new session at the broker"));
		return EX_CANTCREAT;
	}
	*name = strdup(text);
	return *name != NULL ? 0 : refuse_file("read", file, dir, "giving up");
}

/*
 * Makes the directory if need be, takes its lock and fills in state_dir, client_id and instance.
 * Returns 0, or the exit status, with the reason logged: 73 cannot be made, read or written, 75
 * held by another instance.
 */
int
state_open(struct config *cfg)
{
	int dirfd, rc;

	if (cfg->state_dir == NULL)
		cfg->state_dir = default_directory();
	if (cfg->state_dir == NULL) {
		log_error("state_dir_unusable",
		    LOG_S("reason", "neither STATE_DIRECTORY nor XDG_STATE_HOME nor HOME is set"),
		    LOG_S("next", "giving up; give --state-dir"));
		return EX_CANTCREAT;
	}
	if (make_directory(cfg->state_dir) == -1)
		return refuse("make it", cfg->state_dir, errno,
		    "giving up; make it by hand for this user or choose another with --state-dir");
	dirfd = open_directory(cfg->state_dir);
	if (dirfd == -1)
		return refuse("open it", cfg->state_dir, errno,
		    "giving up; choose a directory with --state-dir");
	rc = take_lock(dirfd, cfg->state_dir);
	if (rc == 0 && cfg->client_id == NULL)
		rc = read_name(dirfd, cfg->state_dir, "client-id", "ingestd-", &cfg->client_id);
	if (rc == 0)
		rc = read_name(dirfd, cfg->state_dir, "instance", "", &cfg->instance);
	close(dirfd);
	return rc;
}
