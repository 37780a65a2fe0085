/*
 * Which rows of a refused batch are to be tried next, so that the bad ones are found with few
 * attempts: the line that COPY names as a hint, bisection as the truth.
 *
 * Pure. Rows are decided from the first to the last, which keeps their order. Must never call a row
 * bad that was not refused alone, nor one good that was not accepted, and never take many more
 * attempts than there are rows, whatever the server says.
 */
#include "isolate.h"

#include <string.h>

/* A server that names the wrong rows is not listened to any longer. */
#define LIES_MAX 2
/* So many attempts more than rows are decided: enough bisecting, one by one is cheaper. */
#define DEFICIT_MAX 8
/* Good rows in a row at which, all the same, more than one is tried. */
#define RUN_LEAST 8

static size_t
least(size_t a, size_t b)
{
	return a < b ? a : b;
}

/* line is what COPY has said of rows from first on, counted from 1; 0 for nothing. */
static size_t
row_named(const struct isolate *it, size_t first, size_t count, uint64_t line)
{
	if (line == 0 || line > count || it->lies >= LIES_MAX)
		return ISOLATE_NONE;
	return first + (size_t)line - 1;
}

/* The batch was refused as a whole; line as for isolate_answer(). rows must not be 0. */
void
isolate_start(struct isolate *it, size_t rows, uint64_t line)
{
	*it = (struct isolate){.rows = rows, .refused_to = rows};
	it->named = row_named(it, 0, rows, line);
	it->names = it->named != ISOLATE_NONE;
}

/*
 * Rows that are worth trying together where the server names no line: a piece that is refused has
 * cost all of its rows, so it should be good more often than not.
 */
static size_t
worthwhile(const struct isolate *it)
{
	return it->bad == 0 || it->names ? it->rows : it->at / it->bad / 2 + 1;
}

/*
 * Gives the pieces to try next, in this order and in one round trip; the second counts only if the
 * first is accepted. Returns how many, 0 when every row is decided.
 */
size_t
isolate_next(const struct isolate *it, struct isolate_piece pieces[ISOLATE_PIECES])
{
	size_t left = it->refused_to - it->at;

	if (it->at == it->rows)
		return 0;
	if (left == 0) {
		pieces[0] = (struct isolate_piece){
		    it->at, least(least(it->size, worthwhile(it)), it->rows - it->at)};
		return 1;
	}
	if (it->named == ISOLATE_NONE) {
		pieces[0] =
		    (struct isolate_piece){it->at, left > 1 ? least(left / 2, worthwhile(it)) : 1};
		return 1;
	}
	pieces[0] = (struct isolate_piece){it->at, it->named - it->at};
	pieces[1] = (struct isolate_piece){it->named, 1};
	if (pieces[0].count > 0)
		return 2;
	pieces[0] = pieces[1];
	return 1;
}

/* As many as lie between two bad rows, and as many again. */
static size_t
stride(const struct isolate *it)
{
	return it->bad < 2 ? it->rows : 2 * it->at / it->bad;
}

static void
set_size(struct isolate *it)
{
	/* Behind a bad row, and above all in a batch of nothing else, another is likely. */
	if (it->good == 0)
		it->size = 1;
	else if (it->attempts > it->at + DEFICIT_MAX)
		it->size = it->good < RUN_LEAST ? 1 : it->good;
	else
		it->size = stride(it) > 2 * it->good ? stride(it) : 2 * it->good;
}

static void
accept(struct isolate *it, const struct isolate_piece *p)
{
	it->at += p->count;
	it->good += p->count;
	if (it->named != ISOLATE_NONE && it->at > it->named) {
		it->named = ISOLATE_NONE;
		it->lies++;
	}
	if (it->refused_to < it->at)
		it->refused_to = it->at;
	set_size(it);
}

/* Returns the row if it was refused alone. */
static size_t
refuse(struct isolate *it, const struct isolate_piece *p, uint64_t line)
{
	size_t row = it->at;

	if (p->count > 1) {
		/* What stands before the row that was named should have been good. */
		if (it->named != ISOLATE_NONE)
			it->lies++;
		it->refused_to = p->first + p->count;
		it->named = row_named(it, p->first, p->count, line);
		it->names = it->named != ISOLATE_NONE;
		return ISOLATE_NONE;
	}
	if (it->named != ISOLATE_NONE && it->named != row)
		it->lies++;
	it->named = ISOLATE_NONE;
	it->at++;
	/* The rest was refused together with this one, which says nothing about it. */
	it->refused_to = it->at;
	it->bad++;
	set_size(it);
	it->good = 0;
	return row;
}

/*
 * What became of the pieces of isolate_next(): so many were accepted, and if refused the one behind
 * them was not, with COPY naming a line of it, counted from 1, or 0 for none. Returns the row that
 * is now known to be bad, or ISOLATE_NONE.
 */
size_t
isolate_answer(struct isolate *it, size_t accepted, bool refused, uint64_t line)
{
	struct isolate_piece pieces[ISOLATE_PIECES];
	size_t count = isolate_next(it, pieces), i;

	for (i = 0; i < accepted && i < count; i++) {
		it->attempts++;
		accept(it, &pieces[i]);
	}
	if (!refused || i >= count)
		return ISOLATE_NONE;
	it->attempts++;
	return refuse(it, &pieces[i], line);
}

/*
 * The line in "COPY telemetry, line 7, column payload: …", in whatever language: the first number
 * behind the first comma of the last line that starts like that. 0 where there is none. A hint: a
 * table may have any name.
 */
uint64_t
isolate_line(const char *context)
{
	const char *p = context, *copy = NULL;
	uint64_t line = 0;

	for (; p != NULL && *p != '\0'; p = strchr(p, '\n')) {
		p += *p == '\n';
		if (strncmp(p, "COPY ", 5) == 0)
			copy = p;
	}
	if (copy == NULL || (p = strchr(copy, ',')) == NULL)
		return 0;
	p += strcspn(p, "0123456789:\n");
	for (; *p >= '0' && *p <= '9' && line < UINT32_MAX; p++)
		line = 10 * line + (uint64_t)(*p - '0');
	return line;
}
