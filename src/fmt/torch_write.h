/*
 * Writing torch.save archives whose parts are known beforehand: a value without tensors, whole, and
 * one tensor, around bytes that others write. Byte-level facts: src/fmt/README.md.
 */
#ifndef MGR_FMT_TORCH_WRITE_H
#define MGR_FMT_TORCH_WRITE_H

#include <stdint.h>

#include "core/str.h"
#include "mgr/dtype.h"
#include "mgr/err.h"

/* The archive of a pickle that names no storage, appended to *out; `folder` is the prefix of its
 * members. Local. */
int mgr_torch_archive(const char *folder, const mgr_buf *pickle, mgr_buf *out,
                      mgr_err *err) MGR_NODISCARD;

/* What a storage holds. */
typedef struct mgr_torch_bytes {
    const void *bytes;
    size_t len;
} mgr_torch_bytes;

#define MGR_TORCH_STORAGES 2 /* at most */

/* The same of a pickle that names storages "0" .. "n-1". Local. */
int mgr_torch_archive_with(const char *folder, const mgr_buf *pickle,
                           const mgr_torch_bytes *storages, size_t n, mgr_buf *out,
                           mgr_err *err) MGR_NODISCARD;

/* A contiguous tensor that is all of its storage. */
typedef struct mgr_torch_tensor {
    mgr_dtype dtype;
    uint32_t ndim;
    const uint64_t *shape;
} mgr_torch_tensor;

/* How the archive of a tensor is divided: [0, data) in front of its elements, [data, tail) the
 * elements, [tail, total) behind them. Offsets are from its start. */
typedef struct mgr_torch_item {
    uint64_t data, tail, total;
} mgr_torch_item;

/* A function of type and shape alone. Local. */
int mgr_torch_item_layout(const mgr_torch_tensor *tensor, mgr_torch_item *item,
                          mgr_err *err) MGR_NODISCARD;

/* The bytes in front and behind, appended to *head and *tail; `crc` is that of the elements.
 * Local. */
int mgr_torch_item_bytes(const mgr_torch_tensor *tensor, uint32_t crc, mgr_buf *head, mgr_buf *tail,
                         mgr_err *err) MGR_NODISCARD;

#endif
