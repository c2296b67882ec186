/*
 * Hugging Face's layouts: names and shapes of tensors, and the model from a parsed config.json. Of
 * the experts there are two spellings: one by one, as version 4 has them in memory and every
 * version writes them, and fused, as version 5 has them in memory and takes them, too
 * (conversion_mapping.py, entries "mixtral", "qwen2_moe").
 */
#ifndef MGR_MODEL_HUGGINGFACE_H
#define MGR_MODEL_HUGGINGFACE_H

#include <stdbool.h>
#include <stdint.h>

#include "mgr/config.h"
#include "mgr/layout.h"
#include "model/huggingface_family.h"

#define MGR_HF_NAME_BYTES 160
/* Before the names of tensors in what an index says, as attributes of its file. */
#define MGR_HF_WEIGHT_MAP "weight_map."

/* Behind the name of a weight in FP8: the name of its scales. */
#define MGR_HF_SCALE "_scale_inv"

typedef struct mgr_huggingface {
    mgr_hf_class class;
    mgr_hf_ffn ffn;
    const char *type;    /* of a class without a row: its model_type; of a source */
    const char *section; /* in config.json what the decoder's keys begin with; NULL: nothing */
    /* of a source */
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

/* Where the model says no more of some tensors: put what none of its own is stored as behind them,
 * as opaque ones. Local. */
int mgr_huggingface_opaque(const mgr_catalogue *cat, const mgr_huggingface *hf,
                           mgr_tensors *tensors, mgr_err *err) MGR_NODISCARD;

/* Name of a tensor of `class`; false if there is none. `layer` is a layer's key (mgr/model.h).
 * `expert` matters for experts one by one. Pure. */
bool mgr_huggingface_name(mgr_hf_class class, mgr_hf_ffn ffn, mgr_role role, uint32_t layer,
                          uint32_t expert, char out[MGR_HF_NAME_BYTES]);

/* Derive the model from config.json, from the tensors' shapes and from the configuration's `model:`
 * section, each checked against the others, and fill in hf->class, ffn and vocab_rows. Kinds that
 * are not supported are refused by name. Local. */
int mgr_huggingface_model(const mgr_catalogue *cat, const mgr_config *config, mgr_huggingface *hf,
                          mgr_model *model, mgr_err *err) MGR_NODISCARD;

/* How the class of `model` names experts that are stored one by one; MGR_HF_DENSE of a dense model.
 * Pure. */
mgr_hf_ffn mgr_huggingface_ffn(const mgr_model *model);

/* How it names its dense FFNs. Pure. */
mgr_hf_ffn mgr_huggingface_dense(const mgr_model *model);

/* What tells one way to name FFNs from the others, a name with %u for layer and expert; "" of one
 * that no class without a row has. Pure. */
const char *mgr_huggingface_ffn_text(mgr_hf_ffn ffn);

#endif
