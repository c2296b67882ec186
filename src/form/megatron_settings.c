#include "form/megatron_settings.h"

#include <stdio.h>
#include <string.h>

#include "form/deepspeed_optimizer.h"

#define GROUPS "optimizer.optimizer.param_groups."
#define STEP "optimizer.optimizer.state.common_step"
#define SCHEDULER "opt_param_scheduler."

bool mgr_megatron_settings_foreign(const mgr_origin *origin)
{
    return origin && strcmp(origin->format, "deepspeed") == 0;
}

static double real_of(const mgr_attr *a, double otherwise)
{
    return !a ? otherwise : a->kind == MGR_ATTR_REAL ? a->r : (double)a->i;
}

/* A schedule moves lr, and leaves where it began. */
double mgr_megatron_settings_lr(const mgr_origin *origin)
{
    const double now = real_of(mgr_deepspeed_setting(origin->cat, 0, "lr"), 1e-3);
    return real_of(mgr_deepspeed_setting(origin->cat, 0, "initial_lr"), now);
}

/* Of groups that differ in nothing else, one does not decay. */
static double decay_of(const mgr_catalogue *from)
{
    double most = 0;
    const mgr_attr *a = mgr_deepspeed_setting(from, 0, "weight_decay");
    for (unsigned long g = 0; a; a = mgr_deepspeed_setting(from, ++g, "weight_decay"))
        most = real_of(a, 0) > most ? real_of(a, 0) : most;
    return most;
}

static int add(mgr_catalogue *made, const char *prefix, const mgr_attr *value, mgr_err *err)
{
    char key[128];
    mgr_attr a = *value;
    snprintf(key, sizeof key, "%s%s", prefix, value->key);
    a.key = key;
    a.file = 0;
    return mgr_catalogue_add_attr(made, &a, err);
}

static int add_list(mgr_catalogue *made, const char *prefix, const mgr_attr *list, size_t n,
                    mgr_err *err)
{
    for (size_t i = 0; i < n; i++)
        MGR_TRY(add(made, prefix, &list[i], err));
    return MGR_OK;
}

#define REAL(name, value)                                                                          \
    {                                                                                              \
        .key = (name), .kind = MGR_ATTR_REAL, .r = (value)                                         \
    }
#define INT(name, value)                                                                           \
    {                                                                                              \
        .key = (name), .kind = MGR_ATTR_INT, .i = (value)                                          \
    }
#define BOOL(name, value)                                                                          \
    {                                                                                              \
        .key = (name), .kind = MGR_ATTR_BOOL, .i = (value)                                         \
    }
#define TEXT(name, value)                                                                          \
    {                                                                                              \
        .key = (name), .kind = MGR_ATTR_TEXT, .text = (value)                                      \
    }

/* core/optimizer/__init__.py, _get_param_groups: biases and norms do not decay. A trainer finds its
 * groups by what is in them. */
static int add_group(const mgr_origin *origin, unsigned group, mgr_catalogue *made, mgr_err *err)
{
    const mgr_catalogue *const from = origin->cat;
    const double lr = mgr_megatron_settings_lr(origin), mult = group == 0;
    const mgr_attr *const found = mgr_deepspeed_setting(from, 0, "betas");
    const mgr_attr betas = {.key = "betas",
                            .kind = MGR_ATTR_LITERAL,
                            .text = found && found->kind == MGR_ATTR_LITERAL ? found->text
                                                                             : "(0.9, 0.999)"};
    const mgr_attr list[] = {
        REAL("wd_mult", mult),
        REAL("lr_mult", 1),
        BOOL("is_expert_parallel", 0),
        BOOL("is_decoupled_lr", 0),
        BOOL("default_config", 1),
        REAL("max_lr", lr),
        REAL("min_lr", 0),
        REAL("lr", real_of(mgr_deepspeed_setting(from, 0, "lr"), lr)),
        REAL("weight_decay", mult * decay_of(from)),
        REAL("eps", real_of(mgr_deepspeed_setting(from, 0, "eps"), 1e-8)),
        BOOL("bias_correction", 1),
        betas,
    };
    char prefix[64];
    snprintf(prefix, sizeof prefix, GROUPS "%u.", group);
    return add_list(made, prefix, list, sizeof list / sizeof list[0], err);
}

/* optimizer_param_scheduler.py, state_dict */
static int add_scheduler(const mgr_origin *origin, mgr_catalogue *made, mgr_err *err)
{
    const double decay = decay_of(origin->cat);
    const mgr_attr list[] = {
        REAL("max_lr", mgr_megatron_settings_lr(origin)),
        REAL("min_lr", 0),
        INT("lr_warmup_steps", 0),
        INT("lr_decay_steps", 1),
        TEXT("lr_decay_style", "constant"),
        INT("num_steps", 0),
        REAL("start_wd", decay),
        REAL("end_wd", decay),
        TEXT("wd_incr_style", "constant"),
        INT("wd_incr_steps", 1),
    };
    return add_list(made, SCHEDULER, list, sizeof list / sizeof list[0], err);
}

int mgr_megatron_settings_make(const mgr_origin *origin, mgr_catalogue *made, mgr_err *err)
{
    mgr_deepspeed_optimizer optimizer;
    uint32_t file;
    MGR_TRY(mgr_deepspeed_optimizer_take(origin, false, &optimizer, err));
    MGR_TRY(mgr_deepspeed_settings_alike(origin->cat, "weight_decay", "Megatron's groups", err));
    MGR_TRY(mgr_catalogue_add_file(made, origin->directory, 0, &file, err));
    const mgr_attr step = REAL(STEP, optimizer.step);
    MGR_TRY(mgr_catalogue_add_attr(made, &step, err));
    MGR_TRY(add_group(origin, 0, made, err));
    MGR_TRY(add_group(origin, 1, made, err));
    return add_scheduler(origin, made, err);
}
