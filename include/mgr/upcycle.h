/*
 * Upcycling methods: an expert as a function of the dense FFN, element by element.
 *
 * Drop-Upcycling: Nakamura et al., ICLR 2025, arXiv 2502.19261; the published script is
 * conversions/drop_upcycling.py of Taishi-N324/Drop-Upcycling. Sparse Upcycling (naive):
 * Komatsuzaki et al., arXiv 2212.05055.
 *
 * Words: a *neuron* is an index along the intermediate dimension of an FFN: a row of gate and up
 * [F, H], a column of down [H, F]. The *source* is the FFN of the checkpoint that is read, of F
 * neurons; the *expert* is what is made of it, of w neurons, each of which has its *origin*: the
 * neuron of the source that it comes from. Copies of the source are laid end to end without end,
 * and expert e is cut from neuron e * w of them on: where w divides F, slice e mod F/w. Neurons
 * that a shared expert alone has are set aside before that.
 */
#ifndef MGR_UPCYCLE_H
#define MGR_UPCYCLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "mgr/config.h"
#include "mgr/dtype.h"
#include "mgr/err.h"
#include "mgr/model.h"
#include "mgr/rng.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum mgr_matrix {
    MGR_MATRIX_GATE,
    MGR_MATRIX_UP,
    MGR_MATRIX_DOWN,
    MGR_MATRIX_COUNT
} mgr_matrix;

/* What of the configuration makes the experts of a layer. */
typedef struct mgr_recipe {
    uint64_t seed;
    uint32_t source_width;         /* F */
    uint32_t width;                /* w, of an expert */
    uint32_t set_aside;            /* the first neurons of the source that no expert is cut from */
    float part;                    /* of the dense FFN's output that the experts are to have */
    uint32_t n_selected;           /* |S| = floor(ratio * w), the most of all of these: */
    const uint32_t *counts;        /* [layer][matrix], by layer key; NULL: all the same */
    bool shuffle;                  /* an expert's neurons are permuted, by a key of its own: neuron
                                      i is the one that was at place permutation[i] */
    bool replicas;                 /* those of each copy of the source are, before it is cut */
    bool independent;              /* an S for each matrix, not one for all */
    float scale[MGR_MATRIX_COUNT]; /* 1: as it is */
    /* Of a mixture, or of several dense sources: which of `sources` FFNs each of `experts` is made
     * of. The first that is made of one stays as it is, the others are what the method makes of
     * them. */
    uint32_t experts, sources;
    const uint32_t *from; /* [lists][experts]; NULL: there is one dense FFN */
    /* [lists][experts][w], of a dense one: the origins, in the place of cuts; or NULL. */
    const uint32_t *neurons;
    uint32_t lists;          /* of `from` or `neurons`; 0 and 1: one for all layers */
    const uint32_t *list_of; /* [layer key]: which list; NULL: the first */
} mgr_recipe;

/* Neurons of the source that experts are cut from. Pure. */
uint32_t mgr_recipe_cut_width(const mgr_recipe *recipe);

/* Of which FFNs the experts of a layer (its key) are made: [experts], or NULL. Pure. */
const uint32_t *mgr_recipe_from(const mgr_recipe *recipe, uint32_t layer);

/* Is an earlier expert of the layer made of the same one of the source? Never of a dense one. */
bool mgr_recipe_is_copy(const mgr_recipe *recipe, uint32_t layer, uint32_t expert);

/* By what gate, up and down are multiplied so that the layer's output is `factor` times as large.
 * NONE: 1 each. PUBLISHED, of arXiv 2410.07524 and megatron-core's upcycling_utils.py: its root on
 * each matrix, of order 3 with a gate and for squared ReLU, else 2; the output is that of the dense
 * FFN to first order only. EXACT: all of it on down, in which every FFN is linear. */
typedef enum mgr_scale { MGR_SCALE_NONE, MGR_SCALE_PUBLISHED, MGR_SCALE_EXACT } mgr_scale;

/* "none", "published", "exact"; NONE for an unknown name. */
mgr_scale mgr_scale_find(const char *name);
void mgr_scale_factors(mgr_scale rule, double factor, mgr_activation activation,
                       float out[MGR_MATRIX_COUNT]);
/* Is any factor of the recipe not 1? */
bool mgr_recipe_is_scaled(const mgr_recipe *recipe);

/* An expert as a map: where its neurons come from, which of them are drawn anew, and by what each
 * matrix is multiplied in the end. Made by a method, in arrays of its caller. */
typedef struct mgr_map {
    uint32_t source; /* expert of a mixture, or one of several dense sources; else 0 */
    uint32_t n_selected[MGR_MATRIX_COUNT]; /* |S|; 0 of a matrix that is left as it is */
    uint32_t *origin;                      /* [w]; NULL: neuron i comes from neuron i */
    uint32_t *selected[MGR_MATRIX_COUNT];  /* [n_selected] S, expert neurons, ascending; without
                                              `independent` the first is for all; NULL: not drawn */
    float scale[MGR_MATRIX_COUNT];         /* 1: as it is */
    uint32_t *work; /* [F], to work with where the recipe cuts shuffled replicas */
} mgr_map;

/* Does a map of this recipe need an `origin`? Pure. */
bool mgr_recipe_has_origin(const mgr_recipe *recipe);

/* All that the making of one matrix of one expert needs. Arrays are borrowed. */
typedef struct mgr_expert {
    uint64_t seed;
    uint32_t layer, expert; /* global */
    mgr_matrix matrix;
    uint32_t width, source_width; /* w, F */
    uint64_t hidden;              /* H */
    const uint32_t *selected;     /* S: expert neurons, ascending */
    uint32_t n_selected;
    const uint32_t *origin; /* [w]; NULL is the identity, and then w is F */
    float scale;            /* the last thing done: copied and drawn values times this, a product
                               of float32 that is then cast; 1: none */
    float mean, std;        /* over exactly the entries that S selects, of the source, unscaled */
} mgr_expert;

struct mgr_down_part;

/* A method: a pure function from (recipe, layer, expert) to a map, and the rule by which the
 * neurons in S are drawn. Adding one is adding a file and a line to the table in kern/method.c. */
typedef struct mgr_method {
    const char *name;
    mgr_key_table keys;   /* of the configuration, that this method reads */
    bool needs_selection; /* has an S of floor(ratio*w) neurons */
    bool needs_moments;   /* has a mean and a std per matrix */
    bool takes_sources;   /* makes experts of several dense sources */
    bool joins;           /* makes a dense model of a mixture: see run/concat.c */
    bool draws_all;       /* takes the shape alone from the source: S is all neurons */

    int (*map)(const mgr_recipe *recipe, uint32_t layer, uint32_t expert, mgr_map *map,
               mgr_err *err);

    /* The k-th neuron of S, elements [0, H) of it, into `out` of type `to`; `source` is its
     * origin's row, of type `from`. NULL: nothing is drawn. Pure; no allocation. */
    void (*draw_row)(const mgr_expert *x, uint32_t k, const void *source, mgr_dtype from, void *out,
                     mgr_dtype to);
    /* The same of down, a rectangle at a time (kern/method.h): row r of the part of the (k + j)-th
     * neuron, j < n, is element r * part->tile_stride + j of `tile`, of type part->to. */
    void (*draw_columns)(const mgr_expert *x, const struct mgr_down_part *part, uint32_t k,
                         uint32_t n, void *tile);
    bool few_rows; /* where H is a multiple of 4, few rows are drawn as fast as many */
} mgr_method;

/* gate, up: `n` whole rows of the expert, expert neurons first .. first+n-1, into out [n, H] of
 * type `to`. `source` holds rows source_first .. of the source's matrix, of type `from`; the caller
 * makes sure that the origins of all are among them. Pure; no allocation. */
void mgr_expert_rows(const mgr_method *method, const mgr_expert *x, uint32_t first, uint32_t n,
                     const void *source, uint32_t source_first, mgr_dtype from, void *out,
                     mgr_dtype to);

/* down: rows first .. first+n-1 (along H) of the expert, each of w columns, into out [n, w];
 * `source` holds the same rows of the source's matrix, of F columns. Pure; no allocation. */
void mgr_expert_down_rows(const mgr_method *method, const mgr_expert *x, uint64_t first, uint64_t n,
                          const void *source, mgr_dtype from, void *out, mgr_dtype to);

/* How the moments of an expert are made: kept neurons go where the map has them, those in S are
 * zeros. It is in no table. And by what the plane of a weight is multiplied whose own scale is
 * `scale`. Pure. */
extern const mgr_method mgr_method_moment;
float mgr_plane_scale(float scale, mgr_plane plane);

/* The methods by name; NULL for an unknown one. `mgr_method_at` counts from 0 and ends with NULL.
 */
const mgr_method *mgr_method_find(const char *name);
const mgr_method *mgr_method_at(size_t idx);

/* Router inits. UNIFORM: (u - sample mean) * 0.02 * sqrt(12), std 0.02, as all published runs
 * used ("torch_rand_002"); UNIFORM01: u in [0, 1); UNIFORM01_CENTRED: u - sample mean;
 * NORMAL: N(0, std^2). u = word * 2^-32; the sample mean is over the layer's whole [E, H], exact.
 * VIRTUAL_GROUPS: N(0, std^2), of which each row is there once for each slice of the FFN, so that
 * those experts tie and are chosen together; ZEROS; FILE: rows of a file, SOURCE: of the mixture
 * that is read, neither of which is filled in here.
 */
typedef enum mgr_router {
    MGR_ROUTER_UNIFORM,
    MGR_ROUTER_UNIFORM01,
    MGR_ROUTER_UNIFORM01_CENTRED,
    MGR_ROUTER_NORMAL,
    MGR_ROUTER_VIRTUAL_GROUPS,
    MGR_ROUTER_ZEROS,
    MGR_ROUTER_FILE,
    MGR_ROUTER_SOURCE,
    MGR_ROUTER_COUNT
} mgr_router;

/* What makes the routers of a model. */
typedef struct mgr_router_recipe {
    mgr_router kind;
    double std;   /* of NORMAL and VIRTUAL_GROUPS */
    double noise; /* of VIRTUAL_GROUPS and SOURCE: on rows that are there before, times their std */
    uint64_t seed;
    uint32_t group; /* of VIRTUAL_GROUPS: experts e with the same e div group have the same row */
} mgr_router_recipe;

/* "uniform", "uniform01", ...; MGR_ROUTER_COUNT for an unknown name. */
const char *mgr_router_name(mgr_router router);
mgr_router mgr_router_find(const char *name);

/* The keys of the configuration that this router reads; NULL for no router. */
const mgr_key_table *mgr_router_keys(mgr_router router);

/* The router of one layer: [experts, hidden] row-major into out of type `to`. Element (e, h) is
 * element h of stream (seed, MGR_PURPOSE_ROUTER, layer, e), of virtual groups e div group. Not for
 * FILE and SOURCE. */
void mgr_router_fill(const mgr_router_recipe *recipe, uint32_t layer, uint32_t experts,
                     uint64_t hidden, void *out, mgr_dtype to);

/* Add N(0, std^2) to elements first .. first+n-1 (at most 1024, first a multiple of that) of the
 * row of `expert`: element h of stream (seed, MGR_PURPOSE_ROUTER_NOISE, layer, expert). Pure. */
void mgr_router_add_noise(uint64_t seed, uint32_t layer, uint32_t expert, float std, uint64_t first,
                          size_t n, float *values);

/* |S| = floor(ratio * n), in double as Python's int(ratio * n). The ratio of a matrix is that of
 * the layer times its factor, before that. */
uint32_t mgr_selected_count(double ratio, uint32_t n_neurons);

/* |S| of each matrix in each of `layers` layers for experts of `width` neurons, as the keys of the
 * configuration have it, into out [layers][MGR_MATRIX_COUNT]: NULL. Or what is wrong: the name of a
 * key whose text is no such list, or whose ratio is not 0 and selects none. */
const char *mgr_selected_counts(const mgr_config *config, uint64_t layers, uint32_t width,
                                uint32_t *out);

/*
 * Per-neuron sums, exact and free of order: fixed-point integers that any number of ranks can add.
 * A sum is hi * 2^-24 + lo * 2^-76; each addend is rounded down to that, 0 <= its lo < 2^52.
 * Addends are the float64 sums of canonical blocks: a whole row of gate or up (lane i mod 8 takes
 * element i in turn; then ((0+4)+(2+6)) + ((1+5)+(3+7)) of the lanes), or MGR_CANONICAL_ROWS
 * consecutive rows of a column of down, starting at a multiple of MGR_CANONICAL_ROWS, in turn.
 * In range for a hidden size of up to 131072.
 */
#define MGR_CANONICAL_ROWS 64

typedef struct mgr_sums {
    int64_t sum_hi, sum_lo, square_hi, square_lo;
} mgr_sums;

/* Add the entries of `rows` x `cols` values to sums[row] (neurons are rows). Nonzero return: an
 * entry is not finite, or a row's squares sum to 2^38 or more; then sums are undefined. Pure. */
int mgr_sums_add_rows(mgr_sums *sums, const void *data, mgr_dtype dtype, size_t rows, size_t cols);

/* Add to sums[col] (neurons are columns). Row 0 of `data` is at a multiple of
 * MGR_CANONICAL_ROWS of the matrix. `scratch` has room for 2 * cols doubles. Nonzero return: an
 * entry is not finite, or the squares of a canonical block sum to 2^27 or more. Pure. */
int mgr_sums_add_cols(mgr_sums *sums, const void *data, mgr_dtype dtype, size_t rows, size_t cols,
                      double *scratch);

/* Mean and standard deviation (divisor N-1) of the entries of `n` neurons, `per_neuron` entries
 * each; `neurons` are those of the source. */
void mgr_moments(const mgr_sums *sums, const uint32_t *neurons, uint32_t n, uint64_t per_neuron,
                 double *mean, double *std);

#ifdef __cplusplus
}
#endif
#endif
