/*
 * `ingestd dead-letters discard`: throws dead letters away, by id, as many as it has counted and
 * asked about.
 *
 * Must never delete one that was not counted, nor anything without a yes.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>
#include <unistd.h>

#include "letters.h"
#include "letters_select.h"

/* The answer was no. */
#define EX_DECLINED 1

/* Locked in the order of their ids, as a replay does, so that the two never wait for each other. */
static const char discard_sql[] =
    "DELETE FROM ingestd.dead_letter WHERE id IN (SELECT id FROM ingestd.dead_letter "
    "WHERE id = ANY ($1::bigint[]) ORDER BY id FOR UPDATE)";

/* Returns 0 when the person agrees. */
static int
ask(struct letters_db *db, size_t n)
{
	char answer[16];

	if (db->options->yes)
		return 0;
	fprintf(stderr, "discard %zu dead letter%s? [y/N] ", n, n == 1 ? "" : "s");
	fflush(stderr);
	if (letters_db_answer(db, answer, sizeof(answer)))
		return strcasecmp(answer, "y") == 0 || strcasecmp(answer, "yes") == 0 ? 0
										      : EX_DECLINED;
	/* The question's line is still open. */
	fputc('\n', stderr);
	return db->stopped_by != 0 ? letters_db_fail(db, "cannot ask") : EX_DECLINED;
}

static int
discard_batch(struct letters_db *db, const int64_t *ids, size_t n, size_t *discarded)
{
	char *text = letters_ids_text(ids, n);
	const char *params[1] = {text};
	size_t gone = 0;
	int rc = 0;

	if (text == NULL) {
		letters_say(db, "out of memory: nothing is half done");
		return EX_OSERR;
	}
	if (letters_db_query(db, "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE", NULL, 0) !=
		LETTERS_OK ||
	    letters_db_query(db, discard_sql, params, 1) != LETTERS_OK)
		rc = letters_db_fail(db, "cannot delete dead letters");
	else if (sscanf(db->pg.tag, "DELETE %zu", &gone) != 1 ||
	    letters_db_commit(db) != LETTERS_OK)
		rc = letters_db_fail(db, "cannot commit");
	else
		*discarded += gone;
	free(text);
	return rc;
}

static int
discard_all(struct letters_db *db, const struct letters_ids *ids)
{
	size_t most = (size_t)db->options->cfg.batch_size, next = 0, n, discarded = 0;
	int rc = ask(db, ids->n);

	letters_bar_init(&db->bar, "discard");
	for (; rc == 0 && next < ids->n; next += n) {
		n = ids->n - next < most ? ids->n - next : most;
		rc = discard_batch(db, ids->list + next, n, &discarded);
		if (rc != 0)
			break;
		letters_bar_draw(&db->bar, next + n, ids->n);
	}
	letters_bar_clear(&db->bar);
	printf("discarded %zu", discarded);
	if (next - discarded > 0)
		printf(", taken by others %zu", next - discarded);
	if (ids->n - next > 0)
		printf(", kept %zu", ids->n - next);
	putchar('\n');
	return rc;
}

/*
 * Returns 0 when all that was selected is gone, 1 when the answer was no, 64 when there is nobody
 * to ask, else why it could not go on.
 */
int
letters_discard(struct letters_db *db)
{
	struct letters_selection selection;
	struct letters_ids ids = {.n = 0};
	int rc;

	if (!db->options->yes && isatty(STDIN_FILENO) != 1) {
		letters_say(db,
		    "--yes: is needed where standard input is no terminal, since nobody "
		    "can be asked; nothing was discarded");
		return EX_USAGE;
	}
	rc = letters_selection_init(&selection, db);
	if (rc == 0)
		rc = letters_ids_find(&ids, db, &selection);
	if (rc == 0 && ids.n > 0)
		rc = discard_all(db, &ids);
	else if (rc == 0)
		puts("discarded 0");
	letters_selection_free(&selection);
	letters_ids_free(&ids);
	return rc;
}
