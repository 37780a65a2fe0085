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

/* A lane with less than this gets another row; a writer holds two batches. */
#define FEED_BATCHES 4
#define FEED_RECORDS_LEAST 2000
#define FEED_BYTES ((size_t)4 << 20)

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
	s->spool_found -= copy.count < s->spool_found ? copy.count : s->spool_found;
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
	struct lane_spool *sp = &l->spool;
	struct loading to = {.lane = l, .limit = (uint64_t)s->cfg->payload_limit};
	bool malformed;
	int rc = each_record(
	    buffer_head(&sp->pending), buffer_size(&sp->pending), load_record, &to, &malformed);

	sp->pending_count -= to.taken;
	if (rc == -1)
		return -1;
	buffer_clear(&sp->pending);
	return 0;
}

/* ---- earlier streams ---- */

struct adopting {
	struct service *s;
	uint64_t done; /* up to this seq of the old stream all is committed */
	uint64_t taken;
	struct buffer bytes[MESSAGE_LANES_MAX];
	struct spool_row rows[MESSAGE_LANES_MAX];
};

static int
adopt_record(void *arg, struct record *r, const uint8_t *bytes, size_t n)
{
	struct adopting *a = arg;
	int lane = (int)(XXH3_64bits(r->topic.s, r->topic.n) % (uint64_t)a->s->lane_count);
	struct spool_row *row = &a->rows[lane];

	(void)bytes;
	(void)n;
	if (r->seq <= a->done)
		return 0;
	r->seq = a->s->adopted + ++a->taken;
	if (message_encode_record(&a->bytes[lane], r) == -1)
		return -1;
	if (row->count++ == 0)
		row->first = r->seq;
	row->last = r->seq;
	return 0;
}

/* So many of earlier streams are so no more. */
static void
count_old(struct service *s, uint64_t n)
{
	s->spool.old_records -= n < s->spool.old_records ? n : s->spool.old_records;
}

static int
put_adopted(struct adopting *a, const struct spool_row *old)
{
	struct service *s = a->s;
	uint64_t bytes = s->spool.bytes;
	int i;

	if (spool_begin(&s->spool) == -1)
		return -1;
	for (i = 0; i < s->lane_count; i++) {
		a->rows[i].records = buffer_head(&a->bytes[i]);
		a->rows[i].n = buffer_size(&a->bytes[i]);
		/* A later run may find it among rows of the same stream that came behind it. */
		a->rows[i].place = old->place;
		if (a->rows[i].count > 0 && spool_put(&s->spool, s->stream, i, &a->rows[i]) == -1)
			break;
	}
	if (i == s->lane_count && spool_remove(&s->spool, old->id, old) == 0 &&
	    spool_commit(&s->spool) == 0)
		return 0;
	s->spool.bytes = bytes;
	return spool_roll_back(&s->spool);
}

static void
count_adopted(struct adopting *a, const struct spool_row *old)
{
	struct service *s = a->s;
	uint64_t known = old->count - a->taken;
	int i;

	for (i = 0; i < s->lane_count; i++) {
		if (a->rows[i].count == 0)
			continue;
		s->lanes[i].spool.count += a->rows[i].count;
		if (s->lanes[i].spool.tail < a->rows[i].last)
			s->lanes[i].spool.tail = a->rows[i].last;
	}
	s->adopted += a->taken;
	count_old(s, old->count);
	/* The run that received them has counted what was committed. */
	s->spool_found -= known < s->spool_found ? known : s->spool_found;
}

/* The oldest row of an earlier stream becomes one of ours. Returns as load_row(). */
static int
adopt_row(struct service *s)
{
	static struct adopting a;
	struct spool_row old;
	bool malformed;
	int i, rc = spool_next_old(&s->spool, s->stream, &old);

	if (rc == 0)
		s->spool.old_records = 0;
	if (rc != 1)
		return rc;
	if (FAILPOINT("before_row_is_adopted")) {
		spool_done(&s->spool);
		return -1;
	}
	a.s = s;
	a.done = old.first;
	a.taken = 0;
	memset(a.rows, 0, sizeof(a.rows));
	rc = each_record(old.records, old.n, adopt_record, &a, &malformed);
	spool_done(&s->spool);
	if (malformed) {
		rc = set_aside(s, &old);
		if (rc == 0)
			count_old(s, old.count);
	} else if (rc == 0) {
		rc = put_adopted(&a, &old);
		if (rc == 0)
			count_adopted(&a, &old);
		if (rc == 0 && FAILPOINT("after_row_is_adopted"))
			rc = -1;
	}
	for (i = 0; i < s->lane_count; i++)
		buffer_free(&a.bytes[i]);
	return rc == 0 ? 1 : -1;
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
	    lane_in_flight(l) - l->spool.pending_count == 0;
}

/* True when the spool has nothing of the lane that is not in its backlog. */
bool
spool_feed_is_empty(const struct service *s, const struct lane *l)
{
	return !s->closing && s->spool.old_records == 0 && l->spool.loaded >= l->spool.tail;
}

/* Gives a lane what it has room for. */
void
spool_feed(struct service *s, struct lane *l)
{
	int rc = 1;

	while (rc == 1 && is_hungry(s, l)) {
		rc = l->spool.loaded < l->spool.tail ? load_row(s, l) : 0;
		if (rc == 0 && s->spool.old_records > 0)
			rc = adopt_row(s);
	}
	if (rc == -1)
		log_debug(
		    "spool_not_read", LOG_I("lane", l->index), LOG_S("reason", s->spool.file.why));
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
		s->spooling_since = s->now;
		s->spooling_reason = "an earlier run has left records in the spool";
	}
	if (spool_note(&s->spool, s->cfg->client_id) == -1)
		return dbfile_unusable(
		    &s->spool.file, s->spool.file.why, "giving up; is the disk full?");
	return 0;
}
