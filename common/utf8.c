/*
 * UTF-8 as RFC 3629 and PostgreSQL (pg_utf8_islegal) define it: no overlong forms, no surrogates,
 * nothing above U+10FFFF.
 *
 * By hand because json-c's check lets surrogates and U+110000 pass, which PostgreSQL refuses
 * (tried), and a refused row would hold up its lane.
 */
#include "utf8.h"

#include <string.h>

/* Length in bytes of the sequence that starts at p, 0 if it is none; n > 0 bytes may be read. */
size_t
utf8_sequence(const uint8_t *p, size_t n)
{
	uint8_t low = 0x80, high = 0xbf;
	size_t len, i;

	if (p[0] < 0x80)
		return 1;
	if (p[0] >= 0xc2 && p[0] <= 0xdf)
		len = 2;
	else if (p[0] >= 0xe0 && p[0] <= 0xef)
		len = 3;
	else if (p[0] >= 0xf0 && p[0] <= 0xf4)
		len = 4;
	else
		return 0;
	if (n < len)
		return 0;
	switch (p[0]) {
	case 0xe0:
		low = 0xa0;
		break;
	case 0xed:
		high = 0x9f;
		break;
	case 0xf0:
		low = 0x90;
		break;
	case 0xf4:
		high = 0x8f;
		break;
	}
	if (p[1] < low || p[1] > high)
		return 0;
	for (i = 2; i < len; i++) {
		if ((p[i] & 0xc0) != 0x80)
			return 0;
	}
	return len;
}

/* True if all n bytes are UTF-8; else *bad is the offset of the first that is not. */
bool
utf8_valid(const uint8_t *p, size_t n, size_t *bad)
{
	size_t i = 0, len;
	uint64_t word;

	while (i < n) {
		/* Nearly all payloads are ASCII: eight bytes at a time. */
		if (n - i >= sizeof(word)) {
			memcpy(&word, p + i, sizeof(word));
			if ((word & UINT64_C(0x8080808080808080)) == 0) {
				i += sizeof(word);
				continue;
			}
		}
		len = utf8_sequence(p + i, n - i);
		if (len == 0) {
			*bad = i;
			return false;
		}
		i += len;
	}
	return true;
}
