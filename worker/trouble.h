#ifndef WORKER_TROUBLE_H
#define WORKER_TROUBLE_H

#include "message.h"

/* What the writer tells its supervisor while the database does not take the batch. */
struct trouble {
	enum trouble_class class;
	char sqlstate[6];
	char text[1400];
};

/* Whom and what the advice is about. */
struct trouble_context {
	const char *user;
	const char *database;
	const char *table;
	const char *timescaledb; /* as SQL: its schema, empty where it is not installed */
	bool creating;
};

void trouble_set(struct trouble *, const char *sqlstate, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
void trouble_advise(
    struct trouble *, const char *sqlstate, const char *message, const struct trouble_context *);

#endif
