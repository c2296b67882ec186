/*
 * What was written against what was chosen: every key has an owner among the chosen mode, formats,
 * method and router, and what is not written gets the owner's default.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "cfg/schema.h"
#include "cfg/value.h"
#include "mgr/config.h"

static const char *const kind_names[MGR_OWNER_COUNT] = {
    [MGR_OWNER_ALL] = "every run",        [MGR_OWNER_MODE] = "mode",
    [MGR_OWNER_SOURCE] = "source format", [MGR_OWNER_TARGET] = "target format",
    [MGR_OWNER_METHOD] = "method",        [MGR_OWNER_ROUTER] = "router",
};

/* Text that is cut where it does not fit. */
typedef struct line {
    char text[400];
    size_t len;
} line;

static void add(line *l, const char *lead, const char *quote, const char *word)
{
    const int n =
        snprintf(l->text + l->len, sizeof l->text - l->len, "%s%s%s%s", lead, quote, word, quote);
    const size_t left = sizeof l->text - 1 - l->len;
    l->len += n < 0 ? 0 : (size_t)n < left ? (size_t)n : left;
}

static bool is_known(mgr_schema *schema, mgr_owner kind, const char *name)
{
    const mgr_key_table *t;
    for (size_t i = 0; (t = schema(i)); i++)
        if (t->kind == kind && strcmp(t->owner, name) == 0)
            return true;
    return kind == MGR_OWNER_SOURCE && strcmp(name, "auto") == 0;
}

/* A format, method or router that is not registered. */
static int fail_name(const mgr_config *config, mgr_schema *schema, mgr_owner kind, mgr_err *err)
{
    const char *const key = mgr_schema_chooser(kind);
    line known = {.len = 0};
    const mgr_key_table *t;
    if (kind == MGR_OWNER_SOURCE)
        add(&known, "", "", "auto");
    for (size_t i = 0; (t = schema(i)); i++)
        if (t->kind == kind)
            add(&known, known.len ? ", " : "", "", t->owner);
    return mgr_config_fail(config, key, err, "'%s' is '%s'; known are: %s", key,
                           mgr_schema_chosen(config, kind), known.text);
}

static int check_names(const mgr_config *config, mgr_schema *schema, mgr_err *err)
{
    static const mgr_owner kinds[] = {MGR_OWNER_TARGET, MGR_OWNER_SOURCE, MGR_OWNER_METHOD,
                                      MGR_OWNER_ROUTER};
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        const char *const name = mgr_schema_chosen(config, kinds[i]);
        if (name[0] != '\0' && !is_known(schema, kinds[i], name))
            return fail_name(config, schema, kinds[i], err);
    }
    return MGR_OK;
}

/* The owners of `name` as "target format 'a' or 'b'", and of what kind they are. */
static mgr_owner list_owners(mgr_schema *schema, const char *name, line *out)
{
    mgr_row_walk at = {0};
    const mgr_key_table *table = NULL;
    mgr_owner kind = MGR_OWNER_ALL;
    for (const mgr_key *key; (key = mgr_schema_next(schema, &at, &table));) {
        if (strcmp(key->name, name) != 0)
            continue;
        if (out->len == 0)
            add(out, kind_names[table->kind], "", " ");
        add(out, kind == MGR_OWNER_ALL ? "" : " or ", "'", table->owner);
        kind = table->kind;
    }
    return kind;
}

/* A key that none of the chosen ones reads: whose is it? */
static int fail_foreign(const mgr_config *config, mgr_schema *schema, const char *name,
                        mgr_err *err)
{
    line owners = {.len = 0};
    mgr_owner kind = list_owners(schema, name, &owners);
    if (mgr_schema_chosen(config, kind)[0] == '\0') { /* a method's, and there is none */
        kind = MGR_OWNER_MODE;
        owners.len = 0;
        add(&owners, "mode ", "'", "upcycle");
    }
    const char *const chooser = mgr_schema_chooser(kind);
    const char *const by_default = mgr_config_place(config, chooser) ? "" : " by default";
    const char *const quote = strchr(owners.text, '\'');
    const bool alone = quote && !strstr(quote, " or ");
    mgr_config_fail(config, name, err, "'%s' is for %s; '%s' is '%s'%s", name, owners.text, chooser,
                    mgr_schema_chosen(config, kind), by_default);
    if (!alone)
        return mgr_hint(err, "remove '%s', or set '%s' to one of those", name, chooser);
    return mgr_hint(err, "remove '%s', or set '%s: %.*s'", name, chooser,
                    (int)strcspn(quote + 1, "'"), quote + 1);
}

/* A key beside 'sources' that is about one of them: of any of their formats. */
static bool is_of_some_source(const mgr_config *config, const mgr_key_table *table,
                              const mgr_key *key)
{
    if (table->kind != MGR_OWNER_SOURCE || mgr_config_key_section(key) == MGR_SECTION_SOURCE)
        return false;
    for (uint32_t i = 0; i < config->n_sources; i++)
        if (strcmp(config->sources[i].is.format, table->owner) == 0)
            return true;
    return false;
}

/* Is the value one that an owner takes? With 'auto' there may be several. */
static int check_value(const mgr_config *config, mgr_schema *schema, const mgr_place *place,
                       mgr_err *err)
{
    char why[320] = "";
    bool owned = false;
    mgr_row_walk at = {0};
    const mgr_key_table *table = NULL;
    for (const mgr_key *key; (key = mgr_schema_next(schema, &at, &table));) {
        if (strcmp(key->name, place->key) != 0 ||
            !(mgr_schema_applies(config, table) || is_of_some_source(config, table, key)))
            continue;
        if (mgr_value_check(config, key, why, sizeof why))
            return MGR_OK;
        owned = true;
    }
    return owned ? mgr_config_fail(config, place->key, err, "%s", why)
                 : fail_foreign(config, schema, place->key, err);
}

static int check_required(const mgr_config *config, mgr_schema *schema, mgr_err *err)
{
    mgr_row_walk at = {0};
    const mgr_key_table *table = NULL;
    for (const mgr_key *key; (key = mgr_schema_next(schema, &at, &table));)
        if (key->required && mgr_schema_applies(config, table) &&
            !mgr_config_place(config, key->name))
            return mgr_fail(err, MGR_ERR_CONFIG, "%s: required key '%s' is missing", config->file,
                            key->name);
    return MGR_OK;
}

/* Those of the chosen owners. What every run has is filled in since the beginning, and may have
 * been replaced by what was found. */
static int fill_defaults(mgr_config *config, mgr_schema *schema, mgr_err *err)
{
    mgr_row_walk at = {0};
    const mgr_key_table *table = NULL;
    for (const mgr_key *key; (key = mgr_schema_next(schema, &at, &table));)
        if (key->fallback && table->kind != MGR_OWNER_ALL && mgr_schema_applies(config, table) &&
            !mgr_config_place(config, key->name))
            MGR_TRY(mgr_value_default(config, key, err));
    return MGR_OK;
}

/* Rules between keys. */
static int check_together(const mgr_config *config, mgr_err *err)
{
    const uint64_t experts = config->upcycle.experts, top_k = config->upcycle.top_k;
    if (top_k <= experts || strcmp(config->mode, "upcycle") != 0)
        return MGR_OK;
    /* complain where the user wrote something: at 'experts', if top_k is the default */
    const bool written = mgr_config_place(config, "upcycle.top_k") != NULL;
    return mgr_config_fail(config, written ? "upcycle.top_k" : "upcycle.experts", err,
                           "'upcycle.top_k' is %" PRIu64 "%s, must not exceed 'upcycle.experts', "
                           "which is %" PRIu64,
                           top_k, written ? "" : " by default", experts);
}

int mgr_config_settle(mgr_config *config, mgr_schema *schema, mgr_err *err)
{
    const mgr_place *const mode = mgr_config_place(config, "mode");
    if (mode) /* first: it says what 'upcycle.*' is about */
        MGR_TRY(check_value(config, schema, mode, err));
    MGR_TRY(check_names(config, schema, err));
    for (uint32_t i = 0; i < config->n_written; i++)
        MGR_TRY(check_value(config, schema, &config->written[i], err));
    MGR_TRY(check_required(config, schema, err));
    MGR_TRY(fill_defaults(config, schema, err));
    return check_together(config, err);
}
