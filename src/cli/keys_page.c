#include "cli/keys_page.h"

#include <stdio.h>
#include <string.h>

#include "cfg/schema.h"
#include "cli/cli.h"
#include "mgr/config.h"

#define KEY_COLUMN 34

/* " (a, b or c; default a)": what a row takes and has. */
static void list_values(const mgr_key *key, char *out, size_t size)
{
    const bool has_default = key->fallback && key->fallback[0];
    size_t used = (size_t)snprintf(out, size, "%s", key->choices ? " (" : "");
    for (const char *c = key->choices; c && *c && used < size;) {
        const size_t n = strcspn(c, "|");
        const char *const lead = c == key->choices ? "" : c[n] ? ", " : " or ";
        used += (size_t)snprintf(out + used, size - used, "%s%.*s", lead, (int)n, c);
        c += n + (c[n] != '\0');
    }
    if (key->required)
        snprintf(out, size, " (required)");
    else if (has_default && used < size)
        snprintf(out + used, size - used, "%sdefault %s)", key->choices ? "; " : " (",
                 key->fallback);
}

/* What a key of `model:` has by default is what the checkpoint says. */
static void print_row(const mgr_key *key, const char *indent)
{
    char text[640], owners[160], values[160] = "";
    if (strncmp(key->name, "model.", 6) != 0)
        list_values(key, values, sizeof values);
    mgr_schema_owners(mgr_config_tables, key, owners, sizeof owners);
    snprintf(text, sizeof text, "%s%s%s", owners, key->help, values);
    mgr_cli_wrapped(text, printf("%s%s:", indent, mgr_config_key_leaf(key)), KEY_COLUMN);
}

/* A key, once for each meaning that its owners give it. */
static void print_key(const mgr_key *first, const char *indent)
{
    mgr_row_walk at = {0};
    const mgr_key *last = NULL;
    for (const mgr_key *key; (key = mgr_schema_next(mgr_config_tables, &at, NULL));) {
        if (strcmp(key->name, first->name) != 0 || (last && mgr_schema_same(key, last)))
            continue;
        print_row(key, indent);
        last = key;
    }
}

/* The keys as the file is written: sections with their keys below. */
void mgr_cli_print_keys(void)
{
    static const char *const notes[MGR_N_SECTIONS] = {
        "  (several: a list of these as 'sources')",
        "  (what the checkpoint does not say; what it says is checked)", "  (with 'mode: upcycle')",
        ""};
    mgr_key_list all;
    int section = -1;
    mgr_schema_list(mgr_config_tables, &all);
    printf("\n");
    mgr_cli_wrapped(
        "CONFIG is YAML with these keys; [names] say whose a key is, and with any other "
        "format, method or router it is an error:",
        0, 0);
    for (size_t i = 0; i < all.n; i++) {
        const int own = mgr_config_key_section(all.keys[i]);
        if (own != section)
            printf("  %s:%s\n", mgr_config_sections[own], notes[own]);
        section = own;
        print_key(all.keys[i], own < 0 ? "  " : "    ");
    }
}

const char *mgr_cli_key_at(size_t idx)
{
    mgr_key_list all;
    mgr_schema_list(mgr_config_tables, &all);
    return idx < all.n ? all.keys[idx]->name : NULL;
}

/* ---- as a document ---- */

/* Text in which no character is markup. */
static void put(const char *text)
{
    for (; *text; text++) {
        if (strchr("\\_*<>[]`#", *text))
            putchar('\\');
        putchar(*text);
    }
}

static const char *kind_of(const mgr_key *key)
{
    switch (key->kind) {
    case MGR_KEY_PATH:
        return "a path";
    case MGR_KEY_UINT:
    case MGR_KEY_INT:
        return "a whole number";
    case MGR_KEY_REAL:
        return "a number";
    case MGR_KEY_BOOL:
        return "true or false";
    case MGR_KEY_BYTES:
        return "a size, as 4GiB";
    case MGR_KEY_MAP:
        return "a mapping";
    case MGR_KEY_TEXT:
    case MGR_KEY_CHOICE:
        break;
    }
    return key->choices ? "one of these" : "a text";
}

/* One meaning of a key: whose it is, what it does, what it takes. */
static void put_row(const mgr_key *key, const char *indent)
{
    char owners[160], values[160] = "";
    mgr_schema_owners(mgr_config_tables, key, owners, sizeof owners);
    list_values(key, values, sizeof values);
    printf("%s", indent);
    put(owners);
    put(key->help);
    printf(". Takes %s", kind_of(key));
    put(values);
    printf(".\n");
}

static void put_key(const mgr_key *first, bool scd)
{
    mgr_row_walk at = {0};
    const mgr_key *last = NULL;
    const char *const mark = scd ? "*" : "`";
    printf("%s%s%s%s\n", scd ? "" : "- ", mark, first->name, mark);
    for (const mgr_key *key; (key = mgr_schema_next(mgr_config_tables, &at, NULL));) {
        if (strcmp(key->name, first->name) != 0 || (last && mgr_schema_same(key, last)))
            continue;
        if (scd && last)
            printf("\n");
        put_row(key, scd ? "\t" : "  ");
        last = key;
    }
    printf("\n");
}

int mgr_cli_document_keys(const char *form, mgr_err *err)
{
    mgr_key_list all;
    int section = -2;
    const bool scd = strcmp(form, "scd") == 0;
    if (!scd && strcmp(form, "markdown") != 0)
        return mgr_fail(err, MGR_ERR_USAGE, "--keys '%s': known are markdown and scd", form);
    if (scd)
        printf("mgr-upcycle(5)\n\n# NAME\n\nmgr-upcycle - all keys of its configuration\n\n"
               "# KEYS\n\nNames in brackets say whose a key is; with any other format, method or "
               "router it is an error. mgr-upcycle(1) says more of each.\n\n");
    mgr_schema_list(mgr_config_tables, &all);
    for (size_t i = 0; i < all.n; i++) {
        const int own = mgr_config_key_section(all.keys[i]);
        if (own != section)
            printf("## %s\n\n", own < 0 ? "top level" : mgr_config_sections[own]);
        section = own;
        put_key(all.keys[i], scd);
    }
    return MGR_OK;
}
