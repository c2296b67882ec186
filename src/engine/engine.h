/*
 * The engine: reads a unit's rows, makes target rows of them, writes these. Only row blocks pass
 * through it; formats and methods are boxes and functions to it.
 */
#ifndef MGR_ENGINE_ENGINE_H
#define MGR_ENGINE_ENGINE_H

#include <assert.h>

#include "engine/extents.h"
#include "engine/job.h"
#include "engine/write_behind.h"

/* What an extent is about beyond stored tensors: notes for the ledger, which so take the way of the
 * extents through journal and gathering. With n stored tensors, t logical target tensors:
 * n + i: rows of target tensor i, row-major, for a tensor that is not one stored one;
 * n + t + i: the moments of target tensor i, as bits in `offset` (mean) and `bytes` (std).
 * Behind 2 t of these come blocks of s source tensors: moments; stretches of rows that are all
 * zeros; elements (`offset`) that are not finite, the first of each piece. */
typedef enum mgr_note {
    MGR_NOTE_ROWS,
    MGR_NOTE_TARGET_MOMENT,
    MGR_NOTE_SOURCE_MOMENT,
    MGR_NOTE_SOURCE_ZERO,
    MGR_NOTE_SOURCE_NOT_FINITE
} mgr_note;

uint32_t mgr_note_what(const mgr_job *job, mgr_note note, uint32_t tensor);

/* Is target tensor `tensor` one stored tensor, whole? Then its bytes are that one's. Pure. */
bool mgr_is_whole(const mgr_layout *target, uint32_t tensor);

typedef struct mgr_progress mgr_progress;

/* A stretch of a stored tensor's bytes, made. */
typedef struct mgr_stretch {
    uint32_t stored; /* of the target's catalogue */
    uint64_t offset; /* in its file */
    const void *bytes;
    size_t len;
} mgr_stretch;

/* Takes what the engine makes in the place of a new output's files. Local. */
typedef struct mgr_sink {
    int (*put)(void *context, const mgr_stretch *stretch, mgr_err *err);
    void *context;
} mgr_sink;

/* What has been placed of the unit that is read. Every place exactly once gives the unit's bytes n
 * and n(n-1)/2 as the sum of the places: a byte too many and one too few cannot make up for each
 * other. */
typedef struct mgr_placed {
    const unsigned char *unit; /* its first byte in memory */
    uint64_t limit;            /* its size */
    uint64_t bytes, places, compared;
} mgr_placed;

/* The checksum of bytes that were read and are still where they were put: what several tensors get
 * as it is, or one that was checked when it was read, is not summed again. */
typedef struct mgr_known_crc {
    const unsigned char *bytes;
    size_t len;
    uint32_t crc32;
} mgr_known_crc;

#define MGR_KNOWN_CRCS 32

/* Buffers of one size that take turns, where others write behind: one is filled while what is in
 * the others is being written. `at` is the one at hand, of which nothing is. */
#define MGR_MOST_TURNS (MGR_MOST_WRITERS + 1)
typedef struct mgr_turns {
    unsigned char *at, *all[MGR_MOST_TURNS];
    uint32_t n, now;
    uint64_t bytes;
} mgr_turns;

typedef struct mgr_engine {
    mgr_job *job;
    mgr_open_files read_files, write_files;
    const mgr_sink *sink;        /* NULL: write_files */
    mgr_write_behind *behind;    /* NULL: this thread writes them */
    mgr_turns unit, out, bounce; /* sizes as planned */
    unsigned char *cache;
    uint64_t cache_used;
    uint64_t *kept;  /* per unit of the group: offset in cache, UINT64_MAX if it is not there */
    mgr_sums *sums;  /* [layers of the group][matrix][F] */
    double *scratch; /* 2 F */
    struct mgr_selection *selection; /* experts of the layer at hand */
    struct mgr_read_item *items;
    size_t n_items, cap_items;
    mgr_placed placed;
    mgr_known_crc known[MGR_KNOWN_CRCS]; /* of `unit` and `cache`, which only reading changes */
    uint32_t n_known;                    /* that there ever were; the last ones are kept */
    mgr_extents read_extents, write_extents;
    mgr_progress *progress;
    void *fetchers[MGR_CONFIG_SOURCES]; /* the source formats', where bytes do not lie in their
                                           files as they are */
    struct mgr_journal *journal;
    uint32_t unit_idx; /* the unit at hand */
} mgr_engine;

typedef struct mgr_engine_options {
    const mgr_sink *sink;            /* NULL: tensors are written */
    const char *directory, *journal; /* where tensors are written; the journal's folder */
    uint32_t number;                 /* of this rank's file there */
    double seconds;                  /* between its blocks, -1 for no journal */
    mgr_progress *progress;          /* or NULL */
} mgr_engine_options;

/* Do all work of this rank that the plan does not call done, and make it durable and known to the
 * journal. *read and *written hold this rank's extents of what is done, and then of all. After a
 * failure the journal knows what was written until then. Collective. */
int mgr_engine_run(mgr_job *job, const mgr_engine_options *options, mgr_extents *read,
                   mgr_extents *written, mgr_err *err) MGR_NODISCARD;

/* Calls that read from sources and write weights, of all ranks, and the engine's collective ones;
 * what half of them move at least (in steps of an eighth of a power of two); and how often a file
 * is opened, by all ranks, for writing among them, and by the one that opens most. Of nodes, where
 * they are known, the same: there a file counts once, whoever of its ranks open it. */
typedef struct mgr_calls {
    uint64_t reads, writes, collective;
    uint64_t median_read, median_write;
    uint64_t opens, write_opens, most_opens;
    uint64_t node_files, most_node_files;
} mgr_calls;

/* Those that a whole run of this plan makes. Local. */
int mgr_engine_count(mgr_job *job, mgr_calls *out, mgr_err *err) MGR_NODISCARD;

/* Bytes that a selection of one layer's experts takes: for the plan. Pure. */
uint64_t mgr_selection_bytes(const mgr_job *job);

/* --- between the files of the engine --- */

/* `n` buffers, 1 to MGR_MOST_TURNS, of `bytes` bytes; also after a failure free with
 * mgr_turns_clear. Local. */
int mgr_turns_init(mgr_turns *turns, uint32_t n, uint64_t bytes, mgr_err *err) MGR_NODISCARD;
void mgr_turns_clear(mgr_turns *turns);
/* What was put into the one at hand stays there until it is written; on to the next, once what is
 * in that is written. Local. */
void mgr_turns_next(mgr_turns *turns, mgr_write_behind *behind);

/* Until all is written that was handed to threads: now their extents are known, and a unit of which
 * something was not written is pending again. Local. */
int mgr_engine_drain(mgr_engine *engine, mgr_err *err) MGR_NODISCARD;

/* Read all pieces of a unit, one behind the other, row-major in the source type; replicas are read
 * too and compared. Of a gathered unit, whose expert's `origin` is given, the rows that its rows
 * come from, in its order; of others it is NULL. `count` records extents for the CRC check (the
 * first reading only). Local. */
int mgr_engine_read(mgr_engine *engine, const mgr_unit *unit, const uint32_t *origin,
                    unsigned char *into, bool count, mgr_err *err) MGR_NODISCARD;

/* Write rows row .. row+n-1 of a target tensor, packed in the target type, into every box that has
 * a part of them. Local. */
int mgr_engine_write(mgr_engine *engine, uint32_t target, uint64_t row, uint64_t n,
                     const unsigned char *rows, mgr_err *err) MGR_NODISCARD;

/* Sums of one layer: of each FFN of the source that experts are made of, each matrix, each neuron.
 * Pure. */
size_t mgr_engine_layer_sums(const mgr_job *job);

/* Called for each read of a unit: of which file, and how many bytes. */
typedef void (*mgr_see_read)(void *context, uint32_t file, uint64_t bytes);

/* Which calls read a unit; `origin` as above. Local. */
int mgr_engine_see_reads(mgr_engine *engine, const mgr_unit *unit, const uint32_t *origin,
                         mgr_see_read see, void *context, mgr_err *err) MGR_NODISCARD;

/* Rows, or columns of a transposed box, that one call writes where `n` rows were handed over and
 * `inside` of them lie in the box. Pure. */
uint64_t mgr_engine_at_once(const mgr_job *job, const mgr_box *box, uint64_t n, uint64_t inside);

/* Neurons of an expert, from `row` on and at most `most`, whose origins are in the piece. Pure. */
uint32_t mgr_engine_run_of(const mgr_expert *expert, uint32_t row, uint32_t end, uint64_t most,
                           const mgr_piece *piece);

/* Are the expert's rows those of the source, bit for bit? Pure. */
bool mgr_engine_copies(const mgr_job *job, const mgr_expert *expert, uint32_t target,
                       uint32_t source);

/* A unit of `bytes` stays in a cache of `room` bytes, of which *used are taken. */
static inline void mgr_engine_keep(uint64_t *used, uint64_t bytes, uint64_t room)
{
    *used += (bytes + 63) & ~(uint64_t)63;
    if (*used > room)
        *used = room;
}

/* Add a unit's dense FFN rows to the sums. Local. */
int mgr_engine_sums(mgr_engine *engine, const mgr_group *group, const mgr_unit *unit,
                    const unsigned char *data, mgr_err *err) MGR_NODISCARD;

/* Write the mean of piece `p` of a unit and of the pieces that other sources have of it; `data` is
 * the unit's. Local. */
int mgr_engine_average(mgr_engine *engine, const mgr_unit *unit, uint32_t p, uint32_t target,
                       const unsigned char *data, mgr_err *err) MGR_NODISCARD;

/* CRC-32 of what was read or made; its time counts as the proof's. Local. */
uint32_t mgr_engine_crc(mgr_engine *engine, const void *bytes, size_t len);

/* Make every target tensor of a unit from its data. Local. */
int mgr_engine_make(mgr_engine *engine, const mgr_group *group, const mgr_unit *unit,
                    const unsigned char *data, mgr_err *err) MGR_NODISCARD;

/* Look at the values of a piece that was read: an error for what is not finite (unless that is
 * allowed: then a note) and for what a type of the target cannot hold; a note of zeros. Local. */
int mgr_engine_look(mgr_engine *engine, const mgr_piece *piece, const unsigned char *data,
                    mgr_err *err) MGR_NODISCARD;
/* MGR_ERR_FORMAT, with its place, if a value of the piece is not finite. Local. */
int mgr_engine_not_finite(const mgr_engine *engine, const mgr_piece *piece,
                          const unsigned char *data, mgr_err *err) MGR_NODISCARD;
/* The router of a layer: [experts, hidden] of type `to`, drawn or from its file. Local. */
int mgr_job_router(const mgr_job *job, uint32_t layer, void *out, mgr_dtype to,
                   mgr_err *err) MGR_NODISCARD;

/* Rows row .. row+n-1 of a mixture's router, made of a piece of it, are in the output buffer: the
 * second and later ones of each get their noise there. Nothing of another tensor. Local. */
void mgr_engine_add_noise(mgr_engine *engine, uint32_t target, const mgr_piece *piece,
                          const unsigned char *data, uint32_t row, uint32_t n);

/* Did the method draw what float16 cannot hold, in `rows` rows of the output buffer? Local. */
int mgr_engine_check_drawn(const mgr_engine *engine, uint32_t target, uint64_t rows,
                           mgr_err *err) MGR_NODISCARD;

/* What the notes among the sorted extents say of the source's values, as remarks. Local. */
int mgr_say_values(mgr_job *job, const mgr_extents *written, mgr_err *err) MGR_NODISCARD;

/* The layer of the source that a layer of the target is made of. */
static inline uint32_t mgr_layer_from(const mgr_job *job, uint32_t layer)
{
    return job->layers_from && layer != MGR_NONE ? job->layers_from[layer] : layer;
}

/* The matrices of an FFN are roles in a row. */
static inline mgr_matrix mgr_matrix_of(mgr_role role)
{
    assert(role >= MGR_ROLE_GATE && role <= MGR_ROLE_DOWN);
    return (mgr_matrix)(role - MGR_ROLE_GATE);
}

/* The matrix that a tensor of an expert belongs to: itself, or that of a bias. */
static inline mgr_matrix mgr_matrix_with(const mgr_tensor *t)
{
    return t->ndim > 1                     ? mgr_matrix_of(t->role)
           : t->role == MGR_ROLE_GATE_BIAS ? MGR_MATRIX_GATE
                                           : MGR_MATRIX_UP;
}

static inline mgr_role mgr_role_of(uint32_t matrix)
{
    assert(matrix < MGR_MATRIX_COUNT);
    return (mgr_role)(MGR_ROLE_GATE + matrix);
}

/* The maps of one layer's experts, and their moments. */
typedef struct mgr_selection {
    uint32_t layer;              /* MGR_NONE: none yet */
    mgr_map *maps;               /* [experts], in these: */
    uint32_t *selected, *origin; /* [experts][1 or 3][n_selected]; [experts][w] or NULL */
    uint32_t *source, *work;     /* [n_selected], [F] or NULL, to work with */
    float *mean, *std;           /* [experts][3] */
    uint32_t *every;             /* [F]: all neurons of the source */
    mgr_moment source_moment[MGR_MATRIX_COUNT];
} mgr_selection;

int mgr_selection_init(mgr_selection *selection, const mgr_job *job, mgr_err *err) MGR_NODISCARD;
void mgr_selection_clear(mgr_selection *selection);
/* Make it hold `layer`; `sums` are that layer's [3][F], NULL where the method needs no moments or
 * the caller none. Local. */
int mgr_selection_set(mgr_selection *selection, const mgr_job *job, uint32_t layer,
                      const mgr_sums *sums, mgr_err *err) MGR_NODISCARD;
/* The view of one expert's matrix. Pure. */
mgr_expert mgr_selection_expert(const mgr_selection *selection, const mgr_job *job, uint32_t expert,
                                mgr_matrix matrix);

/* An event ends now; begun with these byte counts of the tally. Local. */
int mgr_note_event(mgr_job *job, mgr_phase phase, uint32_t group, double start, uint64_t read,
                   uint64_t written, mgr_err *err) MGR_NODISCARD;

#endif
