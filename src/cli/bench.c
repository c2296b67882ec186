#include "cli/bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/crc.h"
#include "core/mem.h"
#include "io/file.h"
#include "kern/kern.h"
#include "look/audit.h"
#include "mgr/upcycle.h"
#include "run/run.h"

#define MIB ((uint64_t)1 << 20)
#define BLOCK (8 * MIB)
#define KERNEL_VALUES ((size_t)1 << 20)
#define KERNEL_SECONDS 0.3
#define EDGE 1024 /* of a square of KERNEL_VALUES */
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

static void run_crc(size_t n, const uint16_t *data, void *out)
{
    const uint32_t crc = mgr_crc32(0, data, n * sizeof *data);
    memcpy(out, &crc, sizeof crc);
}

/* A square matrix of an expert, every second of whose neurons is drawn. */
static mgr_expert half_drawn(mgr_matrix matrix)
{
    static uint32_t odd[EDGE / 2];
    for (uint32_t i = 0; i < EDGE / 2; i++)
        odd[i] = 2 * i + 1;
    return (mgr_expert){.seed = 1234,
                        .matrix = matrix,
                        .width = EDGE,
                        .source_width = EDGE,
                        .hidden = EDGE,
                        .selected = odd,
                        .n_selected = EDGE / 2,
                        .scale = 1,
                        .std = 0.02f};
}

static void run_gate(size_t n, const uint16_t *data, void *out)
{
    const mgr_expert x = half_drawn(MGR_MATRIX_GATE);
    mgr_expert_rows(mgr_method_find("drop"), &x, 0, (uint32_t)(n / EDGE), data, 0, MGR_DTYPE_BF16,
                    out, MGR_DTYPE_BF16);
}

static void run_down(size_t n, const uint16_t *data, void *out)
{
    const mgr_expert x = half_drawn(MGR_MATRIX_DOWN);
    mgr_expert_down_rows(mgr_method_find("drop"), &x, 0, n / EDGE, data, MGR_DTYPE_BF16, out,
                         MGR_DTYPE_BF16);
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
    } others[] = {{"cast bf16 to fp32", run_cast},           {"sums by row, bf16", run_row_sums},
                  {"sums by column, bf16", run_column_sums}, {"CRC-32, bf16", run_crc},
                  {"gate or up, half drawn", run_gate},      {"down, half drawn", run_down}};
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
    char source[512], target[512], config[512], plain[512];
    unsigned char *block; /* BLOCK bytes */
    uint64_t bytes;       /* that a run writes */
    uint64_t read_bytes;  /* of all files of its output */
} bench;

/* A run, and the least that could be asked of the same ranks and the same file system instead. */
typedef struct contest {
    const char *name, *floor_name;
    const char *config;       /* behind source.path and target.path */
    uint64_t experts;         /* of the source */
    uint64_t bytes_per_layer; /* of the target */
    int (*floor)(const bench *b, uint64_t from, uint64_t bytes, int fd, mgr_err *err);
} contest;

#define HIDDEN 1024
#define FFN 3584
#define EXPERTS 8
#define EXPERT_BYTES ((uint64_t)EXPERTS * 3 * HIDDEN * FFN * 2)

static int plain_writes(const bench *b, uint64_t from, uint64_t bytes, int fd, mgr_err *err)
{
    (void)from;
    memset(b->block, 0x5a, BLOCK);
    for (uint64_t at = 0; at < bytes; at += BLOCK)
        MGR_TRY(mgr_pwrite_full(fd, b->plain, b->block,
                                (size_t)(bytes - at < BLOCK ? bytes - at : BLOCK), at, err));
    return MGR_OK;
}

/* The part of one file that lies in the stretch of `bytes` bytes from `from` on, where the file
 * begins at `begin`. */
static int copy_part(const bench *b, const char *path, uint64_t begin, uint64_t size, uint64_t from,
                     uint64_t bytes, int to, mgr_err *err)
{
    const uint64_t first = from > begin ? from : begin;
    const uint64_t end = from + bytes < begin + size ? from + bytes : begin + size;
    int fd, rc = MGR_OK;
    if (first >= end)
        return MGR_OK;
    MGR_TRY(mgr_open_read(path, &fd, err));
    for (uint64_t at = first; rc == MGR_OK && at < end; at += BLOCK) {
        const size_t n = (size_t)(end - at < BLOCK ? end - at : BLOCK);
        rc = mgr_pread_full(fd, path, b->block, n, at - begin, err);
        if (rc == MGR_OK)
            rc = mgr_pwrite_full(to, b->plain, b->block, n, at - from, err);
    }
    mgr_close(fd);
    return rc;
}

/* The source's files one behind the other are one stretch of bytes, of which a rank copies a part.
 */
static int plain_copy(const bench *b, uint64_t from, uint64_t bytes, int fd, mgr_err *err)
{
    mgr_arena arena = {0};
    mgr_config config = {0};
    mgr_source_files files = {0};
    uint64_t begin = 0;
    snprintf(config.source.path, sizeof config.source.path, "%s", b->source);
    snprintf(config.source.iteration, sizeof config.source.iteration, "latest");
    int rc = mgr_source_find("megatron-torch")->find(&config, &arena, &files, err);
    for (size_t i = 0; rc == MGR_OK && i < files.n; i++) {
        mgr_reader reader;
        rc = mgr_reader_open(&reader, files.paths[i], err);
        if (rc != MGR_OK)
            break;
        const uint64_t size = reader.size;
        mgr_reader_close(&reader);
        rc = copy_part(b, files.paths[i], begin, size, from, bytes, fd, err);
        begin += size;
    }
    mgr_arena_clear(&arena);
    return rc;
}

/* This rank's share of the bytes, into a file of its own, durable. */
static int floor_share(const bench *b, const contest *c, mgr_err *err)
{
    const uint64_t ranks = (uint64_t)mgr_comm_size(b->comm),
                   rank = (uint64_t)mgr_comm_rank(b->comm);
    const uint64_t from = b->bytes * rank / ranks, end = b->bytes * (rank + 1) / ranks;
    int fd;
    MGR_TRY(mgr_create_sized(b->plain, 0, err));
    MGR_TRY(mgr_open_write(b->plain, &fd, err));
    const int rc = c->floor(b, from, end - from, fd, err);
    const int closed = mgr_sync_close(fd, b->plain, err);
    return rc != MGR_OK ? rc : closed;
}

static int floor_seconds(const bench *b, const contest *c, double *seconds, mgr_err *err)
{
    mgr_barrier(b->comm);
    const double start = mgr_now();
    const int rc = mgr_agree(b->comm, floor_share(b, c, err), err);
    *seconds = mgr_now() - start;
    mgr_err ignored = MGR_ERR_INIT;
    const int removed = mgr_remove_tree(b->plain, &ignored);
    return rc != MGR_OK ? rc : mgr_agree(b->comm, removed, &ignored);
}

static const mgr_run_options *run_options(const bench *b, mgr_run_options *o)
{
    *o = (mgr_run_options){
        .config_path = b->config, .verbosity = -1, .write = {.journal = MGR_JOURNAL_SECONDS}};
    return o;
}

/* A whole run, whose output stays. */
static int kept_seconds(const bench *b, double *seconds, mgr_tally *tally, mgr_err *err)
{
    mgr_run_options options;
    mgr_barrier(b->comm);
    const double start = mgr_now();
    const int rc = mgr_run_upcycle(b->comm, run_options(b, &options), tally, err);
    *seconds = mgr_now() - start;
    return rc;
}

static int remove_target(const bench *b, mgr_err *err)
{
    const int rc = mgr_comm_rank(b->comm) == 0 ? mgr_remove_tree(b->target, err) : MGR_OK;
    return mgr_agree(b->comm, rc, err);
}

static int run_seconds(const bench *b, double *seconds, mgr_tally *tally, mgr_err *err)
{
    const int rc = kept_seconds(b, seconds, tally, err);
    return rc == MGR_OK ? remove_target(b, err) : rc;
}

/* A model of which the run makes about the bytes asked for. */
static int make_source(const bench *b, const contest *c, mgr_err *err)
{
    const uint64_t layers = b->options->output_bytes / c->bytes_per_layer / 2 * 2;
    const mgr_synth_options o = {.out = b->source,
                                 .format = "megatron-torch",
                                 .names = "auto",
                                 .model = {.layers = layers ? layers : 2,
                                           .hidden = HIDDEN,
                                           .ffn = FFN,
                                           .experts = c->experts,
                                           .top_k = c->experts ? 2 : 0,
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
                                 .expert_parallel = c->experts ? 2 : 1,
                                 .virtual_pipeline = 1,
                                 .vocab_divisor = 1,
                                 .seed = 1234,
                                 .force = true,
                                 .verbosity = -1};
    return mgr_run_synth(b->comm, &o, err);
}

static int write_config(const bench *b, const contest *c, mgr_err *err)
{
    mgr_buf text = {0};
    int rc = mgr_buf_fmt(&text, err, "source:\n  path: '%s'\n%s  path: '%s'\n", b->source,
                         c->config, b->target);
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

/* One run that is not counted tells how many bytes there are, and warms up. */
static int warm_up(bench *b, const contest *c, mgr_err *err)
{
    mgr_tally tally = {0};
    double seconds;
    const int root = mgr_comm_rank(b->comm) == 0;
    MGR_TRY(run_seconds(b, &seconds, &tally, err));
    int64_t bytes = root ? (int64_t)tally.bytes_written : 0;
    MGR_TRY(mgr_sum_i64(b->comm, &bytes, 1, err));
    b->bytes = (uint64_t)bytes;
    if (root)
        printf("%s, %d ranks, %.2f GB written with fsync\n  %-8s %16s %16s %8s\n", c->name,
               mgr_comm_size(b->comm), (double)b->bytes / 1e9, "round", c->floor_name, c->name,
               "ratio");
    return MGR_OK;
}

static int measure(bench *b, const contest *c, mgr_err *err)
{
    double ratios[MAX_ROUNDS];
    mgr_tally tally = {0};
    const int root = mgr_comm_rank(b->comm) == 0;
    MGR_TRY(warm_up(b, c, err));
    for (uint64_t i = 0; i < b->options->rounds; i++) {
        double plain, run;
        MGR_TRY(floor_seconds(b, c, &plain, err));
        MGR_TRY(run_seconds(b, &run, &tally, err));
        ratios[i] = run / plain;
        if (root)
            printf("  %-8llu %11.2f GB/s %11.2f GB/s %8.2f\n", (unsigned long long)i + 1,
                   (double)b->bytes / plain / 1e9, (double)b->bytes / run / 1e9, ratios[i]);
        fflush(stdout);
    }
    qsort(ratios, b->options->rounds, sizeof *ratios, by_size);
    if (root)
        printf("  median ratio of seconds, %s to %s: %.2f\n", c->name, c->floor_name,
               ratios[b->options->rounds / 2]);
    return MGR_OK;
}

/* --- reading back --- */

typedef struct tree {
    mgr_arena arena;
    const char **names; /* below the target; folders end in a slash */
    size_t n;
} tree;

typedef int (*visit)(const bench *b, const char *path, uint64_t begin, uint64_t size, mgr_err *err);

/* Each file of the target, as one stretch of bytes behind the other. */
static int each_file(const bench *b, visit see, uint64_t *all, mgr_err *err)
{
    tree t = {0};
    int rc = mgr_list_tree(b->target, &t.arena, &t.names, &t.n, err);
    *all = 0;
    for (size_t i = 0; rc == MGR_OK && i < t.n; i++) {
        const char *path;
        uint64_t size = 0;
        if (mgr_has_suffix(t.names[i], "/"))
            continue;
        rc = mgr_arena_fmt(&t.arena, &path, err, "%s/%s", b->target, t.names[i]);
        if (rc == MGR_OK)
            rc = mgr_file_bytes(path, &size, err);
        if (rc == MGR_OK && see)
            rc = see(b, path, *all, size, err);
        *all += size;
    }
    mgr_arena_clear(&t.arena);
    return rc;
}

/* This rank's share of one file, in blocks, and nothing done with it. */
static int plain_read(const bench *b, const char *path, uint64_t begin, uint64_t size, mgr_err *err)
{
    const uint64_t ranks = (uint64_t)mgr_comm_size(b->comm),
                   rank = (uint64_t)mgr_comm_rank(b->comm);
    const uint64_t from = b->read_bytes * rank / ranks, to = b->read_bytes * (rank + 1) / ranks;
    const uint64_t first = from > begin ? from : begin;
    const uint64_t end = to < begin + size ? to : begin + size;
    int fd, rc = MGR_OK;
    if (first >= end)
        return MGR_OK;
    MGR_TRY(mgr_open_read(path, &fd, err));
    for (uint64_t at = first; rc == MGR_OK && at < end; at += BLOCK)
        rc = mgr_pread_full(fd, path, b->block, (size_t)(end - at < BLOCK ? end - at : BLOCK),
                            at - begin, err);
    mgr_close(fd);
    return rc;
}

static int drop(const bench *b, const char *path, uint64_t begin, uint64_t size, mgr_err *err)
{
    (void)b, (void)begin, (void)size;
    return mgr_drop_cached(path, err);
}

/* What the run wrote is to come from the disk again. */
static int drop_all(const bench *b, mgr_err *err)
{
    uint64_t all;
    const int rc = mgr_comm_rank(b->comm) == 0 ? each_file(b, drop, &all, err) : MGR_OK;
    return mgr_agree(b->comm, rc, err);
}

/* Seconds of a plain read of the target, from the disk. */
static int plain_seconds(bench *b, double *seconds, mgr_err *err)
{
    uint64_t all;
    MGR_TRY(drop_all(b, err));
    const double start = mgr_now();
    MGR_TRY(mgr_agree(b->comm, each_file(b, plain_read, &all, err), err));
    *seconds = mgr_now() - start;
    return MGR_OK;
}

/* Seconds of three ways of reading the target, each from the disk. Plain reads come before and
 * after: what was just written may come back faster, whoever reads it first. */
static int read_seconds(bench *b, double *plain, double *checked, double *again, mgr_err *err)
{
    const mgr_audit_options audit = {.path = b->target, .quiet = true};
    mgr_run_options options;
    double before, after;
    bool good = true, same = true;
    MGR_TRY(plain_seconds(b, &before, err));
    MGR_TRY(drop_all(b, err));
    double start = mgr_now();
    MGR_TRY(mgr_audit(b->comm, &audit, &good, err));
    *checked = mgr_now() - start;
    MGR_TRY(plain_seconds(b, &after, err));
    *plain = (before + after) / 2;
    MGR_TRY(drop_all(b, err));
    start = mgr_now();
    MGR_TRY(mgr_run_verify(b->comm, run_options(b, &options), &same, NULL, err));
    *again = mgr_now() - start;
    return good && same ? MGR_OK : mgr_fail(err, MGR_ERR_INTERNAL, "the output is not whole");
}

/* One round; ratios of mgr-verify's rate, of --verify's seconds, and the share of the checks. */
static int read_round(bench *b, uint64_t round, double ratio[3], mgr_err *err)
{
    double run, plain, checked, again;
    mgr_tally tally = {0};
    MGR_TRY(kept_seconds(b, &run, &tally, err));
    MGR_TRY(mgr_agree(b->comm, each_file(b, NULL, &b->read_bytes, err), err));
    MGR_TRY(read_seconds(b, &plain, &checked, &again, err));
    MGR_TRY(remove_target(b, err));
    ratio[0] = plain / checked;
    ratio[1] = again / run;
    ratio[2] = (tally.seconds_proof + tally.seconds_publish) / run;
    if (mgr_comm_rank(b->comm) == 0)
        printf("  %-6llu %8.2f GB/s %8.2f GB/s %6.2f %8.2f s %8.2f s %6.2f %8.1f %%\n",
               (unsigned long long)round, (double)b->read_bytes / plain / 1e9,
               (double)b->read_bytes / checked / 1e9, ratio[0], run, again, ratio[1],
               ratio[2] * 100);
    fflush(stdout);
    return MGR_OK;
}

static int measure_reading(bench *b, mgr_err *err)
{
    double ratios[3][MAX_ROUNDS];
    const uint64_t n = b->options->rounds;
    const int root = mgr_comm_rank(b->comm) == 0;
    if (root)
        printf("reading back, from the disk\n  %-6s %13s %13s %6s %10s %10s %6s %10s\n", "round",
               "plain read", "mgr-verify", "ratio", "run", "--verify", "ratio", "checks");
    for (uint64_t i = 0; i < n; i++) {
        double ratio[3];
        MGR_TRY(read_round(b, i + 1, ratio, err));
        for (int k = 0; k < 3; k++)
            ratios[k][i] = ratio[k];
    }
    for (int k = 0; k < 3; k++)
        qsort(ratios[k], n, sizeof **ratios, by_size);
    if (root)
        printf("  medians: mgr-verify at %.2f of plain reading; --verify in %.2f of the run; "
               "checksums, journal and reading back %.1f %% of it\n",
               ratios[0][n / 2], ratios[1][n / 2], ratios[2][n / 2] * 100);
    return MGR_OK;
}

/* With the expert-parallel size of the source, so that what is written is as much as what there is
 * to copy. */
static const contest contests[] = {
    {"upcycling", "plain writes", "upcycle:\n  experts: 8\ntarget:\n  expert_parallel: 8\n", 0,
     EXPERT_BYTES, plain_writes},
    {"resharding", "plain copy",
     "mode: reshard\ntarget:\n  format: megatron-torch\n  tensor_parallel: 4\n  "
     "expert_parallel: 2\n",
     EXPERTS, EXPERT_BYTES, plain_copy},
    {"upcycling to hdf5", "plain writes",
     "upcycle:\n  experts: 8\ntarget:\n  format: hdf5\n  expert_parallel: 8\n", 0, EXPERT_BYTES,
     plain_writes},
    /* bound by the CPU: a quarter of the bytes tells as much */
    {"to deflated hdf5", "plain writes",
     "upcycle:\n  experts: 8\ntarget:\n  format: hdf5\n  compression: deflate\n"
     "  expert_parallel: 8\n",
     0, 4 * EXPERT_BYTES, plain_writes},
};

static int hold_contest(bench *b, const contest *c, mgr_err *err)
{
    const int root = mgr_comm_rank(b->comm) == 0;
    int rc = make_source(b, c, err);
    if (rc == MGR_OK)
        rc = mgr_agree(b->comm, root ? write_config(b, c, err) : MGR_OK, err);
    if (rc == MGR_OK)
        rc = measure(b, c, err);
    if (rc == MGR_OK && c == contests)
        rc = measure_reading(b, err);
    mgr_err ignored = MGR_ERR_INIT;
    if (root && (mgr_remove_tree(b->source, &ignored) != MGR_OK ||
                 mgr_remove_tree(b->config, &ignored) != MGR_OK))
        fprintf(stderr, "mgr-bench: warning: %s\n", ignored.msg);
    return rc;
}

int mgr_bench_end_to_end(mgr_comm *comm, const mgr_bench_options *options, mgr_err *err)
{
    bench b = {.comm = comm, .options = options};
    if (strlen(options->scratch) + 64 > sizeof b.source || strchr(options->scratch, '\''))
        return mgr_fail(err, MGR_ERR_USAGE, "--scratch is too long, or has a quote in it");
    if (options->rounds < 1 || options->rounds > MAX_ROUNDS)
        return mgr_fail(err, MGR_ERR_USAGE, "rounds must be 1 to %d", MAX_ROUNDS);
    snprintf(b.source, sizeof b.source, "%s/mgr-bench-source", options->scratch);
    snprintf(b.target, sizeof b.target, "%s/mgr-bench-Mixtral", options->scratch);
    snprintf(b.config, sizeof b.config, "%s/mgr-bench.yaml", options->scratch);
    snprintf(b.plain, sizeof b.plain, "%s/mgr-bench-plain-%d", options->scratch,
             mgr_comm_rank(comm));
    int rc = mgr_agree(comm, mgr_alloc_aligned(&b.block, BLOCK, err), err);
    for (size_t i = 0; rc == MGR_OK && i < sizeof contests / sizeof contests[0]; i++)
        rc = hold_contest(&b, &contests[i], err);
    mgr_free_aligned(b.block);
    return rc;
}
