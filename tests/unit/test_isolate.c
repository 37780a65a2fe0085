/*
 * The search for bad rows, against a server that is made of a set of them: it finds exactly these,
 * in order, and with few attempts, whatever line the server names.
 */
#include "unit.h"

#include <string.h>

#include "isolate.h"

#define ROWS_MAX 2000

enum hint {
	HINT_RIGHT,
	HINT_NONE,
	HINT_FIRST,
	HINT_LAST,
	HINT_ONE_OFF,
	HINT_RANDOM,
	HINT_COUNT,
};

static struct {
	size_t rows;
	enum hint hint;
	bool bad[ROWS_MAX];
	int key[ROWS_MAX]; /* no two good rows may have the same; 0 for none */
	bool taken[ROWS_MAX + 1];
	bool found[ROWS_MAX];
	size_t next; /* the row that is to come next, since order is a promise */
	size_t trips;
} server;

static void
start(size_t rows, enum hint hint)
{
	memset(&server, 0, sizeof(server));
	server.rows = rows;
	server.hint = hint;
}

static bool
refuses(size_t row)
{
	return server.bad[row] || (server.key[row] != 0 && server.taken[server.key[row]]);
}

/* True if all of the piece is taken, else nothing of it, and line is what the server says. */
static bool
copy(size_t first, size_t count, uint64_t *line)
{
	bool taken[ROWS_MAX + 1];
	size_t i;

	memcpy(taken, server.taken, sizeof(taken));
	for (i = 0; i < count && !refuses(first + i); i++)
		server.taken[server.key[first + i]] = server.key[first + i] != 0;
	if (i == count)
		return true;
	memcpy(server.taken, taken, sizeof(taken));
	*line = server.hint == HINT_RIGHT ? i + 1
	    : server.hint == HINT_FIRST   ? 1
	    : server.hint == HINT_LAST    ? count
	    : server.hint == HINT_ONE_OFF ? i + 2
	    : server.hint == HINT_RANDOM  ? random_below(count + 3)
					  : 0;
	return false;
}

/* Returns the number of attempts. */
static size_t
search(void)
{
	struct isolate_piece pieces[ISOLATE_PIECES];
	struct isolate it;
	size_t n, i, row, sent;
	uint64_t line = 0;

	copy(0, server.rows, &line);
	memset(server.taken, 0, sizeof(server.taken));
	for (isolate_start(&it, server.rows, line); (n = isolate_next(&it, pieces)) > 0;) {
		server.trips++;
		assert_int_equal(pieces[0].first, server.next);
		line = 0;
		for (i = 0; i < n && copy(pieces[i].first, pieces[i].count, &line); i++) {
			assert_int_equal(pieces[i].first, server.next);
			server.next += pieces[i].count;
		}
		sent = i < n ? pieces[i].count : 0;
		row = isolate_answer(&it, i, i < n, line);
		assert_true((row != ISOLATE_NONE) == (sent == 1));
		if (row != ISOLATE_NONE) {
			assert_int_equal(row, server.next);
			server.found[row] = true;
			server.next++;
		}
		assert_true(it.attempts <= 2 * server.rows + 20);
	}
	assert_int_equal(server.next, server.rows);
	return it.attempts;
}

static size_t
expect_exactly_the_bad_ones(void)
{
	size_t attempts = search(), i;

	for (i = 0; i < server.rows; i++)
		assert_int_equal(server.found[i], server.bad[i]);
	return attempts;
}

static void
one_bad_row_of_500_costs_a_handful(void **state)
{
	size_t i, most = 0, attempts;

	(void)state;
	for (i = 0; i < 500; i++) {
		start(500, HINT_RIGHT);
		server.bad[i] = true;
		expect_exactly_the_bad_ones();
		most = server.trips > most ? server.trips : most;
	}
	assert_true(most <= 3);
	for (i = 0, most = 0; i < 500; i++) {
		start(500, HINT_NONE);
		server.bad[i] = true;
		attempts = expect_exactly_the_bad_ones();
		most = attempts > most ? attempts : most;
	}
	assert_true(most <= 22);
}

static void
nothing_but_bad_rows_cost_no_more_than_one_attempt_each(void **state)
{
	size_t rows;
	int hint;

	(void)state;
	for (rows = 1; rows <= 500; rows += 1 + random_below(9)) {
		start(rows, HINT_RIGHT);
		memset(server.bad, true, rows);
		assert_int_equal(expect_exactly_the_bad_ones(), rows);
	}
	for (hint = 0; hint < HINT_COUNT; hint++) {
		start(500, (enum hint)hint);
		memset(server.bad, true, 500);
		assert_true(expect_exactly_the_bad_ones() <= 500 + 10);
	}
}

/* Every density from one in a thousand up, and whatever the server says. */
static void
any_set_is_found_with_few_more_attempts_than_rows(void **state)
{
	size_t i, rows, attempts;
	int hint, round, share;

	(void)state;
	for (round = 0; round < 6000; round++) {
		hint = round % HINT_COUNT;
		rows = 1 + random_below(round % 5 == 0 ? ROWS_MAX : 300);
		share = 1 + (int)random_below(round % 3 == 0 ? 1000 : 30);
		start(rows, (enum hint)hint);
		for (i = 0; i < rows; i++)
			server.bad[i] = random_below(1000) < (uint64_t)share;
		attempts = expect_exactly_the_bad_ones();
		assert_true(attempts <= rows + rows / 2 + 16);
	}
}

static void
one_bad_row_of_a_hundred_costs_two_round_trips(void **state)
{
	size_t i, bad = 0, trips = 0;
	int round;

	(void)state;
	for (round = 0; round < 100; round++) {
		start(500, HINT_RIGHT);
		for (i = 0; i < 500; i++)
			bad += server.bad[i] = random_below(100) == 0;
		expect_exactly_the_bad_ones();
		trips += server.trips;
	}
	assert_true(trips <= 2 * bad + 100 + bad / 2);
}

/* Of rows that exclude each other the first is good: as if they came one by one. */
static void
of_equal_rows_the_first_is_kept(void **state)
{
	bool seen[ROWS_MAX];
	size_t i;
	int round;

	(void)state;
	for (round = 0; round < 1000; round++) {
		start(300, (enum hint)(round % HINT_COUNT));
		for (i = 0; i < server.rows; i++)
			server.key[i] = (int)random_below(200);
		search();
		memset(seen, 0, sizeof(seen));
		for (i = 0; i < server.rows; i++) {
			assert_int_equal(
			    server.found[i], server.key[i] != 0 && seen[server.key[i]]);
			seen[server.key[i]] = true;
		}
	}
}

/* Refused as a whole, then accepted by pieces: nothing is bad, and it ends. */
static void
a_server_that_has_changed_its_mind_costs_nothing(void **state)
{
	int hint;

	(void)state;
	for (hint = 0; hint < HINT_COUNT; hint++) {
		start(500, (enum hint)hint);
		assert_true(expect_exactly_the_bad_ones() <= 12);
	}
}

static void
the_line_is_read_in_whatever_language(void **state)
{
	static const struct {
		const char *context;
		uint64_t line;
	} examples[] = {
	    {"COPY telemetry, line 7", 7},
	    {"COPY telemetry, line 37, column payload: \"{\"a\": 1, \"b\": 99}\"", 37},
	    {"COPY telemetry, Zeile 4, Spalte topic: »x«", 4},
	    {"COPY telemetry, ligne 5 : « x »", 5},
	    {"COPY telemetry, línea 6: «x»", 6},
	    {"COPY telemetry, строка 12", 12},
	    {"COPY telemetry, 行 8", 8},
	    {"COPY telemetry2024, line 7", 7},
	    {"PL/pgSQL function f() line 3 at RAISE\nCOPY telemetry, line 21: \"1, 2\"", 21},
	    {"SQL function \"g\" during inlining", 0},
	    {"PL/pgSQL function f(integer, integer) line 3 at RAISE", 0},
	    {"COPY telemetry", 0},
	    {"COPY telemetry, column 9 of 10: x\n", 9},
	    {"COPY telemetry, : 9", 0},
	    {"COPY telemetry, line", 0},
	    {"COPY t, line 99999999999999999999999", 9999999999},
	    {"\n\n", 0},
	    {"", 0},
	};
	size_t i;

	(void)state;
	assert_int_equal(isolate_line(NULL), 0);
	for (i = 0; i < sizeof(examples) / sizeof(examples[0]); i++) {
		if (isolate_line(examples[i].context) != examples[i].line)
			fail_msg("line %llu of '%s'",
			    (unsigned long long)isolate_line(examples[i].context),
			    examples[i].context);
	}
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(one_bad_row_of_500_costs_a_handful),
	    cmocka_unit_test(nothing_but_bad_rows_cost_no_more_than_one_attempt_each),
	    cmocka_unit_test(any_set_is_found_with_few_more_attempts_than_rows),
	    cmocka_unit_test(one_bad_row_of_a_hundred_costs_two_round_trips),
	    cmocka_unit_test(of_equal_rows_the_first_is_kept),
	    cmocka_unit_test(a_server_that_has_changed_its_mind_costs_nothing),
	    cmocka_unit_test(the_line_is_read_in_whatever_language),
	};

	return cmocka_run_group_tests_name("isolate", tests, NULL, NULL);
}
