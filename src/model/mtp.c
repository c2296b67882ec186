/* Names: transformers' modeling_<type>.py, _keys_to_ignore_on_load_unexpected, of release 5
 * ("mtp.", "model.mtp_block", "model.layers.61."); megatron-core's multi_token_prediction.py. */
#include "model/mtp.h"

#include <stdlib.h>
#include <string.h>

#include "core/str.h"
#include "model/huggingface.h"
#include "model/huggingface_tower.h"

#define TOP_LAYERS "model.layers."

/* In config.json. */
static const char *const counts[] = {"num_nextn_predict_layers", "num_mtp_layers",
                                     "mtp_num_hidden_layers", "num_mtp_modules"};

/* Of Megatron, as a checkpoint has them that was saved without such layers: None. */
static const char *const args[] = {"args.mtp_num_layers", "args.mtp_hybrid_override_pattern"};

bool mgr_mtp_is_dropped(const mgr_config *config)
{
    return strcmp(config->source.mtp, "drop") == 0;
}

bool mgr_mtp_is_count(const char *key)
{
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++)
        if (strcmp(key, counts[i]) == 0)
            return true;
    return false;
}

bool mgr_mtp_is_arg(const char *key)
{
    for (size_t i = 0; i < sizeof args / sizeof args[0]; i++)
        if (strcmp(key, args[i]) == 0)
            return true;
    return false;
}

/* What the layers of a model are called, and how many there are; 0: it is not known. */
typedef struct stack {
    char name[MGR_HF_NAME_BYTES];
    uint64_t n;
} stack;

static stack stack_of(const mgr_catalogue *cat, uint64_t n)
{
    stack s = {.name = TOP_LAYERS, .n = n};
    mgr_huggingface_tower_name(mgr_huggingface_tower(cat, 0), s.name);
    return s;
}

/* Where the number of a model's layers is said: in config.json, and in HDF5. */
static const char *const depths[] = {"config.num_hidden_layers",
                                     "config." MGR_HF_TEXT_CONFIG ".num_hidden_layers", "layers"};

/* How many layers there are by what is said; 0 where nothing is. */
static uint64_t layers_of(const mgr_catalogue *cat)
{
    for (size_t i = 0; i < cat->n_attrs; i++) {
        const mgr_attr *const a = &cat->attrs[i];
        for (size_t k = 0; k < sizeof depths / sizeof depths[0]; k++)
            if (strcmp(a->key, depths[k]) == 0 && a->kind == MGR_ATTR_INT && a->i > 0)
                return (uint64_t)a->i;
    }
    return 0;
}

/* A part of the name, between dots, is "mtp" or begins with "mtp_". */
static bool has_word(const char *name)
{
    for (const char *at = name; (at = strstr(at, "mtp")) != NULL; at++)
        if ((at == name || at[-1] == '.') && (at[3] == '.' || at[3] == '_'))
            return true;
    return false;
}

static bool is_of_mtp(const char *name, const stack *layers)
{
    return has_word(name) || (layers->n > 0 && mgr_has_prefix(name, layers->name) &&
                              strtoull(name + strlen(layers->name), NULL, 10) >= layers->n);
}

const mgr_stored *mgr_mtp_find(const mgr_catalogue *cat, uint64_t layers)
{
    const stack behind = stack_of(cat, layers);
    for (size_t i = 0; i < cat->n_stored; i++)
        if (is_of_mtp(cat->stored[i].name, &behind))
            return &cat->stored[i];
    return NULL;
}

uint64_t mgr_mtp_joins(const mgr_catalogue *cat, uint64_t layers)
{
    const stack s = stack_of(cat, layers);
    uint64_t n = 0;
    for (size_t i = 0; i < cat->n_stored; i++) {
        const char *const name = cat->stored[i].name;
        char *end;
        if (mgr_has_prefix(name, s.name) && strtoull(name + strlen(s.name), &end, 10) >= layers)
            n += strcmp(end, ".eh_proj.weight") == 0;
    }
    return n;
}

bool mgr_mtp_is_other(const mgr_catalogue *cat, const mgr_model *model, const mgr_stored *s)
{
    const stack at_top = {.name = TOP_LAYERS,
                          .n = model->layers}; /* what is known whole is there */
    (void)cat;
    return !is_of_mtp(s->name, &at_top);
}

int mgr_mtp_check(const mgr_catalogue *cat, const mgr_config *config, const mgr_model *model,
                  mgr_err *err)
{
    const bool made = config->target.format[0] && strcmp(config->mode, "reshard") != 0;
    return model->mtp && made ? mgr_mtp_refuse(cat, mgr_mtp_find(cat, model->layers), err) : MGR_OK;
}

/* An entry of an index that names such a tensor. */
static bool is_entry(const mgr_attr *a, const stack *layers)
{
    return mgr_has_prefix(a->key, MGR_HF_WEIGHT_MAP) &&
           is_of_mtp(a->key + strlen(MGR_HF_WEIGHT_MAP), layers);
}

static void drop_attrs(mgr_catalogue *cat, const stack *layers)
{
    size_t kept = 0;
    for (size_t i = 0; i < cat->n_attrs; i++) {
        mgr_attr a = cat->attrs[i];
        if (is_entry(&a, layers))
            continue;
        if (mgr_mtp_is_arg(a.key) || strcmp(a.key, MGR_MTP_ATTR) == 0) {
            a.kind = MGR_ATTR_NULL;
            a.i = 0;
        }
        cat->attrs[kept++] = a;
    }
    cat->n_attrs = kept;
}

void mgr_mtp_drop(mgr_catalogue *cat)
{
    const stack layers = stack_of(cat, layers_of(cat));
    size_t kept = 0;
    for (size_t i = 0; i < cat->n_stored; i++) {
        if (is_of_mtp(cat->stored[i].name, &layers))
            cat->skipped[MGR_SKIP_OTHER]++;
        else
            cat->stored[kept++] = cat->stored[i];
    }
    cat->n_stored = kept;
    drop_attrs(cat, &layers);
}

int mgr_mtp_refuse(const mgr_catalogue *cat, const mgr_stored *s, mgr_err *err)
{
    const char *const name = s ? s->name : "mtp";
    char shown[200];
    mgr_fail(err, MGR_ERR_UNSUPPORTED,
             "'%s' has layers for multi-token prediction ('%s'), which are not supported here",
             cat->files[s ? s->file : 0].path,
             mgr_printable(name, strlen(name), shown, sizeof shown));
    return mgr_hint(err, MGR_MTP_HINT);
}
