/*
 * Which class of transformers an output is for: the one that target.class names, else that of the
 * source where it computes the model, else the first of huggingface_family.h that does.
 */
#ifndef MGR_FORM_HUGGINGFACE_CLASS_H
#define MGR_FORM_HUGGINGFACE_CLASS_H

#include <jansson.h>

#include "form/target.h"
#include "model/huggingface_family.h"

/* The text of a source's config.json, among its attributes. */
#define MGR_HF_CONFIG_TEXT "text of config.json"

/* Where a Megatron checkpoint keeps it, for the way back; from the iteration's folder. */
#define MGR_HF_KEPT_CONFIG "tokenizer/config.json"

/* The source's config.json: read, or kept beside its tokenizer; *base stays NULL without one. The
 * caller's to decref. `origin` may be NULL. Local. */
int mgr_huggingface_base(const mgr_origin *origin, json_t **base, mgr_err *err) MGR_NODISCARD;

/* Of it the object that the model's keys are in: it, or that of the decoder of a vision-language
 * model. Borrowed. */
json_t *mgr_huggingface_keys_of(json_t *base, const mgr_model *model);

/* Complete a new mixture to be of the class that target.class names, else of the first that it can
 * become one of. Pure. */
void mgr_huggingface_fill(const mgr_config *config, mgr_model *model);

/* The class, where the source's is of model_type `type`, "" if there is none. Pure. */
mgr_hf_class mgr_huggingface_pick(const mgr_config *config, const mgr_model *model,
                                  const char *type);

/* The same for a source that is not parsed yet. Local. */
int mgr_huggingface_choose(const mgr_config *config, const mgr_origin *origin,
                           const mgr_model *model, mgr_hf_class *class, mgr_err *err) MGR_NODISCARD;

#endif
