#ifndef SUPERVISOR_PRESSURE_H
#define SUPERVISOR_PRESSURE_H

#include <stdbool.h>
#include <stdint.h>

#include "log.h"

/* What can hold up the flow from broker to database. Several can hold at the same time. */
enum pressure_state {
	PRESSURE_DATABASE_UNREACHABLE,
	PRESSURE_DATABASE_CONFIGURATION,
	PRESSURE_SPOOLING,
	PRESSURE_SPOOL_FULL,
	PRESSURE_BACKLOG_FULL,
	PRESSURE_GATE_WAITING,
	PRESSURE_BROKER_UNREACHABLE,
	PRESSURE_STATES,
};

enum pressure_phase {
	PRESSURE_BEGINS,
	PRESSURE_GOES_ON,
	PRESSURE_ENDS,
};

/* So many begins within a minute are told one by one; from the last of them on they are summed up.
 */
#define PRESSURE_BEGINS_TOLD 3

/* One state; all zero before it has ever held. Times are clock_monotonic()'s. */
struct pressure_account {
	bool active;     /* as the caller said last */
	bool holds;      /* and for longer than the state's grace */
	bool told;       /* a begin stands in the log, and no end */
	bool unsteady;   /* comes and goes: told as one until it has stayed away for a minute */
	int64_t since;   /* when it last became active */
	int64_t began;   /* when that which is told began */
	int64_t gone;    /* when it last ceased to hold */
	int64_t logged;  /* its last line */
	uint64_t most;   /* records that waited at once */
	uint64_t times;  /* how often it has come since the begin that is told */
	uint64_t begins; /* that were told, ever */
	int64_t begun[PRESSURE_BEGINS_TOLD]; /* the last of them */
};

struct pressure {
	struct pressure_account accounts[PRESSURE_STATES];
};

/* A line that is due. */
struct pressure_line {
	enum pressure_state state;
	enum pressure_phase phase;
	int64_t lasted;   /* microseconds since it began, or that it took */
	uint64_t waiting; /* records; at the end, the most that waited at once */
	uint64_t times;   /* how often it came, more than 1 only if it comes and goes */
};

bool pressure_set(
    struct pressure *, enum pressure_state, bool, uint64_t, int64_t, struct pressure_line *);
bool pressure_told(const struct pressure *, enum pressure_state);
int64_t pressure_deadline(const struct pressure *);
const char *pressure_name(enum pressure_state);
enum log_level pressure_level(const struct pressure_line *);
void pressure_log(
    const struct pressure_line *, const char *, const char *, const struct log_field *);

#endif
