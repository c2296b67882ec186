/*
 * T5 and Switch Transformers: two stacks, of which the FFNs and their routers are understood and
 * all else is opaque, since both classes call it alike (transformers' models/t5 and
 * models/switch_transformers, releases 4.57 and 5).
 */
#ifndef MGR_MODEL_HUGGINGFACE_T5_H
#define MGR_MODEL_HUGGINGFACE_T5_H

#include "model/huggingface_evidence.h"

#define MGR_HF_T5_EMBEDDING "shared.weight"

/* Names with %u for the layer and the expert, of a dense FFN or of an expert; NULL where there is
 * none. Pure. */
const char *mgr_huggingface_t5_name(bool expert, mgr_role role, mgr_stack stack);
const char *mgr_huggingface_switch_name(bool expert, mgr_role role, mgr_stack stack);

/* Derive the model, with what its class has filled in `ev`. Local. */
int mgr_huggingface_t5_model(const mgr_hf_evidence *ev, mgr_model *model,
                             mgr_err *err) MGR_NODISCARD;

/* The sparse step that gives exactly those layers of a stack experts that have them in `model`: in
 * Switch, layer i is one with i mod step = 1, or all are with a step of 1. 0 gives no layer any;
 * false where no step says it. Pure. */
bool mgr_huggingface_sparse_step(const mgr_model *model, mgr_stack stack, uint64_t *step);

/* The names under which a Switch with a head of its own holds its embedding again, once for each
 * stack (SwitchTransformersForConditionalGeneration: tie_word_embeddings is of these, too); NULL
 * behind the last, and of another model. Pure. */
const char *mgr_huggingface_t5_again(const mgr_model *model, unsigned idx);

/* Is `s` so the embedding again, with the same values, of which a sample was taken? Pure. */
bool mgr_huggingface_t5_repeats(const mgr_catalogue *cat, const mgr_model *model,
                                const mgr_stored *s);

/* Refuse a mixture that Switch Transformers cannot express. Pure. */
int mgr_huggingface_switch_check(const mgr_model *model, mgr_err *err) MGR_NODISCARD;

#endif
