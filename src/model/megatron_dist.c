#include "model/megatron_dist.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/megatron.h"

#define LAYERS "decoder.layers."
#define MAX_LAYERS 1000000u

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

/* What a key is, below "decoder.layers.[<i>.]" or at the top. */
typedef enum kind {
    KIND_EMBEDDING,
    KIND_FINAL_NORM,
    KIND_OUTPUT,
    KIND_ATTN_NORM,
    KIND_QKV,
    KIND_PROJ,
    KIND_MLP_NORM,
    KIND_FC1,
    KIND_GATE,
    KIND_UP,
    KIND_FC2,
    KIND_UNKNOWN
} kind;

/* Norms of the local spec are renamed on saving, but files of other writers may hold them. */
static const struct {
    kind kind;
    bool of_layer;
    const char *name;
} keys[] = {
    {KIND_EMBEDDING, false, "embedding.word_embeddings.weight"},
    {KIND_FINAL_NORM, false, "decoder.final_layernorm.weight"},
    {KIND_OUTPUT, false, "output_layer.weight"},
    {KIND_ATTN_NORM, true, "self_attention.linear_qkv.layer_norm_weight"},
    {KIND_ATTN_NORM, true, "input_layernorm.weight"},
    {KIND_QKV, true, "self_attention.linear_qkv.weight"},
    {KIND_PROJ, true, "self_attention.linear_proj.weight"},
    {KIND_MLP_NORM, true, "mlp.linear_fc1.layer_norm_weight"},
    {KIND_MLP_NORM, true, "pre_mlp_layernorm.weight"},
    {KIND_FC1, true, "mlp.linear_fc1.weight"},
    {KIND_GATE, true, "mlp.linear_fc1.weight_w"}, /* singleton_local_shards */
    {KIND_UP, true, "mlp.linear_fc1.weight_v"},
    {KIND_FC2, true, "mlp.linear_fc2.weight"},
};

/* One chunk, in the terms of its matrix or vector. */
typedef struct piece {
    const mgr_stored *stored;
    kind kind;
    bool of_layer;
    uint64_t layer, layers; /* those that it holds: more than one only where they are stacked */
    bool stacked;
    uint32_t ndim; /* without the layers' axis; a vector has one column */
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

static kind find_kind(const char *key, size_t len, bool of_layer)
{
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++)
        if (keys[i].of_layer == of_layer && strlen(keys[i].name) == len &&
            strncmp(keys[i].name, key, len) == 0)
            return keys[i].kind;
    return KIND_UNKNOWN;
}

/* "<i>." of a key per layer; a stacked key has a name there. */
static const char *skip_layer(const char *key, size_t *len, piece *p)
{
    char *end;
    p->stacked = *key < '0' || *key > '9';
    if (p->stacked)
        return key;
    p->layer = strtoull(key, &end, 10);
    const size_t used = (size_t)(end - key) + 1;
    if (*end != '.' || used > *len || p->layer >= MAX_LAYERS)
        return NULL;
    *len -= used;
    return end + 1;
}

/* False for a tensor that is none of ours; layout_finish names it. */
static bool read_piece(const mgr_stored *s, piece *p)
{
    uint64_t offset[MGR_MAX_NDIM] = {0};
    size_t len;
    *p = (piece){.stored = s, .layers = 1, .cols = 1};
    if (!mgr_megatron_dist_parse(s, &len, offset))
        return false;
    const char *key = skip_wrappers(s->name, &len);
    const char *const below = skip_prefix(key, LAYERS, &len);
    p->of_layer = below != NULL;
    key = below ? skip_layer(below, &len, p) : key;
    p->kind = key ? find_kind(key, len, p->of_layer) : KIND_UNKNOWN;
    const uint32_t lead = p->stacked ? 1 : 0;
    if (p->kind == KIND_UNKNOWN || s->ndim < lead + 1 || s->ndim > lead + 2)
        return false;
    if (p->stacked) {
        p->layer = offset[0];
        p->layers = s->shape[0];
    }
    p->ndim = s->ndim - lead;
    p->row = offset[lead];
    p->rows = s->shape[lead];
    if (p->ndim == 2) {
        p->col = offset[lead + 1];
        p->cols = s->shape[lead + 1];
    }
    return p->layer < MAX_LAYERS && p->layers <= MAX_LAYERS;
}

/* ---- the model ---- */

typedef struct extents {
    uint64_t rows[KIND_UNKNOWN], cols[KIND_UNKNOWN]; /* of the whole tensor of a kind */
    uint64_t layers, most_layers;
    mgr_dtype dtype;
} extents;

static void raise_to(uint64_t *most, uint64_t value)
{
    *most = value > *most ? value : *most;
}

static void measure(const mgr_catalogue *cat, extents *e, mgr_megatron_dist *dist)
{
    for (size_t i = 0; i < cat->n_stored; i++) {
        piece p;
        if (!read_piece(&cat->stored[i], &p))
            continue;
        raise_to(&e->rows[p.kind], p.row + p.rows);
        raise_to(&e->cols[p.kind], p.col + p.cols);
        if (p.of_layer)
            raise_to(&e->layers, p.layer + p.layers);
        e->most_layers += p.layers;
        if (p.kind == KIND_EMBEDDING)
            e->dtype = p.stored->dtype;
        dist->stacked = dist->stacked || p.stacked;
        dist->singleton = dist->singleton || p.kind == KIND_GATE;
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

int mgr_megatron_dist_model(const mgr_catalogue *cat, const mgr_config *config,
                            mgr_megatron_dist *dist, mgr_model *model, mgr_err *err)
{
    static const kind needed[] = {KIND_EMBEDDING, KIND_FC2};
    extents e = {.dtype = MGR_DTYPE_NONE};
    *dist = (mgr_megatron_dist){.stacked = false};
    measure(cat, &e, dist);
    for (size_t i = 0; i < sizeof needed / sizeof needed[0]; i++)
        if (e.rows[needed[i]] == 0 && cat->n_files > 0)
            return mgr_fail(err, MGR_ERR_FORMAT, "no tensor '*%s' in the checkpoint of '%s'",
                            needed[i] == KIND_FC2 ? ".mlp.linear_fc2.weight"
                                                  : "embedding.word_embeddings.weight",
                            cat->files[0].path);
    const mgr_megatron_shapes shapes = {.file = file_of_args(cat),
                                        .dtype = e.dtype,
                                        .layers = e.layers,
                                        .hidden = e.cols[KIND_EMBEDDING],
                                        .ffn = e.cols[KIND_FC2],
                                        .fc1_rows = 2 * e.cols[KIND_FC2],
                                        .padded_vocab = e.rows[KIND_EMBEDDING],
                                        .most_layers = e.most_layers,
                                        .output = e.rows[KIND_OUTPUT] > 0};
    dist->padded_vocab = shapes.padded_vocab;
    MGR_TRY(mgr_megatron_model_of(cat, config, &shapes, model, err));
    const mgr_megatron whole = {.tensor_parallel = 1,
                                .expert_parallel = 1,
                                .expert_tensor_parallel = 1,
                                .padded_vocab = dist->padded_vocab};
    return mgr_megatron_check(model, &whole, err);
}

/* ---- the layout ---- */

typedef struct place {
    mgr_layout *layout;
    const piece *piece;
    uint32_t stored;
    uint64_t layer; /* global, of those in the piece */
} place;

/* Global rows [first, first + rows) of the piece's tensor are the rows of `role` from `to` on: put
 * the part that the piece holds. */
static int put(const place *p, mgr_role role, uint64_t first, uint64_t rows, uint64_t to,
               mgr_err *err)
{
    const piece *const c = p->piece;
    const uint64_t a = first > c->row ? first : c->row;
    const uint64_t end = first + rows < c->row + c->rows ? first + rows : c->row + c->rows;
    if (a >= end)
        return MGR_OK;
    const mgr_box box = {
        .tensor = mgr_tensors_find(p->layout->tensors, role,
                                   c->of_layer ? (uint32_t)p->layer : MGR_NONE, MGR_NONE),
        .stored = p->stored,
        .row = to + (a - first),
        .rows = end - a,
        .col = c->col,
        .cols = c->cols,
        .stored_row = (p->layer - c->layer) * c->rows + (a - c->row),
    };
    if (box.tensor == MGR_NONE)
        return mgr_fail(err, MGR_ERR_INTERNAL, "no logical tensor '%s'", mgr_role_name(role));
    return mgr_layout_box(p->layout, &box, err);
}

/* Per group its query heads, then K, then V (transformer/attention.py). */
static int put_qkv(const place *p, mgr_err *err)
{
    const mgr_model *const m = &p->layout->tensors->model;
    const uint64_t q = m->heads / m->kv_groups * m->head_dim, d = m->head_dim;
    for (uint64_t g = 0; g < m->kv_groups; g++) {
        const uint64_t at = g * (q + 2 * d);
        MGR_TRY(put(p, MGR_ROLE_Q, at, q, g * q, err));
        MGR_TRY(put(p, MGR_ROLE_K, at + q, d, g * d, err));
        MGR_TRY(put(p, MGR_ROLE_V, at + q + d, d, g * d, err));
    }
    return MGR_OK;
}

static int put_layer(const place *p, mgr_err *err)
{
    const mgr_model *const m = &p->layout->tensors->model;
    switch (p->piece->kind) {
    case KIND_EMBEDDING:
        return put(p, MGR_ROLE_EMBEDDING, 0, m->vocab, 0, err);
    case KIND_OUTPUT:
        return put(p, MGR_ROLE_LM_HEAD, 0, m->vocab, 0, err);
    case KIND_FINAL_NORM:
        return put(p, MGR_ROLE_FINAL_NORM, 0, m->hidden, 0, err);
    case KIND_ATTN_NORM:
        return put(p, MGR_ROLE_ATTN_NORM, 0, m->hidden, 0, err);
    case KIND_MLP_NORM:
        return put(p, MGR_ROLE_MLP_NORM, 0, m->hidden, 0, err);
    case KIND_QKV:
        return put_qkv(p, err);
    case KIND_PROJ:
        return put(p, MGR_ROLE_O, 0, m->hidden, 0, err);
    case KIND_FC1: /* all gate rows, then all up rows, whatever the split was (mlp.py) */
        MGR_TRY(put(p, MGR_ROLE_GATE, 0, m->ffn, 0, err));
        return put(p, MGR_ROLE_UP, m->ffn, m->ffn, 0, err);
    case KIND_GATE:
        return put(p, MGR_ROLE_GATE, 0, m->ffn, 0, err);
    case KIND_UP:
        return put(p, MGR_ROLE_UP, 0, m->ffn, 0, err);
    case KIND_FC2:
        return put(p, MGR_ROLE_DOWN, 0, m->hidden, 0, err);
    case KIND_UNKNOWN:
        break;
    }
    return MGR_OK;
}

/* The size that a tensor of this kind has; a vector has no columns. */
static void expected(const mgr_model *m, const mgr_megatron_dist *dist, kind of, uint64_t *rows,
                     uint64_t *cols)
{
    *rows = *cols = m->hidden;
    switch (of) {
    case KIND_EMBEDDING:
    case KIND_OUTPUT:
        *rows = dist->padded_vocab;
        break;
    case KIND_QKV:
        *rows = (m->heads + 2 * m->kv_groups) * m->head_dim;
        break;
    case KIND_PROJ:
        *cols = m->heads * m->head_dim;
        break;
    case KIND_FC1:
        *rows = 2 * m->ffn;
        break;
    case KIND_GATE:
    case KIND_UP:
        *rows = m->ffn;
        break;
    case KIND_FC2:
        *cols = m->ffn;
        break;
    default: /* norms */
        *cols = 0;
        break;
    }
}

/* A chunk that reaches outside of the tensor that the model has. What is too small is found by
 * layout_finish. */
static int check_extent(const place *p, const mgr_megatron_dist *dist, mgr_err *err)
{
    const mgr_model *const m = &p->layout->tensors->model;
    const piece *const c = p->piece;
    uint64_t rows, cols;
    expected(m, dist, c->kind, &rows, &cols);
    const bool fits = c->ndim == (cols ? 2 : 1) && c->row + c->rows <= rows &&
                      (cols == 0 || c->col + c->cols <= cols) &&
                      (!c->of_layer || c->layer + c->layers <= m->layers);
    if (fits)
        return MGR_OK;
    char size[64];
    snprintf(size, sizeof size, cols ? "[%" PRIu64 ", %" PRIu64 "]" : "[%" PRIu64 "]", rows, cols);
    return mgr_fail(err, MGR_ERR_FORMAT,
                    "tensor '%s' in '%s' does not lie in the %s%s that the model has",
                    c->stored->name, p->layout->cat->files[c->stored->file].path, size,
                    c->of_layer ? " of each layer" : "");
}

static int put_piece(mgr_layout *layout, const mgr_megatron_dist *dist, const piece *c,
                     mgr_err *err)
{
    place p = {.layout = layout, .piece = c};
    if (c->kind == KIND_OUTPUT && layout->tensors->model.tied)
        return MGR_OK; /* left over: tied embeddings have no output layer in this format */
    MGR_TRY(check_extent(&p, dist, err));
    MGR_TRY(mgr_layout_tensor(layout, c->stored->file, c->stored->name, c->stored->ndim,
                              c->stored->shape, &p.stored, err));
    for (p.layer = c->layer; p.layer < c->layer + c->layers; p.layer++)
        MGR_TRY(put_layer(&p, err));
    return MGR_OK;
}

int mgr_megatron_dist_layout(mgr_layout *layout, const mgr_megatron_dist *dist, mgr_err *err)
{
    for (size_t i = 0; i < layout->cat->n_stored; i++) {
        piece c;
        if (read_piece(&layout->cat->stored[i], &c))
            MGR_TRY(put_piece(layout, dist, &c, err));
    }
    return MGR_OK;
}
