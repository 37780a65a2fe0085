#ifndef WORKER_PG_H
#define WORKER_PG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* libpq's own types, known only to pg.c. */
struct pg_conn;
struct pg_result;

enum pg_state {
	PG_CLOSED,
	PG_CONNECTING,
	PG_IDLE,
	PG_BUSY,
};

enum pg_event {
	PG_NOTHING,
	PG_CONNECTED,
	PG_DONE,   /* the query is through; error says whether it was refused */
	PG_FAILED, /* the connection is lost or was never made; error says why */
};

/*
 * sqlstate is empty when there is none. text is one line, empty when nothing is wrong. The rest is
 * there where the server has said it: detail, one line too, may show what a record holds.
 */
struct pg_error {
	char sqlstate[6];
	char text[800];
	char detail[600];
	char constraint[64];
	uint64_t copy_line; /* the line of a COPY that it names, from 1: a hint, 0 for none */
};

/* What a COPY … FROM STDIN of the query gets to read; not copied, must stay until PG_DONE. */
struct pg_copy {
	const uint8_t *data;
	size_t n;
};

#define PG_COPIES_MAX 2

struct pg {
	enum pg_state state;
	struct pg_conn *conn;
	struct pg_result *rows;
	char user[80], database[80]; /* whom and what we connect to */
	struct pg_error error;
	struct pg_error fatal; /* what the server said when it ended the session */
	int64_t deadline;      /* of the attempt to connect */
	int64_t timeout;
	bool not_durable; /* the server gave up waiting for its standby */
	bool writing;     /* libpq holds bytes that the socket did not take */
	bool copying;
	bool astray; /* the server does what makes no sense */
	bool fenced; /* the copies' UPDATE did not touch exactly one row: they were refused */
	struct pg_copy copies[PG_COPIES_MAX];
	int copy_count, copy;
	int copies_begun, copies_done; /* by the server */
	size_t copied;
	char tag[32]; /* of the last command that returned no rows */
};

int pg_check_conninfo(const char *, char *, size_t);
void pg_connect(struct pg *, const char *conninfo, int64_t now);
int pg_fd(const struct pg *);
short pg_events(const struct pg *);
enum pg_event pg_run(struct pg *, int64_t now);
int pg_query(struct pg *, const char *sql, const char *const *params, int count);
int pg_query_copy(struct pg *, const char *sql, const struct pg_copy *, int count);
int pg_rows(const struct pg *);
const char *pg_value(const struct pg *, int row, int column);
bool pg_in_transaction(const struct pg *);
void pg_close(struct pg *);

#endif
