/* mgr-bench: the kernels, on one core, within the calls that the engine makes. */
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "cli/bench.h"
#include "core/crc.h"
#include "core/mem.h"
#include "kern/kern.h"
#include "mgr/upcycle.h"

#define SECONDS 0.25
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

/* Billion values in a second of processor time. */
static double rate_of(kernel run, const uint16_t *data, void *out)
{
    double seconds = 0;
    uint64_t turns = 0;
    run(data, out);
    for (const double start = processor_now(); seconds < SECONDS; turns++) {
        run(data, out);
        seconds = processor_now() - start;
    }
    return (double)turns * (double)VALUES / seconds / 1e9;
}

static const struct {
    const char *name;
    kernel run;
    bool on_each_path;
} kernels[] = {{"normals to bf16", run_normals, true},
               {"gate or up, half drawn", run_gate_half, true},
               {"gate or up, all drawn", run_gate_all, true},
               {"down, half drawn", run_down_half, true},
               {"down, all drawn", run_down_all, true},
               {"cast bf16 to fp32", run_cast, false},
               {"sums by row, bf16", run_row_sums, false},
               {"sums by column, bf16", run_column_sums, false},
               {"CRC-32, bf16", run_crc, false}};

static void tell(const mgr_benched *b, json_t *to, const char *name, const char *path, double rate)
{
    if (!b->options->json)
        printf("  %-24s %-8s %6.2f\n", name, path, rate);
    json_object_set_new(to, path, json_real(rate));
}

/* On each path that this CPU has. */
static int measure_paths(const mgr_benched *b, const char *name, kernel run, json_t *to,
                         const uint16_t *data, void *out, mgr_err *err)
{
    const mgr_simd chosen = mgr_simd_current();
    for (int s = 0; s < MGR_SIMD_COUNT; s++) {
        if (!mgr_simd_available((mgr_simd)s))
            continue;
        MGR_TRY(mgr_simd_select((mgr_simd)s, err));
        tell(b, to, name, mgr_simd_name((mgr_simd)s), rate_of(run, data, out));
    }
    return mgr_simd_select(chosen, err);
}

static int measure_all(const mgr_benched *b, const uint16_t *data, void *out, mgr_err *err)
{
    json_t *const all = json_object();
    json_object_set_new(b->report, "kernels", all);
    if (!b->options->json)
        printf("kernels, one core, billion values in a second of it\n");
    for (size_t i = 0; i < sizeof kernels / sizeof kernels[0]; i++) {
        json_t *const one = json_object();
        json_object_set_new(all, kernels[i].name, one);
        if (kernels[i].on_each_path)
            MGR_TRY(measure_paths(b, kernels[i].name, kernels[i].run, one, data, out, err));
        else
            tell(b, one, kernels[i].name, "", rate_of(kernels[i].run, data, out));
    }
    fflush(stdout);
    return MGR_OK;
}

int mgr_bench_kernels(const mgr_benched *b, mgr_err *err)
{
    uint16_t *data = NULL;
    void *out = NULL;
    int rc = mgr_alloc(&data, VALUES, sizeof *data, err);
    if (rc == MGR_OK)
        rc = mgr_alloc_aligned(&out, VALUES * 8, err);
    if (rc == MGR_OK) {
        run_normals(NULL, data);
        rc = measure_all(b, data, out, err);
    }
    mgr_free(data);
    mgr_free_aligned(out);
    return rc;
}
