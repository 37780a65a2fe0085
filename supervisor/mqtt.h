#ifndef SUPERVISOR_MQTT_H
#define SUPERVISOR_MQTT_H

#include <poll.h>
#include <stdbool.h>
#include <stdint.h>

#include "config.h"
#include "dialer.h"
#include "gate.h"
#include "message.h"
#include "mqtt_sys.h"
#include "resume.h"
#include "store.h"
#include "window.h"

struct mosquitto;

enum mqtt_state {
	MQTT_WAITING,    /* for the time or the address of the next attempt */
	MQTT_CONNECTING, /* TCP, TLS, CONNECT, up to CONNACK */
	MQTT_OPEN,
	MQTT_PARTING, /* the broker is asked whether it has all acknowledgements */
	MQTT_LEAVING, /* DISCONNECT is on its way, then the broker's end of file */
	MQTT_CLOSED,  /* for good */
};

enum mqtt_receipt {
	MQTT_TAKEN,
	MQTT_TAKEN_FULL, /* taken, but read no more for now */
	MQTT_NO_MEMORY,  /* not taken */
};

/* By what a message is told from others. dup: it is known to be marked as sent again. */
struct mqtt_identity {
	uint64_t topic_hash;
	uint64_t hash; /* of topic and whole payload */
	bool dup;
};

/* Called for every message. seq is the receiver's to give; the texts are gone after the call. */
typedef enum mqtt_receipt mqtt_receive(void *, struct record *, const struct mqtt_identity *);

struct mqtt {
	const struct config *cfg;
	mqtt_receive *receive;
	void *arg;
	struct store *store;
	struct resume *resume;
	struct mosquitto *mosq;
	enum mqtt_state state;
	struct dialer dialer;
	struct gate gate;
	char broker[300];   /* host:port for the log */
	char why[256];      /* the reason of the end that is coming */
	bool lost;          /* a callback saw the end of the connection */
	bool refused;       /* the last CONNACK said no */
	bool full;          /* the receiver wants a pause */
	uint64_t declined;  /* messages that came while parting */
	bool intake_closed; /* stopping: read no more */
	bool on_hold;       /* not to be connected for now */
	bool listening;     /* to libmosquitto's log, which alone tells of DUP */
	bool dup;           /* the log has told of it, for the message that comes next */
	bool tcp_up;
	bool reading;     /* POLLIN was asked for */
	bool had_session; /* the broker should know us */
	bool subscribed;  /* to all filters, as far as is known */
	char **gone;      /* filters to unsubscribe from: an earlier run's */
	int gone_count;
	int unsubscribe_mid;
	int barrier_mid;   /* of the UNSUBSCRIBE whose answer proves acknowledgements received */
	int drain_fd;      /* while leaving */
	int64_t now;       /* of this turn of the loop */
	int64_t deadline;  /* of CONNECTING and LEAVING */
	int64_t opened;    /* when */
	int64_t keepalive; /* microseconds */
	int64_t last_out;  /* when bytes last left */
	int64_t misc_at;   /* next mosquitto_loop_misc() */
	int64_t resubscribe_at;  /* a filter was refused */
	int ping_left;           /* bytes of a PINGREQ of ours that are not out yet */
	int64_t closures[3];     /* the last ends of file, for the recognition of a twin */
	uint64_t unacknowledged; /* at the last loss of a connection */
	int64_t away_since;      /* without a connection and trying to have one, 0 if not */
	unsigned attempts;       /* that have failed since then */
	char failure[256];       /* why the last of them did */
	struct mqtt_sys sys;
	struct window rounds; /* of reading and acknowledging */
	uint64_t properties_left_out;
};

int mqtt_init(struct mqtt *, const struct config *, struct store *, struct resume *, int64_t);
void mqtt_receiver(struct mqtt *, mqtt_receive *, void *);
void mqtt_go(struct mqtt *, int64_t);
void mqtt_hold(struct mqtt *);
void mqtt_free(struct mqtt *);
void mqtt_drop(struct mqtt *);
void mqtt_prepare(struct mqtt *, struct pollfd *, const struct gate_view *);
void mqtt_dispatch(struct mqtt *, short, const struct gate_view *);
void mqtt_gate(struct mqtt *, const struct gate_view *);
int64_t mqtt_deadline(const struct mqtt *);
void mqtt_close_intake(struct mqtt *);
void mqtt_leave(struct mqtt *, int64_t);
void mqtt_abandon(struct mqtt *);
uint64_t mqtt_unacknowledged(const struct mqtt *);
void mqtt_reaped(struct mqtt *, pid_t);
const char *mqtt_retry_advice(const struct mqtt *);

#endif
