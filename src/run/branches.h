/*
 * Several sources: each is found and described as one alone is, then all are joined.
 */
#ifndef MGR_RUN_BRANCHES_H
#define MGR_RUN_BRANCHES_H

#include <stdbool.h>

#include "engine/job.h"

/* Room for all sources of the configuration; nothing for one alone. Local. */
int mgr_branches_init(mgr_job *job, mgr_err *err) MGR_NODISCARD;
void mgr_branches_clear(mgr_job *job);

/* Make source `idx` the job's, of which nothing has been read yet; and take what was found there
 * into its branch. Local. */
void mgr_branch_begin(mgr_job *job, uint32_t idx);
void mgr_branch_end(mgr_job *job, uint32_t idx);

/* All branches are described: refuse what does not go together, and make job->source of them.
 * Local, and the same on all ranks. */
int mgr_branches_join(mgr_job *job, mgr_err *err) MGR_NODISCARD;

/* Rank 0: have the sources the same tokenizer, as far as there are files of it? Local. */
int mgr_branches_check_tokenizers(const mgr_job *job, mgr_err *err) MGR_NODISCARD;

/* The map of experts to sources, into job->recipe and job->config. Local. */
int mgr_branches_recipe(mgr_job *job, mgr_err *err) MGR_NODISCARD;

/* Is a record of the source its manifest's word, not that of an archive? Pure. */
bool mgr_is_manifests(const mgr_job *job, uint32_t record);

#endif
