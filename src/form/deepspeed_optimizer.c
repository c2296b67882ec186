#include "form/deepspeed_optimizer.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fmt/deepspeed_file.h"
#include "form/deepspeed_view.h"
#include "form/megatron_optimizer.h"
#include "form/megatron_write.h"
#include "form/pickle_entry.h"

/* base_optimizer.py goes through its own groups and those of a universal checkpoint side by side,
 * and leaves parameters as they were where there are no more of these. */
#define MOST_GROUPS 64

/* ---- what the source has ---- */

static bool is_number(const mgr_attr *a)
{
    return a && (a->kind == MGR_ATTR_INT || a->kind == MGR_ATTR_REAL);
}

static double number_of(const mgr_attr *a)
{
    return a->kind == MGR_ATTR_REAL ? a->r : (double)a->i;
}

static const char *path_of(const mgr_catalogue *cat, const mgr_attr *a)
{
    return cat->files[a->file].path;
}

/* All of them must be alike: a run goes on from one. */
static int find_step(const mgr_catalogue *from, const mgr_attr **step, mgr_err *err)
{
    const uint32_t config = mgr_deepspeed_config(from);
    *step = NULL;
    for (size_t i = 0; i < from->n_attrs; i++) {
        const mgr_attr *const a = &from->attrs[i];
        const bool of_state = mgr_has_prefix(a->key, MGR_DS_STEP);
        if (a->file == config || !is_number(a) ||
            !(of_state ||
              (mgr_has_prefix(a->key, MGR_DS_SETTINGS) && mgr_has_suffix(a->key, ".step"))))
            continue;
        if (*step && of_state && number_of(*step) != number_of(a))
            return mgr_fail(
                err, MGR_ERR_UNSUPPORTED,
                "'%s' of '%s' is %.17g, but '%s' of '%s' is %.17g: parameters that were "
                "stepped more often than others",
                (*step)->key, path_of(from, *step), number_of(*step), a->key, path_of(from, a),
                number_of(a));
        *step = *step ? *step : a;
    }
    return MGR_OK;
}

static int need_step(const mgr_catalogue *from, const mgr_attr *step, mgr_err *err)
{
    if (step && number_of(step) >= 0 && floor(number_of(step)) == number_of(step))
        return MGR_OK;
    mgr_fail(err, MGR_ERR_UNSUPPORTED,
             "the checkpoint of '%s' has moments, but no count of the steps that they are of",
             from->n_files ? from->files[0].path : "");
    return mgr_hint(err, "leave out target.optimizer: weights alone are written");
}

/* "lr" of "param_groups.1.lr", and the number; NULL for other keys, and for the parameters'. */
static const char *setting_of(const mgr_attr *a, unsigned long *group)
{
    char *end;
    if (!mgr_has_prefix(a->key, MGR_DS_SETTINGS))
        return NULL;
    *group = strtoul(a->key + strlen(MGR_DS_SETTINGS), &end, 10);
    return *end != '.' || strcmp(end, ".params") == 0 || mgr_has_prefix(end, ".params.") ? NULL
                                                                                         : end + 1;
}

const mgr_attr *mgr_deepspeed_setting(const mgr_catalogue *from, unsigned long group,
                                      const char *name)
{
    for (size_t i = 0; i < from->n_attrs; i++) {
        unsigned long g;
        const char *const is = setting_of(&from->attrs[i], &g);
        if (is && g == group && strcmp(is, name) == 0)
            return &from->attrs[i];
    }
    return NULL;
}

static bool is_same(const mgr_attr *a, const mgr_attr *b)
{
    return a && b && a->kind == b->kind && a->i == b->i && a->r == b->r && !a->text == !b->text &&
           (!a->text || strcmp(a->text, b->text) == 0);
}

int mgr_deepspeed_settings_alike(const mgr_catalogue *from, const char *but, const char *what,
                                 mgr_err *err)
{
    for (size_t i = 0; i < from->n_attrs; i++) {
        const mgr_attr *const a = &from->attrs[i];
        unsigned long group;
        const char *const name = setting_of(a, &group);
        if (!name || (but && strcmp(name, but) == 0) ||
            is_same(a, mgr_deepspeed_setting(from, 0, name)))
            continue;
        mgr_fail(err, MGR_ERR_UNSUPPORTED,
                 "'%s' has groups of parameters with a '%.60s' of their own, but %s have the same",
                 path_of(from, a), name, what);
        return mgr_hint(err, "write a universal checkpoint of DeepSpeed's, which keeps them");
    }
    return MGR_OK;
}

/* Settings go along whole, or not at all. */
static int check_spelt(const mgr_catalogue *from, mgr_err *err)
{
    for (size_t i = 0; i < from->n_attrs; i++) {
        const mgr_attr *const a = &from->attrs[i];
        unsigned long group;
        const bool plain = a->kind != MGR_ATTR_OTHER &&
                           (a->kind != MGR_ATTR_SYMBOL || mgr_has_prefix(a->text, "torch."));
        if (!setting_of(a, &group) || plain)
            continue;
        mgr_fail(err, MGR_ERR_UNSUPPORTED,
                 "'%.100s' of '%s' is a '%.100s', which cannot be carried", a->key,
                 path_of(from, a), a->text);
        return mgr_hint(err, "leave out target.optimizer: weights alone are written");
    }
    return MGR_OK;
}

int mgr_deepspeed_optimizer_take(const mgr_origin *origin, bool one, mgr_deepspeed_optimizer *out,
                                 mgr_err *err)
{
    const bool own = strcmp(origin->format, "deepspeed") == 0;
    const mgr_attr *step = mgr_megatron_optimizer_steps(origin->cat);
    if (own)
        MGR_TRY(find_step(origin->cat, &step, err));
    if (own)
        MGR_TRY(check_spelt(origin->cat, err));
    MGR_TRY(need_step(origin->cat, step, err));
    if (own && one)
        MGR_TRY(mgr_deepspeed_settings_alike(origin->cat, NULL, "all parameters of ZeRO-3's files",
                                             err));
    *out = (mgr_deepspeed_optimizer){.from = origin->cat,
                                     .own = own,
                                     .int_step = own && step->kind == MGR_ATTR_INT,
                                     .step = number_of(step)};
    return MGR_OK;
}

/* ---- groups of parameters ---- */

/* Groups of which the run's own settings stay. */
static int put_bare(mgr_buf *out, mgr_err *err)
{
    MGR_TRY(mgr_pickle_dict_open(out, err));
    MGR_TRY(mgr_entry_empty_list(out, "params", err));
    return mgr_pickle_dict_close(out, err);
}

/* What a source of DeepSpeed's says of a group, but for its parameters. */
static int put_own(const mgr_catalogue *from, unsigned long group, mgr_buf *out, mgr_err *err)
{
    for (size_t i = 0; i < from->n_attrs; i++) {
        const mgr_attr *const a = &from->attrs[i];
        unsigned long g;
        const char *const name = setting_of(a, &g);
        if (!name || g != group)
            continue;
        MGR_TRY(mgr_pickle_text(out, name, err));
        MGR_TRY(mgr_megatron_value_emit(a, out, err));
    }
    return MGR_OK;
}

static unsigned long count_own(const mgr_deepspeed_optimizer *o)
{
    unsigned long n = 0, group;
    for (size_t i = 0; o->own && i < o->from->n_attrs; i++)
        if (setting_of(&o->from->attrs[i], &group) && group >= n && group < MOST_GROUPS)
            n = group + 1;
    return n;
}

static int put_groups(const mgr_deepspeed_optimizer *o, mgr_buf *out, mgr_err *err)
{
    const unsigned long own = count_own(o);
    MGR_TRY(mgr_entry_list(out, "param_groups", err));
    for (unsigned long g = 0; g < own; g++) {
        MGR_TRY(mgr_pickle_dict_open(out, err));
        MGR_TRY(put_own(o->from, g, out, err));
        MGR_TRY(mgr_entry_empty_list(out, "params", err));
        MGR_TRY(mgr_pickle_dict_close(out, err));
    }
    for (unsigned long g = own; g < MOST_GROUPS; g++)
        MGR_TRY(put_bare(out, err));
    return mgr_pickle_list_close(out, err);
}

/* Megatron's, where there is one, or torch's default. */
static int put_real(const mgr_deepspeed_optimizer *o, const char *name, double otherwise,
                    mgr_buf *out, mgr_err *err)
{
    const mgr_attr *const a = o->from ? mgr_megatron_optimizer_setting(o->from, name) : NULL;
    return mgr_entry_real(out, name, is_number(a) ? number_of(a) : otherwise, err);
}

static int put_betas(const mgr_deepspeed_optimizer *o, mgr_buf *out, mgr_err *err)
{
    const mgr_attr *const a = o->from ? mgr_megatron_optimizer_setting(o->from, "betas") : NULL;
    MGR_TRY(mgr_pickle_text(out, "betas", err));
    if (a && a->kind == MGR_ATTR_LITERAL)
        return mgr_megatron_value_emit(a, out, err);
    MGR_TRY(mgr_pickle_tuple_open(out, err));
    MGR_TRY(mgr_pickle_real(out, 0.9, err));
    MGR_TRY(mgr_pickle_real(out, 0.999, err));
    return mgr_pickle_tuple_close(out, err);
}

/* Settings that torch's AdamW has. */
static int put_torch(const mgr_deepspeed_optimizer *o, mgr_buf *out, mgr_err *err)
{
    static const char *const nones[] = {"foreach", "fused"};
    MGR_TRY(put_real(o, "lr", 1e-3, out, err));
    MGR_TRY(put_betas(o, out, err));
    MGR_TRY(put_real(o, "eps", 1e-8, out, err));
    MGR_TRY(put_real(o, "weight_decay", 0.01, out, err));
    MGR_TRY(mgr_entry_bool(out, "bias_correction", true, err));
    MGR_TRY(mgr_entry_bool(out, "amsgrad", false, err));
    MGR_TRY(mgr_entry_bool(out, "maximize", false, err));
    MGR_TRY(mgr_entry_bool(out, "capturable", false, err));
    MGR_TRY(mgr_entry_bool(out, "differentiable", false, err));
    MGR_TRY(mgr_entry_bool(out, "decoupled_weight_decay", true, err));
    return mgr_entry_nones(out, nones, sizeof nones / sizeof nones[0], err);
}

/* The one group of ZeRO-3's files, with the numbers of its sub-groups. */
static int put_group(const mgr_deepspeed *ds, const mgr_deepspeed_optimizer *o, mgr_buf *out,
                     mgr_err *err)
{
    MGR_TRY(mgr_pickle_dict_open(out, err));
    MGR_TRY(count_own(o) ? put_own(o->from, 0, out, err) : put_torch(o, out, err));
    MGR_TRY(mgr_entry_list(out, "params", err));
    for (uint32_t g = 0; g < ds->groups; g++)
        MGR_TRY(mgr_pickle_int(out, g, err));
    MGR_TRY(mgr_pickle_list_close(out, err));
    return mgr_pickle_dict_close(out, err);
}

/* ---- small files ---- */

int mgr_deepspeed_emit_scheduler(const mgr_deepspeed_optimizer *o, mgr_buf *out, mgr_err *err)
{
    const mgr_attr *found = NULL;
    for (size_t i = 0; o->own && i < o->from->n_attrs && !found; i++)
        if (strcmp(o->from->attrs[i].key, MGR_DS_SCHEDULER) == 0)
            found = &o->from->attrs[i];
    MGR_TRY(mgr_pickle_text(out, MGR_DS_SCHEDULER, err));
    return found && found->kind == MGR_ATTR_LITERAL ? mgr_megatron_value_emit(found, out, err)
                                                    : mgr_pickle_none(out, err);
}

/* As torch's Adam counts, or what the source had. ZeRO 1 and 2 ask for one of each parameter. */
int mgr_deepspeed_emit_step(const mgr_deepspeed_optimizer *o, mgr_buf *out, mgr_err *err)
{
    return o->int_step ? mgr_pickle_int(out, (int64_t)o->step, err)
                       : mgr_pickle_tensor(out, "0", MGR_DTYPE_F32, 0, NULL, err);
}

/* What stage3.py looks for lies in a dict, what base_optimizer.py does beside it. */
int mgr_deepspeed_emit_universal(const mgr_deepspeed_optimizer *o, mgr_buf *out, mgr_err *err)
{
    MGR_TRY(mgr_pickle_dict_open(out, err));
    MGR_TRY(mgr_entry_dict(out, "optimizer_state_dict", err));
    MGR_TRY(mgr_entry_dict(out, "state", err));
    MGR_TRY(mgr_pickle_int(out, 0, err));
    MGR_TRY(mgr_pickle_dict_open(out, err));
    MGR_TRY(mgr_pickle_text(out, "step", err));
    MGR_TRY(mgr_deepspeed_emit_step(o, out, err));
    MGR_TRY(mgr_pickle_dict_close(out, err));
    MGR_TRY(mgr_pickle_dict_close(out, err));
    MGR_TRY(put_groups(o, out, err));
    MGR_TRY(mgr_pickle_dict_close(out, err));
    MGR_TRY(put_groups(o, out, err));
    MGR_TRY(mgr_entry_text(out, "ds_version", MGR_DEEPSPEED_VERSION, err));
    return mgr_pickle_dict_close(out, err);
}

/* ---- a rank of ZeRO-3 ---- */

/* The engine takes the scaler as it is (runtime/fp16/loss_scaler.py); that of bfloat16. */
static int put_scaler(mgr_buf *out, mgr_err *err)
{
    MGR_TRY(mgr_pickle_text(out, "loss_scaler", err));
    MGR_TRY(mgr_pickle_object_open(out, "deepspeed.runtime.fp16.loss_scaler", "LossScaler", err));
    MGR_TRY(mgr_entry_real(out, "cur_scale", 1.0, err));
    MGR_TRY(mgr_entry_bool(out, "dynamic", false, err));
    return mgr_pickle_object_close(out, err);
}

static int put_flat(uint32_t storage, uint64_t size, mgr_buf *out, mgr_err *err)
{
    char key[24];
    snprintf(key, sizeof key, "%u", storage);
    return mgr_pickle_tensor(out, key, MGR_DTYPE_F32, 1, &size, err);
}

/* Left out of an optimizer that begins: torch and DeepSpeed begin at zero where there is none. */
static int put_state(const mgr_deepspeed *ds, const mgr_deepspeed_optimizer *o,
                     const uint64_t *sizes, mgr_buf *out, mgr_err *err)
{
    MGR_TRY(mgr_entry_dict(out, "state", err));
    for (uint32_t g = 0; o->from && g < ds->groups; g++) {
        MGR_TRY(mgr_pickle_int(out, g, err));
        MGR_TRY(mgr_pickle_dict_open(out, err));
        MGR_TRY(mgr_entry_int(out, "step", (int64_t)o->step, err));
        MGR_TRY(mgr_pickle_text(out, "exp_avg", err));
        MGR_TRY(put_flat(ds->groups + g, sizes[g], out, err));
        MGR_TRY(mgr_pickle_text(out, "exp_avg_sq", err));
        MGR_TRY(put_flat(2 * ds->groups + g, sizes[g], out, err));
        MGR_TRY(mgr_pickle_dict_close(out, err));
    }
    return mgr_pickle_dict_close(out, err);
}

static int put_masters(const mgr_deepspeed *ds, const uint64_t *sizes, mgr_buf *out, mgr_err *err)
{
    MGR_TRY(mgr_entry_list(out, "fp32_flat_groups", err));
    for (uint32_t g = 0; g < ds->groups; g++)
        MGR_TRY(put_flat(g, sizes[g], out, err));
    return mgr_pickle_list_close(out, err);
}

static int put_inner(const mgr_deepspeed *ds, const mgr_deepspeed_optimizer *o,
                     const uint64_t *sizes, mgr_buf *out, mgr_err *err)
{
    MGR_TRY(mgr_entry_dict(out, "optimizer_state_dict", err));
    MGR_TRY(mgr_entry_int(out, "zero_stage", 3, err));
    MGR_TRY(put_scaler(out, err));
    MGR_TRY(mgr_entry_bool(out, "dynamic_loss_scale", false, err));
    MGR_TRY(mgr_entry_bool(out, "overflow", false, err));
    MGR_TRY(mgr_entry_int(out, "partition_count", ds->ranks, err));
    MGR_TRY(mgr_entry_dict(out, "optimizer_state_dict", err));
    MGR_TRY(put_state(ds, o, sizes, out, err));
    MGR_TRY(mgr_entry_list(out, "param_groups", err));
    MGR_TRY(put_group(ds, o, out, err));
    MGR_TRY(mgr_pickle_list_close(out, err));
    MGR_TRY(mgr_pickle_dict_close(out, err));
    MGR_TRY(put_masters(ds, sizes, out, err));
    return mgr_pickle_dict_close(out, err);
}

int mgr_deepspeed_emit_optimizer(const mgr_deepspeed *ds, const mgr_deepspeed_optimizer *o,
                                 const uint64_t *sizes, mgr_buf *out, mgr_err *err)
{
    MGR_TRY(mgr_pickle_dict_open(out, err));
    MGR_TRY(put_inner(ds, o, sizes, out, err));
    MGR_TRY(mgr_entry_empty(out, "ds_config", err));
    MGR_TRY(mgr_entry_text(out, "ds_version", MGR_DEEPSPEED_VERSION, err));
    return mgr_pickle_dict_close(out, err);
}
