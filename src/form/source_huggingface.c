/*
 * Source `huggingface`: a directory with config.json and the weights of a Llama, a Mistral, a Qwen2
 * or 3, or a Mixtral, in one file or in shards with an index (transformers' modeling_utils.py). It
 * goes by the name of the target `moe-recipes`, too.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "fmt/json_scan.h"
#include "fmt/safetensors.h"
#include "fmt/torch_file.h"
#include "form/format_keys.h"
#include "form/huggingface_compose.h"
#include "form/huggingface_config_file.h"
#include "form/huggingface_fp8.h"
#include "form/huggingface_tied.h"
#include "form/source.h"
#include "form/strange.h"
#include "io/file.h"
#include "model/huggingface.h"
#include "model/huggingface_keys.h"

#define CONFIG "config.json"
#define INDEX_SUFFIX ".index.json"
#define WRAPPER "module." /* which DistributedDataParallel and the like put before each name */
#define WRAPPED "wrapped" /* attribute of a file: how often it stands there */
#define MAX_KEY 1024
#define MAX_NAME 4096 /* of a file */
#define NAME_SHOWN 200

extern const mgr_source_format mgr_source_huggingface;
extern const mgr_source_format mgr_source_moe_recipes;
extern const mgr_source_format mgr_source_mixtral;

/* In the order in which transformers looks for them; an index names further files. */
static const char *const weight_files[] = {"model.safetensors", "model.safetensors" INDEX_SUFFIX,
                                           "pytorch_model.bin", "pytorch_model.bin" INDEX_SUFFIX,
                                           /* of DeepSpeed's zero_to_fp32.py, by habit */
                                           "fp32_model.bin", "fp32_model.bin" INDEX_SUFFIX};

static bool is_file(const char *path)
{
    return mgr_path_exists(path) && !mgr_is_dir(path);
}

static bool probe_huggingface_source(const char *path)
{
    mgr_buf config = {0};
    mgr_err ignored = MGR_ERR_INIT;
    const bool found =
        mgr_buf_fmt(&config, &ignored, "%s/" CONFIG, path) == MGR_OK && is_file(config.data);
    mgr_buf_clear(&config);
    return found;
}

/* ---- which files ---- */

/* A shard lies beside its index, and is of its kind. */
static int check_shard(const char *index, const char *name, mgr_err *err)
{
    const char *const suffix = mgr_has_suffix(index, ".bin" INDEX_SUFFIX) ? ".bin" : ".safetensors";
    char shown[NAME_SHOWN];
    if (!strchr(name, '/') && name[0] != '.' && mgr_has_suffix(name, suffix))
        return MGR_OK;
    return mgr_fail(err, MGR_ERR_FORMAT, "'%s' names the file '%s', which is no '*%s' beside it",
                    index, mgr_printable(name, strlen(name), shown, sizeof shown), suffix);
}

/* What is done with each entry of a weight_map. */
typedef int (*entry_taker)(void *context, const char *tensor, const char *shard, mgr_err *err);

/* The entry whose tensor was read. */
static int scan_shard(mgr_json_scan *s, entry_taker take, void *context, mgr_err *err)
{
    mgr_json_kind kind;
    char tensor[MAX_KEY + 1];
    snprintf(tensor, sizeof tensor, "%s", s->text.data);
    if (s->text.len > MAX_KEY)
        return mgr_fail(err, MGR_ERR_UNSUPPORTED, "a key in '%s' has more than %d bytes",
                        s->reader->name, MAX_KEY);
    MGR_TRY(mgr_json_scan_kind(s, &kind));
    if (kind != MGR_JSON_STRING)
        return mgr_fail(err, MGR_ERR_FORMAT, "a file in the weight_map of '%s' is no text",
                        s->reader->name);
    MGR_TRY(mgr_json_scan_string(s));
    return take(context, tensor, s->text.data, err);
}

static int scan_map(mgr_json_scan *s, entry_taker take, void *context, size_t *n, mgr_err *err)
{
    MGR_TRY(mgr_json_scan_open(s, '{'));
    for (bool more;; ++*n) {
        MGR_TRY(mgr_json_scan_member(s, &more));
        if (!more)
            return MGR_OK;
        MGR_TRY(scan_shard(s, take, context, err));
    }
}

static int scan_members(mgr_json_scan *s, entry_taker take, void *context, mgr_err *err)
{
    size_t n = 0;
    mgr_json_kind kind;
    MGR_TRY(mgr_json_scan_kind(s, &kind));
    if (kind != MGR_JSON_OBJECT)
        return mgr_fail(err, MGR_ERR_FORMAT, "'%s' holds no JSON object", s->reader->name);
    MGR_TRY(mgr_json_scan_open(s, '{'));
    for (bool more;;) {
        MGR_TRY(mgr_json_scan_member(s, &more));
        if (!more)
            break;
        const bool map = strcmp(s->text.data, "weight_map") == 0;
        if (map && n > 0)
            return mgr_fail(err, MGR_ERR_FORMAT, "'%s' has two weight_maps", s->reader->name);
        MGR_TRY(mgr_json_scan_kind(s, &kind));
        MGR_TRY(map && kind == MGR_JSON_OBJECT ? scan_map(s, take, context, &n, err)
                                               : mgr_json_scan_skip(s));
    }
    if (n == 0)
        return mgr_fail(err, MGR_ERR_FORMAT, "'%s' has no weight_map", s->reader->name);
    return mgr_json_scan_end(s);
}

/* An index as it passes: it has an entry for each tensor. */
static int scan_index(const mgr_reader *reader, entry_taker take, void *context, mgr_err *err)
{
    mgr_json_scan *s;
    MGR_TRY(mgr_alloc(&s, 1, sizeof *s, err));
    mgr_json_scan_start(s, reader, 0, reader->size, err);
    s->keep = MAX_NAME;
    const int rc = scan_members(s, take, context, err);
    mgr_json_scan_stop(s);
    mgr_free(s);
    return rc;
}

/* The files that an index names, each once, sorted. */
typedef struct shards {
    const char *index;
    mgr_arena *arena;
    const char **names;
    size_t n, capacity;
} shards;

static int add_shard(void *context, const char *tensor, const char *shard, mgr_err *err)
{
    shards *const l = context;
    size_t from = 0, to = l->n;
    (void)tensor;
    while (from < to) {
        const size_t mid = from + (to - from) / 2;
        const int order = strcmp(l->names[mid], shard);
        if (order == 0)
            return MGR_OK;
        from = order < 0 ? mid + 1 : from;
        to = order < 0 ? to : mid;
    }
    MGR_TRY(check_shard(l->index, shard, err));
    MGR_TRY(mgr_grow(&l->names, &l->capacity, l->n + 1, sizeof *l->names, err));
    memmove(&l->names[from + 1], &l->names[from], (l->n - from) * sizeof *l->names);
    l->n++;
    return mgr_arena_strndup(l->arena, &l->names[from], shard, strlen(shard), err);
}

/* Put the files of an index behind those that `files` has. */
static int add_files(const shards *l, mgr_source_files *files, mgr_err *err)
{
    const char **const had = files->paths;
    MGR_TRY(mgr_arena_alloc(l->arena, &files->paths, (files->n + l->n) * sizeof *had, err));
    memcpy(files->paths, had, files->n * sizeof *had);
    for (size_t i = 0; i < l->n; i++) {
        const char **const path = &files->paths[files->n++];
        MGR_TRY(mgr_arena_fmt(l->arena, path, err, "%s/%s", files->directory, l->names[i]));
        if (!is_file(*path))
            return mgr_fail(err, MGR_ERR_NOT_FOUND, "missing shard '%s', which '%s' names", *path,
                            l->index);
    }
    return MGR_OK;
}

static int read_index(const char *index, mgr_arena *arena, mgr_source_files *files, mgr_err *err)
{
    mgr_reader reader;
    shards l = {.index = index, .arena = arena};
    MGR_TRY(mgr_reader_open(&reader, index, err));
    int rc = scan_index(&reader, add_shard, &l, err);
    mgr_reader_close(&reader);
    if (rc == MGR_OK)
        rc = add_files(&l, files, err);
    mgr_free(l.names);
    return rc;
}

/* config.json first, then the index if there is one, then the weights by name. */
static int find_huggingface_source(const mgr_config *config, mgr_arena *arena,
                                   mgr_source_files *files, mgr_err *err)
{
    const char *const root = config->source.path;
    MGR_TRY(mgr_arena_strndup(arena, &files->directory, root, strlen(root), err));
    MGR_TRY(mgr_arena_alloc(arena, &files->paths, 2 * sizeof *files->paths, err));
    MGR_TRY(mgr_arena_fmt(arena, &files->paths[0], err, "%s/" CONFIG, root));
    if (!is_file(files->paths[0]))
        return mgr_fail(err, MGR_ERR_NOT_FOUND, "no file '%s'", files->paths[0]);
    files->n = 2;
    for (size_t i = 0; i < sizeof weight_files / sizeof weight_files[0]; i++) {
        MGR_TRY(mgr_arena_fmt(arena, &files->paths[1], err, "%s/%s", root, weight_files[i]));
        if (!is_file(files->paths[1]))
            continue;
        return mgr_has_suffix(weight_files[i], INDEX_SUFFIX)
                   ? read_index(files->paths[1], arena, files, err)
                   : MGR_OK;
    }
    return mgr_strange_folder(root, err);
}

/* ---- headers ---- */

static const char *bare(const char *name)
{
    while (mgr_has_prefix(name, WRAPPER))
        name += sizeof WRAPPER - 1;
    return name;
}

static int64_t wrappers_of(const char *name)
{
    return (int64_t)((size_t)(bare(name) - name) / (sizeof WRAPPER - 1));
}

/* Take the wrapper off the names of a file, and note how often it stood there. */
static int unwrap(mgr_catalogue *cat, size_t first, uint32_t file, mgr_err *err)
{
    mgr_attr depth = {.key = WRAPPED, .file = file, .kind = MGR_ATTR_INT};
    char shown[2][NAME_SHOWN];
    if (first < cat->n_stored)
        depth.i = wrappers_of(cat->stored[first].name);
    for (size_t i = first; i < cat->n_stored; i++) {
        const char *const name = cat->stored[i].name, *const other = cat->stored[first].name;
        if (wrappers_of(name) != depth.i && i > first)
            return mgr_fail(
                err, MGR_ERR_FORMAT,
                "'%s' has a tensor '%s', but another one '%s': only some begin with '" WRAPPER "'",
                cat->files[file].path, mgr_printable(name, strlen(name), shown[0], NAME_SHOWN),
                mgr_printable(other, strlen(other), shown[1], NAME_SHOWN));
    }
    for (size_t i = first; i < cat->n_stored; i++)
        cat->stored[i].name = bare(cat->stored[i].name);
    return mgr_catalogue_add_attr(cat, &depth, err);
}

/* An index on its way into attributes. */
typedef struct noting {
    mgr_catalogue *cat;
    uint32_t file;
} noting;

/* What an index says, as attributes "weight_map.TENSOR". */
static int keep_entry(void *context, const char *tensor, const char *shard, mgr_err *err)
{
    const noting *const f = context;
    char key[sizeof MGR_HF_WEIGHT_MAP + MAX_KEY];
    snprintf(key, sizeof key, MGR_HF_WEIGHT_MAP "%s", bare(tensor));
    const mgr_attr attr = {.key = key, .file = f->file, .kind = MGR_ATTR_TEXT, .text = shard};
    return mgr_catalogue_add_attr(f->cat, &attr, err);
}

static int read_json(mgr_catalogue *cat, uint32_t file, const mgr_reader *reader, mgr_err *err)
{
    noting n = {cat, file};
    return mgr_has_suffix(reader->name, INDEX_SUFFIX)
               ? scan_index(reader, keep_entry, &n, err)
               : mgr_huggingface_read_config(cat, file, reader, err);
}

/* Old checkpoints hold the frequencies of RoPE and what follows from them. */
static bool is_buffer(const char *name)
{
    static const char *const buffers[] = {"rotary_emb.inv_freq", "rotary_emb.original_inv_freq",
                                          "rotary_emb.cos_cached", "rotary_emb.sin_cached"};
    for (size_t i = 0; i < sizeof buffers / sizeof buffers[0]; i++)
        if (mgr_has_suffix(name, buffers[i]))
            return true;
    return false;
}

static void skip_buffers(mgr_catalogue *cat, size_t first)
{
    size_t kept = first;
    for (size_t i = first; i < cat->n_stored; i++) {
        if (is_buffer(cat->stored[i].name))
            cat->skipped[MGR_SKIP_OTHER]++;
        else
            cat->stored[kept++] = cat->stored[i];
    }
    cat->n_stored = kept;
}

static int read_huggingface_file(mgr_catalogue *cat, uint32_t file, const mgr_reader *reader,
                                 void **held, mgr_err *err)
{
    (void)held;
    const size_t first = cat->n_stored;
    if (mgr_has_suffix(reader->name, ".json"))
        return read_json(cat, file, reader, err);
    MGR_TRY(mgr_strange_file(reader, err));
    if (mgr_has_suffix(reader->name, ".bin"))
        MGR_TRY(mgr_torch_file_read_flat(cat, file, reader, err));
    else
        MGR_TRY(mgr_safetensors_read(cat, file, reader, err));
    MGR_TRY(unwrap(cat, first, file, err));
    skip_buffers(cat, first);
    MGR_TRY(mgr_huggingface_sample(cat, first, file, reader, err));
    mgr_huggingface_fp8_take(cat, first);
    return MGR_OK;
}

/* ---- what was found ---- */

static int by_name(const void *a, const void *b)
{
    const mgr_stored *const *const x = a, *const *const y = b;
    return strcmp((*x)->name, (*y)->name);
}

/* All tensors by name, each once. */
static int sort_tensors(const mgr_catalogue *cat, const mgr_stored **sorted, mgr_err *err)
{
    char shown[NAME_SHOWN];
    for (size_t i = 0; i < cat->n_stored; i++)
        sorted[i] = &cat->stored[i];
    qsort(sorted, cat->n_stored, sizeof *sorted, by_name);
    for (size_t i = 1; i < cat->n_stored; i++)
        if (strcmp(sorted[i - 1]->name, sorted[i]->name) == 0)
            return mgr_fail(
                err, MGR_ERR_FORMAT, "tensor '%s' is both in '%s' and in '%s'",
                mgr_printable(sorted[i]->name, strlen(sorted[i]->name), shown, sizeof shown),
                cat->files[sorted[i - 1]->file].path, cat->files[sorted[i]->file].path);
    return MGR_OK;
}

static const char *base_name(const char *path)
{
    const char *const slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* One entry of the index must be in the file that it says. */
static int check_entry(const mgr_catalogue *cat, const mgr_attr *entry,
                       const mgr_stored *const *sorted, uint8_t *listed, mgr_err *err)
{
    const mgr_stored wanted = {.name = entry->key + sizeof MGR_HF_WEIGHT_MAP - 1};
    const mgr_stored *const key = &wanted;
    char shown[NAME_SHOWN];
    if (is_buffer(wanted.name))
        return MGR_OK;
    const mgr_stored *const *const found =
        bsearch(&key, sorted, cat->n_stored, sizeof *sorted, by_name);
    if (found && entry->kind == MGR_ATTR_TEXT &&
        strcmp(base_name(cat->files[(*found)->file].path), entry->text) == 0) {
        listed[found - sorted] = 1;
        return MGR_OK;
    }
    return mgr_fail(err, MGR_ERR_FORMAT,
                    "'%s' says that tensor '%s' is in '%.200s', but it is %s%s",
                    cat->files[entry->file].path,
                    mgr_printable(wanted.name, strlen(wanted.name), shown, sizeof shown),
                    entry->kind == MGR_ATTR_TEXT ? entry->text : "?", found ? "in " : "not there",
                    found ? base_name(cat->files[(*found)->file].path) : "");
}

static int check_index(const mgr_catalogue *cat, uint32_t index, const mgr_stored *const *sorted,
                       uint8_t *listed, mgr_err *err)
{
    char shown[NAME_SHOWN];
    for (size_t i = 0; i < cat->n_attrs; i++)
        if (cat->attrs[i].file == index && mgr_has_prefix(cat->attrs[i].key, MGR_HF_WEIGHT_MAP))
            MGR_TRY(check_entry(cat, &cat->attrs[i], sorted, listed, err));
    for (size_t i = 0; i < cat->n_stored; i++)
        if (!listed[i])
            return mgr_fail(
                err, MGR_ERR_FORMAT, "tensor '%s' of '%s' is not in '%s'",
                mgr_printable(sorted[i]->name, strlen(sorted[i]->name), shown, sizeof shown),
                cat->files[sorted[i]->file].path, base_name(cat->files[index].path));
    return MGR_OK;
}

/* No tensor twice, and the index, if there is one, agrees with the files. */
static int check_files(const mgr_catalogue *cat, bool indexed, mgr_err *err)
{
    const mgr_stored **sorted = NULL;
    uint8_t *listed = NULL;
    int rc = mgr_alloc(&sorted, cat->n_stored, sizeof *sorted, err);
    if (rc == MGR_OK)
        rc = mgr_alloc(&listed, cat->n_stored, 1, err);
    if (rc == MGR_OK)
        rc = sort_tensors(cat, sorted, err);
    if (rc == MGR_OK && indexed)
        rc = check_index(cat, 1, sorted, listed, err);
    mgr_free(sorted);
    mgr_free(listed);
    return rc;
}

/* All files of the weights, or none. */
static int check_wrappers(const mgr_catalogue *cat, uint32_t first, mgr_err *err)
{
    const mgr_attr *const want = mgr_catalogue_attr(cat, first, WRAPPED);
    for (uint32_t f = first + 1; f < cat->n_files; f++) {
        const mgr_attr *const got = mgr_catalogue_attr(cat, f, WRAPPED);
        if (want && got && got->i != want->i)
            return mgr_fail(err, MGR_ERR_FORMAT,
                            "the names of the tensors begin with '" WRAPPER
                            "' in '%s', but not in '%s'",
                            cat->files[got->i > want->i ? f : first].path,
                            cat->files[got->i > want->i ? first : f].path);
    }
    return MGR_OK;
}

static int describe_huggingface_source(const mgr_catalogue *cat, const mgr_config *config,
                                       void **out, mgr_model *model, mgr_err *err)
{
    const bool indexed = mgr_has_suffix(cat->files[1].path, INDEX_SUFFIX);
    mgr_huggingface hf = {.config = 0, .first_file = indexed ? 2 : 1};
    mgr_huggingface *state;
    hf.n_files = (uint32_t)cat->n_files - hf.first_file;
    MGR_TRY(check_wrappers(cat, hf.first_file, err));
    MGR_TRY(check_files(cat, indexed, err));
    MGR_TRY(mgr_huggingface_fp8_check(cat, err));
    MGR_TRY(mgr_strange_tensors(cat, err));
    MGR_TRY(mgr_huggingface_model(cat, config, &hf, model, err));
    MGR_TRY(mgr_huggingface_check_tied(cat, model, err));
    MGR_TRY(mgr_alloc(&state, 1, sizeof *state, err));
    *state = hf;
    *out = state;
    return MGR_OK;
}

static int opaque(const void *state, const mgr_catalogue *cat, mgr_tensors *tensors, mgr_err *err)
{
    return mgr_huggingface_opaque(cat, state, tensors, err);
}

static int layout_huggingface_source(const void *state, mgr_layout *into, mgr_err *err)
{
    MGR_TRY(mgr_huggingface_layout(into, state, err));
    return mgr_huggingface_fp8_layout(into, err);
}

static int summary_huggingface_source(const void *state, mgr_buf *out, mgr_err *err)
{
    const mgr_huggingface *const hf = state;
    return mgr_buf_fmt(out, err, "%s%s, weights in %u file%s",
                       hf->type ? hf->type : mgr_huggingface_family(hf->class)->name,
                       mgr_huggingface_is_fused(hf->ffn) ? " with fused experts" : "", hf->n_files,
                       hf->n_files == 1 ? "" : "s");
}

/* Weights that are there and are not read. */
static int review_files(const mgr_catalogue *cat, mgr_remarks *remarks, mgr_err *err)
{
    static const char *const others[] = {"adapter_model.safetensors", "adapter_model.bin",
                                         "adapter_config.json"};
    mgr_arena arena = {0};
    const char *directory, *other;
    bool adapter = false;
    int rc = mgr_dirname(cat->files[0].path, &arena, &directory, err);
    for (size_t i = 0; rc == MGR_OK && i < sizeof others / sizeof others[0] && !adapter; i++) {
        rc = mgr_arena_fmt(&arena, &other, err, "%s/%s", directory, others[i]);
        adapter = rc == MGR_OK && is_file(other);
        if (adapter)
            rc = mgr_remarks_say(remarks, MGR_REMARK_WARNING, err,
                                 "'%s' belongs to an adapter, which is not applied; merge it first",
                                 others[i]);
    }
    const char *const taken = base_name(cat->files[1].path);
    for (size_t i = 0; rc == MGR_OK && i < sizeof weight_files / sizeof weight_files[0]; i++) {
        rc = mgr_arena_fmt(&arena, &other, err, "%s/%s", directory, weight_files[i]);
        if (rc == MGR_OK && is_file(other) && strcmp(weight_files[i], taken) != 0)
            rc = mgr_remarks_say(remarks, MGR_REMARK_WARNING, err,
                                 "there are two sets of weights: '%s' is read, as transformers "
                                 "does, '%s' is not",
                                 taken, weight_files[i]);
    }
    mgr_arena_clear(&arena);
    return rc;
}

static int review_huggingface_source(const void *state, const mgr_catalogue *cat,
                                     const mgr_config *config, mgr_remarks *remarks, mgr_err *err)
{
    (void)config;
    MGR_TRY(mgr_huggingface_review_config(state, cat, remarks, err));
    if (mgr_huggingface_fp8_is(cat))
        MGR_TRY(mgr_remarks_say(remarks, MGR_REMARK_WARNING, err,
                                "weights in FP8 with a scale for each block are read as bfloat16"));
    return review_files(cat, remarks, err);
}

static void release_huggingface_source(void *state)
{
    mgr_free(state);
}

static const mgr_key keys[] = {MGR_ROW_UNKNOWN, MGR_ROW_MTP};

const mgr_source_format mgr_source_huggingface = {
    .name = "huggingface",
    .keys = MGR_KEY_TABLE(MGR_OWNER_SOURCE, "huggingface", keys),
    .probe = probe_huggingface_source,
    .find = find_huggingface_source,
    .read = read_huggingface_file,
    .describe = describe_huggingface_source,
    .opaque = opaque,
    .layout = layout_huggingface_source,
    .summary = summary_huggingface_source,
    .review = review_huggingface_source,
    .release = release_huggingface_source,
    .fetch = mgr_huggingface_fp8_fetch,
    .fetched = mgr_huggingface_fp8_fetched,
};

/* Found by its name alone: what can be probed is `huggingface`. */
static bool probe_nothing(const char *path)
{
    (void)path;
    return false;
}

const mgr_source_format mgr_source_moe_recipes = {
    .name = "moe-recipes",
    .keys = MGR_KEY_TABLE(MGR_OWNER_SOURCE, "moe-recipes", keys),
    .probe = probe_nothing,
    .find = find_huggingface_source,
    .read = read_huggingface_file,
    .describe = describe_huggingface_source,
    .opaque = opaque,
    .layout = layout_huggingface_source,
    .summary = summary_huggingface_source,
    .review = review_huggingface_source,
    .release = release_huggingface_source,
    .fetch = mgr_huggingface_fp8_fetch,
    .fetched = mgr_huggingface_fp8_fetched,
};

const mgr_source_format mgr_source_mixtral = {
    .name = "mixtral",
    .keys = MGR_KEY_TABLE(MGR_OWNER_SOURCE, "mixtral", keys),
    .probe = probe_nothing,
    .find = find_huggingface_source,
    .read = read_huggingface_file,
    .describe = describe_huggingface_source,
    .opaque = opaque,
    .layout = layout_huggingface_source,
    .summary = summary_huggingface_source,
    .review = review_huggingface_source,
    .release = release_huggingface_source,
    .fetch = mgr_huggingface_fp8_fetch,
    .fetched = mgr_huggingface_fp8_fetched,
};
