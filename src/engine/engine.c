#include "engine/engine.h"

#include <assert.h>
#include <string.h>

#include "core/mem.h"
#include "core/say_run.h"
#include "core/stop.h"
#include "engine/journal.h"
#include "engine/progress.h"
#include "kern/kern.h"

static mgr_dtype source_type(const mgr_engine *e, uint32_t idx)
{
    return e->job->source.layout.types[idx];
}

static mgr_dtype target_type(const mgr_engine *e, uint32_t idx)
{
    return e->job->target.layout.types[idx];
}

static const mgr_tensor *source_tensor(const mgr_engine *e, uint32_t idx)
{
    return &e->job->source.tensors.list[idx];
}

size_t mgr_engine_layer_sums(const mgr_job *job)
{
    const mgr_recipe *const r = &job->recipe;
    return (size_t)(r->from ? r->sources : 1) * MGR_MATRIX_COUNT * r->source_width;
}

int mgr_engine_sums(mgr_engine *e, const mgr_group *group, const mgr_unit *unit,
                    const unsigned char *data, mgr_err *err)
{
    const mgr_piece *const piece = &e->job->plan.pieces[unit->piece]; /* FFN units have one */
    const mgr_tensor *const t = source_tensor(e, piece->source);
    const uint64_t width = e->job->recipe.source_width;
    const mgr_dtype dtype = source_type(e, piece->source);
    if (t->ndim == 1) /* a bias: moments are of the matrices */
        return MGR_OK;
    assert(unit->n_pieces == 1 && t->layer - group->layer < group->n_layers);
    mgr_sums *const sums =
        e->sums + (t->layer - group->layer) * mgr_engine_layer_sums(e->job) +
        ((t->expert == MGR_NONE ? t->source : t->expert) * (size_t)MGR_MATRIX_COUNT +
         mgr_matrix_of(t->role)) *
            width;
    assert((uint64_t)(sums + width - e->sums) * sizeof *sums <= e->job->plan.sums_bytes);
    const int bad = t->role == MGR_ROLE_DOWN
                        ? mgr_sums_add_cols(sums, data, dtype, piece->rows, t->cols, e->scratch)
                        : mgr_sums_add_rows(sums + piece->row, data, dtype, piece->rows, t->cols);
    char label[96];
    if (!bad)
        return MGR_OK;
    MGR_TRY(mgr_engine_not_finite(e, piece, data, err));
    mgr_fail(err, MGR_ERR_FORMAT,
             "%s holds values with magnitudes of 65536 or more, in rows %llu to %llu",
             mgr_tensor_label(t, label, sizeof label), (unsigned long long)piece->row,
             (unsigned long long)(piece->row + piece->rows - 1));
    return mgr_hint(err, "such weights cannot be a trained model's; check the source");
}

/* Rows of the output buffer that fit at a time. */
static uint64_t rows_that_fit(const mgr_engine *e, uint32_t target)
{
    const uint64_t bytes = mgr_layout_row_bytes(&e->job->target.layout, target);
    assert(bytes <= e->job->plan.chunk_bytes); /* the plan's widest row */
    return e->job->plan.chunk_bytes / bytes;
}

static int copy_rows(mgr_engine *e, uint32_t target, const mgr_piece *piece,
                     const unsigned char *data, mgr_err *err)
{
    const mgr_tensor *const t = &e->job->target.tensors.list[target];
    const mgr_dtype from = source_type(e, piece->source), to = target_type(e, target);
    if (from == to)
        return mgr_engine_write(e, target, piece->row, piece->rows, data, err);
    const uint64_t step = rows_that_fit(e, target);
    for (uint64_t r = 0; r < piece->rows; r += step) {
        const uint64_t n = piece->rows - r < step ? piece->rows - r : step;
        mgr_cast(e->out.at, to, data + r * t->cols * mgr_dtype_size(from), from, n * t->cols);
        MGR_TRY(mgr_engine_write(e, target, piece->row + r, n, e->out.at, err));
    }
    return MGR_OK;
}

/* down: the expert's rows are those of the source with columns chosen and replaced. */
static int expert_down_rows(mgr_engine *e, const mgr_method *method, const mgr_expert *x,
                            uint32_t target, const mgr_piece *piece, const unsigned char *data,
                            mgr_err *err)
{
    const uint64_t row_bytes = mgr_layout_row_bytes(&e->job->source.layout, piece->source);
    const mgr_dtype from = source_type(e, piece->source), to = target_type(e, target);
    const uint64_t step = rows_that_fit(e, target);
    for (uint64_t r = 0; r < piece->rows; r += step) {
        const uint64_t n = piece->rows - r < step ? piece->rows - r : step;
        mgr_expert_down_rows(method, x, piece->row + r, n, data + r * row_bytes, from, e->out.at,
                             to);
        MGR_TRY(mgr_engine_check_drawn(e, target, n, err));
        MGR_TRY(mgr_engine_write(e, target, piece->row + r, n, e->out.at, err));
    }
    return MGR_OK;
}

uint32_t mgr_engine_run_of(const mgr_expert *x, uint32_t row, uint32_t end, uint64_t most,
                           const mgr_piece *piece)
{
    uint32_t n = 0;
    for (; row + n < end && n < most; n++) {
        const uint32_t origin = x->origin ? x->origin[row + n] : row + n;
        if (origin < piece->row || origin - piece->row >= piece->rows)
            break;
    }
    return n;
}

/* gate, up: expert rows whose origins are in the piece, in runs of neighbours. Where neurons keep
 * their order, or with the whole matrix in the piece, that is one run. */
static int expert_neuron_rows(mgr_engine *e, const mgr_method *method, const mgr_expert *x,
                              uint32_t target, const mgr_piece *piece, const unsigned char *data,
                              mgr_err *err)
{
    const mgr_dtype from = source_type(e, piece->source), to = target_type(e, target);
    const uint64_t step = rows_that_fit(e, target);
    uint32_t row = x->origin ? 0 : (uint32_t)piece->row;
    const uint32_t end = x->origin ? x->width : (uint32_t)(piece->row + piece->rows);
    while (row < end) {
        const uint32_t n = mgr_engine_run_of(x, row, end, step, piece);
        if (n == 0) {
            row++;
            continue;
        }
        mgr_expert_rows(method, x, row, n, data, (uint32_t)piece->row, from, e->out.at, to);
        mgr_engine_add_noise(e, target, piece, data, row, n);
        MGR_TRY(mgr_engine_check_drawn(e, target, n, err));
        MGR_TRY(mgr_engine_write(e, target, row, n, e->out.at, err));
        row += n;
    }
    return MGR_OK;
}

/* The biases of gate and up belong to neurons: every method leaves them as they are, but they go
 * where their neurons go, and are scaled with them. That is the naive method, on rows of one
 * element. */
static int expert_bias(mgr_engine *e, const mgr_expert *of, uint32_t target, const mgr_piece *piece,
                       const unsigned char *data, mgr_err *err)
{
    mgr_expert x = *of;
    x.hidden = 1;
    x.n_selected = 0;
    return expert_neuron_rows(e, mgr_method_find("naive"), &x, target, piece, data, err);
}

/* A matrix that the model does not have is passed over. */
static int note_moment(mgr_engine *e, mgr_note note, uint32_t tensor, float mean, float std,
                       mgr_err *err)
{
    if (tensor == MGR_NONE)
        return MGR_OK;
    const mgr_extent extent = {mgr_note_what(e->job, note, tensor),
                               0,
                               mgr_f32_bits(mean),
                               mgr_f32_bits(std),
                               e->unit_idx,
                               0};
    return mgr_extents_add(&e->write_extents, &extent, err);
}

/* What the ledger will say of the layer at hand. */
static int note_moments(mgr_engine *e, mgr_err *err)
{
    const mgr_job *const job = e->job;
    const mgr_selection *const s = e->selection;
    for (uint32_t matrix = 0; job->moments && matrix < MGR_MATRIX_COUNT; matrix++) {
        const mgr_role role = mgr_role_of(matrix);
        const mgr_moment *const dense = &s->source_moment[matrix];
        if (!job->recipe.from)
            MGR_TRY(note_moment(e, MGR_NOTE_SOURCE_MOMENT,
                                mgr_tensors_find(&job->source.tensors, role,
                                                 mgr_layer_from(job, s->layer), MGR_NONE),
                                dense->mean, dense->std, err));
        for (uint32_t x = 0; x < job->target.tensors.model.experts; x++)
            MGR_TRY(note_moment(e, MGR_NOTE_TARGET_MOMENT,
                                mgr_tensors_find(&job->target.tensors, role, s->layer, x),
                                s->mean[x * 3 + matrix], s->std[x * 3 + matrix], err));
    }
    return MGR_OK;
}

bool mgr_engine_copies(const mgr_job *job, const mgr_expert *x, uint32_t target, uint32_t source)
{
    return !x->origin && x->scale == 1 && (x->n_selected == 0 || !job->method->draw_row) &&
           job->source.layout.types[source] == job->target.layout.types[target];
}

/* Rows of one tensor of an expert, by its map. */
static int make_rows(mgr_engine *e, const mgr_method *method, const mgr_expert *x, uint32_t target,
                     const mgr_piece *piece, const unsigned char *data, mgr_err *err)
{
    if (e->job->target.tensors.list[target].ndim == 1)
        return expert_bias(e, x, target, piece, data, err);
    if (mgr_engine_copies(e->job, x, target, piece->source))
        return copy_rows(e, target, piece, data, err);
    return x->matrix == MGR_MATRIX_DOWN
               ? expert_down_rows(e, method, x, target, piece, data, err)
               : expert_neuron_rows(e, method, x, target, piece, data, err);
}

/* The maps of the layer of a target tensor. A moment of Adam's needs no sums. */
static int select_layer(mgr_engine *e, const mgr_group *group, uint32_t target, mgr_err *err)
{
    const mgr_job *const job = e->job;
    const uint32_t layer = job->target.tensors.list[target].layer;
    const bool moment = job->defines[target].op == MGR_OP_MOMENT;
    if (e->selection->layer == layer)
        return MGR_OK;
    const mgr_sums *const sums =
        e->sums && !moment
            ? e->sums + (mgr_layer_from(job, layer) - group->layer) * mgr_engine_layer_sums(job)
            : NULL;
    MGR_TRY(mgr_selection_set(e->selection, job, layer, sums, err));
    return moment ? MGR_OK : note_moments(e, err);
}

/* By the map of its expert, a weight or a moment of one. Gathered rows lie as they go. */
static int make_mapped(mgr_engine *e, const mgr_group *group, uint32_t target,
                       const mgr_piece *piece, const unsigned char *data, mgr_err *err)
{
    const mgr_job *const job = e->job;
    const mgr_tensor *const t = &job->target.tensors.list[target];
    const bool moment = job->defines[target].op == MGR_OP_MOMENT;
    MGR_TRY(select_layer(e, group, target, err));
    mgr_expert x = mgr_selection_expert(e->selection, job, t->expert, mgr_matrix_with(t));
    x.scale = mgr_plane_scale(x.scale, t->plane);
    x.origin = piece->target == target ? NULL : x.origin;
    return make_rows(e, moment ? &mgr_method_moment : job->method, &x, target, piece, data, err);
}

/* The rows that a gathered unit is made of. */
static int gather_unit(mgr_engine *e, const mgr_group *group, const mgr_unit *unit, mgr_err *err)
{
    const uint32_t target = e->job->plan.pieces[unit->piece].target;
    MGR_TRY(select_layer(e, group, target, err));
    const mgr_map *const map = &e->selection->maps[e->job->target.tensors.list[target].expert];
    assert(map->origin);
    return mgr_engine_read(e, unit, map->origin, e->unit.at, false, err);
}

/* down of experts side by side: their columns are scaled, those of a shared expert behind them are
 * not. */
static int joined_rows(mgr_engine *e, uint32_t target, const mgr_piece *piece,
                       const unsigned char *data, mgr_err *err)
{
    const mgr_job *const job = e->job;
    const mgr_tensor *const t = &job->target.tensors.list[target];
    const mgr_dtype from = source_type(e, piece->source), to = target_type(e, target);
    const mgr_expert x = {
        .width = (uint32_t)t->cols, .source_width = (uint32_t)t->cols, .scale = job->joined_weight};
    const size_t shared = (size_t)(t->cols - job->joined_width);
    const uint64_t step = rows_that_fit(e, target);
    for (uint64_t r = 0; r < piece->rows; r += step) {
        const uint64_t n = piece->rows - r < step ? piece->rows - r : step;
        const unsigned char *const rows = data + r * t->cols * mgr_dtype_size(from);
        mgr_expert_down_rows(mgr_method_find("naive"), &x, piece->row + r, n, rows, from, e->out.at,
                             to);
        for (uint64_t i = 0; shared && i < n; i++) {
            const uint64_t at = i * t->cols + job->joined_width;
            mgr_cast(e->out.at + at * mgr_dtype_size(to), to, rows + at * mgr_dtype_size(from),
                     from, shared);
        }
        MGR_TRY(mgr_engine_check_drawn(e, target, n, err));
        MGR_TRY(mgr_engine_write(e, target, piece->row + r, n, e->out.at, err));
    }
    return MGR_OK;
}

/* A shared expert is copied, as the naive method does it; its down may be scaled. */
static int shared_rows(mgr_engine *e, uint32_t target, const mgr_piece *piece,
                       const unsigned char *data, mgr_err *err)
{
    const mgr_job *const job = e->job;
    const mgr_method *const naive = mgr_method_find("naive");
    const mgr_tensor *const t = &job->target.tensors.list[target];
    const bool down = t->role == MGR_ROLE_SHARED_DOWN;
    const mgr_expert x = {.width = job->shared_width,
                          .source_width = job->recipe.source_width,
                          .hidden = job->source.tensors.model.hidden,
                          .origin = job->shared_origin,
                          .scale = mgr_plane_scale(down ? mgr_shared_scale(job) : 1, t->plane)};
    if (!x.origin && x.scale == 1)
        return copy_rows(e, target, piece, data, err);
    return down ? expert_down_rows(e, naive, &x, target, piece, data, err)
                : expert_neuron_rows(e, naive, &x, target, piece, data, err);
}

/* The rows of a mixture's router, or a bias of it, for the experts that are made of its experts. */
static int gather_rows(mgr_engine *e, uint32_t target, const mgr_piece *piece,
                       const unsigned char *data, mgr_err *err)
{
    const mgr_tensor *const t = &e->job->target.tensors.list[target];
    const mgr_expert x = {.width = (uint32_t)t->rows,
                          .source_width = e->job->recipe.sources,
                          .hidden = t->cols,
                          .origin = mgr_recipe_from(&e->job->recipe, t->layer),
                          .scale = 1};
    return expert_neuron_rows(e, mgr_method_find("naive"), &x, target, piece, data, err);
}

/* A bias of a router: Megatron starts it with zeros (transformer/moe/router.py). All bytes of a
 * zero are zero in every type. */
static int make_zeros(mgr_engine *e, uint32_t target, const mgr_piece *piece, mgr_err *err)
{
    const uint64_t step = rows_that_fit(e, target);
    const unsigned char *const zeros = e->out.at; /* also when another buffer is at hand */
    memset(e->out.at, 0, e->job->plan.chunk_bytes);
    for (uint64_t r = 0; r < piece->rows; r += step) {
        const uint64_t left = piece->rows - r;
        MGR_TRY(mgr_engine_write(e, target, piece->row + r, left < step ? left : step, zeros, err));
    }
    return MGR_OK;
}

static int make_router(mgr_engine *e, uint32_t target, mgr_err *err)
{
    const mgr_job *const job = e->job;
    const mgr_tensor *const t = &job->target.tensors.list[target];
    assert(mgr_layout_tensor_bytes(&job->target.layout, target) <= job->plan.chunk_bytes);
    MGR_TRY(mgr_job_router(job, t->layer, e->out.at, target_type(e, target), err));
    return mgr_engine_write(e, target, 0, t->rows, e->out.at, err);
}

static bool is_output(mgr_role role)
{
    return role == MGR_ROLE_O || role == MGR_ROLE_DOWN || role == MGR_ROLE_SHARED_DOWN;
}

/* What a tensor's values are: mean + std * N(0, 1), element (r, c) by number r*cols + c of the
 * stream of (role, layer, expert). */
typedef struct law {
    mgr_stream stream;
    float mean, std;
} law;

/* mgr-synth: norms are 1 + N(0, 0.02^2), so that a norm that goes astray shows; all else is
 * N(0, 0.02^2). Of `from-scratch` norms are 1. */
static law law_of(const mgr_job *job, const mgr_tensor *t)
{
    const bool scratch = job->method != NULL, norm = mgr_role_is_norm(t->role);
    const uint32_t expert = t->expert == MGR_NONE ? 0 : t->expert + 1; /* 0: a dense model's */
    const float drawn = is_output(t->role) ? job->init_output_std : job->init_std;
    return (law){
        .stream = {scratch ? job->recipe.seed : job->synth_seed,
                   scratch ? MGR_PURPOSE_INIT : MGR_PURPOSE_SYNTH,
                   mgr_model_layer_key(&job->target.tensors.model, t->layer),
                   expert << 8 | (uint32_t)t->role},
        .mean = norm ? 1.0f : 0.0f,
        .std = !scratch ? 0.02f
               : norm   ? 0.0f
                        : drawn,
    };
}

static int make_drawn(mgr_engine *e, uint32_t target, const mgr_piece *piece, mgr_err *err)
{
    const mgr_tensor *const t = &e->job->target.tensors.list[target];
    const law l = law_of(e->job, t);
    const uint64_t step = rows_that_fit(e, target);
    for (uint64_t r = piece->row; r < piece->row + piece->rows; r += step) {
        const uint64_t left = piece->row + piece->rows - r, n = left < step ? left : step;
        mgr_normals_scaled(&l.stream, r * t->cols, n * t->cols, l.mean, l.std, e->out.at,
                           target_type(e, target));
        MGR_TRY(mgr_engine_write(e, target, r, n, e->out.at, err));
    }
    return MGR_OK;
}

static int make_given(mgr_engine *e, uint32_t target, const mgr_piece *piece, mgr_err *err)
{
    const uint64_t step = rows_that_fit(e, target), end = piece->row + piece->rows;
    for (uint64_t r = piece->row; r < end; r += step) {
        const uint64_t n = end - r < step ? end - r : step;
        MGR_TRY(e->job->give(e->job->give_context, target, r, n, e->out.at, err));
        MGR_TRY(mgr_engine_write(e, target, r, n, e->out.at, err));
    }
    return MGR_OK;
}

static int make_generated(mgr_engine *e, const mgr_piece *piece, mgr_err *err)
{
    switch (e->job->defines[piece->target].op) {
    case MGR_OP_ROUTER:
        return make_router(e, piece->target, err);
    case MGR_OP_ZERO:
        return make_zeros(e, piece->target, piece, err);
    case MGR_OP_GIVEN:
        return make_given(e, piece->target, piece, err);
    default:
        return make_drawn(e, piece->target, piece, err);
    }
}

int mgr_engine_make(mgr_engine *e, const mgr_group *group, const mgr_unit *unit,
                    const unsigned char *data, mgr_err *err)
{
    const mgr_plan *const plan = &e->job->plan;
    const unsigned char *const first = data;
    if (unit->gathered) /* its rows were looked at where the source was read */
        return make_mapped(e, group, plan->pieces[unit->piece].target, &plan->pieces[unit->piece],
                           data, err);
    for (uint32_t p = unit->piece; p < unit->piece + unit->n_pieces; p++) {
        const mgr_piece *const piece = &plan->pieces[p];
        if (piece->source == MGR_NONE) {
            MGR_TRY(make_generated(e, piece, err));
            continue;
        }
        MGR_TRY(mgr_engine_look(e, piece, data, err));
        for (uint32_t k = plan->first_target[piece->source];
             k < plan->first_target[piece->source + 1]; k++) {
            const uint32_t target = plan->targets[k];
            const mgr_op op = e->job->defines[target].op;
            if (!mgr_piece_gives(piece, op))
                continue;
            MGR_TRY(mgr_op_by_map(op)      ? make_mapped(e, group, target, piece, data, err)
                    : op == MGR_OP_JOINED  ? joined_rows(e, target, piece, data, err)
                    : op == MGR_OP_SHARED  ? shared_rows(e, target, piece, data, err)
                    : op == MGR_OP_ROWS    ? gather_rows(e, target, piece, data, err)
                    : op == MGR_OP_AVERAGE ? mgr_engine_average(e, unit, p, target, first, err)
                                           : copy_rows(e, target, piece, data, err));
        }
        data += piece->rows * mgr_layout_row_bytes(&e->job->source.layout, piece->source);
        assert((uint64_t)(data - first) <= unit->in_bytes);
    }
    return MGR_OK;
}

static bool mine(const mgr_engine *e, const mgr_unit *unit)
{
    return unit->rank == e->job->rank;
}

static bool pending(const mgr_engine *e, uint32_t unit)
{
    const uint8_t *const state = e->journal->state;
    return state && state[unit] == MGR_UNIT_PENDING;
}

/* Read this rank's units of a group and add up their sums; keep as many as the cache has room for,
 * the others will be read a second time. */
static int sum_group(mgr_engine *e, const mgr_group *group, mgr_err *err)
{
    e->cache_used = 0;
    mgr_write_behind_wait(e->behind, e->cache, (size_t)e->job->plan.cache_bytes);
    for (uint32_t u = 0; u < group->n_units; u++) {
        const mgr_unit *const unit = &e->job->plan.units[group->unit + u];
        e->kept[u] = UINT64_MAX;
        if (!mine(e, unit) || unit->gathered)
            continue;
        assert(unit->in_bytes <= e->job->plan.unit_bytes);
        unsigned char *into = e->unit.at;
        if (unit->in_bytes <= e->job->plan.cache_bytes - e->cache_used) {
            into = e->cache + e->cache_used;
            e->kept[u] = e->cache_used;
            mgr_engine_keep(&e->cache_used, unit->in_bytes, e->job->plan.cache_bytes);
        }
        e->unit_idx = group->unit + u;
        MGR_TRY(mgr_engine_read(e, unit, NULL, into, pending(e, e->unit_idx), err));
        MGR_TRY(mgr_engine_sums(e, group, unit, into, err));
    }
    return MGR_OK;
}

/* What it was made of may be in the hands of those that write; now and then they are waited for. */
static int end_unit(mgr_engine *e, const unsigned char *data, mgr_err *err)
{
    mgr_journal *const journal = e->journal;
    if (data == e->unit.at)
        mgr_turns_next(&e->unit, e->behind);
    mgr_journal_unit(journal, e->unit_idx);
    if (!mgr_journal_is_due(journal))
        return MGR_OK;
    MGR_TRY(mgr_engine_drain(e, err));
    return mgr_journal_flush(journal, &e->write_files, &e->read_extents, &e->write_extents, err);
}

static int make_group(mgr_engine *e, const mgr_group *group, mgr_err *err)
{
    const bool summed = group->n_layers > 0;
    for (uint32_t u = 0; u < group->n_units; u++) {
        const mgr_unit *const unit = &e->job->plan.units[group->unit + u];
        if (!mine(e, unit) || !pending(e, group->unit + u))
            continue;
        e->unit_idx = group->unit + u;
        const unsigned char *data = e->unit.at;
        if (summed && e->kept[u] != UINT64_MAX)
            data = e->cache + e->kept[u];
        else if (unit->gathered)
            MGR_TRY(gather_unit(e, group, unit, err));
        else if (unit->in_bytes)
            MGR_TRY(mgr_engine_read(e, unit, NULL, e->unit.at, !summed, err));
        MGR_TRY(mgr_engine_make(e, group, unit, data, err));
        MGR_TRY(end_unit(e, data, err));
    }
    return MGR_OK;
}

/* A phase: local work, one agreement, the sums of all ranks. */
static int share_sums(mgr_engine *e, const mgr_group *group, mgr_err *err)
{
    const size_t n = group->n_layers * mgr_engine_layer_sums(e->job);
    memset(e->sums, 0, n * sizeof *e->sums);
    const double start = mgr_now();
    int rc = mgr_agree(e->job->comm, sum_group(e, group, err), err);
    if (rc == MGR_OK)
        rc = mgr_sum_i64(e->job->comm, &e->sums[0].sum_hi, n * 4, err);
    e->job->tally.seconds_sums += mgr_now() - start;
    return rc;
}

static int init_buffers(mgr_engine *e, const mgr_plan *plan, mgr_err *err)
{
    const uint32_t behind = plan->io_threads;
    size_t largest_group = 0;
    for (size_t g = 0; g < plan->n_groups; g++)
        if (plan->groups[g].n_units > largest_group)
            largest_group = plan->groups[g].n_units;
    MGR_TRY(mgr_turns_init(&e->unit, behind ? 2 : 1, plan->unit_bytes, err));
    MGR_TRY(mgr_turns_init(&e->out, 1 + behind, plan->chunk_bytes, err));
    MGR_TRY(mgr_turns_init(&e->bounce, 1 + behind, plan->chunk_bytes, err));
    MGR_TRY(mgr_alloc_aligned(&e->cache, plan->cache_bytes, err));
    return mgr_alloc(&e->kept, largest_group, sizeof *e->kept, err);
}

/* None where a sink takes what is made; and none where they cannot be had and were not asked for.
 */
static int start_threads(mgr_engine *e, mgr_err *err)
{
    mgr_err ignored = MGR_ERR_INIT;
    const mgr_job *const job = e->job;
    if (!job->plan.io_threads || e->sink)
        return MGR_OK;
    const int rc = mgr_write_behind_start(&e->behind, job->plan.io_threads,
                                          job->io_threads_found ? &ignored : err);
    return job->io_threads_found ? MGR_OK : rc;
}

static int engine_init(mgr_engine *e, mgr_job *job, const mgr_engine_options *o, mgr_err *err)
{
    const mgr_plan *const plan = &job->plan;
    *e = (mgr_engine){.job = job, .progress = o->progress, .sink = o->sink};
    MGR_TRY(mgr_open_files_init(&e->read_files, &job->source.cat, NULL, false, err));
    MGR_TRY(mgr_open_files_init(&e->write_files, &job->target.cat, o->directory, true, err));
    MGR_TRY(init_buffers(e, plan, err));
    MGR_TRY(start_threads(e, err));
    if (job->moments) {
        MGR_TRY(mgr_alloc(&e->sums, plan->sums_bytes, 1, err));
        MGR_TRY(mgr_alloc(&e->scratch, 2 * (size_t)job->recipe.source_width, sizeof(double), err));
    }
    if (!job->method)
        return MGR_OK;
    MGR_TRY(mgr_alloc(&e->selection, 1, sizeof *e->selection, err));
    return mgr_selection_init(e->selection, job, err);
}

static const mgr_source_format *format_of(const mgr_job *job, uint32_t branch)
{
    return job->n_branches ? job->branches[branch].format : job->source_format;
}

static void engine_clear(mgr_engine *e)
{
    mgr_write_behind_stop(e->behind);
    mgr_free(e->read_files.list);
    mgr_free(e->write_files.list);
    mgr_turns_clear(&e->unit);
    mgr_turns_clear(&e->out);
    mgr_turns_clear(&e->bounce);
    mgr_free_aligned(e->cache);
    mgr_free(e->kept);
    mgr_free(e->sums);
    mgr_free(e->scratch);
    if (e->selection)
        mgr_selection_clear(e->selection);
    mgr_free(e->selection);
    mgr_free(e->items);
    for (uint32_t i = 0; i < MGR_CONFIG_SOURCES; i++)
        if (e->fetchers[i])
            format_of(e->job, i)->fetched(e->fetchers[i]);
}

int mgr_note_event(mgr_job *job, mgr_phase phase, uint32_t group, double start, uint64_t read,
                   uint64_t written, mgr_err *err)
{
    const mgr_event event = {phase,
                             group,
                             start,
                             mgr_now(),
                             job->tally.bytes_read - read,
                             job->tally.bytes_written - written};
    MGR_TRY(mgr_grow(&job->events, &job->cap_events, job->n_events + 1, sizeof event, err));
    job->events[job->n_events++] = event;
    return MGR_OK;
}

/* How many units of each group some rank has still to do. */
static int count_pending(const mgr_engine *e, int64_t *left, mgr_err *err)
{
    const mgr_plan *const plan = &e->job->plan;
    for (size_t g = 0; g < plan->n_groups; g++)
        for (uint32_t u = plan->groups[g].unit; u < plan->groups[g].unit + plan->groups[g].n_units;
             u++)
            left[g] += mine(e, &plan->units[u]) && pending(e, u);
    return mgr_sum_i64(e->job->comm, left, plan->n_groups, err);
}

/* Add up a group's sums and write what is made of it; each is an event. A failure of this rank goes
 * to *local, what all ranks know of is returned. */
static int run_group(mgr_engine *e, uint32_t g, int *local, mgr_err *err)
{
    const mgr_group *const group = &e->job->plan.groups[g];
    const mgr_tally *const t = &e->job->tally;
    uint64_t read = t->bytes_read, written = t->bytes_written;
    double start = mgr_now();
    int rc = MGR_OK;
    if (group->n_layers) {
        rc = mgr_agree(e->job->comm, *local, err);
        mgr_progress_phase(e->progress, "sums");
        if (rc == MGR_OK)
            rc = share_sums(e, group, err);
        if (rc == MGR_OK)
            *local = mgr_note_event(e->job, MGR_PHASE_SUMS, g, start, read, written, err);
    }
    read = t->bytes_read;
    written = t->bytes_written;
    start = mgr_now();
    mgr_progress_phase(e->progress, "write");
    if (rc == MGR_OK && *local == MGR_OK)
        *local = make_group(e, group, err);
    if (rc == MGR_OK && *local == MGR_OK)
        *local = mgr_note_event(e->job, MGR_PHASE_WRITE, g, start, read, written, err);
    return rc;
}

static int run_groups(mgr_engine *e, int *local, mgr_err *err)
{
    const mgr_plan *const plan = &e->job->plan;
    int64_t *left = NULL;
    int rc = mgr_agree(e->job->comm, mgr_alloc(&left, plan->n_groups, sizeof *left, err), err);
    if (rc == MGR_OK)
        rc = count_pending(e, left, err);
    for (uint32_t g = 0; rc == MGR_OK && g < plan->n_groups; g++)
        if (left[g] != 0)
            rc = run_group(e, g, local, err);
    mgr_free(left);
    return rc;
}

/* Close everything. What was written becomes durable and part of the journal; where the run fails
 * as far as that can be had, and not behind a sync that failed, after which Linux may call pages
 * safe that it has dropped. */
static int close_files(mgr_engine *e, int failure, mgr_err *err)
{
    mgr_err ignored = MGR_ERR_INIT;
    const int drained = mgr_engine_drain(e, failure != MGR_OK ? &ignored : err);
    failure = failure != MGR_OK ? failure : drained;
    int rc = MGR_OK;
    if (e->journal->fd >= 0 && !e->write_files.unsafe)
        rc = mgr_journal_flush(e->journal, &e->write_files, &e->read_extents, &e->write_extents,
                               failure != MGR_OK ? &ignored : err);
    if (e->write_files.list) {
        const int closed =
            mgr_open_files_close(&e->write_files, failure != MGR_OK || rc != MGR_OK, err);
        rc = rc != MGR_OK ? rc : closed;
    }
    if (e->read_files.list && mgr_open_files_close(&e->read_files, true, &ignored) != MGR_OK)
        rc = rc != MGR_OK ? rc : MGR_ERR_IO;
    return failure != MGR_OK ? failure : rc;
}

/* Local: buffers, and what a run before this one has done. */
static int begin(mgr_engine *e, mgr_job *job, const mgr_engine_options *o, mgr_extents *read,
                 mgr_extents *written, mgr_err *err)
{
    const int rc = engine_init(e, job, o, err);
    e->read_extents = *read;
    e->write_extents = *written;
    return rc;
}

int mgr_engine_run(mgr_job *job, const mgr_engine_options *o, mgr_extents *read,
                   mgr_extents *written, mgr_err *err)
{
    mgr_engine e;
    mgr_journal journal = {.fd = -1};
    int local = begin(&e, job, o, read, written, err);
    e.journal = &journal;
    if (local == MGR_OK)
        local = mgr_journal_open(&journal, job, o->journal, o->number, o->seconds, err);
    int rc = mgr_agree(job->comm, local, err);
    const double start = mgr_now();
    local = rc; /* from here on: what has gone wrong on this rank */
    if (rc == MGR_OK)
        rc = run_groups(&e, &local, err);
    job->tally.seconds_write = mgr_now() - start - job->tally.seconds_sums;
    const double sync_start = mgr_now();
    if (rc == MGR_OK)
        mgr_say_phase("sync");
    local = close_files(&e, rc != MGR_OK ? rc : local, err);
    job->tally.seconds_sync = mgr_now() - sync_start;
    if (local == MGR_OK)
        local = mgr_note_event(job, MGR_PHASE_SYNC, MGR_NONE, sync_start, job->tally.bytes_read,
                               job->tally.bytes_written, err);
    if (rc == MGR_OK) {
        mgr_progress_finish(o->progress, local == MGR_OK);
        rc = mgr_agree(job->comm, local, err);
    }
    *read = e.read_extents;
    *written = e.write_extents;
    job->tally.seconds_proof += journal.spent;
    mgr_journal_close(&journal);
    engine_clear(&e);
    return rc;
}
