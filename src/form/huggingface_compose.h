/*
 * config.json of an output: what the model says, over what the source's config.json says. Fields of
 * the source that the output's class knows are carried as they are, unless the model says
 * otherwise; what is set, altered or dropped becomes a remark.
 */
#ifndef MGR_FORM_HUGGINGFACE_COMPOSE_H
#define MGR_FORM_HUGGINGFACE_COMPOSE_H

#include <jansson.h>

#include "form/huggingface_class.h"
#include "form/target.h"
#include "form/tokenizer.h"
#include "model/huggingface.h"

/* Make *config, the caller's to decref. `remarks` may be NULL. Local. */
int mgr_huggingface_compose(const mgr_output *out, const mgr_tokenizer_facts *tokens,
                            json_t **config, mgr_remarks *remarks, mgr_err *err) MGR_NODISCARD;

/* What follows from the model alone, and what a class has beside it where the source does not say.
 * `class` computes `model`. The caller's to decref; NULL without memory. */
json_t *mgr_huggingface_derived(const mgr_model *model, mgr_hf_class class, mgr_dtype dtype);
json_t *mgr_huggingface_defaults(const mgr_model *model, mgr_hf_class class);
/* layer_types, and max_window_layers if `first_too`. */
void mgr_huggingface_window_layers(json_t *object, const mgr_model *model, bool first_too);

#endif
