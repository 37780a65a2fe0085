#ifndef SUPERVISOR_MQTT_EVENTS_H
#define SUPERVISOR_MQTT_EVENTS_H

#include "mqtt.h"

/* The announced keepalive, until CONNACK says otherwise. */
#define MQTT_KEEPALIVE_SECONDS 60

void mqtt_events_attach(struct mosquitto *);
void mqtt_set_why(struct mqtt *, const char *);

#endif
