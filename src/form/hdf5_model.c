#include "form/hdf5_model.h"

#include <stddef.h>
#include <string.h>

#include "model/huggingface.h"
#include "model/huggingface_passed.h"
#include "model/huggingface_tower.h"
#include "model/mtp.h"

#define MAX_SIZE (INT64_C(1) << 31) /* of any size: products of two fit 64 bits */

/* The fields of every model that a class of transformers computes; others are refused before they
 * get here. */
static const struct {
    const char *name;
    size_t offset;
    int64_t least;
} sizes[] = {
    {"layers", offsetof(mgr_model, layers), 1},
    {"hidden", offsetof(mgr_model, hidden), 1},
    {"heads", offsetof(mgr_model, heads), 1},
    {"kv_groups", offsetof(mgr_model, kv_groups), 1},
    {"head_dim", offsetof(mgr_model, head_dim), 1},
    {"ffn", offsetof(mgr_model, ffn), 1},
    {"vocab", offsetof(mgr_model, vocab), 1},
    {"experts", offsetof(mgr_model, experts), 0},
    {"expert_ffn", offsetof(mgr_model, expert_ffn), 0},
    {"top_k", offsetof(mgr_model, top_k), 0},
    {"max_positions", offsetof(mgr_model, max_positions), 0},
    {"rope_original_positions", offsetof(mgr_model, rope.original_positions), 0},
};
static const struct {
    const char *name;
    size_t offset;
} reals[] = {{"norm_epsilon", offsetof(mgr_model, norm_epsilon)},
             {"rotary_base", offsetof(mgr_model, rotary_base)},
             {"init_std", offsetof(mgr_model, init_std)},
             {"rope_factor", offsetof(mgr_model, rope.factor)},
             {"rope_low_freq", offsetof(mgr_model, rope.low_freq)},
             {"rope_high_freq", offsetof(mgr_model, rope.high_freq)}},
  bools[] = {{"tied", offsetof(mgr_model, tied)},
             {"bias_qkv", offsetof(mgr_model, bias_qkv)},
             {"bias_o", offsetof(mgr_model, bias_o)},
             {"bias_mlp", offsetof(mgr_model, bias_mlp)},
             {"qk_norm", offsetof(mgr_model, qk_norm)}},
  /* written where they are */
    factors[] = {{"embedding_multiplier", offsetof(mgr_model, embedding_multiplier)},
                 {"residual_multiplier", offsetof(mgr_model, residual_multiplier)},
                 {"attention_multiplier", offsetof(mgr_model, attention_multiplier)},
                 {"logits_divisor", offsetof(mgr_model, logits_divisor)}},
  flags[] = {{"qk_norm_full", offsetof(mgr_model, qk_norm_full)},
             {"post_norm", offsetof(mgr_model, post_norm)},
             {"rope_interleaved", offsetof(mgr_model, rope_interleaved)},
             {"ffns_only", offsetof(mgr_model, ffns_only)},
             {"passed_router", offsetof(mgr_model, passed_router)},
             {MGR_MTP_ATTR, offsetof(mgr_model, mtp)},
             {"bias_router", offsetof(mgr_model, bias_router)}},
  ids[] = {{"bos_token_id", offsetof(mgr_model, bos_token_id)},
           {"eos_token_id", offsetof(mgr_model, eos_token_id)}};
/* That these classes compute. */
static const char *const activations[] = {[MGR_ACTIVATION_SWIGLU] = "swiglu",
                                          [MGR_ACTIVATION_GEGLU] = "geglu",
                                          [MGR_ACTIVATION_RELU] = "relu",
                                          [MGR_ACTIVATION_GATED] = "gated",
                                          [MGR_ACTIVATION_UNGATED] = "ungated"};
#define N(table) (sizeof(table) / sizeof((table)[0]))

/* "0110": a digit for each layer whose bit is set or not. */
static void add_layers(json_t *object, const char *name, const uint8_t *bits, uint64_t layers)
{
    char text[MGR_MAX_LAYERS + 1] = "";
    for (uint64_t l = 0; l < layers && l < MGR_MAX_LAYERS; l++)
        text[l] = bits[l / 8] >> l % 8 & 1 ? '1' : '0';
    json_object_set_new(object, name, json_string(text));
}

static void add_router(json_t *object, const mgr_model *m)
{
    const mgr_router_kind *const r = &m->router;
    if (r->score == MGR_SCORE_SIGMOID)
        json_object_set_new(object, "router_sigmoid", json_true());
    if (r->selection_bias)
        json_object_set_new(object, "router_selection_bias", json_true());
    if (r->scale > 0)
        json_object_set_new(object, "router_scale", json_real(r->scale));
    if (!r->groups)
        return;
    json_object_set_new(object, "router_groups", json_integer((json_int_t)r->groups));
    json_object_set_new(object, "router_top_groups", json_integer((json_int_t)r->top_groups));
    json_object_set_new(object, "router_group_best", json_integer((json_int_t)r->group_best));
}

static void add_flags(json_t *object, const mgr_model *m)
{
    const char *const base = (const char *)m;
    for (size_t i = 0; i < N(flags); i++) {
        bool is;
        memcpy(&is, base + flags[i].offset, sizeof is);
        if (is)
            json_object_set_new(object, flags[i].name, json_true());
    }
    for (size_t i = 0; i < N(factors); i++) {
        double value;
        memcpy(&value, base + factors[i].offset, sizeof value);
        if (value > 0)
            json_object_set_new(object, factors[i].name, json_real(value));
    }
    if (mgr_model_nope_layers(m))
        add_layers(object, "nope_layers", m->nope_layers, m->layers);
}

/* How FFNs are called where no class says it. */
static void add_passed(json_t *object, const mgr_model *m)
{
    if (!m->passed)
        return;
    json_object_set_new(object, "ffn_names",
                        json_string(mgr_huggingface_ffn_text(mgr_huggingface_dense(m))));
    json_object_set_new(object, "expert_names",
                        json_string(mgr_huggingface_ffn_text((mgr_hf_ffn)m->passed_experts)));
    if (mgr_huggingface_sibling(m->sibling) && !m->experts)
        json_object_set_new(object, "sibling",
                            json_string(mgr_huggingface_sibling(m->sibling)->type));
}

/* What most models do not have is written only where they do. */
static void add_optional(json_t *object, const mgr_model *m)
{
    if (m->router.unnormalised)
        json_object_set_new(object, "router_pre_softmax", json_true());
    add_router(object, m);
    add_passed(object, m);
    if (m->tower)
        json_object_set_new(object, "tower", json_string(mgr_huggingface_tower_text(m->tower)));
    if (m->shared_ffn)
        json_object_set_new(object, "shared_ffn", json_integer((json_int_t)m->shared_ffn));
    if (m->shared_switch)
        json_object_set_new(object, "shared_switch", json_true());
    if (m->encoder_layers)
        json_object_set_new(object, "encoder_layers", json_integer((json_int_t)m->encoder_layers));
    if (m->rotary_part > 0)
        json_object_set_new(object, "rotary_part", json_real(m->rotary_part));
    if (m->window) {
        json_object_set_new(object, "window", json_integer((json_int_t)m->window));
        add_layers(object, "window_layers", m->window_layers, m->layers);
    }
    if (m->experts && mgr_model_moe_layers(m) < m->layers)
        add_layers(object, "dense_layers", m->dense_layers, m->layers);
}

json_t *mgr_hdf5_model_json(const mgr_model *model, mgr_dtype dtype)
{
    const char *const base = (const char *)model;
    json_t *const object = json_object();
    for (size_t i = 0; i < N(sizes); i++) {
        uint64_t value;
        memcpy(&value, base + sizes[i].offset, sizeof value);
        json_object_set_new(object, sizes[i].name, json_integer((json_int_t)value));
    }
    for (size_t i = 0; i < N(reals); i++) {
        double value;
        memcpy(&value, base + reals[i].offset, sizeof value);
        json_object_set_new(object, reals[i].name, json_real(value));
    }
    for (size_t i = 0; i < N(ids); i++) {
        int64_t value;
        memcpy(&value, base + ids[i].offset, sizeof value);
        json_object_set_new(object, ids[i].name, json_integer(value));
    }
    for (size_t i = 0; i < N(bools); i++) {
        bool value;
        memcpy(&value, base + bools[i].offset, sizeof value);
        json_object_set_new(object, bools[i].name, json_boolean(value));
    }
    add_optional(object, model);
    add_flags(object, model);
    json_object_set_new(object, "rope", json_integer(model->rope.kind));
    json_object_set_new(object, "activation", json_string(activations[model->activation]));
    json_object_set_new(object, "dtype", json_string(mgr_dtype_name(dtype)));
    return object;
}

/* The attribute of this kind, or the reason why not. */
static int take(const mgr_catalogue *cat, uint32_t file, const char *name, mgr_attr_kind kind,
                const mgr_attr **out, mgr_err *err)
{
    *out = mgr_catalogue_attr(cat, file, name);
    if (*out && (*out)->kind == kind)
        return MGR_OK;
    return mgr_fail(err, MGR_ERR_FORMAT, "%s of the model in '%s' is missing or of the wrong kind",
                    name, cat->files[file].path);
}

static int take_whole(const mgr_catalogue *cat, uint32_t file, const char *name, int64_t least,
                      int64_t *value, mgr_err *err)
{
    const mgr_attr *a;
    MGR_TRY(take(cat, file, name, MGR_ATTR_INT, &a, err));
    *value = a->i;
    if (a->i >= least && a->i < MAX_SIZE)
        return MGR_OK;
    return mgr_fail(err, MGR_ERR_FORMAT, "%s of the model in '%s' is %lld", name,
                    cat->files[file].path, (long long)a->i);
}

static int take_fields(const mgr_catalogue *cat, uint32_t file, mgr_model *model, mgr_err *err)
{
    char *const base = (char *)model;
    int64_t value;
    const mgr_attr *a;
    for (size_t i = 0; i < N(sizes); i++) {
        MGR_TRY(take_whole(cat, file, sizes[i].name, sizes[i].least, &value, err));
        memcpy(base + sizes[i].offset, &value, sizeof value);
    }
    for (size_t i = 0; i < N(ids); i++) {
        MGR_TRY(take_whole(cat, file, ids[i].name, -1, &value, err));
        memcpy(base + ids[i].offset, &value, sizeof value);
    }
    for (size_t i = 0; i < N(reals); i++) {
        MGR_TRY(take(cat, file, reals[i].name, MGR_ATTR_REAL, &a, err));
        memcpy(base + reals[i].offset, &a->r, sizeof a->r);
    }
    for (size_t i = 0; i < N(bools); i++) {
        MGR_TRY(take(cat, file, bools[i].name, MGR_ATTR_BOOL, &a, err));
        const bool is = a->i != 0;
        memcpy(base + bools[i].offset, &is, sizeof is);
    }
    return MGR_OK;
}

static int take_layers(const mgr_catalogue *cat, uint32_t file, const char *name,
                       const mgr_model *model, uint8_t *bits, mgr_err *err)
{
    const mgr_attr *const a = mgr_catalogue_attr(cat, file, name);
    if (!a)
        return MGR_OK;
    if (a->kind != MGR_ATTR_TEXT || strlen(a->text) != model->layers ||
        model->layers > MGR_MAX_LAYERS || strspn(a->text, "01") != model->layers)
        return mgr_fail(err, MGR_ERR_FORMAT, "%s of the model in '%s' is no digit for each layer",
                        name, cat->files[file].path);
    for (uint64_t l = 0; l < model->layers; l++)
        bits[l / 8] |= (uint8_t)((unsigned)(a->text[l] == '1') << l % 8);
    return MGR_OK;
}

static bool has_true(const mgr_catalogue *cat, uint32_t file, const char *name)
{
    const mgr_attr *const a = mgr_catalogue_attr(cat, file, name);
    return a && a->kind == MGR_ATTR_BOOL && a->i;
}

/* What is 0 where it is not there. */
static int take_size(const mgr_catalogue *cat, uint32_t file, const char *name, uint64_t *out,
                     mgr_err *err)
{
    int64_t value = 0;
    if (mgr_catalogue_attr(cat, file, name))
        MGR_TRY(take_whole(cat, file, name, 1, &value, err));
    *out = (uint64_t)value;
    return MGR_OK;
}

static int take_part(const mgr_catalogue *cat, uint32_t file, const char *name, double *out,
                     mgr_err *err)
{
    const mgr_attr *a;
    *out = 0;
    if (!mgr_catalogue_attr(cat, file, name))
        return MGR_OK;
    MGR_TRY(take(cat, file, name, MGR_ATTR_REAL, &a, err));
    *out = a->r;
    return a->r > 0 && a->r <= 1e6 ? MGR_OK
                                   : mgr_fail(err, MGR_ERR_FORMAT, "%s of the model in '%s' is %g",
                                              name, cat->files[file].path, a->r);
}

static int take_router(const mgr_catalogue *cat, uint32_t file, mgr_model *m, mgr_err *err)
{
    mgr_router_kind *const r = &m->router;
    r->score = has_true(cat, file, "router_sigmoid") ? MGR_SCORE_SIGMOID : MGR_SCORE_SOFTMAX;
    r->selection_bias = has_true(cat, file, "router_selection_bias");
    MGR_TRY(take_part(cat, file, "router_scale", &r->scale, err));
    MGR_TRY(take_size(cat, file, "router_groups", &r->groups, err));
    MGR_TRY(take_size(cat, file, "router_top_groups", &r->top_groups, err));
    MGR_TRY(take_size(cat, file, "router_group_best", &r->group_best, err));
    if ((r->groups || r->top_groups || r->group_best) &&
        !(r->top_groups && r->group_best && r->top_groups <= r->groups))
        return mgr_fail(err, MGR_ERR_FORMAT, "router_groups of the model in '%s' make no sense",
                        cat->files[file].path);
    m->shared_switch = has_true(cat, file, "shared_switch");
    MGR_TRY(take_size(cat, file, "shared_ffn", &m->shared_ffn, err));
    return take_part(cat, file, "rotary_part", &m->rotary_part, err);
}

static int take_passed(const mgr_catalogue *cat, uint32_t file, mgr_model *m, mgr_err *err)
{
    const mgr_attr *const sibling = mgr_catalogue_attr(cat, file, "sibling"), *dense, *experts;
    if (!mgr_catalogue_attr(cat, file, "ffn_names"))
        return MGR_OK;
    MGR_TRY(take(cat, file, "ffn_names", MGR_ATTR_TEXT, &dense, err));
    MGR_TRY(take(cat, file, "expert_names", MGR_ATTR_TEXT, &experts, err));
    if (sibling && sibling->kind == MGR_ATTR_TEXT)
        m->sibling = (uint8_t)mgr_huggingface_sibling_find(sibling->text);
    if (m->ffns_only && mgr_huggingface_passed_texts(dense->text, experts->text, m) &&
        !m->experts == !m->passed_experts)
        return MGR_OK;
    return mgr_fail(err, MGR_ERR_UNSUPPORTED,
                    "the model in '%s' calls its FFNs by names that are not known",
                    cat->files[file].path);
}

static int take_tower(const mgr_catalogue *cat, uint32_t file, mgr_model *m, mgr_err *err)
{
    const mgr_attr *text;
    if (!mgr_catalogue_attr(cat, file, "tower"))
        return MGR_OK;
    MGR_TRY(take(cat, file, "tower", MGR_ATTR_TEXT, &text, err));
    m->tower = mgr_huggingface_tower_find(text->text);
    return m->tower ? MGR_OK
                    : mgr_fail(err, MGR_ERR_UNSUPPORTED,
                               "the model in '%s' has its decoder under a name that is not known",
                               cat->files[file].path);
}

static int take_optional(const mgr_catalogue *cat, uint32_t file, mgr_model *model, mgr_err *err)
{
    MGR_TRY(take_tower(cat, file, model, err));
    model->router.unnormalised = has_true(cat, file, "router_pre_softmax");
    MGR_TRY(take_router(cat, file, model, err));
    MGR_TRY(take_size(cat, file, "encoder_layers", &model->encoder_layers, err));
    MGR_TRY(take_size(cat, file, "window", &model->window, err));
    MGR_TRY(take_layers(cat, file, "window_layers", model, model->window_layers, err));
    return take_layers(cat, file, "dense_layers", model, model->dense_layers, err);
}

static int take_flags(const mgr_catalogue *cat, uint32_t file, mgr_model *model, mgr_err *err)
{
    char *const base = (char *)model;
    for (size_t i = 0; i < N(flags); i++) {
        const mgr_attr *const a = mgr_catalogue_attr(cat, file, flags[i].name);
        const bool is = a && a->i != 0;
        memcpy(base + flags[i].offset, &is, sizeof is);
    }
    for (size_t i = 0; i < N(factors); i++) {
        const mgr_attr *a = mgr_catalogue_attr(cat, file, factors[i].name);
        if (!a)
            continue;
        MGR_TRY(take(cat, file, factors[i].name, MGR_ATTR_REAL, &a, err));
        if (!(a->r > 0))
            return mgr_fail(err, MGR_ERR_FORMAT, "%s of the model in '%s' is not positive",
                            factors[i].name, cat->files[file].path);
        memcpy(base + factors[i].offset, &a->r, sizeof a->r);
    }
    return take_layers(cat, file, "nope_layers", model, model->nope_layers, err);
}

static int take_activation(const mgr_catalogue *cat, uint32_t file, mgr_model *model, mgr_err *err)
{
    const mgr_attr *a;
    MGR_TRY(take(cat, file, "activation", MGR_ATTR_TEXT, &a, err));
    for (size_t i = 0; i < N(activations); i++)
        if (activations[i] && strcmp(a->text, activations[i]) == 0) {
            model->activation = (mgr_activation)i;
            return MGR_OK;
        }
    return mgr_fail(err, MGR_ERR_UNSUPPORTED,
                    "the model in '%s' has an activation that is not known", cat->files[file].path);
}

int mgr_hdf5_model_read(const mgr_catalogue *cat, uint32_t file, mgr_model *model, mgr_err *err)
{
    mgr_model m = {0};
    const mgr_attr *dtype;
    int64_t rope;
    MGR_TRY(take_fields(cat, file, &m, err));
    MGR_TRY(take_optional(cat, file, &m, err));
    MGR_TRY(take_flags(cat, file, &m, err));
    MGR_TRY(take_passed(cat, file, &m, err));
    MGR_TRY(take_activation(cat, file, &m, err));
    MGR_TRY(take(cat, file, "dtype", MGR_ATTR_TEXT, &dtype, err));
    MGR_TRY(take_whole(cat, file, "rope", MGR_ROPE_PLAIN, &rope, err));
    m.rope.kind = rope <= MGR_ROPE_LLAMA3 ? (mgr_rope_kind)rope : MGR_ROPE_PLAIN;
    m.dtype = mgr_dtype_from_name(dtype->text);
    if (rope > MGR_ROPE_LLAMA3 || !mgr_dtype_is_weight(m.dtype) || m.layers > MGR_MAX_LAYERS ||
        m.heads % m.kv_groups || m.encoder_layers >= m.layers)
        return mgr_fail(err, MGR_ERR_FORMAT, "the model in '%s' makes no sense",
                        cat->files[file].path);
    *model = m;
    return MGR_OK;
}
