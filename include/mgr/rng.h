/*
 * Random numbers as a function of (seed, purpose, layer, expert, element): contract version 1.
 *
 * Philox4x32-10 (Salmon et al., SC'11, "Parallel random numbers: as easy as 1, 2, 3"; Random123).
 *   key     = { low 32 bits of the seed, high 32 bits of the seed }
 *   counter = { block, purpose, layer, expert }
 * One block gives four 32-bit words; word j of block b is stream element 4*b + j. Nothing else
 * enters, so a draw belongs to a logical element of the model and to no rank, layout or machine.
 *
 * Changing one bit of what these functions give is a new contract number and a major version.
 */
#ifndef MGR_RNG_H
#define MGR_RNG_H

#include <stddef.h>
#include <stdint.h>

#include "mgr/dtype.h"
#include "mgr/err.h"

#ifdef __cplusplus
extern "C" {
#endif

#define MGR_CONTRACT_VERSION 1

/* Second word of the counter: one per use, never renumbered. */
typedef enum mgr_purpose {
    MGR_PURPOSE_SAMPLE = 0,      /* index_sets: shared */
    MGR_PURPOSE_SAMPLE_GATE = 1, /* index_sets: independent */
    MGR_PURPOSE_SAMPLE_UP = 2,
    MGR_PURPOSE_SAMPLE_DOWN = 3,
    MGR_PURPOSE_GATE = 4, /* values redrawn in the gate, up and down matrices */
    MGR_PURPOSE_UP = 5,
    MGR_PURPOSE_DOWN = 6,
    MGR_PURPOSE_ROUTER = 7,
    MGR_PURPOSE_SHUFFLE = 8,
    MGR_PURPOSE_NOISE_GATE = 9, /* values added by `method: noise` */
    MGR_PURPOSE_NOISE_UP = 10,
    MGR_PURPOSE_NOISE_DOWN = 11,
    MGR_PURPOSE_SYNTH = 12,   /* mgr-synth: expert carries the tensor's role */
    MGR_PURPOSE_REPLICA = 13, /* `cut: shuffled`: expert carries the number of the FFN's copy */
    /* `method: from-scratch`: element (r, c) is number r * columns + c; layer is UINT32_MAX outside
     * of layers; expert is (its number + 1, or 0 of what belongs to none) * 256 + the role */
    MGR_PURPOSE_INIT = 14,
    MGR_PURPOSE_ROUTER_NOISE = 15 /* added to rows of a router that are there more than once */
} mgr_purpose;

/* One stream: everything of key and counter but the block. */
typedef struct mgr_stream {
    uint64_t seed;
    uint32_t purpose; /* mgr_purpose */
    uint32_t layer;   /* global, 0-based */
    uint32_t expert;  /* global, 0-based */
} mgr_stream;

/* One block of Philox4x32-10. Local, thread-safe, no state. */
void mgr_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);

/* Stream elements first .. first+n-1 as raw 32-bit words. `first + n` <= 2^34. */
void mgr_words(const mgr_stream *stream, uint64_t first, size_t n, uint32_t *out);

/* Standard normals for stream elements first .. first+n-1, in float32, by Box-Muller with our own
 * polynomials; equal bits on every CPU path. Elements 2i and 2i+1 are one pair. */
void mgr_normals(const mgr_stream *stream, uint64_t first, size_t n, float *out);

/* The CPU paths of mgr_normals. */
typedef enum mgr_simd {
    MGR_SIMD_SCALAR,
    MGR_SIMD_AVX2,
    MGR_SIMD_AVX512,
    MGR_SIMD_NEON,
    MGR_SIMD_COUNT
} mgr_simd;

const char *mgr_simd_name(mgr_simd simd);
/* Nonzero if this build has the path and this CPU can run it. */
int mgr_simd_available(mgr_simd simd);
/* The path in use: the widest one available unless mgr_simd_select chose another. */
mgr_simd mgr_simd_current(void);
/* Choose a path for the whole process (not thread-safe). Errors: MGR_ERR_UNSUPPORTED. */
int mgr_simd_select(mgr_simd simd, mgr_err *err) MGR_NODISCARD;

/* `n` of `population` indices without replacement, ascending, into out[n]: the n smallest of
 * 64-bit keys, key i = words 2i (low) and 2i+1 (high) of the stream, ties to the smaller index.
 * Errors: MGR_ERR_NOMEM. */
int mgr_sample(const mgr_stream *stream, uint32_t population, uint32_t n, uint32_t *out,
               mgr_err *err) MGR_NODISCARD;

/* A permutation of 0..n-1: the indices sorted by the same kind of keys. */
int mgr_permutation(const mgr_stream *stream, uint32_t n, uint32_t *out,
                    mgr_err *err) MGR_NODISCARD;

#ifdef __cplusplus
}
#endif
#endif
