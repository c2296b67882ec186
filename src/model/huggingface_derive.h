/*
 * Parts of mgr_huggingface_model, by subject. Each fills in its part of the model from the
 * evidence.
 */
#ifndef MGR_MODEL_HUGGINGFACE_DERIVE_H
#define MGR_MODEL_HUGGINGFACE_DERIVE_H

#include "model/huggingface_evidence.h"

/* Which layers have experts, and the first of either kind; how experts are stored; their numbers
 * and widths, the shared one's, and the router. */
int mgr_hf_expert_layers(mgr_hf_evidence *ev, mgr_model *m, mgr_err *err) MGR_NODISCARD;
mgr_hf_ffn mgr_hf_find_ffn(const mgr_hf_evidence *ev);
int mgr_hf_check_fused(const mgr_hf_evidence *ev, const mgr_model *m, mgr_err *err) MGR_NODISCARD;
int mgr_hf_ffn_sizes(const mgr_hf_evidence *ev, mgr_model *m, mgr_err *err) MGR_NODISCARD;
int mgr_hf_expert_sizes(const mgr_hf_evidence *ev, mgr_model *m, mgr_err *err) MGR_NODISCARD;

/* RoPE's scaling and base, layers without it, windows. */
int mgr_hf_rope_scaling(const mgr_hf_evidence *ev, mgr_rope *out, mgr_err *err) MGR_NODISCARD;
int mgr_hf_rotary_base(const mgr_hf_evidence *ev, double *out, mgr_err *err) MGR_NODISCARD;
int mgr_hf_nope_layers(const mgr_hf_evidence *ev, mgr_model *m, mgr_err *err) MGR_NODISCARD;
int mgr_hf_windows(const mgr_hf_evidence *ev, mgr_model *m, mgr_err *err) MGR_NODISCARD;

#endif
