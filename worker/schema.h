#ifndef WORKER_SCHEMA_H
#define WORKER_SCHEMA_H

#include <stdbool.h>
#include <stddef.h>

/* The name of the table as the user gave it and as SQL, and its schema, NULL if none was given.
 * Owned by the struct until schema_free(). */
struct schema {
	char *given;
	char *table;
	char *space;
};

/* The columns of schema_facts_sql()'s one row. */
enum schema_fact {
	FACT_VERSION,
	FACT_VERSION_NUMBER,
	FACT_ENCODING,
	FACT_SYNCHRONOUS_COMMIT,
	FACT_FSYNC,
	FACT_TIMESCALEDB_SCHEMA,
	FACT_SPACE_EXISTS,
	FACT_TABLE_KIND,
	FACT_TABLE_PERSISTENCE,
	FACT_INGESTD_EXISTS,
	FACT_DEAD_LETTER_KIND,
	FACT_DEAD_LETTER_PERSISTENCE,
	FACT_PROGRESS_KIND,
	FACT_PROGRESS_PERSISTENCE,
	FACT_DATABASE, /* which one it is, whatever its name and address */
	FACT_COUNT,
};

/* The columns of schema_columns_sql()'s rows, one row a column of the tables. */
enum schema_column {
	COLUMN_TABLE, /* "rows", "dead_letter" or "progress" */
	COLUMN_NAME,
	COLUMN_TYPE,
	COLUMN_BASE_TYPE,
	COLUMN_REQUIRED, /* NOT NULL, and nothing fills it */
	COLUMN_INSERTABLE,
	COLUMN_MOVABLE, /* of progress: may be read, changed and removed as well */
	COLUMN_COUNT,
};

/* What is missing and is to be made. */
struct schema_missing {
	bool table;
	char timescaledb[140]; /* as SQL: the schema of the extension, empty where it is not
				  installed */
	bool ingestd;
	bool dead_letter;
	bool progress;
};

/*
 * What stands before a piece of a batch, whose savepoint is there in every case: what is SET at its
 * start outlives a refused piece. Constraints are to speak up at once, while it is known of what.
 */
#define SCHEMA_ISOLATE_BEGIN "ROLLBACK; BEGIN; "
#define SCHEMA_ISOLATE_FIRST "SET CONSTRAINTS ALL IMMEDIATE; SAVEPOINT piece; "
#define SCHEMA_AFTER_GOOD "RELEASE piece; SAVEPOINT piece; "
#define SCHEMA_AFTER_BAD "ROLLBACK TO piece; "

#define SCHEMA_FACTS_PARAMETERS 2
#define SCHEMA_COLUMNS_PARAMETERS 1

int schema_init(struct schema *, const char *);
void schema_free(struct schema *);
const char *schema_facts_sql(void);
const char *schema_lock_sql(void);
const char *schema_columns_sql(void);
char *schema_create_sql(const struct schema *, const struct schema_missing *);
char *schema_batch_sql(const struct schema *, const char *move, bool rows, bool dead_letters);
char *schema_pieces_sql(const struct schema *, const char *before, size_t count);
char *schema_isolated_sql(const char *before, const char *count, int dead_letters);
char *schema_quote(const char *);

#endif
