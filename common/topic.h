#ifndef COMMON_TOPIC_H
#define COMMON_TOPIC_H

const char *topic_filter_error(const char *);

#endif
