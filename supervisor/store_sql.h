#ifndef SUPERVISOR_STORE_SQL_H
#define SUPERVISOR_STORE_SQL_H

/* What store.c and store_open.c have of each other: the statements. */

#include <stddef.h>

#include "store.h"

/* Entries in a row of the list; a row is rewritten as a whole. */
#define STORE_BLOCK 256

/* meta: the boot of the machine in which the file was written, or that it has been synced since. */
#define STORE_BOOT "boot"
#define STORE_SYNCED "synced"

enum store_statement {
	STORE_BEGIN,
	STORE_COMMIT,
	STORE_BLOCK_PUT,
	STORE_BLOCKS_DELETE_BEFORE,
	STORE_BLOCKS_DELETE_FROM,
	STORE_META_PUT,
	STORE_META_GET,
	STORE_SESSION_PUT,
	STORE_SESSION_GET,
	STORE_STREAM_NOTE,
	STORE_STREAM_PUT,
	STORE_STREAM_END,
	STORE_STREAM_DATABASE,
	STORE_STREAM_DELETE,
	STORE_STREAM_PAST,
	STORE_STREAM_LIVE,
	STORE_STREAM_RUNNING,
	STORE_STREAM_NONE_RUNS,
	STORE_STREAM_RUN,
	STORE_STATEMENTS,
};

extern const char *const store_sql[STORE_STATEMENTS];

/* The value of a key, into out; empty if there is none. */
void store_get(struct store *, const char *key, char *out, size_t size);
/* A statement with up to three texts as its parameters. Returns -1 with the reason in why. */
int store_run_text(struct store *, int which, const char *, const char *, const char *);

#endif
