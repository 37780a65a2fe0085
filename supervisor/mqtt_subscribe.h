#ifndef SUPERVISOR_MQTT_SUBSCRIBE_H
#define SUPERVISOR_MQTT_SUBSCRIBE_H

#include "mqtt.h"

bool mqtt_read_note(struct mqtt *, int *failed);
void mqtt_subscribe(struct mqtt *);
void mqtt_bring_subscriptions_up_to_date(struct mqtt *, bool session_present);
void mqtt_ask_for_proof(struct mqtt *);
void mqtt_subscribe_attach(struct mosquitto *);

#endif
