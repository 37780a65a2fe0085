/*
 * Are the database and its tables fit to hold what the writer brings? Reads the answers to
 * schema_facts_sql() and schema_columns_sql().
 *
 * What is wrong becomes one sentence that says what to change. Must never let a batch start that
 * the database would refuse for a reason that can be seen here, nor one whose commit would not be
 * durable.
 */
#include "check.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pg.h"
#include "schema.h"
#include "trouble.h"

/* Older ones are out of support and untried. */
#define OLDEST_VERSION 120000
#define OLDEST_NAME "12"

struct need {
	const char *name;
	const char *types[3]; /* as format_type() spells them */
};

static const struct need table_needs[] = {
    {"time", {"timestamp with time zone", "timestamp without time zone"}},
    {"topic", {"text", "character varying"}},
    {"payload", {"jsonb", "json", "text"}},
};

static const struct need dead_letter_needs[] = {
    {"received", {"timestamp with time zone", "timestamp without time zone"}},
    {"topic", {"text"}},
    {"payload", {"bytea"}},
    {"qos", {"smallint", "integer", "bigint"}},
    {"retain", {"boolean"}},
    {"properties", {"jsonb", "json", "text"}},
    {"lane", {"integer", "bigint", "smallint"}},
    {"reason", {"text"}},
    {"sqlstate", {"text"}},
    {"detail", {"text"}},
};

static const struct need progress_needs[] = {
    {"stream", {"uuid"}},
    {"lane", {"integer", "bigint", "smallint"}},
    {"seq", {"bigint"}},
    {"dead_letters", {"bigint"}},
    {"closed", {"boolean"}},
    {"session", {"bigint"}},
    {"instance", {"bigint"}},
};

/* One of the tables, and as what schema_columns_sql() knows it. */
struct table {
	const char *name;
	const char *key;
	bool moves; /* its rows are read, changed and removed as well */
	const struct need *needs;
	size_t need_count;
};

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))
#define IS_TRUE(value) ((value)[0] == 't')

static const char *
kind_name(char kind)
{
	switch (kind) {
	case 'v':
		return "a view";
	case 'm':
		return "a materialized view";
	case 'f':
		return "a foreign table";
	case 'i':
	case 'I':
		return "an index";
	case 'S':
		return "a sequence";
	default:
		return "no table";
	}
}

static bool
check_relation(const char *name, const char *advice, const char *kind, const char *persistence,
    struct trouble *t)
{
	if (*kind == '\0')
		return true;
	if (*kind != 'r' && *kind != 'p') {
		trouble_set(t, "42809", "%s is %s; ingestd writes into tables: %s", name,
		    kind_name(*kind), advice);
		return false;
	}
	if (*persistence == 'u') {
		trouble_set(t, "42P16",
		    "%s is UNLOGGED, and what is acknowledged would not survive a crash: ALTER "
		    "TABLE %s SET "
		    "LOGGED",
		    name, name);
		return false;
	}
	return true;
}

/*
 * Judges the facts and says what is missing. Returns false with the trouble when the database
 * cannot be used as it is.
 */
bool
check_facts(const struct pg *pg, const struct schema *schema, struct schema_missing *missing,
    struct trouble *t)
{
	const char *fact[FACT_COUNT];
	int i;

	for (i = 0; i < FACT_COUNT; i++)
		fact[i] = pg_value(pg, 0, i);
	if (atoi(fact[FACT_VERSION_NUMBER]) < OLDEST_VERSION) {
		trouble_set(t, "0A000",
		    "PostgreSQL %s is too old; ingestd needs " OLDEST_NAME " or later",
		    fact[FACT_VERSION]);
		return false;
	}
	/* Elsewhere a topic or a payload could hold what the database cannot, and hold up its lane.
	 */
	if (strcmp(fact[FACT_ENCODING], "UTF8") != 0) {
		trouble_set(t, "0A000",
		    "database \"%s\" has the encoding %s; ingestd needs UTF8: CREATE DATABASE ... "
		    "ENCODING "
		    "'UTF8' TEMPLATE template0",
		    pg->database, fact[FACT_ENCODING]);
		return false;
	}
	if (!IS_TRUE(fact[FACT_SPACE_EXISTS])) {
		trouble_set(t, "3F000",
		    "the schema of table %s does not exist; make it with CREATE SCHEMA %s, or "
		    "change --table",
		    schema->given, schema->space);
		return false;
	}
	if (!check_relation(schema->given, "rename it, or change --table", fact[FACT_TABLE_KIND],
		fact[FACT_TABLE_PERSISTENCE], t) ||
	    !check_relation("ingestd.dead_letter",
		"rename it, and ingestd makes a table of that name", fact[FACT_DEAD_LETTER_KIND],
		fact[FACT_DEAD_LETTER_PERSISTENCE], t) ||
	    !check_relation("ingestd.progress", "rename it, and ingestd makes a table of that name",
		fact[FACT_PROGRESS_KIND], fact[FACT_PROGRESS_PERSISTENCE], t))
		return false;

	*missing = (struct schema_missing){
	    .table = *fact[FACT_TABLE_KIND] == '\0',
	    .ingestd = !IS_TRUE(fact[FACT_INGESTD_EXISTS]),
	    .dead_letter = *fact[FACT_DEAD_LETTER_KIND] == '\0',
	    .progress = *fact[FACT_PROGRESS_KIND] == '\0',
	};
	snprintf(missing->timescaledb, sizeof(missing->timescaledb), "%s",
	    fact[FACT_TIMESCALEDB_SCHEMA]);
	return true;
}

/* ---- columns ---- */

/* A list in a sentence: "a, b, c". */
#define LIST_ROOM 500

struct list {
	char text[LIST_ROOM + sizeof(", ")];
	size_t len;
};

static void __attribute__((format(printf, 2, 3))) list_add(struct list *l, const char *fmt, ...)
{
	va_list ap;
	int n;

	if (l->len > 0)
		l->len = (size_t)(stpcpy(l->text + l->len, ", ") - l->text);
	va_start(ap, fmt);
	n = vsnprintf(l->text + l->len, LIST_ROOM - l->len, fmt, ap);
	va_end(ap);
	/* A table of hundreds of columns gets a sentence that breaks off. */
	l->len = n >= 0 && (size_t)n < LIST_ROOM - l->len ? l->len + (size_t)n : LIST_ROOM - 1;
}

/* The row of a column of the table, -1 if there is none. */
static int
find_column(const struct pg *pg, const struct table *table, const char *name)
{
	int row;

	for (row = 0; row < pg_rows(pg); row++) {
		if (strcmp(pg_value(pg, row, COLUMN_TABLE), table->key) == 0 &&
		    strcmp(pg_value(pg, row, COLUMN_NAME), name) == 0)
			return row;
	}
	return -1;
}

static const struct need *
find_need(const struct table *table, const char *column)
{
	size_t i;

	for (i = 0; i < table->need_count; i++) {
		if (strcmp(table->needs[i].name, column) == 0)
			return &table->needs[i];
	}
	return NULL;
}

static bool
type_fits(const struct need *need, const char *type)
{
	size_t i;

	for (i = 0; i < COUNT(need->types) && need->types[i] != NULL; i++) {
		if (strcmp(need->types[i], type) == 0)
			return true;
	}
	return false;
}

/* Columns that the table lacks, or has with another type. */
static bool
check_needs(const struct pg *pg, const struct table *table, struct trouble *t)
{
	struct list absent = {.len = 0}, wrong = {.len = 0}, locked = {.len = 0};
	const struct need *need;
	size_t i;
	int row;

	for (i = 0; i < table->need_count; i++) {
		need = &table->needs[i];
		row = find_column(pg, table, need->name);
		if (row == -1)
			list_add(&absent, "%s (%s)", need->name, need->types[0]);
		else if (!type_fits(need, pg_value(pg, row, COLUMN_BASE_TYPE)))
			list_add(&wrong, "%s is %s and should be %s", need->name,
			    pg_value(pg, row, COLUMN_TYPE), need->types[0]);
		else if (!IS_TRUE(pg_value(pg, row, COLUMN_INSERTABLE)) ||
		    (table->moves && !IS_TRUE(pg_value(pg, row, COLUMN_MOVABLE))))
			list_add(&locked, "%s", need->name);
	}
	if (absent.len == 0 && wrong.len == 0 && locked.len == 0)
		return true;
	if (absent.len > 0)
		trouble_set(t, "42703",
		    "%s lacks columns that ingestd fills: %s%s%s; add them, or change --table",
		    table->name, absent.text,
		    wrong.len > 0 ? "; and others have the wrong type: " : "", wrong.text);
	else if (wrong.len > 0)
		trouble_set(t, "42804",
		    "%s has columns of the wrong type: %s; ALTER TABLE %s ALTER COLUMN ... TYPE "
		    "..., or "
		    "change --table",
		    table->name, wrong.text, table->name);
	else
		trouble_set(t, "42501",
		    "permission denied for table %s, columns %s; GRANT INSERT%s ON %s TO \"%s\"",
		    table->name, locked.text, table->moves ? ", SELECT, UPDATE, DELETE" : "",
		    table->name, pg->user);
	return false;
}

/* Columns that ingestd does not fill and that want a value. */
static bool
check_others(const struct pg *pg, const struct table *table, struct trouble *t)
{
	struct list required = {.len = 0};
	const char *name;
	int row;

	for (row = 0; row < pg_rows(pg); row++) {
		name = pg_value(pg, row, COLUMN_NAME);
		if (strcmp(pg_value(pg, row, COLUMN_TABLE), table->key) == 0 &&
		    IS_TRUE(pg_value(pg, row, COLUMN_REQUIRED)) && find_need(table, name) == NULL)
			list_add(&required, "%s", name);
	}
	if (required.len == 0)
		return true;
	trouble_set(t, "42P16",
	    "%s has columns that are NOT NULL, have no default, and that ingestd does not fill: "
	    "%s; give "
	    "them a default, or change --table",
	    table->name, required.text);
	return false;
}

static bool
check_tables(const struct pg *pg, const struct table *tables, size_t count, struct trouble *t)
{
	size_t i;

	for (i = 0; i < count; i++) {
		if (!check_needs(pg, &tables[i], t) || !check_others(pg, &tables[i], t))
			return false;
	}
	return true;
}

/* Checks the columns of all tables. Returns false with the trouble when one of them is not fit. */
bool
check_columns(const struct pg *pg, const struct schema *schema, struct trouble *t)
{
	const struct table tables[] = {
	    {schema->given, "rows", false, table_needs, COUNT(table_needs)},
	    {"ingestd.dead_letter", "dead_letter", false, dead_letter_needs,
		COUNT(dead_letter_needs)},
	    {"ingestd.progress", "progress", true, progress_needs, COUNT(progress_needs)},
	};

	return check_tables(pg, tables, COUNT(tables), t);
}

/* The same for the table of the rows alone. */
bool
check_rows_columns(const struct pg *pg, const struct schema *schema, struct trouble *t)
{
	const struct table table = {schema->given, "rows", false, table_needs, COUNT(table_needs)};

	return check_tables(pg, &table, 1, t);
}
