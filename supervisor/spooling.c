/*
 * When records go into the spool: from --spool-after without a commit, or when the backlog is full
 * and stays so, what a lane holds and what it receives is written to the disk, in order, and then
 * acknowledged. What goes out of it again is spool_feed.c's.
 *
 * A lane that is "on" has everything that is not committed in the spool, but for what came in this
 * turn of the loop. It is off again when all of its spool is in the backlog and the database takes
 * it. Must never let a record pass one that is in the spool, nor count one as durable that is not
 * on the disk.
 */
#include <stdio.h>
#include <string.h>
#include <sys/statvfs.h>

#include "clock.h"
#include "failpoint.h"
#include "log.h"
#include "service.h"

/* What may wait for one write, so that memory stays bounded and a write short. */
#define PENDING_MOST ((size_t)4 << 20)
/* Rows are read back as a whole. */
#define ROW_MOST ((size_t)1 << 20)
/* A backlog that has been full for so long does not become less by waiting. */
#define FULL_FOR CLOCK_SECOND
/* In a stop there is less patience: the spool is the better place. */
#define STOPPING_AFTER CLOCK_SECOND
#define RETRY CLOCK_SECOND
/*
 * Room that is left on the disk: both files need some to write, though it be to remove rows, and
 * each has a journal that may grow to 4 MiB.
 */
#define RESERVE ((uint64_t)16 << 20)
#define LOOK_EVERY CLOCK_SECOND
#define LOGGED_EVERY (60 * CLOCK_SECOND)
/* Removing what is committed costs a write that waits for the disk. */
#define REMOVE_INTERVAL (200 * CLOCK_MS)

/* ---- what is asked of it ---- */

/* True if records go to the spool, of one lane at least. */
bool
spooling_any(const struct service *s)
{
	int i;

	for (i = 0; i < s->lane_count; i++) {
		if (s->lanes[i].spool.on)
			return true;
	}
	return false;
}

/* Records that are in the spool and not known to be committed. */
uint64_t
spooling_count(const struct service *s)
{
	uint64_t n = s->spool.old_records;
	int i;

	for (i = 0; i < s->lane_count; i++)
		n += s->lanes[i].spool.count;
	return n;
}

/* True when nothing more may be read, since it might have to go there. */
bool
spooling_full(const struct service *s)
{
	return (s->spool.bytes >= (uint64_t)s->cfg->spool_limit || s->spool_disk_full) &&
	    spooling_any(s);
}

/* False when what is pending should be written before more is read. */
bool
spooling_may_grow(const struct lane *l)
{
	return buffer_size(&l->spool.pending.bytes) < PENDING_MOST;
}

/* True when nothing is in it, not even what is committed and could not be removed yet. */
bool
spooling_is_empty(const struct service *s)
{
	int i;

	for (i = 0; i < s->lane_count; i++) {
		if (s->lanes[i].spool.removable)
			return false;
	}
	return spooling_count(s) == 0;
}

/* ---- failing ---- */

static void
write_failed(struct service *s, const char *what)
{
	if (s->spool_failed == 0)
		s->spool_failed = s->now;
	s->spool_retry_at = s->now + RETRY;
	if (!clock_lapsed(&s->spool_logged, LOGGED_EVERY, s->now))
		return;
	log_error("spool_failed", LOG_S("state_dir", s->cfg->state_dir), LOG_S("step", what),
	    LOG_S("reason", s->spool.file.why), LOG_T("for", s->now - s->spool_failed),
	    LOG_U("waiting", intake_view(s).in_flight),
	    LOG_S("next",
		"what is not on the disk is not acknowledged, and nothing more is read; trying "
		"again every second"));
}

static void
write_succeeded(struct service *s)
{
	if (s->spool_failed == 0)
		return;
	log_info("spool_recovered", LOG_S("state_dir", s->cfg->state_dir),
	    LOG_T("after", s->now - s->spool_failed));
	s->spool_failed = s->spool_logged = 0;
}

static void
look_at_disk(struct service *s)
{
	struct statvfs fs;

	s->spool_looked_at = s->now;
	s->spool_disk_full =
	    statvfs(s->cfg->state_dir, &fs) == 0 && (uint64_t)fs.f_bavail * fs.f_frsize < RESERVE;
}

/* ---- writing ---- */

/* What of the backlog is not in the spool yet. */
static int
put_backlog(struct service *s, struct lane *l)
{
	struct burst burst = {0};
	size_t at = l->spool.in_backlog;
	int rc = 0;

	for (; rc == 0 && at < l->backlog.count; at += burst.count) {
		burst_clear(&burst);
		burst.count = backlog_copy(&l->backlog, at, ROW_MOST, &burst.bytes);
		if (burst.count == 0) {
			snprintf(s->spool.file.why, sizeof(s->spool.file.why), "out of memory");
			rc = -1;
			break;
		}
		burst.first = backlog_seq(&l->backlog, at);
		burst.last = backlog_seq(&l->backlog, at + burst.count - 1);
		rc = spool_put(&s->spool, s->stream, l->index, &burst, 0);
	}
	burst_free(&burst);
	return rc;
}

static int
put_lane(struct service *s, struct lane *l)
{
	if (l->spool.removable &&
	    spool_remove_committed(&s->spool, s->stream, l->index, l->backlog.watermark) == -1)
		return -1;
	if (!l->spool.on)
		return 0;
	if (l->backlog.count > l->spool.in_backlog && put_backlog(s, l) == -1)
		return -1;
	return l->spool.pending.count > 0
	    ? spool_put(&s->spool, s->stream, l->index, &l->spool.pending, 0)
	    : 0;
}

/* All of it is on the disk. */
static void
note_written(struct lane *l)
{
	struct lane_spool *sp = &l->spool;

	sp->removable = false;
	if (!sp->on)
		return;
	if (l->backlog.count > sp->in_backlog) {
		sp->count += l->backlog.count - sp->in_backlog;
		sp->in_backlog = l->backlog.count;
		sp->loaded = sp->tail = backlog_seq(&l->backlog, l->backlog.count - 1);
	}
	if (sp->pending.count == 0)
		return;
	sp->count += sp->pending.count;
	sp->tail = sp->pending.last;
	burst_clear(&sp->pending);
}

/* One transaction for all lanes: what is to be durable, and what is done with. */
static void
write_all(struct service *s)
{
	uint64_t bytes = s->spool.bytes;
	int i;

	if (s->spool_failed != 0 && s->now < s->spool_retry_at)
		return;
	if (spool_begin(&s->spool) == -1) {
		write_failed(s, "begin");
		return;
	}
	/* What is in doubt first: it came before all that is new. */
	i = s->in_doubt ? doubt_write(s) : 0;
	while (i >= 0 && i < s->lane_count)
		i = put_lane(s, &s->lanes[i]) == 0 ? i + 1 : -1;
	if (i < 0 || spool_commit(&s->spool) == -1) {
		spool_roll_back(&s->spool);
		s->spool.bytes = bytes;
		write_failed(s, i < 0 ? "write" : "sync");
		return;
	}
	if (FAILPOINT("after_spool_is_synced"))
		mqtt_drop(&s->mqtt);
	for (i = 0; i < s->lane_count; i++)
		note_written(&s->lanes[i]);
	if (s->in_doubt)
		doubt_written(s);
	s->spool_removed_at = s->now;
	look_at_disk(s);
	write_succeeded(s);
}

/* ---- on and off ---- */

static int64_t
patience(const struct service *s)
{
	int64_t most = s->cfg->spool_after;

	if (s->state != STATE_RUN && most > STOPPING_AFTER)
		most = STOPPING_AFTER;
	if (s->room_missing != 0 && most > FULL_FOR)
		most = FULL_FOR;
	return most;
}

/* When a lane is to go on, CLOCK_NEVER if there is no reason. */
static int64_t
due(const struct service *s, const struct lane *l)
{
	int64_t at;

	/* One that has been told to remove its progress row must leave nothing that asks for it. */
	if (s->cfg->spool_limit == 0 || l->spool.on || lane_in_flight(l) == 0 ||
	    (l->finishing && l->forget))
		return CLOCK_NEVER;
	at = l->spool.progress_at + patience(s);
	if (s->room_missing != 0 && at < s->room_missing + FULL_FOR)
		at = s->room_missing + FULL_FOR;
	return at;
}

static void
turn_on(struct service *s, struct lane *l)
{
	if (s->spooling_reason == NULL)
		s->spooling_reason = s->state != STATE_RUN
		    ? "the database has not taken them, and there is a stop"
		    : s->room_missing != 0 ? "the backlog has been full for a second"
					   : "there has been no commit for --spool-after";
	look_at_disk(s);
	l->spool.on = true;
	l->spool.on_since = s->now;
}

/* All that the spool has of it is in the backlog, and goes out. */
static void
turn_off(struct service *s, struct lane *l)
{
	if (l->spool.pending.count > 0 && spool_feed_pending(s, l) == -1)
		return;
	l->spool.on = false;
	l->spool.progress_at = s->now;
}

/* Without a commit since, it would be on again at once, and the backlog grow with each turn. */
static bool
makes_progress(const struct lane *l)
{
	return (l->spool.count == 0 && lane_in_flight(l) == 0) ||
	    l->spool.progress_at > l->spool.on_since;
}

static void
switch_lanes(struct service *s)
{
	struct lane *l;
	int i;

	for (i = 0; i < s->lane_count; i++) {
		l = &s->lanes[i];
		if (s->now >= due(s, l))
			turn_on(s, l);
		else if (l->spool.on && l->state == LANE_READY && l->trouble_since == 0 &&
		    makes_progress(l) && s->state == STATE_RUN && s->save_failed == 0 &&
		    spool_feed_is_empty(s, l))
			turn_off(s, l);
	}
}

/* ---- the loop's hooks ---- */

static bool
is_to_be_written(const struct service *s)
{
	bool removable = false;
	const struct lane *l;
	int i;

	if (doubt_pending(s) > 0)
		return true;
	for (i = 0; i < s->lane_count; i++) {
		l = &s->lanes[i];
		if (l->spool.on && lane_in_flight(l) > 0)
			return true;
		removable = removable || l->spool.removable;
	}
	return removable &&
	    (spooling_count(s) == 0 || s->now - s->spool_removed_at >= REMOVE_INTERVAL);
}

static void
note_empty(struct service *s)
{
	if (s->spooling_reason == NULL || !spooling_is_empty(s) || spooling_any(s))
		return;
	s->spooling_reason = NULL;
	s->spool_failed = s->spool_logged = 0;
	if (spool_shrink(&s->spool) == -1)
		log_warn("spool_not_shrunk", LOG_S("state_dir", s->cfg->state_dir),
		    LOG_S("reason", s->spool.file.why));
}

/* Once a turn, behind intake_save(), so that nothing is in the spool that is not in the list. */
void
spooling_step(struct service *s)
{
	if (intake_view(s).room)
		s->room_missing = 0;
	else if (s->room_missing == 0)
		s->room_missing = s->now;
	/* Somebody may have made room. */
	if (s->spool_disk_full && s->now - s->spool_looked_at >= LOOK_EVERY)
		look_at_disk(s);
	switch_lanes(s);
	if (s->save_failed == 0 && is_to_be_written(s))
		write_all(s);
	spool_feed(s);
	note_empty(s);
}

int64_t
spooling_deadline(const struct service *s)
{
	int64_t at = s->spool_disk_full ? s->spool_looked_at + LOOK_EVERY : CLOCK_NEVER, other;
	int i;

	/* Where the list cannot be written nothing is tried here, and intake.c says when it is. */
	if (s->save_failed != 0)
		return CLOCK_NEVER;
	if (s->spool_more)
		return s->now;
	at = s->spool_read_at > s->now && s->spool_read_at < at ? s->spool_read_at : at;
	if (s->spool_failed != 0 && is_to_be_written(s))
		return s->spool_retry_at;
	for (i = 0; i < s->lane_count; i++) {
		other = due(s, &s->lanes[i]);
		if (s->lanes[i].spool.removable && s->spool_removed_at + REMOVE_INTERVAL < other)
			other = s->spool_removed_at + REMOVE_INTERVAL;
		at = other < at ? other : at;
	}
	return at;
}

/* The end of a run, when the writers are gone: what is left goes to the disk. */
void
spooling_finish(struct service *s)
{
	int i;

	for (i = 0; i < s->lane_count; i++) {
		if (s->cfg->spool_limit > 0 && lane_in_flight(&s->lanes[i]) > 0)
			s->lanes[i].spool.on = true;
	}
	s->spool_retry_at = s->now;
	/* What is not in the list would not be recognised when the broker sends it again. */
	if (s->save_failed != 0 && store_save(&s->store, &s->resume) == -1)
		return;
	if (is_to_be_written(s))
		write_all(s);
	if (spooling_is_empty(s))
		spool_shrink(&s->spool);
}
