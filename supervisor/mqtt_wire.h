#ifndef SUPERVISOR_MQTT_WIRE_H
#define SUPERVISOR_MQTT_WIRE_H

#include "mqtt.h"

void mqtt_wire_tune(int);
int mqtt_wire_error(int);
void mqtt_wire_cork(int, int);
void mqtt_wire_acknowledge(int);
void mqtt_wire_ping(struct mqtt *);
void mqtt_wire_disconnect(struct mqtt *);

#endif
