/* The effective configuration as YAML. */
#include <string.h>

#include "cfg/schema.h"
#include "cfg/value.h"
#include "core/str.h"
#include "mgr/config.h"

static int dump_key(const mgr_config *config, const mgr_key *key, mgr_buf *out, mgr_err *err)
{
    const char *const indent = mgr_config_key_section(key) < 0 ? "" : "  ";
    MGR_TRY(mgr_buf_fmt(out, err, "%s%s: ", indent, mgr_config_key_leaf(key)));
    MGR_TRY(mgr_value_dump(config, key, out, err));
    return mgr_buf_text(out, "\n", err);
}

static int dump_keys(const mgr_config *config, mgr_schema *schema, mgr_buf *out, mgr_err *err)
{
    mgr_key_list all;
    int section = -1;
    mgr_schema_list(schema, &all);
    for (size_t i = 0; i < all.n; i++) {
        const mgr_key *const key = mgr_schema_row(schema, config, all.keys[i]->name);
        if (!key)
            continue;
        const int own = mgr_config_key_section(key);
        if (own != section)
            MGR_TRY(mgr_buf_fmt(out, err, "%s:\n", mgr_config_sections[own]));
        section = own;
        MGR_TRY(dump_key(config, key, out, err));
    }
    return MGR_OK;
}

int mgr_config_dump(const mgr_config *config, mgr_schema *schema, struct mgr_buf *out, mgr_err *err)
{
    const int rc = dump_keys(config, schema, out, err);
    return rc == MGR_OK ? rc : mgr_wrap(err, "write the configuration as YAML");
}
