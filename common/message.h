#ifndef COMMON_MESSAGE_H
#define COMMON_MESSAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct buffer;

/* The protocol's version, first in CONFIG. Raise it whenever a message changes its shape. */
#define MESSAGE_VERSION 3

enum message_type {
	/* supervisor to writer */
	MESSAGE_CONFIG = 1,
	MESSAGE_RECORD = 2,
	MESSAGE_FLUSH = 3,
	MESSAGE_CLOSE = 4,
	MESSAGE_FORGET = 5,
	MESSAGE_CONDEMN = 6,
	/* writer to supervisor */
	MESSAGE_READY = 16,
	MESSAGE_COMMITTED = 17,
	MESSAGE_TROUBLE = 18,
	MESSAGE_DRAINED = 19,
	MESSAGE_CLOSED = 20,
	MESSAGE_FORGOTTEN = 21,
};

enum trouble_class {
	TROUBLE_TRANSIENT,
	TROUBLE_CONFIGURATION,
	TROUBLE_DATA,
};

/*
 * The SQLSTATE of TROUBLE with another instance that takes the messages of the same session: the
 * supervisor keeps away from the broker then. No server sends it.
 */
#define TROUBLE_CLAIMED "IG001"

/* That of TROUBLE with a batch that is held because too many rows are refused. */
#define TROUBLE_BREAKER "IG002"

/* Bytes of text or payload, not terminated; s may be NULL when n is 0. */
struct text {
	const char *s;
	size_t n;
};

#define RECORD_PROPERTIES_MAX 64
/* As many as --writers allows. */
#define MESSAGE_LANES_MAX 64

/*
 * One MQTT message. payload.n < payload_size means that only its first bytes were kept. encoded is
 * the whole message of a record that was decoded, for those who want to keep it.
 */
struct record {
	struct text encoded;
	uint64_t seq;
	int64_t time;
	struct text topic;
	struct text payload;
	uint64_t payload_size;
	uint8_t qos;
	bool retain;
	uint16_t packet_id;
	struct text content_type;
	size_t property_count;
	struct text properties[2 * RECORD_PROPERTIES_MAX]; /* name, value, name, value, … */
};

/* How far a lane of a stream had come. */
struct lane_progress {
	uint64_t lane;
	uint64_t committed; /* seq */
};

struct message {
	enum message_type type;
	union {
		/*
		 * committed and dead_letters are what the supervisor knows of the lane, for a
		 * progress row that has to be made. session and instance are hashes: whose messages
		 * these are, and who takes them.
		 */
		struct {
			uint64_t version;
			uint64_t lane;
			struct text stream;
			struct text text;
			uint64_t committed;
			uint64_t dead_letters;
			uint64_t session;
			uint64_t instance;
			bool claimed; /* another instance was here a moment ago */
		} config;
		struct record record;
		/* The next record, if it has that seq, is to be a dead letter. */
		struct {
			uint64_t seq;
			struct text reason;
		} condemn;
		/* CLOSE, FORGET and FORGOTTEN: the stream that is meant. */
		struct text stream;
		/* committed is a seq, dead_letters those of the lane since the stream began. */
		struct {
			uint64_t pid;
			struct text server;
			uint64_t committed;
			uint64_t dead_letters;
			struct text database;
		} ready;
		struct {
			struct text stream;
			size_t count;
			struct lane_progress lanes[MESSAGE_LANES_MAX];
		} closed;
		/* Counts since the last COMMITTED; the duration in microseconds. */
		struct {
			uint64_t watermark;
			uint64_t rows;
			uint64_t dead_letters;
			uint64_t batches;
			uint64_t duration;
		} committed;
		struct {
			uint64_t class;
			struct text sqlstate;
			struct text text;
		} trouble;
		/* Counts since the writer's start. */
		struct {
			uint64_t watermark;
			uint64_t rows;
			uint64_t dead_letters;
			uint64_t batches;
		} drained;
	};
};

enum message_result {
	MESSAGE_OK,
	MESSAGE_MORE,
	MESSAGE_BAD,
};

/* Which byte of the message is wrong, counted from its first, and why. */
struct message_fault {
	size_t offset;
	char reason[160];
};

struct text text_from(const char *);
size_t message_record_max(const struct record *);
size_t message_cap(size_t);
int message_encode(struct buffer *, const struct message *);
int message_encode_record(struct buffer *, const struct record *);
enum message_result message_decode(
    const uint8_t *, size_t, size_t, struct message *, size_t *, struct message_fault *);
const char *message_name(uint64_t);
const char *trouble_name(uint64_t);

#endif
