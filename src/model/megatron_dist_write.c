/* The targets' half of model/megatron_dist.h. */
#include "model/megatron_dist.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/mem.h"
#include "model/megatron_dist_key.h"
#include "model/megatron_hybrid.h"
#include "model/megatron_kin_dist.h"

#define EXTRA "._extra_state/shard_"

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
    mgr_plane plane; /* at hand */
    /* [of experts] First chunk of each key, MGR_NONE where there is none yet: .metadata names one
     * element type for all of them. */
    uint32_t first_chunk[2][MGR_DIST_KEYS];
    uint32_t first_opaque[2 * 2 * MGR_KIN_ROWS_MOST];
} writer;

static mgr_dist_family family_of(const writer *w)
{
    return w->model->kin       ? MGR_DIST_FAMILY_KIN
           : w->target->hybrid ? MGR_DIST_FAMILY_HYBRID
                               : MGR_DIST_FAMILY_GPT;
}

/* A key while it is declared. */
typedef struct entry {
    const mgr_dist_key *key;
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
    uint32_t within;
    const mgr_stack stack = mgr_model_stack(w->model, e->layer, &within);
    const uint64_t layer = w->target->hybrid ? mgr_megatron_hybrid_layer(role, within) : within;
    w->key.len = 0;
    if (e->layer != MGR_NONE)
        MGR_TRY(mgr_buf_text(&w->key, mgr_kin_layers(stack), err));
    if (e->layer != MGR_NONE && !w->target->stacked)
        MGR_TRY(mgr_buf_fmt(&w->key, err, "%" PRIu64 ".", layer));
    if (e->key && e->key->place == MGR_DIST_INNER)
        MGR_TRY(
            mgr_buf_text(&w->key, e->expert == MGR_NONE ? MGR_DIST_FFN : MGR_DIST_EXPERTS, err));
    return mgr_buf_text(&w->key, name, err);
}

static void forget_chunks(writer *w)
{
    memset(w->first_chunk, 0xff, sizeof w->first_chunk);
}

static int link_chunk(writer *w, const entry *e, uint32_t stored, mgr_err *err)
{
    uint32_t *const first = &w->first_chunk[e->expert != MGR_NONE][e->key - mgr_dist_keys];
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
    mgr_dist_piece c;
    mgr_dist_spot at = {.layout = w->layout, .piece = &c};
    if (e->layer != MGR_NONE && w->target->stacked) {
        uint32_t within;
        (void)mgr_model_stack(w->model, e->layer, &within);
        offset[n++] = within;
    }
    if (e->expert != MGR_NONE)
        offset[n++] = e->expert;
    offset[n] = row;
    shape[n++] = rows;
    if (t->ndim == 2)
        shape[n++] = t->cols;
    w->name.len = 0;
    MGR_TRY(make_key(w, e, e->key->role, e->key->name, err));
    MGR_TRY(mgr_buf_text(&w->name, mgr_dist_prefix(w->plane, w->target->distributed), err));
    MGR_TRY(mgr_megatron_dist_name(&w->name, w->key.data, n, offset, err));
    MGR_TRY(choose_file(w, e->expert, rows * mgr_layout_row_bytes(w->layout, e->idx), &file, err));
    MGR_TRY(mgr_layout_tensor(w->layout, file, w->name.data, n, shape, &at.stored, err));
    MGR_TRY(link_chunk(w, e, at.stored, err));
    if (!mgr_dist_read_piece(&w->layout->cat->stored[at.stored], family_of(w), &c))
        return mgr_fail(err, MGR_ERR_INTERNAL, "chunk '%s' is not read back", w->name.data);
    return mgr_dist_put(&at, err);
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
    const mgr_dist_form form = e->key->form;
    const mgr_role role =
        form == MGR_DIST_GATE_UP && !gated ? (mgr_role)(e->key->role + 1) : e->key->role;
    const mgr_tensors *const ts = w->layout->tensors;
    const uint32_t idx =
        mgr_tensors_plane(ts, mgr_tensors_find(ts, role, e->layer, e->expert), w->plane);
    if (idx == MGR_NONE)
        return MGR_OK;
    e->tensor = &w->layout->tensors->list[idx];
    e->idx = idx;
    const uint64_t rows = e->tensor->rows;
    if (form == MGR_DIST_VOCABULARY)
        return add_vocabulary(w, e, err);
    if (form != MGR_DIST_GATE_UP || !gated)
        return add_chunk(w, e, 0, mgr_dist_whole_rows(w->model, 0, form, e->tensor), err);
    MGR_TRY(add_chunk(w, e, 0, rows, err));
    return add_chunk(w, e, rows, rows, err);
}

static bool is_used(const writer *w, mgr_dist_use use, uint32_t layer)
{
    const bool by_itself =
        w->target->names == MGR_NAMES_TE && layer != MGR_NONE && mgr_model_is_moe(w->model, layer);
    switch (use) {
    case MGR_DIST_ALWAYS:
        return true;
    case MGR_DIST_WITH_FC1:
        return !by_itself;
    case MGR_DIST_BY_ITSELF:
        return by_itself;
    case MGR_DIST_OF_GPT:
        return !w->target->hybrid;
    case MGR_DIST_OF_HYBRID:
        return w->target->hybrid;
    case MGR_DIST_NEVER:
        break;
    }
    return false;
}

static int add_keys(writer *w, size_t from, size_t to, mgr_dist_place place, uint32_t layer,
                    uint32_t expert, mgr_err *err)
{
    for (size_t i = from; i < to; i++) {
        entry e = {.key = &mgr_dist_keys[i], .layer = layer, .expert = expert};
        if (mgr_dist_keys[i].place == place && is_used(w, mgr_dist_keys[i].use, layer))
            MGR_TRY(add_key(w, &e, err));
    }
    return MGR_OK;
}

static int add_layer(writer *w, uint32_t layer, mgr_err *err)
{
    if (!w->target->stacked || layer == mgr_model_stack_first(w->model, MGR_STACK_ENCODER))
        forget_chunks(w);
    MGR_TRY(add_keys(w, 0, MGR_DIST_KEYS, MGR_DIST_LAYER, layer, MGR_NONE, err));
    if (!mgr_model_is_moe(w->model, layer))
        return add_keys(w, 0, MGR_DIST_KEYS, MGR_DIST_INNER, layer, MGR_NONE, err);
    for (uint32_t e = 0; e < w->model->experts; e++)
        MGR_TRY(add_keys(w, 0, MGR_DIST_KEYS, MGR_DIST_INNER, layer, e, err));
    return MGR_OK;
}

/* ---- opaque tensors ---- */

static int add_opaque_chunk(writer *w, mgr_kin_chunk *c, mgr_err *err)
{
    const uint64_t bytes = (c->box.rows + c->pad) * mgr_layout_row_bytes(w->layout, c->box.tensor);
    uint32_t file, *const first = &w->first_opaque[c->kind];
    w->name.len = 0;
    MGR_TRY(mgr_megatron_dist_name(&w->name, c->key, c->ndim, c->offset, err));
    MGR_TRY(choose_file(w, MGR_NONE, bytes, &file, err));
    MGR_TRY(
        mgr_layout_tensor(w->layout, file, w->name.data, c->ndim, c->shape, &c->box.stored, err));
    if (*first == MGR_NONE || (!w->target->stacked && c->box.row == 0))
        *first = c->box.stored; /* of another key */
    MGR_TRY(mgr_layout_link(w->layout, *first, c->box.stored, err));
    MGR_TRY(mgr_layout_fill(w->layout, c->box.stored, c->box.rows, c->pad, err));
    return mgr_layout_box(w->layout, &c->box, err);
}

static int add_opaque(writer *w, mgr_err *err)
{
    const mgr_tensors *const ts = w->layout->tensors;
    memset(w->first_opaque, 0xff, sizeof w->first_opaque);
    for (uint32_t i = ts->first_opaque; w->model->kin && i < ts->n; i++) {
        mgr_kin_chunk c;
        for (uint64_t k = 0; mgr_kin_dist_chunk(w->layout, w->target, i, k, &c); k++)
            MGR_TRY(add_opaque_chunk(w, &c, err));
    }
    return MGR_OK;
}

/* ---- extra states ---- */

typedef enum state_owner {
    OF_ANY,
    OF_DENSE,
    OF_MOE,
    OF_QK_NORM,
    OF_SHARED,
    OF_EXPERT,
    OF_CROSS /* a T5's decoder */
} state_owner;

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
    {MGR_DIST_EXPERTS "linear_fc1", OF_EXPERT},
    {MGR_DIST_EXPERTS "linear_fc2", OF_EXPERT},
    {"cross_attention.linear_q", OF_CROSS},
    {"cross_attention.linear_kv", OF_CROSS},
    {"cross_attention.linear_proj", OF_CROSS},
    {"cross_attention.core_attention", OF_CROSS},
    {"pre_cross_attn_layernorm", OF_CROSS},
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
    case OF_CROSS:
        return w->model->kin == MGR_KIN_T5 &&
               layer < mgr_model_stack_layers(w->model, MGR_STACK_DECODER);
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
    uint32_t within;
    const mgr_stack stack = mgr_model_stack(w->model, layer, &within);
    const unsigned long long layers = mgr_model_stack_layers(w->model, stack);
    const unsigned long long experts = w->model->experts;
    MGR_TRY(make_key(w, &e, role, name, err));
    MGR_TRY(mgr_buf_text(&w->key, EXTRA, err));
    if (axis && expert != MGR_NONE)
        MGR_TRY(mgr_buf_fmt(&w->key, err, "%u.%u_%llu.%llu", within, expert, layers, experts));
    else if (axis)
        MGR_TRY(mgr_buf_fmt(&w->key, err, "%u_%llu", within, layers));
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

static int declare_plane(writer *w, mgr_plane plane, mgr_err *err)
{
    const size_t middle = 2; /* behind the embeddings */
    w->plane = plane;
    forget_chunks(w);
    MGR_TRY(add_keys(w, 0, middle, MGR_DIST_TOP, MGR_NONE, MGR_NONE, err));
    for (uint32_t l = 0; l < w->model->layers; l++)
        MGR_TRY(add_layer(w, l, err));
    return add_keys(w, middle, MGR_DIST_KEYS, MGR_DIST_TOP, MGR_NONE, MGR_NONE, err);
}

static void close_shelves(writer *w)
{
    for (size_t i = 0; i <= w->target->expert_parallel; i++)
        w->shelves[i] = (shelf){.file = MGR_NONE};
}

/* The planes have files of their own: those of the weights are the same with and without them. */
static int declare_planes(writer *w, mgr_err *err)
{
    close_shelves(w);
    for (int p = MGR_PLANE_WEIGHT + 1; p < MGR_PLANE_COUNT; p++)
        if (w->layout->tensors->kept & 1u << p)
            MGR_TRY(declare_plane(w, (mgr_plane)p, err));
    return MGR_OK;
}

/* Outside of layers; vision transformers have nothing there. */
static int add_states_of_kin(writer *w, mgr_err *err)
{
    static const char *const names[] = {"decoder.final_layernorm", "encoder.final_layernorm",
                                        "lm_head.output_layer", "output_layer"};
    for (size_t i = 0; w->model->kin == MGR_KIN_T5 && i < sizeof names / sizeof names[0]; i++)
        MGR_TRY(add_state(w, names[i], MGR_ROLE_FINAL_NORM, MGR_NONE, MGR_NONE, err));
    return MGR_OK;
}

static int declare_all(writer *w, mgr_err *err)
{
    MGR_TRY(declare_plane(w, MGR_PLANE_WEIGHT, err));
    MGR_TRY(add_opaque(w, err));
    MGR_TRY(declare_planes(w, err));
    for (uint32_t l = 0; l < w->model->layers; l++)
        MGR_TRY(add_states(w, l, err));
    const mgr_role norm = MGR_ROLE_FINAL_NORM;
    if (w->model->kin)
        return add_states_of_kin(w, err);
    if (!w->target->hybrid)
        return add_state(w, "decoder.final_layernorm", norm, MGR_NONE, MGR_NONE, err);
    MGR_TRY(add_state(w, "decoder.final_norm", norm, MGR_NONE, MGR_NONE, err));
    return add_state(w, "output_layer", MGR_ROLE_LM_HEAD, MGR_NONE, MGR_NONE, err);
}

int mgr_megatron_dist_declare(mgr_layout *layout, const mgr_megatron_dist_target *target,
                              mgr_err *err)
{
    writer w = {.layout = layout, .target = target, .model = &layout->tensors->model};
    int rc = mgr_alloc(&w.shelves, (size_t)target->expert_parallel + 1, sizeof *w.shelves, err);
    if (rc == MGR_OK) {
        close_shelves(&w);
        rc = declare_all(&w, err);
    }
    mgr_buf_clear(&w.key);
    mgr_buf_clear(&w.name);
    mgr_free(w.shelves);
    return rc;
}
