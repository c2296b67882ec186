#include "cli/bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "core/mem.h"
#include "fmt/json.h"
#include "io/file.h"
#include "mgr/version.h"
#include "run/run.h"

/* A run, and the least that could be asked of the same ranks and the same file system instead. */
typedef struct contest {
    const char *name, *title;
    const char *config; /* behind source.path and target.path */
    bool mixture;       /* what the source is */
    bool copies;        /* the floor copies the source */
    unsigned threads;   /* that write, on each rank */
} contest;

#define UPCYCLE(more) "upcycle:\n  experts: 8\n" more "target:\n  expert_parallel: 8\n"
#define TO(format) UPCYCLE("") "  format: " format "\n"
/* Resharding keeps the expert-parallel size of the source, so that what is written is as much as
 * what there is to copy. */
static const contest contests[] = {
    {"drop", "drop 0.5 to moe-recipes", UPCYCLE("  ratio: 0.5\n"), false, false, 0},
    {"drop-threads", "drop 0.5, a thread writes", UPCYCLE("  ratio: 0.5\n"), false, false, 1},
    {"drop-all", "drop 1 to moe-recipes", UPCYCLE("  ratio: 1\n"), false, false, 0},
    {"naive", "naive to moe-recipes", UPCYCLE("  method: naive\n"), false, false, 0},
    {"reshard", "resharding 128 experts to TP4 EP2",
     "mode: reshard\ntarget:\n  format: megatron-torch\n  tensor_parallel: 4\n"
     "  expert_parallel: 2\n",
     true, true, 0},
    {"huggingface", "drop 0.5 to huggingface", TO("huggingface"), false, false, 0},
    {"megatron-torch", "drop 0.5 to megatron-torch",
     "upcycle:\n  experts: 8\ntarget:\n  format: megatron-torch\n  tensor_parallel: 2\n"
     "  pipeline_parallel: 2\n  expert_parallel: 4\n",
     false, false, 0},
    {"megatron-dist", "drop 0.5 to megatron-dist",
     "upcycle:\n  experts: 8\ntarget:\n  format: megatron-dist\n", false, false, 0},
    {"deepspeed", "drop 0.5 to deepspeed", "upcycle:\n  experts: 8\ntarget:\n  format: deepspeed\n",
     false, false, 0},
    {"hdf5", "drop 0.5 to hdf5", TO("hdf5"), false, false, 0},
    {"hdf5-deflate", "drop 0.5 to hdf5, deflated", TO("hdf5") "  compression: deflate\n", false,
     false, 0},
};

#define N_CONTESTS (sizeof contests / sizeof contests[0])
#define KERNELS "kernels"
#define READING "reading"

int mgr_bench_by_size(const void *x, const void *y)
{
    const double *const a = x, *const b = y;
    return *a < *b ? -1 : *a > *b;
}

/* Behind the next comma. */
static const char *next_name(const char *at)
{
    const char *const comma = strchr(at, ',');
    return comma ? comma + 1 : NULL;
}

static bool is_name(const char *name, const char *at)
{
    return strlen(name) == strcspn(at, ",") && strncmp(name, at, strlen(name)) == 0;
}

bool mgr_bench_wants(const mgr_bench_options *options, const char *name)
{
    for (const char *at = options->only; at; at = next_name(at))
        if (is_name(name, at))
            return true;
    return !options->only;
}

static bool is_root(const mgr_benched *b)
{
    return mgr_comm_rank(b->comm) == 0;
}

static int64_t microseconds(struct timeval t)
{
    return (int64_t)t.tv_sec * 1000000 + t.tv_usec;
}

int mgr_bench_cost_of(const mgr_benched *b, mgr_bench_work work, void *context,
                      mgr_bench_cost *cost, mgr_err *err)
{
    struct rusage before, after;
    mgr_barrier(b->comm);
    getrusage(RUSAGE_SELF, &before);
    const double start = mgr_now();
    MGR_TRY(mgr_agree(b->comm, work(b, context, err), err));
    cost->seconds = mgr_now() - start;
    getrusage(RUSAGE_SELF, &after);
    int64_t used[2] = {microseconds(after.ru_utime) - microseconds(before.ru_utime),
                       microseconds(after.ru_stime) - microseconds(before.ru_stime)};
    MGR_TRY(mgr_sum_i64(b->comm, used, 2, err));
    cost->user = (double)used[0] / 1e6;
    cost->system = (double)used[1] / 1e6;
    return MGR_OK;
}

int mgr_bench_run(const mgr_benched *b, void *tally, mgr_err *err)
{
    const mgr_run_options options = {
        .config_path = b->config, .verbosity = -1, .write = {.journal = MGR_JOURNAL_SECONDS}};
    return mgr_run_upcycle(b->comm, &options, tally, err);
}

int mgr_bench_remove_target(const mgr_benched *b, mgr_err *err)
{
    return mgr_agree(b->comm, is_root(b) ? mgr_remove_tree(b->target, err) : MGR_OK, err);
}

/* --- what is rewritten --- */

/* The largest width of which two layers make no more bytes than are asked for. */
static uint64_t hidden_of(uint64_t bytes)
{
    uint64_t hidden = 2048;
    while (hidden > 256 && 2 * 8 * 3 * hidden * (hidden * 7 / 2) * 2 > bytes)
        hidden /= 2;
    return hidden;
}

/* A model of which the run makes about the bytes asked for; 8 experts, or 128 small ones. */
static int make_source(const mgr_benched *b, const contest *c, mgr_err *err)
{
    const uint64_t bytes = b->options->output_bytes, hidden = hidden_of(bytes);
    const uint64_t ffn = hidden * 7 / 2, layers = bytes / (8 * 3 * hidden * ffn * 2) / 2 * 2;
    const mgr_synth_options o = {.out = b->source,
                                 .format = "megatron-torch",
                                 .names = "auto",
                                 .dist_keys = "auto",
                                 .model = {.layers = layers ? layers : 2,
                                           .hidden = hidden,
                                           .ffn = c->mixture ? ffn / 16 : ffn,
                                           .experts = c->mixture ? 128 : 0,
                                           .top_k = c->mixture ? 2 : 0,
                                           .heads = 8,
                                           .kv_groups = 8,
                                           .head_dim = hidden / 8,
                                           .vocab = 16 * hidden,
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
                                 .expert_parallel = c->mixture ? 2 : 1,
                                 .virtual_pipeline = 1,
                                 .vocab_divisor = 1,
                                 .seed = 1234,
                                 .force = true,
                                 .verbosity = -1};
    return mgr_run_synth(b->comm, &o, err);
}

static int write_config(const mgr_benched *b, const contest *c, mgr_err *err)
{
    const char *const behind = strstr(c->config, "target:\n") + strlen("target:\n");
    mgr_buf text = {0};
    int rc =
        mgr_buf_fmt(&text, err, "io_threads: %u\nsource:\n  path: '%s'\n%.*s  path: '%s'\n%s",
                    c->threads, b->source, (int)(behind - c->config), c->config, b->target, behind);
    mgr_err ignored = MGR_ERR_INIT;
    if (rc == MGR_OK)
        rc = mgr_remove_tree(b->config, &ignored);
    if (rc == MGR_OK)
        rc = mgr_write_file(b->config, text.data, text.len, err);
    mgr_buf_clear(&text);
    return rc;
}

static int add_file(mgr_bench_files *f, const char *before, const char *name, mgr_err *err)
{
    MGR_TRY(mgr_arena_fmt(&f->arena, &f->paths[f->n], err, "%s%s", before, name));
    MGR_TRY(mgr_file_bytes(f->paths[f->n], &f->sizes[f->n], err));
    f->bytes += f->sizes[f->n++];
    return MGR_OK;
}

int mgr_bench_list(mgr_bench_files *f, const char *before, const char *const *names, size_t n,
                   mgr_err *err)
{
    mgr_arena_clear(&f->arena);
    *f = (mgr_bench_files){.n = 0};
    MGR_TRY(mgr_arena_alloc(&f->arena, &f->paths, n * sizeof *f->paths, err));
    MGR_TRY(mgr_arena_alloc(&f->arena, &f->sizes, n * sizeof *f->sizes, err));
    for (size_t i = 0; i < n; i++)
        if (!mgr_has_suffix(names[i], "/"))
            MGR_TRY(add_file(f, before, names[i], err));
    return MGR_OK;
}

static int list_target(mgr_benched *b, mgr_err *err)
{
    char before[sizeof b->target + 1];
    mgr_arena arena = {0};
    const char **names = NULL;
    size_t n = 0;
    snprintf(before, sizeof before, "%s/", b->target);
    int rc = mgr_list_tree(b->target, &arena, &names, &n, err);
    if (rc == MGR_OK)
        rc = mgr_bench_list(&b->files, before, names, n, err);
    mgr_arena_clear(&arena);
    return rc;
}

int mgr_bench_list_target(mgr_benched *b, mgr_err *err)
{
    return mgr_agree(b->comm, list_target(b, err), err);
}

/* --- floor and run in turn --- */

/* What the rounds gave. */
typedef struct rounds {
    mgr_bench_cost run[MGR_BENCH_MAX_ROUNDS], floor[MGR_BENCH_MAX_ROUNDS];
    double ratio[MGR_BENCH_MAX_ROUNDS], cpu_ratio[MGR_BENCH_MAX_ROUNDS];
    unsigned best[MGR_BENCH_WAYS]; /* how often each way was the fastest */
    uint64_t peak;                 /* of the largest rank */
} rounds;

static double processor(const mgr_bench_cost *c)
{
    return c->user + c->system;
}

/* One run that is not counted tells how many bytes there are, and warms up. */
static int warm_up(mgr_benched *b, mgr_err *err)
{
    MGR_TRY(mgr_bench_run(b, NULL, err));
    MGR_TRY(mgr_bench_list_target(b, err));
    return mgr_bench_remove_target(b, err);
}

/* The best of all ways, by each measure. */
static int try_ways(const mgr_benched *b, const mgr_bench_floor *f, uint64_t i, rounds *r,
                    mgr_err *err)
{
    mgr_bench_cost best = {0};
    int fastest = 0;
    for (int k = 0; k < MGR_BENCH_WAYS; k++) {
        const int way = (int)(((uint64_t)k + i) % MGR_BENCH_WAYS);
        mgr_bench_cost one;
        MGR_TRY(mgr_bench_floor_cost(b, f, way, &one, err));
        if (k == 0 || processor(&one) < processor(&best))
            best.user = one.user, best.system = one.system;
        if (k == 0 || one.seconds < best.seconds)
            best.seconds = one.seconds, fastest = way;
    }
    r->floor[i] = best;
    r->best[fastest]++;
    return MGR_OK;
}

/* The buffer is there for as long as that: it is not to count as the run's memory. */
static int hold_floors(const mgr_benched *b, const contest *c, uint64_t i, rounds *r, mgr_err *err)
{
    mgr_bench_floor floor;
    int rc = mgr_agree(b->comm, mgr_bench_floor_init(b, &floor, c->copies, err), err);
    if (rc == MGR_OK)
        rc = try_ways(b, &floor, i, r, err);
    mgr_bench_floor_clear(&floor);
    return rc;
}

static int hold_run(const mgr_benched *b, uint64_t i, rounds *r, mgr_err *err)
{
    mgr_tally tally = {0};
    mgr_forget_peak_rss();
    MGR_TRY(mgr_bench_cost_of(b, mgr_bench_run, &tally, &r->run[i], err));
    r->peak = tally.peak_rss > r->peak ? tally.peak_rss : r->peak;
    return mgr_bench_remove_target(b, err);
}

/* Each second time the run comes first. */
static int hold_round(const mgr_benched *b, const contest *c, uint64_t i, rounds *r, mgr_err *err)
{
    if (i % 2)
        MGR_TRY(hold_run(b, i, r, err));
    MGR_TRY(hold_floors(b, c, i, r, err));
    if (i % 2 == 0)
        MGR_TRY(hold_run(b, i, r, err));
    r->ratio[i] = r->run[i].seconds / r->floor[i].seconds;
    r->cpu_ratio[i] = processor(&r->run[i]) / processor(&r->floor[i]);
    return MGR_OK;
}

/* Medians of the members of costs, in seconds for each GB (10^9 bytes). */
static mgr_bench_cost median(const mgr_bench_cost *list, uint64_t n, uint64_t bytes)
{
    double of[3][MGR_BENCH_MAX_ROUNDS];
    for (uint64_t i = 0; i < n; i++) {
        of[0][i] = list[i].seconds;
        of[1][i] = list[i].user;
        of[2][i] = list[i].system;
    }
    for (int k = 0; k < 3; k++)
        qsort(of[k], n, sizeof **of, mgr_bench_by_size);
    const double gb = (double)bytes / 1e9;
    return (mgr_bench_cost){of[0][n / 2] / gb, of[1][n / 2] / gb, of[2][n / 2] / gb};
}

static json_t *cost_json(const mgr_bench_cost *c)
{
    return json_pack("{s:f,s:f,s:f}", "seconds_per_gb", c->seconds, "user_per_gb", c->user,
                     "system_per_gb", c->system);
}

static json_t *spread_json(double *list, uint64_t n)
{
    qsort(list, n, sizeof *list, mgr_bench_by_size);
    return json_pack("{s:f,s:f,s:f}", "median", list[n / 2], "least", list[0], "most", list[n - 1]);
}

static int fastest_of(const rounds *r)
{
    int most = 0;
    for (int k = 1; k < MGR_BENCH_WAYS; k++)
        most = r->best[k] > r->best[most] ? k : most;
    return most;
}

/* Rank 0; sorts the ratios. */
static void tell(const mgr_benched *b, const contest *c, rounds *r)
{
    const uint64_t n = b->options->rounds, bytes = b->files.bytes;
    const mgr_bench_cost run = median(r->run, n, bytes), floor = median(r->floor, n, bytes);
    json_t *const one = json_pack(
        "{s:s,s:I,s:I,s:I,s:s,s:s,s:o,s:o,s:o,s:o}", "title", c->title, "bytes", (json_int_t)bytes,
        "files", (json_int_t)b->files.n, "peak_rss", (json_int_t)r->peak, "floor_moves",
        c->copies ? "copies of the source" : "writes", "fastest_way",
        mgr_bench_way_name(fastest_of(r)), "ratio", spread_json(r->ratio, n), "cpu_ratio",
        spread_json(r->cpu_ratio, n), "run", cost_json(&run), "floor", cost_json(&floor));
    json_object_set_new(json_object_get(b->report, "contests"), c->name, one);
    if (b->options->json)
        return;
    printf("%-34s %5.2f GB  %5.2f (%.2f, %.2f)  %5.2f (%.2f, %.2f)\n", c->title,
           (double)bytes / 1e9, r->ratio[n / 2], r->ratio[0], r->ratio[n - 1], r->cpu_ratio[n / 2],
           r->cpu_ratio[0], r->cpu_ratio[n - 1]);
    printf("  run %.2f GB/s, %.3f user + %.3f system s/GB, %.0f MiB resident; floor %.2f GB/s "
           "(%s), %.3f + %.3f s/GB\n",
           1 / run.seconds, run.user, run.system, (double)r->peak / 0x1p20, 1 / floor.seconds,
           mgr_bench_way_name(fastest_of(r)), floor.user, floor.system);
    fflush(stdout);
}

static int measure(mgr_benched *b, const contest *c, mgr_err *err)
{
    rounds r = {.peak = 0};
    MGR_TRY(warm_up(b, err));
    for (uint64_t i = 0; i < b->options->rounds; i++)
        MGR_TRY(hold_round(b, c, i, &r, err));
    if (b->report)
        tell(b, c, &r);
    return MGR_OK;
}

static int remove_source(const mgr_benched *b, mgr_err *err)
{
    int rc = is_root(b) ? mgr_remove_tree(b->source, err) : MGR_OK;
    if (rc == MGR_OK && is_root(b))
        rc = mgr_remove_tree(b->config, err);
    return mgr_agree(b->comm, rc, err);
}

/* The source is that of the contest before where that one's does. */
static int hold_contest(mgr_benched *b, const contest *before, const contest *c, mgr_err *err)
{
    if (!before || before->mixture != c->mixture)
        MGR_TRY(make_source(b, c, err));
    MGR_TRY(mgr_agree(b->comm, is_root(b) ? write_config(b, c, err) : MGR_OK, err));
    return measure(b, c, err);
}

static void tell_head(const mgr_benched *b)
{
    char name[256];
    mgr_cpu_name(name, sizeof name);
    json_object_set_new(b->report, "program", json_string("mgr-bench " MGR_VERSION));
    json_object_set_new(b->report, "cpu", json_string(name));
    json_object_set_new(b->report, "ranks", json_integer(mgr_comm_size(b->comm)));
    json_object_set_new(b->report, "rounds", json_integer((json_int_t)b->options->rounds));
    json_object_set_new(b->report, "contests", json_object());
    if (!b->options->json)
        printf("%s, %d ranks, %llu rounds\n", name, mgr_comm_size(b->comm),
               (unsigned long long)b->options->rounds);
}

static int hold_contests(mgr_benched *b, mgr_err *err)
{
    const contest *before = NULL;
    int rc = MGR_OK;
    if (b->report && !b->options->json)
        printf("%-34s %8s  %-18s %s\n", "run by its floor: median", "written",
               "seconds (least, most)", "processor seconds");
    for (size_t i = 0; rc == MGR_OK && i < N_CONTESTS; i++) {
        const bool reads = i == 0 && mgr_bench_wants(b->options, READING); /* what that one wrote */
        if (!reads && !mgr_bench_wants(b->options, contests[i].name))
            continue;
        rc = hold_contest(b, before, &contests[i], err);
        before = &contests[i];
        if (rc == MGR_OK && reads)
            rc = mgr_bench_reading(b, err);
    }
    mgr_err ignored = MGR_ERR_INIT;
    const int removed = remove_source(b, rc == MGR_OK ? err : &ignored);
    mgr_arena_clear(&b->files.arena);
    return rc != MGR_OK ? rc : removed;
}

static bool is_known(const char *at)
{
    bool known = is_name(KERNELS, at) || is_name(READING, at);
    for (size_t i = 0; i < N_CONTESTS && !known; i++)
        known = is_name(contests[i].name, at);
    return known;
}

/* What is asked for must be there to be had. */
static int check_options(const mgr_bench_options *o, mgr_err *err)
{
    if (strlen(o->scratch) > 400 || strchr(o->scratch, '\''))
        return mgr_fail(err, MGR_ERR_USAGE, "--scratch is too long, or has a quote in it");
    for (const char *at = o->only; at; at = next_name(at))
        if (!is_known(at)) {
            mgr_fail(err, MGR_ERR_USAGE, "--only: nothing is called '%.*s'", (int)strcspn(at, ","),
                     at);
            return mgr_hint(err, "there are " MGR_BENCH_NAMES);
        }
    return MGR_OK;
}

static int print_report(const mgr_benched *b, mgr_err *err)
{
    mgr_buf text = {0};
    const int rc = mgr_json_dump(b->report, 2, &text, err);
    if (rc == MGR_OK)
        fputs(text.data, stdout);
    mgr_buf_clear(&text);
    return rc;
}

int mgr_bench(mgr_comm *comm, const mgr_bench_options *options, mgr_err *err)
{
    mgr_benched b = {.comm = comm, .options = options};
    MGR_TRY(check_options(options, err));
    snprintf(b.source, sizeof b.source, "%s/mgr-bench-source", options->scratch);
    snprintf(b.target, sizeof b.target, "%s/mgr-bench-Mixtral", options->scratch);
    snprintf(b.config, sizeof b.config, "%s/mgr-bench.yaml", options->scratch);
    snprintf(b.plain, sizeof b.plain, "%s/mgr-bench-plain", options->scratch);
    b.report = mgr_comm_rank(comm) == 0 ? json_object() : NULL;
    if (b.report)
        tell_head(&b);
    int rc = b.report && mgr_bench_wants(options, KERNELS) ? mgr_bench_kernels(&b, err) : MGR_OK;
    rc = mgr_agree(comm, rc, err);
    if (rc == MGR_OK)
        rc = hold_contests(&b, err);
    if (rc == MGR_OK && b.report && options->json)
        rc = print_report(&b, err);
    json_decref(b.report);
    return mgr_agree(comm, rc, err);
}
