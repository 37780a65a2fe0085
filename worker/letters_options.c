/*
 * The command line of `ingestd dead-letters`: one table, from which the options and --help are
 * made; the test of the manual compares it with both.
 *
 * Must never print the value of --database, nor an argument that is no option: either can be a
 * password.
 */
#include "letters_options.h"

#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "topic.h"
#include "units.h"

#define IN(command) (1U << (command))
#define IN_ALL (IN(LETTERS_LIST) | IN(LETTERS_REPLAY) | IN(LETTERS_DISCARD))
#define IN_CHANGING (IN(LETTERS_REPLAY) | IN(LETTERS_DISCARD))

/* What getopt_long() returns for each; those with a letter have that. */
enum {
	OPTION_TOPIC = 256,
	OPTION_ID,
	OPTION_SINCE,
	OPTION_JSON,
	OPTION_YES,
	OPTION_BATCH_SIZE,
};

struct letters_row {
	const char *name;
	int value;
	const char *metavar;
	unsigned commands;
	const char *help;
};

/* Those that are ingestd's own as well have its names, letters and limits; see config.c. */
static const struct letters_row table[] = {
    {"topic", OPTION_TOPIC, "FILTER", IN_ALL, "only those whose topic the filter matches"},
    {"id", OPTION_ID, "N", IN_ALL, "only the one with this id; may be given again"},
    {"since", OPTION_SINCE, "TIME", IN_ALL,
	"only those received since then: '2026-11-24 10:00', or 2h ago"},
    {"json", OPTION_JSON, NULL, IN(LETTERS_LIST), "list as one JSON object"},
    {"yes", OPTION_YES, NULL, IN(LETTERS_DISCARD), "discard without a question"},
    {"database", 'd', "CONNINFO", IN_ALL,
	"libpq connection string or URI; else libpq's own defaults"},
    {"table", 't', "NAME", IN_ALL, "replay into this table, NAME or SCHEMA.NAME (telemetry)"},
    {"batch-size", OPTION_BATCH_SIZE, "N", IN_CHANGING, "dead letters in a transaction (500)"},
    {"help", 'h', NULL, IN_ALL, "print this help and exit"},
};

#define ROWS (sizeof(table) / sizeof(table[0]))

static const char *const commands[] = {"--help", "list", "replay", "discard"};

const char *
letters_command_name(enum letters_command command)
{
	return commands[command];
}

static int
no_memory(struct config_error *err)
{
	return config_fail(err, "out of memory");
}

static int
set_once(char **field, const char *name, const char *value, struct config_error *err)
{
	const char *p;

	if (*field != NULL)
		return config_fail(err, "--%s: given twice; one is allowed", name);
	for (p = value; *p != '\0'; p++) {
		if (iscntrl((unsigned char)*p))
			return config_fail(err, "--%s: the value holds a control character", name);
	}
	*field = strdup(value);
	return *field != NULL ? 0 : no_memory(err);
}

static int
add_id(struct letters_options *o, const char *value, struct config_error *err)
{
	int64_t *ids, id;

	if (units_number(value, &id) == -1 || id == 0)
		return config_fail(err, "--id: '%.64s' must be a whole number, from 1", value);
	ids = reallocarray(o->ids, o->id_count + 1, sizeof(*ids));
	if (ids == NULL)
		return no_memory(err);
	o->ids = ids;
	ids[o->id_count++] = id;
	return 0;
}

static int
set(struct letters_options *o, const struct letters_row *row, const char *value,
    struct config_error *err)
{
	const char *wrong;

	switch (row->value) {
	case 'h':
		o->command = LETTERS_HELP;
		return 0;
	case OPTION_JSON:
		o->json = true;
		return 0;
	case OPTION_YES:
		o->yes = true;
		return 0;
	case OPTION_TOPIC:
		wrong = topic_filter_error(value);
		if (wrong != NULL)
			return config_fail(
			    err, "--topic: '%s' is no topic filter: %s", value, wrong);
		return set_once(&o->topic, row->name, value, err);
	case OPTION_SINCE:
		return set_once(&o->since, row->name, value, err);
	case OPTION_ID:
		return add_id(o, value, err);
	default:
		return config_set(&o->cfg, row->name, value, err);
	}
}

static int
refuse(int c, char **argv, struct config_error *err)
{
	const char *given = argv[optind - 1];

	if (c == ':')
		return config_fail(
		    err, "%s: a value is missing; see ingestd dead-letters --help", given);
	if (optopt != 0 && strncmp(given, "--", 2) != 0)
		return config_fail(
		    err, "-%c: no such option; see ingestd dead-letters --help", optopt);
	return config_fail(err,
	    "%.*s: no such option, an abbreviation of several, or it takes no value; see ingestd "
	    "dead-letters --help",
	    (int)strcspn(given, "="), given);
}

static int
parse_options(struct letters_options *o, int argc, char **argv, struct config_error *err)
{
	struct option longs[ROWS + 1] = {0};
	unsigned command = IN(o->command);
	const struct letters_row *row;
	size_t i;
	int c;

	for (i = 0; i < ROWS; i++)
		longs[i] = (struct option){table[i].name,
		    table[i].metavar != NULL ? required_argument : no_argument, NULL,
		    table[i].value};
	opterr = 0;
	optind = 1;
	while ((c = getopt_long(argc, argv, ":d:t:h", longs, NULL)) != -1) {
		if (c == '?' || c == ':')
			return refuse(c, argv, err);
		for (row = table; row->value != c; row++)
			;
		if ((row->commands & command) == 0)
			return config_fail(err,
			    "--%s: not an option of %s; see ingestd dead-letters --help", row->name,
			    argv[0]);
		if (set(o, row, optarg, err) == -1)
			return -1;
		if (o->command == LETTERS_HELP)
			return 0;
	}
	/* Not the argument itself: of a conninfo without its quotes it may be the password. */
	if (optind < argc)
		return config_fail(err,
		    "argument %d behind %s: it takes options only; see ingestd "
		    "dead-letters --help",
		    optind, argv[0]);
	return 0;
}

/* Defaults, then the environment; the command line comes last. */
static int
set_defaults(struct letters_options *o, struct config_error *err)
{
	static const char *const shared[] = {"database", "table", "batch-size"};
	size_t i;

	if (config_init(&o->cfg) == -1)
		return no_memory(err);
	for (i = 0; i < sizeof(shared) / sizeof(shared[0]); i++) {
		if (config_set(&o->cfg, shared[i], NULL, err) == -1)
			return -1;
	}
	return 0;
}

/*
 * Reads the words behind "dead-letters", which is argv[0]. Returns -1 with err set; o is to be
 * freed either way.
 */
int
letters_options_parse(struct letters_options *o, int argc, char **argv, struct config_error *err)
{
	const char *word = argc > 1 ? argv[1] : NULL;
	size_t i;

	*o = (struct letters_options){.command = LETTERS_HELP};
	if (word == NULL)
		return config_fail(err,
		    "a command is missing: list, replay or discard; see ingestd "
		    "dead-letters --help");
	if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0)
		return 0;
	for (i = LETTERS_LIST; i <= LETTERS_DISCARD && strcmp(word, commands[i]) != 0; i++)
		;
	if (i > LETTERS_DISCARD && *word == '-')
		return config_fail(err,
		    "the first word must be list, replay or discard, options follow it; "
		    "see ingestd dead-letters --help");
	if (i > LETTERS_DISCARD)
		return config_fail(
		    err, "'%.64s' is no command; there are list, replay and discard", word);
	o->command = (enum letters_command)i;
	if (set_defaults(o, err) == -1 || parse_options(o, argc - 1, argv + 1, err) == -1)
		return -1;
	return o->command == LETTERS_HELP ? 0 : config_check_table(&o->cfg, err);
}

/* Prints what --help says, a line an option. */
void
letters_options_help(FILE *out)
{
	char left[64], letter[8];
	size_t i;

	fputs("usage: ingestd dead-letters list [--json] [selection ...] [option ...]\n"
	      "       ingestd dead-letters replay [selection ...] [option ...]\n"
	      "       ingestd dead-letters discard [--yes] [selection ...] [option ...]\n"
	      "Shows, stores or throws away the messages that ingestd could not store as a row.\n"
	      "All of them are meant unless --topic, --id or --since select some.\n\n",
	    out);
	for (i = 0; i < ROWS; i++) {
		snprintf(letter, sizeof(letter), table[i].value < 256 ? "-%c, " : "    ",
		    table[i].value);
		snprintf(left, sizeof(left), "%s--%s%s%s", letter, table[i].name,
		    table[i].metavar != NULL ? " " : "",
		    table[i].metavar != NULL ? table[i].metavar : "");
		fprintf(out, "  %-26s %s\n", left, table[i].help);
	}
	fputs("\nINGESTD_DATABASE, INGESTD_TABLE and INGESTD_BATCH_SIZE are read from the\n"
	      "environment as by ingestd, and so are libpq's own variables.\n"
	      "See ingestd-dead-letters(8).\n",
	    out);
}

void
letters_options_free(struct letters_options *o)
{
	config_free(&o->cfg);
	free(o->topic);
	free(o->since);
	free(o->ids);
	*o = (struct letters_options){0};
}
