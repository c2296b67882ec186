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
        const int own = key ? mgr_config_key_section(key) : -1;
        if (!key || (config->n_sources && own == MGR_SECTION_SOURCE))
            continue;
        if (own != section)
            MGR_TRY(mgr_buf_fmt(out, err, "%s:\n", mgr_config_sections[own]));
        section = own;
        MGR_TRY(dump_key(config, key, out, err));
    }
    return MGR_OK;
}

/* One entry of 'sources'. */
static int dump_source(const mgr_config *one, mgr_schema *schema, mgr_buf *out, mgr_err *err)
{
    const char *lead = "  - ";
    mgr_key_list all;
    mgr_schema_list(schema, &all);
    for (size_t i = 0; i < all.n; i++) {
        const mgr_key *const key = mgr_schema_row(schema, one, all.keys[i]->name);
        if (!key || mgr_config_key_section(key) != MGR_SECTION_SOURCE)
            continue;
        MGR_TRY(mgr_buf_fmt(out, err, "%s%s: ", lead, mgr_config_key_leaf(key)));
        MGR_TRY(mgr_value_dump(one, key, out, err));
        MGR_TRY(mgr_buf_text(out, "\n", err));
        lead = "    ";
    }
    return MGR_OK;
}

static int dump_sources(const mgr_config *config, mgr_schema *schema, mgr_buf *out, mgr_err *err)
{
    mgr_config one = *config;
    if (config->n_sources)
        MGR_TRY(mgr_buf_text(out, "sources:\n", err));
    for (uint32_t i = 0; i < config->n_sources; i++) {
        mgr_config_use_source(&one, i);
        MGR_TRY(dump_source(&one, schema, out, err));
    }
    return MGR_OK;
}

int mgr_config_dump(const mgr_config *config, mgr_schema *schema, struct mgr_buf *out, mgr_err *err)
{
    int rc = dump_keys(config, schema, out, err);
    if (rc == MGR_OK)
        rc = dump_sources(config, schema, out, err);
    return rc == MGR_OK ? rc : mgr_wrap(err, "write the configuration as YAML");
}
