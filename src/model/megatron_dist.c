#include "model/megatron_dist.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/mem.h"
#include "model/megatron_dist_key.h"
#include "model/megatron_families.h"
#include "model/megatron_hybrid.h"
#include "model/megatron_kin_dist.h"

/* ---- the model ---- */

/* Sizes of whole tensors: [0] at the top, in layers and in dense FFNs, [1] of experts. */
typedef struct extents {
    uint64_t rows[2][MGR_ROLE_COUNT], cols[2][MGR_ROLE_COUNT];
    uint64_t layers[MGR_STACK_COUNT], most_layers;
    mgr_dtype dtype;
    uint8_t moe_layers[MGR_STACK_COUNT][MGR_MAX_LAYERS / 8];
} extents;

static mgr_dist_family family_of(const mgr_megatron_dist *dist)
{
    return dist->kin      ? MGR_DIST_FAMILY_KIN
           : dist->hybrid ? MGR_DIST_FAMILY_HYBRID
                          : MGR_DIST_FAMILY_GPT;
}

static void raise_to(uint64_t *most, uint64_t value)
{
    *most = value > *most ? value : *most;
}

static void measure_piece(const mgr_dist_piece *p, extents *e, mgr_megatron_dist *dist)
{
    const mgr_role role = p->key->role;
    const bool of_expert = p->experts > 0;
    raise_to(&e->rows[of_expert][role], p->row + p->rows);
    raise_to(&e->cols[of_expert][role], p->col + p->cols);
    if (p->key->place != MGR_DIST_TOP)
        raise_to(&e->layers[p->stack], p->layer + p->layers);
    e->most_layers += p->layers;
    for (uint64_t l = p->layer; role == MGR_ROLE_ROUTER && l < p->layer + p->layers; l++)
        e->moe_layers[p->stack][l / 8] |= (uint8_t)(1u << l % 8);
    if (role == MGR_ROLE_EMBEDDING || (role == MGR_ROLE_DOWN && e->dtype == MGR_DTYPE_NONE))
        e->dtype = p->stored->dtype;
    dist->stacked = dist->stacked || p->stacked;
    dist->singleton = dist->singleton || (p->key->form == MGR_DIST_PLAIN && role == MGR_ROLE_GATE);
}

static void measure(const mgr_catalogue *cat, extents *e, mgr_megatron_dist *dist)
{
    for (size_t i = 0; i < cat->n_stored; i++) {
        mgr_dist_piece p;
        if (mgr_dist_read_piece(&cat->stored[i], family_of(dist), &p) &&
            p.plane == MGR_PLANE_WEIGHT)
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

/* Of both stacks, the decoder's first. */
static void note_layers(const extents *e, mgr_megatron_shapes *s)
{
    const uint64_t decoder = e->layers[MGR_STACK_DECODER];
    s->encoder_layers = e->layers[MGR_STACK_ENCODER];
    s->layers = decoder + s->encoder_layers;
    memcpy(s->moe_layers, e->moe_layers[MGR_STACK_DECODER], sizeof s->moe_layers);
    for (uint64_t l = 0; l < s->encoder_layers && decoder + l < MGR_MAX_LAYERS; l++)
        if (e->moe_layers[MGR_STACK_ENCODER][l / 8] >> l % 8 & 1)
            s->moe_layers[(decoder + l) / 8] |= (uint8_t)(1u << (decoder + l) % 8);
}

static mgr_megatron_shapes shapes_of(const mgr_catalogue *cat, const extents *e,
                                     const mgr_megatron_dist *dist)
{
    mgr_megatron_shapes s = {
        .file = file_of_args(cat),
        .dtype = e->dtype,
        .kin = dist->kin,
        .hybrid = dist->hybrid,
        .hidden = has(e, MGR_ROLE_EMBEDDING)  ? e->cols[0][MGR_ROLE_EMBEDDING]
                  : e->rows[0][MGR_ROLE_DOWN] ? e->rows[0][MGR_ROLE_DOWN]
                                              : e->rows[1][MGR_ROLE_DOWN],
        .padded_vocab = e->rows[0][MGR_ROLE_EMBEDDING],
        .ffn = e->cols[0][MGR_ROLE_DOWN],
        .fc1_rows = fc1_rows(e, false),
        .experts = e->rows[0][MGR_ROLE_ROUTER],
        .expert_ffn = e->cols[1][MGR_ROLE_DOWN],
        .expert_fc1_rows = fc1_rows(e, true),
        .positions = dist->kin ? 0 : e->rows[0][MGR_ROLE_POSITIONS],
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
    note_layers(e, &s);
    return s;
}

/* Without these nothing else can be said. */
static int check_needed(const mgr_catalogue *cat, const extents *e, mgr_megatron_kin kin,
                        mgr_err *err)
{
    const bool embedding = kin == MGR_KIN_VIT || has(e, MGR_ROLE_EMBEDDING);
    const char *const missing = !embedding               ? "embedding.word_embeddings.weight"
                                : !has(e, MGR_ROLE_DOWN) ? ".linear_fc2.weight"
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
    *dist = (mgr_megatron_dist){.hybrid = mgr_megatron_hybrid_is(cat),
                                .kin = mgr_megatron_kin_of(cat),
                                .masters = strcmp(config->source.weights, "masters") == 0};
    if (dist->hybrid)
        MGR_TRY(mgr_megatron_hybrid_check(cat, err));
    measure(cat, &e, dist);
    MGR_TRY(check_needed(cat, &e, dist->kin, err));
    const mgr_megatron_shapes shapes = shapes_of(cat, &e, dist);
    if (dist->kin)
        MGR_TRY(mgr_kin_check(cat, shapes.file, dist->kin, e.layers, err));
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

/* ---- a source ---- */

/* Does the model have this tensor in each layer and for each expert of the piece? */
static bool is_of_model(mgr_dist_spot *at)
{
    const mgr_dist_piece *const c = at->piece;
    const mgr_model *const m = &at->layout->tensors->model;
    if (c->key->place != MGR_DIST_TOP && c->layer + c->layers > mgr_model_stack_layers(m, c->stack))
        return false;
    if (c->expert + c->experts > m->experts)
        return false;
    at->expert = c->expert;
    at->layer = c->layer;
    do {
        if (!mgr_dist_leading(at))
            return false;
        at->layer++;
    } while (at->layer < c->layer + c->layers);
    at->layer = c->layer;
    return true;
}

/* A chunk that reaches outside of the tensor that the model has. What is too small is found by
 * layout_finish. */
static int check_extent(mgr_dist_spot *at, const mgr_megatron_dist *dist, mgr_err *err)
{
    const mgr_model *const m = &at->layout->tensors->model;
    const mgr_dist_piece *const c = at->piece;
    const char *const path = at->layout->cat->files[c->stored->file].path;
    if (!is_of_model(at))
        return mgr_fail(err, MGR_ERR_FORMAT,
                        "tensor '%s' in '%s' is none of the model's, which has %" PRIu64
                        " layers and %" PRIu64 " experts in %" PRIu64 " of them",
                        c->stored->name, path, m->layers, m->experts, mgr_model_moe_layers(m));
    const mgr_tensor *const t = mgr_dist_leading(at);
    const uint64_t rows = mgr_dist_whole_rows(m, dist->padded_vocab, c->key->form, t);
    if (c->ndim == t->ndim && c->row + c->rows <= rows && c->col + c->cols <= t->cols)
        return MGR_OK;
    char size[64];
    snprintf(size, sizeof size, t->ndim == 2 ? "[%" PRIu64 ", %" PRIu64 "]" : "[%" PRIu64 "]", rows,
             t->cols);
    return mgr_fail(
        err, MGR_ERR_FORMAT, "tensor '%s' in '%s' does not lie in the %s%s that the model has",
        c->stored->name, path, size, c->key->place == MGR_DIST_TOP ? "" : " of each layer");
}

/* `there`: [tensors] what there is of planes. `mark`: that is found out. */
static int put_piece(mgr_layout *layout, const mgr_megatron_dist *dist, const mgr_dist_piece *c,
                     uint8_t *there, bool mark, mgr_err *err)
{
    mgr_dist_spot at = {.layout = layout, .piece = c, .there = there, .mark = mark};
    if (c->key->role == MGR_ROLE_LM_HEAD && layout->tensors->model.tied)
        return MGR_OK; /* left over: tied embeddings have no output layer in this format */
    MGR_TRY(check_extent(&at, dist, err));
    if (!mark)
        MGR_TRY(mgr_layout_tensor(layout, c->stored->file, c->stored->name, c->stored->ndim,
                                  c->stored->shape, &at.stored, err));
    return mgr_dist_put(&at, err);
}

static int put_pieces(mgr_layout *layout, const mgr_megatron_dist *dist, uint8_t *there, bool mark,
                      mgr_err *err)
{
    for (size_t i = 0; i < layout->cat->n_stored; i++) {
        mgr_dist_piece c;
        if (!mgr_dist_read_piece(&layout->cat->stored[i], family_of(dist), &c) ||
            (dist->kin && !mgr_dist_is_of_ffns(&c)))
            continue;
        c.instead = dist->masters && c.plane == MGR_PLANE_MASTER;
        if (!mark || c.plane != MGR_PLANE_WEIGHT)
            MGR_TRY(put_piece(layout, dist, &c, there, mark, err));
    }
    return MGR_OK;
}

/* Everything that was asked for, of every parameter? */
static int check_planes(const mgr_layout *layout, const mgr_megatron_dist *dist,
                        const uint8_t *there, mgr_err *err)
{
    const mgr_tensors *const ts = layout->tensors;
    char label[96];
    for (uint32_t i = 0; i < ts->n; i++) {
        const bool plane = ts->list[i].plane != MGR_PLANE_WEIGHT;
        if (there[i] || (!plane && (!dist->masters || layout->types[i] == MGR_DTYPE_F32)))
            continue;
        mgr_fail(err, MGR_ERR_UNSUPPORTED, "the checkpoint of '%s' has no %s%s",
                 layout->cat->n_files ? layout->cat->files[0].path : "",
                 plane ? "" : "float32 master of ",
                 mgr_tensor_label(&ts->list[i], label, sizeof label));
        return mgr_hint(err, "an optimizer is read as --dist-ckpt-optim-fully-reshardable saves "
                             "it, or as one that is not distributed");
    }
    return MGR_OK;
}

static int put_planes(mgr_layout *layout, const mgr_megatron_dist *dist, uint8_t *there,
                      mgr_err *err)
{
    MGR_TRY(put_pieces(layout, dist, there, true, err));
    MGR_TRY(put_pieces(layout, dist, there, false, err));
    return check_planes(layout, dist, there, err);
}

int mgr_megatron_dist_layout(mgr_layout *layout, const mgr_megatron_dist *dist, mgr_err *err)
{
    uint8_t *there = NULL;
    if (dist->kin)
        MGR_TRY(mgr_kin_dist_layout(layout, err));
    if (!dist->masters && !layout->tensors->kept)
        return put_pieces(layout, dist, NULL, false, err);
    MGR_TRY(mgr_alloc(&there, layout->tensors->n, 1, err));
    int rc = dist->masters
                 ? mgr_alloc(&layout->copies, layout->tensors->n, sizeof *layout->copies, err)
                 : MGR_OK;
    if (rc == MGR_OK)
        rc = put_planes(layout, dist, there, err);
    mgr_free(there);
    return rc;
}
