/*
 * YAML text and --set overrides to a typed configuration.
 *
 * The grammar is two levels deep: keys, and sections of keys. The walk below reads just that, in
 * document order, and stops at the first thing that is wrong, so no nesting is ever followed.
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "cfg/schema.h"
#include "cfg/value.h"
#include "cfg/yaml_events.h"
#include "core/str.h"
#include "mgr/config.h"

#define SET_PLACE (-1)

typedef struct walk {
    mgr_config *config;
    mgr_yaml yaml;
    int32_t section_line[MGR_N_SECTIONS]; /* where a section was opened, 0 if not yet */
} walk;

/* A key as written: printable, cut; both changes only ever make it an unknown one. */
typedef struct word {
    char text[128];
    yaml_mark_t mark;
} word;

static int fail_at(const mgr_config *config, size_t idx, mgr_err *err, const char *what)
{
    const char *file = config->file;
    const int32_t line = config->line[idx], column = config->column[idx];
    size_t n = 0;
    if (line == SET_PLACE)
        return mgr_fail(err, MGR_ERR_USAGE, "--set %s: %s", mgr_config_schema(&n)[idx].name, what);
    if (line > 0)
        return mgr_fail(err, MGR_ERR_CONFIG, "%s:%" PRId32 ":%" PRId32 ": %s", file, line, column,
                        what);
    return mgr_fail(err, MGR_ERR_CONFIG, "%s: %s", file, what);
}

int mgr_config_fail(const mgr_config *config, const char *key, mgr_err *err, const char *fmt, ...)
{
    char what[480];
    va_list args;
    va_start(args, fmt);
    (void)vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    const mgr_key *found = mgr_config_key(key);
    if (!found)
        return mgr_fail(err, MGR_ERR_INTERNAL, "no configuration key '%s': %s", key, what);
    return fail_at(config, mgr_config_key_idx(found), err, what);
}

static int fill_defaults(mgr_config *config, mgr_err *err)
{
    char why[320];
    size_t n = 0;
    const mgr_key *keys = mgr_config_schema(&n);
    for (size_t i = 0; i < n; i++) {
        const char *text = keys[i].fallback;
        if (!text)
            continue;
        const mgr_scalar scalar = {text, strlen(text), true};
        if (!mgr_value_set(config, &keys[i], &scalar, why, sizeof why))
            return mgr_fail(err, MGR_ERR_INTERNAL, "default of a configuration key: %s", why);
    }
    return MGR_OK;
}

static int read_word(const mgr_yaml *yaml, word *out, mgr_err *err)
{
    const yaml_event_t *event = &yaml->event;
    if (event->type != YAML_SCALAR_EVENT)
        return mgr_yaml_fail(yaml, event->start_mark, err, "a key must be a word, is %s",
                             mgr_yaml_event_name(yaml));
    out->mark = event->start_mark;
    mgr_printable((const char *)event->data.scalar.value, event->data.scalar.length, out->text,
                  sizeof out->text);
    return MGR_OK;
}

static int fail_unknown(const walk *w, int section, const word *key, mgr_err *err)
{
    char suggestion[160];
    mgr_config_suggest(section, key->text, suggestion, sizeof suggestion);
    if (suggestion[0] == '\0' && section >= 0)
        (void)snprintf(suggestion, sizeof suggestion, " in '%s'", mgr_config_sections[section]);
    return mgr_yaml_fail(&w->yaml, key->mark, err, "unknown key '%s'%s", key->text, suggestion);
}

static int fail_duplicate(const walk *w, const word *key, int32_t first, mgr_err *err)
{
    return mgr_yaml_fail(&w->yaml, key->mark, err, "duplicate key '%s', first at line %" PRId32,
                         key->text, first);
}

/* Read the value of a key (the next event) into its field. */
static int walk_value(walk *w, int section, const word *key, mgr_err *err)
{
    char name[192], why[320];
    (void)snprintf(name, sizeof name, "%s%s%s", section < 0 ? "" : mgr_config_sections[section],
                   section < 0 ? "" : ".", key->text);
    /* a dotted name is no key of the top level */
    const mgr_key *found = section < 0 && strchr(key->text, '.') ? NULL : mgr_config_key(name);
    if (!found)
        return fail_unknown(w, section, key, err);
    const size_t idx = mgr_config_key_idx(found);
    if (w->config->line[idx])
        return fail_duplicate(w, key, w->config->line[idx], err);
    w->config->line[idx] = (int32_t)(key->mark.line + 1);
    w->config->column[idx] = (int32_t)(key->mark.column + 1);

    MGR_TRY(mgr_yaml_next(&w->yaml, err));
    const yaml_event_t *event = &w->yaml.event;
    if (event->type != YAML_SCALAR_EVENT)
        return mgr_config_fail(w->config, name, err, "'%s' is %s, must be a single value", name,
                               mgr_yaml_event_name(&w->yaml));
    const mgr_scalar scalar = {(const char *)event->data.scalar.value, event->data.scalar.length,
                               event->data.scalar.style == YAML_PLAIN_SCALAR_STYLE};
    if (scalar.plain && scalar.len == 0)
        return mgr_config_fail(w->config, name, err, "'%s' has no value", name);
    if (!mgr_value_set(w->config, found, &scalar, why, sizeof why))
        return fail_at(w->config, idx, err, why);
    return MGR_OK;
}

/* Read the mapping (the next event) of a section. */
static int walk_section(walk *w, int section, const word *key, mgr_err *err)
{
    const mgr_yaml *yaml = &w->yaml;
    if (w->section_line[section])
        return fail_duplicate(w, key, w->section_line[section], err);
    w->section_line[section] = (int32_t)(key->mark.line + 1);
    MGR_TRY(mgr_yaml_next(&w->yaml, err));
    if (yaml->event.type != YAML_MAPPING_START_EVENT) {
        const bool empty =
            yaml->event.type == YAML_SCALAR_EVENT && yaml->event.data.scalar.length == 0;
        return mgr_yaml_fail(yaml, key->mark, err, "'%s' is %s, must be a mapping of keys",
                             key->text, empty ? "empty" : mgr_yaml_event_name(yaml));
    }
    for (;;) {
        word inner = {0};
        MGR_TRY(mgr_yaml_next(&w->yaml, err));
        if (yaml->event.type == YAML_MAPPING_END_EVENT)
            return MGR_OK;
        MGR_TRY(read_word(yaml, &inner, err));
        MGR_TRY(walk_value(w, section, &inner, err));
    }
}

static int walk_root(walk *w, mgr_err *err)
{
    for (;;) {
        word key = {0};
        MGR_TRY(mgr_yaml_next(&w->yaml, err));
        if (w->yaml.event.type == YAML_MAPPING_END_EVENT)
            return MGR_OK;
        MGR_TRY(read_word(&w->yaml, &key, err));
        const int section = mgr_config_section(key.text);
        if (section >= 0)
            MGR_TRY(walk_section(w, section, &key, err));
        else
            MGR_TRY(walk_value(w, -1, &key, err));
    }
}

static int fail_empty(const walk *w, mgr_err *err)
{
    return mgr_fail(err, MGR_ERR_CONFIG, "%s: the configuration is empty", w->yaml.file);
}

/* stream start, document start, the root mapping, document end, stream end */
static int walk_stream(walk *w, mgr_err *err)
{
    const yaml_event_t *event = &w->yaml.event;
    MGR_TRY(mgr_yaml_next(&w->yaml, err));
    MGR_TRY(mgr_yaml_next(&w->yaml, err));
    if (event->type == YAML_STREAM_END_EVENT)
        return fail_empty(w, err);
    MGR_TRY(mgr_yaml_next(&w->yaml, err));
    if (event->type == YAML_SCALAR_EVENT && event->data.scalar.length == 0)
        return fail_empty(w, err);
    if (event->type != YAML_MAPPING_START_EVENT)
        return mgr_yaml_fail(&w->yaml, event->start_mark, err,
                             "the configuration is %s, must be a mapping of keys",
                             mgr_yaml_event_name(&w->yaml));
    MGR_TRY(walk_root(w, err));
    MGR_TRY(mgr_yaml_next(&w->yaml, err));
    MGR_TRY(mgr_yaml_next(&w->yaml, err));
    if (event->type != YAML_STREAM_END_EVENT)
        return mgr_yaml_fail(&w->yaml, event->start_mark, err,
                             "a second document begins here, only one is allowed");
    return MGR_OK;
}

static int read_yaml(mgr_config *config, const char *file, const char *text, size_t len,
                     mgr_err *err)
{
    walk w = {.config = config};
    int rc = mgr_yaml_open(&w.yaml, file, text, len, err);
    if (rc == MGR_OK)
        rc = walk_stream(&w, err);
    mgr_yaml_close(&w.yaml);
    return rc;
}

/* One "key=value" of the command line; the value is taken as if written without quotes. */
static int apply_set(mgr_config *config, const char *set, mgr_err *err)
{
    char name[128], why[320];
    const char *equals = strchr(set, '=');
    mgr_printable(set, equals ? (size_t)(equals - set) : strlen(set), name, sizeof name);
    if (!equals || equals == set)
        return mgr_fail(err, MGR_ERR_USAGE, "--set: '%s' is not of the form key=value", name);
    const mgr_key *key = mgr_config_key(name);
    if (!key) {
        char suggestion[160];
        return mgr_fail(err, MGR_ERR_USAGE, "--set: unknown key '%s'%s", name,
                        mgr_config_suggest_full(name, suggestion, sizeof suggestion));
    }
    const size_t idx = mgr_config_key_idx(key);
    const mgr_scalar scalar = {equals + 1, strlen(equals + 1), true};
    config->line[idx] = SET_PLACE;
    config->column[idx] = SET_PLACE;
    if (!mgr_value_set(config, key, &scalar, why, sizeof why))
        return fail_at(config, idx, err, why);
    return MGR_OK;
}

static int check_required(const mgr_config *config, mgr_err *err)
{
    size_t n = 0;
    const mgr_key *keys = mgr_config_schema(&n);
    for (size_t i = 0; i < n; i++)
        if (keys[i].required && config->line[i] == 0)
            return mgr_fail(err, MGR_ERR_CONFIG, "%s: required key '%s' is missing", config->file,
                            keys[i].name);
    return MGR_OK;
}

/* Rules between keys. */
static int check_together(const mgr_config *config, mgr_err *err)
{
    const uint64_t experts = config->upcycle.experts, top_k = config->upcycle.top_k;
    if (top_k <= experts)
        return MGR_OK;
    /* complain where the user wrote something: at 'experts', if top_k is the default */
    const bool written = config->line[mgr_config_key_idx(mgr_config_key("upcycle.top_k"))] != 0;
    return mgr_config_fail(config, written ? "upcycle.top_k" : "upcycle.experts", err,
                           "'upcycle.top_k' is %" PRIu64 "%s, must not exceed 'upcycle.experts', "
                           "which is %" PRIu64,
                           top_k, written ? "" : " by default", experts);
}

int mgr_config_parse(mgr_config *config, const char *file, const char *text, size_t len,
                     const char *const *sets, size_t n_sets, mgr_err *err)
{
    mgr_config made;
    memset(&made, 0, sizeof made); /* padding too: the struct is broadcast as bytes */
    const size_t file_len = strlen(file);
    if (file_len >= sizeof made.file)
        return mgr_fail(err, MGR_ERR_CONFIG,
                        "the name of the configuration file has %zu bytes, at most %zu fit",
                        file_len, sizeof made.file - 1);
    memcpy(made.file, file, file_len);
    MGR_TRY(fill_defaults(&made, err));
    MGR_TRY(read_yaml(&made, file, text, len, err));
    for (size_t i = 0; i < n_sets; i++)
        MGR_TRY(apply_set(&made, sets[i], err));
    MGR_TRY(check_required(&made, err));
    MGR_TRY(check_together(&made, err));
    memcpy(config, &made, sizeof made);
    return MGR_OK;
}
