/*
 * Casts, strided copies, scaled normals, and the exact sums with their moments.
 */
#include "support/check.h"

#include <math.h>

#include "core/mem.h"
#include "kern/columns.h"
#include "kern/kern.h"
#include "mgr/upcycle.h"
#include "unit/golden.h"

#define BUFFER 4096

static const mgr_dtype weights[3] = {MGR_DTYPE_BF16, MGR_DTYPE_F16, MGR_DTYPE_F32};

static uint64_t mix_state = 1;

static uint64_t mix(void)
{
    uint64_t z = mix_state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

/* One element by the scalar conversions of mgr/dtype.h. */
static float load_one(const unsigned char *at, mgr_dtype from)
{
    uint16_t half;
    float x;
    if (from == MGR_DTYPE_F32) {
        memcpy(&x, at, sizeof x);
        return x;
    }
    memcpy(&half, at, sizeof half);
    return from == MGR_DTYPE_BF16 ? mgr_bf16_to_f32(half) : mgr_f16_to_f32(half);
}

static void store_one(unsigned char *at, mgr_dtype to, float x)
{
    const uint16_t half = to == MGR_DTYPE_BF16 ? mgr_f32_to_bf16(x) : mgr_f32_to_f16(x);
    if (to == MGR_DTYPE_F32)
        memcpy(at, &x, sizeof x);
    else
        memcpy(at, &half, sizeof half);
}

/* mgr_cast of `n` elements gives what the scalar conversions give, and writes nothing else. */
static void check_cast(const void *src, mgr_dtype from, mgr_dtype to, size_t n)
{
    static unsigned char got[BUFFER * 4 + 4], expected[BUFFER * 4 + 4];
    const size_t from_bytes = mgr_dtype_size(from), to_bytes = mgr_dtype_size(to);

    memset(got, 0x5a, sizeof got);
    memset(expected, 0x5a, sizeof expected);
    for (size_t i = 0; i < n; i++) {
        const unsigned char *at = (const unsigned char *)src + i * from_bytes;
        if (from == to)
            memcpy(expected + i * to_bytes, at, to_bytes);
        else
            store_one(expected + i * to_bytes, to, load_one(at, from));
    }
    mgr_cast(got, to, src, from, n);
    CHECK(memcmp(got, expected, sizeof got) == 0);
}

/* All halves there are. */
static void test_cast_halves(void)
{
    static uint16_t halves[BUFFER];
    for (uint32_t first = 0; first < 65536; first += BUFFER) {
        for (uint32_t i = 0; i < BUFFER; i++)
            halves[i] = (uint16_t)(first + i);
        for (int from = 0; from < 2; from++) {
            for (int to = 0; to < 3; to++)
                check_cast(halves, weights[from], weights[to], BUFFER);
        }
    }
}

/* Floats around every half and every midpoint between two halves, and random bits. */
static void test_cast_floats(void)
{
    static uint32_t bits[BUFFER];
    size_t n = 0;

    for (uint32_t half = 0; half < 65536 + 8192; half++) {
        const uint32_t f16 = mgr_f32_bits(mgr_f16_to_f32((uint16_t)half));
        const uint32_t around[] = {f16 - 1,
                                   f16,
                                   f16 + 1,
                                   f16 + 0xfff,
                                   f16 + 0x1000,
                                   f16 + 0x1001,
                                   (half << 16) - 1,
                                   half << 16,
                                   (half << 16) + 1,
                                   (half << 16) + 0x7fff,
                                   (half << 16) + 0x8000,
                                   (half << 16) + 0x8001,
                                   (uint32_t)mix()};
        for (size_t i = 0; i < sizeof around / sizeof around[0]; i++) {
            bits[n++] = half < 65536 ? around[i] : (uint32_t)mix();
            if (n == BUFFER) {
                for (int to = 0; to < 3; to++)
                    check_cast(bits, MGR_DTYPE_F32, weights[to], BUFFER);
                n = 0;
            }
        }
    }
}

/* Every length up to some blocks, at addresses that no type is aligned to. */
static void test_cast_lengths(void)
{
    unsigned char bytes[1 + 300 * 4];
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (unsigned char)mix();
    for (size_t n = 0; n < 300; n++) {
        for (int i = 0; i < 9; i++)
            check_cast(bytes + 1, weights[i / 3], weights[i % 3], n);
    }
}

/* Rounded once from float64: by way of float32 each of these would be a tie that is none. */
static void test_average(void)
{
    const float up[2] = {0x1.01p0f, 0x1.010002p0f};   /* above the middle of 1 and 1 + 2^-7 */
    const float down[2] = {0x1.03p0f, 0x1.02fffep0f}; /* below that of 1 + 2^-7 and 1 + 2^-6 */
    const float most[2] = {-0x1.fffffep127f, -0x1.fffffep127f}, third[3] = {1, 0, 0};
    const mgr_dtype types[3] = {MGR_DTYPE_F32, MGR_DTYPE_F32, MGR_DTYPE_F32};
    const struct {
        const float *values;
        uint32_t n;
        mgr_dtype to;
        uint32_t bits;
    } cases[] = {
        {up, 2, MGR_DTYPE_BF16, 0x3f81},      {down, 2, MGR_DTYPE_BF16, 0x3f81},
        {most, 2, MGR_DTYPE_F32, 0xff7fffff}, {third, 3, MGR_DTYPE_F32, 0x3eaaaaab},
        {third, 3, MGR_DTYPE_F16, 0x3555},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const void *sources[3];
        uint32_t bits = 0;
        for (uint32_t s = 0; s < cases[i].n; s++)
            sources[s] = &cases[i].values[s];
        mgr_average(&bits, cases[i].to, sources, types, cases[i].n, 1);
        CHECK(bits == cases[i].bits);
    }
}

static void test_copy_2d(void)
{
    unsigned char from[64], to[64];
    for (int i = 0; i < 64; i++)
        from[i] = (unsigned char)i;

    memset(to, 0xff, sizeof to);
    mgr_copy_2d(to, 8, from, 16, 3, 4);
    for (int i = 0; i < 64; i++)
        CHECK_INT(to[i], i < 32 && i % 8 < 3 ? i / 8 * 16 + i % 8 : 0xff);

    memset(to, 0xff, sizeof to);
    mgr_copy_2d(to, 5, from, 5, 5, 7);
    for (int i = 0; i < 64; i++)
        CHECK_INT(to[i], i < 35 ? i : 0xff);

    memset(to, 0xff, sizeof to);
    mgr_copy_2d(to, 5, from, 5, 5, 0);
    mgr_copy_2d(to, 0, from, 0, 0, 5);
    CHECK_INT(to[0], 0xff);
}

/* mean + std * z, rounded in between and once at the end, for any range and type. */
static void test_normals_scaled(void)
{
    const mgr_stream s = {.seed = 3, .purpose = 4, .layer = 5, .expert = 6};
    static float z[BUFFER];
    static unsigned char got[BUFFER * 4 + 4], expected[BUFFER * 4 + 4];

    for (int i = 0; i < 600; i++) {
        const mgr_dtype to = weights[i % 3];
        const size_t bytes = mgr_dtype_size(to), n = (size_t)(mix() % (i % 10 ? 300 : 4000));
        const uint64_t first = mix() % 5000;
        const float mean = i % 4 ? 0.001f * (float)(mix() % 7) : 0.0f;
        const float std = i % 7 ? 0.02f : 1e-6f;

        memset(got, 0x5a, sizeof got);
        memset(expected, 0x5a, sizeof expected);
        mgr_normals(&s, first, n, z);
        for (size_t j = 0; j < n; j++) {
            const float product = std * z[j];
            store_one(expected + j * bytes, to, mean + product);
        }
        mgr_normals_scaled(&s, first, n, mean, std, got, to);
        CHECK(memcmp(got, expected, sizeof got) == 0);
    }
}

/* ---- sums ---- */

static void fill_weights(unsigned char *out, mgr_dtype type, size_t n, float mean, float std)
{
    const mgr_stream s = {.seed = mix(), .purpose = MGR_PURPOSE_SYNTH};
    mgr_normals_scaled(&s, 0, n, mean, std, out, type);
}

static void test_golden_sums(void)
{
    golden_file g;
    int n_lines = 0;

    CHECK(golden_open(&g, "golden_sums.txt"));
    while (g.file && golden_line(&g)) {
        mgr_stream s = {.purpose = MGR_PURPOSE_SYNTH};
        uint32_t data[1024];
        mgr_sums sums[16] = {{0, 0, 0, 0}};
        uint32_t even[16];
        double scratch[2 * 16], mean, std;
        const int by_row = strcmp(golden_token(&g), "rows") == 0;

        s.seed = golden_number(&g, 10);
        s.layer = (uint32_t)golden_number(&g, 10);
        s.expert = (uint32_t)golden_number(&g, 10);
        const size_t rows = (size_t)golden_number(&g, 10), cols = (size_t)golden_number(&g, 10);
        const uint32_t neurons = (uint32_t)(by_row ? rows : cols);
        const float shift = (float)golden_real(&g);
        const mgr_dtype type = mgr_dtype_from_name(golden_token(&g));
        CHECK(golden_colon(&g));
        CHECK(rows * cols <= 1024 && neurons <= 16);
        mgr_normals_scaled(&s, 0, rows * cols, shift, 0.02f, data, type);
        CHECK_INT(by_row ? mgr_sums_add_rows(sums, data, type, rows, cols)
                         : mgr_sums_add_cols(sums, data, type, rows, cols, scratch),
                  0);
        for (uint32_t i = 0; i < neurons; i++) {
            CHECK_INT(sums[i].sum_hi, golden_signed(&g));
            CHECK_INT(sums[i].sum_lo, golden_signed(&g));
            CHECK_INT(sums[i].square_hi, golden_signed(&g));
            CHECK_INT(sums[i].square_lo, golden_signed(&g));
        }

        CHECK(golden_line(&g));
        CHECK_TEXT(golden_token(&g), "moments");
        CHECK(golden_colon(&g));
        for (uint32_t i = 0; i < (neurons + 1) / 2; i++)
            even[i] = 2 * i;
        mgr_moments(sums, even, (neurons + 1) / 2, by_row ? cols : rows, &mean, &std);
        CHECK(mean == golden_real(&g));
        CHECK(std == golden_real(&g));
        n_lines++;
    }
    CHECK_INT(n_lines, 6);
}

/* Against long double, over the whole matrix as one set of neurons. */
static void check_moments(const unsigned char *data, mgr_dtype type, size_t rows, size_t cols,
                          int by_row, double tolerance)
{
    static mgr_sums sums[BUFFER];
    static uint32_t all[BUFFER];
    static double scratch[2 * BUFFER];
    const size_t n = rows * cols, bytes = mgr_dtype_size(type), neurons = by_row ? rows : cols;
    long double mean = 0, square = 0;
    double got_mean, got_std;

    memset(sums, 0, sizeof sums);
    CHECK_INT(by_row ? mgr_sums_add_rows(sums, data, type, rows, cols)
                     : mgr_sums_add_cols(sums, data, type, rows, cols, scratch),
              0);
    for (size_t i = 0; i < neurons; i++)
        all[i] = (uint32_t)i;
    mgr_moments(sums, all, (uint32_t)neurons, n / neurons, &got_mean, &got_std);

    for (size_t i = 0; i < n; i++)
        mean += (long double)load_one(data + i * bytes, type);
    mean /= (long double)n;
    for (size_t i = 0; i < n; i++) {
        const long double d = (long double)load_one(data + i * bytes, type) - mean;
        square += d * d;
    }
    const double std = n > 1 ? (double)sqrtl(square / (long double)(n - 1)) : 0;
    CHECK(fabs(got_mean - (double)mean) <= tolerance * (fabs((double)mean) + std));
    CHECK(fabs(got_std - std) <= tolerance * std);
}

static void test_moments(void)
{
    static unsigned char data[BUFFER * 16 * 4];
    static const float means[] = {0, 0.001f, -1, 1};
    static const float stds[] = {0.02f, 1e-4f, 30, 0.01f};

    for (int i = 0; i < 120; i++) {
        const mgr_dtype type = weights[i % 3];
        const size_t rows = (size_t)(mix() % 200) + 1, cols = (size_t)(mix() % 300) + 1;
        const int kind = i / 3 % 4;
        /* float32 with a mean of 100 standard deviations: the block sums themselves round. */
        const double tolerance = kind == 3 ? 1e-10 : 1e-12;
        fill_weights(data, type, rows * cols, means[kind], stds[kind]);
        check_moments(data, type, rows, cols, i % 2, tolerance);
    }
    /* A spread of 2^-20 around 1: nearly all digits of the squares cancel. */
    for (size_t j = 0; j < 64 * 60; j++)
        store_one(data + j * 4, MGR_DTYPE_F32, 1 + (float)(mix() % 4) * 0x1p-20f);
    check_moments(data, MGR_DTYPE_F32, 64, 60, 0, 1e-9);
    check_moments(data, MGR_DTYPE_F32, 64, 60, 1, 1e-9);
    /* Equal entries have no spread, and few entries have little. */
    for (int i = 0; i < 3; i++) {
        for (size_t j = 0; j < 70 * 30; j++)
            store_one(data + j * mgr_dtype_size(weights[i]), weights[i], -0.75f);
        check_moments(data, weights[i], 70, 30, 1, 0);
        check_moments(data, weights[i], 70, 30, 0, 0);
        check_moments(data, weights[i], 1, 1, 0, 0);
    }
}

static void test_few_entries(void)
{
    const float x[2] = {3, 5};
    const uint32_t first = 0;
    mgr_sums sums[1] = {{0, 0, 0, 0}};
    double mean = 7, std = 7;

    mgr_moments(sums, &first, 0, 100, &mean, &std);
    CHECK(mean == 0 && std == 0);
    CHECK_INT(mgr_sums_add_rows(sums, x, MGR_DTYPE_F32, 1, 1), 0);
    mgr_moments(sums, &first, 1, 1, &mean, &std);
    CHECK(mean == 3 && std == 0);
    memset(sums, 0, sizeof sums);
    CHECK_INT(mgr_sums_add_rows(sums, x, MGR_DTYPE_F32, 1, 2), 0);
    mgr_moments(sums, &first, 1, 2, &mean, &std);
    CHECK(mean == 4 && fabs(std - sqrt(2)) < 1e-15);

    /* Just below zero rounds to zero: lo stays below 2^52. */
    const float tiny = -1e-30f;
    memset(sums, 0, sizeof sums);
    CHECK_INT(mgr_sums_add_rows(sums, &tiny, MGR_DTYPE_F32, 1, 1), 0);
    CHECK_INT(sums[0].sum_hi, 0);
    CHECK_INT(sums[0].sum_lo, 0);
}

/* No cut at canonical boundaries and no order of the pieces changes a bit. */
static void test_partitions(void)
{
    enum { rows = 300, cols = 1100 };
    static unsigned char data[rows * cols * 4];
    static mgr_sums whole[cols], pieces[cols], part[cols];
    static double scratch[2 * cols];

    for (int i = 0; i < 24; i++) {
        const mgr_dtype type = weights[i % 3];
        const size_t row_bytes = cols * mgr_dtype_size(type);
        fill_weights(data, type, rows * cols, 0.003f, 0.05f);

        memset(whole, 0, sizeof whole);
        memset(pieces, 0, sizeof pieces);
        CHECK_INT(mgr_sums_add_cols(whole, data, type, rows, cols, scratch), 0);
        for (size_t r = rows; r > 0;) { /* from the end, two ranks in turn */
            const size_t blocks = (r + MGR_CANONICAL_ROWS - 1) / MGR_CANONICAL_ROWS;
            const size_t first = (blocks - 1 - mix() % blocks) * MGR_CANONICAL_ROWS;
            memset(part, 0, sizeof part);
            CHECK_INT(
                mgr_sums_add_cols(part, data + first * row_bytes, type, r - first, cols, scratch),
                0);
            for (size_t c = 0; c < cols; c++) {
                pieces[c].sum_hi += part[c].sum_hi;
                pieces[c].sum_lo += part[c].sum_lo;
                pieces[c].square_hi += part[c].square_hi;
                pieces[c].square_lo += part[c].square_lo;
            }
            r = first;
        }
        CHECK(memcmp(whole, pieces, sizeof whole) == 0);

        memset(whole, 0, sizeof whole);
        memset(pieces, 0, sizeof pieces);
        CHECK_INT(mgr_sums_add_rows(whole, data, type, rows, cols), 0);
        for (size_t r = 0; r < rows; r++)
            CHECK_INT(mgr_sums_add_rows(pieces + r, data + r * row_bytes, type, 1, cols), 0);
        CHECK(memcmp(whole, pieces, sizeof whole) == 0);
    }
}

/* A column's share of a matrix cut by columns (tensor parallel) is the same as in the whole. */
static void test_column_cut(void)
{
    enum { rows = 130, cols = 200, cut = 77 };
    static unsigned char data[rows * cols * 2], left[rows * cut * 2], right[rows * cols * 2];
    static mgr_sums whole[cols], parts[cols];
    static double scratch[2 * cols];

    fill_weights(data, MGR_DTYPE_BF16, rows * cols, 0, 0.02f);
    mgr_copy_2d(left, cut * 2, data, cols * 2, cut * 2, rows);
    mgr_copy_2d(right, (cols - cut) * 2, data + cut * 2, cols * 2, (cols - cut) * 2, rows);
    CHECK_INT(mgr_sums_add_cols(whole, data, MGR_DTYPE_BF16, rows, cols, scratch), 0);
    CHECK_INT(mgr_sums_add_cols(parts, left, MGR_DTYPE_BF16, rows, cut, scratch), 0);
    CHECK_INT(mgr_sums_add_cols(parts + cut, right, MGR_DTYPE_BF16, rows, cols - cut, scratch), 0);
    CHECK(memcmp(whole, parts, sizeof whole) == 0);
}

static void test_refused(void)
{
    static float data[100 * 70];
    static double scratch[2 * 100];
    static const uint32_t bad[] = {0x7f800000, 0xff800000, 0x7fc00000, 0xffc00001, 0x7f7fffff};
    mgr_sums sums[100];

    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        for (size_t at = 0; at < 7000; at += 333) {
            memset(data, 0, sizeof data);
            data[at] = mgr_bits_f32(bad[i]);
            memset(sums, 0, sizeof sums);
            CHECK(mgr_sums_add_rows(sums, data, MGR_DTYPE_F32, 70, 100) != 0);
            memset(sums, 0, sizeof sums);
            CHECK(mgr_sums_add_cols(sums, data, MGR_DTYPE_F32, 70, 100, scratch) != 0);
        }
    }
    /* What is allowed, at its largest, over the most blocks: no overflow (run with UBSan). */
    memset(sums, 0, sizeof sums);
    for (size_t i = 0; i < 64; i++)
        data[i] = i % 3 ? 1448 : -1448;
    for (int block = 0; block < 2048; block++)
        CHECK_INT(mgr_sums_add_cols(sums, data, MGR_DTYPE_F32, 64, 1, scratch), 0);
    CHECK(sums[0].square_hi > 0);
    data[0] = 4000;
    CHECK(mgr_sums_add_cols(sums, data, MGR_DTYPE_F32, 64, 1, scratch) != 0);
    data[0] = 524287;
    memset(sums, 0, sizeof sums);
    CHECK_INT(mgr_sums_add_rows(sums, data, MGR_DTYPE_F32, 1, 1), 0);
    data[0] = 524288;
    CHECK(mgr_sums_add_rows(sums, data, MGR_DTYPE_F32, 1, 1) != 0);
}

/* The sums of a matrix of any shape and type are the same bits on every path. */
static void check_paths_of_sums(void)
{
    enum { ROWS = 70, COLS = 600 };
    static unsigned char data[ROWS * COLS * 4];
    static mgr_sums by[2][ROWS + COLS];
    mgr_err err = MGR_ERR_INIT;

    for (int i = 0; i < 60; i++) {
        const size_t rows = (size_t)(mix() % ROWS) + 1, cols = (size_t)(mix() % COLS) + 1;
        fill_weights(data, weights[i % 3], rows * cols, 0.003f, 1.0f);
        for (int simd = 0; simd < MGR_SIMD_COUNT; simd++) {
            mgr_sums *const sums = by[simd != MGR_SIMD_SCALAR];
            if (!mgr_simd_available((mgr_simd)simd))
                continue;
            CHECK_INT(mgr_simd_select((mgr_simd)simd, &err), MGR_OK);
            memset(sums, 0, sizeof by[0]);
            CHECK_INT(mgr_sums_add_rows(sums, data, weights[i % 3], rows, cols), 0);
            CHECK_INT(mgr_sums_add_cols(sums + ROWS, data, weights[i % 3], rows, cols, NULL), 0);
            CHECK(memcmp(sums, by[0], sizeof by[0]) == 0);
        }
    }
}

/* Every bit pattern of the short types, and those around the edges of float32. */
static void check_magnitudes(void)
{
    for (int t = 0; t < 3; t++)
        for (int u = 0; u < 3; u++)
            for (uint32_t i = 0; i < 65536; i++) {
                uint32_t bits = weights[t] == MGR_DTYPE_F32 ? i << 16 | (i * 40503u & 0xffffu) : i;
                float before, after;
                uint32_t cast = 0;
                mgr_cast(&before, MGR_DTYPE_F32, &bits, weights[t], 1);
                mgr_cast(&cast, weights[u], &bits, weights[t], 1);
                mgr_cast(&after, MGR_DTYPE_F32, &cast, weights[u], 1);
                const uint32_t magnitude = mgr_largest_magnitude(&bits, weights[t], 1);
                CHECK(!!isfinite(before) == (magnitude < mgr_infinity_bits(weights[t])));
                if (isfinite(before))
                    CHECK(!!isfinite(after) ==
                          (magnitude < mgr_overflow_bits(weights[t], weights[u])));
            }
    static const uint32_t edges[] = {0x477fefffu, 0x477ff000u, 0x7f7f7fffu, 0x7f7f8000u};
    for (int i = 0; i < 4; i++) {
        uint16_t half;
        float after;
        const mgr_dtype to = i < 2 ? MGR_DTYPE_F16 : MGR_DTYPE_BF16;
        mgr_cast(&half, to, &edges[i], MGR_DTYPE_F32, 1);
        mgr_cast(&after, MGR_DTYPE_F32, &half, to, 1);
        CHECK(!!isfinite(after) == (edges[i] < mgr_overflow_bits(MGR_DTYPE_F32, to)));
    }
}

/* Of values of all sizes side by side, the largest of what each is alone. */
static void check_largest(void)
{
    enum { MOST = 700 };
    unsigned char values[MOST * 4 + 1];

    for (int i = 0; i < 600; i++) {
        const mgr_dtype type = weights[i % 3];
        const size_t n = (size_t)(mix() % MOST) + 1;
        const unsigned char *const at = values + i % 2;
        uint32_t most = 0;
        for (size_t b = 0; b < sizeof values; b++)
            values[b] = (unsigned char)(mix() >> i % 60);
        for (size_t v = 0; v < n; v++) {
            const uint32_t alone = mgr_largest_magnitude(at + v * mgr_dtype_size(type), type, 1);
            most = alone > most ? alone : most;
        }
        CHECK_INT(mgr_largest_magnitude(at, type, n), most);
    }
}

/* One large value in any place of any length is found, and its place. */
static void check_places(void)
{
    for (int t = 0; t < 3; t++)
        for (size_t n = 0; n < 200; n++)
            for (size_t at = 0; at < n; at++) {
                unsigned char values[200 * 4 + 1] = {0};
                const float large = -3.0f;
                const size_t bytes = mgr_dtype_size(weights[t]);
                mgr_cast(values + 1 + at * bytes, weights[t], &large, MGR_DTYPE_F32, 1);
                const uint32_t most = mgr_largest_magnitude(values + 1, weights[t], n);
                CHECK(most > 0);
                CHECK_INT(mgr_find_magnitude(values + 1, weights[t], n, most, most + 1), at);
                CHECK_INT(mgr_find_magnitude(values + 1, weights[t], n, most + 1, UINT32_MAX), n);
            }
    CHECK_INT(mgr_largest_magnitude("", MGR_DTYPE_F32, 0), 0);
}

/* Strips of each length that leaves a part of a group, none to all of their columns drawn. */
static void check_merge(void)
{
    enum { FIRST = 5, MOST = 73, BEHIND = MGR_MERGE_BEHIND };

    for (uint32_t n = 1; n <= MOST; n++)
        for (uint32_t share = 0; share <= 4; share++)
            for (size_t bytes = 2; bytes <= 4; bytes += 2) {
                uint32_t columns[MOST];
                unsigned char kept[MOST * 4], drawn[(MOST + BEHIND) * 4], out[MOST * 4 + 1];
                mgr_strip strip = {.first = FIRST, .n = n, .drawn = columns};

                for (uint32_t c = 0; c < n; c++)
                    if (mix() % 4 < share)
                        columns[strip.n_drawn++] = FIRST + c;
                for (size_t i = 0; i < sizeof kept; i++)
                    kept[i] = (unsigned char)mix();
                for (size_t i = 0; i < sizeof drawn; i++)
                    drawn[i] = (unsigned char)mix();
                mgr_strip_plan(&strip);
                out[n * bytes] = 0xa5;
                mgr_merge(&strip, kept, drawn, out, bytes);
                for (uint32_t c = 0, k = 0; c < n; c++) {
                    const bool taken = k < strip.n_drawn && columns[k] == FIRST + c;
                    const unsigned char *const from = taken ? drawn + k * bytes : kept + c * bytes;
                    CHECK(memcmp(out + c * bytes, from, bytes) == 0);
                    k += taken;
                }
                CHECK_INT(out[n * bytes], 0xa5);
                mgr_merge(&strip, kept, drawn, kept, bytes); /* in place */
                CHECK(memcmp(kept, out, n * bytes) == 0);
            }
}

static void check_turn(void)
{
    enum { ROWS = 21, STRIDE = 24, OUT_STRIDE = MGR_TURNED + 3 };

    for (uint32_t n = 1; n <= MGR_TURNED; n++)
        for (uint32_t n_rows = 1; n_rows <= ROWS; n_rows++)
            for (size_t bytes = 2; bytes <= 4; bytes += 2) {
                unsigned char drawn[MGR_TURNED * STRIDE * 4], out[(ROWS + 1) * OUT_STRIDE * 4];

                for (size_t i = 0; i < sizeof drawn; i++)
                    drawn[i] = (unsigned char)mix();
                memset(out, 0xa5, sizeof out);
                mgr_turn(drawn, STRIDE, n, n_rows, out, OUT_STRIDE, bytes);
                for (uint32_t r = 0; r < n_rows; r++)
                    for (uint32_t j = 0; j < n; j++)
                        CHECK(memcmp(out + (r * OUT_STRIDE + j) * bytes,
                                     drawn + (j * STRIDE + r) * bytes, bytes) == 0);
                CHECK_INT(out[n_rows * OUT_STRIDE * bytes], 0xa5);
            }
}

int main(void)
{
    test_cast_halves();
    test_cast_floats();
    test_cast_lengths();
    test_average();
    test_copy_2d();
    for (int simd = 0; simd < MGR_SIMD_COUNT; simd++) {
        mgr_err err = MGR_ERR_INIT;
        if (!mgr_simd_available((mgr_simd)simd))
            continue;
        CHECK_INT(mgr_simd_select((mgr_simd)simd, &err), MGR_OK);
        test_normals_scaled();
        test_golden_sums();
        check_merge();
        check_turn();
        check_places();
        check_largest();
        test_moments();
        test_column_cut();
    }
    check_paths_of_sums();
    check_magnitudes();
    test_few_entries();
    test_partitions();
    test_refused();
    return CHECK_DONE();
}
