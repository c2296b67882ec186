/* Plans: every row of every tensor is in exactly one unit; work is even; a 405B plan is quick. */
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>

#include "core/mem.h"
#include "mgr/plan.h"
#include "mgr/upcycle.h"
#include "model/huggingface.h"
#include "model/megatron.h"
#include "par/places.h"
#include "support/check.h"

typedef struct world {
    mgr_tensors dense, moe;
    mgr_catalogue from, to;
    mgr_layout source, target;
    mgr_define *defines;
    uint32_t *stages, *files;
} world;

static void make_defines(world *w)
{
    mgr_err err = MGR_ERR_INIT;
    CHECK_INT(mgr_alloc(&w->defines, w->moe.n, sizeof *w->defines, &err), MGR_OK);
    for (uint32_t i = 0; i < w->moe.n; i++) {
        const mgr_tensor *const t = &w->moe.list[i];
        w->defines[i].source = mgr_tensors_find(&w->dense, t->role, t->layer, MGR_NONE);
        w->defines[i].op = t->role == MGR_ROLE_ROUTER ? MGR_OP_ROUTER
                           : t->expert != MGR_NONE    ? MGR_OP_EXPERT
                                                      : MGR_OP_COPY;
    }
}

static void make_world(world *w, const mgr_model *model, uint32_t tp, uint32_t pp, uint32_t experts)
{
    mgr_err err = MGR_ERR_INIT;
    mgr_model moe = *model;
    *w = (world){0};
    moe.experts = experts;
    CHECK_INT(mgr_tensors_init(&w->dense, model, &err), MGR_OK);
    CHECK_INT(mgr_tensors_init(&w->moe, &moe, &err), MGR_OK);
    CHECK_INT(mgr_alloc(&w->stages, pp, sizeof(uint32_t), &err), MGR_OK);
    CHECK_INT(mgr_alloc(&w->files, (size_t)pp * tp, sizeof(uint32_t), &err), MGR_OK);
    uint32_t left = (uint32_t)model->layers;
    for (uint32_t p = 0; p < pp; p++) {
        w->stages[p] = left / (pp - p);
        left -= w->stages[p];
        for (uint32_t t = 0; t < tp; t++)
            CHECK_INT(mgr_catalogue_add_file(&w->from, "f", 0, &w->files[p * tp + t], &err),
                      MGR_OK);
    }
    const mgr_megatron mg = {.tensor_parallel = tp,
                             .pipeline_parallel = pp,
                             .expert_parallel = 1,
                             .expert_tensor_parallel = 1,
                             .virtual_pipeline = 1,
                             .padded_vocab = model->vocab,
                             .stage_layers = w->stages,
                             .files = w->files};
    const mgr_huggingface hf = {.ffn = MGR_HF_PER_EXPERT,
                                .expert_parallel = experts,
                                .max_shard_size = UINT64_C(5000000000)};
    CHECK_INT(mgr_layout_init(&w->source, &w->dense, &w->from, true, model->dtype, &err), MGR_OK);
    CHECK_INT(mgr_megatron_layout(&w->source, &mg, &err), MGR_OK);
    CHECK_INT(mgr_layout_finish(&w->source, &err), MGR_OK);
    CHECK_INT(mgr_layout_init(&w->target, &w->moe, &w->to, true, MGR_DTYPE_BF16, &err), MGR_OK);
    CHECK_INT(mgr_huggingface_layout(&w->target, &hf, &err), MGR_OK);
    CHECK_INT(mgr_layout_finish(&w->target, &err), MGR_OK);
    make_defines(w);
    CHECK_INT(err.code, MGR_OK);
}

static void clear_world(world *w)
{
    mgr_layout_clear(&w->source);
    mgr_layout_clear(&w->target);
    mgr_catalogue_clear(&w->from);
    mgr_catalogue_clear(&w->to);
    mgr_tensors_clear(&w->dense);
    mgr_tensors_clear(&w->moe);
    mgr_free(w->defines);
    mgr_free(w->stages);
    mgr_free(w->files);
}

static mgr_plan_request request_of(const world *w, uint32_t ranks, uint64_t memory)
{
    return (mgr_plan_request){.source = &w->source,
                              .target = &w->target,
                              .defines = w->defines,
                              .ranks = ranks,
                              .moments = true,
                              .selection_bytes = 1 << 20,
                              .memory = memory};
}

/* What is read of the source and made of a piece, or the rows that are gathered; each in order, so
 * that there is no hole and no overlap. */
static void count_piece(const world *w, const mgr_plan *plan, const mgr_piece *p, uint64_t *rows,
                        uint64_t *made)
{
    CHECK(p->rows > 0);
    if (p->source == MGR_NONE || p->target < MGR_GATHERED) {
        CHECK_INT(p->row, made[p->target]);
        made[p->target] += p->rows;
        return;
    }
    CHECK_INT(p->row, rows[p->source]);
    CHECK_INT(p->row % w->dense.list[p->source].step, 0);
    rows[p->source] += p->rows;
    for (uint32_t k = plan->first_target[p->source]; k < plan->first_target[p->source + 1]; k++) {
        const uint32_t t = plan->targets[k];
        if (mgr_piece_gives(p, w->defines[t].op))
            made[t] += p->rows;
    }
}

/* Rows are covered once; boundaries keep steps whole; groups cover all units; sizes add up. */
static void check_plan(const world *w, const mgr_plan *plan, uint64_t memory)
{
    mgr_err err = MGR_ERR_INIT;
    uint64_t *rows = NULL, *made = NULL, units = 0, gathered = 0;
    CHECK_INT(mgr_alloc(&rows, w->dense.n, sizeof *rows, &err), MGR_OK);
    CHECK_INT(mgr_alloc(&made, w->moe.n, sizeof *made, &err), MGR_OK);
    for (size_t g = 0; g < plan->n_groups; g++) {
        CHECK_INT(plan->groups[g].unit, units);
        units += plan->groups[g].n_units;
    }
    CHECK_INT(units, plan->n_units);
    for (size_t i = 0; i < plan->n_pieces; i++) {
        const mgr_piece *const p = &plan->pieces[i];
        count_piece(w, plan, p, rows, made);
        if (p->source != MGR_NONE && p->target < MGR_GATHERED)
            gathered += p->rows * mgr_layout_row_bytes(&w->source, p->source);
    }
    for (uint32_t i = 0; i < w->dense.n; i++)
        CHECK_INT(rows[i], w->dense.list[i].rows);
    for (uint32_t i = 0; i < w->moe.n; i++)
        CHECK_INT(made[i], w->moe.list[i].rows);
    CHECK_INT(plan->total_in, mgr_tensors_elements(&w->dense) * 2 + gathered);
    CHECK_INT(plan->total_out, mgr_tensors_elements(&w->moe) * 2);
    CHECK(plan->memory_bytes <= memory);
    mgr_free(rows);
    mgr_free(made);
}

/* No rank has more than the mean and one unit, also where there are more ranks than units. */
static void check_even(const mgr_plan *plan)
{
    const uint64_t mean = (plan->total_in + plan->total_out) / plan->ranks;
    uint64_t largest = 0;
    for (size_t u = 0; u < plan->n_units; u++) {
        const uint64_t bytes = plan->units[u].in_bytes + plan->units[u].out_bytes;
        largest = bytes > largest ? bytes : largest;
    }
    CHECK(plan->max_rank_bytes <= mean + largest + 1);
}

static const mgr_model small = {.layers = 5,
                                .hidden = 192,
                                .ffn = 520,
                                .heads = 8,
                                .kv_groups = 4,
                                .head_dim = 24,
                                .vocab = 1000,
                                .dtype = MGR_DTYPE_BF16};

static void test_small(void)
{
    static const uint64_t memory[] = {UINT64_C(6) << 20, UINT64_C(64) << 20, UINT64_C(2) << 30};
    world w;
    make_world(&w, &small, 2, 2, 8);
    for (uint32_t ranks = 1; ranks <= 65; ranks += 8)
        for (size_t k = 0; k < 3; k++) {
            mgr_err err = MGR_ERR_INIT;
            mgr_plan plan;
            mgr_plan_request r = request_of(&w, ranks, memory[k]);
            r.shuffle = ranks % 2;
            r.unit_min = ranks % 3 ? 0 : 4096;
            CHECK_INT(mgr_plan_make(&plan, &r, &err), MGR_OK);
            check_plan(&w, &plan, memory[k]);
            check_even(&plan);
            CHECK(r.unit_min == 0 || r.shuffle || plan.n_units > 500);
            mgr_plan_clear(&plan);
        }
    mgr_err err = MGR_ERR_INIT;
    mgr_plan plan;
    const mgr_plan_request tiny = request_of(&w, 2, 1 << 20);
    CHECK_INT(mgr_plan_make(&plan, &tiny, &err), MGR_ERR_CONFIG);
    CHECK_HAS(err.msg, "memory_per_rank leaves 1.00 MiB for buffers, this model needs ");
    clear_world(&w);
}

/* Ranks go round 8 nodes: work is dealt node by node, as it is without an order place by place. */
static void test_order(void)
{
    enum { RANKS = 61, NODES = 8 };
    uint64_t host[RANKS];
    world w;
    mgr_err err = MGR_ERR_INIT;
    mgr_plan plain, placed;
    mgr_places places;
    for (uint32_t r = 0; r < RANKS; r++)
        host[r] = 1000 - r % NODES; /* numbers of their own, of no order */
    make_world(&w, &small, 2, 2, 8);
    CHECK_INT(mgr_places_make(&places, host, RANKS, &err), MGR_OK);
    CHECK_INT(places.nodes, NODES);
    mgr_plan_request r = request_of(&w, RANKS, UINT64_C(64) << 20);
    r.unit_min = 4096;
    CHECK_INT(mgr_plan_make(&plain, &r, &err), MGR_OK);
    r.order = places.rank;
    CHECK_INT(mgr_plan_make(&placed, &r, &err), MGR_OK);
    check_plan(&w, &placed, r.memory);
    check_even(&placed);
    CHECK_INT(placed.n_units, plain.n_units);
    CHECK_INT(placed.max_rank_bytes, plain.max_rank_bytes);
    for (size_t u = 0; u < plain.n_units; u++)
        CHECK_INT(placed.units[u].rank, places.rank[plain.units[u].rank]);
    for (uint32_t p = 0; p < RANKS; p++) { /* 8 of each of the first 5 nodes, 7 of the others */
        const uint32_t node = p < 40 ? p / 8 : 5 + (p - 40) / 7, at = p < 40 ? p % 8 : (p - 40) % 7;
        CHECK_INT(places.rank[p], node + NODES * at);
        CHECK_INT(places.node[places.rank[p]], node);
    }
    mgr_plan_clear(&plain);
    mgr_plan_clear(&placed);
    mgr_places_clear(&places);
    clear_world(&w);
}

/* A third of the units of one plan is done: another number of ranks and another memory plan around
 * them, and every row is in exactly one unit that is done or not as it was. */
static void check_around(const world *w, bool shuffle, const mgr_piece *done, size_t n,
                         uint32_t ranks, uint64_t memory)
{
    mgr_err err = MGR_ERR_INIT;
    mgr_plan plan;
    uint64_t rows[2] = {0, 0};
    mgr_plan_request r = request_of(w, ranks, memory);
    r.shuffle = shuffle;
    r.done = done;
    r.n_done = n;
    CHECK_INT(mgr_plan_make(&plan, &r, &err), MGR_OK);
    check_plan(w, &plan, memory);
    for (size_t u = 0; u < plan.n_units; u++)
        if (plan.units[u].done)
            rows[0] += plan.pieces[plan.units[u].piece].rows;
    for (size_t i = 0; i < n; i++)
        rows[1] += done[i].rows;
    CHECK_INT(rows[0], rows[1]);
    mgr_plan_clear(&plan);
}

/* Of the plan of `of` ranks; one that gathers rows and one that does not are gone on with as they
 * are. */
static void around_what_is_done(bool shuffle, uint32_t of)
{
    const mgr_model m = {.layers = 3,
                         .hidden = 192,
                         .ffn = 5200,
                         .heads = 8,
                         .kv_groups = 4,
                         .head_dim = 24,
                         .vocab = 30000,
                         .dtype = MGR_DTYPE_BF16};
    mgr_err err = MGR_ERR_INIT;
    mgr_plan plan;
    mgr_piece done[512];
    size_t n = 0;
    world w;
    make_world(&w, &m, 2, 1, 8);
    mgr_plan_request r = request_of(&w, of, UINT64_C(6) << 20);
    r.shuffle = shuffle;
    CHECK_INT(mgr_plan_make(&plan, &r, &err), MGR_OK);
    for (size_t u = 0; u < plan.n_units && n < 512; u += 3)
        done[n++] = plan.pieces[plan.units[u].piece];
    qsort(done, n, sizeof *done, mgr_piece_order);
    CHECK(n > 10);
    for (uint32_t ranks = 1; ranks < 20; ranks += 6) {
        check_around(&w, shuffle, done, n, ranks, UINT64_C(6) << 20);
        check_around(&w, shuffle, done, n, ranks, UINT64_C(2) << 30);
    }
    mgr_plan_clear(&plan);
    clear_world(&w);
}

static void test_around_what_is_done(void)
{
    around_what_is_done(false, 7);
    around_what_is_done(true, 7);
    around_what_is_done(true, 1);
}

/* The promise: 405B dense, TP8 PP16, 8 experts, 1024 ranks: under 2 s and 200 MB, and even. */
static void test_405b(void)
{
    const mgr_model m = {.layers = 126,
                         .hidden = 16384,
                         .ffn = 53248,
                         .heads = 128,
                         .kv_groups = 8,
                         .head_dim = 128,
                         .vocab = 128256,
                         .dtype = MGR_DTYPE_BF16};
    const clock_t start = clock();
    world w;
    mgr_err err = MGR_ERR_INIT;
    mgr_plan plan;
    make_world(&w, &m, 8, 16, 8);
    const uint64_t memory = UINT64_C(1900) << 20;
    const mgr_plan_request r = request_of(&w, 1024, memory);
    CHECK_INT(mgr_plan_make(&plan, &r, &err), MGR_OK);
    const double seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
    const double mean = (double)(plan.total_in + plan.total_out) / plan.ranks;
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    printf("405B on 1024 ranks: %zu units, %zu groups, busiest rank %+.2f %%, %.2f s of CPU, "
           "%ld MiB resident\n",
           plan.n_units, plan.n_groups, 100 * ((double)plan.max_rank_bytes / mean - 1), seconds,
           usage.ru_maxrss / 1024);
    CHECK((double)plan.max_rank_bytes < 1.05 * mean);
#ifndef __SANITIZE_ADDRESS__ /* which takes memory and time of its own */
    CHECK(usage.ru_maxrss < 200 * 1024);
#endif
    check_plan(&w, &plan, memory);
    mgr_plan_clear(&plan);
    clear_world(&w);
}

int main(void)
{
    test_small();
    test_order();
    test_around_what_is_done();
    test_405b();
    return CHECK_DONE();
}
