/*
 * spool.db in the state directory, in SQLite: records that have been acknowledged to the broker and
 * are not yet known to be in the database. What goes in and out, and when, is spooling.c's.
 *
 * A commit here waits for the disk (WAL, synchronous=FULL): what is in is durable. A row keeps
 * stream, lane and seq of its records, so that after a kill -9 the progress rows of that stream say
 * what of it was committed although it is still here. Must never lose a row that is not known to be
 * committed, nor call one written that is not on the disk.
 */
#include "spool.h"

#include <stdio.h>
#include <string.h>

#include "failpoint.h"

/* What a row costs beside its records, about. */
#define ROW_BYTES 64

static const char schema[] =
    "CREATE TABLE spool (id INTEGER PRIMARY KEY, stream TEXT NOT NULL, lane INTEGER NOT NULL,"
    " first INTEGER NOT NULL, last INTEGER NOT NULL, count INTEGER NOT NULL,"
    " place INTEGER NOT NULL, records BLOB NOT NULL);"
    "CREATE INDEX spool_in_order ON spool (place, id);"
    "CREATE INDEX spool_of_lane ON spool (stream, lane, last);"
    /* What is known of streams that have been closed: up to done all is committed. */
    "CREATE TABLE closed (stream TEXT, lane INTEGER, done INTEGER NOT NULL,"
    " PRIMARY KEY (stream, lane)) WITHOUT ROWID;"
    "CREATE TABLE unreadable (id INTEGER PRIMARY KEY, stream TEXT NOT NULL, lane INTEGER NOT NULL,"
    " first INTEGER NOT NULL, last INTEGER NOT NULL, count INTEGER NOT NULL,"
    " place INTEGER NOT NULL, records BLOB NOT NULL);"
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;";

enum statement {
	BEGIN,
	COMMIT,
	PUT,
	NEXT,
	NEXT_OLD,
	REMOVE,
	COMMITTED_SUM,
	COMMITTED_REMOVE,
	HAS,
	UNCLOSED,
	CLOSE,
	CLIENT_GET,
	CLIENT_PUT,
	SET_ASIDE,
	STATEMENTS,
};

static const char *const sql[STATEMENTS] = {
    [BEGIN] = "BEGIN IMMEDIATE",
    [COMMIT] = "COMMIT",
    [PUT] = "INSERT INTO spool VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    [NEXT] = "SELECT id, first, last, count, records, place FROM spool WHERE stream = ? AND lane = "
	     "? AND "
	     "last > ? AND last <= ? ORDER BY last LIMIT 1",
    [NEXT_OLD] =
	"SELECT s.id, coalesce(c.done, 0), s.last, s.count, s.records, s.place FROM spool s LEFT "
	"JOIN closed c USING (stream, lane) WHERE s.stream <> ? AND (s.place, s.id) > (?, ?) ORDER "
	"BY s.place, s.id LIMIT 1",
    [REMOVE] = "DELETE FROM spool WHERE id = ?",
    [COMMITTED_SUM] = "SELECT coalesce(sum(length(records)), 0), coalesce(sum(count), 0), count(*) "
		      "FROM spool WHERE stream = ? AND lane = ? AND last <= ?",
    [COMMITTED_REMOVE] = "DELETE FROM spool WHERE stream = ? AND lane = ? AND last <= ?",
    [HAS] = "SELECT first FROM spool WHERE stream = ? AND lane = ? AND last >= ? ORDER BY last "
	    "LIMIT 1",
    [UNCLOSED] =
	"SELECT stream FROM spool s WHERE stream <> ? AND NOT EXISTS (SELECT 1 FROM closed "
	"c WHERE c.stream = s.stream) LIMIT 1",
    [CLOSE] = "INSERT OR REPLACE INTO closed VALUES (?, ?, ?)",
    [CLIENT_GET] = "SELECT value FROM meta WHERE key = 'client_id'",
    [CLIENT_PUT] = "INSERT OR REPLACE INTO meta VALUES ('client_id', ?)",
    [SET_ASIDE] = "INSERT OR REPLACE INTO unreadable SELECT * FROM spool WHERE id = ?",
};

_Static_assert(STATEMENTS <= DBFILE_STATEMENTS_MAX, "a dbfile has room for all statements");

static const char *
check(sqlite3 *db)
{
	return dbfile_number(db,
		   "SELECT count(*) FROM spool WHERE typeof(first) <> 'integer' OR typeof(last) <> "
		   "'integer' OR typeof(count) <> 'integer' OR typeof(records) <> 'blob' OR first "
		   "> "
		   "last OR count < 1 OR lane < 0") == 0
	    ? NULL
	    : "its rows make no sense";
}

static const struct dbfile_kind kind = {
    .name = "spool.db",
    .application_id = 0x696e6773, /* "ings" */
    .version = 1,
    .schema = schema,
    .pragmas = "PRAGMA page_size = 16384; PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = "
	       "256; PRAGMA synchronous = FULL; "
	       "PRAGMA temp_store = MEMORY",
    .put_aside_event = "spool_put_aside",
    .consequence = "going on with a new one; what the old one held was acknowledged to the broker "
		   "and is not stored: keep the file, sqlite3's .recover may read it",
    .sql = sql,
    .sql_count = STATEMENTS,
    .check = check,
};

/* ---- opening ---- */

/* As store_open(). All that is in it is old. */
int
spool_open(struct spool *s, const char *dir)
{
	int status;

	*s = (struct spool){0};
	status = dbfile_open(&s->file, &kind, dir);
	if (status != 0)
		return status;
	s->next_id = dbfile_number(s->file.db, "SELECT coalesce(max(id), 0) + 1 FROM spool");
	s->old_records =
	    (uint64_t)dbfile_number(s->file.db, "SELECT coalesce(sum(count), 0) FROM spool");
	s->bytes = (uint64_t)dbfile_number(
	    s->file.db, "SELECT coalesce(sum(length(records)), 0) + 64 * count(*) FROM spool");
	/* An old one that holds nothing may still be large. */
	s->used = true;
	dbfile_text(&s->file, CLIENT_GET, NULL, s->client_id, sizeof(s->client_id));
	return 0;
}

void
spool_close(struct spool *s)
{
	dbfile_close(&s->file);
}

/* ---- transactions: -1 stands for failure, with the reason in file.why ---- */

int
spool_begin(struct spool *s)
{
	return dbfile_run(&s->file, dbfile_statement(&s->file, BEGIN));
}

/* Returns when the disk has it. */
int
spool_commit(struct spool *s)
{
	if (FAILPOINT("before_spool_is_synced")) {
		snprintf(s->file.why, sizeof(s->file.why), "failpoint");
		return -1;
	}
	return dbfile_run(&s->file, dbfile_statement(&s->file, COMMIT));
}

/* Nothing of the transaction has happened. What was counted for it, the caller puts right. */
int
spool_roll_back(struct spool *s)
{
	return dbfile_undo(&s->file);
}

static sqlite3_stmt *
bind_lane(struct spool *s, int which, const char *stream, int lane)
{
	sqlite3_stmt *st = dbfile_statement(&s->file, which);

	if (st != NULL) {
		sqlite3_bind_text(st, 1, stream, -1, SQLITE_STATIC);
		sqlite3_bind_int(st, 2, lane);
	}
	return st;
}

/* Adds a row. place is 0 for behind all others. */
int
spool_put(struct spool *s, const char *stream, int lane, const struct burst *burst, int64_t place)
{
	sqlite3_stmt *st = dbfile_statement(&s->file, PUT);

	if (st == NULL)
		return -1;
	sqlite3_bind_int64(st, 1, s->next_id);
	sqlite3_bind_text(st, 2, stream, -1, SQLITE_STATIC);
	sqlite3_bind_int(st, 3, lane);
	sqlite3_bind_int64(st, 4, (int64_t)burst->first);
	sqlite3_bind_int64(st, 5, (int64_t)burst->last);
	sqlite3_bind_int64(st, 6, (int64_t)burst->count);
	sqlite3_bind_int64(st, 7, place > 0 ? place : s->next_id);
	sqlite3_bind_blob64(
	    st, 8, buffer_head(&burst->bytes), buffer_size(&burst->bytes), SQLITE_STATIC);
	if (dbfile_run(&s->file, st) == -1)
		return -1;
	s->next_id++;
	s->bytes += buffer_size(&burst->bytes) + ROW_BYTES;
	s->used = true;
	return 0;
}

static int
fill_row(struct spool *s, int which, sqlite3_stmt *st, struct spool_row *row)
{
	int rc = sqlite3_step(st);

	if (rc == SQLITE_ROW) {
		*row = (struct spool_row){
		    .id = sqlite3_column_int64(st, 0),
		    .first = (uint64_t)sqlite3_column_int64(st, 1),
		    .last = (uint64_t)sqlite3_column_int64(st, 2),
		    .count = (uint64_t)sqlite3_column_int64(st, 3),
		    .records = sqlite3_column_blob(st, 4),
		    .n = (size_t)sqlite3_column_bytes(st, 4),
		    .place = sqlite3_column_int64(st, 5),
		};
		return 1;
	}
	if (rc != SQLITE_DONE)
		dbfile_failed(&s->file, sql[which]);
	sqlite3_reset(st);
	return rc == SQLITE_DONE ? 0 : -1;
}

/*
 * The first row of a lane whose last record is behind after and not behind upto. Returns 1 with the
 * row, which is good until spool_done(); 0 if there is none.
 */
int
spool_next(struct spool *s, const char *stream, int lane, uint64_t after, uint64_t upto,
    struct spool_row *row)
{
	sqlite3_stmt *st = bind_lane(s, NEXT, stream, lane);

	if (st == NULL)
		return -1;
	sqlite3_bind_int64(st, 3, (int64_t)after);
	sqlite3_bind_int64(st, 4, upto > INT64_MAX ? INT64_MAX : (int64_t)upto);
	return fill_row(s, NEXT, st, row);
}

/*
 * The oldest row of an earlier stream behind the given one, whose place and id are looked at. Of
 * it, what is at or below row->first is committed.
 */
int
spool_next_old(
    struct spool *s, const char *own, const struct spool_row *behind, struct spool_row *row)
{
	sqlite3_stmt *st = dbfile_statement(&s->file, NEXT_OLD);

	if (st == NULL)
		return -1;
	sqlite3_bind_text(st, 1, own, -1, SQLITE_STATIC);
	sqlite3_bind_int64(st, 2, behind->place);
	sqlite3_bind_int64(st, 3, behind->id);
	return fill_row(s, NEXT_OLD, st, row);
}

/* The row of spool_next() or spool_next_old() is done with. */
void
spool_done(struct spool *s)
{
	if (s->file.statements[NEXT] != NULL)
		sqlite3_reset(s->file.statements[NEXT]);
	if (s->file.statements[NEXT_OLD] != NULL)
		sqlite3_reset(s->file.statements[NEXT_OLD]);
}

/* Removes one row. */
int
spool_remove(struct spool *s, const struct spool_row *row)
{
	sqlite3_stmt *st = dbfile_statement(&s->file, REMOVE);

	if (st == NULL)
		return -1;
	sqlite3_bind_int64(st, 1, row->id);
	if (dbfile_run(&s->file, st) == -1)
		return -1;
	spool_take_off(&s->bytes, row->n + ROW_BYTES);
	return 0;
}

/* Moves one row to where a person may look at it. */
int
spool_set_aside(struct spool *s, const struct spool_row *row)
{
	sqlite3_stmt *st = dbfile_statement(&s->file, SET_ASIDE);

	if (st == NULL || spool_begin(s) == -1)
		return -1;
	sqlite3_bind_int64(st, 1, row->id);
	if (dbfile_run(&s->file, st) == 0 && spool_remove(s, row) == 0 && spool_commit(s) == 0)
		return 0;
	return spool_roll_back(s);
}

/* Removes the rows of a lane up to a seq. Returns how many records were in them. */
int64_t
spool_remove_committed(struct spool *s, const char *stream, int lane, uint64_t upto)
{
	sqlite3_stmt *st = bind_lane(s, COMMITTED_SUM, stream, lane);
	int64_t bytes = 0, records = 0, rows = 0;

	if (st == NULL)
		return -1;
	sqlite3_bind_int64(st, 3, (int64_t)upto);
	if (sqlite3_step(st) != SQLITE_ROW) {
		dbfile_failed(&s->file, sql[COMMITTED_SUM]);
		sqlite3_reset(st);
		return -1;
	}
	bytes = sqlite3_column_int64(st, 0);
	records = sqlite3_column_int64(st, 1);
	rows = sqlite3_column_int64(st, 2);
	sqlite3_reset(st);
	if (rows == 0)
		return 0;
	st = bind_lane(s, COMMITTED_REMOVE, stream, lane);
	if (st == NULL)
		return -1;
	sqlite3_bind_int64(st, 3, (int64_t)upto);
	if (dbfile_run(&s->file, st) == -1)
		return -1;
	spool_take_off(&s->bytes, (uint64_t)(bytes + ROW_BYTES * rows));
	return records;
}

/* Returns 1 if the record is here, 0 if it is not. */
int
spool_has(struct spool *s, const char *stream, int lane, uint64_t seq)
{
	sqlite3_stmt *st = bind_lane(s, HAS, stream, lane);
	int rc, found;

	if (st == NULL)
		return -1;
	sqlite3_bind_int64(st, 3, (int64_t)seq);
	rc = sqlite3_step(st);
	found = rc == SQLITE_ROW && (uint64_t)sqlite3_column_int64(st, 0) <= seq;
	if (rc != SQLITE_ROW && rc != SQLITE_DONE)
		found = dbfile_failed(&s->file, sql[HAS]);
	sqlite3_reset(st);
	return found;
}

/* ---- earlier streams ---- */

/*
 * A stream, not own, of which it is not known what the database has. Returns 1 with it, 0 if there
 * is none, -1 with an empty one.
 */
int
spool_next_unclosed(struct spool *s, const char *own, char stream[STORE_STREAM_LENGTH + 1])
{
	return dbfile_text(&s->file, UNCLOSED, own, stream, STORE_STREAM_LENGTH + 1);
}

/*
 * The stream is closed in the database, and committed has the seq of each lane. Removes what is
 * committed, in one transaction. Returns how many records that were, -1 with the reason in why.
 */
int64_t
spool_close_stream(struct spool *s, const char *stream, const uint64_t *committed, int lanes)
{
	int64_t removed = 0, n;
	uint64_t bytes = s->bytes;
	sqlite3_stmt *st;
	int i;

	if (spool_begin(s) == -1)
		return -1;
	for (i = 0; i < lanes; i++) {
		n = committed[i] > 0 ? spool_remove_committed(s, stream, i, committed[i]) : 0;
		st = bind_lane(s, CLOSE, stream, i);
		if (st != NULL)
			sqlite3_bind_int64(st, 3, (int64_t)committed[i]);
		if (n == -1 || dbfile_run(&s->file, st) == -1)
			break;
		removed += n;
	}
	if (i == lanes && spool_commit(s) == 0) {
		spool_take_off(&s->old_records, (uint64_t)removed);
		return removed;
	}
	s->bytes = bytes;
	return spool_roll_back(s);
}

/* Whose messages these are. */
int
spool_note(struct spool *s, const char *client_id)
{
	sqlite3_stmt *st = dbfile_statement(&s->file, CLIENT_PUT);

	if (st == NULL)
		return -1;
	sqlite3_bind_text(st, 1, client_id, -1, SQLITE_STATIC);
	return dbfile_run(&s->file, st);
}

/* Nothing is in it any more: gives its room on the disk back. */
int
spool_shrink(struct spool *s)
{
	if (!s->used)
		return 0;
	s->used = false;
	s->bytes = 0;
	if (dbfile_exec(s->file.db,
		"DELETE FROM closed; VACUUM; PRAGMA wal_checkpoint(TRUNCATE)") != SQLITE_OK)
		return dbfile_failed(&s->file, "giving room back");
	return 0;
}
