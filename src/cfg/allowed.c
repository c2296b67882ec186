/*
 * Which of the written keys a construction reads, where that is less than its mode and method do.
 */
#include <string.h>

#include "cfg/schema.h"
#include "cfg/value.h"
#include "core/mem.h"

static bool is_listed(const char *name, const char *const *allowed)
{
    while (*allowed && strcmp(*allowed, name) != 0)
        allowed++;
    return *allowed != NULL;
}

/* `blank` has all defaults that it needs. */
static bool same_value(const mgr_config *config, const mgr_config *blank, const mgr_key *key)
{
    const char *const a = (const char *)config + key->offset;
    const char *const b = (const char *)blank + key->offset;
    const bool text =
        key->kind == MGR_KEY_TEXT || key->kind == MGR_KEY_PATH || key->kind == MGR_KEY_CHOICE;
    return text ? strcmp(a, b) == 0 : memcmp(a, b, key->size) == 0;
}

int mgr_config_keep_to(const mgr_config *config, mgr_schema *schema, const char *const *allowed,
                       const char *why, mgr_err *err)
{
    static const char section[] = "upcycle.";
    mgr_config *blank = NULL;
    const char *stray = NULL;
    MGR_TRY(mgr_alloc(&blank, 1, sizeof *blank, err));
    int rc = MGR_OK;
    for (uint32_t i = 0; rc == MGR_OK && !stray && i < config->n_written; i++) {
        const char *const name = config->written[i].key;
        const mgr_key *const key = mgr_schema_row(schema, config, name);
        if (strncmp(name, section, sizeof section - 1) != 0 || is_listed(name, allowed) || !key)
            continue;
        rc = mgr_value_default(blank, key, err);
        if (rc == MGR_OK && !same_value(config, blank, key))
            stray = name;
    }
    mgr_free(blank);
    return stray ? mgr_config_fail(config, stray, err, "'%s' is %s", stray, why) : rc;
}
