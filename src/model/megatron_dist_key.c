#include "model/megatron_dist_key.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "model/megatron_dist.h"
#include "model/megatron_hybrid.h"
#include "model/megatron_kin.h"

/* ---- names ---- */

int mgr_megatron_dist_name(mgr_buf *out, const char *key, uint32_t ndim, const uint64_t *offset,
                           mgr_err *err)
{
    MGR_TRY(mgr_buf_text(out, key, err));
    for (uint32_t d = 0; d < ndim; d++)
        MGR_TRY(mgr_buf_fmt(out, err, "%c%" PRIu64, d ? ',' : '@', offset[d]));
    return ndim ? MGR_OK : mgr_buf_text(out, "@", err);
}

bool mgr_megatron_dist_parse(const mgr_stored *chunk, size_t *key_len, uint64_t *offset)
{
    const char *at = strrchr(chunk->name, '@');
    if (!at)
        return false;
    *key_len = (size_t)(at - chunk->name);
    for (uint32_t d = 0; d < chunk->ndim; d++) {
        char *end;
        offset[d] = strtoull(at + 1, &end, 10);
        if (end == at + 1 || *end != (d + 1 < chunk->ndim ? ',' : '\0'))
            return false;
        at = end;
    }
    return true;
}

/* A dense local model renames its norms on saving, and so does a mixture of experts, although its
 * norm is not that of a linear (gpt_layer_specs.py: sharded_state_dict_keys_map). */
const mgr_dist_key mgr_dist_keys[MGR_DIST_KEYS] = {
    {"embedding.word_embeddings.weight", MGR_DIST_TOP, MGR_DIST_VOCABULARY, MGR_ROLE_EMBEDDING,
     MGR_DIST_ALWAYS},
    {"embedding.position_embeddings.weight", MGR_DIST_TOP, MGR_DIST_PLAIN, MGR_ROLE_POSITIONS,
     MGR_DIST_ALWAYS},
    {"self_attention.linear_qkv.layer_norm_weight", MGR_DIST_LAYER, MGR_DIST_PLAIN,
     MGR_ROLE_ATTN_NORM, MGR_DIST_ALWAYS},
    {"self_attention.linear_qkv.layer_norm_bias", MGR_DIST_LAYER, MGR_DIST_PLAIN,
     MGR_ROLE_ATTN_NORM_BIAS, MGR_DIST_ALWAYS},
    {"input_layernorm.weight", MGR_DIST_LAYER, MGR_DIST_PLAIN, MGR_ROLE_ATTN_NORM, MGR_DIST_NEVER},
    {"input_layernorm.bias", MGR_DIST_LAYER, MGR_DIST_PLAIN, MGR_ROLE_ATTN_NORM_BIAS,
     MGR_DIST_NEVER},
    {"self_attention.linear_qkv.weight", MGR_DIST_LAYER, MGR_DIST_FUSED_QKV, MGR_ROLE_Q,
     MGR_DIST_ALWAYS},
    {"self_attention.linear_qkv.bias", MGR_DIST_LAYER, MGR_DIST_FUSED_QKV, MGR_ROLE_Q_BIAS,
     MGR_DIST_ALWAYS},
    {"self_attention.q_layernorm.weight", MGR_DIST_LAYER, MGR_DIST_PLAIN, MGR_ROLE_Q_NORM,
     MGR_DIST_ALWAYS},
    {"self_attention.q_layernorm.bias", MGR_DIST_LAYER, MGR_DIST_PLAIN, MGR_ROLE_Q_NORM_BIAS,
     MGR_DIST_ALWAYS},
    {"self_attention.k_layernorm.weight", MGR_DIST_LAYER, MGR_DIST_PLAIN, MGR_ROLE_K_NORM,
     MGR_DIST_ALWAYS},
    {"self_attention.k_layernorm.bias", MGR_DIST_LAYER, MGR_DIST_PLAIN, MGR_ROLE_K_NORM_BIAS,
     MGR_DIST_ALWAYS},
    {"self_attention.linear_proj.weight", MGR_DIST_LAYER, MGR_DIST_PLAIN, MGR_ROLE_O,
     MGR_DIST_ALWAYS},
    {"self_attention.linear_proj.bias", MGR_DIST_LAYER, MGR_DIST_PLAIN, MGR_ROLE_O_BIAS,
     MGR_DIST_ALWAYS},
    {"mlp.linear_fc1.layer_norm_weight", MGR_DIST_LAYER, MGR_DIST_PLAIN, MGR_ROLE_MLP_NORM,
     MGR_DIST_WITH_FC1},
    {"mlp.linear_fc1.layer_norm_bias", MGR_DIST_LAYER, MGR_DIST_PLAIN, MGR_ROLE_MLP_NORM_BIAS,
     MGR_DIST_WITH_FC1},
    {"pre_mlp_layernorm.weight", MGR_DIST_LAYER, MGR_DIST_PLAIN, MGR_ROLE_MLP_NORM,
     MGR_DIST_BY_ITSELF},
    {"pre_mlp_layernorm.bias", MGR_DIST_LAYER, MGR_DIST_PLAIN, MGR_ROLE_MLP_NORM_BIAS,
     MGR_DIST_BY_ITSELF},
    {"mlp.router.weight", MGR_DIST_LAYER, MGR_DIST_PLAIN, MGR_ROLE_ROUTER, MGR_DIST_ALWAYS},
    {"mlp.router.bias", MGR_DIST_LAYER, MGR_DIST_PLAIN, MGR_ROLE_ROUTER_BIAS, MGR_DIST_ALWAYS},
    {"mlp.router.expert_bias", MGR_DIST_LAYER, MGR_DIST_PLAIN, MGR_ROLE_SELECTION_BIAS,
     MGR_DIST_ALWAYS},
    {"mlp.shared_experts.linear_fc1.weight", MGR_DIST_LAYER, MGR_DIST_GATE_UP, MGR_ROLE_SHARED_GATE,
     MGR_DIST_ALWAYS},
    {"mlp.shared_experts.linear_fc1.weight_w", MGR_DIST_LAYER, MGR_DIST_PLAIN, MGR_ROLE_SHARED_GATE,
     MGR_DIST_NEVER},
    {"mlp.shared_experts.linear_fc1.weight_v", MGR_DIST_LAYER, MGR_DIST_PLAIN, MGR_ROLE_SHARED_UP,
     MGR_DIST_NEVER},
    {"mlp.shared_experts.linear_fc2.weight", MGR_DIST_LAYER, MGR_DIST_PLAIN, MGR_ROLE_SHARED_DOWN,
     MGR_DIST_ALWAYS},
    {"mlp.shared_experts.gate_weight", MGR_DIST_LAYER, MGR_DIST_PLAIN, MGR_ROLE_SHARED_SWITCH,
     MGR_DIST_ALWAYS},
    {"linear_fc1.weight", MGR_DIST_INNER, MGR_DIST_GATE_UP, MGR_ROLE_GATE, MGR_DIST_ALWAYS},
    {"linear_fc1.bias", MGR_DIST_INNER, MGR_DIST_GATE_UP, MGR_ROLE_GATE_BIAS, MGR_DIST_ALWAYS},
    {"linear_fc1.weight_w", MGR_DIST_INNER, MGR_DIST_PLAIN, MGR_ROLE_GATE,
     MGR_DIST_NEVER}, /* singleton_local_shards */
    {"linear_fc1.weight_v", MGR_DIST_INNER, MGR_DIST_PLAIN, MGR_ROLE_UP, MGR_DIST_NEVER},
    {"linear_fc1.bias_w", MGR_DIST_INNER, MGR_DIST_PLAIN, MGR_ROLE_GATE_BIAS, MGR_DIST_NEVER},
    {"linear_fc1.bias_v", MGR_DIST_INNER, MGR_DIST_PLAIN, MGR_ROLE_UP_BIAS, MGR_DIST_NEVER},
    {"linear_fc2.weight", MGR_DIST_INNER, MGR_DIST_PLAIN, MGR_ROLE_DOWN, MGR_DIST_ALWAYS},
    {"linear_fc2.bias", MGR_DIST_INNER, MGR_DIST_PLAIN, MGR_ROLE_DOWN_BIAS, MGR_DIST_ALWAYS},
    {"decoder.final_layernorm.weight", MGR_DIST_TOP, MGR_DIST_PLAIN, MGR_ROLE_FINAL_NORM,
     MGR_DIST_OF_GPT},
    {"decoder.final_layernorm.bias", MGR_DIST_TOP, MGR_DIST_PLAIN, MGR_ROLE_FINAL_NORM_BIAS,
     MGR_DIST_OF_GPT},
    {"decoder.final_norm.weight", MGR_DIST_TOP, MGR_DIST_PLAIN, MGR_ROLE_FINAL_NORM,
     MGR_DIST_OF_HYBRID},
    {"decoder.final_norm.bias", MGR_DIST_TOP, MGR_DIST_PLAIN, MGR_ROLE_FINAL_NORM_BIAS,
     MGR_DIST_OF_HYBRID},
    {"output_layer.weight", MGR_DIST_TOP, MGR_DIST_VOCABULARY, MGR_ROLE_LM_HEAD, MGR_DIST_ALWAYS},
};

_Static_assert(MGR_ROLE_K == MGR_ROLE_Q + 1 && MGR_ROLE_V == MGR_ROLE_Q + 2 &&
                   MGR_ROLE_K_BIAS == MGR_ROLE_Q_BIAS + 1 &&
                   MGR_ROLE_V_BIAS == MGR_ROLE_Q_BIAS + 2 && MGR_ROLE_UP == MGR_ROLE_GATE + 1 &&
                   MGR_ROLE_UP_BIAS == MGR_ROLE_GATE_BIAS + 1 &&
                   MGR_ROLE_SHARED_UP == MGR_ROLE_SHARED_GATE + 1,
               "the roles of a form follow one another");

static const char *skip_prefix(const char *text, const char *prefix, size_t *len)
{
    const size_t n = strlen(prefix);
    if (*len < n || strncmp(text, prefix, n) != 0)
        return NULL;
    *len -= n;
    return text + n;
}

/* NeMo puts "model." or "module." before the keys, FSDP both. */
const char *mgr_dist_skip_wrappers(const char *key, size_t *len)
{
    for (;;) {
        const char *next = skip_prefix(key, "model.", len);
        if (!next)
            next = skip_prefix(key, "module.", len);
        if (!next)
            return key;
        key = next;
    }
}

static const mgr_dist_key *find_key(const char *name, size_t len, mgr_dist_place place)
{
    for (size_t i = 0; i < MGR_DIST_KEYS; i++)
        if (mgr_dist_keys[i].place == place && strlen(mgr_dist_keys[i].name) == len &&
            strncmp(mgr_dist_keys[i].name, name, len) == 0)
            return &mgr_dist_keys[i];
    return NULL;
}

/* "<i>." in a key, or an axis of the tensor; NULL for a number without a dot behind it. */
static const char *skip_number(const char *key, size_t *len, bool *axis, uint64_t *number)
{
    char *end;
    *axis = *key < '0' || *key > '9';
    if (*axis)
        return key;
    *number = strtoull(key, &end, 10);
    const size_t used = (size_t)(end - key) + 1;
    if (*end != '.' || used > *len)
        return NULL;
    *len -= used;
    return end + 1;
}

/* What is behind "decoder.layers.". */
static const char *skip_layer(const char *key, size_t *len, mgr_dist_piece *p, bool *expert_axis)
{
    p->layers = 1;
    key = skip_number(key, len, &p->stacked, &p->layer);
    const char *const experts = key ? skip_prefix(key, MGR_DIST_EXPERTS, len) : NULL;
    if (experts) {
        p->experts = 1;
        return skip_number(experts, len, expert_axis, &p->expert);
    }
    return key;
}

/* core/optimizer: fully_reshardable in distrib_optimizer.py, Float16OptimizerWithFloat16Params in
 * optimizer.py; both have the shapes and cuts of the weights. */
static const char *const prefixes[MGR_PLANE_COUNT][2] = {
    /* [distributed] */
    [MGR_PLANE_WEIGHT] = {"", ""},
    [MGR_PLANE_MASTER] = {"optimizer.state.fp32_param.", "optimizer.state.param."},
    [MGR_PLANE_EXP_AVG] = {"optimizer.state.exp_avg.", "optimizer.state.exp_avg."},
    [MGR_PLANE_EXP_AVG_SQ] = {"optimizer.state.exp_avg_sq.", "optimizer.state.exp_avg_sq."},
};

const char *mgr_dist_prefix(mgr_plane plane, bool distributed)
{
    return prefixes[plane][distributed];
}

static const char *skip_plane(const char *key, size_t *len, mgr_plane *plane)
{
    for (int p = MGR_PLANE_WEIGHT + 1; p < MGR_PLANE_COUNT; p++)
        for (int d = 0; d < 2; d++) {
            const char *const rest = skip_prefix(key, prefixes[p][d], len);
            if (!rest)
                continue;
            *plane = (mgr_plane)p;
            return rest;
        }
    return key;
}

mgr_plane mgr_megatron_dist_plane(const char *name)
{
    size_t len = strlen(name);
    mgr_plane plane = MGR_PLANE_WEIGHT;
    (void)skip_plane(name, &len, &plane);
    return plane;
}

static const mgr_dist_key *read_key(const mgr_stored *s, size_t len, mgr_dist_family family,
                                    mgr_dist_piece *p, bool *expert_axis)
{
    const char *key = mgr_dist_skip_wrappers(skip_plane(s->name, &len, &p->plane), &len);
    const char *below = skip_prefix(key, MGR_MEGATRON_LAYERS, &len);
    if (!below && family == MGR_DIST_FAMILY_KIN) {
        below = skip_prefix(key, mgr_kin_layers(MGR_STACK_ENCODER), &len);
        p->stack = MGR_STACK_ENCODER;
    }
    if (!below)
        return find_key(key, len, MGR_DIST_TOP);
    key = skip_layer(below, &len, p, expert_axis);
    if (!key)
        return NULL;
    if (p->experts)
        return find_key(key, len, MGR_DIST_INNER);
    const mgr_dist_key *const found = find_key(key, len, MGR_DIST_LAYER);
    const char *const inner = found ? NULL : skip_prefix(key, MGR_DIST_FFN, &len);
    return inner ? find_key(inner, len, MGR_DIST_INNER) : found;
}

/* Is the range within what the format can have at all? The model's own sizes come later. */
static bool within(uint64_t first, uint64_t n, uint64_t most)
{
    return first < most && n <= most - first;
}

/* From a HybridModel's layer to ours; false where the key is of the other half. */
static bool leave_hybrid(mgr_dist_piece *p)
{
    const uint64_t theirs = p->layer;
    p->layer /= MGR_HYBRID_LAYERS;
    return !p->stacked && mgr_megatron_hybrid_layer(p->key->role, p->layer) == theirs;
}

bool mgr_dist_is_of_ffns(const mgr_dist_piece *p)
{
    const mgr_role role = p->key->role;
    return p->key->place == MGR_DIST_INNER || mgr_role_is_shared(role) || role == MGR_ROLE_ROUTER ||
           role == MGR_ROLE_ROUTER_BIAS || role == MGR_ROLE_SELECTION_BIAS ||
           role == MGR_ROLE_SHARED_SWITCH;
}

bool mgr_dist_read_piece(const mgr_stored *s, mgr_dist_family family, mgr_dist_piece *p)
{
    uint64_t offset[MGR_MAX_NDIM] = {0};
    size_t len;
    bool expert_axis = false;
    *p = (mgr_dist_piece){.stored = s, .cols = 1};
    if (!mgr_megatron_dist_parse(s, &len, offset))
        return false;
    p->key = read_key(s, len, family, p, &expert_axis);
    const uint32_t lead = (p->stacked ? 1u : 0u) + (expert_axis ? 1u : 0u);
    if (!p->key || s->ndim < lead + 1 || s->ndim > lead + 2)
        return false;
    if (family == MGR_DIST_FAMILY_HYBRID && p->key->place != MGR_DIST_TOP && !leave_hybrid(p))
        return false;
    if (p->stacked) {
        p->layer = offset[0];
        p->layers = s->shape[0];
    }
    if (expert_axis) {
        p->expert = offset[lead - 1];
        p->experts = s->shape[lead - 1];
    }
    p->ndim = s->ndim - lead;
    p->row = offset[lead];
    p->rows = s->shape[lead];
    if (p->ndim == 2) {
        p->col = offset[lead + 1];
        p->cols = s->shape[lead + 1];
    }
    return within(p->layer, p->layers, MGR_MAX_LAYERS) && within(p->expert, p->experts, UINT32_MAX);
}

/* ---- boxes ---- */

uint64_t mgr_dist_whole_rows(const mgr_model *m, uint64_t padded_vocab, mgr_dist_form form,
                             const mgr_tensor *t)
{
    switch (form) {
    case MGR_DIST_VOCABULARY:
        return padded_vocab;
    case MGR_DIST_FUSED_QKV:
        return (m->heads + 2 * m->kv_groups) * m->head_dim;
    case MGR_DIST_GATE_UP:
        return mgr_model_is_gated(m) ? 2 * t->rows : t->rows;
    case MGR_DIST_PLAIN:
        break;
    }
    return t->rows;
}

static const mgr_tensor *logical(const mgr_dist_spot *at, mgr_role role, uint32_t *idx)
{
    const mgr_dist_piece *const c = at->piece;
    const mgr_tensors *const ts = at->layout->tensors;
    const uint64_t layer = mgr_model_stack_first(&ts->model, c->stack) + at->layer;
    *idx = mgr_tensors_find(ts, role, c->key->place == MGR_DIST_TOP ? MGR_NONE : (uint32_t)layer,
                            c->experts ? (uint32_t)at->expert : MGR_NONE);
    *idx = mgr_tensors_plane(ts, *idx, c->instead ? MGR_PLANE_WEIGHT : c->plane);
    return *idx == MGR_NONE ? NULL : &ts->list[*idx];
}

const mgr_tensor *mgr_dist_leading(const mgr_dist_spot *at)
{
    const mgr_dist_key *const k = at->piece->key;
    const bool gated = mgr_model_is_gated(&at->layout->tensors->model);
    uint32_t idx;
    return logical(at, k->form == MGR_DIST_GATE_UP && !gated ? (mgr_role)(k->role + 1) : k->role,
                   &idx);
}

/* Rows [first, first + all) of the piece's tensor are the rows of `role` from `to` on: put the part
 * that the piece holds. */
static int put(const mgr_dist_spot *at, mgr_role role, uint64_t first, uint64_t rows, uint64_t to,
               mgr_err *err)
{
    const mgr_dist_piece *const c = at->piece;
    const uint64_t a = first > c->row ? first : c->row;
    const uint64_t end = first + rows < c->row + c->rows ? first + rows : c->row + c->rows;
    const uint64_t experts = c->experts ? c->experts : 1;
    uint32_t idx;
    if (a >= end)
        return MGR_OK;
    if (!logical(at, role, &idx))
        return mgr_fail(err, MGR_ERR_INTERNAL, "no logical tensor '%s'", mgr_role_name(role));
    if (at->mark) {
        at->there[idx] = 1;
        return MGR_OK;
    }
    if (at->layout->copies && c->plane == MGR_PLANE_WEIGHT && at->there[idx]) {
        at->layout->copies[idx] = c->stored->dtype; /* its master is read */
        return MGR_OK;
    }
    const uint64_t before = (at->layer - c->layer) * experts + (at->expert - c->expert);
    const mgr_box box = {
        .tensor = idx,
        .stored = at->stored,
        .row = to + (a - first),
        .rows = end - a,
        .col = c->col,
        .cols = c->cols,
        .stored_row = before * c->rows + (a - c->row),
    };
    return mgr_layout_box(at->layout, &box, err);
}

/* transformer/attention.py */
static int put_qkv(const mgr_dist_spot *at, mgr_err *err)
{
    const mgr_model *const m = &at->layout->tensors->model;
    const mgr_role role = at->piece->key->role;
    const uint64_t q = m->heads / m->kv_groups * m->head_dim, d = m->head_dim;
    for (uint64_t g = 0; g < m->kv_groups; g++) {
        const uint64_t row = g * (q + 2 * d);
        MGR_TRY(put(at, role, row, q, g * q, err));
        MGR_TRY(put(at, (mgr_role)(role + 1), row + q, d, g * d, err));
        MGR_TRY(put(at, (mgr_role)(role + 2), row + q + d, d, g * d, err));
    }
    return MGR_OK;
}

/* Whatever the split was (apply_swiglu_sharded_factory in transformer/mlp.py). */
static int put_gate_up(const mgr_dist_spot *at, uint64_t rows, mgr_err *err)
{
    const mgr_role gate = at->piece->key->role, up = (mgr_role)(gate + 1);
    if (!mgr_model_is_gated(&at->layout->tensors->model))
        return put(at, up, 0, rows, 0, err);
    MGR_TRY(put(at, gate, 0, rows, 0, err));
    return put(at, up, rows, rows, 0, err);
}

static int put_one(const mgr_dist_spot *at, mgr_err *err)
{
    const mgr_tensor *const t = mgr_dist_leading(at);
    if (!t)
        return mgr_fail(err, MGR_ERR_INTERNAL, "no logical tensor '%s'",
                        mgr_role_name(at->piece->key->role));
    switch (at->piece->key->form) {
    case MGR_DIST_FUSED_QKV:
        return put_qkv(at, err);
    case MGR_DIST_GATE_UP:
        return put_gate_up(at, t->rows, err);
    case MGR_DIST_PLAIN:
    case MGR_DIST_VOCABULARY:
        break;
    }
    return put(at, at->piece->key->role, 0, t->rows, 0, err);
}

int mgr_dist_put(mgr_dist_spot *at, mgr_err *err)
{
    const mgr_dist_piece *const c = at->piece;
    const uint64_t layers = c->layers ? c->layers : 1, experts = c->experts ? c->experts : 1;
    for (at->layer = c->layer; at->layer < c->layer + layers; at->layer++)
        for (at->expert = c->expert; at->expert < c->expert + experts; at->expert++)
            MGR_TRY(put_one(at, err));
    return MGR_OK;
}
