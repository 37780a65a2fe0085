#ifndef WORKER_LETTERS_SELECT_H
#define WORKER_LETTERS_SELECT_H

#include <stddef.h>
#include <stdint.h>

#include "letter.h"
#include "letters_db.h"

/* The condition of a selection. Its parameters stand first. */
#define LETTERS_SELECTED                                         \
	"($1::text IS NULL OR topic COLLATE \"C\" ~ $1::text)"   \
	" AND ($2::bigint[] IS NULL OR id = ANY ($2::bigint[]))" \
	" AND ($3::bigint IS NULL OR " LETTERS_MICROSECONDS("received") " >= $3::bigint)"
#define LETTERS_SELECTED_PARAMETERS 3

/* The values of these parameters, until letters_selection_free(). */
struct letters_selection {
	char *regex;
	char *ids;
	char since[24];
};

/* Ids in ascending order; owned by the struct until letters_ids_free(). */
struct letters_ids {
	int64_t *list;
	size_t n;
	size_t room;
};

int letters_selection_init(struct letters_selection *, struct letters_db *);
void letters_selection_params(
    const struct letters_selection *, const char *[LETTERS_SELECTED_PARAMETERS]);
void letters_selection_free(struct letters_selection *);
int letters_ids_add(struct letters_ids *, int64_t);
int letters_ids_find(struct letters_ids *, struct letters_db *, const struct letters_selection *);
char *letters_ids_text(const int64_t *, size_t);
void letters_ids_free(struct letters_ids *);

#endif
