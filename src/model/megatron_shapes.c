/* What the tensors of a Megatron checkpoint of the format torch show of its model. */
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "core/str.h"
#include "model/megatron.h"
#include "model/megatron_kin.h"

/* What is looked at. */
typedef struct evidence {
    const mgr_catalogue *cat;
    const mgr_megatron *mg;
    uint32_t file; /* whose args are read: first stage, tensor-parallel rank 0 */
    mgr_megatron_kin kin;
} evidence;

static const char *path(const evidence *ev)
{
    return ev->cat->files[ev->file].path;
}

/* The first file of stage `pp`: every stage has one of rank 0 of all kinds. */
static uint32_t file_of(const evidence *ev, uint32_t pp)
{
    return ev->mg->files[mgr_megatron_cell(ev->mg, pp, 0, 0)];
}

/* The number behind "model<chunk>." or "model." and "<...>layers." in a name, or -1; *chunk is 0
 * where the key has none. */
static long layer_of(const char *name, unsigned long *chunk)
{
    char *end;
    if (!mgr_has_prefix(name, "model"))
        return -1;
    *chunk = strtoul(name + 5, &end, 10);
    const char *at = end;
    static const char *const stacks[] = {".decoder.layers.", ".language_model.encoder.layers.",
                                         ".language_model.transformer.layers."};
    for (size_t i = 0; i < sizeof stacks / sizeof stacks[0]; i++)
        if (mgr_has_prefix(at, stacks[i]))
            return strtol(at + strlen(stacks[i]), NULL, 10);
    return -1;
}

/* Decoder layers of each chunk: one more than the highest local index in its names. */
static uint64_t count_layers(const evidence *ev, uint32_t *stage_layers)
{
    const uint32_t stages = ev->mg->pipeline_parallel, chunks = ev->mg->virtual_pipeline;
    uint64_t total = 0;
    memset(stage_layers, 0, sizeof *stage_layers * stages * chunks);
    for (size_t i = 0; i < ev->cat->n_stored; i++) {
        const mgr_stored *const s = &ev->cat->stored[i];
        unsigned long chunk = 0;
        const long layer = layer_of(s->name, &chunk);
        if (layer < 0 || layer >= MGR_MAX_LAYERS || chunk >= chunks)
            continue;
        for (uint32_t pp = 0; pp < stages; pp++) {
            uint32_t *const n = &stage_layers[chunk * stages + pp];
            if (s->file == file_of(ev, pp) && (uint32_t)layer + 1 > *n)
                *n = (uint32_t)layer + 1;
        }
    }
    for (uint32_t k = 0; k < stages * chunks; k++)
        total += stage_layers[k];
    return total;
}

/* Note that the layer of a router has experts: its global number is its local one and the layers of
 * all chunks before its own. */
static void note_router(const evidence *ev, const mgr_stored *s, const uint32_t *stage_layers,
                        mgr_megatron_shapes *shapes)
{
    const uint32_t stages = ev->mg->pipeline_parallel;
    unsigned long chunk = 0;
    const long local = layer_of(s->name, &chunk);
    uint64_t layer = local < 0 ? 0 : (uint64_t)local;
    uint32_t pp = 0;
    while (pp < stages && s->file != file_of(ev, pp))
        pp++;
    if (pp == stages || local < 0 || chunk >= ev->mg->virtual_pipeline)
        return;
    for (size_t k = 0; k < chunk * stages + pp; k++)
        layer += stage_layers[k];
    if (layer < MGR_MAX_LAYERS)
        shapes->moe_layers[layer / 8] |= (uint8_t)(1u << layer % 8);
    shapes->experts = s->shape[0];
}

/* What the tensors of the first files of each stage show. */
static void note_tensor(const evidence *ev, const mgr_stored *s, const uint32_t *stage_layers,
                        mgr_megatron_shapes *shapes)
{
    static const struct {
        const char *suffix;
        size_t offset;
    } flags[] = {
        {".layer_norm_bias", offsetof(mgr_megatron_shapes, norm_bias)},
        {"norm.bias", offsetof(mgr_megatron_shapes, norm_bias)},
        {".linear_qkv.bias", offsetof(mgr_megatron_shapes, qkv_bias)},
        {".query_key_value.bias", offsetof(mgr_megatron_shapes, qkv_bias)},
        {".linear_proj.bias", offsetof(mgr_megatron_shapes, o_bias)},
        {"attention.dense.bias", offsetof(mgr_megatron_shapes, o_bias)},
        {".linear_fc2.bias", offsetof(mgr_megatron_shapes, mlp_bias)},
        {".linear_fc2.bias0", offsetof(mgr_megatron_shapes, mlp_bias)},
        {".dense_4h_to_h.bias", offsetof(mgr_megatron_shapes, mlp_bias)},
        {".router.bias", offsetof(mgr_megatron_shapes, router_bias)},
        {".q_layernorm.weight", offsetof(mgr_megatron_shapes, qk_norm)},
        {".router.expert_bias", offsetof(mgr_megatron_shapes, selection_bias)},
        {".shared_experts.gate_weight", offsetof(mgr_megatron_shapes, shared_switch)},
    };
    for (size_t i = 0; i < sizeof flags / sizeof flags[0]; i++)
        if (mgr_has_suffix(s->name, flags[i].suffix))
            memcpy((char *)shapes + flags[i].offset, &(bool){true}, sizeof(bool));
    if (shapes->kin) /* and mgr_kin_measure has seen the rest */
        return;
    if (mgr_has_suffix(s->name, ".mlp.router.weight") && s->ndim == 2)
        note_router(ev, s, stage_layers, shapes);
    if (mgr_has_suffix(s->name, ".position_embeddings.weight") && s->ndim == 2)
        shapes->positions = s->shape[0];
}

/* The first tensor of any layer whose name ends like this. */
static const mgr_stored *find_suffix(const evidence *ev, const char *suffix)
{
    for (size_t i = 0; i < ev->cat->n_stored; i++)
        if (mgr_has_suffix(ev->cat->stored[i].name, suffix) && ev->cat->stored[i].ndim == 2)
            return &ev->cat->stored[i];
    return NULL;
}

static int embedding_shape(const evidence *ev, mgr_megatron *mg, mgr_megatron_shapes *s,
                           mgr_err *err)
{
    static const char name[] = "model.embedding.word_embeddings.weight";
    const mgr_stored *const e = find_suffix(ev, ".embedding.word_embeddings.weight");
    if (!e || e->file != ev->file)
        return mgr_fail(err, MGR_ERR_FORMAT, "tensor '%s' is missing in '%s'", name, path(ev));
    if (e->shape[0] == 0 || e->shape[1] == 0)
        return mgr_fail(err, MGR_ERR_FORMAT, "tensor '%s' in '%s' is empty", e->name, path(ev));
    s->dtype = e->dtype;
    s->hidden = e->shape[1];
    s->padded_vocab = mg->padded_vocab = e->shape[0] * mg->tensor_parallel;
    return MGR_OK;
}

/* The first matrix that has one of these names. */
static const mgr_stored *find_any(const evidence *ev, const char *const *suffixes, size_t n)
{
    const mgr_stored *found = NULL;
    for (size_t i = 0; i < n && !found; i++)
        found = find_suffix(ev, suffixes[i]);
    return found;
}

static int ffn_shape(const evidence *ev, mgr_megatron_shapes *s, mgr_err *err)
{
    static const char *const fc1[] = {".mlp.linear_fc1.weight", ".mlp.dense_h_to_4h.weight"};
    static const char *const fc2[] = {".mlp.linear_fc2.weight", ".mlp.dense_4h_to_h.weight"};
    static const char *const expert_fc1[] = {".local_experts.0.linear_fc1.weight",
                                             ".experts.linear_fc1.weight0"};
    static const char *const expert_fc2[] = {".local_experts.0.linear_fc2.weight",
                                             ".experts.linear_fc2.weight0"};
    const mgr_stored *const in = find_any(ev, fc1, 2), *const out = find_any(ev, fc2, 2);
    const mgr_stored *const expert_in = find_any(ev, expert_fc1, 2);
    const mgr_stored *const expert_out = find_any(ev, expert_fc2, 2);
    const mgr_stored *const shared = find_suffix(ev, ".mlp.shared_experts.linear_fc2.weight");
    const uint64_t tp = ev->mg->tensor_parallel, etp = ev->mg->expert_tensor_parallel;
    if (!out && !expert_out && !find_suffix(ev, ".mlp.experts.weight2"))
        return mgr_fail(err, MGR_ERR_FORMAT, "no tensor '*.mlp.linear_fc2.weight' in '%s'",
                        path(ev));
    if (ev->kin == MGR_KIN_VIT) { /* which has no embedding to tell them */
        const mgr_stored *const any = out ? out : expert_out;
        s->dtype = any ? any->dtype : MGR_DTYPE_NONE;
        s->hidden = any ? any->shape[0] : 0;
    }
    s->ffn = out ? out->shape[1] * tp : 0;
    s->fc1_rows = in ? in->shape[0] * tp : 0;
    s->shared_ffn = shared ? shared->shape[1] * tp : 0;
    s->expert_ffn = expert_out ? expert_out->shape[1] * etp : 0;
    s->expert_fc1_rows = expert_in ? expert_in->shape[0] * etp : 0;
    return MGR_OK;
}

/* GroupedMLP: the experts of a rank side by side in two tensors (megatron.c, old_grouped_expert).
 */
static int old_grouped_shape(const evidence *ev, mgr_megatron_shapes *s, mgr_err *err)
{
    const mgr_stored *const in = find_suffix(ev, ".mlp.experts.weight1");
    const mgr_stored *const out = find_suffix(ev, ".mlp.experts.weight2");
    const uint64_t here = s->experts / ev->mg->expert_parallel;
    if (!in || !out)
        return MGR_OK;
    if (here == 0 || in->shape[1] % here != 0 || out->shape[0] % here != 0)
        return mgr_fail(err, MGR_ERR_FORMAT, "tensor '%s' in '%s' does not hold %llu experts",
                        in->name, path(ev), (unsigned long long)here);
    s->expert_ffn = out->shape[0] / here * ev->mg->expert_tensor_parallel;
    s->expert_fc1_rows = in->shape[1] / here * ev->mg->expert_tensor_parallel;
    return MGR_OK;
}

static bool has_output_layer(const evidence *ev)
{
    const uint32_t last = file_of(ev, ev->mg->pipeline_parallel - 1);
    for (size_t i = 0; i < ev->cat->n_stored; i++)
        if (ev->cat->stored[i].file == last &&
            mgr_has_suffix(ev->cat->stored[i].name, ".output_layer.weight"))
            return true;
    return false;
}

/* Shards of two different saves must not be mixed. */
static int same_everywhere(const evidence *ev, mgr_err *err)
{
    static const char *const keys[] = {"iteration",
                                       "args.num_layers",
                                       "args.hidden_size",
                                       "args.tensor_model_parallel_size",
                                       "args.pipeline_model_parallel_size",
                                       "args.expert_model_parallel_size"};
    const uint32_t n =
        ev->mg->tensor_parallel * ev->mg->expert_parallel * ev->mg->pipeline_parallel;
    for (size_t k = 0; k < sizeof keys / sizeof keys[0]; k++) {
        const mgr_attr *const a = mgr_catalogue_attr(ev->cat, ev->file, keys[k]);
        for (uint32_t i = 0; a && i < n; i++) {
            if (ev->mg->files[i] == MGR_NONE)
                continue;
            const mgr_attr *const b = mgr_catalogue_attr(ev->cat, ev->mg->files[i], keys[k]);
            if (!b || b->kind != a->kind || b->i != a->i)
                return mgr_fail(err, MGR_ERR_FORMAT,
                                "shards disagree: '%s' is not the same in "
                                "'%s' and '%s'",
                                keys[k], path(ev), ev->cat->files[ev->mg->files[i]].path);
        }
    }
    return MGR_OK;
}

int mgr_megatron_model(const mgr_catalogue *cat, const mgr_config *config, mgr_megatron *mg,
                       uint32_t *stage_layers, mgr_model *model, mgr_err *err)
{
    const evidence ev = {
        .cat = cat, .mg = mg, .file = mg->files[0], .kin = mgr_megatron_kin_of(cat)};
    mgr_megatron_shapes shapes = {.file = ev.file, .most_layers = cat->n_stored, .kin = ev.kin};
    MGR_TRY(mgr_megatron_model_check(cat, config, &shapes, err));
    MGR_TRY(same_everywhere(&ev, err));
    if (ev.kin != MGR_KIN_VIT)
        MGR_TRY(embedding_shape(&ev, mg, &shapes, err));
    MGR_TRY(ffn_shape(&ev, &shapes, err));
    shapes.layers = count_layers(&ev, stage_layers);
    if (ev.kin)
        MGR_TRY(mgr_kin_measure(cat, mg, &shapes, err));
    shapes.output = has_output_layer(&ev);
    for (size_t i = 0; i < cat->n_stored; i++)
        note_tensor(&ev, &cat->stored[i], stage_layers, &shapes);
    MGR_TRY(old_grouped_shape(&ev, &shapes, err));
    MGR_TRY(mgr_megatron_model_of(cat, config, &shapes, model, err));
    mg->stage_layers = stage_layers;
    return mgr_megatron_check(model, mg, err);
}
