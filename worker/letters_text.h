#ifndef WORKER_LETTERS_TEXT_H
#define WORKER_LETTERS_TEXT_H

#include <stddef.h>

/* A column at its longest, in bytes per character: four of UTF-8, or an escape a character each. */
#define LETTERS_TEXT_BYTES 4

size_t letters_text_fit(char *, size_t, const char *, size_t);

#endif
