#ifndef SUPERVISOR_MQTT_SYS_H
#define SUPERVISOR_MQTT_SYS_H

#include <stdbool.h>

#include "drops.h"

struct mqtt;
struct mosquitto_message;

/* The watch on the broker's counter of dropped messages. */
struct mqtt_sys {
	bool covered;     /* the user's filters bring it: then it is a record as well */
	bool own_filter;  /* by one that is equal to ours */
	bool asked;       /* SUBSCRIBE is on its way, and no answer has come */
	int mid;          /* of that */
	unsigned strikes; /* connections that have ended instead of an answer, in a row */
	struct drops drops;
};

void mqtt_sys_init(struct mqtt *);
void mqtt_sys_subscribe(struct mqtt *, bool);
bool mqtt_sys_answered(struct mqtt *, int, int);
void mqtt_sys_lost(struct mqtt *);
bool mqtt_sys_takes(struct mqtt *, const struct mosquitto_message *);

#endif
