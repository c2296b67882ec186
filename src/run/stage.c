#include "run/stage.h"

#include <stdio.h>
#include <string.h>

#include "core/mem.h"
#include "core/say_run.h"
#include "engine/journal.h"
#include "io/fault.h"
#include "io/file.h"
#include "run/ledger.h"
#include "run/record.h"

/* Headers, the journal, small files. */
#define SLACK ((uint64_t)64 << 20)

#define PARTIAL ".partial-"
#define DRAFT ".draft" /* what a container makes before it renames */
#define PUBLISHING "publishing"
#define ALIVE "alive"
#define PROBE ".probe"

/* ---- before anything is written ---- */

/* Looked at again before it is replaced: hours may have passed. */
static int check_target(mgr_stage *s, mgr_err *err)
{
    s->replaced = (mgr_occupant){0};
    if (!mgr_path_exists(s->target))
        return MGR_OK;
    if (s->replace)
        return mgr_occupant_check(s->target, &s->replaced, err);
    mgr_fail(err, MGR_ERR_EXISTS, "'%s' exists already", s->target);
    return mgr_hint(err, "%schoose another target.path, or replace it with --force",
                    s->resume ? "it is of another configuration or source: " : "");
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

/* A lock may not reach the other hosts of a network file system; then the sign of life does. */
static int check_alive(mgr_stage *s, mgr_err *err)
{
    const char *alive;
    char host[65];
    MGR_TRY(mgr_arena_fmt(&s->arena, &alive, err, "%s/" ALIVE, s->journal));
    if (!mgr_beat_is_there(alive, host, sizeof host))
        return MGR_OK;
    mgr_fail(err, MGR_ERR_EXISTS, "another run is writing '%s', on host '%s'", s->directory, host);
    return mgr_hint(err, "wait for it, or stop it");
}

/* A run was killed while its output got its name (publish_without_journal). */
static int bring_back_journal(mgr_stage *s, mgr_err *err)
{
    if (!mgr_path_exists(s->aside))
        return MGR_OK;
    if (s->leftover && !mgr_path_exists(s->journal))
        return mgr_rename(s->aside, s->journal, err);
    return mgr_remove_tree(s->aside, err);
}

static int check_leftover(mgr_stage *s, mgr_err *err)
{
    if (!mgr_path_exists(s->directory))
        return s->dry_run ? MGR_OK : bring_back_journal(s, err);
    MGR_TRY(hold(s, err));
    MGR_TRY(check_alive(s, err));
    s->leftover = s->resume;
    if (s->dry_run && (s->resume || s->replace))
        return MGR_OK;
    if (s->resume || s->replace)
        MGR_TRY(bring_back_journal(s, err));
    if (s->resume)
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

/* What runs of other configurations left beside the target is named, not touched. */
static int find_others(mgr_stage *s, mgr_err *err)
{
    const char *const slash = strrchr(s->target, '/'), *const base = slash ? slash + 1 : s->target;
    const char *const own_slash = strrchr(s->directory, '/');
    const char *const own = own_slash ? own_slash + 1 : s->directory;
    const char **names;
    size_t n = 0, len = strlen(base);
    MGR_TRY(mgr_list_dir(s->parent, &s->arena, &names, &n, err));
    for (size_t i = 0; i < n; i++) {
        if (strncmp(names[i], base, len) != 0 || !mgr_has_prefix(names[i] + len, PARTIAL) ||
            mgr_has_prefix(names[i], own))
            continue;
        MGR_TRY(mgr_arena_fmt(&s->arena, &s->others, err, "%s%s'%s/%s'", s->others ? s->others : "",
                              s->others ? ", " : "", s->parent, names[i]));
    }
    return MGR_OK;
}

static size_t longest_part(const char *path)
{
    size_t longest = 0;
    while (*path) {
        const size_t len = strcspn(path, "/");
        longest = len > longest ? len : longest;
        path += len + (path[len] == '/');
    }
    return longest;
}

/* The names of everything that will be made. */
static int check_names(const mgr_stage *s, const mgr_catalogue *files, mgr_err *err)
{
    const char *const slash = strrchr(s->directory, '/');
    const size_t most = mgr_name_max(s->parent), most_path = mgr_path_max();
    size_t name = strlen(slash ? slash + 1 : s->directory) + strlen(PROBE), path = 32;
    for (size_t i = 0; i < files->n_files; i++) {
        const size_t part = longest_part(files->files[i].path) + strlen(DRAFT);
        const size_t all = strlen(files->files[i].path) + strlen(DRAFT);
        name = part > name ? part : name;
        path = all > path ? all : path;
    }
    path += strlen(s->weights) + 1;
    if (name <= most && path <= most_path)
        return MGR_OK;
    mgr_fail(err, MGR_ERR_CREATE,
             "'%s' is too long: %s of %zu bytes would be needed, the file system takes %zu",
             s->target, name > most ? "a name" : "a path", name > most ? name : path,
             name > most ? most : most_path);
    return mgr_hint(err, "choose a shorter target.path");
}

/* What a leftover has already is not asked for again. */
static uint64_t present(mgr_stage *s, const mgr_catalogue *files)
{
    uint64_t sum = 0;
    for (size_t i = 0; s->leftover && i < files->n_files; i++) {
        mgr_err ignored = MGR_ERR_INIT;
        mgr_buf path = {0};
        if (mgr_buf_fmt(&path, &ignored, "%s/%s", s->weights, files->files[i].path) == MGR_OK)
            sum += mgr_file_room(path.data);
        path.len = 0;
        if (s->packs &&
            mgr_buf_fmt(&path, &ignored, "%s/%s", s->directory, files->files[i].path) == MGR_OK)
            sum += mgr_file_room(path.data);
        mgr_buf_clear(&path);
    }
    return sum;
}

static int check_space(mgr_stage *s, const mgr_stage_plan *plan, uint64_t *wanted, mgr_err *err)
{
    uint64_t space;
    char has[32], wants[32];
    const uint64_t there = present(s, plan->files);
    *wanted = plan->bytes > there ? plan->bytes - there : 0;
    MGR_TRY(mgr_free_space(s->parent, &space, err));
    if (space >= *wanted && space - *wanted >= SLACK)
        return MGR_OK;
    mgr_fail(err, MGR_ERR_SPACE, "'%s' has %s free, the plan writes %s", s->parent,
             mgr_format_bytes(space, has, sizeof has),
             mgr_format_bytes(*wanted, wants, sizeof wants));
    return mgr_hint(err, "free space or choose another target.path");
}

static int try_place(mgr_stage *s, const mgr_catalogue *files, uint64_t wanted, mgr_err *err)
{
    const char *probe;
    uint64_t largest = 0;
    for (size_t i = 0; i < files->n_files; i++)
        largest = files->files[i].bytes > largest ? files->files[i].bytes : largest;
    MGR_TRY(mgr_arena_fmt(&s->arena, &probe, err, "%s" PROBE, s->directory));
    return mgr_try_folder(probe, largest, wanted, &s->room, err);
}

static int set_names(mgr_stage *s, const char *target, const char *id, mgr_err *err)
{
    size_t len = strlen(target);
    while (len > 1 && target[len - 1] == '/')
        len--;
    MGR_TRY(mgr_arena_strndup(&s->arena, &s->target, target, len, err));
    MGR_TRY(mgr_dirname(s->target, &s->arena, &s->parent, err));
    MGR_TRY(mgr_arena_fmt(&s->arena, &s->directory, err, "%s" PARTIAL "%s", s->target, id));
    MGR_TRY(mgr_arena_fmt(&s->arena, &s->journal, err, "%s/" MGR_JOURNAL_FOLDER, s->directory));
    MGR_TRY(mgr_arena_fmt(&s->arena, &s->aside, err, "%s.journal", s->directory));
    return mgr_arena_fmt(&s->arena, &s->weights, err, "%s%s", s->directory,
                         s->packs ? "/" MGR_PLAIN_FOLDER : "");
}

int mgr_stage_forget(const char *target, const char *id, mgr_err *err)
{
    mgr_stage s = {.hold = -1};
    int rc = set_names(&s, target, id, err);
    if (rc == MGR_OK)
        rc = mgr_remove_tree(s.aside, err);
    mgr_arena_clear(&s.arena);
    return rc;
}

int mgr_stage_check(mgr_stage *s, const char *target, const char *id, const mgr_stage_plan *plan,
                    mgr_err *err)
{
    uint64_t wanted;
    MGR_TRY(set_names(s, target, id, err));
    MGR_TRY(check_target(s, err));
    if (!mgr_is_dir(s->parent)) {
        mgr_fail(err, MGR_ERR_CREATE, "cannot create '%s': no directory '%s'", s->target,
                 s->parent);
        return mgr_hint(err, "make the directory first");
    }
    MGR_TRY(check_names(s, plan->files, err));
    MGR_TRY(check_leftover(s, err));
    MGR_TRY(find_others(s, err));
    MGR_TRY(check_space(s, plan, &wanted, err));
    return try_place(s, plan->files, wanted, err);
}

/* ---- making it, or taking it over ---- */

/* A file at its full size; one that a stopped run left is taken over as it is. */
static int make_file(mgr_stage *s, const mgr_file *file, mgr_err *err)
{
    const char *path, *folder;
    uint64_t bytes;
    MGR_TRY(mgr_arena_fmt(&s->arena, &path, err, "%s/%s", s->weights, file->path));
    MGR_TRY(mgr_dirname(path, &s->arena, &folder, err));
    MGR_TRY(mgr_make_dirs(folder, err));
    if (!mgr_path_exists(path))
        return mgr_create_sized(path, file->bytes, err);
    MGR_TRY(mgr_file_bytes(path, &bytes, err));
    if (bytes == file->bytes)
        return MGR_OK;
    MGR_TRY(mgr_remove_tree(path, err)); /* cut off, or killed between creation and sizing */
    return mgr_create_sized(path, file->bytes, err);
}

typedef struct sweeping {
    const mgr_catalogue *files;
    bool packs, publishing;
} sweeping;

/* What a path is to the run's own files. */
typedef enum relation { STRANGE, THE_FILE, ITS_FOLDER, ITS_DRAFT } relation;

static relation relation_of(const mgr_catalogue *files, const char *path)
{
    const size_t len = strlen(path);
    for (size_t i = 0; i < files->n_files; i++) {
        const char *const ours = files->files[i].path;
        const size_t n = strlen(ours);
        if (strcmp(ours, path) == 0)
            return THE_FILE;
        if (n > len && strncmp(ours, path, len) == 0 && ours[len] == '/')
            return ITS_FOLDER;
        if (strncmp(ours, path, n) == 0 && strcmp(path + n, DRAFT) == 0)
            return ITS_DRAFT;
    }
    return STRANGE;
}

static mgr_verdict judge_journal(const char *name, mgr_entry kind)
{
    const bool ours = mgr_has_prefix(name, "rank-") || mgr_has_prefix(name, "sealed-") ||
                      strcmp(name, MGR_RECORD_NAME) == 0 || strcmp(name, PUBLISHING) == 0 ||
                      strcmp(name, ALIVE) == 0;
    if (!ours || kind == MGR_ENTRY_FOLDER)
        return MGR_REFUSE;
    return kind == MGR_ENTRY_FILE ? MGR_KEEP : MGR_DROP;
}

/* Small files are written anew. Until the run began to write them there can be none; after that,
 * any plain file may be one. */
static mgr_verdict judge_small(const sweeping *w, const char *path, mgr_entry kind)
{
    const bool ours = strcmp(path, MGR_LEDGER_NAME) == 0;
    if (kind == MGR_ENTRY_FOLDER)
        return w->publishing && !ours ? MGR_ENTER : MGR_REFUSE;
    if (ours)
        return MGR_DROP;
    return w->publishing && kind == MGR_ENTRY_FILE ? MGR_DROP : MGR_REFUSE;
}

/* What a network file system keeps of a removed file that was open somewhere. */
static bool is_ghost(const char *path, mgr_entry kind)
{
    const char *const slash = strrchr(path, '/'), *const name = slash ? slash + 1 : path;
    return kind != MGR_ENTRY_FOLDER &&
           (mgr_has_prefix(name, ".nfs") || mgr_has_prefix(name, ".fuse_hidden"));
}

static mgr_verdict judge(const void *context, const char *path, mgr_entry kind)
{
    const sweeping *const w = context;
    const bool folder = kind == MGR_ENTRY_FOLDER;
    if (is_ghost(path, kind))
        return MGR_DROP;
    if (mgr_has_prefix(path, MGR_JOURNAL_FOLDER "/"))
        return judge_journal(path + strlen(MGR_JOURNAL_FOLDER "/"), kind);
    if (strcmp(path, MGR_JOURNAL_FOLDER) == 0 || (w->packs && strcmp(path, MGR_PLAIN_FOLDER) == 0))
        return folder ? MGR_ENTER : MGR_DROP;
    const bool plain = w->packs && mgr_has_prefix(path, MGR_PLAIN_FOLDER "/");
    switch (relation_of(w->files, plain ? path + strlen(MGR_PLAIN_FOLDER "/") : path)) {
    case THE_FILE:
        return folder ? MGR_REFUSE : kind == MGR_ENTRY_FILE ? MGR_KEEP : MGR_DROP;
    case ITS_FOLDER:
        return folder ? MGR_ENTER : MGR_DROP;
    case ITS_DRAFT:
        return folder ? MGR_REFUSE : MGR_DROP;
    default:
        return plain ? MGR_REFUSE : judge_small(w, path, kind);
    }
}

static int take_over(mgr_stage *s, const mgr_catalogue *files, mgr_err *err)
{
    const char *mark;
    MGR_TRY(mgr_arena_fmt(&s->arena, &mark, err, "%s/" PUBLISHING, s->journal));
    const sweeping w = {files, s->packs, mgr_path_exists(mark)};
    if (mgr_sweep(s->directory, judge, &w, err) != MGR_OK)
        return mgr_hint(err, "move it away, or begin anew with --force");
    return MGR_OK;
}

int mgr_stage_make(mgr_stage *s, const mgr_catalogue *files, bool make_files, bool known,
                   mgr_err *err)
{
    if (s->leftover)
        MGR_TRY(take_over(s, files, err));
    else
        MGR_TRY(mgr_make_dir(s->directory, err));
    if (s->leftover && !known)
        MGR_TRY(mgr_remove_tree(s->journal, err));
    MGR_TRY(hold(s, err));
    s->made = !s->leftover; /* a failure before the engine runs leaves a leftover as it was */
    MGR_TRY(mgr_make_dirs(s->journal, err));
    MGR_TRY(mgr_make_dirs(s->weights, err));
    const char *alive;
    MGR_TRY(mgr_arena_fmt(&s->arena, &alive, err, "%s/" ALIVE, s->journal));
    s->beat = mgr_beat_start(alive);
    mgr_say_work("files", files->n_files, 1);
    for (size_t i = 0; make_files && i < files->n_files; i++) {
        MGR_TRY(make_file(s, &files->files[i], err));
        MGR_TRY(mgr_say_step(1, err));
    }
    return MGR_OK;
}

/* ---- publishing ---- */

int mgr_stage_finish(mgr_stage *s, mgr_err *err)
{
    const char *mark;
    MGR_TRY(mgr_arena_fmt(&s->arena, &mark, err, "%s/" PUBLISHING, s->journal));
    return mgr_path_exists(mark) ? MGR_OK : mgr_write_file(mark, "", 0, err);
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
    MGR_TRY(mgr_say_step(0, err));
    return mgr_sync_dir(directory, err);
}

/* The plain files, one by one: a file system may take its time with large ones. A stop in between
 * is no harm: their packed ones are recorded (run/seal.h). */
static int remove_plain(mgr_stage *s, mgr_err *err)
{
    const char **names, *path;
    size_t n;
    MGR_TRY(mgr_list_dir(s->weights, &s->arena, &names, &n, err));
    mgr_say_work("files", n, 1);
    for (size_t i = 0; i < n; i++) {
        MGR_TRY(mgr_arena_fmt(&s->arena, &path, err, "%s/%s", s->weights, names[i]));
        MGR_TRY(mgr_remove_tree(path, err));
        MGR_TRY(mgr_say_step(1, err));
    }
    return mgr_remove_tree(s->weights, err);
}

/* The journal steps aside, and goes when the output has its name: a run that is killed or fails in
 * between loses nothing. */
static int publish_without_journal(mgr_stage *s, mgr_err *err)
{
    mgr_err ignored = MGR_ERR_INIT;
    int rc = mgr_rename(s->journal, s->aside, err);
    if (rc == MGR_OK)
        rc = mgr_publish(s->directory, s->target, s->replace, err);
    (void)mgr_fault("phase");
    if (rc != MGR_OK && !mgr_path_exists(s->aside))
        return rc;
    if (rc != MGR_OK && mgr_path_exists(s->directory) &&
        mgr_rename(s->aside, s->journal, &ignored) == MGR_OK)
        return rc;
    if (mgr_remove_tree(s->aside, rc == MGR_OK ? err : &ignored) != MGR_OK && rc == MGR_OK)
        return mgr_wrap(err, "'%s' is complete, but the journal of its run remains", s->target);
    return rc;
}

int mgr_stage_publish(mgr_stage *s, mgr_err *err)
{
    if (!mgr_is_held(s->directory, s->hold))
        return mgr_fail(err, MGR_ERR_IO, "'%s' was replaced while this run wrote it", s->directory);
    if (s->packs)
        MGR_TRY(remove_plain(s, err));
    MGR_TRY(sync_tree(s, s->directory, 0, err));
    if (s->replace)
        MGR_TRY(check_target(s, err));
    mgr_beat_stop(&s->beat);
    MGR_TRY(publish_without_journal(s, err));
    s->made = false;
    s->keep = true;
    return MGR_OK;
}

void mgr_stage_clear(mgr_stage *s)
{
    mgr_err ignored = MGR_ERR_INIT;
    mgr_beat_stop(&s->beat);
    const char *const ours[] = {s->directory, s->aside}; /* NULL on ranks that made nothing */
    for (int i = 0; i < 2 && (s->made || s->discard) && !s->keep; i++)
        if (ours[i] && mgr_remove_tree(ours[i], &ignored) != MGR_OK)
            break;
    if (s->hold >= 0)
        mgr_close(s->hold);
    mgr_arena_clear(&s->arena);
    *s = (mgr_stage){.hold = -1};
}
