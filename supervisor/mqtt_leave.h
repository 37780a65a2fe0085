#ifndef SUPERVISOR_MQTT_LEAVE_H
#define SUPERVISOR_MQTT_LEAVE_H

#include "mqtt.h"

/* What mqtt.c has of mqtt_leave.c. */
void mqtt_leave_prepare(const struct mqtt *, struct pollfd *);
int64_t mqtt_leave_deadline(const struct mqtt *);
void mqtt_leave_dispatch(struct mqtt *, short);

#endif
