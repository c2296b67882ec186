/* Names: transformers' modeling_<type>.py, _keys_to_ignore_on_load_unexpected, of release 5
 * ("mtp.", "model.mtp_block", "model.layers.61."); megatron-core's multi_token_prediction.py. */
#include "model/mtp.h"

#include <stdlib.h>
#include <string.h>

#include "core/str.h"

#define LAYERS "model.layers."
#define WEIGHT_MAP "weight_map." /* of an index, in attributes */

/* In config.json, whose attributes begin with "config.". */
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

/* How many layers config.json says there are; 0 where there is none, or it does not say. */
static uint64_t layers_of(const mgr_catalogue *cat)
{
    for (size_t i = 0; i < cat->n_attrs; i++) {
        const mgr_attr *const a = &cat->attrs[i];
        if (a->kind == MGR_ATTR_INT && a->i > 0 && strcmp(a->key, "config.num_hidden_layers") == 0)
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

static bool is_of_mtp(const char *name, uint64_t layers)
{
    const char *const number = name + sizeof LAYERS - 1;
    return has_word(name) ||
           (layers > 0 && mgr_has_prefix(name, LAYERS) && strtoull(number, NULL, 10) >= layers);
}

const mgr_stored *mgr_mtp_find(const mgr_catalogue *cat, uint64_t layers)
{
    for (size_t i = 0; i < cat->n_stored; i++)
        if (is_of_mtp(cat->stored[i].name, layers))
            return &cat->stored[i];
    return NULL;
}

/* An entry of an index that names such a tensor. */
static bool is_entry(const mgr_attr *a, uint64_t layers)
{
    return mgr_has_prefix(a->key, WEIGHT_MAP) && is_of_mtp(a->key + sizeof WEIGHT_MAP - 1, layers);
}

static void drop_attrs(mgr_catalogue *cat, uint64_t layers)
{
    size_t kept = 0;
    for (size_t i = 0; i < cat->n_attrs; i++) {
        mgr_attr a = cat->attrs[i];
        if (is_entry(&a, layers))
            continue;
        if (mgr_mtp_is_arg(a.key))
            a.kind = MGR_ATTR_NULL;
        cat->attrs[kept++] = a;
    }
    cat->n_attrs = kept;
}

void mgr_mtp_drop(mgr_catalogue *cat)
{
    const uint64_t layers = layers_of(cat);
    size_t kept = 0;
    for (size_t i = 0; i < cat->n_stored; i++) {
        if (is_of_mtp(cat->stored[i].name, layers))
            cat->skipped[MGR_SKIP_OTHER]++;
        else
            cat->stored[kept++] = cat->stored[i];
    }
    cat->n_stored = kept;
    drop_attrs(cat, layers);
}

int mgr_mtp_refuse(const mgr_catalogue *cat, const mgr_stored *s, mgr_err *err)
{
    char shown[200];
    mgr_fail(err, MGR_ERR_UNSUPPORTED,
             "'%s' has layers for multi-token prediction ('%s'), which are not supported here",
             cat->files[s->file].path,
             mgr_printable(s->name, strlen(s->name), shown, sizeof shown));
    return mgr_hint(err, MGR_MTP_HINT);
}
