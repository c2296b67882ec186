/*
 * config.json of a source, as the attributes "config.NAME" of its file.
 */
#ifndef MGR_FORM_HUGGINGFACE_CONFIG_FILE_H
#define MGR_FORM_HUGGINGFACE_CONFIG_FILE_H

#include "core/str.h"
#include "form/remarks.h"
#include "io/reader.h"
#include "model/huggingface.h"

/* All of it into the catalogue, and its whole text as MGR_HF_CONFIG_TEXT. Local. */
int mgr_huggingface_read_config(mgr_catalogue *cat, uint32_t file, const mgr_reader *reader,
                                mgr_err *err) MGR_NODISCARD;

/* What people should know of its keys. Local. */
int mgr_huggingface_review_config(const mgr_huggingface *hf, const mgr_catalogue *cat,
                                  mgr_remarks *remarks, mgr_err *err) MGR_NODISCARD;

/* The config.json that 'source.config' names, or that of the folder. Local. */
int mgr_huggingface_config_named(const char *said, mgr_arena *arena, const char **out,
                                 mgr_err *err) MGR_NODISCARD;

#endif
