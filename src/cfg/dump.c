/* The effective configuration as YAML. */
#include <string.h>

#include "cfg/schema.h"
#include "cfg/value.h"
#include "core/str.h"
#include "mgr/config.h"

static int dump_keys(const mgr_config *config, mgr_buf *out, mgr_err *err)
{
    size_t n = 0;
    int section = -1;
    const mgr_key *keys = mgr_config_schema(&n);
    for (size_t i = 0; i < n; i++) {
        const int own = mgr_config_key_section(&keys[i]);
        if (own != section)
            MGR_TRY(mgr_buf_fmt(out, err, "%s:\n", mgr_config_sections[own]));
        section = own;
        MGR_TRY(
            mgr_buf_fmt(out, err, "%s%s: ", own < 0 ? "" : "  ", mgr_config_key_leaf(&keys[i])));
        MGR_TRY(mgr_value_dump(config, &keys[i], out, err));
        MGR_TRY(mgr_buf_text(out, "\n", err));
    }
    return MGR_OK;
}

int mgr_config_dump(const mgr_config *config, struct mgr_buf *out, mgr_err *err)
{
    const int rc = dump_keys(config, out, err);
    return rc == MGR_OK ? rc : mgr_wrap(err, "write the configuration as YAML");
}
