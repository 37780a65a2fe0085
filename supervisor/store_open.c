/*
 * Opening state.db: is it ours, sound, and of a version that we know?
 *
 * Must never change a file before it knows that it is ours, and never remove one that it cannot
 * read: that is kept under another name.
 */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sysexits.h>
#include <time.h>
#include <unistd.h>

#include "log.h"
#include "store_sql.h"

#define FILE_NAME "state.db"
#define VERSION_OF_FILE 1
/* "ingd": tells file(1), and us, whose file it is. */
#define APPLICATION_ID 0x696e6764

static const char schema[] =
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;"
    "CREATE TABLE session (id INTEGER PRIMARY KEY CHECK (id = 1), broker TEXT NOT NULL,"
    " client_id TEXT NOT NULL, filters TEXT NOT NULL);"
    "CREATE TABLE stream (stream TEXT PRIMARY KEY, live INTEGER NOT NULL,"
    " database TEXT NOT NULL DEFAULT '') WITHOUT ROWID;"
    "CREATE TABLE unacknowledged (block INTEGER PRIMARY KEY, first INTEGER NOT NULL,"
    " entries BLOB NOT NULL);";

static int
unusable(const struct store *s, const char *why, const char *next)
{
	log_error("state_dir_unusable", LOG_S("state_dir", s->dir), LOG_S("file", FILE_NAME),
	    LOG_S("reason", why), LOG_S("next", next));
	return EX_CANTCREAT;
}

static void
close_file(struct store *s)
{
	int i;

	for (i = 0; i < STORE_STATEMENTS; i++) {
		sqlite3_finalize(s->statements[i]);
		s->statements[i] = NULL;
	}
	sqlite3_close(s->db);
	s->db = NULL;
}

static int
exec(struct store *s, const char *text)
{
	return sqlite3_exec(s->db, text, NULL, NULL, NULL);
}

/* The one number that a statement gives; -1 when it fails. */
static int64_t
number(struct store *s, const char *text)
{
	sqlite3_stmt *st;
	int64_t n = -1;

	if (sqlite3_prepare_v2(s->db, text, -1, &st, NULL) != SQLITE_OK)
		return -1;
	if (sqlite3_step(st) == SQLITE_ROW)
		n = sqlite3_column_int64(st, 0);
	sqlite3_finalize(st);
	return n;
}

static bool
is_sound(struct store *s)
{
	sqlite3_stmt *st;
	bool ok = false;

	if (sqlite3_prepare_v2(s->db, "PRAGMA quick_check(1)", -1, &st, NULL) != SQLITE_OK)
		return false;
	if (sqlite3_step(st) == SQLITE_ROW)
		ok = strcmp((const char *)sqlite3_column_text(st, 0), "ok") == 0;
	sqlite3_finalize(st);
	return ok;
}

/* Whole entries, in blocks of which each goes on where the one before ends. */
static bool
has_sound_list(struct store *s)
{
	char text[400];

	snprintf(text, sizeof(text),
	    "SELECT count(*) FROM (SELECT block, first, length(entries) AS n, lag(first + "
	    "length(entries) / %zu) OVER (ORDER BY block) AS before FROM unacknowledged) WHERE "
	    "typeof(first) <> 'integer' OR n = 0 OR n %% %zu <> 0 OR first / %d <> block OR "
	    "(first + n / %zu - 1) / %d <> block OR before <> first",
	    sizeof(struct resume_entry), sizeof(struct resume_entry), STORE_BLOCK,
	    sizeof(struct resume_entry), STORE_BLOCK);
	return number(s, text) == 0;
}

/* The file and its journal get another name: a person may want to look at them. */
static int
put_aside(struct store *s, const char *path, const char *why)
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
			return unusable(s, strerror(errno), "giving up; move it away by hand");
	}
	snprintf(to, sizeof(to), FILE_NAME ".damaged-%lld", number);
	log_error("state_put_aside", LOG_S("state_dir", s->dir), LOG_S("file", FILE_NAME),
	    LOG_S("reason", why), LOG_S("kept_as", to),
	    LOG_S("next",
		"going on with a new file; what the broker sends again is not recognised, so that "
		"duplicates are possible now, and losses are not"));
	return 0;
}

/* Returns SQLite's code. */
static int
make_file(struct store *s)
{
	char text[160];

	snprintf(text, sizeof(text), "PRAGMA application_id = %d; PRAGMA user_version = %d",
	    APPLICATION_ID, VERSION_OF_FILE);
	if (exec(s, "BEGIN") != SQLITE_OK || exec(s, schema) != SQLITE_OK ||
	    exec(s, text) != SQLITE_OK || exec(s, "COMMIT") != SQLITE_OK)
		return sqlite3_errcode(s->db) != SQLITE_OK ? sqlite3_errcode(s->db) : SQLITE_ERROR;
	return SQLITE_OK;
}

/* Must not change anything yet: the file may be somebody else's. */
static int
open_untouched(struct store *s, const char *path)
{
	int rc = sqlite3_open_v2(
	    path, (sqlite3 **)&s->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, NULL);

	/* Nor at the end, when SQLite would move its journal into it. */
	if (rc == SQLITE_OK)
		rc = sqlite3_db_config(s->db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
	/* No shared memory: nobody else may have it open, we hold the directory's lock. */
	if (rc == SQLITE_OK)
		rc = exec(s, "PRAGMA locking_mode = EXCLUSIVE; SELECT 1 FROM sqlite_schema");
	return rc;
}

/* What is wrong with the file, NULL if nothing. *status is set when it is not to be put aside. */
static const char *
open_file(struct store *s, const char *path, int *status)
{
	int64_t version;
	int rc = open_untouched(s, path);

	if (rc == SQLITE_NOTADB || rc == SQLITE_CORRUPT)
		return "it is no SQLite database, or a damaged one";
	if (rc == SQLITE_OK) {
		version = number(s, "PRAGMA user_version");
		if (version > VERSION_OF_FILE) {
			*status = unusable(s, "a newer version of ingestd has written it",
			    "giving up; install that version, or choose another --state-dir");
			return s->why;
		}
		if (version <= 0 && number(s, "SELECT count(*) FROM sqlite_schema") > 0)
			return "it is not ingestd's";
		if (version > 0 && number(s, "PRAGMA application_id") != APPLICATION_ID)
			return "it is not ingestd's";
		sqlite3_db_config(s->db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0, NULL);
		rc = exec(s,
		    "PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF; "
		    "PRAGMA temp_store = MEMORY");
		if (rc == SQLITE_OK && version <= 0)
			rc = make_file(s);
	}
	if (rc == SQLITE_NOTADB || rc == SQLITE_CORRUPT)
		return "it is no SQLite database, or a damaged one";
	if (rc != SQLITE_OK) {
		*status = unusable(s, s->db != NULL ? sqlite3_errmsg(s->db) : "out of memory",
		    rc == SQLITE_BUSY
			? "giving up; another program has the file open"
			: "giving up; make it writable for this user, with room on its disk");
		return s->why;
	}
	if (!is_sound(s))
		return "SQLite's check finds it damaged";
	return has_sound_list(s) ? NULL : "its list of messages makes no sense";
}

static char *
column(sqlite3_stmt *st, int i)
{
	const char *text = (const char *)sqlite3_column_text(st, i);

	return strdup(text != NULL ? text : "");
}

static int
read_notes(struct store *s)
{
	sqlite3_stmt *st;
	int i;

	/* One that cannot be prepared misses its table, which is better known now than later. */
	for (i = 0; i < STORE_STATEMENTS; i++) {
		if (store_prepared(s, i) == NULL)
			return -1;
	}
	st = store_prepared(s, STORE_SESSION_GET);
	if (sqlite3_step(st) == SQLITE_ROW) {
		s->session.known = true;
		s->session.broker = column(st, 0);
		s->session.client_id = column(st, 1);
		s->session.filters = column(st, 2);
	}
	sqlite3_reset(st);
	st = store_prepared(s, STORE_STREAM_LIVE);
	if (sqlite3_step(st) == SQLITE_ROW) {
		snprintf(s->live, sizeof(s->live), "%s", sqlite3_column_text(st, 0));
		snprintf(s->database, sizeof(s->database), "%s", sqlite3_column_text(st, 1));
	}
	sqlite3_reset(st);
	return 0;
}

/*
 * Nothing was synced while it was written. Of a machine that has lost its power it may be any
 * earlier state, whose list tells of messages that are long since done with, and must not be
 * believed: ids come again.
 */
static int
check_boot(struct store *s)
{
	char boot[64] = "", before[64];
	FILE *f = fopen("/proc/sys/kernel/random/boot_id", "re");

	if (f != NULL) {
		if (fgets(boot, sizeof(boot), f) != NULL)
			boot[strcspn(boot, "\n")] = '\0';
		fclose(f);
	}
	store_get(s, STORE_BOOT, before, sizeof(before));
	if (strcmp(before, boot) == 0)
		return 0;
	s->outdated = before[0] != '\0' && strcmp(before, STORE_SYNCED) != 0;
	/* Both at once and for good: with this boot's name on it the list is believed. */
	if (exec(s, "PRAGMA synchronous = FULL; BEGIN IMMEDIATE") != SQLITE_OK ||
	    (s->outdated && exec(s, "DELETE FROM unacknowledged") != SQLITE_OK) ||
	    store_run_text(s, STORE_META_PUT, STORE_BOOT, boot, NULL) == -1 ||
	    exec(s, "COMMIT; PRAGMA wal_checkpoint(TRUNCATE); PRAGMA synchronous = OFF") !=
		SQLITE_OK) {
		snprintf(s->why, sizeof(s->why), "%s", sqlite3_errmsg(s->db));
		return -1;
	}
	return 0;
}

/*
 * Opens state.db, or makes it. The directory must be locked, and its name stay good. Returns 0, or
 * the exit status with the reason logged.
 */
int
store_open(struct store *s, const char *dir)
{
	char path[PATH_MAX];
	const char *wrong;
	mode_t mask;
	int status = 0, turn;

	*s = (struct store){.dir = dir, .reuses_ids = -1};
	if (snprintf(path, sizeof(path), "%s/" FILE_NAME, dir) >= (int)sizeof(path))
		return unusable(s, strerror(ENAMETOOLONG), "giving up");
	for (turn = 0;; turn++) {
		mask = umask(077);
		wrong = open_file(s, path, &status);
		umask(mask);
		if (wrong == NULL && read_notes(s) == -1)
			wrong = "its tables are not as they should be";
		if (wrong == NULL && check_boot(s) == -1)
			status = unusable(s, s->why, "giving up; is the disk full?");
		else if (wrong == NULL)
			return 0;
		close_file(s);
		if (status != 0)
			return status;
		if (turn > 0)
			return unusable(s, wrong, "giving up");
		status = put_aside(s, path, wrong);
		if (status != 0)
			return status;
	}
}

void
store_close(struct store *s)
{
	close_file(s);
	free(s->session.broker);
	free(s->session.client_id);
	free(s->session.filters);
	*s = (struct store){0};
}
