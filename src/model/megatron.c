#include "model/megatron.h"

#include <stdio.h>

#define NAME_MAX_BYTES 160

/* One (tp, pp) file while it is being laid out. */
typedef struct place {
    mgr_layout *layout;
    const mgr_megatron *mg;
    const mgr_model *model;
    uint32_t file, tp;
    uint32_t layer;      /* global; MGR_NONE outside of layers */
    uint32_t layer_here; /* local index in the stage's names */
} place;

static void make_name(const place *p, const char *tail, char out[NAME_MAX_BYTES])
{
    if (p->layer == MGR_NONE)
        snprintf(out, NAME_MAX_BYTES, "model.%s", tail);
    else
        snprintf(out, NAME_MAX_BYTES, "model.decoder.layers.%u.%s", p->layer_here, tail);
}

static int tensor(const place *p, const char *tail, uint64_t rows, uint64_t cols, uint32_t *stored,
                  mgr_err *err)
{
    char name[NAME_MAX_BYTES];
    const uint64_t shape[2] = {rows, cols};
    make_name(p, tail, name);
    return mgr_layout_tensor(p->layout, p->file, name, cols ? 2 : 1, shape, stored, err);
}

/* Put a box of logical tensor (role, p->layer); `from` gives rows, cols and the two corners. */
static int box(const place *p, mgr_role role, uint32_t stored, mgr_box from, mgr_err *err)
{
    from.tensor = mgr_tensors_find(p->layout->tensors, role, p->layer, MGR_NONE);
    from.stored = stored;
    if (from.tensor == MGR_NONE)
        return mgr_fail(err, MGR_ERR_INTERNAL, "no logical tensor '%s'", mgr_role_name(role));
    return mgr_layout_box(p->layout, &from, err);
}

/* A 1-D tensor that every tensor-parallel rank holds whole. */
static int replicated(const place *p, mgr_role role, const char *tail, mgr_err *err)
{
    uint32_t stored;
    MGR_TRY(tensor(p, tail, p->model->hidden, 0, &stored, err));
    return box(p, role, stored, (mgr_box){.copy = p->tp, .rows = p->model->hidden, .cols = 1}, err);
}

/* Columns tp*cols/T .. of a matrix: the second linear of a pair. */
static int column_parallel(const place *p, mgr_role role, const char *tail, uint64_t all_cols,
                           mgr_err *err)
{
    uint32_t stored;
    const uint64_t cols = all_cols / p->mg->tensor_parallel;
    MGR_TRY(tensor(p, tail, p->model->hidden, cols, &stored, err));
    return box(p, role, stored,
               (mgr_box){.col = p->tp * cols, .rows = p->model->hidden, .cols = cols}, err);
}

/* Rows of the padded vocabulary; rows behind the true size are padding. */
static int vocabulary(const place *p, mgr_role role, const char *tail, uint32_t copy, mgr_err *err)
{
    uint32_t stored;
    const uint64_t rows = p->mg->padded_vocab / p->mg->tensor_parallel;
    const uint64_t first = p->tp * rows, vocab = p->model->vocab;
    const uint64_t kept = first >= vocab ? 0 : vocab - first < rows ? vocab - first : rows;
    MGR_TRY(tensor(p, tail, rows, p->model->hidden, &stored, err));
    MGR_TRY(mgr_layout_fill(p->layout, stored, kept, rows - kept, err));
    return box(p, role, stored,
               (mgr_box){.copy = copy, .row = first, .rows = kept, .cols = p->model->hidden}, err);
}

/* The part of fused rows [first, first+rows) of `role` that lies in this rank's chunk. */
static int fused_part(const place *p, mgr_role role, uint32_t stored, uint64_t first, uint64_t rows,
                      uint64_t logical_row, mgr_err *err)
{
    const mgr_model *const m = p->model;
    const uint64_t chunk = (m->heads + 2 * m->kv_groups) * m->head_dim / p->mg->tensor_parallel;
    const uint64_t from = p->tp * chunk, to = from + chunk;
    const uint64_t a = first > from ? first : from;
    const uint64_t b = first + rows < to ? first + rows : to;
    if (a >= b)
        return MGR_OK;
    return box(p, role, stored,
               (mgr_box){.row = logical_row + (a - first), .rows = b - a, .cols = m->hidden,
                         .stored_row = a - from},
               err);
}

/* Fused QKV rows: per group its Nq/G query heads, then K, then V; tensor-parallel ranks hold plain
 * contiguous chunks of them (transformer/attention.py), which may cut through a group. */
static int fused_qkv(const place *p, mgr_err *err)
{
    const mgr_model *const m = p->model;
    const uint64_t q = m->heads / m->kv_groups * m->head_dim, d = m->head_dim;
    const uint64_t all = (m->heads + 2 * m->kv_groups) * d;
    uint32_t stored;
    MGR_TRY(tensor(p, "self_attention.linear_qkv.weight", all / p->mg->tensor_parallel, m->hidden,
                   &stored, err));
    for (uint64_t g = 0; g < m->kv_groups; g++) {
        const uint64_t at = g * (q + 2 * d);
        MGR_TRY(fused_part(p, MGR_ROLE_Q, stored, at, q, g * q, err));
        MGR_TRY(fused_part(p, MGR_ROLE_K, stored, at + q, d, g * d, err));
        MGR_TRY(fused_part(p, MGR_ROLE_V, stored, at + q + d, d, g * d, err));
    }
    return MGR_OK;
}

/* fc1 of rank t: rows [0, F/T) are gate slice t, rows [F/T, 2F/T) up slice t (transformer/mlp.py). */
static int fused_gate_up(const place *p, mgr_err *err)
{
    const uint64_t rows = p->model->ffn / p->mg->tensor_parallel, h = p->model->hidden;
    uint32_t stored;
    MGR_TRY(tensor(p, "mlp.linear_fc1.weight", 2 * rows, h, &stored, err));
    MGR_TRY(box(p, MGR_ROLE_GATE, stored, (mgr_box){.row = p->tp * rows, .rows = rows, .cols = h},
                err));
    return box(p, MGR_ROLE_UP, stored,
               (mgr_box){.row = p->tp * rows, .rows = rows, .cols = h, .stored_row = rows}, err);
}

/* A norm under the name of the Transformer Engine spec or of the local spec. */
static int norm(const place *p, mgr_role role, const char *te, const char *local, mgr_err *err)
{
    char name[NAME_MAX_BYTES];
    make_name(p, local, name);
    const bool use_local = p->layout->declare ? p->mg->names == MGR_NAMES_LOCAL
                                              : mgr_layout_has(p->layout, p->file, name);
    return replicated(p, role, use_local ? local : te, err);
}

static int decoder_layer(const place *p, mgr_err *err)
{
    const mgr_model *const m = p->model;
    MGR_TRY(norm(p, MGR_ROLE_ATTN_NORM, "self_attention.linear_qkv.layer_norm_weight",
                 "input_layernorm.weight", err));
    MGR_TRY(fused_qkv(p, err));
    MGR_TRY(column_parallel(p, MGR_ROLE_O, "self_attention.linear_proj.weight",
                            m->heads * m->head_dim, err));
    MGR_TRY(norm(p, MGR_ROLE_MLP_NORM, "mlp.linear_fc1.layer_norm_weight",
                 "pre_mlp_layernorm.weight", err));
    MGR_TRY(fused_gate_up(p, err));
    return column_parallel(p, MGR_ROLE_DOWN, "mlp.linear_fc2.weight", m->ffn, err);
}

/* Tied embeddings: with one stage there is no output layer; with more, the last stage holds its own
 * copy of the embedding, which must be equal to it. */
static int last_stage(const place *p, mgr_err *err)
{
    MGR_TRY(replicated(p, MGR_ROLE_FINAL_NORM, "decoder.final_layernorm.weight", err));
    if (!p->model->tied)
        return vocabulary(p, MGR_ROLE_LM_HEAD, "output_layer.weight", 0, err);
    if (p->mg->pipeline_parallel > 1)
        return vocabulary(p, MGR_ROLE_EMBEDDING, "output_layer.weight", 1, err);
    return MGR_OK;
}

int mgr_megatron_layout(mgr_layout *layout, const mgr_megatron *mg, mgr_err *err)
{
    MGR_TRY(mgr_megatron_check(&layout->tensors->model, mg, err));
    for (uint32_t tp = 0; tp < mg->tensor_parallel; tp++) {
        uint32_t layer = 0;
        for (uint32_t pp = 0; pp < mg->pipeline_parallel; pp++) {
            place p = {layout, mg, &layout->tensors->model,
                       mg->files[pp * mg->tensor_parallel + tp], tp, MGR_NONE, 0};
            if (pp == 0)
                MGR_TRY(vocabulary(&p, MGR_ROLE_EMBEDDING, "embedding.word_embeddings.weight", 0,
                                   err));
            for (uint32_t i = 0; i < mg->stage_layers[pp]; i++) {
                p.layer = layer++;
                p.layer_here = i;
                MGR_TRY(decoder_layer(&p, err));
            }
            p.layer = MGR_NONE;
            if (pp + 1 == mg->pipeline_parallel)
                MGR_TRY(last_stage(&p, err));
        }
    }
    return MGR_OK;
}

int mgr_megatron_check(const mgr_model *m, const mgr_megatron *mg, mgr_err *err)
{
    const struct {
        const char *name;
        uint64_t size;
    } splits[] = {{"num_attention_heads", m->heads},
                  {"ffn_hidden_size", m->ffn},
                  {"padded_vocab_size", mg->padded_vocab},
                  {"the fused QKV rows", (m->heads + 2 * m->kv_groups) * m->head_dim}};
    for (size_t i = 0; i < sizeof splits / sizeof splits[0]; i++)
        if (splits[i].size % mg->tensor_parallel != 0)
            return mgr_fail(err, MGR_ERR_FORMAT,
                            "%s (%llu) does not split over %u tensor-parallel ranks",
                            splits[i].name, (unsigned long long)splits[i].size,
                            mg->tensor_parallel);
    if (m->kv_groups == 0 || m->heads % m->kv_groups != 0)
        return mgr_fail(err, MGR_ERR_FORMAT, "%llu attention heads do not split into %llu groups",
                        (unsigned long long)m->heads, (unsigned long long)m->kv_groups);
    return MGR_OK;
}
