/*
 * What a SQLSTATE means for a batch: wait and try again, a person has to change something, or a row
 * is at fault.
 *
 * Pure. Whatever is not known is transient, which holds the batch: must never call something a
 * fault of the data that may be none.
 */
#include "sqlstate.h"

#include <string.h>

struct entry {
	const char *prefix;
	enum trouble_class class;
};

static const struct entry entries[] = {
    {"28", TROUBLE_CONFIGURATION},            /* invalid authorization */
    {"3D", TROUBLE_CONFIGURATION},            /* no such database */
    {"3F", TROUBLE_CONFIGURATION},            /* no such schema */
    {"42", TROUBLE_CONFIGURATION},            /* no such table or column, no privilege */
    {"0A", TROUBLE_CONFIGURATION},            /* feature not supported */
    {TROUBLE_CLAIMED, TROUBLE_CONFIGURATION}, /* another instance is here */
    {"22", TROUBLE_DATA},                     /* data exception */
    {"23502", TROUBLE_DATA},                  /* not null */
    {"23503", TROUBLE_DATA},                  /* foreign key */
    {"23514", TROUBLE_DATA},                  /* check */
    {"21", TROUBLE_DATA},                     /* cardinality */
    {"54", TROUBLE_DATA},                     /* program limit */
};

/* state has five characters, or none when the connection itself failed. */
enum trouble_class
sqlstate_class(const char *state)
{
	size_t i;

	for (i = 0; i < sizeof(entries) / sizeof(entries[0]); i++) {
		if (strncmp(state, entries[i].prefix, strlen(entries[i].prefix)) == 0)
			return entries[i].class;
	}
	return TROUBLE_TRANSIENT;
}
