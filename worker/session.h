#ifndef WORKER_SESSION_H
#define WORKER_SESSION_H

#include "breaker.h"
#include "buffer.h"
#include "config.h"
#include "isolate.h"
#include "message.h"
#include "pg.h"
#include "progress.h"
#include "schema.h"
#include "trouble.h"

struct batch;

enum session_state {
	SESSION_DOWN, /* waits until retry_at */
	SESSION_CONNECTING,
	SESSION_ASKING,  /* for the facts */
	SESSION_LOCKING, /* something is missing: one writer at a time */
	SESSION_ASKING_AGAIN,
	SESSION_CREATING,
	SESSION_SETTING,
	SESSION_COLUMNS,
	SESSION_LOOKING,  /* is anybody else here for our messages? */
	SESSION_CLAIMING, /* the same again, with our own sign up */
	SESSION_TAKING,   /* the progress row */
	SESSION_READY,    /* idle; a refused batch may have to wait until retry_at */
	SESSION_COMMITTING,
	SESSION_ISOLATING, /* the bad rows of a batch that was refused */
	SESSION_ROLLING_BACK,
	SESSION_CLOSING,    /* another stream */
	SESSION_FORGETTING, /* progress rows */
	SESSION_EVICTING,   /* ending a backend that held up TAKING or CLOSING */
};

enum session_event {
	SESSION_NOTHING,
	SESSION_IS_READY, /* connected and checked */
	SESSION_COMMITTED_BATCH,
	SESSION_TROUBLE, /* trouble says what; a batch in flight is not durable, or not known to be
			  */
	SESSION_FENCED,  /* our progress row has gone, moved or been closed: commit nothing any more
			  */
	SESSION_CLOSED_STREAM, /* lanes says how far it had come */
	SESSION_FORGOT,
	SESSION_NO_MEMORY,
};

/* As many refused rows of a transaction are remembered for the log as it has lines for. */
#define REFUSALS_KEPT 5

struct refusal {
	size_t row;
	char sqlstate[6];
	char reason[128];
};

/* A batch that is given to the database, and what is known of its bad rows. */
struct isolation {
	const struct batch *batch; /* the writer's; NULL before the first */
	int row_copies;            /* of the query that runs: its first COPYs are of rows */
	bool used;                 /* pieces were sent: the batch was refused as a whole */
	struct isolate plan;
	struct buffer dead_letters; /* their lines */
	uint64_t refused;           /* rows that are in there */
	struct refusal kept[REFUSALS_KEPT];
};

/* All times on the monotonic clock. conninfo belongs to the configuration. */
struct session {
	enum session_state state;
	struct pg pg;
	struct schema schema;
	struct schema_missing missing;
	const char *conninfo;
	char server[80];
	bool set_synchronous;
	bool fsync_warned;
	int64_t since; /* when the present step began; commit or connect and check count as one */
	int64_t retry_at;
	int failures; /* in a row */
	bool refused; /* the last transaction failed and no other has succeeded since */
	struct progress progress;
	uint64_t pending_seq; /* of the last batch that was sent: in doubt while refused */
	uint64_t pending_dead_letters;
	struct isolation isolation;
	struct breaker breaker;
	char other[PROGRESS_STREAM_LENGTH + 1]; /* the stream that is being closed or forgotten */
	int other_lane;                         /* of it, -1 for all */
	enum session_state evicting_for;
	int64_t rival_seen; /* when another instance was last seen here, 0 if never */
	char database[64];  /* which one it is */
	struct lane_progress lanes[MESSAGE_LANES_MAX];
	size_t lane_count;
	struct trouble trouble;
	char *sql;
};

int session_init(struct session *, const struct config *, const struct progress *, int64_t now);
void session_free(struct session *);
enum session_event session_run(struct session *, int64_t now);
bool session_can_commit(const struct session *, int64_t now);
enum session_event session_commit(struct session *, const struct batch *, int64_t now);
enum session_event session_close_stream(struct session *, const char *stream, int64_t now);
enum session_event session_forget(struct session *, const char *stream, int lane, int64_t now);
int64_t session_deadline(const struct session *);
bool session_waits(const struct session *);

#endif
