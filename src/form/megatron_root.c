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
    return mgr_has_prefix(name, "mp_rank_") && isdigit((unsigned char)name[8]);
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

int mgr_megatron_find_iteration(const char *root, const char *iteration, mgr_arena *arena,
                                const char **out, mgr_err *err)
{
    char word[32];
    const bool latest = strcmp(iteration, "latest") == 0;
    if (latest && mgr_megatron_kind_of(root) != MGR_MEGATRON_NONE)
        return mgr_arena_strndup(arena, out, root, strlen(root), err);
    if (latest)
        MGR_TRY(read_tracker(root, word, sizeof word, err));
    else
        snprintf(word, sizeof word, "%s", iteration);
    if (strcmp(word, "release") == 0)
        MGR_TRY(mgr_arena_fmt(arena, out, err, "%s/release", root));
    else
        MGR_TRY(mgr_arena_fmt(arena, out, err, "%s/iter_%07llu", root, strtoull(word, NULL, 10)));
    if (mgr_is_dir(*out))
        return MGR_OK;
    return mgr_fail(err, MGR_ERR_NOT_FOUND, "no directory '%s'", *out);
}
