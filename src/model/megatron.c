#include "model/megatron.h"

#include <stdio.h>

#define NAME_MAX_BYTES 160

/* One (tp, pp, chunk) while it is being laid out. */
typedef struct place {
    mgr_layout *layout;
    const mgr_megatron *mg;
    const mgr_model *model;
    uint32_t file, tp, chunk;
    uint32_t layer;      /* global; MGR_NONE outside of layers */
    uint32_t layer_here; /* local index in the chunk's names */
} place;

/* The names that each kind of tensor has had, below "model."; %u is the local layer. A target uses
 * number mgr_megatron.names where there is one, else the first; a source the first that is there.
 */
#define MCORE "decoder.layers.%u."
#define ENCODER "language_model.encoder.layers.%u."
#define TRANSFORMER "language_model.transformer.layers.%u."

typedef const char *const spellings[8];

static spellings embedding_names = {"embedding.word_embeddings.weight", NULL,
                                    "language_model.embedding.word_embeddings.weight"};
static spellings output_names = {"output_layer.weight", NULL, "language_model.output_layer.weight"};
static spellings tied_output_names = {"output_layer.weight", NULL,
                                      "word_embeddings_for_head.weight"};
static spellings final_norm_names = {"decoder.final_layernorm.weight", NULL,
                                     "language_model.encoder.final_norm.weight",
                                     "language_model.encoder.final_layernorm.weight",
                                     "language_model.transformer.final_layernorm.weight"};
static spellings attn_norm_names = {MCORE "self_attention.linear_qkv.layer_norm_weight",
                                    MCORE "input_layernorm.weight", ENCODER "input_norm.weight",
                                    ENCODER "input_layernorm.weight",
                                    TRANSFORMER "input_layernorm.weight"};
static spellings qkv_names = {MCORE "self_attention.linear_qkv.weight",
                              NULL,
                              ENCODER "self_attention.query_key_value.weight",
                              ENCODER "attention.query_key_value.weight",
                              TRANSFORMER "self_attention.query_key_value.weight",
                              TRANSFORMER "attention.query_key_value.weight"};
static spellings proj_names = {
    MCORE "self_attention.linear_proj.weight", NULL,
    ENCODER "self_attention.dense.weight",     ENCODER "attention.dense.weight",
    TRANSFORMER "self_attention.dense.weight", TRANSFORMER "attention.dense.weight"};
static spellings mlp_norm_names = {
    MCORE "mlp.linear_fc1.layer_norm_weight", MCORE "pre_mlp_layernorm.weight",
    ENCODER "post_attention_norm.weight", ENCODER "post_attention_layernorm.weight",
    TRANSFORMER "post_attention_layernorm.weight"};
static spellings fc1_names = {MCORE "mlp.linear_fc1.weight", NULL,
                              ENCODER "mlp.dense_h_to_4h.weight",
                              TRANSFORMER "mlp.dense_h_to_4h.weight"};
static spellings fc2_names = {MCORE "mlp.linear_fc2.weight", NULL,
                              ENCODER "mlp.dense_4h_to_h.weight",
                              TRANSFORMER "mlp.dense_4h_to_h.weight"};

static void make_name(const place *p, const char *spelling, char out[NAME_MAX_BYTES])
{
    int used = p->mg->virtual_pipeline > 1 ? snprintf(out, NAME_MAX_BYTES, "model%u.", p->chunk)
                                           : snprintf(out, NAME_MAX_BYTES, "model.");
    /* the tables above are ours; what %u they hold takes the layer */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    snprintf(out + used, NAME_MAX_BYTES - (size_t)used, spelling, p->layer_here);
#pragma GCC diagnostic pop
}

static void choose_name(const place *p, spellings names, char out[NAME_MAX_BYTES])
{
    if (p->layout->declare) {
        const char *const chosen = names[p->mg->names];
        make_name(p, chosen ? chosen : names[0], out);
        return;
    }
    for (size_t i = 0; i < sizeof(spellings) / sizeof names[0]; i++) {
        if (!names[i])
            continue;
        make_name(p, names[i], out);
        if (mgr_layout_has(p->layout, p->file, out))
            return;
    }
    make_name(p, names[0], out); /* and let it be reported as missing */
}

static int tensor(const place *p, spellings names, uint64_t rows, uint64_t cols, uint32_t *stored,
                  mgr_err *err)
{
    char name[NAME_MAX_BYTES];
    const uint64_t shape[2] = {rows, cols};
    choose_name(p, names, name);
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
static int replicated(const place *p, mgr_role role, spellings names, mgr_err *err)
{
    uint32_t stored;
    MGR_TRY(tensor(p, names, p->model->hidden, 0, &stored, err));
    return box(p, role, stored, (mgr_box){.copy = p->tp, .rows = p->model->hidden, .cols = 1}, err);
}

/* Columns tp*cols/T .. of a matrix: the second linear of a pair. */
static int column_parallel(const place *p, mgr_role role, spellings names, uint64_t all_cols,
                           mgr_err *err)
{
    uint32_t stored;
    const uint64_t cols = all_cols / p->mg->tensor_parallel;
    MGR_TRY(tensor(p, names, p->model->hidden, cols, &stored, err));
    return box(p, role, stored,
               (mgr_box){.col = p->tp * cols, .rows = p->model->hidden, .cols = cols}, err);
}

/* Rows of the padded vocabulary; rows behind the true size are padding. */
static int vocabulary(const place *p, mgr_role role, spellings names, uint32_t copy, mgr_err *err)
{
    uint32_t stored;
    const uint64_t rows = p->mg->padded_vocab / p->mg->tensor_parallel;
    const uint64_t first = p->tp * rows, vocab = p->model->vocab;
    const uint64_t kept = first >= vocab ? 0 : vocab - first < rows ? vocab - first : rows;
    MGR_TRY(tensor(p, names, rows, p->model->hidden, &stored, err));
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
               (mgr_box){.row = logical_row + (a - first),
                         .rows = b - a,
                         .cols = m->hidden,
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
    MGR_TRY(tensor(p, qkv_names, all / p->mg->tensor_parallel, m->hidden, &stored, err));
    for (uint64_t g = 0; g < m->kv_groups; g++) {
        const uint64_t at = g * (q + 2 * d);
        MGR_TRY(fused_part(p, MGR_ROLE_Q, stored, at, q, g * q, err));
        MGR_TRY(fused_part(p, MGR_ROLE_K, stored, at + q, d, g * d, err));
        MGR_TRY(fused_part(p, MGR_ROLE_V, stored, at + q + d, d, g * d, err));
    }
    return MGR_OK;
}

/* fc1 of rank t: rows [0, F/T) are gate slice t, rows [F/T, 2F/T) up slice t (transformer/mlp.py).
 */
static int fused_gate_up(const place *p, mgr_err *err)
{
    const uint64_t rows = p->model->ffn / p->mg->tensor_parallel, h = p->model->hidden;
    uint32_t stored;
    MGR_TRY(tensor(p, fc1_names, 2 * rows, h, &stored, err));
    MGR_TRY(box(p, MGR_ROLE_GATE, stored, (mgr_box){.row = p->tp * rows, .rows = rows, .cols = h},
                err));
    return box(p, MGR_ROLE_UP, stored,
               (mgr_box){.row = p->tp * rows, .rows = rows, .cols = h, .stored_row = rows}, err);
}

static int decoder_layer(const place *p, mgr_err *err)
{
    const mgr_model *const m = p->model;
    MGR_TRY(replicated(p, MGR_ROLE_ATTN_NORM, attn_norm_names, err));
    MGR_TRY(fused_qkv(p, err));
    MGR_TRY(column_parallel(p, MGR_ROLE_O, proj_names, m->heads * m->head_dim, err));
    MGR_TRY(replicated(p, MGR_ROLE_MLP_NORM, mlp_norm_names, err));
    MGR_TRY(fused_gate_up(p, err));
    return column_parallel(p, MGR_ROLE_DOWN, fc2_names, m->ffn, err);
}

/* Tied embeddings: with one stage there is no output layer; with more, the last stage holds its own
 * copy of the embedding, which must be equal to it. */
static int last_chunk(const place *p, mgr_err *err)
{
    MGR_TRY(replicated(p, MGR_ROLE_FINAL_NORM, final_norm_names, err));
    if (!p->model->tied)
        return vocabulary(p, MGR_ROLE_LM_HEAD, output_names, 0, err);
    if (p->mg->pipeline_parallel > 1)
        return vocabulary(p, MGR_ROLE_EMBEDDING, tied_output_names, 1, err);
    return MGR_OK;
}

/* Chunk `k` in the order of layers: of stage k mod PP, its chunk number k / PP. */
static int chunk(place *p, uint32_t k, uint32_t *layer, mgr_err *err)
{
    const uint32_t stages = p->mg->pipeline_parallel;
    const uint32_t chunks = p->mg->virtual_pipeline * stages;
    p->file = p->mg->files[k % stages * p->mg->tensor_parallel + p->tp];
    p->chunk = k / stages;
    p->layer = MGR_NONE;
    if (k == 0)
        MGR_TRY(vocabulary(p, MGR_ROLE_EMBEDDING, embedding_names, 0, err));
    for (uint32_t i = 0; i < p->mg->stage_layers[k]; i++) {
        p->layer = (*layer)++;
        p->layer_here = i;
        MGR_TRY(decoder_layer(p, err));
    }
    p->layer = MGR_NONE;
    return k + 1 == chunks ? last_chunk(p, err) : MGR_OK;
}

int mgr_megatron_layout(mgr_layout *layout, const mgr_megatron *mg, mgr_err *err)
{
    MGR_TRY(mgr_megatron_check(&layout->tensors->model, mg, err));
    for (uint32_t tp = 0; tp < mg->tensor_parallel; tp++) {
        place p = {.layout = layout, .mg = mg, .model = &layout->tensors->model, .tp = tp};
        uint32_t layer = 0;
        for (uint32_t k = 0; k < mg->virtual_pipeline * mg->pipeline_parallel; k++)
            MGR_TRY(chunk(&p, k, &layer, err));
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
            return mgr_fail(
                err, MGR_ERR_FORMAT, "%s (%llu) does not split over %u tensor-parallel ranks",
                splits[i].name, (unsigned long long)splits[i].size, mg->tensor_parallel);
    if (m->kv_groups == 0 || m->heads % m->kv_groups != 0)
        return mgr_fail(err, MGR_ERR_FORMAT, "%llu attention heads do not split into %llu groups",
                        (unsigned long long)m->heads, (unsigned long long)m->kv_groups);
    return MGR_OK;
}
