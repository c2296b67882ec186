/*
 * Small files beside the tensors: JSON and the tokenizer. All on rank 0 only.
 */
#ifndef MGR_FORM_SIDECAR_H
#define MGR_FORM_SIDECAR_H

#include <jansson.h>
#include <stdint.h>

#include "form/target.h"
#include "mgr/err.h"

/* Write `value` as `directory`/`name`, durably. */
int mgr_sidecar_json(const char *directory, const char *name, const json_t *value,
                     mgr_err *err) MGR_NODISCARD;

/* What the tokenizer's files say; -1 where they do not. */
typedef struct mgr_sidecar_tokenizer {
    int64_t bos_token_id, eos_token_id;
    unsigned n_files; /* that were copied */
} mgr_sidecar_tokenizer;

/* Copy the tokenizer's files from source.tokenizer, or, where that is not given, from beside the
 * source; and look up its token ids. A source.tokenizer without a tokenizer file is an error. */
int mgr_sidecar_copy_tokenizer(const mgr_output *out, const char *directory,
                               mgr_sidecar_tokenizer *found, mgr_err *err) MGR_NODISCARD;

/* The names that tokenizer files have; NULL behind the last. */
const char *mgr_sidecar_tokenizer_at(size_t idx);

/* Is there a tokenizer where source.tokenizer says? MGR_OK where none is given. */
int mgr_sidecar_check_tokenizer(const mgr_config *config, mgr_err *err) MGR_NODISCARD;

#endif
