#include "form/megatron_root.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/file.h"
#include "mgr/config.h"

#define TRACKER MGR_MEGATRON_TRACKER

bool mgr_megatron_is_rank_folder(const char *name)
{
    return mgr_has_prefix(name, "mp_rank_") && isdigit((unsigned char)name[8]) &&
           strspn(name + 8, "0123456789_") == strlen(name + 8);
}

static bool has_rank_folders(const char *directory)
{
    mgr_arena arena = {0};
    mgr_err ignored = MGR_ERR_INIT;
    const char **names;
    size_t n = 0;
    bool found = false;
    if (mgr_is_dir(directory) && mgr_list_dir(directory, &arena, &names, &n, &ignored) == MGR_OK)
        for (size_t i = 0; i < n && !found; i++)
            found = mgr_megatron_is_rank_folder(names[i]);
    mgr_arena_clear(&arena);
    return found;
}

static bool has_file(const char *directory, const char *name)
{
    char path[MGR_CONFIG_TEXT + 64];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    return mgr_path_exists(path);
}

mgr_megatron_kind mgr_megatron_kind_of(const char *directory)
{
    if (has_file(directory, "metadata.json"))
        return MGR_MEGATRON_DIST;
    if (has_rank_folders(directory))
        return MGR_MEGATRON_TORCH;
    return has_file(directory, ".metadata") ? MGR_MEGATRON_DCP : MGR_MEGATRON_NONE;
}

bool mgr_megatron_has_tracker(const char *root)
{
    return has_file(root, TRACKER);
}

static bool is_iteration(const char *name)
{
    return strcmp(name, "release") == 0 || (mgr_has_prefix(name, "iter_") && strlen(name) >= 12 &&
                                            strspn(name + 5, "0123456789") == strlen(name + 5));
}

/* Iterations below `root`, as "iter_0000100, iter_0000200"; *last is the last one's folder. */
static int list_iterations(const char *root, mgr_arena *arena, mgr_buf *shown, const char **last,
                           mgr_err *err)
{
    const char **names, *folder;
    size_t n;
    *last = NULL;
    if (!mgr_is_dir(root))
        return MGR_OK;
    MGR_TRY(mgr_list_dir(root, arena, &names, &n, err));
    for (size_t i = 0; i < n; i++) {
        if (!is_iteration(names[i]))
            continue;
        MGR_TRY(mgr_arena_fmt(arena, &folder, err, "%s/%s", root, names[i]));
        if (mgr_megatron_kind_of(folder) == MGR_MEGATRON_NONE)
            continue;
        MGR_TRY(mgr_buf_fmt(shown, err, "%s%s", *last ? ", " : "", names[i]));
        *last = folder;
    }
    return MGR_OK;
}

mgr_megatron_kind mgr_megatron_kind_below(const char *root)
{
    mgr_arena arena = {0};
    mgr_buf shown = {0};
    mgr_err ignored = MGR_ERR_INIT;
    const char *last = NULL;
    const bool found = list_iterations(root, &arena, &shown, &last, &ignored) == MGR_OK && last;
    const mgr_megatron_kind kind = found ? mgr_megatron_kind_of(last) : MGR_MEGATRON_NONE;
    mgr_buf_clear(&shown);
    mgr_arena_clear(&arena);
    return kind;
}

/* Nobody says which iteration is meant. */
static int no_tracker(const char *root, mgr_arena *arena, mgr_err *err)
{
    mgr_buf shown = {0};
    const char *last;
    int rc = list_iterations(root, arena, &shown, &last, err);
    if (rc == MGR_OK && last) {
        rc = mgr_fail(err, MGR_ERR_NOT_FOUND,
                      "'%s' has no " TRACKER
                      ", so that of its iterations none is the latest: %.400s",
                      root, shown.data);
        mgr_hint(err, "set 'source.iteration', or give one iteration's folder as source.path");
    }
    mgr_buf_clear(&shown);
    return rc;
}

/* The tracker's word: a number or "release". */
static int read_tracker(const char *root, char *out, size_t size, mgr_err *err)
{
    char path[MGR_CONFIG_TEXT + 64];
    mgr_buf text = {0};
    snprintf(path, sizeof path, "%s/%s", root, TRACKER);
    int rc = mgr_read_file(path, 4096, &text, err);
    if (rc != MGR_OK) {
        mgr_buf_clear(&text);
        mgr_wrap(err, "no Megatron checkpoint at '%s'", root);
        return mgr_hint(err, "source.path is the folder that holds " TRACKER
                             ", or one iteration's folder");
    }
    const char *word = text.data ? text.data : "";
    word += strspn(word, " \t\r\n");
    const size_t len = strcspn(word, " \t\r\n");
    if (len == 0 || len >= size || word[len + strspn(word + len, " \t\r\n")] != '\0' ||
        ((len != 7 || strncmp(word, "release", len) != 0) && strspn(word, "0123456789") < len))
        rc = mgr_fail(err, MGR_ERR_FORMAT, "'%s' holds neither a number nor 'release'", path);
    else
        snprintf(out, size, "%.*s", (int)len, word);
    mgr_buf_clear(&text);
    return rc;
}

/* Is `name` the last part of `path`, whatever slashes follow? */
static bool ends_path(const char *path, const char *name)
{
    size_t end = strlen(path);
    const size_t n = strlen(name);
    while (end > 0 && path[end - 1] == '/')
        end--;
    return end >= n && strncmp(path + end - n, name, n) == 0 &&
           (end == n || path[end - n - 1] == '/');
}

int mgr_megatron_find_iteration(const char *root, const char *iteration, mgr_arena *arena,
                                const char **out, mgr_err *err)
{
    char word[32];
    const bool latest = strcmp(iteration, "latest") == 0;
    if (latest && mgr_megatron_kind_of(root) != MGR_MEGATRON_NONE)
        return mgr_arena_strndup(arena, out, root, strlen(root), err);
    if (latest && !mgr_megatron_has_tracker(root))
        MGR_TRY(no_tracker(root, arena, err));
    if (latest)
        MGR_TRY(read_tracker(root, word, sizeof word, err));
    else
        snprintf(word, sizeof word, "%s", iteration);
    char folder[40] = "release";
    if (strcmp(word, "release") != 0)
        snprintf(folder, sizeof folder, "iter_%07llu", strtoull(word, NULL, 10));
    MGR_TRY(mgr_arena_fmt(arena, out, err, "%s/%s", root, folder));
    if (mgr_is_dir(*out))
        return MGR_OK;
    if (mgr_megatron_kind_of(root) != MGR_MEGATRON_NONE && ends_path(root, folder))
        return mgr_arena_strndup(arena, out, root, strlen(root), err);
    return mgr_fail(err, MGR_ERR_NOT_FOUND, "no directory '%s'", *out);
}
