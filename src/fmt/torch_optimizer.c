#include "fmt/torch_optimizer.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "fmt/torch_settings.h"

#define SAMPLE 8 /* elements of a master that are held against its weight */
#define STEP "optimizer.optimizer.state.common_step"
#define GROUPS "optimizer.optimizer.param_groups"
#define SCHEDULER "opt_param_scheduler"

/* Which parameters a group has (core/optimizer/__init__.py, get_standard_config_overrides). */
typedef enum group_kind { GROUP_ALL, GROUP_DECAYS, GROUP_BARE } group_kind;

typedef struct walk {
    mgr_torch_archive *t;
    size_t end;   /* of the model's tensors in the catalogue */
    bool chained; /* experts have an optimizer of their own, the second */
    bool experts; /* it is that one */
    const mgr_node *states;
    size_t taken; /* states, so far */
    uint32_t at;  /* the next tensor to look at */
} walk;

static int refuse(mgr_torch_archive *t, const char *what, const char *name)
{
    mgr_fail(t->err, MGR_ERR_UNSUPPORTED, "the optimizer of '%s' %s%s%s%s", t->reader->name, what,
             name ? " '" : "", name ? name : "", name ? "'" : "");
    return mgr_hint(t->err, "leave out target.optimizer: weights alone are written");
}

static int refuse_distributed(mgr_torch_archive *t)
{
    mgr_fail(t->err, MGR_ERR_UNSUPPORTED,
             "the optimizer of '%s' is a distributed one, whose buckets lie in distrib_optim.pt",
             t->reader->name);
    return mgr_hint(t->err, "save it as torch_dist by parameters in the trainer: "
                            "--ckpt-convert-format torch_dist --dist-ckpt-optim-fully-reshardable");
}

/* ---- whose turn it is ---- */

static bool is_buffer(const char *name)
{
    return mgr_has_suffix(name, ".expert_bias");
}

static bool is_in(const walk *w, const mgr_stored *s, group_kind kind)
{
    const bool expert = strstr(s->name, ".mlp.experts.") != NULL;
    const bool bare = s->ndim == 1 || mgr_has_suffix(s->name, ".bias");
    return !is_buffer(s->name) && (!w->chained || expert == w->experts) &&
           (kind == GROUP_ALL || bare == (kind == GROUP_BARE));
}

/* The next tensor of a group; MGR_NONE behind the last. */
static uint32_t next_of(walk *w, group_kind kind)
{
    while (w->at < w->end) {
        const uint32_t idx = w->at++;
        if (is_in(w, &w->t->cat->stored[idx], kind))
            return idx;
    }
    return MGR_NONE;
}

/* ---- what it has ---- */

static bool same_shape(const mgr_stored *a, const mgr_stored *b)
{
    return a->ndim == b->ndim && memcmp(a->shape, b->shape, a->ndim * sizeof a->shape[0]) == 0;
}

/* One plane of tensor `idx`. */
static int take_plane(walk *w, uint32_t idx, const char *plane, const mgr_node *node)
{
    mgr_torch_archive *const t = w->t;
    const char *const name = t->cat->stored[idx].name;
    const size_t before = t->cat->n_stored;
    char what[64];
    snprintf(what, sizeof what, "has no %s of", plane);
    if (!node)
        return refuse(t, what, name);
    t->name.len = 0;
    MGR_TRY(mgr_buf_fmt(&t->name, t->err, MGR_TORCH_PLANE "%s.%s", plane, name));
    MGR_TRY(mgr_torch_archive_leaf(t, node));
    if (t->cat->n_stored == before || t->cat->stored[before].dtype != MGR_DTYPE_F32 ||
        !same_shape(&t->cat->stored[before], &t->cat->stored[idx]))
        return refuse(t, "has its parameters in another order or of other shapes: one does not fit",
                      name);
    return MGR_OK;
}

static int read_elements(mgr_torch_archive *t, const mgr_stored *s, size_t n, void *out)
{
    return mgr_reader_read(t->reader, s->offset - t->reader->base, out,
                           n * mgr_dtype_size(s->dtype), t->err);
}

/* Both are there behind each step: a weight is its master, rounded. */
static int compare_master(walk *w, uint32_t idx, uint32_t master)
{
    mgr_torch_archive *const t = w->t;
    const mgr_stored weight = t->cat->stored[idx], m = t->cat->stored[master];
    const uint32_t last = weight.ndim ? weight.ndim - 1 : 0;
    const size_t n = !weight.ndim ? 1 : weight.shape[last] < SAMPLE ? weight.shape[last] : SAMPLE;
    uint16_t halves[SAMPLE];
    float full[SAMPLE];
    if (mgr_stored_bytes(&m) == 0 || weight.stride[last] != 1 || m.stride[last] != 1)
        return MGR_OK;
    MGR_TRY(read_elements(t, &weight, n, halves));
    MGR_TRY(read_elements(t, &m, n, full));
    for (size_t i = 0; i < n; i++)
        if (halves[i] !=
            (weight.dtype == MGR_DTYPE_BF16 ? mgr_f32_to_bf16(full[i]) : mgr_f32_to_f16(full[i])))
            return refuse(t, "has its parameters in another order: a master is not that of",
                          weight.name);
    return MGR_OK;
}

static const mgr_node *state_of(const walk *w, const mgr_node *id)
{
    int64_t wanted, key;
    if (!mgr_node_int(id, &wanted))
        return NULL;
    const size_t n = mgr_node_n_pairs(w->states);
    for (size_t k = 0; k < n; k++) { /* they stand in this order */
        const size_t i = (w->taken + k) % n;
        if (mgr_node_int(mgr_node_key(w->states, i), &key) && key == wanted)
            return mgr_node_value(w->states, i);
    }
    return NULL;
}

static bool is_half(mgr_dtype dtype)
{
    return dtype == MGR_DTYPE_BF16 || dtype == MGR_DTYPE_F16;
}

static int take_parameter(walk *w, uint32_t idx, const mgr_node *id, const mgr_node *const *masters,
                          size_t n_masters, size_t *used)
{
    const mgr_node *const state = state_of(w, id);
    w->taken++;
    MGR_TRY(take_plane(w, idx, MGR_TORCH_EXP_AVG, mgr_node_get(state, "exp_avg")));
    MGR_TRY(take_plane(w, idx, MGR_TORCH_EXP_AVG_SQ, mgr_node_get(state, "exp_avg_sq")));
    if (!is_half(w->t->cat->stored[idx].dtype))
        return MGR_OK;
    const mgr_node *const master = *used < n_masters ? masters[(*used)++] : NULL;
    MGR_TRY(take_plane(w, idx, MGR_TORCH_MASTER, master));
    return compare_master(w, idx, (uint32_t)w->t->cat->n_stored - 1);
}

/* ---- groups ---- */

static size_t count_params(const mgr_node *group)
{
    mgr_node *const *ids;
    size_t n = 0;
    return mgr_node_elements(mgr_node_get(group, "params"), &ids, &n) ? n : 0;
}

static group_kind kind_of(const mgr_node *group, size_t filled)
{
    const mgr_node *const mult = mgr_node_get(group, "wd_mult");
    const mgr_node *const nemo = mgr_node_get(group, "pre_wd_mult");
    const mgr_node *const node = mult ? mult : nemo;
    const bool zero = node && (node->kind == MGR_NODE_REAL  ? node->u.r == 0
                               : node->kind == MGR_NODE_INT ? node->u.i == 0
                                                            : false);
    return filled < 2 ? GROUP_ALL : zero ? GROUP_BARE : GROUP_DECAYS;
}

static int take_group(walk *w, const mgr_node *group, group_kind kind, const mgr_node *masters)
{
    mgr_node *const *ids, *const *of_group = NULL;
    size_t n = 0, n_masters = 0, used = 0;
    if (!mgr_node_elements(mgr_node_get(group, "params"), &ids, &n) || n == 0)
        return MGR_OK;
    (void)mgr_node_elements(masters, &of_group, &n_masters);
    w->at = (uint32_t)w->t->first;
    for (size_t k = 0; k < n; k++) {
        const uint32_t idx = next_of(w, kind);
        if (idx == MGR_NONE)
            return refuse(w->t, "has more parameters than the model", NULL);
        MGR_TRY(
            take_parameter(w, idx, ids[k], (const mgr_node *const *)of_group, n_masters, &used));
    }
    const uint32_t left = next_of(w, kind);
    if (left != MGR_NONE)
        return refuse(w->t, "has no state of", w->t->cat->stored[left].name);
    return used == n_masters ? MGR_OK : refuse(w->t, "has more masters than parameters", NULL);
}

static int take_groups(walk *w, const mgr_node *groups, const mgr_node *masters)
{
    mgr_node *const *items, *const *lists = NULL;
    size_t n, n_lists = 0, filled = 0;
    if (!mgr_node_elements(groups, &items, &n))
        return refuse(w->t, "has no param_groups", NULL);
    (void)mgr_node_elements(masters, &lists, &n_lists);
    for (size_t g = 0; g < n; g++)
        filled += count_params(items[g]) > 0;
    if (filled > 2)
        return refuse(w->t, "has more than two groups of parameters: whose they are is not known",
                      NULL);
    for (size_t g = 0; g < n; g++)
        MGR_TRY(take_group(w, items[g], kind_of(items[g], filled), g < n_lists ? lists[g] : NULL));
    return MGR_OK;
}

/* ---- settings ---- */

static int take_step(mgr_torch_archive *t, const mgr_node *step)
{
    if (!step)
        return MGR_OK;
    t->name.len = 0;
    MGR_TRY(mgr_buf_text(&t->name, STEP, t->err));
    return mgr_torch_attr_is_scalar(step) ? mgr_torch_attr_add(t, t->name.data, step)
                                          : mgr_torch_number_add(t, step);
}

/* torch's Adam counts with each parameter, Transformer Engine's in the groups. */
static int take_settings(walk *w, const mgr_node *groups, const mgr_node *scheduler)
{
    mgr_torch_archive *const t = w->t;
    mgr_node *const *items;
    size_t n = 0;
    const mgr_node *const step = mgr_node_get(mgr_node_value(w->states, 0), "step");
    (void)mgr_node_elements(groups, &items, &n);
    MGR_TRY(take_step(t, step ? step : n ? mgr_node_get(items[0], "step") : NULL));
    t->name.len = 0;
    MGR_TRY(mgr_buf_text(&t->name, GROUPS, t->err));
    MGR_TRY(mgr_torch_settings_add(t, groups));
    t->name.len = 0;
    MGR_TRY(mgr_buf_text(&t->name, SCHEDULER, t->err));
    return scheduler ? mgr_torch_settings_add(t, scheduler) : MGR_OK;
}

/* ---- all ---- */

/* {"optimizer": torch's dict, "fp32_from_fp16_params": [[tensor]]}, or torch's dict alone. */
static int take_one(walk *w, const mgr_node *node, const mgr_node *scheduler, bool settings)
{
    const mgr_node *const inner = mgr_node_get(node, "optimizer");
    const mgr_node *const torch = inner ? inner : node;
    const mgr_node *const now = mgr_node_get(node, "fp32_from_fp16_params");
    const mgr_node *const masters = now ? now : mgr_node_get(node, "fp32_from_fp16");
    const mgr_node *const groups = mgr_node_get(torch, "param_groups");
    w->states = mgr_node_get(torch, "state");
    w->taken = 0;
    if (inner && !masters)
        return refuse_distributed(w->t);
    if (!mgr_node_is_dict(w->states))
        return refuse(w->t, "has no dict 'state'", NULL);
    MGR_TRY(take_groups(w, groups, masters));
    return settings ? take_settings(w, groups, scheduler) : MGR_OK;
}

int mgr_torch_optimizer_add(mgr_torch_archive *t, const mgr_node *root, bool settings)
{
    const mgr_node *const node = mgr_node_get(root, "optimizer");
    const mgr_node *const scheduler = mgr_node_get(root, SCHEDULER);
    walk w = {.t = t, .end = t->cat->n_stored};
    mgr_node *const *items;
    size_t n;
    if (!node)
        return MGR_OK; /* what is missing is missed by who asks for it */
    if (node->kind != MGR_NODE_LIST || !mgr_node_elements(node, &items, &n))
        return take_one(&w, node, scheduler, settings);
    if (n != 2)
        return refuse(t, "is not one, or two, of which the second is that of experts", NULL);
    w.chained = true;
    MGR_TRY(take_one(&w, items[0], scheduler, settings));
    w.experts = true;
    return take_one(&w, items[1], NULL, false);
}
