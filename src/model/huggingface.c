#include "model/huggingface.h"

#include <stdio.h>
#include <string.h>

#include "core/mem.h"
#include "core/str.h"
#include "model/huggingface_passed.h"
#include "model/huggingface_t5.h"
#include "model/huggingface_tower.h"
#include "model/mtp.h"
#include "model/opaque.h"

/* Roles that most models name alike; %u is the layer. */
static const char *const common_names[MGR_ROLE_COUNT] = {
    [MGR_ROLE_EMBEDDING] = "model.embed_tokens.weight",
    [MGR_ROLE_ATTN_NORM] = "model.layers.%u.input_layernorm.weight",
    [MGR_ROLE_Q] = "model.layers.%u.self_attn.q_proj.weight",
    [MGR_ROLE_K] = "model.layers.%u.self_attn.k_proj.weight",
    [MGR_ROLE_V] = "model.layers.%u.self_attn.v_proj.weight",
    [MGR_ROLE_Q_BIAS] = "model.layers.%u.self_attn.q_proj.bias",
    [MGR_ROLE_K_BIAS] = "model.layers.%u.self_attn.k_proj.bias",
    [MGR_ROLE_V_BIAS] = "model.layers.%u.self_attn.v_proj.bias",
    [MGR_ROLE_Q_NORM] = "model.layers.%u.self_attn.q_norm.weight",
    [MGR_ROLE_K_NORM] = "model.layers.%u.self_attn.k_norm.weight",
    [MGR_ROLE_O] = "model.layers.%u.self_attn.o_proj.weight",
    [MGR_ROLE_O_BIAS] = "model.layers.%u.self_attn.o_proj.bias",
    [MGR_ROLE_MLP_NORM] = "model.layers.%u.post_attention_layernorm.weight",
    [MGR_ROLE_ATTN_OUT_NORM] = "model.layers.%u.post_attention_layernorm.weight",
    [MGR_ROLE_MLP_OUT_NORM] = "model.layers.%u.post_feedforward_layernorm.weight",
    [MGR_ROLE_FINAL_NORM] = "model.norm.weight",
    [MGR_ROLE_LM_HEAD] = "lm_head.weight",
};

/* Those of the FFN and its router; the second %u is the expert. */
static const char *const ffn_names[][MGR_ROLE_COUNT] = {
    [MGR_HF_DENSE] =
        {
            [MGR_ROLE_GATE] = "model.layers.%u.mlp.gate_proj.weight",
            [MGR_ROLE_UP] = "model.layers.%u.mlp.up_proj.weight",
            [MGR_ROLE_DOWN] = "model.layers.%u.mlp.down_proj.weight",
            [MGR_ROLE_GATE_BIAS] = "model.layers.%u.mlp.gate_proj.bias",
            [MGR_ROLE_UP_BIAS] = "model.layers.%u.mlp.up_proj.bias",
            [MGR_ROLE_DOWN_BIAS] = "model.layers.%u.mlp.down_proj.bias",
        },
    [MGR_HF_PER_EXPERT] =
        {
            [MGR_ROLE_ROUTER] = "model.layers.%u.block_sparse_moe.gate.weight",
            [MGR_ROLE_GATE] = "model.layers.%u.block_sparse_moe.experts.%u.w1.weight",
            [MGR_ROLE_UP] = "model.layers.%u.block_sparse_moe.experts.%u.w3.weight",
            [MGR_ROLE_DOWN] = "model.layers.%u.block_sparse_moe.experts.%u.w2.weight",
        },
    [MGR_HF_QWEN_EXPERT] =
        {
            [MGR_ROLE_ROUTER] = "model.layers.%u.mlp.gate.weight",
            [MGR_ROLE_GATE] = "model.layers.%u.mlp.experts.%u.gate_proj.weight",
            [MGR_ROLE_UP] = "model.layers.%u.mlp.experts.%u.up_proj.weight",
            [MGR_ROLE_DOWN] = "model.layers.%u.mlp.experts.%u.down_proj.weight",
        },
    [MGR_HF_FUSED] =
        {
            [MGR_ROLE_ROUTER] = "model.layers.%u.mlp.gate.weight",
            [MGR_ROLE_GATE] = "model.layers.%u.mlp.experts.gate_up_proj",
            [MGR_ROLE_UP] = "model.layers.%u.mlp.experts.gate_up_proj",
            [MGR_ROLE_DOWN] = "model.layers.%u.mlp.experts.down_proj",
        },
    [MGR_HF_INPUT_LINEAR] =
        {
            [MGR_ROLE_ROUTER] = "model.layers.%u.block_sparse_moe.router.layer.weight",
            [MGR_ROLE_GATE] = "model.layers.%u.block_sparse_moe.input_linear.weight",
            [MGR_ROLE_UP] = "model.layers.%u.block_sparse_moe.input_linear.weight",
            [MGR_ROLE_DOWN] = "model.layers.%u.block_sparse_moe.output_linear.weight",
        },
    [MGR_HF_GRANITE_FUSED] =
        {
            [MGR_ROLE_ROUTER] = "model.layers.%u.block_sparse_moe.router.weight",
            [MGR_ROLE_GATE] = "model.layers.%u.block_sparse_moe.experts.gate_up_proj",
            [MGR_ROLE_UP] = "model.layers.%u.block_sparse_moe.experts.gate_up_proj",
            [MGR_ROLE_DOWN] = "model.layers.%u.block_sparse_moe.experts.down_proj",
        },
    [MGR_HF_FEED_FORWARD] =
        {
            [MGR_ROLE_ROUTER] = "model.layers.%u.feed_forward.gate.weight",
            [MGR_ROLE_GATE] = "model.layers.%u.feed_forward.experts.%u.w1.weight",
            [MGR_ROLE_UP] = "model.layers.%u.feed_forward.experts.%u.w3.weight",
            [MGR_ROLE_DOWN] = "model.layers.%u.feed_forward.experts.%u.w2.weight",
        },
    [MGR_HF_DOTS_VISION] =
        {
            [MGR_ROLE_ROUTER] = "blocks.%u.mlp.gate_weight",
            [MGR_ROLE_SELECTION_BIAS] = "blocks.%u.mlp.router_bias",
            [MGR_ROLE_GATE] = "blocks.%u.mlp.experts.%u.fc1.weight",
            [MGR_ROLE_UP] = "blocks.%u.mlp.experts.%u.fc3.weight",
            [MGR_ROLE_DOWN] = "blocks.%u.mlp.experts.%u.fc2.weight",
        },
};

#define FUSED_QKV "model.layers.%u.self_attn.qkv_proj.weight"
#define FUSED_SHARED "model.layers.%u.shared_mlp.input_linear.weight"

static const char *own_name(const mgr_hf_name *names, mgr_role role)
{
    for (; names && names->name; names++)
        if (names->role == role)
            return names->name;
    return NULL;
}

/* The class's own name, else the common one, else the FFN's. */
static const char *format_of(mgr_hf_class class, mgr_hf_ffn ffn, mgr_role role, mgr_stack stack)
{
    const mgr_hf_family *const family = mgr_huggingface_family(class);
    if (ffn > MGR_HF_MLPS)
        return mgr_huggingface_mlp(ffn - MGR_HF_MLPS, role);
    if (family && family->name_of)
        return family->name_of(ffn != MGR_HF_DENSE, role, stack);
    const bool in_memory = family && ffn == mgr_huggingface_memory(family);
    const char *const fused = in_memory ? own_name(family->memory_names, role) : NULL;
    const char *const own = family ? own_name(family->names, role) : NULL;
    return fused                ? fused
           : own                ? own
           : common_names[role] ? common_names[role]
                                : ffn_names[ffn][role];
}

bool mgr_huggingface_name(mgr_hf_class class, mgr_hf_ffn ffn, mgr_role role, uint32_t layer,
                          uint32_t expert, char out[MGR_HF_NAME_BYTES])
{
    const char *const format = format_of(class, ffn, role, mgr_layer_key_stack(layer));
    out[0] = '\0';
    /* the tables are ours; the format strings in them take layer, then expert */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    if (format)
        snprintf(out, MGR_HF_NAME_BYTES, format, mgr_layer_key_layer(layer), expert);
#pragma GCC diagnostic pop
    return format;
}

/* Tensors that share a stored one. */
typedef enum fusion {
    APART,
    QKV,
    GATE_UP,
    SHARED_GATE_UP,
    EXPERTS_GATE_UP,
    EXPERTS_DOWN,
    N_FUSIONS
} fusion;

/* What a pass over the tensors needs. */
typedef struct walk {
    mgr_layout *layout;
    const mgr_huggingface *hf;
    const uint32_t *shard;     /* file of each tensor, of a target; else NULL */
    uint32_t hint;             /* file in which the last one was found, of a source */
    uint32_t fused[N_FUSIONS]; /* the last stored tensor of each kind */
} walk;

static unsigned fuses(const walk *w)
{
    const mgr_hf_family *const f = mgr_huggingface_family(w->hf->class);
    const mgr_model *const m = &w->layout->tensors->model;
    return m->passed ? mgr_huggingface_mlp_fuses(m->passed) : f ? f->fuses : 0;
}

static fusion fusion_of(const walk *w, const mgr_tensor *t)
{
    const bool down = t->role == MGR_ROLE_DOWN,
               halves = t->role == MGR_ROLE_GATE || t->role == MGR_ROLE_UP;
    if (t->role == MGR_ROLE_Q || t->role == MGR_ROLE_K || t->role == MGR_ROLE_V)
        return fuses(w) & MGR_HF_FUSES_QKV ? QKV : APART;
    if (t->role == MGR_ROLE_SHARED_GATE || t->role == MGR_ROLE_SHARED_UP)
        return fuses(w) & MGR_HF_FUSES_SHARED ? SHARED_GATE_UP : APART;
    if (!down && !halves)
        return APART;
    if (t->expert == MGR_NONE)
        return halves && (fuses(w) & MGR_HF_FUSES_GATE_UP) ? GATE_UP : APART;
    return !mgr_huggingface_is_fused(w->hf->ffn) ? APART : down ? EXPERTS_DOWN : EXPERTS_GATE_UP;
}

/* The first of those that share a stored tensor; it comes first in the list, too. */
static bool leads(const walk *w, const mgr_tensor *t)
{
    switch (fusion_of(w, t)) {
    case QKV:
        return t->role == MGR_ROLE_Q;
    case GATE_UP:
        return t->role == MGR_ROLE_GATE;
    case SHARED_GATE_UP:
        return t->role == MGR_ROLE_SHARED_GATE;
    case EXPERTS_GATE_UP:
    case EXPERTS_DOWN:
        return t->expert == 0 && t->role != MGR_ROLE_UP;
    case APART:
    case N_FUSIONS:
        break;
    }
    return true;
}

/* Rows of q, k and v, up to `t` and without it, or all three. */
static uint64_t qkv_rows(const mgr_tensors *ts, const mgr_tensor *t, bool all)
{
    const mgr_tensor *const q = &ts->list[t->bundle];
    return all ? q[0].rows + q[1].rows + q[2].rows
               : (t > q ? q[0].rows : 0) + (t > q + 1 ? q[1].rows : 0);
}

/* Rows of one matrix of the stored tensor: that of all it holds but for the experts. */
static uint64_t stored_rows(const walk *w, const mgr_tensor *t)
{
    const bool vocabulary = t->role == MGR_ROLE_EMBEDDING || t->role == MGR_ROLE_LM_HEAD;
    switch (fusion_of(w, t)) {
    case QKV:
        return qkv_rows(w->layout->tensors, t, true);
    case GATE_UP:
    case SHARED_GATE_UP:
    case EXPERTS_GATE_UP:
        return 2 * t->rows;
    case APART:
    case EXPERTS_DOWN:
    case N_FUSIONS:
        break;
    }
    return vocabulary && w->hf->vocab_rows ? w->hf->vocab_rows : t->rows;
}

/* First row of the tensor in the stored one, seen as a matrix. */
static uint64_t first_row(const walk *w, const mgr_tensor *t)
{
    const uint64_t e = t->expert, up = t->role == MGR_ROLE_UP || t->role == MGR_ROLE_SHARED_UP;
    switch (fusion_of(w, t)) {
    case QKV:
        return qkv_rows(w->layout->tensors, t, false);
    case GATE_UP:
    case SHARED_GATE_UP:
        return up * t->rows;
    case EXPERTS_GATE_UP:
        return (2 * e + up) * t->rows;
    case EXPERTS_DOWN:
        return e * t->rows;
    case APART:
    case N_FUSIONS:
        break;
    }
    return 0;
}

/* Shape of the stored tensor that `t` leads, 1 behind the last axis; returns the number of axes. */
static uint32_t stored_shape(const walk *w, const mgr_tensor *t, uint64_t shape[MGR_MAX_NDIM])
{
    const fusion f = fusion_of(w, t);
    if (t->opaque) {
        memcpy(shape, t->opaque->shape, sizeof t->opaque->shape);
        return t->opaque->ndim;
    }
    const bool experts = f == EXPERTS_GATE_UP || f == EXPERTS_DOWN;
    uint64_t *const matrix = shape + experts;
    shape[0] = w->layout->tensors->model.experts;
    shape[1] = shape[2] = 1;
    matrix[0] = stored_rows(w, t);
    matrix[1] = t->cols;
    if (t->role == MGR_ROLE_SELECTION_BIAS && mgr_huggingface_family(w->hf->class)->row_bias) {
        shape[0] = 1;
        shape[1] = t->rows;
        return 2;
    }
    return t->ndim + experts;
}

/* ---- a target's shards ---- */

/* How often it is stored. */
static uint64_t places_of(const walk *w, const mgr_tensor *t)
{
    unsigned again = 0;
    if (strcmp(t->opaque->name, MGR_HF_T5_EMBEDDING) == 0)
        while (mgr_huggingface_t5_again(&w->layout->tensors->model, again))
            again++;
    return 1 + again;
}

static uint64_t stored_bytes(const walk *w, const mgr_tensor *t)
{
    uint64_t shape[MGR_MAX_NDIM];
    const mgr_dtype dtype = w->layout->types[t - w->layout->tensors->list];
    if (t->opaque)
        return t->rows * t->cols * mgr_dtype_size(dtype) * places_of(w, t);
    stored_shape(w, t, shape);
    return shape[0] * shape[1] * shape[2] * mgr_dtype_size(dtype);
}

static int32_t owner_of(const walk *w, const mgr_tensor *t)
{
    const uint64_t experts = w->layout->tensors->model.experts;
    return t->expert == MGR_NONE ? -1 : (int32_t)(t->expert / (experts / w->hf->expert_parallel));
}

/* Number the shards: shard[i] of tensor i, owner[s] of shard s. Returns how many there are. */
static uint32_t assign_shards(const walk *w, uint32_t *shard, int32_t *owner)
{
    const mgr_tensors *const ts = w->layout->tensors;
    uint32_t n = 0;
    for (int32_t who = -1; who < (int32_t)w->hf->expert_parallel; who++) {
        uint64_t filled = 0;
        for (uint32_t i = 0; i < ts->n; i++) {
            const mgr_tensor *const t = &ts->list[i];
            if (!leads(w, t) || owner_of(w, t) != who)
                continue;
            const uint64_t bytes = stored_bytes(w, t);
            if (filled == 0 || filled + bytes > w->hf->max_shard_size) {
                owner[n++] = who;
                filled = 0;
            }
            shard[i] = n - 1;
            filled += bytes;
        }
    }
    return n;
}

static int add_shards(const walk *w, uint32_t *shard, mgr_err *err)
{
    mgr_layout *const layout = w->layout;
    const uint32_t first = (uint32_t)layout->cat->n_files, n = layout->tensors->n;
    uint32_t file;
    MGR_TRY(mgr_alloc(&layout->file_owner, n, sizeof *layout->file_owner, err));
    const uint32_t shards = assign_shards(w, shard, layout->file_owner);
    for (uint32_t s = 0; s < shards; s++) {
        char path[64];
        if (shards == 1)
            snprintf(path, sizeof path, "model.safetensors");
        else
            snprintf(path, sizeof path, "model-%05u-of-%05u.safetensors", s + 1, shards);
        MGR_TRY(mgr_catalogue_add_file(layout->cat, path, 0, &file, err));
    }
    for (uint32_t i = 0; i < n; i++)
        shard[i] += first;
    return MGR_OK;
}

/* ---- both ---- */

/* The file that holds `name`; the search begins where the last one was. */
static uint32_t file_of(const walk *w, const char *name)
{
    const mgr_huggingface *const hf = w->hf;
    for (uint32_t k = 0; k < hf->n_files; k++) {
        const uint32_t file = hf->first_file + (w->hint - hf->first_file + k) % hf->n_files;
        if (mgr_layout_has(w->layout, file, name))
            return file;
    }
    return MGR_NONE;
}

/* The name of what is stored of `t`, as that of `role`; of a decoder that is the whole model. */
static bool bare_name(const walk *w, const mgr_tensor *t, mgr_role role,
                      char name[MGR_HF_NAME_BYTES])
{
    const bool dense = mgr_role_is_ffn(t->role) && t->expert == MGR_NONE;
    switch (fusion_of(w, t)) {
    case QKV:
        snprintf(name, MGR_HF_NAME_BYTES, FUSED_QKV, t->layer);
        return true;
    case GATE_UP:
        mgr_huggingface_fused(&w->layout->tensors->model, t->layer, name);
        return true;
    case SHARED_GATE_UP:
        snprintf(name, MGR_HF_NAME_BYTES, FUSED_SHARED, t->layer);
        return true;
    case APART:
    case EXPERTS_GATE_UP:
    case EXPERTS_DOWN:
    case N_FUSIONS:
        break;
    }
    const uint32_t layer = mgr_model_layer_key(&w->layout->tensors->model, t->layer);
    const mgr_hf_ffn ffn = dense ? mgr_huggingface_dense(&w->layout->tensors->model) : w->hf->ffn;
    return mgr_huggingface_name(w->hf->class, ffn, role, layer, t->expert, name);
}

static bool name_of(const walk *w, const mgr_tensor *t, mgr_role role, char name[MGR_HF_NAME_BYTES])
{
    const bool found = bare_name(w, t, role, name);
    mgr_huggingface_tower_name(w->layout->tensors->model.tower, name);
    return found;
}

/* Find or declare what is stored of tensor `idx` under the name of `role`. */
static int stored_of(walk *w, uint32_t idx, mgr_role role, uint32_t *stored, mgr_err *err)
{
    const mgr_tensor *const t = &w->layout->tensors->list[idx];
    uint64_t shape[MGR_MAX_NDIM];
    char known[MGR_HF_NAME_BYTES], label[96];
    const char *const name = t->opaque ? t->opaque->name : known;
    if (!t->opaque && !name_of(w, t, role, known))
        return mgr_fail(err, MGR_ERR_UNSUPPORTED, "%s cannot be expressed in a Hugging Face layout",
                        mgr_tensor_label(t, label, sizeof label));
    const uint32_t file = w->shard ? w->shard[idx] : file_of(w, name);
    if (file == MGR_NONE)
        return mgr_fail(err, MGR_ERR_FORMAT,
                        w->hf->n_files > 1
                            ? "tensor '%s' is missing in '%s' and the files beside it"
                            : "tensor '%s' is missing in '%s'",
                        name, w->layout->cat->files[w->hf->first_file].path);
    w->hint = file;
    const uint32_t ndim = stored_shape(w, t, shape);
    return mgr_layout_tensor(w->layout, file, name, ndim, shape, stored, err);
}

static int place(walk *w, uint32_t idx, mgr_err *err)
{
    const mgr_tensor *const t = &w->layout->tensors->list[idx];
    uint32_t *const stored = &w->fused[fusion_of(w, t)];
    if (leads(w, t))
        MGR_TRY(stored_of(w, idx, t->role, stored, err));
    const mgr_box box = {.tensor = idx,
                         .stored = *stored,
                         .rows = t->rows,
                         .cols = t->cols,
                         .stored_row = first_row(w, t)};
    return mgr_layout_box(w->layout, &box, err);
}

static bool same_place(const mgr_stored *a, const mgr_stored *b)
{
    return a->file == b->file && a->offset == b->offset &&
           memcmp(a->stride, b->stride, sizeof a->stride) == 0;
}

/* Some checkpoints of tied models store the head too. A .bin may mean the same bytes by both names,
 * which are then read once; others must be equal. */
static int tied_head(walk *w, mgr_err *err)
{
    mgr_layout *const layout = w->layout;
    const uint32_t idx = mgr_tensors_find(layout->tensors, MGR_ROLE_EMBEDDING, MGR_NONE, MGR_NONE);
    const mgr_tensor *const t = &layout->tensors->list[idx];
    uint32_t embedding, head;
    char name[MGR_HF_NAME_BYTES];
    if (w->shard || !name_of(w, t, MGR_ROLE_LM_HEAD, name) || file_of(w, name) == MGR_NONE)
        return MGR_OK;
    MGR_TRY(stored_of(w, idx, MGR_ROLE_LM_HEAD, &head, err));
    MGR_TRY(stored_of(w, idx, MGR_ROLE_EMBEDDING, &embedding, err));
    if (same_place(&layout->cat->stored[head], &layout->cat->stored[embedding]))
        return MGR_OK;
    return mgr_layout_box(
        layout,
        &(mgr_box){.tensor = idx, .copy = 1, .stored = head, .rows = t->rows, .cols = t->cols},
        err);
}

/* The matrices of a shared expert without neurons, which hold nothing and are there. transformers
 * writes them, too, and takes a file without them. */
static int hollow(const walk *w, uint32_t layer, mgr_err *err)
{
    static const mgr_role roles[] = {MGR_ROLE_SHARED_GATE, MGR_ROLE_SHARED_UP,
                                     MGR_ROLE_SHARED_DOWN};
    const uint64_t hidden = w->layout->tensors->model.hidden;
    char name[MGR_HF_NAME_BYTES];
    uint32_t stored;
    for (size_t i = 0; i < sizeof roles / sizeof roles[0]; i++) {
        const bool down = roles[i] == MGR_ROLE_SHARED_DOWN;
        const uint64_t shape[2] = {down ? hidden : 0, down ? 0 : hidden};
        mgr_huggingface_name(w->hf->class, w->hf->ffn, roles[i], layer, 0, name);
        mgr_huggingface_tower_name(w->layout->tensors->model.tower, name);
        const uint32_t file = w->shard ? w->shard[0] : file_of(w, name);
        if (file != MGR_NONE)
            MGR_TRY(mgr_layout_tensor(w->layout, file, name, 2, shape, &stored, err));
    }
    return MGR_OK;
}

static const mgr_tensor *find_opaque(const mgr_tensors *ts, const char *name)
{
    const mgr_opaque named = {.name = name};
    const uint32_t idx = mgr_tensors_match(ts, &(mgr_tensor){.opaque = &named});
    return idx == MGR_NONE ? NULL : &ts->list[idx];
}

/* The embedding of a Switch with a head of its own, once more for each stack. */
static int embed_again(const walk *w, mgr_err *err)
{
    const mgr_tensors *const ts = w->layout->tensors;
    const mgr_tensor *const t = find_opaque(ts, MGR_HF_T5_EMBEDDING);
    uint32_t copies = 0, stored;
    const char *name;
    for (unsigned k = 0; t && (name = mgr_huggingface_t5_again(&ts->model, k)) != NULL; k++) {
        const uint32_t idx = (uint32_t)(t - ts->list),
                       file = w->shard ? w->shard[idx] : file_of(w, name);
        if (file == MGR_NONE || find_opaque(ts, name))
            continue;
        MGR_TRY(mgr_layout_tensor(w->layout, file, name, t->opaque->ndim, t->opaque->shape, &stored,
                                  err));
        const mgr_box box = {
            .tensor = idx, .copy = ++copies, .stored = stored, .rows = t->rows, .cols = t->cols};
        MGR_TRY(mgr_layout_box(w->layout, &box, err));
    }
    return MGR_OK;
}

static int hollow_layers(const walk *w, mgr_err *err)
{
    const mgr_model *const m = &w->layout->tensors->model;
    const mgr_hf_family *const f = mgr_huggingface_family(w->hf->class);
    const bool is = f && f->hollow && m->experts && !m->shared_ffn;
    for (uint32_t layer = 0; is && layer < m->layers; layer++)
        if (mgr_model_is_moe(m, layer))
            MGR_TRY(hollow(w, layer, err));
    return MGR_OK;
}

int mgr_huggingface_layout(mgr_layout *layout, const mgr_huggingface *hf, mgr_err *err)
{
    const uint32_t n = layout->tensors->n;
    walk w = {.layout = layout, .hf = hf, .hint = hf->first_file};
    uint32_t *shard = NULL;
    int rc = MGR_OK;
    if (layout->declare) {
        rc = mgr_alloc(&shard, n, sizeof *shard, err);
        if (rc == MGR_OK)
            rc = add_shards(&w, shard, err);
        w.shard = shard;
    }
    for (uint32_t i = 0; rc == MGR_OK && i < n; i++)
        rc = place(&w, i, err);
    if (rc == MGR_OK && layout->tensors->model.tied && !layout->tensors->model.ffns_only)
        rc = tied_head(&w, err);
    if (rc == MGR_OK)
        rc = hollow_layers(&w, err);
    if (rc == MGR_OK)
        rc = embed_again(&w, err);
    if (rc == MGR_OK && !layout->declare && n > layout->tensors->first_opaque)
        rc = mgr_opaque_aliases(layout, hf->first_file, err);
    mgr_free(shard);
    return rc;
}

/* What a tensor is stored as, for mgr_opaque_find. */
static bool namer(const void *context, const mgr_tensors *ts, const mgr_tensor *t,
                  char name[MGR_HF_NAME_BYTES])
{
    mgr_layout layout = {.tensors = ts};
    const walk w = {.layout = &layout, .hf = context};
    return leads(&w, t) && name_of(&w, t, t->role, name);
}

/* What is no tensor beside the model: of one that is known whole all but what is for multi-token
 * prediction. */
static bool is_none(const mgr_catalogue *cat, const mgr_model *m, const mgr_stored *s)
{
    return m->ffns_only || m->tower ? mgr_huggingface_t5_repeats(cat, m, s)
                                    : mgr_mtp_is_other(cat, m, s);
}

/* Where weights are FP8 their scales are none either: a scale goes with its weight, and one without
 * is left over, which is refused. */
static bool is_none_of_fp8(const mgr_catalogue *cat, const mgr_model *m, const mgr_stored *s)
{
    return mgr_has_suffix(s->name, MGR_HF_SCALE) || is_none(cat, m, s);
}

static bool has_fp8(const mgr_catalogue *cat)
{
    for (size_t i = 0; i < cat->n_stored; i++)
        if (cat->stored[i].offset >= MGR_VIRTUAL_OFFSET)
            return true;
    return false;
}

int mgr_huggingface_opaque(const mgr_catalogue *cat, const mgr_huggingface *hf,
                           mgr_tensors *tensors, mgr_err *err)
{
    return mgr_model_is_part(&tensors->model)
               ? mgr_opaque_find(tensors, cat, hf->first_file, namer,
                                 has_fp8(cat) ? is_none_of_fp8 : is_none, hf, err)
               : MGR_OK;
}

const char *mgr_huggingface_ffn_text(mgr_hf_ffn ffn)
{
    if (ffn > MGR_HF_MLPS)
        return mgr_huggingface_mlp_text(ffn - MGR_HF_MLPS);
    const bool known = ffn > MGR_HF_DENSE && ffn < MGR_HF_MLPS;
    const char *const name = known ? ffn_names[ffn][MGR_ROLE_GATE] : NULL;
    return name ? name : "";
}

mgr_hf_ffn mgr_huggingface_dense(const mgr_model *m)
{
    return m->passed ? (mgr_hf_ffn)(MGR_HF_MLPS + m->passed) : MGR_HF_DENSE;
}

mgr_hf_ffn mgr_huggingface_ffn(const mgr_model *m)
{
    const mgr_hf_family *const family = mgr_huggingface_family(mgr_huggingface_class(m));
    if (m->experts == 0 || !family)
        return MGR_HF_DENSE;
    const mgr_hf_ffn ffn = m->passed ? (mgr_hf_ffn)m->passed_experts : family->ffn;
    return mgr_huggingface_is_fused(ffn) ? MGR_HF_PER_EXPERT : ffn;
}
