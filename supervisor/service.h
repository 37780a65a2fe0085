#ifndef SUPERVISOR_SERVICE_H
#define SUPERVISOR_SERVICE_H

/*
 * What the parts of the supervisor share: supervisor.c, the loop; intake.c, from message to record;
 * watch.c, what holds up the flow; past.c, the streams of earlier runs;
 * spooling.c and spool_feed.c, what goes into the spool and out of it; shutdown.c, the stop.
 */

#include <stdbool.h>
#include <stdint.h>

#include "config.h"
#include "lane.h"
#include "mqtt.h"
#include "pressure.h"
#include "resume.h"
#include "spool.h"
#include "store.h"

enum service_state {
	STATE_RUN,
	STATE_SETTLE,
	STATE_DRAIN,
	STATE_FLUSH,
	STATE_DONE,
};

struct service {
	const struct config *cfg;
	enum service_state state;
	int64_t deadline; /* of the state */
	int64_t drain_deadline;
	int signals;
	struct mqtt mqtt;
	struct resume resume;
	struct store store;
	struct lane_owner owner;
	struct lane *lanes;
	int lane_count;
	char stream[STORE_STREAM_LENGTH + 1];
	uint64_t seq;         /* of the last record */
	uint64_t seq_base;    /* of the last before the first: room for what earlier streams left */
	uint64_t handed_back; /* records that were dropped again: they stay with the broker */
	int64_t now;
	bool called;  /* the broker, for the first time */
	bool claimed; /* by another instance: the broker is left alone */
	bool left;    /* mqtt_disconnected has been logged */
	bool killing; /* the writers have got SIGKILL */
	/* intake.c */
	int64_t save_failed; /* since when the state directory takes no writes, 0 if it does */
	int64_t save_at;     /* when to try again */
	int64_t save_logged;
	struct pressure pressure; /* watch.c */
	/* spooling.c, spool_feed.c */
	struct spool spool;
	uint64_t adopted;     /* seq of the last old record that has become one of this stream */
	uint64_t spool_found; /* records of earlier runs, which count as received */
	int64_t spool_failed; /* since when the spool takes no writes, 0 if it does */
	int64_t spool_retry_at;
	int64_t spool_logged;
	int64_t spool_looked_at;
	bool spool_more;       /* there is more to be read back from it at once */
	int64_t spool_read_at; /* it could not be read: not before */
	int64_t spool_read_logged;
	bool spool_disk_full; /* there is hardly room on its disk */
	int64_t spool_removed_at;
	int64_t room_missing;        /* since when the backlog is full, 0 if it is not */
	const char *spooling_reason; /* NULL while all records go to the writers directly */
	/* doubt.c */
	bool in_doubt; /* the broker has been called though the list is in doubt */
	int64_t doubt_at;
	struct burst doubt[MESSAGE_LANES_MAX]; /* by lane of that stream: on its way to the spool */
	/* past.c */
	bool doubtful; /* the list has messages of which only the database knows whether it has them
			*/
	bool closing;  /* streams before ours are to be closed before anything is sent */
	bool past_left;           /* there may be streams whose progress rows are to be removed */
	struct lane *asked;       /* who has been told to, NULL if nobody */
	pid_t asked_pid;          /* its writer: another one has not been told */
	enum message_type errand; /* MESSAGE_CLOSE or MESSAGE_FORGET */
	char other[STORE_STREAM_LENGTH + 1];
	int64_t errand_at; /* not before */
	int64_t errand_logged;
	bool database_noted;
	int exit_status;
};

/* intake.c */
enum mqtt_receipt intake_receive(void *, struct record *, const struct mqtt_identity *);
struct lane_totals intake_totals(const struct service *);
struct gate_view intake_view(const struct service *);
uint64_t intake_received(const struct service *);
void intake_save(struct service *);
int64_t intake_deadline(const struct service *);
void intake_hand_back(struct service *);

/* watch.c */
void watch_pressure(struct service *, const struct gate_view *);
int64_t watch_deadline(const struct service *);

/* spooling.c */
bool spooling_may_grow(const struct lane *);
void spooling_step(struct service *);
int64_t spooling_deadline(const struct service *);
uint64_t spooling_count(const struct service *);
bool spooling_any(const struct service *);
bool spooling_full(const struct service *);
bool spooling_is_empty(const struct service *);
void spooling_finish(struct service *);

/* spool_feed.c */
int spool_feed_open(struct service *);
void spool_feed(struct service *);
bool spool_feed_is_empty(const struct service *, const struct lane *);
int spool_feed_pending(struct service *, struct lane *);

/* doubt.c */
uint64_t doubt_load(struct service *);
int doubt_settle(
    struct service *, const uint64_t *committed, size_t lanes, uint64_t *stored, uint64_t *gone);
void doubt_give_back(struct service *);
void doubt_step(struct service *);
int64_t doubt_deadline(const struct service *);
int doubt_put(struct service *, struct record *, uint64_t position);
uint64_t doubt_pending(const struct service *);
int doubt_write(struct service *);
void doubt_written(struct service *);

/* past.c */
int past_open(struct service *);
void past_announce(const struct service *);
void past_step(struct service *);
void past_answer(void *, struct lane *, const struct message *);
int64_t past_deadline(const struct service *);

/* shutdown.c */
void shutdown_begin(struct service *, const char *reason);
void shutdown_hurry(struct service *, const char *reason);
void shutdown_step(struct service *);

#endif
