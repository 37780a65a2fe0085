/*
 * What a writer says to its lane: READY, COMMITTED, TROUBLE, DRAINED, and answers to what it was
 * asked.
 *
 * Must never believe a writer: a message that makes no sense ends it, and counts for nothing.
 */
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "clock.h"
#include "failpoint.h"
#include "lane.h"
#include "log.h"

static void
copy_text(char *out, size_t size, struct text t)
{
	snprintf(out, size, "%.*s", (int)t.n, t.s);
}

/* Noted for watch.c, which tells of it: the database is one, however many lanes it troubles. */
static void
on_trouble(struct lane *l, const struct message *m, int64_t now)
{
	bool before = l->trouble_since != 0;
	char sqlstate[sizeof(l->trouble_sqlstate)];

	/* Without a text it is a sign of life from a writer that waits, and no trouble yet. */
	if (m->trouble.text.n == 0)
		return;
	copy_text(sqlstate, sizeof(sqlstate), m->trouble.sqlstate);
	copy_text(l->trouble_text, sizeof(l->trouble_text), m->trouble.text);
	l->trouble_class = m->trouble.class;
	l->claimed = strcmp(sqlstate, TROUBLE_CLAIMED) == 0;
	if (!before)
		l->trouble_since = now;
	if (before && strcmp(sqlstate, l->trouble_sqlstate) == 0)
		return;
	strcpy(l->trouble_sqlstate, sqlstate);
	log_debug("lane_trouble", LOG_I("lane", l->index),
	    LOG_S("class", trouble_name(l->trouble_class)),
	    LOG_S("sqlstate", *sqlstate != '\0' ? sqlstate : NULL),
	    LOG_S("reason", l->trouble_text), LOG_U("waiting", l->backlog.count),
	    LOG_T("for", now - l->trouble_since));
}

static void
trouble_over(struct lane *l, int64_t now)
{
	if (l->trouble_since == 0)
		return;
	log_debug(
	    "lane_recovered", LOG_I("lane", l->index), LOG_T("after", now - l->trouble_since));
	l->trouble_since = 0;
	l->trouble_sqlstate[0] = '\0';
}

/* n records have become durable, dead of them as dead letters. */
static void
count_durable(struct lane *l, uint64_t n, uint64_t dead, int64_t now)
{
	struct lane_spool *sp = &l->spool;
	uint64_t spooled = n < sp->in_backlog ? n : sp->in_backlog;

	sp->in_backlog -= spooled;
	sp->count -= spooled;
	sp->removable = sp->removable || spooled > 0;
	sp->progress_at = now;
	l->totals.committed += n - dead;
	l->totals.dead_lettered += dead;
}

static bool
on_committed(struct lane *l, const struct message *m, int64_t now)
{
	int64_t n;
	uint64_t dead = m->committed.dead_letters;

	if (FAILPOINT("before_confirmation_counts")) {
		lane_kill(l, "failpoint");
		return false;
	}
	n = backlog_durable(&l->backlog, m->committed.watermark);
	if (n == -1) {
		lane_kill(l, "it confirmed records that it was not sent");
		return false;
	}
	/* Records are counted here, where each is known to be one; rows are the writer's own count.
	 */
	if (dead > (uint64_t)n) {
		lane_kill(l, "it counts more dead letters than records");
		dead = (uint64_t)n;
	}
	count_durable(l, (uint64_t)n, dead, now);
	l->totals.rows += m->committed.rows;
	l->totals.batches += m->committed.batches;
	trouble_over(l, now);
	log_debug("committed", LOG_I("lane", l->index), LOG_U("watermark", m->committed.watermark),
	    LOG_U("rows", m->committed.rows), LOG_U("dead_letters", dead),
	    LOG_T("took", (int64_t)m->committed.duration));
	return true;
}

/*
 * What the writer's progress row says of the backlog: a writer that died after its commit and
 * before it could say so, or whose connection did, has not left anything to be sent again.
 */
static bool
drop_committed(struct lane *l, const struct message *m, int64_t now)
{
	uint64_t before = l->backlog.watermark, dead = 0;
	int64_t n = backlog_found(&l->backlog, m->ready.committed);

	if (n == -1) {
		lane_kill(l,
		    "its row in ingestd.progress names a seq that no writer was ever sent; has "
		    "somebody changed it?");
		return false;
	}
	if (m->ready.committed < before && l->state == LANE_STARTING)
		log_error("database_went_back", LOG_I("lane", l->index), LOG_U("committed", before),
		    LOG_U("found", m->ready.committed),
		    LOG_S("reason",
			"the progress row is older than what was committed: was a backup "
			"restored?"),
		    LOG_S("next",
			"going on from there; what was acknowledged meanwhile does not come "
			"again"));
	if (n == 0)
		return true;
	if (m->ready.dead_letters > l->totals.dead_lettered)
		dead = m->ready.dead_letters - l->totals.dead_lettered;
	if (dead > (uint64_t)n)
		dead = (uint64_t)n;
	count_durable(l, (uint64_t)n, dead, now);
	l->totals.rows += (uint64_t)n - dead;
	l->totals.batches++;
	log_info("commit_found", LOG_I("lane", l->index), LOG_I("records", n),
	    LOG_U("watermark", m->ready.committed),
	    LOG_S("reason", "the writer before had committed them and could not say so any more"));
	return true;
}

static bool
on_ready(struct lane *l, const struct message *m, int64_t now)
{
	char server[64];

	if (!drop_committed(l, m, now))
		return false;
	snprintf(l->database, sizeof(l->database), "%.*s", (int)m->ready.database.n,
	    m->ready.database.s);
	l->claimed = false;
	l->was_ready = true;
	snprintf(server, sizeof(server), "%.*s", (int)m->ready.server.n, m->ready.server.s);
	trouble_over(l, now);
	/* A second READY means that it had lost its database and has it back. */
	if (l->state == LANE_STARTING)
		log_info("writer_ready", LOG_I("lane", l->index), LOG_I("pid", l->pid),
		    LOG_S("server", server), LOG_U("to_send", l->backlog.count));
	l->state = LANE_READY;
	l->ready_at = now;
	lane_send(l, now);
	return true;
}

static bool
on_message(struct lane *l, const struct message *m, int64_t now)
{
	char reason[96];

	l->heard = now;
	switch (m->type) {
	case MESSAGE_READY:
		return on_ready(l, m, now);
	case MESSAGE_CLOSED:
	case MESSAGE_FORGOTTEN:
		l->owes_answer = false;
		trouble_over(l, now);
		l->owner->answer(l->owner->arg, l, m);
		return true;
	case MESSAGE_COMMITTED:
		return on_committed(l, m, now);
	case MESSAGE_TROUBLE:
		on_trouble(l, m, now);
		return true;
	case MESSAGE_DRAINED:
		l->drained = true;
		log_debug("drained", LOG_I("lane", l->index), LOG_U("rows", m->drained.rows),
		    LOG_U("batches", m->drained.batches));
		return true;
	default:
		snprintf(reason, sizeof(reason), "it sent %s, which is ours to send",
		    message_name(m->type));
		lane_kill(l, reason);
		return false;
	}
}

/* Reads what the writer has said, at most one read(2). False at the end of the channel. */
bool
lane_hear(struct lane *l, int64_t now)
{
	enum channel_result result = channel_read(&l->channel);
	enum message_result rc;
	struct message_fault fault;
	char reason[256];
	struct message m;

	while ((rc = channel_next(&l->channel, &m, &fault)) == MESSAGE_OK) {
		if (!on_message(l, &m, now))
			return false;
	}
	if (rc == MESSAGE_BAD) {
		snprintf(reason, sizeof(reason), "malformed message on its channel, byte %zu: %s",
		    fault.offset, fault.reason);
		lane_kill(l, reason);
		return false;
	}
	if (result == CHANNEL_OK || result == CHANNEL_AGAIN)
		return result == CHANNEL_OK;
	if (l->state != LANE_DYING)
		lane_channel_failed(l, result);
	return false;
}
