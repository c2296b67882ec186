/*
 * The plan: which rows of which tensors are one unit of work, and which rank does it.
 *
 * A unit is a block of rows of the logical tensors of one bundle. It is read, turned into every
 * target tensor that is defined by it, and written, all by one rank; no unit needs another one's
 * data. The plan is a pure function of layouts, definitions, rank count, order of ranks and memory;
 * what is written does not depend on it.
 */
#ifndef MGR_PLAN_H
#define MGR_PLAN_H

#include <stdbool.h>
#include <stdint.h>

#include "mgr/err.h"
#include "mgr/layout.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Extents of 4 MiB and more keep a parallel file system busy. Buffers and the largest unit are
 * multiples of this size, so that a test with little data can have units and buffers that are cut
 * as those of a large model are. */
#define MGR_UNIT_MIN ((uint64_t)4 << 20)

/* How a target tensor is made. */
typedef enum mgr_op {
    MGR_OP_COPY,    /* element by element from `source`, cast once if the types differ */
    MGR_OP_AVERAGE, /* the mean of `source` and of the same tensor of all other sources */
    MGR_OP_EXPERT,  /* by the upcycling method from the dense `source` */
    MGR_OP_MOMENT,  /* the same of a moment of Adam's: zeros for what is drawn anew */
    MGR_OP_JOINED,  /* the same, and the columns of experts that stand side by side are scaled */
    MGR_OP_SHARED,  /* a shared expert's of the dense `source` */
    MGR_OP_ROWS,    /* rows of `source`, each for the experts that are made of its expert */
    MGR_OP_ROUTER,  /* by the router init */
    MGR_OP_ZERO,    /* zeros: a bias that training starts anew */
    MGR_OP_INIT,    /* as training from scratch starts: norms 1, all else drawn */
    MGR_OP_SYNTH,   /* N(0, std^2) by logical coordinate: mgr-synth */
    MGR_OP_GIVEN    /* by whoever asked for the output, rows at a time: libmgr */
} mgr_op;

typedef struct mgr_define {
    mgr_op op;
    uint32_t source; /* source tensor; MGR_NONE for generated ones */
} mgr_define;

/* In the place of a piece's target: experts are made of these rows by gathered pieces. */
#define MGR_GATHERED (MGR_NONE - 1)

/* Rows row .. row+rows-1 of a source tensor, or of a generated target tensor; or, with both, rows
 * of a target tensor that are gathered from wherever in the source tensor their origins lie. */
typedef struct mgr_piece {
    uint32_t source; /* MGR_NONE if generated */
    uint32_t target; /* of a generated or gathered piece, else MGR_NONE or MGR_GATHERED */
    uint64_t row, rows;
} mgr_piece;

typedef struct mgr_plan_request {
    const mgr_layout *source; /* NULL if everything is generated */
    const mgr_layout *target;
    const mgr_define *defines; /* one per target tensor */
    uint32_t ranks;
    /* [ranks]: the rank that takes the first part of the work, the second, ..., so that those of
     * one node have neighbours, which share files; NULL: rank 0, 1, ... */
    const uint32_t *order;
    bool moments; /* the method needs per-neuron sums before any expert can be made */
    /* FFNs that the experts of a layer are made of, a mixture's or several sources', and their
     * neurons; 0: one, the dense FFN of the model */
    uint64_t ffns, neurons;
    bool shuffle;             /* expert rows come from anywhere in the dense matrix */
    uint64_t selection_bytes; /* that a rank keeps for the experts of one layer */
    uint64_t memory;          /* bytes a rank may use for buffers and the above */
    /* What is there already: the first piece of each such unit, in mgr_piece_order, no row twice.
     * Units end where these do, so that a unit is done or is not. */
    const mgr_piece *done;
    size_t n_done;
    uint64_t unit_min;   /* bytes of the smallest unit; 0: MGR_UNIT_MIN */
    uint32_t io_threads; /* of a rank, that write while it makes what comes next */
} mgr_plan_request;

typedef struct mgr_unit {
    uint32_t piece, n_pieces; /* range of pieces */
    uint32_t rank;
    uint32_t layer; /* MGR_NONE outside of layers */
    uint64_t in_bytes, out_bytes;
    bool done; /* written before; read again only where a group of unfinished units needs sums */
    bool gathered; /* its one piece is */
} mgr_unit;

/* Units that are dealt over all ranks together. With moments, the sums of layers layer ..
 * layer+n_layers-1 are added up over the ranks before anything of the group is written. */
typedef struct mgr_group {
    uint32_t unit, n_units;
    uint32_t layer, n_layers; /* n_layers 0: no moments */
} mgr_group;

typedef struct mgr_plan {
    mgr_piece *pieces;
    mgr_unit *units;
    mgr_group *groups;
    size_t n_pieces, n_units, n_groups, cap_pieces, cap_units, cap_groups;
    uint32_t *targets;      /* target tensors made from a source tensor ... */
    uint32_t *first_target; /* ... those of source i are targets[first_target[i]..[i+1]) */
    uint32_t ranks;
    uint32_t io_threads; /* with any a second unit's room; for each an output and a read buffer */
    uint64_t total_in, total_out; /* bytes of all units */
    uint64_t done_in, done_out;   /* of those that are done */
    uint64_t max_rank_bytes;      /* of the busiest rank, read and written, without what is done */
    uint64_t unit_bytes;          /* the largest unit's input */
    uint64_t chunk_bytes;         /* of the output buffer and of the read buffer, each */
    uint64_t cache_bytes;         /* to keep units between the sums and the writing */
    uint64_t sums_bytes;          /* of the largest group */
    uint64_t memory_bytes;        /* all of these and the selection: the proof */
} mgr_plan;

/* Make the plan. Errors: MGR_ERR_CONFIG if `memory` cannot suffice, naming what would. Pure but for
 * allocation; free with mgr_plan_clear. Local. */
int mgr_plan_make(mgr_plan *plan, const mgr_plan_request *request, mgr_err *err) MGR_NODISCARD;
void mgr_plan_clear(mgr_plan *plan);

/* Is a target tensor made by the map of an expert, whose neurons may come from anywhere? Pure. */
static inline bool mgr_op_by_map(mgr_op op)
{
    return op == MGR_OP_EXPERT || op == MGR_OP_MOMENT;
}

/* Does a piece of a source tensor give what is made of it by `op`, or do gathered pieces? Pure. */
static inline bool mgr_piece_gives(const mgr_piece *piece, mgr_op op)
{
    return piece->target != MGR_GATHERED || !mgr_op_by_map(op);
}

/* For qsort: by tensor, then by row. Pure. */
int mgr_piece_order(const void *a, const void *b);

#ifdef __cplusplus
}
#endif
#endif
