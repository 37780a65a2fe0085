#ifndef SUPERVISOR_MQTT_WIRE_H
#define SUPERVISOR_MQTT_WIRE_H

#include "mqtt.h"

void mqtt_wire_tune(int);
int mqtt_wire_error(int);
void mqtt_wire_cork(int, int);
void mqtt_wire_acknowledge(int);
bool mqtt_wire_is_taken(int);
void mqtt_wire_ping(struct mqtt *);

#endif
