/*
 * What to know of a Hugging Face or HDF5 directory before one goes on with it, and how: which
 * releases of transformers do what config.json says, and the lines for transformers, moe-recipes
 * and this program.
 */
#ifndef MGR_FORM_HUGGINGFACE_NEXT_H
#define MGR_FORM_HUGGINGFACE_NEXT_H

#include <jansson.h>

#include "form/target.h"

/* Warnings and lines into `remarks`; `config` is the output's config.json. Rank 0 only. */
int mgr_huggingface_next(const mgr_output *out, const json_t *config, mgr_remarks *remarks,
                         mgr_err *err) MGR_NODISCARD;

#endif
