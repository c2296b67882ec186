/*
 * Measurements of one run on one machine: what mgr-bench prints. Rates are of this machine and this
 * moment; ratios are what may be quoted, those of processor seconds first: they stay what they are
 * where others use the machine, too.
 */
#ifndef MGR_CLI_BENCH_H
#define MGR_CLI_BENCH_H

#include <stdbool.h>
#include <stdint.h>

#include <jansson.h>

#include "core/str.h"
#include "mgr/err.h"
#include "par/comm.h"

#define MGR_BENCH_BLOCK ((uint64_t)8 << 20)
#define MGR_BENCH_MAX_ROUNDS 16
/* What --only takes, for people. */
#define MGR_BENCH_NAMES                                                                            \
    "kernels, reading, drop, drop-threads, drop-all, naive, reshard, huggingface, "                \
    "megatron-torch, megatron-dist, deepspeed, hdf5, hdf5-deflate"

typedef struct mgr_bench_options {
    const char *scratch;   /* an existing directory on the file system to measure */
    const char *only;      /* names of what is measured, with commas between; NULL: all */
    uint64_t output_bytes; /* about what the end-to-end run writes */
    uint64_t rounds;       /* floor and end-to-end in turn, this often */
    bool json;             /* one object in the end, and nothing else */
} mgr_bench_options;

/* All that the options ask for: the kernels on one core, on each CPU path; then, of each kind of
 * run and `rounds` times, in alternating order, the floors and a whole run; then what it takes to
 * read back what the first kind wrote. Everything that is made below `scratch` is removed.
 * Collective. */
int mgr_bench(mgr_comm *comm, const mgr_bench_options *options, mgr_err *err) MGR_NODISCARD;

/* --- between the files of it --- */

/* What something took: seconds on the clock, and processor seconds of all ranks together. */
typedef struct mgr_bench_cost {
    double seconds, user, system;
} mgr_bench_cost;

/* The files of an output, one stretch of bytes behind the other. */
typedef struct mgr_bench_files {
    mgr_arena arena; /* of the paths, and of these: */
    const char **paths;
    uint64_t *sizes;
    size_t n;
    uint64_t bytes; /* of all */
} mgr_bench_files;

/* What a contest works with. */
typedef struct mgr_benched {
    mgr_comm *comm;
    const mgr_bench_options *options;
    char source[512], target[512], config[512], plain[512];
    mgr_bench_files files; /* of the target, as they were last listed */
    json_t *report;        /* rank 0; else NULL */
} mgr_benched;

/* Those of `names` with `before` before them; folders, which end in a slash, are left out. Clear
 * files->arena, also after an error. Local. */
int mgr_bench_list(mgr_bench_files *files, const char *before, const char *const *names, size_t n,
                   mgr_err *err) MGR_NODISCARD;

/* Is it asked for? */
bool mgr_bench_wants(const mgr_bench_options *options, const char *name);

typedef int (*mgr_bench_work)(const mgr_benched *b, void *context, mgr_err *err);

/* What `work` takes, from when all ranks are there until the last one is done. Collective. */
int mgr_bench_cost_of(const mgr_benched *b, mgr_bench_work work, void *context,
                      mgr_bench_cost *cost, mgr_err *err) MGR_NODISCARD;

/* For qsort, of doubles. */
int mgr_bench_by_size(const void *x, const void *y);

/* Kernel rates on one core, to stdout unless JSON is asked for, and to the report. Local; on one
 * rank. */
int mgr_bench_kernels(const mgr_benched *b, mgr_err *err) MGR_NODISCARD;

/* --- floors --- */

/* The ways to bring `files` to the disk, with nothing in mind but speed. */
enum { MGR_BENCH_PLAIN, MGR_BENCH_WRITEBACK, MGR_BENCH_RESERVED, MGR_BENCH_WAYS };
const char *mgr_bench_way_name(int way);

/* What a floor moves: bytes out of memory, or those of the source's files. */
typedef struct mgr_bench_floor {
    bool copies;
    unsigned char *buffer; /* larger than the last cache; its blocks are written in turn */
    uint64_t buffer_bytes;
    mgr_bench_files source; /* for copies */
} mgr_bench_floor;

int mgr_bench_floor_init(const mgr_benched *b, mgr_bench_floor *floor, bool copies,
                         mgr_err *err) MGR_NODISCARD;
void mgr_bench_floor_clear(mgr_bench_floor *floor);

/* All ranks write as many files of the same sizes as a run does, each its share of the bytes, with
 * the product's own calls, until they are durable; then they are removed, which is not counted.
 * Collective. */
int mgr_bench_floor_cost(const mgr_benched *b, const mgr_bench_floor *floor, int way,
                         mgr_bench_cost *cost, mgr_err *err) MGR_NODISCARD;

/* --- reading back --- */

/* What a run wrote is read back, each time dropped from the page cache before (posix_fadvise):
 * plainly in 8 MiB pieces, by mgr-verify, and by --verify, which is held against the run; and the
 * share of the run's time that went into checksums, journal and reading back is told. Collective.
 */
int mgr_bench_reading(mgr_benched *b, mgr_err *err) MGR_NODISCARD;

/* A whole run, whose output stays. For mgr_bench_work; `tally` is an mgr_tally, or NULL. */
int mgr_bench_run(const mgr_benched *b, void *tally, mgr_err *err);
/* What a run left, into b->files; and remove it. Collective. */
int mgr_bench_list_target(mgr_benched *b, mgr_err *err) MGR_NODISCARD;
int mgr_bench_remove_target(const mgr_benched *b, mgr_err *err) MGR_NODISCARD;

#endif
