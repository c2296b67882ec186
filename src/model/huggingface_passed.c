/* Names: transformers' models/<type>/modeling_<type>.py of release 5, as save_pretrained writes
 * them (conversion_mapping.py). */
#include "model/huggingface_passed.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "core/str.h"
#include "model/huggingface_tower.h"

/* ---- dense FFNs ---- */

#define MLP "model.layers.%u.mlp."
#define FEED_FORWARD "model.layers.%u.feed_forward."
#define SHARED "model.layers.%u.shared_mlp."
#define NEOX "gpt_neox.layers.%u.mlp."
#define BLOCK "transformer.h.%u.mlp."
#define VISION "blocks.%u.mlp."
#define PART "model.layers.%u.mlp.gate_up_proj.weight"

/* Where gate and up are one tensor their own names are those that HDF5 has. Those with a gate
 * before those that are the same without one. */
static const struct mlp {
    const char *gate, *up, *down, *fused;
    const char *gate_bias, *up_bias, *down_bias; /* where all are there */
} mlps[] = {
    {.fused = PART}, /* 0: of a class with a row */
    {.up = NULL},    /* every layer has experts */
    {MLP "gate_proj.weight", MLP "up_proj.weight", MLP "down_proj.weight", NULL,
     MLP "gate_proj.bias", MLP "up_proj.bias", MLP "down_proj.bias"},
    {MLP "gate_proj.weight", MLP "up_proj.weight", MLP "down_proj.weight", PART, NULL, NULL, NULL},
    {FEED_FORWARD "gate_proj.weight", FEED_FORWARD "up_proj.weight",
     FEED_FORWARD "down_proj.weight", NULL, NULL, NULL, NULL},
    {FEED_FORWARD "w1.weight", FEED_FORWARD "w3.weight", FEED_FORWARD "w2.weight", NULL, NULL, NULL,
     NULL},
    {VISION "fc1.weight", VISION "fc3.weight", VISION "fc2.weight", NULL, NULL, NULL, NULL},
    {SHARED "gate_proj.weight", SHARED "up_proj.weight", SHARED "output_linear.weight",
     SHARED "input_linear.weight", NULL, NULL, NULL},
    {NULL, MLP "up_proj.weight", MLP "down_proj.weight", NULL, NULL, MLP "up_proj.bias",
     MLP "down_proj.bias"},
    {NULL, MLP "c_fc.weight", MLP "c_proj.weight", NULL, NULL, MLP "c_fc.bias", MLP "c_proj.bias"},
    {NULL, MLP "fc1.weight", MLP "fc2.weight", NULL, NULL, MLP "fc1.bias", MLP "fc2.bias"},
    {NULL, NEOX "dense_h_to_4h.weight", NEOX "dense_4h_to_h.weight", NULL, NULL,
     NEOX "dense_h_to_4h.bias", NEOX "dense_4h_to_h.bias"},
    {NULL, BLOCK "dense_h_to_4h.weight", BLOCK "dense_4h_to_h.weight", NULL, NULL,
     BLOCK "dense_h_to_4h.bias", BLOCK "dense_4h_to_h.bias"},
    {NULL, BLOCK "fc_in.weight", BLOCK "fc_out.weight", NULL, NULL, BLOCK "fc_in.bias",
     BLOCK "fc_out.bias"},
};

#define N_MLPS (sizeof mlps / sizeof mlps[0])
#define NO_MLP 1u
#define FIRST_MLP 2u

/* Where the layers lie. */
static const char *const stems[] = {"model.layers.", "gpt_neox.layers.", "transformer.h.",
                                    "blocks."};

static const mgr_hf_ffn expert_kinds[] = {
    MGR_HF_QWEN_EXPERT,  MGR_HF_PER_EXPERT,    MGR_HF_FEED_FORWARD, MGR_HF_FUSED,
    MGR_HF_INPUT_LINEAR, MGR_HF_GRANITE_FUSED, MGR_HF_DOTS_VISION};

#define N_KINDS (sizeof expert_kinds / sizeof expert_kinds[0])

const char *mgr_huggingface_mlp(unsigned row, mgr_role role)
{
    const struct mlp *const m = &mlps[row < N_MLPS ? row : NO_MLP];
    switch (role) {
    case MGR_ROLE_GATE:
        return m->gate;
    case MGR_ROLE_UP:
        return m->up;
    case MGR_ROLE_DOWN:
        return m->down;
    case MGR_ROLE_GATE_BIAS:
        return m->gate_bias;
    case MGR_ROLE_UP_BIAS:
        return m->up_bias;
    case MGR_ROLE_DOWN_BIAS:
        return m->down_bias;
    default:
        return NULL;
    }
}

const char *mgr_huggingface_mlp_text(unsigned row)
{
    const struct mlp *const m = &mlps[row < N_MLPS ? row : NO_MLP];
    return m->fused ? m->fused : m->gate ? m->gate : m->up ? m->up : "none";
}

unsigned mgr_huggingface_mlp_fuses(unsigned row)
{
    return row < N_MLPS && mlps[row].fused ? MGR_HF_FUSES_GATE_UP : 0;
}

/* The tables are ours; the format strings in them take layer, then expert. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
static void spell(const char *format, uint32_t layer, char out[MGR_HF_NAME_BYTES])
{
    snprintf(out, MGR_HF_NAME_BYTES, format, layer);
}
#pragma GCC diagnostic pop

void mgr_huggingface_fused(const mgr_model *m, uint32_t layer, char out[MGR_HF_NAME_BYTES])
{
    spell(mlps[m->passed < N_MLPS ? m->passed : 0].fused, layer, out);
}

bool mgr_huggingface_passed_texts(const char *dense, const char *experts, mgr_model *m)
{
    unsigned row = NO_MLP;
    size_t kind = 0;
    while (row < N_MLPS && strcmp(mgr_huggingface_mlp_text(row), dense) != 0)
        row++;
    while (*experts && kind < N_KINDS &&
           strcmp(mgr_huggingface_ffn_text(expert_kinds[kind]), experts) != 0)
        kind++;
    if (row == N_MLPS || kind == N_KINDS)
        return false;
    m->passed = (uint8_t)row;
    m->passed_experts = (uint8_t)(*experts ? expert_kinds[kind] : MGR_HF_DENSE);
    return true;
}

/* ---- siblings ---- */

/* Both have the same attention and norms, tensor by tensor and key by key; the router's weights add
 * up to 1. */
static const mgr_hf_sibling siblings[] = {
    {.dense = "cohere2",
     .type = "cohere2_moe",
     .architecture = "Cohere2MoeForCausalLM",
     .ffn = MGR_HF_QWEN_EXPERT,
     .width = "intermediate_size",
     .written = "{\"expert_selection_fn\": \"softmax\", \"norm_topk_prob\": true,"
                " \"num_shared_experts\": 0, \"first_k_dense_replace\": 0}"},
    {.dense = "granite_swa",
     .type = "granitemoe_swa",
     .architecture = "GraniteMoeSWAForCausalLM",
     .ffn = MGR_HF_GRANITE_FUSED,
     .width = "intermediate_size",
     .written = "{\"shared_intermediate_size\": 0}"},
    {.dense = "lfm2",
     .type = "lfm2_moe",
     .architecture = "Lfm2MoeForCausalLM",
     .ffn = MGR_HF_FEED_FORWARD,
     .width = "moe_intermediate_size",
     .written = "{\"norm_topk_prob\": true, \"num_dense_layers\": 0, \"use_expert_bias\": false,"
                " \"routed_scaling_factor\": 1.0}"},
    {.dense = "dots3_note_vision_encoder",
     .type = "dots3_note_vision_encoder",
     .architecture = "Dots3NoteVisionModel",
     .ffn = MGR_HF_DOTS_VISION,
     .width = "moe_intermediate_size",
     .written = "{\"router_scaling_factor\": 1.0, \"per_layer_config\": {}}",
     .kinds = "mlp_layer_types",
     .sigmoid = true},
    {.dense = "qwen3_vl_text",
     .type = "qwen3_vl_moe_text",
     .ffn = MGR_HF_FUSED,
     .width = "moe_intermediate_size",
     .written = "{\"decoder_sparse_step\": 1, \"mlp_only_layers\": []}",
     .host = "qwen3_vl",
     .whole = "qwen3_vl_moe",
     .architecture = "Qwen3VLMoeForConditionalGeneration",
     .vision = "qwen3_vl_moe_vision"},
};

#define N_SIBLINGS (sizeof siblings / sizeof siblings[0])

const mgr_hf_sibling *mgr_huggingface_sibling(unsigned idx)
{
    return idx > 0 && idx <= N_SIBLINGS ? &siblings[idx - 1] : NULL;
}

unsigned mgr_huggingface_sibling_of(const char *dense)
{
    for (unsigned i = 0; i < N_SIBLINGS; i++)
        if (strcmp(siblings[i].dense, dense) == 0)
            return i + 1;
    return 0;
}

unsigned mgr_huggingface_sibling_find(const char *type)
{
    for (unsigned i = 0; i < N_SIBLINGS; i++)
        if (strcmp(siblings[i].type, type) == 0 ||
            (siblings[i].whole && strcmp(siblings[i].whole, type) == 0))
            return i + 1;
    return 0;
}

void mgr_huggingface_become_sibling(mgr_model *m, const char *type)
{
    const unsigned said = mgr_huggingface_sibling_find(type);
    m->sibling = (uint8_t)(said ? said : m->sibling);
    if (!m->sibling)
        return;
    m->passed_experts = (uint8_t)siblings[m->sibling - 1].ffn;
    m->passed_router = true;
    if (!siblings[m->sibling - 1].sigmoid)
        return;
    m->router.score = MGR_SCORE_SIGMOID;
    m->router.selection_bias = true;
}

/* "model.layers.3.mlp." of "model.layers.3.mlp.down_proj.weight" */
static size_t module_of(const mgr_model *m, uint32_t layer, char out[MGR_HF_NAME_BYTES])
{
    size_t len;
    spell(mgr_huggingface_mlp(m->passed, MGR_ROLE_DOWN), layer, out);
    mgr_huggingface_tower_name(m->tower, out);
    len = strlen(out) - strlen(".weight");
    while (len > 0 && out[len - 1] != '.')
        len--;
    return len;
}

const char *mgr_huggingface_passed_stray(const mgr_tensors *ts)
{
    char module[MGR_HF_NAME_BYTES];
    for (uint32_t l = 0; ts->model.passed > NO_MLP && l < ts->model.layers; l++) {
        const size_t len = module_of(&ts->model, l, module);
        for (uint32_t i = ts->first_opaque; i < ts->n; i++)
            if (strncmp(ts->list[i].opaque->name, module, len) == 0)
                return ts->list[i].opaque->name;
    }
    return NULL;
}

/* ---- what is there ---- */

typedef const mgr_stored *entry;

/* The tensors by name, and what was made out so far. */
typedef struct search {
    const mgr_hf_evidence *ev;
    entry *list;
    size_t n;
    uint64_t layers;
    uint8_t tower;
    unsigned mlp;    /* a row of mlps */
    mgr_hf_ffn kind; /* of experts; MGR_HF_DENSE: there are none */
    uint64_t dense_layer, moe_layer;
    mgr_err *err;
} search;

static int by_name(const void *a, const void *b)
{
    return strcmp((*(const entry *)a)->name, (*(const entry *)b)->name);
}

static entry find(const search *s, const char *name)
{
    const mgr_stored wanted = {.name = name};
    const entry key = &wanted;
    const entry *const found = bsearch(&key, s->list, s->n, sizeof *s->list, by_name);
    return found ? *found : NULL;
}

static entry find_dense(const search *s, unsigned row, mgr_role role, uint64_t layer)
{
    char name[MGR_HF_NAME_BYTES];
    const bool fused = mlps[row].fused && role != MGR_ROLE_DOWN;
    const char *const format = fused ? mlps[row].fused : mgr_huggingface_mlp(row, role);
    if (!format)
        return NULL;
    spell(format, (uint32_t)layer, name);
    mgr_huggingface_tower_name(s->tower, name);
    return find(s, name);
}

static entry find_expert(const search *s, mgr_hf_ffn kind, mgr_role role, uint64_t layer,
                         uint32_t expert)
{
    char name[MGR_HF_NAME_BYTES];
    const bool has = mgr_huggingface_name(MGR_HF_PASSED, kind, role, (uint32_t)layer, expert, name);
    mgr_huggingface_tower_name(s->tower, name);
    return has ? find(s, name) : NULL;
}

static bool is_mlp(const search *s, unsigned row, uint64_t layer)
{
    return find_dense(s, row, MGR_ROLE_UP, layer) && find_dense(s, row, MGR_ROLE_DOWN, layer) &&
           (!mlps[row].gate || find_dense(s, row, MGR_ROLE_GATE, layer));
}

static bool has_experts(const search *s, mgr_hf_ffn kind, uint64_t layer)
{
    return find_expert(s, kind, MGR_ROLE_GATE, layer, 0);
}

/* One more than the highest number behind the stem that is there. */
static void count_layers(search *s)
{
    for (size_t k = 0; k < sizeof stems / sizeof stems[0] && s->layers == 0; k++) {
        char stem[MGR_HF_NAME_BYTES];
        snprintf(stem, sizeof stem, "%s", stems[k]);
        mgr_huggingface_tower_name(s->tower, stem);
        for (size_t i = 0; i < s->n; i++) {
            if (!mgr_has_prefix(s->list[i]->name, stem))
                continue;
            const unsigned long idx = strtoul(s->list[i]->name + strlen(stem), NULL, 10);
            if (idx < MGR_MAX_LAYERS && idx + 1 > s->layers)
                s->layers = idx + 1;
        }
    }
}

/* How experts are called: as in the first layer that has any. */
static void find_kind(search *s)
{
    for (uint64_t l = 0; l < s->layers && !s->kind; l++)
        for (size_t k = 0; k < N_KINDS && !s->kind; k++)
            if (has_experts(s, expert_kinds[k], l)) {
                s->kind = expert_kinds[k];
                s->moe_layer = l;
            }
}

/* The model_type of the whole. */
static const char *top_type(const search *s)
{
    return mgr_catalogue_attr(s->ev->cat, s->ev->hf->config, "config.model_type")->text;
}

static int fail(const search *s, uint64_t layer, const char *what)
{
    const char *const type = top_type(s);
    char shown[MGR_HF_SHOWN], known[400];
    return mgr_fail(s->err, MGR_ERR_UNSUPPORTED,
                    "'%s' is of model_type '%s', which is not supported: it is none of %s, and its "
                    "layer %llu %s, so that it cannot be passed through",
                    mgr_hf_path(s->ev), mgr_printable(type, strlen(type), shown, sizeof shown),
                    mgr_huggingface_types(known, sizeof known), (unsigned long long)layer, what);
}

/* How a dense layer's FFN is called, the same in all; which layers have experts. */
static int find_layers(search *s, mgr_model *m)
{
    const char *const what = "has no FFN that is a plain MLP of known names";
    s->mlp = NO_MLP;
    s->dense_layer = s->layers;
    for (uint64_t l = 0; l < s->layers; l++) {
        if (s->kind && has_experts(s, s->kind, l))
            continue;
        for (unsigned row = FIRST_MLP; row < N_MLPS && s->mlp == NO_MLP; row++)
            if (is_mlp(s, row, l)) {
                s->mlp = row;
                s->dense_layer = l;
            }
        if (s->mlp == NO_MLP || !is_mlp(s, s->mlp, l))
            return fail(s, l, what);
        if (s->kind)
            mgr_model_set_dense(m, l);
    }
    return s->layers ? MGR_OK : fail(s, 0, what);
}

/* ---- sizes ---- */

static uint64_t whole(const search *s, const char *const *keys, uint64_t otherwise)
{
    for (; *keys; keys++) {
        const mgr_attr *const a = mgr_hf_arg(s->ev, *keys);
        if (a && a->kind == MGR_ATTR_INT && a->i > 0 && a->i < MGR_HF_MAX_SIZE)
            return (uint64_t)a->i;
    }
    return otherwise;
}

/* A matrix of the model's width on its way out: one that is stored transposed is none. */
static int check_width(const search *s, uint64_t layer, entry down, uint32_t axis, uint64_t *hidden)
{
    static const char *const keys[] = {"hidden_size", "n_embd", "d_model", NULL};
    const uint64_t said = whole(s, keys, *hidden);
    if (axis == 1 && down->ndim == 3 && down->shape[2] == said && down->shape[1] != said)
        return fail(s, layer, "has experts that are fused transposed");
    if (down->ndim != axis + 2 || (said && down->shape[axis] != said))
        return fail(s, layer,
                    "has FFNs that are no matrices [hidden size, neurons], as they are "
                    "behind a plain MLP");
    *hidden = down->shape[axis];
    return MGR_OK;
}

static int dense_sizes(const search *s, mgr_model *m)
{
    static const mgr_role biases[] = {MGR_ROLE_GATE_BIAS, MGR_ROLE_UP_BIAS, MGR_ROLE_DOWN_BIAS};
    const bool gated = mlps[s->mlp].gate;
    const entry down = find_dense(s, s->mlp, MGR_ROLE_DOWN, s->dense_layer);
    if (!down)
        return MGR_OK;
    MGR_TRY(check_width(s, s->dense_layer, down, 0, &m->hidden));
    m->ffn = down->shape[1];
    m->dtype = down->dtype;
    m->activation = gated ? MGR_ACTIVATION_GATED : MGR_ACTIVATION_UNGATED;
    m->bias_mlp = !s->kind && !mlps[s->mlp].fused;
    for (size_t i = gated ? 0 : 1; i < sizeof biases / sizeof biases[0]; i++)
        m->bias_mlp = m->bias_mlp && find_dense(s, s->mlp, biases[i], s->dense_layer);
    return MGR_OK;
}

/* Of a mixture without a gate in its dense layers nothing is known. */
static int expert_sizes(const search *s, mgr_model *m)
{
    static const char *const keys[] = {"num_experts_per_tok", "num_experts_per_token", "moe_k",
                                       "moe_topk", NULL};
    if (!s->kind)
        return MGR_OK;
    const bool fused = mgr_huggingface_is_fused(s->kind);
    const entry down = find_expert(s, s->kind, MGR_ROLE_DOWN, s->moe_layer, 0),
                router = find_expert(s, s->kind, MGR_ROLE_ROUTER, s->moe_layer, 0);
    if (!down || m->activation == MGR_ACTIVATION_UNGATED)
        return fail(s, s->moe_layer, "has experts that are no plain gated MLPs of known names");
    MGR_TRY(check_width(s, s->moe_layer, down, fused, &m->hidden));
    m->expert_ffn = down->shape[fused + 1u];
    m->ffn = m->ffn ? m->ffn : m->expert_ffn;
    m->dtype = down->dtype;
    m->activation = MGR_ACTIVATION_GATED;
    while (!fused && m->experts < MGR_NONE &&
           find_expert(s, s->kind, MGR_ROLE_DOWN, s->moe_layer, (uint32_t)m->experts))
        m->experts++;
    m->experts = fused ? down->shape[0] : m->experts;
    m->top_k = whole(s, keys, 1);
    m->passed_router = router && router->ndim == 2 && router->shape[0] == m->experts &&
                       router->shape[1] == m->hidden;
    m->router.selection_bias =
        m->passed_router && find_expert(s, s->kind, MGR_ROLE_SELECTION_BIAS, s->moe_layer, 0);
    m->router.score = m->router.selection_bias ? MGR_SCORE_SIGMOID : MGR_SCORE_SOFTMAX;
    return MGR_OK;
}

/* What no tensor that is moved depends on, for people and for a new router. */
static void scalars(const search *s, mgr_model *m)
{
    static const char *const heads[] = {"num_attention_heads", "n_head", NULL},
                             *const groups[] = {"num_key_value_heads", NULL},
                             *const widths[] = {"head_dim", NULL},
                             *const vocab[] = {"vocab_size", NULL},
                             *const positions[] = {"max_position_embeddings", NULL};
    const mgr_attr *const std = mgr_hf_arg(s->ev, "initializer_range");
    const mgr_attr *const bos = mgr_hf_arg(s->ev, "bos_token_id");
    const mgr_attr *const eos = mgr_hf_arg(s->ev, "eos_token_id");
    m->heads = whole(s, heads, 1);
    m->kv_groups = whole(s, groups, m->heads);
    m->kv_groups = m->heads % m->kv_groups ? m->heads : m->kv_groups;
    m->head_dim = whole(s, widths, m->hidden >= m->heads ? m->hidden / m->heads : 1);
    m->vocab = whole(s, vocab, 1);
    m->max_positions = whole(s, positions, 0);
    m->init_std = std && std->kind == MGR_ATTR_REAL && std->r > 0 && std->r < 1 ? std->r : 0.02;
    m->bos_token_id = bos && bos->kind == MGR_ATTR_INT && bos->i >= 0 ? bos->i : -1;
    m->eos_token_id = eos && eos->kind == MGR_ATTR_INT && eos->i >= 0 ? eos->i : -1;
}

/* The class for the decoder must be one that the class around it takes. */
static unsigned sibling_of(const search *s)
{
    const mgr_attr *const type = mgr_hf_arg(s->ev, "model_type");
    const unsigned idx = !s->kind && type && type->kind == MGR_ATTR_TEXT
                             ? mgr_huggingface_sibling_of(type->text)
                             : 0;
    const char *const around = *s->ev->hf->section ? top_type(s) : "";
    const char *const host = idx && siblings[idx - 1].host ? siblings[idx - 1].host : "";
    return strcmp(host, around) == 0 || (!*host && mgr_huggingface_takes_any(around)) ? idx : 0;
}

static int derive(search *s, mgr_model *m)
{
    count_layers(s);
    find_kind(s);
    MGR_TRY(find_layers(s, m));
    m->layers = s->layers;
    m->passed = (uint8_t)s->mlp;
    m->passed_experts = (uint8_t)s->kind;
    m->tower = s->tower;
    m->sibling = (uint8_t)sibling_of(s);
    MGR_TRY(dense_sizes(s, m));
    MGR_TRY(expert_sizes(s, m));
    scalars(s, m);
    if (m->ffn && m->hidden && m->top_k <= m->experts)
        return MGR_OK;
    return fail(s, 0, "has an FFN without neurons, or fewer experts than a token takes");
}

int mgr_huggingface_passed_model(const mgr_hf_evidence *ev, mgr_model *model, mgr_err *err)
{
    mgr_model m = {.ffns_only = true};
    search s = {.ev = ev, .err = err, .tower = mgr_huggingface_tower(ev->cat, ev->hf->first_file)};
    int rc = mgr_alloc(&s.list, ev->cat->n_stored, sizeof *s.list, err);
    for (size_t i = 0; rc == MGR_OK && i < ev->cat->n_stored; i++)
        if (ev->cat->stored[i].file >= ev->hf->first_file)
            s.list[s.n++] = &ev->cat->stored[i];
    if (rc == MGR_OK) {
        qsort(s.list, s.n, sizeof *s.list, by_name);
        rc = derive(&s, &m);
    }
    mgr_free(s.list);
    if (rc == MGR_OK)
        *model = m;
    return rc;
}
