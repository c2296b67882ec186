#include "form/deepspeed_view.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "core/str.h"
#include "fmt/deepspeed_file.h"
#include "form/deepspeed_root.h"

#define NAME_SHOWN 200
#define MAX_GROUPS 100000

uint32_t mgr_deepspeed_config(const mgr_catalogue *cat)
{
    const char *const first = cat->n_files ? cat->files[0].path : "";
    return *first && !mgr_has_suffix(first, "_states.pt") ? 0 : MGR_NONE;
}

static const char *path_of(const mgr_catalogue *cat, uint32_t file)
{
    return cat->files[file].path;
}

static int64_t int_of(const mgr_catalogue *cat, uint32_t file, const char *key)
{
    const mgr_attr *const a = mgr_catalogue_attr(cat, file, key);
    return a && a->kind == MGR_ATTR_INT ? a->i : 0;
}

/* ---- one run, all ranks ---- */

/* The files of one kind: `n` from `first` on. */
typedef struct kin {
    uint32_t first, n;
} kin;

static bool name_of(const mgr_catalogue *cat, uint32_t file, mgr_zero_name *out)
{
    const char *const slash = strrchr(path_of(cat, file), '/');
    return mgr_deepspeed_name(slash ? slash + 1 : path_of(cat, file), out);
}

static kin kin_of(const mgr_catalogue *cat, bool optimizer)
{
    kin k = {0, 0};
    for (uint32_t f = 0; f < cat->n_files; f++) {
        mgr_zero_name z;
        if (!name_of(cat, f, &z) || z.optimizer != optimizer)
            continue;
        k.first = k.n++ ? k.first : f;
    }
    return k;
}

/* All of them must say the same number. */
static int check_alike(const mgr_catalogue *cat, kin k, const char *key, const char *hint,
                       mgr_err *err)
{
    const int64_t first = int_of(cat, k.first, key);
    for (uint32_t f = k.first + 1; f < k.first + k.n; f++) {
        if (int_of(cat, f, key) == first)
            continue;
        if (strcmp(key, MGR_DS_DIGEST) == 0)
            mgr_fail(err, MGR_ERR_FORMAT,
                     "'%s' and '%s' list other parameters, shapes or sub-groups, or another order",
                     path_of(cat, k.first), path_of(cat, f));
        else
            mgr_fail(err, MGR_ERR_FORMAT, "'%s' says %s %" PRId64 ", but '%s' says %" PRId64,
                     path_of(cat, k.first), key, first, path_of(cat, f), int_of(cat, f, key));
        return mgr_hint(err, "%s", hint);
    }
    return MGR_OK;
}

static int check_versions(const mgr_catalogue *cat, kin k, const mgr_attr *first, mgr_err *err)
{
    for (uint32_t f = k.first; f < k.first + k.n; f++) {
        const mgr_attr *const a = mgr_catalogue_attr(cat, f, MGR_DS_VERSION);
        if (!a == !first && (!a || strcmp(a->text, first->text) == 0))
            continue;
        mgr_fail(err, MGR_ERR_FORMAT, "'%s' was written by DeepSpeed %.60s, '%s' by %.60s",
                 path_of(cat, first ? first->file : k.first), first ? first->text : "unknown",
                 path_of(cat, f), a ? a->text : "unknown");
        return mgr_hint(err, "the folder mixes two runs: take the files of one");
    }
    return MGR_OK;
}

static int check_ranks(const mgr_catalogue *cat, uint32_t file, const char *key, uint32_t ranks,
                       mgr_err *err)
{
    const int64_t said = int_of(cat, file, key);
    if (said == (int64_t)ranks)
        return MGR_OK;
    mgr_fail(err, MGR_ERR_FORMAT,
             "'%s' says %s %" PRId64 ", but there are optimizer files of %u ranks",
             path_of(cat, file), key, said, ranks);
    return mgr_hint(err, said > (int64_t)ranks
                             ? "fetch the files of all ranks"
                             : "the folder mixes two runs: take the files of one");
}

static int check_run(const mgr_catalogue *cat, kin models, kin optimizers, mgr_err *err)
{
    static const char mixed[] = "the folder mixes two runs: take the files of one";
    const mgr_attr *const version = mgr_catalogue_attr(cat, models.first, MGR_DS_VERSION);
    if (int_of(cat, models.first, MGR_DS_MODEL_RANKS) != 1)
        return mgr_fail(err, MGR_ERR_UNSUPPORTED,
                        "'%s' is of a model that is cut among %" PRId64 " ranks (mp_world_size), "
                        "which is not supported",
                        path_of(cat, models.first), int_of(cat, models.first, MGR_DS_MODEL_RANKS));
    MGR_TRY(check_versions(cat, models, version, err));
    MGR_TRY(check_versions(cat, optimizers, version, err));
    MGR_TRY(check_alike(cat, models, MGR_DS_RANKS, mixed, err));
    MGR_TRY(check_alike(cat, optimizers, MGR_DS_STAGE, mixed, err));
    MGR_TRY(check_alike(cat, optimizers, MGR_DS_PARTS, mixed, err));
    MGR_TRY(check_ranks(cat, optimizers.first, MGR_DS_PARTS, optimizers.n, err));
    MGR_TRY(check_ranks(cat, models.first, MGR_DS_RANKS, optimizers.n, err));
    return check_alike(cat, models, MGR_DS_DIGEST, mixed, err);
}

/* ---- masters ---- */

static uint32_t group_of(const char *digits)
{
    const unsigned long g = strtoul(digits, NULL, 10);
    return g < MAX_GROUPS ? (uint32_t)g : MAX_GROUPS;
}

static int count_groups(const mgr_catalogue *cat, mgr_deepspeed *ds, mgr_err *err)
{
    for (size_t i = 0; i < cat->n_stored; i++) {
        const mgr_stored *const s = &cat->stored[i];
        if (!mgr_has_prefix(s->name, MGR_DS_MASTER))
            continue;
        const uint32_t g = group_of(s->name + strlen(MGR_DS_MASTER));
        if (g == MAX_GROUPS)
            return mgr_fail(err, MGR_ERR_UNSUPPORTED, "'%s' has more than %d sub-groups",
                            path_of(cat, s->file), MAX_GROUPS);
        ds->groups = g + 1 > ds->groups ? g + 1 : ds->groups;
    }
    return MGR_OK;
}

static const char *const flat_prefixes[MGR_PLANE_COUNT] = {
    [MGR_PLANE_WEIGHT] = MGR_DS_MASTER,
    [MGR_PLANE_EXP_AVG] = MGR_DS_EXP_AVG,
    [MGR_PLANE_EXP_AVG_SQ] = MGR_DS_EXP_AVG_SQ,
};

/* "the masters of group 3", "the exp_avg of group 3". */
static const char *noun_of(int plane)
{
    return plane == MGR_PLANE_WEIGHT ? "masters" : mgr_plane_name((mgr_plane)plane);
}

static int note_flat(const mgr_catalogue *cat, kin optimizers, int plane, uint32_t idx,
                     mgr_deepspeed *ds, mgr_err *err)
{
    const mgr_stored *const s = &cat->stored[idx];
    const char *const digits = s->name + strlen(flat_prefixes[plane]);
    const uint32_t group = group_of(digits);
    if (s->ndim != 1 || s->dtype != MGR_DTYPE_F32 || (s->shape[0] > 1 && s->stride[0] != 1))
        return mgr_fail(err, MGR_ERR_UNSUPPORTED,
                        "the %s of group %s in '%s' are no flat float32 tensor", noun_of(plane),
                        digits, path_of(cat, s->file));
    if (group >= ds->groups)
        return mgr_fail(err, MGR_ERR_FORMAT, "'%s' has %s of a group %s, but no masters of it",
                        path_of(cat, s->file), noun_of(plane), digits);
    ds->flat[plane][(size_t)(s->file - optimizers.first) * ds->groups + group] = idx;
    return MGR_OK;
}

static bool has_flat(const mgr_catalogue *cat, int plane)
{
    for (size_t i = 0; flat_prefixes[plane] && i < cat->n_stored; i++)
        if (mgr_has_prefix(cat->stored[i].name, flat_prefixes[plane]))
            return true;
    return false;
}

/* Of one plane each rank's, of each group. */
static int find_flat(const mgr_catalogue *cat, kin optimizers, int plane, mgr_deepspeed *ds,
                     mgr_err *err)
{
    const size_t n = (size_t)ds->ranks * ds->groups;
    MGR_TRY(mgr_alloc(&ds->flat[plane], n, sizeof **ds->flat, err));
    memset(ds->flat[plane], 0xff, n * sizeof **ds->flat);
    for (uint32_t i = 0; i < cat->n_stored; i++)
        if (mgr_has_prefix(cat->stored[i].name, flat_prefixes[plane]))
            MGR_TRY(note_flat(cat, optimizers, plane, i, ds, err));
    for (size_t i = 0; i < n; i++)
        if (ds->flat[plane][i] == MGR_NONE)
            return mgr_fail(err, MGR_ERR_FORMAT, "'%s' has no %s of group %zu, others have",
                            path_of(cat, optimizers.first + (uint32_t)(i / ds->groups)),
                            noun_of(plane), i % ds->groups);
    return MGR_OK;
}

/* Moments lie as the masters do; only ZeRO-1 and 2 have padding behind those of the last rank. */
static int check_moments(const mgr_catalogue *cat, const mgr_deepspeed *ds, int plane, mgr_err *err)
{
    const size_t n = (size_t)ds->ranks * ds->groups;
    for (size_t i = 0; i < n; i++) {
        const mgr_stored *const s = &cat->stored[ds->flat[plane][i]];
        const uint64_t wanted = cat->stored[ds->flat[MGR_PLANE_WEIGHT][i]].shape[0];
        if (s->shape[0] == wanted ||
            (!ds->zero3 && i / ds->groups + 1 == ds->ranks && s->shape[0] > wanted))
            continue;
        return mgr_fail(err, MGR_ERR_FORMAT,
                        "the %s of group %zu in '%s' have %" PRIu64 " elements, but its masters "
                        "have %" PRIu64,
                        noun_of(plane), i % ds->groups, path_of(cat, s->file), s->shape[0], wanted);
    }
    return MGR_OK;
}

static int find_planes(const mgr_catalogue *cat, kin optimizers, mgr_deepspeed *ds, mgr_err *err)
{
    MGR_TRY(count_groups(cat, ds, err));
    MGR_TRY(find_flat(cat, optimizers, MGR_PLANE_WEIGHT, ds, err));
    for (int p = MGR_PLANE_EXP_AVG; p < MGR_PLANE_COUNT; p++) {
        if (!has_flat(cat, p))
            continue;
        MGR_TRY(find_flat(cat, optimizers, p, ds, err));
        MGR_TRY(check_moments(cat, ds, p, err));
    }
    return MGR_OK;
}

/* Elements of a group's masters: of each rank alike, or of all together. */
static int check_size(const mgr_catalogue *cat, const mgr_deepspeed *ds, uint32_t group,
                      uint64_t wanted, mgr_err *err)
{
    uint64_t sum = 0;
    assert(ds->ranks > 0);
    for (uint32_t r = 0; r < ds->ranks; r++) {
        const mgr_stored *const s =
            &cat->stored[ds->flat[MGR_PLANE_WEIGHT][(size_t)r * ds->groups + group]];
        sum += s->shape[0];
        if (!ds->zero3 || s->shape[0] == wanted)
            continue;
        mgr_fail(err, MGR_ERR_FORMAT,
                 "the masters of group %u in '%s' have %" PRIu64 " elements, but its parameters "
                 "have %" PRIu64 " on each of %u ranks",
                 group, path_of(cat, s->file), s->shape[0], wanted, ds->ranks);
        return mgr_hint(err, "were the sub-groups or the number of ranks changed behind the save?");
    }
    const uint64_t step = 2 * (uint64_t)ds->ranks; /* zero_to_fp32.py, zero2_align */
    if (ds->zero3 || (sum >= wanted && sum / step - wanted / step <= 1))
        return MGR_OK;
    return mgr_fail(err, MGR_ERR_FORMAT,
                    "the masters of group %u in '%s' and those beside it have %" PRIu64
                    " elements, but its parameters have %" PRIu64,
                    group, path_of(cat, cat->stored[ds->flat[MGR_PLANE_WEIGHT][group]].file), sum,
                    wanted);
}

/* ---- parameters ---- */

/* A tensor of the module, by the parameter's or buffer's name. */
typedef struct module_entry {
    const char *name;
    uint32_t stored;
} module_entry;

/* What the parameters are gathered with. */
typedef struct gathering {
    const mgr_catalogue *cat;
    mgr_deepspeed *ds;
    module_entry *modules; /* sorted */
    size_t n_modules, cap_parts;
    module_entry *params[MGR_PLANE_COUNT]; /* of a universal checkpoint, sorted */
    size_t n_params[MGR_PLANE_COUNT];
    bool copies;
    uint64_t bytes; /* a place for each parameter in the view */
    mgr_err *err;
} gathering;

static int by_name(const void *a, const void *b)
{
    return strcmp(((const module_entry *)a)->name, ((const module_entry *)b)->name);
}

static int sort_modules(gathering *g)
{
    const mgr_catalogue *const cat = g->cat;
    MGR_TRY(mgr_alloc(&g->modules, cat->n_stored, sizeof *g->modules, g->err));
    for (uint32_t i = 0; i < cat->n_stored; i++)
        if (cat->stored[i].file == g->ds->model_file &&
            mgr_has_prefix(cat->stored[i].name, MGR_DS_MODULE))
            g->modules[g->n_modules++] =
                (module_entry){cat->stored[i].name + strlen(MGR_DS_MODULE), i};
    qsort(g->modules, g->n_modules, sizeof *g->modules, by_name);
    return MGR_OK;
}

static uint32_t module_of(const gathering *g, const char *name)
{
    const module_entry key = {name, 0};
    const module_entry *const found =
        bsearch(&key, g->modules, g->n_modules, sizeof *g->modules, by_name);
    return found ? found->stored : MGR_NONE;
}

/* "2 3" into a shape; the text is ours (fmt/deepspeed_file.c), its numbers are the file's. */
static int parse_shape(const gathering *g, const char *name, const char *text, mgr_stored *s)
{
    uint64_t bytes = mgr_dtype_size(MGR_DTYPE_F32);
    char shown[NAME_SHOWN], *end;
    for (; *text; text = *end ? end + 1 : end) {
        const uint64_t n = strtoull(text, &end, 10);
        if (s->ndim == MGR_MAX_NDIM || n == 0 || n > INT64_MAX / bytes)
            return mgr_fail(g->err, MGR_ERR_FORMAT,
                            "the shape of parameter '%s' in '%s' is no shape",
                            mgr_printable(name, strlen(name), shown, sizeof shown),
                            path_of(g->cat, g->ds->model_file));
        bytes *= n;
        s->shape[s->ndim++] = n;
    }
    uint64_t stride = 1;
    for (uint32_t d = s->ndim; d-- > 0; stride *= s->shape[d])
        s->stride[d] = stride;
    return MGR_OK;
}

static uint64_t elements(const mgr_stored *s)
{
    return mgr_stored_bytes(s) / mgr_dtype_size(s->dtype);
}

/* Elements lie one behind the other. */
static bool is_dense(const mgr_stored *s)
{
    uint64_t stride = 1;
    for (uint32_t d = s->ndim; d-- > 0; stride *= s->shape[d])
        if (s->shape[d] != 1 && s->stride[d] != stride)
            return false;
    return true;
}

/* One more tensor of the view, at a place of its own. */
static int add_part(gathering *g, mgr_stored *s, const mgr_zero_part *part)
{
    mgr_deepspeed *const ds = g->ds;
    MGR_TRY(mgr_grow(&ds->parts, &g->cap_parts, ds->view.n_stored + 1, sizeof *part, g->err));
    ds->parts[ds->view.n_stored] = *part;
    s->file = 1;
    s->record = MGR_NONE;
    s->offset = g->bytes;
    if (!ds->parts[ds->view.n_stored].name)
        ds->parts[ds->view.n_stored].name = s->name;
    g->bytes += mgr_stored_bytes(s);
    return mgr_catalogue_add_stored(&ds->view, s, g->err);
}

static mgr_zero_part whole_part(uint32_t stored, uint64_t numel)
{
    mgr_zero_part part = {.kind = MGR_ZERO_WHOLE, .numel = numel};
    memset(part.stored, 0xff, sizeof part.stored);
    part.stored[MGR_PLANE_WEIGHT] = stored;
    return part;
}

/* With the moments of a universal checkpoint, which lie in files of their own. */
static int add_planes(gathering *g, const char *name, mgr_stored *s, mgr_zero_part *part)
{
    const module_entry key = {name, 0};
    for (int p = MGR_PLANE_EXP_AVG; p < MGR_PLANE_COUNT; p++) {
        const module_entry *const found =
            g->n_params[p] ? bsearch(&key, g->params[p], g->n_params[p], sizeof key, by_name)
                           : NULL;
        const mgr_stored *const moment = found ? &g->cat->stored[found->stored] : NULL;
        if (!found)
            continue;
        if (moment->dtype != MGR_DTYPE_F32 || !is_dense(moment) || elements(moment) != part->numel)
            return mgr_fail(g->err, MGR_ERR_FORMAT,
                            "'%s' is no float32 tensor of %" PRIu64
                            " elements, which its parameter has",
                            path_of(g->cat, moment->file), part->numel);
        part->stored[p] = found->stored;
    }
    return add_part(g, s, part);
}

/* A tensor of the module as it is: a buffer, or a parameter's copy. */
static int add_whole(gathering *g, const char *name, uint32_t stored)
{
    mgr_stored s = g->cat->stored[stored];
    char shown[NAME_SHOWN];
    if (mgr_dtype_size(s.dtype) == 0 || !is_dense(&s))
        return mgr_fail(g->err, MGR_ERR_UNSUPPORTED, "tensor '%s' in '%s' is stored in strides",
                        mgr_printable(name, strlen(name), shown, sizeof shown),
                        path_of(g->cat, s.file));
    s.name = name;
    mgr_zero_part part = whole_part(stored, elements(&s));
    return add_planes(g, name, &s, &part);
}

static int add_copy(gathering *g, const char *name)
{
    const uint32_t stored = module_of(g, name);
    char shown[NAME_SHOWN];
    if (stored == MGR_NONE)
        return mgr_fail(g->err, MGR_ERR_FORMAT, "the module in '%s' has no tensor '%s'",
                        path_of(g->cat, g->ds->model_file),
                        mgr_printable(name, strlen(name), shown, sizeof shown));
    return add_whole(g, name, stored);
}

/* Padding behind parameter `idx` of a group (zero_to_fp32.py, param_alignment_paddings). */
static uint64_t padding_of(const gathering *g, uint32_t optimizer, uint32_t group, size_t idx)
{
    char key[48], *end;
    snprintf(key, sizeof key, MGR_DS_PADDING "%u", group);
    const mgr_attr *const a = g->ds->zero3 ? NULL : mgr_catalogue_attr(g->cat, optimizer, key);
    const char *text = a ? a->text : "";
    for (; *text && idx > 0; idx--) {
        text = strchr(text, ' ');
        text = text ? text + 1 : "";
    }
    return strtoull(text, &end, 10);
}

/* A parameter of `group`, at element *at of its masters, which is moved on. */
static int add_master(gathering *g, const char *name, const char *shape, uint32_t group,
                      uint64_t *at)
{
    mgr_stored s = {.name = name, .dtype = MGR_DTYPE_F32};
    MGR_TRY(parse_shape(g, name, shape, &s));
    const mgr_zero_part part = {
        .kind = MGR_ZERO_GROUP, .group = group, .numel = elements(&s), .at = *at};
    *at += g->ds->zero3 ? part.numel / g->ds->ranks + (part.numel % g->ds->ranks != 0) : part.numel;
    return g->copies ? add_copy(g, name) : add_part(g, &s, &part);
}

/* Groups lie one behind the other in the attributes, parameters in their order. */
static int add_masters(gathering *g, uint32_t optimizer)
{
    const mgr_deepspeed *const ds = g->ds;
    uint32_t group = 0;
    uint64_t at = 0;
    size_t idx = 0;
    for (size_t i = 0; i < g->cat->n_attrs; i++) {
        const mgr_attr *const a = &g->cat->attrs[i];
        if (a->file != ds->model_file || !mgr_has_prefix(a->key, MGR_DS_PARAM))
            continue;
        const char *const digits = a->key + strlen(MGR_DS_PARAM);
        for (; group < group_of(digits) && group < ds->groups; group++, at = 0, idx = 0)
            MGR_TRY(check_size(g->cat, ds, group, at, g->err));
        if (group == ds->groups)
            return mgr_fail(
                g->err, MGR_ERR_FORMAT, "'%s' lists more than the %u sub-groups that '%s' holds",
                path_of(g->cat, ds->model_file), ds->groups, path_of(g->cat, optimizer));
        MGR_TRY(add_master(g, strchr(digits, '.') + 1, a->text, group, &at));
        at += padding_of(g, optimizer, group, idx++);
    }
    for (; group < ds->groups; group++, at = 0)
        MGR_TRY(check_size(g->cat, ds, group, at, g->err));
    return MGR_OK;
}

/* Their pieces say the type. */
static int add_frozen(gathering *g)
{
    const mgr_catalogue *const cat = g->cat;
    for (size_t i = 0; i < cat->n_attrs; i++) {
        const mgr_attr *const a = &cat->attrs[i];
        if (a->file != g->ds->model_file || !mgr_has_prefix(a->key, MGR_DS_FROZEN))
            continue;
        mgr_stored s = {.name = a->key + strlen(MGR_DS_FROZEN), .dtype = MGR_DTYPE_F32};
        MGR_TRY(parse_shape(g, s.name, a->text, &s));
        const mgr_zero_part part = {.kind = MGR_ZERO_FROZEN, .numel = elements(&s)};
        MGR_TRY(add_part(g, &s, &part));
    }
    return MGR_OK;
}

/* All tensors of the view by name. */
static int sort_view(const gathering *g, module_entry **names)
{
    const mgr_catalogue *const view = &g->ds->view;
    MGR_TRY(mgr_alloc(names, view->n_stored, sizeof **names, g->err));
    for (uint32_t i = 0; i < view->n_stored; i++)
        (*names)[i] = (module_entry){view->stored[i].name, i};
    qsort(*names, view->n_stored, sizeof **names, by_name);
    return MGR_OK;
}

/* A second name of a parameter is the same place in the view. */
static int add_alias(gathering *g, const char *alias, uint32_t of)
{
    mgr_catalogue *const view = &g->ds->view;
    const mgr_zero_part part = g->ds->parts[of];
    mgr_stored s = view->stored[of];
    const uint64_t place = s.offset;
    s.name = alias;
    MGR_TRY(add_part(g, &s, &part));
    view->stored[view->n_stored - 1].offset = place;
    return MGR_OK;
}

/* One of what is not saved is passed over, as zero_to_fp32.py does. */
static int add_shared(gathering *g)
{
    const size_t n = g->ds->view.n_stored;
    module_entry *names = NULL;
    int rc = sort_view(g, &names);
    for (size_t i = 0; rc == MGR_OK && i < g->cat->n_attrs; i++) {
        const mgr_attr *const a = &g->cat->attrs[i];
        const module_entry key = {a->text, 0};
        if (a->file != g->ds->model_file || !mgr_has_prefix(a->key, MGR_DS_SHARED))
            continue;
        const module_entry *const of = bsearch(&key, names, n, sizeof *names, by_name);
        if (of)
            rc = add_alias(g, a->key + strlen(MGR_DS_SHARED), of->stored);
    }
    mgr_free(names);
    return rc;
}

/* Of the module what is no parameter: buffers. */
static int add_buffers(gathering *g)
{
    mgr_deepspeed *const ds = g->ds;
    const size_t n = ds->view.n_stored;
    module_entry *names = NULL;
    int rc = sort_view(g, &names);
    for (size_t i = 0; rc == MGR_OK && i < g->n_modules; i++) {
        const module_entry *const m = &g->modules[i];
        const module_entry *const found = bsearch(m, names, n, sizeof *names, by_name);
        if (!found)
            rc = add_whole(g, m->name, m->stored);
        else
            ds->unneeded[m->stored] =
                ds->parts[found->stored].kind != MGR_ZERO_WHOLE ||
                ds->parts[found->stored].stored[MGR_PLANE_WEIGHT] != m->stored;
    }
    mgr_free(names);
    return rc;
}

/* With copies the masters are there for nothing. */
static void leave_masters(const gathering *g)
{
    for (size_t i = 0; g->copies && i < (size_t)g->ds->ranks * g->ds->groups; i++)
        g->ds->unneeded[g->ds->flat[MGR_PLANE_WEIGHT][i]] = 1;
}

static int gather(gathering *g, uint32_t optimizer)
{
    int rc = sort_modules(g);
    if (rc == MGR_OK)
        rc = add_masters(g, optimizer);
    if (rc == MGR_OK)
        rc = add_frozen(g);
    if (rc == MGR_OK)
        rc = add_shared(g);
    if (rc == MGR_OK)
        rc = add_buffers(g);
    leave_masters(g);
    mgr_free(g->modules);
    return rc;
}

/* Files of the view, and config.json's attributes. */
static int start_view(const mgr_catalogue *cat, mgr_deepspeed *ds, mgr_err *err)
{
    const uint32_t config = mgr_deepspeed_config(cat);
    uint32_t file;
    MGR_TRY(mgr_catalogue_add_file(
        &ds->view, path_of(cat, config == MGR_NONE ? ds->model_file : config), 0, &file, err));
    MGR_TRY(mgr_catalogue_add_file(&ds->view, path_of(cat, ds->model_file), 0, &file, err));
    for (size_t i = 0; i < cat->n_attrs; i++)
        if (cat->attrs[i].file == config)
            MGR_TRY(mgr_catalogue_add_attr(&ds->view, &cat->attrs[i], err));
    return MGR_OK;
}

/* ---- a universal checkpoint ---- */

/* One with a shape that the model's file says: it may lie flat, as ds_to_universal.py leaves what
 * was ZeRO-3's. Without one it is as it lies there. */
static int add_param(gathering *g, uint32_t stored, const char *shape)
{
    const mgr_stored *const found = &g->cat->stored[stored];
    mgr_stored s = {.name = found->name, .dtype = found->dtype};
    if (!shape || found->ndim > 1)
        return add_whole(g, found->name, stored);
    MGR_TRY(parse_shape(g, s.name, shape, &s));
    mgr_zero_part part = whole_part(stored, elements(&s));
    if (is_dense(found) && part.numel == elements(found))
        return add_planes(g, s.name, &s, &part);
    return mgr_fail(g->err, MGR_ERR_FORMAT,
                    "'%s' holds %" PRIu64 " elements, but '%s' says the shape [%s] of it",
                    path_of(g->cat, found->file), elements(found),
                    path_of(g->cat, g->ds->model_file), shape);
}

/* The tensors of the parameters' files by name, of one plane; files of a parameter hold one each.
 */
static int sort_params(gathering *g, mgr_plane plane)
{
    const mgr_catalogue *const cat = g->cat;
    const size_t prefix = plane == MGR_PLANE_WEIGHT ? 0 : strlen(flat_prefixes[plane]);
    size_t *const n = &g->n_params[plane];
    MGR_TRY(mgr_alloc(&g->params[plane], cat->n_stored, sizeof **g->params, g->err));
    for (uint32_t i = 0; i < cat->n_stored; i++)
        if (cat->stored[i].file > g->ds->model_file &&
            mgr_deepspeed_plane(path_of(cat, cat->stored[i].file)) == plane)
            g->params[plane][(*n)++] = (module_entry){cat->stored[i].name + prefix, i};
    if (*n)
        qsort(g->params[plane], *n, sizeof **g->params, by_name);
    return MGR_OK;
}

static int add_listed(gathering *g, uint8_t *listed)
{
    const module_entry *const names = g->params[MGR_PLANE_WEIGHT];
    char shown[NAME_SHOWN];
    for (size_t i = 0; i < g->cat->n_attrs; i++) {
        const mgr_attr *const a = &g->cat->attrs[i];
        if (a->file != g->ds->model_file || !mgr_has_prefix(a->key, MGR_DS_PARAM))
            continue;
        const module_entry key = {strchr(a->key + strlen(MGR_DS_PARAM), '.') + 1, 0};
        const module_entry *const found =
            bsearch(&key, names, g->n_params[MGR_PLANE_WEIGHT], sizeof *names, by_name);
        if (!found)
            return mgr_fail(g->err, MGR_ERR_NOT_FOUND,
                            "'%s' lists the parameter '%s', which has no fp32.pt in 'zero'",
                            path_of(g->cat, a->file),
                            mgr_printable(key.name, strlen(key.name), shown, sizeof shown));
        listed[found - names] = 1;
        MGR_TRY(add_param(g, found->stored, a->text));
    }
    return MGR_OK;
}

static int add_params(gathering *g)
{
    const size_t n = g->n_params[MGR_PLANE_WEIGHT];
    uint8_t *listed;
    MGR_TRY(mgr_alloc(&listed, n, 1, g->err));
    int rc = add_listed(g, listed);
    for (size_t i = 0; rc == MGR_OK && i < n; i++)
        if (!listed[i])
            rc = add_param(g, g->params[MGR_PLANE_WEIGHT][i].stored, NULL);
    mgr_free(listed);
    return rc;
}

static int gather_params(gathering *g)
{
    int rc = MGR_OK;
    for (int p = 0; rc == MGR_OK && p < MGR_PLANE_COUNT; p++)
        if (p != MGR_PLANE_MASTER)
            rc = sort_params(g, (mgr_plane)p);
    if (rc == MGR_OK)
        rc = add_params(g);
    if (rc == MGR_OK)
        rc = add_shared(g);
    if (rc == MGR_OK)
        rc = sort_modules(g);
    if (rc == MGR_OK)
        rc = add_buffers(g);
    for (int p = 0; p < MGR_PLANE_COUNT; p++)
        mgr_free(g->params[p]);
    mgr_free(g->modules);
    return rc;
}

static int view_universal(gathering *g)
{
    mgr_deepspeed *const ds = g->ds;
    ds->universal = true;
    if (g->copies) {
        mgr_fail(g->err, MGR_ERR_UNSUPPORTED,
                 "a universal checkpoint, as is that of '%s', holds no copies of the weights",
                 path_of(g->cat, ds->model_file));
        return mgr_hint(g->err, "take the masters: source.weights: masters");
    }
    MGR_TRY(mgr_alloc(&ds->unneeded, g->cat->n_stored, 1, g->err));
    MGR_TRY(start_view(g->cat, ds, g->err));
    return gather_params(g);
}

int mgr_deepspeed_view(const mgr_catalogue *cat, bool copies, mgr_deepspeed *ds, mgr_err *err)
{
    const kin models = kin_of(cat, false), optimizers = kin_of(cat, true);
    gathering g = {.cat = cat, .ds = ds, .copies = copies, .err = err};
    mgr_zero_name name;
    ds->ranks = optimizers.n;
    ds->model_file = models.first;
    if (optimizers.n == 0)
        return view_universal(&g);
    MGR_TRY(check_run(cat, models, optimizers, err));
    ds->zero3 = int_of(cat, optimizers.first, MGR_DS_STAGE) == 3;
    if (!name_of(cat, models.first, &name) || ds->zero3 != name.partitioned)
        return mgr_fail(err, MGR_ERR_FORMAT, "'%s' is not of the ZeRO stage of '%s'",
                        path_of(cat, models.first), path_of(cat, optimizers.first));
    if (copies && ds->zero3) {
        mgr_fail(err, MGR_ERR_UNSUPPORTED,
                 "'%s' holds no copies of the weights, as ZeRO-3 does not",
                 path_of(cat, models.first));
        return mgr_hint(err, "take the masters: source.weights: masters");
    }
    MGR_TRY(mgr_alloc(&ds->unneeded, cat->n_stored, 1, err));
    MGR_TRY(find_planes(cat, optimizers, ds, err));
    MGR_TRY(start_view(cat, ds, err));
    return gather(&g, optimizers.first);
}
