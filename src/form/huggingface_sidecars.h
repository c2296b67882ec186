/*
 * The small files of a Hugging Face directory: config.json, generation_config.json, the
 * tokenizer's, and the index where there are several shards. Rank 0 only.
 */
#ifndef MGR_FORM_HUGGINGFACE_SIDECARS_H
#define MGR_FORM_HUGGINGFACE_SIDECARS_H

#include <jansson.h>

#include "form/target.h"

/* As mgr_target_format.sidecars, for the class that mgr_huggingface_class names. */
int mgr_huggingface_sidecars(const mgr_output *target, const char *directory,
                             mgr_err *err) MGR_NODISCARD;

/* As mgr_target_format.review: what becomes of the source's fields, and what older releases do not
 * do. */
int mgr_huggingface_review(const mgr_output *output, mgr_remarks *remarks,
                           mgr_err *err) MGR_NODISCARD;

/* Refuse a model that no class computes, naming its features and the targets that can hold it:
 * MGR_ERR_UNSUPPORTED. Local. */
/* "LayerNorm, GELU and learned positions"; returns out. */
const char *mgr_huggingface_features(const mgr_model *model, char *out, size_t size);

int mgr_huggingface_check(const char *format, const mgr_model *model, mgr_err *err) MGR_NODISCARD;

/* The same but for the index; *config is config.json's content, the caller's to decref. */
int mgr_huggingface_small_files(const mgr_output *target, const char *directory, json_t **config,
                                mgr_err *err) MGR_NODISCARD;

#endif
