/*
 * The parts behind mgr/rng.h that its files share: one kernel per CPU path and kind of output.
 */
#ifndef MGR_RNG_NORMAL_H
#define MGR_RNG_NORMAL_H

#include <stddef.h>
#include <stdint.h>

#include "mgr/dtype.h"
#include "mgr/rng.h"

#define MGR_PHILOX_ROUNDS 10
#define MGR_PHILOX_EARLY 3 /* rounds that are partly the same for all blocks of a job */
#define MGR_PHILOX_MULTIPLIER_0 0xD2511F53u
#define MGR_PHILOX_MULTIPLIER_1 0xCD9E8D57u
#define MGR_PHILOX_WEYL_0 0x9E3779B9u /* the golden ratio */
#define MGR_PHILOX_WEYL_1 0xBB67AE85u /* sqrt(3) - 1 */

/* What all blocks of one request have in common. */
typedef struct mgr_normal_job {
    uint32_t key[MGR_PHILOX_ROUNDS][2]; /* the key of each round */
    uint32_t early[4];                  /* what rounds 0, 1, 1, 2 add that is known before */
    float mean, std;                    /* used by the scaled kinds */
} mgr_normal_job;

/* Write `n_groups` groups of elements, from element 0 of block `block` on. `out` needs no
 * alignment. Pure. */
typedef void mgr_normal_fill(const mgr_normal_job *job, uint32_t block, size_t n_groups, void *out);

/* Four rows for each of `n_blocks` blocks: row 4 b + i, place j is element i of block
 * block + b + j * step; j < n, and some more up to a multiple of MGR_NORMAL_ACROSS. `stride` is in
 * elements. */
typedef struct mgr_normal_rows {
    uint32_t block, step, n_blocks;
    size_t n, stride;
} mgr_normal_rows;
typedef void mgr_normal_across(const mgr_normal_job *job, const mgr_normal_rows *rows, void *out);

/* No path has more runs in a vector. */
#define MGR_NORMAL_ACROSS 32

/* The largest group of any path, in elements. */
#define MGR_NORMAL_GROUP_MAX 64

/* The kernels of one CPU path. */
typedef struct mgr_normal_path {
    size_t group;                 /* elements per group, a multiple of 4; 0: not in this build */
    mgr_normal_fill *words;       /* uint32_t: the raw stream */
    mgr_normal_fill *normals;     /* float: z */
    mgr_normal_fill *scaled_f32;  /* float: mean + std * z */
    mgr_normal_fill *scaled_bf16; /* uint16_t: the same, rounded to nearest even */
    mgr_normal_across *across_f32, *across_bf16; /* scaled */
} mgr_normal_path;

extern const mgr_normal_path mgr_normal_path_scalar;
extern const mgr_normal_path mgr_normal_path_avx2;
extern const mgr_normal_path mgr_normal_path_avx512;
extern const mgr_normal_path mgr_normal_path_neon;

/* The path of mgr_simd_current. Local, thread-safe. */
const mgr_normal_path *mgr_normal_path_current(void);

/* The keys of the rounds for a 64-bit seed. Local. */
void mgr_philox_schedule(uint64_t seed, uint32_t key[MGR_PHILOX_ROUNDS][2]);

/* mean + std * z for stream elements first .. first+n-1, the product and the sum each rounded in
 * float32, into `to`, which is BF16 (rounded once more) or F32. mean and std are finite. Local. */
void mgr_normals_affine(const mgr_stream *stream, uint64_t first, size_t n, float mean, float std,
                        void *out, mgr_dtype to);

/* `n` runs of a stream, each `step`, a multiple of 4, behind the one before it; of each, elements
 * 0 .. n_rows - 1, the first of which is element `first` of the stream. */
typedef struct mgr_runs {
    uint64_t first, step;
    size_t n;
    uint32_t n_rows;
} mgr_runs;

/* The same of runs side by side: element r of run j is place j of row r of `out`. Places of a row
 * up to the next multiple of MGR_NORMAL_ACROSS may be written; `stride` is in elements. Local. */
void mgr_normals_affine_across(const mgr_stream *stream, mgr_runs runs, float mean, float std,
                               void *out, size_t stride, mgr_dtype to);

#endif
