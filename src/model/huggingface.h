/*
 * Hugging Face's layouts: the names and shapes of Llama, Mistral, Qwen2, Qwen3, Mixtral and
 * Qwen3-MoE, and the model from a parsed config.json. Names: transformers'
 * models/{llama,mistral,qwen2,qwen3, mixtral,qwen3_moe}/modeling_*.py. Of the experts there are two
 * spellings: one by one, as version 4 has them in memory and every version writes them, and fused,
 * as version 5 has them in memory and takes them, too (conversion_mapping.py, entries "mixtral",
 * "qwen2_moe").
 */
#ifndef MGR_MODEL_HUGGINGFACE_H
#define MGR_MODEL_HUGGINGFACE_H

#include <stdbool.h>
#include <stdint.h>

#include "mgr/config.h"
#include "mgr/layout.h"

#define MGR_HF_NAME_BYTES 160

typedef enum mgr_hf_ffn {
    MGR_HF_DENSE,
    MGR_HF_PER_EXPERT,  /* w1 (gate) and w3 (up) [F, H], w2 (down) [H, F] of each expert */
    MGR_HF_QWEN_EXPERT, /* the same as gate_proj, up_proj, down_proj */
    MGR_HF_FUSED /* gate_up_proj [E, 2F, H], an expert's gate before its up; down [E, H, F] */
} mgr_hf_ffn;

typedef struct mgr_huggingface {
    mgr_hf_ffn ffn;
    /* of a source */
    const char *kind;             /* "Llama", "Qwen2", ... */
    unsigned family;              /* of huggingface_keys.h */
    uint32_t config;              /* file whose attributes "config.*" are config.json */
    uint32_t first_file, n_files; /* the weights */
    uint64_t vocab_rows;          /* as stored; the model's vocabulary may be cut; 0: not cut */
    /* of a target */
    uint32_t expert_parallel; /* divides the number of experts; 1 for a dense model, or if fused */
    uint64_t max_shard_size;  /* bytes of tensors in a shard; one larger tensor stands alone */
} mgr_huggingface;

/* Put every tensor into `layout`.
 *
 * A source's may lie in any of the files, each in one. Where the embeddings are tied and a head is
 * stored all the same, it must repeat the embedding.
 *
 * A target's shard files are declared, too: shared weights come first, in shards of their own, then
 * the experts of rank 0, of rank 1, and so on; layout->file_owner says whose a shard is. A single
 * file is "model.safetensors".
 *
 * Errors: MGR_ERR_FORMAT; MGR_ERR_UNSUPPORTED for a tensor that has no name. Local. */
int mgr_huggingface_layout(mgr_layout *layout, const mgr_huggingface *hf,
                           mgr_err *err) MGR_NODISCARD;

/* Name of a tensor; false if there is none. `expert` matters for experts one by one. Pure. */
bool mgr_huggingface_name(mgr_hf_ffn ffn, mgr_role role, uint32_t layer, uint32_t expert,
                          char out[MGR_HF_NAME_BYTES]);

/* Derive the model from config.json, from the tensors' shapes and from the configuration's `model:`
 * section, each checked against the others, and fill in hf->kind, ffn and vocab_rows. Kinds that
 * are not supported are refused by name. Local. */
int mgr_huggingface_model(const mgr_catalogue *cat, const mgr_config *config, mgr_huggingface *hf,
                          mgr_model *model, mgr_err *err) MGR_NODISCARD;

/* The classes of transformers that can be written. */
typedef enum mgr_hf_class {
    MGR_HF_LLAMA,
    MGR_HF_MISTRAL,
    MGR_HF_QWEN2,
    MGR_HF_QWEN3,
    MGR_HF_MIXTRAL,
    MGR_HF_QWEN3_MOE,
    MGR_HF_NO_CLASS
} mgr_hf_class;

/* The class that computes what `model` computes; MGR_HF_NO_CLASS if none does. Pure. */
mgr_hf_class mgr_huggingface_class(const mgr_model *model);

/* The same, but the class of model_type `type` where that computes it, too. Pure. */
mgr_hf_class mgr_huggingface_class_like(const mgr_model *model, const char *type);

/* How the class of `model` names experts that are stored one by one; MGR_HF_DENSE of a dense model.
 * Pure. */
mgr_hf_ffn mgr_huggingface_ffn(const mgr_model *model);

/* The bit of huggingface_keys.h. */
unsigned mgr_huggingface_family(mgr_hf_class class);

#endif
