#include "model/llama.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/str.h"

#define NAME_BYTES 160
#define NAME_SHOWN 200
#define MAX_SIZE (INT64_C(1) << 31) /* of any size: products of two fit 64 bits */

/* ---- the layout ---- */

/* %u is the layer. */
static const char *const names[MGR_ROLE_COUNT] = {
    [MGR_ROLE_EMBEDDING] = "model.embed_tokens.weight",
    [MGR_ROLE_ATTN_NORM] = "model.layers.%u.input_layernorm.weight",
    [MGR_ROLE_Q] = "model.layers.%u.self_attn.q_proj.weight",
    [MGR_ROLE_K] = "model.layers.%u.self_attn.k_proj.weight",
    [MGR_ROLE_V] = "model.layers.%u.self_attn.v_proj.weight",
    [MGR_ROLE_O] = "model.layers.%u.self_attn.o_proj.weight",
    [MGR_ROLE_MLP_NORM] = "model.layers.%u.post_attention_layernorm.weight",
    [MGR_ROLE_GATE] = "model.layers.%u.mlp.gate_proj.weight",
    [MGR_ROLE_UP] = "model.layers.%u.mlp.up_proj.weight",
    [MGR_ROLE_DOWN] = "model.layers.%u.mlp.down_proj.weight",
    [MGR_ROLE_FINAL_NORM] = "model.norm.weight",
    [MGR_ROLE_LM_HEAD] = "lm_head.weight",
};

static void tensor_name(mgr_role role, uint32_t layer, char out[NAME_BYTES])
{
    /* the table is ours; the format strings in it take the layer */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    snprintf(out, NAME_BYTES, names[role], layer);
#pragma GCC diagnostic pop
}

/* The file that holds `name`; the search begins at `hint`, where the last one was. */
static uint32_t file_of(const mgr_layout *layout, const mgr_llama *llama, uint32_t hint,
                        const char *name)
{
    for (uint32_t k = 0; k < llama->n_files; k++) {
        const uint32_t file = llama->first_file + (hint - llama->first_file + k) % llama->n_files;
        if (mgr_layout_has(layout, file, name))
            return file;
    }
    return MGR_NONE;
}

/* Find or declare what is stored of `t` under the name of `role`. */
static int stored_of(mgr_layout *layout, const mgr_llama *llama, const mgr_tensor *t, mgr_role role,
                     uint32_t *hint, uint32_t *stored, mgr_err *err)
{
    const bool vocabulary = role == MGR_ROLE_EMBEDDING || role == MGR_ROLE_LM_HEAD;
    const uint64_t shape[2] = {vocabulary ? llama->vocab_rows : t->rows, t->cols};
    char name[NAME_BYTES];
    tensor_name(role, t->layer, name);
    const uint32_t file = layout->declare ? llama->first_file : file_of(layout, llama, *hint, name);
    if (file == MGR_NONE)
        return mgr_fail(err, MGR_ERR_FORMAT,
                        llama->n_files > 1
                            ? "tensor '%s' is missing in '%s' and the files beside it"
                            : "tensor '%s' is missing in '%s'",
                        name, layout->cat->files[llama->first_file].path);
    *hint = file;
    MGR_TRY(mgr_layout_tensor(layout, file, name, t->ndim, shape, stored, err));
    return mgr_layout_fill(layout, *stored, t->rows, shape[0] - t->rows, err);
}

static bool same_place(const mgr_stored *a, const mgr_stored *b)
{
    return a->file == b->file && a->offset == b->offset &&
           memcmp(a->stride, b->stride, sizeof a->stride) == 0;
}

/* Some checkpoints of tied models store the head too. A .bin may mean the same bytes by both names,
 * which are then read once; others must be equal. */
static int tied_head(mgr_layout *layout, const mgr_llama *llama, uint32_t embedding, uint32_t hint,
                     mgr_err *err)
{
    const mgr_tensor *const t = &layout->tensors->list[0];
    const mgr_stored *const stored = layout->cat->stored;
    uint32_t head;
    if (layout->declare || file_of(layout, llama, hint, names[MGR_ROLE_LM_HEAD]) == MGR_NONE)
        return MGR_OK;
    MGR_TRY(stored_of(layout, llama, t, MGR_ROLE_LM_HEAD, &hint, &head, err));
    if (same_place(&stored[head], &stored[embedding]))
        return MGR_OK;
    return mgr_layout_box(
        layout, &(mgr_box){.copy = 1, .stored = head, .rows = t->rows, .cols = t->cols}, err);
}

int mgr_llama_layout(mgr_layout *layout, const mgr_llama *llama, mgr_err *err)
{
    const mgr_tensors *const ts = layout->tensors;
    uint32_t hint = llama->first_file, embedding = MGR_NONE;
    for (uint32_t i = 0; i < ts->n; i++) {
        const mgr_tensor *const t = &ts->list[i];
        uint32_t stored;
        MGR_TRY(stored_of(layout, llama, t, t->role, &hint, &stored, err));
        const mgr_box box = {.tensor = i, .stored = stored, .rows = t->rows, .cols = t->cols};
        MGR_TRY(mgr_layout_box(layout, &box, err));
        if (t->role == MGR_ROLE_EMBEDDING)
            embedding = stored;
    }
    return ts->model.tied ? tied_head(layout, llama, embedding, hint, err) : MGR_OK;
}

/* ---- the model ---- */

/* What the derivation looks at. */
typedef struct evidence {
    const mgr_catalogue *cat;
    const mgr_config *config;
    const mgr_llama *llama;
    bool mistral;
} evidence;

static const mgr_attr *arg(const evidence *ev, const char *name)
{
    char key[96];
    snprintf(key, sizeof key, "config.%s", name);
    const mgr_attr *const a = mgr_catalogue_attr(ev->cat, ev->llama->config, key);
    return a && a->kind != MGR_ATTR_NULL ? a : NULL;
}

static const char *path(const evidence *ev)
{
    return ev->cat->files[ev->llama->config].path;
}

/* Model types that users will try, and what keeps them out. */
static const struct {
    const char *type, *what;
} known_types[] = {
    {"qwen2", "QKV with a bias"},
    {"qwen3", "norms of q and k"},
    {"mixtral", "a mixture of experts as the source"},
    {"qwen2_moe", "a mixture of experts as the source"},
    {"qwen3_moe", "a mixture of experts as the source"},
    {"deepseek_v2", "multi-latent attention"},
    {"deepseek_v3", "multi-latent attention"},
    {"gemma", "another norm and activation"},
    {"gemma2", "another norm and activation"},
    {"gemma3_text", "another norm and activation"},
    {"gpt2", "learned positions and LayerNorm"},
    {"gpt_neox", "LayerNorm and biases"},
    {"phi3", "fused projections"},
    {"ministral", "sliding-window layers"},
    {"llama4_text", "a mixture of experts as the source"},
};

static int check_type(evidence *ev, mgr_llama *llama, mgr_err *err)
{
    const mgr_attr *const type = arg(ev, "model_type"), *const class = arg(ev, "architectures.0");
    char shown[NAME_SHOWN];
    if (!type || type->kind != MGR_ATTR_TEXT)
        return mgr_fail(err, MGR_ERR_FORMAT, "'%s' names no model_type", path(ev));
    ev->mistral = strcmp(type->text, "mistral") == 0;
    for (size_t i = 0; i < sizeof known_types / sizeof known_types[0]; i++)
        if (strcmp(type->text, known_types[i].type) == 0)
            return mgr_fail(err, MGR_ERR_UNSUPPORTED,
                            "'%s' is of model_type '%s': %s, which is not supported", path(ev),
                            type->text, known_types[i].what);
    if (!ev->mistral && strcmp(type->text, "llama") != 0)
        return mgr_fail(err, MGR_ERR_UNSUPPORTED,
                        "'%s' is of model_type '%s', which is not supported; known are: llama, "
                        "mistral",
                        path(ev),
                        mgr_printable(type->text, strlen(type->text), shown, sizeof shown));
    if (class && !(class->kind == MGR_ATTR_TEXT && mgr_has_suffix(class->text, "ForCausalLM")))
        return mgr_fail(err, MGR_ERR_UNSUPPORTED, "'%s' is of architecture '%s', no causal LM",
                        path(ev),
                        class->kind == MGR_ATTR_TEXT
                            ? mgr_printable(class->text, strlen(class->text), shown, sizeof shown)
                            : "?");
    llama->kind = ev->mistral ? "Mistral" : "Llama";
    return MGR_OK;
}

typedef enum refuse_when {
    UNLESS_FALSE, /* present, and neither false nor 0 */
    IF_SET,       /* present and not null */
    IF_NOT_ONE    /* a number other than 1 */
} refuse_when;

static const struct {
    const char *name;
    refuse_when when;
    const char *what;
} refusals[] = {
    {"quantization_config", IF_SET, "quantized weights"},
    {"compression_config", IF_SET, "quantized weights"},
    {"attention_bias", UNLESS_FALSE, "attention with biases"},
    {"mlp_bias", UNLESS_FALSE, "an MLP with biases"},
    {"num_local_experts", UNLESS_FALSE, "a mixture of experts as the source"},
    {"num_experts", UNLESS_FALSE, "a mixture of experts as the source"},
    {"partial_rotary_factor", IF_NOT_ONE, "RoPE on a part of the head"},
    {"rope_parameters.partial_rotary_factor", IF_NOT_ONE, "RoPE on a part of the head"},
    {"rope_scaling.partial_rotary_factor", IF_NOT_ONE, "RoPE on a part of the head"},
    {"rope_parameters.full_attention", IF_SET, "RoPE that differs between layers"},
    {"rope_parameters.sliding_attention", IF_SET, "RoPE that differs between layers"},
    {"transformers_weights", IF_SET, "weights under a name of their own"},
};

static bool refused(const mgr_attr *a, refuse_when when)
{
    switch (when) {
    case UNLESS_FALSE:
        return !((a->kind == MGR_ATTR_BOOL || a->kind == MGR_ATTR_INT) && a->i == 0);
    case IF_NOT_ONE:
        return !(a->kind == MGR_ATTR_INT && a->i == 1) &&
               !(a->kind == MGR_ATTR_REAL && a->r >= 1.0 && a->r <= 1.0);
    case IF_SET:
        break;
    }
    return true;
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

/* RoPE of the default kind only; "type" is the older spelling. */
static int check_rope(const evidence *ev, mgr_err *err)
{
    static const char *const places[] = {"rope_scaling", "rope_parameters"};
    for (size_t i = 0; i < 2; i++) {
        char newer[64], older[64];
        snprintf(newer, sizeof newer, "%s.rope_type", places[i]);
        snprintf(older, sizeof older, "%s.type", places[i]);
        const mgr_attr *const a = arg(ev, newer), *const b = arg(ev, older);
        if (a && !is_text(a, "default"))
            return unsupported(ev, newer, "RoPE scaling", err);
        if (b && !is_text(b, "default"))
            return unsupported(ev, older, "RoPE scaling", err);
        if (i == 0 && arg(ev, places[i]) && !a && !b)
            return unsupported(ev, places[i], "RoPE scaling", err);
    }
    return MGR_OK;
}

static int check_supported(const evidence *ev, mgr_err *err)
{
    for (size_t i = 0; i < sizeof refusals / sizeof refusals[0]; i++) {
        const mgr_attr *const a = arg(ev, refusals[i].name);
        if (a && refused(a, refusals[i].when))
            return unsupported(ev, refusals[i].name, refusals[i].what, err);
    }
    const mgr_attr *const act = arg(ev, "hidden_act");
    if (act && !is_text(act, "silu") && !is_text(act, "swish"))
        return unsupported(ev, "hidden_act", "an activation other than SwiGLU", err);
    return check_rope(ev, err);
}

/* One whole number: `theirs` in config.json (or transformers' default for it), `ours` in the
 * configuration, and perhaps the tensors know it. 0 is "unknown". */
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
    mgr_hint(err, "set '%s' in the configuration", s.ours);
    return MGR_ERR_FORMAT;
}

/* The matrix `role` of layer 0, or the embedding; NULL if there is none. */
static const mgr_stored *matrix(const evidence *ev, mgr_role role)
{
    char name[NAME_BYTES];
    tensor_name(role, 0, name);
    for (size_t i = 0; i < ev->cat->n_stored; i++)
        if (strcmp(ev->cat->stored[i].name, name) == 0 && ev->cat->stored[i].ndim == 2)
            return &ev->cat->stored[i];
    return NULL;
}

static uint64_t rows_of(const evidence *ev, mgr_role role)
{
    const mgr_stored *const s = matrix(ev, role);
    return s ? s->shape[0] : 0;
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

static int embedding_sizes(const evidence *ev, mgr_llama *llama, mgr_model *m, mgr_err *err)
{
    const mgr_config *const c = ev->config;
    const mgr_stored *const e = matrix(ev, MGR_ROLE_EMBEDDING);
    if (!e)
        return mgr_fail(err, MGR_ERR_FORMAT, "no matrix '%s' beside '%s'",
                        names[MGR_ROLE_EMBEDDING], path(ev));
    m->dtype = e->dtype;
    MGR_TRY(whole(
        ev,
        (size_sources){"hidden_size", "model.hidden_size", 0, c->model.hidden_size, e->shape[1]},
        &m->hidden, err));
    MGR_TRY(whole(ev, (size_sources){"vocab_size", "model.vocab_size", 0, 0, e->shape[0]},
                  &llama->vocab_rows, err));
    m->vocab = c->model.vocab_size ? c->model.vocab_size : llama->vocab_rows;
    if (m->vocab > llama->vocab_rows)
        return mgr_config_fail(c, "model.vocab_size", err,
                               "'model.vocab_size' is %llu, but the checkpoint holds %llu rows",
                               (unsigned long long)m->vocab, (unsigned long long)llama->vocab_rows);
    return MGR_OK;
}

/* An absent num_key_value_heads is as many as heads, but 8 for Mistral; null is always the former
 * (their configuration classes). */
static uint64_t default_groups(const evidence *ev, uint64_t heads)
{
    const bool absent =
        !mgr_catalogue_attr(ev->cat, ev->llama->config, "config.num_key_value_heads");
    return ev->mistral && absent ? 8 : heads;
}

static int attention_sizes(const evidence *ev, mgr_model *m, mgr_err *err)
{
    const mgr_config *const c = ev->config;
    MGR_TRY(whole(ev,
                  (size_sources){"num_attention_heads", "model.num_attention_heads", 0,
                                 c->model.num_attention_heads, 0},
                  &m->heads, err));
    MGR_TRY(whole(ev,
                  (size_sources){"head_dim", "model.kv_channels", m->hidden / m->heads,
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
    const mgr_config *const c = ev->config;
    MGR_TRY(whole(ev,
                  (size_sources){"num_hidden_layers", "model.num_layers", 0, c->model.num_layers,
                                 count_layers(ev)},
                  &m->layers, err));
    return whole(ev,
                 (size_sources){"intermediate_size", "model.ffn_hidden_size", 0,
                                c->model.ffn_hidden_size, rows_of(ev, MGR_ROLE_GATE)},
                 &m->ffn, err);
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
    *out = found > 0 ? found : 10000.0;
    return MGR_OK;
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

static int scalars(const evidence *ev, mgr_model *m, mgr_err *err)
{
    const mgr_config *const c = ev->config;
    const mgr_attr *const tied = arg(ev, "tie_word_embeddings");
    MGR_TRY(real(ev, "rms_norm_eps", 1e-6, &m->norm_epsilon, err));
    MGR_TRY(rotary_base(ev, &m->rotary_base, err));
    MGR_TRY(real(ev, "initializer_range", 0.02, &m->init_std, err));
    MGR_TRY(whole(ev,
                  (size_sources){"max_position_embeddings", "model.max_position_embeddings",
                                 ev->mistral ? 131072 : 2048, 0, 0},
                  &m->max_positions, err));
    if (tied && tied->kind != MGR_ATTR_BOOL)
        return mgr_fail(err, MGR_ERR_FORMAT,
                        "'tie_word_embeddings' in '%s' is neither true nor "
                        "false",
                        path(ev));
    m->tied = tied && tied->i;
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

/* A window that no position leaves is none. Mistral's is 4096 unless it is written. */
static int check_window(const evidence *ev, const mgr_model *m, mgr_err *err)
{
    const bool written = mgr_catalogue_attr(ev->cat, ev->llama->config, "config.sliding_window");
    const mgr_attr *const a = arg(ev, "sliding_window");
    int64_t window = !written && ev->mistral ? 4096 : INT64_MAX;
    if (a)
        window = a->kind == MGR_ATTR_INT ? a->i : 0;
    if (window >= 0 && (uint64_t)window >= m->max_positions)
        return MGR_OK;
    mgr_fail(err, MGR_ERR_UNSUPPORTED,
             "'%s' has sliding-window attention (sliding_window%s: %lld of %llu positions), which "
             "is not supported",
             path(ev), a ? "" : ", by default", (long long)window,
             (unsigned long long)m->max_positions);
    return mgr_hint(err, "set 'model.max_position_embeddings' to no more than the window");
}

/* The source has no ranks; who says it has means another checkpoint. */
static int check_parallel(const mgr_config *c, mgr_err *err)
{
    const char *const key = c->model.tensor_parallel > 1     ? "model.tensor_parallel"
                            : c->model.pipeline_parallel > 1 ? "model.pipeline_parallel"
                                                             : NULL;
    return !key ? MGR_OK
                : mgr_config_fail(c, key, err,
                                  "'%s' is above 1, but a Hugging Face directory is "
                                  "not split over ranks",
                                  key);
}

int mgr_llama_model(const mgr_catalogue *cat, const mgr_config *config, mgr_llama *llama,
                    mgr_model *model, mgr_err *err)
{
    evidence ev = {cat, config, llama, false};
    mgr_model m = {0};
    MGR_TRY(check_type(&ev, llama, err));
    MGR_TRY(check_supported(&ev, err));
    MGR_TRY(check_parallel(config, err));
    MGR_TRY(embedding_sizes(&ev, llama, &m, err));
    MGR_TRY(attention_sizes(&ev, &m, err));
    MGR_TRY(layer_sizes(&ev, &m, err));
    MGR_TRY(scalars(&ev, &m, err));
    MGR_TRY(check_window(&ev, &m, err));
    *model = m;
    return MGR_OK;
}
