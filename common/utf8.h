#ifndef COMMON_UTF8_H
#define COMMON_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

size_t utf8_sequence(const uint8_t *, size_t);
bool utf8_valid(const uint8_t *, size_t, size_t *);

#endif
