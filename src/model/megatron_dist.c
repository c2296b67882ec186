#include "model/megatron_dist.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "model/megatron_families.h"
#include "model/megatron_hybrid.h"

#define FFN "mlp."
#define EXPERTS "mlp.experts.experts."
#define EXTRA "._extra_state/shard_"

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

/* Where a key is: at the top, below "decoder.layers.[<i>.]", or there below "mlp." or
 * "mlp.experts.experts.[<e>.]". */
typedef enum key_place { TOP, LAYER, INNER } key_place;

/* How its rows are those of logical tensors. */
typedef enum key_form {
    PLAIN,
    VOCABULARY, /* with padding behind */
    FUSED_QKV,  /* per group its query heads, then K, then V; the roles follow one another */
    GATE_UP     /* all gate rows, then all up rows; without a gate only up */
} key_form;

/* When a target spells it like this. */
typedef enum key_use {
    ALWAYS,
    NEVER, /* files of other writers may */
    OF_GPT,
    OF_HYBRID, /* HybridModel has another name for it */
    WITH_FC1,  /* a norm in front of dense FFNs; the local spec calls all of them so */
    BY_ITSELF  /* the same in front of experts, with Transformer Engine */
} key_use;

/* A dense local model renames its norms on saving, and so does a mixture of experts, although its
 * norm is not that of a linear (gpt_layer_specs.py: sharded_state_dict_keys_map). */
static const struct key {
    const char *name;
    key_place place;
    key_form form;
    mgr_role role; /* the first of the form's */
    key_use use;
} keys[] = {
    {"embedding.word_embeddings.weight", TOP, VOCABULARY, MGR_ROLE_EMBEDDING, ALWAYS},
    {"embedding.position_embeddings.weight", TOP, PLAIN, MGR_ROLE_POSITIONS, ALWAYS},
    {"self_attention.linear_qkv.layer_norm_weight", LAYER, PLAIN, MGR_ROLE_ATTN_NORM, ALWAYS},
    {"self_attention.linear_qkv.layer_norm_bias", LAYER, PLAIN, MGR_ROLE_ATTN_NORM_BIAS, ALWAYS},
    {"input_layernorm.weight", LAYER, PLAIN, MGR_ROLE_ATTN_NORM, NEVER},
    {"input_layernorm.bias", LAYER, PLAIN, MGR_ROLE_ATTN_NORM_BIAS, NEVER},
    {"self_attention.linear_qkv.weight", LAYER, FUSED_QKV, MGR_ROLE_Q, ALWAYS},
    {"self_attention.linear_qkv.bias", LAYER, FUSED_QKV, MGR_ROLE_Q_BIAS, ALWAYS},
    {"self_attention.q_layernorm.weight", LAYER, PLAIN, MGR_ROLE_Q_NORM, ALWAYS},
    {"self_attention.q_layernorm.bias", LAYER, PLAIN, MGR_ROLE_Q_NORM_BIAS, ALWAYS},
    {"self_attention.k_layernorm.weight", LAYER, PLAIN, MGR_ROLE_K_NORM, ALWAYS},
    {"self_attention.k_layernorm.bias", LAYER, PLAIN, MGR_ROLE_K_NORM_BIAS, ALWAYS},
    {"self_attention.linear_proj.weight", LAYER, PLAIN, MGR_ROLE_O, ALWAYS},
    {"self_attention.linear_proj.bias", LAYER, PLAIN, MGR_ROLE_O_BIAS, ALWAYS},
    {"mlp.linear_fc1.layer_norm_weight", LAYER, PLAIN, MGR_ROLE_MLP_NORM, WITH_FC1},
    {"mlp.linear_fc1.layer_norm_bias", LAYER, PLAIN, MGR_ROLE_MLP_NORM_BIAS, WITH_FC1},
    {"pre_mlp_layernorm.weight", LAYER, PLAIN, MGR_ROLE_MLP_NORM, BY_ITSELF},
    {"pre_mlp_layernorm.bias", LAYER, PLAIN, MGR_ROLE_MLP_NORM_BIAS, BY_ITSELF},
    {"mlp.router.weight", LAYER, PLAIN, MGR_ROLE_ROUTER, ALWAYS},
    {"mlp.router.bias", LAYER, PLAIN, MGR_ROLE_ROUTER_BIAS, ALWAYS},
    {"mlp.router.expert_bias", LAYER, PLAIN, MGR_ROLE_SELECTION_BIAS, ALWAYS},
    {"mlp.shared_experts.linear_fc1.weight", LAYER, GATE_UP, MGR_ROLE_SHARED_GATE, ALWAYS},
    {"mlp.shared_experts.linear_fc1.weight_w", LAYER, PLAIN, MGR_ROLE_SHARED_GATE, NEVER},
    {"mlp.shared_experts.linear_fc1.weight_v", LAYER, PLAIN, MGR_ROLE_SHARED_UP, NEVER},
    {"mlp.shared_experts.linear_fc2.weight", LAYER, PLAIN, MGR_ROLE_SHARED_DOWN, ALWAYS},
    {"mlp.shared_experts.gate_weight", LAYER, PLAIN, MGR_ROLE_SHARED_SWITCH, ALWAYS},
    {"linear_fc1.weight", INNER, GATE_UP, MGR_ROLE_GATE, ALWAYS},
    {"linear_fc1.bias", INNER, GATE_UP, MGR_ROLE_GATE_BIAS, ALWAYS},
    {"linear_fc1.weight_w", INNER, PLAIN, MGR_ROLE_GATE, NEVER}, /* singleton_local_shards */
    {"linear_fc1.weight_v", INNER, PLAIN, MGR_ROLE_UP, NEVER},
    {"linear_fc1.bias_w", INNER, PLAIN, MGR_ROLE_GATE_BIAS, NEVER},
    {"linear_fc1.bias_v", INNER, PLAIN, MGR_ROLE_UP_BIAS, NEVER},
    {"linear_fc2.weight", INNER, PLAIN, MGR_ROLE_DOWN, ALWAYS},
    {"linear_fc2.bias", INNER, PLAIN, MGR_ROLE_DOWN_BIAS, ALWAYS},
    {"decoder.final_layernorm.weight", TOP, PLAIN, MGR_ROLE_FINAL_NORM, OF_GPT},
    {"decoder.final_layernorm.bias", TOP, PLAIN, MGR_ROLE_FINAL_NORM_BIAS, OF_GPT},
    {"decoder.final_norm.weight", TOP, PLAIN, MGR_ROLE_FINAL_NORM, OF_HYBRID},
    {"decoder.final_norm.bias", TOP, PLAIN, MGR_ROLE_FINAL_NORM_BIAS, OF_HYBRID},
    {"output_layer.weight", TOP, VOCABULARY, MGR_ROLE_LM_HEAD, ALWAYS},
};

#define N_KEYS (sizeof keys / sizeof keys[0])

_Static_assert(MGR_ROLE_K == MGR_ROLE_Q + 1 && MGR_ROLE_V == MGR_ROLE_Q + 2 &&
                   MGR_ROLE_K_BIAS == MGR_ROLE_Q_BIAS + 1 &&
                   MGR_ROLE_V_BIAS == MGR_ROLE_Q_BIAS + 2 && MGR_ROLE_UP == MGR_ROLE_GATE + 1 &&
                   MGR_ROLE_UP_BIAS == MGR_ROLE_GATE_BIAS + 1 &&
                   MGR_ROLE_SHARED_UP == MGR_ROLE_SHARED_GATE + 1,
               "the roles of a form follow one another");

/* One chunk, in the terms of its matrix or vector. */
typedef struct piece {
    const mgr_stored *stored;
    const struct key *key;
    uint64_t layer, layers;   /* those that it holds: more than one only where they are stacked */
    uint64_t expert, experts; /* the same; 0 experts: not of an expert */
    bool stacked;
    uint32_t ndim; /* without the axes of layers and experts; a vector has one column */
    uint64_t row, rows, col, cols;
} piece;

static const char *skip_prefix(const char *text, const char *prefix, size_t *len)
{
    const size_t n = strlen(prefix);
    if (*len < n || strncmp(text, prefix, n) != 0)
        return NULL;
    *len -= n;
    return text + n;
}

/* NeMo puts "model." or "module." before the keys, FSDP both. */
static const char *skip_wrappers(const char *key, size_t *len)
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

static const struct key *find_key(const char *name, size_t len, key_place place)
{
    for (size_t i = 0; i < N_KEYS; i++)
        if (keys[i].place == place && strlen(keys[i].name) == len &&
            strncmp(keys[i].name, name, len) == 0)
            return &keys[i];
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
static const char *skip_layer(const char *key, size_t *len, piece *p, bool *expert_axis)
{
    p->layers = 1;
    key = skip_number(key, len, &p->stacked, &p->layer);
    const char *const experts = key ? skip_prefix(key, EXPERTS, len) : NULL;
    if (experts) {
        p->experts = 1;
        return skip_number(experts, len, expert_axis, &p->expert);
    }
    return key;
}

static const struct key *read_key(const mgr_stored *s, size_t len, piece *p, bool *expert_axis)
{
    const char *key = skip_wrappers(s->name, &len);
    const char *const below = skip_prefix(key, MGR_MEGATRON_LAYERS, &len);
    if (!below)
        return find_key(key, len, TOP);
    key = skip_layer(below, &len, p, expert_axis);
    if (!key)
        return NULL;
    if (p->experts)
        return find_key(key, len, INNER);
    const struct key *const found = find_key(key, len, LAYER);
    const char *const inner = found ? NULL : skip_prefix(key, FFN, &len);
    return inner ? find_key(inner, len, INNER) : found;
}

/* Is the range within what the format can have at all? The model's own sizes come later. */
static bool within(uint64_t first, uint64_t n, uint64_t most)
{
    return first < most && n <= most - first;
}

/* From a HybridModel's layer to ours; false where the key is of the other half. */
static bool leave_hybrid(piece *p)
{
    const uint64_t theirs = p->layer;
    p->layer /= MGR_HYBRID_LAYERS;
    return !p->stacked && mgr_megatron_hybrid_layer(p->key->role, p->layer) == theirs;
}

/* False for a tensor that is none of ours; layout_finish names it. */
static bool read_piece(const mgr_stored *s, bool hybrid, piece *p)
{
    uint64_t offset[MGR_MAX_NDIM] = {0};
    size_t len;
    bool expert_axis = false;
    *p = (piece){.stored = s, .cols = 1};
    if (!mgr_megatron_dist_parse(s, &len, offset))
        return false;
    p->key = read_key(s, len, p, &expert_axis);
    const uint32_t lead = (p->stacked ? 1u : 0u) + (expert_axis ? 1u : 0u);
    if (!p->key || s->ndim < lead + 1 || s->ndim > lead + 2)
        return false;
    if (hybrid && p->key->place != TOP && !leave_hybrid(p))
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

/* ---- the model ---- */

/* Sizes of whole tensors: [0] at the top, in layers and in dense FFNs, [1] of experts. */
typedef struct extents {
    uint64_t rows[2][MGR_ROLE_COUNT], cols[2][MGR_ROLE_COUNT];
    uint64_t layers, most_layers;
    mgr_dtype dtype;
    uint8_t moe_layers[MGR_MAX_LAYERS / 8];
} extents;

static void raise_to(uint64_t *most, uint64_t value)
{
    *most = value > *most ? value : *most;
}

static void measure_piece(const piece *p, extents *e, mgr_megatron_dist *dist)
{
    const mgr_role role = p->key->role;
    const bool of_expert = p->experts > 0;
    raise_to(&e->rows[of_expert][role], p->row + p->rows);
    raise_to(&e->cols[of_expert][role], p->col + p->cols);
    if (p->key->place != TOP)
        raise_to(&e->layers, p->layer + p->layers);
    e->most_layers += p->layers;
    for (uint64_t l = p->layer; role == MGR_ROLE_ROUTER && l < p->layer + p->layers; l++)
        e->moe_layers[l / 8] |= (uint8_t)(1u << l % 8);
    if (role == MGR_ROLE_EMBEDDING)
        e->dtype = p->stored->dtype;
    dist->stacked = dist->stacked || p->stacked;
    dist->singleton = dist->singleton || (p->key->form == PLAIN && role == MGR_ROLE_GATE);
}

static void measure(const mgr_catalogue *cat, extents *e, mgr_megatron_dist *dist)
{
    for (size_t i = 0; i < cat->n_stored; i++) {
        piece p;
        if (read_piece(&cat->stored[i], dist->hybrid, &p))
            measure_piece(&p, e, dist);
    }
}

/* Args are the attributes of common.pt, or of the file that holds the object common_state. */
static uint32_t file_of_args(const mgr_catalogue *cat)
{
    for (size_t i = 0; i < cat->n_attrs; i++)
        if (mgr_has_prefix(cat->attrs[i].key, "args."))
            return cat->attrs[i].file;
    return cat->n_attrs ? cat->attrs[0].file : 0;
}

/* A fused fc1 counts as gate; apart, gate and up have half of its rows each. */
static uint64_t fc1_rows(const extents *e, bool of_expert)
{
    return e->rows[of_expert][MGR_ROLE_GATE] + e->rows[of_expert][MGR_ROLE_UP];
}

static bool has(const extents *e, mgr_role role)
{
    return e->rows[0][role] > 0 || e->rows[1][role] > 0;
}

static mgr_megatron_shapes shapes_of(const mgr_catalogue *cat, const extents *e, bool hybrid)
{
    mgr_megatron_shapes s = {
        .file = file_of_args(cat),
        .dtype = e->dtype,
        .layers = e->layers,
        .hybrid = hybrid,
        .hidden = e->cols[0][MGR_ROLE_EMBEDDING],
        .padded_vocab = e->rows[0][MGR_ROLE_EMBEDDING],
        .ffn = e->cols[0][MGR_ROLE_DOWN],
        .fc1_rows = fc1_rows(e, false),
        .experts = e->rows[0][MGR_ROLE_ROUTER],
        .expert_ffn = e->cols[1][MGR_ROLE_DOWN],
        .expert_fc1_rows = fc1_rows(e, true),
        .positions = e->rows[0][MGR_ROLE_POSITIONS],
        .most_layers = e->most_layers,
        .output = has(e, MGR_ROLE_LM_HEAD),
        .norm_bias = has(e, MGR_ROLE_FINAL_NORM_BIAS) || has(e, MGR_ROLE_ATTN_NORM_BIAS) ||
                     has(e, MGR_ROLE_MLP_NORM_BIAS),
        .qkv_bias = has(e, MGR_ROLE_Q_BIAS),
        .o_bias = has(e, MGR_ROLE_O_BIAS),
        .mlp_bias =
            has(e, MGR_ROLE_GATE_BIAS) || has(e, MGR_ROLE_UP_BIAS) || has(e, MGR_ROLE_DOWN_BIAS),
        .router_bias = has(e, MGR_ROLE_ROUTER_BIAS),
        .qk_norm = has(e, MGR_ROLE_Q_NORM),
        .shared_ffn = e->cols[0][MGR_ROLE_SHARED_DOWN],
        .selection_bias = has(e, MGR_ROLE_SELECTION_BIAS),
        .shared_switch = has(e, MGR_ROLE_SHARED_SWITCH),
    };
    memcpy(s.moe_layers, e->moe_layers, sizeof s.moe_layers);
    return s;
}

/* Without these nothing else can be said. */
static int check_needed(const mgr_catalogue *cat, const extents *e, mgr_err *err)
{
    const char *const missing = !has(e, MGR_ROLE_EMBEDDING) ? "embedding.word_embeddings.weight"
                                : !has(e, MGR_ROLE_DOWN)    ? ".linear_fc2.weight"
                                                            : NULL;
    if (!missing || cat->n_files == 0)
        return MGR_OK;
    return mgr_fail(err, MGR_ERR_FORMAT, "no tensor '*%s' in the checkpoint of '%s'", missing,
                    cat->files[0].path);
}

int mgr_megatron_dist_model(const mgr_catalogue *cat, const mgr_config *config,
                            mgr_megatron_dist *dist, mgr_model *model, mgr_err *err)
{
    extents e = {.dtype = MGR_DTYPE_NONE};
    MGR_TRY(mgr_megatron_families_check(cat, err));
    *dist = (mgr_megatron_dist){.hybrid = mgr_megatron_hybrid_is(cat)};
    if (dist->hybrid)
        MGR_TRY(mgr_megatron_hybrid_check(cat, err));
    measure(cat, &e, dist);
    MGR_TRY(check_needed(cat, &e, err));
    const mgr_megatron_shapes shapes = shapes_of(cat, &e, dist->hybrid);
    dist->padded_vocab = shapes.padded_vocab;
    MGR_TRY(mgr_megatron_model_of(cat, config, &shapes, model, err));
    const mgr_megatron whole = {.tensor_parallel = 1,
                                .pipeline_parallel = 1,
                                .expert_parallel = 1,
                                .expert_tensor_parallel = 1,
                                .virtual_pipeline = 1,
                                .padded_vocab = dist->padded_vocab};
    return mgr_megatron_check(model, &whole, err);
}

/* ---- boxes ---- */

/* One matrix or vector of a piece. */
typedef struct spot {
    mgr_layout *layout;
    const piece *piece;
    uint32_t stored;
    uint64_t layer, expert; /* of those in the piece */
} spot;

static const mgr_tensor *logical(const spot *at, mgr_role role, uint32_t *idx)
{
    const piece *const c = at->piece;
    const mgr_tensors *const ts = at->layout->tensors;
    *idx = mgr_tensors_find(ts, role, c->key->place == TOP ? MGR_NONE : (uint32_t)at->layer,
                            c->experts ? (uint32_t)at->expert : MGR_NONE);
    return *idx == MGR_NONE ? NULL : &ts->list[*idx];
}

/* The tensor that says how long the rows are; NULL where the model has none. */
static const mgr_tensor *leading(const spot *at)
{
    const struct key *const k = at->piece->key;
    const bool gated = mgr_model_is_gated(&at->layout->tensors->model);
    uint32_t idx;
    return logical(at, k->form == GATE_UP && !gated ? (mgr_role)(k->role + 1) : k->role, &idx);
}

/* Rows [first, first + all) of the piece's tensor are the rows of `role` from `to` on: put the part
 * that the piece holds. */
static int put(const spot *at, mgr_role role, uint64_t first, uint64_t rows, uint64_t to,
               mgr_err *err)
{
    const piece *const c = at->piece;
    const uint64_t a = first > c->row ? first : c->row;
    const uint64_t end = first + rows < c->row + c->rows ? first + rows : c->row + c->rows;
    const uint64_t experts = c->experts ? c->experts : 1;
    uint32_t idx;
    if (a >= end)
        return MGR_OK;
    if (!logical(at, role, &idx))
        return mgr_fail(err, MGR_ERR_INTERNAL, "no logical tensor '%s'", mgr_role_name(role));
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
static int put_qkv(const spot *at, mgr_err *err)
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
static int put_gate_up(const spot *at, uint64_t rows, mgr_err *err)
{
    const mgr_role gate = at->piece->key->role, up = (mgr_role)(gate + 1);
    if (!mgr_model_is_gated(&at->layout->tensors->model))
        return put(at, up, 0, rows, 0, err);
    MGR_TRY(put(at, gate, 0, rows, 0, err));
    return put(at, up, rows, rows, 0, err);
}

static int put_one(const spot *at, mgr_err *err)
{
    const mgr_tensor *const t = leading(at);
    if (!t)
        return mgr_fail(err, MGR_ERR_INTERNAL, "no logical tensor '%s'",
                        mgr_role_name(at->piece->key->role));
    switch (at->piece->key->form) {
    case FUSED_QKV:
        return put_qkv(at, err);
    case GATE_UP:
        return put_gate_up(at, t->rows, err);
    case PLAIN:
    case VOCABULARY:
        break;
    }
    return put(at, at->piece->key->role, 0, t->rows, 0, err);
}

/* Boxes of all layers and experts of the stored tensor. */
static int put_all(spot *at, mgr_err *err)
{
    const piece *const c = at->piece;
    const uint64_t layers = c->layers ? c->layers : 1, experts = c->experts ? c->experts : 1;
    for (at->layer = c->layer; at->layer < c->layer + layers; at->layer++)
        for (at->expert = c->expert; at->expert < c->expert + experts; at->expert++)
            MGR_TRY(put_one(at, err));
    return MGR_OK;
}

/* ---- a source ---- */

/* Rows of the whole tensor of which `t` is the leading one. */
static uint64_t whole_rows(const mgr_model *m, uint64_t padded_vocab, key_form form,
                           const mgr_tensor *t)
{
    switch (form) {
    case VOCABULARY:
        return padded_vocab;
    case FUSED_QKV:
        return (m->heads + 2 * m->kv_groups) * m->head_dim;
    case GATE_UP:
        return mgr_model_is_gated(m) ? 2 * t->rows : t->rows;
    case PLAIN:
        break;
    }
    return t->rows;
}

/* Does the model have this tensor in each layer and for each expert of the piece? */
static bool is_of_model(spot *at)
{
    const piece *const c = at->piece;
    const mgr_model *const m = &at->layout->tensors->model;
    if (c->key->place != TOP && c->layer + c->layers > m->layers)
        return false;
    if (c->expert + c->experts > m->experts)
        return false;
    at->expert = c->expert;
    at->layer = c->layer;
    do {
        if (!leading(at))
            return false;
        at->layer++;
    } while (at->layer < c->layer + c->layers);
    at->layer = c->layer;
    return true;
}

/* A chunk that reaches outside of the tensor that the model has. What is too small is found by
 * layout_finish. */
static int check_extent(spot *at, const mgr_megatron_dist *dist, mgr_err *err)
{
    const mgr_model *const m = &at->layout->tensors->model;
    const piece *const c = at->piece;
    const char *const path = at->layout->cat->files[c->stored->file].path;
    if (!is_of_model(at))
        return mgr_fail(err, MGR_ERR_FORMAT,
                        "tensor '%s' in '%s' is none of the model's, which has %" PRIu64
                        " layers and %" PRIu64 " experts in %" PRIu64 " of them",
                        c->stored->name, path, m->layers, m->experts, mgr_model_moe_layers(m));
    const mgr_tensor *const t = leading(at);
    const uint64_t rows = whole_rows(m, dist->padded_vocab, c->key->form, t);
    if (c->ndim == t->ndim && c->row + c->rows <= rows && c->col + c->cols <= t->cols)
        return MGR_OK;
    char size[64];
    snprintf(size, sizeof size, t->ndim == 2 ? "[%" PRIu64 ", %" PRIu64 "]" : "[%" PRIu64 "]", rows,
             t->cols);
    return mgr_fail(err, MGR_ERR_FORMAT,
                    "tensor '%s' in '%s' does not lie in the %s%s that the model has",
                    c->stored->name, path, size, c->key->place == TOP ? "" : " of each layer");
}

static int put_piece(mgr_layout *layout, const mgr_megatron_dist *dist, const piece *c,
                     mgr_err *err)
{
    spot at = {.layout = layout, .piece = c};
    if (c->key->role == MGR_ROLE_LM_HEAD && layout->tensors->model.tied)
        return MGR_OK; /* left over: tied embeddings have no output layer in this format */
    MGR_TRY(check_extent(&at, dist, err));
    MGR_TRY(mgr_layout_tensor(layout, c->stored->file, c->stored->name, c->stored->ndim,
                              c->stored->shape, &at.stored, err));
    return put_all(&at, err);
}

int mgr_megatron_dist_layout(mgr_layout *layout, const mgr_megatron_dist *dist, mgr_err *err)
{
    for (size_t i = 0; i < layout->cat->n_stored; i++) {
        piece c;
        if (read_piece(&layout->cat->stored[i], dist->hybrid, &c))
            MGR_TRY(put_piece(layout, dist, &c, err));
    }
    return MGR_OK;
}

/* ---- a target ---- */

bool mgr_megatron_dist_can_stack(const mgr_model *model)
{
    return model->experts == 0 || mgr_model_moe_layers(model) == model->layers;
}

/* A file that is being filled: of the shared weights, or of one expert-parallel rank. */
typedef struct shelf {
    uint32_t file; /* MGR_NONE: none yet */
    uint64_t filled;
} shelf;

typedef struct writer {
    mgr_layout *layout;
    const mgr_megatron_dist_target *target;
    const mgr_model *model;
    shelf *shelves; /* [0] shared, then one per expert-parallel rank */
    size_t cap_owners;
    mgr_buf key, name;
    /* [of experts] First chunk of each key, MGR_NONE where there is none yet: .metadata names one
     * element type for all of them. */
    uint32_t first_chunk[2][N_KEYS];
} writer;

/* A key while it is declared. */
typedef struct entry {
    const struct key *key;
    uint32_t layer, expert; /* MGR_NONE where it has none */
    const mgr_tensor *tensor;
    uint32_t idx; /* of the tensor */
} entry;

static int add_file(writer *w, size_t owner, uint32_t *file, mgr_err *err)
{
    mgr_layout *const l = w->layout;
    char path[96];
    snprintf(path, sizeof path, "%s/__%zu_0.distcp", w->target->folder, l->cat->n_files);
    MGR_TRY(mgr_catalogue_add_file(l->cat, path, 0, file, err));
    MGR_TRY(
        mgr_grow(&l->file_owner, &w->cap_owners, (size_t)*file + 1, sizeof *l->file_owner, err));
    l->file_owner[*file] = (int32_t)owner - 1;
    return MGR_OK;
}

/* The file that takes `bytes` more of a tensor of `expert`. */
static int choose_file(writer *w, uint32_t expert, uint64_t bytes, uint32_t *file, mgr_err *err)
{
    const uint32_t ranks = w->target->expert_parallel;
    const size_t owner =
        ranks > 1 && expert != MGR_NONE ? 1 + expert / (w->model->experts / ranks) : 0;
    shelf *const s = &w->shelves[owner];
    if (s->filled > 0 && s->filled + bytes > w->target->max_shard_size)
        *s = (shelf){.file = MGR_NONE};
    if (s->file == MGR_NONE)
        MGR_TRY(add_file(w, owner, &s->file, err));
    s->filled += bytes;
    *file = s->file;
    return MGR_OK;
}

/* "decoder.layers.[<l>.][mlp.[experts.experts.]]<name>"; `role` is one of the layer's half that the
 * key is of. */
static int make_key(writer *w, const entry *e, mgr_role role, const char *name, mgr_err *err)
{
    const uint64_t layer = w->target->hybrid ? mgr_megatron_hybrid_layer(role, e->layer) : e->layer;
    w->key.len = 0;
    if (e->layer != MGR_NONE)
        MGR_TRY(mgr_buf_text(&w->key, MGR_MEGATRON_LAYERS, err));
    if (e->layer != MGR_NONE && !w->target->stacked)
        MGR_TRY(mgr_buf_fmt(&w->key, err, "%" PRIu64 ".", layer));
    if (e->key && e->key->place == INNER)
        MGR_TRY(mgr_buf_text(&w->key, e->expert == MGR_NONE ? FFN : EXPERTS, err));
    return mgr_buf_text(&w->key, name, err);
}

static void forget_chunks(writer *w)
{
    memset(w->first_chunk, 0xff, sizeof w->first_chunk);
}

static int link_chunk(writer *w, const entry *e, uint32_t stored, mgr_err *err)
{
    uint32_t *const first = &w->first_chunk[e->expert != MGR_NONE][e->key - keys];
    if (*first == MGR_NONE)
        *first = stored;
    return mgr_layout_link(w->layout, *first, stored, err);
}

/* Declare rows [row, row + rows) of the key's tensor as one chunk. */
static int add_chunk(writer *w, const entry *e, uint64_t row, uint64_t rows, mgr_err *err)
{
    const mgr_tensor *const t = e->tensor;
    uint64_t shape[4] = {1, 1}, offset[4] = {0};
    uint32_t n = 0, file;
    piece c;
    spot at = {.layout = w->layout, .piece = &c};
    if (e->layer != MGR_NONE && w->target->stacked)
        offset[n++] = e->layer;
    if (e->expert != MGR_NONE)
        offset[n++] = e->expert;
    offset[n] = row;
    shape[n++] = rows;
    if (t->ndim == 2)
        shape[n++] = t->cols;
    w->name.len = 0;
    MGR_TRY(make_key(w, e, e->key->role, e->key->name, err));
    MGR_TRY(mgr_megatron_dist_name(&w->name, w->key.data, n, offset, err));
    MGR_TRY(choose_file(w, e->expert, rows * mgr_layout_row_bytes(w->layout, e->idx), &file, err));
    MGR_TRY(mgr_layout_tensor(w->layout, file, w->name.data, n, shape, &at.stored, err));
    MGR_TRY(link_chunk(w, e, at.stored, err));
    if (!read_piece(&w->layout->cat->stored[at.stored], w->target->hybrid, &c))
        return mgr_fail(err, MGR_ERR_INTERNAL, "chunk '%s' is not read back", w->name.data);
    return put_all(&at, err);
}

/* Blocks of rows; what lies behind the true vocabulary is padding. */
static int add_vocabulary(writer *w, const entry *e, mgr_err *err)
{
    const uint64_t all = w->target->padded_vocab, most = w->target->vocab_rows;
    const uint64_t vocab = w->model->vocab;
    for (uint64_t row = 0; row < all; row += most) {
        const uint64_t rows = all - row < most ? all - row : most;
        const uint64_t kept = row >= vocab ? 0 : vocab - row < rows ? vocab - row : rows;
        MGR_TRY(add_chunk(w, e, row, rows, err));
        MGR_TRY(mgr_layout_fill(w->layout, (uint32_t)w->layout->cat->n_stored - 1, kept,
                                rows - kept, err));
    }
    return MGR_OK;
}

static int add_key(writer *w, entry *e, mgr_err *err)
{
    const bool gated = mgr_model_is_gated(w->model);
    const key_form form = e->key->form;
    const mgr_role role = form == GATE_UP && !gated ? (mgr_role)(e->key->role + 1) : e->key->role;
    const uint32_t idx = mgr_tensors_find(w->layout->tensors, role, e->layer, e->expert);
    if (idx == MGR_NONE)
        return MGR_OK;
    e->tensor = &w->layout->tensors->list[idx];
    e->idx = idx;
    const uint64_t rows = e->tensor->rows;
    if (form == VOCABULARY)
        return add_vocabulary(w, e, err);
    if (form != GATE_UP || !gated)
        return add_chunk(w, e, 0, whole_rows(w->model, 0, form, e->tensor), err);
    MGR_TRY(add_chunk(w, e, 0, rows, err));
    return add_chunk(w, e, rows, rows, err);
}

static bool is_used(const writer *w, key_use use, uint32_t layer)
{
    const bool by_itself =
        w->target->names == MGR_NAMES_TE && layer != MGR_NONE && mgr_model_is_moe(w->model, layer);
    switch (use) {
    case ALWAYS:
        return true;
    case WITH_FC1:
        return !by_itself;
    case BY_ITSELF:
        return by_itself;
    case OF_GPT:
        return !w->target->hybrid;
    case OF_HYBRID:
        return w->target->hybrid;
    case NEVER:
        break;
    }
    return false;
}

static int add_keys(writer *w, size_t from, size_t to, key_place place, uint32_t layer,
                    uint32_t expert, mgr_err *err)
{
    for (size_t i = from; i < to; i++) {
        entry e = {.key = &keys[i], .layer = layer, .expert = expert};
        if (keys[i].place == place && is_used(w, keys[i].use, layer))
            MGR_TRY(add_key(w, &e, err));
    }
    return MGR_OK;
}

static int add_layer(writer *w, uint32_t layer, mgr_err *err)
{
    if (!w->target->stacked)
        forget_chunks(w);
    MGR_TRY(add_keys(w, 0, N_KEYS, LAYER, layer, MGR_NONE, err));
    if (!mgr_model_is_moe(w->model, layer))
        return add_keys(w, 0, N_KEYS, INNER, layer, MGR_NONE, err);
    for (uint32_t e = 0; e < w->model->experts; e++)
        MGR_TRY(add_keys(w, 0, N_KEYS, INNER, layer, e, err));
    return MGR_OK;
}

/* ---- extra states ---- */

typedef enum state_owner { OF_ANY, OF_DENSE, OF_MOE, OF_QK_NORM, OF_SHARED, OF_EXPERT } state_owner;

/* Modules of which a loader asks for the extra state (transformer/utils.py), in any release and
 * spec; core_attention up to core 0.14, norms since Transformer Engine 2. */
static const struct {
    const char *name;
    state_owner owner;
} stateful[] = {
    {"self_attention.linear_qkv", OF_ANY},
    {"self_attention.linear_proj", OF_ANY},
    {"self_attention.core_attention", OF_ANY},
    {"self_attention.q_layernorm", OF_QK_NORM},
    {"self_attention.k_layernorm", OF_QK_NORM},
    {"mlp.linear_fc1", OF_DENSE},
    {"mlp.linear_fc2", OF_DENSE},
    {"pre_mlp_layernorm", OF_MOE},
    {"mlp.shared_experts.linear_fc1", OF_SHARED},
    {"mlp.shared_experts.linear_fc2", OF_SHARED},
    {EXPERTS "linear_fc1", OF_EXPERT},
    {EXPERTS "linear_fc2", OF_EXPERT},
};

static bool is_owner(const writer *w, state_owner owner, uint32_t layer)
{
    const bool moe = mgr_model_is_moe(w->model, layer);
    switch (owner) {
    case OF_DENSE:
        return !moe;
    case OF_MOE:
    case OF_EXPERT:
        return moe;
    case OF_QK_NORM:
        return w->model->qk_norm;
    case OF_SHARED:
        return moe && w->model->shared_ffn;
    case OF_ANY:
        break;
    }
    return true;
}

/* ShardedObject.unique_key: "<key>/shard_<offset>.<offset>_<size>.<size>" (mapping.py). */
static int add_state(writer *w, const char *name, mgr_role role, uint32_t layer, uint32_t expert,
                     mgr_err *err)
{
    const entry e = {.layer = layer, .expert = expert};
    const bool axis = layer != MGR_NONE && w->target->stacked;
    const unsigned long long layers = w->model->layers, experts = w->model->experts;
    MGR_TRY(make_key(w, &e, role, name, err));
    MGR_TRY(mgr_buf_text(&w->key, EXTRA, err));
    if (axis && expert != MGR_NONE)
        MGR_TRY(mgr_buf_fmt(&w->key, err, "%u.%u_%llu.%llu", layer, expert, layers, experts));
    else if (axis)
        MGR_TRY(mgr_buf_fmt(&w->key, err, "%u_%llu", layer, layers));
    else if (expert != MGR_NONE)
        MGR_TRY(mgr_buf_fmt(&w->key, err, "%u_%llu", expert, experts));
    else
        MGR_TRY(mgr_buf_text(&w->key, "0_1", err));
    return mgr_layout_object(w->layout, 0, w->key.data, err);
}

/* A role of the layer's half that owns the state. */
static mgr_role half_of(state_owner owner)
{
    return owner == OF_ANY || owner == OF_QK_NORM ? MGR_ROLE_ATTN_NORM : MGR_ROLE_MLP_NORM;
}

static int add_states(writer *w, uint32_t layer, mgr_err *err)
{
    for (size_t i = 0; i < sizeof stateful / sizeof stateful[0]; i++) {
        if (!is_owner(w, stateful[i].owner, layer))
            continue;
        const mgr_role role = half_of(stateful[i].owner);
        if (stateful[i].owner != OF_EXPERT)
            MGR_TRY(add_state(w, stateful[i].name, role, layer, MGR_NONE, err));
        else
            for (uint32_t e = 0; e < w->model->experts; e++)
                MGR_TRY(add_state(w, stateful[i].name, role, layer, e, err));
    }
    return MGR_OK;
}

static int declare_all(writer *w, mgr_err *err)
{
    const size_t middle = 2; /* behind the embeddings */
    MGR_TRY(add_keys(w, 0, middle, TOP, MGR_NONE, MGR_NONE, err));
    for (uint32_t l = 0; l < w->model->layers; l++)
        MGR_TRY(add_layer(w, l, err));
    MGR_TRY(add_keys(w, middle, N_KEYS, TOP, MGR_NONE, MGR_NONE, err));
    for (uint32_t l = 0; l < w->model->layers; l++)
        MGR_TRY(add_states(w, l, err));
    const mgr_role norm = MGR_ROLE_FINAL_NORM;
    if (!w->target->hybrid)
        return add_state(w, "decoder.final_layernorm", norm, MGR_NONE, MGR_NONE, err);
    MGR_TRY(add_state(w, "decoder.final_norm", norm, MGR_NONE, MGR_NONE, err));
    return add_state(w, "output_layer", MGR_ROLE_LM_HEAD, MGR_NONE, MGR_NONE, err);
}

int mgr_megatron_dist_declare(mgr_layout *layout, const mgr_megatron_dist_target *target,
                              mgr_err *err)
{
    writer w = {.layout = layout, .target = target, .model = &layout->tensors->model};
    forget_chunks(&w);
    int rc = mgr_alloc(&w.shelves, (size_t)target->expert_parallel + 1, sizeof *w.shelves, err);
    for (size_t i = 0; rc == MGR_OK && i <= target->expert_parallel; i++)
        w.shelves[i].file = MGR_NONE;
    if (rc == MGR_OK)
        rc = declare_all(&w, err);
    mgr_buf_clear(&w.key);
    mgr_buf_clear(&w.name);
    mgr_free(w.shelves);
    return rc;
}
