#include "model/megatron_hybrid.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/megatron.h"

#define MOST_SYMBOLS (MGR_HYBRID_LAYERS * MGR_MAX_LAYERS)
#define ATTENTION '*'
#define DENSE '-'
#define EXPERTS 'E'
#define NOTHING '.' /* a number between others that no key has */

/* ---- symbols ---- */

/* hybrid_layer_allocation.py, Symbols; brackets came after core 0.19. */
static const struct {
    char symbol;
    const char *what;
} others[] = {
    {'M', "Mamba layers"},
    {'G', "gated delta net layers"},
    {'D', "layers of DeepSeek's sparse attention"},
    {'+', "multi-latent attention"},
    {'[', "layers in groups"},
};

/* What a key below "decoder.layers.<i>." says of its layer; the first that fits. */
static const struct {
    const char *part;
    char symbol;
} shown[] = {
    {"mixer.", 'M'},
    {"self_attention.in_proj.", 'G'},
    {"self_attention.conv1d.", 'G'},
    {"self_attention.core_attention.indexer.", 'D'},
    {"self_attention.linear_q_", '+'},
    {"self_attention.linear_kv_", '+'},
    {"self_attention.linear_qkv.", ATTENTION},
    {"mlp.router.", EXPERTS},
    {"mlp.linear_fc2.", DENSE},
};

/* Symbol i of a pattern of text; what is behind a '/' are MTP layers, '|' is between stages. */
static void take_pattern(const char *text, char *out)
{
    size_t n = 0;
    for (; *text && *text != '/' && n + 1 < MOST_SYMBOLS; text++)
        if (*text != '|')
            out[n++] = *text;
    out[n] = '\0';
}

/* The same from the keys. DeepSeek's sparse attention has all keys of a multi-latent one. */
static void note_key(const char *name, char *out, size_t *n)
{
    const char *const at = strstr(name, MGR_MEGATRON_LAYERS);
    char *end;
    if (!at)
        return;
    const unsigned long layer = strtoul(at + strlen(MGR_MEGATRON_LAYERS), &end, 10);
    if (*end != '.' || layer + 1 >= MOST_SYMBOLS)
        return;
    for (size_t i = 0; i < sizeof shown / sizeof shown[0]; i++) {
        if (!mgr_has_prefix(end + 1, shown[i].part))
            continue;
        for (; *n <= layer; ++*n)
            out[*n] = NOTHING;
        if (out[layer] == NOTHING || shown[i].symbol == 'D')
            out[layer] = shown[i].symbol;
        return;
    }
}

static void derive_pattern(const mgr_catalogue *cat, char *out)
{
    size_t n = 0;
    for (size_t i = 0; i < cat->n_stored; i++)
        note_key(cat->stored[i].name, out, &n);
    out[n] = '\0';
}

/* ---- args ---- */

/* hybrid_override_pattern is the name up to core 0.16. */
static const mgr_attr *pattern_arg(const mgr_catalogue *cat)
{
    for (size_t i = 0; i < cat->n_attrs; i++) {
        const mgr_attr *const a = &cat->attrs[i];
        if (a->kind == MGR_ATTR_TEXT && a->text[0] &&
            (strcmp(a->key, MGR_ARGS "hybrid_layer_pattern") == 0 ||
             strcmp(a->key, MGR_ARGS "hybrid_override_pattern") == 0))
            return a;
    }
    return NULL;
}

bool mgr_megatron_hybrid_is(const mgr_catalogue *cat)
{
    if (pattern_arg(cat))
        return true;
    for (size_t i = 0; i < cat->n_stored; i++)
        if (strstr(cat->stored[i].name, "decoder.final_norm."))
            return true;
    return false;
}

/* ---- what is refused ---- */

static int check_symbols(const mgr_catalogue *cat, const char *pattern, const char *from,
                         mgr_err *err)
{
    const char *const path = cat->n_files ? cat->files[0].path : "";
    char text[80];
    mgr_printable(pattern, strlen(pattern), text, sizeof text);
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++)
        if (strchr(pattern, others[i].symbol))
            return mgr_fail(err, MGR_ERR_UNSUPPORTED,
                            "'%s' has %s ('%c' in the hybrid layers '%s' of its %s), which are not "
                            "supported",
                            path, others[i].what, others[i].symbol, text, from);
    const size_t n = strlen(pattern);
    bool in_turn = n > 0 && n % MGR_HYBRID_LAYERS == 0;
    for (size_t i = 0; in_turn && i < n; i += MGR_HYBRID_LAYERS)
        in_turn = pattern[i] == ATTENTION && (pattern[i + 1] == DENSE || pattern[i + 1] == EXPERTS);
    if (in_turn)
        return MGR_OK;
    return mgr_fail(err, MGR_ERR_UNSUPPORTED,
                    "'%s' has the hybrid layers '%s', by its %s: supported are those of a "
                    "transformer, attention ('*') and an FFN ('-' or 'E') in turn",
                    path, text, from);
}

int mgr_megatron_hybrid_check(const mgr_catalogue *cat, mgr_err *err)
{
    char found[MOST_SYMBOLS], said[MOST_SYMBOLS], shown_text[80], said_text[80];
    const mgr_attr *const arg = pattern_arg(cat);
    derive_pattern(cat, found);
    if (arg) {
        take_pattern(arg->text, said);
        MGR_TRY(check_symbols(cat, said, arg->key, err));
    }
    if (arg && strcmp(said, found) != 0)
        return mgr_fail(err, MGR_ERR_FORMAT,
                        "%s of '%s' is '%s', but the keys have the layers '%s'", arg->key,
                        cat->files[arg->file].path,
                        mgr_printable(arg->text, strlen(arg->text), said_text, sizeof said_text),
                        mgr_printable(found, strlen(found), shown_text, sizeof shown_text));
    return check_symbols(cat, found, "keys", err);
}

/* ---- layers ---- */

/* Of the half with the attention? The others are of an FFN, or of no layer. */
static bool is_attention(mgr_role role)
{
    switch (role) {
    case MGR_ROLE_ATTN_NORM:
    case MGR_ROLE_ATTN_NORM_BIAS:
    case MGR_ROLE_Q:
    case MGR_ROLE_K:
    case MGR_ROLE_V:
    case MGR_ROLE_O:
    case MGR_ROLE_Q_BIAS:
    case MGR_ROLE_K_BIAS:
    case MGR_ROLE_V_BIAS:
    case MGR_ROLE_O_BIAS:
    case MGR_ROLE_Q_NORM:
    case MGR_ROLE_K_NORM:
    case MGR_ROLE_Q_NORM_BIAS:
    case MGR_ROLE_K_NORM_BIAS:
        return true;
    default:
        return false;
    }
}

uint64_t mgr_megatron_hybrid_layer(mgr_role role, uint64_t layer)
{
    return MGR_HYBRID_LAYERS * layer + (is_attention(role) ? 0 : 1);
}

int mgr_megatron_hybrid_pattern(const mgr_model *model, mgr_buf *out, mgr_err *err)
{
    for (uint64_t l = 0; l < model->layers; l++)
        MGR_TRY(
            mgr_buf_fmt(out, err, "%c%c", ATTENTION, mgr_model_is_moe(model, l) ? EXPERTS : DENSE));
    return MGR_OK;
}
