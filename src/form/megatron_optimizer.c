#include "form/megatron_optimizer.h"

#include <string.h>

#include "fmt/pickle_write.h"
#include "form/megatron_write.h"
#include "mgr/model.h"

#define OPTIMIZER "optimizer."
#define GROUPS "param_groups."
#define SCHEDULER "opt_param_scheduler."
#define TYPE "param_state_sharding_type"

static const mgr_attr *find_end(const mgr_catalogue *from, const char *end)
{
    for (size_t i = 0; i < from->n_attrs; i++)
        if (mgr_has_prefix(from->attrs[i].key, OPTIMIZER) &&
            mgr_has_suffix(from->attrs[i].key, end))
            return &from->attrs[i];
    return NULL;
}

bool mgr_megatron_optimizer_distributed(const mgr_catalogue *from)
{
    return find_end(from, "." TYPE) != NULL;
}

unsigned mgr_megatron_optimizer_planes(bool distributed, mgr_dtype dtype)
{
    return distributed || dtype != MGR_DTYPE_F32 ? MGR_PLANES_KEPT : MGR_PLANES_MOMENTS;
}

/* What is behind "optimizer.[<n>.][optimizer.]param_groups." of the first of several optimizers,
 * which is that of everything but experts; NULL for another key. */
static const char *of_group(const mgr_attr *a)
{
    if (!mgr_has_prefix(a->key, OPTIMIZER))
        return NULL;
    const char first = a->key[strlen(OPTIMIZER)];
    const char *const at = strstr(a->key, GROUPS);
    return at && (first < '1' || first > '9') ? at + strlen(GROUPS) : NULL;
}

/* Distributed ones keep it in their groups, the others beside them. */
const mgr_attr *mgr_megatron_optimizer_steps(const mgr_catalogue *from)
{
    const mgr_attr *const common = find_end(from, ".common_step");
    const mgr_attr *const a = common ? common : find_end(from, ".step");
    return a && (a->kind == MGR_ATTR_INT || a->kind == MGR_ATTR_REAL) ? a : NULL;
}

int mgr_megatron_optimizer_check(const mgr_catalogue *from, mgr_err *err)
{
    bool groups = false, scheduler = false;
    for (size_t i = 0; i < from->n_attrs; i++) {
        groups = groups || of_group(&from->attrs[i]);
        scheduler = scheduler || mgr_has_prefix(from->attrs[i].key, SCHEDULER);
    }
    if (groups && scheduler && mgr_megatron_optimizer_steps(from))
        return MGR_OK;
    mgr_fail(err, MGR_ERR_UNSUPPORTED,
             "the checkpoint of '%s' has moments, but no %s of Megatron's beside them",
             from->n_files ? from->files[0].path : "",
             !groups      ? "param_groups"
             : !scheduler ? "opt_param_scheduler"
                          : "count of steps");
    return mgr_hint(err, "leave out target.optimizer: weights alone are written");
}

float mgr_megatron_optimizer_step(const mgr_catalogue *from)
{
    const mgr_attr *const a = mgr_megatron_optimizer_steps(from);
    return !a ? 0 : a->kind == MGR_ATTR_REAL ? (float)a->r : (float)a->i;
}

/* Is it `name` of a group? */
static bool is_setting(const char *key, const char *name)
{
    const char *const dot = key ? strchr(key, '.') : NULL;
    return dot && strcmp(dot + 1, name) == 0;
}

/* Does the group of `key` ("0.lr") decay its weights? */
static bool decays(const mgr_catalogue *from, const char *key)
{
    const size_t digits = (size_t)(strchr(key, '.') - key) + 1;
    for (size_t i = 0; i < from->n_attrs; i++) {
        const mgr_attr *const a = &from->attrs[i];
        const char *const other = of_group(a);
        if (is_setting(other, "wd_mult") && strncmp(other, key, digits) == 0)
            return a->kind != MGR_ATTR_REAL || a->r != 0;
    }
    return true;
}

const mgr_attr *mgr_megatron_optimizer_setting(const mgr_catalogue *from, const char *name)
{
    const mgr_attr *first = NULL;
    for (size_t i = 0; i < from->n_attrs; i++) {
        const mgr_attr *const a = &from->attrs[i];
        const char *const key = of_group(a);
        if (!is_setting(key, name))
            continue;
        if (decays(from, key))
            return a;
        first = first ? first : a;
    }
    return first;
}

/* "is_expert_parallel" of "0.is_expert_parallel", and whether the number is another one than in
 * *group. */
static const char *split(const char *key, const char **group, bool *next)
{
    const char *const dot = strchr(key, '.');
    const size_t len = dot ? (size_t)(dot - key) : strlen(key);
    *next = !*group || strncmp(*group, key, len + 1) != 0;
    *group = key;
    return dot ? dot + 1 : "";
}

/* Settings as they are, but for whose parameters they are for; a distributed optimizer has its
 * count of steps among them. */
static int put_setting(const mgr_attr *a, const char *name, bool experts, mgr_buf *out,
                       mgr_err *err)
{
    mgr_attr value = *a;
    if (strcmp(name, "step") == 0 || mgr_has_prefix(name, "params") || a->kind == MGR_ATTR_OTHER)
        return MGR_OK;
    if (strchr(name, '.'))
        return mgr_fail(err, MGR_ERR_UNSUPPORTED,
                        "'%s', of a group of parameters, is no setting of one value", a->key);
    if (strcmp(name, "is_expert_parallel") == 0)
        value = (mgr_attr){.key = name, .kind = MGR_ATTR_BOOL, .i = experts};
    MGR_TRY(mgr_pickle_text(out, name, err));
    return mgr_megatron_value_emit(&value, out, err);
}

static int end_group(const mgr_megatron_optimizer *o, mgr_buf *out, mgr_err *err)
{
    if (o->distributed) {
        MGR_TRY(mgr_pickle_text(out, "step", err));
        MGR_TRY(mgr_pickle_real(out, (double)mgr_megatron_optimizer_step(o->from), err));
    }
    return mgr_pickle_dict_close(out, err);
}

static int put_groups(const mgr_megatron_optimizer *o, bool experts, mgr_buf *out, mgr_err *err)
{
    const bool all_decay = experts && !o->distributed && !o->expert_biases;
    const char *group = NULL;
    MGR_TRY(mgr_pickle_text(out, "param_groups", err));
    MGR_TRY(mgr_pickle_list_open(out, err));
    for (size_t i = 0; i < o->from->n_attrs; i++) {
        const mgr_attr *const a = &o->from->attrs[i];
        const char *const key = of_group(a);
        bool next, first = !group;
        if (!key || (all_decay && !decays(o->from, key)))
            continue;
        const char *const name = split(key, &group, &next);
        if (next && !first)
            MGR_TRY(end_group(o, out, err));
        if (next)
            MGR_TRY(mgr_pickle_dict_open(out, err));
        MGR_TRY(put_setting(a, name, experts, out, err));
    }
    MGR_TRY(end_group(o, out, err)); /* there is one: it was checked */
    return mgr_pickle_list_close(out, err);
}

static int put_inner(const mgr_megatron_optimizer *o, bool experts, mgr_buf *out, mgr_err *err)
{
    if (!o->distributed) {
        MGR_TRY(mgr_pickle_text(out, "state", err));
        MGR_TRY(mgr_pickle_dict_open(out, err));
        MGR_TRY(mgr_pickle_text(out, "common_step", err));
        MGR_TRY(mgr_pickle_tensor(out, "0", MGR_DTYPE_F32, 0, NULL, err));
        MGR_TRY(mgr_pickle_dict_close(out, err));
    }
    return put_groups(o, experts, out, err);
}

/* FP32Optimizer in core/optimizer/optimizer.py has torch's dict, the others one around it. */
static int put_one(const mgr_megatron_optimizer *o, bool experts, mgr_buf *out, mgr_err *err)
{
    const bool bare = !o->distributed && o->dtype == MGR_DTYPE_F32;
    MGR_TRY(mgr_pickle_dict_open(out, err));
    if (!bare) {
        MGR_TRY(mgr_pickle_text(out, "optimizer", err));
        MGR_TRY(mgr_pickle_dict_open(out, err));
    }
    MGR_TRY(put_inner(o, experts, out, err));
    if (!bare)
        MGR_TRY(mgr_pickle_dict_close(out, err));
    if (o->distributed) {
        MGR_TRY(mgr_pickle_text(out, TYPE, err));
        MGR_TRY(mgr_pickle_text(out, "fully_reshardable", err));
    }
    return mgr_pickle_dict_close(out, err);
}

static int put_scheduler(const mgr_catalogue *from, mgr_buf *out, mgr_err *err)
{
    MGR_TRY(mgr_pickle_text(out, "opt_param_scheduler", err));
    MGR_TRY(mgr_pickle_dict_open(out, err));
    for (size_t i = 0; i < from->n_attrs; i++) {
        const mgr_attr *const a = &from->attrs[i];
        if (!mgr_has_prefix(a->key, SCHEDULER) || a->kind == MGR_ATTR_OTHER)
            continue;
        MGR_TRY(mgr_pickle_text(out, a->key + strlen(SCHEDULER), err));
        MGR_TRY(mgr_megatron_value_emit(a, out, err));
    }
    return mgr_pickle_dict_close(out, err);
}

int mgr_megatron_optimizer_emit(const mgr_megatron_optimizer *o, mgr_buf *out, mgr_err *err)
{
    MGR_TRY(mgr_pickle_text(out, "optimizer", err));
    if (!o->chained) {
        MGR_TRY(put_one(o, false, out, err));
        return put_scheduler(o->from, out, err);
    }
    MGR_TRY(mgr_pickle_dict_open(out, err));
    for (int experts = 0; experts < 2; experts++) {
        MGR_TRY(mgr_pickle_int(out, experts, err));
        MGR_TRY(put_one(o, experts, out, err));
    }
    MGR_TRY(mgr_pickle_dict_close(out, err));
    return put_scheduler(o->from, out, err);
}
