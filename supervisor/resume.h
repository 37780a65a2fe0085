#ifndef SUPERVISOR_RESUME_H
#define SUPERVISOR_RESUME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * Messages that may be unacknowledged at most: one less than there are packet ids, so that the
 * oldest of them never has the id that the broker gives out next.
 */
#define RESUME_WINDOW_MOST 65534

/* What has become of a message that the broker may send again. Kept in the state directory. */
enum resume_fate {
	RESUME_LIVE,    /* a record of the running stream: in a backlog, or durable */
	RESUME_DURABLE, /* of an earlier stream, and committed */
	RESUME_GONE,    /* of an earlier stream, and not committed: it died with its supervisor */
	RESUME_SKIPPED, /* the broker went on without it */
	RESUME_DOUBT,   /* of an earlier stream, and perhaps committed */
};

/* One message of QoS 1, as it is kept in the state directory: a change is a new version there. */
struct resume_entry {
	uint64_t hash; /* of topic and payload */
	uint64_t seq;
	uint16_t packet_id;
	uint8_t lane;
	uint8_t fate; /* enum resume_fate */
} __attribute__((packed));

/* How a message stands to the list. */
enum resume_verdict {
	RESUME_NEW,      /* not in it: to be stored, and noted with resume_note() */
	RESUME_KNOWN,    /* it has been taken before: only its acknowledgement is owed */
	RESUME_AGAIN,    /* it has been received before, and was lost since: to be stored */
	RESUME_DOUBTFUL, /* it has been received before, and nobody knows whether it is stored */
};

enum resume_phase {
	RESUME_PLAIN, /* everything that comes is new */
	RESUME_FIRST, /* the first message decides where the broker begins anew */
	RESUME_ON,    /* it is sending again */
};

/*
 * The messages that the broker may still send again, in its order. Positions count from the first
 * message on and never go back, but for the tail, when the rest of a list is given up.
 */
struct resume {
	struct resume_entry *ring; /* capacity is a power of two */
	size_t capacity;
	uint64_t most;       /* entries that are kept */
	uint64_t head, tail; /* positions of the first, and behind the last */
	uint64_t cursor;     /* while not PLAIN: where the broker is expected to be */
	enum resume_phase phase;
	uint64_t acked;     /* positions before it were acknowledged on this connection */
	uint64_t was_acked; /* the same of earlier connections, as far as is known */
	uint64_t asked;     /* before it: the broker has been asked whether it has got that */
	bool asking;
	int64_t asked_at;
	uint16_t last_packet_id; /* of the last new message on this connection, 0 if none */
	bool reuses_ids; /* the broker gives a packet id out again at once: only what is not yet
			    acknowledged can be told by it */
	uint64_t dirty_from, dirty_to; /* what differs from the state directory */
	bool cut;                      /* and there is more there, behind the tail */
	bool proven;                   /* and there are entries there that are done with */
	/* Counts of this connection, for the log. */
	uint64_t recognised;
	uint64_t unmatched; /* did not come again although they had to, and are stored */
	uint64_t missing;   /* the same, and they are not stored */
	uint64_t forgotten;
};

void resume_init(struct resume *, uint64_t window);
void resume_free(struct resume *);
int resume_load(struct resume *, uint64_t position, const struct resume_entry *, size_t n);
void resume_connected(struct resume *, bool session_present);
bool resume_matching(const struct resume *);
enum resume_verdict resume_receive(
    struct resume *, uint16_t packet_id, uint64_t hash, bool dup, uint64_t *position);
int resume_note(struct resume *, const struct resume_entry *);
void resume_update(struct resume *, uint64_t position, uint64_t seq, uint8_t lane);
struct resume_entry *resume_at(const struct resume *, uint64_t position);
uint64_t resume_outstanding(const struct resume *);
void resume_flushed(struct resume *);
bool resume_unproven(const struct resume *);
bool resume_should_ask(const struct resume *, int64_t now);
void resume_ask(struct resume *, int64_t now);
void resume_proven(struct resume *);
uint64_t resume_count_gone(const struct resume *);
void resume_settle(struct resume *, const uint64_t *committed, size_t lanes);
void resume_clear(struct resume *);
void resume_touch(struct resume *, uint64_t from, uint64_t to);

#endif
