/* The experts that config.json and the tensors' names and shapes tell of. */
#include <stdio.h>
#include <string.h>

#include "core/str.h"
#include "model/huggingface_derive.h"

static uint64_t ffn_of(const mgr_hf_evidence *ev)
{
    const mgr_stored *const fused = mgr_hf_first_of(ev, ev->hf->ffn, MGR_ROLE_GATE, 3);
    return mgr_huggingface_is_fused(ev->hf->ffn) ? (fused ? fused->shape[1] / 2 : 0)
                                                 : mgr_hf_rows_of(ev, MGR_ROLE_GATE);
}

/* How the FFNs are stored: experts by the names that the first layer with experts has. */
mgr_hf_ffn mgr_hf_find_ffn(const mgr_hf_evidence *ev)
{
    const mgr_hf_ffn memory = mgr_huggingface_memory(ev->kind);
    return ev->kind->count && mgr_hf_first_of(ev, memory, MGR_ROLE_GATE, 3) ? memory
                                                                            : ev->kind->ffn;
}

/* A block of rows of an expert must be one of the file, too. */
int mgr_hf_check_fused(const mgr_hf_evidence *ev, const mgr_model *m, mgr_err *err)
{
    const mgr_stored *const s = mgr_hf_first_of(ev, ev->hf->ffn, MGR_ROLE_GATE, 3);
    char shown[MGR_HF_SHOWN];
    if (!s || !mgr_huggingface_is_fused(ev->hf->ffn) || s->shape[2] == m->hidden ||
        s->shape[1] != m->hidden)
        return MGR_OK;
    return mgr_fail(err, MGR_ERR_UNSUPPORTED,
                    "tensor '%s' in '%s' is transposed, [experts, hidden size, gate and up], which "
                    "is not supported",
                    mgr_printable(s->name, strlen(s->name), shown, sizeof shown),
                    ev->cat->files[s->file].path);
}

/* Is `layer` in the list mlp_only_layers? */
static bool is_listed(const mgr_hf_evidence *ev, uint64_t layer)
{
    const mgr_attr *const list = mgr_hf_arg(ev, "mlp_only_layers");
    for (int64_t i = 0; list && i < list->i; i++) {
        char name[64];
        snprintf(name, sizeof name, "mlp_only_layers.%lld", (long long)i);
        const mgr_attr *const a = mgr_hf_arg(ev, name);
        if (a && a->kind == MGR_ATTR_INT && a->i >= 0 && (uint64_t)a->i == layer)
            return true;
    }
    return false;
}

/* What the keys of a class say of the layers with experts. */
typedef struct expert_places {
    uint64_t step, first, last;
} expert_places;

static int find_places(const mgr_hf_evidence *ev, const mgr_model *m, expert_places *out,
                       mgr_err *err)
{
    const mgr_attr *const end = mgr_hf_arg(ev, "moe_layer_end_index");
    const bool to_the_last = !end || (end->kind == MGR_ATTR_INT && end->i == -1);
    *out = (expert_places){.step = 1, .last = m->layers};
    if (ev->kind->keys & MGR_HF_KEY_GROUPED)
        return mgr_hf_number(ev, "first_k_dense_replace", ev->kind->first_dense, &out->first, err);
    if (ev->kind->keys & MGR_HF_KEY_SPARSE_STEP)
        return mgr_hf_whole(ev, (mgr_hf_size){"decoder_sparse_step", "", 1, 0, 0}, &out->step, err);
    MGR_TRY(mgr_hf_whole(ev, (mgr_hf_size){"moe_layer_interval", "", 1, 0, 0}, &out->step, err));
    MGR_TRY(mgr_hf_number(ev, "moe_layer_start_index", 1, &out->first, err));
    return to_the_last ? MGR_OK : mgr_hf_number(ev, "moe_layer_end_index", 0, &out->last, err);
}

/* Which layers have experts, as the decoder layers of the classes decide; and the first of either
 * kind. */
int mgr_hf_expert_layers(mgr_hf_evidence *ev, mgr_model *m, mgr_err *err)
{
    const bool listed = ev->kind->keys & MGR_HF_KEY_SPARSE_STEP;
    expert_places at;
    if (!listed && !(ev->kind->keys & (MGR_HF_KEY_GROUPED | MGR_HF_KEY_ERNIE)))
        return MGR_OK;
    MGR_TRY(find_places(ev, m, &at, err));
    ev->dense_layer = ev->moe_layer = MGR_NONE;
    for (uint64_t layer = m->layers; layer-- > 0 && m->layers <= MGR_MAX_LAYERS;) {
        const bool dense = layer < at.first || layer > at.last || (layer + 1) % at.step != 0 ||
                           (listed && is_listed(ev, layer));
        *(dense ? &ev->dense_layer : &ev->moe_layer) = (uint32_t)layer;
        if (dense)
            mgr_model_set_dense(m, layer);
    }
    if (ev->moe_layer != MGR_NONE)
        return MGR_OK;
    return mgr_fail(err, MGR_ERR_UNSUPPORTED, "'%s' gives no layer experts", mgr_hf_path(ev));
}

/* The width of the dense FFNs; experts have it, too, but for those of Qwen. */
int mgr_hf_ffn_sizes(const mgr_hf_evidence *ev, mgr_model *m, mgr_err *err)
{
    const bool apart = ev->kind->expert_ffn > 0;
    const mgr_stored *const dense = mgr_hf_first_of(ev, MGR_HF_DENSE, MGR_ROLE_GATE, 2);
    const uint64_t width = !apart ? ffn_of(ev) : dense ? dense->shape[0] : 0;
    MGR_TRY(mgr_hf_whole(ev,
                         (mgr_hf_size){"intermediate_size", "model.ffn_hidden_size", 0,
                                       ev->config->model.ffn_hidden_size, width},
                         &m->ffn, err));
    return apart ? mgr_hf_whole(ev,
                                (mgr_hf_size){"moe_intermediate_size", "", ev->kind->expert_ffn, 0,
                                              ffn_of(ev)},
                                &m->expert_ffn, err)
                 : MGR_OK;
}

/* The number of experts has several names, and some classes write it twice. */
static int expert_count(const mgr_hf_evidence *ev, mgr_model *m, mgr_err *err)
{
    static const char *const names[] = {"num_local_experts", "num_experts", "n_routed_experts",
                                        "moe_num_experts"};
    const uint64_t rows = mgr_hf_rows_of(ev, MGR_ROLE_ROUTER);
    bool said = false;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (!mgr_hf_arg(ev, names[i]))
            continue;
        said = true;
        MGR_TRY(mgr_hf_whole(ev, (mgr_hf_size){names[i], "", 0, 0, rows}, &m->experts, err));
    }
    return said ? MGR_OK
                : mgr_hf_whole(ev, (mgr_hf_size){names[0], "", ev->kind->experts, 0, rows},
                               &m->experts, err);
}

/* Glm4MoeTopkRouter: a group is as good as its two best experts. One group is none. */
static int grouped_router(const mgr_hf_evidence *ev, mgr_model *m, mgr_err *err)
{
    mgr_router_kind *const r = &m->router;
    uint64_t groups, top;
    double scale;
    MGR_TRY(mgr_hf_whole(ev, (mgr_hf_size){"n_group", "", 1, 0, 0}, &groups, err));
    MGR_TRY(mgr_hf_whole(ev, (mgr_hf_size){"topk_group", "", 1, 0, 0}, &top, err));
    MGR_TRY(mgr_hf_real(ev, "routed_scaling_factor", 1, &scale, err));
    r->scale = scale < 1 || scale > 1 ? scale : 0;
    if (m->experts % groups != 0 || m->experts / groups < 2 || top > groups ||
        m->top_k > m->experts / groups * top)
        return mgr_fail(err, MGR_ERR_FORMAT,
                        "'%s' chooses %llu of %llu experts from %llu of %llu groups, which no "
                        "router can",
                        mgr_hf_path(ev), (unsigned long long)m->top_k,
                        (unsigned long long)m->experts, (unsigned long long)top,
                        (unsigned long long)groups);
    if (top < groups) {
        r->groups = groups;
        r->top_groups = top;
        r->group_best = 2;
    }
    return MGR_OK;
}

static int router(const mgr_hf_evidence *ev, mgr_model *m, mgr_err *err)
{
    const mgr_hf_family *const f = ev->kind;
    bool normalised = true;
    if (f->keys & MGR_HF_KEY_NORM_TOPK)
        MGR_TRY(mgr_hf_flag_or(ev, "norm_topk_prob", f->normalises, &normalised, err));
    m->router.unnormalised = !normalised;
    m->router.score = f->must & MGR_HF_HAS_SIGMOID ? MGR_SCORE_SIGMOID : MGR_SCORE_SOFTMAX;
    m->router.selection_bias = f->must & MGR_HF_HAS_SELECTION;
    return f->keys & MGR_HF_KEY_GROUPED ? grouped_router(ev, m, err) : MGR_OK;
}

/* The shared expert: of a width of its own, or as wide as so many routed ones. Without neurons it
 * is none. */
static int shared_sizes(const mgr_hf_evidence *ev, mgr_model *m, mgr_err *err)
{
    const mgr_hf_family *const f = ev->kind;
    const char *const count = f->keys & MGR_HF_KEY_GROUPED ? "n_shared_experts"
                              : f->keys & MGR_HF_KEY_ERNIE ? "moe_num_shared_experts"
                                                           : NULL;
    uint64_t n = 0;
    m->shared_switch = f->must & MGR_HF_HAS_SWITCH;
    if (f->shared_key)
        return mgr_hf_number(ev, f->shared_key, f->shared_ffn, &m->shared_ffn, err);
    if (count)
        MGR_TRY(mgr_hf_number(ev, count, f->keys & MGR_HF_KEY_ERNIE ? 2 : 1, &n, err));
    m->shared_ffn = n * m->expert_ffn;
    return MGR_OK;
}

/* Its number for each token has two names. */
static int experts_per_token(const mgr_hf_evidence *ev, mgr_model *m, mgr_err *err)
{
    const bool ernie = ev->kind->keys & MGR_HF_KEY_ERNIE;
    const char *const name = ernie && mgr_hf_arg(ev, "moe_k") ? "moe_k" : "num_experts_per_tok";
    return mgr_hf_whole(ev,
                        (mgr_hf_size){name, "model.moe_router_topk", ev->kind->top_k,
                                      ev->config->model.moe_router_topk, 0},
                        &m->top_k, err);
}

int mgr_hf_expert_sizes(const mgr_hf_evidence *ev, mgr_model *m, mgr_err *err)
{
    if (!ev->kind->count)
        return MGR_OK;
    MGR_TRY(expert_count(ev, m, err));
    MGR_TRY(experts_per_token(ev, m, err));
    if (m->top_k > m->experts)
        return mgr_fail(err, MGR_ERR_FORMAT, "'%s' uses %llu of %llu experts", mgr_hf_path(ev),
                        (unsigned long long)m->top_k, (unsigned long long)m->experts);
    MGR_TRY(router(ev, m, err));
    return shared_sizes(ev, m, err);
}
