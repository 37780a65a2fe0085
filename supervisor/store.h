#ifndef SUPERVISOR_STORE_H
#define SUPERVISOR_STORE_H

#include <stdbool.h>

#include "dbfile.h"
#include "resume.h"

#define STORE_STREAM_LENGTH 36

/* What an earlier run has noted of its session at the broker. Owned by the store. */
struct store_session {
	bool known;
	char *broker;
	char *client_id;
	char *filters; /* one a line, behind a line with the QoS; see mqtt_subscribe.c */
};

/* state.db, which only this process has open. */
struct store {
	struct dbfile file;
	char running[STORE_STREAM_LENGTH +
	    1]; /* of a run that began while that one was in doubt, or empty */
	char live[STORE_STREAM_LENGTH + 1]; /* the stream of the list's live entries, or empty */
	char database[64];                  /* where that stream was written, or empty */
	bool outdated; /* the machine has been started anew since it was written, and it was not
			  synced */
	struct store_session session;
	int reuses_ids; /* as it is written there, -1 if that is not known */
};

int store_open(struct store *, const char *dir);
int store_sync(struct store *);
void store_close(struct store *);
int store_load(struct store *, struct resume *);
int store_save(struct store *, struct resume *);
int store_save_session(
    struct store *, const char *broker, const char *client_id, const char *filters);
int store_note_stream(struct store *, const char *stream);
int store_begin_stream(struct store *, const char *stream, struct resume *);
int store_run_in_doubt(struct store *, const char *stream, struct resume *);
int store_note_database(struct store *, const char *database);
int store_forget_stream(struct store *, const char *stream);
int store_next_past(struct store *, const char *own, char stream[STORE_STREAM_LENGTH + 1]);

#endif
