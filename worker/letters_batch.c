/*
 * The letters of one transaction of a replay: judged and made into lines by batch.c, as new
 * messages are, and brought into the table in pieces, so that one that the database refuses stays
 * alone.
 *
 * Must never call a letter stored whose line is not in the open transaction.
 */
#include "letters_batch.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>

#include "dead_letter.h"
#include "sqlstate.h"
#include "trouble.h"

#define REFUSED "refused by the database"

/* Makes room for one more of size bytes. Returns the list, perhaps elsewhere; NULL: no memory. */
static void *
grow(void *list, size_t count, size_t *room, size_t size)
{
	size_t more = *room > 0 ? 2 * *room : 64;

	if (count < *room)
		return list;
	list = reallocarray(list, more, size);
	if (list != NULL)
		*room = more;
	return list;
}

static struct letters_stay *
add_stay(struct letters_batch *b, int64_t id)
{
	struct letters_stay *list = grow(b->stays, b->stay_count, &b->stay_room, sizeof(*list));

	if (list == NULL)
		return NULL;
	b->stays = list;
	list[b->stay_count] = (struct letters_stay){.id = id};
	return &list[b->stay_count++];
}

/* It stays for what it is; a cut one keeps the detail that tells. */
static int
stay_as_judged(struct letters_batch *b, const char *const column[LETTER_COLUMN_COUNT],
    const char *reason, bool cut)
{
	struct letters_stay *s = add_stay(b, strtoll(column[LETTER_ID], NULL, 10));

	if (s == NULL)
		return -1;
	snprintf(s->reason, sizeof(s->reason), "%s", reason);
	if (cut)
		snprintf(s->detail, sizeof(s->detail), "%s", column[LETTER_DETAIL]);
	s->changed = strcmp(s->reason, column[LETTER_REASON]) != 0 ||
	    *column[LETTER_SQLSTATE] != '\0' || strcmp(s->detail, column[LETTER_DETAIL]) != 0;
	return 0;
}

/*
 * Adds a letter: its columns, and the record that was made of them. Returns -1 when memory is
 * short.
 */
int
letters_batch_add(
    struct letters_batch *b, const char *const column[LETTER_COLUMN_COUNT], const struct record *r)
{
	struct payload_verdict v;
	struct letters_line *list;

	if (letter_has_lost_its_topic(column[LETTER_REASON]))
		return stay_as_judged(
		    b, column, column[LETTER_REASON], r->payload.n < r->payload_size);
	switch (batch_add(&b->batch, r, 0, 0, &v)) {
	case BATCH_NO_MEMORY:
		return -1;
	case BATCH_DEAD_LETTER:
		return stay_as_judged(b, column, v.reason, r->payload.n < r->payload_size);
	case BATCH_ROW:
		break;
	}
	list = grow(b->lines, b->line_count, &b->line_room, sizeof(*list));
	if (list == NULL)
		return -1;
	b->lines = list;
	list[b->line_count++] = (struct letters_line){
	    .id = strtoll(column[LETTER_ID], NULL, 10), .end = buffer_size(&b->batch.rows)};
	return 0;
}

static int
no_memory(struct letters_db *db)
{
	pg_close(&db->pg);
	letters_say(db, "out of memory: nothing is half done");
	return EX_OSERR;
}

/* The lines from first to last, the latter not included. */
static enum letters_call
copy_piece(struct letters_batch *b, struct letters_db *db, size_t first, size_t last)
{
	size_t start = first > 0 ? b->lines[first - 1].end : 0;
	const struct pg_copy text = {
	    buffer_head(&b->batch.rows) + start, b->lines[last - 1].end - start};
	enum letters_call call = LETTERS_ENDED;
	char *sql;

	if (asprintf(&sql,
		"SAVEPOINT piece; COPY %s (time, topic, payload) FROM STDIN; RELEASE piece",
		db->schema.table) == -1)
		return call;
	call = letters_db_copy(db, sql, &text);
	free(sql);
	return call;
}

static int
stay_refused(struct letters_batch *b, struct letters_db *db, int64_t id, const struct pg_error *e)
{
	struct letters_stay *s = add_stay(b, id);

	if (s == NULL)
		return no_memory(db);
	s->changed = true;
	snprintf(s->reason, sizeof(s->reason), REFUSED);
	snprintf(s->sqlstate, sizeof(s->sqlstate), "%s", e->sqlstate);
	snprintf(s->detail, sizeof(s->detail), "%s", e->text);
	return 0;
}

/*
 * Class 23 as a whole, and what a trigger raises: a person is there who reads the reason, so that a
 * unique index counts as well.
 */
static bool
is_of_the_row(const char *sqlstate)
{
	return sqlstate_class(sqlstate) == TROUBLE_DATA || strncmp(sqlstate, "23", 2) == 0 ||
	    strncmp(sqlstate, "P0", 2) == 0;
}

/*
 * Halves what is refused until what is bad stands alone. Recursion goes as deep as a batch has
 * halves.
 */
static int
store_piece(struct letters_batch *b, struct letters_db *db, size_t first, size_t last)
{
	size_t i, middle = first + (last - first) / 2;
	struct pg_error e;
	int rc;

	switch (copy_piece(b, db, first, last)) {
	case LETTERS_OK:
		for (i = first; i < last; i++) {
			if (letters_ids_add(&b->stored, b->lines[i].id) == -1)
				return no_memory(db);
		}
		return 0;
	case LETTERS_REFUSED:
		if (is_of_the_row(db->pg.error.sqlstate))
			break;
		return letters_db_fail(db, "cannot store the rows");
	default:
		return letters_db_fail(db, "cannot store the rows");
	}
	e = db->pg.error;
	if (letters_db_query(db, "ROLLBACK TO piece; RELEASE piece", NULL, 0) != LETTERS_OK)
		return letters_db_fail(db, "cannot take back what was refused");
	if (last - first == 1)
		return stay_refused(b, db, b->lines[first].id, &e);
	rc = store_piece(b, db, first, middle);
	return rc != 0 ? rc : store_piece(b, db, middle, last);
}

/*
 * Stores the lines in the open transaction: stored and stays say what became of each. Returns 0, or
 * the status to exit with.
 */
int
letters_batch_store(struct letters_batch *b, struct letters_db *db)
{
	return b->line_count > 0 ? store_piece(b, db, 0, b->line_count) : 0;
}

void
letters_batch_clear(struct letters_batch *b)
{
	batch_clear(&b->batch);
	b->line_count = b->stay_count = b->stored.n = 0;
}

void
letters_batch_free(struct letters_batch *b)
{
	batch_free(&b->batch);
	free(b->lines);
	free(b->stays);
	letters_ids_free(&b->stored);
	*b = (struct letters_batch){.line_count = 0};
}
