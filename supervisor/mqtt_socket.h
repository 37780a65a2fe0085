#ifndef SUPERVISOR_MQTT_SOCKET_H
#define SUPERVISOR_MQTT_SOCKET_H

#include <stdbool.h>

struct mosquitto;

struct mosquitto *mqtt_socket_new(const char *, void *);
void mqtt_socket_begin(int);
void mqtt_socket_end(void);
bool mqtt_socket_readable(void);
bool mqtt_socket_unsent(void);
bool mqtt_socket_is_buffered(void);
int mqtt_socket_read(struct mosquitto *);
int mqtt_socket_write(struct mosquitto *);
int mqtt_socket_flush(void);

#endif
