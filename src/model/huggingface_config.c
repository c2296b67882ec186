/* The model from config.json: transformers' models/<type>/configuration_<type>.py; RoPE:
 * modeling_rope_utils.py. What differs between classes: huggingface_family.c; which keys there may
 * be: huggingface_keys.c. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "core/str.h"
#include "model/huggingface.h"
#include "model/huggingface_family.h"
#include "model/huggingface_keys.h"

#define NAME_SHOWN 200
#define MAX_SIZE (INT64_C(1) << 31) /* of any size: products of two fit 64 bits */

/* What the derivation looks at. */
typedef struct evidence {
    const mgr_catalogue *cat;
    const mgr_config *config;
    const mgr_huggingface *hf;
    mgr_hf_class class;
    const mgr_hf_family *kind;
    uint32_t dense_layer, moe_layer; /* the first of each */
} evidence;

static const mgr_attr *arg(const evidence *ev, const char *name)
{
    char key[112];
    snprintf(key, sizeof key, "config.%s", name);
    const mgr_attr *const a = mgr_catalogue_attr(ev->cat, ev->hf->config, key);
    return a && a->kind != MGR_ATTR_NULL ? a : NULL;
}

static const char *path(const evidence *ev)
{
    return ev->cat->files[ev->hf->config].path;
}

static int unknown_type(const evidence *ev, const char *type, mgr_err *err)
{
    char shown[NAME_SHOWN], known[400];
    const char *const why = mgr_huggingface_refusal(type);
    if (why)
        return mgr_fail(err, MGR_ERR_UNSUPPORTED,
                        "'%s' is of model_type '%s': %s, which is not supported", path(ev), type,
                        why);
    return mgr_fail(err, MGR_ERR_UNSUPPORTED,
                    "'%s' is of model_type '%s', which is not supported; known are: %s", path(ev),
                    mgr_printable(type, strlen(type), shown, sizeof shown),
                    mgr_huggingface_types(known, sizeof known));
}

/* The classes that the file names, if any, must be this kind's; "LLaMAForCausalLM" is of 2023. */
static int check_class(const evidence *ev, const mgr_attr *class, mgr_err *err)
{
    char shown[NAME_SHOWN];
    const bool text = class->kind == MGR_ATTR_TEXT;
    if (text && strcasecmp(class->text, ev->kind->architecture) == 0)
        return MGR_OK;
    mgr_huggingface_value(class, shown, sizeof shown);
    if (text && !mgr_has_suffix(class->text, "ForCausalLM"))
        return mgr_fail(err, MGR_ERR_UNSUPPORTED, "'%s' is of architecture %s, no causal LM",
                        path(ev), shown);
    return mgr_fail(err, MGR_ERR_UNSUPPORTED,
                    "'%s' contradicts itself: architectures says %s, model_type '%s' means '%s'",
                    path(ev), shown, ev->kind->type, ev->kind->architecture);
}

static int check_type(evidence *ev, mgr_err *err)
{
    const mgr_attr *const type = arg(ev, "model_type");
    char name[64];
    if (!type || type->kind != MGR_ATTR_TEXT)
        return mgr_fail(err, MGR_ERR_FORMAT, "'%s' names no model_type", path(ev));
    ev->class = mgr_huggingface_type(type->text);
    ev->kind = mgr_huggingface_family(ev->class);
    if (!ev->kind)
        return unknown_type(ev, type->text, err);
    for (unsigned i = 0;; i++) {
        snprintf(name, sizeof name, "architectures.%u", i);
        const mgr_attr *const class = arg(ev, name);
        if (!class)
            return MGR_OK;
        MGR_TRY(check_class(ev, class, err));
    }
}

/* A key of config.json in a message. */
static int refuse_key(const evidence *ev, const mgr_attr *a, const mgr_hf_key *row, mgr_err *err)
{
    const char *const name = a->key + sizeof "config." - 1;
    char shown[NAME_SHOWN], value[NAME_SHOWN];
    mgr_printable(name, strlen(name), shown, sizeof shown);
    mgr_huggingface_value(a, value, sizeof value);
    if (row)
        return mgr_fail(err, MGR_ERR_UNSUPPORTED, "'%s' has %s (%s: %s), which is not supported",
                        path(ev), row->what, shown, value);
    mgr_fail(err, MGR_ERR_UNSUPPORTED,
             "'%s' has the key '%s' (%s), of which it is not known whether %s computes with it",
             path(ev), shown, value, ev->kind->name);
    return mgr_hint(err, "if it does not, set 'source.unknown: warn'");
}

/* Every key is known, or says nothing. */
static int check_supported(const evidence *ev, mgr_err *err)
{
    const bool refuse = strcmp(ev->config->source.unknown, "warn") != 0;
    for (size_t i = 0; i < ev->cat->n_attrs; i++) {
        const mgr_attr *const a = &ev->cat->attrs[i];
        const mgr_hf_key *row;
        if (a->file != ev->hf->config || !mgr_has_prefix(a->key, "config."))
            continue;
        const mgr_hf_verdict verdict =
            mgr_huggingface_judge(ev->cat, a, MGR_HF_BIT(ev->class), &row);
        if (verdict == MGR_HF_REFUSED || (verdict == MGR_HF_UNKNOWN && refuse))
            return refuse_key(ev, a, row, err);
    }
    return MGR_OK;
}

static bool is_text(const mgr_attr *a, const char *text)
{
    return a && a->kind == MGR_ATTR_TEXT && strcmp(a->text, text) == 0;
}

static int unsupported(const evidence *ev, const char *name, const char *what, mgr_err *err)
{
    const mgr_attr *const a = arg(ev, name);
    const char *const text = a && a->kind == MGR_ATTR_TEXT ? a->text : "";
    char shown[NAME_SHOWN];
    return mgr_fail(err, MGR_ERR_UNSUPPORTED, "'%s' has %s (%s%s%s), which is not supported",
                    path(ev), what, name, *text ? ": " : "",
                    mgr_printable(text, strlen(text), shown, sizeof shown));
}

/* "gelu" is the exact one, as Megatron's; the others that go by a similar name are not. */
static int activation(const evidence *ev, mgr_activation *out, mgr_err *err)
{
    const mgr_attr *const act = arg(ev, "hidden_act");
    const bool gelu = is_text(act, "gelu");
    *out = gelu ? MGR_ACTIVATION_GEGLU : MGR_ACTIVATION_SWIGLU;
    if (!act || gelu || is_text(act, "silu") || is_text(act, "swish"))
        return MGR_OK;
    return unsupported(ev, "hidden_act", "an activation other than SwiGLU and GEGLU", err);
}

/* true or false; false where it is not given. */
static int flag(const evidence *ev, const char *name, bool *out, mgr_err *err)
{
    const mgr_attr *const a = arg(ev, name);
    *out = a && a->i;
    return !a || a->kind == MGR_ATTR_BOOL
               ? MGR_OK
               : mgr_fail(err, MGR_ERR_FORMAT, "'%s' in '%s' is neither true nor false", name,
                          path(ev));
}

/* The same with another value where it is not given. */
static int flag_or(const evidence *ev, const char *name, bool otherwise, bool *out, mgr_err *err)
{
    *out = otherwise;
    return arg(ev, name) ? flag(ev, name, out, err) : MGR_OK;
}

/* One whole number: `theirs` in config.json (or transformers' default for it), `ours` in the
 * configuration, and perhaps the tensors know it. 0 is "unknown", "" no such key. */
typedef struct size_sources {
    const char *theirs, *ours;
    uint64_t otherwise, from_config, from_tensors;
} size_sources;

static int whole(const evidence *ev, size_sources s, uint64_t *out, mgr_err *err)
{
    const mgr_attr *const a = arg(ev, s.theirs);
    if (a && (a->kind != MGR_ATTR_INT || a->i < 1 || a->i >= MAX_SIZE))
        return mgr_fail(err, MGR_ERR_FORMAT, "'%s' in '%s' is not a positive whole number",
                        s.theirs, path(ev));
    uint64_t known = a ? (uint64_t)a->i : s.otherwise;
    if (known && s.from_config && known != s.from_config) {
        mgr_config_fail(ev->config, s.ours, err, "'%s' is %llu, but '%s' says %llu (%s)", s.ours,
                        (unsigned long long)s.from_config, path(ev), (unsigned long long)known,
                        s.theirs);
        return MGR_ERR_CONFIG;
    }
    known = known ? known : s.from_config;
    if (known && s.from_tensors && known != s.from_tensors)
        return mgr_fail(err, MGR_ERR_FORMAT,
                        "%s is %llu in '%s'%s, but the tensors' shapes and names say %llu",
                        s.theirs, (unsigned long long)known, path(ev), a ? "" : " by default",
                        (unsigned long long)s.from_tensors);
    *out = known ? known : s.from_tensors;
    if (*out)
        return MGR_OK;
    mgr_fail(err, MGR_ERR_FORMAT, "'%s' has no %s", path(ev), s.theirs);
    if (*s.ours)
        mgr_hint(err, "set '%s' in the configuration", s.ours);
    return MGR_ERR_FORMAT;
}

/* The tensor `role` of the first layer that has one, or the embedding, if it has `ndim` axes; else
 * NULL. */
static const mgr_stored *first_of(const evidence *ev, mgr_hf_ffn ffn, mgr_role role, uint32_t ndim)
{
    char name[MGR_HF_NAME_BYTES];
    const bool of_ffn = role == MGR_ROLE_GATE || role == MGR_ROLE_ROUTER;
    const uint32_t layer = !of_ffn ? 0 : ffn == MGR_HF_DENSE ? ev->dense_layer : ev->moe_layer;
    mgr_huggingface_name(ev->class, ffn, role, layer, 0, name);
    for (size_t i = 0; i < ev->cat->n_stored; i++)
        if (strcmp(ev->cat->stored[i].name, name) == 0 && ev->cat->stored[i].ndim == ndim)
            return &ev->cat->stored[i];
    return NULL;
}

static uint64_t rows_of(const evidence *ev, mgr_role role)
{
    const mgr_stored *const s = first_of(ev, ev->hf->ffn, role, 2);
    return s ? s->shape[0] : 0;
}

static uint64_t ffn_of(const evidence *ev)
{
    const mgr_stored *const fused = first_of(ev, ev->hf->ffn, MGR_ROLE_GATE, 3);
    return mgr_huggingface_is_fused(ev->hf->ffn) ? (fused ? fused->shape[1] / 2 : 0)
                                                 : rows_of(ev, MGR_ROLE_GATE);
}

/* How the FFNs are stored: experts by the names that the first layer with experts has. */
static mgr_hf_ffn find_ffn(const evidence *ev)
{
    const mgr_hf_ffn memory = mgr_huggingface_memory(ev->kind);
    return ev->kind->count && first_of(ev, memory, MGR_ROLE_GATE, 3) ? memory : ev->kind->ffn;
}

/* A block of rows of an expert must be one of the file, too. */
static int check_fused(const evidence *ev, const mgr_model *m, mgr_err *err)
{
    const mgr_stored *const s = first_of(ev, ev->hf->ffn, MGR_ROLE_GATE, 3);
    char shown[NAME_SHOWN];
    if (!s || !mgr_huggingface_is_fused(ev->hf->ffn) || s->shape[2] == m->hidden ||
        s->shape[1] != m->hidden)
        return MGR_OK;
    return mgr_fail(err, MGR_ERR_UNSUPPORTED,
                    "tensor '%s' in '%s' is transposed, [experts, hidden size, gate and up], which "
                    "is not supported",
                    mgr_printable(s->name, strlen(s->name), shown, sizeof shown),
                    ev->cat->files[s->file].path);
}

/* One more than the highest index in the names. */
static uint64_t count_layers(const evidence *ev)
{
    static const char prefix[] = "model.layers.";
    uint64_t layers = 0;
    for (size_t i = 0; i < ev->cat->n_stored; i++) {
        const char *const name = ev->cat->stored[i].name;
        if (!mgr_has_prefix(name, prefix))
            continue;
        const unsigned long idx = strtoul(name + sizeof prefix - 1, NULL, 10);
        if (idx < 1000000 && idx + 1 > layers)
            layers = idx + 1;
    }
    return layers;
}

static int embedding_sizes(const evidence *ev, mgr_huggingface *hf, mgr_model *m, mgr_err *err)
{
    const mgr_config *const c = ev->config;
    const mgr_stored *const e = first_of(ev, MGR_HF_DENSE, MGR_ROLE_EMBEDDING, 2);
    if (!e)
        return mgr_fail(err, MGR_ERR_FORMAT, "no matrix 'model.embed_tokens.weight' beside '%s'",
                        path(ev));
    m->dtype = e->dtype;
    MGR_TRY(whole(
        ev,
        (size_sources){"hidden_size", "model.hidden_size", 0, c->model.hidden_size, e->shape[1]},
        &m->hidden, err));
    MGR_TRY(whole(ev, (size_sources){"vocab_size", "model.vocab_size", 0, 0, e->shape[0]},
                  &hf->vocab_rows, err));
    m->vocab = c->model.vocab_size ? c->model.vocab_size : hf->vocab_rows;
    if (m->vocab > hf->vocab_rows)
        return mgr_config_fail(c, "model.vocab_size", err,
                               "'model.vocab_size' is %llu, but the checkpoint holds %llu rows",
                               (unsigned long long)m->vocab, (unsigned long long)hf->vocab_rows);
    return MGR_OK;
}

/* An absent num_key_value_heads is what the configuration class says; null is as many as heads. */
static uint64_t default_groups(const evidence *ev, uint64_t heads)
{
    const bool absent = !mgr_catalogue_attr(ev->cat, ev->hf->config, "config.num_key_value_heads");
    return absent && ev->kind->groups ? ev->kind->groups : heads;
}

static int attention_sizes(const evidence *ev, mgr_model *m, mgr_err *err)
{
    const mgr_config *const c = ev->config;
    MGR_TRY(whole(ev,
                  (size_sources){"num_attention_heads", "model.num_attention_heads", 0,
                                 c->model.num_attention_heads, 0},
                  &m->heads, err));
    MGR_TRY(whole(ev,
                  (size_sources){"head_dim", "model.kv_channels",
                                 ev->kind->head_dim ? ev->kind->head_dim : m->hidden / m->heads,
                                 c->model.kv_channels, rows_of(ev, MGR_ROLE_Q) / m->heads},
                  &m->head_dim, err));
    MGR_TRY(whole(ev,
                  (size_sources){"num_key_value_heads", "model.num_query_groups",
                                 default_groups(ev, m->heads), c->model.num_query_groups,
                                 rows_of(ev, MGR_ROLE_K) / m->head_dim},
                  &m->kv_groups, err));
    if (m->heads % m->kv_groups != 0)
        return mgr_fail(err, MGR_ERR_FORMAT,
                        "%llu attention heads do not split into %llu groups "
                        "('%s')",
                        (unsigned long long)m->heads, (unsigned long long)m->kv_groups, path(ev));
    return MGR_OK;
}

static int layer_sizes(const evidence *ev, mgr_model *m, mgr_err *err)
{
    const mgr_attr *const said = arg(ev, "num_hidden_layers");
    const uint64_t found = count_layers(ev);
    if ((ev->kind->keys & MGR_HF_KEY_GLM) && said && said->i > 0 && found > (uint64_t)said->i)
        return mgr_fail(err, MGR_ERR_UNSUPPORTED,
                        "'%s' has layers for multi-token prediction behind its %lld layers "
                        "('model.layers.%llu...'), which are not supported",
                        path(ev), (long long)said->i, (unsigned long long)(found - 1));
    return whole(ev,
                 (size_sources){"num_hidden_layers", "model.num_layers", 0,
                                ev->config->model.num_layers, found},
                 &m->layers, err);
}

/* Is `layer` in the list mlp_only_layers? */
static bool is_listed(const evidence *ev, uint64_t layer)
{
    const mgr_attr *const list = arg(ev, "mlp_only_layers");
    for (int64_t i = 0; list && i < list->i; i++) {
        char name[64];
        snprintf(name, sizeof name, "mlp_only_layers.%lld", (long long)i);
        const mgr_attr *const a = arg(ev, name);
        if (a && a->kind == MGR_ATTR_INT && a->i >= 0 && (uint64_t)a->i == layer)
            return true;
    }
    return false;
}

/* A whole number that may be 0. */
static int number(const evidence *ev, const char *name, uint64_t otherwise, uint64_t *out,
                  mgr_err *err)
{
    const mgr_attr *const a = arg(ev, name);
    *out = a ? (uint64_t)a->i : otherwise;
    if (!a || (a->kind == MGR_ATTR_INT && a->i >= 0 && a->i < MAX_SIZE))
        return MGR_OK;
    return mgr_fail(err, MGR_ERR_FORMAT, "'%s' in '%s' is no whole number", name, path(ev));
}

/* Which layers have experts, as the decoder layers of Qwen3-MoE and of GLM-4.5 decide; and the
 * first of either kind. */
static int expert_layers(evidence *ev, mgr_model *m, mgr_err *err)
{
    const bool glm = ev->kind->keys & MGR_HF_KEY_GLM;
    uint64_t step = 1, first = 0;
    if (!glm && !(ev->kind->keys & MGR_HF_KEY_SPARSE_STEP))
        return MGR_OK;
    MGR_TRY(glm ? number(ev, "first_k_dense_replace", 1, &first, err)
                : whole(ev, (size_sources){"decoder_sparse_step", "", 1, 0, 0}, &step, err));
    ev->dense_layer = ev->moe_layer = MGR_NONE;
    for (uint64_t layer = m->layers; layer-- > 0 && m->layers <= MGR_MAX_LAYERS;) {
        const bool dense =
            layer < first || (layer + 1) % step != 0 || (!glm && is_listed(ev, layer));
        *(dense ? &ev->dense_layer : &ev->moe_layer) = (uint32_t)layer;
        if (dense)
            mgr_model_set_dense(m, layer);
    }
    if (ev->moe_layer != MGR_NONE)
        return MGR_OK;
    return mgr_fail(err, MGR_ERR_UNSUPPORTED, "'%s' gives no layer experts", path(ev));
}

/* The width of the dense FFNs; experts have it, too, but for those of Qwen. */
static int ffn_sizes(const evidence *ev, mgr_model *m, mgr_err *err)
{
    const bool apart = ev->kind->expert_ffn > 0;
    const mgr_stored *const dense = first_of(ev, MGR_HF_DENSE, MGR_ROLE_GATE, 2);
    const uint64_t width = !apart ? ffn_of(ev) : dense ? dense->shape[0] : 0;
    MGR_TRY(whole(ev,
                  (size_sources){"intermediate_size", "model.ffn_hidden_size", 0,
                                 ev->config->model.ffn_hidden_size, width},
                  &m->ffn, err));
    return apart ? whole(ev,
                         (size_sources){"moe_intermediate_size", "", ev->kind->expert_ffn, 0,
                                        ffn_of(ev)},
                         &m->expert_ffn, err)
                 : MGR_OK;
}

/* A positive real number, `otherwise` where it is not given. */
static int real(const evidence *ev, const char *name, double otherwise, double *out, mgr_err *err)
{
    const mgr_attr *const a = arg(ev, name);
    const double value = !a ? otherwise : a->kind == MGR_ATTR_REAL ? a->r : (double)a->i;
    if (a && ((a->kind != MGR_ATTR_REAL && a->kind != MGR_ATTR_INT) || !(value > 0)))
        return mgr_fail(err, MGR_ERR_FORMAT, "'%s' in '%s' is not a positive number", name,
                        path(ev));
    *out = value;
    return MGR_OK;
}

/* The number of experts has several names, and some classes write it twice. */
static int expert_count(const evidence *ev, mgr_model *m, mgr_err *err)
{
    static const char *const names[] = {"num_local_experts", "num_experts", "n_routed_experts"};
    const uint64_t rows = rows_of(ev, MGR_ROLE_ROUTER);
    bool said = false;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (!arg(ev, names[i]))
            continue;
        said = true;
        MGR_TRY(whole(ev, (size_sources){names[i], "", 0, 0, rows}, &m->experts, err));
    }
    return said ? MGR_OK
                : whole(ev, (size_sources){names[0], "", ev->kind->experts, 0, rows}, &m->experts,
                        err);
}

/* Glm4MoeTopkRouter: a group is as good as its two best experts. One group is none. */
static int glm_router(const evidence *ev, mgr_model *m, mgr_err *err)
{
    mgr_router_kind *const r = &m->router;
    uint64_t groups, top;
    double scale;
    MGR_TRY(whole(ev, (size_sources){"n_group", "", 1, 0, 0}, &groups, err));
    MGR_TRY(whole(ev, (size_sources){"topk_group", "", 1, 0, 0}, &top, err));
    MGR_TRY(real(ev, "routed_scaling_factor", 1, &scale, err));
    r->score = MGR_SCORE_SIGMOID;
    r->selection_bias = true;
    r->scale = scale < 1 || scale > 1 ? scale : 0;
    if (m->experts % groups != 0 || m->experts / groups < 2 || top > groups ||
        m->top_k > m->experts / groups * top)
        return mgr_fail(err, MGR_ERR_FORMAT,
                        "'%s' chooses %llu of %llu experts from %llu of %llu groups, which no "
                        "router can",
                        path(ev), (unsigned long long)m->top_k, (unsigned long long)m->experts,
                        (unsigned long long)top, (unsigned long long)groups);
    if (top < groups) {
        r->groups = groups;
        r->top_groups = top;
        r->group_best = 2;
    }
    return MGR_OK;
}

static int router(const evidence *ev, mgr_model *m, mgr_err *err)
{
    bool normalised = true;
    if (ev->kind->keys & MGR_HF_KEY_NORM_TOPK)
        MGR_TRY(flag_or(ev, "norm_topk_prob", ev->kind->normalises, &normalised, err));
    m->router.unnormalised = !normalised;
    return ev->kind->keys & MGR_HF_KEY_GLM ? glm_router(ev, m, err) : MGR_OK;
}

/* The shared expert: of a width of its own, or as wide as so many routed ones. */
static int shared_sizes(const evidence *ev, mgr_model *m, mgr_err *err)
{
    uint64_t n;
    m->shared_switch = ev->kind->must & MGR_HF_HAS_SWITCH;
    if (ev->kind->shared_ffn)
        return whole(
            ev, (size_sources){"shared_expert_intermediate_size", "", ev->kind->shared_ffn, 0, 0},
            &m->shared_ffn, err);
    if (!(ev->kind->keys & MGR_HF_KEY_GLM))
        return MGR_OK;
    MGR_TRY(number(ev, "n_shared_experts", 1, &n, err));
    if (n == 0) /* transformers makes empty tensors then, and misses them when they are not there */
        return unsupported(ev, "n_shared_experts", "no shared expert", err);
    m->shared_ffn = n * m->expert_ffn;
    return MGR_OK;
}

static int expert_sizes(const evidence *ev, mgr_model *m, mgr_err *err)
{
    if (!ev->kind->count)
        return MGR_OK;
    MGR_TRY(expert_count(ev, m, err));
    MGR_TRY(whole(ev,
                  (size_sources){"num_experts_per_tok", "model.moe_router_topk", ev->kind->top_k,
                                 ev->config->model.moe_router_topk, 0},
                  &m->top_k, err));
    if (m->top_k > m->experts)
        return mgr_fail(err, MGR_ERR_FORMAT, "'%s' uses %llu of %llu experts", path(ev),
                        (unsigned long long)m->top_k, (unsigned long long)m->experts);
    MGR_TRY(router(ev, m, err));
    return shared_sizes(ev, m, err);
}

/* An empty object is as good as none. */
static bool has_members(const evidence *ev, const char *name)
{
    const mgr_attr *const a = arg(ev, name);
    return a && !(a->kind == MGR_ATTR_OTHER && a->i == 0);
}

/* Where there is a rope_scaling, transformers 5 takes it in place of rope_parameters, whose base
 * then says nothing. */
static int check_base(const evidence *ev, double found, mgr_err *err)
{
    const bool hidden = has_members(ev, "rope_scaling") && !arg(ev, "rope_theta") &&
                        !arg(ev, "rope_scaling.rope_theta");
    if (!hidden || found <= 0 || (found >= ev->kind->theta && found <= ev->kind->theta))
        return MGR_OK;
    return mgr_fail(err, MGR_ERR_FORMAT,
                    "'%s' gives %g as the base of RoPE in rope_parameters, but rope_scaling, which "
                    "is taken in its place, has none",
                    path(ev), found);
}

/* transformers 4 writes rope_theta, 5 writes rope_parameters; where both are, they must agree. */
static int rotary_base(const evidence *ev, double *out, mgr_err *err)
{
    static const char *const keys[] = {"rope_theta", "rope_parameters.rope_theta",
                                       "rope_scaling.rope_theta"};
    double found = 0;
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        double theta;
        MGR_TRY(real(ev, keys[i], 0, &theta, err));
        if (found > 0 && theta > 0 && (theta < found || theta > found))
            return mgr_fail(err, MGR_ERR_FORMAT, "'%s' gives %g and %g as the base of RoPE",
                            path(ev), found, theta);
        found = theta > 0 ? theta : found;
    }
    *out = found > 0 ? found : ev->kind->theta;
    return check_base(ev, found, err);
}

/* A number of RoPE scaling, which has no default. */
static int rope_number(const evidence *ev, const char *place, const char *name, double *out,
                       mgr_err *err)
{
    char key[96];
    snprintf(key, sizeof key, "%s.%s", place, name);
    if (!arg(ev, key))
        return mgr_fail(err, MGR_ERR_FORMAT, "'%s' has RoPE scaling, but no %s", path(ev), key);
    return real(ev, key, 0, out, err);
}

static int llama3_numbers(const evidence *ev, const char *place, mgr_rope *rope, mgr_err *err)
{
    char key[96];
    snprintf(key, sizeof key, "%s.original_max_position_embeddings", place);
    MGR_TRY(rope_number(ev, place, "low_freq_factor", &rope->low_freq, err));
    MGR_TRY(rope_number(ev, place, "high_freq_factor", &rope->high_freq, err));
    MGR_TRY(whole(ev, (size_sources){key, "", 0, 0, 0}, &rope->original_positions, err));
    if (rope->high_freq > rope->low_freq)
        return MGR_OK;
    return mgr_fail(err, MGR_ERR_FORMAT, "high_freq_factor is not above low_freq_factor in '%s'",
                    path(ev));
}

/* The scaling that one of the two places says; "type" is the older spelling of "rope_type". */
static int rope_at(const evidence *ev, const char *place, bool typed, mgr_rope *rope, mgr_err *err)
{
    char newer[64], older[64];
    snprintf(newer, sizeof newer, "%s.rope_type", place);
    snprintf(older, sizeof older, "%s.type", place);
    const char *const key = arg(ev, newer) ? newer : older;
    const mgr_attr *const type = arg(ev, key), *const other = arg(ev, older);
    *rope = (mgr_rope){.kind = MGR_ROPE_PLAIN};
    if (!type && typed)
        return unsupported(ev, place, "RoPE scaling of no kind", err);
    if (other && !(other->kind == MGR_ATTR_TEXT && is_text(type, other->text)))
        return mgr_fail(err, MGR_ERR_FORMAT, "%s and %s in '%s' differ", newer, older, path(ev));
    if (!type || is_text(type, "default"))
        return MGR_OK;
    rope->kind = is_text(type, "linear") ? MGR_ROPE_LINEAR : MGR_ROPE_LLAMA3;
    if (rope->kind == MGR_ROPE_LLAMA3 && !is_text(type, "llama3"))
        return unsupported(ev, key, "RoPE scaling", err);
    MGR_TRY(rope_number(ev, place, "factor", &rope->factor, err));
    return rope->kind == MGR_ROPE_LLAMA3 ? llama3_numbers(ev, place, rope, err) : MGR_OK;
}

static bool same_number(double a, double b)
{
    return a >= b && a <= b;
}

static bool same_rope(const mgr_rope *a, const mgr_rope *b)
{
    return a->kind == b->kind && same_number(a->factor, b->factor) &&
           same_number(a->low_freq, b->low_freq) && same_number(a->high_freq, b->high_freq) &&
           a->original_positions == b->original_positions;
}

/* transformers 5 prefers the one at the top where it is written (modeling_rope_utils.py), 4 does
 * not look there. */
static int check_original(const evidence *ev, const mgr_rope *rope, mgr_err *err)
{
    static const char name[] = "original_max_position_embeddings";
    const mgr_attr *const top = arg(ev, name);
    char shown[NAME_SHOWN];
    if (!top || rope->kind != MGR_ROPE_LLAMA3 ||
        (top->kind == MGR_ATTR_INT && top->i >= 0 && (uint64_t)top->i == rope->original_positions))
        return MGR_OK;
    return mgr_fail(err, MGR_ERR_FORMAT, "'%s' has two values of %s: %s, and %llu in the RoPE",
                    path(ev), name, mgr_huggingface_value(top, shown, sizeof shown),
                    (unsigned long long)rope->original_positions);
}

/* transformers 4 writes rope_scaling, 5 rope_parameters; where both are, they must agree. */
static int rope_scaling(const evidence *ev, mgr_rope *out, mgr_err *err)
{
    mgr_rope older = {.kind = MGR_ROPE_PLAIN}, newer = {.kind = MGR_ROPE_PLAIN};
    const bool has_older = has_members(ev, "rope_scaling"),
               has_newer = has_members(ev, "rope_parameters");
    MGR_TRY(rope_at(ev, "rope_scaling", has_older, &older, err));
    MGR_TRY(rope_at(ev, "rope_parameters", false, &newer, err));
    if (has_older && has_newer && !same_rope(&older, &newer))
        return mgr_fail(err, MGR_ERR_FORMAT, "rope_scaling and rope_parameters in '%s' differ",
                        path(ev));
    *out = older.kind == MGR_ROPE_PLAIN ? newer : older;
    return check_original(ev, out, err);
}

/* A token id; of a list, the first. */
static int64_t token_id(const evidence *ev, const char *name, int64_t given)
{
    char first[64];
    snprintf(first, sizeof first, "%s.0", name);
    const mgr_attr *a = arg(ev, name);
    if (a && a->kind == MGR_ATTR_OTHER)
        a = arg(ev, first);
    return given >= 0 ? given : a && a->kind == MGR_ATTR_INT ? a->i : -1;
}

/* GLM-4.5 turns half of a head where nothing is said (Glm4MoeConfig.__post_init__). */
static int glm_features(const evidence *ev, mgr_model *m, mgr_err *err)
{
    static const char *const keys[] = {"partial_rotary_factor",
                                       "rope_parameters.partial_rotary_factor",
                                       "rope_scaling.partial_rotary_factor"};
    double found = 0;
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        double part;
        MGR_TRY(real(ev, keys[i], 0, &part, err));
        if (part > 1 || (found > 0 && part > 0 && !same_number(found, part)))
            return mgr_fail(err, MGR_ERR_FORMAT, "'%s' gives %g and %g as %s", path(ev), found,
                            part, keys[0]);
        found = part > 0 ? part : found;
    }
    found = found > 0 ? found : 0.5;
    m->rotary_part = found < 1 ? found : 0;
    MGR_TRY(flag(ev, "use_qk_norm", &m->qk_norm, err));
    return flag(ev, "attention_bias", &m->bias_qkv, err);
}

/* Seed-OSS: attention_bias is of q, k and v. */
static int out_bias(const evidence *ev, mgr_model *m, mgr_err *err)
{
    MGR_TRY(flag_or(ev, "attention_bias", true, &m->bias_qkv, err));
    return flag(ev, "attention_out_bias", &m->bias_o, err);
}

/* What the kind and its flags say of biases and norms. */
static int features(const evidence *ev, mgr_model *m, mgr_err *err)
{
    const mgr_hf_family *const f = ev->kind;
    bool attention = false;
    m->qk_norm = f->must & MGR_HF_HAS_QK_NORM;
    m->qk_norm_full = f->must & MGR_HF_HAS_QK_NORM_FULL;
    m->post_norm = f->must & MGR_HF_HAS_POST_NORM;
    m->rope_interleaved = f->must & MGR_HF_HAS_NEIGHBOURS;
    if (f->keys & MGR_HF_KEY_ATTENTION_BIAS)
        MGR_TRY(flag(ev, "attention_bias", &attention, err));
    if (f->keys & MGR_HF_KEY_MLP_BIAS)
        MGR_TRY(flag(ev, "mlp_bias", &m->bias_mlp, err));
    m->bias_o = attention;
    m->bias_qkv = attention || f->must & MGR_HF_HAS_QKV_BIAS;
    if (f->keys & MGR_HF_KEY_QKV_BIAS)
        MGR_TRY(flag_or(ev, "qkv_bias", true, &m->bias_qkv, err));
    if (f->keys & MGR_HF_KEY_GLM)
        MGR_TRY(glm_features(ev, m, err));
    if (f->keys & MGR_HF_KEY_OUT_BIAS)
        MGR_TRY(out_bias(ev, m, err));
    MGR_TRY(activation(ev, &m->activation, err));
    MGR_TRY(rope_scaling(ev, &m->rope, err));
    return flag_or(ev, "tie_word_embeddings", f->keys & MGR_HF_KEY_TIED, &m->tied, err);
}

/* One of Granite's; 0, that is to say none, where it is `neutral`. */
static int multiplier(const evidence *ev, const char *name, double neutral, double *out,
                      mgr_err *err)
{
    double value;
    MGR_TRY(real(ev, name, 1, &value, err));
    const double ratio = value / neutral - 1;
    *out = ratio > -1e-14 && ratio < 1e-14 ? 0 : value;
    return MGR_OK;
}

static int multipliers(const evidence *ev, mgr_model *m, mgr_err *err)
{
    if (!(ev->kind->keys & MGR_HF_KEY_MULTIPLIERS))
        return MGR_OK;
    MGR_TRY(multiplier(ev, "embedding_multiplier", 1, &m->embedding_multiplier, err));
    MGR_TRY(multiplier(ev, "residual_multiplier", 1, &m->residual_multiplier, err));
    MGR_TRY(multiplier(ev, "logits_scaling", 1, &m->logits_divisor, err));
    return multiplier(ev, "attention_multiplier", 1 / sqrt((double)m->head_dim),
                      &m->attention_multiplier, err);
}

/* Has `layer` RoPE, as no_rope_layers says, with 1 for yes? */
static int has_rope(const evidence *ev, uint64_t layer, bool *out, mgr_err *err)
{
    char name[64], shown[NAME_SHOWN];
    snprintf(name, sizeof name, "no_rope_layers.%llu", (unsigned long long)layer);
    const mgr_attr *const a = arg(ev, name);
    *out = a && a->i != 0;
    if (a && (a->kind == MGR_ATTR_INT || a->kind == MGR_ATTR_BOOL))
        return MGR_OK;
    return mgr_fail(err, MGR_ERR_FORMAT, "%s of '%s' is %s, neither 0 nor 1", name, path(ev),
                    a ? mgr_huggingface_value(a, shown, sizeof shown) : "missing");
}

/* Layers without RoPE: as the list says, else each no_rope_layer_interval-th. */
static int nope_layers(const evidence *ev, mgr_model *m, mgr_err *err)
{
    const mgr_attr *const list = arg(ev, "no_rope_layers");
    uint64_t step;
    if (!(ev->kind->keys & MGR_HF_KEY_NOPE_LIST))
        return MGR_OK;
    MGR_TRY(whole(ev, (size_sources){"no_rope_layer_interval", "", 4, 0, 0}, &step, err));
    if (list && (list->kind != MGR_ATTR_OTHER || (uint64_t)list->i != m->layers))
        return mgr_fail(err, MGR_ERR_FORMAT, "no_rope_layers of '%s' is no list of %llu entries",
                        path(ev), (unsigned long long)m->layers);
    for (uint64_t layer = 0; layer < m->layers; layer++) {
        bool turns = (layer + 1) % step != 0;
        if (list)
            MGR_TRY(has_rope(ev, layer, &turns, err));
        if (!turns)
            mgr_model_set_nope(m, layer);
    }
    return MGR_OK;
}

static int scalars(const evidence *ev, mgr_model *m, mgr_err *err)
{
    const mgr_config *const c = ev->config;
    MGR_TRY(real(ev, "rms_norm_eps", ev->kind->epsilon, &m->norm_epsilon, err));
    MGR_TRY(rotary_base(ev, &m->rotary_base, err));
    MGR_TRY(real(ev, "initializer_range", 0.02, &m->init_std, err));
    MGR_TRY(whole(ev,
                  (size_sources){"max_position_embeddings", "model.max_position_embeddings",
                                 ev->kind->positions, 0, 0},
                  &m->max_positions, err));
    if (c->model.norm_epsilon > 0)
        m->norm_epsilon = c->model.norm_epsilon;
    if (c->model.rotary_base > 0)
        m->rotary_base = c->model.rotary_base;
    if (c->model.max_position_embeddings)
        m->max_positions = c->model.max_position_embeddings;
    m->bos_token_id = token_id(ev, "bos_token_id", c->model.bos_token_id);
    m->eos_token_id = token_id(ev, "eos_token_id", c->model.eos_token_id);
    return MGR_OK;
}

/* The window that counts: what is given, or the class's default; 0: none. */
static int window_size(const evidence *ev, const mgr_model *m, uint64_t *out, mgr_err *err)
{
    const bool written = mgr_catalogue_attr(ev->cat, ev->hf->config, "config.sliding_window");
    const mgr_attr *const a = arg(ev, "sliding_window");
    const int64_t otherwise = written ? 0 : ev->kind->window;
    bool on = true;
    if (ev->kind->keys & MGR_HF_KEY_WINDOW_SWITCH)
        MGR_TRY(flag(ev, "use_sliding_window", &on, err));
    if (a && on && (a->kind != MGR_ATTR_INT || a->i < 1 || a->i >= MAX_SIZE))
        return unsupported(ev, "sliding_window", "a window that is no positive number", err);
    const uint64_t window = !on ? 0 : (uint64_t)(a ? a->i : otherwise);
    *out = window < m->max_positions ? window : 0; /* else no position leaves it */
    return MGR_OK;
}

/* The first layer that slides where layer_types does not say. */
static int first_window(const evidence *ev, uint64_t *out, mgr_err *err)
{
    const mgr_attr *const a = arg(ev, "max_window_layers");
    *out = 0;
    if (!(ev->kind->keys & MGR_HF_KEY_WINDOW_LAYERS))
        return MGR_OK;
    *out = 28;
    if (a && (a->kind != MGR_ATTR_INT || a->i < 0 || a->i >= MAX_SIZE))
        return mgr_fail(err, MGR_ERR_FORMAT, "'max_window_layers' in '%s' is no whole number",
                        path(ev));
    *out = a ? (uint64_t)a->i : *out;
    return MGR_OK;
}

/* Does layer_types say that `layer` slides? */
static int layer_type(const evidence *ev, uint64_t layer, bool *slides, mgr_err *err)
{
    char name[64], shown[NAME_SHOWN];
    snprintf(name, sizeof name, "layer_types.%llu", (unsigned long long)layer);
    const mgr_attr *const a = arg(ev, name);
    *slides = is_text(a, "sliding_attention");
    if (*slides || is_text(a, "full_attention"))
        return MGR_OK;
    return mgr_fail(err, MGR_ERR_UNSUPPORTED, "'%s' has %s %s, which is not supported", path(ev),
                    name, a ? mgr_huggingface_value(a, shown, sizeof shown) : "missing");
}

/* Layer by layer; layer_types must say what the class does, or be what decides it. */
static int window_layers(const evidence *ev, uint64_t window, uint64_t first, mgr_model *m,
                         mgr_err *err)
{
    const mgr_attr *const types = arg(ev, "layer_types");
    const bool decides = ev->kind->keys & MGR_HF_KEY_WINDOW_LAYERS;
    if (types && types->kind == MGR_ATTR_OTHER && (uint64_t)types->i != m->layers)
        return mgr_fail(err, MGR_ERR_FORMAT, "layer_types of '%s' has %lld entries, not %llu",
                        path(ev), (long long)types->i, (unsigned long long)m->layers);
    for (uint64_t layer = 0; layer < m->layers; layer++) {
        bool slides = window > 0 && layer >= first, said = slides;
        if (types)
            MGR_TRY(layer_type(ev, layer, &said, err));
        if (said != slides && (!decides || window == 0))
            return mgr_fail(
                err, MGR_ERR_UNSUPPORTED,
                "'%s': layer_types.%llu is \"%s\", but of the sliding_window %s", path(ev),
                (unsigned long long)layer, said ? "sliding_attention" : "full_attention",
                said ? "there is none that counts" : "all layers of this class have one");
        if (said)
            mgr_model_set_window(m, layer);
    }
    return MGR_OK;
}

/* A window that no position leaves is none, and so is one that is switched off, or of no layer. */
static int windows(const evidence *ev, mgr_model *m, mgr_err *err)
{
    uint64_t window, first;
    MGR_TRY(window_size(ev, m, &window, err));
    MGR_TRY(first_window(ev, &first, err));
    if (window && (ev->kind->keys & MGR_HF_KEY_NO_WINDOWS)) {
        mgr_fail(err, MGR_ERR_UNSUPPORTED,
                 "'%s' has a sliding_window of %llu of %llu positions, which %s has not and "
                 "transformers 5 applies to its cache all the same",
                 path(ev), (unsigned long long)window, (unsigned long long)m->max_positions,
                 ev->kind->name);
        return mgr_hint(err, "set it to null, or 'model.max_position_embeddings' to the window");
    }
    MGR_TRY(window_layers(ev, window, first, m, err));
    m->window = mgr_model_window_layers(m) ? window : 0;
    return MGR_OK;
}

int mgr_huggingface_model(const mgr_catalogue *cat, const mgr_config *config, mgr_huggingface *hf,
                          mgr_model *model, mgr_err *err)
{
    evidence ev = {.cat = cat, .config = config, .hf = hf};
    mgr_model m = {0};
    MGR_TRY(check_type(&ev, err));
    hf->class = ev.class;
    MGR_TRY(check_supported(&ev, err));
    MGR_TRY(features(&ev, &m, err));
    MGR_TRY(layer_sizes(&ev, &m, err));
    MGR_TRY(expert_layers(&ev, &m, err));
    hf->ffn = find_ffn(&ev);
    MGR_TRY(embedding_sizes(&ev, hf, &m, err));
    MGR_TRY(attention_sizes(&ev, &m, err));
    MGR_TRY(check_fused(&ev, &m, err));
    MGR_TRY(ffn_sizes(&ev, &m, err));
    MGR_TRY(expert_sizes(&ev, &m, err));
    MGR_TRY(multipliers(&ev, &m, err));
    MGR_TRY(nope_layers(&ev, &m, err));
    MGR_TRY(scalars(&ev, &m, err));
    MGR_TRY(windows(&ev, &m, err));
    *model = m;
    return MGR_OK;
}
