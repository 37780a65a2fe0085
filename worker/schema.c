/*
 * The SQL that the writer speaks, as text: finding out about the tables, making them, filling them.
 *
 * Pure: no connection, no decisions. Must never let a name become SQL: identifiers are quoted, and
 * what can be a parameter is one.
 */
#include "schema.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dead_letter.h"

/* "ingestd" in ASCII: an advisory lock so that two writers do not make the same table at once. */
#define LOCK_KEY "29676262917370980"

/* Returns the identifier quoted, the caller's to free; NULL when memory is short. */
char *
schema_quote(const char *name)
{
	char *quoted = malloc(2 * strlen(name) + 3), *to = quoted;

	if (quoted == NULL)
		return NULL;
	*to++ = '"';
	for (; *name != '\0'; name++) {
		if (*name == '"')
			*to++ = '"';
		*to++ = *name;
	}
	strcpy(to, "\"");
	return quoted;
}

/* A string literal that means the same under every standard_conforming_strings. */
static char *
quote_literal(const char *text)
{
	char *quoted = malloc(2 * strlen(text) + 5), *to = quoted;

	if (quoted == NULL)
		return NULL;
	to = stpcpy(to, strchr(text, '\\') != NULL ? " E'" : "'");
	for (; *text != '\0'; text++) {
		if (*text == '\'' || *text == '\\')
			*to++ = *text;
		*to++ = *text;
	}
	strcpy(to, "'");
	return quoted;
}

/* name is NAME or SCHEMA.NAME, parted at the first dot. Returns -1 when memory is short. */
int
schema_init(struct schema *s, const char *name)
{
	const char *dot = strchr(name, '.');
	char *space = NULL, *table = schema_quote(dot != NULL ? dot + 1 : name);

	*s = (struct schema){.given = strdup(name)};
	if (dot != NULL) {
		space = strndup(name, (size_t)(dot - name));
		s->space = space != NULL ? schema_quote(space) : NULL;
		free(space);
	}
	if (dot == NULL) {
		s->table = table;
		table = NULL;
	} else if (s->space != NULL && table != NULL &&
	    asprintf(&s->table, "%s.%s", s->space, table) == -1) {
		s->table = NULL;
	}
	free(table);
	if (s->given != NULL && s->table != NULL)
		return 0;
	schema_free(s);
	return -1;
}

void
schema_free(struct schema *s)
{
	free(s->given);
	free(s->table);
	free(s->space);
	*s = (struct schema){0};
}

/* Parameters: the table and its schema as SQL names, the latter NULL if none was given. */
const char *
schema_facts_sql(void)
{
	return "SELECT current_setting('server_version'), current_setting('server_version_num'), "
	       "getdatabaseencoding(), current_setting('synchronous_commit'), "
	       "current_setting('fsync'), "
	       "(SELECT extnamespace::regnamespace FROM pg_extension WHERE extname = "
	       "'timescaledb'), "
	       "$2::text IS NULL OR to_regnamespace($2::text) IS NOT NULL, "
	       "t.relkind, t.relpersistence, "
	       "to_regnamespace('ingestd') IS NOT NULL, "
	       "d.relkind, d.relpersistence, p.relkind, p.relpersistence, "
	       "CASE WHEN has_function_privilege('pg_control_system()', 'EXECUTE') "
	       "THEN (SELECT system_identifier::text FROM pg_control_system()) ELSE '' END || '/' "
	       "|| (SELECT oid FROM pg_database WHERE datname = current_database()) "
	       "FROM (SELECT to_regclass($1::text) AS t, to_regclass('ingestd.dead_letter') AS d, "
	       "to_regclass('ingestd.progress') AS p) n "
	       "LEFT JOIN pg_class t ON t.oid = n.t LEFT JOIN pg_class d ON d.oid = n.d "
	       "LEFT JOIN pg_class p ON p.oid = n.p";
}

/* Opens a transaction in which nobody else makes tables. */
const char *
schema_lock_sql(void)
{
	return "BEGIN; SELECT pg_advisory_xact_lock(" LOCK_KEY ")";
}

/* Parameter: the table as a SQL name. Domains count as what they are of. */
const char *
schema_columns_sql(void)
{
	return "SELECT CASE a.attrelid WHEN to_regclass($1::text) THEN 'rows' "
	       "WHEN to_regclass('ingestd.progress') THEN 'progress' ELSE 'dead_letter' END, "
	       "a.attname, format_type(a.atttypid, a.atttypmod), "
	       "format_type(CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE t.oid END, NULL), "
	       "a.attnotnull AND NOT a.atthasdef AND a.attidentity = '' AND t.typdefault IS NULL, "
	       "has_column_privilege(a.attrelid, a.attnum, 'INSERT'), "
	       "has_column_privilege(a.attrelid, a.attnum, 'SELECT') AND "
	       "has_column_privilege(a.attrelid, a.attnum, 'UPDATE') AND "
	       "has_table_privilege(a.attrelid, 'DELETE') "
	       "FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid "
	       "WHERE a.attrelid IN (to_regclass($1::text), to_regclass('ingestd.dead_letter'), "
	       "to_regclass('ingestd.progress')) "
	       "AND a.attnum > 0 AND NOT a.attisdropped "
	       "ORDER BY a.attrelid, a.attnum";
}

static int
add_create_table(FILE *f, const struct schema *s, const char *timescaledb)
{
	char *literal;

	fprintf(f,
	    "CREATE TABLE IF NOT EXISTS %s (time timestamptz NOT NULL, topic text NOT NULL, "
	    "payload jsonb NOT NULL); ",
	    s->table);
	if (*timescaledb == '\0')
		return 0;
	literal = quote_literal(s->table);
	if (literal == NULL)
		return -1;
	fprintf(f, "SELECT %s.create_hypertable(%s, 'time', if_not_exists => true); ", timescaledb,
	    literal);
	free(literal);
	return 0;
}

/*
 * SQL for what is missing, and for the end of schema_lock_sql()'s transaction. The caller's to
 * free; NULL when memory is short.
 */
char *
schema_create_sql(const struct schema *s, const struct schema_missing *missing)
{
	char *sql = NULL;
	size_t n;
	FILE *f = open_memstream(&sql, &n);
	int rc = 0;

	if (f == NULL)
		return NULL;
	if (missing->table)
		rc = add_create_table(f, s, missing->timescaledb);
	if (missing->ingestd)
		fputs("CREATE SCHEMA IF NOT EXISTS ingestd; ", f);
	if (missing->dead_letter)
		fputs("CREATE TABLE IF NOT EXISTS ingestd.dead_letter ("
		      "id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, "
		      "received timestamptz NOT NULL, "
		      "stored timestamptz NOT NULL DEFAULT clock_timestamp(), "
		      "topic text NOT NULL, payload bytea NOT NULL, qos smallint NOT NULL, "
		      "retain boolean NOT NULL, properties jsonb, lane integer NOT NULL, "
		      "reason text NOT NULL, sqlstate text, detail text); ",
		    f);
	if (missing->progress)
		fputs("CREATE TABLE IF NOT EXISTS ingestd.progress ("
		      "stream uuid, lane integer, seq bigint NOT NULL, "
		      "dead_letters bigint NOT NULL, closed boolean NOT NULL DEFAULT false, "
		      "session bigint NOT NULL, instance bigint NOT NULL, "
		      "PRIMARY KEY (stream, lane)); ",
		    f);
	fputs("COMMIT", f);
	if (fclose(f) == 0 && rc == 0)
		return sql;
	free(sql);
	return NULL;
}

/*
 * The transaction of a batch: one simple query, so one round trip, in which each COPY reads what
 * the writer sends next. move is progress_move_sql()'s, first thing behind BEGIN, so that its lock
 * is a fence. The caller's to free; NULL when memory is short.
 */
char *
schema_batch_sql(const struct schema *s, const char *move, bool rows, bool dead_letters)
{
	char *sql;
	int rc;

	rc = asprintf(&sql, "BEGIN; %s%s%s%s%sCOMMIT", move, rows ? "COPY " : "",
	    rows ? s->table : "", rows ? " (time, topic, payload) FROM STDIN; " : "",
	    dead_letters ? "COPY ingestd.dead_letter (" DEAD_LETTER_COLUMNS ") FROM STDIN; " : "");
	return rc == -1 ? NULL : sql;
}

/*
 * The same for so many pieces of a batch, each behind a savepoint of its own: the query ends with
 * the first that is refused, and those before it stay. before ends with the first savepoint.
 */
char *
schema_pieces_sql(const struct schema *s, const char *before, size_t count)
{
	char *sql = NULL;
	size_t n, i;
	FILE *f = open_memstream(&sql, &n);

	if (f == NULL)
		return NULL;
	fputs(before, f);
	for (i = 0; i < count; i++)
		fprintf(f, "%sCOPY %s (time, topic, payload) FROM STDIN; ",
		    i > 0 ? SCHEMA_AFTER_GOOD : "", s->table);
	if (fclose(f) == 0)
		return sql;
	free(sql);
	return NULL;
}

/*
 * The end of such a transaction: count is progress_count_sql()'s or empty, dead_letters how many
 * COPYs there are for them.
 */
char *
schema_isolated_sql(const char *before, const char *count, int dead_letters)
{
	static const char copy[] =
	    "COPY ingestd.dead_letter (" DEAD_LETTER_COLUMNS ") FROM STDIN; ";
	char *sql;
	int rc;

	rc = asprintf(&sql, "%s%s%s%sCOMMIT", before, count, dead_letters > 0 ? copy : "",
	    dead_letters > 1 ? copy : "");
	return rc == -1 ? NULL : sql;
}
