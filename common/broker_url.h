#ifndef COMMON_BROKER_URL_H
#define COMMON_BROKER_URL_H

#include <stdbool.h>
#include <stdint.h>

/* All strings belong to the struct until broker_url_free(). user and password may be NULL. */
struct broker_url {
	bool tls;
	char *host;
	uint16_t port;
	char *user;
	char *password;
};

const char *broker_url_parse(const char *, struct broker_url *);
void broker_url_free(struct broker_url *);

#endif
