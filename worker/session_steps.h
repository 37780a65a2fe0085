#ifndef WORKER_SESSION_STEPS_H
#define WORKER_SESSION_STEPS_H

/* What session.c, session_progress.c and session_isolate.c have of each other. */

#include "session.h"

/* Of a transaction that waited for a lock in vain: lock_not_available. */
#define LOCK_TIMED_OUT "55P03"

/* session.c: an attempt has failed, the trouble being set; and the next statement. */
enum session_event session_fail(struct session *, int64_t now);
enum session_event session_fail_with_error(struct session *, int64_t now);
enum session_event session_fail_with(struct session *, const char *text, int64_t now);
enum session_event session_step_own(
    struct session *, enum session_state next, char *sql, int64_t now);

enum session_event session_on_committed(struct session *, int64_t now);
void session_note_committed(struct session *, int64_t now);

/* session_isolate.c: a batch is to go out; it was refused; the answer to its pieces has come. */
void session_isolation_begin(struct session *, const struct batch *);
enum session_event session_on_refused(struct session *, int64_t now);
enum session_event session_on_isolated(struct session *, int64_t now);

/* session_progress.c: the answers to its statements have come, or LOCK_TIMED_OUT. */
enum session_event session_on_looked(struct session *, int64_t now);
enum session_event session_on_claimed(struct session *, int64_t now);
enum session_event session_on_taken(struct session *, int64_t now);
enum session_event session_on_closed(struct session *, int64_t now);
enum session_event session_evict(struct session *, int64_t now);
enum session_event session_on_evicted(struct session *, int64_t now);

#endif
