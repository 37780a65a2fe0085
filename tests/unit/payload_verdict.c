/*
 * Asks payload.c from outside: payloads on standard input, each behind its length (32 bits in the
 * machine's order), verdicts on standard output, a line each: json, text, null, or dead and the
 * reason. For tests/system/test_payload_against_jsonb.py.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "payload.h"

int
main(void)
{
	static const char *const names[] = {"json", "text", "null", "dead"};
	struct payload_verdict v;
	uint8_t *payload;
	uint32_t n;

	while (fread(&n, sizeof(n), 1, stdin) == 1) {
		/* Of its very size, so that a sanitizer sees each byte read beyond it. */
		payload = malloc(n > 0 ? n : 1);
		if (payload == NULL || fread(payload, 1, n, stdin) != n)
			return 1;
		payload_judge(payload, n, &v);
		free(payload);
		printf("%s%s%s\n", names[v.kind], v.kind == PAYLOAD_DEAD ? " " : "",
		    v.kind == PAYLOAD_DEAD ? v.reason : "");
	}
	return 0;
}
