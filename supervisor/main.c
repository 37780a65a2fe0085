/*
 * ingestd: options, configuration, state directory, then supervisor_run(); its result is the exit
 * status, which ingestd(8) documents and the tests hold to.
 */
#include <bsd/stdlib.h>
#include <bsd/unistd.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sysexits.h>
#include <unistd.h>

#include "children.h"
#include "config.h"
#include "log.h"
#include "state.h"
#include "supervisor.h"

static int
usage(const struct config_error *err)
{
	fprintf(stderr, "ingestd: %s\n", err->text);
	return EX_USAGE;
}

/* A descriptor 0, 1 or 2 that is closed would be given to a socket, and lines be logged into it. */
static void
open_standard_descriptors(void)
{
	int fd;

	do
		fd = open("/dev/null", O_RDWR);
	while (fd >= 0 && fd <= STDERR_FILENO);
	if (fd > STDERR_FILENO)
		close(fd);
}

static void
warn_of_unknown_variables(void)
{
	const char *variable;
	char name[128];
	int i = 0;

	while ((variable = config_unknown_variable(&i)) != NULL) {
		snprintf(name, sizeof(name), "%.*s", (int)strcspn(variable, "="), variable);
		log_warn("environment_unknown", LOG_S("variable", name),
		    LOG_S("reason", "there is no such option"),
		    LOG_S("next", "ignored; see ingestd --help"));
	}
}

/* --help and --version work whatever the environment holds. True if that was all. */
static bool
answered(int argc, char **argv)
{
	struct config_error err;
	enum config_action action;
	struct config cfg;

	if (config_init(&cfg) == -1)
		return false;
	action = config_from_arguments(&cfg, argc, argv, &err);
	config_free(&cfg);
	if (action == CONFIG_HELP)
		config_help(stdout);
	else if (action == CONFIG_VERSION)
		puts("ingestd " VERSION);
	else
		return false;
	return true;
}

/* What needs rows or the database runs in ingestd-writer: this program does not know libpq. */
static int
become_dead_letters(char **argv)
{
	open_standard_descriptors();
	children_become_writer(argv);
	fprintf(stderr,
	    "ingestd: dead-letters: cannot run ingestd-writer, which has to lie beside ingestd or "
	    "in "
	    "../libexec/ingestd: %s\n",
	    strerror(errno));
	return EX_CONFIG;
}

int
main(int argc, char **argv)
{
	struct config_error err = {.text = "out of memory"};
	struct config cfg;
	sigset_t stop;
	int rc;

	if (argc > 1 && strcmp(argv[1], "dead-letters") == 0)
		return become_dead_letters(argv);

	/* One that comes before the loop runs waits for it: nothing ends without its orderly lines.
	 */
	sigemptyset(&stop);
	sigaddset(&stop, SIGTERM);
	sigaddset(&stop, SIGINT);
	sigprocmask(SIG_BLOCK, &stop, NULL);
	open_standard_descriptors();
	if (answered(argc, argv))
		return 0;
	if (config_init(&cfg) == -1 || config_from_environment(&cfg, &err) == -1 ||
	    config_from_arguments(&cfg, argc, argv, &err) == CONFIG_BAD ||
	    config_check(&cfg, &err) == -1) {
		config_free(&cfg);
		return usage(&err);
	}

	/* Overwrites the arguments, which may hold passwords, as well. */
	setproctitle_init(argc, argv, environ);
	setproctitle("supervisor");
	log_init((enum log_level)cfg.log_level, (enum log_format)cfg.log_format);
	warn_of_unknown_variables();
	rc = state_open(&cfg);
	if (rc == 0)
		rc = supervisor_run(&cfg);
	config_free(&cfg);
	return rc;
}
