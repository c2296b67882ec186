/* What rank 0 prints about a run: aligned lines for people. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "core/mem.h"
#include "core/say.h"
#include "core/say_run.h"
#include "look/view.h"
#include "mgr/version.h"
#include "run/recipe.h"
#include "run/report_line.h"
#include "run/run.h"

#define WARNING "mgr-upcycle: warning"

static void print_one(const mgr_source_format *format, const mgr_source_files *files,
                      const void *state, size_t n_files)
{
    mgr_buf layout = {0};
    mgr_err ignored = MGR_ERR_INIT;
    if (format->summary(state, &layout, &ignored) != MGR_OK)
        layout.len = 0;
    mgr_report_line("source", "%s, %zu files: %s", format->name, n_files,
                    layout.data ? layout.data : "");
    mgr_report_line("", "%s", files->directory);
    mgr_buf_clear(&layout);
}

static void print_source(const mgr_job *job)
{
    mgr_buf model = {0};
    mgr_err ignored = MGR_ERR_INIT;
    for (uint32_t i = 0; i < job->n_branches; i++) {
        const mgr_branch *const b = &job->branches[i];
        print_one(b->format, &b->files, b->state, b->side.cat.n_files);
    }
    if (!job->n_branches)
        print_one(job->source_format, &job->source_files, job->source_state,
                  job->source.cat.n_files);
    if (mgr_view_model(&job->source.tensors.model, &model, &ignored) == MGR_OK &&
        mgr_view_types(&job->source.layout, &model, &ignored) == MGR_OK)
        mgr_report_line("model", "%s", model.data);
    mgr_buf_clear(&model);
}

/* The target's types, and where a format that keeps several tensors as one has widened some. */
static void print_target(const mgr_job *job)
{
    const mgr_config *const c = &job->config;
    char ranks[64] = "", wide[120] = "";
    const mgr_layout *const to = &job->target.layout;
    const bool as_source = strcmp(job->config.target.dtype, "source") == 0;
    mgr_buf types = {0};
    mgr_err ignored = MGR_ERR_INIT;
    uint32_t widened = 0;
    for (uint32_t i = 0; as_source && i < to->tensors->n_weights; i++)
        widened += job->defines[i].source != MGR_NONE &&
                   to->types[i] != mgr_layout_type(&job->source.layout, job->defines[i].source);
    if (mgr_view_types(to, &types, &ignored) != MGR_OK)
        types.len = 0;
    if (widened)
        snprintf(wide, sizeof wide,
                 " (%u of them wider than in the source, as this format stores them with others)",
                 widened);
    if (job->method)
        snprintf(ranks, sizeof ranks, "%llu expert-parallel rank%s, ",
                 (unsigned long long)c->target.expert_parallel,
                 c->target.expert_parallel == 1 ? "" : "s");
    mgr_report_line("target", "%s, %zu files, %s%s%s%s", job->target_format->name,
                    job->target.cat.n_files, ranks, mgr_dtype_name(to->dtype),
                    types.data ? types.data : "", wide);
    mgr_report_line("", "%s", c->target.path);
    mgr_buf_clear(&types);
}

/* Experts that are not as wide as the FFN, or scaled. */
static void print_cut(const mgr_job *job)
{
    const mgr_recipe *const r = &job->recipe;
    char rest[120];
    if (r->neurons)
        mgr_report_line("", "%u of the FFN's %u neurons each, by the lists of %s%s%s", r->width,
                        r->source_width, job->config.upcycle.neurons_file,
                        mgr_rest_of(job, rest, sizeof rest)[0] ? ": " : "", rest);
    else if (r->width != r->source_width || r->replicas)
        mgr_report_line("", "%u of the FFN's %u neurons each, %s%s%s", r->width, r->source_width,
                        r->replicas ? "of shuffled copies" : "in turn",
                        mgr_rest_of(job, rest, sizeof rest)[0] ? ": " : "", rest);
    if (mgr_recipe_is_scaled(r))
        mgr_report_line("", "scaled in the end, as '%s'%s has it: gate %g, up %g, down %g",
                        job->config.upcycle.scale,
                        r->part == 1 ? "" : " beside half of a shared expert", r->scale[0],
                        r->scale[1], r->scale[2]);
}

/* A shared expert beside them. */
static void print_shared(const mgr_job *job)
{
    const mgr_recipe *const r = &job->recipe;
    const bool gate = job->target.tensors.model.shared_switch;
    if (!job->shared_width)
        return;
    if (r->set_aside)
        mgr_report_line("", "a shared expert of the FFN's first %u neurons, which no other has%s",
                        r->set_aside, gate ? ", with a gate of zeros and down doubled" : "");
    else
        mgr_report_line("", "a shared expert that is the FFN%s%s",
                        r->part == 1 ? "" : " with half the weight; the others have the other half",
                        gate ? ", with a gate of zeros and down doubled" : "");
}

/* Which experts of a mixture. */
static void print_mixture(const mgr_job *job)
{
    const char *const given = job->config.upcycle.experts_from;
    const char *const list = given[0] ? given : job->config.upcycle.experts_file;
    const uint64_t top = job->source.tensors.model.top_k;
    if (!job->recipe.from)
        return;
    if (job->n_branches) {
        mgr_report_line("", "%s of the %u sources; other tensors: %s", list[0] ? list : "in turn",
                        job->recipe.sources, job->config.upcycle.others);
        return;
    }
    if (list[0] == '\0')
        mgr_report_line("", "all of the source's %u experts, top %llu there, %u times each",
                        job->recipe.sources, (unsigned long long)top,
                        job->recipe.experts / job->recipe.sources);
    else
        mgr_report_line("", "%s of the source's %u, top %llu there; others are left out", list,
                        job->recipe.sources, (unsigned long long)top);
}

static void print_method(const mgr_job *job)
{
    const mgr_config *const c = &job->config;
    if (job->joined) {
        mgr_report_line("dense", "%u experts of each layer side by side, %llu neurons, times %g",
                        job->joined, (unsigned long long)job->joined_width,
                        (double)job->joined_weight);
        mgr_report_line("step 0", "%s", mgr_step_zero_of(job).text);
    }
    if (!job->method)
        return;
    char redrawn[MGR_CONFIG_TEXT + 120] = "", ratio[40], neurons[60], std[40];
    snprintf(std, sizeof std, "%g", c->upcycle.redraw_std);
    snprintf(ratio, sizeof ratio, "%g", c->upcycle.ratio);
    if (job->method->needs_selection)
        snprintf(redrawn, sizeof redrawn, ", ratio %s%s%s (%s, %s sets)",
                 c->upcycle.layer_ratio[0] ? c->upcycle.layer_ratio : ratio,
                 c->upcycle.matrix_ratio[0] ? " times " : "", c->upcycle.matrix_ratio,
                 mgr_selected_text(job, neurons, sizeof neurons), c->upcycle.index_sets);
    mgr_report_line("experts", "%llu, top %llu, method %s%s%s, router %s, seed %llu",
                    (unsigned long long)c->upcycle.experts, (unsigned long long)c->upcycle.top_k,
                    job->method->name, redrawn, c->upcycle.shuffle ? ", shuffled" : "",
                    mgr_router_name(job->router.kind), (unsigned long long)c->upcycle.seed);
    if (job->method->draws_all)
        mgr_report_line("", "every weight from N(0, %g^2)%s; norms 1, biases 0",
                        c->upcycle.init_std,
                        strcmp(c->upcycle.init, "megatron") == 0
                            ? ", those of outputs divided by sqrt(2 x layers)"
                            : "");
    else
        print_cut(job);
    print_shared(job);
    if (job->redraw_centred || job->redraw_std > 0)
        mgr_report_line("", "drawn with mean %s and std %s",
                        job->redraw_centred ? "0" : "of what is replaced",
                        job->redraw_std > 0 ? std : "of what is replaced");
    print_mixture(job);
    if (job->layers_from)
        mgr_report_line("", "%u layers, made of the source's %llu: %s", job->n_layers,
                        (unsigned long long)job->source.tensors.model.layers,
                        c->upcycle.layers_from);
    mgr_report_line("step 0", "%s", mgr_step_zero_of(job).text);
}

static void print_skipped(const mgr_job *job)
{
    mgr_say(stdout, "skipped  ");
    const char *comma = "";
    for (int k = 0; k < MGR_SKIP_COUNT; k++) {
        mgr_say(stdout, "%s %llu %s", comma, (unsigned long long)job->source.cat.skipped[k],
                mgr_skip_name((mgr_skip)k));
        comma = ",";
    }
    mgr_say(stdout, " entries\n");
}

#define COLUMNS 79
#define FIELD_SHOWN 60
#define MAX_LISTED 64

/* "altered   a 1 -> 2, b ...", wrapped and indented as all lines are. */
static void print_fields(const mgr_remarks *remarks, mgr_remark_kind kind)
{
    size_t shown = 0, column = 10;
    for (size_t i = 0; i < remarks->n && shown < MAX_LISTED; i++) {
        const mgr_remark *const n = &remarks->list[i];
        char text[160];
        if (n->kind != kind)
            continue;
        const char *const value = n->was ? n->was : n->now;
        snprintf(text, sizeof text, "%s%s%.60s%s%.60s", n->field, value ? " " : "",
                 value ? value : "", n->was && n->now ? " -> " : "",
                 n->was && n->now ? n->now : "");
        if (strlen(text) > FIELD_SHOWN)
            memcpy(text + FIELD_SHOWN - 3, "...", 4);
        if (shown++ == 0)
            mgr_say(stdout, "%-9s", mgr_remark_name(kind));
        else if (column + 2 + strlen(text) >= COLUMNS)
            mgr_say(stdout, ",\n         "), column = 9;
        else
            column += (size_t)mgr_say(stdout, ",");
        column += (size_t)mgr_say(stdout, " %s", text);
    }
    if (shown && mgr_remarks_count(remarks, kind) > shown)
        mgr_say(stdout, ", and %zu more (mgr-manifest.json)",
                mgr_remarks_count(remarks, kind) - shown);
    if (shown)
        mgr_say(stdout, "\n");
}

/* What became of the fields beside the tensors, and what to know of the output. */
static void print_remarks(const mgr_remarks *remarks)
{
    static const mgr_remark_kind listed[] = {MGR_REMARK_SET, MGR_REMARK_ALTERED, MGR_REMARK_DROPPED,
                                             MGR_REMARK_UNKNOWN};
    if (mgr_remarks_count(remarks, MGR_REMARK_CARRIED))
        mgr_say(stdout, "carried   %zu fields as they were\n",
                mgr_remarks_count(remarks, MGR_REMARK_CARRIED));
    for (size_t k = 0; k < sizeof listed / sizeof listed[0]; k++)
        print_fields(remarks, listed[k]);
    for (size_t i = 0; i < remarks->n; i++)
        if (remarks->list[i].kind == MGR_REMARK_WARNING)
            mgr_report_line("note", "%s", remarks->list[i].why);
}

/* Of a path, which is shorter than the text here. */
static void MGR_PRINTF(1, 2) warn(const char *fmt, ...)
{
    char text[4096];
    va_list args;
    va_start(args, fmt);
    (void)vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    mgr_say_fitting(WARNING, text);
}

/* What only the values have shown. */
static void print_found(const mgr_job *job)
{
    for (size_t i = job->planned_remarks; i < job->remarks.n; i++)
        if (job->remarks.list[i].kind == MGR_REMARK_WARNING)
            mgr_say_fitting(WARNING, job->remarks.list[i].why);
}

static void print_next(const mgr_remarks *remarks)
{
    bool first = true;
    for (size_t i = 0; i < remarks->n; i++) {
        if (remarks->list[i].kind != MGR_REMARK_NEXT)
            continue;
        mgr_say(stdout, "%-9s %s\n", first ? "next" : "", remarks->list[i].now);
        first = false;
    }
}

/* moe-recipes picks the model class by the first of these words in the path, the whole of it (its
 * src/llama_recipes/get_models.py). */
static void warn_of_path(const mgr_job *job)
{
    static const char *const earlier[] = {"Llama", "Mistral", "mistral"};
    const char *const path = job->config.target.path, *taken = NULL;
    if (strcmp(job->target_format->name, "moe-recipes") != 0)
        return;
    for (size_t i = 0; i < sizeof earlier / sizeof earlier[0] && !taken; i++)
        taken = strstr(path, earlier[i]) ? earlier[i] : NULL;
    if (taken)
        warn("moe-recipes takes a checkpoint for another model by the word %s in its path, "
             "as '%s' has it",
             taken, path);
    else if (!strstr(path, "Mixtral"))
        warn("moe-recipes takes a checkpoint for Mixtral by that word in its path; "
             "'%s' does not have it",
             path);
}

void mgr_print_plan(const mgr_job *job)
{
    const mgr_plan *const plan = &job->plan;
    char in[32], out[32], memory[32];
    warn_of_path(job);
    mgr_say(stdout, "mgr-upcycle %s\n", MGR_VERSION);
    print_source(job);
    print_method(job);
    print_target(job);
    print_skipped(job);
    print_remarks(&job->remarks);
    mgr_say(stdout, "plan      %u rank%s read %s and %s %s\n", plan->ranks,
            plan->ranks == 1 ? "" : "s", mgr_format_bytes(plan->total_in, in, sizeof in),
            job->found ? "compare" : "write", mgr_format_bytes(plan->total_out, out, sizeof out));
    mgr_report_line("memory", "%s on each rank, with %s of buffers; memory_per_rank allows %s",
                    mgr_format_bytes(job->memory_expected, out, sizeof out),
                    mgr_format_bytes(plan->memory_bytes, memory, sizeof memory),
                    mgr_format_bytes(job->config.memory_per_rank, in, sizeof in));
    fflush(stdout);
}

/* Keys that were left to be found have what was found. */
static void fill_in_found(mgr_config *c, const mgr_model *m)
{
    c->model.num_layers = m->layers;
    c->model.ffn_hidden_size = m->ffn;
    c->model.hidden_size = m->hidden;
    c->model.moe_router_topk = m->top_k;
    if (m->ffns_only)
        return;
    c->model.num_attention_heads = m->heads;
    c->model.num_query_groups = m->kv_groups;
    c->model.kv_channels = m->head_dim;
    c->model.vocab_size = m->vocab;
    c->model.max_position_embeddings = m->max_positions;
    c->model.norm_epsilon = m->norm_epsilon;
    c->model.rotary_base = m->rotary_base;
    c->model.bos_token_id = m->bos_token_id;
    c->model.eos_token_id = m->eos_token_id;
}

void mgr_print_config(const mgr_job *job)
{
    mgr_config *c;
    mgr_buf text = {0};
    mgr_err ignored = MGR_ERR_INIT;
    if (mgr_alloc(&c, 1, sizeof *c, &ignored) != MGR_OK)
        return;
    *c = job->config;
    fill_in_found(c, &job->source.tensors.model);
    if (!job->plan_ranks || !job->io_threads_found)
        snprintf(c->io_threads, sizeof c->io_threads, "%u", job->plan.io_threads);
    if (mgr_config_dump(c, mgr_config_tables, &text, &ignored) == MGR_OK) {
        mgr_say(stdout, "\n");
        mgr_say_lines(stdout, text.data);
    }
    mgr_buf_clear(&text);
    mgr_free(c);
    fflush(stdout);
}

static double rate(uint64_t bytes, double seconds)
{
    return seconds > 0 ? (double)bytes / seconds / 0x1p30 : 0.0;
}

/* How often: to hold beside what the dry run said. */
static void print_calls(const mgr_job *job)
{
    mgr_report_line("calls", "%llu reads and %llu writes of weights, %llu collective",
                    (unsigned long long)job->tally.calls_read,
                    (unsigned long long)job->tally.calls_written,
                    (unsigned long long)mgr_comm_calls(job->comm));
}

static void print_done(const mgr_job *job, bool verbose)
{
    const mgr_tally *const t = &job->tally;
    const double engine = t->seconds_sums + t->seconds_write + t->seconds_sync;
    char text[32];
    mgr_say(stdout, "\nread      %10s\n", mgr_format_bytes(t->bytes_read, text, sizeof text));
    mgr_say(stdout, "written   %10s   %.2f GiB/s\n",
            mgr_format_bytes(t->bytes_written, text, sizeof text), rate(t->bytes_written, engine));
    if (job->plan.done_out)
        mgr_say(stdout, "resumed   %10s   were written before, and are still there\n",
                mgr_format_bytes(job->plan.done_out, text, sizeof text));
    mgr_say(stdout, "checked   %llu of %llu source records by CRC-32\n",
            (unsigned long long)t->records_checked, (unsigned long long)t->records_total);
    mgr_say(stdout,
            "seconds   find %.2f, plan %.2f, sums %.2f, write %.2f, sync %.2f, publish %.2f\n",
            t->seconds_find, t->seconds_plan, t->seconds_sums, t->seconds_write, t->seconds_sync,
            t->seconds_publish);
    mgr_say(stdout, "memory    %10s   peak of the largest rank\n",
            mgr_format_bytes(t->peak_rss, text, sizeof text));
    if (verbose)
        print_calls(job);
    if (job->replaced.kind)
        mgr_say(stdout, "replaced  what was there: %s, %zu files\n", job->replaced.kind,
                job->replaced.n_files);
    mgr_say(stdout, "done      %s\n", job->config.target.path);
    print_next(&job->remarks);
    fflush(stdout);
    print_found(job);
}

void mgr_print_summary(mgr_job *job, const mgr_run_options *options)
{
    if (job->complete) {
        mgr_say(stdout, "\nalready complete: %s\n", job->config.target.path);
    } else if (options->write.dry_run) {
        mgr_print_page(job, options);
        print_next(&job->remarks);
        if (job->replaced.kind)
            mgr_say(stdout, "\na run would replace what is there: %s, %zu files\n",
                    job->replaced.kind, job->replaced.n_files);
        mgr_say(stdout, "\ndry run: nothing was written\n");
    } else {
        print_done(job, options->verbosity > 0);
    }
}

/* ---- as events ---- */

static const char *remark_word(mgr_remark_kind kind)
{
    return kind == MGR_REMARK_WARNING ? "warning" : mgr_remark_name(kind);
}

static void say_remarks(const mgr_job *job, size_t first)
{
    for (size_t i = first; i < job->remarks.n; i++) {
        const mgr_remark *const r = &job->remarks.list[i];
        const mgr_fact facts[] = {{.key = "kind", .text = remark_word(r->kind)},
                                  {.key = "field", .text = r->field ? r->field : ""},
                                  {.key = "was", .text = r->was ? r->was : ""},
                                  {.key = "now", .text = r->now ? r->now : ""},
                                  {.key = "why", .text = r->why ? r->why : ""}};
        mgr_say_event("remark", facts, sizeof facts / sizeof facts[0]);
    }
}

void mgr_say_plan(const mgr_job *job)
{
    const mgr_fact facts[] = {
        {.key = "version", .text = MGR_VERSION},
        {.key = "source", .text = job->config.source.path},
        {.key = "source_format", .text = job->source_format->name},
        {.key = "target", .text = job->config.target.path},
        {.key = "target_format", .text = job->target_format->name},
        {.key = "ranks", .number = job->plan.ranks},
        {.key = "read", .number = (double)job->plan.total_in},
        {.key = "written", .number = (double)job->plan.total_out},
        {.key = "memory", .number = (double)job->memory_expected},
        {.key = "memory_per_rank", .number = (double)job->config.memory_per_rank}};
    mgr_say_event("plan", facts, sizeof facts / sizeof facts[0]);
    say_remarks(job, 0);
}

void mgr_say_done(const mgr_job *job, const mgr_run_options *options)
{
    const mgr_tally *const t = &job->tally;
    const char *const what = job->complete            ? "already complete"
                             : options->write.dry_run ? "dry run"
                                                      : "done";
    const mgr_fact facts[] = {{.key = "what", .text = what},
                              {.key = "target", .text = job->config.target.path},
                              {.key = "read", .number = (double)t->bytes_read},
                              {.key = "written", .number = (double)t->bytes_written},
                              {.key = "resumed", .number = (double)job->plan.done_out},
                              {.key = "records_checked", .number = (double)t->records_checked},
                              {.key = "seconds", .number = mgr_now() - job->start},
                              {.key = "peak_memory", .number = (double)t->peak_rss}};
    say_remarks(job, job->planned_remarks);
    mgr_say_event("summary", facts, sizeof facts / sizeof facts[0]);
}

void mgr_print_others(const char *others)
{
    mgr_say_fitting(WARNING ": left alone, of another configuration", others);
}

void mgr_print_synth(const mgr_job *job, const char *out)
{
    char bytes[32];
    const uint64_t size = job->sparse ? mgr_run_output_bytes(job) : job->plan.total_out;
    mgr_say(stdout, "wrote %s: %zu files, %s%s\n", out, job->target.cat.n_files,
            mgr_format_bytes(size, bytes, sizeof bytes),
            job->sparse ? " of which headers alone take room" : "");
}
