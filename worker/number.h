#ifndef WORKER_NUMBER_H
#define WORKER_NUMBER_H

#include <stdint.h>

enum number_result {
	NUMBER_NONE,      /* no number as JSON spells them */
	NUMBER_FITS,      /* one that numeric, and so jsonb, can hold */
	NUMBER_TOO_LARGE, /* one that it cannot */
};

enum number_result number_scan(const uint8_t **, const uint8_t *);

#endif
