/*
 * What comes out of the spool: rows go back into the backlogs in the order in which they came, as
 * the writers make room; those of earlier streams become records of this one first.
 *
 * A row stays in the spool until the database has it. Must never send a record of an earlier stream
 * before that is closed, since it may be committed, nor one of ours before all of theirs.
 */
#include <stdio.h>
#include <string.h>
#include <sys/statvfs.h>
#include <xxhash.h>

#include "clock.h"
#include "failpoint.h"
#include "log.h"
#include "service.h"

/* A lane with less than this gets another row. */
#define FEED_BATCHES 4
#define FEED_RECORDS_LEAST 2000
#define FEED_BYTES ((size_t)4 << 20)
#define FEED_TIME (50 * CLOCK_MS)
#define READ_RETRY CLOCK_SECOND
#define READ_LOGGED_EVERY (60 * CLOCK_SECOND)

/* ---- records of a row ---- */

/* What to do with a record and its encoded bytes. Returns -1 to stop. */
typedef int take_record(void *, struct record *, const uint8_t *, size_t);

/* Calls take for each record of a row. Returns -1 when that did, or when the row cannot be read. */
static int
each_record(const uint8_t *p, size_t n, take_record *take, void *arg, bool *malformed)
{
	struct message_fault fault;
	struct message m;
	size_t used;

	*malformed = false;
	for (; n > 0; p += used, n -= used) {
		if (message_decode(p, n, n, &m, &used, &fault) != MESSAGE_OK ||
		    m.type != MESSAGE_RECORD) {
			*malformed = true;
			return -1;
		}
		if (take(arg, &m.record, p, used) == -1)
			return -1;
	}
	return 0;
}

/* The row cannot be understood: it is kept where a person finds it, and not tried again. */
static int
set_aside(struct service *s, const struct spool_row *row)
{
	struct spool_row copy = *row;

	spool_done(&s->spool);
	log_error("spool_row_unreadable", LOG_S("state_dir", s->cfg->state_dir),
	    LOG_I("row", copy.id), LOG_U("records", copy.count),
	    LOG_S("next",
		"its records are not stored; the row is kept in the table unreadable of spool.db"));
	if (spool_set_aside(&s->spool, &copy) == -1)
		return -1;
	spool_take_off(&s->spool_found, copy.count);
	return 0;
}

/* ---- into the backlog ---- */

struct loading {
	struct lane *lane;
	uint64_t limit; /* --payload-limit */
	uint64_t taken;
};

static int
load_record(void *arg, struct record *r, const uint8_t *bytes, size_t n)
{
	struct loading *to = arg;
	int rc;

	if (r->seq <= to->lane->spool.loaded)
		return 0;
	/* The writer takes no larger one, and it may have been larger when this one came. */
	if (r->payload.n > to->limit) {
		r->payload.n = to->limit;
		rc = backlog_append(&to->lane->backlog, r);
	} else {
		rc = backlog_append_encoded(&to->lane->backlog, r, bytes, n);
	}
	if (rc == -1)
		return -1;
	to->lane->spool.loaded = r->seq;
	to->taken++;
	return 0;
}

/* Puts the lane's next row into its backlog. Returns 1, 0 if there is none, -1 if it failed. */
static int
load_row(struct service *s, struct lane *l)
{
	uint64_t upto = s->spool.old_records > 0 ? s->seq_base : UINT64_MAX;
	struct loading to = {.lane = l, .limit = (uint64_t)s->cfg->payload_limit};
	struct spool_row row;
	bool malformed;
	int rc = spool_next(&s->spool, s->stream, l->index, l->spool.loaded, upto, &row);

	if (rc != 1)
		return rc;
	rc = each_record(row.records, row.n, load_record, &to, &malformed);
	l->spool.in_backlog += to.taken;
	if (malformed) {
		if (set_aside(s, &row) == -1)
			return -1;
		l->spool.count -= row.count - to.taken;
		l->spool.loaded = row.last;
		return 1;
	}
	if (rc == 0)
		l->spool.loaded = row.last;
	spool_done(&s->spool);
	return rc == 0 && !FAILPOINT("after_row_is_loaded") ? 1 : -1;
}

/* What is pending need not go to the disk: it is next. Returns -1 when memory is short. */
int
spool_feed_pending(struct service *s, struct lane *l)
{
	struct burst *pending = &l->spool.pending;
	struct loading to = {.lane = l, .limit = (uint64_t)s->cfg->payload_limit};
	bool malformed;
	int rc = each_record(buffer_head(&pending->bytes), buffer_size(&pending->bytes),
	    load_record, &to, &malformed);

	pending->count -= to.taken;
	if (rc == -1)
		return -1;
	burst_clear(pending);
	return 0;
}

/* ---- earlier streams ---- */

/* Old rows that become ours in one transaction. */
#define ADOPT_ROWS 256
#define ADOPT_RECORDS 2000
#define ADOPT_BYTES ((size_t)1 << 20)

struct adopting {
	struct service *s;
	uint64_t done; /* up to this seq of the old stream all is committed */
	uint64_t taken;
	uint64_t records; /* in the old rows */
	struct spool_row old[ADOPT_ROWS];
	size_t old_count, old_bytes;
	struct burst bursts[MESSAGE_LANES_MAX];
};

static int
adopt_record(void *arg, struct record *r, const uint8_t *bytes, size_t n)
{
	struct adopting *a = arg;
	int lane = (int)(XXH3_64bits(r->topic.s, r->topic.n) % (uint64_t)a->s->lane_count);

	(void)bytes;
	(void)n;
	if (r->seq <= a->done)
		return 0;
	r->seq = a->s->adopted + ++a->taken;
	return burst_add(&a->bursts[lane], r);
}

static int
leave_record(void *arg, struct record *r, const uint8_t *bytes, size_t n)
{
	(void)arg;
	(void)r;
	(void)bytes;
	(void)n;
	return 0;
}

static int
put_adopted(struct adopting *a)
{
	struct service *s = a->s;
	uint64_t bytes = s->spool.bytes;
	size_t at;
	int i;

	if (spool_begin(&s->spool) == -1)
		return -1;
	for (i = 0; i < s->lane_count; i++) {
		/* A later run may find it among rows of the same stream that came behind it. */
		if (a->bursts[i].count > 0 &&
		    spool_put(&s->spool, s->stream, i, &a->bursts[i],
			a->old[a->old_count - 1].place) == -1)
			break;
	}
	for (at = 0; i == s->lane_count && at < a->old_count; at++) {
		if (spool_remove(&s->spool, &a->old[at]) == -1)
			i = -1;
	}
	if (i == s->lane_count && spool_commit(&s->spool) == 0)
		return 0;
	s->spool.bytes = bytes;
	return spool_roll_back(&s->spool);
}

static void
count_adopted(struct adopting *a)
{
	struct service *s = a->s;
	int i;

	for (i = 0; i < s->lane_count; i++) {
		if (a->bursts[i].count == 0)
			continue;
		s->lanes[i].spool.count += a->bursts[i].count;
		if (s->lanes[i].spool.tail < a->bursts[i].last)
			s->lanes[i].spool.tail = a->bursts[i].last;
	}
	s->adopted += a->taken;
	spool_take_off(&s->spool.old_records, a->records);
	/* The run that received them has counted what was committed. */
	spool_take_off(&s->spool_found, a->records - a->taken);
}

/* Takes the next old row along. Returns 1, 0 if it is not to be taken now, -1 if that failed. */
static int
take_old(struct adopting *a, const struct spool_row *behind)
{
	struct service *s = a->s;
	struct spool_row *old = &a->old[a->old_count];
	bool malformed;
	int rc = spool_next_old(&s->spool, s->stream, behind, old);

	if (rc != 1) {
		if (rc == 0 && a->old_count == 0)
			s->spool.old_records = 0;
		return rc;
	}
	/* As a whole or not at all. */
	each_record(old->records, old->n, leave_record, NULL, &malformed);
	if (malformed && a->old_count > 0) {
		spool_done(&s->spool);
		return 0;
	}
	if (malformed) {
		spool_take_off(&s->spool.old_records, old->count);
		return set_aside(s, old) == -1 ? -1 : 0;
	}
	a->done = old->first;
	rc = each_record(old->records, old->n, adopt_record, a, &malformed);
	spool_done(&s->spool);
	a->records += old->count;
	a->old_bytes += old->n;
	a->old_count++;
	return rc == 0 ? 1 : -1;
}

/* The oldest rows of earlier streams become ours. Returns as load_row(). */
static int
adopt_rows(struct service *s)
{
	static struct adopting a;
	struct spool_row behind = {.place = s->spool.old_place, .id = s->spool.old_id};
	uint64_t before = s->spool.old_records;
	int i, rc = 1;

	if (FAILPOINT("before_row_is_adopted"))
		return -1;
	a.s = s;
	a.taken = a.records = 0;
	a.old_count = a.old_bytes = 0;
	while (rc == 1 && a.old_count < ADOPT_ROWS && a.records < ADOPT_RECORDS &&
	    a.old_bytes < ADOPT_BYTES) {
		rc = take_old(&a, &behind);
		if (rc == 1)
			behind = a.old[a.old_count - 1];
	}
	if (rc != -1 && a.old_count > 0) {
		rc = put_adopted(&a);
		if (rc == 0) {
			count_adopted(&a);
			s->spool.old_place = behind.place;
			s->spool.old_id = behind.id;
		}
		if (rc == 0 && FAILPOINT("after_row_is_adopted"))
			rc = -1;
	}
	for (i = 0; i < s->lane_count; i++)
		burst_free(&a.bursts[i]);
	return rc == -1 ? -1 : a.old_count > 0 || s->spool.old_records != before;
}

/* ---- the hooks ---- */

static bool
is_hungry(const struct service *s, const struct lane *l)
{
	uint64_t records = (uint64_t)s->cfg->batch_size * FEED_BATCHES;

	if (records < FEED_RECORDS_LEAST)
		records = FEED_RECORDS_LEAST;
	return s->state == STATE_RUN && !s->closing && l->spool.on && l->state == LANE_READY &&
	    !l->finishing && l->backlog.count < records && l->backlog.bytes < FEED_BYTES &&
	    lane_in_flight(l) - l->spool.pending.count == 0;
}

/* True when the spool has nothing of the lane that is not in its backlog. */
bool
spool_feed_is_empty(const struct service *s, const struct lane *l)
{
	return !s->closing && s->spool.old_records == 0 && l->spool.loaded >= l->spool.tail;
}

static void
read_failed(struct service *s)
{
	s->spool_read_at = s->now + READ_RETRY;
	if (!clock_lapsed(&s->spool_read_logged, READ_LOGGED_EVERY, s->now))
		return;
	log_error("spool_not_read", LOG_S("state_dir", s->cfg->state_dir),
	    LOG_S("reason", s->spool.file.why),
	    LOG_S("next",
		"what it holds is not stored before it can be read; trying again every "
		"second"));
}

/* Gives the lanes what they have room for, for as long as a turn of the loop may take. */
void
spool_feed(struct service *s)
{
	int64_t end = s->now + FEED_TIME;
	struct lane *l;
	int i, rc;

	s->spool_more = false;
	if (s->now < s->spool_read_at)
		return;
	for (i = 0; i < s->lane_count && !s->spool_more; i++) {
		l = &s->lanes[i];
		for (rc = 1; rc == 1 && is_hungry(s, l) && !s->spool_more;
		     s->spool_more = clock_monotonic() >= end) {
			rc = l->spool.loaded < l->spool.tail ? load_row(s, l) : 0;
			if (rc == 0 && s->spool.old_records > 0)
				rc = adopt_rows(s);
		}
		if (rc == -1)
			read_failed(s);
	}
}

/* ---- at the start ---- */

static void
warn_of_limits(const struct service *s)
{
	const struct config *cfg = s->cfg;
	struct statvfs fs;
	uint64_t free_bytes;

	if (cfg->spool_limit == 0)
		return;
	if (cfg->spool_limit < cfg->payload_limit)
		log_warn("spool_limit_small", LOG_I("limit", cfg->spool_limit),
		    LOG_I("payload_limit", cfg->payload_limit),
		    LOG_S("reason", "one message may be larger than the whole spool"),
		    LOG_S("next", "going on; give --spool-limit more, or --payload-limit less"));
	if (statvfs(cfg->state_dir, &fs) == -1)
		return;
	free_bytes = (uint64_t)fs.f_bavail * fs.f_frsize + s->spool.bytes;
	if (free_bytes < (uint64_t)cfg->spool_limit)
		log_warn("spool_limit_large", LOG_S("state_dir", cfg->state_dir),
		    LOG_I("limit", cfg->spool_limit), LOG_U("free", free_bytes),
		    LOG_S("reason", "its disk has less room than --spool-limit allows"),
		    LOG_S("next",
			"going on; on a full disk nothing more is acknowledged, and nothing is "
			"lost"));
}

/*
 * Opens the spool. What it holds counts as received, and goes before all that comes now: numbers
 * are kept free for it. Call it when the list of messages has been loaded. Returns 0, or the exit
 * status with the reason logged.
 */
int
spool_feed_open(struct service *s)
{
	int rc = spool_open(&s->spool, s->cfg->state_dir);

	if (rc != 0)
		return rc;
	warn_of_limits(s);
	s->spool_found = s->spool.old_records;
	/* Messages of the list may be put there for an earlier stream as well. */
	s->seq_base = s->spool.old_records + (s->resume.tail - s->resume.head);
	s->seq = s->seq_base;
	if (s->spool.old_records > 0) {
		log_info("spool_found", LOG_U("records", s->spool.old_records),
		    LOG_U("bytes", s->spool.bytes),
		    LOG_S("next", "storing them first, in order; new ones go behind them"));
		if (strcmp(s->spool.client_id, s->cfg->client_id) != 0)
			log_warn("spool_of_another_client", LOG_S("was", s->spool.client_id),
			    LOG_S("is", s->cfg->client_id),
			    LOG_S(
				"next", "storing them all the same: they have been acknowledged"));
		s->spooling_reason = "an earlier run has left records in the spool";
	}
	if (spool_note(&s->spool, s->cfg->client_id) == -1)
		return dbfile_unusable(
		    &s->spool.file, s->spool.file.why, "giving up; is the disk full?");
	return 0;
}
