/*
 * A job: everything that the phases of one run share. Plain data, the same on all ranks but for
 * what the engine does.
 */
#ifndef MGR_ENGINE_JOB_H
#define MGR_ENGINE_JOB_H

#include <stdbool.h>
#include <stdint.h>

#include "form/occupant.h"
#include "form/source.h"
#include "form/target.h"
#include "io/file.h"
#include "mgr/config.h"
#include "mgr/layout.h"
#include "mgr/plan.h"
#include "mgr/upcycle.h"
#include "par/comm.h"
#include "par/places.h"

/* One side of a rewrite. */
typedef struct mgr_side {
    mgr_catalogue cat;
    mgr_tensors tensors;
    mgr_layout layout;
} mgr_side;

/* One of several sources. The job's own source is all of them joined, its format, files and state
 * are the first one's. */
typedef struct mgr_branch {
    const mgr_source_format *format;
    mgr_source_files files; /* strings in the job's arena */
    void *state;
    mgr_side side;
    uint32_t first_file, first_record; /* in the joined catalogue */
    size_t manifest_records;           /* as the job has it, of this one alone */
} mgr_branch;

/* What a run did, for the summary; byte and second counts are of this rank until they are summed.
 */
typedef struct mgr_tally {
    uint64_t bytes_read, bytes_written;
    uint64_t calls_read, calls_written;      /* of the weights */
    uint64_t records_checked, records_total; /* of the source, by CRC-32 */
    double seconds_find, seconds_plan, seconds_sums, seconds_write, seconds_sync, seconds_publish;
    double seconds_proof; /* within these, before publishing: checksums and journal */
    uint64_t peak_rss;    /* of the largest rank */
} mgr_tally;

/* What a rank did, for the ledger's timeline. */
typedef enum mgr_phase {
    MGR_PHASE_FIND,
    MGR_PHASE_PLAN,
    MGR_PHASE_SUMS,
    MGR_PHASE_WRITE,
    MGR_PHASE_SYNC,
    MGR_PHASE_SETTLE,
    MGR_PHASE_COUNT
} mgr_phase;

typedef struct mgr_event {
    mgr_phase phase;
    uint32_t group;    /* MGR_NONE outside of groups */
    double start, end; /* mgr_now's seconds */
    uint64_t bytes_read, bytes_written;
} mgr_event;

/* Mean and standard deviation, in float32 as they were used. */
typedef struct mgr_moment {
    float mean, std;
} mgr_moment;

typedef struct mgr_job {
    mgr_config config;
    mgr_comm *comm;
    uint32_t rank, ranks;
    uint32_t plan_ranks; /* that the plan is for: `ranks`, but for a dry run that asks otherwise */
    mgr_places places;   /* of these ranks; without nodes where a dry run is not told them */
    uint64_t unit_min;   /* as mgr_plan_request has it */
    uint32_t io_threads; /* the same, of every rank */
    bool io_threads_found; /* and not asked for: where they cannot be had the run does without */

    char id[17];              /* of the configuration, as far as it says what comes out */
    uint64_t memory;          /* of this rank, for the plan's buffers */
    uint64_t memory_expected; /* that a rank takes at most, all in all, as far as can be known */
    bool complete;            /* there was nothing to do */

    const mgr_source_format *source_format; /* NULL for mgr-synth */
    const mgr_target_format *target_format;
    mgr_source_files source_files; /* strings in arena */
    void *source_state;
    mgr_arena arena;

    const mgr_method *method; /* NULL without upcycling */
    mgr_recipe recipe;        /* of the experts; of none without upcycling */
    mgr_router_recipe router;
    uint32_t joined;         /* experts of a mixture that are side by side in a dense FFN; else 0 */
    uint64_t joined_width;   /* neurons of all of them */
    float joined_weight;     /* what their columns of down are multiplied by */
    uint32_t shared_width;   /* neurons of the shared expert that is made, the FFN's first; or 0 */
    uint32_t *shared_origin; /* [shared_width]; NULL of the whole FFN */
    mgr_buf lists;           /* what run/lists_file.h reads; else empty */
    uint32_t *layers_from;   /* of each layer of the target that of the source; NULL: the same */
    uint32_t n_layers;       /* of them */
    mgr_catalogue router_file; /* of 'router: file'; else empty */
    uint32_t *router_of_layer; /* its tensors by layer; NULL without one */
    uint64_t synth_seed;
    bool sparse; /* of mgr-synth: no weight is written */
    /* MGR_OP_GIVEN: rows row .. row+n-1 of a target tensor, in its type, into `out`. Local. */
    int (*give)(void *context, uint32_t tensor, uint64_t row, uint64_t n, void *out, mgr_err *err);
    void *give_context;
    float init_std, init_output_std; /* of MGR_OP_INIT: and of the outputs of attention and FFN */

    mgr_side source, target;
    mgr_branch *branches; /* NULL of one source */
    uint32_t n_branches;
    size_t manifest_records; /* records of the source from here on are its manifest's word */
    void *target_state;
    struct mgr_found *found;        /* --verify: the output that `target` is compared with */
    mgr_origin origin;              /* of the target: the source */
    mgr_remarks remarks;            /* rank 0 */
    size_t planned_remarks;         /* those of the plan; others are of what was read */
    const mgr_container *container; /* of the target's files */
    mgr_define *defines;
    mgr_plan plan;
    bool moments;
    bool redraw_centred; /* what is drawn anew has mean 0, not that of what it replaces */
    float redraw_std;    /* and this std; 0: that of what it replaces */

    uint32_t *stored_crc;    /* per stored tensor of the target; rank 0, after the engine */
    uint32_t *file_crc;      /* per file of the target; rank 0 */
    char (*file_sha256)[65]; /* the same, as text; NULL unless asked for */

    /* for the ledger; filled on rank 0 after the engine, but for the events */
    uint32_t *tensor_crc;      /* per logical tensor of the target, row-major; experts at least */
    mgr_moment *target_moment; /* per logical tensor of the target: what its draws came from */
    mgr_moment *source_moment; /* per logical tensor of the source: FFN matrices, all of it */
    mgr_event *events;         /* of this rank */
    size_t n_events, cap_events;
    double start; /* when all ranks began, about the same moment */

    mgr_tally tally;
    mgr_occupant replaced; /* by the output, on rank 0; without a kind nothing */
    mgr_room room;         /* what is known of quotas; rank 0 */
} mgr_job;

/* What down of the shared expert that is made is multiplied by: a gate of zeros counts 1/2. */
static inline float mgr_shared_scale(const mgr_job *job)
{
    return (job->target.tensors.model.shared_switch ? 2.0f : 1) * job->recipe.part;
}

#endif
