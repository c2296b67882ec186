/*
 * Philox and Box-Muller, written once for all CPU paths.
 *
 * A file that includes this first includes one of simd_*.h, which defines the vector types, the
 * operations used here and SIMD_LANES. Each of these operations is exact or correctly rounded on
 * every CPU, and the order is fixed here, so all paths give the same bits. (-ffp-contract=off: no
 * compiler may fuse a product and a sum.)
 *
 * The mapping, which is frozen with MGR_CONTRACT_VERSION. A block of words x0..x3 gives elements
 * 0 and 1 from (x0, x1), and 2 and 3 from (x2, x3), in the same way. Every operation in float32,
 * rounded to nearest even; [] marks one integer operation:
 *
 *   radius    v = float[(x0 mod 2^31) | 1]       u = v * 2^-31 is uniform on (0, 1]
 *             u = m * 2^e                        m in [sqrt(1/2), sqrt(2))
 *             t = m - 1
 *             w = float[e] * LOG_EXPONENT + t * Q(t)         -2 ln u; Q has degree 7
 *             r = sqrt(w)
 *   angle     a = float[x1 as signed] * ANGLE_UNIT           uniform on [-pi/4, pi/4]
 *             z = a * a
 *             s = a + (a * z) * S(z),  c = 1 + z * C(z)      sin a, cos a
 *             c is negated if bit 0 of x1 is set, then c and s swap if bit 1 is set: this turns
 *             the quarter of the circle into each of the four quarters. (A float keeps these two
 *             bits of x1 only where |a| < 2^-8; they hardly move a there.)
 *   results   element 0 = r * c,  element 1 = r * s
 *
 * Layout: a vector of SIMD_LANES 32-bit lanes is also one of SIMD_LANES / 2 64-bit lanes. Philox
 * runs in the latter, one block per lane and one word of state per vector, in the low half, since
 * the CPUs multiply 32 x 32 -> 64 bits that way. (x0, x2) and (x1, x3) are then joined as the low
 * and high halves, which puts the pairs of SIMD_LANES / 2 blocks in their order.
 *
 * Across runs: where a lane is a run (a neuron), two sets of blocks, those of every second run, are
 * joined instead, which puts the same word of SIMD_LANES runs in their order. (With two registers
 * to a vector each has every second run, so that halves of both make a row.)
 */
#include "rng/normal.h"

#define BODY_INLINE static inline __attribute__((always_inline))

/* A group is a vector of pairs. */
#define BODY_BLOCKS (SIMD_LANES / 2)
#define BODY_GROUP (2 * SIMD_LANES)

/* -2 ln 2 */
#define LOG_EXPONENT (-0x1.62e430p+0f)
/* Least value of m, sqrt(1/2), as bits. */
#define LOG_BASE 0x3f3504f3u
/* -2 ln(1 + t) / t on [sqrt(1/2) - 1, sqrt(2) - 1]; relative error 1.8e-7. How these were found:
 * tools/gen/minimax.py. */
#define LOG_0 (-0x1.000000p+1f)
#define LOG_1 0x1.00006cp+0f
#define LOG_2 (-0x1.5558f4p-1f)
#define LOG_3 0x1.ff6978p-2f
#define LOG_4 (-0x1.97b1a4p-2f)
#define LOG_5 0x1.61212ep-2f
#define LOG_6 (-0x1.4b5dcep-2f)
#define LOG_7 0x1.9d03b0p-3f
/* pi/4 * 2^-31 */
#define ANGLE_UNIT 0x1.921fb6p-32f
/* (sin(a) / a - 1) / a^2 in a^2 on [0, pi/4]; relative error of sin 3.7e-9. */
#define SIN_0 (-0x1.555546p-3f)
#define SIN_1 0x1.11077ep-7f
#define SIN_2 (-0x1.9956b6p-13f)
/* (cos(a) - 1) / a^2 in a^2 on [0, pi/4]; error of cos 3.3e-8. */
#define COS_0 (-0x1.ffffbap-2f)
#define COS_1 0x1.553faap-5f
#define COS_2 (-0x1.647822p-10f)

/* x * y + constant, each rounded. */
BODY_INLINE vec_float times_plus(vec_float x, vec_float y, float constant)
{
    return float_add(float_mul(x, y), float_set(constant));
}

typedef struct body_state {
    vec_int c0, c1, c2, c3;
} body_state;

/* Vectors of words in pair order: the first and the second word of each pair. */
typedef struct body_pairs {
    vec_int first, second;
} body_pairs;

BODY_INLINE void body_round(body_state *s, vec_int key_0, vec_int key_1)
{
    const vec_int p0 = wide_product(s->c0, wide_set(MGR_PHILOX_MULTIPLIER_0));
    const vec_int p1 = wide_product(s->c2, wide_set(MGR_PHILOX_MULTIPLIER_1));
    s->c0 = int_xor3(wide_high(p1), s->c1, key_0);
    s->c1 = p1;
    s->c2 = int_xor3(wide_high(p0), s->c3, key_1);
    s->c3 = p0;
}

/* The first three rounds. Blocks of a job differ in their number alone, so what does not depend on
 * it is in job->early, once for all. */
BODY_INLINE body_state body_early(const mgr_normal_job *job, vec_int block)
{
    const vec_int first = wide_product(block, wide_set(MGR_PHILOX_MULTIPLIER_0));
    const vec_int c2 = int_xor(wide_high(first), wide_set(job->early[0]));
    const vec_int second = wide_product(c2, wide_set(MGR_PHILOX_MULTIPLIER_1));
    const vec_int c0 = int_xor(wide_high(second), wide_set(job->early[1]));
    const vec_int p0 = wide_product(c0, wide_set(MGR_PHILOX_MULTIPLIER_0));
    const vec_int p1 =
        wide_product(int_xor(first, wide_set(job->early[2])), wide_set(MGR_PHILOX_MULTIPLIER_1));
    return (body_state){int_xor3(wide_high(p1), second, wide_set(job->key[2][0])), p1,
                        int_xor(wide_high(p0), wide_set(job->early[3])), p0};
}

/* The words of the blocks `low` and of the blocks `high`. */
#ifdef SIMD_FEW_REGISTERS
/* One state after the other: a vector of two registers has chains enough. */
BODY_INLINE body_state body_philox(const mgr_normal_job *job, vec_int block)
{
    body_state s = body_early(job, block);

    for (int r = MGR_PHILOX_EARLY; r < MGR_PHILOX_ROUNDS; r++)
        body_round(&s, wide_set(job->key[r][0]), wide_set(job->key[r][1]));
    return s;
}

BODY_INLINE void body_blocks(const mgr_normal_job *job, vec_int low, vec_int high,
                             body_state out[2])
{
    out[0] = body_philox(job, low);
    out[1] = body_philox(job, high);
}
#else
/* Two states side by side: one alone would wait for its own products. */
BODY_INLINE void body_blocks(const mgr_normal_job *job, vec_int low, vec_int high,
                             body_state out[2])
{
    out[0] = body_early(job, low);
    out[1] = body_early(job, high);
    for (int r = MGR_PHILOX_EARLY; r < MGR_PHILOX_ROUNDS; r++) {
        const vec_int key_0 = wide_set(job->key[r][0]), key_1 = wide_set(job->key[r][1]);
        body_round(&out[0], key_0, key_1);
        body_round(&out[1], key_0, key_1);
    }
}
#endif

/* The words of blocks block .. block + 2 * BODY_BLOCKS - 1. */
BODY_INLINE void body_words(const mgr_normal_job *job, uint32_t block, body_pairs out[2])
{
    body_state s[2];

    body_blocks(job, wide_count(block), wide_count(block + BODY_BLOCKS), s);
    for (int i = 0; i < 2; i++) {
        out[i].first = wide_join(s[i].c0, s[i].c2);
        out[i].second = wide_join(s[i].c1, s[i].c3);
    }
}

/* Of SIMD_LANES blocks, which `low` and those `step` behind them are, the words of pair 0 and of
 * pair 1, each in the order of blocks. */
BODY_INLINE void body_words_across(const mgr_normal_job *job, vec_int low, uint32_t step,
                                   body_pairs out[2])
{
    body_state s[2];

    body_blocks(job, low, int_add(low, wide_set(step)), s);
    out[0].first = wide_rows(s[0].c0, s[1].c0);
    out[0].second = wide_rows(s[0].c1, s[1].c1);
    out[1].first = wide_rows(s[0].c2, s[1].c2);
    out[1].second = wide_rows(s[0].c3, s[1].c3);
}

/* sqrt(-2 ln u) for the word that gives u. */
BODY_INLINE vec_float body_radius(vec_int word)
{
    const vec_int odd = int_or(int_and(word, int_set(0x7fffffffu)), int_set(1));
    /* 31 << 23: the factor 2^-31, taken from the exponent. */
    const vec_int above =
        int_sub(bits_from_float(float_from_int(odd)), int_set(LOG_BASE + (31u << 23)));
    const vec_float exponent = float_from_int(int_shift_right_signed(above, 23));
    const vec_int mantissa = int_add(int_and(above, int_set(0x007fffffu)), int_set(LOG_BASE));
    const vec_float t = float_sub(float_from_bits(mantissa), float_set(1.0f));

    vec_float q = times_plus(float_set(LOG_7), t, LOG_6);
    q = times_plus(q, t, LOG_5);
    q = times_plus(q, t, LOG_4);
    q = times_plus(q, t, LOG_3);
    q = times_plus(q, t, LOG_2);
    q = times_plus(q, t, LOG_1);
    q = times_plus(q, t, LOG_0);
    return float_sqrt(float_add(float_mul(exponent, float_set(LOG_EXPONENT)), float_mul(t, q)));
}

/* The cosine and sine of a uniform angle. */
BODY_INLINE void body_direction(vec_int word, vec_float *cosine, vec_float *sine)
{
    const vec_float a = float_mul(float_from_int(word), float_set(ANGLE_UNIT));
    const vec_float z = float_mul(a, a);

    vec_float c = times_plus(float_set(COS_2), z, COS_1);
    c = times_plus(c, z, COS_0);
    c = times_plus(c, z, 1.0f);
    c = float_flip(c, int_shift_left(word, 31));

    vec_float s = times_plus(float_set(SIN_2), z, SIN_1);
    s = times_plus(s, z, SIN_0);
    s = float_add(a, float_mul(float_mul(a, z), s));

    const vec_int swap = int_shift_left(word, 30);
    *cosine = float_pick(swap, c, s);
    *sine = float_pick(swap, s, c);
}

BODY_INLINE void body_normals(const body_pairs *words, vec_float *even, vec_float *odd)
{
    const vec_float radius = body_radius(words->first);
    vec_float cosine, sine;

    body_direction(words->second, &cosine, &sine);
    *even = float_mul(radius, cosine);
    *odd = float_mul(radius, sine);
}

BODY_INLINE void body_scaled(const mgr_normal_job *job, const body_pairs *words, vec_float *even,
                             vec_float *odd)
{
    body_normals(words, even, odd);
    *even = float_add(float_set(job->mean), float_mul(float_set(job->std), *even));
    *odd = float_add(float_set(job->mean), float_mul(float_set(job->std), *odd));
}

/* Bits whose upper half is the BF16 nearest to a finite number; mgr_f32_to_bf16 without NaN. */
BODY_INLINE vec_int body_round_bf16(vec_float x)
{
    const vec_int bits = bits_from_float(x);
    const vec_int last = int_and(int_shift_right(bits, 16), int_set(1));
    return int_add(int_add(bits, int_set(0x7fffu)), last);
}

/* What a group becomes, one function per kind: words of one vector into memory. */
typedef void body_store(const mgr_normal_job *job, const body_pairs *words, unsigned char *to);

BODY_INLINE void store_words(const mgr_normal_job *job, const body_pairs *words, unsigned char *to)
{
    (void)job;
    store_pairs(to, words->first, words->second);
}

BODY_INLINE void store_normals(const mgr_normal_job *job, const body_pairs *words,
                               unsigned char *to)
{
    vec_float even, odd;
    (void)job;
    body_normals(words, &even, &odd);
    store_pairs(to, bits_from_float(even), bits_from_float(odd));
}

BODY_INLINE void store_scaled_f32(const mgr_normal_job *job, const body_pairs *words,
                                  unsigned char *to)
{
    vec_float even, odd;
    body_scaled(job, words, &even, &odd);
    store_pairs(to, bits_from_float(even), bits_from_float(odd));
}

BODY_INLINE void store_scaled_bf16(const mgr_normal_job *job, const body_pairs *words,
                                   unsigned char *to)
{
    vec_float even, odd;
    body_scaled(job, words, &even, &odd);
    store_halves(to, body_round_bf16(even), body_round_bf16(odd));
}

BODY_INLINE void body_fill(const mgr_normal_job *shared, uint32_t block, size_t n_groups,
                           unsigned char *to, size_t element_bytes, body_store *store)
{
    const mgr_normal_job job = *shared; /* a copy that the output cannot alias */
    for (size_t i = 0; i < n_groups; i += 2, block += 2 * BODY_BLOCKS) {
        unsigned char *at = to + i * BODY_GROUP * element_bytes;
        body_pairs words[2];
        body_words(&job, block, words);
        store(&job, &words[0], at);
        if (i + 1 < n_groups)
            store(&job, &words[1], at + BODY_GROUP * element_bytes);
    }
}

static void fill_words(const mgr_normal_job *job, uint32_t block, size_t n_groups, void *out)
{
    body_fill(job, block, n_groups, out, sizeof(uint32_t), store_words);
}

static void fill_normals(const mgr_normal_job *job, uint32_t block, size_t n_groups, void *out)
{
    body_fill(job, block, n_groups, out, sizeof(float), store_normals);
}

static void fill_scaled_f32(const mgr_normal_job *job, uint32_t block, size_t n_groups, void *out)
{
    body_fill(job, block, n_groups, out, sizeof(float), store_scaled_f32);
}

static void fill_scaled_bf16(const mgr_normal_job *job, uint32_t block, size_t n_groups, void *out)
{
    body_fill(job, block, n_groups, out, sizeof(uint16_t), store_scaled_bf16);
}

/* What two rows of a group become. */
typedef void body_store_rows(unsigned char *to, size_t stride, vec_float even, vec_float odd);

BODY_INLINE void store_rows_f32(unsigned char *to, size_t stride, vec_float even, vec_float odd)
{
    store_row(to, bits_from_float(even));
    store_row(to + stride, bits_from_float(odd));
}

BODY_INLINE void store_rows_bf16(unsigned char *to, size_t stride, vec_float even, vec_float odd)
{
    store_row_halves(to, body_round_bf16(even));
    store_row_halves(to + stride, body_round_bf16(odd));
}

/* A lane is a run: what is drawn lies in rows across the runs as it is. `stride` in bytes. */
BODY_INLINE void body_across(const mgr_normal_job *shared, const mgr_normal_rows *rows, void *out,
                             size_t element_bytes, body_store_rows *store)
{
    const mgr_normal_job job = *shared; /* a copy that the output cannot alias */
    const size_t stride = rows->stride * element_bytes;
    for (uint32_t b = 0; b < rows->n_blocks; b++) {
        unsigned char *at = (unsigned char *)out + b * 4 * stride;
        vec_int low = wide_places(rows->block + b, rows->step);
        for (size_t j = 0; j < rows->n; j += SIMD_LANES, at += SIMD_LANES * element_bytes) {
            body_pairs words[2];
            vec_float even, odd;
            body_words_across(&job, low, rows->step, words);
            for (int i = 0; i < 2; i++) {
                body_scaled(&job, &words[i], &even, &odd);
                store(at + (size_t)i * 2 * stride, stride, even, odd);
            }
            low = int_add(low, wide_set(SIMD_LANES * rows->step));
        }
    }
}

static void across_f32(const mgr_normal_job *job, const mgr_normal_rows *rows, void *out)
{
    body_across(job, rows, out, sizeof(float), store_rows_f32);
}

static void across_bf16(const mgr_normal_job *job, const mgr_normal_rows *rows, void *out)
{
    body_across(job, rows, out, sizeof(uint16_t), store_rows_bf16);
}

#define BODY_PATH                                                                                  \
    {                                                                                              \
        BODY_GROUP, fill_words, fill_normals, fill_scaled_f32, fill_scaled_bf16, across_f32,       \
            across_bf16                                                                            \
    }
