#include "mgr/model.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "core/mem.h"
#include "mgr/upcycle.h"

/* Where a role lies. */
typedef enum place { BEFORE, LAYER, FFN, BEHIND, NOWHERE } place;

/* Sizes of axes; a vector has no columns. */
typedef enum extent {
    NONE,
    VOCAB,
    HIDDEN,
    HEADS,
    GROUPS,
    Q_NORM_WIDTH, /* a head, or all of them */
    K_NORM_WIDTH,
    INNER,
    EXPERTS,
    POSITIONS,
    SHARED,
    ONE
} extent;

/* What a model must have for the role to exist. */
enum {
    UNTIED = 1,
    LEARNED = 2,
    LAYER_NORM = 4,
    BIAS_QKV = 8,
    BIAS_O = 16,
    BIAS_MLP = 32,
    BIAS_ROUTER = 64,
    QK_NORM = 128,
    GATED = 256,
    MOE = 512, /* of the layer */
    SELECTION = 1024,
    SHARED_FFN = 2048,
    SHARED_SWITCH = 4096,
    PRE_NORM = 8192,
    POST_NORM = 16384,
    WHOLE = 32768, /* more than FFNs and routers are understood */
    ROUTED = 65536 /* routers are no opaque tensors */
};

typedef struct role_info {
    mgr_role role;
    const char *name;
    place place;
    extent rows, cols;
    unsigned needs;
} role_info;

/* In the order in which a model's tensors are listed; Q, K and V stand together for their bundle.
 */
static const role_info roles[] = {
    {MGR_ROLE_EMBEDDING, "embedding", BEFORE, VOCAB, HIDDEN, WHOLE},
    {MGR_ROLE_POSITIONS, "position embedding", BEFORE, POSITIONS, HIDDEN, LEARNED | WHOLE},
    {MGR_ROLE_ATTN_NORM, "attention norm", LAYER, HIDDEN, NONE, PRE_NORM | WHOLE},
    {MGR_ROLE_ATTN_NORM_BIAS, "attention norm bias", LAYER, HIDDEN, NONE,
     PRE_NORM | LAYER_NORM | WHOLE},
    {MGR_ROLE_Q, "q", LAYER, HEADS, HIDDEN, WHOLE},
    {MGR_ROLE_K, "k", LAYER, GROUPS, HIDDEN, WHOLE},
    {MGR_ROLE_V, "v", LAYER, GROUPS, HIDDEN, WHOLE},
    {MGR_ROLE_Q_BIAS, "q bias", LAYER, HEADS, NONE, BIAS_QKV | WHOLE},
    {MGR_ROLE_K_BIAS, "k bias", LAYER, GROUPS, NONE, BIAS_QKV | WHOLE},
    {MGR_ROLE_V_BIAS, "v bias", LAYER, GROUPS, NONE, BIAS_QKV | WHOLE},
    {MGR_ROLE_Q_NORM, "q norm", LAYER, Q_NORM_WIDTH, NONE, QK_NORM | WHOLE},
    {MGR_ROLE_Q_NORM_BIAS, "q norm bias", LAYER, Q_NORM_WIDTH, NONE, QK_NORM | LAYER_NORM | WHOLE},
    {MGR_ROLE_K_NORM, "k norm", LAYER, K_NORM_WIDTH, NONE, QK_NORM | WHOLE},
    {MGR_ROLE_K_NORM_BIAS, "k norm bias", LAYER, K_NORM_WIDTH, NONE, QK_NORM | LAYER_NORM | WHOLE},
    {MGR_ROLE_O, "o", LAYER, HIDDEN, HEADS, WHOLE},
    {MGR_ROLE_O_BIAS, "o bias", LAYER, HIDDEN, NONE, BIAS_O | WHOLE},
    {MGR_ROLE_ATTN_OUT_NORM, "attention output norm", LAYER, HIDDEN, NONE, POST_NORM | WHOLE},
    {MGR_ROLE_MLP_NORM, "mlp norm", LAYER, HIDDEN, NONE, PRE_NORM | WHOLE},
    {MGR_ROLE_MLP_NORM_BIAS, "mlp norm bias", LAYER, HIDDEN, NONE, PRE_NORM | LAYER_NORM | WHOLE},
    {MGR_ROLE_MLP_OUT_NORM, "mlp output norm", LAYER, HIDDEN, NONE, POST_NORM | WHOLE},
    {MGR_ROLE_ROUTER, "router", LAYER, EXPERTS, HIDDEN, MOE | ROUTED},
    {MGR_ROLE_ROUTER_BIAS, "router bias", LAYER, EXPERTS, NONE, MOE | BIAS_ROUTER},
    {MGR_ROLE_SELECTION_BIAS, "selection bias", LAYER, EXPERTS, NONE, MOE | SELECTION},
    {MGR_ROLE_SHARED_GATE, "shared gate", LAYER, SHARED, HIDDEN, MOE | SHARED_FFN | GATED},
    {MGR_ROLE_SHARED_UP, "shared up", LAYER, SHARED, HIDDEN, MOE | SHARED_FFN},
    {MGR_ROLE_SHARED_DOWN, "shared down", LAYER, HIDDEN, SHARED, MOE | SHARED_FFN},
    {MGR_ROLE_SHARED_SWITCH, "shared expert's gate", LAYER, ONE, HIDDEN, MOE | SHARED_SWITCH},
    {MGR_ROLE_GATE, "gate", FFN, INNER, HIDDEN, GATED},
    {MGR_ROLE_UP, "up", FFN, INNER, HIDDEN, 0},
    {MGR_ROLE_DOWN, "down", FFN, HIDDEN, INNER, 0},
    {MGR_ROLE_GATE_BIAS, "gate bias", FFN, INNER, NONE, GATED | BIAS_MLP},
    {MGR_ROLE_UP_BIAS, "up bias", FFN, INNER, NONE, BIAS_MLP},
    {MGR_ROLE_DOWN_BIAS, "down bias", FFN, HIDDEN, NONE, BIAS_MLP},
    {MGR_ROLE_FINAL_NORM, "final norm", BEHIND, HIDDEN, NONE, WHOLE},
    {MGR_ROLE_FINAL_NORM_BIAS, "final norm bias", BEHIND, HIDDEN, NONE, LAYER_NORM | WHOLE},
    {MGR_ROLE_LM_HEAD, "lm head", BEHIND, VOCAB, HIDDEN, UNTIED | WHOLE},
    {MGR_ROLE_OPAQUE, "opaque", NOWHERE, ONE, NONE, 0},
};

#define N_ROLES (sizeof roles / sizeof roles[0])

_Static_assert(N_ROLES == MGR_ROLE_COUNT, "the table has every role");

const char *mgr_role_name(mgr_role role)
{
    for (size_t i = 0; i < N_ROLES; i++)
        if (roles[i].role == role)
            return roles[i].name;
    return "?";
}

bool mgr_role_is_ffn(mgr_role role)
{
    for (size_t i = 0; i < N_ROLES; i++)
        if (roles[i].role == role)
            return roles[i].place == FFN;
    return false;
}

_Static_assert(MGR_ROLE_SHARED_UP - MGR_ROLE_SHARED_GATE == MGR_ROLE_UP - MGR_ROLE_GATE &&
                   MGR_ROLE_SHARED_DOWN - MGR_ROLE_SHARED_GATE == MGR_ROLE_DOWN - MGR_ROLE_GATE,
               "a shared expert's matrices have the order of an FFN's");

bool mgr_role_is_shared(mgr_role role)
{
    return role >= MGR_ROLE_SHARED_GATE && role <= MGR_ROLE_SHARED_DOWN;
}

mgr_role mgr_role_unshared(mgr_role role)
{
    return mgr_role_is_shared(role) ? (mgr_role)(MGR_ROLE_GATE + (role - MGR_ROLE_SHARED_GATE))
                                    : role;
}

bool mgr_role_is_norm(mgr_role role)
{
    return role == MGR_ROLE_ATTN_NORM || role == MGR_ROLE_MLP_NORM || role == MGR_ROLE_FINAL_NORM ||
           role == MGR_ROLE_Q_NORM || role == MGR_ROLE_K_NORM || role == MGR_ROLE_ATTN_OUT_NORM ||
           role == MGR_ROLE_MLP_OUT_NORM;
}

bool mgr_role_is_matrix(mgr_role role)
{
    return role == MGR_ROLE_GATE || role == MGR_ROLE_UP || role == MGR_ROLE_DOWN;
}

uint64_t mgr_model_stack_layers(const mgr_model *m, mgr_stack stack)
{
    return stack == MGR_STACK_ENCODER ? m->encoder_layers : m->layers - m->encoder_layers;
}

uint64_t mgr_model_stack_first(const mgr_model *m, mgr_stack stack)
{
    return stack == MGR_STACK_ENCODER ? m->layers - m->encoder_layers : 0;
}

mgr_stack mgr_model_stack(const mgr_model *m, uint64_t layer, uint32_t *within)
{
    const uint64_t encoder = mgr_model_stack_first(m, MGR_STACK_ENCODER);
    const mgr_stack stack =
        layer >= encoder && m->encoder_layers ? MGR_STACK_ENCODER : MGR_STACK_DECODER;
    *within = (uint32_t)(layer - mgr_model_stack_first(m, stack));
    return stack;
}

#define KEY_BITS 16 /* of the layer; MGR_MAX_LAYERS is far below 2^16 */

uint32_t mgr_model_layer_key(const mgr_model *m, uint32_t layer)
{
    uint32_t within;
    if (layer == MGR_NONE)
        return MGR_NONE;
    const mgr_stack stack = mgr_model_stack(m, layer, &within);
    return (uint32_t)stack << KEY_BITS | within;
}

mgr_stack mgr_layer_key_stack(uint32_t key)
{
    return key == MGR_NONE ? MGR_STACK_DECODER : (mgr_stack)(key >> KEY_BITS);
}

uint32_t mgr_layer_key_layer(uint32_t key)
{
    return key & ((1u << KEY_BITS) - 1);
}

bool mgr_model_is_moe(const mgr_model *m, uint64_t layer)
{
    return m->experts > 0 && layer < MGR_MAX_LAYERS &&
           !(m->dense_layers[layer / 8] >> layer % 8 & 1);
}

size_t mgr_model_ffns(const mgr_model *m, uint64_t layer, mgr_ffn out[MGR_FFN_KINDS])
{
    if (!mgr_model_is_moe(m, layer)) {
        out[0] = (mgr_ffn){MGR_FFN_DENSE, 1, m->ffn};
        return 1;
    }
    out[0] = (mgr_ffn){MGR_FFN_ROUTED, m->experts, mgr_model_expert_ffn(m)};
    out[1] = (mgr_ffn){MGR_FFN_SHARED, 1, m->shared_ffn};
    return m->shared_ffn ? 2 : 1;
}

uint64_t mgr_model_ffn_width(const mgr_model *m, uint64_t layer, mgr_ffn_kind kind)
{
    mgr_ffn ffns[MGR_FFN_KINDS];
    const size_t n = mgr_model_ffns(m, layer, ffns);
    for (size_t i = 0; i < n; i++)
        if (ffns[i].kind == kind)
            return ffns[i].width;
    return 0;
}

void mgr_model_set_dense(mgr_model *m, uint64_t layer)
{
    m->dense_layers[layer / 8] |= (uint8_t)(1u << layer % 8);
}

uint64_t mgr_model_moe_layers(const mgr_model *m)
{
    uint64_t n = 0;
    for (uint64_t l = 0; l < m->layers; l++)
        n += mgr_model_is_moe(m, l);
    return n;
}

/* Of a bit for each layer. */
static void set_layer(uint8_t bits[MGR_MAX_LAYERS / 8], uint64_t layer)
{
    if (layer < MGR_MAX_LAYERS)
        bits[layer / 8] |= (uint8_t)(1u << layer % 8);
}

static uint64_t count_layers(const mgr_model *m, const uint8_t bits[MGR_MAX_LAYERS / 8])
{
    uint64_t n = 0;
    for (uint64_t l = 0; l < m->layers && l < MGR_MAX_LAYERS; l++)
        n += bits[l / 8] >> l % 8 & 1;
    return n;
}

void mgr_model_set_window(mgr_model *m, uint64_t layer)
{
    set_layer(m->window_layers, layer);
}

uint64_t mgr_model_window_layers(const mgr_model *m)
{
    return count_layers(m, m->window_layers);
}

void mgr_model_set_nope(mgr_model *m, uint64_t layer)
{
    set_layer(m->nope_layers, layer);
}

uint64_t mgr_model_nope_layers(const mgr_model *m)
{
    return count_layers(m, m->nope_layers);
}

bool mgr_model_is_multiplied(const mgr_model *m)
{
    return m->embedding_multiplier > 0 || m->residual_multiplier > 0 ||
           m->attention_multiplier > 0 || m->logits_divisor > 0;
}

bool mgr_model_is_gated(const mgr_model *m)
{
    return m->activation == MGR_ACTIVATION_SWIGLU || m->activation == MGR_ACTIVATION_GEGLU ||
           m->activation == MGR_ACTIVATION_GATED;
}

uint64_t mgr_model_expert_ffn(const mgr_model *m)
{
    return m->experts && m->expert_ffn ? m->expert_ffn : m->ffn;
}

static bool is_one(double value)
{
    return value >= 1 && value <= 1;
}

double mgr_model_router_scale(const mgr_model *m)
{
    return m->router.scale > 0 ? m->router.scale : 1;
}

double mgr_model_rotary_part(const mgr_model *m)
{
    return m->rotary_part > 0 ? m->rotary_part : 1;
}

bool mgr_model_plain_router(const mgr_model *m)
{
    const mgr_router_kind *const r = &m->router;
    return r->score == MGR_SCORE_SOFTMAX && !r->unnormalised && !r->selection_bias &&
           is_one(mgr_model_router_scale(m)) && r->groups <= 1;
}

typedef struct feature {
    bool is;
    const char *name;
} feature;

/* The `idx`-th that there is of `n`; what it counts down is left to the next table. */
static const char *nth(const feature *features, size_t n, size_t *idx)
{
    for (size_t i = 0; i < n; i++)
        if (features[i].is && (*idx)-- == 0)
            return features[i].name;
    return NULL;
}

/* Of routers, experts and windows. */
static const char *late_feature(const mgr_model *m, size_t *idx)
{
    const feature features[] = {
        {m->router.score == MGR_SCORE_SOFTMAX && m->router.unnormalised,
         "a router with softmax before top-k"},
        {m->router.score == MGR_SCORE_SIGMOID, "a router with sigmoid scores"},
        {m->router.score == MGR_SCORE_SIGMOID && m->router.unnormalised,
         "a router whose scores are not normalised"},
        {m->router.selection_bias, "a router with a selection bias"},
        {m->experts && !is_one(mgr_model_router_scale(m)), "a scaled router"},
        {m->router.groups > 1, "a router with groups of experts"},
        {m->shared_ffn > 0, "shared experts"},
        {m->shared_switch, "a gate of the shared expert"},
        {!is_one(mgr_model_rotary_part(m)), "RoPE on a part of the head"},
        {m->window > 0, "sliding-window attention"},
        {mgr_model_moe_layers(m) > 0 && mgr_model_moe_layers(m) < m->layers,
         "dense layers between those with experts"},
    };
    return nth(features, sizeof features / sizeof features[0], idx);
}

bool mgr_model_is_part(const mgr_model *m)
{
    return m->ffns_only || m->tower || m->mtp;
}

const char *mgr_model_feature(const mgr_model *m, size_t idx)
{
    const feature features[] = {
        {m->encoder_layers > 0, "an encoder beside the decoder"},
        {m->kin == MGR_KIN_VIT, "patches in place of a vocabulary"},
        {m->passed, "parts that are passed through unread"},
        {m->tower && !m->passed, "a vision tower beside its text decoder"},
        {m->mtp, "layers for multi-token prediction"},
        {m->norm == MGR_NORM_LAYER, "LayerNorm"},
        {m->activation == MGR_ACTIVATION_GEGLU, "GEGLU"},
        {m->activation == MGR_ACTIVATION_GELU, "GELU"},
        {m->activation == MGR_ACTIVATION_SQUARED_RELU, "squared ReLU"},
        {m->activation == MGR_ACTIVATION_RELU, "ReLU"},
        {m->positions == MGR_POSITIONS_LEARNED, "learned positions"},
        {m->rope.kind == MGR_ROPE_LINEAR, "linear RoPE scaling"},
        {m->rope.kind == MGR_ROPE_LLAMA3, "Llama 3 RoPE scaling"},
        {m->bias_qkv, "biases of q, k and v"},
        {m->bias_o, "a bias of the attention's output"},
        {m->bias_mlp, "biases of the FFN"},
        {m->bias_router, "a bias of the router"},
        {m->qk_norm && !m->qk_norm_full, "norms of q and k"},
        {m->qk_norm && m->qk_norm_full, "norms of q and k over all heads together"},
        {m->post_norm, "norms behind attention and FFN"},
        {m->rope_interleaved, "interleaved RoPE"},
        {mgr_model_nope_layers(m) > 0, "layers without RoPE"},
        {mgr_model_is_multiplied(m), "multipliers of embeddings, attention, residuals or logits"},
    };
    const char *const found = nth(features, sizeof features / sizeof features[0], &idx);
    return found ? found : late_feature(m, &idx);
}

static unsigned features_of(const mgr_model *m, bool moe)
{
    return (m->tied ? 0u : UNTIED) | (m->positions == MGR_POSITIONS_LEARNED ? LEARNED : 0u) |
           (m->norm == MGR_NORM_LAYER ? LAYER_NORM : 0u) | (m->bias_qkv ? BIAS_QKV : 0u) |
           (m->bias_o ? BIAS_O : 0u) | (m->bias_mlp ? BIAS_MLP : 0u) |
           (m->bias_router ? BIAS_ROUTER : 0u) | (m->qk_norm ? QK_NORM : 0u) |
           (mgr_model_is_gated(m) ? GATED : 0u) | (moe ? MOE : 0u) |
           (m->router.selection_bias ? SELECTION : 0u) | (m->shared_ffn ? SHARED_FFN : 0u) |
           (m->shared_switch ? SHARED_SWITCH : 0u) | (m->post_norm ? POST_NORM : PRE_NORM) |
           (m->ffns_only ? 0u : WHOLE) | (m->passed && !m->passed_router ? 0u : ROUTED);
}

static uint64_t size_of(const mgr_model *m, extent of, uint32_t layer, uint32_t expert)
{
    switch (of) {
    case NONE:
        return 1;
    case VOCAB:
        return m->vocab;
    case HIDDEN:
        return m->hidden;
    case HEADS:
        return m->heads * m->head_dim;
    case GROUPS:
        return m->kv_groups * m->head_dim;
    case Q_NORM_WIDTH:
        return m->head_dim * (m->qk_norm_full ? m->heads : 1);
    case K_NORM_WIDTH:
        return m->head_dim * (m->qk_norm_full ? m->kv_groups : 1);
    case INNER:
        return mgr_model_ffn_width(m, layer, expert == MGR_NONE ? MGR_FFN_DENSE : MGR_FFN_ROUTED);
    case EXPERTS:
        return m->experts;
    case POSITIONS:
        return m->max_positions;
    case SHARED:
        return mgr_model_ffn_width(m, layer, MGR_FFN_SHARED);
    case ONE:
        return 1;
    }
    return 0;
}

/* Rows that units must keep together. */
static uint64_t step_of(const mgr_model *m, mgr_role role)
{
    switch (role) {
    case MGR_ROLE_Q:
        return m->heads / m->kv_groups * m->head_dim;
    case MGR_ROLE_K:
    case MGR_ROLE_V:
        return m->head_dim;
    case MGR_ROLE_DOWN:
    case MGR_ROLE_SHARED_DOWN:
        return MGR_CANONICAL_ROWS;
    default:
        return 1;
    }
}

static void add(mgr_tensors *ts, const role_info *info, uint32_t layer, uint32_t expert)
{
    const mgr_model *const m = &ts->model;
    const mgr_tensor t = {
        .role = info->role,
        .layer = layer,
        .expert = expert,
        .ndim = info->cols == NONE ? 1 : 2,
        .rows = size_of(m, info->rows, layer, expert),
        .cols = size_of(m, info->cols, layer, expert),
        .bundle = ts->n - (info->role == MGR_ROLE_K   ? 1
                           : info->role == MGR_ROLE_V ? 2
                                                      : 0),
        .step = step_of(m, info->role),
    };
    ts->list[ts->n++] = t;
}

static void add_place(mgr_tensors *ts, place where, uint32_t layer, uint32_t expert)
{
    const unsigned have = features_of(&ts->model, mgr_model_is_moe(&ts->model, layer));
    for (size_t i = 0; i < N_ROLES; i++) {
        if (roles[i].place != where || (roles[i].needs & ~have))
            continue;
        if (layer == MGR_NONE)
            ts->top[roles[i].role] = ts->n;
        add(ts, &roles[i], layer, expert);
    }
}

static void add_layer(mgr_tensors *ts, uint32_t layer)
{
    mgr_ffn ffns[MGR_FFN_KINDS];
    const size_t n = mgr_model_ffns(&ts->model, layer, ffns);
    ts->first_of_layer[layer] = ts->n;
    add_place(ts, LAYER, layer, MGR_NONE); /* the shared one's tensors are the layer's own */
    for (size_t i = 0; i < n; i++) {
        if (ffns[i].kind == MGR_FFN_DENSE)
            add_place(ts, FFN, layer, MGR_NONE);
        for (uint32_t e = 0; ffns[i].kind == MGR_FFN_ROUTED && e < ffns[i].count; e++)
            add_place(ts, FFN, layer, e);
    }
}

static mgr_layer_index index_of(const mgr_model *m, bool moe)
{
    const unsigned have = features_of(m, moe);
    mgr_layer_index index = {.ffn = 0};
    memset(index.at, 0xff, sizeof index.at);
    for (size_t i = 0; i < N_ROLES; i++) {
        if (roles[i].needs & ~have)
            continue;
        if (roles[i].place == LAYER)
            index.at[roles[i].role] = index.ffn++;
        else if (roles[i].place == FFN)
            index.at[roles[i].role] = index.per_ffn++;
    }
    return index;
}

static int count(const mgr_tensors *ts, size_t *out, mgr_err *err)
{
    const mgr_model *const m = &ts->model;
    const uint64_t moe = mgr_model_moe_layers(m);
    uint64_t ffns, total;
    if (m->layers > MGR_MAX_LAYERS)
        return mgr_fail(err, MGR_ERR_UNSUPPORTED, "%llu layers are more than %d",
                        (unsigned long long)m->layers, MGR_MAX_LAYERS);
    if (mgr_mul_overflow(moe, m->experts, &ffns) || mgr_mul_overflow(ffns, 6, &total) ||
        total > UINT32_MAX / 2)
        return mgr_fail(err, MGR_ERR_UNSUPPORTED, "%llu layers of %llu experts are too many",
                        (unsigned long long)m->layers, (unsigned long long)m->experts);
    *out = N_ROLES + (size_t)m->layers * N_ROLES + (size_t)total;
    return MGR_OK;
}

int mgr_tensors_init(mgr_tensors *tensors, const mgr_model *model, mgr_err *err)
{
    size_t most = 0;
    *tensors = (mgr_tensors){.model = *model};
    mgr_tensors *const ts = tensors;
    MGR_TRY(count(ts, &most, err));
    memset(ts->top, 0xff, sizeof ts->top);
    ts->kinds[0] = index_of(model, false);
    ts->kinds[1] = index_of(model, true);
    int rc = mgr_alloc(&ts->list, most, sizeof *ts->list, err);
    if (rc == MGR_OK)
        rc = mgr_alloc(&ts->first_of_layer, (size_t)model->layers, sizeof(uint32_t), err);
    if (rc != MGR_OK) {
        mgr_tensors_clear(ts);
        return rc;
    }
    add_place(ts, BEFORE, MGR_NONE, MGR_NONE);
    for (uint32_t l = 0; l < model->layers; l++)
        add_layer(ts, l);
    add_place(ts, BEHIND, MGR_NONE, MGR_NONE);
    ts->first_opaque = ts->n_weights = ts->n;
    return MGR_OK;
}

/* A matrix of all leading axes by the last one. */
static mgr_tensor opaque_tensor(const mgr_opaque *o, uint32_t idx)
{
    mgr_tensor t = {.role = MGR_ROLE_OPAQUE,
                    .layer = MGR_NONE,
                    .expert = MGR_NONE,
                    .ndim = o->ndim > 1 ? 2 : 1,
                    .rows = 1,
                    .cols = o->ndim > 1 ? o->shape[o->ndim - 1] : 1,
                    .bundle = idx,
                    .step = 1,
                    .opaque = o};
    for (uint32_t d = 0; d + (o->ndim > 1) < o->ndim; d++)
        t.rows *= o->shape[d];
    return t;
}

int mgr_tensors_add_opaque(mgr_tensors *ts, const mgr_opaque *opaque, size_t n, mgr_err *err)
{
    mgr_tensor *list;
    assert(ts->first_opaque == ts->n);
    if (n == 0)
        return MGR_OK;
    if (n > UINT32_MAX / 2 - ts->n)
        return mgr_fail(err, MGR_ERR_UNSUPPORTED, "%zu tensors are too many", n);
    MGR_TRY(mgr_alloc(&list, ts->n + n, sizeof *list, err));
    memcpy(list, ts->list, ts->n * sizeof *list);
    mgr_free(ts->list);
    ts->list = list;
    for (size_t i = 0; i < n; i++, ts->n++)
        list[ts->n] = opaque_tensor(&opaque[i], ts->n);
    ts->n_weights = ts->n;
    return MGR_OK;
}

int mgr_tensors_share_opaque(mgr_tensors *ts, const mgr_tensors *from, mgr_err *err)
{
    const uint32_t n = from->n - from->first_opaque;
    /* they are one array of the one who added them */
    return mgr_tensors_add_opaque(ts, n ? from->list[from->first_opaque].opaque : NULL, n, err);
}

void mgr_tensors_clear(mgr_tensors *tensors)
{
    mgr_free(tensors->list);
    mgr_free(tensors->first_of_layer);
    mgr_free(tensors->place);
    mgr_free(tensors->opaque);
    mgr_free(tensors->planes);
    *tensors = (mgr_tensors){0};
}

/* Where one model has it; of several joined, as each has it. */
static uint32_t find_in_each(const mgr_tensors *ts, mgr_role role, uint32_t layer, uint32_t expert)
{
    if (layer == MGR_NONE)
        return ts->top[role];
    if (layer >= ts->model.layers)
        return MGR_NONE;
    const bool moe = mgr_model_is_moe(&ts->model, layer);
    const mgr_layer_index *const kind = &ts->kinds[moe];
    if (kind->at[role] == MGR_NONE || (expert != MGR_NONE && expert >= ts->model.experts))
        return MGR_NONE;
    const bool ffn = mgr_role_is_ffn(role);
    return ts->first_of_layer[layer] + kind->at[role] +
           (ffn ? kind->ffn + kind->per_ffn * (expert == MGR_NONE ? 0 : expert) : 0);
}

static uint32_t find_in(const mgr_tensors *ts, uint32_t source, mgr_role role, uint32_t layer,
                        uint32_t expert)
{
    const uint32_t each = find_in_each(ts, role, layer, expert);
    if (each == MGR_NONE)
        return MGR_NONE;
    const uint32_t idx = ts->place ? ts->place[(size_t)source * ts->n_each + each] : each;
    const mgr_tensor *const t = idx == MGR_NONE ? NULL : &ts->list[idx];
    return t && t->role == role && t->layer == layer && t->expert == expert ? idx : MGR_NONE;
}

uint32_t mgr_tensors_find(const mgr_tensors *ts, mgr_role role, uint32_t layer, uint32_t expert)
{
    return find_in(ts, 0, role, layer, expert);
}

uint32_t mgr_tensors_ffn(const mgr_tensors *ts, mgr_role role, uint32_t layer, uint32_t idx)
{
    if (ts->place)
        return idx < ts->sources ? find_in(ts, idx, role, layer, MGR_NONE) : MGR_NONE;
    return find_in(ts, 0, role, layer, ts->model.experts ? idx : MGR_NONE);
}

uint32_t mgr_tensors_match(const mgr_tensors *ts, const mgr_tensor *tensor)
{
    uint32_t from = ts->first_opaque, to = ts->n;
    if (!tensor->opaque)
        return mgr_tensors_plane(
            ts, mgr_tensors_find(ts, tensor->role, tensor->layer, tensor->expert), tensor->plane);
    while (from < to) {
        const uint32_t mid = from + (to - from) / 2;
        const int order = strcmp(ts->list[mid].opaque->name, tensor->opaque->name);
        if (order == 0)
            return mid;
        from = order < 0 ? mid + 1 : from;
        to = order < 0 ? to : mid;
    }
    return MGR_NONE;
}

const char *mgr_tensor_label(const mgr_tensor *tensor, char *out, size_t size)
{
    const char *const role = mgr_role_name(tensor->role);
    int n = 0;
    if (tensor->opaque)
        n = snprintf(out, size, "tensor '%.60s'", tensor->opaque->name);
    else if (tensor->layer == MGR_NONE)
        n = snprintf(out, size, "%s", role);
    else if (tensor->expert == MGR_NONE)
        n = snprintf(out, size, "layer %u %s", tensor->layer, role);
    else
        n = snprintf(out, size, "layer %u expert %u %s", tensor->layer, tensor->expert, role);
    if (tensor->plane != MGR_PLANE_WEIGHT && n > 0 && (size_t)n < size)
        n += snprintf(out + n, size - (size_t)n, " (%s)", mgr_plane_name(tensor->plane));
    if (tensor->source && n > 0 && (size_t)n < size)
        snprintf(out + n, size - (size_t)n, " of sources[%u]", tensor->source);
    return out;
}

uint64_t mgr_tensors_elements(const mgr_tensors *tensors)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < tensors->n; i++)
        sum += tensors->list[i].rows * tensors->list[i].cols;
    return sum;
}
