/*
 * What a model is derived from: config.json, the tensors of its files, the configuration. Questions
 * that the derivations of huggingface_config.c, _experts.c and _positions.c share.
 */
#ifndef MGR_MODEL_HUGGINGFACE_EVIDENCE_H
#define MGR_MODEL_HUGGINGFACE_EVIDENCE_H

#include <stdbool.h>
#include <stdint.h>

#include "model/huggingface.h"

#define MGR_HF_SHOWN 200                   /* of a name in a message */
#define MGR_HF_MAX_SIZE (INT64_C(1) << 31) /* of any size: products of two fit 64 bits */

/* What the derivation looks at. */
typedef struct mgr_hf_evidence {
    const mgr_catalogue *cat;
    const mgr_config *config;
    const mgr_huggingface *hf;
    mgr_hf_class class;
    const mgr_hf_family *kind;
    uint8_t tower;                   /* where the decoder lies among the tensors */
    uint32_t dense_layer, moe_layer; /* the first of each */
} mgr_hf_evidence;

/* A key of config.json that is there and not null, or NULL. */
const mgr_attr *mgr_hf_arg(const mgr_hf_evidence *ev, const char *name);

/* Is it there, be it null? */
bool mgr_hf_is_written(const mgr_hf_evidence *ev, const char *name);

/* The path of config.json. */
const char *mgr_hf_path(const mgr_hf_evidence *ev);

bool mgr_hf_is_text(const mgr_attr *a, const char *text);
bool mgr_hf_same_number(double a, double b);

/* Refuse what a key says. */
int mgr_hf_unsupported(const mgr_hf_evidence *ev, const char *name, const char *what, mgr_err *err);

/* true or false; false where it is not given, or `otherwise`. */
int mgr_hf_flag(const mgr_hf_evidence *ev, const char *name, bool *out, mgr_err *err) MGR_NODISCARD;
int mgr_hf_flag_or(const mgr_hf_evidence *ev, const char *name, bool otherwise, bool *out,
                   mgr_err *err) MGR_NODISCARD;

/* A whole number that may be 0. */
int mgr_hf_number(const mgr_hf_evidence *ev, const char *name, uint64_t otherwise, uint64_t *out,
                  mgr_err *err) MGR_NODISCARD;

/* A positive real number, `otherwise` where it is not given. */
int mgr_hf_real(const mgr_hf_evidence *ev, const char *name, double otherwise, double *out,
                mgr_err *err) MGR_NODISCARD;

/* One whole number: `theirs` in config.json (or transformers' default for it), `ours` in the
 * configuration, and perhaps the tensors know it. 0 is "unknown", "" no such key. */
typedef struct mgr_hf_size {
    const char *theirs, *ours;
    uint64_t otherwise, from_config, from_tensors;
} mgr_hf_size;

int mgr_hf_whole(const mgr_hf_evidence *ev, mgr_hf_size s, uint64_t *out,
                 mgr_err *err) MGR_NODISCARD;

/* The tensor `role` of the first layer that has one, or the embedding, if it has `ndim` axes; else
 * NULL. */
const mgr_stored *mgr_hf_first_of(const mgr_hf_evidence *ev, mgr_hf_ffn ffn, mgr_role role,
                                  uint32_t ndim);

/* Rows of it, 0 where there is none. */
uint64_t mgr_hf_rows_of(const mgr_hf_evidence *ev, mgr_role role);

#endif
