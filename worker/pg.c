/*
 * The connection to PostgreSQL: all of libpq.
 *
 * Non-blocking from connect to close: pg_run() does what can be done now and says what has come of
 * it. Must never wait (name resolution inside libpq aside), never let libpq's output buffer grow
 * with a batch (COPY data goes in by pieces, and the next only when the last has left), and never
 * put a password into an error's text.
 */
#include "pg.h"

#include <ctype.h>
#include <libpq-fe.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "failpoint.h"
#include "isolate.h"

#define COPY_PIECE (64 * 1024)
#define CONNECT_TIMEOUT_SECONDS 10
#define OPTIONS_MAX 16

/* ---- errors ---- */

static void
error_clear(struct pg_error *e)
{
	e->sqlstate[0] = e->text[0] = e->detail[0] = e->constraint[0] = '\0';
	e->copy_line = 0;
}

/* As one line, as far as there is room. */
static void
copy_line(char *out, size_t size, const char *text)
{
	size_t n = 0;

	for (; *text != '\0' && n + 2 < size; text++) {
		if (*text != '\n' && *text != '\t')
			out[n++] = *text;
		else if (*text == '\n' && text[1] != '\0')
			n = (size_t)(stpcpy(out + n, "; ") - out);
	}
	out[n] = '\0';
}

/* Copies a message as one line. The first error is the cause, later ones its consequences. */
static void
error_set(struct pg_error *e, const char *state, const char *text)
{
	if (e->text[0] != '\0')
		return;
	snprintf(e->sqlstate, sizeof(e->sqlstate), "%s", state != NULL ? state : "");
	copy_line(e->text, sizeof(e->text), text);
	if (e->text[0] == '\0')
		strcpy(e->text, "no message");
}

/*
 * libpq gives no SQLSTATE for a refused connection, only a text; with PQERRORS_VERBOSE that text
 * holds it, as "FATAL:  28P01: password …", and a line LOCATION. Takes both out of the text. Where
 * several hosts were tried the last one's state counts: the others were passed over.
 */
static void
take_sqlstate(char *text, char state[6])
{
	char *p, *end;

	while ((p = strstr(text, "\nLOCATION:  ")) != NULL) {
		end = strchrnul(p + 1, '\n');
		memmove(p, end, strlen(end) + 1);
	}
	for (p = text; (p = strstr(p, ":  ")) != NULL;) {
		p += 3;
		if (strspn(p, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ") != 5 ||
		    strncmp(p + 5, ": ", 2) != 0)
			continue;
		memcpy(state, p, 5);
		state[5] = '\0';
		memmove(p, p + 7, strlen(p + 7) + 1);
	}
}

static enum pg_event
connect_failed(struct pg *pg)
{
	char *text = strdup(PQerrorMessage(pg->conn)), state[6] = "";

	if (text != NULL)
		take_sqlstate(text, state);
	/* fe_sendauth fails before the server could: to the user it is the same trouble. */
	if (PQconnectionNeedsPassword(pg->conn))
		strcpy(state, "28P01");
	error_set(&pg->error, state, text != NULL ? text : "out of memory");
	free(text);
	pg_close(pg);
	return PG_FAILED;
}

static enum pg_event
lost(struct pg *pg)
{
	if (pg->fatal.text[0] != '\0')
		error_set(&pg->error, pg->fatal.sqlstate, pg->fatal.text);
	else
		error_set(&pg->error, NULL, PQerrorMessage(pg->conn));
	pg_close(pg);
	return PG_FAILED;
}

static void
note_result_error(struct pg *pg, const PGresult *res)
{
	const char *primary = PQresultErrorField(res, PG_DIAG_MESSAGE_PRIMARY);
	const char *detail = PQresultErrorField(res, PG_DIAG_MESSAGE_DETAIL);
	const char *constraint = PQresultErrorField(res, PG_DIAG_CONSTRAINT_NAME);
	struct pg_error *e = &pg->error;

	if (e->text[0] == '\0') {
		copy_line(e->detail, sizeof(e->detail), detail != NULL ? detail : "");
		copy_line(
		    e->constraint, sizeof(e->constraint), constraint != NULL ? constraint : "");
		e->copy_line = isolate_line(PQresultErrorField(res, PG_DIAG_CONTEXT));
	}
	error_set(e, PQresultErrorField(res, PG_DIAG_SQLSTATE),
	    primary != NULL ? primary : PQresultErrorMessage(res));
}

/* Notices, and the error with which the server ends an idle session. */
static void
receive_notice(void *arg, const PGresult *res)
{
	struct pg *pg = arg;
	const char *function = PQresultErrorField(res, PG_DIAG_SOURCE_FUNCTION);
	const char *severity = PQresultErrorField(res, PG_DIAG_SEVERITY_NONLOCALIZED);
	const char *primary = PQresultErrorField(res, PG_DIAG_MESSAGE_PRIMARY);

	/* Its text is translated and its SQLSTATE that of any warning: only the function tells. */
	if (function != NULL && strcmp(function, "SyncRepWaitForLSN") == 0)
		pg->not_durable = true;
	if (severity != NULL && primary != NULL &&
	    (strcmp(severity, "FATAL") == 0 || strcmp(severity, "PANIC") == 0))
		error_set(&pg->fatal, PQresultErrorField(res, PG_DIAG_SQLSTATE), primary);
}

/* ---- connecting ---- */

/*
 * Returns 0 if libpq can read the connection string, else -1 with the reason, from which whatever
 * libpq has quoted is taken out: it may be a part of the password.
 */
int
pg_check_conninfo(const char *conninfo, char *why, size_t size)
{
	char *message = NULL, *first, *last;
	PQconninfoOption *options = PQconninfoParse(conninfo, &message), *o;
	int rc = 0;

	if (options == NULL) {
		/* Said in our own words: what libpq quotes here may be anything. */
		if (message != NULL && strncmp(message, "missing \"=\"", 11) == 0) {
			snprintf(
			    why, size, "it is neither keyword=value pairs nor a postgresql:// URI");
			PQfreemem(message);
			return -1;
		}
		if (message != NULL && strncmp(message, "invalid connection option", 25) == 0) {
			snprintf(why, size,
			    "it holds a keyword that libpq does not know, or a value with a "
			    "space in it that lacks its quotes");
			PQfreemem(message);
			return -1;
		}
		if (message != NULL && (first = strchr(message, '"')) != NULL) {
			last = strrchr(message, '"');
			memmove(first + 1, last, strlen(last) + 1);
		}
		snprintf(why, size, "%s", message != NULL ? message : "out of memory");
		why[strcspn(why, "\n")] = '\0';
		PQfreemem(message);
		return -1;
	}
	for (o = options; o->keyword != NULL; o++) {
		/* "@name" is an abstract socket; an @ further on is the rest of a password. */
		if (o->val != NULL && strcmp(o->keyword, "host") == 0 && *o->val != '\0' &&
		    *o->val != '/' && strchr(o->val + 1, '@') != NULL) {
			snprintf(why, size,
			    "the host holds an @; in a URI, write @ in a password as %%40");
			rc = -1;
		}
		if (o->val == NULL || strcmp(o->keyword, "port") != 0)
			continue;
		/* A password with a slash in it makes a URI read like this, and the port its start.
		 */
		if (o->val[strspn(o->val, "0123456789,")] != '\0') {
			snprintf(why, size,
			    "the port is no number; in a URI, write /, : and @ in a password as "
			    "%%2F, %%3A and %%40");
			rc = -1;
		}
	}
	PQconninfoFree(options);
	return rc;
}

/* What the user has set, in the connection string or the environment; NULL if nothing. */
static const char *
option_value(const PGconn *conn, const char *keyword, char *out, size_t size)
{
	PQconninfoOption *options = PQconninfo((PGconn *)conn), *o;
	const char *found = NULL;

	for (o = options; o != NULL && o->keyword != NULL; o++) {
		if (strcmp(o->keyword, keyword) == 0 && o->val != NULL && *o->val != '\0') {
			snprintf(out, size, "%s", o->val);
			found = out;
		}
	}
	PQconninfoFree(options);
	return found;
}

/*
 * PQconnectPoll() keeps no time. libpq tries the hosts of a list one after the other and we cannot
 * tell it to go on to the next, so each gets its share; tcp_user_timeout ends each in its time.
 */
static int64_t
connect_timeout(const PGconn *conn)
{
	char text[1024];
	int64_t seconds = CONNECT_TIMEOUT_SECONDS, hosts = 1;
	const char *p;

	p = option_value(conn, "connect_timeout", text, sizeof(text));
	if (p != NULL && atoi(p) > 0)
		seconds = atoi(p) < 2 ? 2 : atoi(p);
	p = option_value(conn, "host", text, sizeof(text));
	for (; p != NULL && *p != '\0'; p++)
		hosts += *p == ',';
	return seconds * hosts * CLOCK_SECOND;
}

/* Starts an attempt; pg must be closed. Failure to start shows in the next pg_run(). */
void
pg_connect(struct pg *pg, const char *conninfo, int64_t now)
{
	const char *attributes = getenv("PGTARGETSESSIONATTRS");
	/* Later ones win: the user's string over our defaults, and over both what we rely on. */
	const char *const options[][2] = {
	    {"fallback_application_name", "ingestd"},
	    {"keepalives_idle", "10"},
	    {"keepalives_interval", "5"},
	    {"keepalives_count", "3"},
	    {"tcp_user_timeout", "10000"},
	    {"target_session_attrs", attributes != NULL ? attributes : "read-write"},
	    {"dbname", conninfo},
	    {"client_encoding", "UTF8"},
	};
	const char *keywords[OPTIONS_MAX] = {0}, *values[OPTIONS_MAX] = {0};
	size_t i;

	for (i = 0; i < sizeof(options) / sizeof(options[0]); i++) {
		keywords[i] = options[i][0];
		values[i] = options[i][1];
	}
	*pg = (struct pg){.state = PG_CONNECTING, .writing = true};
	pg->conn = PQconnectStartParams(keywords, values, 1);
	if (pg->conn == NULL)
		return;
	PQsetNoticeReceiver(pg->conn, receive_notice, pg);
	PQsetErrorVerbosity(pg->conn, PQERRORS_VERBOSE);
	snprintf(
	    pg->user, sizeof(pg->user), "%s", PQuser(pg->conn) != NULL ? PQuser(pg->conn) : "");
	snprintf(
	    pg->database, sizeof(pg->database), "%s", PQdb(pg->conn) != NULL ? PQdb(pg->conn) : "");
	pg->timeout = connect_timeout(pg->conn);
	pg->deadline = now + pg->timeout;
}

static enum pg_event
run_connecting(struct pg *pg, int64_t now)
{
	struct pollfd pfd = {.fd = PQsocket(pg->conn), .events = pg->writing ? POLLOUT : POLLIN};
	char text[200];

	if (pg->conn == NULL) {
		error_set(&pg->error, NULL, "out of memory");
		pg->state = PG_CLOSED;
		return PG_FAILED;
	}
	if (PQstatus(pg->conn) == CONNECTION_BAD)
		return connect_failed(pg);
	if (now >= pg->deadline) {
		snprintf(text, sizeof(text), "%s, port %s: no answer within %lld s",
		    PQhost(pg->conn), PQport(pg->conn), (long long)(pg->timeout / CLOCK_SECOND));
		error_set(&pg->error, NULL, text);
		pg_close(pg);
		return PG_FAILED;
	}
	/* PQconnectPoll() may block when it is called before its socket is ready. */
	if (poll(&pfd, 1, 0) <= 0)
		return PG_NOTHING;
	switch (PQconnectPoll(pg->conn)) {
	case PGRES_POLLING_READING:
		pg->writing = false;
		return PG_NOTHING;
	case PGRES_POLLING_WRITING:
		pg->writing = true;
		return PG_NOTHING;
	case PGRES_POLLING_OK:
		PQsetErrorVerbosity(pg->conn, PQERRORS_DEFAULT);
		if (PQsetnonblocking(pg->conn, 1) == -1)
			return lost(pg);
		pg->writing = false;
		pg->state = PG_IDLE;
		return PG_CONNECTED;
	default:
		return connect_failed(pg);
	}
}

/* ---- queries ---- */

/* The socket to poll, -1 if there is none. It may change while connecting: ask before every poll.
 */
int
pg_fd(const struct pg *pg)
{
	return pg->conn != NULL ? PQsocket(pg->conn) : -1;
}

short
pg_events(const struct pg *pg)
{
	if (pg->state == PG_CONNECTING)
		return pg->writing ? POLLOUT : POLLIN;
	return (short)(POLLIN | (pg->writing ? POLLOUT : 0));
}

static void
start(struct pg *pg)
{
	error_clear(&pg->error);
	PQclear(pg->rows);
	pg->rows = NULL;
	pg->not_durable = pg->copying = pg->fenced = false;
	pg->copy_count = pg->copy = pg->copies_begun = pg->copies_done = 0;
	pg->tag[0] = '\0';
}

static int
started(struct pg *pg, int sent)
{
	int left = sent ? PQflush(pg->conn) : -1;

	if (left == -1) {
		error_set(&pg->error, NULL, PQerrorMessage(pg->conn));
		return -1;
	}
	pg->writing = left == 1;
	pg->state = PG_BUSY;
	return 0;
}

/*
 * Sends SQL; pg must be idle. With parameters it may be one statement only, without (count is 0)
 * several, as one string. Returns -1 when the connection has gone; pg_close() it then.
 */
int
pg_query(struct pg *pg, const char *sql, const char *const *params, int count)
{
	start(pg);
	if (count == 0)
		return started(pg, PQsendQuery(pg->conn, sql));
	return started(pg, PQsendQueryParams(pg->conn, sql, count, NULL, params, NULL, NULL, 0));
}

/*
 * Sends SQL whose COPY … FROM STDIN statements read the given texts, in order. If it has an UPDATE
 * before them that does not touch exactly one row, they are refused, which ends the transaction,
 * and fenced is set. As pg_query().
 */
int
pg_query_copy(struct pg *pg, const char *sql, const struct pg_copy *copies, int count)
{
	start(pg);
	memcpy(pg->copies, copies, (size_t)count * sizeof(*copies));
	pg->copy_count = count;
	return started(pg, PQsendQuery(pg->conn, sql));
}

/* Hands the COPY's next pieces to libpq. False when it has to wait for the socket, or has failed.
 */
static bool
feed(struct pg *pg, bool *failed)
{
	struct pg_copy *c = &pg->copies[pg->copy];
	size_t n;
	int rc;

	while (pg->copied < c->n) {
		n = c->n - pg->copied < COPY_PIECE ? c->n - pg->copied : COPY_PIECE;
		rc = PQputCopyData(pg->conn, (const char *)c->data + pg->copied, (int)n);
		if (rc == 1)
			pg->copied += n;
		*failed = rc == -1 || FAILPOINT("in_copy");
		if (rc != -1)
			rc = PQflush(pg->conn);
		*failed = *failed || rc == -1;
		pg->writing = rc == 1;
		if (rc != 0)
			return false;
	}
	rc = PQputCopyEnd(pg->conn, NULL);
	if (rc == 1) {
		pg->copying = false;
		pg->copy++;
		rc = PQflush(pg->conn);
	} else if (rc == 0) {
		pg->writing = true;
		return false;
	}
	*failed = rc == -1 || (pg->copy == pg->copy_count && FAILPOINT("after_copy_before_commit"));
	pg->writing = rc == 1;
	return rc == 0 && !*failed;
}

static void
take_result(struct pg *pg, PGresult *res)
{
	switch (PQresultStatus(res)) {
	case PGRES_TUPLES_OK:
		PQclear(pg->rows);
		pg->rows = res;
		return;
	case PGRES_COPY_IN:
		pg->copying = true;
		pg->copied = 0;
		pg->copies_begun++;
		/* An empty text would end it well; a refusal is what these deserve. */
		pg->astray = FAILPOINT("after_move_before_copy");
		if (pg->fenced || pg->copy == pg->copy_count) {
			pg->copying = false;
			PQputCopyEnd(pg->conn,
			    pg->fenced ? "the progress row has gone or moved"
				       : "no COPY was expected here");
		}
		break;
	case PGRES_COPY_OUT:
	case PGRES_COPY_BOTH:
		/* Nobody asked for that, and libpq would give the same result for ever. */
		error_set(&pg->error, NULL, "the server sends a COPY that nobody asked for");
		pg->astray = true;
		break;
	case PGRES_COMMAND_OK:
	case PGRES_EMPTY_QUERY:
		snprintf(pg->tag, sizeof(pg->tag), "%s", PQcmdStatus(res));
		if (strncmp(pg->tag, "UPDATE", 6) == 0 && strcmp(pg->tag, "UPDATE 1") != 0)
			pg->fenced = true;
		pg->copies_done += strncmp(pg->tag, "COPY", 4) == 0;
		break;
	default:
		note_result_error(pg, res);
		break;
	}
	PQclear(res);
}

/*
 * The connection has gone in the middle of a query. What the server said before it went is still in
 * libpq's hands, and the better reason.
 */
static enum pg_event
lost_in_query(struct pg *pg)
{
	PGresult *res;
	int i;

	if (pg->copying)
		PQputCopyEnd(pg->conn, NULL);
	/* Bounded: on a dead connection libpq does not end every series of results. */
	for (i = 0; i < 8 && PQstatus(pg->conn) == CONNECTION_BAD; i++) {
		res = PQgetResult(pg->conn);
		if (res == NULL)
			break;
		if (PQresultStatus(res) == PGRES_FATAL_ERROR)
			note_result_error(pg, res);
		PQclear(res);
	}
	return lost(pg);
}

static enum pg_event
run_busy(struct pg *pg)
{
	bool failed = false;
	PGresult *res;
	int left;

	if (!PQconsumeInput(pg->conn))
		return lost_in_query(pg);
	for (;;) {
		if (pg->copying && !feed(pg, &failed))
			return failed ? lost_in_query(pg) : PG_NOTHING;
		left = PQflush(pg->conn);
		if (left == -1)
			return lost_in_query(pg);
		pg->writing = left == 1;
		if (PQisBusy(pg->conn))
			return PG_NOTHING;
		res = PQgetResult(pg->conn);
		if (res == NULL)
			break;
		take_result(pg, res);
		if (pg->astray)
			return lost(pg);
	}
	if (PQstatus(pg->conn) == CONNECTION_BAD)
		return lost(pg);
	pg->state = PG_IDLE;
	return PG_DONE;
}

static enum pg_event
run_idle(struct pg *pg)
{
	bool alive = PQconsumeInput(pg->conn);

	/* Called for its parsing: it hands a notice or a farewell to receive_notice(). */
	PQisBusy(pg->conn);
	return alive && PQstatus(pg->conn) != CONNECTION_BAD ? PG_NOTHING : lost(pg);
}

/* Does what can be done without waiting. To be called after pg_connect() or a query, when the
 * socket is ready, and at the deadline of an attempt. */
enum pg_event
pg_run(struct pg *pg, int64_t now)
{
	switch (pg->state) {
	case PG_CONNECTING:
		return run_connecting(pg, now);
	case PG_BUSY:
		return run_busy(pg);
	case PG_IDLE:
		return run_idle(pg);
	default:
		return PG_NOTHING;
	}
}

/* Rows of the last statement that returned some. */
int
pg_rows(const struct pg *pg)
{
	return PQntuples(pg->rows);
}

/* Good until the next query; the empty string for NULL, and where the answer has no such field. */
const char *
pg_value(const struct pg *pg, int row, int column)
{
	const char *value = PQgetvalue(pg->rows, row, column);

	return value != NULL ? value : "";
}

bool
pg_in_transaction(const struct pg *pg)
{
	return pg->conn != NULL && PQtransactionStatus(pg->conn) != PQTRANS_IDLE;
}

/* Ends the connection, whatever it is doing; error stays. */
void
pg_close(struct pg *pg)
{
	PQclear(pg->rows);
	PQfinish(pg->conn);
	pg->rows = NULL;
	pg->conn = NULL;
	pg->state = PG_CLOSED;
	pg->copying = pg->writing = false;
}
