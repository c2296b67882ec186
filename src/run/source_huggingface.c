/*
 * Source `huggingface`: a directory with config.json and the weights of a dense Llama or Mistral,
 * in one file or in shards with an index (transformers' modeling_utils.py).
 */
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "core/mem.h"
#include "fmt/json.h"
#include "fmt/safetensors.h"
#include "fmt/torch_file.h"
#include "io/file.h"
#include "model/llama.h"
#include "run/source.h"

#define CONFIG "config.json"
#define INDEX_SUFFIX ".index.json"
#define WEIGHT_MAP "weight_map."
#define MAX_JSON ((uint64_t)64 << 20)
#define MAX_ATTRS ((size_t)64 << 20) /* bytes of all keys and texts of one JSON file */
#define MAX_KEY 1024
#define MAX_DEPTH 5
#define NAME_SHOWN 200

extern const mgr_source_format mgr_source_huggingface;

/* In the order in which transformers looks for them; an index names further files. */
static const char *const weight_files[] = {"model.safetensors", "model.safetensors" INDEX_SUFFIX,
                                           "pytorch_model.bin", "pytorch_model.bin" INDEX_SUFFIX};

static bool is_file(const char *path)
{
    return mgr_path_exists(path) && !mgr_is_dir(path);
}

static bool probe(const char *path)
{
    mgr_buf config = {0};
    mgr_err ignored = MGR_ERR_INIT;
    const bool found =
        mgr_buf_fmt(&config, &ignored, "%s/" CONFIG, path) == MGR_OK && is_file(config.data);
    mgr_buf_clear(&config);
    return found;
}

/* ---- which files ---- */

static int by_text(const void *a, const void *b)
{
    const char *const *const x = a, *const *const y = b;
    return strcmp(*x, *y);
}

/* A shard lies beside its index, and is of its kind. */
static int check_shard(const char *index, const json_t *shard, const char *suffix, mgr_err *err)
{
    const char *const name = json_string_value(shard);
    char shown[NAME_SHOWN];
    if (!name)
        return mgr_fail(err, MGR_ERR_FORMAT, "a file in the weight_map of '%s' is no text", index);
    if (!strchr(name, '/') && name[0] != '.' && mgr_has_suffix(name, suffix))
        return MGR_OK;
    return mgr_fail(err, MGR_ERR_FORMAT, "'%s' names the file '%s', which is no '*%s' beside it",
                    index, mgr_printable(name, strlen(name), shown, sizeof shown), suffix);
}

/* The files of a weight_map, sorted, each once, behind those that `files` has. */
static int add_shards(const char *index, json_t *map, mgr_arena *arena, mgr_source_files *files,
                      mgr_err *err)
{
    const char *const suffix = strstr(index, ".safetensors.") ? ".safetensors" : ".bin";
    const size_t all = json_object_size(map), first = files->n;
    const char **paths, *tensor;
    json_t *shard;
    MGR_TRY(mgr_arena_alloc(arena, &paths, (first + all) * sizeof *paths, err));
    memcpy(paths, files->paths, first * sizeof *paths);
    size_t n = first;
    json_object_foreach(map, tensor, shard)
    {
        MGR_TRY(check_shard(index, shard, suffix, err));
        paths[n++] = json_string_value(shard);
    }
    qsort(paths + first, n - first, sizeof *paths, by_text);
    files->paths = paths;
    for (size_t i = first; i < n; i++) {
        if (i > first && strcmp(paths[i], paths[i - 1]) == 0)
            continue;
        const char *path;
        MGR_TRY(mgr_arena_fmt(arena, &path, err, "%s/%s", files->directory, paths[i]));
        if (!is_file(path))
            return mgr_fail(err, MGR_ERR_NOT_FOUND, "missing shard '%s', which '%s' names", path,
                            index);
        files->paths[files->n] = path;
        /* the place at hand is behind it, or it; paths[i - 1] must stay what it was */
        if (files->n++ == i)
            continue;
    }
    return MGR_OK;
}
