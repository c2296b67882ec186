/* The model from config.json: transformers' models/<type>/configuration_<type>.py. What differs
 * between classes: huggingface_family.c; which keys there may be: huggingface_keys.c. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "core/str.h"
#include "model/huggingface_derive.h"
#include "model/huggingface_keys.h"
#include "model/huggingface_passed.h"
#include "model/huggingface_t5.h"
#include "model/huggingface_tower.h"
#include "model/mtp.h"

/* A class without a row is passed through, unless it is known to be none that can be. */
static int pass_type(mgr_hf_evidence *ev, const char *type, mgr_err *err)
{
    const char *const why = mgr_hf_arg(ev, "auto_map")
                                ? "code of its own (auto_map), which is not carried"
                                : mgr_huggingface_refusal(type);
    char shown[MGR_HF_SHOWN];
    ev->class = MGR_HF_PASSED;
    ev->kind = mgr_huggingface_family(ev->class);
    return why ? mgr_fail(err, MGR_ERR_UNSUPPORTED,
                          "'%s' is of model_type '%s': %s, which is not supported", mgr_hf_path(ev),
                          mgr_printable(type, strlen(type), shown, sizeof shown), why)
               : MGR_OK;
}

/* The classes that the file names, if any, must be this kind's; "LLaMAForCausalLM" is of 2023. */
static int check_class(const mgr_hf_evidence *ev, const mgr_attr *class, mgr_err *err)
{
    char shown[MGR_HF_SHOWN];
    const bool text = class->kind == MGR_ATTR_TEXT;
    if (text && strcasecmp(class->text, ev->kind->architecture) == 0)
        return MGR_OK;
    mgr_huggingface_value(class, shown, sizeof shown);
    if (text && !mgr_has_suffix(class->text, "ForCausalLM"))
        return mgr_fail(err, MGR_ERR_UNSUPPORTED, "'%s' is of architecture %s, no causal LM",
                        mgr_hf_path(ev), shown);
    return mgr_fail(err, MGR_ERR_UNSUPPORTED,
                    "'%s' contradicts itself: architectures says %s, model_type '%s' means '%s'",
                    mgr_hf_path(ev), shown, ev->kind->type, ev->kind->architecture);
}

static int check_type(mgr_hf_evidence *ev, mgr_err *err)
{
    const mgr_attr *const type = mgr_hf_arg(ev, "model_type");
    char name[64];
    if (!type || type->kind != MGR_ATTR_TEXT)
        return mgr_fail(err, MGR_ERR_FORMAT, "'%s' names no model_type", mgr_hf_path(ev));
    ev->class = mgr_huggingface_type(type->text);
    ev->kind = mgr_huggingface_family(ev->class);
    if (!ev->kind)
        return pass_type(ev, type->text, err);
    for (unsigned i = 0;; i++) {
        snprintf(name, sizeof name, "architectures.%u", i);
        const mgr_attr *const class = mgr_hf_arg(ev, name);
        if (!class)
            return MGR_OK;
        MGR_TRY(check_class(ev, class, err));
    }
}

/* A key of config.json in a message. */
static int refuse_key(const mgr_hf_evidence *ev, const mgr_attr *a, const mgr_hf_key *row,
                      mgr_err *err)
{
    const char *const name = a->key + sizeof "config." - 1;
    char shown[MGR_HF_SHOWN], value[MGR_HF_SHOWN];
    mgr_printable(name, strlen(name), shown, sizeof shown);
    mgr_huggingface_value(a, value, sizeof value);
    if (row)
        return mgr_fail(err, MGR_ERR_UNSUPPORTED, "'%s' has %s (%s: %s), which is not supported",
                        mgr_hf_path(ev), row->what, shown, value);
    mgr_fail(err, MGR_ERR_UNSUPPORTED,
             "'%s' has the key '%s' (%s), of which it is not known whether %s computes with it",
             mgr_hf_path(ev), shown, value, ev->kind->name);
    return mgr_hint(err, "if it does not, set 'source.unknown: warn'");
}

/* Every key is known, or says nothing; or `refuse` is false, and what is not known may say it. */
static int check_supported(const mgr_hf_evidence *ev, bool refuse, mgr_err *err)
{
    for (size_t i = 0; i < ev->cat->n_attrs; i++) {
        const mgr_attr *const a = &ev->cat->attrs[i];
        const mgr_hf_key *row;
        if (a->file != ev->hf->config || !mgr_has_prefix(a->key, "config."))
            continue;
        const mgr_hf_verdict verdict =
            mgr_huggingface_judge(ev->cat, a, MGR_HF_BIT(ev->class), ev->hf->section, &row);
        if (verdict == MGR_HF_REFUSED || (verdict == MGR_HF_UNKNOWN && refuse))
            return refuse_key(ev, a, row, err);
    }
    return MGR_OK;
}

/* "gelu" is the exact one, as Megatron's; the others that go by a similar name are not. */
static int activation(const mgr_hf_evidence *ev, mgr_activation *out, mgr_err *err)
{
    const mgr_attr *const act = mgr_hf_arg(ev, "hidden_act");
    const bool gelu = mgr_hf_is_text(act, "gelu");
    *out = gelu ? MGR_ACTIVATION_GEGLU : MGR_ACTIVATION_SWIGLU;
    if (!act || gelu || mgr_hf_is_text(act, "silu") || mgr_hf_is_text(act, "swish"))
        return MGR_OK;
    return mgr_hf_unsupported(ev, "hidden_act", "an activation other than SwiGLU and GEGLU", err);
}

/* One more than the highest index in the names. */
static uint64_t count_layers(const mgr_hf_evidence *ev)
{
    char prefix[MGR_HF_NAME_BYTES] = "model.layers.";
    uint64_t layers = 0;
    mgr_huggingface_tower_name(ev->tower, prefix);
    for (size_t i = 0; i < ev->cat->n_stored; i++) {
        const char *const name = ev->cat->stored[i].name;
        if (!mgr_has_prefix(name, prefix))
            continue;
        const unsigned long idx = strtoul(name + strlen(prefix), NULL, 10);
        if (idx < 1000000 && idx + 1 > layers)
            layers = idx + 1;
    }
    return layers;
}

static int embedding_sizes(const mgr_hf_evidence *ev, mgr_huggingface *hf, mgr_model *m,
                           mgr_err *err)
{
    const mgr_config *const c = ev->config;
    const mgr_stored *const e = mgr_hf_first_of(ev, MGR_HF_DENSE, MGR_ROLE_EMBEDDING, 2);
    if (!e)
        return mgr_fail(err, MGR_ERR_FORMAT, "no matrix 'model.embed_tokens.weight' beside '%s'",
                        mgr_hf_path(ev));
    m->dtype = e->dtype;
    MGR_TRY(mgr_hf_whole(
        ev, (mgr_hf_size){"hidden_size", "model.hidden_size", 0, c->model.hidden_size, e->shape[1]},
        &m->hidden, err));
    MGR_TRY(mgr_hf_whole(ev, (mgr_hf_size){"vocab_size", "model.vocab_size", 0, 0, e->shape[0]},
                         &hf->vocab_rows, err));
    m->vocab = c->model.vocab_size ? c->model.vocab_size : hf->vocab_rows;
    if (m->vocab > hf->vocab_rows)
        return mgr_config_fail(c, "model.vocab_size", err,
                               "'model.vocab_size' is %llu, but the checkpoint holds %llu rows",
                               (unsigned long long)m->vocab, (unsigned long long)hf->vocab_rows);
    return MGR_OK;
}

/* An absent num_key_value_heads is what the configuration class says; null is as many as heads. */
static uint64_t default_groups(const mgr_hf_evidence *ev, uint64_t heads)
{
    const bool absent = !mgr_hf_is_written(ev, "num_key_value_heads");
    return absent && ev->kind->groups ? ev->kind->groups : heads;
}

static int attention_sizes(const mgr_hf_evidence *ev, mgr_model *m, mgr_err *err)
{
    const mgr_config *const c = ev->config;
    MGR_TRY(mgr_hf_whole(ev,
                         (mgr_hf_size){"num_attention_heads", "model.num_attention_heads", 0,
                                       c->model.num_attention_heads, 0},
                         &m->heads, err));
    MGR_TRY(
        mgr_hf_whole(ev,
                     (mgr_hf_size){"head_dim", "model.kv_channels",
                                   ev->kind->head_dim ? ev->kind->head_dim : m->hidden / m->heads,
                                   c->model.kv_channels, mgr_hf_rows_of(ev, MGR_ROLE_Q) / m->heads},
                     &m->head_dim, err));
    MGR_TRY(mgr_hf_whole(ev,
                         (mgr_hf_size){"num_key_value_heads", "model.num_query_groups",
                                       default_groups(ev, m->heads), c->model.num_query_groups,
                                       mgr_hf_rows_of(ev, MGR_ROLE_K) / m->head_dim},
                         &m->kv_groups, err));
    if (m->heads % m->kv_groups != 0)
        return mgr_fail(err, MGR_ERR_FORMAT,
                        "%llu attention heads do not split into %llu groups "
                        "('%s')",
                        (unsigned long long)m->heads, (unsigned long long)m->kv_groups,
                        mgr_hf_path(ev));
    return MGR_OK;
}

static int layer_sizes(const mgr_hf_evidence *ev, mgr_model *m, mgr_err *err)
{
    const mgr_attr *const said = mgr_hf_arg(ev, "num_hidden_layers");
    const bool behind = (ev->kind->keys & MGR_HF_KEY_GROUPED) && said && said->i > 0;
    uint64_t found = count_layers(ev);
    m->mtp = mgr_mtp_find(ev->cat, behind ? (uint64_t)said->i : 0);
    if (m->mtp && behind && found == (uint64_t)said->i + mgr_mtp_joins(ev->cat, (uint64_t)said->i))
        found = (uint64_t)said->i;
    return mgr_hf_whole(ev,
                        (mgr_hf_size){"num_hidden_layers", "model.num_layers", 0,
                                      ev->config->model.num_layers, found},
                        &m->layers, err);
}

/* A token id; of a list, the first. */
static int64_t token_id(const mgr_hf_evidence *ev, const char *name, int64_t given)
{
    char first[64];
    snprintf(first, sizeof first, "%s.0", name);
    const mgr_attr *a = mgr_hf_arg(ev, name);
    if (a && a->kind == MGR_ATTR_OTHER)
        a = mgr_hf_arg(ev, first);
    return given >= 0 ? given : a && a->kind == MGR_ATTR_INT ? a->i : -1;
}

/* The part of a head that RoPE turns, as three places may say it, or rotary_dim. */
static int rotary_part(const mgr_hf_evidence *ev, mgr_model *m, mgr_err *err)
{
    static const char *const keys[] = {"partial_rotary_factor",
                                       "rope_parameters.partial_rotary_factor",
                                       "rope_scaling.partial_rotary_factor"};
    double found = 0, dim = 0;
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        double part;
        MGR_TRY(mgr_hf_real(ev, keys[i], 0, &part, err));
        if (part > 1 || (found > 0 && part > 0 && !mgr_hf_same_number(found, part)))
            return mgr_fail(err, MGR_ERR_FORMAT, "'%s' gives %g and %g as %s", mgr_hf_path(ev),
                            found, part, keys[0]);
        found = part > 0 ? part : found;
    }
    if (ev->kind->keys & MGR_HF_KEY_ROTARY_DIM)
        MGR_TRY(mgr_hf_real(ev, "rotary_dim", 0, &dim, err));
    found = found > 0 ? found : dim > 0 ? dim / (double)m->head_dim : ev->kind->rotary_part;
    m->rotary_part = found > 0 && found < 1 ? found : 0;
    return found <= 1 ? MGR_OK
                      : mgr_fail(err, MGR_ERR_FORMAT, "rotary_dim in '%s' is wider than a head",
                                 mgr_hf_path(ev));
}

static int glm_features(const mgr_hf_evidence *ev, mgr_model *m, mgr_err *err)
{
    MGR_TRY(mgr_hf_flag(ev, "use_qk_norm", &m->qk_norm, err));
    return mgr_hf_flag(ev, "attention_bias", &m->bias_qkv, err);
}

/* Seed-OSS: attention_bias is of q, k and v. */
static int out_bias(const mgr_hf_evidence *ev, mgr_model *m, mgr_err *err)
{
    MGR_TRY(mgr_hf_flag_or(ev, "attention_bias", true, &m->bias_qkv, err));
    return mgr_hf_flag(ev, "attention_out_bias", &m->bias_o, err);
}

/* What the kind and its flags say of biases and norms. */
static int features(const mgr_hf_evidence *ev, mgr_model *m, mgr_err *err)
{
    const mgr_hf_family *const f = ev->kind;
    bool attention = false;
    m->qk_norm = f->must & MGR_HF_HAS_QK_NORM;
    m->qk_norm_full = f->must & MGR_HF_HAS_QK_NORM_FULL;
    m->post_norm = f->must & MGR_HF_HAS_POST_NORM;
    m->rope_interleaved = f->must & MGR_HF_HAS_NEIGHBOURS;
    if (f->keys & MGR_HF_KEY_ATTENTION_BIAS)
        MGR_TRY(mgr_hf_flag(ev, "attention_bias", &attention, err));
    if (f->keys & MGR_HF_KEY_MLP_BIAS)
        MGR_TRY(mgr_hf_flag(ev, "mlp_bias", &m->bias_mlp, err));
    m->bias_o = attention;
    m->bias_qkv = attention || f->must & MGR_HF_HAS_QKV_BIAS;
    if (f->keys & MGR_HF_KEY_QKV_BIAS)
        MGR_TRY(mgr_hf_flag_or(ev, "qkv_bias", true, &m->bias_qkv, err));
    if (f->keys & MGR_HF_KEY_GLM)
        MGR_TRY(glm_features(ev, m, err));
    if (f->keys & MGR_HF_KEY_OUT_BIAS)
        MGR_TRY(out_bias(ev, m, err));
    MGR_TRY(activation(ev, &m->activation, err));
    MGR_TRY(mgr_hf_rope_scaling(ev, &m->rope, err));
    MGR_TRY(mgr_hf_flag_or(ev, "tie_word_embeddings", f->keys & MGR_HF_KEY_TIED, &m->tied, err));
    if (ev->tower) /* its own key is not looked at, and that of the whole is elsewhere */
        m->tied = !mgr_hf_first_of(ev, MGR_HF_DENSE, MGR_ROLE_LM_HEAD, 2);
    return MGR_OK;
}

/* One of Granite's; 0, that is to say none, where it is `neutral`. */
static int multiplier(const mgr_hf_evidence *ev, const char *name, double neutral, double *out,
                      mgr_err *err)
{
    double value;
    MGR_TRY(mgr_hf_real(ev, name, 1, &value, err));
    const double ratio = value / neutral - 1;
    *out = ratio > -1e-14 && ratio < 1e-14 ? 0 : value;
    return MGR_OK;
}

static int multipliers(const mgr_hf_evidence *ev, mgr_model *m, mgr_err *err)
{
    if (!(ev->kind->keys & MGR_HF_KEY_MULTIPLIERS))
        return MGR_OK;
    MGR_TRY(multiplier(ev, "embedding_multiplier", 1, &m->embedding_multiplier, err));
    MGR_TRY(multiplier(ev, "residual_multiplier", 1, &m->residual_multiplier, err));
    MGR_TRY(multiplier(ev, "logits_scaling", 1, &m->logits_divisor, err));
    return multiplier(ev, "attention_multiplier", 1 / sqrt((double)m->head_dim),
                      &m->attention_multiplier, err);
}

static int scalars(const mgr_hf_evidence *ev, mgr_model *m, mgr_err *err)
{
    const mgr_config *const c = ev->config;
    MGR_TRY(mgr_hf_real(ev, "rms_norm_eps", ev->kind->epsilon, &m->norm_epsilon, err));
    MGR_TRY(mgr_hf_rotary_base(ev, &m->rotary_base, err));
    MGR_TRY(mgr_hf_real(ev, "initializer_range", 0.02, &m->init_std, err));
    MGR_TRY(mgr_hf_whole(ev,
                         (mgr_hf_size){"max_position_embeddings", "model.max_position_embeddings",
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

/* A class with a row, of which `ev` tells. */
static int known_model(mgr_hf_evidence *ev, mgr_huggingface *hf, mgr_model *model, mgr_err *err)
{
    mgr_model m = {.tower = ev->tower};
    hf->class = ev->class;
    hf->ffn = ev->kind->ffn;
    if (ev->kind->must & MGR_HF_HAS_ENCODER)
        return mgr_huggingface_t5_model(ev, model, err);
    MGR_TRY(features(ev, &m, err));
    MGR_TRY(layer_sizes(ev, &m, err));
    MGR_TRY(mgr_hf_expert_layers(ev, &m, err));
    hf->ffn = mgr_hf_find_ffn(ev);
    MGR_TRY(embedding_sizes(ev, hf, &m, err));
    MGR_TRY(attention_sizes(ev, &m, err));
    MGR_TRY(mgr_hf_check_fused(ev, &m, err));
    MGR_TRY(mgr_hf_ffn_sizes(ev, &m, err));
    MGR_TRY(mgr_hf_expert_sizes(ev, &m, err));
    MGR_TRY(multipliers(ev, &m, err));
    if (ev->kind->keys & MGR_HF_KEY_PART_ROPE)
        MGR_TRY(rotary_part(ev, &m, err));
    MGR_TRY(mgr_hf_nope_layers(ev, &m, err));
    MGR_TRY(scalars(ev, &m, err));
    MGR_TRY(mgr_hf_windows(ev, &m, err));
    *model = m;
    return MGR_OK;
}

static int passed_model(mgr_hf_evidence *ev, mgr_huggingface *hf, mgr_model *model, mgr_err *err)
{
    hf->class = ev->class;
    MGR_TRY(mgr_huggingface_passed_model(ev, model, err));
    hf->ffn = (mgr_hf_ffn)model->passed_experts;
    hf->vocab_rows = 0;
    return MGR_OK;
}

/* Is it the decoder of a class that takes any, and has a row itself? */
static bool is_decoder(mgr_hf_evidence *ev)
{
    const mgr_attr *const type = mgr_hf_arg(ev, "model_type");
    ev->tower = mgr_huggingface_tower(ev->cat, ev->hf->first_file);
    ev->class =
        type && type->kind == MGR_ATTR_TEXT ? mgr_huggingface_type(type->text) : MGR_HF_NO_CLASS;
    ev->kind = mgr_huggingface_family(ev->class);
    return ev->tower && *ev->hf->section && mgr_huggingface_takes_any(ev->hf->type) && ev->kind &&
           !(ev->kind->must & MGR_HF_HAS_ENCODER);
}

/* A class without a row: of a vision-language model the decoder may have one. Where that is not
 * understood it is still moved, unless experts are to be made of it. */
static int unknown_model(mgr_hf_evidence *ev, mgr_huggingface *hf, mgr_model *model, mgr_err *err)
{
    const bool refuse = strcmp(ev->config->source.unknown, "warn") != 0;
    mgr_hf_evidence inner = *ev;
    mgr_err why = MGR_ERR_INIT;
    hf->type = mgr_hf_arg(ev, "model_type")->text;
    hf->section = mgr_huggingface_section(ev);
    if (is_decoder(&inner)) {
        int rc = check_supported(&inner, false, &why);
        if (rc == MGR_OK)
            rc = known_model(&inner, hf, model, &why);
        if (rc == MGR_OK)
            return check_supported(&inner, refuse, err);
        if (strcmp(ev->config->mode, "upcycle") == 0) {
            *err = why;
            return rc;
        }
    }
    MGR_TRY(check_supported(ev, refuse, err));
    return passed_model(ev, hf, model, err);
}

int mgr_huggingface_model(const mgr_catalogue *cat, const mgr_config *config, mgr_huggingface *hf,
                          mgr_model *model, mgr_err *err)
{
    mgr_hf_evidence ev = {.cat = cat, .config = config, .hf = hf};
    MGR_TRY(check_type(&ev, err));
    if (ev.class == MGR_HF_PASSED)
        return unknown_model(&ev, hf, model, err);
    MGR_TRY(check_supported(&ev, strcmp(config->source.unknown, "warn") != 0, err));
    return known_model(&ev, hf, model, err);
}
