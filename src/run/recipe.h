/*
 * From the configuration to what makes experts and routers, and what that means for the first step
 * of training.
 */
#ifndef MGR_RUN_RECIPE_H
#define MGR_RUN_RECIPE_H

#include <stdbool.h>

#include "engine/job.h"

/* The experts of a mixture that the target's are made of, into job->recipe and job->config: all of
 * them as often as it takes, or a list. Local. */
int mgr_run_growth(mgr_job *job, mgr_err *err) MGR_NODISCARD;

/* 'upcycle.shared_expert' into job->recipe and job->shared_width; the width of the routed ones is
 * known. What makes no sense is refused. Local. */
int mgr_run_shared(mgr_job *job, mgr_err *err) MGR_NODISCARD;

/* 'upcycle.layers_from' into job->layers_from. Local. */
int mgr_run_layers(mgr_job *job, mgr_err *err) MGR_NODISCARD;

/* What `model` has in its layers, in those of the target. Pure. */
void mgr_layers_of(const mgr_job *job, mgr_model *model);

/* Layers of the decoder, or of all that is one stack, that the target has. Pure. */
uint64_t mgr_target_layers(const mgr_job *job);

/* Numbers below `below` and ranges of them, "0-3,7", at most `most`: into out, which may be NULL;
 * how many, or 0 for another text. Pure. */
uint64_t mgr_number_list(const char *text, uint64_t below, uint64_t most, uint32_t *out);

/* `method: concatenate`: job->source as a dense model, and no method any more. Local. */
int mgr_run_concat(mgr_job *job, mgr_err *err) MGR_NODISCARD;

/* What `method: from-scratch` draws from, into job and job->config. Local. */
int mgr_run_scratch(mgr_job *job, mgr_err *err) MGR_NODISCARD;

/* 'upcycle.experts_from' as a list of numbers below `most`, one for each expert, the arena's; their
 * number into job->config where it is not written. Local. */
int mgr_experts_list(mgr_job *job, uint64_t most, uint32_t **out, mgr_err *err) MGR_NODISCARD;

/* job->recipe, job->router, job->moments; the source is described. What makes no sense together is
 * refused. Local. */
int mgr_run_recipe(mgr_job *job, mgr_err *err) MGR_NODISCARD;

/* The model that the configuration makes of the source's, with experts as the recipe has them.
 * Local. */
int mgr_run_model(const mgr_job *job, mgr_model *model, mgr_err *err) MGR_NODISCARD;

/* Does the target compute what the source computes, to rounding? */
typedef struct mgr_step_zero {
    bool identical;
    char text[320]; /* "identical to the source" or "not identical: ..." */
} mgr_step_zero;

/* |S| of one matrix in a layer of the target that has experts, of an expert that is not left as it
 * is. Pure. */
uint32_t mgr_count_selected(const mgr_job *job, uint32_t layer, mgr_matrix matrix);

/* The least and most of them: "352 of 704 neurons", "70 to 563 of 704 neurons". Pure. */
const char *mgr_selected_text(const mgr_job *job, char *out, size_t size);

/* Of an upcycled target. Pure. */
mgr_step_zero mgr_step_zero_of(const mgr_job *job);

/* What of the source's copies is in no expert: "the last 96 of ...", or empty. Pure. */
const char *mgr_rest_of(const mgr_job *job, char *out, size_t size);

#endif
