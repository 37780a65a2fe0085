#ifndef WORKER_LETTERS_DB_H
#define WORKER_LETTERS_DB_H

#include <stdbool.h>
#include <stdint.h>

#include "letters_bar.h"
#include "letters_options.h"
#include "pg.h"
#include "schema.h"

/* The connection of a command, and what may stop it. */
struct letters_db {
	struct pg pg;
	struct schema schema;
	const struct letters_options *options;
	int signals;
	int stopped_by; /* the signal that asked for an end, 0 if none has */
	struct letters_bar bar;
	bool in_doubt; /* the last transaction may have been committed or not */
};

enum letters_call {
	LETTERS_OK,
	LETTERS_REFUSED, /* pg.error says why; the connection is well */
	LETTERS_ENDED,   /* the connection has gone, or a signal has come and it was closed */
};

int letters_db_open(struct letters_db *, const struct letters_options *);
void letters_db_close(struct letters_db *);
enum letters_call letters_db_query(
    struct letters_db *, const char *sql, const char *const *params, int count);
enum letters_call letters_db_copy(struct letters_db *, const char *sql, const struct pg_copy *);
enum letters_call letters_db_commit(struct letters_db *);
bool letters_db_answer(struct letters_db *, char *, size_t);
bool letters_db_stopped(struct letters_db *);
int letters_db_fail(struct letters_db *, const char *what);
void letters_say(struct letters_db *, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
