/*
 * What a writer tells: READY, COMMITTED, TROUBLE and DRAINED to its supervisor, dead letters to the
 * log.
 *
 * TROUBLE is also the sign of life while the database keeps the writer waiting: a writer that is
 * silent although it has work is killed and replaced. Must never wait for a supervisor that does
 * not read, nor pile up messages for it.
 */
#include "report.h"

#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "batch.h"
#include "channel.h"
#include "clock.h"
#include "failpoint.h"
#include "log.h"
#include "session.h"

#define HEARTBEAT CLOCK_SECOND
/* A transaction that takes longer is worth a line in the log. */
#define TROUBLE_AFTER (5 * CLOCK_SECOND)
/* At the very end: for a supervisor that is busy. */
#define FINISH_TIMEOUT CLOCK_SECOND
/* A flood of dead letters gets this many lines a second, and the number of the others. */
#define LOGGED_A_SECOND REFUSALS_KEPT
#define TOPIC_SHOWN 200

void
report_init(struct report *r, struct channel *channel, int lane)
{
	*r = (struct report){.channel = channel, .lane = lane};
}

static void
queue(struct report *r, const struct message *m)
{
	if (!r->deaf && channel_queue(r->channel, m) == -1)
		log_error("message_lost", LOG_S("type", message_name(m->type)),
		    LOG_S("reason", "out of memory"));
}

/* The database is reached and fit, and the progress row is ours. */
void
report_ready(struct report *r, const struct session *s)
{
	struct message m = {.type = MESSAGE_READY};

	m.ready.pid = (uint64_t)getpid();
	m.ready.server = text_from(s->server);
	m.ready.committed = s->progress.committed;
	m.ready.dead_letters = s->progress.dead_letters;
	m.ready.database = text_from(s->database);
	r->trouble = NULL;
	queue(r, &m);
}

/* Another stream is closed: how far its lanes had come. */
void
report_closed(struct report *r, const struct session *s)
{
	struct message m = {.type = MESSAGE_CLOSED};

	m.closed.stream = text_from(s->other);
	m.closed.count = s->lane_count;
	memcpy(m.closed.lanes, s->lanes, s->lane_count * sizeof(s->lanes[0]));
	queue(r, &m);
}

/* A stream's progress rows are gone. */
void
report_forgotten(struct report *r, const char *stream)
{
	struct message m = {.type = MESSAGE_FORGOTTEN};

	m.stream = text_from(stream);
	queue(r, &m);
}

/* A batch is durable, some of its rows as dead letters; duration in microseconds. */
void
report_committed(
    struct report *r, const struct batch *b, const struct isolation *isolation, int64_t duration)
{
	struct message m = {.type = MESSAGE_COMMITTED};
	uint64_t rows = b->row_count - isolation->refused;
	uint64_t dead_letters = b->dead_letter_count + isolation->refused;

	if (b->last_seq > r->watermark)
		r->watermark = b->last_seq;
	r->rows += rows;
	r->dead_letters += dead_letters;
	r->batches++;
	r->trouble = NULL;
	m.committed.watermark = r->watermark;
	m.committed.rows = rows;
	m.committed.dead_letters = dead_letters;
	m.committed.batches = 1;
	m.committed.duration = (uint64_t)duration;
	queue(r, &m);
}

/* Trouble has begun, or is another by now; t must stay good. The next heartbeat tells it. */
void
report_trouble(struct report *r, const struct trouble *t)
{
	r->trouble = t;
}

static void
queue_trouble(struct report *r, enum trouble_class class, const char *sqlstate, const char *text)
{
	struct message m = {.type = MESSAGE_TROUBLE};

	m.trouble.class = class;
	m.trouble.sqlstate = text_from(sqlstate);
	m.trouble.text = text_from(text);
	/* The one that waits says enough. */
	if (!report_waits(r))
		queue(r, &m);
}

/*
 * Tells of trouble, at most once a second, or of having waited for the database, if so since when,
 * else CLOCK_NEVER. Returns when to call again.
 */
int64_t
report_heartbeat(struct report *r, int64_t waiting_since, int64_t now)
{
	char text[80];

	if (r->trouble == NULL && waiting_since == CLOCK_NEVER)
		return CLOCK_NEVER;
	if (r->trouble == NULL && now - waiting_since < HEARTBEAT)
		return waiting_since + HEARTBEAT;
	if (now < r->next_trouble)
		return r->next_trouble;
	if (r->trouble != NULL) {
		queue_trouble(r, r->trouble->class, r->trouble->sqlstate, r->trouble->text);
	} else {
		/* A slow commit is no trouble yet: without a text it is a sign of life and no more.
		 */
		text[0] = '\0';
		if (now - waiting_since >= TROUBLE_AFTER)
			snprintf(text, sizeof(text), "waiting for the database for %lld s",
			    (long long)((now - waiting_since) / CLOCK_SECOND));
		queue_trouble(r, TROUBLE_TRANSIENT, "", text);
	}
	r->next_trouble = now + HEARTBEAT;
	return r->next_trouble;
}

/* How many dead letters had no line of their own, once the second in which that was is over. */
static void
log_silent(struct report *r)
{
	if (r->dead_letters_silent > 0)
		log_warn("dead_letters_not_logged", LOG_U("count", r->dead_letters_silent));
	r->dead_letters_silent = 0;
}

/* When to call next, CLOCK_NEVER if nothing is owed. */
int64_t
report_silent(struct report *r, int64_t now)
{
	if (r->dead_letters_silent == 0)
		return CLOCK_NEVER;
	if (now - r->dead_letters_logged_from < CLOCK_SECOND)
		return r->dead_letters_logged_from + CLOCK_SECOND;
	log_silent(r);
	return CLOCK_NEVER;
}

/* Logs what could not become a row; sqlstate is NULL where it was not the database that said so. */
void
report_dead_letter(struct report *r, const struct record *record, const char *reason,
    const char *sqlstate, int64_t now)
{
	char topic[TOPIC_SHOWN + 1];

	if (now - r->dead_letters_logged_from >= CLOCK_SECOND) {
		r->dead_letters_logged_from = now;
		r->dead_letters_logged = 0;
	}
	if (r->dead_letters_logged++ >= LOGGED_A_SECOND) {
		r->dead_letters_silent++;
		return;
	}
	snprintf(topic, sizeof(topic), "%.*s", (int)record->topic.n, record->topic.s);
	log_silent(r);
	log_warn("dead_lettered", LOG_S("topic", topic), LOG_S("reason", reason),
	    LOG_S("sqlstate", sqlstate), LOG_U("seq", record->seq));
}

/* Logs the rows that became dead letters in a batch that is durable now. */
void
report_refused(struct report *r, const struct isolation *isolation, int64_t now)
{
	const struct refusal *kept;
	struct message m;
	uint64_t i;

	for (i = 0; i < isolation->refused && i < REFUSALS_KEPT; i++) {
		kept = &isolation->kept[i];
		if (batch_record(isolation->batch, kept->row, &m) == 0)
			report_dead_letter(r, &m.record, kept->reason, kept->sqlstate, now);
	}
	/* There is no second with lines for more. */
	r->dead_letters_silent += isolation->refused - i;
}

/* Everything is committed: the totals of this process. */
void
report_drained(struct report *r)
{
	struct message m = {.type = MESSAGE_DRAINED};

	m.drained.watermark = r->watermark;
	m.drained.rows = r->rows;
	m.drained.dead_letters = r->dead_letters;
	m.drained.batches = r->batches;
	queue(r, &m);
}

/* True while something is queued that the channel did not take. */
bool
report_waits(const struct report *r)
{
	return buffer_size(&r->channel->out) > 0;
}

/* Writes what is queued, as far as the channel takes it. */
void
report_write(struct report *r)
{
	enum channel_result result = CHANNEL_OK;
	size_t sent;

	while (report_waits(r) && result == CHANNEL_OK)
		result = channel_write(r->channel, NULL, 0, &sent);
	if (r->batches > 0 && FAILPOINT("after_report"))
		result = CHANNEL_CLOSED;
	if (result != CHANNEL_OK && result != CHANNEL_AGAIN) {
		r->deaf = true;
		buffer_clear(&r->channel->out);
	}
}

/* The last words: waits a moment for a supervisor that reads, and not for one that does not. */
void
report_finish(struct report *r)
{
	int64_t end = clock_monotonic() + FINISH_TIMEOUT, now;
	struct pollfd p = {.fd = r->channel->fd, .events = POLLOUT};

	log_silent(r);
	for (report_write(r); report_waits(r); report_write(r)) {
		now = clock_monotonic();
		if (now >= end || poll(&p, 1, clock_poll_timeout(now, end)) <= 0)
			return;
	}
}
