/*
 * Small files beside the tensors: JSON, and what is carried along with a model. All on rank 0 only.
 */
#ifndef MGR_FORM_SIDECAR_H
#define MGR_FORM_SIDECAR_H

#include <jansson.h>
#include <stdint.h>

#include "form/target.h"
#include "form/tokenizer.h"
#include "mgr/err.h"

/* Write `value` as `directory`/`name`, durably. */
int mgr_sidecar_json(const char *directory, const char *name, const json_t *value,
                     mgr_err *err) MGR_NODISCARD;

/* Where the tokenizer lies: source.tokenizer, or, where that is not given, beside the source or in
 * the folder `tokenizer` there. *out, the arena's, is NULL if there is none. */
int mgr_sidecar_find_tokenizer(const mgr_output *output, mgr_arena *arena, const char **out,
                               mgr_err *err) MGR_NODISCARD;

/* The files to carry, before anything is written: MGR_ERR_UNSUPPORTED for one that is a link out of
 * its folder. The hub's cache, whose snapshots are links to blobs, is one folder. */
int mgr_sidecar_check(const mgr_output *output, mgr_err *err) MGR_NODISCARD;

/* Copy the tokenizer's files, with what else belongs to them: chat templates, code (which is never
 * run), licences; and the source's generation_config.json, if there is one. */
int mgr_sidecar_copy(const mgr_output *output, const char *directory, mgr_err *err) MGR_NODISCARD;

/* Copy the files of the folder `from` to `to`, which is made. */
int mgr_sidecar_copy_folder(const char *from, const char *to, mgr_err *err) MGR_NODISCARD;

/* The source's generation_config.json; *out, the arena's, is NULL if it has none. */
int mgr_sidecar_find_generation(const mgr_output *output, mgr_arena *arena, const char **out,
                                mgr_err *err) MGR_NODISCARD;

/* Is there a tokenizer where source.tokenizer says? MGR_OK where none is given. */
int mgr_sidecar_check_tokenizer(const mgr_config *config, mgr_err *err) MGR_NODISCARD;

#endif
