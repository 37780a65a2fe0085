/*
 * What a writer reads: messages of its supervisor, as long as there is room for what they bring.
 *
 * Must never read on with a full batch, nor take a message that is not for a writer: that is the
 * end of the channel, and never of what was read before.
 */
#include <bsd/unistd.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sysexits.h>

#include "clock.h"
#include "failpoint.h"
#include "log.h"
#include "writer_state.h"

/* ---- messages from the supervisor ---- */

static void
on_malformed(struct writer *w, const struct message_fault *fault)
{
	log_error("channel_malformed", LOG_U("byte", fault->offset), LOG_S("reason", fault->reason),
	    LOG_U("records_held", writer_records_held(w)));
	writer_close_input(w, EX_DATAERR);
}

static void
on_misplaced(struct writer *w, const struct message *m, const char *why)
{
	struct message_fault fault = {.offset = 0};

	snprintf(fault.reason, sizeof(fault.reason), "%s %s", message_name(m->type), why);
	on_malformed(w, &fault);
}

/* What CONFIG says of the lane's progress. False if it makes no sense. */
static bool
read_progress(struct progress *p, const struct message *m)
{
	if (!progress_is_stream(m->config.stream.s, m->config.stream.n) ||
	    m->config.lane >= MESSAGE_LANES_MAX || m->config.session > UINT32_MAX ||
	    m->config.instance > UINT32_MAX)
		return false;
	*p = (struct progress){
	    .lane = (int)m->config.lane,
	    .session = (uint32_t)m->config.session,
	    .instance = (uint32_t)m->config.instance,
	    .committed = m->config.committed,
	    .dead_letters = m->config.dead_letters,
	};
	memcpy(p->stream, m->config.stream.s, PROGRESS_STREAM_LENGTH);
	return true;
}

static void
on_config(struct writer *w, const struct message *m)
{
	struct config_error err;
	struct progress progress;
	char why[300];

	if (m->config.version != MESSAGE_VERSION) {
		log_error("version_mismatch", LOG_U("supervisor", m->config.version),
		    LOG_U("writer", MESSAGE_VERSION),
		    LOG_S("reason",
			"ingestd and ingestd-writer are of different versions: install both"));
		/* No respawn can mend that: the service is to stop and say so. */
		writer_end_now(w, EX_CONFIG);
		return;
	}
	if (!read_progress(&progress, m)) {
		on_misplaced(w, m, "names no stream, lane, session and instance");
		return;
	}
	if (config_from_text(&w->cfg, m->config.text.s, m->config.text.n, &err) == -1) {
		log_error("configuration_malformed", LOG_S("reason", err.text));
		writer_end_now(w, EX_DATAERR);
		return;
	}
	log_init((enum log_level)w->cfg.log_level, (enum log_format)w->cfg.log_format);
	log_lane(progress.lane);
	report_init(&w->report, &w->channel, progress.lane);
	setproctitle("lane %d", w->report.lane);
	if (pg_check_conninfo(w->cfg.database, why, sizeof(why)) == -1) {
		log_error("configuration_bad", LOG_S("option", "--database"), LOG_S("reason", why));
		writer_end_now(w, EX_CONFIG);
		return;
	}
	w->channel.cap = message_cap((size_t)w->cfg.payload_limit);
	w->configured = true;
	if (session_init(&w->session, &w->cfg, &progress, w->now) == -1)
		writer_out_of_memory(w);
	/* The writer before has seen it, and so waits this one. */
	if (m->config.claimed)
		w->session.rival_seen = w->now;
}

/* The record that follows has killed others of us: nothing of it may be looked at. */
static void
on_condemn(struct writer *w, const struct message *m)
{
	w->condemned = m->condemn.seq;
	snprintf(w->condemned_for, sizeof(w->condemned_for), "%.*s", (int)m->condemn.reason.n,
	    m->condemn.reason.s);
}

static void
on_record(struct writer *w, const struct record *r)
{
	struct payload_verdict verdict;

	if (FAILPOINT("after_record_before_batch")) {
		writer_out_of_memory(w);
		return;
	}
	if (w->condemned != 0 && r->seq == w->condemned) {
		if (batch_condemn(w->filling, r, w->report.lane, w->now, w->condemned_for) ==
		    BATCH_NO_MEMORY)
			writer_out_of_memory(w);
		else
			report_dead_letter(&w->report, r, w->condemned_for, NULL, w->now);
		return;
	}
	FAILPOINT_BYTES(r->payload.s, r->payload.n);
	switch (batch_add(w->filling, r, w->report.lane, w->now, &verdict)) {
	case BATCH_ROW:
		break;
	case BATCH_DEAD_LETTER:
		report_dead_letter(&w->report, r, verdict.reason, NULL, w->now);
		break;
	case BATCH_NO_MEMORY:
		writer_out_of_memory(w);
		break;
	}
}

/* CLOSE or FORGET. The supervisor waits for the answer before it sends another. */
static void
on_errand(struct writer *w, const struct message *m)
{
	if (!progress_is_stream(m->stream.s, m->stream.n)) {
		on_misplaced(w, m, "names no stream");
		return;
	}
	if (memcmp(m->stream.s, w->session.progress.stream, PROGRESS_STREAM_LENGTH) != 0) {
		memcpy(w->errand_stream, m->stream.s, PROGRESS_STREAM_LENGTH);
		w->errand = m->type;
	} else if (m->type == MESSAGE_FORGET)
		w->forget_own = true;
	else
		on_misplaced(w, m, "is for the writer's own stream");
}

static void
dispatch(struct writer *w, const struct message *m)
{
	if (m->type == MESSAGE_CONFIG && !w->configured)
		on_config(w, m);
	else if (m->type == MESSAGE_CONFIG)
		on_misplaced(w, m, "has come a second time");
	else if (m->type >= MESSAGE_READY)
		on_misplaced(w, m, "is a writer's message, not for one");
	else if (!w->configured)
		on_misplaced(w, m, "has come before CONFIG");
	else if (m->type == MESSAGE_RECORD)
		on_record(w, &m->record);
	else if (m->type == MESSAGE_FLUSH)
		w->flush = true;
	else if (m->type == MESSAGE_CONDEMN)
		on_condemn(w, m);
	else
		on_errand(w, m);
}

/* ---- reading ---- */

void
writer_end_of_file(struct writer *w)
{
	size_t left = buffer_size(&w->channel.in);

	if (left > 0)
		log_error("channel_cut", LOG_U("bytes_left_over", left),
		    LOG_S("reason", "the channel has ended in the middle of a message"),
		    LOG_U("records_held", writer_records_held(w)));
	writer_close_input(w, left > 0 ? EX_DATAERR : EX_OK);
}

/* What has been read and not yet taken becomes part of the batch. False when there is no more. */
static bool
take_message(struct writer *w)
{
	struct message_fault fault;
	struct message m;

	switch (channel_next(&w->channel, &m, &fault)) {
	case MESSAGE_OK:
		dispatch(w, &m);
		return true;
	case MESSAGE_BAD:
		on_malformed(w, &fault);
		return true;
	default:
		return false;
	}
}

static void
read_more(struct writer *w)
{
	switch (channel_read(&w->channel)) {
	case CHANNEL_OK:
		break;
	case CHANNEL_AGAIN:
		w->all_read = true;
		break;
	case CHANNEL_CLOSED:
		writer_end_of_file(w);
		break;
	case CHANNEL_ERROR:
		log_error("channel_failed", LOG_ERRNO(errno),
		    LOG_U("records_held", writer_records_held(w)));
		writer_close_input(w, EX_DATAERR);
		break;
	}
}

/*
 * What cannot be sent yet may as well become more: a transaction of 500 rows costs the database
 * half as much again a row as one of 5,000.
 */
bool
writer_is_full(const struct writer *w)
{
	int64_t most = w->growth < w->cfg.batch_limit ? w->growth : w->cfg.batch_limit;

	if (w->sending == NULL || most < w->cfg.batch_size)
		most = w->cfg.batch_size;
	return w->configured && batch_full(w->filling, most);
}

/* True when the oldest record should wait no longer, although more could be read. */
static bool
is_overdue(const struct writer *w)
{
	return batch_records(w->filling) > 0 &&
	    (w->flush || w->now - w->filling->oldest >= w->cfg.batch_interval);
}

/* Reads until nothing more comes, the batch is full, or it is time to commit and possible. */
void
writer_take_input(struct writer *w)
{
	w->all_read = false;
	while (!w->closed && !w->done && !w->all_read && !writer_is_full(w)) {
		if (take_message(w))
			continue;
		w->now = clock_monotonic();
		if (w->configured && w->sending == NULL && is_overdue(w) &&
		    session_can_commit(&w->session, w->now))
			return;
		read_more(w);
	}
}
