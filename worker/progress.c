/*
 * The progress rows, as SQL text: one row a stream and lane, which says up to which seq everything
 * is committed. It is moved in the transaction of the rows that it speaks of, so that a commit
 * whose answer was lost can be looked up, and whoever finds it closed, gone or moved may commit
 * nothing.
 *
 * Pure: no connection, no decisions. Must never put anything but numbers and checked UUIDs into
 * SQL.
 */
#include "progress.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* How long a predecessor may hold the row, before its backend is ended. */
#define LOCK_TIMEOUT "SET LOCAL lock_timeout = '5s'; "
/* A backend whose writer's host has gone must not hold its row for the two hours of the defaults.
 */
#define NOTICE_DEATH                                                      \
	"SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; " \
	"SET tcp_keepalives_count = 3; SET tcp_user_timeout = 10000; "
/* The advisory locks of this database that stand under (class, object). */
#define LOCKS                                                                              \
	"FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 2 AND "      \
	"database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND " \
	"classid = %u"

/* True if it is a UUID in lower case: anything else must not get into SQL. */
bool
progress_is_stream(const char *s, size_t n)
{
	size_t i;

	for (i = 0; i < n && i < PROGRESS_STREAM_LENGTH; i++) {
		if (s[i] == '\0' || strchr("0123456789abcdef-", s[i]) == NULL)
			return false;
	}
	return n == PROGRESS_STREAM_LENGTH;
}

/* The class of a stream's advisory locks: the first 32 bits of its UUID, which are random. */
static uint32_t
lock_class(const char *stream)
{
	return (uint32_t)strtoul(stream, NULL, 16);
}

static char *format(const char *, ...) __attribute__((format(printf, 1, 2)));

static char *
format(const char *fmt, ...)
{
	char *sql;
	va_list ap;
	int rc;

	va_start(ap, fmt);
	rc = vasprintf(&sql, fmt, ap);
	va_end(ap);
	return rc == -1 ? NULL : sql;
}

/* All that follow: text of the caller's to free, NULL when memory is short. */

/*
 * Asks how many are here of another instance, for the same session; and whether one has left rows
 * that are not closed, since it may only have lost its connections.
 */
char *
progress_look_sql(const struct progress *p)
{
	return format("SELECT count(*), (SELECT count(*) FROM ingestd.progress WHERE session = %u "
		      "AND instance <> %u AND NOT closed) " LOCKS " AND objid <> %u",
	    p->session, p->instance, p->session, p->instance);
}

/*
 * Says for as long as the connection lasts that we are here, and asks the same. Shared locks, since
 * the lanes of one instance stand side by side and a lane's dead predecessor may still hold its
 * own.
 */
char *
progress_claim_sql(const struct progress *p)
{
	return format(NOTICE_DEATH
	    "SELECT pg_advisory_lock_shared(%d, %d), pg_advisory_lock_shared(%d, %d); "
	    "SELECT count(*) " LOCKS " AND objid <> %u",
	    (int32_t)p->session, (int32_t)p->instance, (int32_t)lock_class(p->stream), p->lane,
	    p->session, p->instance);
}

/*
 * Closes what an instance has left that was here for the same session before, and takes the row, or
 * makes it where this process has never had it. An UPDATE, though it changes
 * nothing, because a commit that writes waits for a synchronous standby, and with it for all that
 * the row tells of. Gives seq, dead_letters and closed; no row when it has gone.
 */
char *
progress_take_sql(const struct progress *p)
{
	char insert[300] = "";

	if (!p->held)
		snprintf(insert, sizeof(insert),
		    "INSERT INTO ingestd.progress (stream, lane, seq, dead_letters, session, "
		    "instance) "
		    "VALUES ('%s', %d, %llu, %llu, %u, %u) ON CONFLICT (stream, lane) DO NOTHING; ",
		    p->stream, p->lane, (unsigned long long)p->committed,
		    (unsigned long long)p->dead_letters, p->session, p->instance);
	return format(
	    "BEGIN; " LOCK_TIMEOUT
	    "UPDATE ingestd.progress SET closed = true WHERE session = %u AND instance <> "
	    "%u AND NOT closed; %s"
	    "UPDATE ingestd.progress SET seq = seq WHERE stream = '%s' AND lane = %d "
	    "RETURNING seq, dead_letters, closed; COMMIT",
	    p->session, p->instance, insert, p->stream, p->lane);
}

/*
 * Moves the row on, first thing in a batch's transaction: its lock keeps everybody else out until
 * the end of that. It must touch exactly one row.
 */
char *
progress_move_sql(const struct progress *p, uint64_t seq, uint64_t dead_letters)
{
	return format("UPDATE ingestd.progress SET seq = %llu, dead_letters = dead_letters + %llu "
		      "WHERE stream = '%s' AND lane = %d AND seq = %llu AND NOT closed; ",
	    (unsigned long long)seq, (unsigned long long)dead_letters, p->stream, p->lane,
	    (unsigned long long)p->committed);
}

/*
 * Counts dead letters that were not known when the row was moved, in the same transaction. It must
 * touch exactly one row, too.
 */
char *
progress_count_sql(const struct progress *p, uint64_t dead_letters)
{
	return format("UPDATE ingestd.progress SET dead_letters = dead_letters + %llu "
		      "WHERE stream = '%s' AND lane = %d; ",
	    (unsigned long long)dead_letters, p->stream, p->lane);
}

/*
 * Shuts a stream that has ended: waits for the transactions of its last writers, after which none
 * of them can commit any more. Gives lane and seq of each.
 */
char *
progress_close_sql(const char *stream)
{
	return format("BEGIN; " LOCK_TIMEOUT
		      "UPDATE ingestd.progress SET closed = true WHERE stream = '%s'; COMMIT; "
		      "SELECT lane, seq FROM ingestd.progress WHERE stream = '%s' ORDER BY lane",
	    stream, stream);
}

/*
 * Ends the backends of a stream's earlier writers, after a statement that has failed. lane is -1
 * for all.
 */
char *
progress_evict_sql(const char *stream, int lane)
{
	char which[40] = "";

	if (lane >= 0)
		snprintf(which, sizeof(which), " AND objid = %d", lane);
	return format("ROLLBACK; SELECT count(pg_terminate_backend(pid)) " LOCKS
		      " AND pid <> pg_backend_pid()%s",
	    lock_class(stream), which);
}

/* Removes the rows of a stream, or the one of a lane. lane is -1 for all. */
char *
progress_forget_sql(const char *stream, int lane)
{
	char which[40] = "";

	if (lane >= 0)
		snprintf(which, sizeof(which), " AND lane = %d", lane);
	return format("BEGIN; " LOCK_TIMEOUT
		      "DELETE FROM ingestd.progress WHERE stream = '%s'%s; COMMIT",
	    stream, which);
}
