#include "run/stage.h"

#include <string.h>

#include "core/mem.h"
#include "engine/journal.h"
#include "io/file.h"

/* Small files beside the tensors: headers are counted with the files, this is for the rest. */
#define SLACK ((uint64_t)64 << 20)

/* Looked at again before it is replaced: hours may have passed. */
static int check_target(mgr_stage *s, mgr_err *err)
{
    s->replaced = (mgr_occupant){0};
    if (!mgr_path_exists(s->target))
        return MGR_OK;
    if (s->replace)
        return mgr_occupant_check(s->target, &s->replaced, err);
    mgr_fail(err, MGR_ERR_EXISTS, "'%s' exists already", s->target);
    return mgr_hint(err, "choose another target.path, or replace it with --force");
}

/* Keep others out of the staging directory as long as this run lives. */
static int hold(mgr_stage *s, mgr_err *err)
{
    bool taken = false;
    if (s->hold >= 0)
        return MGR_OK;
    MGR_TRY(mgr_hold_dir(s->directory, &s->hold, &taken, err));
    if (!taken)
        return MGR_OK;
    mgr_fail(err, MGR_ERR_EXISTS, "another run is writing '%s'", s->directory);
    return mgr_hint(err, "wait for it, or stop it");
}

static int check_leftover(mgr_stage *s, mgr_err *err)
{
    if (!mgr_path_exists(s->directory))
        return MGR_OK;
    MGR_TRY(hold(s, err));
    if (s->resume || (s->replace && s->dry_run))
        return MGR_OK;
    if (s->replace) {
        const int rc = mgr_remove_tree(s->directory, err);
        mgr_close(s->hold);
        s->hold = -1;
        return rc;
    }
    mgr_fail(err, MGR_ERR_EXISTS, "'%s' exists: a run was stopped or killed", s->directory);
    return mgr_hint(err, "continue it with --resume, or begin anew with --force");
}

static int check_space(const mgr_stage *s, uint64_t bytes, mgr_err *err)
{
    uint64_t space;
    char has[32], wants[32];
    MGR_TRY(mgr_free_space(s->parent, &space, err));
    if (space >= bytes && space - bytes >= SLACK)
        return MGR_OK;
    mgr_fail(err, MGR_ERR_SPACE, "'%s' has %s free, the plan writes %s", s->parent,
             mgr_format_bytes(space, has, sizeof has),
             mgr_format_bytes(bytes, wants, sizeof wants));
    return mgr_hint(err, "free space or choose another target.path");
}

int mgr_stage_check(mgr_stage *s, const char *target, const char *id, uint64_t bytes, mgr_err *err)
{
    size_t len = strlen(target);
    while (len > 1 && target[len - 1] == '/')
        len--;
    MGR_TRY(mgr_arena_strndup(&s->arena, &s->target, target, len, err));
    MGR_TRY(mgr_dirname(s->target, &s->arena, &s->parent, err));
    MGR_TRY(mgr_arena_fmt(&s->arena, &s->directory, err, "%s.partial-%s", s->target, id));
    MGR_TRY(check_target(s, err));
    if (!mgr_is_dir(s->parent)) {
        mgr_fail(err, MGR_ERR_CREATE, "cannot create '%s': no directory '%s'", s->target,
                 s->parent);
        return mgr_hint(err, "make the directory first");
    }
    MGR_TRY(check_leftover(s, err));
    if (mgr_path_exists(s->directory)) /* resumed: its files have their room already */
        return MGR_OK;
    return check_space(s, bytes, err);
}

/* A file at its full size; one that a stopped run left is taken over as it is. */
static int make_file(mgr_stage *s, const mgr_file *file, mgr_err *err)
{
    const char *path, *folder;
    uint64_t bytes;
    MGR_TRY(mgr_arena_fmt(&s->arena, &path, err, "%s/%s", s->directory, file->path));
    MGR_TRY(mgr_dirname(path, &s->arena, &folder, err));
    MGR_TRY(mgr_make_dirs(folder, err));
    if (!mgr_path_exists(path))
        return mgr_create_sized(path, file->bytes, err);
    MGR_TRY(mgr_file_bytes(path, &bytes, err));
    if (bytes == file->bytes)
        return MGR_OK;
    MGR_TRY(mgr_remove_tree(path, err)); /* killed between creation and sizing */
    return mgr_create_sized(path, file->bytes, err);
}

static bool is_ours(const mgr_catalogue *files, const char *name)
{
    const size_t len = strlen(name);
    for (size_t i = 0; i < files->n_files; i++)
        if (strncmp(files->files[i].path, name, len) == 0 &&
            (files->files[i].path[len] == '/' || files->files[i].path[len] == '\0'))
            return true;
    return strcmp(name, MGR_JOURNAL_FOLDER) == 0;
}

/* Small files that a run wrote before it was killed while publishing are written again. */
static int drop_sidecars(mgr_stage *s, const mgr_catalogue *files, mgr_err *err)
{
    const char **names, *path;
    size_t n;
    MGR_TRY(mgr_list_dir(s->directory, &s->arena, &names, &n, err));
    for (size_t i = 0; i < n; i++) {
        MGR_TRY(mgr_arena_fmt(&s->arena, &path, err, "%s/%s", s->directory, names[i]));
        if (!is_ours(files, names[i]))
            MGR_TRY(mgr_remove_tree(path, err));
    }
    return MGR_OK;
}

int mgr_stage_make(mgr_stage *s, const mgr_catalogue *files, bool make_files, mgr_err *err)
{
    const char *journal;
    const bool leftover = s->resume && mgr_path_exists(s->directory);
    if (leftover)
        MGR_TRY(drop_sidecars(s, files, err));
    else
        MGR_TRY(mgr_make_dir(s->directory, err));
    MGR_TRY(hold(s, err));
    s->made = !leftover; /* a failure before the engine runs leaves a leftover as it was */
    MGR_TRY(mgr_arena_fmt(&s->arena, &journal, err, "%s/" MGR_JOURNAL_FOLDER, s->directory));
    MGR_TRY(mgr_make_dirs(journal, err));
    for (size_t i = 0; make_files && i < files->n_files; i++)
        MGR_TRY(make_file(s, &files->files[i], err));
    return MGR_OK;
}

static int sync_tree(mgr_stage *s, const char *directory, int depth, mgr_err *err)
{
    const char **names, *path;
    size_t n;
    MGR_TRY(mgr_list_dir(directory, &s->arena, &names, &n, err));
    for (size_t i = 0; i < n && depth < 8; i++) {
        MGR_TRY(mgr_arena_fmt(&s->arena, &path, err, "%s/%s", directory, names[i]));
        if (mgr_is_dir(path))
            MGR_TRY(sync_tree(s, path, depth + 1, err));
    }
    return mgr_sync_dir(directory, err);
}

int mgr_stage_publish(mgr_stage *s, mgr_err *err)
{
    const char *journal;
    if (!mgr_is_held(s->directory, s->hold))
        return mgr_fail(err, MGR_ERR_IO, "'%s' was replaced while this run wrote it", s->directory);
    MGR_TRY(mgr_arena_fmt(&s->arena, &journal, err, "%s/" MGR_JOURNAL_FOLDER, s->directory));
    MGR_TRY(mgr_remove_tree(journal, err));
    MGR_TRY(sync_tree(s, s->directory, 0, err));
    if (s->replace)
        MGR_TRY(check_target(s, err));
    MGR_TRY(mgr_publish(s->directory, s->target, s->replace, err));
    s->made = false;
    return MGR_OK;
}

void mgr_stage_clear(mgr_stage *s)
{
    mgr_err ignored = MGR_ERR_INIT;
    if (s->made && !s->keep && mgr_remove_tree(s->directory, &ignored) != MGR_OK)
        s->made = false;
    if (s->hold >= 0)
        mgr_close(s->hold);
    mgr_arena_clear(&s->arena);
    *s = (mgr_stage){.hold = -1};
}
