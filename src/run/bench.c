#include "run/bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "io/file.h"
#include "kern/kern.h"
#include "mgr/upcycle.h"
#include "run/run.h"

#define MIB ((uint64_t)1 << 20)
#define BLOCK (8 * MIB)
#define KERNEL_VALUES ((size_t)1 << 20)
#define KERNEL_SECONDS 0.3
#define MAX_ROUNDS 16

/* One kernel: work on `n` values at `data`, result to `out`. */
typedef void (*kernel)(size_t n, const uint16_t *data, void *out);

static void run_normals(size_t n, const uint16_t *data, void *out)
{
    const mgr_stream stream = {1234, MGR_PURPOSE_GATE, 0, 0};
    (void)data;
    mgr_normals_scaled(&stream, 0, n, 0.0f, 0.02f, out, MGR_DTYPE_BF16);
}

static void run_cast(size_t n, const uint16_t *data, void *out)
{
    mgr_cast(out, MGR_DTYPE_F32, data, MGR_DTYPE_BF16, n);
}

static void run_row_sums(size_t n, const uint16_t *data, void *out)
{
    memset(out, 0, n / 1024 * sizeof(mgr_sums));
    if (mgr_sums_add_rows(out, data, MGR_DTYPE_BF16, n / 1024, 1024) != 0)
        printf("sums failed\n");
}

static void run_column_sums(size_t n, const uint16_t *data, void *out)
{
    static double scratch[2 * 4096];
    memset(out, 0, 4096 * sizeof(mgr_sums));
    if (mgr_sums_add_cols(out, data, MGR_DTYPE_BF16, n / 4096, 4096, scratch) != 0)
        printf("sums failed\n");
}

static double rate_of(kernel run, const uint16_t *data, void *out)
{
    double seconds = 0;
    uint64_t turns = 0;
    run(KERNEL_VALUES, data, out);
    for (const double start = mgr_now(); seconds < KERNEL_SECONDS; turns++) {
        run(KERNEL_VALUES, data, out);
        seconds = mgr_now() - start;
    }
    return (double)turns * (double)KERNEL_VALUES / seconds / 1e9;
}

int mgr_bench_kernels(mgr_err *err)
{
    static const struct {
        const char *name;
        kernel run;
    } others[] = {{"cast bf16 to fp32", run_cast},
                  {"sums by row, bf16", run_row_sums},
                  {"sums by column, bf16", run_column_sums}};
    uint16_t *data = NULL;
    void *out = NULL;
    int rc = mgr_alloc(&data, KERNEL_VALUES, sizeof *data, err);
    if (rc == MGR_OK)
        rc = mgr_alloc_aligned(&out, KERNEL_VALUES * 8, err);
    if (rc == MGR_OK) {
        run_normals(KERNEL_VALUES, NULL, data);
        const mgr_simd chosen = mgr_simd_current();
        printf("kernels, one core, billion values a second\n");
        for (int s = 0; s < MGR_SIMD_COUNT && rc == MGR_OK; s++) {
            if (!mgr_simd_available((mgr_simd)s))
                continue;
            rc = mgr_simd_select((mgr_simd)s, err);
            printf("  %-24s %-8s %6.2f\n", "normals to bf16", mgr_simd_name((mgr_simd)s),
                   rate_of(run_normals, data, out));
        }
        if (rc == MGR_OK)
            rc = mgr_simd_select(chosen, err);
        for (size_t i = 0; i < sizeof others / sizeof others[0]; i++)
            printf("  %-24s %-8s %6.2f\n", others[i].name, "", rate_of(others[i].run, data, out));
        fflush(stdout);
    }
    mgr_free(data);
    mgr_free_aligned(out);
    return rc;
}

/* --- end to end --- */

typedef struct bench {
    mgr_comm *comm;
    const mgr_bench_options *options;
    char dense[512], target[512], config[512], plain[512];
    uint64_t bytes; /* that a run writes */
} bench;

/* This rank's share of the bytes, in plain large writes, durable. */
static int write_plain(const bench *b, mgr_err *err)
{
    const uint64_t ranks = (uint64_t)mgr_comm_size(b->comm);
    const uint64_t share = b->bytes / ranks;
    unsigned char *block;
    int fd;
    MGR_TRY(mgr_alloc_aligned(&block, BLOCK, err));
    memset(block, 0x5a, BLOCK);
    int rc = mgr_create_sized(b->plain, 0, err);
    if (rc == MGR_OK)
        rc = mgr_open_write(b->plain, &fd, err);
    if (rc == MGR_OK) {
        for (uint64_t at = 0; rc == MGR_OK && at < share; at += BLOCK)
            rc = mgr_pwrite_full(fd, b->plain, block,
                                 (size_t)(share - at < BLOCK ? share - at : BLOCK), at, err);
        const int closed = mgr_sync_close(fd, b->plain, err);
        rc = rc != MGR_OK ? rc : closed;
    }
    mgr_free_aligned(block);
    return rc;
}

static int floor_seconds(const bench *b, double *seconds, mgr_err *err)
{
    mgr_barrier(b->comm);
    const double start = mgr_now();
    const int rc = mgr_agree(b->comm, write_plain(b, err), err);
    *seconds = mgr_now() - start;
    mgr_err ignored = MGR_ERR_INIT;
    const int removed = mgr_remove_tree(b->plain, &ignored);
    return rc != MGR_OK ? rc : mgr_agree(b->comm, removed, &ignored);
}

static int run_seconds(const bench *b, double *seconds, mgr_tally *tally, mgr_err *err)
{
    const mgr_run_options options = {
        .config_path = b->config, .verbosity = -1, .write = {.journal = MGR_JOURNAL_SECONDS}};
    mgr_barrier(b->comm);
    const double start = mgr_now();
    int rc = mgr_run_upcycle(b->comm, &options, tally, err);
    *seconds = mgr_now() - start;
    if (rc == MGR_OK && mgr_comm_rank(b->comm) == 0)
        rc = mgr_remove_tree(b->target, err);
    return mgr_agree(b->comm, rc, err);
}

/* A model whose eight experts take about the bytes asked for. */
static int make_source(const bench *b, mgr_err *err)
{
    const uint64_t hidden = 1024, ffn = 3584, per_layer = UINT64_C(8) * 3 * hidden * ffn * 2;
    const uint64_t layers = b->options->output_bytes / per_layer / 2 * 2;
    const mgr_synth_options o = {.out = b->dense,
                                 .format = "megatron-torch",
                                 .model = {.layers = layers ? layers : 2,
                                           .hidden = hidden,
                                           .ffn = ffn,
                                           .heads = 8,
                                           .kv_groups = 8,
                                           .head_dim = 128,
                                           .vocab = 32000,
                                           .dtype = MGR_DTYPE_BF16,
                                           .norm_epsilon = 1e-5,
                                           .rotary_base = 1e4,
                                           .max_positions = 2048,
                                           .bos_token_id = -1,
                                           .eos_token_id = -1,
                                           .init_std = 0.02},
                                 .dtype = MGR_DTYPE_BF16,
                                 .tensor_parallel = 2,
                                 .pipeline_parallel = 2,
                                 .vocab_divisor = 1,
                                 .seed = 1234,
                                 .force = true,
                                 .verbosity = -1};
    return mgr_run_synth(b->comm, &o, err);
}

static int write_config(const bench *b, mgr_err *err)
{
    mgr_buf text = {0};
    int rc = mgr_buf_fmt(&text, err,
                         "source:\n  path: '%s'\nupcycle:\n  experts: 8\ntarget:\n  path: '%s'\n"
                         "  expert_parallel: 8\n",
                         b->dense, b->target);
    mgr_err ignored = MGR_ERR_INIT;
    if (rc == MGR_OK)
        rc = mgr_remove_tree(b->config, &ignored);
    if (rc == MGR_OK)
        rc = mgr_write_file(b->config, text.data, text.len, err);
    mgr_buf_clear(&text);
    return rc;
}

static int by_size(const void *x, const void *y)
{
    const double *const a = x, *const b = y;
    return *a < *b ? -1 : *a > *b;
}

static int measure(bench *b, mgr_err *err)
{
    double ratios[MAX_ROUNDS];
    mgr_tally tally = {0};
    double warm_up;
    const int root = mgr_comm_rank(b->comm) == 0;
    MGR_TRY(run_seconds(b, &warm_up, &tally, err)); /* also tells how many bytes there are */
    int64_t bytes = root ? (int64_t)tally.bytes_written : 0;
    MGR_TRY(mgr_sum_i64(b->comm, &bytes, 1, err));
    b->bytes = (uint64_t)bytes;
    if (root)
        printf("end to end, %d ranks, %.2f GB written with fsync\n  %-8s %16s %16s %8s\n",
               mgr_comm_size(b->comm), (double)b->bytes / 1e9, "round", "plain writes", "upcycling",
               "ratio");
    for (uint64_t i = 0; i < b->options->rounds; i++) {
        double plain, run;
        MGR_TRY(floor_seconds(b, &plain, err));
        MGR_TRY(run_seconds(b, &run, &tally, err));
        ratios[i] = run / plain;
        if (root)
            printf("  %-8llu %11.2f GB/s %11.2f GB/s %8.2f\n", (unsigned long long)i + 1,
                   (double)b->bytes / plain / 1e9, (double)b->bytes / run / 1e9, ratios[i]);
        fflush(stdout);
    }
    qsort(ratios, b->options->rounds, sizeof *ratios, by_size);
    if (root)
        printf("  median ratio of seconds, upcycling to plain writes: %.2f\n",
               ratios[b->options->rounds / 2]);
    return MGR_OK;
}

int mgr_bench_end_to_end(mgr_comm *comm, const mgr_bench_options *options, mgr_err *err)
{
    bench b = {.comm = comm, .options = options};
    const int root = mgr_comm_rank(comm) == 0;
    if (strlen(options->scratch) + 64 > sizeof b.dense || strchr(options->scratch, '\''))
        return mgr_fail(err, MGR_ERR_USAGE, "--scratch is too long, or has a quote in it");
    if (options->rounds < 1 || options->rounds > MAX_ROUNDS)
        return mgr_fail(err, MGR_ERR_USAGE, "rounds must be 1 to %d", MAX_ROUNDS);
    snprintf(b.dense, sizeof b.dense, "%s/mgr-bench-dense", options->scratch);
    snprintf(b.target, sizeof b.target, "%s/mgr-bench-Mixtral", options->scratch);
    snprintf(b.config, sizeof b.config, "%s/mgr-bench.yaml", options->scratch);
    snprintf(b.plain, sizeof b.plain, "%s/mgr-bench-plain-%d", options->scratch,
             mgr_comm_rank(comm));
    int rc = make_source(&b, err);
    if (rc == MGR_OK)
        rc = mgr_agree(comm, root ? write_config(&b, err) : MGR_OK, err);
    if (rc == MGR_OK)
        rc = measure(&b, err);
    mgr_err ignored = MGR_ERR_INIT;
    if (root && (mgr_remove_tree(b.dense, &ignored) != MGR_OK ||
                 mgr_remove_tree(b.config, &ignored) != MGR_OK))
        fprintf(stderr, "mgr-bench: warning: %s\n", ignored.msg);
    return rc;
}
