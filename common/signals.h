#ifndef COMMON_SIGNALS_H
#define COMMON_SIGNALS_H

int signals_open(const int *, int);
int signals_next(int);
void signals_reset_for_writer(void);
const char *signals_name(int);

#endif
