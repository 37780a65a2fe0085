/*
 * state.db in the state directory, in SQLite: the list of messages that the broker may send again,
 * the streams whose progress rows are still in the database, and what is known of the session.
 *
 * A process's death keeps the page cache, so nothing here waits for a disk before the end
 * (synchronous=OFF): what a power cut leaves may be damaged or old, and is recognised at the start.
 * Must never let intake go on as if a failed write had happened, and never remove a file that it
 * cannot read.
 */
#include "store.h"

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "failpoint.h"
#include "log.h"
#include "store_sql.h"

const char *const store_sql[STORE_STATEMENTS] = {
    [STORE_BEGIN] = "BEGIN IMMEDIATE",
    [STORE_COMMIT] = "COMMIT",
    [STORE_BLOCK_PUT] = "INSERT OR REPLACE INTO unacknowledged VALUES (?, ?, ?)",
    [STORE_BLOCKS_DELETE_BEFORE] = "DELETE FROM unacknowledged WHERE block < ?",
    [STORE_BLOCKS_DELETE_FROM] = "DELETE FROM unacknowledged WHERE block >= ?",
    [STORE_META_PUT] = "INSERT OR REPLACE INTO meta VALUES (?, ?)",
    [STORE_META_GET] = "SELECT value FROM meta WHERE key = ?",
    [STORE_SESSION_PUT] = "INSERT OR REPLACE INTO session VALUES (1, ?, ?, ?)",
    [STORE_SESSION_GET] = "SELECT broker, client_id, filters FROM session",
    [STORE_STREAM_NOTE] = "INSERT OR IGNORE INTO stream (stream, live) VALUES (?, 0)",
    [STORE_STREAM_PUT] = "INSERT OR REPLACE INTO stream (stream, live) VALUES (?, 1)",
    [STORE_STREAM_END] = "UPDATE stream SET live = 0",
    [STORE_STREAM_DATABASE] = "UPDATE stream SET database = ? WHERE live = 1",
    [STORE_STREAM_DELETE] = "DELETE FROM stream WHERE stream = ?",
    [STORE_STREAM_PAST] = "SELECT stream FROM stream WHERE NOT live AND stream <> ? LIMIT 1",
    [STORE_STREAM_LIVE] = "SELECT stream, database FROM stream WHERE live = 1",
    /* 2: it began while the live one was in doubt, and has sent nothing to a writer. */
    [STORE_STREAM_RUNNING] = "SELECT stream FROM stream WHERE live = 2",
    [STORE_STREAM_NONE_RUNS] = "UPDATE stream SET live = 0 WHERE live = 2",
    [STORE_STREAM_RUN] = "UPDATE stream SET live = 2 WHERE stream = ?",
};

_Static_assert(STORE_STATEMENTS <= DBFILE_STATEMENTS_MAX, "a dbfile has room for all statements");

/* ---- statements ---- */

/* A statement with up to three texts as its parameters. */
int
store_run_text(struct store *s, int which, const char *a, const char *b, const char *c)
{
	const char *const texts[] = {a, b, c};
	sqlite3_stmt *st = dbfile_statement(&s->file, which);
	int i;

	if (st == NULL)
		return -1;
	for (i = 0; i < 3 && texts[i] != NULL; i++)
		sqlite3_bind_text(st, i + 1, texts[i], -1, SQLITE_STATIC);
	return dbfile_run(&s->file, st);
}

static int
run_number(struct store *s, int which, int64_t n)
{
	sqlite3_stmt *st = dbfile_statement(&s->file, which);

	if (st == NULL)
		return -1;
	sqlite3_bind_int64(st, 1, n);
	return dbfile_run(&s->file, st);
}

/* Returns -1. */
static int
undo(struct store *s)
{
	s->reuses_ids = -1;
	return dbfile_undo(&s->file);
}

void
store_get(struct store *s, const char *key, char *out, size_t size)
{
	dbfile_text(&s->file, STORE_META_GET, key, out, size);
}

/* At the end: waits for the disk, so that the file outlives the machine. -1 with the reason in why.
 */
int
store_sync(struct store *s)
{
	if (sqlite3_exec(s->file.db, "PRAGMA synchronous = FULL", NULL, NULL, NULL) != SQLITE_OK)
		return dbfile_failed(&s->file, "PRAGMA synchronous");
	return store_run_text(s, STORE_META_PUT, STORE_BOOT, STORE_SYNCED, NULL);
}

/* ---- the list ---- */

/* The list could not be believed and is gone: its stream is past, and nobody need close it. */
static void
give_list_up(struct store *s)
{
	log_warn("state_outdated", LOG_S("state_dir", s->file.dir),
	    LOG_S("reason",
		"the machine has been started anew, and the list of messages that the broker may "
		"send again was not synced before"),
	    LOG_S("next",
		"going on without it; what was received and not acknowledged is stored again: "
		"duplicates are possible, losses are not"));
	s->live[0] = '\0';
}

/* Reads the list of the run before. Returns -1 with the reason in why. */
int
store_load(struct store *s, struct resume *r)
{
	sqlite3_stmt *st;
	char value[8];
	int rc;

	store_get(s, "reuses_ids", value, sizeof(value));
	r->reuses_ids = strcmp(value, "1") == 0;
	if (s->outdated)
		give_list_up(s);
	if (sqlite3_prepare_v2(s->file.db,
		"SELECT first, entries FROM unacknowledged ORDER BY block", -1, &st,
		NULL) != SQLITE_OK)
		return dbfile_failed(&s->file, "reading the list");
	while ((rc = sqlite3_step(st)) == SQLITE_ROW) {
		if (resume_load(r, (uint64_t)sqlite3_column_int64(st, 0),
			sqlite3_column_blob(st, 1),
			(size_t)sqlite3_column_bytes(st, 1) / sizeof(struct resume_entry)) == -1) {
			snprintf(s->file.why, sizeof(s->file.why), "%s", strerror(errno));
			break;
		}
	}
	if (rc != SQLITE_DONE && rc != SQLITE_ROW)
		dbfile_failed(&s->file, "reading the list");
	sqlite3_finalize(st);
	return rc == SQLITE_DONE ? 0 : -1;
}

static int
put_block(struct store *s, const struct resume *r, uint64_t block)
{
	struct resume_entry entries[STORE_BLOCK];
	sqlite3_stmt *st = dbfile_statement(&s->file, STORE_BLOCK_PUT);
	uint64_t from = block * STORE_BLOCK, to = from + STORE_BLOCK, at;

	if (st == NULL)
		return -1;
	from = from < r->head ? r->head : from;
	to = to > r->tail ? r->tail : to;
	for (at = from; at < to; at++)
		entries[at - from] = *resume_at(r, at);
	sqlite3_bind_int64(st, 1, (int64_t)block);
	sqlite3_bind_int64(st, 2, (int64_t)from);
	sqlite3_bind_blob(st, 3, entries, (int)((to - from) * sizeof(entries[0])), SQLITE_STATIC);
	return dbfile_run(&s->file, st);
}

static int
put_changes(struct store *s, const struct resume *r)
{
	uint64_t from = r->dirty_from, to = r->dirty_to, block;

	/* Behind a new end there are rows of the old one. */
	if (r->cut) {
		if (run_number(s, STORE_BLOCKS_DELETE_FROM, (int64_t)(r->tail / STORE_BLOCK)) == -1)
			return -1;
		if (from >= to)
			from = to = r->tail;
		if (from > r->tail - r->tail % STORE_BLOCK)
			from = r->tail - r->tail % STORE_BLOCK;
		to = r->tail;
	}
	from = from < r->head ? r->head : from;
	if (run_number(s, STORE_BLOCKS_DELETE_BEFORE,
		(int64_t)((r->head < r->tail ? r->head : r->head + STORE_BLOCK) / STORE_BLOCK)) ==
	    -1)
		return -1;
	for (block = from / STORE_BLOCK; from < to && block <= (to - 1) / STORE_BLOCK; block++) {
		if (put_block(s, r, block) == -1)
			return -1;
	}
	return 0;
}

static int
put_reuses_ids(struct store *s, const struct resume *r)
{
	if (s->reuses_ids == r->reuses_ids)
		return 0;
	s->reuses_ids = -1;
	if (store_run_text(s, STORE_META_PUT, "reuses_ids", r->reuses_ids ? "1" : "0", NULL) == -1)
		return -1;
	s->reuses_ids = r->reuses_ids;
	return 0;
}

/*
 * What has changed, and two statements about a stream, if it is not NULL: what is put out, and what
 * it is from here on.
 */
static int
transaction(struct store *s, struct resume *r, const char *stream, int out, int in)
{
	if (store_run_text(s, STORE_BEGIN, NULL, NULL, NULL) == -1)
		return -1;
	if (put_changes(s, r) == -1 || put_reuses_ids(s, r) == -1 ||
	    (stream != NULL &&
		(store_run_text(s, out, NULL, NULL, NULL) == -1 ||
		    store_run_text(s, in, stream, NULL, NULL) == -1)) ||
	    store_run_text(s, STORE_COMMIT, NULL, NULL, NULL) == -1)
		return undo(s);
	r->dirty_from = r->dirty_to = 0;
	r->cut = r->proven = false;
	return 0;
}

/* Writes what has changed. Returns -1 with the reason in why; what has changed is then kept. */
int
store_save(struct store *s, struct resume *r)
{
	if (FAILPOINT("after_read_before_note")) {
		snprintf(s->file.why, sizeof(s->file.why), "failpoint");
		return -1;
	}
	return transaction(s, r, NULL, 0, 0);
}

/* ---- streams and session ---- */

/* A new stream, of which there may be progress rows from now on. */
int
store_note_stream(struct store *s, const char *stream)
{
	return store_run_text(s, STORE_STREAM_NOTE, stream, NULL, NULL);
}

/*
 * The stream before is closed and its entries are settled: from here on this one is live. Both at
 * once, since a live entry is one of the live stream. Returns -1 with the reason in why.
 */
int
store_begin_stream(struct store *s, const char *stream, struct resume *r)
{
	if (FAILPOINT("after_close_before_note")) {
		snprintf(s->file.why, sizeof(s->file.why), "failpoint");
		return -1;
	}
	return transaction(s, r, stream, STORE_STREAM_END, STORE_STREAM_PUT);
}

/*
 * The stream before cannot be closed now, and this one begins all the same: entries in doubt are of
 * that one, live ones of this. As above.
 */
int
store_run_in_doubt(struct store *s, const char *stream, struct resume *r)
{
	if (FAILPOINT("before_doubt_is_noted")) {
		snprintf(s->file.why, sizeof(s->file.why), "failpoint");
		return -1;
	}
	return transaction(s, r, stream, STORE_STREAM_NONE_RUNS, STORE_STREAM_RUN);
}

/* Where the live stream is written. */
int
store_note_database(struct store *s, const char *database)
{
	return store_run_text(s, STORE_STREAM_DATABASE, database, NULL, NULL);
}

/* Its progress rows are gone. */
int
store_forget_stream(struct store *s, const char *stream)
{
	return store_run_text(s, STORE_STREAM_DELETE, stream, NULL, NULL);
}

/* A stream, not own, that has ended and whose progress rows may still be there. Returns 0 if there
 * is none.
 */
int
store_next_past(struct store *s, const char *own, char stream[STORE_STREAM_LENGTH + 1])
{
	return dbfile_text(&s->file, STORE_STREAM_PAST, own, stream, STORE_STREAM_LENGTH + 1);
}

/* What the broker has of us, or will have. Returns -1 with the reason in why. */
int
store_save_session(struct store *s, const char *broker, const char *client_id, const char *filters)
{
	return store_run_text(s, STORE_SESSION_PUT, broker, client_id, filters);
}
