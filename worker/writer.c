/*
 * A writer: records come in on the channel and go out in transactions, watermarks go back.
 *
 * One loop. Two batches: one is being filled while the other is in flight or held, and that is all
 * the memory a lane takes here; when both are full, nothing more is read. Must never drop a batch:
 * it is committed, or the process ends with a status that says it was not.
 */
#include "writer.h"

#include <bsd/unistd.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sysexits.h>
#include <unistd.h>

#include "batch.h"
#include "channel.h"
#include "clock.h"
#include "config.h"
#include "log.h"
#include "report.h"
#include "session.h"
#include "signals.h"

/* Until CONFIG says how large a record may be. */
#define CONTROL_MAX (64 * 1024)
/* Descriptors in the poll set. */
enum {
	POLL_SIGNALS,
	POLL_CHANNEL,
	POLL_DATABASE,
	POLL_COUNT
};

struct writer {
	struct channel channel;
	int signals;
	struct config cfg;
	bool configured;
	struct session session;
	struct batch batches[2];
	struct batch *filling; /* takes records */
	struct batch *sending; /* in flight or held, NULL if none */
	struct report report;
	bool flush;    /* commit what is being filled, though more can be read */
	bool all_read; /* all that can be read now was read */
	bool told;     /* SIGUSR1 has come: read what is there, then end */
	bool closed;   /* nothing more is read, ever */
	bool hung_up;  /* nothing more will come, though not all was read */
	bool done;
	int status;      /* to exit with, once everything is committed */
	int64_t give_up; /* the end of patience with the database, once the end has begun */
	int64_t now;
};

/* ---- ending ---- */

static void
start_ending(struct writer *w)
{
	if (w->give_up == CLOCK_NEVER)
		w->give_up = w->now + w->cfg.flush_timeout;
}

/* The channel is of no more use: commit what is held, then exit with this status. */
static void
close_input(struct writer *w, int status)
{
	w->closed = true;
	if (w->status == EX_OK)
		w->status = status;
	start_ending(w);
}

/* Ends at once, whatever is held. */
static void
end_now(struct writer *w, int status)
{
	w->done = true;
	w->status = status;
}

static uint64_t
records_held(const struct writer *w)
{
	return batch_records(&w->batches[0]) + batch_records(&w->batches[1]);
}

static void
out_of_memory(struct writer *w)
{
	log_error("out_of_memory", LOG_U("records_held", records_held(w)),
	    LOG_S("next", "this writer ends and its lane is sent again to another"));
	end_now(w, EX_OSERR);
}

/* ---- messages from the supervisor ---- */

static void
on_malformed(struct writer *w, const struct message_fault *fault)
{
	log_error("channel_malformed", LOG_U("byte", fault->offset), LOG_S("reason", fault->reason),
	    LOG_U("records_held", records_held(w)));
	close_input(w, EX_DATAERR);
}

static void
on_misplaced(struct writer *w, const struct message *m, const char *why)
{
	struct message_fault fault = {.offset = 0};

	snprintf(fault.reason, sizeof(fault.reason), "%s %s", message_name(m->type), why);
	on_malformed(w, &fault);
}

static void
on_config(struct writer *w, const struct message *m)
{
	struct config_error err;
	char why[300];

	if (m->config.version != MESSAGE_VERSION) {
		log_error("version_mismatch", LOG_U("supervisor", m->config.version),
		    LOG_U("writer", MESSAGE_VERSION),
		    LOG_S("reason",
			"ingestd and ingestd-writer are of different versions: install both"));
		/* No respawn can mend that: the service is to stop and say so. */
		end_now(w, EX_CONFIG);
		return;
	}
	if (config_from_text(&w->cfg, m->config.text.s, m->config.text.n, &err) == -1) {
		log_error("configuration_malformed", LOG_S("reason", err.text));
		end_now(w, EX_DATAERR);
		return;
	}
	log_init((enum log_level)w->cfg.log_level, (enum log_format)w->cfg.log_format);
	log_lane((int)m->config.lane);
	report_init(&w->report, &w->channel, (int)m->config.lane);
	setproctitle("lane %d", w->report.lane);
	if (pg_check_conninfo(w->cfg.database, why, sizeof(why)) == -1) {
		log_error("configuration_bad", LOG_S("option", "--database"), LOG_S("reason", why));
		end_now(w, EX_CONFIG);
		return;
	}
	w->channel.cap = message_cap((size_t)w->cfg.payload_limit);
	w->configured = true;
	if (session_init(&w->session, &w->cfg, w->now) == -1)
		out_of_memory(w);
}

static void
on_record(struct writer *w, const struct record *r)
{
	struct payload_verdict verdict;

	switch (batch_add(w->filling, r, w->report.lane, w->now, &verdict)) {
	case BATCH_ROW:
		break;
	case BATCH_DEAD_LETTER:
		report_dead_letter(&w->report, r, verdict.reason, w->now);
		break;
	case BATCH_NO_MEMORY:
		out_of_memory(w);
		break;
	}
}

static void
dispatch(struct writer *w, const struct message *m)
{
	if (m->type == MESSAGE_CONFIG && !w->configured)
		on_config(w, m);
	else if (m->type == MESSAGE_CONFIG)
		on_misplaced(w, m, "has come a second time");
	else if (m->type != MESSAGE_RECORD && m->type != MESSAGE_FLUSH)
		on_misplaced(w, m, "is a writer's message, not for one");
	else if (!w->configured)
		on_misplaced(w, m, "has come before CONFIG");
	else if (m->type == MESSAGE_RECORD)
		on_record(w, &m->record);
	else
		w->flush = true;
}

/* ---- reading ---- */

static void
on_end_of_file(struct writer *w)
{
	size_t left = buffer_size(&w->channel.in);

	if (left > 0)
		log_error("channel_cut", LOG_U("bytes_left_over", left),
		    LOG_S("reason", "the channel has ended in the middle of a message"),
		    LOG_U("records_held", records_held(w)));
	close_input(w, left > 0 ? EX_DATAERR : EX_OK);
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
		on_end_of_file(w);
		break;
	case CHANNEL_ERROR:
		log_error(
		    "channel_failed", LOG_ERRNO(errno), LOG_U("records_held", records_held(w)));
		close_input(w, EX_DATAERR);
		break;
	}
}

static bool
is_full(const struct writer *w)
{
	return w->configured && batch_full(w->filling, w->cfg.batch_size);
}

/* True when the oldest record should wait no longer, although more could be read. */
static bool
is_overdue(const struct writer *w)
{
	return batch_records(w->filling) > 0 &&
	    (w->flush || w->now - w->filling->oldest >= w->cfg.batch_interval);
}

/* Reads until nothing more comes, the batch is full, or it is time to commit and possible. */
static void
take_input(struct writer *w)
{
	w->all_read = false;
	while (!w->closed && !w->done && !w->all_read && !is_full(w)) {
		if (take_message(w))
			continue;
		w->now = clock_monotonic();
		if (w->configured && w->sending == NULL && is_overdue(w) &&
		    session_can_commit(&w->session, w->now))
			return;
		read_more(w);
	}
}

/* ---- committing ---- */

/* Makes the batch that was being filled the one to send. */
static void
swap_batches(struct writer *w)
{
	w->sending = w->filling;
	w->filling = w->filling == &w->batches[0] ? &w->batches[1] : &w->batches[0];
	w->flush = false;
}

static void
on_committed(struct writer *w)
{
	report_committed(&w->report, w->sending, w->now - w->session.since);
	batch_clear(w->sending);
	w->sending = NULL;
	/* The database takes what it gets: patience begins anew. */
	if (w->give_up != CLOCK_NEVER)
		w->give_up = w->now + w->cfg.flush_timeout;
}

/* Returns true when there may be room again for what was read. */
static bool
on_event(struct writer *w, enum session_event event)
{
	switch (event) {
	case SESSION_IS_READY:
		report_ready(&w->report, w->session.server);
		break;
	case SESSION_COMMITTED_BATCH:
		on_committed(w);
		return true;
	case SESSION_TROUBLE:
		report_trouble(&w->report, &w->session.trouble);
		break;
	case SESSION_NO_MEMORY:
		out_of_memory(w);
		break;
	case SESSION_NOTHING:
		break;
	}
	return false;
}

/* Group commit: starts the next transaction as soon as the one before is through. */
static void
start_commit(struct writer *w)
{
	bool can = session_can_commit(&w->session, w->now);

	if (w->sending == NULL && (is_full(w) || (can && batch_records(w->filling) > 0)))
		swap_batches(w);
	if (w->sending != NULL && can)
		on_event(w, session_commit(&w->session, w->sending, w->now));
}

/* Everything that can be done without waiting. */
static void
work(struct writer *w)
{
	struct batch *before;

	do {
		take_input(w);
		before = w->sending;
		if (w->configured && !w->done)
			start_commit(w);
		/* A batch has moved on: there is room to read on. */
	} while (!w->done && !w->closed && before == NULL && w->sending != NULL);
}

/* ---- the loop ---- */

static bool
has_ended_reading(const struct writer *w)
{
	return w->closed || (w->told && w->all_read && buffer_size(&w->channel.in) == 0);
}

static void
finish_if_through(struct writer *w)
{
	if (w->done)
		return;
	if (has_ended_reading(w) && records_held(w) == 0) {
		if (w->status == EX_OK && w->configured)
			report_drained(&w->report);
		w->done = true;
	} else if (w->now >= w->give_up && records_held(w) > 0) {
		log_error("records_left", LOG_U("records", records_held(w)),
		    LOG_S("reason", "the database did not take them within --flush-timeout"),
		    LOG_S("trouble",
			*w->session.trouble.text != '\0' ? w->session.trouble.text : NULL));
		end_now(w, w->status != EX_OK ? w->status : EX_TEMPFAIL);
	} else if (w->now >= w->give_up) {
		on_end_of_file(w);
		w->done = true;
	}
}

static void
take_signals(struct writer *w)
{
	while (signals_next(w->signals) == SIGUSR1) {
		w->told = true;
		start_ending(w);
	}
}

static int64_t
earlier(int64_t a, int64_t b)
{
	return a < b ? a : b;
}

/* Tells the supervisor that it is the database that is slow, and when to say so next. */
static int64_t
heartbeat(struct writer *w)
{
	int64_t waiting = CLOCK_NEVER;

	if (!w->configured)
		return CLOCK_NEVER;
	if (session_waits(&w->session))
		waiting = w->session.since;
	return earlier(
	    report_heartbeat(&w->report, waiting, w->now), report_silent(&w->report, w->now));
}

/*
 * When full, the channel is asked for its end only: a writer whose supervisor has died must not
 * wait for the database for ever. And not asked for what is known: a hangup is reported again and
 * again.
 */
static void
prepare_channel(const struct writer *w, struct pollfd *p)
{
	if (!w->closed && !is_full(w))
		p->events = POLLIN;
	else if (!w->closed && !w->hung_up)
		p->events = POLLRDHUP;
	if (report_waits(&w->report))
		p->events |= POLLOUT;
	if (p->events != 0)
		p->fd = w->channel.fd;
}

static void
wait_for_events(struct writer *w, int64_t beat)
{
	struct pollfd p[POLL_COUNT] = {
	    {.fd = w->signals, .events = POLLIN}, {.fd = -1}, {.fd = -1}};
	int64_t deadline = earlier(beat, w->give_up);

	prepare_channel(w, &p[POLL_CHANNEL]);
	if (w->configured) {
		p[POLL_DATABASE].fd = pg_fd(&w->session.pg);
		p[POLL_DATABASE].events = pg_events(&w->session.pg);
		deadline = earlier(deadline, session_deadline(&w->session));
	}
	if (poll(p, POLL_COUNT, clock_poll_timeout(clock_monotonic(), deadline)) == -1 &&
	    errno != EINTR)
		log_error("poll_failed", LOG_ERRNO(errno));
	w->now = clock_monotonic();
	if (p[POLL_SIGNALS].revents != 0)
		take_signals(w);
	if ((p[POLL_CHANNEL].revents & (POLLRDHUP | POLLHUP)) != 0) {
		w->hung_up = true;
		start_ending(w);
	}
	if (!w->configured)
		return;
	while (!w->done && on_event(w, session_run(&w->session, w->now)))
		;
}

static void
set_up(struct writer *w, int fd)
{
	static const int wanted[] = {SIGUSR1};

	*w = (struct writer){.give_up = CLOCK_NEVER, .now = clock_monotonic()};
	w->filling = &w->batches[0];
	w->signals = signals_open(wanted, 1);
	if (config_init(&w->cfg) == -1 || w->signals == -1 ||
	    channel_init(&w->channel, fd, CONTROL_MAX) == -1) {
		log_error("writer_not_started", LOG_ERRNO(errno));
		end_now(w, EX_OSERR);
	}
	report_init(&w->report, &w->channel, -1);
}

/*
 * Serves the channel on fd to its end. Returns the status to exit with: 0 when all is committed, 65
 * when the channel brought what it must not, 75 when the database did not take everything in time,
 * 78 when the configuration cannot work.
 */
int
writer_run(int fd)
{
	struct writer w;
	int64_t beat;

	set_up(&w, fd);
	while (!w.done) {
		work(&w);
		beat = heartbeat(&w);
		report_write(&w.report);
		finish_if_through(&w);
		if (!w.done)
			wait_for_events(&w, beat);
	}
	report_finish(&w.report);
	if (w.configured)
		session_free(&w.session);
	batch_free(&w.batches[0]);
	batch_free(&w.batches[1]);
	channel_close(&w.channel);
	config_free(&w.cfg);
	close(w.signals);
	return w.status;
}
