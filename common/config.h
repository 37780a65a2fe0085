#ifndef COMMON_CONFIG_H
#define COMMON_CONFIG_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "broker_url.h"
#include "log.h"

struct buffer;

enum config_protocol {
	CONFIG_PROTOCOL_5,
	CONFIG_PROTOCOL_311,
};

/* Strings belong to the struct until config_free(). Durations are microseconds, sizes bytes. */
struct config {
	char *broker;
	struct broker_url url;
	char *database;
	char **subscribe;
	int subscribe_count;
	char *table;
	int64_t qos;
	char *client_id;
	char *instance; /* a UUID: whose state directory it is; not an option */
	int64_t session_expiry;
	int64_t protocol;
	int64_t writers;
	int64_t batch_size;
	int64_t batch_limit;
	int64_t batch_interval;
	int64_t dead_letter_share; /* percent */
	int64_t queue_limit;
	int64_t queue_bytes;
	int64_t payload_limit;
	int64_t spool_after;
	int64_t spool_limit;
	int64_t receive_maximum;
	int64_t ack_interval;
	int64_t drain_timeout;
	int64_t flush_timeout;
	int64_t writer_timeout;
	char *state_dir;
	int64_t log_level;
	int64_t log_format;
};

enum config_action {
	CONFIG_RUN,
	CONFIG_HELP,
	CONFIG_VERSION,
	CONFIG_BAD,
};

/* One line, without the program's name and newline. */
struct config_error {
	char text[512];
};

int config_fail(struct config_error *, const char *, ...) __attribute__((format(printf, 2, 3)));
int config_init(struct config *);
int config_from_environment(struct config *, struct config_error *);
enum config_action config_from_arguments(struct config *, int, char **, struct config_error *);
int config_set(struct config *, const char *name, const char *value, struct config_error *);
int config_check_table(const struct config *, struct config_error *);
int config_check(struct config *, struct config_error *);
int config_to_text(const struct config *, struct buffer *);
int config_from_text(struct config *, const char *, size_t, struct config_error *);
const char *config_unknown_variable(int *);
void config_help(FILE *);
void config_free(struct config *);

#endif
