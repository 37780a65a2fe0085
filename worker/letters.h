#ifndef WORKER_LETTERS_H
#define WORKER_LETTERS_H

struct letters_db;

int letters_run(int, char **);

/* The commands. Each returns the status to exit with and has said what it has done. */
int letters_list(struct letters_db *);
int letters_replay(struct letters_db *);
int letters_discard(struct letters_db *);

#endif
