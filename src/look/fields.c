#include "look/fields.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "model/megatron.h"
#include "model/megatron_fields.h"

typedef enum field_kind { SIZE, FLAG, NUMBER, CHOICE, TOKEN } field_kind;

static const char norms[] = "RMSNorm|LayerNorm";
static const char activations[] = "SwiGLU|GEGLU|GELU|squared ReLU|ReLU|gated|ungated";
static const char positions[] = "RoPE|learned";
static const char scores[] = "softmax|sigmoid";
static const char ropes[] = "plain|linear|llama3";

static const struct {
    const char *name;
    field_kind kind;
    size_t offset;
    const char *choices;
} fields[] = {
    {"layers", SIZE, offsetof(mgr_model, layers), NULL},
    {"hidden size", SIZE, offsetof(mgr_model, hidden), NULL},
    {"heads", SIZE, offsetof(mgr_model, heads), NULL},
    {"key and value heads", SIZE, offsetof(mgr_model, kv_groups), NULL},
    {"head width", SIZE, offsetof(mgr_model, head_dim), NULL},
    {"ffn size", SIZE, offsetof(mgr_model, ffn), NULL},
    {"vocabulary", SIZE, offsetof(mgr_model, vocab), NULL},
    {"experts", SIZE, offsetof(mgr_model, experts), NULL},
    {"experts of a token", SIZE, offsetof(mgr_model, top_k), NULL},
    {"positions", SIZE, offsetof(mgr_model, max_positions), NULL},
    {"sliding window", SIZE, offsetof(mgr_model, window), NULL},
    {"tied embeddings", FLAG, offsetof(mgr_model, tied), NULL},
    {"norms of q and k", FLAG, offsetof(mgr_model, qk_norm), NULL},
    {"norms of q and k over all heads", FLAG, offsetof(mgr_model, qk_norm_full), NULL},
    {"router's softmax before top-k", FLAG, offsetof(mgr_model, router.unnormalised), NULL},
    {"router's scores", CHOICE, offsetof(mgr_model, router.score), scores},
    {"router's selection bias", FLAG, offsetof(mgr_model, router.selection_bias), NULL},
    {"router's scaling factor", NUMBER, offsetof(mgr_model, router.scale), NULL},
    {"router's groups", SIZE, offsetof(mgr_model, router.groups), NULL},
    {"router's groups of a token", SIZE, offsetof(mgr_model, router.top_groups), NULL},
    {"router's scores of a group", SIZE, offsetof(mgr_model, router.group_best), NULL},
    {"shared expert's size", SIZE, offsetof(mgr_model, shared_ffn), NULL},
    {"gate of the shared expert", FLAG, offsetof(mgr_model, shared_switch), NULL},
    {"RoPE's part of the head", NUMBER, offsetof(mgr_model, rotary_part), NULL},
    {"norm", CHOICE, offsetof(mgr_model, norm), norms},
    {"activation", CHOICE, offsetof(mgr_model, activation), activations},
    {"position embeddings", CHOICE, offsetof(mgr_model, positions), positions},
    {"RoPE scaling", CHOICE, offsetof(mgr_model, rope.kind), ropes},
    {"RoPE scaling factor", NUMBER, offsetof(mgr_model, rope.factor), NULL},
    {"RoPE scaling's low factor", NUMBER, offsetof(mgr_model, rope.low_freq), NULL},
    {"RoPE scaling's high factor", NUMBER, offsetof(mgr_model, rope.high_freq), NULL},
    {"RoPE scaling's first positions", SIZE, offsetof(mgr_model, rope.original_positions), NULL},
    {"RoPE base", NUMBER, offsetof(mgr_model, rotary_base), NULL},
    {"RoPE between neighbours", FLAG, offsetof(mgr_model, rope_interleaved), NULL},
    {"norms behind attention and FFN", FLAG, offsetof(mgr_model, post_norm), NULL},
    {"embedding multiplier", NUMBER, offsetof(mgr_model, embedding_multiplier), NULL},
    {"residual multiplier", NUMBER, offsetof(mgr_model, residual_multiplier), NULL},
    {"attention multiplier", NUMBER, offsetof(mgr_model, attention_multiplier), NULL},
    {"divisor of the logits", NUMBER, offsetof(mgr_model, logits_divisor), NULL},
    {"norm epsilon", NUMBER, offsetof(mgr_model, norm_epsilon), NULL},
    {"first token", TOKEN, offsetof(mgr_model, bos_token_id), NULL},
    {"last token", TOKEN, offsetof(mgr_model, eos_token_id), NULL},
};

/* The value for people; false where nobody knows it. */
static bool show(const mgr_model *m, size_t i, char *out, size_t size)
{
    const char *const at = (const char *)m + fields[i].offset;
    const char *word = fields[i].choices;
    unsigned choice;
    switch (fields[i].kind) {
    case SIZE:
        snprintf(out, size, "%llu", (unsigned long long)*(const uint64_t *)(const void *)at);
        return true;
    case FLAG:
        snprintf(out, size, "%s", *(const bool *)at ? "yes" : "no");
        return true;
    case NUMBER:
        snprintf(out, size, "%.9g", *(const double *)(const void *)at);
        return true;
    case CHOICE:
        memcpy(&choice, at, sizeof choice);
        for (; choice > 0; choice--)
            word += strcspn(word, "|") + 1;
        snprintf(out, size, "%.*s", (int)strcspn(word, "|"), word);
        return true;
    case TOKEN:
        snprintf(out, size, "%lld", (long long)*(const int64_t *)(const void *)at);
        return *(const int64_t *)(const void *)at >= 0;
    }
    return false;
}

/* Where every layer has experts, a format need not say how wide a dense FFN would be. */
static bool has_dense(const mgr_model *model)
{
    return mgr_model_moe_layers(model) < model->layers;
}

static int compare_models(const mgr_model *a, const mgr_model *b, mgr_fields_diff *out,
                          mgr_err *err)
{
    char x[64], y[64];
    const bool rope = a->positions == MGR_POSITIONS_ROPE && b->positions == MGR_POSITIONS_ROPE;
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++) {
        if ((strncmp(fields[i].name, "RoPE", 4) == 0 && !rope) ||
            (fields[i].offset == offsetof(mgr_model, ffn) && !(has_dense(a) && has_dense(b))) ||
            !show(a, i, x, sizeof x) || !show(b, i, y, sizeof y))
            continue;
        out->compared++;
        if (strcmp(x, y) == 0)
            continue;
        out->differ++;
        MGR_TRY(mgr_buf_fmt(&out->lines, err, "  field     %s: %s and %s\n", fields[i].name, x, y));
    }
    return MGR_OK;
}

bool mgr_fields_differ(const mgr_model *a, const mgr_model *b, char *out, size_t size)
{
    char x[64], y[64];
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++) {
        if (fields[i].kind == TOKEN || fields[i].offset == offsetof(mgr_model, max_positions) ||
            !show(a, i, x, sizeof x) || !show(b, i, y, sizeof y) || strcmp(x, y) == 0)
            continue;
        snprintf(out, size, "%s: %s and %s", fields[i].name, y, x);
        return true;
    }
    return false;
}

/* The first file that has args. */
static uint32_t args_file(const mgr_catalogue *cat)
{
    for (size_t i = 0; i < cat->n_attrs; i++)
        if (mgr_has_prefix(cat->attrs[i].key, MGR_ARGS))
            return cat->attrs[i].file;
    return MGR_NONE;
}

/* Of an arg that may change what is computed and that the model above does not show. */
static int compare_arg(const mgr_attr *a, const mgr_attr *b, mgr_fields_diff *out, mgr_err *err)
{
    char x[80], y[80];
    const mgr_field f = mgr_megatron_field(a->key + strlen(MGR_ARGS));
    const bool same = strcmp(mgr_attr_text(a, x, sizeof x), mgr_attr_text(b, y, sizeof y)) == 0;
    if (f.rule == MGR_FIELD_SPLIT || f.rule == MGR_FIELD_READ)
        return MGR_OK;
    if (f.rule == MGR_FIELD_INERT) {
        out->inert += !same;
        return MGR_OK;
    }
    out->compared++;
    if (same || (f.neutral && mgr_megatron_is_neutral(&f, a) && mgr_megatron_is_neutral(&f, b)))
        return MGR_OK;
    out->differ++;
    mgr_printable(x, strlen(x), x, sizeof x);
    mgr_printable(y, strlen(y), y, sizeof y);
    return mgr_buf_fmt(&out->lines, err, "  field     args.%s: %s and %s\n", f.name, x, y);
}

/* An arg that one side does not have is None there; `mirrored`: only those that `from` alone has.
 */
static int compare_args(const mgr_catalogue *from, const mgr_catalogue *to, bool mirrored,
                        mgr_fields_diff *out, mgr_err *err)
{
    const uint32_t one = args_file(from), other = args_file(to);
    static const mgr_attr none = {.kind = MGR_ATTR_NULL};
    for (size_t i = 0; i < from->n_attrs; i++) {
        const mgr_attr *const a = &from->attrs[i];
        if (a->file != one || !mgr_has_prefix(a->key, MGR_ARGS))
            continue;
        const mgr_attr *const b = mgr_catalogue_attr(to, other, a->key);
        if (!mirrored || !b)
            MGR_TRY(compare_arg(a, b ? b : &none, out, err));
    }
    return MGR_OK;
}

int mgr_fields_compare(const mgr_view *a, const mgr_view *b, mgr_fields_diff *out, mgr_err *err)
{
    const bool in_a = args_file(&a->cat) != MGR_NONE, in_b = args_file(&b->cat) != MGR_NONE;
    MGR_TRY(compare_models(&a->tensors.model, &b->tensors.model, out, err));
    out->args_on_one_side = in_a != in_b;
    if (!in_a || !in_b)
        return MGR_OK;
    MGR_TRY(compare_args(&a->cat, &b->cat, false, out, err));
    return compare_args(&b->cat, &a->cat, true, out, err);
}
