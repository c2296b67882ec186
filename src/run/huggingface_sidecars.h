/*
 * The small files of a Hugging Face directory: config.json, generation_config.json, the
 * tokenizer's, and the index where there are several shards. Rank 0 only.
 */
#ifndef MGR_RUN_HUGGINGFACE_SIDECARS_H
#define MGR_RUN_HUGGINGFACE_SIDECARS_H

#include "run/job.h"

/* As mgr_target_format.sidecars: for Mixtral where the model has experts, for Llama where not. */
int mgr_huggingface_sidecars(const mgr_job *job, const char *directory, mgr_err *err) MGR_NODISCARD;

#endif
