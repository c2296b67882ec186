#include "run/json_schema.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cfg/schema.h"
#include "fmt/json.h"

/* 512MiB, 5GB, 1048576 */
#define BYTES_PATTERN "^[0-9]+ *([kKMGT]i?B|B)?$"

static void add_once(json_t *list, const char *text, size_t len)
{
    size_t i;
    const json_t *entry;
    json_array_foreach(list, i, entry) if (json_string_length(entry) == len &&
                                           memcmp(json_string_value(entry), text, len) == 0) return;
    json_array_append_new(list, json_stringn(text, len));
}

/* The names of those that may be chosen by `key`, if it is such a key: formats, methods, routers.
 */
static void add_owners(mgr_schema *schema, const char *key, json_t *names)
{
    const mgr_key_table *table;
    for (size_t i = 0; (table = schema(i)); i++) {
        const char *const chooser =
            table->kind == MGR_OWNER_ALL ? NULL : mgr_schema_chooser(table->kind);
        if (chooser && strcmp(chooser, key) == 0)
            add_once(names, table->owner, strlen(table->owner));
    }
}

/* Choices of all rows of a key; "N" among them stands for any number, which an enum cannot say. */
static bool add_choices(mgr_schema *schema, const mgr_key *first, json_t *names)
{
    mgr_row_walk at = {0};
    bool number = false;
    for (const mgr_key *key; (key = mgr_schema_next(schema, &at, NULL));) {
        if (strcmp(key->name, first->name) != 0)
            continue;
        for (const char *c = key->choices; c && *c;) {
            const size_t n = strcspn(c, "|");
            if (n == 1 && *c == 'N')
                number = true;
            else
                add_once(names, c, n);
            c += n + (c[n] != '\0');
        }
    }
    return number;
}

static json_t *text_type(mgr_schema *schema, const mgr_key *key)
{
    json_t *const names = json_array();
    const bool number = add_choices(schema, key, names);
    add_owners(schema, key->name, names);
    if (json_array_size(names) == 0) {
        json_decref(names);
        return json_pack("{s:[s,s]}", "type", "string", "number"); /* YAML's 1 is a text, too */
    }
    if (strcmp(key->name, mgr_schema_chooser(MGR_OWNER_SOURCE)) == 0)
        add_once(names, "auto", 4);
    if (!number)
        return json_pack("{s:o}", "enum", names);
    return json_pack("{s:[{s:o},{s:s,s:i}]}", "anyOf", "enum", names, "type", "integer", "minimum",
                     0);
}

static json_t *number_type(const mgr_key *key)
{
    const bool real = key->kind == MGR_KEY_REAL;
    json_t *const type = json_pack("{s:s}", "type", real ? "number" : "integer");
    json_object_set_new(type, "minimum",
                        real ? json_real(key->min) : json_integer((json_int_t)key->min));
    if (real)
        json_object_set_new(type, "maximum", json_real(key->max));
    else if (key->max < 0x1p63)
        json_object_set_new(type, "maximum", json_integer((json_int_t)key->max));
    return type;
}

static json_t *type_of(mgr_schema *schema, const mgr_key *key)
{
    switch (key->kind) {
    case MGR_KEY_PATH:
        return json_pack("{s:s}", "type", "string");
    case MGR_KEY_TEXT:
    case MGR_KEY_CHOICE:
        return text_type(schema, key);
    case MGR_KEY_UINT:
    case MGR_KEY_INT:
    case MGR_KEY_REAL:
        return number_type(key);
    case MGR_KEY_BOOL:
        return json_pack("{s:s}", "type", "boolean");
    case MGR_KEY_BYTES:
        return json_pack("{s:[s,s],s:s,s:i}", "type", "integer", "string", "pattern", BYTES_PATTERN,
                         "minimum", 0);
    case MGR_KEY_MAP:
        return json_pack("{s:s}", "type", "object");
    }
    return json_object();
}

/* Each meaning of a key, and whose it is. */
static int describe(mgr_schema *schema, const mgr_key *first, mgr_buf *out, mgr_err *err)
{
    mgr_row_walk at = {0};
    const mgr_key *last = NULL;
    char owners[160];
    for (const mgr_key *key; (key = mgr_schema_next(schema, &at, NULL));) {
        if (strcmp(key->name, first->name) != 0 || (last && mgr_schema_same(key, last)))
            continue;
        MGR_TRY(mgr_buf_fmt(out, err, "%s%s%s", last ? "; " : "",
                            mgr_schema_owners(schema, key, owners, sizeof owners), key->help));
        last = key;
    }
    return MGR_OK;
}

/* The default as the type has it. */
static json_t *fallback_of(const mgr_key *key)
{
    if (key->kind == MGR_KEY_BOOL)
        return json_boolean(strcmp(key->fallback, "true") == 0);
    if (key->kind == MGR_KEY_REAL)
        return json_real(strtod(key->fallback, NULL));
    if (key->kind == MGR_KEY_UINT || key->kind == MGR_KEY_INT)
        return json_integer(strtoll(key->fallback, NULL, 10));
    return json_string(key->fallback);
}

static int add_key(mgr_schema *schema, const mgr_key *key, json_t *properties, mgr_err *err)
{
    mgr_buf text = {0};
    json_t *const type = type_of(schema, key);
    const int rc = describe(schema, key, &text, err);
    if (rc == MGR_OK)
        json_object_set_new(type, "description", json_string(text.data));
    if (key->fallback && key->fallback[0] && key->kind != MGR_KEY_MAP)
        json_object_set_new(type, "default", fallback_of(key));
    json_object_set_new(properties, mgr_config_key_leaf(key), type);
    mgr_buf_clear(&text);
    return rc;
}

static json_t *object_of(json_t *properties, json_t *required)
{
    return json_pack("{s:s,s:b,s:o,s:o}", "type", "object", "additionalProperties", 0, "required",
                     required, "properties", properties);
}

/* The keys of one section, -1 for the top level. */
static int add_section(mgr_schema *schema, int section, json_t *properties, json_t *required,
                       mgr_err *err)
{
    mgr_key_list all;
    mgr_schema_list(schema, &all);
    for (size_t i = 0; i < all.n; i++) {
        if (mgr_config_key_section(all.keys[i]) != section)
            continue;
        MGR_TRY(add_key(schema, all.keys[i], properties, err));
        if (all.keys[i]->required)
            json_array_append_new(required, json_string(mgr_config_key_leaf(all.keys[i])));
    }
    return MGR_OK;
}

int mgr_config_json_schema(mgr_schema *schema, mgr_buf *out, mgr_err *err)
{
    json_t *const properties = json_object(), *const required = json_pack("[s]", "target");
    int rc = add_section(schema, -1, properties, required, err);
    for (int s = 0; rc == MGR_OK && s < MGR_N_SECTIONS; s++) {
        json_t *const inner = json_object(), *const inner_required = json_array();
        rc = add_section(schema, s, inner, inner_required, err);
        json_object_set_new(properties, mgr_config_sections[s], object_of(inner, inner_required));
    }
    json_object_set_new(properties, "sources",
                        json_pack("{s:s,s:s,s:i,s:i,s:{s:[{s:s},{s:s}]}}", "type", "array",
                                  "description",
                                  "several checkpoints, in the place of 'source': each its keys, "
                                  "or its path alone",
                                  "minItems", 2, "maxItems", MGR_CONFIG_SOURCES, "items", "anyOf",
                                  "type", "string", "$ref", "#/properties/source"));
    json_t *const root = object_of(properties, required);
    json_object_set_new(
        root, "oneOf", json_pack("[{s:[s]},{s:[s]}]", "required", "source", "required", "sources"));
    json_object_set_new(root, "$schema",
                        json_string("https://json-schema.org/draft/2020-12/schema"));
    json_object_set_new(root, "title", json_string("mgr-upcycle"));
    if (rc == MGR_OK)
        rc = mgr_json_dump(root, 2, out, err);
    json_decref(root);
    return rc;
}
