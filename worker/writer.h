#ifndef WORKER_WRITER_H
#define WORKER_WRITER_H

int writer_run(int fd);

#endif
