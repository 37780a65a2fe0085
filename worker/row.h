#ifndef WORKER_ROW_H
#define WORKER_ROW_H

#include "buffer.h"
#include "message.h"
#include "payload.h"

/* "2026-11-22 17:03:01.123456+00" */
#define ROW_TIME_SIZE 29

int row_append(struct buffer *, const struct record *, enum payload_kind);
int row_append_escaped(struct buffer *, const void *, size_t);
void row_format_time(char[ROW_TIME_SIZE], int64_t);

#endif
