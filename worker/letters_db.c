/*
 * The database as a command has it: each call waits for its answer, and for nothing else than a
 * signal that asks for an end.
 *
 * pg.c does the work; here is only the waiting. Must never leave a transaction in doubt because of
 * a signal: one that comes before COMMIT was sent closes the connection, which takes everything
 * back, and one that comes later waits for the answer.
 */
#include "letters_db.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>
#include <unistd.h>

#include "clock.h"
#include "letters_text.h"
#include "signals.h"
#include "sqlstate.h"
#include "trouble.h"

/* A line for a person; longer words of a server are cut. */
#define SAY_MAX 2000

/* Since PostgreSQL 14: the server notices within a second that this process has gone, also while it
 * waits for a lock, and lets go of the dead letters that were being replayed. */
#define NOTICE_OUR_END                                                        \
	"SELECT set_config(name, '1s', false) FROM pg_settings WHERE name = " \
	"'client_connection_check_interval' AND setting = '0'"

/*
 * Writes a line to standard error, as `ingestd dead-letters COMMAND: ...`, safe for a terminal. A
 * bar that is there makes room.
 */
void
letters_say(struct letters_db *db, const char *fmt, ...)
{
	char text[SAY_MAX], safe[SAY_MAX * LETTERS_TEXT_BYTES + 1];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	letters_text_fit(safe, sizeof(safe), text, SAY_MAX);
	letters_bar_clear(&db->bar);
	fprintf(stderr, "ingestd dead-letters %s: %s\n", letters_command_name(db->options->command),
	    safe);
}

/* ---- trouble ---- */

/* What to change, where that depends on this being a command. NULL if it does not. */
static const char *
advice(const struct letters_db *db, const char *state, const char *text, char *out, size_t size)
{
	bool replay = db->options->command == LETTERS_REPLAY;
	const char *rights =
	    db->options->command == LETTERS_LIST ? "SELECT" : "SELECT, UPDATE, DELETE";

	if (strcmp(state, "42501") == 0)
		snprintf(out, size,
		    "GRANT %s ON ingestd.dead_letter, USAGE ON SCHEMA ingestd%s%s TO \"%s\"",
		    rights, replay ? ", INSERT ON " : "", replay ? db->schema.given : "",
		    db->pg.user);
	else if ((strcmp(state, "42P01") == 0 || strcmp(state, "3F000") == 0) &&
	    strstr(text, "dead_letter") == NULL && strstr(text, "\"ingestd\"") == NULL)
		snprintf(out, size, "start ingestd, which makes its table, or change --table");
	else if (strcmp(state, "42P01") == 0 || strcmp(state, "3F000") == 0)
		snprintf(out, size,
		    "is \"%s\" the database that ingestd writes into? If not, change --database",
		    db->pg.database);
	else
		return NULL;
	return out;
}

/* One sentence or two: the server's or libpq's words, the SQLSTATE and what to change. */
static void
explain(const struct letters_db *db, const char *state, const char *text, char *out, size_t size)
{
	const struct trouble_context c = {
	    .user = db->pg.user,
	    .database = db->pg.database,
	    .table = db->schema.given,
	    .timescaledb = "",
	};
	struct trouble t;
	char room[600];
	const char *a = advice(db, state, text, room, sizeof(room));

	if (a != NULL)
		trouble_set(&t, state, "%s; %s", text, a);
	else
		trouble_advise(&t, state, text, &c);
	snprintf(out, size, "%s%s%s%s", t.text, *state != '\0' ? " (SQLSTATE " : "", state,
	    *state != '\0' ? ")" : "");
}

/* What has become of the transaction in hand. */
static const char *
fate(const struct letters_db *db)
{
	return db->in_doubt
	    ? "whether the last transaction was committed is not known, but it was so "
	      "as a whole or not at all"
	    : "nothing is half done";
}

/*
 * After a call that was not LETTERS_OK: says what could not be done, on what and why, and returns
 * the status to exit with. Closes the connection, which takes back the transaction in hand.
 */
int
letters_db_fail(struct letters_db *db, const char *what)
{
	struct pg_error e = db->pg.error;
	char why[SAY_MAX - 300];
	bool away;

	pg_close(&db->pg);
	if (db->stopped_by != 0) {
		letters_say(db, "stopped by %s: %s", signals_name(db->stopped_by), fate(db));
		return 128 + db->stopped_by;
	}
	away = sqlstate_class(e.sqlstate) == TROUBLE_TRANSIENT;
	explain(db, e.sqlstate, e.text, why, sizeof(why));
	letters_say(db, "%s in database \"%s\": %s; %s%s", what, db->pg.database, why, fate(db),
	    away ? ", try again later" : "");
	return away ? EX_TEMPFAIL : EX_CONFIG;
}

/* ---- waiting ---- */

/* True when a signal has asked for an end. */
bool
letters_db_stopped(struct letters_db *db)
{
	int signo = signals_next(db->signals);

	if (signo != 0)
		db->stopped_by = signo;
	return db->stopped_by != 0;
}

/* patient: a signal does not end it, only a second one. */
static enum letters_call
wait_for_answer(struct letters_db *db, bool patient)
{
	struct pollfd p[2];
	enum pg_event event;
	int64_t now = clock_monotonic();
	int before = db->stopped_by, signo;

	while ((event = pg_run(&db->pg, now)) == PG_NOTHING) {
		p[0] = (struct pollfd){.fd = pg_fd(&db->pg), .events = pg_events(&db->pg)};
		p[1] = (struct pollfd){.fd = db->signals, .events = POLLIN};
		poll(p, 2,
		    clock_poll_timeout(
			now, db->pg.state == PG_CONNECTING ? db->pg.deadline : CLOCK_NEVER));
		now = clock_monotonic();
		signo = signals_next(db->signals);
		if (signo == 0)
			continue;
		db->stopped_by = signo;
		if (patient && before == 0) {
			before = signo;
			continue;
		}
		pg_close(&db->pg);
		return LETTERS_ENDED;
	}
	if (event == PG_FAILED)
		return LETTERS_ENDED;
	return db->pg.error.text[0] != '\0' ? LETTERS_REFUSED : LETTERS_OK;
}

/* One statement with parameters, or several without; see pg_query(). */
enum letters_call
letters_db_query(struct letters_db *db, const char *sql, const char *const *params, int count)
{
	if (letters_db_stopped(db) || pg_query(&db->pg, sql, params, count) == -1) {
		pg_close(&db->pg);
		return LETTERS_ENDED;
	}
	return wait_for_answer(db, false);
}

/* SQL with one COPY … FROM STDIN that reads the text. */
enum letters_call
letters_db_copy(struct letters_db *db, const char *sql, const struct pg_copy *text)
{
	if (letters_db_stopped(db) || pg_query_copy(&db->pg, sql, text, 1) == -1) {
		pg_close(&db->pg);
		return LETTERS_ENDED;
	}
	return wait_for_answer(db, false);
}

/*
 * Commits. in_doubt is set when the connection went before the answer came.
 */
enum letters_call
letters_db_commit(struct letters_db *db)
{
	enum letters_call call;

	if (letters_db_stopped(db) || pg_query(&db->pg, "COMMIT", NULL, 0) == -1) {
		pg_close(&db->pg);
		return LETTERS_ENDED;
	}
	call = wait_for_answer(db, true);
	db->in_doubt = call == LETTERS_ENDED;
	/* ROLLBACK is how a server says that a failed transaction has ended. */
	if (call == LETTERS_OK && strcmp(db->pg.tag, "COMMIT") != 0) {
		snprintf(db->pg.error.text, sizeof(db->pg.error.text),
		    "the server did not commit the transaction");
		return LETTERS_REFUSED;
	}
	return call;
}

/*
 * Reads a line of the person at standard input into out, without its newline. False at the end of
 * the input, and when a signal has asked for an end.
 */
bool
letters_db_answer(struct letters_db *db, char *out, size_t size)
{
	struct pollfd p[2] = {
	    {.fd = STDIN_FILENO, .events = POLLIN}, {.fd = db->signals, .events = POLLIN}};
	ssize_t n;

	/* A terminal hands over a line at once. */
	while (poll(p, 2, -1) <= 0 && errno == EINTR)
		;
	if (letters_db_stopped(db))
		return false;
	n = read(STDIN_FILENO, out, size - 1);
	if (n <= 0)
		return false;
	out[n] = '\0';
	out[strcspn(out, "\r\n")] = '\0';
	return true;
}

/* ---- from and to nothing ---- */

/*
 * Connects. Returns 0, or the status to exit with after it has said why. options must outlive db;
 * letters_db_close() in any case.
 */
int
letters_db_open(struct letters_db *db, const struct letters_options *options)
{
	static const int stops[] = {SIGINT, SIGTERM, SIGHUP};
	char why[300];

	*db = (struct letters_db){.options = options, .signals = -1};
	if (schema_init(&db->schema, options->cfg.table) == -1) {
		letters_say(db, "out of memory");
		return EX_OSERR;
	}
	db->signals = signals_open(stops, sizeof(stops) / sizeof(stops[0]));
	if (db->signals == -1) {
		letters_say(db, "cannot take signals: %s", strerror(errno));
		return EX_OSERR;
	}
	if (pg_check_conninfo(options->cfg.database, why, sizeof(why)) == -1) {
		letters_say(db, "--database: cannot be read: %s", why);
		return EX_CONFIG;
	}
	setenv("PGAPPNAME", "ingestd dead-letters", 0);
	pg_connect(&db->pg, options->cfg.database, clock_monotonic());
	if (wait_for_answer(db, false) != LETTERS_OK)
		return letters_db_fail(db, "cannot get a connection");
	/* Servers on some systems refuse it, and are used without. */
	if (letters_db_query(db, NOTICE_OUR_END, NULL, 0) == LETTERS_ENDED)
		return letters_db_fail(db, "cannot ask anything");
	return 0;
}

void
letters_db_close(struct letters_db *db)
{
	pg_close(&db->pg);
	schema_free(&db->schema);
	if (db->signals != -1)
		close(db->signals);
}
