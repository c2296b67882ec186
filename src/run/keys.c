/* The schema of everything that is registered: core, then sources, targets, methods, routers. */
#include "cfg/core_keys.h"
#include "form/source.h"
#include "form/target.h"
#include "mgr/config.h"
#include "mgr/upcycle.h"

static const mgr_key_table *source_keys(size_t idx)
{
    const mgr_source_format *const format = mgr_source_at(idx);
    return format ? &format->keys : NULL;
}

static const mgr_key_table *target_keys(size_t idx)
{
    const mgr_target_format *const format = mgr_target_at(idx);
    return format ? &format->keys : NULL;
}

static const mgr_key_table *method_keys(size_t idx)
{
    const mgr_method *const method = mgr_method_at(idx);
    return method ? &method->keys : NULL;
}

static const mgr_key_table *router_keys(size_t idx)
{
    return idx < MGR_ROUTER_COUNT ? mgr_router_keys((mgr_router)idx) : NULL;
}

const mgr_key_table *mgr_config_tables(size_t idx)
{
    static mgr_schema *const parts[] = {mgr_core_keys, source_keys, target_keys, method_keys,
                                        router_keys};
    for (size_t p = 0; p < sizeof parts / sizeof parts[0]; p++) {
        size_t n = 0;
        while (parts[p](n)) {
            if (n == idx)
                return parts[p](n);
            n++;
        }
        idx -= n;
    }
    return NULL;
}
