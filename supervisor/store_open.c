/*
 * Opening state.db: its tables, whether its list makes sense, and whether it may be believed.
 *
 * Must never let a list be believed that may be older than what the broker knows.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dbfile.h"
#include "store_sql.h"

static const char schema[] =
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;"
    "CREATE TABLE session (id INTEGER PRIMARY KEY CHECK (id = 1), broker TEXT NOT NULL,"
    " client_id TEXT NOT NULL, filters TEXT NOT NULL);"
    "CREATE TABLE stream (stream TEXT PRIMARY KEY, live INTEGER NOT NULL,"
    " database TEXT NOT NULL DEFAULT '') WITHOUT ROWID;"
    "CREATE TABLE unacknowledged (block INTEGER PRIMARY KEY, first INTEGER NOT NULL,"
    " entries BLOB NOT NULL);";

/* Whole entries, in blocks of which each goes on where the one before ends. */
static const char *
check_list(sqlite3 *db)
{
	char text[400];

	snprintf(text, sizeof(text),
	    "SELECT count(*) FROM (SELECT block, first, length(entries) AS n, lag(first + "
	    "length(entries) / %zu) OVER (ORDER BY block) AS before FROM unacknowledged) WHERE "
	    "typeof(first) <> 'integer' OR n = 0 OR n %% %zu <> 0 OR first / %d <> block OR "
	    "(first + n / %zu - 1) / %d <> block OR before <> first",
	    sizeof(struct resume_entry), sizeof(struct resume_entry), STORE_BLOCK,
	    sizeof(struct resume_entry), STORE_BLOCK);
	return dbfile_number(db, text) == 0 ? NULL : "its list of messages makes no sense";
}

static char *
column(sqlite3_stmt *st, int i)
{
	const char *text = (const char *)sqlite3_column_text(st, i);

	return strdup(text != NULL ? text : "");
}

static void
read_notes(struct store *s)
{
	sqlite3_stmt *st;

	st = dbfile_statement(&s->file, STORE_SESSION_GET);
	if (sqlite3_step(st) == SQLITE_ROW) {
		s->session.known = true;
		s->session.broker = column(st, 0);
		s->session.client_id = column(st, 1);
		s->session.filters = column(st, 2);
	}
	sqlite3_reset(st);
	st = dbfile_statement(&s->file, STORE_STREAM_LIVE);
	if (sqlite3_step(st) == SQLITE_ROW) {
		snprintf(s->live, sizeof(s->live), "%s", sqlite3_column_text(st, 0));
		snprintf(s->database, sizeof(s->database), "%s", sqlite3_column_text(st, 1));
	}
	sqlite3_reset(st);
	dbfile_text(&s->file, STORE_STREAM_RUNNING, NULL, s->running, sizeof(s->running));
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
	if (dbfile_exec(s->file.db, "PRAGMA synchronous = FULL; BEGIN IMMEDIATE") != SQLITE_OK ||
	    (s->outdated && dbfile_exec(s->file.db, "DELETE FROM unacknowledged") != SQLITE_OK) ||
	    store_run_text(s, STORE_META_PUT, STORE_BOOT, boot, NULL) == -1 ||
	    dbfile_exec(s->file.db,
		"COMMIT; PRAGMA wal_checkpoint(TRUNCATE); PRAGMA synchronous = OFF") != SQLITE_OK) {
		snprintf(s->file.why, sizeof(s->file.why), "%s", sqlite3_errmsg(s->file.db));
		return -1;
	}
	return 0;
}

static const struct dbfile_kind kind = {
    .name = "state.db",
    .application_id = 0x696e6764, /* "ingd" */
    .version = 1,
    .schema = schema,
    .pragmas = "PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF; PRAGMA temp_store = MEMORY",
    .put_aside_event = "state_put_aside",
    .consequence =
	"going on with a new file; what the broker sends again is not recognised, so that "
	"duplicates are possible now, and losses are not",
    .sql = store_sql,
    .sql_count = STORE_STATEMENTS,
    .check = check_list,
};

/*
 * Opens state.db, or makes it. The directory must be locked, and its name stay good. Returns 0, or
 * the exit status with the reason logged.
 */
int
store_open(struct store *s, const char *dir)
{
	int status;

	*s = (struct store){.reuses_ids = -1};
	status = dbfile_open(&s->file, &kind, dir);
	if (status != 0)
		return status;
	read_notes(s);
	if (check_boot(s) == -1)
		status = dbfile_unusable(&s->file, s->file.why, "giving up; is the disk full?");
	return status;
}

void
store_close(struct store *s)
{
	dbfile_close(&s->file);
	free(s->session.broker);
	free(s->session.client_id);
	free(s->session.filters);
	*s = (struct store){0};
}
