#ifndef SUPERVISOR_MQTT_CONNECT_H
#define SUPERVISOR_MQTT_CONNECT_H

/* What mqtt.c and mqtt_connect.c have of each other. */

#include "mqtt.h"

void mqtt_dial(struct mqtt *);
void mqtt_lose(struct mqtt *, int rc);
void mqtt_forget_connection(struct mqtt *);

#endif
