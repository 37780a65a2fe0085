#ifndef WORKER_LETTERS_BAR_H
#define WORKER_LETTERS_BAR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Times on the monotonic clock. */
struct letters_bar {
	const char *what;
	bool shown; /* standard error is a terminal */
	bool drawn;
	int64_t began;
	int64_t last;
};

size_t letters_bar_format(
    char *, size_t, const char *what, uint64_t done, uint64_t total, int64_t elapsed, size_t width);
void letters_bar_init(struct letters_bar *, const char *what);
void letters_bar_draw(struct letters_bar *, uint64_t done, uint64_t total);
void letters_bar_clear(struct letters_bar *);

#endif
