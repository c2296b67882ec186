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

/* Nothing of one side of this is moved by the compiler to the other as far as these words go. What
 * is written side by side here would otherwise be done one after the other, and wait for itself. */
BODY_INLINE void body_hold(body_state *s)
{
    SIMD_HOLD(s->c0);
    SIMD_HOLD(s->c2);
}

BODY_INLINE void body_round(const mgr_normal_job *job, int r, body_state *s)
{
    const vec_int p0 = wide_product(s->c0, wide_set(MGR_PHILOX_MULTIPLIER_0));
    const vec_int p1 = wide_product(s->c2, wide_set(MGR_PHILOX_MULTIPLIER_1));
    s->c0 = int_xor3(wide_high(p1), s->c1, wide_set(job->key[r][0]));
    s->c1 = p1;
    s->c2 = int_xor3(wide_high(p0), s->c3, wide_set(job->key[r][1]));
    s->c3 = p0;
}

/* Rounds 0 to 2. Blocks of a job differ in their number alone, so what does not depend on it is in
 * job->early, once for all. */
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

/* The last round but for what is added, which is done with lanes that are joined: c0 and c2 are the
 * products. */
BODY_INLINE void body_last(body_state *s)
{
    s->c0 = wide_product(s->c0, wide_set(MGR_PHILOX_MULTIPLIER_0));
    s->c2 = wide_product(s->c2, wide_set(MGR_PHILOX_MULTIPLIER_1));
}

BODY_INLINE body_state body_philox(const mgr_normal_job *job, vec_int block)
{
    body_state s = body_early(job, block);

    for (int r = MGR_PHILOX_EARLY; r < MGR_PHILOX_ROUNDS - 1; r++)
        body_round(job, r, &s);
    body_last(&s);
    return s;
}

/* What body_last left, as the words of BODY_BLOCKS blocks. */
BODY_INLINE body_pairs body_joined(const mgr_normal_job *job, const body_state *s)
{
    const uint32_t *const key = job->key[MGR_PHILOX_ROUNDS - 1];
    return (body_pairs){int_xor3(wide_join_high(s->c2, s->c0), wide_join(s->c1, s->c3),
                                 wide_join(wide_set(key[0]), wide_set(key[1]))),
                        wide_join(s->c2, s->c0)};
}

/* The words of pair 0 and of pair 1 of SIMD_LANES blocks: those of the first state and those that
 * lie between them. */
BODY_INLINE void body_rows(const mgr_normal_job *job, const body_state s[2], body_pairs out[2])
{
    const uint32_t *const key = job->key[MGR_PHILOX_ROUNDS - 1];
    body_state low = s[0], high = s[1];

    wide_regroup(&low.c0, &high.c0);
    wide_regroup(&low.c1, &high.c1);
    wide_regroup(&low.c2, &high.c2);
    wide_regroup(&low.c3, &high.c3);
    out[0].first =
        int_xor3(wide_join_high(low.c2, high.c2), wide_join(low.c1, high.c1), int_set(key[0]));
    out[0].second = wide_join(low.c2, high.c2);
    out[1].first =
        int_xor3(wide_join_high(low.c0, high.c0), wide_join(low.c3, high.c3), int_set(key[1]));
    out[1].second = wide_join(low.c0, high.c0);
}

/* Pairs on their way from words to normals. */
typedef struct body_pass {
    vec_int word;                 /* of the angle */
    vec_float exponent, t, q;     /* of the radius: log[e] done, t, Q(t) so far */
    vec_float a, z, cosine, sine; /* of the angle */
} body_pass;

/* To t and z. The exponent is converted where it stands, 2^23 times too large: exact. */
BODY_INLINE void pass_begin(body_pass *p, const body_pairs *words)
{
    const vec_int odd = int_and_or(words->first, int_set(0x7fffffffu), int_set(1));
    /* 31 << 23: the factor 2^-31, taken from the exponent. */
    const vec_int above =
        int_sub(bits_from_float(float_from_int(odd)), int_set(LOG_BASE + (31u << 23)));
    const vec_int mantissa = int_add(int_and(above, int_set(0x007fffffu)), int_set(LOG_BASE));

    p->word = words->second;
    p->exponent = float_mul(float_from_int(int_and(above, int_set(0xff800000u))),
                            float_set(LOG_EXPONENT * 0x1p-23f));
    p->t = float_sub(float_from_bits(mantissa), float_set(1.0f));
    p->a = float_mul(float_from_int(words->second), float_set(ANGLE_UNIT));
    p->z = float_mul(p->a, p->a);
    SIMD_HOLD(p->exponent);
    SIMD_HOLD(p->t);
    SIMD_HOLD(p->z);
}

BODY_INLINE void pass_first_half(body_pass *p)
{
    p->q = times_plus(float_set(LOG_7), p->t, LOG_6);
    p->cosine = times_plus(float_set(COS_2), p->z, COS_1);
    p->q = times_plus(p->q, p->t, LOG_5);
    p->cosine = times_plus(p->cosine, p->z, COS_0);
    p->q = times_plus(p->q, p->t, LOG_4);
    p->cosine = times_plus(p->cosine, p->z, 1.0f);
    SIMD_HOLD(p->q);
    SIMD_HOLD(p->cosine);
}

BODY_INLINE void pass_second_half(body_pass *p)
{
    p->q = times_plus(p->q, p->t, LOG_3);
    p->sine = times_plus(float_set(SIN_2), p->z, SIN_1);
    p->q = times_plus(p->q, p->t, LOG_2);
    p->sine = times_plus(p->sine, p->z, SIN_0);
    p->q = times_plus(p->q, p->t, LOG_1);
    p->sine = float_mul(float_mul(p->a, p->z), p->sine);
    p->q = times_plus(p->q, p->t, LOG_0);
    p->sine = float_add(p->a, p->sine);
    SIMD_HOLD(p->q);
    SIMD_HOLD(p->sine);
}

BODY_INLINE void pass_end(body_pass *p, vec_float *even, vec_float *odd)
{
    const vec_float radius = float_sqrt(float_add(p->exponent, float_mul(p->t, p->q)));
    const vec_float cosine = float_flip(p->cosine, int_shift_left(p->word, 31));

    *even = float_mul(radius, float_pick(p->word, cosine, p->sine));
    *odd = float_mul(radius, float_pick(p->word, p->sine, cosine));
}

/* The normals of `words`, and meanwhile the words of `block`, up to body_last: each step of either
 * waits for the one before it, and both together leave a CPU less time without work. */
BODY_INLINE void body_both(const mgr_normal_job *job, const body_pairs *words, vec_int block,
                           body_state *next, vec_float *even, vec_float *odd)
{
    body_pass p;

    *next = body_early(job, block);
    body_hold(next);
    pass_begin(&p, words);
    body_round(job, 3, next);
    body_round(job, 4, next);
    body_hold(next);
    pass_first_half(&p);
    body_round(job, 5, next);
    body_round(job, 6, next);
    body_hold(next);
    pass_second_half(&p);
    body_round(job, 7, next);
    body_round(job, 8, next);
    body_hold(next);
    pass_end(&p, even, odd);
    body_last(next);
}

BODY_INLINE void body_scale(const mgr_normal_job *job, vec_float *even, vec_float *odd)
{
    *even = float_add(float_set(job->mean), float_mul(float_set(job->std), *even));
    *odd = float_add(float_set(job->mean), float_mul(float_set(job->std), *odd));
}

/* Bits whose upper half is the BF16 nearest to a finite number; mgr_f32_to_bf16 without NaN. To
 * add 0x7fff and the last bit that stays is to take away the complement of both, less one. */
BODY_INLINE vec_int body_round_bf16(vec_float x)
{
    const vec_int bits = bits_from_float(x);
    return int_sub(bits,
                   int_not_and_or(int_shift_right(bits, 16), int_set(1), int_set(0xffff8000u)));
}

/* What a group becomes, one function per kind: the elements of one vector of pairs into memory. */
typedef void body_store(const mgr_normal_job *job, vec_float even, vec_float odd,
                        unsigned char *to);

BODY_INLINE void store_normals(const mgr_normal_job *job, vec_float even, vec_float odd,
                               unsigned char *to)
{
    (void)job;
    store_pairs(to, bits_from_float(even), bits_from_float(odd));
}

BODY_INLINE void store_scaled_f32(const mgr_normal_job *job, vec_float even, vec_float odd,
                                  unsigned char *to)
{
    body_scale(job, &even, &odd);
    store_pairs(to, bits_from_float(even), bits_from_float(odd));
}

BODY_INLINE void store_scaled_bf16(const mgr_normal_job *job, vec_float even, vec_float odd,
                                   unsigned char *to)
{
    body_scale(job, &even, &odd);
    store_halves(to, body_round_bf16(even), body_round_bf16(odd));
}

/* In each turn the words of the next; the last ones are not used. */
BODY_INLINE void body_fill(const mgr_normal_job *shared, uint32_t block, size_t n_groups,
                           unsigned char *to, size_t element_bytes, body_store *store)
{
    const mgr_normal_job job = *shared; /* a copy that the output cannot alias */
    vec_int count = wide_count(block);
    body_state s = body_philox(&job, count);

    for (size_t i = 0; i < n_groups; i++, to += BODY_GROUP * element_bytes) {
        const body_pairs words = body_joined(&job, &s);
        vec_float even, odd;
        count = int_add(count, wide_set(BODY_BLOCKS));
        body_both(&job, &words, count, &s, &even, &odd);
        store(&job, even, odd, to);
    }
}

static void fill_words(const mgr_normal_job *job, uint32_t block, size_t n_groups, void *out)
{
    unsigned char *to = out;
    for (size_t i = 0; i < n_groups; i++, block += BODY_BLOCKS) {
        const body_state s = body_philox(job, wide_count(block));
        const body_pairs words = body_joined(job, &s);
        store_pairs(to, words.first, words.second);
        to += BODY_GROUP * sizeof(uint32_t);
    }
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

/* Of one pair of each lane, and meanwhile the words of `block`. */
BODY_INLINE void body_two_rows(const mgr_normal_job *job, const body_pairs *words, vec_int block,
                               body_state *next, unsigned char *to, size_t stride,
                               body_store_rows *store)
{
    vec_float even, odd;

    body_both(job, words, block, next, &even, &odd);
    body_scale(job, &even, &odd);
    store(to, stride, even, odd);
}

/* One row of blocks. A lane is a run: what is drawn lies in rows across the runs as it is. `stride`
 * in bytes. */
BODY_INLINE void body_across_row(const mgr_normal_job *job, const mgr_normal_rows *rows,
                                 uint32_t block, unsigned char *to, size_t stride,
                                 size_t element_bytes, body_store_rows *store)
{
    const vec_int between = wide_set(rows->step);
    vec_int low = wide_places(block, rows->step);
    body_state s[2] = {body_philox(job, low), body_philox(job, int_add(low, between))};

    for (size_t j = 0; j < rows->n; j += SIMD_LANES, to += SIMD_LANES * element_bytes) {
        body_pairs words[2];
        body_rows(job, s, words);
        low = int_add(low, wide_set(SIMD_LANES * rows->step));
        body_two_rows(job, &words[0], low, &s[0], to, stride, store);
        body_two_rows(job, &words[1], int_add(low, between), &s[1], to + 2 * stride, stride, store);
    }
}

BODY_INLINE void body_across(const mgr_normal_job *shared, const mgr_normal_rows *rows, void *out,
                             size_t element_bytes, body_store_rows *store)
{
    const mgr_normal_job job = *shared; /* a copy that the output cannot alias */
    const size_t stride = rows->stride * element_bytes;
    for (uint32_t b = 0; b < rows->n_blocks; b++)
        body_across_row(&job, rows, rows->block + b, (unsigned char *)out + b * 4 * stride, stride,
                        element_bytes, store);
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
