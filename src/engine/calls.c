/* How often a run reads and writes, told before it does: what engine.c and engine_io.c do with each
 * unit, without its bytes. */
#include <string.h>

#include "core/mem.h"
#include "engine/engine.h"

/* Agreements of mgr_engine_run: that it can begin, on its list of groups, that it ended. */
#define OUTSIDE_GROUPS 3

/* Calls by what they move: a step for each eighth of a power of two. */
#define SIZES (64 * 8)

typedef struct seen {
    uint64_t of_size[SIZES], n;
} seen;

typedef struct counter {
    mgr_engine engine; /* its lists and its unit's place, which nothing is read to */
    mgr_selection selection;
    uint64_t *used; /* of each rank's cache, in the group at hand */
    seen reads, writes;
    uint64_t times; /* that the unit at hand is read */
    uint32_t rank;  /* whose it is */
    uint64_t *open; /* [ranks][words]: a bit for each file that it opens, first the source's */
    size_t words, source_words;
} counter;

/* The step of a size, and the least size of a step. */
static size_t step_of(uint64_t bytes)
{
    size_t power = 3;
    while (bytes >> power > 1)
        power++;
    return bytes < 8 ? (size_t)bytes : power * 8 + (size_t)(bytes >> (power - 3) & 7);
}

static uint64_t size_of_step(size_t step)
{
    return step < 8 ? step : (uint64_t)(8 + step % 8) << (step / 8 - 3);
}

static uint64_t median_of(const seen *s)
{
    uint64_t left = s->n / 2;
    size_t step = 0;
    while (step + 1 < SIZES && s->of_size[step] <= left)
        left -= s->of_size[step++];
    return size_of_step(step);
}

static void note(counter *c, seen *s, size_t file, uint64_t bytes, uint64_t times)
{
    s->of_size[step_of(bytes)] += times;
    s->n += times;
    c->open[c->rank * c->words + file / 64] |= UINT64_C(1) << file % 64;
}

static void see_read(void *context, uint32_t file, uint64_t bytes)
{
    counter *const c = context;
    note(c, &c->reads, file, bytes, c->times);
}

static void box_writes(counter *c, const mgr_box *box, uint64_t row, uint64_t n)
{
    const mgr_job *const job = c->engine.job;
    const mgr_layout *const to = &job->target.layout;
    const mgr_stored *const s = &to->cat->stored[box->stored];
    const uint64_t from = box->row > row ? box->row : row;
    const uint64_t end = box->row + box->rows < row + n ? box->row + box->rows : row + n;
    if (from >= end)
        return;
    const uint64_t step = mgr_engine_at_once(job, box, n, end - from);
    const uint64_t all = box->transposed ? box->cols : end - from;
    const uint64_t one =
        (box->transposed ? end - from : box->cols) * (uint64_t)mgr_dtype_size(s->dtype);
    const size_t file = 64 * c->source_words + s->file;
    if (all / step)
        note(c, &c->writes, file, step * one, all / step);
    if (all % step)
        note(c, &c->writes, file, all % step * one, 1);
}

/* Of rows that are handed over together. */
static void row_writes(counter *c, uint32_t target, uint64_t row, uint64_t n)
{
    const mgr_layout *const to = &c->engine.job->target.layout;
    for (size_t b = to->first_box[target]; b < to->first_box[target + 1]; b++)
        box_writes(c, &to->boxes[b], row, n);
}

static uint64_t rows_at_once(const mgr_job *job, uint32_t target)
{
    return job->plan.chunk_bytes / mgr_layout_row_bytes(&job->target.layout, target);
}

/* Of rows that pass through the output buffer. */
static void made_writes(counter *c, uint32_t target, uint64_t row, uint64_t rows)
{
    const uint64_t step = rows_at_once(c->engine.job, target);
    for (uint64_t r = 0; r < rows; r += step)
        row_writes(c, target, row + r, rows - r < step ? rows - r : step);
}

/* Of rows that lie where their neurons go. */
static void neuron_writes(counter *c, const mgr_expert *x, uint32_t target, const mgr_piece *piece)
{
    const uint64_t step = rows_at_once(c->engine.job, target);
    if (!x->origin) {
        made_writes(c, target, piece->row, piece->rows);
        return;
    }
    for (uint32_t row = 0, n; row < x->width; row += n ? n : 1) {
        n = mgr_engine_run_of(x, row, x->width, step, piece);
        if (n)
            row_writes(c, target, row, n);
    }
}

static int expert_writes(counter *c, uint32_t target, const mgr_piece *piece, mgr_err *err)
{
    const mgr_job *const job = c->engine.job;
    const mgr_tensor *const t = &job->target.tensors.list[target];
    MGR_TRY(mgr_selection_set(&c->selection, job, t->layer, NULL, err));
    const mgr_matrix matrix = mgr_matrix_with(t);
    mgr_expert x = mgr_selection_expert(&c->selection, job, t->expert, matrix);
    x.scale = mgr_plane_scale(x.scale, t->plane);
    x.origin = piece->target == target ? NULL : x.origin;
    if (t->ndim > 1 && mgr_engine_copies(job, &x, target, piece->source))
        row_writes(c, target, piece->row, piece->rows);
    else if (t->ndim > 1 && matrix == MGR_MATRIX_DOWN)
        made_writes(c, target, piece->row, piece->rows);
    else
        neuron_writes(c, &x, target, piece);
    return MGR_OK;
}

/* Is what the target gets the piece as it was read, handed over whole? */
static bool is_whole_copy(const mgr_job *job, uint32_t target, const mgr_piece *piece)
{
    const mgr_op op = job->defines[target].op;
    const bool scaled =
        job->target.tensors.list[target].role == MGR_ROLE_SHARED_DOWN && mgr_shared_scale(job) != 1;
    return (op == MGR_OP_COPY || (op == MGR_OP_SHARED && !job->shared_origin && !scaled)) &&
           job->source.layout.types[piece->source] == job->target.layout.types[target];
}

static int target_writes(counter *c, uint32_t target, const mgr_piece *piece, mgr_err *err)
{
    const mgr_job *const job = c->engine.job;
    const mgr_tensor *const t = &job->target.tensors.list[target];
    const mgr_op op = job->defines[target].op;
    const bool shared = op == MGR_OP_SHARED && t->role != MGR_ROLE_SHARED_DOWN;
    const mgr_expert rows = {.width = (uint32_t)t->rows,
                             .origin = shared              ? job->shared_origin
                                       : op == MGR_OP_ROWS ? mgr_recipe_from(&job->recipe, t->layer)
                                                           : NULL};
    if (mgr_op_by_map(op))
        return expert_writes(c, target, piece, err);
    if (op == MGR_OP_ROUTER)
        row_writes(c, target, 0, t->rows);
    else if (op == MGR_OP_ROWS || (shared && job->shared_origin))
        neuron_writes(c, &rows, target, piece);
    else if (is_whole_copy(job, target, piece))
        row_writes(c, target, piece->row, piece->rows);
    else
        made_writes(c, target, piece->row, piece->rows);
    return MGR_OK;
}

static int unit_writes(counter *c, const mgr_unit *unit, mgr_err *err)
{
    const mgr_plan *const plan = &c->engine.job->plan;
    for (uint32_t p = unit->piece; p < unit->piece + unit->n_pieces; p++) {
        const mgr_piece *const piece = &plan->pieces[p];
        if (piece->source == MGR_NONE || unit->gathered) {
            MGR_TRY(target_writes(c, piece->target, piece, err));
            continue;
        }
        for (uint32_t k = plan->first_target[piece->source];
             k < plan->first_target[piece->source + 1]; k++) {
            const uint32_t target = plan->targets[k];
            if (mgr_piece_gives(piece, c->engine.job->defines[target].op))
                MGR_TRY(target_writes(c, target, piece, err));
        }
    }
    return MGR_OK;
}

/* Those that wait for the sums where their rank has no room are read a second time. */
static uint64_t times_read(counter *c, const mgr_group *group, const mgr_unit *unit)
{
    const uint64_t room = c->engine.job->plan.cache_bytes;
    uint64_t *const used = &c->used[unit->rank];
    if (group->n_layers == 0 || unit->gathered)
        return 1;
    if (unit->in_bytes > room - *used)
        return 2;
    mgr_engine_keep(used, unit->in_bytes, room);
    return 1;
}

/* Where the rows of a gathered unit come from; NULL of others. */
static int find_origin(counter *c, const mgr_unit *unit, const uint32_t **out, mgr_err *err)
{
    const mgr_job *const job = c->engine.job;
    *out = NULL;
    if (!unit->gathered)
        return MGR_OK;
    const mgr_tensor *const t = &job->target.tensors.list[job->plan.pieces[unit->piece].target];
    MGR_TRY(mgr_selection_set(&c->selection, job, t->layer, NULL, err));
    *out = c->selection.maps[t->expert].origin;
    return MGR_OK;
}

static int count_group(counter *c, const mgr_group *group, mgr_calls *out, mgr_err *err)
{
    const mgr_plan *const plan = &c->engine.job->plan;
    memset(c->used, 0, plan->ranks * sizeof *c->used);
    if (group->n_layers) /* two agreements, and the sums of all ranks */
        out->collective +=
            2 + mgr_sum_calls(4 * group->n_layers * mgr_engine_layer_sums(c->engine.job));
    for (uint32_t u = group->unit; u < group->unit + group->n_units; u++) {
        const mgr_unit *const unit = &plan->units[u];
        const uint32_t *origin;
        MGR_TRY(find_origin(c, unit, &origin, err));
        c->rank = unit->rank;
        c->times = times_read(c, group, unit);
        if (unit->in_bytes)
            MGR_TRY(mgr_engine_see_reads(&c->engine, unit, origin, see_read, c, err));
        MGR_TRY(unit_writes(c, unit, err));
    }
    return MGR_OK;
}

static uint64_t count_bits(const uint64_t *words, size_t n)
{
    uint64_t bits = 0;
    for (size_t i = 0; i < n; i++)
        bits += (uint64_t)__builtin_popcountll(words[i]);
    return bits;
}

/* Is it the first place of its node? */
static bool begins_node(const mgr_places *p, uint32_t place)
{
    return place == 0 || p->node[p->rank[place]] != p->node[p->rank[place - 1]];
}

/* The files of a node are put together in the bits of the first of its ranks. */
static void add_up_nodes(const counter *c, mgr_calls *out)
{
    const mgr_places *const places = &c->engine.job->places;
    uint64_t *node = c->open;
    for (uint32_t p = 0; places->nodes && p < places->n; p++) {
        const uint64_t *const rank = c->open + places->rank[p] * c->words;
        if (begins_node(places, p))
            node = c->open + places->rank[p] * c->words;
        for (size_t w = 0; w < c->words; w++)
            node[w] |= rank[w];
    }
    for (uint32_t p = 0; places->nodes && p < places->n; p++) {
        if (!begins_node(places, p))
            continue;
        const uint64_t n = count_bits(c->open + places->rank[p] * c->words, c->words);
        out->node_files += n;
        out->most_node_files = n > out->most_node_files ? n : out->most_node_files;
    }
}

static void add_up(const counter *c, mgr_calls *out)
{
    out->reads = c->reads.n;
    out->writes = c->writes.n;
    out->median_read = median_of(&c->reads);
    out->median_write = median_of(&c->writes);
    for (uint32_t r = 0; r < c->engine.job->plan.ranks; r++) {
        const uint64_t *const words = c->open + r * c->words;
        const uint64_t n = count_bits(words, c->words);
        out->opens += n;
        out->write_opens += count_bits(words + c->source_words, c->words - c->source_words);
        out->most_opens = n > out->most_opens ? n : out->most_opens;
    }
    add_up_nodes(c, out);
}

/* Which neurons are drawn anew decides no call, only how many. */
static int select_none(counter *c, mgr_err *err)
{
    const mgr_job *const job = c->engine.job;
    MGR_TRY(mgr_selection_init(&c->selection, job, err));
    for (uint32_t e = 0; e < job->target.tensors.model.experts; e++)
        memset(c->selection.maps[e].selected, 0, sizeof c->selection.maps[e].selected);
    return MGR_OK;
}

int mgr_engine_count(mgr_job *job, mgr_calls *out, mgr_err *err)
{
    const mgr_plan *const plan = &job->plan;
    counter c = {.engine = {.job = job},
                 .selection = {.layer = MGR_NONE},
                 .source_words = (job->source.cat.n_files + 63) / 64};
    c.words = c.source_words + (job->target.cat.n_files + 63) / 64;
    *out = (mgr_calls){.collective = OUTSIDE_GROUPS + mgr_sum_calls(plan->n_groups)};
    int rc = mgr_alloc(&c.used, plan->ranks, sizeof *c.used, err);
    if (rc == MGR_OK)
        rc = mgr_alloc(&c.open, plan->ranks, c.words * sizeof *c.open, err);
    if (rc == MGR_OK)
        rc = mgr_turns_init(&c.engine.unit, 1, plan->unit_bytes, err);
    if (rc == MGR_OK && job->method)
        rc = select_none(&c, err);
    for (size_t g = 0; rc == MGR_OK && g < plan->n_groups; g++)
        rc = count_group(&c, &plan->groups[g], out, err);
    if (rc == MGR_OK)
        add_up(&c, out);
    mgr_selection_clear(&c.selection);
    mgr_free(c.open);
    mgr_turns_clear(&c.engine.unit);
    mgr_free(c.engine.items);
    mgr_free(c.used);
    return rc;
}
