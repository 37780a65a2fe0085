#ifndef SUPERVISOR_DBFILE_H
#define SUPERVISOR_DBFILE_H

#include <sqlite3.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* One kind of SQLite file in the state directory, of which only this process has one open. */
struct dbfile_kind {
	const char *name;
	int application_id; /* whose file it is: for us and for file(1) */
	int version;        /* of its tables; a newer one is not touched */
	const char *schema;
	const char *pragmas;
	const char *put_aside_event; /* for the log */
	const char *consequence;     /* of one that has been put aside */
	const char *const *sql;      /* the statements, by number */
	int sql_count;
	/* What is wrong with a file that SQLite finds sound, NULL if nothing. */
	const char *(*check)(sqlite3 *);
};

#define DBFILE_STATEMENTS_MAX 24

struct dbfile {
	const struct dbfile_kind *kind;
	const char *dir;
	sqlite3 *db;
	sqlite3_stmt *statements[DBFILE_STATEMENTS_MAX];
	char why[256]; /* of the last failure */
};

int dbfile_open(struct dbfile *, const struct dbfile_kind *, const char *dir);
void dbfile_close(struct dbfile *);
int dbfile_unusable(const struct dbfile *, const char *why, const char *next);
int dbfile_exec(sqlite3 *, const char *);
int64_t dbfile_number(sqlite3 *, const char *);
sqlite3_stmt *dbfile_statement(struct dbfile *, int which);
int dbfile_text(struct dbfile *, int which, const char *parameter, char *out, size_t size);
int dbfile_run(struct dbfile *, sqlite3_stmt *);
int dbfile_failed(struct dbfile *, const char *what);
int dbfile_undo(struct dbfile *);

#endif
