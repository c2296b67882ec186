/* How often a run reads and writes, told before it does: what engine.c and engine_io.c do with each
 * unit, without its bytes. */
#include <string.h>

#include "core/mem.h"
#include "engine/engine.h"

/* Agreements of mgr_engine_run: that it can begin, on its list of groups, that it ended. */
#define OUTSIDE_GROUPS 3

typedef struct counter {
    mgr_engine engine; /* its lists and its unit's place, which nothing is read to */
    mgr_selection selection;
    uint64_t *used; /* of each rank's cache, in the group at hand */
} counter;

static uint64_t parts_of(uint64_t n, uint64_t step)
{
    return n / step + (n % step != 0);
}

static uint64_t box_writes(const mgr_job *job, const mgr_box *box, uint64_t row, uint64_t n)
{
    const uint64_t from = box->row > row ? box->row : row;
    const uint64_t end = box->row + box->rows < row + n ? box->row + box->rows : row + n;
    if (from >= end)
        return 0;
    return parts_of(box->transposed ? box->cols : end - from,
                    mgr_engine_at_once(job, box, n, end - from));
}

/* Of rows that are handed over together. */
static uint64_t row_writes(const mgr_job *job, uint32_t target, uint64_t row, uint64_t n)
{
    const mgr_layout *const to = &job->target.layout;
    uint64_t sum = 0;
    for (size_t b = to->first_box[target]; b < to->first_box[target + 1]; b++)
        sum += box_writes(job, &to->boxes[b], row, n);
    return sum;
}

static uint64_t rows_at_once(const mgr_job *job, uint32_t target)
{
    return job->plan.chunk_bytes / mgr_layout_row_bytes(&job->target.layout, target);
}

/* Of rows that pass through the output buffer. */
static uint64_t made_writes(const mgr_job *job, uint32_t target, uint64_t row, uint64_t rows)
{
    const uint64_t step = rows_at_once(job, target);
    uint64_t sum = 0;
    for (uint64_t r = 0; r < rows; r += step)
        sum += row_writes(job, target, row + r, rows - r < step ? rows - r : step);
    return sum;
}

/* Of rows that lie where their neurons go. */
static uint64_t neuron_writes(const mgr_job *job, const mgr_expert *x, uint32_t target,
                              const mgr_piece *piece)
{
    const uint64_t step = rows_at_once(job, target);
    uint64_t sum = 0;
    if (!x->origin)
        return made_writes(job, target, piece->row, piece->rows);
    for (uint32_t row = 0, n; row < x->width; row += n ? n : 1) {
        n = mgr_engine_run_of(x, row, x->width, step, piece);
        sum += n ? row_writes(job, target, row, n) : 0;
    }
    return sum;
}

static int expert_writes(counter *c, uint32_t target, const mgr_piece *piece, uint64_t *sum,
                         mgr_err *err)
{
    const mgr_job *const job = c->engine.job;
    const mgr_tensor *const t = &job->target.tensors.list[target];
    MGR_TRY(mgr_selection_set(&c->selection, job, t->layer, NULL, err));
    const mgr_matrix matrix = mgr_matrix_with(t);
    mgr_expert x = mgr_selection_expert(&c->selection, job, t->expert, matrix);
    x.scale = mgr_plane_scale(x.scale, t->plane);
    if (t->ndim > 1 && mgr_engine_copies(job, &x, target, piece->source))
        *sum += row_writes(job, target, piece->row, piece->rows);
    else if (t->ndim > 1 && matrix == MGR_MATRIX_DOWN)
        *sum += made_writes(job, target, piece->row, piece->rows);
    else
        *sum += neuron_writes(job, &x, target, piece);
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

static int target_writes(counter *c, uint32_t target, const mgr_piece *piece, uint64_t *sum,
                         mgr_err *err)
{
    const mgr_job *const job = c->engine.job;
    const mgr_tensor *const t = &job->target.tensors.list[target];
    const mgr_op op = job->defines[target].op;
    const bool shared = op == MGR_OP_SHARED && t->role != MGR_ROLE_SHARED_DOWN;
    const mgr_expert rows = {.width = (uint32_t)t->rows,
                             .origin = shared              ? job->shared_origin
                                       : op == MGR_OP_ROWS ? mgr_recipe_from(&job->recipe, t->layer)
                                                           : NULL};
    if (op == MGR_OP_EXPERT || op == MGR_OP_MOMENT)
        return expert_writes(c, target, piece, sum, err);
    if (op == MGR_OP_ROUTER)
        *sum += row_writes(job, target, 0, t->rows);
    else if (op == MGR_OP_ROWS || (shared && job->shared_origin))
        *sum += neuron_writes(job, &rows, target, piece);
    else if (is_whole_copy(job, target, piece))
        *sum += row_writes(job, target, piece->row, piece->rows);
    else
        *sum += made_writes(job, target, piece->row, piece->rows);
    return MGR_OK;
}

static int unit_writes(counter *c, const mgr_unit *unit, uint64_t *sum, mgr_err *err)
{
    const mgr_plan *const plan = &c->engine.job->plan;
    for (uint32_t p = unit->piece; p < unit->piece + unit->n_pieces; p++) {
        const mgr_piece *const piece = &plan->pieces[p];
        if (piece->source == MGR_NONE) {
            MGR_TRY(target_writes(c, piece->target, piece, sum, err));
            continue;
        }
        for (uint32_t k = plan->first_target[piece->source];
             k < plan->first_target[piece->source + 1]; k++)
            MGR_TRY(target_writes(c, plan->targets[k], piece, sum, err));
    }
    return MGR_OK;
}

/* Those that wait for the sums where their rank has no room are read a second time. */
static uint64_t times_read(counter *c, const mgr_group *group, const mgr_unit *unit)
{
    const uint64_t room = c->engine.job->plan.cache_bytes;
    uint64_t *const used = &c->used[unit->rank];
    if (group->n_layers == 0)
        return 1;
    if (unit->in_bytes > room - *used)
        return 2;
    mgr_engine_keep(used, unit->in_bytes, room);
    return 1;
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
        uint64_t reads = 0;
        if (unit->in_bytes)
            MGR_TRY(mgr_engine_count_reads(&c->engine, unit, &reads, err));
        out->reads += reads * times_read(c, group, unit);
        MGR_TRY(unit_writes(c, unit, &out->writes, err));
    }
    return MGR_OK;
}

int mgr_engine_count(mgr_job *job, mgr_calls *out, mgr_err *err)
{
    const mgr_plan *const plan = &job->plan;
    counter c = {.engine = {.job = job}, .selection = {.layer = MGR_NONE}};
    *out = (mgr_calls){.collective = OUTSIDE_GROUPS + mgr_sum_calls(plan->n_groups)};
    int rc = mgr_alloc(&c.used, plan->ranks, sizeof *c.used, err);
    if (rc == MGR_OK)
        rc = mgr_alloc_aligned(&c.engine.unit, plan->unit_bytes, err);
    if (rc == MGR_OK && job->method)
        rc = mgr_selection_init(&c.selection, job, err);
    for (size_t g = 0; rc == MGR_OK && g < plan->n_groups; g++)
        rc = count_group(&c, &plan->groups[g], out, err);
    mgr_selection_clear(&c.selection);
    mgr_free_aligned(c.engine.unit);
    mgr_free(c.engine.items);
    mgr_free(c.used);
    return rc;
}
