/* Look-ups in the tables of keys that a schema is made of. */
#include "cfg/schema.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "core/str.h"

const char *const mgr_config_sections[MGR_N_SECTIONS] = {
    [MGR_SECTION_SOURCE] = "source", "model", "upcycle", "target"};

const mgr_key *mgr_schema_next(mgr_schema *schema, mgr_row_walk *at, const mgr_key_table **table)
{
    while (!at->current || at->row == at->current->n) {
        at->current = schema(at->table++);
        at->row = 0;
        if (!at->current)
            return NULL;
    }
    if (table)
        *table = at->current;
    return &at->current->keys[at->row++];
}

static bool has(const mgr_key_list *list, const char *name)
{
    for (size_t i = 0; i < list->n; i++)
        if (strcmp(list->keys[i]->name, name) == 0)
            return true;
    return false;
}

void mgr_schema_list(mgr_schema *schema, mgr_key_list *out)
{
    out->n = 0;
    for (int section = -1; section < MGR_N_SECTIONS; section++) {
        mgr_row_walk at = {0};
        for (const mgr_key *key; (key = mgr_schema_next(schema, &at, NULL));) {
            if (mgr_config_key_section(key) != section || has(out, key->name))
                continue;
            assert(out->n < MGR_CONFIG_MAX_KEYS); /* our own tables; test_config lists them all */
            out->keys[out->n++] = key;
        }
    }
}

const mgr_key *mgr_schema_find(mgr_schema *schema, const char *name)
{
    mgr_row_walk at = {0};
    for (const mgr_key *key; (key = mgr_schema_next(schema, &at, NULL));)
        if (strcmp(key->name, name) == 0)
            return key;
    return NULL;
}

const mgr_key *mgr_schema_row(mgr_schema *schema, const mgr_config *config, const char *name)
{
    mgr_row_walk at = {0};
    const mgr_key_table *table = NULL;
    for (const mgr_key *key; (key = mgr_schema_next(schema, &at, &table));)
        if (strcmp(key->name, name) == 0 && mgr_schema_applies(config, table))
            return key;
    return NULL;
}

bool mgr_schema_same(const mgr_key *a, const mgr_key *b)
{
    return strcmp(a->name, b->name) == 0 && strcmp(a->help, b->help) == 0;
}

const char *mgr_schema_owners(mgr_schema *schema, const mgr_key *row, char *out, size_t size)
{
    mgr_row_walk at = {0};
    const mgr_key_table *table;
    size_t used = 0;
    out[0] = '\0';
    for (const mgr_key *key; (key = mgr_schema_next(schema, &at, &table)) && used < size;)
        if (mgr_schema_same(key, row) && table->kind > MGR_OWNER_MODE)
            used +=
                (size_t)snprintf(out + used, size - used, "%s%s", used ? ", " : "[", table->owner);
    if (used && used + 2 < size)
        memcpy(out + used, "] ", 3);
    return out;
}

/* The key that chooses among the owners of each kind. */
static const struct {
    const char *key;
    size_t offset;
    bool of_upcycle; /* has a meaning under 'mode: upcycle' alone */
} choosers[MGR_OWNER_COUNT] = {
    [MGR_OWNER_ALL] = {NULL, 0, false},
    [MGR_OWNER_MODE] = {"mode", offsetof(mgr_config, mode), false},
    [MGR_OWNER_SOURCE] = {"source.format", offsetof(mgr_config, source.format), false},
    [MGR_OWNER_TARGET] = {"target.format", offsetof(mgr_config, target.format), false},
    [MGR_OWNER_METHOD] = {"upcycle.method", offsetof(mgr_config, upcycle.method), true},
    [MGR_OWNER_ROUTER] = {"upcycle.router", offsetof(mgr_config, upcycle.router), true},
};

const char *mgr_schema_chooser(mgr_owner kind)
{
    return choosers[kind].key;
}

const char *mgr_schema_chosen(const mgr_config *config, mgr_owner kind)
{
    if (choosers[kind].of_upcycle && strcmp(config->mode, "upcycle") != 0)
        return "";
    return (const char *)config + choosers[kind].offset;
}

bool mgr_schema_applies(const mgr_config *config, const mgr_key_table *table)
{
    if (table->kind == MGR_OWNER_ALL)
        return true;
    const char *const chosen = mgr_schema_chosen(config, table->kind);
    return strcmp(chosen, table->owner) == 0 ||
           (table->kind == MGR_OWNER_SOURCE && strcmp(chosen, "auto") == 0);
}

const char *mgr_config_key_leaf(const mgr_key *key)
{
    const char *dot = strchr(key->name, '.');
    return dot ? dot + 1 : key->name;
}

int mgr_config_key_section(const mgr_key *key)
{
    for (int i = 0; i < MGR_N_SECTIONS; i++) {
        const size_t len = strlen(mgr_config_sections[i]);
        if (strncmp(key->name, mgr_config_sections[i], len) == 0 && key->name[len] == '.')
            return i;
    }
    return -1;
}

int mgr_config_section(const char *name)
{
    for (int i = 0; i < MGR_N_SECTIONS; i++)
        if (strcmp(mgr_config_sections[i], name) == 0)
            return i;
    return -1;
}

/* "; did you mean 'source.path' or 'target.path'?": the same word in other sections. */
static bool suggest_elsewhere(const mgr_key_list *all, int section, const char *name, char *out,
                              size_t size)
{
    size_t len = 0;
    for (size_t i = 0; i < all->n; i++) {
        const mgr_key *const key = all->keys[i];
        if (mgr_config_key_section(key) == section || strcmp(mgr_config_key_leaf(key), name) != 0 ||
            len >= size)
            continue;
        const char *lead = len ? " or" : "; did you mean";
        const int added = snprintf(out + len, size - len, "%s '%s'", lead, key->name);
        len += added > 0 ? (size_t)added : 0;
    }
    if (len && len + 1 < size)
        memcpy(out + len, "?", 2);
    return len > 0;
}

/* `key` is a key, but was not found on the level where its full name was written. */
static bool suggest_level(const mgr_key *key, char *out, size_t size)
{
    if (!key)
        return false;
    const int section = mgr_config_key_section(key);
    if (section < 0)
        (void)snprintf(out, size, "; it belongs to the top level");
    else
        (void)snprintf(out, size, "; write '%s' below '%s:'", mgr_config_key_leaf(key),
                       mgr_config_sections[section]);
    return true;
}

const char *mgr_config_suggest(mgr_schema *schema, int section, const char *name, char *out,
                               size_t size)
{
    const char *names[MGR_CONFIG_MAX_KEYS + MGR_N_SECTIONS];
    mgr_key_list all;
    size_t n = 0;
    mgr_schema_list(schema, &all);
    if (suggest_level(mgr_schema_find(schema, name), out, size) ||
        suggest_elsewhere(&all, section, name, out, size))
        return out;
    for (size_t i = 0; i < all.n; i++)
        if (mgr_config_key_section(all.keys[i]) == section)
            names[n++] = mgr_config_key_leaf(all.keys[i]);
    for (int i = 0; section < 0 && i < MGR_N_SECTIONS; i++)
        names[n++] = mgr_config_sections[i];
    const char *near = mgr_nearest(name, names, n);
    (void)snprintf(out, size, near ? "; did you mean '%s'?" : "%s", near ? near : "");
    return out;
}

const char *mgr_config_suggest_full(mgr_schema *schema, const char *name, char *out, size_t size)
{
    const char *names[MGR_CONFIG_MAX_KEYS];
    mgr_key_list all;
    mgr_schema_list(schema, &all);
    if (suggest_elsewhere(&all, -2, name, out, size)) /* a key without its section */
        return out;
    for (size_t i = 0; i < all.n; i++)
        names[i] = all.keys[i]->name;
    const char *near = mgr_nearest(name, names, all.n);
    (void)snprintf(out, size, near ? "; did you mean '%s'?" : "%s", near ? near : "");
    return out;
}
