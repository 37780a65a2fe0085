/*
 * The progress bar of a command: one line of standard error, drawn again and again, where that is a
 * terminal, and nothing where it is not.
 *
 * Must never wrap, since the next drawing would then begin in the wrong line.
 */
#include "letters_bar.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "clock.h"

#define REDRAW_AFTER (100 * CLOCK_MS)
#define CELLS_MAX 40
#define CELLS_MIN 5
#define LINE_MAX_BYTES 256

/*
 * Writes "replay [####------] 400/1000 1234/s" in at most width columns, and fewer parts of it
 * where it is narrow. elapsed in microseconds. Returns the columns.
 */
size_t
letters_bar_format(char *out, size_t size, const char *what, uint64_t done, uint64_t total,
    int64_t elapsed, size_t width)
{
	char numbers[80], cells[CELLS_MAX + 1];
	uint64_t rate = elapsed > 0 ? (uint64_t)((double)done * CLOCK_SECOND / (double)elapsed) : 0;
	size_t n, room, filled;

	n = (size_t)snprintf(
	    numbers, sizeof(numbers), "%" PRIu64 "/%" PRIu64 " %" PRIu64 "/s", done, total, rate);
	/* The name, two blanks and the brackets. */
	room = strlen(what) + 4 + n;
	if (room + CELLS_MIN > width) {
		snprintf(out, size < width + 1 ? size : width + 1, "%s", numbers);
		return strlen(out);
	}
	room = width - room < CELLS_MAX ? width - room : CELLS_MAX;
	filled = total > 0 && done < total ? (size_t)((double)done / (double)total * (double)room)
					   : room;
	memset(cells, '#', filled);
	memset(cells + filled, '-', room - filled);
	cells[room] = '\0';
	snprintf(out, size, "%s [%s] %s", what, cells, numbers);
	return strlen(out);
}

void
letters_bar_init(struct letters_bar *b, const char *what)
{
	*b = (struct letters_bar){
	    .what = what,
	    .shown = isatty(STDERR_FILENO) == 1,
	    .began = clock_monotonic(),
	};
}

/* Not more often than the eye can follow, but for the first time and the last. */
void
letters_bar_draw(struct letters_bar *b, uint64_t done, uint64_t total)
{
	int64_t now = clock_monotonic();
	struct winsize size = {.ws_col = 0};
	char line[LINE_MAX_BYTES];

	if (!b->shown || (b->drawn && done < total && now - b->last < REDRAW_AFTER))
		return;
	b->last = now;
	b->drawn = true;
	/* The last column stays free: some terminals wrap as soon as it is written. */
	if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == -1 || size.ws_col < 2)
		size.ws_col = 80;
	letters_bar_format(
	    line, sizeof(line), b->what, done, total, now - b->began, size.ws_col - 1U);
	fprintf(stderr, "\r\033[K%s", line);
	fflush(stderr);
}

/* Makes the line free for other words. */
void
letters_bar_clear(struct letters_bar *b)
{
	if (b->drawn)
		fputs("\r\033[K", stderr);
	b->drawn = false;
}
