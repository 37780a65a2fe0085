/*
 * Text of strangers for a terminal: topics, reasons and the server's words, escaped and cut.
 *
 * Pure. Must never let a byte pass that a terminal could take for a command, nor one that changes
 * the order in which the rest is read.
 */
#include "letters_text.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "utf8.h"

/* An escape at its longest: \u202e. */
#define PIECE_MAX 8

static uint32_t
decode(const uint8_t *p, size_t len)
{
	static const uint8_t masks[] = {0x7f, 0x1f, 0x0f, 0x07};
	uint32_t c = p[0] & masks[len - 1];
	size_t i;

	for (i = 1; i < len; i++)
		c = c << 6 | (p[i] & 0x3f);
	return c;
}

/* Control characters, line ends of Unicode, and what turns the direction of text. */
static bool
must_be_escaped(uint32_t c)
{
	return c < 0x20 || (c >= 0x7f && c < 0xa0) || c == 0x61c || (c >= 0x200b && c <= 0x200f) ||
	    (c >= 0x2028 && c <= 0x202e) || (c >= 0x2066 && c <= 0x2069) || c == 0xfeff;
}

/*
 * The next piece of s as it may be shown, in out; *columns are as many as it has characters.
 * Returns the bytes of s that it stands for.
 */
static size_t
next_piece(const char *s, size_t left, char out[PIECE_MAX], size_t *columns)
{
	const uint8_t *p = (const uint8_t *)s;
	size_t len = utf8_sequence(p, left);
	uint32_t c;

	if (len == 0) {
		*columns = (size_t)sprintf(out, "\\x%02x", p[0]);
		return 1;
	}
	c = decode(p, len);
	if (!must_be_escaped(c)) {
		memcpy(out, p, len);
		out[len] = '\0';
		*columns = 1;
		return len;
	}
	if (c == '\n' || c == '\t' || c == '\r')
		*columns = (size_t)sprintf(out, "\\%c", c == '\n' ? 'n' : c == '\t' ? 't' : 'r');
	else
		*columns = (size_t)sprintf(out, c < 0x80 ? "\\x%02x" : "\\u%04x", c);
	return len;
}

/*
 * Writes s into out, escaped and in at most width columns, of which the last is an ellipsis where
 * something is left out. Returns the columns that were used. size should be LETTERS_TEXT_BYTES a
 * column and one more; with less, the text is cut earlier. A character counts as one column, which
 * wide ones are not.
 */
size_t
letters_text_fit(char *out, size_t size, const char *s, size_t width)
{
	size_t left = strlen(s), used = 0, len = 0, columns, n, safe = 0, safe_used = 0;
	char piece[PIECE_MAX];

	out[0] = '\0';
	while (left > 0) {
		n = next_piece(s, left, piece, &columns);
		if (used + columns > width || len + strlen(piece) + sizeof("…") > size) {
			if (safe_used < width && safe + sizeof("…") <= size) {
				strcpy(out + safe, "…");
				return safe_used + 1;
			}
			out[safe] = '\0';
			return safe_used;
		}
		len = (size_t)(stpcpy(out + len, piece) - out);
		used += columns;
		/* As far as this the text may go and still have room for an ellipsis. */
		if (used < width) {
			safe = len;
			safe_used = used;
		}
		s += n;
		left -= n;
	}
	return used;
}
