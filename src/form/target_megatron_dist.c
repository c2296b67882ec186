/*
 * Target `megatron-dist`: iter_%07d or release with __<n>_0.distcp, .metadata, common.pt and
 * metadata.json, as megatron.core.dist_checkpointing.load reads them, of whatever release
 * (strategies/{torch,common}.py, serialization.py). The parallel sizes of the training run are not
 * in this format; only the vocabulary is padded for one.
 */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "fmt/dcp_write.h"
#include "fmt/pickle_write.h"
#include "fmt/sha256.h"
#include "fmt/torch_write.h"
#include "form/format_keys.h"
#include "form/megatron_optimizer.h"
#include "form/megatron_settings.h"
#include "form/megatron_write.h"
#include "form/sidecar.h"
#include "form/target.h"
#include "io/file.h"
#include "model/megatron_dist.h"
#include "model/megatron_hybrid.h"

/* Of the vocabulary, so that a rank of a large run need not read all of it for its slice. */
#define VOCABULARY_CHUNK_BYTES (UINT64_C(256) << 20)

extern const mgr_target_format mgr_target_megatron_dist;

typedef struct state {
    mgr_megatron_dist_target target;
    mgr_model model;
    mgr_megatron whole; /* all sizes 1 */
    mgr_dtype dtype;
    mgr_megatron_arg_list args;
    mgr_megatron_optimizer optimizer;
    mgr_catalogue made; /* of the optimizer's settings, where they were another trainer's */
    char folder[32];
} state;

/* ---- what cannot be expressed ---- */

static int check_experts_megatron_dist_target(const mgr_config *config, const mgr_model *model,
                                              mgr_err *err)
{
    const uint64_t ep = config->target.expert_parallel;
    if (ep < 2 || (model->experts > 0 && model->experts % ep == 0))
        return MGR_OK;
    return mgr_config_fail(config, "target.expert_parallel", err,
                           "%llu experts do not divide among %llu expert-parallel ranks",
                           (unsigned long long)model->experts, (unsigned long long)ep);
}

static int check_keys(const mgr_config *config, const mgr_model *model, mgr_err *err)
{
    if (strcmp(config->target.dist_keys, "stacked") == 0 && !mgr_megatron_dist_can_stack(model))
        return mgr_config_fail(config, "target.dist_keys", err,
                               "'target.dist_keys' is 'stacked', but of %llu layers only %llu have "
                               "experts: layers of two kinds cannot be stacked",
                               (unsigned long long)model->layers,
                               (unsigned long long)mgr_model_moe_layers(model));
    return MGR_OK;
}

static bool is_hybrid(const mgr_config *config)
{
    return strcmp(config->target.dist_keys, "hybrid") == 0;
}

/* hybrid_layer_specs.py and hybrid_model.py of core 0.19 */
static int check_hybrid(const mgr_config *config, const mgr_model *model, mgr_err *err)
{
    if (!is_hybrid(config))
        return MGR_OK;
    if (model->kin)
        return mgr_config_fail(config, "target.dist_keys", err,
                               "'target.dist_keys' is 'hybrid', but a HybridModel cannot hold %s",
                               mgr_model_feature(model, 0));
    if (strcmp(config->target.names, "local") == 0)
        return mgr_config_fail(config, "target.names", err,
                               "'target.names' is 'local', but a HybridModel has Transformer "
                               "Engine's names alone");
    const bool attention = model->window || mgr_model_nope_layers(model) || model->rope_interleaved;
    if (model->rope.kind != MGR_ROPE_LLAMA3 && !attention)
        return MGR_OK;
    mgr_fail(err, MGR_ERR_UNSUPPORTED,
             attention ? "windows, layers without RoPE and interleaved RoPE are not written for a "
                         "HybridModel, whose args count half layers"
                       : "a HybridModel cannot scale RoPE as Llama 3 does");
    return mgr_hint(err, "write a GPTModel's keys: 'target.dist_keys: stacked' or 'per-layer'");
}

static bool is_kept(const mgr_config *config)
{
    return strcmp(config->target.optimizer, "keep") == 0;
}

/* checkpointing.py loads no optimizer of a release. */
static int check_iteration(const mgr_config *config, mgr_err *err)
{
    if (!is_kept(config) || config->target.iteration)
        return MGR_OK;
    mgr_config_fail(config, "target.optimizer", err,
                    "'target.optimizer' is 'keep', but Megatron-LM loads no optimizer of a release "
                    "checkpoint");
    return mgr_hint(err, "set target.iteration to the iteration that training goes on from");
}

static int check_megatron_dist_target(const mgr_config *config, const mgr_model *model,
                                      mgr_err *err)
{
    MGR_TRY(check_iteration(config, err));
    MGR_TRY(check_keys(config, model, err));
    MGR_TRY(check_hybrid(config, model, err));
    MGR_TRY(check_experts_megatron_dist_target(config, model, err));
    return mgr_megatron_check_args(model, err);
}

/* ---- the layout ---- */

/* As many rows as a tensor-parallel rank has, or fewer where that is much. */
static uint64_t vocabulary_rows(const mgr_config *config, const mgr_layout *into, uint64_t padded)
{
    const uint64_t row = into->tensors->model.hidden * mgr_dtype_size(into->dtype);
    const uint64_t most = VOCABULARY_CHUNK_BYTES / row ? VOCABULARY_CHUNK_BYTES / row : 1;
    const uint64_t slice = padded / config->target.tensor_parallel;
    return slice < most ? slice : most;
}

static bool is_stacked(const mgr_config *config, const mgr_model *model)
{
    return strcmp(config->target.dist_keys, "per-layer") != 0 && !is_hybrid(config) &&
           mgr_megatron_dist_can_stack(model);
}

static void fill_state(const mgr_config *config, const mgr_layout *into, state *s)
{
    const uint64_t ep = config->target.expert_parallel;
    s->model = into->tensors->model;
    s->dtype = into->dtype;
    s->whole = (mgr_megatron){
        .tensor_parallel = 1,
        .pipeline_parallel = 1,
        .expert_parallel = 1,
        .expert_tensor_parallel = 1,
        .virtual_pipeline = 1,
        .padded_vocab = mgr_megatron_padded_vocab(config, s->model.vocab),
    };
    s->target = (mgr_megatron_dist_target){
        .folder = mgr_megatron_folder(config->target.iteration, s->folder, sizeof s->folder),
        .padded_vocab = s->whole.padded_vocab,
        .vocab_rows = vocabulary_rows(config, into, s->whole.padded_vocab),
        .max_shard_size = config->target.max_shard_size,
        .expert_parallel = ep ? (uint32_t)ep : 1,
        .stacked = is_stacked(config, &s->model),
        .hybrid = is_hybrid(config),
        .names = strcmp(config->target.names, "local") == 0 ? MGR_NAMES_LOCAL : MGR_NAMES_TE,
    };
}

static unsigned planes_megatron_dist_target(const mgr_origin *origin, mgr_dtype dtype)
{
    return mgr_megatron_optimizer_planes(mgr_megatron_optimizer_distributed(origin->cat), dtype);
}

static int take_optimizer(const mgr_config *config, const mgr_origin *origin, state *s,
                          mgr_err *err)
{
    if (!is_kept(config))
        return MGR_OK;
    const bool foreign = mgr_megatron_settings_foreign(origin);
    if (foreign)
        MGR_TRY(mgr_megatron_settings_make(origin, &s->made, err));
    const mgr_catalogue *const from = foreign ? &s->made : origin->cat;
    MGR_TRY(mgr_megatron_optimizer_check(from, err));
    s->optimizer =
        (mgr_megatron_optimizer){.from = from,
                                 .dtype = s->dtype,
                                 .distributed = mgr_megatron_optimizer_distributed(from),
                                 .chained = s->model.experts && s->target.expert_parallel > 1,
                                 .expert_biases = s->model.bias_mlp};
    s->target.distributed = s->optimizer.distributed;
    return MGR_OK;
}

static int make_args(const mgr_config *config, const mgr_origin *origin, state *s, mgr_err *err)
{
    const mgr_megatron_args args = {.model = &s->model,
                                    .megatron = &s->whole,
                                    .config = config,
                                    .origin = origin,
                                    .dtype = s->dtype,
                                    .ckpt_format = "torch_dist",
                                    .layer_list = !s->target.stacked,
                                    .hybrid = s->target.hybrid};
    return mgr_megatron_args_make(&args, &s->args, err);
}

static int review_megatron_dist_target(const mgr_output *out, mgr_remarks *remarks, mgr_err *err)
{
    const state *const s = out->state;
    MGR_TRY(mgr_megatron_args_review(&s->args, remarks, err));
    MGR_TRY(mgr_megatron_tokenizer_review(out, remarks, err));
    return mgr_megatron_flags_review(&s->args, out, remarks, err);
}

static void release_megatron_dist_target(void *opaque)
{
    state *const s = opaque;
    if (s) {
        mgr_megatron_args_clear(&s->args);
        mgr_catalogue_clear(&s->made);
    }
    mgr_free(s);
}

static int layout_megatron_dist_target(const mgr_config *config, const mgr_origin *origin,
                                       mgr_layout *into, void **out, mgr_err *err)
{
    state *s;
    MGR_TRY(mgr_alloc(&s, 1, sizeof *s, err));
    *out = s; /* released with the target, also after an error */
    fill_state(config, into, s);
    MGR_TRY(take_optimizer(config, origin, s, err));
    MGR_TRY(make_args(config, origin, s, err));
    return mgr_megatron_dist_declare(into, &s->target, err);
}

/* ---- .metadata ---- */

static size_t key_len(const mgr_stored *s)
{
    return (size_t)(strrchr(s->name, '@') - s->name);
}

/* Stored tensors by key; of a key in the order in which they were declared. */
static int by_key(const void *x, const void *y)
{
    const mgr_stored *const a = *(const mgr_stored *const *)x;
    const mgr_stored *const b = *(const mgr_stored *const *)y;
    const size_t m = key_len(a), n = key_len(b);
    const int c = memcmp(a->name, b->name, m < n ? m : n);
    if (c != 0 || m != n)
        return c ? c : m < n ? -1 : 1;
    return a < b ? -1 : a > b;
}

static int new_entry(mgr_dcp *dcp, const mgr_stored *s, mgr_err *err)
{
    mgr_dcp_entry e = {
        .tensor = true, .dtype = s->dtype, .ndim = s->ndim, .first_chunk = dcp->n_chunks};
    MGR_TRY(mgr_arena_strndup(&dcp->arena, &e.name, s->name, key_len(s), err));
    MGR_TRY(mgr_grow(&dcp->entries, &dcp->cap_entries, dcp->n_entries + 1, sizeof e, err));
    dcp->entries[dcp->n_entries++] = e;
    return MGR_OK;
}

/* One chunk of the last entry, which grows to hold it. */
static int add_chunk(mgr_dcp *dcp, const mgr_stored *s, mgr_err *err)
{
    mgr_dcp_entry *const e = &dcp->entries[dcp->n_entries - 1];
    mgr_dcp_chunk c = {.found = true};
    mgr_dcp_item item = {
        .entry = (uint32_t)(dcp->n_entries - 1), .path = s->file, .chunk = dcp->n_chunks};
    size_t len;
    if (!mgr_megatron_dist_parse(s, &len, c.offset))
        return mgr_fail(err, MGR_ERR_INTERNAL, "chunk '%s' has no offset", s->name);
    memcpy(c.size, s->shape, sizeof c.size);
    for (uint32_t d = 0; d < s->ndim; d++)
        if (c.offset[d] + c.size[d] > e->shape[d])
            e->shape[d] = c.offset[d] + c.size[d];
    MGR_TRY(mgr_container_dist_item(s, &item.offset, &item.length, err));
    MGR_TRY(mgr_grow(&dcp->chunks, &dcp->cap_chunks, dcp->n_chunks + 1, sizeof c, err));
    MGR_TRY(mgr_grow(&dcp->items, &dcp->cap_items, dcp->n_items + 1, sizeof item, err));
    dcp->chunks[dcp->n_chunks++] = c;
    dcp->items[dcp->n_items++] = item;
    e->n_chunks++;
    return MGR_OK;
}

static int add_tensors(const mgr_catalogue *cat, mgr_dcp *dcp, mgr_err *err)
{
    const mgr_stored **sorted;
    MGR_TRY(mgr_alloc(&sorted, cat->n_stored, sizeof *sorted, err));
    for (size_t i = 0; i < cat->n_stored; i++)
        sorted[i] = &cat->stored[i];
    qsort(sorted, cat->n_stored, sizeof *sorted, by_key);
    int rc = MGR_OK;
    for (size_t i = 0; rc == MGR_OK && i < cat->n_stored; i++) {
        const size_t n = key_len(sorted[i]);
        if (i == 0 || key_len(sorted[i - 1]) != n ||
            memcmp(sorted[i - 1]->name, sorted[i]->name, n) != 0)
            rc = new_entry(dcp, sorted[i], err);
        if (rc == MGR_OK)
            rc = add_chunk(dcp, sorted[i], err);
    }
    mgr_free(sorted);
    return rc;
}

/* All objects of a file are the same bytes in it. */
static int add_objects(const mgr_layout *from, mgr_dcp *dcp, mgr_err *err)
{
    mgr_dcp_item item = {.chunk = SIZE_MAX};
    const size_t n = from->n_objects;
    MGR_TRY(mgr_container_dist_object(&item.offset, &item.length, err));
    MGR_TRY(
        mgr_grow(&dcp->entries, &dcp->cap_entries, dcp->n_entries + n, sizeof *dcp->entries, err));
    MGR_TRY(mgr_grow(&dcp->items, &dcp->cap_items, dcp->n_items + n, sizeof item, err));
    for (size_t i = 0; i < n; i++) {
        item.entry = (uint32_t)dcp->n_entries;
        item.path = from->objects[i].file;
        dcp->entries[dcp->n_entries++] = (mgr_dcp_entry){.name = from->objects[i].name};
        dcp->items[dcp->n_items++] = item;
    }
    return MGR_OK;
}

static int add_paths(const mgr_catalogue *cat, mgr_dcp *dcp, mgr_err *err)
{
    MGR_TRY(mgr_grow(&dcp->paths, &dcp->cap_paths, cat->n_files, sizeof *dcp->paths, err));
    for (dcp->n_paths = 0; dcp->n_paths < cat->n_files; dcp->n_paths++)
        dcp->paths[dcp->n_paths] = strrchr(cat->files[dcp->n_paths].path, '/') + 1;
    return MGR_OK;
}

static int emit_metadata(const mgr_output *target, mgr_buf *out, mgr_err *err)
{
    mgr_dcp dcp = {0};
    int rc = add_paths(target->layout->cat, &dcp, err);
    if (rc == MGR_OK)
        rc = add_tensors(target->layout->cat, &dcp, err);
    if (rc == MGR_OK)
        rc = add_objects(target->layout, &dcp, err);
    if (rc == MGR_OK)
        rc = mgr_dcp_write(&dcp, out, err);
    mgr_dcp_clear(&dcp);
    return rc;
}

/* ---- common.pt ---- */

/* What the loader asks its model with (load_content_metadata in serialization.py): without a list
 * in moe_layer_freq it would look for stacked keys. */
static int emit_content(const state *s, mgr_buf *out, mgr_err *err)
{
    MGR_TRY(mgr_pickle_dict_open(out, err));
    MGR_TRY(mgr_pickle_text(out, "singleton_local_shards", err));
    MGR_TRY(mgr_pickle_bool(out, 0, err));
    if (!s->target.stacked) {
        MGR_TRY(mgr_pickle_text(out, "non_homogeneous_layers", err));
        MGR_TRY(mgr_pickle_bool(out, 1, err));
    }
    if (s->optimizer.from) {
        MGR_TRY(mgr_pickle_text(out, "chained_optim_avoid_prefix", err));
        MGR_TRY(mgr_pickle_bool(out, 1, err));
    }
    if (s->optimizer.distributed) {
        MGR_TRY(mgr_pickle_text(out, "distrib_optim_sharding_type", err));
        MGR_TRY(mgr_pickle_text(out, "fully_reshardable", err));
        MGR_TRY(mgr_pickle_text(out, "distrib_optim_fully_reshardable_mem_efficient", err));
        MGR_TRY(mgr_pickle_bool(out, 0, err));
    }
    return mgr_pickle_dict_close(out, err);
}

static int emit_common(const mgr_output *target, mgr_buf *out, mgr_err *err)
{
    const state *const s = target->state;
    MGR_TRY(mgr_pickle_begin(out, err));
    MGR_TRY(mgr_pickle_dict_open(out, err));
    MGR_TRY(mgr_pickle_text(out, "args", err));
    MGR_TRY(mgr_pickle_namespace_open(out, err));
    MGR_TRY(mgr_megatron_args_emit(&s->args, out, err));
    MGR_TRY(mgr_pickle_namespace_close(out, err));
    MGR_TRY(mgr_pickle_text(out, "checkpoint_version", err));
    MGR_TRY(mgr_pickle_real(out, 3.0, err));
    MGR_TRY(mgr_pickle_text(out, "iteration", err));
    MGR_TRY(mgr_pickle_int(out, (int64_t)target->config->target.iteration, err));
    MGR_TRY(mgr_pickle_text(out, "num_floating_point_operations_so_far", err));
    MGR_TRY(mgr_pickle_int(out, 0, err));
    if (s->optimizer.from)
        MGR_TRY(mgr_megatron_optimizer_emit(&s->optimizer, out, err));
    MGR_TRY(mgr_pickle_text(out, "content_metadata", err));
    MGR_TRY(emit_content(s, out, err));
    MGR_TRY(mgr_pickle_dict_close(out, err));
    return mgr_pickle_end(out, err);
}

static int emit_common_file(const mgr_output *target, mgr_buf *out, mgr_err *err)
{
    const state *const s = target->state;
    mgr_buf pickle = {0};
    const float step = s->optimizer.from ? mgr_megatron_optimizer_step(s->optimizer.from) : 0;
    const bool tensor = s->optimizer.from && !s->optimizer.distributed;
    const mgr_torch_bytes storage = {&step, sizeof step};
    int rc = emit_common(target, &pickle, err);
    if (rc == MGR_OK)
        rc = tensor ? mgr_torch_archive_with("common", &pickle, &storage, 1, out, err)
                    : mgr_torch_archive("common", &pickle, out, err);
    mgr_buf_clear(&pickle);
    return rc;
}

/* ---- small files ---- */

static int write_bytes(const mgr_output *target, const char *directory, const char *name,
                       int (*emit)(const mgr_output *target, mgr_buf *out, mgr_err *err),
                       mgr_err *err)
{
    const state *const s = target->state;
    mgr_buf path = {0}, bytes = {0};
    int rc = mgr_buf_fmt(&path, err, "%s/%s/%s", directory, s->folder, name);
    if (rc == MGR_OK)
        rc = emit(target, &bytes, err);
    if (rc == MGR_OK)
        rc = mgr_write_file(path.data, bytes.data, bytes.len, err);
    mgr_buf_clear(&path);
    mgr_buf_clear(&bytes);
    return rc;
}

/* Its presence makes the folder a complete checkpoint. Older loaders know two more fields and fill
 * them in by themselves (core.py). */
static int write_manifest(const mgr_output *target, const char *directory, mgr_err *err)
{
    const state *const s = target->state;
    char name[64];
    json_t *const json =
        json_pack("{s:s, s:i}", "sharded_backend", "torch_dist", "sharded_backend_version", 1);
    if (!json)
        return mgr_fail(err, MGR_ERR_NOMEM, "out of memory");
    snprintf(name, sizeof name, "%s/metadata.json", s->folder);
    const int rc = mgr_sidecar_json(directory, name, json, err);
    json_decref(json);
    return rc;
}

static int add_small_hash(const mgr_output *target, const char *directory, const char *name,
                          json_t *files, mgr_err *err)
{
    const state *const s = target->state;
    mgr_buf path = {0};
    char text[MGR_SHA256_TEXT];
    int rc = mgr_buf_fmt(&path, err, "%s/%s/%s", directory, s->folder, name);
    if (rc == MGR_OK)
        rc = mgr_sha256_file(path.data, text, err);
    if (rc == MGR_OK)
        json_object_set_new(files, name, json_string(text));
    mgr_buf_clear(&path);
    return rc;
}

/* Of every file beside it, by the name that it has in this folder (core 0.19 on;
 * dist_checkpointing/validation.py). */
static int write_integrity(const mgr_output *target, const char *directory, mgr_err *err)
{
    static const char *const small[] = {"common.pt", ".metadata", "metadata.json"};
    const state *const s = target->state;
    const mgr_catalogue *const cat = target->layout->cat;
    char name[64];
    int rc = MGR_OK;
    if (!target->file_sha256)
        return MGR_OK;
    json_t *const files = json_object();
    for (size_t f = 0; f < cat->n_files; f++)
        json_object_set_new(files, strrchr(cat->files[f].path, '/') + 1,
                            json_string(target->file_sha256[f]));
    for (size_t i = 0; rc == MGR_OK && i < sizeof small / sizeof small[0]; i++)
        rc = add_small_hash(target, directory, small[i], files, err);
    json_t *const json = json_pack("{s:s, s:o}", "algorithm", "sha256", "files", files);
    snprintf(name, sizeof name, "%s/integrity.json", s->folder);
    if (rc == MGR_OK)
        rc = json ? mgr_sidecar_json(directory, name, json, err)
                  : mgr_fail(err, MGR_ERR_NOMEM, "out of memory");
    json_decref(json);
    return rc;
}

static int sidecars_megatron_dist_target(const mgr_output *target, const char *directory,
                                         mgr_err *err)
{
    MGR_TRY(mgr_megatron_write_tokenizer(target, directory, err));
    MGR_TRY(write_bytes(target, directory, "common.pt", emit_common_file, err));
    MGR_TRY(write_bytes(target, directory, ".metadata", emit_metadata, err));
    MGR_TRY(write_manifest(target, directory, err));
    MGR_TRY(write_integrity(target, directory, err));
    return mgr_megatron_write_tracker(directory, target->config->target.iteration, err);
}

static const mgr_key keys[] = {
    MGR_ROW_TENSOR_PARALLEL,
    MGR_ROW_EXPERT_PARALLEL,
    MGR_ROW_VOCAB_DIVISOR,
    MGR_ROW_MEGATRON_NAMES,
    MGR_ROW_CHOICE("target.dist_keys", target.dist_keys, "auto", "auto|stacked|per-layer|hybrid",
                   "layers stacked, as a moe_layer_freq of 1 asks for, or each by its number, as a "
                   "list does, or those of a HybridModel"),
    MGR_ROW_TARGET_ITERATION,
    MGR_ROW_OPTIMIZER,
    MGR_ROW_MAX_SHARD_SIZE,
};

/* A HybridModel stays one. */
static void settle_megatron_dist_target(const mgr_origin *origin, mgr_config *config)
{
    char *const keys_of = config->target.dist_keys;
    if (strcmp(keys_of, "auto") == 0 && strcmp(origin->format, "megatron-dist") == 0 &&
        mgr_megatron_hybrid_is(origin->cat))
        snprintf(keys_of, sizeof config->target.dist_keys, "hybrid");
    if (is_hybrid(config) && strcmp(config->target.names, "auto") == 0)
        snprintf(config->target.names, sizeof config->target.names, "te");
    mgr_megatron_settle(origin, config);
}

const mgr_target_format mgr_target_megatron_dist = {
    .name = "megatron-dist",
    .keys = MGR_KEY_TABLE(MGR_OWNER_TARGET, "megatron-dist", keys),
    .kin = true,
    .container = &mgr_container_dist,
    .check = check_megatron_dist_target,
    .settle = settle_megatron_dist_target,
    .planes = planes_megatron_dist_target,
    .layout = layout_megatron_dist_target,
    .review = review_megatron_dist_target,
    .sidecars = sidecars_megatron_dist_target,
    .release = release_megatron_dist_target,
};
