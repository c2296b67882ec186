#include "model/megatron.h"

#include <stdio.h>
#include <string.h>

#include "core/mem.h"
#include "model/megatron_kin.h"

#define NAME_MAX_BYTES 192

/* One (tp, ep, chunk) while it is being laid out. */
typedef struct place {
    mgr_layout *layout;
    const mgr_megatron *mg;
    const mgr_model *model;
    uint32_t file, pp, tp, ep, chunk;
    uint32_t layer;       /* global; MGR_NONE outside of layers */
    uint32_t layer_here;  /* local index in the chunk's names */
    bool encoder;         /* the layer is one of an encoder's */
    uint32_t expert;      /* global; MGR_NONE outside of experts */
    uint32_t expert_here; /* local index in the names */
    mgr_plane plane;      /* at hand */
    /* which copy this file holds of what all ranks have whole, of what tensor-parallel ranks share,
     * of what all ranks of an expert have whole, of what its tensor-parallel ranks share */
    uint32_t copy_of_all, copy_of_part, copy_of_expert, copy_of_expert_part;
} place;

/* How one FFN is split: of `parts` ranks this is number `part`, and holds copy `copy`. */
typedef struct split {
    uint32_t parts, part, copy;
    uint64_t ffn;
    bool shared; /* the shared expert, which all tensor-parallel ranks split, beside the routed ones
                  */
} split;

_Static_assert(MGR_ROLE_UP == MGR_ROLE_GATE + 1 && MGR_ROLE_DOWN == MGR_ROLE_GATE + 2 &&
                   MGR_ROLE_SHARED_UP == MGR_ROLE_SHARED_GATE + 1 &&
                   MGR_ROLE_SHARED_DOWN == MGR_ROLE_SHARED_GATE + 2,
               "both FFNs of a layer have their matrices in one order");

/* Gate, up or down of this FFN. */
static mgr_role matrix_of(const split *s, mgr_role role)
{
    return s->shared ? (mgr_role)(MGR_ROLE_SHARED_GATE + (role - MGR_ROLE_GATE)) : role;
}

/* The names that each kind of tensor has had, below "model."; %u is the local layer, then the local
 * expert. A target uses the number that its options say where there is one, else the first; a
 * source the first that is there. A bias is named as its weight, with "bias" in the place of
 * "weight". */
#define MCORE "decoder.layers.%u."
#define ENCODER "language_model.encoder.layers.%u."
#define TRANSFORMER "language_model.transformer.layers.%u."

typedef const char *const spellings[8];

static spellings embedding_names = {"embedding.word_embeddings.weight", NULL,
                                    "language_model.embedding.word_embeddings.weight"};
static spellings position_names = {"embedding.position_embeddings.weight", NULL,
                                   "language_model.embedding.position_embeddings.weight"};
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
static spellings q_norm_names = {MCORE "self_attention.q_layernorm.weight"};
static spellings k_norm_names = {MCORE "self_attention.k_layernorm.weight"};
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
/* a layer with experts has its norm in front of the router, in either spec */
static spellings moe_norm_names = {MCORE "pre_mlp_layernorm.weight"};
static spellings router_names = {MCORE "mlp.router.weight"};
static spellings expert_bias_names = {MCORE "mlp.router.expert_bias"};
static spellings shared_fc1_names = {MCORE "mlp.shared_experts.linear_fc1.weight"};
static spellings shared_fc2_names = {MCORE "mlp.shared_experts.linear_fc2.weight"};
static spellings shared_switch_names = {MCORE "mlp.shared_experts.gate_weight"};
static spellings weight1_names = {MCORE "mlp.experts.weight1"};
static spellings weight2_names = {MCORE "mlp.experts.weight2"};
static spellings expert_fc1_names = {MCORE "mlp.experts.local_experts.%u.linear_fc1.weight",
                                     MCORE "mlp.experts.linear_fc1.weight%u"};
static spellings expert_fc2_names = {MCORE "mlp.experts.local_experts.%u.linear_fc2.weight",
                                     MCORE "mlp.experts.linear_fc2.weight%u"};

size_t mgr_megatron_cell(const mgr_megatron *mg, uint32_t pp, uint32_t ep, uint32_t tp)
{
    return ((size_t)pp * mg->expert_parallel + ep) * mg->tensor_parallel + tp;
}

static void weight_to_bias(char *name)
{
    char *at = NULL;
    for (char *next = strstr(name, "weight"); next; next = strstr(next + 1, "weight"))
        at = next;
    if (!at)
        return;
    memmove(at, at + 2, strlen(at + 2) + 1); /* two letters shorter */
    for (size_t i = 0; i < 4; i++)
        at[i] = "bias"[i];
}

#define PLANE "optimizer." /* "optimizer.exp_avg.model.NAME" (fmt/torch_optimizer.h) */

static void make_name(const place *p, const char *spelling, bool bias, char out[NAME_MAX_BYTES])
{
    int used = p->plane == MGR_PLANE_WEIGHT
                   ? 0
                   : snprintf(out, NAME_MAX_BYTES, PLANE "%s.", mgr_plane_name(p->plane));
    used += p->mg->virtual_pipeline > 1
                ? snprintf(out + used, NAME_MAX_BYTES - (size_t)used, "model%u.", p->chunk)
                : snprintf(out + used, NAME_MAX_BYTES - (size_t)used, "model.");
    /* the tables above are ours; what %u they hold takes the layer and the expert */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    /* cppcheck-suppress wrongPrintfScanfArgNum */
    snprintf(out + used, NAME_MAX_BYTES - (size_t)used, spelling, p->layer_here, p->expert_here);
#pragma GCC diagnostic pop
    if (p->encoder) /* as long a word as the tables' "decoder" */
        for (size_t i = 0; i < strlen("encoder"); i++)
            out[(size_t)used + i] = "encoder"[i];
    if (bias)
        weight_to_bias(out);
}

static void choose_name(const place *p, spellings names, bool bias, char out[NAME_MAX_BYTES])
{
    if (p->layout->declare) {
        const char *const chosen =
            p->expert == MGR_NONE ? names[p->mg->names] : names[p->mg->experts];
        make_name(p, chosen ? chosen : names[0], bias, out);
        return;
    }
    for (size_t i = 0; i < sizeof(spellings) / sizeof names[0]; i++) {
        if (!names[i])
            continue;
        make_name(p, names[i], bias, out);
        if (mgr_layout_has(p->layout, p->file, out))
            return;
    }
    make_name(p, names[0], bias, out); /* and let it be reported as missing */
}

/* A matrix, or with `cols` 0 a vector, which is named as a bias if it is one. */
static int tensor(const place *p, spellings names, bool bias, uint64_t rows, uint64_t cols,
                  uint32_t *stored, mgr_err *err)
{
    char name[NAME_MAX_BYTES];
    const uint64_t shape[2] = {rows, cols};
    choose_name(p, names, bias, name);
    return mgr_layout_tensor(p->layout, p->file, name, cols ? 2 : 1, shape, stored, err);
}

/* In the place of a weight that has one its master; *stored becomes it. */
static int take_master(const place *p, uint32_t tensor, uint32_t *stored, mgr_err *err)
{
    const mgr_stored weight = p->layout->cat->stored[*stored];
    char name[NAME_MAX_BYTES + 32];
    snprintf(name, sizeof name, PLANE "%s.%s", mgr_plane_name(MGR_PLANE_MASTER), weight.name);
    if (!mgr_layout_has(p->layout, weight.file, name)) {
        if (weight.dtype == MGR_DTYPE_F32)
            return MGR_OK;
        mgr_fail(err, MGR_ERR_UNSUPPORTED, "'%s' has no float32 master of '%s'",
                 p->layout->cat->files[weight.file].path, weight.name);
        return mgr_hint(err, "take the parameters themselves: source.weights: copies");
    }
    p->layout->copies[tensor] = weight.dtype;
    return mgr_layout_tensor(p->layout, weight.file, name, weight.ndim, weight.shape, stored, err);
}

/* Put a box of logical tensor (role, p->layer, p->expert), of the plane at hand; `from` gives copy,
 * rows, cols and the two corners. */
static int box(const place *p, mgr_role role, uint32_t stored, mgr_box from, mgr_err *err)
{
    const mgr_tensors *const ts = p->layout->tensors;
    from.tensor = mgr_tensors_plane(ts, mgr_tensors_find(ts, role, p->layer, p->expert), p->plane);
    if (from.tensor == MGR_NONE)
        return mgr_fail(err, MGR_ERR_INTERNAL, "no logical tensor '%s'", mgr_role_name(role));
    if (p->layout->copies && p->plane == MGR_PLANE_WEIGHT)
        MGR_TRY(take_master(p, from.tensor, &stored, err));
    from.stored = stored;
    return mgr_layout_box(p->layout, &from, err);
}

static bool has_role(const place *p, mgr_role role)
{
    return mgr_tensors_find(p->layout->tensors, role, p->layer, p->expert) != MGR_NONE;
}

/* A tensor that every rank holds whole; `cols` 0 for a vector. */
static int replicated(const place *p, mgr_role role, spellings names, bool bias, uint64_t rows,
                      uint64_t cols, mgr_err *err)
{
    uint32_t stored;
    MGR_TRY(tensor(p, names, bias, rows, cols, &stored, err));
    return box(p, role, stored,
               (mgr_box){.copy = p->copy_of_all, .rows = rows, .cols = cols ? cols : 1}, err);
}

/* A norm of `size` elements and, where the model has it, its bias. */
static int norm(const place *p, mgr_role role, mgr_role bias, spellings names, uint64_t size,
                mgr_err *err)
{
    MGR_TRY(replicated(p, role, names, false, size, 0, err));
    return has_role(p, bias) ? replicated(p, bias, names, true, size, 0, err) : MGR_OK;
}

/* Columns part*cols/parts .. of a matrix, the second linear of a pair; its bias is whole. */
static int column_parallel(const place *p, mgr_role role, mgr_role bias, spellings names,
                           uint64_t all_cols, const split *s, mgr_err *err)
{
    uint32_t stored;
    const uint64_t cols = all_cols / s->parts, rows = p->model->hidden;
    MGR_TRY(tensor(p, names, false, rows, cols, &stored, err));
    MGR_TRY(box(p, role, stored,
                (mgr_box){.copy = s->copy, .col = s->part * cols, .rows = rows, .cols = cols},
                err));
    if (!has_role(p, bias))
        return MGR_OK;
    MGR_TRY(tensor(p, names, true, rows, 0, &stored, err));
    const uint32_t copy = p->expert == MGR_NONE ? p->copy_of_all : p->copy_of_expert;
    return box(p, bias, stored, (mgr_box){.copy = copy, .rows = rows, .cols = 1}, err);
}

/* Rows of the padded vocabulary; rows behind the true size are padding. */
static int vocabulary(const place *p, mgr_role role, spellings names, uint32_t copy, mgr_err *err)
{
    uint32_t stored;
    const uint64_t rows = p->mg->padded_vocab / p->mg->tensor_parallel;
    const uint64_t first = p->tp * rows, vocab = p->model->vocab;
    const uint64_t kept = first >= vocab ? 0 : vocab - first < rows ? vocab - first : rows;
    MGR_TRY(tensor(p, names, false, rows, p->model->hidden, &stored, err));
    MGR_TRY(mgr_layout_fill(p->layout, stored, kept, rows - kept, err));
    return box(p, role, stored,
               (mgr_box){.copy = copy, .row = first, .rows = kept, .cols = p->model->hidden}, err);
}

/* The part of fused rows [first, first+rows) of `role` that lies in this rank's chunk. */
static int fused_part(const place *p, mgr_role role, uint32_t stored, uint64_t cols, uint64_t first,
                      uint64_t rows, uint64_t logical_row, mgr_err *err)
{
    const mgr_model *const m = p->model;
    const uint64_t chunk = (m->heads + 2 * m->kv_groups) * m->head_dim / p->mg->tensor_parallel;
    const uint64_t from = p->tp * chunk, to = from + chunk;
    const uint64_t a = first > from ? first : from;
    const uint64_t b = first + rows < to ? first + rows : to;
    if (a >= b)
        return MGR_OK;
    return box(p, role, stored,
               (mgr_box){.copy = p->copy_of_part,
                         .row = logical_row + (a - first),
                         .rows = b - a,
                         .cols = cols,
                         .stored_row = a - from},
               err);
}

/* Fused QKV rows: per group its Nq/G query heads, then K, then V; tensor-parallel ranks hold plain
 * contiguous chunks of them (transformer/attention.py), which may cut through a group. The bias is
 * a vector in the same order. */
static int fused_qkv(const place *p, bool bias, mgr_err *err)
{
    static const mgr_role roles[2][3] = {{MGR_ROLE_Q, MGR_ROLE_K, MGR_ROLE_V},
                                         {MGR_ROLE_Q_BIAS, MGR_ROLE_K_BIAS, MGR_ROLE_V_BIAS}};
    const mgr_model *const m = p->model;
    const uint64_t q = m->heads / m->kv_groups * m->head_dim, d = m->head_dim;
    const uint64_t all = (m->heads + 2 * m->kv_groups) * d, cols = bias ? 1 : m->hidden;
    const mgr_role *const role = roles[bias];
    uint32_t stored;
    MGR_TRY(tensor(p, qkv_names, bias, all / p->mg->tensor_parallel, bias ? 0 : m->hidden, &stored,
                   err));
    for (uint64_t g = 0; g < m->kv_groups; g++) {
        const uint64_t at = g * (q + 2 * d);
        MGR_TRY(fused_part(p, role[0], stored, cols, at, q, g * q, err));
        MGR_TRY(fused_part(p, role[1], stored, cols, at + q, d, g * d, err));
        MGR_TRY(fused_part(p, role[2], stored, cols, at + q + d, d, g * d, err));
    }
    return MGR_OK;
}

/* fc1 of rank t: rows [0, F/T) are gate slice t, rows [F/T, 2F/T) up slice t (transformer/mlp.py);
 * up alone where there is no gate. */
static int fused_gate_up(const place *p, bool bias, spellings names, const split *s, mgr_err *err)
{
    const mgr_role gate = bias ? MGR_ROLE_GATE_BIAS : matrix_of(s, MGR_ROLE_GATE);
    const mgr_role up = bias ? MGR_ROLE_UP_BIAS : matrix_of(s, MGR_ROLE_UP);
    const bool gated = mgr_model_is_gated(p->model);
    const uint64_t rows = s->ffn / s->parts, cols = bias ? 0 : p->model->hidden;
    mgr_box part = {.copy = s->copy, .row = s->part * rows, .rows = rows, .cols = cols ? cols : 1};
    uint32_t stored;
    MGR_TRY(tensor(p, names, bias, gated ? 2 * rows : rows, cols, &stored, err));
    if (gated)
        MGR_TRY(box(p, gate, stored, part, err));
    part.stored_row = gated ? rows : 0;
    return box(p, up, stored, part, err);
}

static int ffn(const place *p, spellings fc1, spellings fc2, const split *s, mgr_err *err)
{
    MGR_TRY(fused_gate_up(p, false, fc1, s, err));
    if (p->model->bias_mlp && !s->shared)
        MGR_TRY(fused_gate_up(p, true, fc1, s, err));
    return column_parallel(p, matrix_of(s, MGR_ROLE_DOWN), MGR_ROLE_DOWN_BIAS, fc2, s->ffn, s, err);
}

/* GroupedMLP's memory of weight1 [H, E*2F] is that of [E, H, 2F], of weight2 [E*F, H] that of [E,
 * F, H] (transformer/moe/experts.py of core 0.16, GroupedMLP.forward: the view in front of the
 * matrix product); E and F are this rank's. */
static int old_grouped_expert(const place *p, const split *s, uint32_t in, uint32_t out,
                              mgr_err *err)
{
    const uint64_t f = s->ffn / s->parts, h = p->model->hidden;
    const bool gated = mgr_model_is_gated(p->model);
    mgr_box b = {.copy = s->copy,
                 .row = s->part * f,
                 .rows = f,
                 .cols = h,
                 .stored_row = p->expert_here * h,
                 .row_stride = gated ? 2 * f : f,
                 .transposed = true};
    if (gated)
        MGR_TRY(box(p, MGR_ROLE_GATE, in, b, err));
    b.stored_col = gated ? f : 0;
    MGR_TRY(box(p, MGR_ROLE_UP, in, b, err));
    b = (mgr_box){.copy = s->copy,
                  .rows = h,
                  .col = s->part * f,
                  .cols = f,
                  .stored_row = p->expert_here * f,
                  .row_stride = h,
                  .transposed = true};
    return box(p, MGR_ROLE_DOWN, out, b, err);
}

static int old_grouped_experts(place *p, const split *s, uint32_t here, mgr_err *err)
{
    const uint64_t f = s->ffn / s->parts, h = p->model->hidden;
    const uint64_t in_cols = here * (mgr_model_is_gated(p->model) ? 2 * f : f);
    uint32_t in, out;
    MGR_TRY(tensor(p, weight1_names, false, h, in_cols, &in, err));
    MGR_TRY(tensor(p, weight2_names, false, here * f, h, &out, err));
    if (p->layout->cat->stored[in].stride[0] != in_cols ||
        p->layout->cat->stored[out].stride[0] != h)
        return mgr_fail(err, MGR_ERR_UNSUPPORTED, "tensor '%s' in '%s' is a part of a larger one",
                        p->layout->cat->stored[in].name, p->layout->cat->files[p->file].path);
    for (uint32_t e = 0; e < here; e++) {
        p->expert = p->ep * here + e;
        p->expert_here = e;
        MGR_TRY(old_grouped_expert(p, s, in, out, err));
    }
    p->expert = MGR_NONE;
    return MGR_OK;
}

static bool are_old_grouped(const place *p)
{
    char name[NAME_MAX_BYTES];
    if (p->layout->declare)
        return p->mg->experts == MGR_EXPERTS_GROUPED_OLD;
    make_name(p, weight1_names[0], false, name);
    return mgr_layout_has(p->layout, p->file, name);
}

static int object(place *p, const char *name, mgr_err *err)
{
    char out[NAME_MAX_BYTES];
    if (p->plane != MGR_PLANE_WEIGHT)
        return MGR_OK;
    make_name(p, name, false, out);
    return mgr_layout_object(p->layout, p->file, out, err);
}

static int objects(place *p, const char *const *names, size_t n, mgr_err *err)
{
    for (size_t i = 0; i < n; i++)
        MGR_TRY(object(p, names[i], err));
    return MGR_OK;
}

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

static int router(const place *p, mgr_err *err)
{
    const mgr_model *const m = p->model;
    MGR_TRY(replicated(p, MGR_ROLE_ROUTER, router_names, false, m->experts, m->hidden, err));
    if (m->bias_router)
        MGR_TRY(replicated(p, MGR_ROLE_ROUTER_BIAS, router_names, true, m->experts, 0, err));
    return m->router.selection_bias && p->plane == MGR_PLANE_WEIGHT
               ? replicated(p, MGR_ROLE_SELECTION_BIAS, expert_bias_names, false, m->experts, 0,
                            err)
               : MGR_OK;
}

/* transformer/moe/shared_experts.py: split as a dense FFN is, in the file of each expert-parallel
 * rank again. */
static int shared_expert(place *p, mgr_err *err)
{
    const mgr_model *const m = p->model;
    const uint64_t width = mgr_model_ffn_width(m, p->layer, MGR_FFN_SHARED);
    const split s = {p->mg->tensor_parallel, p->tp, p->copy_of_part, width, true};
    static const char *const states[] = {MCORE "mlp.shared_experts.linear_fc1._extra_state",
                                         MCORE "mlp.shared_experts.linear_fc2._extra_state"};
    if (width == 0)
        return MGR_OK;
    MGR_TRY(ffn(p, shared_fc1_names, shared_fc2_names, &s, err));
    if (m->shared_switch)
        MGR_TRY(
            replicated(p, MGR_ROLE_SHARED_SWITCH, shared_switch_names, false, 1, m->hidden, err));
    return objects(p, states, COUNT(states), err);
}

static int experts(place *p, mgr_err *err)
{
    const mgr_model *const m = p->model;
    const mgr_megatron *const mg = p->mg;
    const uint32_t here = (uint32_t)m->experts / mg->expert_parallel;
    const split s = {mg->expert_tensor_parallel, p->tp % mg->expert_tensor_parallel,
                     p->copy_of_expert_part, mgr_model_ffn_width(m, p->layer, MGR_FFN_ROUTED),
                     false};
    MGR_TRY(router(p, err));
    MGR_TRY(shared_expert(p, err));
    if (are_old_grouped(p))
        return old_grouped_experts(p, &s, here, err);
    for (uint32_t e = 0; e < here; e++) {
        p->expert = p->ep * here + e;
        p->expert_here = e;
        MGR_TRY(ffn(p, expert_fc1_names, expert_fc2_names, &s, err));
    }
    p->expert = MGR_NONE;
    return MGR_OK;
}

static int attention(const place *p, const split *s, mgr_err *err)
{
    const mgr_model *const m = p->model;
    MGR_TRY(norm(p, MGR_ROLE_ATTN_NORM, MGR_ROLE_ATTN_NORM_BIAS, attn_norm_names, m->hidden, err));
    MGR_TRY(fused_qkv(p, false, err));
    if (m->bias_qkv)
        MGR_TRY(fused_qkv(p, true, err));
    if (m->qk_norm) {
        MGR_TRY(norm(p, MGR_ROLE_Q_NORM, MGR_ROLE_Q_NORM_BIAS, q_norm_names, m->head_dim, err));
        MGR_TRY(norm(p, MGR_ROLE_K_NORM, MGR_ROLE_K_NORM_BIAS, k_norm_names, m->head_dim, err));
    }
    return column_parallel(p, MGR_ROLE_O, MGR_ROLE_O_BIAS, proj_names, m->heads * m->head_dim, s,
                           err);
}

static int expert_objects(place *p, mgr_err *err)
{
    static const char *const grouped[] = {MCORE "mlp.experts.linear_fc1._extra_state",
                                          MCORE "mlp.experts.linear_fc2._extra_state"};
    static const char *const each[] = {MCORE "mlp.experts.local_experts.%u.linear_fc1._extra_state",
                                       MCORE
                                       "mlp.experts.local_experts.%u.linear_fc2._extra_state"};
    const uint32_t here = (uint32_t)p->model->experts / p->mg->expert_parallel;
    if (p->mg->experts == MGR_EXPERTS_GROUPED_OLD)
        return MGR_OK;
    if (p->mg->experts == MGR_EXPERTS_GROUPED)
        return objects(p, grouped, COUNT(grouped), err);
    for (uint32_t e = 0; e < here; e++) {
        p->expert_here = e;
        MGR_TRY(objects(p, each, COUNT(each), err));
    }
    return MGR_OK;
}

/* Every linear has an _extra_state, and with Transformer Engine attention and norms as well.
 * Loaders before core 0.13 insist on them; None is what they hold without FP8
 * (tensor_parallel/layers.py; TransformerEngine's module/base.py). */
static int layer_objects(place *p, mgr_err *err)
{
    static const char *const linears[] = {MCORE "self_attention.linear_qkv._extra_state",
                                          MCORE "self_attention.linear_proj._extra_state"};
    static const char *const dense[] = {MCORE "mlp.linear_fc1._extra_state",
                                        MCORE "mlp.linear_fc2._extra_state"};
    static const char *const qk_norms[] = {MCORE "self_attention.q_layernorm._extra_state",
                                           MCORE "self_attention.k_layernorm._extra_state"};
    const bool te = p->mg->names == MGR_NAMES_TE, moe = mgr_model_is_moe(p->model, p->layer);
    MGR_TRY(objects(p, linears, COUNT(linears), err));
    if (te)
        MGR_TRY(object(p, MCORE "self_attention.core_attention._extra_state", err));
    if (te && p->model->qk_norm)
        MGR_TRY(objects(p, qk_norms, COUNT(qk_norms), err));
    if (te && moe)
        MGR_TRY(object(p, MCORE "pre_mlp_layernorm._extra_state", err));
    return moe ? expert_objects(p, err) : objects(p, dense, COUNT(dense), err);
}

static int decoder_layer(place *p, mgr_err *err)
{
    const mgr_model *const m = p->model;
    const split dense = {p->mg->tensor_parallel, p->tp, p->copy_of_part,
                         mgr_model_ffn_width(m, p->layer, MGR_FFN_DENSE), false};
    const bool moe = mgr_model_is_moe(m, p->layer);
    if (!m->ffns_only) {
        MGR_TRY(attention(p, &dense, err));
        MGR_TRY(norm(p, MGR_ROLE_MLP_NORM, MGR_ROLE_MLP_NORM_BIAS,
                     moe ? moe_norm_names : mlp_norm_names, m->hidden, err));
    }
    MGR_TRY(moe ? experts(p, err) : ffn(p, fc1_names, fc2_names, &dense, err));
    return layer_objects(p, err);
}

static int first_chunk(const place *p, mgr_err *err)
{
    const mgr_model *const m = p->model;
    MGR_TRY(vocabulary(p, MGR_ROLE_EMBEDDING, embedding_names, p->copy_of_part, err));
    if (m->positions != MGR_POSITIONS_LEARNED)
        return MGR_OK;
    return replicated(p, MGR_ROLE_POSITIONS, position_names, false, m->max_positions, m->hidden,
                      err);
}

/* Layers for multi-token prediction, which are dropped, had an embedding in the last stage. */
static int embedding_for_mtp(const place *p, mgr_err *err)
{
    char name[NAME_MAX_BYTES];
    make_name(p, embedding_names[0], false, name);
    if (p->layout->declare || p->mg->pipeline_parallel == 1 ||
        !mgr_layout_has(p->layout, p->file, name))
        return MGR_OK;
    return vocabulary(p, MGR_ROLE_EMBEDDING, embedding_names,
                      2 * p->mg->expert_parallel + p->copy_of_part, err);
}

/* Tied embeddings: with one stage there is no output layer; with more, the last stage holds its own
 * copy of the embedding, which must be equal to it. */
static int last_chunk(place *p, mgr_err *err)
{
    MGR_TRY(norm(p, MGR_ROLE_FINAL_NORM, MGR_ROLE_FINAL_NORM_BIAS, final_norm_names,
                 p->model->hidden, err));
    if (p->mg->names == MGR_NAMES_TE)
        MGR_TRY(object(p, "decoder.final_layernorm._extra_state", err));
    MGR_TRY(object(p, "output_layer._extra_state", err)); /* also where it has no weight */
    MGR_TRY(embedding_for_mtp(p, err));
    if (!p->model->tied)
        return vocabulary(p, MGR_ROLE_LM_HEAD, output_names, p->copy_of_part, err);
    if (p->mg->pipeline_parallel > 1) /* behind all copies that first stages hold */
        return vocabulary(p, MGR_ROLE_EMBEDDING, tied_output_names,
                          p->mg->expert_parallel + p->copy_of_part, err);
    return MGR_OK;
}

/* Which copies the file of (pp, ep, tp) holds: as many as there are files before it that hold the
 * same. */
static void number_copies(place *p)
{
    const mgr_megatron *const mg = p->mg;
    p->copy_of_all = p->copy_of_part = p->copy_of_expert = p->copy_of_expert_part = 0;
    for (uint32_t ep = 0; ep <= p->ep; ep++)
        for (uint32_t tp = 0; tp < mg->tensor_parallel && (ep < p->ep || tp < p->tp); tp++) {
            if (mg->files[mgr_megatron_cell(mg, p->pp, ep, tp)] == MGR_NONE)
                continue;
            p->copy_of_all++;
            p->copy_of_part += tp == p->tp;
            p->copy_of_expert += ep == p->ep;
            p->copy_of_expert_part += ep == p->ep && tp % mg->expert_tensor_parallel ==
                                                         p->tp % mg->expert_tensor_parallel;
        }
}

/* Chunk `k` in the order of layers: of stage k mod PP, its chunk number k / PP. */
static int chunk(place *p, uint32_t k, uint32_t *layer, mgr_err *err)
{
    const uint32_t stages = p->mg->pipeline_parallel;
    const uint32_t chunks = p->mg->virtual_pipeline * stages, first = *layer;
    *layer += p->mg->stage_layers[k];
    p->pp = k % stages;
    p->file = p->mg->files[mgr_megatron_cell(p->mg, p->pp, p->ep, p->tp)];
    if (p->file == MGR_NONE)
        return MGR_OK;
    number_copies(p);
    p->chunk = k / stages;
    p->layer = MGR_NONE;
    if (k == 0)
        MGR_TRY(first_chunk(p, err));
    for (uint32_t i = 0; i < p->mg->stage_layers[k]; i++) {
        p->layer = first + i;
        p->layer_here = i;
        MGR_TRY(decoder_layer(p, err));
    }
    p->layer = MGR_NONE;
    return k + 1 == chunks ? last_chunk(p, err) : MGR_OK;
}

/* ---- T5 and vision transformers ---- */

/* The box that rank p->tp has of opaque tensor `b->tensor`, and the shape of what holds it. */
static int cut_opaque(const place *p, const mgr_kin_row *row, mgr_box *b, uint64_t *shape,
                      mgr_err *err)
{
    const mgr_tensor *const t = &p->layout->tensors->list[b->tensor];
    const uint64_t ranks = p->mg->tensor_parallel, rows = p->mg->padded_vocab / ranks;
    const bool by_cols = row->split == MGR_KIN_COLS;
    memcpy(shape, t->opaque->shape, sizeof t->opaque->shape);
    *b = (mgr_box){.tensor = b->tensor, .rows = t->rows, .cols = t->cols};
    b->copy = row->split == MGR_KIN_WHOLE ? p->copy_of_all : p->copy_of_part;
    if (row->split == MGR_KIN_WHOLE)
        return MGR_OK;
    if (row->split == MGR_KIN_VOCABULARY) {
        shape[0] = rows;
        b->row = p->tp * rows < t->rows ? p->tp * rows : t->rows;
        b->rows = t->rows - b->row < rows ? t->rows - b->row : rows;
        return MGR_OK;
    }
    uint64_t *const axis = &shape[by_cols ? t->opaque->ndim - 1 : 0];
    if (t->opaque->ndim > 2 || *axis % ranks != 0)
        return mgr_fail(err, MGR_ERR_FORMAT,
                        "tensor '%s' does not split over %llu tensor-parallel ranks",
                        t->opaque->name, (unsigned long long)ranks);
    *axis /= ranks;
    *(by_cols ? &b->cols : &b->rows) = *axis;
    *(by_cols ? &b->col : &b->row) = p->tp * *axis;
    return MGR_OK;
}

static void spell_opaque(const mgr_kin_row *row, const char *opaque, const char *module,
                         char out[NAME_MAX_BYTES])
{
    char name[MGR_KIN_NAME_BYTES];
    mgr_kin_spell(row, opaque, module, name);
    snprintf(out, NAME_MAX_BYTES, "model.%.180s", name);
}

/* The first name of an opaque tensor, or with `again` its second: of a target what its spec has, of
 * a source what is there. False where there is none; a first one may be missing, too. */
static bool opaque_name(const place *p, const mgr_kin_key *key, const char *opaque, bool again,
                        char out[NAME_MAX_BYTES])
{
    const mgr_kin_row *const row = key->row;
    const uint64_t layer = mgr_model_stack_first(p->model, key->stack) + key->layer;
    const bool moe = key->in_layer && mgr_model_is_moe(p->model, layer);
    const bool fused = mgr_kin_is_fused(row, p->mg->names == MGR_NAMES_TE, moe);
    if (again && !row->again)
        return false;
    spell_opaque(row, opaque,
                 again                         ? row->again
                 : p->layout->declare && fused ? row->fused
                                               : row->name,
                 out);
    if (p->layout->declare || mgr_layout_has(p->layout, p->file, out))
        return true;
    if (!again && row->fused)
        spell_opaque(row, opaque, row->fused, out);
    return !again;
}

/* By its name, and by its second one where it has one and the source has it. */
static int opaque_part(const place *p, uint32_t idx, mgr_err *err)
{
    const mgr_opaque *const o = p->layout->tensors->list[idx].opaque;
    const uint32_t files = p->mg->tensor_parallel * p->mg->expert_parallel;
    const mgr_kin_key key = mgr_kin_key_of(p->model, o);
    mgr_box b = {.tensor = idx};
    uint64_t shape[MGR_MAX_NDIM];
    MGR_TRY(cut_opaque(p, key.row, &b, shape, err));
    for (int again = 0; again < 2; again++, b.copy += files) {
        char name[NAME_MAX_BYTES];
        if (!opaque_name(p, &key, o->name, again, name))
            continue;
        MGR_TRY(mgr_layout_tensor(p->layout, p->file, name, o->ndim, shape, &b.stored, err));
        if (key.row->split == MGR_KIN_VOCABULARY)
            MGR_TRY(mgr_layout_fill(p->layout, b.stored, b.rows, shape[0] - b.rows, err));
        MGR_TRY(mgr_layout_box(p->layout, &b, err));
    }
    return MGR_OK;
}

/* What the linears and, of Transformer Engine, the norms of a T5 have beside those of a GPT. */
static int cross_objects(place *p, mgr_err *err)
{
    static const char *const linears[] = {MCORE "cross_attention.linear_q._extra_state",
                                          MCORE "cross_attention.linear_kv._extra_state",
                                          MCORE "cross_attention.linear_proj._extra_state"};
    static const char *const te[] = {MCORE "cross_attention.core_attention._extra_state",
                                     MCORE "pre_cross_attn_layernorm._extra_state"};
    if (p->encoder || p->model->kin != MGR_KIN_T5)
        return MGR_OK;
    MGR_TRY(objects(p, linears, COUNT(linears), err));
    return p->mg->names == MGR_NAMES_TE ? objects(p, te, COUNT(te), err) : MGR_OK;
}

static int kin_objects(place *p, mgr_err *err)
{
    static const char *const heads[] = {"lm_head.output_layer._extra_state",
                                        "output_layer._extra_state"};
    static const char *const norms[] = {"encoder.final_layernorm._extra_state",
                                        "decoder.final_layernorm._extra_state"};
    if (p->model->kin != MGR_KIN_T5)
        return MGR_OK;
    MGR_TRY(objects(p, heads, COUNT(heads), err));
    return p->mg->names == MGR_NAMES_TE ? objects(p, norms, COUNT(norms), err) : MGR_OK;
}

/* One file: both stacks, the decoder's layers first, and all that is opaque. */
static int kin_file(place *p, mgr_err *err)
{
    const mgr_tensors *const ts = p->layout->tensors;
    p->file = p->mg->files[mgr_megatron_cell(p->mg, 0, p->ep, p->tp)];
    if (p->file == MGR_NONE)
        return MGR_OK;
    number_copies(p);
    for (uint32_t l = 0; l < p->model->layers; l++) {
        p->layer = l;
        p->encoder = mgr_model_stack(p->model, l, &p->layer_here) == MGR_STACK_ENCODER;
        MGR_TRY(decoder_layer(p, err));
        MGR_TRY(cross_objects(p, err));
    }
    p->layer = MGR_NONE;
    p->encoder = false;
    for (uint32_t i = ts->first_opaque; i < ts->n; i++)
        MGR_TRY(opaque_part(p, i, err));
    return kin_objects(p, err);
}

static int lay_out_plane(mgr_layout *layout, const mgr_megatron *mg, mgr_plane plane, mgr_err *err)
{
    for (uint32_t ep = 0; ep < mg->expert_parallel; ep++)
        for (uint32_t tp = 0; tp < mg->tensor_parallel; tp++) {
            place p = {.layout = layout,
                       .mg = mg,
                       .model = &layout->tensors->model,
                       .tp = tp,
                       .ep = ep,
                       .expert = MGR_NONE,
                       .plane = plane};
            uint32_t layer = 0;
            if (p.model->kin) {
                MGR_TRY(kin_file(&p, err));
                continue;
            }
            for (uint32_t k = 0; k < mg->virtual_pipeline * mg->pipeline_parallel; k++)
                MGR_TRY(chunk(&p, k, &layer, err));
        }
    return MGR_OK;
}

/* What an optimizer has and nobody asks for. */
static void skip_planes(mgr_layout *layout)
{
    mgr_catalogue *const cat = layout->cat;
    for (size_t i = 0; !layout->declare && i < cat->n_stored; i++) {
        if (layout->used[i] || strncmp(cat->stored[i].name, PLANE, strlen(PLANE)) != 0)
            continue;
        layout->used[i] = 1;
        cat->skipped[MGR_SKIP_OPTIMIZER]++;
    }
}

int mgr_megatron_layout(mgr_layout *layout, const mgr_megatron *mg, mgr_err *err)
{
    MGR_TRY(mgr_megatron_check(&layout->tensors->model, mg, err));
    if (mg->masters && layout->tensors->model.kin)
        return mgr_fail(err, MGR_ERR_UNSUPPORTED,
                        "'source.weights' is masters, which are read of a GPT alone");
    if (mg->masters)
        MGR_TRY(mgr_alloc(&layout->copies, layout->tensors->n, sizeof *layout->copies, err));
    MGR_TRY(lay_out_plane(layout, mg, MGR_PLANE_WEIGHT, err));
    for (int p = MGR_PLANE_WEIGHT + 1; p < MGR_PLANE_COUNT; p++)
        if (layout->tensors->kept & 1u << p)
            MGR_TRY(lay_out_plane(layout, mg, (mgr_plane)p, err));
    skip_planes(layout);
    return MGR_OK;
}

int mgr_megatron_check(const mgr_model *m, const mgr_megatron *mg, mgr_err *err)
{
    const uint64_t t = mg->tensor_parallel;
    const struct {
        const char *name;
        uint64_t size, ranks;
        const char *kind;
    } splits[] = {
        {"num_attention_heads", m->heads, t, "tensor"},
        {"ffn_hidden_size", m->ffn, t, "tensor"},
        {"padded_vocab_size", mg->padded_vocab, t, "tensor"},
        {"the fused QKV rows", (m->heads + 2 * m->kv_groups) * m->head_dim, t, "tensor"},
        {"moe_ffn_hidden_size", mgr_model_expert_ffn(m), mg->expert_tensor_parallel,
         "expert-tensor"},
        {"num_experts", m->experts, mg->expert_parallel, "expert"},
        {"moe_shared_expert_intermediate_size", m->shared_ffn, t, "tensor"},
        {"tensor parallel size", t, mg->expert_tensor_parallel, "expert-tensor"},
    };
    const bool dense = m->experts == 0, all_moe = mgr_model_moe_layers(m) == m->layers;
    for (size_t i = 0; i < COUNT(splits); i++) {
        if ((i == 1 && !dense && all_moe) || (i >= 4 && dense))
            continue;
        if (splits[i].size % splits[i].ranks != 0)
            return mgr_fail(err, MGR_ERR_FORMAT,
                            "%s (%llu) does not split over %llu %s-parallel ranks", splits[i].name,
                            (unsigned long long)splits[i].size, (unsigned long long)splits[i].ranks,
                            splits[i].kind);
    }
    if (m->kv_groups == 0 || m->heads % m->kv_groups != 0)
        return mgr_fail(err, MGR_ERR_FORMAT, "%llu attention heads do not split into %llu groups",
                        (unsigned long long)m->heads, (unsigned long long)m->kv_groups);
    return MGR_OK;
}
