/*
 * mgr_target_check: can a format hold a model, and if not, which can?
 */
#include <stdio.h>
#include <string.h>

#include "cfg/value.h"
#include "core/mem.h"
#include "form/target.h"
#include "model/mtp.h"

/* Was a dense model made a mixture? */
static bool is_new(const mgr_origin *origin, const mgr_model *model)
{
    return origin && origin->model && !origin->model->experts && model->experts;
}

/* Is it known whole, but for layers for multi-token prediction, which may be left out? */
static bool is_beside(const mgr_model *model)
{
    return model->mtp && !model->ffns_only && !model->tower;
}

/* Models of Megatron-Core and of transformers that have one name and do not compute the same: T5's
 * attention of transformers divides by nothing, and a tied head's input by the root of d_model
 * (modeling_{t5,switch_transformers}.py; models/T5/t5_model.py and
 * transformer/dot_product_attention.py of megatron-core 0.19, in which no option says either). */
static int refuse_kin(const mgr_target_format *format, const mgr_model *model, mgr_err *err)
{
    if (!model->kin)
        return mgr_fail(err, MGR_ERR_UNSUPPORTED,
                        "target format '%s' cannot hold a T5 of transformers: Megatron-Core's "
                        "divides q times k by the root of kv_channels and never scales what its "
                        "decoder gives, so that weights would have to change",
                        format->name);
    return mgr_fail(err, MGR_ERR_UNSUPPORTED,
                    "target format '%s' cannot hold %s, which no class of transformers computes: "
                    "its attention, biases and norms are others",
                    format->name,
                    model->kin == MGR_KIN_T5 ? "Megatron-Core's T5"
                                             : "Megatron-Core's CLIPViTModel");
}

/* What is known by its name alone is stored by that. */
static int check_opaque(const mgr_target_format *format, const mgr_model *model, mgr_err *err)
{
    if (!mgr_model_is_part(model) || (model->kin ? format->kin : format->opaque))
        return MGR_OK;
    if (model->kin || (format->kin && model->encoder_layers))
        return refuse_kin(format, model, err);
    mgr_fail(err, MGR_ERR_UNSUPPORTED, "target format '%s' cannot express a model with %s%s",
             format->name, mgr_model_feature(model, 0),
             model->ffns_only ? ", of which nothing but the FFNs is understood" : "");
    return is_beside(model) ? mgr_hint(err, MGR_MTP_HINT) : err->code;
}

/* What can be left out is said last: without it the rest must be taken. */
static int check_all(const mgr_target_format *format, const mgr_config *config,
                     const mgr_model *model, mgr_err *err)
{
    if (!is_beside(model))
        MGR_TRY(check_opaque(format, model, err));
    MGR_TRY(format->check(config, model, err));
    return check_opaque(format, model, err);
}

/* Would this format take the model, with its own keys at their defaults? */
static bool takes(const mgr_target_format *format, mgr_config *plain, const mgr_origin *origin,
                  const mgr_model *model)
{
    mgr_err ignored = MGR_ERR_INIT;
    mgr_model own = *model;
    for (size_t i = 0; i < format->keys.n; i++)
        if (format->keys.keys[i].fallback &&
            mgr_value_default(plain, &format->keys.keys[i], &ignored) != MGR_OK)
            return false;
    snprintf(plain->target.format, sizeof plain->target.format, "%s", format->name);
    if (format->complete && is_new(origin, model))
        format->complete(plain, &own);
    return check_all(format, plain, &own, &ignored) == MGR_OK;
}

/* Where it is the model that is refused, and not a key: which formats hold it? */
static void hint_formats(const mgr_target_format *refused, mgr_config *plain,
                         const mgr_origin *origin, const mgr_model *model, mgr_err *err)
{
    char names[160] = "";
    size_t used = 0;
    if (takes(refused, plain, origin, model))
        return;
    for (size_t i = 0; mgr_target_at(i) && used < sizeof names; i++)
        if (takes(mgr_target_at(i), plain, origin, model))
            used += (size_t)snprintf(names + used, sizeof names - used, "%s%s", used ? ", " : "",
                                     mgr_target_at(i)->name);
    if (used)
        mgr_hint(err, "target formats that hold this model: %s", names);
}

int mgr_target_check(const mgr_target_format *format, const mgr_config *config,
                     const mgr_origin *origin, mgr_model *model, mgr_err *err)
{
    const mgr_model before = *model;
    mgr_config *plain = NULL;
    mgr_err ignored = MGR_ERR_INIT;
    if (format->complete && is_new(origin, model))
        format->complete(config, model);
    const int rc = check_all(format, config, model, err);
    if (rc != MGR_OK && mgr_alloc(&plain, 1, sizeof *plain, &ignored) == MGR_OK) {
        *plain = *config;
        hint_formats(format, plain, origin, &before, err);
        mgr_free(plain);
    }
    return rc;
}
