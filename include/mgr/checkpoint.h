/*
 * Any checkpoint that mgr-upcycle reads, tensor by tensor: Megatron's, torch_dist, Hugging Face's
 * and HDF5, fused and split as they may be, seen as the weights of a model. Without MPI and without
 * torch; nothing in a file is executed.
 *
 *     mgr_err err = MGR_ERR_INIT;
 *     mgr_checkpoint *checkpoint = NULL;
 *     mgr_checkpoint_tensor t;
 *     if (mgr_checkpoint_open("/data/llama/iter_0001000", &checkpoint, &err) != MGR_OK)
 *         errx(mgr_code_exit(err.code), "%s", err.msg);
 *     for (uint32_t i = 0; mgr_checkpoint_at(checkpoint, MGR_LOGICAL, i, &t); i++)
 *         printf("%s %s\n", t.name, mgr_dtype_name(t.dtype));
 *     i = mgr_checkpoint_find(checkpoint, MGR_LOGICAL, "model.layers.0.mlp.up_proj.weight");
 *     rc = mgr_checkpoint_read(checkpoint, MGR_LOGICAL, i, 0, 16, MGR_DTYPE_F32, rows, sizeof rows,
 * &err); mgr_checkpoint_close(checkpoint);
 *
 * Errors are values: a function returns an mgr_code, and fills the mgr_err that it was given, with
 * the file, the tensor and the byte (mgr/err.h). Nothing is printed, and nothing exits.
 *
 * Threads: a handle is for one thread at a time; two handles know nothing of each other. MPI is
 * neither started nor used, so a program may have its own.
 */
#ifndef MGR_CHECKPOINT_H
#define MGR_CHECKPOINT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "mgr/dtype.h"
#include "mgr/err.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Raised by one when something of this header changes its meaning, its size or goes; what is only
 * added leaves it. mgr_checkpoint_abi() is the library's. */
#define MGR_CHECKPOINT_ABI 1
int mgr_checkpoint_abi(void);

/* Axes of a stored tensor, at most. */
#define MGR_CHECKPOINT_AXES 8

/* A checkpoint is two lists of tensors. */
typedef enum mgr_checkpoint_list {
    MGR_LOGICAL, /* the model's weights, unfused and unsharded, by the names of Hugging Face */
    MGR_STORED   /* what the files hold, by the files' names; also of a checkpoint of no model that
                    is known */
} mgr_checkpoint_list;

typedef struct mgr_checkpoint mgr_checkpoint;

typedef struct mgr_checkpoint_tensor {
    const char *name; /* the checkpoint's */
    const char *file; /* of a stored tensor; NULL of a logical one, which may lie in several */
    mgr_dtype dtype;
    uint32_t ndim;
    uint64_t shape[MGR_CHECKPOINT_AXES];
} mgr_checkpoint_tensor;

/* Open a checkpoint: a Megatron root or iteration, a Hugging Face folder, a folder of HDF5 files,
 * or one .pt, .bin or .safetensors file. Only headers are read. Close it with mgr_checkpoint_close.
 * Errors: MGR_ERR_NOT_FOUND, MGR_ERR_FORMAT, MGR_ERR_UNSUPPORTED, MGR_ERR_IO, MGR_ERR_NOMEM. */
int mgr_checkpoint_open(const char *path, mgr_checkpoint **out, mgr_err *err) MGR_NODISCARD;
void mgr_checkpoint_close(mgr_checkpoint *checkpoint); /* NULL-safe */

/* "megatron-torch", "huggingface", ...; and one line on the model, such as "2 layers, hidden 256,
 * ...", or on why the tensors are not taken for a model's. Both are the checkpoint's. */
const char *mgr_checkpoint_format(const mgr_checkpoint *checkpoint);
const char *mgr_checkpoint_about(const mgr_checkpoint *checkpoint);

/* Tensors of a list; MGR_LOGICAL has none if the model is not known (mgr_checkpoint_about). */
uint32_t mgr_checkpoint_count(const mgr_checkpoint *checkpoint, mgr_checkpoint_list list);

/* What is known of tensor `idx`; false behind the last. */
bool mgr_checkpoint_at(const mgr_checkpoint *checkpoint, mgr_checkpoint_list list, uint32_t idx,
                       mgr_checkpoint_tensor *out);

/* Index of the first tensor of that name; UINT32_MAX if there is none. */
uint32_t mgr_checkpoint_find(const mgr_checkpoint *checkpoint, mgr_checkpoint_list list,
                             const char *name);

/* Rows [row, row+n) into `out`, one behind the other, in C order. A row has the elements of the
 * last axis, and all other axes together count the rows; a vector [n] has n rows of one. `dtype` is
 * the tensor's, or another of bfloat16, float16 and float32 where the tensor's is one of these: it
 * is cast, to the nearest, ties to even. `bytes` is the size of `out`. A tensor may be read in any
 * order and in pieces; each call takes from the files what it needs. Errors: MGR_ERR_USAGE (no such
 * tensor or rows, `out` too small, no such cast), MGR_ERR_UNSUPPORTED, MGR_ERR_FORMAT, MGR_ERR_IO.
 */
int mgr_checkpoint_read(mgr_checkpoint *checkpoint, mgr_checkpoint_list list, uint32_t idx,
                        uint64_t row, uint64_t n, mgr_dtype dtype, void *out, size_t bytes,
                        mgr_err *err) MGR_NODISCARD;

#ifdef __cplusplus
}
#endif
#endif
