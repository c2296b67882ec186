/* Settings in the words of a configuration file, and which target formats this library has. */
#include <stdio.h>
#include <string.h>

#include "form/target.h"
#include "lib/handle.h"

extern const mgr_target_format mgr_target_moe_recipes;
extern const mgr_target_format mgr_target_mixtral;
extern const mgr_target_format mgr_target_megatron_torch;
extern const mgr_target_format mgr_target_megatron_dist;
extern const mgr_target_format mgr_target_huggingface;
extern const mgr_target_format mgr_target_deepspeed;

/* Those of form/target_table.c but for HDF5's, whose library asks for MPI. */
const mgr_target_format *const mgr_target_table[] = {
    &mgr_target_huggingface,
    &mgr_target_moe_recipes,
    &mgr_target_mixtral,
    &mgr_target_megatron_torch,
    &mgr_target_megatron_dist,
    &mgr_target_deepspeed,
    NULL,
};

static int set_path(char *field, size_t size, const char *path, mgr_err *err)
{
    if ((size_t)snprintf(field, size, "%s", path) < size)
        return MGR_OK;
    return mgr_fail(err, MGR_ERR_USAGE, "'%.60s...' is longer than the %zu bytes of a path", path,
                    size - 1);
}

int mgr_settings_parse(mgr_config *config, const char *settings, const char *source,
                       const char *target, mgr_err *err)
{
    /* required by the schema; the paths themselves may hold what no setting may */
    static const char *const sets[] = {"source.path=none", "target.path=none"};
    const char *const text = settings ? settings : "{}";
    MGR_TRY(
        mgr_config_parse(config, mgr_config_tables, "settings", text, strlen(text), sets, 2, err));
    if (config->n_sources)
        return mgr_fail(err, MGR_ERR_UNSUPPORTED, "settings: 'sources' is for the program");
    MGR_TRY(set_path(config->source.path, sizeof config->source.path, source, err));
    return set_path(config->target.path, sizeof config->target.path, target, err);
}
