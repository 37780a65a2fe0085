/*
 * Backpressure, said aloud: which states can hold up the flow, and which lines about them are due.
 *
 * A state gets a line when it begins, one a minute while it lasts, and one when it ends. One that
 * comes and goes is told as if it lasted, so that no state ever gets more than a few lines a
 * minute. Decisions are pure; pressure_log() writes what they have come to. Must never look at
 * anything but what it is told: watch.c knows the service.
 */
#include "pressure.h"

#include <stddef.h>

#include "clock.h"

#define TOLD_EVERY (60 * CLOCK_SECOND)
/* A state that comes and goes is over when it has stayed away for so long. */
#define STEADY_AFTER (60 * CLOCK_SECOND)
#define BEGINS_WITHIN (60 * CLOCK_SECOND)
#define FIELDS_MOST 24

/* grace: what is over sooner is no news. next: what ingestd does meanwhile; over: and when it ends.
 */
static const struct kind {
	const char *name;
	enum log_level level;
	int64_t grace;
	const char *next;
	const char *over;
} kinds[PRESSURE_STATES] = {
    [PRESSURE_DATABASE_UNREACHABLE] = {"database_unreachable", LOG_LEVEL_ERROR, 0,
	"holding, nothing is acknowledged; the writers go on trying",
	"the database answers again; what waited is stored"},
    [PRESSURE_DATABASE_CONFIGURATION] = {"database_configuration", LOG_LEVEL_ERROR, 0,
	"holding, nothing is acknowledged; trying again every few seconds until it is mended",
	"the database takes it again; what waited is stored"},
    [PRESSURE_SPOOLING] = {"spooling", LOG_LEVEL_WARN, 0,
	"going on: what comes is kept in the state directory until the database has it",
	"all of it is in the database"},
    [PRESSURE_SPOOL_FULL] = {"spool_full", LOG_LEVEL_ERROR, 0,
	"nothing more is read and nothing is dropped; the broker holds what comes",
	"reading goes on"},
    /* Pauses of milliseconds are how the gate works; those of seconds are news. */
    [PRESSURE_BACKLOG_FULL] = {"backlog_full", LOG_LEVEL_WARN, 5 * CLOCK_SECOND,
	"waiting for commits; the session is kept alive, the broker holds what comes",
	"there is room again"},
    [PRESSURE_GATE_WAITING] = {"gate_waiting", LOG_LEVEL_WARN, 5 * CLOCK_SECOND,
	"waiting for commits; the session is kept alive, the broker holds what comes",
	"reading goes on"},
    /* The first retry of a lost connection, which has a line of its own, comes within 500 ms. */
    [PRESSURE_BROKER_UNREACHABLE] = {"broker_unreachable", LOG_LEVEL_ERROR, CLOCK_SECOND,
	"trying again, after 30 s at the latest; what is in hand is stored meanwhile",
	"connected again"},
};

/* True if the begins that were told, this one included, are as many as are told within a minute. */
static bool
comes_too_often(struct pressure_account *a, int64_t now)
{
	int64_t *oldest = &a->begun[(a->begins + 1) % PRESSURE_BEGINS_TOLD];

	a->begun[a->begins++ % PRESSURE_BEGINS_TOLD] = now;
	return a->begins >= PRESSURE_BEGINS_TOLD && now - *oldest < BEGINS_WITHIN;
}

static bool
begin(struct pressure_account *a, uint64_t waiting, int64_t now, struct pressure_line *line)
{
	a->told = true;
	a->unsteady = comes_too_often(a, now);
	a->began = a->since;
	a->logged = now;
	a->times = 1;
	a->most = waiting;
	line->phase = PRESSURE_BEGINS;
	return true;
}

static bool
go_on(struct pressure_account *a, bool again, uint64_t waiting, int64_t now,
    struct pressure_line *line)
{
	a->times += again;
	a->most = waiting > a->most ? waiting : a->most;
	if (now - a->logged < TOLD_EVERY)
		return false;
	a->logged = now;
	line->phase = PRESSURE_GOES_ON;
	return true;
}

static bool
end(struct pressure_account *a, int64_t now, struct pressure_line *line)
{
	if (a->unsteady && now - a->gone < STEADY_AFTER)
		return false;
	a->told = false;
	line->phase = PRESSURE_ENDS;
	return true;
}

/*
 * To be called for each state in each turn of the loop, and at pressure_deadline(): is it active,
 * and how many records wait for it? True if a line about it is due, which is in *line.
 */
bool
pressure_set(struct pressure *p, enum pressure_state state, bool active, uint64_t waiting,
    int64_t now, struct pressure_line *line)
{
	struct pressure_account *a = &p->accounts[state];
	bool before = a->holds, due = false;

	if (active && !a->active)
		a->since = now;
	a->active = active;
	a->holds = active && now - a->since >= kinds[state].grace;
	if (before && !a->holds)
		a->gone = now;
	if (a->holds)
		due =
		    a->told ? go_on(a, !before, waiting, now, line) : begin(a, waiting, now, line);
	else if (a->told)
		due = end(a, now, line);
	if (!due)
		return false;
	line->state = state;
	line->lasted = (line->phase == PRESSURE_ENDS ? a->gone : now) - a->began;
	line->waiting = line->phase == PRESSURE_ENDS ? a->most : waiting;
	line->times = a->times;
	return true;
}

/* True while the log says that it holds. */
bool
pressure_told(const struct pressure *p, enum pressure_state state)
{
	return p->accounts[state].told;
}

static int64_t
account_deadline(const struct pressure_account *a, const struct kind *k)
{
	if (a->active && !a->holds)
		return a->since + k->grace;
	if (!a->told)
		return CLOCK_NEVER;
	return a->holds ? a->logged + TOLD_EVERY : a->gone + STEADY_AFTER;
}

/* When pressure_set() may have a line although nothing has changed. */
int64_t
pressure_deadline(const struct pressure *p)
{
	int64_t at = CLOCK_NEVER, one;
	int i;

	for (i = 0; i < PRESSURE_STATES; i++) {
		one = account_deadline(&p->accounts[i], &kinds[i]);
		at = one < at ? one : at;
	}
	return at;
}

/* The name of its event in the log. */
const char *
pressure_name(enum pressure_state state)
{
	return kinds[state].name;
}

enum log_level
pressure_level(const struct pressure_line *line)
{
	return line->phase == PRESSURE_ENDS ? LOG_LEVEL_INFO : kinds[line->state].level;
}

/*
 * Writes a line into the log. reason and next, NULL for what the state always says, are the news of
 * this one; more are its own fields, up to LOG_END, NULL if there are none.
 */
void
pressure_log(const struct pressure_line *line, const char *reason, const char *next,
    const struct log_field *more)
{
	static const char *const phases[] = {"begins", "goes_on", "ends"};
	const struct kind *k = &kinds[line->state];
	bool over = line->phase == PRESSURE_ENDS;
	struct log_field f[FIELDS_MOST];
	size_t n = 0;

	f[n++] = LOG_S("phase", phases[line->phase]);
	f[n++] = LOG_T(over ? "after" : "for", line->lasted);
	f[n++] = LOG_U("waiting", line->waiting);
	if (line->times > 1)
		f[n++] = LOG_U("times", line->times);
	for (; more != NULL && more->kind != LOG_KIND_END && n < FIELDS_MOST - 3; more++)
		f[n++] = *more;
	f[n++] = LOG_S("reason", reason);
	f[n++] = LOG_S("next", next != NULL ? next : over ? k->over : k->next);
	f[n] = LOG_END;
	log_event(pressure_level(line), k->name, f);
}
