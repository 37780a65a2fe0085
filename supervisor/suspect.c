/*
 * Which record kills its writers: pure decisions over what the dead ones had in their hands.
 *
 * Two deaths with the same records in hand, and they are sent one by one; a third with one of them
 * alone, and that one is condemned to be a dead letter. Must never blame a record for a death that
 * no record can bring about, such as SIGKILL, the weapon of operators and of the kernel that is
 * short of memory; nor condemn one that was not alone when it killed.
 */
#include "suspect.h"

#include <signal.h>
#include <stddef.h>
#include <sys/wait.h>

#define ALONE_AFTER 2
#define CONDEMNED_AFTER 3

/* status as waitpid(2) gives it: did the writer die of what it was doing? */
bool
suspect_is_crash(int status)
{
	static const int crashes[] = {SIGSEGV, SIGBUS, SIGABRT, SIGILL, SIGFPE, SIGTRAP, SIGSYS};
	size_t i;

	if (!WIFSIGNALED(status))
		return false;
	for (i = 0; i < sizeof(crashes) / sizeof(crashes[0]); i++) {
		if (WTERMSIG(status) == crashes[i])
			return true;
	}
	return false;
}

/* A writer has crashed that had been sent the records from first to last, of which none is durable.
 */
void
suspect_death(struct suspect *s, uint64_t first, uint64_t last)
{
	if (s->deaths == 0 || first > s->last || last < s->first) {
		s->first = first;
		s->last = last;
		s->deaths = 1;
		return;
	}
	s->first = first > s->first ? first : s->first;
	s->last = last < s->last ? last : s->last;
	s->deaths++;
	if (s->deaths >= CONDEMNED_AFTER && first == last)
		s->condemned = first;
}

/* Everything up to the watermark is durable, and innocent. */
void
suspect_durable(struct suspect *s, uint64_t watermark)
{
	if (s->condemned <= watermark)
		s->condemned = 0;
	if (s->deaths > 0 && s->last <= watermark)
		*s = (struct suspect){.condemned = s->condemned};
	else if (s->deaths > 0 && s->first <= watermark)
		s->first = watermark + 1;
}

/* True while a record may be sent only when all before it are durable. */
bool
suspect_one_by_one(const struct suspect *s)
{
	return s->deaths >= ALONE_AFTER;
}
