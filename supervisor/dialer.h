#ifndef SUPERVISOR_DIALER_H
#define SUPERVISOR_DIALER_H

#include <stdint.h>

#include "resolve.h"

enum dialer_result {
	DIALER_WAIT,
	DIALER_GO,
	DIALER_FAILED,
};

/* When and where to try next. */
struct dialer {
	const char *host;
	struct resolve resolve;
	unsigned turn;     /* attempts: which of the addresses is next */
	unsigned failures; /* in a row */
	int64_t retry_at;
	int64_t give_up_at;  /* for the resolver */
	const char *address; /* after DIALER_GO; good until the next step */
	const char *error;   /* after DIALER_FAILED */
};

void dialer_init(struct dialer *, const char *, int64_t);
enum dialer_result dialer_step(struct dialer *, int64_t);
int64_t dialer_failed(struct dialer *, int64_t);
void dialer_well(struct dialer *);
int64_t dialer_deadline(const struct dialer *);

#endif
