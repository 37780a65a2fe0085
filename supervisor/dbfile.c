/*
 * An SQLite file in the state directory: is it ours, sound, and of a version that we know? state.db
 * and spool.db are opened here.
 *
 * Must never change a file before it knows that it is ours, and never remove one that it cannot
 * read: that is kept under another name.
 */
#include "dbfile.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sysexits.h>
#include <time.h>
#include <unistd.h>

#include "log.h"

static const char damaged[] = "it is no SQLite database, or a damaged one";

/* The file cannot be used, and is not to be put aside either. Returns the status to exit with. */
int
dbfile_unusable(const struct dbfile *f, const char *why, const char *next)
{
	log_error("state_dir_unusable", LOG_S("state_dir", f->dir), LOG_S("file", f->kind->name),
	    LOG_S("reason", why), LOG_S("next", next));
	return EX_CANTCREAT;
}

/* Returns SQLite's code. */
int
dbfile_exec(sqlite3 *db, const char *text)
{
	return sqlite3_exec(db, text, NULL, NULL, NULL);
}

/* The one number that a statement gives; -1 when it fails. */
int64_t
dbfile_number(sqlite3 *db, const char *text)
{
	sqlite3_stmt *st;
	int64_t n = -1;

	if (sqlite3_prepare_v2(db, text, -1, &st, NULL) != SQLITE_OK)
		return -1;
	if (sqlite3_step(st) == SQLITE_ROW)
		n = sqlite3_column_int64(st, 0);
	sqlite3_finalize(st);
	return n;
}

static bool
is_sound(sqlite3 *db)
{
	sqlite3_stmt *st;
	bool ok = false;

	if (sqlite3_prepare_v2(db, "PRAGMA quick_check(1)", -1, &st, NULL) != SQLITE_OK)
		return false;
	if (sqlite3_step(st) == SQLITE_ROW)
		ok = strcmp((const char *)sqlite3_column_text(st, 0), "ok") == 0;
	sqlite3_finalize(st);
	return ok;
}

/* The file and its journal get another name: a person may want to look at them. */
static int
put_aside(const struct dbfile *f, const char *path, const char *why)
{
	static const char *const parts[] = {"", "-wal", "-shm", "-journal"};
	char from[PATH_MAX + 16], to[PATH_MAX + 48];
	long long number = (long long)time(NULL);
	size_t i;

	/* Not over one that was put aside in the same second. */
	do
		snprintf(to, sizeof(to), "%s.damaged-%lld", path, number++);
	while (access(to, F_OK) == 0);
	number--;
	for (i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
		snprintf(from, sizeof(from), "%s%s", path, parts[i]);
		snprintf(to, sizeof(to), "%s.damaged-%lld%s", path, number, parts[i]);
		if (rename(from, to) == -1 && (i == 0 || errno != ENOENT))
			return dbfile_unusable(
			    f, strerror(errno), "giving up; move it away by hand");
	}
	snprintf(to, sizeof(to), "%s.damaged-%lld", f->kind->name, number);
	log_error(f->kind->put_aside_event, LOG_S("state_dir", f->dir),
	    LOG_S("file", f->kind->name), LOG_S("reason", why), LOG_S("kept_as", to),
	    LOG_S("next", f->kind->consequence));
	return 0;
}

/* Returns SQLite's code. */
static int
make_tables(const struct dbfile_kind *kind, sqlite3 *db)
{
	char text[160];

	snprintf(text, sizeof(text), "PRAGMA application_id = %d; PRAGMA user_version = %d",
	    kind->application_id, kind->version);
	if (dbfile_exec(db, "BEGIN") != SQLITE_OK || dbfile_exec(db, kind->schema) != SQLITE_OK ||
	    dbfile_exec(db, text) != SQLITE_OK || dbfile_exec(db, "COMMIT") != SQLITE_OK)
		return sqlite3_errcode(db) != SQLITE_OK ? sqlite3_errcode(db) : SQLITE_ERROR;
	return SQLITE_OK;
}

/* Must not change anything yet: the file may be somebody else's. */
static int
open_untouched(const char *path, sqlite3 **db)
{
	int rc = sqlite3_open_v2(path, db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, NULL);

	/* Nor at the end, when SQLite would move its journal into it. */
	if (rc == SQLITE_OK)
		rc = sqlite3_db_config(*db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
	/* No shared memory: nobody else may have it open, we hold the directory's lock. */
	if (rc == SQLITE_OK)
		rc = dbfile_exec(
		    *db, "PRAGMA locking_mode = EXCLUSIVE; SELECT 1 FROM sqlite_schema");
	return rc;
}

/* Is it ours? What is wrong, NULL if nothing. *status is set when it is not to be put aside. */
static const char *
look(const struct dbfile *f, int64_t version, int *status)
{
	if (version > f->kind->version) {
		*status = dbfile_unusable(f, "a newer version of ingestd has written it",
		    "giving up; install that version, or choose another --state-dir");
		return "it is newer";
	}
	if (version <= 0 && dbfile_number(f->db, "SELECT count(*) FROM sqlite_schema") > 0)
		return "it is not ingestd's";
	if (version > 0 && dbfile_number(f->db, "PRAGMA application_id") != f->kind->application_id)
		return "it is not ingestd's";
	return NULL;
}

/* As look(), and makes a new one ready. */
static const char *
open_file(struct dbfile *f, const char *path, int *status)
{
	const char *wrong;
	int64_t version;
	int rc = open_untouched(path, &f->db);

	if (rc == SQLITE_OK) {
		version = dbfile_number(f->db, "PRAGMA user_version");
		wrong = look(f, version, status);
		if (wrong != NULL)
			return wrong;
		sqlite3_db_config(f->db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0, NULL);
		rc = dbfile_exec(f->db, f->kind->pragmas);
		if (rc == SQLITE_OK && version <= 0)
			rc = make_tables(f->kind, f->db);
	}
	if (rc == SQLITE_NOTADB || rc == SQLITE_CORRUPT)
		return damaged;
	if (rc != SQLITE_OK) {
		*status =
		    dbfile_unusable(f, f->db != NULL ? sqlite3_errmsg(f->db) : "out of memory",
			rc == SQLITE_BUSY
			    ? "giving up; another program has the file open"
			    : "giving up; make it writable for this user, with room on its disk");
		return "it cannot be opened";
	}
	return is_sound(f->db) ? NULL : "SQLite's check finds it damaged";
}

/* One that cannot be prepared misses its table, which is better known now than later. */
static const char *
prepare_all(struct dbfile *f)
{
	int i;

	for (i = 0; i < f->kind->sql_count; i++) {
		if (dbfile_statement(f, i) == NULL)
			return "its tables are not as they should be";
	}
	return f->kind->check != NULL ? f->kind->check(f->db) : NULL;
}

/*
 * Opens the file or makes it; one that is damaged or not ours is put aside. The directory must be
 * locked, and its name stay good. Returns 0, or the exit status with the reason logged.
 */
int
dbfile_open(struct dbfile *f, const struct dbfile_kind *kind, const char *dir)
{
	char path[PATH_MAX];
	const char *wrong;
	mode_t mask;
	int status = 0, turn;

	*f = (struct dbfile){.kind = kind, .dir = dir};
	if (snprintf(path, sizeof(path), "%s/%s", dir, kind->name) >= (int)sizeof(path))
		return dbfile_unusable(f, strerror(ENAMETOOLONG), "giving up");
	for (turn = 0;; turn++) {
		mask = umask(077);
		wrong = open_file(f, path, &status);
		umask(mask);
		if (wrong == NULL)
			wrong = prepare_all(f);
		if (wrong == NULL)
			return 0;
		dbfile_close(f);
		if (status != 0)
			return status;
		if (turn > 0)
			return dbfile_unusable(f, wrong, "giving up");
		status = put_aside(f, path, wrong);
		if (status != 0)
			return status;
	}
}

void
dbfile_close(struct dbfile *f)
{
	int i;

	for (i = 0; i < DBFILE_STATEMENTS_MAX; i++) {
		sqlite3_finalize(f->statements[i]);
		f->statements[i] = NULL;
	}
	sqlite3_close(f->db);
	f->db = NULL;
}

/* ---- statements ---- */

/* Keeps in why what SQLite says. Returns -1. */
int
dbfile_failed(struct dbfile *f, const char *what)
{
	snprintf(f->why, sizeof(f->why), "%s: %s", what, sqlite3_errmsg(f->db));
	return -1;
}

/* NULL with the reason in why. */
sqlite3_stmt *
dbfile_statement(struct dbfile *f, int which)
{
	const char *sql = f->kind->sql[which];

	if (f->statements[which] == NULL &&
	    sqlite3_prepare_v3(f->db, sql, -1, SQLITE_PREPARE_PERSISTENT, &f->statements[which],
		NULL) != SQLITE_OK)
		dbfile_failed(f, sql);
	return f->statements[which];
}

/* Runs a statement of which no row is wanted. Returns -1 with the reason in why. */
int
dbfile_run(struct dbfile *f, sqlite3_stmt *st)
{
	int rc;

	if (st == NULL)
		return -1;
	rc = sqlite3_step(st);
	if (rc != SQLITE_DONE && rc != SQLITE_ROW)
		dbfile_failed(f, sqlite3_sql(st));
	sqlite3_reset(st);
	sqlite3_clear_bindings(st);
	return rc == SQLITE_DONE || rc == SQLITE_ROW ? 0 : -1;
}

/*
 * The one text that a statement gives, into out; parameter is its only one, NULL if it has none.
 * Returns 1; 0 with an empty out if there is no row, -1 with the reason in why.
 */
int
dbfile_text(struct dbfile *f, int which, const char *parameter, char *out, size_t size)
{
	sqlite3_stmt *st = dbfile_statement(f, which);
	int rc;

	*out = '\0';
	if (st == NULL)
		return -1;
	if (parameter != NULL)
		sqlite3_bind_text(st, 1, parameter, -1, SQLITE_STATIC);
	rc = sqlite3_step(st);
	if (rc == SQLITE_ROW)
		snprintf(out, size, "%s", sqlite3_column_text(st, 0));
	else if (rc != SQLITE_DONE)
		dbfile_failed(f, sqlite3_sql(st));
	sqlite3_reset(st);
	return rc == SQLITE_ROW ? 1 : rc == SQLITE_DONE ? 0 : -1;
}

/* A transaction that has failed leaves nothing behind; why stays. Returns -1. */
int
dbfile_undo(struct dbfile *f)
{
	if (!sqlite3_get_autocommit(f->db))
		dbfile_exec(f->db, "ROLLBACK");
	return -1;
}
