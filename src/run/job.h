/*
 * A job: everything that the phases of one run share. Plain data, the same on all ranks but for
 * what the engine does.
 */
#ifndef MGR_RUN_JOB_H
#define MGR_RUN_JOB_H

#include <stdbool.h>
#include <stdint.h>

#include "mgr/config.h"
#include "mgr/layout.h"
#include "mgr/plan.h"
#include "mgr/upcycle.h"
#include "par/comm.h"
#include "run/source.h"
#include "run/target.h"

/* One side of a rewrite. */
typedef struct mgr_side {
    mgr_catalogue cat;
    mgr_tensors tensors;
    mgr_layout layout;
} mgr_side;

/* What a run did, for the summary; byte and second counts are of this rank until they are summed.
 */
typedef struct mgr_tally {
    uint64_t bytes_read, bytes_written;
    uint64_t records_checked, records_total; /* of the source, by CRC-32 */
    double seconds_find, seconds_plan, seconds_sums, seconds_write, seconds_sync, seconds_publish;
    uint64_t peak_rss; /* of the largest rank */
} mgr_tally;

typedef struct mgr_job {
    mgr_config config;
    mgr_comm *comm;
    uint32_t rank, ranks;

    const mgr_source_format *source_format; /* NULL for mgr-synth */
    const mgr_target_format *target_format;
    mgr_source_files source_files; /* strings in arena */
    void *source_state;
    mgr_arena arena;

    const mgr_method *method; /* NULL without upcycling */
    mgr_router router;
    bool independent; /* index_sets */
    uint32_t n_selected;
    uint64_t synth_seed;

    mgr_side source, target;
    void *target_state;
    mgr_define *defines;
    mgr_plan plan;
    bool moments;

    uint32_t *stored_crc; /* per stored tensor of the target; rank 0, after the engine */
    uint32_t *file_crc;   /* per file of the target; rank 0 */
    mgr_tally tally;
} mgr_job;

#endif
