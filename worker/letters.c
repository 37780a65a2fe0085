/*
 * `ingestd dead-letters`: what became of the messages that could not become rows, and what shall.
 * It runs in ingestd-writer, which ingestd becomes for it: the database is known only here.
 *
 * Must never show the arguments in the process list for longer than it takes to read them: they may
 * hold a password.
 */
#include "letters.h"

#include <bsd/stdlib.h>
#include <bsd/unistd.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sysexits.h>

#include "letters_db.h"
#include "letters_options.h"
#include "letters_text.h"

static int
usage(const struct config_error *err)
{
	char safe[sizeof(err->text) * LETTERS_TEXT_BYTES + 1];

	letters_text_fit(safe, sizeof(safe), err->text, sizeof(err->text));
	fprintf(stderr, "ingestd dead-letters: %s\n", safe);
	return EX_USAGE;
}

static int
run_command(struct letters_db *db)
{
	switch (db->options->command) {
	case LETTERS_LIST:
		return letters_list(db);
	case LETTERS_REPLAY:
		return letters_replay(db);
	default:
		return letters_discard(db);
	}
}

/* What was written has to arrive: a disk may be full, a pipe closed. */
static int
close_output(int rc)
{
	if (fflush(stdout) == 0 && ferror(stdout) == 0)
		return rc;
	fprintf(stderr, "ingestd dead-letters: cannot write the output: %s\n", strerror(errno));
	return rc == EX_OK ? EX_IOERR : rc;
}

/*
 * Runs the command of the arguments, of which the first is "dead-letters"; setproctitle_init() must
 * have been called. Returns the status to exit with.
 */
int
letters_run(int argc, char **argv)
{
	struct config_error err = {.text = "out of memory"};
	struct letters_options options;
	struct letters_db db;
	int rc;

	rc = letters_options_parse(&options, argc, argv, &err);
	if (rc == -1) {
		letters_options_free(&options);
		return usage(&err);
	}
	/* Overwrites the arguments. */
	setproctitle("dead-letters %s", letters_command_name(options.command));
	if (options.command == LETTERS_HELP) {
		letters_options_help(stdout);
	} else {
		rc = letters_db_open(&db, &options);
		if (rc == EX_OK)
			rc = run_command(&db);
		letters_db_close(&db);
	}
	letters_options_free(&options);
	return close_output(rc);
}
