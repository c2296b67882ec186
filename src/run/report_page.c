/* The page of a dry run: enough to decide whether to run, in words that need no source code. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/say.h"
#include "io/file.h"
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
    for (uint32_t i = 0; i < tensors->n; i++) {
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

/* What the experts keep of the dense FFN, and what starts anew. */
static void print_redrawn(const mgr_job *job)
{
    const mgr_model *const m = &job->source.tensors.model;
    uint64_t bytes = 0;
    char text[32];
    if (!job->method)
        return;
    for (uint32_t i = 0; i < job->target.tensors.n; i++) {
        const mgr_tensor *const t = &job->target.tensors.list[i];
        if (job->defines[i].op == MGR_OP_EXPERT)
            bytes += t->rows * t->cols * mgr_dtype_size(job->target.layout.types[i]);
    }
    mgr_say(stdout, "experts   %s, of which %.4g %% %s\n",
            mgr_format_bytes(bytes, text, sizeof text),
            m->ffn ? 100.0 * job->recipe.n_selected / (double)m->ffn : 0.0,
            job->method->needs_moments ? "are drawn anew" : "have noise added");
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
}

/* The folder that is or will be the target's parent. */
static void print_space(const mgr_job *job)
{
    char parent[MGR_CONFIG_TEXT], needed[32], there[32];
    uint64_t space = 0;
    mgr_err ignored = MGR_ERR_INIT;
    snprintf(parent, sizeof parent, "%s", job->config.target.path);
    char *const slash = strrchr(parent, '/');
    if (slash)
        slash[slash == parent] = '\0';
    if (mgr_free_space(slash ? parent : ".", &space, &ignored) == MGR_OK)
        mgr_say(stdout, "space     %s needed, %s free (a quota may allow less)\n",
                mgr_format_bytes(mgr_run_output_bytes(job), needed, sizeof needed),
                mgr_format_bytes(space, there, sizeof there));
}

static void print_details(const mgr_job *job)
{
    const mgr_plan *const plan = &job->plan;
    const double mean = (double)(plan->total_in + plan->total_out) / plan->ranks;
    const double most = mean > 0 ? 100.0 * ((double)plan->max_rank_bytes / mean - 1.0) : 0.0;
    mgr_report_line("details",
                    "%zu pieces of work in %zu rounds; the rank that has most has %.1f %% more "
                    "than the mean",
                    plan->n_units, plan->n_groups, most);
}

void mgr_print_page(const mgr_job *job, bool verbose)
{
    print_parameters(job);
    print_redrawn(job);
    print_files(job, verbose);
    print_space(job);
    if (verbose)
        print_details(job);
}
