/*
 * The sentences with which trouble is reported: PostgreSQL's own words, and what to change.
 *
 * Must never hold a password, nor what a record holds: both would end in a log.
 */
#include "trouble.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "sqlstate.h"

/* Sets the text and, from the SQLSTATE, the class; an empty state is trouble with the connection.
 */
void
trouble_set(struct trouble *t, const char *sqlstate, const char *fmt, ...)
{
	va_list ap;

	t->class = sqlstate_class(sqlstate);
	snprintf(t->sqlstate, sizeof(t->sqlstate), "%s", sqlstate);
	va_start(ap, fmt);
	vsnprintf(t->text, sizeof(t->text), fmt, ap);
	va_end(ap);
}

static const char *
advice_on_privilege(const struct trouble_context *c, char *out, size_t size)
{
	bool hypertable = c->creating && *c->timescaledb != '\0';

	if (c->creating)
		snprintf(out, size,
		    "GRANT CREATE on the schema of %s, and on database \"%s\" for the schema "
		    "ingestd, %s%s%sto "
		    "\"%s\", or create the tables as their owner",
		    c->table, c->database, hypertable ? "and USAGE on the schema " : "",
		    hypertable ? c->timescaledb : "", hypertable ? " of timescaledb, " : "",
		    c->user);
	else
		snprintf(out, size,
		    "GRANT INSERT ON %s and ON ingestd.dead_letter, SELECT, INSERT, UPDATE, DELETE "
		    "ON ingestd.progress, and USAGE ON their schemas, TO \"%s\"",
		    c->table, c->user);
	return out;
}

/* What a person could change; NULL where there is nothing to say. */
static const char *
advice(const char *state, const struct trouble_context *c, char *out, size_t size)
{
	if (strcmp(state, "28P01") == 0)
		snprintf(out, size,
		    "give the right password of user \"%s\" in --database, PGPASSWORD or a "
		    "password file "
		    "(PGPASSFILE)",
		    c->user);
	else if (strncmp(state, "28", 2) == 0)
		snprintf(out, size,
		    "let user \"%s\" into database \"%s\" in the server's pg_hba.conf, CREATE ROLE "
		    "it if "
		    "it is missing, or change --database",
		    c->user, c->database);
	else if (strcmp(state, "3D000") == 0)
		snprintf(out, size, "CREATE DATABASE \"%s\", or change --database", c->database);
	else if (strcmp(state, "3F000") == 0)
		snprintf(out, size,
		    "the schema ingestd is made again at the next try; any other has to be made "
		    "with CREATE SCHEMA");
	else if (strcmp(state, "42P01") == 0)
		snprintf(out, size, "what has gone is made again at the next try");
	else if (strcmp(state, "42501") == 0)
		return advice_on_privilege(c, out, size);
	else if (strcmp(state, "0A000") == 0)
		snprintf(out, size,
		    "ingestd fills %s with COPY: change what stands against it there", c->table);
	else if (strncmp(state, "42", 2) == 0)
		snprintf(out, size, "mend %s, or change --table", c->table);
	else if (strncmp(state, "53", 2) == 0)
		snprintf(
		    out, size, "the server is short of something: disk, memory or connections");
	else if (strcmp(state, "25006") == 0)
		snprintf(out, size, "ingestd looks for a server that takes writes");
	else
		return NULL;
	return out;
}

/* Sets what the server or libpq has said, and behind it what to change. */
void
trouble_advise(
    struct trouble *t, const char *sqlstate, const char *message, const struct trouble_context *c)
{
	char text[500];
	const char *a = advice(sqlstate, c, text, sizeof(text));

	trouble_set(t, sqlstate, "%s%s%s", message, a != NULL ? "; " : "", a != NULL ? a : "");
}
