#include "form/huggingface_compose.h"

#include <stdio.h>
#include <string.h>

#include "fmt/json.h"
#include "model/huggingface_keys.h"
#include "model/huggingface_passed.h"
#include "model/huggingface_tower.h"
#include "model/mtp.h"

/* What a composition is made of. */
typedef struct composition {
    const mgr_output *out;
    const mgr_model *model;
    mgr_hf_class class;
    unsigned family;
    json_t *base; /* the source's config.json, or NULL */
    bool same;    /* it is of the class that is written */
    json_t *derived, *result;
    const char *section; /* this is an object in config.json: what its keys begin with there */
    json_t *parts;       /* objects in it that are composed for themselves, by key */
    mgr_remarks *remarks;
    mgr_err *err;
} composition;

static const char *text_of(const json_t *object, const char *key)
{
    const char *const text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

/* ---- values ---- */

static bool same_number(const json_t *a, const json_t *b)
{
    const double x = json_number_value(a), y = json_number_value(b);
    return json_is_number(a) && json_is_number(b) && x >= y && x <= y;
}

static bool means(const char *key, const json_t *value, const json_t *wanted);

/* Every member that is wanted is there; "type" is the older word for "rope_type". */
static bool has_members(const json_t *value, const json_t *wanted)
{
    const char *key;
    json_t *member;
    json_object_foreach((json_t *)(uintptr_t)wanted, key, member)
    {
        const json_t *found = json_object_get(value, key);
        if (!found && strcmp(key, "rope_type") == 0)
            found = json_object_get(value, "type");
        if (!found || !means(key, found, member))
            return false;
    }
    return true;
}

/* Does the source's value say what is wanted? */
static bool means(const char *key, const json_t *value, const json_t *wanted)
{
    if (json_is_object(value) && json_is_object(wanted))
        return has_members(value, wanted);
    if (strcmp(key, "hidden_act") == 0 && strcmp(json_string_value(wanted), "silu") == 0 &&
        json_is_string(value) && strcmp(json_string_value(value), "swish") == 0)
        return true;
    return same_number(value, wanted) || json_equal(value, wanted);
}

/* A value in a remark, in one line; the caller's to clear. */
static int spell(const json_t *value, mgr_buf *out, mgr_err *err)
{
    return value ? mgr_json_dump(value, 0, out, err) : MGR_OK;
}

static int remark(const composition *c, mgr_remark_kind kind, const char *key, const json_t *was,
                  const json_t *now)
{
    mgr_buf before = {0}, after = {0}, field = {0};
    if (!c->remarks)
        return MGR_OK;
    int rc = spell(was, &before, c->err);
    if (rc == MGR_OK)
        rc = spell(now, &after, c->err);
    if (rc == MGR_OK)
        rc = mgr_buf_fmt(&field, c->err, "%s%s", c->section ? c->section : "", key);
    const mgr_remark r = {.kind = kind, .field = field.data, .was = before.data, .now = after.data};
    if (rc == MGR_OK)
        rc = mgr_remarks_add(c->remarks, &r, c->err);
    mgr_buf_clear(&before);
    mgr_buf_clear(&after);
    mgr_buf_clear(&field);
    return rc;
}

/* ---- the source's fields ---- */

/* Does the field count experts, of which a dense model that is made of a mixture has none? */
static bool is_of_experts(const composition *c, const char *key)
{
    static const char *const keys[] = {"num_experts",      "num_local_experts",
                                       "n_routed_experts", "moe_num_experts",
                                       "n_shared_experts", "num_experts_per_tok"};
    for (size_t i = 0; !c->same && !c->model->experts && i < sizeof keys / sizeof keys[0]; i++)
        if (strcmp(key, keys[i]) == 0)
            return true;
    return false;
}

/* One field of the source: carried, altered or dropped. */
static int take(const composition *c, const char *key, json_t *value)
{
    json_t *const wanted = json_object_get(c->derived, key);
    const bool known = c->same || mgr_huggingface_key(key, c->family);
    if (wanted && !means(key, value, wanted)) {
        json_object_set(c->result, key, wanted);
        return remark(c, MGR_REMARK_ALTERED, key, value, wanted);
    }
    if (!known || is_of_experts(c, key))
        return remark(c, MGR_REMARK_DROPPED, key, value, NULL);
    json_object_set(c->result, key, value);
    return remark(c, MGR_REMARK_CARRIED, key, value, NULL);
}

static int take_all(const composition *c)
{
    const char *key;
    json_t *value;
    json_object_foreach(c->base, key, value)
    {
        json_t *const part = json_object_get(c->parts, key);
        if (part)
            json_object_set(c->result, key, part);
        else if ((strcmp(key, "auto_map") == 0 && c->class != MGR_HF_PASSED) ||
                 strcmp(key, "quantization_config") ==
                     0) /* the weights are not quantised any more */
            MGR_TRY(remark(c, MGR_REMARK_DROPPED, key, value, NULL));
        else
            MGR_TRY(take(c, key, value));
    }
    return MGR_OK;
}

/* What the source does not have. */
static int set_missing(const composition *c, json_t *fields)
{
    const char *key;
    json_t *value;
    json_object_foreach(fields, key, value)
    {
        if (json_object_get(c->result, key))
            continue;
        json_object_set(c->result, key, value);
        MGR_TRY(remark(c, MGR_REMARK_SET, key, NULL, value));
    }
    return MGR_OK;
}

/* ---- what is wanted ---- */

static bool is_plain_rope(const json_t *scaling)
{
    const char *const type = text_of(scaling, "rope_type"), *const older = text_of(scaling, "type");
    return json_is_null(scaling) || strcmp(*type ? type : older, "default") == 0;
}

/* A field that is wanted only where the source has one. */
static void want_too(const composition *c, const char *key, const char *as)
{
    if (json_object_get(c->base, key))
        json_object_set(c->derived, key, json_object_get(c->derived, as));
}

/* Windows: of the same class the source's fields say them, of another the model. A window that no
 * position leaves stays as it is written. */
static void want_window(const composition *c)
{
    const mgr_model *const m = c->model;
    const json_t *const given = json_object_get(c->base, "sliding_window");
    const mgr_hf_key *const row = mgr_huggingface_key("use_sliding_window", c->family);
    const bool has = row && row->use == MGR_HF_READ;
    if (c->same || !c->base || mgr_huggingface_family(c->class)->keys & MGR_HF_KEY_NO_WINDOWS)
        return;
    if (has)
        json_object_set_new(c->derived, "use_sliding_window", json_boolean(m->window));
    if (m->window)
        json_object_set_new(c->derived, "sliding_window", json_integer((json_int_t)m->window));
    else if (!json_is_integer(given) ||
             (uint64_t)json_integer_value(given) < m->max_positions) /* it was switched off */
        json_object_set_new(c->derived, "sliding_window", json_null());
}

/* Other layers than the source has are listed anew. */
static void want_layers(const composition *c)
{
    const json_t *const types = json_object_get(c->base, "layer_types");
    if (types && json_array_size(types) != c->model->layers)
        mgr_huggingface_window_layers(c->derived, c->model,
                                      json_object_get(c->base, "max_window_layers"));
}

/* A token's id: what the user says, else what the source's field says, else the tokenizer's. */
static void want_token(const composition *c, const char *key, int64_t said, int64_t found)
{
    const bool given = json_object_get(c->base, key);
    if (said >= 0)
        json_object_set_new(c->derived, key, json_integer(said));
    else if (!given && found >= 0 && (uint64_t)found < c->model->vocab)
        json_object_set_new(c->derived, key, json_integer(found));
    else if (!c->base && strcmp(key, "pad_token_id") != 0)
        json_object_set_new(c->derived, key, json_null());
}

/* Layers that were left out are not counted. */
static void want_no_mtp(const composition *c)
{
    const char *key;
    json_t *value;
    if (!mgr_mtp_is_dropped(c->out->config))
        return;
    json_object_foreach(c->base, key, value)
    {
        if (mgr_mtp_is_count(key) && json_is_integer(value))
            json_object_set_new(c->derived, key, json_integer(0));
    }
}

static void want(const composition *c, const mgr_tokenizer_facts *tokens)
{
    const mgr_config *const config = c->out->config;
    const mgr_model *const m = c->model;
    const json_t *const scaling = json_object_get(c->base, "rope_scaling");
    want_too(c, "dtype", "torch_dtype");
    if (c->model->experts)
        want_too(c, "num_experts", "num_local_experts");
    want_window(c);
    want_layers(c);
    want_no_mtp(c);
    if (scaling && !json_object_get(c->derived, "rope_scaling") && !is_plain_rope(scaling))
        json_object_set_new(c->derived, "rope_scaling", json_null());
    want_token(c, "bos_token_id", config->model.bos_token_id,
               m->bos_token_id >= 0 ? m->bos_token_id : tokens->bos);
    want_token(c, "eos_token_id", config->model.eos_token_id,
               m->eos_token_id >= 0 ? m->eos_token_id : tokens->eos);
    want_token(c, "pad_token_id", -1, tokens->pad);
}

/* ---- what is passed through ---- */

static void want_class(const composition *c, const char *type, const char *architecture)
{
    json_object_set_new(c->derived, "model_type", json_string(type));
    if (*architecture && (!c->section || json_object_get(c->base, "architectures")))
        json_object_set_new(c->derived, "architectures", json_pack("[s]", architecture));
}

static void want_kinds(const composition *c, const char *key)
{
    json_t *const kinds = json_array();
    for (uint64_t l = 0; l < c->model->layers; l++)
        json_array_append_new(kinds,
                              json_string(mgr_model_is_moe(c->model, l) ? "sparse" : "dense"));
    json_object_set_new(c->derived, key, kinds);
}

/* What a mixture is that was made of a class without a row. */
static void want_sibling(const composition *c, const mgr_hf_sibling *s)
{
    const mgr_model *const m = c->model;
    json_t *const written = json_loads(s->written, 0, NULL);
    json_object_update(c->derived, written);
    json_decref(written);
    want_class(c, s->type, c->section && s->whole ? "" : s->architecture); /* the whole's */
    json_object_set_new(c->derived, "num_experts", json_integer((json_int_t)m->experts));
    json_object_set_new(c->derived, "num_local_experts", json_integer((json_int_t)m->experts));
    json_object_set_new(c->derived, "num_experts_per_tok", json_integer((json_int_t)m->top_k));
    json_object_set_new(c->derived, s->width, json_integer((json_int_t)mgr_model_expert_ffn(m)));
    if (s->kinds)
        want_kinds(c, s->kinds);
}

/* One object: all of it is carried as it is, but for what is wanted. */
static int pass(composition *c)
{
    const char *key;
    json_t *value;
    if (!c->base)
        return mgr_fail(c->err, MGR_ERR_NOT_FOUND,
                        "there is no config.json of a model that is passed through unread");
    want_no_mtp(c);
    json_object_foreach(c->base, key, value)
    {
        const bool type = strcmp(key, "dtype") == 0 || strcmp(key, "torch_dtype") == 0;
        if (type && json_is_string(value) && strcmp(c->out->config->target.dtype, "source") != 0)
            json_object_set_new(c->derived, key,
                                json_string(mgr_dtype_name(c->out->layout->dtype)));
    }
    MGR_TRY(take_all(c));
    return set_missing(c, c->derived);
}

/* An object in config.json, of which a mixture is what `s` says, or its model_type is `type`. */
static int pass_part(const composition *whole, const char *key, const mgr_hf_sibling *s,
                     const char *type)
{
    char section[64];
    composition c = *whole;
    c.base = json_object_get(whole->base, key);
    if (!json_is_object(c.base))
        return MGR_OK;
    snprintf(section, sizeof section, "%s.", key);
    c.section = section;
    c.parts = NULL;
    c.result = json_object();
    c.derived = json_object();
    if (s)
        want_sibling(&c, s);
    if (type)
        want_class(&c, type, "");
    const int rc = pass(&c);
    json_object_set_new(whole->parts, key, c.result);
    json_decref(c.derived);
    return rc;
}

/* A vision-language model: the decoder becomes its sibling's, the whole and the tower's keys what
 * goes with that. */
static int compose_decoder(const composition *c, const mgr_hf_sibling *s)
{
    if (s && s->whole) {
        MGR_TRY(pass_part(c, "vision_config", NULL, s->vision));
        want_class(c, s->whole, s->architecture);
    }
    return pass_part(c, MGR_HF_TEXT_CONFIG, s, NULL);
}

/* Of a class without a row nothing is known. */
static int compose_passed(composition *c)
{
    const mgr_hf_sibling *const s =
        c->model->experts ? mgr_huggingface_sibling(c->model->sibling) : NULL;
    const bool has_decoder = json_is_object(json_object_get(c->base, MGR_HF_TEXT_CONFIG));
    c->same = true;
    c->result = json_object();
    c->derived = json_object();
    c->parts = json_object();
    if (s && s->whole && !has_decoder)
        return mgr_fail(c->err, MGR_ERR_UNSUPPORTED,
                        "'%s' is a vision-language model, and there is no text decoder beside "
                        "others (text_config) in the source's config.json",
                        s->whole);
    if (has_decoder)
        MGR_TRY(compose_decoder(c, s));
    else if (s)
        want_sibling(c, s);
    return pass(c);
}

/* ---- what the user sets ---- */

/* Fields that say what the tensors are follow from the model; the others are the user's. */
static int check_override(const composition *c, const char *key)
{
    static const char *const free_ones[] = {"bos_token_id", "eos_token_id", "initializer_range"};
    const mgr_hf_key *const row = mgr_huggingface_key(key, c->family);
    bool may = !row || row->use != MGR_HF_READ;
    for (size_t i = 0; i < sizeof free_ones / sizeof free_ones[0]; i++)
        may = may || strcmp(key, free_ones[i]) == 0;
    if (may && !(row && row->use == MGR_HF_NEUTRAL))
        return MGR_OK;
    return mgr_config_fail(c->out->config, "target.config", c->err,
                           "'target.config' sets '%s', which follows from the model", key);
}

static int override(const composition *c)
{
    const char *const text = c->out->config->target.config, *key;
    json_t *fields = NULL, *value;
    int rc = MGR_OK;
    if (!text[0])
        return MGR_OK;
    MGR_TRY(mgr_json_parse(&fields, "target.config", text, strlen(text), c->err));
    json_object_foreach(fields, key, value)
    {
        json_t *const was = json_object_get(c->result, key);
        if (rc == MGR_OK)
            rc = check_override(c, key);
        if (rc == MGR_OK)
            rc = remark(c, was ? MGR_REMARK_ALTERED : MGR_REMARK_SET, key, was, value);
        if (rc == MGR_OK)
            json_object_set(c->result, key, value);
    }
    json_decref(fields);
    return rc;
}

/* ---- all of it ---- */

/* Whether the head is the embedding follows from the keys around these, which stay as they are. */
static void want_tie(const composition *c, const char *type)
{
    static const char key[] = "tie_word_embeddings";
    const mgr_hf_family *const f = mgr_huggingface_family(mgr_huggingface_type(type));
    json_t *const said = json_object_get(c->base, key);
    if (said)
        json_object_set(c->derived, key, said);
    else
        json_object_set_new(c->derived, key, json_boolean(f && f->keys & MGR_HF_KEY_TIED));
}

static int compose_known(composition *c, const mgr_tokenizer_facts *tokens)
{
    const char *const type = text_of(c->base, "model_type");
    json_t *const defaults = mgr_huggingface_defaults(c->model, c->class);
    c->same = strcmp(type, mgr_huggingface_family(c->class)->type) == 0;
    c->derived = mgr_huggingface_derived(c->model, c->class, c->out->layout->dtype);
    c->result = json_object();
    want(c, tokens);
    if (c->section)
        want_tie(c, type);
    const bool as_is = c->section && c->same && strcmp(c->out->config->mode, "reshard") == 0;
    int rc = take_all(c);
    if (rc == MGR_OK && !as_is)
        rc = set_missing(c, c->derived);
    if (rc == MGR_OK && !c->same)
        rc = set_missing(c, defaults);
    json_decref(defaults);
    return rc;
}

/* A vision-language model whose decoder has a row. */
static int compose_around(composition *c, const mgr_tokenizer_facts *tokens)
{
    composition decoder = *c;
    decoder.base = mgr_huggingface_keys_of(c->base, c->model);
    decoder.section = MGR_HF_TEXT_CONFIG ".";
    const int rc = compose_known(&decoder, tokens);
    json_decref(decoder.derived);
    c->parts = json_pack("{s:o}", MGR_HF_TEXT_CONFIG, decoder.result);
    c->class = MGR_HF_PASSED;
    c->family = MGR_HF_BIT(c->class);
    c->same = true;
    c->result = json_object();
    c->derived = json_object();
    return rc == MGR_OK ? pass(c) : rc;
}

static int compose(composition *c, const mgr_tokenizer_facts *tokens)
{
    const json_t *const keys = mgr_huggingface_keys_of(c->base, c->model);
    c->class = mgr_huggingface_pick(c->out->config, c->model, text_of(keys, "model_type"));
    c->family = MGR_HF_BIT(c->class);
    MGR_TRY(c->class == MGR_HF_PASSED ? compose_passed(c)
            : c->model->tower         ? compose_around(c, tokens)
                                      : compose_known(c, tokens));
    return override(c);
}

int mgr_huggingface_compose(const mgr_output *out, const mgr_tokenizer_facts *tokens,
                            json_t **config, mgr_remarks *remarks, mgr_err *err)
{
    composition c = {
        .out = out, .model = &out->layout->tensors->model, .remarks = remarks, .err = err};
    int rc = mgr_huggingface_base(out->origin, &c.base, err);
    if (rc == MGR_OK)
        rc = compose(&c, tokens);
    json_decref(c.base);
    json_decref(c.derived);
    json_decref(c.parts);
    if (rc == MGR_OK)
        *config = c.result;
    else
        json_decref(c.result);
    return rc;
}
