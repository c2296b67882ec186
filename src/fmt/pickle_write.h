/*
 * Writing pickles of protocol 2 with only the opcodes and globals that torch's restricted
 * unpickler (weights_only=True) takes, plus argparse.Namespace and what a caller names. No memo is
 * used.
 */
#ifndef MGR_FMT_PICKLE_WRITE_H
#define MGR_FMT_PICKLE_WRITE_H

#include <stdint.h>

#include "core/str.h"
#include "mgr/dtype.h"
#include "mgr/err.h"

int mgr_pickle_begin(mgr_buf *out, mgr_err *err) MGR_NODISCARD; /* PROTO 2 */
int mgr_pickle_end(mgr_buf *out, mgr_err *err) MGR_NODISCARD;   /* STOP */
int mgr_pickle_none(mgr_buf *out, mgr_err *err) MGR_NODISCARD;
int mgr_pickle_bool(mgr_buf *out, int value, mgr_err *err) MGR_NODISCARD;
int mgr_pickle_int(mgr_buf *out, int64_t value, mgr_err *err) MGR_NODISCARD;
int mgr_pickle_real(mgr_buf *out, double value, mgr_err *err) MGR_NODISCARD;
int mgr_pickle_text(mgr_buf *out, const char *value, mgr_err *err) MGR_NODISCARD;
/* The global `module.name`, "torch" "bfloat16" for instance. */
int mgr_pickle_global(mgr_buf *out, const char *module, const char *name,
                      mgr_err *err) MGR_NODISCARD;
/* { k v k v ... }: open, then alternate keys and values, then close. */
int mgr_pickle_dict_open(mgr_buf *out, mgr_err *err) MGR_NODISCARD;
int mgr_pickle_dict_close(mgr_buf *out, mgr_err *err) MGR_NODISCARD;
/* argparse.Namespace whose attributes are the keys and values between open and close. */
int mgr_pickle_namespace_open(mgr_buf *out, mgr_err *err) MGR_NODISCARD;
int mgr_pickle_namespace_close(mgr_buf *out, mgr_err *err) MGR_NODISCARD;
/* The same of any class, made without calling it. */
int mgr_pickle_object_open(mgr_buf *out, const char *module, const char *name,
                           mgr_err *err) MGR_NODISCARD;
int mgr_pickle_object_close(mgr_buf *out, mgr_err *err) MGR_NODISCARD;
/* A tuple or list of what is emitted between open and close. */
int mgr_pickle_tuple_open(mgr_buf *out, mgr_err *err) MGR_NODISCARD;
int mgr_pickle_tuple_close(mgr_buf *out, mgr_err *err) MGR_NODISCARD;
int mgr_pickle_list_open(mgr_buf *out, mgr_err *err) MGR_NODISCARD;
int mgr_pickle_list_close(mgr_buf *out, mgr_err *err) MGR_NODISCARD;
/* A contiguous tensor that is all of storage `key` (torch._utils._rebuild_tensor_v2, on "cpu"). */
int mgr_pickle_tensor(mgr_buf *out, const char *key, mgr_dtype dtype, uint32_t ndim,
                      const uint64_t *shape, mgr_err *err) MGR_NODISCARD;

/* A tensor all of whose elements are the one in storage `key`: its strides are 0. */
int mgr_pickle_repeated(mgr_buf *out, const char *key, mgr_dtype dtype, uint32_t ndim,
                        const uint64_t *shape, mgr_err *err) MGR_NODISCARD;
/* torch.Size([...]). */
int mgr_pickle_size(mgr_buf *out, uint32_t ndim, const uint64_t *shape, mgr_err *err) MGR_NODISCARD;

#endif
