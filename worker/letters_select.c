/*
 * Which dead letters are meant: --topic, --id and --since as SQL, and the ids that they select.
 *
 * The ids are read once. Whatever changes dead letters afterwards does so by id: must never let a
 * filter run a second time, since it would match what has come in the meantime.
 */
#include "letters_select.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>

#include "clock.h"
#include "letters_filter.h"
#include "sqlstate.h"
#include "units.h"

#define PAGE "10000"
#define PAGE_ROWS 10000

static int
no_memory(struct letters_db *db)
{
	letters_say(db, "out of memory: nothing is half done");
	return EX_OSERR;
}

/* A duration counts back from the server's clock, with which nothing else here is compared. */
static int
find_since(struct letters_selection *s, struct letters_db *db)
{
	static const char at[] =
	    "SELECT " LETTERS_MICROSECONDS("t") " FROM (SELECT $1::timestamptz AS t) x";
	static const char ago[] = "SELECT " LETTERS_MICROSECONDS("t") " - $1::bigint FROM (SELECT "
								      "clock_timestamp() AS t) x";
	const char *given = db->options->since, *params[1] = {given};
	char duration[24];
	int64_t us;
	bool back = units_duration(given, &us) == 0;

	if (back) {
		snprintf(duration, sizeof(duration), "%" PRId64, us);
		params[0] = duration;
	}
	switch (letters_db_query(db, back ? ago : at, params, 1)) {
	case LETTERS_OK:
		snprintf(s->since, sizeof(s->since), "%s", pg_value(&db->pg, 0, 0));
		return 0;
	case LETTERS_REFUSED:
		/* 0A000: infinity, which is no number of microseconds. */
		if (sqlstate_class(db->pg.error.sqlstate) != TROUBLE_DATA &&
		    strcmp(db->pg.error.sqlstate, "0A000") != 0)
			break;
		letters_say(db,
		    "--since: '%s' must be a time that PostgreSQL reads, such as '2026-11-24 "
		    "10:00+01', or one ago, such as 30m or 2h, with ms, s, m or h",
		    given);
		return EX_USAGE;
	default:
		break;
	}
	return letters_db_fail(db, "cannot read --since");
}

/* Returns 0, or the status to exit with after it has been said why; free it in any case. */
int
letters_selection_init(struct letters_selection *s, struct letters_db *db)
{
	const struct letters_options *o = db->options;

	*s = (struct letters_selection){.regex = NULL};
	if (o->topic != NULL && (s->regex = letters_filter_regex(o->topic)) == NULL)
		return no_memory(db);
	if (o->id_count > 0 && (s->ids = letters_ids_text(o->ids, o->id_count)) == NULL)
		return no_memory(db);
	return o->since != NULL ? find_since(s, db) : 0;
}

/* The parameters of LETTERS_SELECTED; they belong to the selection. */
void
letters_selection_params(
    const struct letters_selection *s, const char *params[LETTERS_SELECTED_PARAMETERS])
{
	params[0] = s->regex;
	params[1] = s->ids;
	params[2] = s->since[0] != '\0' ? s->since : NULL;
}

void
letters_selection_free(struct letters_selection *s)
{
	free(s->regex);
	free(s->ids);
	*s = (struct letters_selection){.regex = NULL};
}

/* ---- ids ---- */

/* Returns -1 when memory is short. */
int
letters_ids_add(struct letters_ids *ids, int64_t id)
{
	size_t room = ids->room > 0 ? 2 * ids->room : 1024;
	int64_t *list;

	if (ids->n == ids->room) {
		list = reallocarray(ids->list, room, sizeof(*list));
		if (list == NULL)
			return -1;
		ids->list = list;
		ids->room = room;
	}
	ids->list[ids->n++] = id;
	return 0;
}

/* Finds the ids of the selection, 8 bytes each. Returns 0, or the status to exit with. */
int
letters_ids_find(
    struct letters_ids *ids, struct letters_db *db, const struct letters_selection *selection)
{
	static const char sql[] =
	    "SELECT id FROM ingestd.dead_letter WHERE " LETTERS_SELECTED
	    " AND ($4::bigint IS NULL OR id > $4::bigint) ORDER BY id LIMIT " PAGE;
	const char *params[LETTERS_SELECTED_PARAMETERS + 1] = {NULL};
	char last[24];
	int i, rows;

	letters_selection_params(selection, params);
	do {
		if (letters_db_query(db, sql, params, LETTERS_SELECTED_PARAMETERS + 1) !=
		    LETTERS_OK)
			return letters_db_fail(db, "cannot look for dead letters");
		rows = pg_rows(&db->pg);
		for (i = 0; i < rows; i++) {
			if (letters_ids_add(ids, strtoll(pg_value(&db->pg, i, 0), NULL, 10)) == -1)
				return no_memory(db);
		}
		if (rows > 0)
			snprintf(last, sizeof(last), "%" PRId64, ids->list[ids->n - 1]);
		params[LETTERS_SELECTED_PARAMETERS] = last;
	} while (rows == PAGE_ROWS);
	return 0;
}

/* A bigint[] of n ids as text; the caller's to free, NULL when memory is short. */
char *
letters_ids_text(const int64_t *list, size_t n)
{
	char *text = malloc(n * 21 + 3), *to = text;
	size_t i;

	if (text == NULL)
		return NULL;
	*to++ = '{';
	for (i = 0; i < n; i++)
		to += sprintf(to, "%s%" PRId64, i > 0 ? "," : "", list[i]);
	*to++ = '}';
	*to = '\0';
	return text;
}

void
letters_ids_free(struct letters_ids *ids)
{
	free(ids->list);
	*ids = (struct letters_ids){.list = NULL};
}
