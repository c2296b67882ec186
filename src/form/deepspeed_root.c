#include "form/deepspeed_root.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "io/file.h"
#include "mgr/config.h"

#define LATEST "latest"
#define LATEST_UNIVERSAL "latest_universal" /* engine.py, load_checkpoint */
#define UNIVERSAL "_universal"
#define ZERO "zero" /* the folder of a universal checkpoint's parameters */
#define SETTINGS "optimizer_state.pt"
#define STEP "step.pt"
#define LATEST_ITERATION                                                                           \
    "latest_iteration.txt" /* moe-recipes' src/llama_recipes/utils/checkpoint.py */
#define MAX_TAG 255
#define MAX_RANKS 1000000

/* ---- names ---- */

static bool skip(const char **at, const char *text)
{
    const size_t n = strlen(text);
    const bool found = strncmp(*at, text, n) == 0;
    *at += found ? n : 0;
    return found;
}

static bool number(const char **at, uint32_t *out)
{
    char *end;
    if (!isdigit((unsigned char)**at))
        return false;
    const unsigned long n = strtoul(*at, &end, 10);
    *at = end;
    *out = (uint32_t)n;
    return n < MAX_RANKS;
}

/* [bf16_|fp16_]zero_pp_rank_R_mp_rank_MM_{model,optim}_states.pt, mp_rank_MM_model_states.pt; old
 * ones lack the '_' before "optim" (engine.py, _get_all_zero_checkpoint_names). */
bool mgr_deepspeed_name(const char *name, mgr_zero_name *out)
{
    const char *at = name;
    *out = (mgr_zero_name){0};
    const bool typed = skip(&at, "bf16_") || skip(&at, "fp16_");
    out->partitioned = skip(&at, "zero_pp_rank_");
    if ((typed && !out->partitioned) ||
        (out->partitioned && !(number(&at, &out->rank) && skip(&at, "_"))) ||
        !skip(&at, "mp_rank_") || !number(&at, &out->model_rank))
        return false;
    out->optimizer = strcmp(at, "_optim_states.pt") == 0 || strcmp(at, "optim_states.pt") == 0;
    return (out->optimizer && out->partitioned) || (!typed && strcmp(at, "_model_states.pt") == 0);
}

static bool has_files(const char *folder)
{
    mgr_arena arena = {0};
    mgr_err ignored = MGR_ERR_INIT;
    mgr_zero_name name;
    const char **names;
    size_t n = 0;
    bool found = false;
    if (mgr_is_dir(folder) && mgr_list_dir(folder, &arena, &names, &n, &ignored) == MGR_OK)
        for (size_t i = 0; i < n && !found; i++)
            found = mgr_deepspeed_name(names[i], &name);
    mgr_arena_clear(&arena);
    return found;
}

/* ---- folders ---- */

static bool is_tag(const char *tag)
{
    const size_t n = strlen(tag);
    bool good = n > 0 && n <= MAX_TAG && tag[0] != '.';
    for (size_t i = 0; i < n; i++)
        good = good && tag[i] != '/' && isprint((unsigned char)tag[i]);
    return good;
}

/* The one line of a file that says which folder is the latest. */
static int read_line(const char *path, char tag[MAX_TAG + 1], mgr_err *err)
{
    mgr_buf text = {0};
    int rc = mgr_read_file(path, MAX_TAG, &text, err);
    if (rc == MGR_OK) {
        while (text.len && isspace((unsigned char)text.data[text.len - 1]))
            text.data[--text.len] = '\0';
        snprintf(tag, MAX_TAG + 1, "%s", text.len ? text.data : "");
        if (!is_tag(tag))
            rc = mgr_fail(err, MGR_ERR_FORMAT, "'%s' does not hold the name of a folder beside it",
                          path);
    }
    mgr_buf_clear(&text);
    return rc;
}

/* The folder below `folder` that a file in it names, or `iteration`; *next is NULL if there is no
 * such file. */
static int step_down(const char *folder, const char *iteration, mgr_arena *arena, const char **next,
                     mgr_err *err)
{
    const bool asked = isdigit((unsigned char)iteration[0]);
    const char *file;
    char tag[MAX_TAG + 1];
    *next = NULL;
    MGR_TRY(mgr_arena_fmt(arena, &file, err, "%s/" LATEST_ITERATION, folder));
    const bool recipes = mgr_path_exists(file);
    if (!recipes)
        MGR_TRY(mgr_arena_fmt(arena, &file, err, "%s/" LATEST, folder));
    if (!mgr_path_exists(file))
        MGR_TRY(mgr_arena_fmt(arena, &file, err, "%s/" LATEST_UNIVERSAL, folder));
    if (!mgr_path_exists(file))
        return MGR_OK;
    MGR_TRY(read_line(file, tag, err));
    if (recipes && strspn(tag, "0123456789") != strlen(tag))
        return mgr_fail(err, MGR_ERR_FORMAT, "'%s' holds '%s', no number", file, tag);
    if (recipes)
        return mgr_arena_fmt(arena, next, err, "%s/iter_%07lu", folder,
                             strtoul(asked ? iteration : tag, NULL, 10));
    return asked && mgr_has_prefix(tag, "global_step")
               ? mgr_arena_fmt(arena, next, err, "%s/global_step%s%s", folder, iteration,
                               mgr_has_suffix(tag, UNIVERSAL) ? UNIVERSAL : "")
               : mgr_arena_fmt(arena, next, err, "%s/%s", folder, tag);
}

int mgr_deepspeed_folder(const char *path, const char *iteration, mgr_arena *arena,
                         const char **folder, mgr_err *err)
{
    const char *next;
    MGR_TRY(mgr_arena_fmt(arena, folder, err, "%s", path));
    for (int level = 0; level < MGR_DEEPSPEED_LEVELS && !has_files(*folder); level++) {
        MGR_TRY(step_down(*folder, iteration, arena, &next, err));
        if (!next)
            break;
        if (!mgr_is_dir(next))
            return mgr_fail(err, MGR_ERR_NOT_FOUND, "no folder '%s', which '%s' says is the one",
                            next, *folder);
        *folder = next;
    }
    if (has_files(*folder))
        return MGR_OK;
    mgr_fail(err, MGR_ERR_NOT_FOUND, "no files of DeepSpeed's ZeRO in '%s'", *folder);
    return mgr_hint(err, "source.path is a folder with 'latest' or 'latest_iteration.txt', or one "
                         "with *_model_states.pt and *_optim_states.pt");
}

bool mgr_deepspeed_is(const char *path)
{
    mgr_arena arena = {0};
    mgr_err ignored = MGR_ERR_INIT;
    const char *folder;
    const bool found =
        mgr_is_dir(path) && mgr_deepspeed_folder(path, LATEST, &arena, &folder, &ignored) == MGR_OK;
    mgr_arena_clear(&arena);
    return found;
}

/* ---- the files of a step ---- */

/* Names by rank; NULL where there is none. */
typedef struct found {
    const char *folder, **models, **optimizers;
    const char *whole;                      /* the model's, of all ranks */
    uint32_t n_models, n_optimizers, ranks; /* ranks: the largest number + 1 */
} found;

static int refuse_kind(const char *folder, const char *name, const char *what, const char *hint,
                       mgr_err *err)
{
    char shown[160];
    mgr_fail(err, MGR_ERR_UNSUPPORTED, "'%s' in '%s' is %s",
             mgr_printable(name, strlen(name), shown, sizeof shown), folder, what);
    return mgr_hint(err, "%s", hint);
}

static int check_kind(const char *folder, const char *name, mgr_err *err)
{
    static const char gather[] = "gather the model first: save_16bit_model in the run";
    if (mgr_has_prefix(name, "expp_rank_") ||
        (mgr_has_prefix(name, "layer_") && strstr(name, "_expert_")))
        return refuse_kind(folder, name, "of DeepSpeed-MoE's own experts, which are not supported",
                           gather, err);
    if (mgr_has_prefix(name, "layer_") && mgr_has_suffix(name, "model_states.pt"))
        return refuse_kind(folder, name, "of a pipeline, which is not supported", gather, err);
    return MGR_OK;
}

/* Room for rank numbers up to that of the file. */
static int put(found *f, uint32_t most, const mgr_zero_name *z, const char *name, mgr_err *err)
{
    const char **const list = z->optimizer ? f->optimizers : f->models;
    if (z->model_rank)
        return refuse_kind(f->folder, name,
                           "of a model that is cut among ranks (mp_rank), which "
                           "is not supported",
                           "gather the model first: save_16bit_model in the run", err);
    if (!z->optimizer && !z->partitioned) {
        f->whole = name;
        return MGR_OK;
    }
    if (z->rank >= most)
        return mgr_fail(err, MGR_ERR_NOT_FOUND,
                        "'%s' is in '%s', but not the files of all ranks before it", name,
                        f->folder);
    if (list[z->rank])
        return mgr_fail(err, MGR_ERR_FORMAT, "both '%s' and '%s' are in '%s': of two runs",
                        list[z->rank], name, f->folder);
    list[z->rank] = name;
    *(z->optimizer ? &f->n_optimizers : &f->n_models) += 1;
    f->ranks = z->rank + 1 > f->ranks ? z->rank + 1 : f->ranks;
    return MGR_OK;
}

static int missing(const found *f, const char *what, uint32_t rank, mgr_err *err)
{
    mgr_fail(err, MGR_ERR_NOT_FOUND,
             "missing file '%szero_pp_rank_%u_mp_rank_00_%s_states.pt' in '%s'",
             *what == 'o' ? "[bf16_]" : "", rank, what, f->folder);
    return mgr_hint(err, "there are files of %u ranks; each rank has saved its own", f->ranks);
}

static int check_found(const found *f, mgr_err *err)
{
    if (f->whole && f->n_models)
        return mgr_fail(err, MGR_ERR_FORMAT,
                        "both '%s' (ZeRO-1 or 2) and '%s' (ZeRO-3) are in '%s': of two runs",
                        f->whole, f->models[0] ? f->models[0] : "zero_pp_rank_*_model_states.pt",
                        f->folder);
    for (uint32_t r = 0; r < f->ranks; r++) {
        if (!f->whole && !f->models[r])
            return missing(f, "model", r, err);
        if (!f->optimizers[r])
            return missing(f, "optim", r, err);
    }
    return f->ranks ? MGR_OK : missing(f, "optim", 0, err);
}

static int take_names(found *f, const char **names, size_t n, mgr_err *err)
{
    mgr_zero_name z;
    for (size_t i = 0; i < n; i++) {
        MGR_TRY(check_kind(f->folder, names[i], err));
        if (mgr_deepspeed_name(names[i], &z))
            MGR_TRY(put(f, (uint32_t)n, &z, names[i], err));
    }
    return check_found(f, err);
}

static int add_paths(const found *f, mgr_arena *arena, mgr_source_files *files, mgr_err *err)
{
    const char **const had = files->paths;
    const uint32_t models = f->whole ? 1 : f->ranks;
    MGR_TRY(mgr_arena_alloc(arena, &files->paths,
                            (files->n + 2 * (size_t)f->ranks + 1) * sizeof *had, err));
    if (files->n)
        memcpy(files->paths, had, files->n * sizeof *had);
    for (uint32_t r = 0; r < models + f->ranks; r++) {
        const char *const name = r >= models ? f->optimizers[r - models]
                                 : f->whole  ? f->whole
                                             : f->models[r];
        MGR_TRY(mgr_arena_fmt(arena, &files->paths[files->n++], err, "%s/%s", f->folder, name));
    }
    return MGR_OK;
}

static int rank_files(const char *folder, mgr_arena *arena, mgr_source_files *files, mgr_err *err)
{
    found f = {.folder = folder};
    const char **names;
    size_t n;
    MGR_TRY(mgr_list_dir(folder, arena, &names, &n, err));
    int rc = mgr_alloc(&f.models, n + 1, sizeof *f.models, err);
    if (rc == MGR_OK)
        rc = mgr_alloc(&f.optimizers, n + 1, sizeof *f.optimizers, err);
    if (rc == MGR_OK)
        rc = take_names(&f, names, n, err);
    if (rc == MGR_OK)
        rc = add_paths(&f, arena, files, err);
    mgr_free(f.models);
    mgr_free(f.optimizers);
    return rc;
}

/* ---- the files of a universal checkpoint ---- */

static const char *const plane_files[MGR_PLANE_COUNT] = {
    [MGR_PLANE_WEIGHT] = "fp32.pt",
    [MGR_PLANE_EXP_AVG] = "exp_avg.pt",
    [MGR_PLANE_EXP_AVG_SQ] = "exp_avg_sq.pt",
};

static bool is_named(const char *path, const char *name)
{
    const char *const slash = strrchr(path, '/');
    return name && slash && strcmp(slash + 1, name) == 0;
}

mgr_plane mgr_deepspeed_plane(const char *path)
{
    int p = 0;
    while (p < MGR_PLANE_COUNT && !is_named(path, plane_files[p]))
        p++;
    return (mgr_plane)p;
}

bool mgr_deepspeed_is_settings(const char *path)
{
    return mgr_has_suffix(path, "/" ZERO "/" SETTINGS);
}

bool mgr_deepspeed_is_step(const char *path)
{
    return is_named(path, STEP);
}

int mgr_deepspeed_param(const char *path, mgr_arena *arena, const char **name, mgr_err *err)
{
    const char *parent, *zero;
    *name = NULL;
    if (mgr_deepspeed_plane(path) == MGR_PLANE_COUNT)
        return MGR_OK;
    MGR_TRY(mgr_dirname(path, arena, &parent, err));
    MGR_TRY(mgr_dirname(parent, arena, &zero, err));
    *name = mgr_has_suffix(zero, "/" ZERO) ? parent + strlen(zero) + 1 : NULL;
    return MGR_OK;
}

/* The model's file says the shapes; of those for several ranks of a model the first does. */
static int add_model(const char *folder, const char **names, size_t n, mgr_arena *arena,
                     mgr_source_files *files, mgr_err *err)
{
    mgr_zero_name z;
    for (size_t i = 0; i < n; i++)
        if (mgr_deepspeed_name(names[i], &z) && !z.optimizer && !z.rank && !z.model_rank)
            return mgr_arena_fmt(arena, &files->paths[files->n++], err, "%s/%s", folder, names[i]);
    return mgr_fail(err, MGR_ERR_NOT_FOUND,
                    "missing file '[zero_pp_rank_0_]mp_rank_00_model_states.pt' in '%s'", folder);
}

/* zero/NAME/FILE of each parameter, where there are such; of the weights each must have one. */
static int add_params(const char *zero, const char **names, size_t n, mgr_plane plane,
                      mgr_arena *arena, mgr_source_files *files, mgr_err *err)
{
    const char *path;
    for (size_t i = 0; i < n; i++) {
        MGR_TRY(mgr_arena_fmt(arena, &path, err, "%s/%s", zero, names[i]));
        if (!mgr_is_dir(path))
            continue;
        MGR_TRY(mgr_arena_fmt(arena, &path, err, "%s/%s", path, plane_files[plane]));
        if (mgr_path_exists(path))
            files->paths[files->n++] = path;
        else if (plane == MGR_PLANE_WEIGHT)
            return mgr_fail(err, MGR_ERR_NOT_FOUND, "missing file '%s'", path);
    }
    return MGR_OK;
}

/* The first step.pt that there is: a run that loads them asks that they are equal. */
static int add_step(const char *zero, const char **names, size_t n, mgr_arena *arena,
                    mgr_source_files *files, mgr_err *err)
{
    const char *path;
    for (size_t i = 0; i < n; i++) {
        MGR_TRY(mgr_arena_fmt(arena, &path, err, "%s/%s/" STEP, zero, names[i]));
        if (!mgr_path_exists(path))
            continue;
        files->paths[files->n++] = path;
        break;
    }
    return MGR_OK;
}

static int add_moments(const char *zero, const char **names, size_t n, mgr_arena *arena,
                       mgr_source_files *files, mgr_err *err)
{
    const char *path;
    MGR_TRY(add_params(zero, names, n, MGR_PLANE_EXP_AVG, arena, files, err));
    MGR_TRY(add_params(zero, names, n, MGR_PLANE_EXP_AVG_SQ, arena, files, err));
    MGR_TRY(mgr_arena_fmt(arena, &path, err, "%s/" SETTINGS, zero));
    if (mgr_path_exists(path))
        files->paths[files->n++] = path;
    return add_step(zero, names, n, arena, files, err);
}

static int universal_files(const char *folder, const char *zero, bool moments, mgr_arena *arena,
                           mgr_source_files *files, mgr_err *err)
{
    const char **const had = files->paths, **names, **params;
    size_t n, n_params;
    MGR_TRY(mgr_list_dir(folder, arena, &names, &n, err));
    MGR_TRY(mgr_list_dir(zero, arena, &params, &n_params, err));
    MGR_TRY(mgr_arena_alloc(arena, &files->paths,
                            (files->n + (moments ? 3 : 1) * n_params + 3) * sizeof *had, err));
    if (files->n)
        memcpy(files->paths, had, files->n * sizeof *had);
    MGR_TRY(add_model(folder, names, n, arena, files, err));
    MGR_TRY(add_params(zero, params, n_params, MGR_PLANE_WEIGHT, arena, files, err));
    return moments ? add_moments(zero, params, n_params, arena, files, err) : MGR_OK;
}

/* ---- either ---- */

int mgr_deepspeed_files(const char *folder, bool moments, mgr_arena *arena, mgr_source_files *files,
                        mgr_err *err)
{
    const char *zero;
    MGR_TRY(mgr_arena_fmt(arena, &zero, err, "%s/" ZERO, folder));
    return mgr_is_dir(zero) ? universal_files(folder, zero, moments, arena, files, err)
                            : rank_files(folder, arena, files, err);
}
