/*
 * What a SQLSTATE means for a batch: wait and try again, a person has to change something, or a row
 * is at fault.
 *
 * Pure. Whatever is not known is transient, which holds the batch: must never call something a
 * fault of the data that may be none. ingestd(8) prints the table; a test compares them.
 */
#include "sqlstate.h"

#include <string.h>

struct entry {
	const char *prefix;
	enum trouble_class class;
};

/* A class has two characters, a single code five; the longest that fits is what counts. */
static const struct entry entries[] = {
    {"08", TROUBLE_TRANSIENT},                /* connection exception */
    {"25006", TROUBLE_TRANSIENT},             /* read only: a standby, until another takes over */
    {"40", TROUBLE_TRANSIENT},                /* deadlock, serialization failure */
    {"53", TROUBLE_TRANSIENT},                /* disk, memory or connections are short */
    {"55P03", TROUBLE_TRANSIENT},             /* a lock was not to be had in time */
    {"57014", TROUBLE_TRANSIENT},             /* cancelled: statement_timeout, or somebody */
    {"57P", TROUBLE_TRANSIENT},               /* the server starts, stops or has crashed */
    {"58", TROUBLE_TRANSIENT},                /* the server's own system fails it */
    {"0A", TROUBLE_CONFIGURATION},            /* feature not supported */
    {"28", TROUBLE_CONFIGURATION},            /* invalid authorization */
    {"3D", TROUBLE_CONFIGURATION},            /* no such database */
    {"3F", TROUBLE_CONFIGURATION},            /* no such schema */
    {"42", TROUBLE_CONFIGURATION},            /* no such table or column, no privilege */
    {"53400", TROUBLE_CONFIGURATION},         /* a configured limit: waiting does not raise it */
    {TROUBLE_CLAIMED, TROUBLE_CONFIGURATION}, /* another instance is here */
    {TROUBLE_BREAKER, TROUBLE_CONFIGURATION}, /* --dead-letter-share */
    {"09", TROUBLE_DATA},                     /* triggered action exception */
    {"21", TROUBLE_DATA},                     /* cardinality */
    {"22", TROUBLE_DATA},                     /* data exception */
    {"23", TROUBLE_DATA},                     /* constraints, whichever */
    {"27", TROUBLE_DATA},                     /* triggered data change */
    {"38", TROUBLE_DATA},                     /* external routine exception */
    {"39", TROUBLE_DATA},                     /* external routine invocation */
    {"44", TROUBLE_DATA},                     /* WITH CHECK OPTION */
    {"54", TROUBLE_DATA},                     /* program limit: an index row too long */
    {"P0", TROUBLE_DATA},                     /* a trigger that raises */
};

/* state has five characters, or none when the connection itself failed. */
enum trouble_class
sqlstate_class(const char *state)
{
	enum trouble_class class = TROUBLE_TRANSIENT;
	size_t i, n, longest = 0;

	for (i = 0; i < sizeof(entries) / sizeof(entries[0]); i++) {
		n = strlen(entries[i].prefix);
		if (n > longest && strncmp(state, entries[i].prefix, n) == 0) {
			class = entries[i].class;
			longest = n;
		}
	}
	return class;
}
