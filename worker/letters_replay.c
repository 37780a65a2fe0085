/*
 * `ingestd dead-letters replay`: dead letters go through the same code as new messages, and those
 * that can be stored now are deleted in the transaction that stores them.
 *
 * Their rows are locked first, so that of two replays each takes others. What fails again stays
 * with the new reason and harms no other; it is not tried again in this run. Must never delete a
 * letter whose row is not in the same transaction, nor store one that it does not delete.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>

#include "batch.h"
#include "check.h"
#include "letters.h"
#include "letters_batch.h"
#include "letters_select.h"
#include "trouble.h"

/* What a row costs besides its topic and payload, so that many small ones fill a batch as well. */
#define ROW_COST 64
/* For how long the last letters are waited for that somebody else has locked. */
#define PATIENCE_SQL "SET LOCAL lock_timeout = '5s'"
/* Ready for COPY: what is deferred to the commit would take the whole batch along. */
#define BEGIN_SQL                                           \
	"BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; " \
	"SET CONSTRAINTS ALL IMMEDIATE"

struct replay {
	struct letters_db *db;
	struct letters_ids ids;   /* what was selected */
	struct letters_ids later; /* what somebody else had locked */
	struct letters_ids taken; /* the batch in hand */
	struct letters_batch batch;
	struct letter letter;
	size_t total;
	size_t next; /* of ids */
	size_t replayed;
	size_t stayed;
	size_t gone;
	bool patient; /* what is locked is waited for */
};

static int
no_memory(struct replay *r)
{
	pg_close(&r->db->pg);
	letters_say(r->db, "out of memory: nothing is half done");
	return EX_OSERR;
}

static int
run(struct replay *r, const char *sql, const char *what)
{
	return letters_db_query(r->db, sql, NULL, 0) == LETTERS_OK ? 0
								   : letters_db_fail(r->db, what);
}

/* The same with an array of ids as its one parameter. */
static int
run_on_ids(struct replay *r, const char *sql, const int64_t *ids, size_t n, const char *what)
{
	char *text = letters_ids_text(ids, n);
	const char *params[1] = {text};
	enum letters_call call;

	if (text == NULL)
		return no_memory(r);
	call = letters_db_query(r->db, sql, params, 1);
	free(text);
	return call == LETTERS_OK ? 0 : letters_db_fail(r->db, what);
}

/* ---- before ---- */

/* The table must be as ingestd itself would want it, but that it is not made. */
static int
check_table(struct letters_db *db)
{
	const char *params[SCHEMA_FACTS_PARAMETERS] = {db->schema.table, db->schema.space};
	struct schema_missing missing;
	struct trouble t;

	if (letters_db_query(db, schema_facts_sql(), params, SCHEMA_FACTS_PARAMETERS) != LETTERS_OK)
		return letters_db_fail(db, "cannot look at the tables");
	if (!check_facts(&db->pg, &db->schema, &missing, &t)) {
		letters_say(db, "%s (SQLSTATE %s)", t.text, t.sqlstate);
		return EX_CONFIG;
	}
	if (missing.dead_letter || missing.table) {
		letters_say(db, "there is no table %s in database \"%s\"; %s",
		    missing.dead_letter ? "ingestd.dead_letter" : db->schema.given, db->pg.database,
		    missing.dead_letter ? "is it the one that ingestd writes into? If not, change "
					  "--database"
					: "start ingestd, which makes its table, or change "
					  "--table; the dead letters stay as they are");
		return EX_CONFIG;
	}
	if (letters_db_query(db, schema_columns_sql(), params, SCHEMA_COLUMNS_PARAMETERS) !=
	    LETTERS_OK)
		return letters_db_fail(db, "cannot look at the tables");
	if (check_rows_columns(&db->pg, &db->schema, &t))
		return 0;
	letters_say(db, "%s (SQLSTATE %s)", t.text, t.sqlstate);
	return EX_CONFIG;
}

/* ---- taking a batch ---- */

/* The letters of the answer, in order, that fit into one batch; the others had no lock, or wait. */
static int
choose(struct replay *r, const int64_t *wanted, size_t n)
{
	const struct pg *pg = &r->db->pg;
	size_t i, cost = 0;
	int row = 0, rows = pg_rows(pg);

	r->taken.n = 0;
	for (i = 0; i < n; i++) {
		if (row == rows || strtoll(pg_value(pg, row, 0), NULL, 10) != wanted[i]) {
			if (r->patient)
				r->gone++;
			else if (letters_ids_add(&r->later, wanted[i]) == -1)
				return no_memory(r);
			continue;
		}
		cost += ROW_COST + strtoull(pg_value(pg, row, 1), NULL, 10);
		if (r->taken.n > 0 && cost > BATCH_BYTES)
			break;
		if (letters_ids_add(&r->taken, wanted[i]) == -1)
			return no_memory(r);
		row++;
	}
	r->next += i;
	return 0;
}

/* Begins the transaction and locks the next letters in it. */
static int
take(struct replay *r)
{
	static const char *const sql[] = {
	    "SELECT id, octet_length(topic) + octet_length(payload) FROM ingestd.dead_letter "
	    "WHERE id = ANY ($1::bigint[]) ORDER BY id FOR UPDATE SKIP LOCKED",
	    "SELECT id, octet_length(topic) + octet_length(payload) FROM ingestd.dead_letter "
	    "WHERE id = ANY ($1::bigint[]) ORDER BY id FOR UPDATE"};
	size_t most = (size_t)r->db->options->cfg.batch_size, left = r->ids.n - r->next;
	size_t n = left < most ? left : most;
	int rc = run(r, BEGIN_SQL, "cannot begin a transaction");

	if (rc == 0 && r->patient)
		rc = run(r, PATIENCE_SQL, "cannot set a timeout");
	if (rc == 0)
		rc = run_on_ids(r, sql[r->patient], r->ids.list + r->next, n,
		    r->patient ? "cannot take the dead letters that another session has locked"
			       : "cannot take dead letters");
	if (rc == 0)
		rc = choose(r, r->ids.list + r->next, n);
	if (rc == 0 && r->patient)
		rc = run(r, "SET LOCAL lock_timeout TO DEFAULT", "cannot set a timeout");
	return rc;
}

/* Reads what was taken and judges it; each becomes a line of the batch or stays. */
static int
read_letters(struct replay *r)
{
	static const char sql[] = "SELECT " LETTER_COLUMNS " FROM ingestd.dead_letter "
				  "WHERE id = ANY ($1::bigint[]) ORDER BY id";
	const char *column[LETTER_COLUMN_COUNT];
	int rc, row, i;

	letters_batch_clear(&r->batch);
	if (r->taken.n == 0)
		return 0;
	rc = run_on_ids(r, sql, r->taken.list, r->taken.n, "cannot read dead letters");
	for (row = 0; rc == 0 && row < pg_rows(&r->db->pg); row++) {
		for (i = 0; i < LETTER_COLUMN_COUNT; i++)
			column[i] = pg_value(&r->db->pg, row, i);
		if (letter_read(&r->letter, column) == -1 ||
		    letters_batch_add(&r->batch, column, &r->letter.record) == -1)
			rc = no_memory(r);
	}
	return rc;
}

/* ---- storing it ---- */

/* A rule or a policy can keep a row from being touched, in silence. */
static int
expect_tag(struct replay *r, const char *verb, size_t n)
{
	char tag[sizeof(r->db->pg.tag)];

	snprintf(tag, sizeof(tag), "%s %zu", verb, n);
	if (strcmp(r->db->pg.tag, tag) == 0)
		return 0;
	letters_say(r->db,
	    "the database has done '%s' on ingestd.dead_letter where '%s' was meant: a rule, "
	    "trigger or policy there stands in the way; the batch in hand is taken back",
	    r->db->pg.tag, tag);
	pg_close(&r->db->pg);
	return EX_CONFIG;
}

static int
delete_stored(struct replay *r)
{
	static const char sql[] = "DELETE FROM ingestd.dead_letter WHERE id = ANY ($1::bigint[])";
	const struct letters_ids *stored = &r->batch.stored;
	int rc;

	if (stored->n == 0)
		return 0;
	rc = run_on_ids(r, sql, stored->list, stored->n, "cannot delete what is stored");
	return rc != 0 ? rc : expect_tag(r, "DELETE", stored->n);
}

static int
note_reasons(struct replay *r)
{
	static const char sql[] =
	    "UPDATE ingestd.dead_letter SET reason = $2::text, sqlstate = NULLIF($3::text, ''), "
	    "detail = NULLIF($4::text, '') WHERE id = $1::bigint";
	const struct letters_stay *s;
	const char *params[4];
	char id[24];
	size_t i;
	int rc = 0;

	for (i = 0; rc == 0 && i < r->batch.stay_count; i++) {
		s = &r->batch.stays[i];
		if (!s->changed)
			continue;
		snprintf(id, sizeof(id), "%" PRId64, s->id);
		params[0] = id;
		params[1] = s->reason;
		params[2] = s->sqlstate;
		params[3] = s->detail;
		if (letters_db_query(r->db, sql, params, 4) != LETTERS_OK)
			rc = letters_db_fail(r->db, "cannot note why a dead letter stays");
		else
			rc = expect_tag(r, "UPDATE", 1);
	}
	return rc;
}

static int
commit(struct replay *r)
{
	return letters_db_commit(r->db) == LETTERS_OK ? 0 : letters_db_fail(r->db, "cannot commit");
}

static int
replay_batch(struct replay *r)
{
	int rc = take(r);

	if (rc == 0)
		rc = read_letters(r);
	if (rc == 0)
		rc = letters_batch_store(&r->batch, r->db);
	if (rc == 0)
		rc = note_reasons(r);
	if (rc == 0)
		rc = delete_stored(r);
	if (rc == 0)
		rc = commit(r);
	if (rc == 0) {
		r->replayed += r->batch.stored.n;
		r->stayed += r->batch.stay_count;
		letters_bar_draw(&r->db->bar, r->replayed + r->stayed + r->gone, r->total);
	}
	return rc;
}

/*
 * All that was selected, and then what somebody else had locked: by now another replay has stored
 * it, or has let it go.
 */
static int
replay_all(struct replay *r)
{
	int rc = 0;

	while (rc == 0 && r->next < r->ids.n)
		rc = replay_batch(r);
	if (rc != 0 || r->later.n == 0)
		return rc;
	letters_ids_free(&r->ids);
	r->ids = r->later;
	r->later = (struct letters_ids){.n = 0};
	r->next = 0;
	r->patient = true;
	while (rc == 0 && r->next < r->ids.n)
		rc = replay_batch(r);
	return rc;
}

static void
print_summary(const struct replay *r)
{
	size_t left = r->total - r->replayed - r->stayed - r->gone;

	printf("replayed %zu, stayed %zu", r->replayed, r->stayed);
	if (r->gone > 0)
		printf(", taken by others %zu", r->gone);
	if (left > 0)
		printf(", not tried %zu", left);
	putchar('\n');
}

/*
 * Returns 0 when all that was selected is stored, 65 when some stay, else why it could not go on:
 * 75, 78, or 128 and a signal's number.
 */
int
letters_replay(struct letters_db *db)
{
	struct letters_selection selection;
	struct replay r = {.db = db};
	int rc;

	rc = letters_selection_init(&selection, db);
	if (rc == 0)
		rc = check_table(db);
	if (rc == 0)
		rc = letters_ids_find(&r.ids, db, &selection);
	if (rc == 0) {
		r.total = r.ids.n;
		letters_bar_init(&db->bar, "replay");
		letters_bar_draw(&db->bar, 0, r.total);
		rc = replay_all(&r);
		letters_bar_clear(&db->bar);
		print_summary(&r);
		if (rc == 0 && r.stayed > 0)
			rc = EX_DATAERR;
	}
	letters_selection_free(&selection);
	letters_ids_free(&r.ids);
	letters_ids_free(&r.later);
	letters_ids_free(&r.taken);
	letters_batch_free(&r.batch);
	letter_free(&r.letter);
	return rc;
}
