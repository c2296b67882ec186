#include "form/occupant.h"

#include <fnmatch.h>
#include <jansson.h>
#include <stdbool.h>
#include <string.h>

#include "fmt/json.h"
#include "form/megatron_root.h"
#include "form/source.h"
#include "form/tokenizer.h"
#include "io/file.h"

#define MANIFEST "mgr-manifest.json"
#define MAX_MANIFEST ((uint64_t)1 << 30)
#define SHOWN 3

/* What the files of a format are called, as fnmatch(3) has patterns; paths are relative to the
 * folder of the tensors, for Megatron that of the latest iteration. */
static const struct kind {
    const char *format;
    const char *weights[4]; /* without one of these it is no checkpoint */
    const char *beside[24]; /* and the tokenizer's */
} kinds[] = {
    {"huggingface",
     {"model*.safetensors", "pytorch_model*.bin"},
     {"config.json", "generation_config.json", "model.safetensors.index.json",
      "pytorch_model.bin.index.json", "additional_chat_templates/*.jinja", "*.tiktoken",
      "README.md", "LICENSE*", "NOTICE*", "USE_POLICY.md", ".gitattributes"}},
    {"hdf5", {"shared.h5", "experts-*.h5"}, {"model.h5", "config.json", "generation_config.json"}},
    {"deepspeed",
     {"*/zero/*/fp32.pt", "*/*zero_pp_rank_[0-9]*_optim_states.pt"},
     {"latest", "latest_universal", "config.json", "generation_config.json", "zero_to_fp32.py",
      "*/zero/*/*.pt", "*/zero/optimizer_state.pt", "*/*mp_rank_[0-9]*_model_states.pt"}},
    {"megatron-torch",
     {"mp_rank_[0-9]*/model_optim_rng.pt", "mp_rank_[0-9]*/model_rng.pt"},
     {"mp_rank_[0-9]*/distrib_optim.pt"}},
    {"megatron-dist",
     {".metadata"},
     {"*.distcp", "common.pt", "metadata.json", "integrity.json", "tokenizer/*"}},
};

/* Beside the iteration's folder, in its root. */
static const char *const megatron_root[] = {MGR_MEGATRON_TRACKER, "progress.txt", NULL};

typedef struct occupied {
    mgr_arena arena;
    const char **names; /* all that is there */
    size_t n;
    const struct kind *kind;
    const char *inner; /* "iter_0000007/", or "" */
    json_t *own;       /* {path: null} by a manifest; NULL without one */
} occupied;

static bool matches(const char *const *patterns, const char *name)
{
    for (; *patterns; patterns++)
        if (fnmatch(*patterns, name, FNM_PATHNAME | FNM_PERIOD) == 0)
            return true;
    return false;
}

/* What lies in the folder of any format. */
static bool is_common(const char *name)
{
    return strcmp(name, MANIFEST) == 0 || strcmp(name, "provenance.h5") == 0 ||
           mgr_tokenizer_is_file(name) || mgr_tokenizer_is_companion(name);
}

/* Behind the folder of the tensors; NULL outside of it. */
static const char *inner_name(const occupied *o, const char *name)
{
    return mgr_has_prefix(name, o->inner) ? name + strlen(o->inner) : NULL;
}

static bool belongs(const occupied *o, const char *name)
{
    const char *const inner = inner_name(o, name);
    if (o->own)
        return json_object_get(o->own, name) != NULL;
    if (is_common(name) || (o->inner[0] && matches(megatron_root, name)))
        return true;
    return inner && (matches(o->kind->weights, inner) || matches(o->kind->beside, inner));
}

static void add_paths(json_t *own, const json_t *list)
{
    size_t i;
    const json_t *entry;
    json_array_foreach(list, i, entry)
    {
        const json_t *const path = json_is_object(entry) ? json_object_get(entry, "path") : entry;
        if (json_is_string(path))
            json_object_set_new(own, json_string_value(path), json_null());
    }
}

/* A manifest that is not ours, or makes no sense, is passed over: then the format decides. */
static void read_manifest(occupied *o, const char *path)
{
    mgr_err ignored = MGR_ERR_INIT;
    mgr_buf name = {0}, text = {0};
    json_t *root = NULL;
    if (mgr_buf_fmt(&name, &ignored, "%s/" MANIFEST, path) == MGR_OK &&
        mgr_read_file(name.data, MAX_MANIFEST, &text, &ignored) == MGR_OK &&
        mgr_json_parse(&root, name.data, text.data, text.len, &ignored) == MGR_OK &&
        json_is_string(json_object_get(root, "program")) &&
        strcmp(json_string_value(json_object_get(root, "program")), "mgr-upcycle") == 0 &&
        json_is_array(json_object_get(root, "files"))) {
        o->own = json_pack("{s:n}", MANIFEST);
        add_paths(o->own, json_object_get(root, "files"));
    }
    json_decref(root);
    mgr_buf_clear(&name);
    mgr_buf_clear(&text);
}

/* The folder of a Megatron checkpoint's latest iteration, relative to its root. */
static int find_inner(occupied *o, const char *path, mgr_err *err)
{
    const char *directory;
    o->inner = "";
    if (!mgr_megatron_has_tracker(path))
        return MGR_OK;
    MGR_TRY(mgr_megatron_find_iteration(path, "latest", &o->arena, &directory, err));
    return mgr_arena_fmt(&o->arena, &o->inner, err, "%s/", directory + strlen(path) + 1);
}

static const struct kind *kind_of(const char *format)
{
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++)
        if (strcmp(kinds[i].format, format) == 0)
            return &kinds[i];
    return NULL;
}

static bool has_weights(const occupied *o)
{
    for (size_t i = 0; i < o->n; i++) {
        const char *const inner = inner_name(o, o->names[i]);
        if (inner && matches(o->kind->weights, inner))
            return true;
    }
    return false;
}

/* By its manifest, else by the probes of the formats. */
static int recognise(occupied *o, const char *path, mgr_err *err)
{
    const mgr_source_format *const format = mgr_source_probe(path);
    mgr_err ignored = MGR_ERR_INIT;
    read_manifest(o, path);
    o->kind = format ? kind_of(format->name) : NULL;
    if (o->kind && find_inner(o, path, &ignored) != MGR_OK)
        o->kind = NULL;
    if (o->own || (o->kind && has_weights(o)))
        return MGR_OK;
    mgr_fail(err, MGR_ERR_EXISTS, "'%s' is no checkpoint, and --force replaces nothing else", path);
    return mgr_hint(err, "choose another target.path, or move it away yourself");
}

static int name_foreign(const occupied *o, const char *path, mgr_err *err)
{
    mgr_buf list = {0};
    size_t foreign = 0;
    int rc = MGR_OK;
    for (size_t i = 0; i < o->n && rc == MGR_OK; i++)
        if (!belongs(o, o->names[i]) && foreign++ < SHOWN)
            rc = mgr_buf_fmt(&list, err, "%s'%s'", foreign > 1 ? ", " : "", o->names[i]);
    if (rc == MGR_OK && foreign > SHOWN)
        rc = mgr_buf_fmt(&list, err, " and %zu more", foreign - SHOWN);
    if (rc == MGR_OK && foreign) {
        mgr_fail(err, MGR_ERR_EXISTS, "'%s' holds what is not of its checkpoint: %s", path,
                 list.data);
        rc = mgr_hint(err, "move that away, or choose another target.path");
    }
    mgr_buf_clear(&list);
    return rc;
}

static int check_directory(occupied *o, const char *path, mgr_occupant *found, mgr_err *err)
{
    MGR_TRY(mgr_list_tree(path, &o->arena, &o->names, &o->n, err));
    *found = (mgr_occupant){"empty directory", o->n};
    if (o->n == 0)
        return MGR_OK;
    MGR_TRY(recognise(o, path, err));
    found->kind = o->kind ? o->kind->format : "output of mgr-upcycle";
    return name_foreign(o, path, err);
}

int mgr_occupant_check(const char *path, mgr_occupant *found, mgr_err *err)
{
    occupied o = {.inner = ""};
    if (mgr_is_link(path)) {
        *found = (mgr_occupant){"link", 0};
        return MGR_OK;
    }
    if (!mgr_is_dir(path)) {
        mgr_fail(err, MGR_ERR_EXISTS, "'%s' is no directory", path);
        return mgr_hint(err, "choose another target.path, or move it away yourself");
    }
    const int rc = check_directory(&o, path, found, err);
    json_decref(o.own);
    mgr_arena_clear(&o.arena);
    return rc;
}
