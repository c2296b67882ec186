#include "form/sidecar.h"

#include "form/huggingface_compose.h"

#include <stdio.h>
#include <string.h>

#include "core/mem.h"
#include "fmt/json.h"
#include "form/strange.h"
#include "io/file.h"

#define MAX_SIDECAR ((uint64_t)256 << 20)
#define GENERATION "generation_config.json"

int mgr_sidecar_json(const char *directory, const char *name, const json_t *value, mgr_err *err)
{
    mgr_buf path = {0}, text = {0};
    int rc = mgr_buf_fmt(&path, err, "%s/%s", directory, name);
    if (rc == MGR_OK)
        rc = mgr_json_dump(value, 2, &text, err);
    if (rc == MGR_OK)
        rc = mgr_write_file(path.data, text.data, text.len, err);
    mgr_buf_clear(&path);
    mgr_buf_clear(&text);
    return rc;
}

/* ---- where things lie ---- */

static bool is_file(const char *path)
{
    return mgr_path_exists(path) && !mgr_is_dir(path);
}

static bool is_carried(const char *name)
{
    return mgr_tokenizer_is_file(name) || mgr_tokenizer_is_companion(name);
}

/* Does the folder have a tokenizer's file? */
static bool has_tokenizer(const char *directory)
{
    mgr_arena arena = {0};
    mgr_err ignored = MGR_ERR_INIT;
    const char **names;
    size_t n = 0;
    bool found = false;
    if (mgr_is_dir(directory) && mgr_list_dir(directory, &arena, &names, &n, &ignored) == MGR_OK)
        for (size_t i = 0; i < n && !found; i++)
            found = mgr_tokenizer_is_file(names[i]);
    mgr_arena_clear(&arena);
    return found;
}

static const char *base_name(const char *path)
{
    const char *const slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* A tokenizer's file that the user named: what it is called in the output. */
static const char *name_of_file(const char *path)
{
    const char *const name = base_name(path);
    return mgr_tokenizer_is_file(name)      ? name
           : mgr_has_suffix(name, ".model") ? "tokenizer.model"
           : mgr_has_suffix(name, ".json")  ? "tokenizer.json"
                                            : NULL;
}

int mgr_sidecar_check_tokenizer(const mgr_config *config, mgr_err *err)
{
    const char *const from = config->source.tokenizer;
    if (from[0] == '\0' || has_tokenizer(from) || (is_file(from) && name_of_file(from)))
        return MGR_OK;
    if (is_file(from))
        return mgr_config_fail(config, "source.tokenizer", err,
                               "'%s' is no file of a tokenizer, by its name", from);
    return mgr_config_fail(config, "source.tokenizer", err, "no tokenizer file in '%s'", from);
}

int mgr_sidecar_find_tokenizer(const mgr_output *output, mgr_arena *arena, const char **out,
                               mgr_err *err)
{
    const char *const given = output->config->source.tokenizer;
    const char *places[] = {output->origin ? output->origin->directory : NULL, NULL,
                            output->config->source.path};
    *out = given[0] ? given : NULL;
    if (given[0] || !places[0])
        return MGR_OK;
    MGR_TRY(mgr_arena_fmt(arena, &places[1], err, "%s/tokenizer", places[0]));
    for (size_t i = 0; i < sizeof places / sizeof places[0] && !*out; i++)
        *out = has_tokenizer(places[i]) ? places[i] : NULL;
    return MGR_OK;
}

int mgr_sidecar_find_generation(const mgr_output *output, mgr_arena *arena, const char **out,
                                mgr_err *err)
{
    const char *const from = output->origin ? output->origin->directory : NULL;
    const char *const given = output->config->source.tokenizer;
    const char *paths[3];
    *out = NULL;
    if (!from)
        return MGR_OK;
    MGR_TRY(mgr_arena_fmt(arena, &paths[0], err, "%s/" GENERATION, from));
    MGR_TRY(mgr_arena_fmt(arena, &paths[1], err, "%s/tokenizer/" GENERATION, from));
    MGR_TRY(mgr_arena_fmt(arena, &paths[2], err, "%s/" GENERATION, given));
    for (size_t i = 0; i < 2u + (given[0] != '\0') && !*out; i++)
        *out = is_file(paths[i]) ? paths[i] : NULL;
    return MGR_OK;
}

/* ---- what is carried ---- */

typedef int (*visit)(const char *from, const char *to, const char *name, mgr_err *err);

/* `act` on each of a folder's files that are carried. */
static int for_each(const char *from, const char *to, visit act, mgr_err *err)
{
    mgr_arena arena = {0};
    const char **names;
    size_t n;
    int rc = mgr_list_dir(from, &arena, &names, &n, err);
    for (size_t i = 0; rc == MGR_OK && i < n; i++)
        if (is_carried(names[i]))
            rc = act(from, to, names[i], err);
    mgr_arena_clear(&arena);
    return rc;
}

/* What stands for a tokenizer's file and is none would be copied as if it were one. */
static int check_pointer(const char *path, mgr_err *err)
{
    mgr_reader reader;
    MGR_TRY(mgr_reader_open(&reader, path, err));
    const int rc = reader.size ? mgr_strange_file(&reader, err) : MGR_OK;
    mgr_reader_close(&reader);
    return rc;
}

static int check_one(const char *from, const char *to, const char *name, mgr_err *err)
{
    mgr_buf path = {0};
    (void)to;
    int rc = mgr_buf_fmt(&path, err, "%s/%s", from, name);
    if (rc == MGR_OK)
        rc = mgr_check_link(path.data, from, err);
    if (rc == MGR_OK && !mgr_is_dir(path.data))
        rc = mgr_check_file(path.data, MAX_SIDECAR, err);
    if (rc == MGR_OK && !mgr_is_dir(path.data) && mgr_tokenizer_is_file(name))
        rc = check_pointer(path.data, err);
    mgr_buf_clear(&path);
    return rc;
}

static int copy_file(const char *from, const char *to, mgr_err *err)
{
    mgr_buf bytes = {0};
    int rc = mgr_read_file(from, MAX_SIDECAR, &bytes, err);
    if (rc == MGR_OK)
        rc = mgr_write_file(to, bytes.data ? bytes.data : "", bytes.len, err);
    mgr_buf_clear(&bytes);
    return rc;
}

/* A folder of templates; what lies deeper is no template. */
int mgr_sidecar_copy_folder(const char *from, const char *to, mgr_err *err)
{
    mgr_arena arena = {0};
    const char **names, *in, *out;
    size_t n;
    int rc = mgr_list_dir(from, &arena, &names, &n, err);
    if (rc == MGR_OK)
        rc = mgr_make_dirs(to, err);
    for (size_t i = 0; rc == MGR_OK && i < n; i++) {
        rc = check_one(from, NULL, names[i], err);
        if (rc == MGR_OK)
            rc = mgr_arena_fmt(&arena, &in, err, "%s/%s", from, names[i]);
        if (rc == MGR_OK)
            rc = mgr_arena_fmt(&arena, &out, err, "%s/%s", to, names[i]);
        if (rc == MGR_OK && is_file(in))
            rc = copy_file(in, out, err);
    }
    if (rc == MGR_OK)
        rc = mgr_sync_dir(to, err);
    mgr_arena_clear(&arena);
    return rc;
}

static int copy_one(const char *from, const char *to, const char *name, mgr_err *err)
{
    mgr_buf in = {0}, out = {0};
    int rc = check_one(from, to, name, err);
    if (rc == MGR_OK)
        rc = mgr_buf_fmt(&in, err, "%s/%s", from, name);
    if (rc == MGR_OK)
        rc = mgr_buf_fmt(&out, err, "%s/%s", to, name);
    if (rc == MGR_OK)
        rc = mgr_is_dir(in.data) ? mgr_sidecar_copy_folder(in.data, out.data, err)
                                 : copy_file(in.data, out.data, err);
    mgr_buf_clear(&in);
    mgr_buf_clear(&out);
    return rc;
}

static int copy_named(const char *path, const char *directory, mgr_err *err)
{
    mgr_buf out = {0};
    int rc = mgr_buf_fmt(&out, err, "%s/%s", directory, name_of_file(path));
    if (rc == MGR_OK)
        rc = copy_file(path, out.data, err);
    mgr_buf_clear(&out);
    return rc;
}

/* config.json of a Hugging Face source, kept in a Megatron checkpoint for the way back. */
static int keep_config(const mgr_output *output, const char *directory, mgr_arena *arena,
                       mgr_err *err)
{
    const bool megatron = mgr_has_prefix(output->config->target.format, "megatron");
    const mgr_attr *const text =
        output->origin ? mgr_catalogue_attr(output->origin->cat, 0, MGR_HF_CONFIG_TEXT) : NULL;
    const char *to;
    if (!megatron || !text)
        return MGR_OK;
    MGR_TRY(mgr_arena_fmt(arena, &to, err, "%s/config.json", directory));
    return mgr_write_file(to, text->text, strlen(text->text), err);
}

static int copy_all(const mgr_output *output, const char *directory, mgr_arena *arena, mgr_err *err)
{
    const char *tokenizer, *generation, *to;
    MGR_TRY(mgr_sidecar_find_tokenizer(output, arena, &tokenizer, err));
    MGR_TRY(mgr_sidecar_find_generation(output, arena, &generation, err));
    MGR_TRY(keep_config(output, directory, arena, err));
    if (tokenizer)
        MGR_TRY(is_file(tokenizer) ? copy_named(tokenizer, directory, err)
                                   : for_each(tokenizer, directory, copy_one, err));
    if (!generation)
        return MGR_OK;
    MGR_TRY(mgr_arena_fmt(arena, &to, err, "%s/" GENERATION, directory));
    return copy_file(generation, to, err);
}

int mgr_sidecar_copy(const mgr_output *output, const char *directory, mgr_err *err)
{
    mgr_arena arena = {0};
    const int rc = copy_all(output, directory, &arena, err);
    mgr_arena_clear(&arena);
    return rc;
}

static int check_named(const char *path, mgr_err *err)
{
    MGR_TRY(mgr_check_file(path, MAX_SIDECAR, err));
    return check_pointer(path, err);
}

static int check_all(const mgr_output *output, mgr_arena *arena, mgr_err *err)
{
    const char *tokenizer, *generation, *folder;
    MGR_TRY(mgr_sidecar_find_tokenizer(output, arena, &tokenizer, err));
    MGR_TRY(mgr_sidecar_find_generation(output, arena, &generation, err));
    if (tokenizer && mgr_is_dir(tokenizer))
        MGR_TRY(for_each(tokenizer, NULL, check_one, err));
    else if (tokenizer)
        MGR_TRY(check_named(tokenizer, err));
    if (!generation)
        return MGR_OK;
    MGR_TRY(mgr_check_file(generation, MAX_SIDECAR, err));
    MGR_TRY(mgr_dirname(generation, arena, &folder, err));
    return mgr_check_link(generation, folder, err);
}

int mgr_sidecar_check(const mgr_output *output, mgr_err *err)
{
    mgr_arena arena = {0};
    const int rc = check_all(output, &arena, err);
    mgr_arena_clear(&arena);
    return rc;
}
