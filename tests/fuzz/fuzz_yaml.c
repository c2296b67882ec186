/*
 * A configuration from hostile bytes. The bytes 0xff separate the YAML text and up to 8 overrides
 * (no UTF-8 text contains 0xff). What is accepted must survive dump and parse unchanged.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cfg/schema.h"
#include "core/mem.h"
#include "core/str.h"
#include "mgr/config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MAX_SETS 8

static void check_round_trip(const mgr_config *config)
{
    mgr_buf text = {0};
    mgr_config again;
    mgr_err err = MGR_ERR_INIT;
    mgr_key_list all;
    if (mgr_config_dump(config, mgr_config_tables, &text, &err) != MGR_OK ||
        mgr_config_parse(&again, mgr_config_tables, "dump", text.data, text.len, NULL, 0, &err) !=
            MGR_OK) {
        fprintf(stderr, "%s\n%s\n", err.msg, text.data ? text.data : "");
        abort();
    }
    mgr_schema_list(mgr_config_tables, &all);
    for (size_t i = 0; i < all.n; i++) {
        const mgr_key *const key = mgr_schema_row(mgr_config_tables, config, all.keys[i]->name);
        if (key && memcmp((const char *)config + key->offset, (const char *)&again + key->offset,
                          key->size) != 0) {
            fprintf(stderr, "'%s' changed\n%s\n", key->name, text.data);
            abort();
        }
    }
    mgr_buf_clear(&text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    mgr_err err = MGR_ERR_INIT;
    char *copy = NULL;
    const char *sets[MAX_SETS];
    size_t n_sets = 0;
    if (mgr_strndup(&copy, (const char *)data, size, &err) != MGR_OK)
        return 0;
    size_t len = size;
    for (size_t at = 0; at < size && n_sets < MAX_SETS; at++) {
        if (data[at] != 0xff)
            continue;
        len = at < len ? at : len;
        copy[at] = '\0';
        sets[n_sets++] = copy + at + 1;
    }
    mgr_config config;
    const int rc =
        mgr_config_parse(&config, mgr_config_tables, "fuzz", copy, len, sets, n_sets, &err);
    if (rc == MGR_OK)
        check_round_trip(&config);
    else if (err.code != rc || err.msg[0] == '\0' || rc == MGR_ERR_INTERNAL)
        abort();
    mgr_free(copy);
    return 0;
}
