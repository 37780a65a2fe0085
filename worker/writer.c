/*
 * A writer: records come in on the channel and go out in transactions, watermarks go back.
 *
 * One loop. Two batches: one is being filled while the other is in flight or held, and that is all
 * the memory a lane takes here; when both are full, nothing more is read. Must never drop a batch:
 * it is committed, or the process ends with a status that says it was not.
 */
#include "writer.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sysexits.h>
#include <unistd.h>

#include "clock.h"
#include "failpoint.h"
#include "log.h"
#include "signals.h"
#include "writer_state.h"

/* Until CONFIG says how large a record may be. */
#define CONTROL_MAX (64 * 1024)
/* Descriptors in the poll set. */
enum {
	POLL_SIGNALS,
	POLL_CHANNEL,
	POLL_DATABASE,
	POLL_COUNT
};

/* ---- ending ---- */

void
writer_start_ending(struct writer *w)
{
	if (w->give_up == CLOCK_NEVER)
		w->give_up = w->now + w->cfg.flush_timeout;
}

/* The channel is of no more use: commit what is held, then exit with this status. */
void
writer_close_input(struct writer *w, int status)
{
	w->closed = true;
	if (w->status == EX_OK)
		w->status = status;
	writer_start_ending(w);
}

/* Ends at once, whatever is held. */
void
writer_end_now(struct writer *w, int status)
{
	w->done = true;
	w->status = status;
}

uint64_t
writer_records_held(const struct writer *w)
{
	return batch_records(&w->batches[0]) + batch_records(&w->batches[1]);
}

void
writer_out_of_memory(struct writer *w)
{
	log_error("out_of_memory", LOG_U("records_held", writer_records_held(w)),
	    LOG_S("next", "this writer ends and its lane is sent again to another"));
	writer_end_now(w, EX_OSERR);
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
	if (FAILPOINT("after_commit_before_report")) {
		writer_out_of_memory(w);
		return;
	}
	w->growth = batch_growth(batch_records(w->sending), w->now - w->session.since);
	report_committed(&w->report, w->sending, &w->session.isolation, w->now - w->session.since);
	report_refused(&w->report, &w->session.isolation, w->now);
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
		if (FAILPOINT("after_take_before_ready")) {
			writer_out_of_memory(w);
			break;
		}
		/* A commit whose answer was lost has happened all the same. */
		if (w->sending != NULL && w->sending->last_seq <= w->session.progress.committed) {
			log_info("commit_found", LOG_U("watermark", w->sending->last_seq),
			    LOG_S("reason",
				"its answer was lost with the connection; the progress row tells"));
			on_committed(w);
		}
		report_ready(&w->report, &w->session);
		return true;
	case SESSION_FENCED:
		log_error("writer_fenced", LOG_S("stream", w->session.progress.stream),
		    LOG_U("records_held", writer_records_held(w)),
		    LOG_S("reason",
			"its row in ingestd.progress has been closed, moved or removed: another "
			"supervisor has taken over, or somebody has changed the table"),
		    LOG_S("next", "committing nothing more; this writer ends"));
		writer_end_now(w, EX_NOPERM);
		break;
	case SESSION_CLOSED_STREAM:
		if (FAILPOINT("after_close_before_answer")) {
			writer_out_of_memory(w);
			break;
		}
		report_closed(&w->report, &w->session);
		w->errand = 0;
		break;
	case SESSION_FORGOT:
		if (FAILPOINT("after_forget")) {
			writer_out_of_memory(w);
			break;
		}
		if (w->errand == MESSAGE_FORGET)
			report_forgotten(&w->report, w->errand_stream);
		w->errand = 0;
		w->forget_own = false;
		break;
	case SESSION_COMMITTED_BATCH:
		on_committed(w);
		return true;
	case SESSION_TROUBLE:
		report_trouble(&w->report, &w->session.trouble);
		break;
	case SESSION_NO_MEMORY:
		writer_out_of_memory(w);
		break;
	case SESSION_NOTHING:
		break;
	}
	return false;
}

/* What concerns another stream, between two transactions. */
static void
run_errand(struct writer *w)
{
	if (w->errand == MESSAGE_CLOSE)
		on_event(w, session_close_stream(&w->session, w->errand_stream, w->now));
	else
		on_event(w, session_forget(&w->session, w->errand_stream, -1, w->now));
}

/* Group commit: starts the next transaction as soon as the one before is through. */
static void
start_commit(struct writer *w)
{
	bool can;

	if (w->errand != 0 && w->sending == NULL && session_can_commit(&w->session, w->now))
		run_errand(w);
	can = session_can_commit(&w->session, w->now);

	if (w->sending == NULL && (writer_is_full(w) || (can && batch_records(w->filling) > 0)))
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
		writer_take_input(w);
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

/*
 * True while the progress row is still to be removed, which nobody waits for a database to do: the
 * next start removes it as well. Not before the last COMMITTED has gone out, which is all that the
 * supervisor would know if this process died now.
 */
static bool
is_forgetting(struct writer *w)
{
	if (!w->forget_own || w->status != EX_OK || !w->configured || w->now >= w->give_up)
		return false;
	if (w->session.state == SESSION_READY && !report_waits(&w->report))
		on_event(w,
		    session_forget(
			&w->session, w->session.progress.stream, w->session.progress.lane, w->now));
	return w->session.state == SESSION_FORGETTING || w->session.state == SESSION_READY;
}

static void
finish_if_through(struct writer *w)
{
	if (w->done)
		return;
	if (has_ended_reading(w) && writer_records_held(w) == 0) {
		if (is_forgetting(w))
			return;
		if (FAILPOINT("before_drained"))
			w->status = EX_OSERR;
		if (w->status == EX_OK && w->configured)
			report_drained(&w->report);
		w->done = true;
	} else if (w->now >= w->give_up && writer_records_held(w) > 0) {
		log_error("records_left", LOG_U("records", writer_records_held(w)),
		    LOG_S("reason", "the database did not take them within --flush-timeout"),
		    LOG_S("trouble",
			*w->session.trouble.text != '\0' ? w->session.trouble.text : NULL));
		writer_end_now(w, w->status != EX_OK ? w->status : EX_TEMPFAIL);
	} else if (w->now >= w->give_up) {
		writer_end_of_file(w);
		w->done = true;
	}
}

static void
take_signals(struct writer *w)
{
	while (signals_next(w->signals) == SIGUSR1) {
		if (FAILPOINT("after_sigusr1"))
			writer_out_of_memory(w);
		w->told = true;
		writer_start_ending(w);
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
	if (!w->closed && !writer_is_full(w))
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
		writer_start_ending(w);
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
		writer_end_now(w, EX_OSERR);
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
