/*
 * What the death of a writer means: pure functions of wait status and history.
 *
 * Mechanism is in children.c. Must never decide that the supervisor ends because of how a writer
 * died, with one exception: exit 78, by which a writer says that its configuration can never work.
 */
#include "policy.h"

#include <stddef.h>
#include <sys/wait.h>
#include <sysexits.h>

#include "clock.h"

#define FIRST_DELAY (100 * CLOCK_MS)
#define LAST_DELAY (30 * CLOCK_SECOND)
/* A writer that was well for so long starts with a clean sheet. */
#define FORGIVEN_AFTER (10 * CLOCK_SECOND)
/* As a shell says it; see children.c. */
#define EXEC_FAILED 127

/* first, doubled n times, at most last. */
int64_t
policy_backoff(int64_t first, int64_t last, unsigned n)
{
	while (n-- > 0 && first < last)
		first *= 2;
	return first < last ? first : last;
}

/* How long to wait after so many failures in a row: the first costs nothing, it is an accident. */
int64_t
policy_respawn_delay(unsigned failures)
{
	return failures == 0 ? 0 : policy_backoff(FIRST_DELAY, LAST_DELAY, failures - 1);
}

/*
 * status as waitpid(2) gives it; healthy is how long the writer had been READY, in microseconds;
 * failures what the last verdict said, 0 at first.
 */
struct policy_verdict
policy_death(int status, int64_t healthy, unsigned failures)
{
	struct policy_verdict v = {.action = POLICY_RESPAWN};

	if (WIFEXITED(status) && WEXITSTATUS(status) == EX_CONFIG) {
		v.action = POLICY_STOP_SERVICE;
		return v;
	}
	if (healthy >= FORGIVEN_AFTER)
		failures = 0;
	v.delay = policy_respawn_delay(failures);
	v.failures = failures < 64 ? failures + 1 : failures;
	return v;
}

/* The sentence of an exit status for the log, NULL where there is none. */
const char *
policy_meaning(int status)
{
	if (WIFSIGNALED(status))
		return WCOREDUMP(status) ? "it dumped core" : NULL;
	switch (WEXITSTATUS(status)) {
	case EX_OK:
		return "it left without being told to";
	case EX_USAGE:
		return "it was started wrongly";
	case EX_DATAERR:
		return "it read malformed data on its channel";
	case EX_OSERR:
		return "the system refused it something";
	case EX_TEMPFAIL:
		return "it left records uncommitted";
	case EX_NOPERM:
		return "its progress row is not its own any more";
	case EX_CONFIG:
		return "its configuration cannot work";
	case EXEC_FAILED:
		return "ingestd-writer could not be executed";
	default:
		return NULL;
	}
}
