/*
 * Lists from a file: the experts of a mixture that a target has (REAP, arXiv 2510.13999), or the
 * neurons of the dense FFN that each expert has (MoEfication, arXiv 2110.01786; LLaMA-MoE).
 *
 * JSON: {"neurons": [layer][expert][neuron]} or {"experts": [layer][expert]}, other members are
 * passed over; or the list alone. HDF5: a data set of int32 or int64 of that name
 * and shape, as fmt/h5_read.h reads it (libver="latest" in h5py, without chunks). Layers are
 * those with experts, in their order, or one stands for all.
 */
#ifndef MGR_RUN_LISTS_FILE_H
#define MGR_RUN_LISTS_FILE_H

#include "engine/job.h"

/* The file that the configuration names into job->lists. Collective. */
int mgr_lists_file_read(mgr_job *job, mgr_err *err) MGR_NODISCARD;

/* Into job->recipe and job->config, the source and the recipe's width are known. Local. */
int mgr_lists_of_experts(mgr_job *job, mgr_err *err) MGR_NODISCARD;
int mgr_lists_of_neurons(mgr_job *job, mgr_err *err) MGR_NODISCARD;

/* Neurons of each expert in the file. Local. */
int mgr_lists_width(const mgr_job *job, uint32_t *width, mgr_err *err) MGR_NODISCARD;

/* Which list each layer of the target has, that model being known. Local. */
int mgr_lists_place(mgr_job *job, const mgr_model *target, mgr_err *err) MGR_NODISCARD;

/* Do `n` experts in turn have every neuron of the FFN once? Pure. */
bool mgr_lists_make_groups(const mgr_recipe *recipe, uint32_t n);

/* The most neurons that are in no expert of a layer. Pure. */
uint32_t mgr_lists_leave(const mgr_recipe *recipe);

#endif
