/*
 * The keys of config.json: what each means to the classes of transformers that are read and written
 * here, and to the library below them. It is an allow-list: a key that no row names may change what
 * the model computes, and is refused unless its value says nothing.
 */
#ifndef MGR_MODEL_HUGGINGFACE_KEYS_H
#define MGR_MODEL_HUGGINGFACE_KEYS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "mgr/catalogue.h"

typedef enum mgr_hf_use {
    MGR_HF_READ,    /* the model follows from it; an output's follows from the model */
    MGR_HF_CARRIED, /* training, generation, logging, paths: no logit depends on it */
    MGR_HF_IGNORED, /* a word of another class, which this one does not look at */
    MGR_HF_NEUTRAL  /* changes what is computed, but for null and the value that the row states */
} mgr_hf_use;

typedef struct mgr_hf_key {
    const char *name;  /* as in the file, members of objects behind a '.' */
    unsigned families; /* MGR_HF_BIT of each class */
    mgr_hf_use use;
    const char *neutral; /* NEUTRAL: "true", "false", "1", "empty"; NULL: null alone */
    const char *what;    /* NEUTRAL: what another value means, for the refusal */
    const char *source;  /* where that is written */
} mgr_hf_key;

/* The row of `name` for the classes of a mask, or NULL; rows by number, NULL behind the last. */
const mgr_hf_key *mgr_huggingface_key(const char *name, unsigned family);
const mgr_hf_key *mgr_huggingface_key_at(size_t idx);

/* How a key of a file is met. */
typedef enum mgr_hf_verdict {
    MGR_HF_KNOWN,       /* nothing to say */
    MGR_HF_PASSED_OVER, /* IGNORED, at a value that says something */
    MGR_HF_REFUSED,     /* NEUTRAL, at another value */
    MGR_HF_UNKNOWN_NIL, /* no row, at null, false, 0 or empty */
    MGR_HF_UNKNOWN      /* no row, at a value that says something */
} mgr_hf_verdict;

/* What to make of the attribute `a` ("config.NAME") of config.json; *row is its row, or NULL.
 * Members of what was judged as a whole are KNOWN. Where `section` is not NULL, only what begins
 * with it ("text_config.") is the class's, and all else is passed through. Pure. */
mgr_hf_verdict mgr_huggingface_judge(const mgr_catalogue *cat, const mgr_attr *a, unsigned family,
                                     const char *section, const mgr_hf_key **row);

/* Does quantization_config say FP8 weights with a scale for each block, and which blocks, rows and
 * columns (transformers' FineGrainedFP8Config)? That one is read, others are refused. Pure. */
bool mgr_huggingface_fp8_blocks(const mgr_catalogue *cat, uint64_t block[2]);

/* The value as a file spells it, or "a list", "an object". Returns out. */
const char *mgr_huggingface_value(const mgr_attr *a, char *out, size_t size);

#endif
