#ifndef WORKER_LETTERS_FILTER_H
#define WORKER_LETTERS_FILTER_H

char *letters_filter_regex(const char *);

#endif
