/*
 * Which message of the broker is an old one? The list of those that it may send again, and the
 * matching of what it sends after a reconnect against that list.
 *
 * MQTT lets a broker send a message of QoS 1 again only on a new connection, with the same packet
 * id, in the original order and marked DUP [MQTT-4.4.0-1, MQTT-4.6.0-1, MQTT-3.3.1-1]. So what
 * comes first is a suffix of this list; it may leave some out that have expired. A message stays in
 * the list until the broker has shown that it got the acknowledgement: it answers, behind that, an
 * UNSUBSCRIBE of a filter that nobody has.
 *
 * Pure: no clock, no file, no libmosquitto. Must never take a new message for an old one, which
 * would lose it; to take an old one for a new one costs a duplicate only. So in doubt it is new:
 * without DUP, behind a mismatch, where the place in the list is not certain.
 */
#include "resume.h"

#include <stdlib.h>

#define RING_MIN 1024
/*
 * The most that is kept: what is not acknowledged is at most a window, the rest waits for the
 * broker's answer. Mosquitto 2.0 sends up to twenty messages for each acknowledgement that it
 * reads, so that its answer can stand behind twenty windows. They are small then, or the last bound
 * counts.
 */
#define WINDOWS_KEPT 22
#define MOST_KEPT (4 * UINT64_C(65536))
/* Packet ids go round without 0. */
#define PACKET_IDS 65535
/* Not with every flush, since at a low rate each message is one. */
#define ASK_INTERVAL INT64_C(50000)

/* window is --receive-maximum. */
void
resume_init(struct resume *r, uint64_t window)
{
	*r = (struct resume){.most = window * WINDOWS_KEPT};
	if (r->most < RING_MIN)
		r->most = RING_MIN;
	if (r->most > MOST_KEPT)
		r->most = MOST_KEPT;
}

void
resume_free(struct resume *r)
{
	free(r->ring);
	*r = (struct resume){0};
}

/* The entry at a position from head to before tail. */
struct resume_entry *
resume_at(const struct resume *r, uint64_t position)
{
	return &r->ring[position & (r->capacity - 1)];
}

static int
grow(struct resume *r)
{
	size_t capacity = r->capacity > 0 ? r->capacity * 2 : RING_MIN;
	struct resume_entry *ring = reallocarray(NULL, capacity, sizeof(*ring));
	uint64_t at;

	if (ring == NULL)
		return -1;
	for (at = r->head; at < r->tail; at++)
		ring[at & (capacity - 1)] = *resume_at(r, at);
	free(r->ring);
	r->ring = ring;
	r->capacity = capacity;
	return 0;
}

/* Entries of these positions are to be written to the state directory. */
void
resume_touch(struct resume *r, uint64_t from, uint64_t to)
{
	if (r->dirty_from >= r->dirty_to) {
		r->dirty_from = from;
		r->dirty_to = to;
		return;
	}
	if (from < r->dirty_from)
		r->dirty_from = from;
	if (to > r->dirty_to)
		r->dirty_to = to;
}

/* An entry leaves the list without having come again. */
static void
count_missing(struct resume *r, uint64_t at)
{
	const struct resume_entry *e = resume_at(r, at);

	if (e->fate == RESUME_GONE)
		r->missing++;
	else if (e->fate != RESUME_SKIPPED && at >= r->was_acked)
		r->unmatched++;
}

static void
drop_before(struct resume *r, uint64_t position)
{
	if (position <= r->head)
		return;
	r->head = position;
	if (r->acked < position)
		r->acked = position;
	if (r->cursor < position)
		r->cursor = position;
}

/* Before it everything has been acknowledged, on this connection or an earlier one. */
static uint64_t
acked_once(const struct resume *r)
{
	return r->acked > r->was_acked ? r->acked : r->was_acked;
}

static int
append(struct resume *r, const struct resume_entry *e)
{
	while (r->tail - r->head >= r->most && r->head < acked_once(r)) {
		r->forgotten++;
		drop_before(r, r->head + 1);
	}
	if (r->tail - r->head == r->capacity && grow(r) == -1)
		return -1;
	*resume_at(r, r->tail) = *e;
	r->tail++;
	return 0;
}

/*
 * Appends what the state directory held, from this position on; before the first connection only.
 * Returns -1 with errno ENOMEM.
 */
int
resume_load(struct resume *r, uint64_t position, const struct resume_entry *e, size_t n)
{
	size_t i;

	if (r->head == r->tail)
		r->head = r->tail = r->cursor = r->acked = position;
	for (i = 0; i < n; i++) {
		if (append(r, &e[i]) == -1)
			return -1;
	}
	/* Nobody knows how far it was acknowledged: with such a broker nothing is certain. */
	if (r->reuses_ids)
		r->acked = r->tail;
	return 0;
}

/* All that is left of the list from the cursor on does not come any more. */
static void
give_rest_up(struct resume *r)
{
	uint64_t at;

	for (at = r->cursor; at < r->tail; at++)
		count_missing(r, at);
	if (r->cursor < r->tail)
		r->cut = true;
	r->tail = r->cursor;
	if (r->was_acked > r->tail)
		r->was_acked = r->tail;
	if (r->dirty_to > r->tail)
		r->dirty_to = r->tail;
	r->phase = RESUME_PLAIN;
}

/* CONNACK: the broker has kept the session and will send again, or it has not and never will. */
void
resume_connected(struct resume *r, bool session_present)
{
	uint64_t at;

	r->asking = false;
	r->recognised = r->unmatched = r->missing = 0;
	if (r->was_acked < r->acked)
		r->was_acked = r->acked;
	r->acked = r->cursor = r->head;
	r->last_packet_id = 0;
	r->phase = session_present && r->head < r->tail ? RESUME_FIRST : RESUME_PLAIN;
	if (!session_present) {
		for (at = r->head; at < r->tail; at++)
			count_missing(r, at);
		resume_clear(r);
	}
}

/* True while a message may still be an old one, so that DUP must be known. */
bool
resume_matching(const struct resume *r)
{
	return r->phase != RESUME_PLAIN;
}

static bool
fits(const struct resume *r, uint64_t at, uint16_t packet_id, uint64_t hash)
{
	const struct resume_entry *e = resume_at(r, at);

	if (e->packet_id != packet_id || e->hash != hash || e->fate == RESUME_SKIPPED)
		return false;
	/* An equal message under the same id can be a new one, if the old one had been confirmed.
	 */
	return !r->reuses_ids || at >= r->was_acked;
}

/*
 * The id that the broker gives out next, if it counts. In a list that goes round all ids one has it
 * as well, which was acknowledged (RESUME_WINDOW_MOST): the message is that one's successor.
 */
static bool
is_next_id(const struct resume *r, uint16_t packet_id)
{
	return packet_id == resume_at(r, r->tail - 1)->packet_id % PACKET_IDS + 1;
}

/* Where the first message stands: the last place that fits, since an earlier one would claim more.
 * Returns the tail if there is none. */
static uint64_t
find_first(const struct resume *r, uint16_t packet_id, uint64_t hash)
{
	uint64_t at;

	if (r->tail - r->head >= PACKET_IDS && is_next_id(r, packet_id))
		return r->tail;
	for (at = r->tail; at > r->head; at--) {
		if (fits(r, at - 1, packet_id, hash))
			return at - 1;
	}
	return r->tail;
}

/* The same for those behind the first: the next place from the cursor on. */
static uint64_t
find_next(const struct resume *r, uint16_t packet_id, uint64_t hash)
{
	uint64_t at;

	for (at = r->cursor; at < r->tail; at++) {
		if (fits(r, at, packet_id, hash))
			return at;
	}
	return r->tail;
}

static void
skip_to(struct resume *r, uint64_t position)
{
	uint64_t at;

	for (at = r->cursor; at < position; at++) {
		count_missing(r, at);
		resume_at(r, at)->fate = RESUME_SKIPPED;
	}
	if (r->cursor < position)
		resume_touch(r, r->cursor, position);
}

/* A broker that counts goes forward; one that takes the lowest free id does not. */
static void
watch_ids(struct resume *r, uint16_t packet_id)
{
	unsigned step = (packet_id + PACKET_IDS - r->last_packet_id) % PACKET_IDS;

	if (r->last_packet_id != 0 && (step == 0 || step > PACKET_IDS / 2))
		r->reuses_ids = true;
	r->last_packet_id = packet_id;
}

/*
 * A message of QoS 1 has come. dup: it is known to be marked so. All but RESUME_NEW set *position.
 */
enum resume_verdict
resume_receive(struct resume *r, uint16_t packet_id, uint64_t hash, bool dup, uint64_t *position)
{
	uint64_t at, before;

	if (r->phase == RESUME_PLAIN) {
		watch_ids(r, packet_id);
		return RESUME_NEW;
	}
	at = !dup                      ? r->tail
	    : r->phase == RESUME_FIRST ? find_first(r, packet_id, hash)
				       : find_next(r, packet_id, hash);
	if (at == r->tail) {
		if (r->phase == RESUME_FIRST)
			r->cursor = r->head;
		give_rest_up(r);
		if (!dup)
			watch_ids(r, packet_id);
		return RESUME_NEW;
	}
	/* What stands before the first one has been acknowledged, or it would have come again. */
	if (r->phase == RESUME_FIRST) {
		for (before = r->head; before < at; before++)
			count_missing(r, before);
		drop_before(r, at);
	} else {
		skip_to(r, at);
	}
	r->cursor = at + 1;
	r->phase = r->cursor < r->tail ? RESUME_ON : RESUME_PLAIN;
	r->recognised++;
	*position = at;
	switch (resume_at(r, at)->fate) {
	case RESUME_GONE:
		return RESUME_AGAIN;
	case RESUME_DOUBT:
		return RESUME_DOUBTFUL;
	default:
		return RESUME_KNOWN;
	}
}

/* Notes a new message. Returns -1 with errno ENOMEM; it is then not in the list. */
int
resume_note(struct resume *r, const struct resume_entry *e)
{
	if (append(r, e) == -1)
		return -1;
	resume_touch(r, r->tail - 1, r->tail);
	return 0;
}

/* The entry has become a record of the running stream. */
void
resume_update(struct resume *r, uint64_t position, uint64_t seq, uint8_t lane)
{
	struct resume_entry *e = resume_at(r, position);

	e->seq = seq;
	e->lane = lane;
	e->fate = RESUME_LIVE;
	resume_touch(r, position, position + 1);
}

/* How many the broker should send again and has not yet: their acknowledgement is still owed. */
uint64_t
resume_outstanding(const struct resume *r)
{
	uint64_t from =
	    r->phase == RESUME_FIRST && r->was_acked > r->cursor ? r->was_acked : r->cursor;

	return r->phase == RESUME_PLAIN || from > r->tail ? 0 : r->tail - from;
}

/* All that has been read on this connection is acknowledged from now on, or may be. */
void
resume_flushed(struct resume *r)
{
	r->acked = r->phase == RESUME_PLAIN ? r->tail : r->cursor;
}

/* Has something been read of which the broker has not shown that it got the acknowledgement? */
bool
resume_unproven(const struct resume *r)
{
	return (r->phase == RESUME_PLAIN ? r->tail : r->cursor) > r->head;
}

/* Is the broker to be asked whether it has got the acknowledgements that are about to go out? */
bool
resume_should_ask(const struct resume *r, int64_t now)
{
	return !r->asking && resume_unproven(r) && now - r->asked_at >= ASK_INTERVAL;
}

/* The question goes out behind the acknowledgements of all that has been read. */
void
resume_ask(struct resume *r, int64_t now)
{
	r->asking = true;
	r->asked_at = now;
	r->asked = r->phase == RESUME_PLAIN ? r->tail : r->cursor;
}

/* The answer has come: the broker has got them, and never sends these again. */
void
resume_proven(struct resume *r)
{
	if (!r->asking)
		return;
	r->asking = false;
	r->proven = r->proven || r->head < r->asked;
	drop_before(r, r->asked < r->tail ? r->asked : r->tail);
}

/* How many had not been stored, and have to come again. */
uint64_t
resume_count_gone(const struct resume *r)
{
	uint64_t at, n = 0;

	for (at = r->head; at < r->tail; at++)
		n += resume_at(r, at)->fate == RESUME_GONE;
	return n;
}

/*
 * The stream in doubt is closed: what its lanes have committed is durable, the rest is gone.
 * committed has the seq of each lane.
 */
void
resume_settle(struct resume *r, const uint64_t *committed, size_t lanes)
{
	struct resume_entry *e;
	uint64_t at;

	for (at = r->head; at < r->tail; at++) {
		e = resume_at(r, at);
		if (e->fate == RESUME_DOUBT)
			e->fate = e->lane < lanes && e->seq <= committed[e->lane] ? RESUME_DURABLE
										  : RESUME_GONE;
	}
	if (r->head < r->tail)
		resume_touch(r, r->head, r->tail);
}

/* Nothing of it will come again. */
void
resume_clear(struct resume *r)
{
	r->cut = r->cut || r->head < r->tail;
	r->head = r->tail;
	r->cursor = r->acked = r->was_acked = r->tail;
	r->dirty_from = r->dirty_to = 0;
	r->asking = false;
	r->phase = RESUME_PLAIN;
}
