/*
 * Hugging Face's dense Llama layout, which Mistral shares: names, shapes, and the model from a
 * parsed config.json. Names: transformers' models/llama/modeling_llama.py, models/mistral/.
 */
#ifndef MGR_MODEL_LLAMA_H
#define MGR_MODEL_LLAMA_H

#include <stdint.h>

#include "mgr/config.h"
#include "mgr/layout.h"

typedef struct mgr_llama {
    const char *kind;             /* "Llama", "Mistral" */
    uint32_t config;              /* file whose attributes "config.*" are config.json */
    uint32_t first_file, n_files; /* the weights */
    uint64_t vocab_rows;          /* as stored; the model's vocabulary may be cut */
} mgr_llama;

/* Put every tensor into `layout`. A source's may lie in any of the files, each in one; a target's
 * are declared in the first. Where the embeddings are tied and a head is stored all the same, it
 * must repeat the embedding. Errors: MGR_ERR_FORMAT. Local. */
int mgr_llama_layout(mgr_layout *layout, const mgr_llama *llama, mgr_err *err) MGR_NODISCARD;

/* Derive the model from config.json, from the tensors' shapes and from the configuration's `model:`
 * section, each checked against the others, and fill in llama->kind and vocab_rows. Kinds that are
 * not supported are refused by name. Local. */
int mgr_llama_model(const mgr_catalogue *cat, const mgr_config *config, mgr_llama *llama,
                    mgr_model *model, mgr_err *err) MGR_NODISCARD;

#endif
