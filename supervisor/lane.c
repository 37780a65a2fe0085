/*
 * One lane: a writer process, the channel to it and the backlog of what it has not yet made
 * durable.
 *
 * A writer that dies costs a respawn and a replay of this backlog, never a record, and nothing of
 * another lane. What a writer says is heard in lane_hear.c. Must never send a record that is held
 * back, nor leave a child unreaped.
 */
#include "lane.h"

#include <errno.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <sysexits.h>
#include <unistd.h>

#include "children.h"
#include "clock.h"
#include "failpoint.h"
#include "log.h"
#include "policy.h"
#include "signals.h"

/* Writers send numbers and short texts. */
#define FROM_WRITER_MAX (64 * 1024)
#define IOV_PARTS 16
/* From the end of its channel to the end of the process. */
#define DYING_TIMEOUT (5 * CLOCK_SECOND)

void
lane_init(struct lane *l, int index, const struct lane_owner *owner)
{
	*l =
	    (struct lane){.index = index, .cfg = owner->cfg, .owner = owner, .channel = {.fd = -1}};
	backlog_init(&l->backlog);
}

void
lane_free(struct lane *l)
{
	channel_close(&l->channel);
	backlog_free(&l->backlog);
	burst_free(&l->spool.pending);
}

/* Records that are not durable: neither committed nor in the spool. */
uint64_t
lane_in_flight(const struct lane *l)
{
	return l->backlog.count - l->spool.in_backlog + l->spool.pending.count;
}

static int
queue_config(struct lane *l)
{
	struct message m = {.type = MESSAGE_CONFIG};
	struct buffer text = {0};
	int rc = -1;

	if (config_to_text(l->cfg, &text) == 0) {
		m.config.version = MESSAGE_VERSION;
		m.config.lane = (uint64_t)l->index;
		m.config.stream = text_from(l->owner->stream);
		/* For a progress row that has to be made, or made anew. */
		m.config.committed = l->backlog.watermark;
		m.config.dead_letters = l->totals.dead_lettered;
		m.config.session = l->owner->session;
		m.config.instance = l->owner->instance;
		m.config.claimed = l->claimed;
		m.config.text = (struct text){(char *)buffer_head(&text), buffer_size(&text)};
		rc = channel_queue(&l->channel, &m);
	}
	buffer_free(&text);
	return rc;
}

static int
spawn_failed(struct lane *l, const char *what, int64_t now)
{
	int64_t delay = policy_respawn_delay(++l->failures);

	log_error("writer_not_started", LOG_I("lane", l->index), LOG_S("step", what),
	    LOG_ERRNO(errno), LOG_T("retry_in", delay));
	channel_close(&l->channel);
	l->respawn_at = now + delay;
	return -1;
}

/* Starts a writer. On failure the lane stays down and tries again later. Returns -1 then. */
int
lane_spawn(struct lane *l, int64_t now)
{
	int fd[2];

	if (channel_pair(fd) == -1)
		return spawn_failed(l, "socketpair", now);
	l->pid = children_spawn_writer(fd[1]);
	close(fd[1]);
	if (channel_init(&l->channel, fd[0], FROM_WRITER_MAX) == -1 || l->pid == -1) {
		l->channel.fd = fd[0];
		return spawn_failed(l, "fork", now);
	}
	l->state = LANE_STARTING;
	l->heard = now;
	l->blocked = l->flush_wanted = l->finishing = l->drained = l->owes_answer = false;
	l->announced = false;
	log_info("writer_started", LOG_I("lane", l->index), LOG_I("pid", l->pid));
	if (queue_config(l) == -1) {
		lane_kill(l, "out of memory for its configuration");
		return -1;
	}
	lane_send(l, now);
	return 0;
}

/* Kills the writer; reason is for the log, NULL to say nothing. lane_died() follows. */
void
lane_kill(struct lane *l, const char *reason)
{
	if (l->pid <= 0)
		return;
	if (reason != NULL)
		log_error("writer_killed", LOG_I("lane", l->index), LOG_I("pid", l->pid),
		    LOG_S("reason", reason),
		    LOG_S("next", "replaced; its unconfirmed records are sent again"));
	kill(l->pid, SIGKILL);
	l->closed_at = 0;
	l->state = LANE_DYING;
}

/* The stop has run out of patience: the writer is killed and not replaced. */
void
lane_kill_for_good(struct lane *l)
{
	l->killed = l->pid > 0;
	lane_kill(l, NULL);
}

void
lane_channel_failed(struct lane *l, enum channel_result result)
{
	/* A writer whose channel has ended is as good as dead; reaping says how it died. */
	if (result == CHANNEL_ERROR)
		log_error("channel_failed", LOG_I("lane", l->index), LOG_I("pid", l->pid),
		    LOG_ERRNO(errno));
	l->state = LANE_DYING;
	l->closed_at = clock_monotonic();
}

/* What is in the spool has been noted; to hold it back would keep a full disk full. */
static bool
is_spooled(const struct lane *l)
{
	return l->spool.in_backlog == l->backlog.count;
}

/* Writes as much as the channel takes: what was queued, then records if the writer is READY. */
void
lane_send(struct lane *l, int64_t now)
{
	struct iovec iov[IOV_PARTS];
	enum channel_result result = CHANNEL_OK;
	bool idle = l->backlog.sent == 0 && l->backlog.partial == 0;
	size_t sent, before = l->backlog.sent;
	int n;

	l->blocked = false;
	while (result == CHANNEL_OK && (l->state == LANE_STARTING || l->state == LANE_READY)) {
		n = l->state == LANE_READY && !l->finishing && (!l->held_back || is_spooled(l))
		    ? lane_suspect_unsent(l, iov, IOV_PARTS)
		    : 0;
		if (n == 0 && buffer_size(&l->channel.out) == 0)
			break;
		if (n > 0 && FAILPOINT("before_send")) {
			lane_channel_failed(l, CHANNEL_CLOSED);
			return;
		}
		result = channel_write(&l->channel, iov, n, &sent);
		if (n > 0 && FAILPOINT("after_send"))
			result = CHANNEL_CLOSED;
		backlog_mark_sent(&l->backlog, sent);
	}
	l->sent += l->backlog.sent - before;
	/* The clock of its silence starts with the work. */
	if (idle && (l->backlog.sent > 0 || l->backlog.partial > 0))
		l->heard = now;
	if (result == CHANNEL_AGAIN)
		l->blocked = true;
	else if (result != CHANNEL_OK)
		lane_channel_failed(l, result);
	else if (l->flush_wanted && l->state == LANE_READY)
		lane_flush(l, now);
}

/* Lets the writer commit at once what it holds, as soon as all is sent. */
void
lane_flush(struct lane *l, int64_t now)
{
	struct message m = {.type = MESSAGE_FLUSH};

	l->flush_wanted = l->backlog.count > 0 && !l->finishing;
	if (!l->flush_wanted || l->state != LANE_READY || l->backlog.sent < l->backlog.count)
		return;
	l->flush_wanted = false;
	if (channel_queue(&l->channel, &m) == 0)
		lane_send(l, now);
}

/*
 * Sends CLOSE or FORGET for a stream; owner->answer gets the writer's answer. False if it cannot
 * now: no writer is READY, or a record is half sent.
 */
bool
lane_ask(struct lane *l, enum message_type type, const char *stream, int64_t now)
{
	struct message m = {.type = type};

	if (l->state != LANE_READY || l->finishing || l->backlog.partial > 0)
		return false;
	m.stream = text_from(stream);
	if (channel_queue(&l->channel, &m) == -1)
		return false;
	l->owes_answer = true;
	l->heard = now;
	lane_send(l, now);
	return true;
}

/* True when the writer has read all that there is for it. */
bool
lane_handed_over(const struct lane *l)
{
	/* What is in the spool need not wait for a database that does not answer. */
	if (l->spool.on && lane_in_flight(l) == 0 &&
	    (l->state != LANE_READY || l->trouble_since != 0))
		return true;
	return l->backlog.sent == l->backlog.count &&
	    (l->backlog.count == 0 || (l->channel.fd != -1 && channel_taken(&l->channel)));
}

/* Tells the writer to read its channel to the end, commit, report and exit. */
void
lane_finish(struct lane *l)
{
	if (l->finishing || l->pid <= 0 || l->state == LANE_DYING)
		return;
	if (l->forget && lane_handed_over(l))
		lane_ask(l, MESSAGE_FORGET, l->owner->stream, clock_monotonic());
	l->owes_answer = false;
	l->finishing = true;
	shutdown(l->channel.fd, SHUT_WR);
	kill(l->pid, SIGUSR1);
}

/* ---- the loop's hooks ---- */

void
lane_prepare(const struct lane *l, struct pollfd *p)
{
	bool alive = l->state == LANE_STARTING || l->state == LANE_READY;

	*p = (struct pollfd){.fd = alive ? l->channel.fd : -1, .events = POLLIN};
	if (alive && l->blocked)
		p->events |= POLLOUT;
}

void
lane_dispatch(struct lane *l, short revents, int64_t now)
{
	if ((revents & (POLLIN | POLLHUP | POLLERR)) != 0)
		lane_hear(l, now);
	if ((revents & POLLOUT) != 0)
		lane_send(l, now);
}

static void
log_death(const struct lane *l, pid_t pid, int status, const char *next, int64_t delay)
{
	const char *signal_name = WIFSIGNALED(status) ? signals_name(WTERMSIG(status)) : NULL;
	struct log_field how = LOG_S("signal", signal_name);

	if (signal_name == NULL)
		how = LOG_I("status", WEXITSTATUS(status));
	log_error("writer_exited", LOG_I("lane", l->index), LOG_I("pid", pid), how,
	    LOG_S("meaning", policy_meaning(status)), LOG_U("unconfirmed", l->backlog.count),
	    LOG_S("next", next), LOG_T("respawn_in", delay));
}

/*
 * The writer has been reaped. What it had said before is heard first: a commit that it reported is
 * a commit. Returns 0, or the status with which the service must end. ending: writers exit because
 * they were told to.
 */
int
lane_died(struct lane *l, int status, bool ending, int64_t now)
{
	struct policy_verdict v;
	int64_t healthy = l->ready_at > 0 ? now - l->ready_at : 0;
	pid_t pid = l->pid;

	/* Reaped: the number may be another process's by now, and must not be killed any more. */
	l->pid = 0;
	l->state = LANE_DYING;
	while (lane_hear(l, now))
		;
	channel_close(&l->channel);
	lane_suspect_death(l, status);
	backlog_rewind(&l->backlog);
	l->ready_at = 0;
	if (l->drained && ending && WIFEXITED(status) && WEXITSTATUS(status) == 0) {
		l->state = LANE_DONE;
		return 0;
	}
	if (WIFEXITED(status) && WEXITSTATUS(status) == EX_NOPERM)
		log_error("progress_lost", LOG_I("lane", l->index),
		    LOG_U("unconfirmed", l->backlog.count),
		    LOG_S("reason",
			"its row in ingestd.progress has been removed, moved or closed while we "
			"run"),
		    LOG_S("next",
			"the row is made again and the lane resumed from the backlog; a batch "
			"whose commit was just then not confirmed may be stored twice"));
	v = policy_death(status, healthy, l->failures);
	l->failures = v.failures;
	l->respawn_at = now + v.delay;
	if (v.action == POLICY_STOP_SERVICE)
		log_death(l, pid, status, "stopping: no respawn can mend the configuration", 0);
	else if (l->killed)
		log_death(l, pid, status,
		    lane_in_flight(l) > 0 ? "none: this stop has killed it"
					  : "none: this stop has killed it; what it held is in the "
					    "spool",
		    0);
	else if (ending && lane_in_flight(l) == 0)
		log_death(l, pid, status, "none: nothing depends on it", 0);
	else
		log_death(
		    l, pid, status, "respawned; its unconfirmed records are sent again", v.delay);
	l->state = v.action == POLICY_STOP_SERVICE || (ending && lane_in_flight(l) == 0)
	    ? LANE_DONE
	    : LANE_DOWN;
	return v.action == POLICY_STOP_SERVICE ? WEXITSTATUS(status) : 0;
}

static bool
owes_word(const struct lane *l)
{
	/* A record larger than the channel's buffer is never wholly sent to one that does not read.
	 */
	return l->state == LANE_STARTING ||
	    (l->state == LANE_READY &&
		(l->owes_answer || l->backlog.sent > 0 || l->backlog.partial > 0));
}

static int64_t
dying_until(const struct lane *l)
{
	return l->closed_at == 0 ? CLOCK_NEVER : l->closed_at + DYING_TIMEOUT;
}

/* Respawns what is due, and kills a writer that has fallen silent over its work. */
void
lane_check(struct lane *l, int64_t now)
{
	if (l->state == LANE_DOWN && now >= l->respawn_at)
		lane_spawn(l, now);
	if (owes_word(l) && now - l->heard >= l->cfg->writer_timeout) {
		log_error("writer_hung", LOG_I("lane", l->index), LOG_I("pid", l->pid),
		    LOG_T("silent_for", now - l->heard), LOG_U("unconfirmed", l->backlog.count),
		    LOG_S("next", "killed and replaced"));
		lane_kill(l, NULL);
	}
	/* It has closed its channel and does not end. */
	if (l->state == LANE_DYING && now >= dying_until(l))
		lane_kill(l, NULL);
}

int64_t
lane_deadline(const struct lane *l)
{
	if (l->state == LANE_DOWN)
		return l->respawn_at;
	if (l->state == LANE_DYING)
		return dying_until(l);
	return owes_word(l) ? l->heard + l->cfg->writer_timeout : CLOCK_NEVER;
}
