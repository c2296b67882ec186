/* Args of a Megatron source on their way to a Megatron target: kept as they are, but for what the
 * job changes and for what belongs to the source's own run. */
#include <stdio.h>
#include <string.h>

#include "core/mem.h"
#include "form/megatron_write.h"
#include "model/megatron_fields.h"
#include "model/megatron_hybrid.h"

/* Whose args are read: the first file that has some, of the first stage and tensor-parallel rank.
 */
static uint32_t file_with_args(const mgr_catalogue *cat)
{
    for (size_t i = 0; i < cat->n_attrs; i++)
        if (mgr_has_prefix(cat->attrs[i].key, MGR_ARGS))
            return cat->attrs[i].file;
    return MGR_NONE;
}

static mgr_megatron_arg *find(const mgr_megatron_arg_list *list, const char *name)
{
    for (size_t i = 0; i < list->n; i++)
        if (list->list[i].fate != MGR_REMARK_DROPPED && strcmp(list->list[i].name, name) == 0)
            return &list->list[i];
    return NULL;
}

const mgr_attr *mgr_megatron_args_get(const mgr_megatron_arg_list *list, const char *name)
{
    const mgr_megatron_arg *const a = find(list, name);
    return a ? &a->value : NULL;
}

static bool one_of(const char *name, const char *const *names, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (strcmp(names[i], name) == 0)
            return true;
    return false;
}

/* Args of ours that no job changes: whatever the source says of them holds for the output, too. */
static bool stays(const mgr_megatron_args *args, const char *name)
{
    static const char *const always[] = {"num_query_groups",       "seq_length",
                                         "add_position_embedding", "use_rotary_position_embeddings",
                                         "rotary_percent",         "rotary_interleaved",
                                         "rope_scaling_factor",    "apply_layernorm_1p",
                                         "gated_linear_unit",      "attention_dropout",
                                         "hidden_dropout",         "data_parallel_random_init"};
    static const char *const unless_upcycled[] = {
        "consumed_train_samples", "skipped_train_samples", "consumed_valid_samples",
        "no_rope_freq",           "window_size",           "window_attn_skip_freq"};
    return one_of(name, always, sizeof always / sizeof always[0]) ||
           (strcmp(args->config->mode, "reshard") == 0 &&
            one_of(name, unless_upcycled, sizeof unless_upcycled / sizeof unless_upcycled[0]));
}

/* Args of ours that say nothing where the source does well without them. */
static bool is_spare(const mgr_megatron_args *args, const char *name)
{
    return strcmp(name, "apply_layernorm_1p") == 0 ||
           (strcmp(name, "gated_linear_unit") == 0 &&
            args->model->activation != MGR_ACTIVATION_GEGLU);
}

static bool is_number(const mgr_attr *a)
{
    return a->kind == MGR_ATTR_BOOL || a->kind == MGR_ATTR_INT || a->kind == MGR_ATTR_REAL;
}

static double number(const mgr_attr *a)
{
    return a->kind == MGR_ATTR_REAL ? a->r : (double)a->i;
}

static bool equal(const mgr_attr *a, const mgr_attr *b)
{
    if (is_number(a) && is_number(b))
        return number(a) >= number(b) && number(a) <= number(b);
    return a->kind == b->kind &&
           (a->kind == MGR_ATTR_NULL || (a->text && b->text && strcmp(a->text, b->text) == 0));
}

/* Can a restricted unpickler make the value? */
static bool is_plain(const mgr_attr *a)
{
    return a->kind != MGR_ATTR_OTHER &&
           (a->kind != MGR_ATTR_SYMBOL || mgr_has_prefix(a->text, "torch."));
}

static int append(mgr_megatron_arg_list *out, const mgr_attr *from, const char *name,
                  const char *dropped, mgr_err *err)
{
    const mgr_megatron_arg entry = {.name = name,
                                    .value = *from,
                                    .was = from,
                                    .fate = dropped ? MGR_REMARK_DROPPED : MGR_REMARK_CARRIED,
                                    .why = dropped};
    MGR_TRY(mgr_grow(&out->list, &out->cap, out->n + 1, sizeof entry, err));
    out->list[out->n++] = entry;
    return MGR_OK;
}

/* Args that a dense model may have and that change a mixture, of which ours says nothing. */
static bool is_of_mixtures(const char *name)
{
    static const char *const names[] = {
        "moe_router_topk_scaling_factor", "moe_router_num_groups", "moe_router_group_topk",
        "moe_shared_expert_intermediate_size", "moe_shared_expert_gate"};
    return one_of(name, names, sizeof names / sizeof names[0]);
}

/* Args about experts, of a source that has some. */
static bool is_of_experts(const mgr_attr *from)
{
    const char *const name = from->key + strlen(MGR_ARGS);
    const bool count = strcmp(name, "num_experts") == 0 || strcmp(name, "num_moe_experts") == 0;
    return mgr_has_prefix(name, "moe_") || (count && from->kind == MGR_ATTR_INT);
}

static bool has_experts(const mgr_catalogue *cat, uint32_t file)
{
    const mgr_attr *const a = mgr_catalogue_attr(cat, file, MGR_ARGS "num_experts");
    return a && a->kind == MGR_ATTR_INT && a->i > 0;
}

static int carry(const mgr_megatron_args *args, const mgr_attr *from, mgr_megatron_arg_list *out,
                 mgr_err *err)
{
    const char *const name = from->key + strlen(MGR_ARGS);
    mgr_megatron_arg *const ours = find(out, name);
    if (ours) {
        const bool keep = equal(from, &ours->value) ||
                          (stays(args, name) && from->kind != MGR_ATTR_NULL && is_plain(from));
        ours->was = from;
        ours->fate = keep ? MGR_REMARK_CARRIED : MGR_REMARK_ALTERED;
        if (keep)
            ours->value = *from;
        return MGR_OK;
    }
    if (args->model->experts == 0 && is_of_experts(from) &&
        has_experts(args->origin->cat, from->file)) /* they were put together */
        return append(out, from, name, "the model is dense now", err);
    if (strcmp(args->config->mode, "upcycle") == 0 && is_of_mixtures(name) &&
        !mgr_attr_is_nothing(from))
        return append(out, from, name, "the router of an upcycled model is another", err);
    if (strcmp(name, "moe_layer_freq") == 0)
        return append(out, from, name,
                      args->hybrid ? "a HybridModel's pattern of layers is in its place"
                                   : "it says how a dense model's layers are stored",
                      err);
    if (strcmp(name, "moe_grouped_gemm") == 0 &&
        strcmp(args->origin->format, "megatron-torch") == 0) /* and not ours: torch_dist */
        return append(out, from, name, "torch_dist suits both kinds of experts", err);
    if (strcmp(name, "spec") == 0 && !args->hybrid && mgr_megatron_hybrid_is(args->origin->cat))
        return append(out, from, name, "it is a HybridModel's", err);
    if (mgr_megatron_field(name).rule == MGR_FIELD_SPLIT)
        return append(out, from, name, "it belongs to the source's own split or run", err);
    return append(out, from, name, is_plain(from) ? NULL : "a restricted unpickler refuses it",
                  err);
}

/* `spare` args that the source does not have are not set. */
static void leave_out(const mgr_megatron_args *args, mgr_megatron_arg_list *out)
{
    size_t n = 0;
    for (size_t i = 0; i < out->n; i++)
        if (out->list[i].fate != MGR_REMARK_SET || !is_spare(args, out->list[i].name))
            out->list[n++] = out->list[i];
    out->n = n;
}

int mgr_megatron_args_make(const mgr_megatron_args *args, mgr_megatron_arg_list *out, mgr_err *err)
{
    const mgr_catalogue *const cat = args->origin ? args->origin->cat : NULL;
    const uint32_t file = cat ? file_with_args(cat) : MGR_NONE;
    MGR_TRY(mgr_megatron_args_own(args, out, err));
    if (file == MGR_NONE)
        return MGR_OK;
    for (size_t i = 0; i < cat->n_attrs; i++)
        if (cat->attrs[i].file == file && mgr_has_prefix(cat->attrs[i].key, MGR_ARGS))
            MGR_TRY(carry(args, &cat->attrs[i], out, err));
    leave_out(args, out);
    return MGR_OK;
}

void mgr_megatron_args_clear(mgr_megatron_arg_list *list)
{
    mgr_free(list->list);
    mgr_arena_clear(&list->arena);
    *list = (mgr_megatron_arg_list){0};
}

int mgr_megatron_args_review(const mgr_megatron_arg_list *list, mgr_remarks *remarks, mgr_err *err)
{
    for (size_t i = 0; i < list->n; i++) {
        const mgr_megatron_arg *const a = &list->list[i];
        char was[160], now[160];
        const bool gone = a->fate == MGR_REMARK_DROPPED;
        const mgr_remark remark = {
            .kind = a->fate,
            .field = a->name,
            .was = a->was ? mgr_attr_text(a->was, was, sizeof was) : NULL,
            .now = gone ? NULL : mgr_attr_text(&a->value, now, sizeof now),
            .why = a->why,
        };
        MGR_TRY(mgr_remarks_add(remarks, &remark, err));
    }
    return MGR_OK;
}

/* What only a Megatron target can have ends with any other. */
static int end_arg(const mgr_attr *a, const mgr_config *config, mgr_remarks *remarks, mgr_err *err)
{
    char was[160];
    const char *const name = a->key + strlen(MGR_ARGS);
    const mgr_remark remark = {.kind = MGR_REMARK_DROPPED,
                               .field = a->key,
                               .was = mgr_attr_text(a, was, sizeof was),
                               .why = "an arg that only Megatron reads"};
    if (mgr_has_prefix(config->target.format, "megatron-") ||
        mgr_megatron_field(name).rule != MGR_FIELD_INERT || mgr_attr_is_nothing(a))
        return MGR_OK;
    return mgr_remarks_add(remarks, &remark, err);
}

static int say_unknown(const mgr_attr *a, mgr_remarks *remarks, mgr_err *err)
{
    char was[160];
    const mgr_remark remark = {
        .kind = MGR_REMARK_UNKNOWN, .field = a->key, .was = mgr_attr_text(a, was, sizeof was)};
    return mgr_megatron_field(a->key + strlen(MGR_ARGS)).rule == MGR_FIELD_UNKNOWN
               ? mgr_remarks_add(remarks, &remark, err)
               : MGR_OK;
}

/* See rope_scaling in model/megatron_args.c. */
static int say_rope(const mgr_catalogue *cat, uint32_t file, mgr_remarks *remarks, mgr_err *err)
{
    const mgr_attr *const on = mgr_catalogue_attr(cat, file, MGR_ARGS "use_rope_scaling");
    const mgr_attr *const factor = mgr_catalogue_attr(cat, file, MGR_ARGS "rope_scaling_factor");
    const mgr_attr taken = {.kind = MGR_ATTR_REAL, .r = MGR_MEGATRON_ROPE_FACTOR};
    if (!on || on->i == 0 || !factor || equal(factor, &taken))
        return MGR_OK;
    return mgr_remarks_say(
        remarks, MGR_REMARK_WARNING, err,
        "args.rope_scaling_factor is %g, but Megatron-LM's trainers compute with "
        "%g whatever it says, and so does the output",
        number(factor), MGR_MEGATRON_ROPE_FACTOR);
}

int mgr_megatron_source_review(const mgr_catalogue *cat, const mgr_config *config,
                               mgr_remarks *remarks, mgr_err *err)
{
    const uint32_t file = file_with_args(cat);
    for (size_t i = 0; i < cat->n_attrs; i++) {
        const mgr_attr *const a = &cat->attrs[i];
        if (a->file != file || !mgr_has_prefix(a->key, MGR_ARGS))
            continue;
        MGR_TRY(say_unknown(a, remarks, err));
        MGR_TRY(end_arg(a, config, remarks, err));
    }
    return say_rope(cat, file, remarks, err);
}
