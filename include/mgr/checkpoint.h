/*
 * Any checkpoint that mgr-upcycle reads, tensor by tensor: Megatron's, torch_dist, Hugging Face's,
 * HDF5, DeepSpeed's and torch.distributed.checkpoint's, fused and split as they may be, seen as the
 * weights of a model; new ones, written from a callback; and the experts of a layer, made in
 * memory. Without MPI and without torch; nothing in a file is executed.
 *
 *     mgr_err err = MGR_ERR_INIT;
 *     mgr_checkpoint *checkpoint = NULL;
 *     mgr_checkpoint_tensor t;
 *     if (mgr_checkpoint_open("/data/llama/iter_0001000", &checkpoint, &err) != MGR_OK)
 *         errx(mgr_code_exit(err.code), "%s", err.msg);
 *     for (uint32_t i = 0; mgr_checkpoint_at(checkpoint, MGR_LOGICAL, i, &t); i++)
 *         printf("%s %s\n", t.name, mgr_dtype_name(t.dtype));
 *     i = mgr_checkpoint_find(checkpoint, MGR_LOGICAL, "model.layers.0.mlp.up_proj.weight");
 *     rc = mgr_checkpoint_read(checkpoint, MGR_LOGICAL, i, 0, 16, MGR_DTYPE_F32, rows,
 *                              sizeof rows, &err);
 *
 *     // the same model in another format, its rows asked of give_rows() as they are written
 *     rc = mgr_checkpoint_writer_open(checkpoint, "/data/llama-tp2",
 *                                     "{mode: reshard, target: {format: megatron-torch,"
 *                                     " tensor_parallel: 2}}", &writer, &err);
 *     rc = mgr_checkpoint_writer_run(writer, give_rows, checkpoint, &err);
 *     mgr_checkpoint_writer_close(writer);
 *     mgr_checkpoint_close(checkpoint);
 *
 *     // the experts of a layer whose gate, up [ffn, hidden] and down [hidden, ffn] are in memory
 *     rc = mgr_upcycler_open("upcycle: {experts: 8, ratio: 0.5, seed: 1}", hidden, ffn, true,
 *                            &upcycler, &err);
 *     rc = mgr_upcycler_layer(upcycler, 0, MGR_DTYPE_BF16, gate, up, down, &err);
 *     rc = mgr_upcycler_expert(upcycler, 3, MGR_DTYPE_BF16, gate3, up3, down3, &err);
 *     mgr_upcycler_close(upcycler);
 *
 * Errors are values: a function returns an mgr_code, and fills the mgr_err that it was given, with
 * the file, the tensor and the byte (mgr/err.h). Nothing is printed, and nothing exits.
 *
 * Threads: a handle is for one thread at a time, whose stack has half a MiB; two handles know
 * nothing of each other. MPI is neither started nor used, so a program may have its own: a library
 * call belongs to one rank. Nor does a program's locale count: numbers have a point in settings,
 * files and messages, and a callback is called with the locale that the program has.
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

/* Raised by one with whatever is added; functions say which brought them, if it was not the first.
 * mgr_checkpoint_version() is the library's (version 2). */
#define MGR_CHECKPOINT_VERSION 3
int mgr_checkpoint_version(void);

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

/* The same where a checkpoint does not say all of itself: of `settings`, the text of a
 * configuration file without its paths, the sections `source` and `model` count ("source: {config:
 * FOLDER}" of DeepSpeed's, "source: {iteration: 1000}"); NULL for none. Errors: also MGR_ERR_CONFIG
 * (version 2). */
int mgr_checkpoint_open_with(const char *path, const char *settings, mgr_checkpoint **out,
                             mgr_err *err) MGR_NODISCARD;

/* The names of the formats that can be opened, as `source.format` has them; NULL behind the last
 * (version 3). */
const char *mgr_checkpoint_format_at(uint32_t idx);

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

/* ---- writing (version 2) ----
 *
 * `settings` is the text of a configuration file, without its paths: YAML or JSON, as
 * `man 5 mgr-upcycle` lists the keys; NULL for none. What is wrong in it is MGR_ERR_CONFIG, with
 * line and column. */

typedef struct mgr_checkpoint_writer mgr_checkpoint_writer;

/* Get ready to write the model of `like` to the folder `path`: with "mode: reshard" as it is, else
 * with experts, as the section `upcycle` says. `like` gives shapes, element types, the fields of
 * config.json or args, and the tokenizer's files, and outlives the writer; its values are not read.
 * Formats: huggingface, moe-recipes, mixtral, megatron-torch, megatron-dist, deepspeed. Nothing is
 * made yet. Close it with mgr_checkpoint_writer_close. Errors: MGR_ERR_CONFIG, MGR_ERR_UNSUPPORTED,
 * MGR_ERR_USAGE, MGR_ERR_NOMEM. */
int mgr_checkpoint_writer_open(const mgr_checkpoint *like, const char *path, const char *settings,
                               mgr_checkpoint_writer **out, mgr_err *err) MGR_NODISCARD;
void mgr_checkpoint_writer_close(mgr_checkpoint_writer *writer); /* NULL-safe */

/* The logical tensors that will be asked for; false behind the last. */
uint32_t mgr_checkpoint_writer_count(const mgr_checkpoint_writer *writer);
bool mgr_checkpoint_writer_at(const mgr_checkpoint_writer *writer, uint32_t idx,
                              mgr_checkpoint_tensor *out);

/* Fill `out` with rows [row, row+n) of tensor `idx`, of type tensor->dtype, one behind the other.
 * Each row of each tensor is asked for once, in any order, a few MiB at a time, on the thread that
 * runs the writer. Return MGR_OK, or what mgr_fail returned. */
typedef int mgr_checkpoint_rows(void *context, uint32_t idx, const mgr_checkpoint_tensor *tensor,
                                uint64_t row, uint64_t n, void *out, mgr_err *err);

/* Write all. The folder appears under its name when it is complete, checksummed, read back and
 * durable, with a manifest; after a failure nothing is left. Once for a writer. Errors: the
 * callback's; MGR_ERR_FORMAT (a value that is not finite), MGR_ERR_EXISTS (the folder is there),
 * MGR_ERR_CREATE, MGR_ERR_SPACE, MGR_ERR_IO, MGR_ERR_NOMEM. */
int mgr_checkpoint_writer_run(mgr_checkpoint_writer *writer, mgr_checkpoint_rows *rows,
                              void *context, mgr_err *err) MGR_NODISCARD;

/* ---- upcycling in memory (version 2) ---- */

typedef struct mgr_upcycler mgr_upcycler;

/* Make experts as the section `upcycle` of `settings` says, with the values that mgr-upcycle gives
 * them, of FFNs with `ffn` neurons; without a gate if not `gated`. A key that needs the number of
 * layers (layer_ratio, neurons_file) takes it from "model: {num_layers: N}". What is about a whole
 * model is refused by name: experts and layers of a mixture (experts_from, experts_file,
 * layers_from), which layers have experts (moe_layer_freq), a shared_expert, routers from a file,
 * and the methods from-scratch, concatenate and branch-train-mix. Close it with mgr_upcycler_close.
 * Errors: MGR_ERR_CONFIG, MGR_ERR_NOT_FOUND, MGR_ERR_FORMAT (a file of lists), MGR_ERR_USAGE,
 * MGR_ERR_NOMEM. */
int mgr_upcycler_open(const char *settings, uint64_t hidden, uint64_t ffn, bool gated,
                      mgr_upcycler **out, mgr_err *err) MGR_NODISCARD;
void mgr_upcycler_close(mgr_upcycler *upcycler); /* NULL-safe */

/* Experts of a layer, and neurons of an expert. */
uint64_t mgr_upcycler_experts(const mgr_upcycler *upcycler);
uint64_t mgr_upcycler_width(const mgr_upcycler *upcycler);

/* The FFN of layer `layer` of the decoder, which the random numbers depend on: gate and up
 * [ffn, hidden], down [hidden, ffn], in C order; gate is NULL where there is none. They stay the
 * caller's, unchanged until the layer's experts are made. Errors: MGR_ERR_USAGE, MGR_ERR_FORMAT
 * (NaN, infinities, magnitudes of 65536 and more), MGR_ERR_NOMEM. */
int mgr_upcycler_layer(mgr_upcycler *upcycler, uint32_t layer, mgr_dtype dtype, const void *gate,
                       const void *up, const void *down, mgr_err *err) MGR_NODISCARD;

/* One expert of that layer, into gate and up [width, hidden] and down [hidden, width] of type
 * `dtype`; NULL for one that is not wanted. Errors: MGR_ERR_USAGE. */
int mgr_upcycler_expert(const mgr_upcycler *upcycler, uint32_t expert, mgr_dtype dtype, void *gate,
                        void *up, void *down, mgr_err *err) MGR_NODISCARD;

/* The router of a layer, [experts, hidden] of type `dtype`. Errors: MGR_ERR_USAGE. */
int mgr_upcycler_router(const mgr_upcycler *upcycler, uint32_t layer, mgr_dtype dtype, void *out,
                        mgr_err *err) MGR_NODISCARD;

#ifdef __cplusplus
}
#endif
#endif
