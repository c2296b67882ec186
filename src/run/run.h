/*
 * A whole run, phase by phase: what the programs call.
 */
#ifndef MGR_RUN_RUN_H
#define MGR_RUN_RUN_H

#include <stdbool.h>
#include <stddef.h>

#include "core/str.h"
#include "engine/job.h"
#include "io/cores.h"
#include "mgr/err.h"
#include "mgr/model.h"
#include "par/comm.h"

/* How the output comes to be. */
typedef struct mgr_write_options {
    bool dry_run;    /* stop when the plan has been checked against the file system */
    bool force;      /* replace an existing target, remove a leftover of a stopped run */
    bool resume;     /* continue such a leftover */
    bool discard;    /* after a failure leave nothing, not even what could be continued */
    bool quiet;      /* print errors only */
    double progress; /* seconds between progress lines, 0 for none */
    double journal;  /* seconds between journal blocks, 0: one after each unit, -1: no journal */
} mgr_write_options;

#define MGR_JOURNAL_SECONDS 20.0

typedef struct mgr_run_options {
    const char *config_path;
    const char *const *sets; /* "key=value" */
    size_t n_sets;
    int verbosity;       /* -1 quiet, 0, 1 verbose */
    uint64_t plan_ranks; /* of a dry run: plan for so many ranks, 0: for those that run */
    uint64_t plan_each;  /* ... of which so many are on a node, 0: not stated */
    uint64_t bandwidth;  /* of a dry run: bytes a second of all ranks together, 0: not stated */
    bool measure;        /* of a dry run: measure it */
    uint64_t unit_min;   /* bytes of the smallest unit of work, 0: as it is best */
    bool json;           /* mgr_run_verify: print JSON */
    mgr_write_options write;
} mgr_run_options;

/* mgr-upcycle: read the configuration, find and describe the source, plan, write, publish; rank 0
 * prints the plan before and a summary behind. After a failure the target is as it was, the staging
 * directory is there only if --resume can continue it, and all ranks return the same error. *tally
 * is the sum over the ranks (rank 0). Collective. */
int mgr_run_upcycle(mgr_comm *comm, const mgr_run_options *options, mgr_tally *tally,
                    mgr_err *err) MGR_NODISCARD;

/* mgr-upcycle --verify: everything of a run but the writing: what it makes is compared with the
 * output that is there. *good tells whether nothing differs, on all ranks; rank 0 prints what does.
 * Collective. */
int mgr_run_verify(mgr_comm *comm, const mgr_run_options *options, bool *good, mgr_tally *tally,
                   mgr_err *err) MGR_NODISCARD;

/* mgr-synth: a checkpoint of `model` at `out`, values by seed and logical coordinate. Collective.
 */
typedef struct mgr_synth_options {
    const char *out;
    mgr_model model;
    mgr_dtype dtype;
    uint64_t tensor_parallel, pipeline_parallel, virtual_pipeline, vocab_divisor, seed;
    uint64_t expert_parallel, expert_tensor_parallel; /* as in the configuration */
    const char *format;                               /* a registered target format */
    const char *class;     /* model_type, or NULL: whichever computes the model */
    const char *names;     /* as target.names of the configuration */
    const char *dist_keys; /* as target.dist_keys */
    bool force;
    bool sparse; /* headers alone: all weights are zeros, which take no room */
    int verbosity;
} mgr_synth_options;

int mgr_run_synth(mgr_comm *comm, const mgr_synth_options *options, mgr_err *err) MGR_NODISCARD;

/* --- phases, shared by these --- */

/* From the configuration to the plan, which rank 0 prints; job->comm, and for --verify job->found,
 * are set. Collective. */
int mgr_run_begin(mgr_job *job, const mgr_run_options *options, mgr_err *err) MGR_NODISCARD;

/* Agree on `local`, the outcome of work that only rank 0 does. Collective. */
int mgr_agree_root(mgr_job *job, int local, mgr_err *err);

/* Is `io_threads` what it may be? Errors: MGR_ERR_CONFIG, by its place. Pure. */
int mgr_io_threads_check(const mgr_config *config, mgr_err *err) MGR_NODISCARD;

/* Set job->io_threads, given the cores of each rank: the same on all ranks. Auto is one where each
 * rank has a core to spare. Pure. */
void mgr_io_threads_choose(mgr_job *job, const mgr_cores *cores, size_t n);

/* There is no memory for their buffers: none, if they were not asked for; else false. Pure. */
bool mgr_io_threads_give_up(mgr_job *job);

/* Lay out the target and make the plan; source and defines are set. Local. */
int mgr_run_plan(mgr_job *job, uint64_t baseline, mgr_err *err) MGR_NODISCARD;

/* The plan again, for what is left beside `done` (mgr_plan_request). Local. */
int mgr_run_replan(mgr_job *job, const mgr_piece *done, size_t n_done, mgr_err *err) MGR_NODISCARD;

/* Everything that writes: staging, engine, checksums, sidecars, publishing. A dry run ends when the
 * plan has been checked against the file system; --resume ends with job->complete where the output
 * is there already. Collective. */
int mgr_run_write(mgr_job *job, const char *out, const mgr_write_options *options,
                  mgr_err *err) MGR_NODISCARD;

/* Peak memory and counters of all ranks into job->tally (rank 0). Collective. */
int mgr_run_tally(mgr_job *job, mgr_err *err) MGR_NODISCARD;

/* Free what the source's format keeps while headers are read. Local. */
void mgr_forget_source(mgr_job *job);

void mgr_job_clear(mgr_job *job);

/* Bytes of the target's files and the ledger, but for the small ones beside them. Local. */
uint64_t mgr_run_output_bytes(const mgr_job *job);

/* For people, to stdout, on rank 0. */
void mgr_print_plan(const mgr_job *job);
void mgr_print_config(const mgr_job *job);
/* The same for programs (core/say_run.h). */
void mgr_say_plan(const mgr_job *job);
void mgr_say_done(const mgr_job *job, const mgr_run_options *options);

void mgr_print_summary(mgr_job *job, const mgr_run_options *options);
/* The page of a dry run: what there will be, and what it needs. */
void mgr_print_page(mgr_job *job, const mgr_run_options *options);
void mgr_print_others(const char *others); /* leftovers of other configurations */
void mgr_print_synth(const mgr_job *job, const char *out);

#endif
