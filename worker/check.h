#ifndef WORKER_CHECK_H
#define WORKER_CHECK_H

#include <stdbool.h>

struct pg;
struct schema;
struct schema_missing;
struct trouble;

bool check_facts(
    const struct pg *, const struct schema *, struct schema_missing *, struct trouble *);
bool check_columns(const struct pg *, const struct schema *, struct trouble *);
bool check_rows_columns(const struct pg *, const struct schema *, struct trouble *);

#endif
