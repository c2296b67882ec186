/* mgr-bench: the kernels, on one core, within the calls that the engine makes. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cli/bench.h"
#include "core/crc.h"
#include "core/mem.h"
#include "kern/kern.h"
#include "mgr/upcycle.h"

/* All kernels in turn, so often: others use the machine, and its clock moves, so that what is a
 * second apart cannot be compared. */
#define TURNS 21
/* Of a matrix of Mixtral 8x7B, as many rows of gate, or of down, as a buffer holds. */
#define HIDDEN 4096
#define NEURONS 14336
#define ROWS_OF_DOWN 128
#define VALUES ((size_t)ROWS_OF_DOWN * NEURONS)
#define ROWS_OF_GATE (VALUES / HIDDEN)

/* One kernel: work on VALUES values at `data`, result to `out`. */
typedef void (*kernel)(const uint16_t *data, void *out);

static void run_normals(const uint16_t *data, void *out)
{
    const mgr_stream stream = {1234, MGR_PURPOSE_GATE, 0, 0};
    (void)data;
    mgr_normals_scaled(&stream, 0, VALUES, 0.0f, 0.02f, out, MGR_DTYPE_BF16);
}

static void run_cast(const uint16_t *data, void *out)
{
    mgr_cast(out, MGR_DTYPE_F32, data, MGR_DTYPE_BF16, VALUES);
}

static void run_row_sums(const uint16_t *data, void *out)
{
    memset(out, 0, ROWS_OF_GATE * sizeof(mgr_sums));
    if (mgr_sums_add_rows(out, data, MGR_DTYPE_BF16, ROWS_OF_GATE, HIDDEN) != 0)
        printf("sums failed\n");
}

static void run_column_sums(const uint16_t *data, void *out)
{
    static double scratch[2 * NEURONS];
    memset(out, 0, NEURONS * sizeof(mgr_sums));
    if (mgr_sums_add_cols(out, data, MGR_DTYPE_BF16, ROWS_OF_DOWN, NEURONS, scratch) != 0)
        printf("sums failed\n");
}

static void run_crc(const uint16_t *data, void *out)
{
    const uint32_t crc = mgr_crc32(0, data, VALUES * sizeof *data);
    memcpy(out, &crc, sizeof crc);
}

static void run_largest(const uint16_t *data, void *out)
{
    const uint32_t most = mgr_largest_magnitude(data, MGR_DTYPE_BF16, VALUES);
    memcpy(out, &most, sizeof most);
}

/* A matrix of an expert, every second of whose neurons is drawn, or every one. */
static mgr_expert drawn(mgr_matrix matrix, uint32_t step)
{
    static uint32_t chosen[NEURONS];
    for (uint32_t i = 0; i < NEURONS / step; i++)
        chosen[i] = step * i + (step - 1);
    return (mgr_expert){.seed = 1234,
                        .matrix = matrix,
                        .width = NEURONS,
                        .source_width = NEURONS,
                        .hidden = HIDDEN,
                        .selected = chosen,
                        .n_selected = NEURONS / step,
                        .scale = 1,
                        .std = 0.02f};
}

static void run_gate(const uint16_t *data, void *out, uint32_t step)
{
    const mgr_expert x = drawn(MGR_MATRIX_GATE, step);
    mgr_expert_rows(mgr_method_find("drop"), &x, 0, (uint32_t)ROWS_OF_GATE, data, 0, MGR_DTYPE_BF16,
                    out, MGR_DTYPE_BF16);
}

static void run_down(const uint16_t *data, void *out, uint32_t step)
{
    const mgr_expert x = drawn(MGR_MATRIX_DOWN, step);
    mgr_expert_down_rows(mgr_method_find("drop"), &x, 0, ROWS_OF_DOWN, data, MGR_DTYPE_BF16, out,
                         MGR_DTYPE_BF16);
}

static void run_gate_half(const uint16_t *data, void *out)
{
    run_gate(data, out, 2);
}

static void run_gate_all(const uint16_t *data, void *out)
{
    run_gate(data, out, 1);
}

static void run_down_half(const uint16_t *data, void *out)
{
    run_down(data, out, 2);
}

static void run_down_all(const uint16_t *data, void *out)
{
    run_down(data, out, 1);
}

static double processor_now(void)
{
    return (double)clock() / CLOCKS_PER_SEC;
}

enum { NORMALS, GATE_HALF, GATE_ALL, DOWN_HALF, DOWN_ALL }; /* the first of: */
static const struct {
    const char *name;
    kernel run;
    bool on_each_path;
} kernels[] = {
    {"normals to bf16", run_normals, true},         {"gate or up, half drawn", run_gate_half, true},
    {"gate or up, all drawn", run_gate_all, true},  {"down, half drawn", run_down_half, true},
    {"down, all drawn", run_down_all, true},        {"cast bf16 to fp32", run_cast, false},
    {"sums by row, bf16", run_row_sums, true},      {"sums by column, bf16", run_column_sums, true},
    {"largest magnitude, bf16", run_largest, true}, {"CRC-32, bf16", run_crc, false}};
#define N_KERNELS (sizeof kernels / sizeof kernels[0])

/* Processor seconds of each turn, by kernel and path; of a kernel that has no paths by path 0. */
typedef double turn_seconds[N_KERNELS][MGR_SIMD_COUNT][TURNS];

static bool is_measured(size_t kernel_idx, int path)
{
    return kernels[kernel_idx].on_each_path ? mgr_simd_available((mgr_simd)path) : path == 0;
}

static int take_turn(int turn, turn_seconds seconds, const uint16_t *data, void *out, mgr_err *err)
{
    const mgr_simd chosen = mgr_simd_current();
    for (size_t i = 0; i < N_KERNELS; i++)
        for (int path = 0; path < MGR_SIMD_COUNT; path++) {
            if (!is_measured(i, path))
                continue;
            MGR_TRY(mgr_simd_select(kernels[i].on_each_path ? (mgr_simd)path : chosen, err));
            const double start = processor_now();
            kernels[i].run(data, out);
            seconds[i][path][turn] = processor_now() - start;
        }
    return mgr_simd_select(chosen, err);
}

/* The median, by turns, of `upper` divided by `lower`, or, without `lower`, of `upper`. */
static double median_of(const double *upper, const double *lower)
{
    double values[TURNS];
    for (int i = 0; i < TURNS; i++)
        values[i] = upper[i] / (lower ? lower[i] : 1);
    qsort(values, TURNS, sizeof *values, mgr_bench_by_size);
    return values[TURNS / 2];
}

static void tell(const mgr_benched *b, json_t *to, const char *name, const char *path, double value)
{
    if (!b->options->json)
        printf("  %-32s %-8s %6.2f\n", name, path, value);
    json_object_set_new(to, path, json_real(value));
}

static json_t *new_object(json_t *in, const char *name)
{
    json_t *const object = json_object();
    json_object_set_new(in, name, object);
    return object;
}

/* Billion values in a second of processor time. */
static void tell_rates(const mgr_benched *b, turn_seconds seconds)
{
    json_t *const all = new_object(b->report, "kernels");
    if (!b->options->json)
        printf("kernels, one core, billion values in a second of it\n");
    for (size_t i = 0; i < N_KERNELS; i++) {
        json_t *const one = new_object(all, kernels[i].name);
        for (int path = 0; path < MGR_SIMD_COUNT; path++)
            if (is_measured(i, path))
                tell(b, one, kernels[i].name,
                     kernels[i].on_each_path ? mgr_simd_name((mgr_simd)path) : "",
                     (double)VALUES / median_of(seconds[i][path], NULL) / 1e9);
    }
}

/* Seconds by seconds, so that less is better, but for the last, rate by rate. */
static void tell_ratios(const mgr_benched *b, turn_seconds seconds)
{
    json_t *const all = new_object(b->report, "kernel_ratios");
    static const struct {
        const char *name;
        size_t upper, lower;
    } ratios[] = {{"down by gate and up, half drawn", DOWN_HALF, GATE_HALF},
                  {"down by gate and up, all drawn", DOWN_ALL, GATE_ALL}};

    if (!b->options->json)
        printf("seconds by seconds, in one turn\n");
    for (size_t i = 0; i < sizeof ratios / sizeof ratios[0]; i++) {
        json_t *const one = new_object(all, ratios[i].name);
        for (int path = 0; path < MGR_SIMD_COUNT; path++)
            if (mgr_simd_available((mgr_simd)path))
                tell(b, one, ratios[i].name, mgr_simd_name((mgr_simd)path),
                     median_of(seconds[ratios[i].upper][path], seconds[ratios[i].lower][path]));
    }
    if (!mgr_simd_available(MGR_SIMD_AVX2) || !mgr_simd_available(MGR_SIMD_AVX512))
        return;
    if (!b->options->json)
        printf("rate by rate, in one turn\n");
    tell(b, new_object(all, "normals, by avx512"), "normals, by avx512", "avx2",
         median_of(seconds[NORMALS][MGR_SIMD_AVX512], seconds[NORMALS][MGR_SIMD_AVX2]));
}

int mgr_bench_kernels(const mgr_benched *b, mgr_err *err)
{
    static turn_seconds seconds;
    uint16_t *data = NULL;
    void *out = NULL;
    int rc = mgr_alloc(&data, VALUES, sizeof *data, err);
    if (rc == MGR_OK)
        rc = mgr_alloc_aligned(&out, VALUES * 8, err);
    if (rc == MGR_OK) {
        run_normals(NULL, data);
        rc = take_turn(0, seconds, data, out, err); /* pages are touched */
    }
    for (int turn = 0; turn < TURNS && rc == MGR_OK; turn++)
        rc = take_turn(turn, seconds, data, out, err);
    if (rc == MGR_OK) {
        tell_rates(b, seconds);
        tell_ratios(b, seconds);
        fflush(stdout);
    }
    mgr_free(data);
    mgr_free_aligned(out);
    return rc;
}
