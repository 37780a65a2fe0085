#ifndef WORKER_WRITER_STATE_H
#define WORKER_WRITER_STATE_H

/* What writer.c, the loop, and writer_input.c, which reads, have of each other. */

#include "batch.h"
#include "channel.h"
#include "config.h"
#include "report.h"
#include "session.h"

struct writer {
	struct channel channel;
	int signals;
	struct config cfg;
	bool configured;
	struct session session;
	struct batch batches[2];
	struct batch *filling; /* takes records */
	struct batch *sending; /* in flight or held, NULL if none */
	int64_t growth;        /* records that filling may have while sending is on its way */
	struct report report;
	/* What the supervisor wants done to the rows of another stream, MESSAGE_CLOSE or _FORGET.
	 */
	enum message_type errand;
	char errand_stream[PROGRESS_STREAM_LENGTH + 1];
	uint64_t condemned; /* the record of this seq is not looked at, but put aside; 0 for none */
	char condemned_for[80];
	bool forget_own; /* at the very end, remove our progress row */
	bool flush;      /* commit what is being filled, though more can be read */
	bool all_read;   /* all that can be read now was read */
	bool told;       /* SIGUSR1 has come: read what is there, then end */
	bool closed;     /* nothing more is read, ever */
	bool hung_up;    /* nothing more will come, though not all was read */
	bool done;
	int status;      /* to exit with, once everything is committed */
	int64_t give_up; /* the end of patience with the database, once the end has begun */
	int64_t now;
};

/* writer.c */
uint64_t writer_records_held(const struct writer *);
void writer_start_ending(struct writer *);
void writer_close_input(struct writer *, int status);
void writer_end_now(struct writer *, int status);
void writer_out_of_memory(struct writer *);

/* writer_input.c */
void writer_take_input(struct writer *);
void writer_end_of_file(struct writer *);
bool writer_is_full(const struct writer *);

#endif
