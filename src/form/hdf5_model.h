/*
 * What target_hdf5.c and source_hdf5.c share: the names of the files, and the model as JSON.
 */
#ifndef MGR_FORM_HDF5_MODEL_H
#define MGR_FORM_HDF5_MODEL_H

#include <jansson.h>

#include "mgr/catalogue.h"
#include "mgr/model.h"

#define MGR_HDF5_INDEX "model.h5"
#define MGR_HDF5_SHARED "shared.h5"
#define MGR_HDF5_EXPERTS "experts-"
#define MGR_HDF5_MODEL "mgr/model.json"

/* The model with weights of `dtype`; NULL if there is no memory. The caller's to decref. */
json_t *mgr_hdf5_model_json(const mgr_model *model, mgr_dtype dtype);

/* Back from the members of that object, which are `file`'s attributes by their names. Every one
 * must be there and in range. Errors: MGR_ERR_FORMAT. Local. */
int mgr_hdf5_model_read(const mgr_catalogue *cat, uint32_t file, mgr_model *model,
                        mgr_err *err) MGR_NODISCARD;

#endif
