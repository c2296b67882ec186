/*
 * Measurements of one run on one machine: what mgr-bench prints. Rates are of this machine and this
 * moment; the ratios are what may be quoted.
 */
#ifndef MGR_CLI_BENCH_H
#define MGR_CLI_BENCH_H

#include <stdint.h>

#include "mgr/err.h"
#include "par/comm.h"

typedef struct mgr_bench_options {
    const char *scratch;   /* an existing directory on the file system to measure */
    uint64_t output_bytes; /* about what the end-to-end run writes */
    uint64_t rounds;       /* floor and end-to-end in turn, this often */
} mgr_bench_options;

/* Kernel rates on one core, one line per CPU path and kernel, to stdout. Local; call on one rank.
 */
int mgr_bench_kernels(mgr_err *err) MGR_NODISCARD;

/* Of each kind of run, in turn and `rounds` times: the floor, and a whole run; prints the rates of
 * both, the ratio of each round, and its median. Upcycling is held against plain 8 MiB pwrites of
 * the same number of bytes by the same ranks, each to a file of its own, with fsync; resharding a
 * mixture of experts against copying as many bytes in the same way. Everything it makes below
 * `scratch` is removed. Collective.
 *
 * Behind upcycling, what it wrote is read back, each time dropped from the page cache before
 * (posix_fadvise): plainly in 8 MiB pieces, by mgr-verify, and by --verify, which is held against
 * the run; and the share of the run's time that went into checksums, journal and reading back is
 * told. */
int mgr_bench_end_to_end(mgr_comm *comm, const mgr_bench_options *options,
                         mgr_err *err) MGR_NODISCARD;

#endif
