/*
 * Classes of transformers without a row in huggingface_family.c. Their FFNs are found by the names
 * and shapes of their tensors, whatever the class is called; all else is opaque, and config.json is
 * carried as it is.
 */
#ifndef MGR_MODEL_HUGGINGFACE_PASSED_H
#define MGR_MODEL_HUGGINGFACE_PASSED_H

#include "model/huggingface_evidence.h"

/* A row of dense FFNs: the name of a role with %u for the layer, or NULL; what its name is told
 * from; which of its matrices are one stored tensor (MGR_HF_FUSES_GATE_UP, or 0). Pure. */
const char *mgr_huggingface_mlp(unsigned row, mgr_role role);
const char *mgr_huggingface_mlp_text(unsigned row);
unsigned mgr_huggingface_mlp_fuses(unsigned row);

/* The stored tensor that holds gate and up of a dense layer, of any class that has such. Pure. */
void mgr_huggingface_fused(const mgr_model *model, uint32_t layer, char out[MGR_HF_NAME_BYTES]);

/* Say in `model` how FFNs are called that mgr_huggingface_ffn_text has told so; false if none are.
 * `experts` may be "". Pure. */
bool mgr_huggingface_passed_texts(const char *dense, const char *experts, mgr_model *model);

/* A class with experts that a dense one's tensors and keys load into, but for the FFNs. */
typedef struct mgr_hf_sibling {
    const char *dense, *type, *architecture; /* model_types; for config.json */
    mgr_hf_ffn ffn;
    const char *width;   /* the key of an expert's width */
    const char *written; /* an object of further keys */
    const char *kinds;   /* the key of a list with "dense" or "sparse" for each layer; NULL: all
                            layers have experts */
    bool sigmoid;        /* scores, with a bias when experts are chosen */
    /* Of the decoder of a vision-language model of model_type `host`, whose class takes no other:
     * the model_type of the class that takes this one, which is the architecture, and of its
     * vision_config. NULL of those that are whole models, too. */
    const char *host, *whole, *vision;
} mgr_hf_sibling;

/* From 1; NULL behind the last. The number of the one that a dense model_type has, or that is of a
 * model_type itself; 0 if there is none. Pure. */
const mgr_hf_sibling *mgr_huggingface_sibling(unsigned idx);
unsigned mgr_huggingface_sibling_of(const char *dense);
unsigned mgr_huggingface_sibling_find(const char *type);

/* Make of a mixture that was just made of a dense model, of which all but the FFNs is passed
 * through, its sibling's, or that of model_type `type`, if it is one's. Pure. */
void mgr_huggingface_become_sibling(mgr_model *model, const char *type);

/* An opaque tensor of a dense FFN: with it, it is no plain MLP. NULL if there is none. Pure. */
const char *mgr_huggingface_passed_stray(const mgr_tensors *tensors);

/* Derive the model. Errors: MGR_ERR_UNSUPPORTED where an FFN is no plain MLP of known names. Local.
 */
int mgr_huggingface_passed_model(const mgr_hf_evidence *ev, mgr_model *model,
                                 mgr_err *err) MGR_NODISCARD;

#endif
