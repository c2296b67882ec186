/*
 * What moe-recipes asks for beside DeepSpeed's files, where a run goes on from its own folder
 * (src/llama_recipes/utils/checkpoint.py): latest_iteration.txt, and in iter_NNNNNNN/ the states of
 * random numbers and of the scheduler.
 */
#ifndef MGR_FORM_RECIPES_FOLDER_H
#define MGR_FORM_RECIPES_FOLDER_H

#include <stddef.h>
#include <stdint.h>

#include "mgr/err.h"

#define MGR_RECIPES_FILES "model_optimizer" /* the folder of DeepSpeed's files */

/* The folder of an iteration, into a caller's buffer; returns it. */
const char *mgr_recipes_folder(uint64_t iteration, char *out, size_t size);

/* Write them below `directory`, where that of the iteration is: generators that are seeded anew,
 * and a scheduler of torch's that has taken `iteration` steps, whose settings stay the run's. Rank
 * 0 only.
 */
int mgr_recipes_write(const char *directory, uint64_t iteration, uint64_t seed,
                      mgr_err *err) MGR_NODISCARD;

#endif
