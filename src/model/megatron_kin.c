#include "model/megatron_kin.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "core/str.h"

/* ---- names ---- */

#define T5 (1u << MGR_KIN_T5)
#define VIT (1u << MGR_KIN_VIT)
#define ANY (T5 | VIT)

/* A linear's weight and bias, those of a norm, of which a linear behind it may be the owner, and
 * what is in no layer. */
#define LINEAR(name, split, of_bias, of, decoder)                                                  \
    {name ".weight", NULL, NULL, split, true, of, true, decoder},                                  \
    {                                                                                              \
        name ".bias", NULL, NULL, of_bias, true, of, false, decoder                                \
    }
#define NORM(name, fused, of, needed, decoder)                                                     \
    {                                                                                              \
        name ".weight", fused, NULL, MGR_KIN_WHOLE, true, of, needed, decoder                      \
    }
#define NORM_BIAS(name, fused, of, decoder)                                                        \
    {                                                                                              \
        name ".bias", fused, NULL, MGR_KIN_WHOLE, true, of, false, decoder                         \
    }
#define TOP(name, of, needed)                                                                      \
    {                                                                                              \
        name, NULL, NULL, MGR_KIN_WHOLE, false, of, needed, false                                  \
    }

static const mgr_kin_row table[] = {
    {"embedding.word_embeddings.weight", NULL, NULL, MGR_KIN_VOCABULARY, false, T5, true, false},
    {"embedding.position_embeddings.weight", NULL, "position_embeddings.weight", MGR_KIN_WHOLE,
     false, T5, false, false},
    TOP("encoder_relative_pos_emb.relative_attention_bias.weight", T5, false),
    TOP("decoder_relative_pos_emb.relative_attention_bias.weight", T5, false),
    TOP("class_token", VIT, false),
    TOP("conv1.weight", VIT, true),
    TOP("conv1.bias", VIT, false),
    TOP("position_embeddings.weight", VIT, true),
    TOP("ln_pre.weight", VIT, false),
    TOP("ln_pre.bias", VIT, false),
    NORM("input_layernorm", "self_attention.linear_qkv.layer_norm_weight", ANY, true, false),
    NORM_BIAS("input_layernorm", "self_attention.linear_qkv.layer_norm_bias", ANY, false),
    LINEAR("self_attention.linear_qkv", MGR_KIN_ROWS, MGR_KIN_ROWS, ANY, false),
    NORM("self_attention.q_layernorm", NULL, ANY, false, false),
    NORM_BIAS("self_attention.q_layernorm", NULL, ANY, false),
    NORM("self_attention.k_layernorm", NULL, ANY, false, false),
    NORM_BIAS("self_attention.k_layernorm", NULL, ANY, false),
    LINEAR("self_attention.linear_proj", MGR_KIN_COLS, MGR_KIN_WHOLE, ANY, false),
    NORM("pre_cross_attn_layernorm", NULL, T5, true, true),
    NORM_BIAS("pre_cross_attn_layernorm", NULL, T5, true),
    LINEAR("cross_attention.linear_q", MGR_KIN_ROWS, MGR_KIN_ROWS, T5, true),
    LINEAR("cross_attention.linear_kv", MGR_KIN_ROWS, MGR_KIN_ROWS, T5, true),
    LINEAR("cross_attention.linear_proj", MGR_KIN_COLS, MGR_KIN_WHOLE, T5, true),
    NORM("pre_mlp_layernorm", "mlp.linear_fc1.layer_norm_weight", ANY, true, false),
    NORM_BIAS("pre_mlp_layernorm", "mlp.linear_fc1.layer_norm_bias", ANY, false),
    TOP("encoder.final_layernorm.weight", T5, true),
    TOP("encoder.final_layernorm.bias", T5, false),
    TOP("decoder.final_layernorm.weight", T5, true),
    TOP("decoder.final_layernorm.bias", T5, false),
    TOP("ln_post.weight", VIT, false),
    TOP("ln_post.bias", VIT, false),
    {"lm_head.output_layer.weight", NULL, "output_layer.weight", MGR_KIN_VOCABULARY, false, T5,
     false, false},
    {"lm_head.output_layer.bias", NULL, "output_layer.bias", MGR_KIN_VOCABULARY, false, T5, false,
     false},
};

#define N_ROWS (sizeof table / sizeof table[0])

_Static_assert(N_ROWS <= MGR_KIN_ROWS_MOST, "arrays by row have room");

const char *mgr_kin_layers(mgr_stack stack)
{
    return stack == MGR_STACK_ENCODER ? "encoder.layers." : "decoder.layers.";
}

/* Behind what wraps a model, in either format. */
static const char *unwrapped(const char *name)
{
    return mgr_has_prefix(name, "model.") ? name + strlen("model.") : name;
}

mgr_megatron_kin mgr_megatron_kin_of(const mgr_catalogue *cat)
{
    mgr_megatron_kin kin = MGR_KIN_NONE;
    for (size_t i = 0; i < cat->n_stored; i++) {
        const char *const name = unwrapped(cat->stored[i].name);
        if (strstr(name, ".cross_attention."))
            return MGR_KIN_T5;
        if (mgr_has_prefix(name, "class_token") || mgr_has_prefix(name, "conv1."))
            kin = MGR_KIN_VIT;
    }
    return kin;
}

static bool equals(const char *name, const char *text, size_t len)
{
    return name && strlen(name) == len && memcmp(name, text, len) == 0;
}

static void find_row(mgr_megatron_kin kin, mgr_kin_key *key)
{
    for (size_t i = 0; i < N_ROWS && !key->row; i++) {
        const mgr_kin_row *const r = &table[i];
        if (!(r->of >> kin & 1) || r->in_layer != key->in_layer ||
            (r->decoder && key->stack != MGR_STACK_DECODER))
            continue;
        key->again = equals(r->again, key->rest, key->rest_len);
        if (key->again || equals(r->name, key->rest, key->rest_len) ||
            equals(r->fused, key->rest, key->rest_len)) {
            key->row = r;
            key->number = i;
        }
    }
}

mgr_kin_key mgr_kin_parse(mgr_megatron_kin kin, const char *name, size_t len)
{
    mgr_kin_key key = {.rest = name, .rest_len = len};
    for (int s = 0; s < MGR_STACK_COUNT && !key.in_layer; s++) {
        const char *const layers = mgr_kin_layers((mgr_stack)s);
        const size_t n = strlen(layers);
        if (len <= n || memcmp(name, layers, n) != 0)
            continue;
        char *end = NULL;
        key.in_layer = true;
        key.stack = (mgr_stack)s;
        key.stacked = name[n] < '0' || name[n] > '9';
        key.layer = key.stacked ? 0 : strtoull(name + n, &end, 10);
        const char *const rest = key.stacked ? name + n : end + 1;
        if ((!key.stacked && *end != '.') || rest > name + len || key.layer >= MGR_MAX_LAYERS)
            return (mgr_kin_key){.rest = name, .rest_len = len};
        key.rest = rest;
        key.rest_len = (size_t)(name + len - rest);
    }
    find_row(kin, &key);
    return key;
}

mgr_kin_key mgr_kin_key_of(const mgr_model *model, const mgr_opaque *opaque)
{
    const mgr_kin_key key =
        mgr_kin_parse((mgr_megatron_kin)model->kin, opaque->name, strlen(opaque->name));
    assert(key.row);
    return key;
}

void mgr_kin_spell(const mgr_kin_row *row, const char *opaque, const char *name,
                   char out[MGR_KIN_NAME_BYTES])
{
    const size_t before = strlen(opaque) - strlen(row->name);
    snprintf(out, MGR_KIN_NAME_BYTES, "%.*s%s", (int)before, opaque, name);
}

bool mgr_kin_is_fused(const mgr_kin_row *row, bool fuses, bool moe)
{
    return row->fused && fuses && !(moe && mgr_has_prefix(row->fused, "mlp."));
}

void mgr_kin_name(const mgr_tensors *ts, const mgr_tensor *t, char *out, size_t size)
{
    uint32_t within;
    const mgr_stack stack = mgr_model_stack(&ts->model, t->layer, &within);
    char expert[32] = "";
    if (t->expert != MGR_NONE)
        snprintf(expert, sizeof expert, "experts.%u.", t->expert);
    const int n = snprintf(out, size, "%s%u.mlp.%s%s", mgr_kin_layers(stack), within, expert,
                           mgr_role_name(t->role));
    for (int i = 0; i < n && (size_t)i < size; i++)
        out[i] = out[i] == ' ' ? '_' : out[i];
}

/* ---- opaque tensors ---- */

int mgr_kin_note(mgr_kin_list *list, const mgr_kin_key *key, uint64_t layer, uint32_t ndim,
                 const uint64_t *shape, mgr_err *err)
{
    mgr_opaque o = {.ndim = ndim};
    MGR_TRY(key->in_layer ? mgr_arena_fmt(&list->arena, &o.name, err, "%s%" PRIu64 ".%s",
                                          mgr_kin_layers(key->stack), layer, key->row->name)
                          : mgr_arena_fmt(&list->arena, &o.name, err, "%s", key->row->name));
    memcpy(o.shape, shape, ndim * sizeof *shape);
    MGR_TRY(mgr_grow(&list->list, &list->cap, list->n + 1, sizeof o, err));
    list->list[list->n++] = o;
    return MGR_OK;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const mgr_opaque *)a)->name, ((const mgr_opaque *)b)->name);
}

/* Of each name one, as far as any of its pieces reaches. */
static void merge(mgr_kin_list *list)
{
    size_t n = 0;
    if (list->n)
        qsort(list->list, list->n, sizeof *list->list, by_name);
    for (size_t i = 0; i < list->n; i++) {
        mgr_opaque *const last = n ? &list->list[n - 1] : NULL, *const o = &list->list[i];
        if (!last || strcmp(last->name, o->name) != 0) {
            list->list[n++] = *o;
            continue;
        }
        for (uint32_t d = 0; d < MGR_MAX_NDIM; d++)
            last->shape[d] = o->shape[d] > last->shape[d] ? o->shape[d] : last->shape[d];
    }
    list->n = n;
}

/* One block, freed with the tensors: the array, and the names behind it. */
static int own(const mgr_kin_list *list, mgr_tensors *ts, mgr_err *err)
{
    size_t text = 0;
    for (size_t i = 0; i < list->n; i++)
        text += strlen(list->list[i].name) + 1;
    const size_t entries = (text + sizeof *list->list - 1) / sizeof *list->list;
    MGR_TRY(mgr_alloc(&ts->opaque, list->n + entries, sizeof *ts->opaque, err));
    char *to = (char *)(ts->opaque + list->n);
    for (size_t i = 0; i < list->n; i++) {
        const size_t len = strlen(list->list[i].name) + 1;
        ts->opaque[i] = list->list[i];
        ts->opaque[i].name = memcpy(to, list->list[i].name, len);
        to += len;
    }
    return mgr_tensors_add_opaque(ts, ts->opaque, list->n, err);
}

/* How many layers of a stack have a row's tensor, and the first of them; of one that is in no layer
 * 1, in stack 0. */
typedef struct census {
    uint64_t n[MGR_KIN_ROWS_MOST][MGR_STACK_COUNT];
    const mgr_opaque *first[MGR_KIN_ROWS_MOST][MGR_STACK_COUNT];
} census;

static bool alike(const mgr_opaque *a, const mgr_opaque *b)
{
    return a->ndim == b->ndim && memcmp(a->shape, b->shape, a->ndim * sizeof a->shape[0]) == 0;
}

static int count(const mgr_kin_list *list, const mgr_model *m, census *c, mgr_err *err)
{
    for (size_t i = 0; i < list->n; i++) {
        const mgr_opaque *const o = &list->list[i];
        const mgr_kin_key key = mgr_kin_key_of(m, o);
        const mgr_opaque **const first = &c->first[key.number][key.stack];
        c->n[key.number][key.stack]++;
        *first = *first ? *first : o;
        if (!alike(*first, o) || key.layer >= mgr_model_stack_layers(m, key.stack))
            return mgr_fail(err, MGR_ERR_FORMAT, "tensor '%s' has another shape than '%s'", o->name,
                            (*first)->name);
    }
    return MGR_OK;
}

/* Nothing tells that an opaque tensor is missing but that others of its layer, or of other layers,
 * are there. */
static int check_complete(const mgr_kin_list *list, const mgr_model *m, mgr_err *err)
{
    census c = {.n = {{0}}};
    MGR_TRY(count(list, m, &c, err));
    for (size_t r = 0; r < N_ROWS; r++)
        for (int s = 0; s < MGR_STACK_COUNT && table[r].of >> m->kin & 1; s++) {
            const uint64_t layers = mgr_model_stack_layers(m, (mgr_stack)s);
            const bool is = table[r].in_layer ? !table[r].decoder || s == MGR_STACK_DECODER
                                              : s == MGR_STACK_DECODER;
            const uint64_t all = table[r].in_layer ? layers : 1;
            if (!is || c.n[r][s] == all || (c.n[r][s] == 0 && !table[r].needed))
                continue;
            return mgr_fail(err, MGR_ERR_FORMAT,
                            "there are %" PRIu64 " tensors '%s%s', and %" PRIu64 " are needed",
                            c.n[r][s], table[r].in_layer ? mgr_kin_layers((mgr_stack)s) : "",
                            table[r].name, all);
        }
    return MGR_OK;
}

int mgr_kin_add(mgr_kin_list *list, mgr_tensors *ts, int rc, mgr_err *err)
{
    merge(list);
    if (rc == MGR_OK)
        rc = check_complete(list, &ts->model, err);
    for (size_t i = 0; rc == MGR_OK && i < list->n; i++)
        if (mgr_kin_key_of(&ts->model, &list->list[i]).row->split == MGR_KIN_VOCABULARY)
            list->list[i].shape[0] = ts->model.vocab; /* without padding */
    if (rc == MGR_OK && list->n > 0)
        rc = own(list, ts, err);
    mgr_free(list->list);
    mgr_arena_clear(&list->arena);
    return rc;
}

/* ---- the format torch ---- */

static mgr_kin_key key_of(mgr_megatron_kin kin, const mgr_stored *s)
{
    const char *const name = unwrapped(s->name);
    return mgr_kin_parse(kin, name, strlen(name));
}

int mgr_kin_check(const mgr_catalogue *cat, uint32_t file, mgr_megatron_kin kin,
                  const uint64_t layers[MGR_STACK_COUNT], mgr_err *err)
{
    const char *const path = cat->files[file].path;
    const bool both = layers[MGR_STACK_DECODER] && layers[MGR_STACK_ENCODER];
    if (kin == MGR_KIN_T5 && !both)
        return mgr_fail(err, MGR_ERR_UNSUPPORTED,
                        "'%s' is of a T5, by its cross attention, but there are no layers of its "
                        "%s beside it",
                        path, layers[MGR_STACK_DECODER] ? "encoder" : "decoder");
    if (kin == MGR_KIN_VIT && (layers[MGR_STACK_ENCODER] || !layers[MGR_STACK_DECODER]))
        return mgr_fail(err, MGR_ERR_UNSUPPORTED,
                        "'%s' is of a vision transformer whose layers are not called "
                        "'decoder.layers', as CLIPViTModel's are",
                        path);
    return MGR_OK;
}

/* Of each stack one more than the highest number in the names of the file. */
static void count_layers(const mgr_catalogue *cat, const mgr_megatron_shapes *s,
                         uint64_t layers[MGR_STACK_COUNT])
{
    for (size_t i = 0; i < cat->n_stored; i++) {
        const mgr_kin_key key = key_of(s->kin, &cat->stored[i]);
        if (cat->stored[i].file == s->file && key.in_layer && !key.stacked &&
            key.layer + 1 > layers[key.stack])
            layers[key.stack] = key.layer + 1;
    }
}

static void note_routers(const mgr_catalogue *cat, const uint64_t layers[MGR_STACK_COUNT],
                         mgr_megatron_shapes *s)
{
    for (size_t i = 0; i < cat->n_stored; i++) {
        const mgr_stored *const t = &cat->stored[i];
        const mgr_kin_key key = key_of(s->kin, t);
        const uint64_t before = key.stack == MGR_STACK_ENCODER ? layers[MGR_STACK_DECODER] : 0;
        const uint64_t layer = before + key.layer;
        if (t->file != s->file || !key.in_layer || key.stacked || t->ndim != 2 ||
            !equals("mlp.router.weight", key.rest, key.rest_len))
            continue;
        s->experts = t->shape[0];
        if (layer < MGR_MAX_LAYERS)
            s->moe_layers[layer / 8] |= (uint8_t)(1u << layer % 8);
    }
}

int mgr_kin_measure(const mgr_catalogue *cat, const mgr_megatron *mg, mgr_megatron_shapes *s,
                    mgr_err *err)
{
    uint64_t layers[MGR_STACK_COUNT] = {0};
    if (mg->pipeline_parallel > 1 || mg->virtual_pipeline > 1)
        return mgr_fail(
            err, MGR_ERR_UNSUPPORTED,
            "'%s' is of a %s in %u pipeline stages and %u chunks of each; only one of each "
            "is supported",
            cat->files[s->file].path, s->kin == MGR_KIN_T5 ? "T5" : "vision transformer",
            mg->pipeline_parallel, mg->virtual_pipeline);
    count_layers(cat, s, layers);
    note_routers(cat, layers, s);
    s->encoder_layers = layers[MGR_STACK_ENCODER];
    s->layers = layers[MGR_STACK_DECODER] + s->encoder_layers;
    return mgr_kin_check(cat, s->file, s->kin, layers, err);
}

/* In one piece. */
static void whole_shape(const mgr_stored *s, mgr_kin_split split, uint64_t ranks, uint64_t *shape)
{
    memcpy(shape, s->shape, sizeof s->shape);
    if (split == MGR_KIN_ROWS || split == MGR_KIN_VOCABULARY)
        shape[0] *= ranks;
    if (split == MGR_KIN_COLS)
        shape[s->ndim - 1] *= ranks;
}

int mgr_kin_opaque(mgr_tensors *ts, const mgr_catalogue *cat, const mgr_megatron *mg, mgr_err *err)
{
    mgr_kin_list list = {0};
    int rc = MGR_OK;
    if (!ts->model.kin)
        return MGR_OK;
    for (size_t i = 0; rc == MGR_OK && i < cat->n_stored; i++) {
        const mgr_stored *const s = &cat->stored[i];
        const mgr_kin_key key = key_of(ts->model.kin, s);
        uint64_t shape[MGR_MAX_NDIM];
        if (s->file != mg->files[0] || !key.row || key.again || key.stacked || s->ndim == 0)
            continue;
        whole_shape(s, key.row->split, mg->tensor_parallel, shape);
        rc = mgr_kin_note(&list, &key, key.layer, s->ndim, shape, err);
    }
    return mgr_kin_add(&list, ts, rc, err);
}
