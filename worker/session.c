/*
 * The way to a committed batch: connect, look at the database, make what is missing, check what is
 * there, take the lane's progress row, then one transaction after the other; and what to do when
 * one of these fails.
 *
 * Whatever fails ends in trouble and another try: at once-ish and then ever later where waiting may
 * help, every RETRY_SLOW where a person has to change something. Configuration trouble closes the
 * connection, so that everything is looked at again and it heals without a restart. Must never give
 * a batch up, and never call one committed of which the server has not said COMMIT.
 */
#include "session.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "batch.h"
#include "check.h"
#include "clock.h"
#include "failpoint.h"
#include "log.h"
#include "session_steps.h"

#define RETRY_FIRST (100 * CLOCK_MS)
#define RETRY_LAST (5 * CLOCK_SECOND)
#define RETRY_SLOW (5 * CLOCK_SECOND)

/* cfg must outlive the session. The first attempt starts with the first session_run(). */
int
session_init(
    struct session *s, const struct config *cfg, const struct progress *progress, int64_t now)
{
	*s = (struct session){
	    .conninfo = cfg->database, .since = now, .retry_at = now, .progress = *progress};
	breaker_init(&s->breaker, cfg->dead_letter_share);
	return schema_init(&s->schema, cfg->table);
}

void
session_free(struct session *s)
{
	pg_close(&s->pg);
	schema_free(&s->schema);
	buffer_free(&s->isolation.dead_letters);
	free(s->sql);
	s->sql = NULL;
}

/* ---- failing ---- */

/* Full jitter: writers that lost the same server do not come back in step. */
static int64_t
backoff(int failures)
{
	int64_t most = RETRY_FIRST << (failures < 10 ? failures : 10);

	return arc4random_uniform((uint32_t)(most < RETRY_LAST ? most : RETRY_LAST) + 1);
}

static bool
keeps_connection(const struct session *s)
{
	/* Nothing about the connection is wrong, and the next try needs none of the checks. */
	return s->trouble.class == TROUBLE_DATA && s->state == SESSION_COMMITTING &&
	    s->pg.state == PG_IDLE;
}

/* The trouble is set: decides when and how to try again. */
enum session_event
session_fail(struct session *s, int64_t now)
{
	int64_t delay = s->trouble.class == TROUBLE_TRANSIENT ? backoff(s->failures) : RETRY_SLOW;

	s->failures++;
	s->retry_at = now + delay;
	if (s->state == SESSION_COMMITTING || s->state == SESSION_ISOLATING)
		s->refused = true;
	log_debug("database_refused", LOG_S("class", trouble_name(s->trouble.class)),
	    LOG_S("sqlstate", s->trouble.sqlstate), LOG_S("reason", s->trouble.text),
	    LOG_T("retry_in", delay));
	if (!keeps_connection(s)) {
		pg_close(&s->pg);
		s->state = SESSION_DOWN;
	} else if (!pg_in_transaction(&s->pg)) {
		s->state = SESSION_READY;
	} else if (pg_query(&s->pg, "ROLLBACK", NULL, 0) == 0) {
		s->state = SESSION_ROLLING_BACK;
	} else {
		pg_close(&s->pg);
		s->state = SESSION_DOWN;
	}
	return SESSION_TROUBLE;
}

/*
 * libpq or the server has said what is wrong. With a row it can be at fault only where there is
 * one: session_isolate.c knows; all else that looks like bad data is for a person to change.
 */
enum session_event
session_fail_with_error(struct session *s, int64_t now)
{
	const struct trouble_context c = {
	    .user = s->pg.user,
	    .database = s->pg.database,
	    .table = s->schema.given,
	    .timescaledb = s->missing.timescaledb,
	    .creating = s->state == SESSION_CREATING,
	};

	trouble_advise(&s->trouble, s->pg.error.sqlstate, s->pg.error.text, &c);
	if (s->trouble.class == TROUBLE_DATA && s->state != SESSION_COMMITTING)
		s->trouble.class = TROUBLE_CONFIGURATION;
	return session_fail(s, now);
}

enum session_event
session_fail_with(struct session *s, const char *text, int64_t now)
{
	trouble_set(&s->trouble, "", "%s", text);
	return session_fail(s, now);
}

/* ---- from the connection to READY ---- */

static enum session_event
step(struct session *s, enum session_state next, const char *sql, const char *const *params,
    int count, int64_t now)
{
	if (pg_query(&s->pg, sql, params, count) == -1)
		return session_fail_with_error(s, now);
	s->state = next;
	return SESSION_NOTHING;
}

/* The same with SQL that was made for it. */
enum session_event
session_step_own(struct session *s, enum session_state next, char *sql, int64_t now)
{
	free(s->sql);
	s->sql = sql;
	if (sql == NULL)
		return SESSION_NO_MEMORY;
	return step(s, next, sql, NULL, 0, now);
}

static enum session_event
ask(struct session *s, enum session_state next, int64_t now)
{
	const char *params[SCHEMA_FACTS_PARAMETERS] = {s->schema.table, s->schema.space};

	return step(s, next, schema_facts_sql(), params, SCHEMA_FACTS_PARAMETERS, now);
}

static enum session_event
ask_columns(struct session *s, int64_t now)
{
	const char *params[SCHEMA_COLUMNS_PARAMETERS] = {s->schema.table};

	return step(
	    s, SESSION_COLUMNS, schema_columns_sql(), params, SCHEMA_COLUMNS_PARAMETERS, now);
}

static enum session_event
set_session(struct session *s, int64_t now)
{
	if (!s->set_synchronous)
		return ask_columns(s, now);
	return step(s, SESSION_SETTING, "SET synchronous_commit = on", NULL, 0, now);
}

static void
note_settings(struct session *s)
{
	const char *sync = pg_value(&s->pg, 0, FACT_SYNCHRONOUS_COMMIT);

	snprintf(s->server, sizeof(s->server), "PostgreSQL %s", pg_value(&s->pg, 0, FACT_VERSION));
	snprintf(s->database, sizeof(s->database), "%s", pg_value(&s->pg, 0, FACT_DATABASE));
	/* With either of these a commit is confirmed before it is safe. */
	s->set_synchronous = strcmp(sync, "off") == 0 || strcmp(sync, "local") == 0;
	if (s->set_synchronous)
		log_info("synchronous_commit_set", LOG_S("was", sync), LOG_S("now", "on"));
	if (strcmp(pg_value(&s->pg, 0, FACT_FSYNC), "off") == 0 && !s->fsync_warned) {
		s->fsync_warned = true;
		log_warn("database_not_durable",
		    LOG_S("reason",
			"the server runs with fsync = off: what it commits may be lost when its "
			"machine fails"));
	}
}

/* The facts have come. locked: they were asked for under the lock, and what is missing is ours. */
static enum session_event
on_facts(struct session *s, bool locked, int64_t now)
{
	const struct schema_missing *m = &s->missing;

	if (!check_facts(&s->pg, &s->schema, &s->missing, &s->trouble))
		return session_fail(s, now);
	note_settings(s);
	if (!locked && (m->table || m->dead_letter || m->progress))
		return step(s, SESSION_LOCKING, schema_lock_sql(), NULL, 0, now);
	if (!locked)
		return set_session(s, now);
	return session_step_own(s, SESSION_CREATING, schema_create_sql(&s->schema, m), now);
}

static void
log_created(const struct session *s)
{
	if (s->missing.table)
		log_info("table_created", LOG_S("table", s->schema.given),
		    LOG_S("hypertable", *s->missing.timescaledb != '\0' ? "yes" : "no"));
	if (s->missing.dead_letter)
		log_info("table_created", LOG_S("table", "ingestd.dead_letter"));
	if (s->missing.progress)
		log_info("table_created", LOG_S("table", "ingestd.progress"));
}

static enum session_event
on_columns(struct session *s, int64_t now)
{
	if (!check_columns(&s->pg, &s->schema, &s->trouble))
		return session_fail(s, now);
	return session_step_own(s, SESSION_LOOKING, progress_look_sql(&s->progress), now);
}

/* ---- transactions ---- */

/* True when a batch may be given to session_commit(). */
bool
session_can_commit(const struct session *s, int64_t now)
{
	return s->state == SESSION_READY && (!s->refused || now >= s->retry_at);
}

/* Starts the transaction of b, which must stay as it is until an event says how it ended. */
enum session_event
session_commit(struct session *s, const struct batch *b, int64_t now)
{
	struct pg_copy copies[PG_COPIES_MAX];
	char *move = progress_move_sql(&s->progress, b->last_seq, b->dead_letter_count);
	int n = 0;

	free(s->sql);
	s->sql = move == NULL
	    ? NULL
	    : schema_batch_sql(&s->schema, move, b->row_count > 0, b->dead_letter_count > 0);
	free(move);
	if (s->sql == NULL)
		return SESSION_NO_MEMORY;
	if (FAILPOINT("before_begin"))
		return session_fail_with(s, "failpoint", now);
	s->pending_seq = b->last_seq;
	s->pending_dead_letters = b->dead_letter_count;
	session_isolation_begin(s, b);
	if (b->row_count > 0)
		copies[n++] = (struct pg_copy){buffer_head(&b->rows), buffer_size(&b->rows)};
	if (b->dead_letter_count > 0)
		copies[n++] =
		    (struct pg_copy){buffer_head(&b->dead_letters), buffer_size(&b->dead_letters)};
	s->state = SESSION_COMMITTING;
	s->since = now;
	if (pg_query_copy(&s->pg, s->sql, copies, n) == -1)
		return session_fail_with_error(s, now);
	return SESSION_NOTHING;
}

/* The batch that was sent is known to be durable: its rows count for the breaker. */
void
session_note_committed(struct session *s, int64_t now)
{
	const struct isolation *i = &s->isolation;

	breaker_count(&s->breaker, i->batch->row_count, i->refused, now);
	s->refused = false;
}

enum session_event
session_on_committed(struct session *s, int64_t now)
{
	if (s->pg.not_durable)
		return session_fail_with(s,
		    "the server stopped waiting for its synchronous standby: the batch counts as "
		    "committed when a later commit has reached it",
		    now);
	/* ROLLBACK is how a server says that a failed transaction has ended. */
	if (FAILPOINT("after_commit_before_it_is_known"))
		return session_fail_with(s, "failpoint", now);
	if (strcmp(s->pg.tag, "COMMIT") != 0 || pg_in_transaction(&s->pg))
		return session_fail_with(s, "the server did not commit the transaction", now);
	s->progress.committed = s->pending_seq;
	s->progress.dead_letters += s->pending_dead_letters;
	s->state = SESSION_READY;
	s->failures = 0;
	session_note_committed(s, now);
	return SESSION_COMMITTED_BATCH;
}

/* ---- the loop's hooks ---- */

static enum session_event
on_query_done(struct session *s, int64_t now)
{
	if ((s->state == SESSION_COMMITTING || s->state == SESSION_ISOLATING) && s->pg.fenced)
		return SESSION_FENCED;
	if ((s->state == SESSION_TAKING || s->state == SESSION_CLOSING ||
		s->state == SESSION_FORGETTING) &&
	    strcmp(s->pg.error.sqlstate, LOCK_TIMED_OUT) == 0)
		return session_evict(s, now);
	if (s->state == SESSION_ISOLATING)
		return session_on_isolated(s, now);
	if (s->pg.error.text[0] != '\0' && s->state == SESSION_COMMITTING)
		return session_on_refused(s, now);
	if (s->pg.error.text[0] != '\0')
		return session_fail_with_error(s, now);
	switch (s->state) {
	case SESSION_ASKING:
		return on_facts(s, false, now);
	case SESSION_LOCKING:
		return ask(s, SESSION_ASKING_AGAIN, now);
	case SESSION_ASKING_AGAIN:
		return on_facts(s, true, now);
	case SESSION_CREATING:
		log_created(s);
		return set_session(s, now);
	case SESSION_SETTING:
		return ask_columns(s, now);
	case SESSION_COLUMNS:
		return on_columns(s, now);
	case SESSION_LOOKING:
		return session_on_looked(s, now);
	case SESSION_CLAIMING:
		return session_on_claimed(s, now);
	case SESSION_TAKING:
		return session_on_taken(s, now);
	case SESSION_COMMITTING:
		return session_on_committed(s, now);
	case SESSION_CLOSING:
		return session_on_closed(s, now);
	case SESSION_EVICTING:
		return session_on_evicted(s, now);
	case SESSION_FORGETTING:
		s->state = SESSION_READY;
		return SESSION_FORGOT;
	default:
		/* Rolled back: READY, but not before retry_at. */
		s->state = SESSION_READY;
		return SESSION_NOTHING;
	}
}

/*
 * Does what can be done without waiting; to be called when the socket is ready and at
 * session_deadline(). One event at most; call again until there is none.
 */
enum session_event
session_run(struct session *s, int64_t now)
{
	if (s->state == SESSION_DOWN) {
		if (now < s->retry_at)
			return SESSION_NOTHING;
		s->since = now;
		s->state = SESSION_CONNECTING;
		pg_connect(&s->pg, s->conninfo, now);
	}
	switch (pg_run(&s->pg, now)) {
	case PG_CONNECTED:
		return ask(s, SESSION_ASKING, now);
	case PG_DONE:
		return on_query_done(s, now);
	case PG_FAILED:
		return session_fail_with_error(s, now);
	default:
		return SESSION_NOTHING;
	}
}

/* When session_run() or session_commit() has something to do although no socket says so. */
int64_t
session_deadline(const struct session *s)
{
	if (s->state == SESSION_DOWN)
		return s->retry_at;
	if (s->state == SESSION_CONNECTING)
		return s->pg.deadline;
	return s->state == SESSION_READY && s->refused ? s->retry_at : CLOCK_NEVER;
}

/* True while it is the database's turn: since tells from when. */
bool
session_waits(const struct session *s)
{
	return s->state != SESSION_READY && s->state != SESSION_DOWN;
}
