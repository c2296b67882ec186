#include "mgr/plan.h"

#include <string.h>

#include "core/mem.h"
#include "core/str.h"
#include "mgr/upcycle.h"

#define MIB ((uint64_t)1 << 20)
#define UNITS_PER_RANK 64 /* so that the last unit of a rank is under 2 % of its work */

/* Units above eight of the smallest, 32 MiB, only cost memory; a buffer holds a quarter to two. */
static uint64_t unit_min(const mgr_plan_request *r)
{
    return r->unit_min ? r->unit_min : MGR_UNIT_MIN;
}

/* How many times a target tensor is stored. */
static uint64_t copies(const mgr_layout *layout, uint32_t tensor)
{
    const size_t end = layout->first_box[tensor + 1];
    return end > layout->first_box[tensor] ? layout->boxes[end - 1].copy + (uint64_t)1 : 0;
}

static int index_targets(mgr_plan *plan, const mgr_plan_request *r, mgr_err *err)
{
    const uint32_t n_source = r->source ? r->source->tensors->n : 0;
    const uint32_t n_target = r->target->tensors->n;
    MGR_TRY(mgr_alloc(&plan->first_target, (size_t)n_source + 2, sizeof(uint32_t), err));
    MGR_TRY(mgr_alloc(&plan->targets, n_target, sizeof(uint32_t), err));
    for (uint32_t t = 0; t < n_target; t++)
        if (r->defines[t].source != MGR_NONE)
            plan->first_target[r->defines[t].source + 2]++;
    for (uint32_t s = 0; s < n_source; s++)
        plan->first_target[s + 2] += plan->first_target[s + 1];
    for (uint32_t t = 0; t < n_target; t++) /* shifts every start by one place: now it fits */
        if (r->defines[t].source != MGR_NONE)
            plan->targets[plan->first_target[r->defines[t].source + 1]++] = t;
    return MGR_OK;
}

static int add_unit(mgr_plan *plan, const mgr_unit *unit, mgr_err *err)
{
    MGR_TRY(mgr_grow(&plan->units, &plan->cap_units, plan->n_units + 1, sizeof *unit, err));
    plan->units[plan->n_units++] = *unit;
    plan->total_in += unit->in_bytes;
    plan->total_out += unit->out_bytes;
    plan->done_in += unit->done ? unit->in_bytes : 0;
    plan->done_out += unit->done ? unit->out_bytes : 0;
    if (unit->in_bytes > plan->unit_bytes)
        plan->unit_bytes = unit->in_bytes;
    return MGR_OK;
}

static int add_piece(mgr_plan *plan, const mgr_piece *piece, mgr_err *err)
{
    MGR_TRY(mgr_grow(&plan->pieces, &plan->cap_pieces, plan->n_pieces + 1, sizeof *piece, err));
    plan->pieces[plan->n_pieces++] = *piece;
    return MGR_OK;
}

int mgr_piece_order(const void *x, const void *y)
{
    const mgr_piece *const a = x, *const b = y;
    if (a->source != b->source)
        return a->source < b->source ? -1 : 1;
    if (a->target != b->target)
        return a->target < b->target ? -1 : 1;
    return a->row < b->row ? -1 : a->row > b->row;
}

/* Where the rows from `row` on change from done to not done, or back; at the latest at `rows`. */
static uint64_t stretch_end(const mgr_plan_request *r, const mgr_piece *from, uint64_t rows,
                            bool *done)
{
    size_t low = 0, high = r->n_done; /* the first that ends behind `from` */
    while (low < high) {
        const size_t mid = low + (high - low) / 2;
        mgr_piece end = r->done[mid];
        end.row += end.rows - 1;
        if (mgr_piece_order(&end, from) < 0)
            low = mid + 1;
        else
            high = mid;
    }
    const mgr_piece *const next = low < r->n_done ? &r->done[low] : NULL;
    *done = false;
    if (!next || next->source != from->source || next->target != from->target)
        return rows;
    *done = next->row <= from->row;
    return *done ? next->row + next->rows : next->row;
}

/* Bytes made of a piece's rows of a source tensor. An expert with fewer neurons has its share of
 * them, wherever its origins lie. */
static uint64_t made_bytes(const mgr_plan *plan, const mgr_plan_request *r, const mgr_piece *piece)
{
    const uint64_t of = r->source->tensors->list[piece->source].rows;
    const uint64_t row = piece->row, end = piece->row + piece->rows;
    uint64_t bytes = 0;
    for (uint32_t k = plan->first_target[piece->source]; k < plan->first_target[piece->source + 1];
         k++) {
        const uint32_t t = plan->targets[k];
        if (!mgr_piece_gives(piece, r->defines[t].op))
            continue;
        const uint64_t all = r->target->tensors->list[t].rows;
        const uint64_t made = end * all / of - row * all / of;
        bytes += copies(r->target, t) * made * mgr_layout_row_bytes(r->target, t);
    }
    return bytes;
}

/* Cut the bundle that starts at source tensor `first` into units of about `wanted` bytes, `as`
 * being the target of its pieces. */
static int cut_bundle(mgr_plan *plan, const mgr_plan_request *r, uint32_t first, uint32_t as,
                      uint64_t wanted, mgr_err *err)
{
    const mgr_tensors *const ts = r->source->tensors;
    uint32_t end = first;
    uint64_t step_bytes = 0;
    for (; end < ts->n && ts->list[end].bundle == first; end++)
        step_bytes += ts->list[end].step * mgr_layout_row_bytes(r->source, end);
    const mgr_tensor *const lead = &ts->list[first];
    const uint64_t n_steps = (lead->rows + lead->step - 1) / lead->step;
    const uint64_t most = step_bytes && wanted > step_bytes ? wanted / step_bytes : 1;
    for (uint64_t at = 0, per_unit; at < n_steps; at += per_unit) {
        const mgr_piece from = {first, as, at * lead->step, 1};
        mgr_unit unit = {
            .piece = (uint32_t)plan->n_pieces, .n_pieces = end - first, .layer = lead->layer};
        const uint64_t left =
            (stretch_end(r, &from, lead->rows, &unit.done) + lead->step - 1) / lead->step - at;
        per_unit = left < most ? left : most;
        for (uint32_t i = first; i < end; i++) {
            const mgr_tensor *const t = &ts->list[i];
            mgr_piece piece = {
                .source = i, .target = as, .row = at * t->step, .rows = per_unit * t->step};
            if (piece.rows > t->rows - piece.row)
                piece.rows = t->rows - piece.row;
            unit.in_bytes += piece.rows * mgr_layout_row_bytes(r->source, i);
            unit.out_bytes += made_bytes(plan, r, &piece);
            MGR_TRY(add_piece(plan, &piece, err));
        }
        MGR_TRY(add_unit(plan, &unit, err));
    }
    return MGR_OK;
}

/* Rows of a target tensor whose origins lie anywhere in source tensor `source`. */
static int cut_gathered(mgr_plan *plan, const mgr_plan_request *r, uint32_t source, uint32_t target,
                        uint64_t wanted, mgr_err *err)
{
    const mgr_tensor *const t = &r->target->tensors->list[target];
    const uint64_t in = mgr_layout_row_bytes(r->source, source);
    const uint64_t out = copies(r->target, target) * mgr_layout_row_bytes(r->target, target);
    const uint64_t most = wanted > in ? wanted / in : 1;
    for (uint64_t row = 0; row < t->rows;) {
        mgr_piece piece = {source, target, row, 1};
        mgr_unit unit = {.piece = (uint32_t)plan->n_pieces, .n_pieces = 1, .gathered = true};
        const uint64_t left = stretch_end(r, &piece, t->rows, &unit.done) - row;
        piece.rows = left < most ? left : most;
        unit.layer = t->layer;
        unit.in_bytes = piece.rows * in;
        unit.out_bytes = piece.rows * out;
        MGR_TRY(add_piece(plan, &piece, err));
        MGR_TRY(add_unit(plan, &unit, err));
        row += piece.rows;
    }
    return MGR_OK;
}

static bool makes(const mgr_plan *plan, const mgr_plan_request *r, uint32_t source, mgr_op op)
{
    for (uint32_t k = plan->first_target[source]; k < plan->first_target[source + 1]; k++)
        if (r->defines[plan->targets[k]].op == op)
            return true;
    return false;
}

/* gate and up, or a plane of them, of which experts are made: neurons are their rows. */
static bool has_neuron_rows(const mgr_plan *plan, const mgr_plan_request *r, uint32_t source)
{
    const mgr_tensor *const t = &r->source->tensors->list[source];
    return t->ndim > 1 && (t->role == MGR_ROLE_GATE || t->role == MGR_ROLE_UP) &&
           (makes(plan, r, source, MGR_OP_EXPERT) || makes(plan, r, source, MGR_OP_MOMENT));
}

/* A matrix of an FFN, or a plane of one; experts' rows in units of `gathered` bytes, or 0. */
static int cut_matrix(mgr_plan *plan, const mgr_plan_request *r, uint32_t source, uint64_t wanted,
                      uint64_t gathered, mgr_err *err)
{
    if (!gathered || !has_neuron_rows(plan, r, source))
        return cut_bundle(plan, r, source, MGR_NONE, wanted, err);
    MGR_TRY(cut_bundle(plan, r, source, MGR_GATHERED, wanted, err));
    for (uint32_t k = plan->first_target[source]; k < plan->first_target[source + 1]; k++)
        if (mgr_op_by_map(r->defines[plan->targets[k]].op))
            MGR_TRY(cut_gathered(plan, r, source, plan->targets[k], gathered, err));
    return MGR_OK;
}

static bool has_experts(const mgr_plan *plan, const mgr_plan_request *r, uint32_t source)
{
    return makes(plan, r, source, MGR_OP_EXPERT);
}

/* What of an FFN a method makes: its matrices and the biases that follow their neurons. */
static const mgr_role expert_roles[] = {MGR_ROLE_GATE, MGR_ROLE_UP, MGR_ROLE_DOWN,
                                        MGR_ROLE_GATE_BIAS, MGR_ROLE_UP_BIAS};

#define N_EXPERT_ROLES (sizeof expert_roles / sizeof expert_roles[0])

/* A router is filled as one block: its centred inits need the whole matrix. */
static int cut_generated(mgr_plan *plan, const mgr_plan_request *r, uint32_t target,
                         uint64_t wanted, mgr_err *err)
{
    const mgr_tensor *const t = &r->target->tensors->list[target];
    const uint64_t bytes = mgr_layout_row_bytes(r->target, target);
    const uint64_t most =
        r->defines[target].op == MGR_OP_ROUTER ? t->rows : wanted / (bytes + 1) + 1;
    for (uint64_t row = 0, per_unit; row < t->rows; row += per_unit) {
        mgr_piece piece = {MGR_NONE, target, row, 1};
        mgr_unit unit = {.piece = (uint32_t)plan->n_pieces, .n_pieces = 1, .layer = t->layer};
        const uint64_t left = stretch_end(r, &piece, t->rows, &unit.done) - row;
        per_unit = left < most ? left : most;
        piece.rows = per_unit;
        unit.out_bytes = copies(r->target, target) * piece.rows * bytes;
        MGR_TRY(add_piece(plan, &piece, err));
        MGR_TRY(add_unit(plan, &unit, err));
    }
    return MGR_OK;
}

static int close_group(mgr_plan *plan, size_t first_unit, uint32_t layer, uint32_t n_layers,
                       mgr_err *err)
{
    if (plan->n_units == first_unit)
        return MGR_OK;
    MGR_TRY(
        mgr_grow(&plan->groups, &plan->cap_groups, plan->n_groups + 1, sizeof *plan->groups, err));
    plan->groups[plan->n_groups++] =
        (mgr_group){(uint32_t)first_unit, (uint32_t)(plan->n_units - first_unit), layer, n_layers};
    return MGR_OK;
}

/* Bytes of the largest FFN matrix of the source. */
static uint64_t matrix_bytes(const mgr_plan_request *r)
{
    const mgr_tensors *const ts = r->source->tensors;
    uint64_t most = 0;
    for (uint32_t i = 0; i < ts->n; i++)
        if (mgr_role_is_matrix(ts->list[i].role) && mgr_layout_tensor_bytes(r->source, i) > most)
            most = mgr_layout_tensor_bytes(r->source, i);
    return most;
}

static uint64_t ffns(const mgr_plan_request *r)
{
    return r->ffns ? r->ffns : 1;
}

static uint64_t neurons(const mgr_plan_request *r)
{
    return r->neurons ? r->neurons : r->source->tensors->model.ffn;
}

/* Bytes of one layer's FFNs, at most. */
static uint64_t ffn_bytes(const mgr_plan_request *r)
{
    return 3 * ffns(r) * matrix_bytes(r);
}

static uint64_t layer_sums_bytes(const mgr_plan_request *r)
{
    return 3 * ffns(r) * neurons(r) * sizeof(mgr_sums);
}

/* One of the FFNs of a layer. */
static int cut_ffn(mgr_plan *plan, const mgr_plan_request *r, uint32_t layer, uint32_t ffn,
                   uint64_t wanted, uint64_t gathered, mgr_err *err)
{
    for (size_t k = 0; k < N_EXPERT_ROLES; k++) {
        const uint32_t i = mgr_tensors_ffn(r->source->tensors, expert_roles[k], layer, ffn);
        if (i != MGR_NONE && has_experts(plan, r, i))
            MGR_TRY(cut_matrix(plan, r, i, wanted, gathered, err));
    }
    return MGR_OK;
}

/* The FFNs, layer after layer, in groups of as many layers as all caches together can keep. */
static int cut_experts(mgr_plan *plan, const mgr_plan_request *r, uint64_t wanted,
                       uint64_t gathered, uint64_t group_layers, mgr_err *err)
{
    const mgr_tensors *const ts = r->source->tensors;
    const uint32_t layers = (uint32_t)ts->model.layers;
    size_t first_unit = plan->n_units;
    uint32_t first_layer = 0;
    for (uint32_t l = 0; l < layers; l++) {
        for (uint32_t x = 0; x < ffns(r); x++)
            MGR_TRY(cut_ffn(plan, r, l, x, wanted, gathered, err));
        if (l + 1 - first_layer < group_layers && l + 1 < layers)
            continue;
        MGR_TRY(
            close_group(plan, first_unit, first_layer, r->moments ? l + 1 - first_layer : 0, err));
        first_unit = plan->n_units;
        first_layer = l + 1;
    }
    return MGR_OK;
}

/* A tensor of which nothing is made, an expert that is not taken, which is not read. */
static bool is_left_out(const mgr_plan *plan, uint32_t source)
{
    return plan->first_target[source] == plan->first_target[source + 1];
}

static int cut_others(mgr_plan *plan, const mgr_plan_request *r, uint64_t wanted, uint64_t expert,
                      uint64_t gathered, mgr_err *err)
{
    const size_t first_unit = plan->n_units;
    const uint32_t n_source = r->source ? r->source->tensors->n : 0;
    for (uint32_t i = 0; i < n_source; i++)
        if (r->source->tensors->list[i].bundle == i && !has_experts(plan, r, i) &&
            !is_left_out(plan, i)) {
            const bool moment = makes(plan, r, i, MGR_OP_MOMENT);
            MGR_TRY(cut_matrix(plan, r, i, moment ? expert : wanted, moment ? gathered : 0, err));
        }
    for (uint32_t t = 0; t < r->target->tensors->n; t++)
        if (r->defines[t].source == MGR_NONE)
            MGR_TRY(cut_generated(plan, r, t, wanted, err));
    return close_group(plan, first_unit, 0, 0, err);
}

static bool is_done(const mgr_plan *plan, const mgr_group *group)
{
    for (uint32_t u = 0; u < group->n_units; u++)
        if (!plan->units[group->unit + u].done)
            return false;
    return true;
}

/* What a unit costs: one that is done is read for the sums of the others, or not at all. */
static uint64_t cost(const mgr_unit *unit, bool summed)
{
    const bool unread = unit->done && (!summed || unit->gathered);
    return (unread ? 0 : unit->in_bytes) + (unit->done ? 0 : unit->out_bytes);
}

static uint32_t least_loaded(const uint64_t *load, uint32_t places)
{
    uint32_t least = 0;
    for (uint32_t p = 1; p < places; p++)
        if (load[p] < load[least])
            least = p;
    return least;
}

/* The first place from `place` on whose share a unit fits in, or nearly; `places` if there is none.
 */
static uint32_t next_with_room(const uint64_t *load, uint32_t places, uint32_t place,
                               uint64_t bytes, uint64_t share)
{
    while (place < places && load[place] + bytes / 2 > share)
        place++;
    return place;
}

/* Deal each group so that, after it, every rank has done the same share of all bytes so far: ranks
 * take consecutive units, in their order, and what one group leaves uneven the next one evens out.
 * Units larger than the shares, as with more ranks than units, go to whoever has least. */
static int deal(mgr_plan *plan, const uint32_t *order, mgr_err *err)
{
    uint64_t *load = NULL;
    MGR_TRY(mgr_alloc(&load, plan->ranks, sizeof *load, err));
    uint64_t sum = 0;
    for (size_t g = 0; g < plan->n_groups; g++) {
        const mgr_group *const group = &plan->groups[g];
        mgr_unit *const units = plan->units + group->unit;
        const bool summed = group->n_layers && !is_done(plan, group);
        for (uint32_t u = 0; u < group->n_units; u++)
            sum += cost(&units[u], summed);
        const uint64_t share = sum / plan->ranks + 1;
        uint32_t next = 0;
        for (uint32_t u = 0; u < group->n_units; u++) {
            const uint64_t bytes = cost(&units[u], summed);
            next = next_with_room(load, plan->ranks, next, bytes, share);
            const uint32_t place = next < plan->ranks ? next : least_loaded(load, plan->ranks);
            units[u].rank = order ? order[place] : place;
            load[place] += bytes;
        }
    }
    for (uint32_t place = 0; place < plan->ranks; place++)
        if (load[place] > plan->max_rank_bytes)
            plan->max_rank_bytes = load[place];
    mgr_free(load);
    return MGR_OK;
}

static uint64_t clamp(uint64_t value, uint64_t low, uint64_t high)
{
    return value < low ? low : value > high ? high : value;
}

/* Bytes of the largest matrix of an FFN where a layout stores it transposed, else 0: pieces of it
 * would be read and written in as many places as it has columns, so that units hold it whole. */
static uint64_t transposed_matrix(const mgr_plan_request *r, const mgr_layout *layout)
{
    const mgr_layout *const sides[] = {r->target, r->source ? r->source : r->target};
    const mgr_model *const m = &layout->tensors->model;
    size_t widest = 0;
    for (size_t s = 0; s < 2; s++)
        for (uint32_t i = 0; i < sides[s]->tensors->n; i++)
            if (mgr_dtype_size(sides[s]->types[i]) > widest)
                widest = mgr_dtype_size(sides[s]->types[i]);
    return layout->transposed ? mgr_model_expert_ffn(m) * m->hidden * widest : 0;
}

/* The widest row that the output or read buffer must hold. */
static uint64_t widest_row(const mgr_plan_request *r)
{
    uint64_t widest = transposed_matrix(r, r->target);
    widest = widest ? widest : 1;
    for (uint32_t i = 0; r->source && i < r->source->tensors->n; i++) {
        const uint64_t bytes = mgr_layout_row_bytes(r->source, i);
        widest = bytes > widest ? bytes : widest;
    }
    for (uint32_t i = 0; i < r->target->tensors->n; i++) {
        const mgr_tensor *const t = &r->target->tensors->list[i];
        const uint64_t rows = t->role == MGR_ROLE_ROUTER ? t->rows : 1; /* filled in one piece */
        const uint64_t bytes = rows * mgr_layout_row_bytes(r->target, i);
        widest = bytes > widest ? bytes : widest;
    }
    return widest;
}

/* Input bytes that a unit should have. */
static uint64_t wanted_unit(const mgr_plan_request *r)
{
    const uint64_t all = mgr_layout_bytes(r->source ? r->source : r->target);
    const uint64_t wanted = clamp(all / r->ranks / UNITS_PER_RANK, unit_min(r), 8 * unit_min(r));
    const uint64_t bound = r->memory / 8 > MIB / 4 ? r->memory / 8 : MIB / 4;
    const uint64_t must = transposed_matrix(r, r->target);
    const uint64_t should = r->source ? transposed_matrix(r, r->source) : 0;
    const uint64_t whole = must ? must : should <= r->memory / 4 ? should : 0;
    return whole > wanted ? whole : wanted < bound ? wanted : bound;
}

/* With shuffle, an expert's rows come from anywhere: a unit that holds the whole matrix writes
 * whole extents. Whole ones are taken where memory and the number of ranks allow it. */
static uint64_t wanted_expert_unit(const mgr_plan_request *r, uint64_t wanted)
{
    const mgr_model *const m = &r->source->tensors->model;
    const uint64_t matrix = matrix_bytes(r);
    if (r->shuffle && matrix <= r->memory / 3 && m->layers * 3 >= 2 * (uint64_t)r->ranks)
        return matrix;
    return wanted;
}

/* Where units do not hold the whole matrix, those of `expert` bytes of its rows would write single
 * rows of experts. Then units of experts' rows gather theirs out of the source, which is read once
 * more for each expert, in the order of the file. A run that goes on cuts as the one before it did,
 * whose units say what they are. */
static bool gathers_rows(const mgr_plan *plan, const mgr_plan_request *r, uint64_t expert)
{
    if (!r->source || !r->shuffle || r->source->transposed || r->target->transposed)
        return false;
    for (size_t i = 0; i < r->n_done; i++)
        if (r->done[i].source != MGR_NONE && has_neuron_rows(plan, r, r->done[i].source))
            return r->done[i].target != MGR_NONE;
    return expert < matrix_bytes(r);
}

/* Bytes of a unit that gathers: an expert's whole matrix, of which the source's rows are neighbours
 * again, where memory and the number of ranks allow it. */
static uint64_t wanted_gathered(const mgr_plan_request *r, uint64_t wanted)
{
    const mgr_model *const m = &r->target->tensors->model;
    const uint64_t matrix = matrix_bytes(r);
    return matrix <= r->memory / 3 && m->layers * m->experts >= r->ranks ? matrix : wanted;
}

/* Set the buffer sizes and how many layers a group has; what does not fit is refused. */
static int share_memory(mgr_plan *plan, const mgr_plan_request *r, uint64_t largest_unit,
                        uint64_t *group_layers, mgr_err *err)
{
    const uint64_t widest = widest_row(r);
    plan->chunk_bytes = clamp(r->memory / 16, unit_min(r) / 4, 2 * unit_min(r));
    if (plan->chunk_bytes < widest)
        plan->chunk_bytes = widest;
    const uint64_t scratch = r->moments ? 16 * neurons(r) : 0;
    const uint64_t sums = r->moments ? layer_sums_bytes(r) : 0;
    const uint64_t units = (r->io_threads ? 2 : 1) * largest_unit;
    const uint64_t chunks = 2 * (1 + (uint64_t)r->io_threads) * plan->chunk_bytes;
    const uint64_t fixed = units + chunks + r->selection_bytes + scratch;
    *group_layers = UINT64_MAX;
    plan->memory_bytes = fixed;
    if (fixed + sums > r->memory) {
        char need[32], have[32];
        return mgr_fail(err, MGR_ERR_CONFIG,
                        "memory_per_rank leaves %s for buffers, this model needs %s",
                        mgr_format_bytes(r->memory, have, sizeof have),
                        mgr_format_bytes(fixed + sums, need, sizeof need));
    }
    if (!r->moments)
        return MGR_OK;
    /* each layer of a group costs its sums on every rank and its FFN spread over all ranks; units
     * are dealt whole, so a rank may have one more than its share */
    const uint64_t left = r->memory - fixed;
    const uint64_t per_layer = sums + ffn_bytes(r) / r->ranks + 1;
    uint64_t layers = left > largest_unit ? (left - largest_unit) / per_layer : 0;
    layers = clamp(layers, 1, r->source->tensors->model.layers);
    plan->sums_bytes = layers * sums;
    const uint64_t share = layers * ffn_bytes(r) / r->ranks + largest_unit;
    const uint64_t room = left - plan->sums_bytes;
    plan->cache_bytes = share < room ? share : room;
    plan->memory_bytes = fixed + plan->sums_bytes + plan->cache_bytes;
    *group_layers = layers;
    return MGR_OK;
}

static uint64_t largest_step(const mgr_plan_request *r)
{
    uint64_t largest = 0;
    for (uint32_t i = 0, end; r->source && i < r->source->tensors->n; i = end) {
        const mgr_tensor *const list = r->source->tensors->list;
        uint64_t bytes = 0;
        for (end = i; end < r->source->tensors->n && list[end].bundle == i; end++)
            bytes += (list[end].step < list[end].rows ? list[end].step : list[end].rows) *
                     mgr_layout_row_bytes(r->source, end);
        if (bytes > largest)
            largest = bytes;
    }
    return largest;
}

int mgr_plan_make(mgr_plan *plan, const mgr_plan_request *r, mgr_err *err)
{
    uint64_t group_layers;
    *plan = (mgr_plan){.ranks = r->ranks, .io_threads = r->io_threads};
    const uint64_t wanted = wanted_unit(r);
    const uint64_t expert = r->source ? wanted_expert_unit(r, wanted) : 0;
    int rc = index_targets(plan, r, err);
    const bool gathers = rc == MGR_OK && gathers_rows(plan, r, expert);
    const uint64_t gathered = gathers ? wanted_gathered(r, expert) : 0;
    uint64_t largest = largest_step(r);
    largest = largest > wanted ? largest : wanted;
    largest = largest > expert ? largest : expert;
    largest = largest > gathered ? largest : gathered;
    if (rc == MGR_OK)
        rc = share_memory(plan, r, r->source ? largest : 0, &group_layers, err);
    if (rc == MGR_OK && r->source)
        rc = cut_experts(plan, r, expert, gathered, group_layers, err);
    if (rc == MGR_OK)
        rc = cut_others(plan, r, wanted, expert, gathered, err);
    if (rc == MGR_OK)
        rc = deal(plan, r->order, err);
    if (rc != MGR_OK)
        mgr_plan_clear(plan);
    return rc;
}

void mgr_plan_clear(mgr_plan *plan)
{
    mgr_free(plan->pieces);
    mgr_free(plan->units);
    mgr_free(plan->groups);
    mgr_free(plan->targets);
    mgr_free(plan->first_target);
    *plan = (mgr_plan){0};
}
