/*
 * `ingestd dead-letters list`: how many there are, by reason and topic, as a table or as JSON.
 *
 * The table is for a person: cut and escaped. Must never cut or change what the JSON holds.
 */
#include <inttypes.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>

#include "letters.h"
#include "letters_select.h"
#include "letters_text.h"
#include "row.h"

/* Columns of the table, as wide as its widest and no wider. */
#define TOPIC_WIDTH 40
#define REASON_WIDTH 80
/* "2026-11-22 17:03:01" */
#define SECONDS_SIZE 19

/* The columns of the answer; a group a row. */
enum {
	GROUP_COUNT,
	GROUP_NEWEST,
	GROUP_LAST_ID,
	GROUP_TOPIC,
	GROUP_REASON,
	GROUP_SQLSTATE,
	GROUP_OLDEST,
};

static const char list_sql[] =
    "SELECT count(*), max(us), max(id), topic, reason, sqlstate, min(us) FROM (SELECT "
    "id, topic, reason, sqlstate, " LETTERS_MICROSECONDS(
	"received") " AS us "
		    "FROM ingestd.dead_letter WHERE " LETTERS_SELECTED ") l "
		    "GROUP BY topic, reason, sqlstate ORDER BY 1 DESC, 2 DESC, topic, reason";

/* Over all groups; times in microseconds since the epoch. */
struct totals {
	uint64_t letters;
	int64_t oldest, newest;
};

static int64_t
number(const struct pg *pg, int row, int column)
{
	return strtoll(pg_value(pg, row, column), NULL, 10);
}

static struct totals
add_up(const struct pg *pg)
{
	struct totals t = {.oldest = INT64_MAX, .newest = INT64_MIN};
	int row;

	for (row = 0; row < pg_rows(pg); row++) {
		t.letters += (uint64_t)number(pg, row, GROUP_COUNT);
		if (number(pg, row, GROUP_OLDEST) < t.oldest)
			t.oldest = number(pg, row, GROUP_OLDEST);
		if (number(pg, row, GROUP_NEWEST) > t.newest)
			t.newest = number(pg, row, GROUP_NEWEST);
	}
	return t;
}

/* ---- the table ---- */

struct cell {
	char text[REASON_WIDTH * LETTERS_TEXT_BYTES + 1];
	size_t columns;
};

static void
fit(struct cell *c, const char *text, size_t width)
{
	c->columns = letters_text_fit(c->text, sizeof(c->text), text, width);
}

static void
fit_reason(struct cell *c, const struct pg *pg, int row)
{
	const char *state = pg_value(pg, row, GROUP_SQLSTATE);
	char text[600];

	snprintf(text, sizeof(text), "%s%s%s%s", pg_value(pg, row, GROUP_REASON),
	    *state != '\0' ? " (" : "", state, *state != '\0' ? ")" : "");
	fit(c, text, REASON_WIDTH);
}

static void
print_padded(const char *text, size_t columns, size_t width)
{
	printf("%s%*s  ", text, (int)(width - columns), "");
}

static void
print_table(const struct pg *pg)
{
	const struct totals t = add_up(pg);
	size_t topic_width = strlen("TOPIC"), count_width = strlen("COUNT");
	size_t id_width = strlen("LAST ID"), n;
	char time[ROW_TIME_SIZE];
	struct cell c;
	int row;

	if (t.letters == 0) {
		puts("no dead letters");
		return;
	}
	for (row = 0; row < pg_rows(pg); row++) {
		fit(&c, pg_value(pg, row, GROUP_TOPIC), TOPIC_WIDTH);
		topic_width = c.columns > topic_width ? c.columns : topic_width;
		n = strlen(pg_value(pg, row, GROUP_COUNT));
		count_width = n > count_width ? n : count_width;
		n = strlen(pg_value(pg, row, GROUP_LAST_ID));
		id_width = n > id_width ? n : id_width;
	}
	printf("%*s  %-*s  %*s  ", (int)count_width, "COUNT", SECONDS_SIZE, "NEWEST (UTC)",
	    (int)id_width, "LAST ID");
	print_padded("TOPIC", strlen("TOPIC"), topic_width);
	puts("REASON");
	for (row = 0; row < pg_rows(pg); row++) {
		row_format_time(time, number(pg, row, GROUP_NEWEST));
		printf("%*s  %.*s  %*s  ", (int)count_width, pg_value(pg, row, GROUP_COUNT),
		    SECONDS_SIZE, time, (int)id_width, pg_value(pg, row, GROUP_LAST_ID));
		fit(&c, pg_value(pg, row, GROUP_TOPIC), TOPIC_WIDTH);
		print_padded(c.text, c.columns, topic_width);
		fit_reason(&c, pg, row);
		puts(c.text);
	}
	row_format_time(time, t.oldest);
	printf("%" PRIu64 " dead letter%s, the oldest of %.*s\n", t.letters,
	    t.letters == 1 ? "" : "s", SECONDS_SIZE, time);
}

/* ---- JSON ---- */

static struct json_object *
json_time(int64_t us)
{
	char time[ROW_TIME_SIZE], text[ROW_TIME_SIZE];

	row_format_time(time, us);
	/* As RFC 3339 has it. */
	snprintf(text, sizeof(text), "%.10sT%.15sZ", time, time + 11);
	return json_object_new_string(text);
}

/* Adds o to the object, whose it is then; NULL stands for want of memory. */
static bool
add(struct json_object *object, const char *key, struct json_object *o)
{
	if (o != NULL && json_object_object_add(object, key, o) == 0)
		return true;
	json_object_put(o);
	return false;
}

static struct json_object *
json_group(const struct pg *pg, int row)
{
	struct json_object *g = json_object_new_object();
	const char *state = pg_value(pg, row, GROUP_SQLSTATE);

	if (g == NULL)
		return NULL;
	if (add(g, "count", json_object_new_int64(number(pg, row, GROUP_COUNT))) &&
	    add(g, "newest", json_time(number(pg, row, GROUP_NEWEST))) &&
	    add(g, "last_id", json_object_new_int64(number(pg, row, GROUP_LAST_ID))) &&
	    add(g, "topic", json_object_new_string(pg_value(pg, row, GROUP_TOPIC))) &&
	    add(g, "reason", json_object_new_string(pg_value(pg, row, GROUP_REASON))) &&
	    (*state != '\0' ? add(g, "sqlstate", json_object_new_string(state))
			    : json_object_object_add(g, "sqlstate", NULL) == 0))
		return g;
	json_object_put(g);
	return NULL;
}

static bool
fill_json(struct json_object *o, const struct pg *pg)
{
	const struct totals t = add_up(pg);
	struct json_object *groups = json_object_new_array(), *g;
	int row;

	if (!add(o, "total", json_object_new_int64((int64_t)t.letters)) ||
	    (t.letters > 0 ? !add(o, "oldest", json_time(t.oldest)) ||
			!add(o, "newest", json_time(t.newest))
			   : json_object_object_add(o, "oldest", NULL) != 0 ||
			json_object_object_add(o, "newest", NULL) != 0)) {
		json_object_put(groups);
		return false;
	}
	if (!add(o, "groups", groups))
		return false;
	for (row = 0; row < pg_rows(pg); row++) {
		g = json_group(pg, row);
		if (g == NULL || json_object_array_add(groups, g) != 0) {
			json_object_put(g);
			return false;
		}
	}
	return true;
}

static int
print_json(struct letters_db *db)
{
	struct json_object *o = json_object_new_object();
	const char *text = NULL;

	if (o != NULL && fill_json(o, &db->pg))
		text = json_object_to_json_string_ext(
		    o, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE);
	if (text != NULL)
		puts(text);
	else
		letters_say(db, "out of memory");
	json_object_put(o);
	return text != NULL ? 0 : EX_OSERR;
}

/* Returns 0, or why the list could not be had. */
int
letters_list(struct letters_db *db)
{
	const char *params[LETTERS_SELECTED_PARAMETERS];
	struct letters_selection selection;
	int rc;

	rc = letters_selection_init(&selection, db);
	letters_selection_params(&selection, params);
	if (rc == 0 &&
	    letters_db_query(db, list_sql, params, LETTERS_SELECTED_PARAMETERS) != LETTERS_OK)
		rc = letters_db_fail(db, "cannot list the dead letters");
	if (rc == 0 && db->options->json)
		rc = print_json(db);
	else if (rc == 0)
		print_table(&db->pg);
	letters_selection_free(&selection);
	return rc;
}
