/*
 * The options: one table, from which the command line, the environment, --help, the CONFIG message
 * to the writers and the tests of the manual are made.
 *
 * Command line over environment over default. Must never print a value that can hold a password:
 * errors about --broker and --database name the rule, not the value.
 */
#include "config.h"

#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "buffer.h"
#include "topic.h"
#include "units.h"

enum kind {
	KIND_STRING,
	KIND_LIST,
	KIND_NUMBER,
	KIND_SIZE,
	KIND_DURATION,
	KIND_CHOICE,
	KIND_ACTION,
};

#define SECRET 1    /* the value may hold a password */
#define TO_WRITER 2 /* part of the CONFIG message */

struct option_row {
	const char *name;
	char letter;
	const char *metavar;
	enum kind kind;
	size_t offset;
	int64_t min, max;
	const char *initial;
	int flags;
	const char *help;
};

#define AT(field) offsetof(struct config, field)
#define MIB (INT64_C(1) << 20)

/* For KIND_CHOICE, metavar is the list of words and the value the index of the one that was given.
 */
static const struct option_row table[] = {
    {"broker", 'b', "URL", KIND_STRING, AT(broker), 0, 0, "mqtt://localhost:1883", SECRET,
	"mqtt:// or mqtts:// with host and port, user and password if need be"},
    {"database", 'd', "CONNINFO", KIND_STRING, AT(database), 0, 0, "", SECRET | TO_WRITER,
	"libpq connection string or URI; else libpq's own defaults"},
    {"subscribe", 's', "FILTER", KIND_LIST, AT(subscribe), 0, 0, NULL, 0,
	"topic filter; may be given again, at least one is needed"},
    {"table", 't', "NAME", KIND_STRING, AT(table), 0, 0, "telemetry", TO_WRITER,
	"table for the rows, as NAME or SCHEMA.NAME"},
    {"qos", 'q', "N", KIND_NUMBER, AT(qos), 0, 1, "1", 0, "quality of service to subscribe with"},
    {"client-id", 'i', "ID", KIND_STRING, AT(client_id), 0, 0, NULL, 0,
	"MQTT client id; else one is made and kept in the state directory"},
    {"session-expiry", 0, "SECONDS", KIND_NUMBER, AT(session_expiry), 1, UINT32_MAX, "604800", 0,
	"how long the broker keeps the session of an absent ingestd"},
    {"protocol", 0, "5|3.1.1", KIND_CHOICE, AT(protocol), 0, 0, "5", 0, "MQTT version"},
    {"writers", 'w', "N", KIND_NUMBER, AT(writers), 1, 64, "2", 0,
	"writer processes, each with a database connection"},
    {"batch-size", 0, "N", KIND_NUMBER, AT(batch_size), 1, 1000000, "500", TO_WRITER,
	"records that make a transaction due"},
    {"batch-limit", 0, "N", KIND_NUMBER, AT(batch_limit), 1, 1000000, "5000", TO_WRITER,
	"records in one at most, if the one before takes long"},
    {"batch-interval", 0, "TIME", KIND_DURATION, AT(batch_interval), CLOCK_MS, 3600 * CLOCK_SECOND,
	"1s", TO_WRITER, "age at which a batch is committed at the latest"},
    {"dead-letter-share", 0, "PERCENT", KIND_NUMBER, AT(dead_letter_share), 1, 100, "50", TO_WRITER,
	"rows refused in a minute, of 1000 or more, past which they are held instead"},
    {"queue-limit", 0, "N", KIND_NUMBER, AT(queue_limit), 1, 100000000, "50000", 0,
	"records held in memory before reading stops"},
    {"queue-bytes", 0, "SIZE", KIND_SIZE, AT(queue_bytes), 65536, MIB << 20, "256MiB", 0,
	"bytes held in memory before reading stops"},
    {"payload-limit", 0, "SIZE", KIND_SIZE, AT(payload_limit), 1024, 256 * MIB, "16MiB", TO_WRITER,
	"larger payloads become a dead letter with their first bytes"},
    {"spool-after", 0, "TIME", KIND_DURATION, AT(spool_after), CLOCK_MS, 3600 * CLOCK_SECOND, "5s",
	0, "without a commit for so long, what is received goes to the disk"},
    {"spool-limit", 0, "SIZE", KIND_SIZE, AT(spool_limit), 0, MIB << 20, "1GiB", 0,
	"bytes on the disk before reading stops; 0 for no spool"},
    {"receive-maximum", 0, "N", KIND_NUMBER, AT(receive_maximum), 1, 65535, "65535", 0,
	"unacknowledged messages at most"},
    {"ack-interval", 0, "TIME", KIND_DURATION, AT(ack_interval), CLOCK_MS, 60 * CLOCK_SECOND, "1s",
	0, "age of an unacknowledged message at which reading pauses"},
    {"drain-timeout", 0, "TIME", KIND_DURATION, AT(drain_timeout), 0, 3600 * CLOCK_SECOND, "10s", 0,
	"on stop, time to hand over what is queued"},
    {"flush-timeout", 0, "TIME", KIND_DURATION, AT(flush_timeout), 0, 3600 * CLOCK_SECOND, "10s",
	TO_WRITER, "on stop, time for the writers to commit and exit"},
    {"writer-timeout", 0, "TIME", KIND_DURATION, AT(writer_timeout), 3 * CLOCK_SECOND,
	3600 * CLOCK_SECOND, "30s", 0, "silence after which a writer is killed and replaced"},
    {"state-dir", 0, "DIR", KIND_STRING, AT(state_dir), 0, 0, NULL, 0,
	"directory for the client id, the lock, the list of messages that may come again, the "
	"spool"},
    {"log-level", 0, "debug|info|warn|error", KIND_CHOICE, AT(log_level), 0, 0, "info", TO_WRITER,
	"least level that is logged"},
    {"log-format", 0, "text|json", KIND_CHOICE, AT(log_format), 0, 0, "text", TO_WRITER,
	"key=value lines or one JSON object a line"},
    {"version", 'V', NULL, KIND_ACTION, 0, 0, 0, NULL, 0, "print the version and exit"},
    {"help", 'h', NULL, KIND_ACTION, 0, 0, 0, NULL, 0, "print this help and exit"},
};

#define ROWS (sizeof(table) / sizeof(table[0]))

/* Says what is wrong with an option. Returns -1. */
int
config_fail(struct config_error *err, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(err->text, sizeof(err->text), fmt, ap);
	va_end(ap);
	return -1;
}

static int
set_string(char **field, const char *value)
{
	char *copy = strdup(value);

	if (copy == NULL)
		return -1;
	free(*field);
	*field = copy;
	return 0;
}

static int
add_to_list(struct config *cfg, const char *value)
{
	char **list = reallocarray(cfg->subscribe, (size_t)cfg->subscribe_count + 1, sizeof(*list));

	if (list == NULL)
		return -1;
	cfg->subscribe = list;
	list[cfg->subscribe_count] = strdup(value);
	if (list[cfg->subscribe_count] == NULL)
		return -1;
	cfg->subscribe_count++;
	return 0;
}

static int64_t
choice(const char *words, const char *value)
{
	size_t len = strlen(value), n;
	int64_t i;

	for (i = 0;; i++) {
		n = strcspn(words, "|");
		if (n == len && strncmp(words, value, n) == 0)
			return i;
		if (words[n] == '\0')
			return -1;
		words += n + 1;
	}
}

/* source is how the user spelt the option: "--qos" or "INGESTD_QOS". */
static int
set(struct config *cfg, const struct option_row *row, const char *source, const char *value,
    struct config_error *err)
{
	char *field = (char *)cfg + row->offset, low[32], high[32];
	const char *wrong, *p;
	int64_t n;

	for (p = value; *p != '\0'; p++) {
		if (iscntrl((unsigned char)*p))
			return config_fail(err, "%s: the value holds a control character", source);
	}
	switch (row->kind) {
	case KIND_STRING:
		if (set_string((char **)field, value) == -1)
			return config_fail(err, "%s: %s", source, strerror(errno));
		return 0;
	case KIND_LIST:
		wrong = topic_filter_error(value);
		if (wrong != NULL)
			return config_fail(
			    err, "%s: '%s' is no topic filter: %s", source, value, wrong);
		if (add_to_list(cfg, value) == -1)
			return config_fail(err, "%s: %s", source, strerror(errno));
		return 0;
	case KIND_CHOICE:
		n = choice(row->metavar, value);
		if (n == -1)
			return config_fail(
			    err, "%s: '%s' must be one of %s", source, value, row->metavar);
		break;
	case KIND_NUMBER:
		if (units_number(value, &n) == -1 || n < row->min || n > row->max)
			return config_fail(err, "%s: '%s' must be a whole number from %lld to %lld",
			    source, value, (long long)row->min, (long long)row->max);
		break;
	case KIND_SIZE:
		if (units_size(value, &n) == -1 || n < row->min || n > row->max)
			return config_fail(err,
			    "%s: '%s' must be a size from %s to %s, in bytes or with KiB, MiB or "
			    "GiB",
			    source, value, units_format_size(row->min, low, sizeof(low)),
			    units_format_size(row->max, high, sizeof(high)));
		break;
	default:
		if (units_duration(value, &n) == -1 || n < row->min || n > row->max)
			return config_fail(err,
			    "%s: '%s' must be a time from %s to %s, with ms, s, m or h", source,
			    value, units_format_duration(row->min, low, sizeof(low)),
			    units_format_duration(row->max, high, sizeof(high)));
		break;
	}
	*(int64_t *)field = n;
	return 0;
}

/* Fills in the defaults. Returns -1 when memory is short. */
int
config_init(struct config *cfg)
{
	struct config_error err;
	size_t i;

	*cfg = (struct config){0};
	for (i = 0; i < ROWS; i++) {
		if (table[i].initial != NULL &&
		    set(cfg, &table[i], table[i].name, table[i].initial, &err) == -1)
			return -1;
	}
	return 0;
}

static void
variable_name(const struct option_row *row, char *out, size_t size)
{
	char *p;

	snprintf(out, size, "INGESTD_%s", row->name);
	for (p = out; *p != '\0'; p++)
		*p = *p == '-' ? '_' : (char)toupper((unsigned char)*p);
}

static int
set_lines(struct config *cfg, const struct option_row *row, const char *source, const char *text,
    struct config_error *err)
{
	char *copy = strdup(text), *rest = copy, *line;
	int rc = copy == NULL ? config_fail(err, "%s: %s", source, strerror(errno)) : 0;

	while (rc == 0 && (line = strsep(&rest, "\n")) != NULL) {
		if (*line != '\0')
			rc = set(cfg, row, source, line, err);
	}
	free(copy);
	return rc;
}

/* Reads INGESTD_NAME for every option; a list has one value a line. Returns -1 with err set. */
int
config_from_environment(struct config *cfg, struct config_error *err)
{
	char name[64];
	const char *value;
	size_t i;

	for (i = 0; i < ROWS; i++) {
		variable_name(&table[i], name, sizeof(name));
		value = table[i].kind == KIND_ACTION ? NULL : getenv(name);
		if (value == NULL)
			continue;
		if (table[i].kind == KIND_LIST) {
			if (set_lines(cfg, &table[i], name, value, err) == -1)
				return -1;
		} else if (set(cfg, &table[i], name, value, err) == -1) {
			return -1;
		}
	}
	return 0;
}

/*
 * Sets the option called name, which must be in the table, for a command that has some of them
 * only. Its value is that of the command line or, where that is NULL, of the environment, which may
 * have none. Returns -1 with err set.
 */
int
config_set(struct config *cfg, const char *name, const char *value, struct config_error *err)
{
	char source[64];
	size_t i;

	for (i = 0; strcmp(table[i].name, name) != 0; i++)
		;
	if (value != NULL) {
		snprintf(source, sizeof(source), "--%s", name);
		return set(cfg, &table[i], source, value, err);
	}
	variable_name(&table[i], source, sizeof(source));
	value = getenv(source);
	return value != NULL ? set(cfg, &table[i], source, value, err) : 0;
}

/*
 * Variables that start with INGESTD_ and are no option's, one a call: a misspelt one should not be
 * ignored in silence. Start with *i at 0; NULL after the last.
 */
const char *
config_unknown_variable(int *i)
{
	char name[64];
	size_t row, len;

	for (; environ[*i] != NULL; (*i)++) {
		if (strncmp(environ[*i], "INGESTD_", 8) != 0)
			continue;
		for (row = 0; row < ROWS; row++) {
			variable_name(&table[row], name, sizeof(name));
			len = strlen(name);
			if (strncmp(environ[*i], name, len) == 0 && environ[*i][len] == '=')
				break;
		}
		if (row == ROWS)
			return environ[(*i)++];
	}
	return NULL;
}

static void
clear_list(struct config *cfg)
{
	while (cfg->subscribe_count > 0)
		free(cfg->subscribe[--cfg->subscribe_count]);
	free(cfg->subscribe);
	cfg->subscribe = NULL;
}

static enum config_action
refuse(struct config_error *err, int c, char **argv)
{
	const char *given = argv[optind - 1];

	if (c == ':')
		config_fail(err, "%s: a value is missing; see ingestd --help", given);
	else if (optopt != 0 && strncmp(given, "--", 2) != 0)
		config_fail(err, "-%c: no such option; see ingestd --help", optopt);
	else
		config_fail(err,
		    "%.*s: no such option, an abbreviation of several, or it takes no value; see "
		    "ingestd --help",
		    (int)strcspn(given, "="), given);
	return CONFIG_BAD;
}

/* Reads the command line. A --subscribe there replaces the environment's list. */
enum config_action
config_from_arguments(struct config *cfg, int argc, char **argv, struct config_error *err)
{
	struct option longs[ROWS + 1] = {0};
	char shorts[2 * ROWS + 2] = ":", source[64];
	bool listed = false;
	int c, index;
	size_t i;

	for (i = 0; i < ROWS; i++) {
		longs[i] = (struct option){table[i].name,
		    table[i].metavar != NULL ? required_argument : no_argument, NULL, 256 + (int)i};
		if (table[i].letter != 0)
			sprintf(shorts + strlen(shorts), "%c%s", table[i].letter,
			    table[i].metavar != NULL ? ":" : "");
	}
	opterr = 0;
	optind = 1;
	while ((c = getopt_long(argc, argv, shorts, longs, &index)) != -1) {
		if (c == '?' || c == ':')
			return refuse(err, c, argv);
		for (i = 0; i < ROWS && c != 256 + (int)i && c != table[i].letter; i++)
			;
		if (table[i].kind == KIND_ACTION)
			return strcmp(table[i].name, "help") == 0 ? CONFIG_HELP : CONFIG_VERSION;
		if (table[i].kind == KIND_LIST && !listed) {
			clear_list(cfg);
			listed = true;
		}
		snprintf(source, sizeof(source), "--%s", table[i].name);
		if (set(cfg, &table[i], source, optarg, err) == -1)
			return CONFIG_BAD;
	}
	if (optind < argc) {
		/* Not the argument: of a conninfo without its quotes it may be the password. */
		config_fail(
		    err, "argument %d: ingestd takes options only; see ingestd --help", optind);
		return CONFIG_BAD;
	}
	return CONFIG_RUN;
}

/* Is the table's name one? Returns -1 with err set. */
int
config_check_table(const struct config *cfg, struct config_error *err)
{
	if (*cfg->table == '\0' || *cfg->table == '.' ||
	    cfg->table[strlen(cfg->table) - 1] == '.' ||
	    strchr(cfg->table, '.') != strrchr(cfg->table, '.'))
		return config_fail(err, "--table: '%s' must be NAME or SCHEMA.NAME", cfg->table);
	return 0;
}

/* What no single option can tell. Parses the broker's URL. Returns -1 with err set. */
int
config_check(struct config *cfg, struct config_error *err)
{
	const char *wrong;

	if (cfg->subscribe_count == 0)
		return config_fail(err,
		    "--subscribe: missing; give at least one topic filter, such as 'sensors/#'");
	broker_url_free(&cfg->url);
	wrong = broker_url_parse(cfg->broker, &cfg->url);
	if (wrong != NULL)
		return config_fail(err,
		    "--broker: no broker's URL: %s; allowed is "
		    "mqtt[s]://[USER[:PASSWORD]@]HOST[:PORT]",
		    wrong);
	if (config_check_table(cfg, err) == -1)
		return -1;
	if (cfg->state_dir != NULL && *cfg->state_dir == '\0')
		return config_fail(err, "--state-dir: must not be empty");
	if (cfg->client_id != NULL && (*cfg->client_id == '\0' || strlen(cfg->client_id) > 65535))
		return config_fail(err, "--client-id: must have 1 to 65535 bytes");
	return 0;
}

/* Appends what a writer needs, a "name=value" line each. Returns -1 when memory is short. */
int
config_to_text(const struct config *cfg, struct buffer *out)
{
	const struct option_row *row;
	const char *field;
	char number[32];
	size_t i;

	for (i = 0; i < ROWS; i++) {
		row = &table[i];
		if ((row->flags & TO_WRITER) == 0)
			continue;
		field = (const char *)cfg + row->offset;
		if (buffer_append(out, row->name, strlen(row->name)) == -1 ||
		    buffer_append(out, "=", 1) == -1)
			return -1;
		if (row->kind == KIND_STRING) {
			field = *(char *const *)field;
		} else {
			snprintf(
			    number, sizeof(number), "%lld", (long long)*(const int64_t *)field);
			field = number;
		}
		if (buffer_append(out, field, strlen(field)) == -1 ||
		    buffer_append(out, "\n", 1) == -1)
			return -1;
	}
	return 0;
}

static int
set_from_line(struct config *cfg, char *line, struct config_error *err)
{
	char *value = strchr(line, '=');
	size_t i;

	if (value == NULL)
		return config_fail(err, "configuration line without '='");
	*value++ = '\0';
	for (i = 0; i < ROWS; i++) {
		char *field = (char *)cfg + table[i].offset;

		if (strcmp(table[i].name, line) != 0 || (table[i].flags & TO_WRITER) == 0)
			continue;
		if (table[i].kind == KIND_STRING)
			return set_string((char **)field, value) == -1
			    ? config_fail(err, "out of memory")
			    : 0;
		if (units_number(value, (int64_t *)field) == -1)
			return config_fail(err, "%s: '%s' is no number", line, value);
		return 0;
	}
	return config_fail(err, "%s: no such option", line);
}

/* The other end of config_to_text(): durations and sizes stand there as plain numbers. */
int
config_from_text(struct config *cfg, const char *text, size_t len, struct config_error *err)
{
	char *copy = strndup(text, len), *rest = copy, *line;
	int rc = copy == NULL ? config_fail(err, "out of memory") : 0;

	while (rc == 0 && (line = strsep(&rest, "\n")) != NULL) {
		if (*line != '\0')
			rc = set_from_line(cfg, line, err);
	}
	free(copy);
	return rc;
}

/* Prints what --help says, a line an option. */
void
config_help(FILE *out)
{
	char left[64];
	size_t i;

	fputs("usage: ingestd --subscribe FILTER [option ...]\n"
	      "       ingestd dead-letters list|replay|discard [option ...]\n"
	      "Takes messages from an MQTT broker into PostgreSQL and loses none.\n\n",
	    out);
	for (i = 0; i < ROWS; i++) {
		const struct option_row *row = &table[i];

		snprintf(left, sizeof(left), "%c%c%s --%s%s%s", row->letter ? '-' : ' ',
		    row->letter ? row->letter : ' ', row->letter ? "," : " ", row->name,
		    row->metavar != NULL ? " " : "", row->metavar != NULL ? row->metavar : "");
		fprintf(out, "  %-38s %s", left, row->help);
		if (row->initial != NULL && *row->initial != '\0')
			fprintf(out, " (%s)", row->initial);
		fputc('\n', out);
	}
	fputs("\nEvery option but the last two can be set as INGESTD_NAME in the environment.\n"
	      "libpq's own variables (PGHOST, PGPASSFILE, ...) work. See ingestd(8) and, for\n"
	      "the second form, ingestd-dead-letters(8) or its --help.\n",
	    out);
}

void
config_free(struct config *cfg)
{
	size_t i;

	for (i = 0; i < ROWS; i++) {
		if (table[i].kind == KIND_STRING)
			free(*(char **)((char *)cfg + table[i].offset));
	}
	clear_list(cfg);
	free(cfg->instance);
	broker_url_free(&cfg->url);
	*cfg = (struct config){0};
}
