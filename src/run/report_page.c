/* The page of a dry run: enough to decide whether to run, in words that need no source code. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/say.h"
#include "engine/engine.h"
#include "io/file.h"
#include "run/bandwidth.h"
#include "run/recipe.h"
#include "run/report_line.h"
#include "run/run.h"

#define FILES_SHOWN 12

typedef struct counts {
    double all, active; /* parameters; active: for each token */
} counts;

/* "1.23 B" parameters. */
static const char *format_count(double n, char *out, size_t size)
{
    static const struct {
        double size;
        const char *name;
    } units[] = {{1e12, "trillion"}, {1e9, "billion"}, {1e6, "million"}, {1e3, "thousand"}};
    for (size_t i = 0; i < sizeof units / sizeof units[0]; i++)
        if (n >= units[i].size) {
            snprintf(out, size, "%.4g %s", n / units[i].size, units[i].name);
            return out;
        }
    snprintf(out, size, "%.0f", n);
    return out;
}

static counts count(const mgr_tensors *tensors)
{
    const mgr_model *const m = &tensors->model;
    const double share = m->experts ? (double)m->top_k / (double)m->experts : 1;
    counts c = {0, 0};
    for (uint32_t i = 0; i < tensors->n_weights; i++) {
        const mgr_tensor *const t = &tensors->list[i];
        const double n = (double)t->rows * (double)t->cols;
        c.all += n;
        c.active += t->expert == MGR_NONE ? n : n * share;
    }
    return c;
}

static void print_parameters(const mgr_job *job)
{
    char from[40], to[40], active[40];
    const counts source = count(&job->source.tensors), target = count(&job->target.tensors);
    format_count(source.all, from, sizeof from);
    format_count(target.all, to, sizeof to);
    format_count(target.active, active, sizeof active);
    if (job->target.tensors.model.experts)
        mgr_report_line("size", "%s parameters%s%s, of which %s are active for each token", from,
                        job->method ? " become " : "", job->method ? to : "", active);
    else
        mgr_report_line("size", "%s parameters", from);
}

/* Bytes of the expert's tensor `t` that a method changes. Biases stay as they are, and so does the
 * first expert that is made of one of a mixture. */
static uint64_t changed_bytes(const mgr_job *job, const mgr_tensor *t, uint64_t bytes)
{
    const mgr_recipe *const r = &job->recipe;
    if (t->ndim == 1 || (r->from && !mgr_recipe_is_copy(r, t->layer, t->expert)))
        return 0;
    return bytes / r->width * mgr_count_selected(job, t->layer, mgr_matrix_of(t->role));
}

/* How much of the target is the source's, and what is not. */
static void print_origins(const mgr_job *job)
{
    uint64_t changed = 0, made = 0, all = 0;
    char of_source[32], other[32], routers[32];
    for (uint32_t i = 0; i < job->target.tensors.n_weights; i++) {
        const mgr_tensor *const t = &job->target.tensors.list[i];
        const uint64_t bytes = t->rows * t->cols * mgr_dtype_size(job->target.layout.types[i]);
        const mgr_op op = job->defines[i].op;
        all += bytes;
        changed += op == MGR_OP_EXPERT ? changed_bytes(job, t, bytes) : 0;
        changed += op == MGR_OP_INIT ? bytes : 0;
        made += op == MGR_OP_ROUTER || op == MGR_OP_ZERO ? bytes : 0;
    }
    mgr_format_bytes(all - changed - made, of_source, sizeof of_source);
    if (job->method)
        mgr_report_line("weights", "%s kept from the source, %s %s, %s of new routers", of_source,
                        mgr_format_bytes(changed, other, sizeof other),
                        job->method->needs_moments || job->method->draws_all || !changed
                            ? "drawn anew"
                            : "with noise added",
                        mgr_format_bytes(made, routers, sizeof routers));
    else
        mgr_report_line("weights", "%s, all of them the source's", of_source);
}

static void print_files(const mgr_job *job, bool verbose)
{
    const mgr_catalogue *const cat = &job->target.cat;
    const size_t shown = verbose || cat->n_files <= FILES_SHOWN ? cat->n_files : FILES_SHOWN - 1;
    char text[32];
    for (size_t f = 0; f < shown; f++)
        mgr_say(stdout, "%-9s %10s  %s\n", f == 0 ? "files" : "",
                mgr_format_bytes(cat->files[f].bytes, text, sizeof text), cat->files[f].path);
    if (shown < cat->n_files)
        mgr_say(stdout, "%-9s %10s  and %zu more (all with --verbose)\n", "", "...",
                cat->n_files - shown);
    mgr_say(stdout, "%-9s %10s  in all, with the ledger; small files come on top\n", "",
            mgr_format_bytes(mgr_run_output_bytes(job), text, sizeof text));
    if (job->container->seal)
        mgr_report_line("",
                        "of each file half is the plain one, which is there until it is packed");
}

/* The folder that is or will be the target's parent; false where there is no name for it. */
static bool parent_of(const mgr_job *job, char *out, size_t size)
{
    size_t len = strlen(job->config.target.path);
    while (len > 1 && job->config.target.path[len - 1] == '/')
        len--;
    const int n = snprintf(out, size, "%.*s", (int)len, job->config.target.path);
    char *const slash = strrchr(out, '/');
    if (slash)
        slash[slash == out] = '\0';
    else
        snprintf(out, size, ".");
    return n > 0 && (size_t)n < size;
}

static void print_quota(const mgr_room *room)
{
    char left[32], limit[32];
    if (room->quota.whose)
        mgr_report_line("quota", "%s left of the %s quota of %s",
                        mgr_format_bytes(room->quota.left, left, sizeof left), room->quota.whose,
                        mgr_format_bytes(room->quota.limit, limit, sizeof limit));
    else if (room->reserved)
        mgr_report_line("quota", "none in the way: all of it was reserved once, and given back");
    else if (room->quota.asked)
        mgr_report_line("quota", "none is set for this user and group");
    else
        mgr_report_line("quota", "not asked: a run may meet one (the file system does not say and "
                                 "reserves nothing, lies in memory, or more than half of it is "
                                 "needed)");
}

#define WIDEST 64 /* stripes: on more, take all servers */

/* How wide files ought to lie: what `lfs` is told before the first of them is made. */
static void print_lustre(const mgr_job *job, const char *parent)
{
    const mgr_catalogue *const cat = &job->target.cat;
    uint64_t largest = 0;
    if (!mgr_is_on_lustre(parent))
        return;
    for (size_t f = 0; f < cat->n_files; f++)
        largest = cat->files[f].bytes > largest ? cat->files[f].bytes : largest;
    const uint64_t stripes = (largest >> 30) + 1;
    mgr_report_line("lustre",
                    "give this folder, before the run, a stripe for each GiB of the largest file: "
                    "lfs setstripe -c %d -S 16M",
                    stripes <= WIDEST ? (int)stripes : -1);
    mgr_report_line("", "%s", parent);
}

/* What the check before this page has found; it ends a run that cannot be. */
static void print_space(const mgr_job *job)
{
    char parent[MGR_CONFIG_TEXT], needed[32], there[32];
    uint64_t space = 0;
    mgr_err ignored = MGR_ERR_INIT;
    if (job->complete || !parent_of(job, parent, sizeof parent))
        return;
    if (mgr_free_space(parent, &space, &ignored) == MGR_OK)
        mgr_say(stdout, "space     %s needed, %s free\n",
                mgr_format_bytes(mgr_run_output_bytes(job), needed, sizeof needed),
                mgr_format_bytes(space, there, sizeof there));
    print_lustre(job, parent);
    if (!job->room.tried) /* there is no room, as the error behind this page says */
        return;
    print_quota(&job->room);
    mgr_report_line("writable", "create, grow, write, sync, rename and remove were tried in");
    mgr_report_line("", "%s", parent);
}

/* "40 s", "12 min", "3 h 20 min". */
static const char *format_time(double seconds, char *out, size_t size)
{
    const double most = 1e6 * 3600;
    const uint64_t s = (uint64_t)(seconds < 1 ? 1 : seconds < most ? seconds + 0.5 : most);
    if (s < 120)
        snprintf(out, size, "%" PRIu64 " s", s);
    else if (s < 7200)
        snprintf(out, size, "%" PRIu64 " min", (s + 59) / 60);
    else
        snprintf(out, size, "%" PRIu64 " h %" PRIu64 " min", s / 3600, s / 60 % 60);
    return out;
}

static void print_measured(const mgr_job *job)
{
    const mgr_plan *const plan = &job->plan;
    mgr_bandwidth found;
    mgr_err err = MGR_ERR_INIT;
    char time[32], in[32], out[32];
    if (mgr_bandwidth_measure(job, &found, &err) != MGR_OK) {
        mgr_report_line("time", "not measured: %s", err.msg);
        return;
    }
    const double reading = found.read > 0 ? (double)plan->total_in / found.read : 0;
    const double seconds = reading + (double)plan->total_out / found.write;
    mgr_report_line("time",
                    "%s if all ranks together are no faster than one process here, which "
                    "reads %s and writes %s a second",
                    format_time(seconds, time, sizeof time),
                    found.read > 0 ? mgr_format_bytes((uint64_t)found.read, in, sizeof in)
                                   : "too little to tell",
                    mgr_format_bytes((uint64_t)found.write, out, sizeof out));
}

/* Reading and writing decide; arithmetic hides behind them. */
static void print_time(const mgr_job *job, const mgr_run_options *options)
{
    const double bytes = (double)job->plan.total_in + (double)job->plan.total_out;
    char time[32], slow[32], rate[32];
    if (options->measure)
        print_measured(job);
    else if (options->bandwidth)
        mgr_report_line("time", "%s at %s a second",
                        format_time(bytes / (double)options->bandwidth, time, sizeof time),
                        mgr_format_bytes(options->bandwidth, rate, sizeof rate));
    else
        mgr_report_line("time",
                        "%s at 1 GiB a second for all ranks together, %s at 10 GiB (yours: "
                        "--bandwidth)",
                        format_time(bytes / 0x1p30, slow, sizeof slow),
                        format_time(bytes / (10 * 0x1p30), time, sizeof time));
}

static void print_memory(const mgr_job *job)
{
    char expected[32], most[32];
    const uint64_t ranks = job->plan.ranks;
    mgr_report_line("memory", "%s on %u rank%s together, at most %s",
                    mgr_format_bytes(job->memory_expected * ranks, expected, sizeof expected),
                    job->plan.ranks, ranks == 1 ? "" : "s",
                    mgr_format_bytes(job->config.memory_per_rank * ranks, most, sizeof most));
}

/* What run/write.c calls behind a dry run's end; cli.Terminal holds it against runs. */
#define CALLS_BEHIND 56
#define CALLS_OF_HEADERS 4 /* of each source, where there are ranks to share them with */
#define CALLS_OF_PLACES 4
#define CALLS_OF_HASHES 6

/* Collective ones of a run, the engine's and those of packing apart. */
static uint64_t collective_calls(const mgr_job *job, const mgr_run_options *options)
{
    const uint64_t sources = job->n_branches ? job->n_branches : 1;
    const bool shared = job->ranks == 1 && job->plan.ranks > 1;
    return mgr_comm_calls(job->comm) + CALLS_BEHIND + (shared ? sources * CALLS_OF_HEADERS : 0) +
           (job->container->create ? CALLS_OF_PLACES : 0) +
           (job->method && job->target.tensors.model.experts ? 1 : 0) +
           (job->config.target.sha256 ? CALLS_OF_HASHES : 0) +
           (options->write.progress > 0 ? 1 : 0);
}

/* What a metadata server sees, at least. Rank 0 makes each file, writes its header when all is
 * there, and reads that back; a rank syncs what it wrote before its journal's last block. */
static void print_metadata(const mgr_job *job, const mgr_calls *calls)
{
    const uint64_t files = job->target.cat.n_files, ranks = job->plan.ranks;
    mgr_report_line("metadata",
                    "at least %llu creates, %llu opens, %llu fsyncs, 2 renames; each %g s one more "
                    "fsync for each file that a rank has written to",
                    (unsigned long long)(files + ranks),
                    (unsigned long long)(calls->opens + job->source.cat.n_files + 2 * files),
                    (unsigned long long)(calls->write_opens + files + ranks), MGR_JOURNAL_SECONDS);
}

static void print_calls(mgr_job *job, const mgr_run_options *options)
{
    mgr_calls calls;
    char in[32], out[32];
    mgr_err ignored = MGR_ERR_INIT;
    if (mgr_engine_count(job, &calls, &ignored) != MGR_OK)
        return;
    mgr_report_line("calls", "%llu reads and %llu writes of weights, %llu collective%s",
                    (unsigned long long)calls.reads, (unsigned long long)calls.writes,
                    (unsigned long long)(calls.collective + collective_calls(job, options)),
                    job->container->seal ? ", and those of packing" : "");
    mgr_report_line("extents", "half of the reads have %s and more, of the writes %s",
                    mgr_format_bytes(calls.median_read, in, sizeof in),
                    mgr_format_bytes(calls.median_write, out, sizeof out));
    mgr_report_line("opened", "%zu + %zu files, %llu times by all ranks, at most %llu by one",
                    job->source.cat.n_files, job->target.cat.n_files,
                    (unsigned long long)calls.opens, (unsigned long long)calls.most_opens);
    print_metadata(job, &calls);
    if (job->places.nodes)
        mgr_report_line("nodes", "%u; a file once on each: %llu opened by all, at most %llu by one",
                        job->places.nodes, (unsigned long long)calls.node_files,
                        (unsigned long long)calls.most_node_files);
}

static void print_details(mgr_job *job)
{
    const mgr_plan *const plan = &job->plan;
    const double mean = (double)(plan->total_in + plan->total_out) / plan->ranks;
    const double most = mean > 0 ? 100.0 * ((double)plan->max_rank_bytes / mean - 1.0) : 0.0;
    mgr_report_line("details",
                    "%zu pieces of work in %zu rounds; the rank that has most has %.1f %% more "
                    "than the mean",
                    plan->n_units, plan->n_groups, most);
}

void mgr_print_page(mgr_job *job, const mgr_run_options *options)
{
    const bool verbose = options->verbosity > 0;
    print_parameters(job);
    print_origins(job);
    print_files(job, verbose);
    print_space(job);
    print_memory(job);
    print_time(job, options);
    if (verbose) {
        print_details(job);
        print_calls(job, options);
    }
}
