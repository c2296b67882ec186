/* From the messages of an object to a data set (private to fmt/h5_*.c). */
#ifndef MGR_FMT_H5_SET_H
#define MGR_FMT_H5_SET_H

#include "fmt/h5_parse.h"
#include "fmt/h5_read.h"

/* Describe the data set at `object`; MGR_ERR_NOT_FOUND if it is a group. */
int mgr_h5_describe(const mgr_reader *in, uint64_t object, mgr_h5_set *set,
                    mgr_err *err) MGR_NODISCARD;

#endif
