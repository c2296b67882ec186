/*
 * Layouts: for random shapes and splits, the boxes of Megatron and of Mixtral cover every element
 * of every logical tensor exactly once, and element for element follow rules restated here without
 * boxes.
 */
#include <stdlib.h>

#include "core/mem.h"
#include "mgr/layout.h"
#include "mgr/rng.h"
#include "model/huggingface.h"
#include "model/megatron.h"
#include "support/check.h"

static uint32_t draw(uint32_t turn, uint32_t what, uint32_t n)
{
    uint32_t word;
    const mgr_stream stream = {99, 1000, turn, what};
    mgr_words(&stream, 0, 1, &word);
    return word % n;
}

static mgr_model random_model(uint32_t turn, uint32_t tp)
{
    mgr_model m = {.dtype = MGR_DTYPE_BF16};
    m.kv_groups = tp * (1 + draw(turn, 1, 2));
    m.heads = m.kv_groups * (1 + draw(turn, 2, 3));
    m.head_dim = 2 + draw(turn, 3, 3);
    m.hidden = 3 + draw(turn, 4, 9);
    m.ffn = tp * (2 + draw(turn, 5, 5));
    m.vocab = tp * 3 + draw(turn, 6, 7);
    m.layers = 4;
    m.tied = draw(turn, 7, 2);
    return m;
}

/* Features that a Llama-like model does not have, and experts in some layers. */
static void add_features(mgr_model *m, uint32_t turn, uint32_t tp)
{
    m->norm = draw(turn, 20, 2) ? MGR_NORM_LAYER : MGR_NORM_RMS;
    m->activation = (mgr_activation)draw(turn, 21, 4);
    m->positions = draw(turn, 22, 2) ? MGR_POSITIONS_LEARNED : MGR_POSITIONS_ROPE;
    m->max_positions = 5;
    m->bias_qkv = draw(turn, 23, 2);
    m->bias_mlp = m->bias_o = draw(turn, 24, 2);
    m->qk_norm = draw(turn, 25, 2);
    m->experts = draw(turn, 26, 2) ? 4 : 0;
    m->expert_ffn = tp * (1 + draw(turn, 27, 3));
    m->bias_router = m->experts && draw(turn, 28, 2);
    for (uint32_t l = 0; m->experts && l < 4; l++)
        if (draw(turn, 30 + l, 3) == 0)
            mgr_model_set_dense(m, l);
}

/* The stored element that holds logical element (row, col), by the first copy's boxes. */
static uint64_t where(const mgr_layout *l, uint32_t tensor, uint64_t row, uint64_t col,
                      uint32_t *stored)
{
    for (size_t b = l->first_box[tensor]; b < l->first_box[tensor + 1]; b++) {
        const mgr_box *const x = &l->boxes[b];
        if (x->copy == 0 && row >= x->row && row - x->row < x->rows && col >= x->col &&
            col - x->col < x->cols) {
            *stored = x->stored;
            return (x->stored_row + row - x->row) * x->row_stride + x->stored_col + col - x->col;
        }
    }
    *stored = MGR_NONE;
    return 0;
}

/* Fused QKV as attention.py lays it out: row of (group, head in group or k or v, d). */
static void check_qkv(const mgr_layout *l, uint32_t tp, uint32_t layer)
{
    const mgr_model *const m = &l->tensors->model;
    const uint64_t per = m->heads / m->kv_groups, d = m->head_dim;
    const uint64_t chunk = (m->heads + 2 * m->kv_groups) * d / tp;
    static const mgr_role roles[] = {MGR_ROLE_Q, MGR_ROLE_K, MGR_ROLE_V};
    for (int k = 0; k < 3; k++) {
        const uint32_t t = mgr_tensors_find(l->tensors, roles[k], layer, MGR_NONE);
        for (uint64_t row = 0; row < l->tensors->list[t].rows; row++) {
            const uint64_t group = row / (k == 0 ? per * d : d);
            const uint64_t inside = row % (k == 0 ? per * d : d);
            const uint64_t fused = group * (per + 2) * d +
                                   (k == 0   ? 0
                                    : k == 1 ? per
                                             : per + 1) *
                                       d +
                                   inside;
            uint32_t stored;
            const uint64_t at = where(l, t, row, 1, &stored);
            CHECK(stored != MGR_NONE);
            CHECK_INT(at, fused % chunk * m->hidden + 1);
            CHECK_HAS(l->cat->stored[stored].name, "linear_qkv.weight");
        }
    }
}

/* fc1: rank t holds gate slice t, then up slice t; fc2: columns of slice t. */
static void check_ffn(const mgr_layout *l, uint32_t tp, uint32_t layer)
{
    const mgr_model *const m = &l->tensors->model;
    const uint64_t slice = m->ffn / tp;
    const uint32_t gate = mgr_tensors_find(l->tensors, MGR_ROLE_GATE, layer, MGR_NONE);
    for (uint64_t f = 0; f < m->ffn; f++) {
        uint32_t stored;
        CHECK_INT(where(l, gate, f, 0, &stored), f % slice * m->hidden);
        CHECK_INT(where(l, gate + 1, f, 2, &stored), (slice + f % slice) * m->hidden + 2);
        CHECK_INT(where(l, gate + 2, 1, f, &stored), slice + f % slice);
        CHECK_HAS(l->cat->stored[stored].name, "linear_fc2.weight");
    }
}

static void check_megatron(uint32_t turn, bool features)
{
    mgr_err err = MGR_ERR_INIT;
    const uint32_t tp = 1u << draw(turn, 8, 3), pp = 1u << draw(turn, 9, 3);
    mgr_model model = random_model(turn, tp);
    if (features)
        add_features(&model, turn, tp);
    const uint32_t ep = model.experts ? 1u << draw(turn, 11, 3) : 1;
    const uint32_t etp = model.experts && draw(turn, 12, 2) ? 1 : tp;
    const uint32_t vp = pp == 2 && draw(turn, 13, 2) ? 2 : 1;
    uint32_t stages[4] = {4 / pp / vp, 4 / pp / vp, 4 / pp / vp, 4 / pp / vp}, files[64];
    mgr_tensors tensors;
    mgr_catalogue cat = {0};
    mgr_layout target, source;
    CHECK_INT(mgr_tensors_init(&tensors, &model, &err), MGR_OK);
    for (uint32_t i = 0; i < tp * pp * ep; i++)
        CHECK_INT(mgr_catalogue_add_file(&cat, "f", 0, &files[i], &err), MGR_OK);
    const mgr_megatron mg = {
        .tensor_parallel = tp,
        .pipeline_parallel = pp,
        .expert_parallel = ep,
        .expert_tensor_parallel = etp,
        .virtual_pipeline = vp,
        .padded_vocab = (model.vocab + 8 * tp) / tp * tp,
        .names = draw(turn, 10, 2) ? MGR_NAMES_TE : MGR_NAMES_LOCAL,
        .experts = model.bias_mlp ? MGR_EXPERTS_GROUPED : (mgr_expert_names)draw(turn, 14, 3),
        .stage_layers = stages,
        .files = files,
    };
    CHECK_INT(mgr_layout_init(&target, &tensors, &cat, true, MGR_DTYPE_BF16, &err), MGR_OK);
    CHECK_INT(mgr_megatron_layout(&target, &mg, &err), MGR_OK);
    CHECK_INT(mgr_layout_finish(&target, &err), MGR_OK);
    check_qkv(&target, tp, 3);
    if (!features)
        check_ffn(&target, tp, 2);
    for (uint32_t i = 0; i < tensors.n; i++) /* every tensor is found where it is listed */
        CHECK_INT(mgr_tensors_find(&tensors, tensors.list[i].role, tensors.list[i].layer,
                                   tensors.list[i].expert),
                  i);
    /* what the target declares, the source finds, all of it, in the same boxes */
    CHECK_INT(mgr_layout_init(&source, &tensors, &cat, false, MGR_DTYPE_BF16, &err), MGR_OK);
    CHECK_INT(mgr_megatron_layout(&source, &mg, &err), MGR_OK);
    CHECK_INT(mgr_layout_finish(&source, &err), MGR_OK);
    CHECK_INT(source.n_boxes, target.n_boxes);
    CHECK(memcmp(source.boxes, target.boxes, target.n_boxes * sizeof *target.boxes) == 0);
    CHECK_INT(err.code, MGR_OK);
    mgr_layout_clear(&source);
    mgr_layout_clear(&target);
    mgr_catalogue_clear(&cat);
    mgr_tensors_clear(&tensors);
}

/* A tensor that nobody expects, one that is missing, another shape, another type: refused by name.
 */
static void check_refusals(void)
{
    static const char *const expected[] = {
        "unknown tensor 'model.extra'", "tensor 'model.output_layer.weight' is missing in 'f'",
        "tensor 'model.output_layer.weight' in 'f': shape [12, 4], expected [12, 6]",
        "tensor 'model.output_layer.weight' in 'f' has type int64; weights are"};
    for (int lie = 0; lie < 4; lie++) {
        mgr_err err = MGR_ERR_INIT;
        const mgr_model m = {.layers = 1,
                             .hidden = 6,
                             .ffn = 4,
                             .heads = 2,
                             .kv_groups = 1,
                             .head_dim = 3,
                             .vocab = 12,
                             .dtype = MGR_DTYPE_BF16};
        uint32_t one = 1, file;
        mgr_tensors tensors;
        mgr_catalogue cat = {0};
        mgr_layout l;
        CHECK_INT(mgr_tensors_init(&tensors, &m, &err), MGR_OK);
        CHECK_INT(mgr_catalogue_add_file(&cat, "f", 0, &file, &err), MGR_OK);
        const mgr_megatron mg = {.tensor_parallel = 1,
                                 .pipeline_parallel = 1,
                                 .expert_parallel = 1,
                                 .expert_tensor_parallel = 1,
                                 .virtual_pipeline = 1,
                                 .padded_vocab = 12,
                                 .stage_layers = &one,
                                 .files = &file};
        CHECK_INT(mgr_layout_init(&l, &tensors, &cat, true, MGR_DTYPE_BF16, &err), MGR_OK);
        CHECK_INT(mgr_megatron_layout(&l, &mg, &err), MGR_OK);
        CHECK_INT(mgr_layout_finish(&l, &err), MGR_OK);
        mgr_layout_clear(&l);
        mgr_stored *const last = &cat.stored[cat.n_stored - 1]; /* the output layer */
        if (lie == 0) {
            mgr_stored extra = *last;
            extra.name = "model.extra";
            CHECK_INT(mgr_catalogue_add_stored(&cat, &extra, &err), MGR_OK);
        } else if (lie == 1) {
            cat.n_stored--;
        } else if (lie == 2) {
            last->shape[1] = 4;
        } else {
            last->dtype = MGR_DTYPE_I64;
        }
        CHECK_INT(mgr_layout_init(&l, &tensors, &cat, false, MGR_DTYPE_BF16, &err), MGR_OK);
        int rc = mgr_megatron_layout(&l, &mg, &err);
        if (rc == MGR_OK)
            rc = mgr_layout_finish(&l, &err);
        CHECK_INT(rc, lie == 3 ? MGR_ERR_UNSUPPORTED : MGR_ERR_FORMAT);
        CHECK_HAS(err.msg, expected[lie]);
        mgr_layout_clear(&l);
        mgr_catalogue_clear(&cat);
        mgr_tensors_clear(&tensors);
    }
}

/* A box too many or too few is noticed. */
static void check_coverage(void)
{
    const mgr_model m = {.layers = 1,
                         .hidden = 6,
                         .ffn = 4,
                         .heads = 2,
                         .kv_groups = 1,
                         .head_dim = 3,
                         .vocab = 12,
                         .experts = 4,
                         .top_k = 2};
    for (int lie = 0; lie < 4; lie++) {
        mgr_err err = MGR_ERR_INIT;
        mgr_tensors tensors;
        mgr_catalogue cat = {0};
        mgr_layout l;
        const mgr_huggingface hf = {
            .ffn = MGR_HF_PER_EXPERT, .expert_parallel = 2, .max_shard_size = 1000};
        CHECK_INT(mgr_tensors_init(&tensors, &m, &err), MGR_OK);
        CHECK_INT(mgr_layout_init(&l, &tensors, &cat, true, MGR_DTYPE_BF16, &err), MGR_OK);
        CHECK_INT(mgr_huggingface_layout(&l, &hf, &err), MGR_OK);
        if (lie == 1)
            l.boxes[5].rows--;
        if (lie == 2)
            l.boxes[5] = l.boxes[6];
        if (lie == 3)
            CHECK_INT(mgr_layout_box(&l, &l.boxes[3], &err), MGR_OK);
        CHECK_INT(mgr_layout_finish(&l, &err), lie ? MGR_ERR_INTERNAL : MGR_OK);
        mgr_layout_clear(&l);
        mgr_catalogue_clear(&cat);
        mgr_tensors_clear(&tensors);
    }
}

static const mgr_model small = {
    .layers = 2, .hidden = 6, .ffn = 4, .heads = 2, .kv_groups = 1, .head_dim = 3, .vocab = 12};

static const uint32_t one_stage = 2, one_file = 0;
static const mgr_megatron whole = {.tensor_parallel = 1,
                                   .pipeline_parallel = 1,
                                   .expert_parallel = 1,
                                   .expert_tensor_parallel = 1,
                                   .virtual_pipeline = 1,
                                   .padded_vocab = 12,
                                   .stage_layers = &one_stage,
                                   .files = &one_file};

static mgr_dtype type_of(const mgr_layout *l, mgr_role role, uint32_t layer)
{
    return l->types[mgr_tensors_find(l->tensors, role, layer, MGR_NONE)];
}

/* What lies in one stored tensor has the narrowest type that holds all of it; the rest keeps its
 * own. */
static void check_types(void)
{
    mgr_err err = MGR_ERR_INIT;
    mgr_tensors tensors;
    mgr_catalogue cat = {0};
    mgr_layout l;
    uint32_t file;
    CHECK_INT(mgr_tensors_init(&tensors, &small, &err), MGR_OK);
    CHECK_INT(mgr_catalogue_add_file(&cat, "f", 0, &file, &err), MGR_OK);
    CHECK_INT(mgr_layout_init(&l, &tensors, &cat, true, MGR_DTYPE_BF16, &err), MGR_OK);
    l.types[mgr_tensors_find(&tensors, MGR_ROLE_K, 0, MGR_NONE)] = MGR_DTYPE_F16;
    l.types[mgr_tensors_find(&tensors, MGR_ROLE_UP, 1, MGR_NONE)] = MGR_DTYPE_F32;
    l.types[mgr_tensors_find(&tensors, MGR_ROLE_MLP_NORM, 1, MGR_NONE)] = MGR_DTYPE_F16;
    CHECK_INT(mgr_megatron_layout(&l, &whole, &err), MGR_OK);
    CHECK_INT(mgr_layout_finish(&l, &err), MGR_OK);
    CHECK_INT(type_of(&l, MGR_ROLE_Q, 0), MGR_DTYPE_F32);
    CHECK_INT(type_of(&l, MGR_ROLE_V, 0), MGR_DTYPE_F32);
    CHECK_INT(type_of(&l, MGR_ROLE_Q, 1), MGR_DTYPE_BF16);
    CHECK_INT(type_of(&l, MGR_ROLE_GATE, 1), MGR_DTYPE_F32);
    CHECK_INT(type_of(&l, MGR_ROLE_GATE, 0), MGR_DTYPE_BF16);
    CHECK_INT(type_of(&l, MGR_ROLE_MLP_NORM, 1), MGR_DTYPE_F16);
    for (size_t i = 0; i < l.n_boxes; i++)
        CHECK_INT(cat.stored[l.boxes[i].stored].dtype, l.types[l.boxes[i].tensor]);
    mgr_layout_clear(&l);
    mgr_catalogue_clear(&cat);
    mgr_tensors_clear(&tensors);
}

/* Linked tensors share a type, and padding alone has the model's. */
static void check_links(void)
{
    mgr_err err = MGR_ERR_INIT;
    const mgr_tensors none = {.n = 0};
    mgr_catalogue cat = {0};
    mgr_layout l;
    uint32_t file, stored[3];
    CHECK_INT(mgr_catalogue_add_file(&cat, "f", 0, &file, &err), MGR_OK);
    CHECK_INT(mgr_layout_init(&l, &none, &cat, true, MGR_DTYPE_F16, &err), MGR_OK);
    for (int i = 0; i < 3; i++)
        CHECK_INT(mgr_layout_tensor(&l, file, "x", 1, &(uint64_t){4}, &stored[i], &err), MGR_OK);
    cat.stored[0].dtype = MGR_DTYPE_BF16;
    CHECK_INT(mgr_layout_link(&l, 1, 0, &err), MGR_OK);
    CHECK_INT(mgr_layout_finish(&l, &err), MGR_OK);
    CHECK_INT(cat.stored[1].dtype, MGR_DTYPE_BF16);
    CHECK_INT(cat.stored[2].dtype, MGR_DTYPE_F16);
    mgr_layout_clear(&l);
    mgr_catalogue_clear(&cat);
}

/* Shards: one owner each, filled up to the limit, in rank order. */
static void check_shards(void)
{
    mgr_err err = MGR_ERR_INIT;
    const mgr_model m = {.layers = 3,
                         .hidden = 8,
                         .ffn = 16,
                         .heads = 2,
                         .kv_groups = 1,
                         .head_dim = 4,
                         .vocab = 12,
                         .experts = 6,
                         .top_k = 2};
    mgr_tensors tensors;
    mgr_catalogue cat = {0};
    mgr_layout l;
    const mgr_huggingface hf = {
        .ffn = MGR_HF_PER_EXPERT, .expert_parallel = 3, .max_shard_size = 2000};
    CHECK_INT(mgr_tensors_init(&tensors, &m, &err), MGR_OK);
    CHECK_INT(mgr_layout_init(&l, &tensors, &cat, true, MGR_DTYPE_BF16, &err), MGR_OK);
    CHECK_INT(mgr_huggingface_layout(&l, &hf, &err), MGR_OK);
    CHECK_INT(mgr_layout_finish(&l, &err), MGR_OK);
    uint64_t bytes[64] = {0};
    int32_t owner_before = -1;
    for (uint32_t f = 0; f < cat.n_files; f++) {
        CHECK(l.file_owner[f] >= owner_before);
        owner_before = l.file_owner[f];
    }
    for (uint32_t i = 0; i < tensors.n; i++) {
        const mgr_stored *const s = &cat.stored[l.boxes[l.first_box[i]].stored];
        const uint32_t e = tensors.list[i].expert;
        bytes[s->file] += s->shape[0] * s->stride[0] * 2;
        CHECK_INT(l.file_owner[s->file], e == MGR_NONE ? -1 : (int)(e / 2));
    }
    for (uint32_t f = 0; f < cat.n_files; f++)
        CHECK(bytes[f] > 0 && bytes[f] <= 2000);
    mgr_layout_clear(&l);
    mgr_catalogue_clear(&cat);
    mgr_tensors_clear(&tensors);
}

int main(void)
{
    for (uint32_t turn = 0; turn < 40; turn++)
        check_megatron(turn, turn % 2);
    check_refusals();
    check_coverage();
    check_shards();
    check_types();
    check_links();
    return CHECK_DONE();
}
