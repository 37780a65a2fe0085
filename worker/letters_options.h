#ifndef WORKER_LETTERS_OPTIONS_H
#define WORKER_LETTERS_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "config.h"

enum letters_command {
	LETTERS_HELP,
	LETTERS_LIST,
	LETTERS_REPLAY,
	LETTERS_DISCARD,
};

/* Owned by the struct until letters_options_free(). Of cfg only database, table and batch_size are
 * meant. */
struct letters_options {
	enum letters_command command;
	struct config cfg;
	char *topic;  /* NULL if none was given, as the next two */
	char *since;  /* as given */
	int64_t *ids; /* NULL if none was given */
	size_t id_count;
	bool json;
	bool yes;
};

int letters_options_parse(struct letters_options *, int, char **, struct config_error *);
const char *letters_command_name(enum letters_command);
void letters_options_help(FILE *);
void letters_options_free(struct letters_options *);

#endif
