/*
 * Which cores a process may run on, and how many of them are its own where others share them: what
 * a launcher, a batch system or taskset left it.
 *
 *     mgr_cores mine;
 *     mgr_cores_ask(&mine);           then everyone's, in one list, by whatever means
 *     mgr_cores_each(all, n);         2 or more: each of them has a core to spare
 */
#ifndef MGR_IO_CORES_H
#define MGR_IO_CORES_H

#include <stddef.h>
#include <stdint.h>

#define MGR_CORES_WORDS 32

typedef struct mgr_cores {
    uint64_t host;                  /* equal on equal hosts */
    uint64_t mask[MGR_CORES_WORDS]; /* a bit for each core; none where that is unknown */
    uint32_t
        quota; /* cores that its control group may use at a time, as containers have it; 0: any */
} mgr_cores;

/* Of this process. Local. */
void mgr_cores_ask(mgr_cores *out);

/* Cores of a line of a control group's cpu.max, "QUOTA PERIOD" in microseconds, at least 1; 0 of
 * "max PERIOD", and of what is no such line. Pure. */
uint32_t mgr_cores_quota(const char *line);

/* Whole cores for each of these processes: the least over all of them of its cores, no more than
 * its quota, by the processes of its host that may run on one of them, too. 0 where one does not
 * know its own. Pure. */
uint32_t mgr_cores_each(const mgr_cores *all, size_t n);

#endif
