/*
 * Philox, words, normals on every CPU path, samples and permutations: against known answers,
 * against a second implementation (golden files, Random123), and against statistics.
 */
#include "support/check.h"

#include <math.h>

#include <Random123/philox.h>

#include "core/mem.h"
#include "mgr/rng.h"
#include "rng/normal.h"
#include "unit/golden.h"

#define BUFFER 4096

/* Small, good enough for test inputs, and independent of what is tested (splitmix64). */
static uint64_t mix_state = 42;

static uint64_t mix(void)
{
    uint64_t z = mix_state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

static mgr_stream random_stream(void)
{
    return (mgr_stream){.seed = mix(),
                        .purpose = (uint32_t)mix(),
                        .layer = (uint32_t)mix(),
                        .expert = (uint32_t)mix()};
}

static void select_path(mgr_simd simd)
{
    mgr_err err = MGR_ERR_INIT;
    CHECK_INT(mgr_simd_select(simd, &err), MGR_OK);
    CHECK_INT(mgr_simd_current(), simd);
}

static void test_known_answers(void)
{
    golden_file g;
    int n_lines = 0;

    CHECK(golden_open(&g, "philox_kat.txt"));
    while (g.file && golden_line(&g)) {
        uint32_t in[6], out[4];
        for (int i = 0; i < 6; i++)
            in[i] = (uint32_t)golden_number(&g, 16);
        CHECK(golden_colon(&g));
        mgr_philox(in, in + 4, out);
        for (int i = 0; i < 4; i++)
            CHECK_INT(out[i], golden_number(&g, 16));
        n_lines++;
    }
    CHECK_INT(n_lines, 3);
}

static void test_random123(void)
{
    for (int i = 0; i < 20000; i++) {
        uint32_t counter[4], key[2], out[4];
        for (int j = 0; j < 4; j++)
            counter[j] = (uint32_t)mix();
        key[0] = (uint32_t)mix();
        key[1] = (uint32_t)mix();

        const philox4x32_ctr_t c = {{counter[0], counter[1], counter[2], counter[3]}};
        const philox4x32_key_t k = {{key[0], key[1]}};
        const philox4x32_ctr_t expected = philox4x32_R(10, c, k);
        mgr_philox(counter, key, out);
        CHECK(memcmp(out, expected.v, sizeof out) == 0);
    }
}

/* Word j of block b is stream element 4 b + j. */
static void test_words(void)
{
    uint32_t words[BUFFER];

    for (int i = 0; i < 200; i++) {
        const mgr_stream s = random_stream();
        const uint64_t first = mix() % ((UINT64_C(1) << 34) - 600);
        const size_t n = (size_t)(mix() % 600);
        const uint32_t key[2] = {(uint32_t)s.seed, (uint32_t)(s.seed >> 32)};

        words[n] = 0xABADCAFE;
        mgr_words(&s, first, n, words);
        CHECK_INT(words[n], 0xABADCAFE);
        for (size_t j = 0; j < n; j++) {
            const uint32_t counter[4] = {(uint32_t)((first + j) / 4), s.purpose, s.layer, s.expert};
            uint32_t block[4];
            mgr_philox(counter, key, block);
            CHECK_INT(words[j], block[(first + j) % 4]);
        }
    }
}

static uint64_t hash_of_normals(const mgr_stream *s)
{
    static float z[BUFFER];
    uint64_t hash = 0;
    for (uint64_t first = 0; first < 1 << 20; first += BUFFER) {
        mgr_normals(s, first, BUFFER, z);
        for (uint64_t i = 0; i < BUFFER; i++)
            hash += (2 * (first + i) + 1) * mgr_f32_bits(z[i]);
    }
    return hash;
}

static void test_golden_normals(void)
{
    golden_file g;
    int n_lines = 0;

    CHECK(golden_open(&g, "golden_normals.txt"));
    while (g.file && golden_line(&g)) {
        mgr_stream s;
        uint64_t bits[64];
        float z[64];
        s.seed = golden_number(&g, 10);
        s.purpose = (uint32_t)golden_number(&g, 10);
        s.layer = (uint32_t)golden_number(&g, 10);
        s.expert = (uint32_t)golden_number(&g, 10);
        const uint64_t first = golden_number(&g, 10);
        n_lines++;
        if (!golden_colon(&g)) { /* "hash": of many, for what is rare */
            CHECK_INT(hash_of_normals(&s), golden_number(&g, 16));
            continue;
        }
        const size_t n = golden_rest(&g, 16, bits, 64);
        CHECK(n > 0);

        mgr_normals(&s, first, n, z);
        for (size_t i = 0; i < n; i++)
            CHECK_INT(mgr_f32_bits(z[i]), bits[i]);
    }
    CHECK_INT(n_lines, 21);
}

/* Any range has the values of its elements one by one, and writes nothing else. */
static void test_ranges(void)
{
    const mgr_stream s = {.seed = 99, .purpose = 4, .layer = 3, .expert = 2};
    static float whole[BUFFER], part[BUFFER + 1];

    for (size_t i = 0; i < BUFFER; i++)
        mgr_normals(&s, i, 1, &whole[i]);
    for (int i = 0; i < 2000; i++) {
        const size_t first = (size_t)(mix() % 300), n = (size_t)(mix() % (i % 8 ? 300 : 3000));
        part[n] = 12345.0f;
        mgr_normals(&s, first, n, part);
        CHECK(memcmp(part, whole + first, n * sizeof *part) == 0);
        CHECK(part[n] == 12345.0f);
    }
}

/* Where a pair lies, and that the arithmetic is right, against double precision. */
static void test_accuracy(void)
{
    const mgr_stream s = {.seed = 7, .purpose = 5, .layer = 1, .expert = 0};
    static uint32_t words[BUFFER];
    static float z[BUFFER];
    const double quarter_pi = 0.78539816339744830962;
    double worst = 0;

    for (uint64_t first = 0; first < 250 * BUFFER; first += BUFFER) {
        mgr_words(&s, first, BUFFER, words);
        mgr_normals(&s, first, BUFFER, z);
        for (size_t i = 0; i < BUFFER; i += 2) {
            /* The words as float32 are what the contract starts from. */
            const double u = (double)(float)((words[i] & 0x7fffffff) | 1) * 0x1p-31;
            const double angle = (double)(float)(int32_t)words[i + 1] * 0x1p-31 * quarter_pi;
            const double radius = sqrt(-2 * log(u));
            const double c = cos(angle) * (words[i + 1] & 1 ? -1 : 1), sine = sin(angle);
            const int swap = (words[i + 1] & 2) != 0;
            const double even = radius * (swap ? sine : c), odd = radius * (swap ? c : sine);
            worst = fmax(worst, fabs(z[i] - even) / fmax(1, fabs(even)));
            worst = fmax(worst, fabs(z[i + 1] - odd) / fmax(1, fabs(odd)));
        }
    }
    if (worst > 6e-7)
        fprintf(stderr, "worst error of a normal: %g\n", worst);
    CHECK(worst < 6e-7);
    CHECK(worst > 1e-9); /* the comparison compares something */
}

static int ascending(const void *a, const void *b)
{
    float x, y;
    memcpy(&x, a, sizeof x);
    memcpy(&y, b, sizeof y);
    return (x > y) - (x < y);
}

/* Kolmogorov-Smirnov, four moments, independence of a pair, and the tail. */
static void test_statistics(void)
{
    enum { n = 1 << 21 };
    const mgr_stream s = {.seed = 1234, .purpose = 4, .layer = 0, .expert = 0};
    float *z;
    mgr_err err = MGR_ERR_INIT;
    double m1 = 0, m2 = 0, m3 = 0, m4 = 0, pair = 0, squares = 0, distance = 0;
    int beyond_4 = 0;

    CHECK_INT(mgr_alloc(&z, n, sizeof *z, &err), MGR_OK);
    mgr_normals(&s, 0, n, z);
    for (int i = 0; i < n; i++) {
        const double x = z[i];
        m1 += x;
        m2 += x * x;
        m3 += x * x * x;
        m4 += x * x * x * x;
        beyond_4 += fabs(x) > 4;
    }
    for (int i = 0; i < n; i += 2) {
        pair += (double)z[i] * z[i + 1];
        squares += ((double)z[i] * z[i] - 1) * ((double)z[i + 1] * z[i + 1] - 1);
    }
    const double unit = 1 / sqrt(n); /* all bounds are 4.5 standard deviations */
    CHECK(fabs(m1 / n) < 4.5 * unit);
    CHECK(fabs(m2 / n - 1) < 4.5 * sqrt(2) * unit);
    CHECK(fabs(m3 / n) < 4.5 * sqrt(15) * unit);
    CHECK(fabs(m4 / n - 3) < 4.5 * sqrt(96) * unit);
    CHECK(fabs(pair / (n / 2)) < 4.5 * sqrt(2) * unit);
    CHECK(fabs(squares / (n / 2)) < 4.5 * sqrt(2) * 2 * unit);
    CHECK(fabs(beyond_4 - n * 6.334e-5) < 4.5 * sqrt(n * 6.334e-5));

    qsort(z, n, sizeof *z, ascending);
    for (int i = 0; i < n; i++) {
        const double expected = 0.5 * erfc(-z[i] / sqrt(2));
        distance = fmax(distance, fabs(expected - (i + 0.5) / n));
    }
    CHECK(distance < 1.95 * unit); /* p = 0.001 */
    mgr_free(z);
}

/* The smallest radius word gives the largest value; nothing is infinite or NaN. */
static void test_tail(void)
{
    const mgr_stream s = {.seed = 5, .purpose = 6, .layer = 0, .expert = 0};
    static float z[BUFFER];
    float largest = 0;

    for (uint64_t first = 0; first < 4000 * (uint64_t)BUFFER; first += BUFFER) {
        mgr_normals(&s, first, BUFFER, z);
        for (int i = 0; i < BUFFER; i++)
            largest = fabsf(z[i]) > largest || z[i] != z[i] ? fabsf(z[i]) : largest;
    }
    CHECK(largest > 5.0f && largest < 6.6f); /* 16 million draws reach 5.4 or so */
}

static void test_equal_paths(void)
{
    static float reference[BUFFER], z[BUFFER];
    static uint32_t words[BUFFER], reference_words[BUFFER];

    for (int i = 0; i < 3000; i++) {
        const mgr_stream s = random_stream();
        const size_t n = (size_t)(mix() % (i % 20 ? 200 : BUFFER));
        const uint64_t first = i % 5 ? mix() % ((UINT64_C(1) << 34) - n) : (UINT64_C(1) << 34) - n;

        select_path(MGR_SIMD_SCALAR);
        mgr_normals(&s, first, n, reference);
        mgr_words(&s, first, n, reference_words);
        for (int simd = 1; simd < MGR_SIMD_COUNT; simd++) {
            if (!mgr_simd_available((mgr_simd)simd))
                continue;
            select_path((mgr_simd)simd);
            mgr_normals(&s, first, n, z);
            mgr_words(&s, first, n, words);
            CHECK(memcmp(z, reference, n * sizeof *z) == 0);
            CHECK(memcmp(words, reference_words, n * sizeof *words) == 0);
        }
    }
}

/* Runs side by side are the same numbers as one after the other, from any row on. */
static void test_across(void)
{
    enum { MOST = 80, ROWS = 11, STRIDE = 96 };
    static float expected[4 * 200 * MOST + ROWS], got[(ROWS + 1) * STRIDE];

    for (int i = 0; i < 300; i++) {
        const mgr_stream s = random_stream();
        const mgr_dtype to = i % 2 ? MGR_DTYPE_BF16 : MGR_DTYPE_F32;
        const size_t bytes = mgr_dtype_size(to), n = (size_t)(mix() % MOST) + 1;
        const uint32_t n_rows = (uint32_t)(mix() % ROWS) + 1;
        const uint64_t step = 4 * (mix() % 200 + 1), all = step * (n - 1) + n_rows;
        const uint64_t first = i % 5 ? mix() % 100000 : (UINT64_C(1) << 34) - all;
        const unsigned char *const out = (const unsigned char *)got;

        mgr_normals_affine(&s, first, all, 0.5f, 0.02f, expected, to);
        memset(got, 0x5a, sizeof got);
        mgr_normals_affine_across(&s, (mgr_runs){first, step, n, n_rows}, 0.5f, 0.02f, got, STRIDE,
                                  to);
        for (uint32_t r = 0; r < n_rows; r++)
            for (size_t j = 0; j < n; j++)
                CHECK(memcmp(out + (r * STRIDE + j) * bytes,
                             (const unsigned char *)expected + (r + j * step) * bytes, bytes) == 0);
        CHECK_INT(out[n_rows * STRIDE * bytes], 0x5a);
    }
}

static void test_golden_samples(void)
{
    golden_file g;
    int n_lines = 0;

    CHECK(golden_open(&g, "golden_samples.txt"));
    while (g.file && golden_line(&g)) {
        mgr_stream s;
        mgr_err err = MGR_ERR_INIT;
        uint64_t expected[1024];
        uint32_t got[1024];
        const int sample = strcmp(golden_token(&g), "sample") == 0;
        s.seed = golden_number(&g, 10);
        s.purpose = (uint32_t)golden_number(&g, 10);
        s.layer = (uint32_t)golden_number(&g, 10);
        s.expert = (uint32_t)golden_number(&g, 10);
        const uint32_t population = (uint32_t)golden_number(&g, 10);
        const uint32_t n = (uint32_t)golden_number(&g, 10);
        CHECK(golden_colon(&g));
        CHECK_INT(golden_rest(&g, 10, expected, 1024), n);

        CHECK_INT(sample ? mgr_sample(&s, population, n, got, &err)
                         : mgr_permutation(&s, n, got, &err),
                  MGR_OK);
        for (uint32_t i = 0; i < n; i++)
            CHECK_INT(got[i], expected[i]);
        n_lines++;
    }
    CHECK_INT(n_lines, 50);
}

typedef struct keyed {
    uint64_t key;
    uint32_t idx;
} keyed;

static int by_key(const void *a, const void *b)
{
    const keyed *x = a, *y = b;
    if (x->key != y->key)
        return x->key < y->key ? -1 : 1;
    return x->idx < y->idx ? -1 : x->idx > y->idx;
}

/* Against a library sort of the keys. */
static void test_large_samples(void)
{
    enum { most = 60000 };
    static keyed entries[most];
    static uint32_t words[2 * most], order[most], chosen[most];
    static unsigned char in_sample[most];
    mgr_err err = MGR_ERR_INIT;

    for (int i = 0; i < 12; i++) {
        const mgr_stream s = random_stream();
        const uint32_t population = i == 0 ? most : (uint32_t)(mix() % most) + 1;
        const uint32_t n = i == 1 ? population : (uint32_t)(mix() % population);
        uint32_t j = 0;

        mgr_words(&s, 0, 2 * (size_t)population, words);
        for (uint32_t k = 0; k < population; k++)
            entries[k] = (keyed){words[2 * k] | (uint64_t)words[2 * k + 1] << 32, k};
        qsort(entries, population, sizeof *entries, by_key);

        CHECK_INT(mgr_permutation(&s, population, order, &err), MGR_OK);
        CHECK_INT(mgr_sample(&s, population, n, chosen, &err), MGR_OK);
        memset(in_sample, 0, sizeof in_sample);
        for (uint32_t k = 0; k < population; k++) {
            CHECK_INT(order[k], entries[k].idx);
            in_sample[entries[k].idx] = k < n;
        }
        for (uint32_t k = 0; k < population; k++) {
            if (in_sample[k])
                CHECK_INT(chosen[j++], k);
        }
        CHECK_INT(j, n);
    }
}

static void test_no_memory(void)
{
    const mgr_stream s = {.seed = 1};
    mgr_err err = MGR_ERR_INIT;
    uint32_t out[10];

    mgr_alloc_fail_at(1);
    CHECK_INT(mgr_sample(&s, 10, 3, out, &err), MGR_ERR_NOMEM);
    mgr_alloc_fail_at(1);
    err = (mgr_err)MGR_ERR_INIT;
    CHECK_INT(mgr_permutation(&s, 10, out, &err), MGR_ERR_NOMEM);
    mgr_alloc_fail_at(0);
    CHECK_INT(mgr_permutation(&s, 0, out, &err), MGR_OK);
    CHECK_INT(mgr_sample(&s, 10, 0, out, &err), MGR_OK);
}

static void test_paths_by_name(void)
{
    mgr_err err = MGR_ERR_INIT;

    CHECK_TEXT(mgr_simd_name(MGR_SIMD_SCALAR), "scalar");
    CHECK_TEXT(mgr_simd_name(MGR_SIMD_NEON), "neon");
    CHECK_TEXT(mgr_simd_name(MGR_SIMD_COUNT), "unknown");
    CHECK(mgr_simd_available(MGR_SIMD_SCALAR));
    CHECK(!mgr_simd_available(MGR_SIMD_COUNT));
    CHECK(!mgr_simd_available(MGR_SIMD_NEON) || !mgr_simd_available(MGR_SIMD_AVX2));
    for (int i = 0; i < MGR_SIMD_COUNT; i++) {
        if (mgr_simd_available((mgr_simd)i))
            continue;
        err = (mgr_err)MGR_ERR_INIT;
        CHECK_INT(mgr_simd_select((mgr_simd)i, &err), MGR_ERR_UNSUPPORTED);
        CHECK_HAS(err.msg, mgr_simd_name((mgr_simd)i));
    }
}

int main(void)
{
    test_paths_by_name();
    test_known_answers();
    test_random123();
    test_equal_paths();
    test_statistics();
    for (int simd = 0; simd < MGR_SIMD_COUNT; simd++) {
        if (!mgr_simd_available((mgr_simd)simd))
            continue;
        select_path((mgr_simd)simd);
        test_words();
        test_golden_normals();
        test_ranges();
        test_across();
        test_accuracy();
        test_tail();
        test_golden_samples();
        test_large_samples();
    }
    test_no_memory();
    return CHECK_DONE();
}
