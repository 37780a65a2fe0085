/*
 * A batch that the database has refused for what a row holds: its bad rows are found, and put
 * beside its dead letters, in one transaction with the good ones.
 *
 * isolate.c says which rows to try next, each piece behind a savepoint. What goes wrong otherwise
 * on the way ends the attempt, and the whole batch goes out again later. Must never take anything
 * but a row that was refused alone for a bad one, nor for one what a dead letter, the progress row
 * or the COMMIT has brought about; and must never commit the ones without the others.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "batch.h"
#include "dead_letter.h"
#include "failpoint.h"
#include "log.h"
#include "session_steps.h"
#include "sqlstate.h"

/* A transaction with b is going to be sent; nothing is known of its rows. */
void
session_isolation_begin(struct session *s, const struct batch *b)
{
	struct isolation *i = &s->isolation;

	i->batch = b;
	i->row_copies = b->row_count > 0 ? 1 : 0;
	i->used = false;
	i->refused = 0;
	buffer_clear(&i->dead_letters);
}

/* ---- who is to blame ---- */

enum blame {
	BLAME_ROWS,
	BLAME_DEAD_LETTERS,
	BLAME_COMMIT,
	BLAME_OTHER, /* a statement before a COPY, or that does not get as far as reading */
};

/* Which part of the query the error is about. */
static enum blame
blame(const struct session *s)
{
	const struct pg *pg = &s->pg;

	if (pg->copies_begun > pg->copies_done)
		return pg->copies_done < s->isolation.row_copies ? BLAME_ROWS : BLAME_DEAD_LETTERS;
	return pg->copies_done == pg->copy_count ? BLAME_COMMIT : BLAME_OTHER;
}

static enum session_event
hold(struct session *s, enum trouble_class class, const char *what, const char *mend, int64_t now)
{
	trouble_set(&s->trouble, s->pg.error.sqlstate, "%s: %s; %s", what, s->pg.error.text, mend);
	s->trouble.class = class;
	return session_fail(s, now);
}

static enum session_event
hold_for_dead_letters(struct session *s, int64_t now)
{
	return hold(s, TROUBLE_CONFIGURATION, "ingestd.dead_letter refuses a dead letter",
	    "take away the constraint or trigger that does not let every one in", now);
}

/* ---- the pieces ---- */

static enum session_event
send_copies(struct session *s, enum session_state next, char *sql, const struct pg_copy *copies,
    int count, int64_t now)
{
	free(s->sql);
	s->sql = sql;
	if (sql == NULL)
		return SESSION_NO_MEMORY;
	s->state = next;
	if (pg_query_copy(&s->pg, sql, copies, count) == -1)
		return session_fail_with_error(s, now);
	return SESSION_NOTHING;
}

/* Every row is decided: the dead letters, and COMMIT. */
static enum session_event
finish(struct session *s, const char *before, int64_t now)
{
	struct isolation *i = &s->isolation;
	const struct batch *b = i->batch;
	struct pg_copy copies[PG_COPIES_MAX];
	char *count = NULL, *sql;
	int n = 0;

	if (FAILPOINT("before_isolated_commit"))
		return session_fail_with(s, "failpoint", now);
	if (b->dead_letter_count > 0)
		copies[n++] =
		    (struct pg_copy){buffer_head(&b->dead_letters), buffer_size(&b->dead_letters)};
	if (i->refused > 0) {
		copies[n++] =
		    (struct pg_copy){buffer_head(&i->dead_letters), buffer_size(&i->dead_letters)};
		count = progress_count_sql(&s->progress, i->refused);
		if (count == NULL)
			return SESSION_NO_MEMORY;
	}
	s->pending_dead_letters = b->dead_letter_count + i->refused;
	i->row_copies = 0;
	sql = schema_isolated_sql(before, count != NULL ? count : "", n);
	free(count);
	return send_copies(s, SESSION_COMMITTING, sql, copies, n, now);
}

static enum session_event
send_next(struct session *s, const char *before, int64_t now)
{
	struct isolation *i = &s->isolation;
	struct isolate_piece pieces[ISOLATE_PIECES];
	struct pg_copy copies[ISOLATE_PIECES];
	struct text lines;
	size_t count = isolate_next(&i->plan, pieces), n;

	if (count == 0)
		return finish(s, before, now);
	for (n = 0; n < count; n++) {
		lines = batch_lines(i->batch, pieces[n].first, pieces[n].count);
		copies[n] = (struct pg_copy){(const uint8_t *)lines.s, lines.n};
	}
	i->row_copies = (int)count;
	return send_copies(s, SESSION_ISOLATING, schema_pieces_sql(&s->schema, before, count),
	    copies, (int)count, now);
}

/* The batch was refused as a whole: a transaction begins in which its pieces are tried. */
static enum session_event
isolate(struct session *s, int64_t now)
{
	struct isolation *i = &s->isolation;
	char *move =
	    progress_move_sql(&s->progress, i->batch->last_seq, i->batch->dead_letter_count);
	char *before = NULL;
	enum session_event event = SESSION_NO_MEMORY;

	i->used = true;
	log_debug("batch_isolated", LOG_U("rows", i->batch->row_count),
	    LOG_S("sqlstate", s->pg.error.sqlstate), LOG_U("line", s->pg.error.copy_line));
	isolate_start(
	    &i->plan, i->batch->row_count, s->pg.copies_done == 0 ? s->pg.error.copy_line : 0);
	if (move != NULL &&
	    asprintf(&before, SCHEMA_ISOLATE_BEGIN "%s" SCHEMA_ISOLATE_FIRST, move) != -1)
		event = send_next(s, before, now);
	else
		before = NULL;
	free(move);
	free(before);
	return event;
}

/*
 * A transaction of a batch was refused, on a connection that still stands. Called while COMMITTING:
 * of the batch as a whole, or of the dead letters and the COMMIT behind its pieces.
 */
enum session_event
session_on_refused(struct session *s, int64_t now)
{
	enum blame who = blame(s);

	if (sqlstate_class(s->pg.error.sqlstate) != TROUBLE_DATA)
		return session_fail_with_error(s, now);
	if (who == BLAME_DEAD_LETTERS || s->isolation.batch->row_count == 0)
		return hold_for_dead_letters(s, now);
	if (who == BLAME_OTHER)
		return hold(s, TROUBLE_CONFIGURATION, "no row is at fault, but the transaction",
		    "look for triggers on ingestd.progress", now);
	if (!s->isolation.used)
		return isolate(s, now);
	return hold(s, TROUBLE_DATA, "every row was taken or put aside, and COMMIT is refused",
	    "look for constraints and triggers that are deferred", now);
}

/* ---- the answers ---- */

static const char *
reason_of(const struct pg_error *e, char *out, size_t size)
{
	if (*e->constraint != '\0')
		snprintf(out, size, "refused by the database: constraint %s", e->constraint);
	else
		snprintf(out, size, "refused by the database");
	return out;
}

/* Row is bad: it becomes a dead letter. Returns -1 when memory is short. */
static int
put_aside(struct session *s, size_t row)
{
	struct isolation *i = &s->isolation;
	const struct pg_error *e = &s->pg.error;
	char reason[sizeof(i->kept[0].reason)], detail[sizeof(e->text) + sizeof(e->detail) + 2];
	struct refusal *kept;
	struct message m;

	if (batch_record(i->batch, row, &m) == -1)
		return -1;
	reason_of(e, reason, sizeof(reason));
	snprintf(
	    detail, sizeof(detail), "%s%s%s", e->text, *e->detail != '\0' ? "; " : "", e->detail);
	if (dead_letter_append_refused(
		&i->dead_letters, &m.record, s->progress.lane, reason, e->sqlstate, detail) == -1)
		return -1;
	if (i->refused < REFUSALS_KEPT) {
		kept = &i->kept[i->refused];
		kept->row = row;
		strcpy(kept->sqlstate, e->sqlstate);
		strcpy(kept->reason, reason);
	}
	i->refused++;
	return 0;
}

/* More than --dead-letter-share of the rows would go: nothing of the batch does. */
static enum session_event
trip(struct session *s, uint64_t judged, int64_t now)
{
	trouble_set(&s->trouble, TROUBLE_BREAKER,
	    "more than %lld %% of the last %llu rows are refused, the last with SQLSTATE %s: %s; "
	    "that is a broken schema, not broken data: mend %s, or raise --dead-letter-share",
	    (long long)s->breaker.share, (unsigned long long)judged, s->pg.error.sqlstate,
	    s->pg.error.text, s->schema.given);
	return session_fail(s, now);
}

/* The answer to the pieces that were sent. */
enum session_event
session_on_isolated(struct session *s, int64_t now)
{
	struct isolation *i = &s->isolation;
	bool refused = s->pg.error.text[0] != '\0';
	uint64_t judged;
	size_t row;

	if (FAILPOINT("between_pieces"))
		return session_fail_with(s, "failpoint", now);
	if (refused &&
	    (sqlstate_class(s->pg.error.sqlstate) != TROUBLE_DATA || blame(s) != BLAME_ROWS))
		return session_fail_with_error(s, now);
	row = isolate_answer(&i->plan, (size_t)s->pg.copies_done, refused, s->pg.error.copy_line);
	if (row != ISOLATE_NONE) {
		if (put_aside(s, row) == -1)
			return SESSION_NO_MEMORY;
		judged = breaker_trips(&s->breaker, i->plan.at, i->refused, now);
		if (judged > 0)
			return trip(s, judged, now);
	}
	return send_next(s, refused ? SCHEMA_AFTER_BAD : SCHEMA_AFTER_GOOD, now);
}
