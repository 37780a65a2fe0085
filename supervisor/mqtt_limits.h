#ifndef SUPERVISOR_MQTT_LIMITS_H
#define SUPERVISOR_MQTT_LIMITS_H

#include "mqtt.h"

struct mqtt5__property;

void mqtt_limits_round(struct mqtt *);
void mqtt_limits_tell(const struct mqtt *, const struct mqtt5__property *);

#endif
