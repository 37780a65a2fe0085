#ifndef SUPERVISOR_LANE_H
#define SUPERVISOR_LANE_H

#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "backlog.h"
#include "burst.h"
#include "channel.h"
#include "config.h"
#include "suspect.h"

enum lane_state {
	LANE_DOWN,     /* no process; respawn at respawn_at */
	LANE_STARTING, /* the writer has not yet reached the database */
	LANE_READY,
	LANE_DYING, /* its channel has ended or it was killed; to be reaped */
	LANE_DONE,  /* drained and reaped, for good */
};

struct lane;

/* A writer's answer to lane_ask(). */
typedef void lane_answer(void *, struct lane *, const struct message *);

/* What a lane has to know of its supervisor; must outlive it. */
struct lane_owner {
	const struct config *cfg;
	const char *stream;
	uint32_t session, instance; /* hashes: whose messages, and who takes them */
	lane_answer *answer;
	void *arg;
};

/* Since the start of the supervisor, over all writers of the lane. */
struct lane_totals {
	uint64_t committed; /* records that became rows */
	uint64_t dead_lettered;
	uint64_t rows;
	uint64_t batches;
};

/*
 * What of a lane is in the spool. Its records stand in this order: those in the backlog that are in
 * the spool as well (in_backlog), then either more of the backlog, or what is in the spool alone
 * and then what is pending.
 */
struct lane_spool {
	bool on;              /* new records go to the spool's tail, not to the backlog */
	struct burst pending; /* not yet in the spool */
	uint64_t count;       /* records in the spool that are not known to be committed */
	uint64_t in_backlog;  /* so many of the backlog's first */
	uint64_t loaded;      /* up to this seq the spool is in the backlog, or was */
	uint64_t tail;        /* the last seq in the spool */
	bool removable;       /* there are rows that are committed */
	int64_t on_since;
	int64_t progress_at; /* the last commit, or when the backlog got its first record */
};

struct lane {
	int index;
	const struct config *cfg;
	const struct lane_owner *owner;
	enum lane_state state;
	struct backlog backlog;
	struct lane_spool spool;
	struct channel channel;
	pid_t pid;
	int64_t ready_at;  /* when READY came */
	int64_t heard;     /* when the writer last spoke, or got work after having none */
	int64_t closed_at; /* when its channel ended by itself, 0 if it did not */
	int64_t respawn_at;
	unsigned failures;
	bool blocked;          /* the channel is full: ask for POLLOUT */
	bool held_back;        /* no record is to be sent for now */
	bool claimed;          /* the writer has found another instance at the database */
	bool was_ready;        /* a writer of this lane has been READY */
	bool owes_answer;      /* to lane_ask() */
	bool forget;           /* at the end, the writer is to remove its progress row */
	bool flush_wanted;     /* FLUSH is owed, once all is sent */
	bool finishing;        /* told to read to the end, commit and exit */
	bool drained;          /* DRAINED came */
	bool killed;           /* by the stop, which replaces nobody */
	int64_t trouble_since; /* 0 when the database is well */
	uint64_t trouble_class;
	char trouble_sqlstate[6];
	char trouble_text[1024];
	char database[64]; /* which one it is, as the writer says */
	struct lane_totals totals;
	uint64_t sent; /* records, those sent again included */

	/* Records that may have killed its writers; does this one know of the condemned? */
	struct suspect suspect;
	bool announced;
};

void lane_init(struct lane *, int, const struct lane_owner *);
int lane_spawn(struct lane *, int64_t);
void lane_send(struct lane *, int64_t);
void lane_prepare(const struct lane *, struct pollfd *);
void lane_dispatch(struct lane *, short, int64_t);
void lane_flush(struct lane *, int64_t);
bool lane_ask(struct lane *, enum message_type, const char *, int64_t);
void lane_finish(struct lane *);
void lane_kill(struct lane *, const char *);
void lane_kill_for_good(struct lane *);
int lane_died(struct lane *, int, bool, int64_t);
void lane_check(struct lane *, int64_t);
int64_t lane_deadline(const struct lane *);
bool lane_handed_over(const struct lane *);
uint64_t lane_in_flight(const struct lane *);
void lane_free(struct lane *);

/* lane.c, lane_hear.c and lane_suspect.c of each other */
void lane_suspect_death(struct lane *, int);
int lane_suspect_unsent(struct lane *, struct iovec *, int);
bool lane_hear(struct lane *, int64_t);
void lane_channel_failed(struct lane *, enum channel_result);

#endif
