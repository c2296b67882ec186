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

#include "cfg/map.h"
#include "cfg/schema.h"
#include "cfg/value.h"
#include "cfg/yaml_events.h"
#include "core/str.h"
#include "mgr/config.h"

typedef struct walk {
    mgr_config *config;
    mgr_schema *schema;
    mgr_yaml yaml;
    int32_t section_line[MGR_N_SECTIONS]; /* where a section was opened, 0 if not yet */
} walk;

/* A key as written: printable, cut; both changes only ever make it an unknown one. */
typedef struct word {
    char text[128];
    yaml_mark_t mark;
} word;

const mgr_place *mgr_config_place(const mgr_config *config, const char *key)
{
    for (uint32_t i = 0; i < config->n_written; i++)
        if (strcmp(config->written[i].key, key) == 0)
            return &config->written[i];
    return NULL;
}

int mgr_config_fail(const mgr_config *config, const char *key, mgr_err *err, const char *fmt, ...)
{
    char what[480];
    va_list args;
    va_start(args, fmt);
    (void)vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    const mgr_place *const place = mgr_config_place(config, key);
    if (!place)
        return mgr_fail(err, MGR_ERR_CONFIG, "%s: %s", config->file, what);
    if (place->line == MGR_PLACE_SET)
        return mgr_fail(err, MGR_ERR_USAGE, "--set %s: %s", key, what);
    return mgr_fail(err, MGR_ERR_CONFIG, "%s:%" PRId32 ":%" PRId32 ": %s", config->file,
                    place->line, place->column, what);
}

/* Note that `key` was written there; a second --set of it keeps its place. */
static int note_place(mgr_config *config, const mgr_key *key, int32_t line, int32_t column,
                      mgr_err *err)
{
    const mgr_place *const before = mgr_config_place(config, key->name);
    const size_t idx = before ? (size_t)(before - config->written) : config->n_written;
    const size_t len = strlen(key->name);
    if (idx >= MGR_CONFIG_MAX_KEYS || len >= sizeof config->written[0].key)
        return mgr_fail(err, MGR_ERR_INTERNAL, "no place for key '%s'", key->name);
    mgr_place *const place = &config->written[idx];
    memcpy(place->key, key->name, len);
    place->line = line;
    place->column = column;
    config->n_written += before == NULL;
    return MGR_OK;
}

/* Any owner's, so that every field has a value: mgr_config_settle knows whose counts. */
static int fill_defaults(mgr_config *config, mgr_schema *schema, mgr_err *err)
{
    mgr_row_walk at = {0};
    for (const mgr_key *key; (key = mgr_schema_next(schema, &at, NULL));)
        if (key->fallback)
            MGR_TRY(mgr_value_default(config, key, err));
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
    mgr_config_suggest(w->schema, section, key->text, suggestion, sizeof suggestion);
    if (suggestion[0] == '\0' && section >= 0)
        (void)snprintf(suggestion, sizeof suggestion, " in '%s'", mgr_config_sections[section]);
    return mgr_yaml_fail(&w->yaml, key->mark, err, "unknown key '%s'%s", key->text, suggestion);
}

static int fail_duplicate(const walk *w, const word *key, int32_t first, mgr_err *err)
{
    return mgr_yaml_fail(&w->yaml, key->mark, err, "duplicate key '%s', first at line %" PRId32,
                         key->text, first);
}

/* The key of this word in a section; a dotted name is none of the top level. */
static const mgr_key *find_key(const walk *w, int section, const word *key)
{
    char name[192];
    if (section < 0 && strchr(key->text, '.'))
        return NULL;
    (void)snprintf(name, sizeof name, "%s%s%s", section < 0 ? "" : mgr_config_sections[section],
                   section < 0 ? "" : ".", key->text);
    return mgr_schema_find(w->schema, name);
}

/* Read the value of a key (the next event) into its field. */
static int walk_value(walk *w, int section, const word *written, mgr_err *err)
{
    char why[320];
    const mgr_key *const key = find_key(w, section, written);
    if (!key)
        return fail_unknown(w, section, written, err);
    const mgr_place *const before = mgr_config_place(w->config, key->name);
    if (before)
        return fail_duplicate(w, written, before->line, err);
    MGR_TRY(note_place(w->config, key, (int32_t)(written->mark.line + 1),
                       (int32_t)(written->mark.column + 1), err));
    MGR_TRY(mgr_yaml_next(&w->yaml, err));
    const yaml_event_t *event = &w->yaml.event;
    if (key->kind == MGR_KEY_MAP)
        return mgr_map_read(w->config, key, &w->yaml, err);
    if (event->type != YAML_SCALAR_EVENT)
        return mgr_config_fail(w->config, key->name, err, "'%s' is %s, must be a single value",
                               key->name, mgr_yaml_event_name(&w->yaml));
    const mgr_scalar scalar = {(const char *)event->data.scalar.value, event->data.scalar.length,
                               event->data.scalar.style == YAML_PLAIN_SCALAR_STYLE};
    if (scalar.plain && scalar.len == 0)
        return mgr_config_fail(w->config, key->name, err, "'%s' has no value", key->name);
    if (mgr_value_set(w->config, key, &scalar, why, sizeof why))
        return MGR_OK;
    if (scalar.plain && event->end_mark.line > event->start_mark.line)
        return mgr_config_fail(w->config, key->name, err,
                               "'%s' goes on in the next line: is that indented too far?",
                               key->name);
    return mgr_config_fail(w->config, key->name, err, "%s", why);
}

/* 'source' and 'sources' in one text. */
static int fail_second_source(const walk *w, const word *key, mgr_err *err)
{
    const int32_t line = w->section_line[MGR_SECTION_SOURCE];
    if (!line)
        return MGR_OK;
    return mgr_yaml_fail(&w->yaml, key->mark, err,
                         "'%s' beside '%s' at line %" PRId32 ": give one of them", key->text,
                         w->config->n_sources ? "sources" : "source", line);
}

/* Read keys of a section up to the end of the mapping. */
static int walk_keys(walk *w, int section, mgr_err *err)
{
    for (;;) {
        word inner = {0};
        MGR_TRY(mgr_yaml_next(&w->yaml, err));
        if (w->yaml.event.type == YAML_MAPPING_END_EVENT)
            return MGR_OK;
        MGR_TRY(read_word(&w->yaml, &inner, err));
        MGR_TRY(walk_value(w, section, &inner, err));
    }
}

/* Read the mapping (the next event) of a section. */
static int walk_section(walk *w, int section, const word *key, mgr_err *err)
{
    const mgr_yaml *yaml = &w->yaml;
    if (section == MGR_SECTION_SOURCE && w->config->n_sources)
        return fail_second_source(w, key, err);
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
    return walk_keys(w, section, err);
}

/* An entry of 'sources': the keys of a 'source', or its path alone. */
static int walk_source(walk *w, mgr_err *err)
{
    const yaml_event_t *const event = &w->yaml.event;
    if (event->type == YAML_MAPPING_START_EVENT)
        return walk_keys(w, MGR_SECTION_SOURCE, err);
    if (event->type != YAML_SCALAR_EVENT)
        return mgr_yaml_fail(&w->yaml, event->start_mark, err,
                             "an entry of 'sources' is %s, must be a path or a mapping of keys",
                             mgr_yaml_event_name(&w->yaml));
    const mgr_scalar scalar = {(const char *)event->data.scalar.value, event->data.scalar.length,
                               event->data.scalar.style == YAML_PLAIN_SCALAR_STYLE};
    const mgr_key *const key = mgr_schema_find(w->schema, "source.path");
    char why[320];
    MGR_TRY(note_place(w->config, key, (int32_t)(event->start_mark.line + 1),
                       (int32_t)(event->start_mark.column + 1), err));
    return mgr_value_set(w->config, key, &scalar, why, sizeof why)
               ? MGR_OK
               : mgr_config_fail(w->config, key->name, err, "%s", why);
}

/* Read the list (the next event), each entry over the defaults. */
static int walk_sources(walk *w, const word *key, mgr_err *err)
{
    mgr_config *const c = w->config;
    const mgr_config_source fallback = c->source;
    if (c->n_sources)
        return fail_duplicate(w, key, w->section_line[MGR_SECTION_SOURCE], err);
    MGR_TRY(fail_second_source(w, key, err));
    w->section_line[MGR_SECTION_SOURCE] = (int32_t)(key->mark.line + 1);
    MGR_TRY(mgr_yaml_next(&w->yaml, err));
    if (w->yaml.event.type != YAML_SEQUENCE_START_EVENT)
        return mgr_yaml_fail(&w->yaml, key->mark, err, "'sources' is %s, must be a list of sources",
                             mgr_yaml_event_name(&w->yaml));
    for (;;) {
        MGR_TRY(mgr_yaml_next(&w->yaml, err));
        if (w->yaml.event.type == YAML_SEQUENCE_END_EVENT)
            break;
        if (c->n_sources == MGR_CONFIG_SOURCES)
            return mgr_yaml_fail(&w->yaml, w->yaml.event.start_mark, err,
                                 "'sources' has more than %d entries", MGR_CONFIG_SOURCES);
        c->source = fallback;
        MGR_TRY(walk_source(w, err));
        mgr_config_keep_source(c, c->n_sources++);
    }
    return c->n_sources > 1 ? MGR_OK
                            : mgr_yaml_fail(&w->yaml, key->mark, err,
                                            "'sources' has %" PRIu32 " entries, must have two or "
                                            "more; one alone is 'source'",
                                            c->n_sources);
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
        if (strcmp(key.text, "sources") == 0)
            MGR_TRY(walk_sources(w, &key, err));
        else if (section >= 0)
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

static int read_yaml(mgr_config *config, mgr_schema *schema, const char *file, const char *text,
                     size_t len, mgr_err *err)
{
    walk w = {.config = config, .schema = schema};
    int rc = mgr_yaml_open(&w.yaml, file, text, len, err);
    if (rc == MGR_OK)
        rc = walk_stream(&w, err);
    mgr_yaml_close(&w.yaml);
    return rc;
}

/* The value of --set for a map is YAML: "{a: 1}". */
static int set_map(mgr_config *config, const mgr_key *key, const char *text, mgr_err *err)
{
    mgr_yaml yaml;
    int rc = mgr_yaml_open(&yaml, "--set", text, strlen(text), err);
    for (int i = 0; rc == MGR_OK && i < 3; i++) /* stream start, document start, the value */
        rc = mgr_yaml_next(&yaml, err);
    if (rc == MGR_OK)
        rc = mgr_map_read(config, key, &yaml, err);
    mgr_yaml_close(&yaml);
    return rc;
}

/* One "key=value" of the command line; the value is taken as if written without quotes. */
static int apply_set(mgr_config *config, mgr_schema *schema, const char *set, mgr_err *err)
{
    char name[128], why[320];
    const char *equals = strchr(set, '=');
    mgr_printable(set, equals ? (size_t)(equals - set) : strlen(set), name, sizeof name);
    if (!equals || equals == set)
        return mgr_fail(err, MGR_ERR_USAGE, "--set: '%s' is not of the form key=value", name);
    const mgr_key *key = mgr_schema_find(schema, name);
    if (!key) {
        char suggestion[160];
        return mgr_fail(err, MGR_ERR_USAGE, "--set: unknown key '%s'%s", name,
                        mgr_config_suggest_full(schema, name, suggestion, sizeof suggestion));
    }
    if (config->n_sources && mgr_config_key_section(key) == MGR_SECTION_SOURCE)
        return mgr_fail(err, MGR_ERR_USAGE,
                        "--set %s: the configuration has 'sources', a list, which --set cannot "
                        "change",
                        name);
    MGR_TRY(note_place(config, key, MGR_PLACE_SET, MGR_PLACE_SET, err));
    if (key->kind == MGR_KEY_MAP)
        return set_map(config, key, equals + 1, err);
    const mgr_scalar scalar = {equals + 1, strlen(equals + 1), true};
    if (!mgr_value_set(config, key, &scalar, why, sizeof why))
        return mgr_config_fail(config, key->name, err, "%s", why);
    return MGR_OK;
}

int mgr_config_parse(mgr_config *config, mgr_schema *schema, const char *file, const char *text,
                     size_t len, const char *const *sets, size_t n_sets, mgr_err *err)
{
    mgr_config made;
    memset(&made, 0, sizeof made); /* padding too: the struct is broadcast as bytes */
    const size_t file_len = strlen(file);
    if (file_len >= sizeof made.file)
        return mgr_fail(err, MGR_ERR_CONFIG,
                        "the name of the configuration file has %zu bytes, at most %zu fit",
                        file_len, sizeof made.file - 1);
    memcpy(made.file, file, file_len);
    MGR_TRY(fill_defaults(&made, schema, err));
    MGR_TRY(read_yaml(&made, schema, file, text, len, err));
    for (size_t i = 0; i < n_sets; i++)
        MGR_TRY(apply_set(&made, schema, sets[i], err));
    for (uint32_t i = made.n_sources; i-- > 1;) { /* the first is the one that stays in `source` */
        mgr_config_use_source(&made, i);
        MGR_TRY(mgr_config_settle(&made, schema, err));
        mgr_config_keep_source(&made, i);
    }
    mgr_config_use_source(&made, 0);
    MGR_TRY(mgr_config_settle(&made, schema, err));
    memcpy(config, &made, sizeof made);
    return MGR_OK;
}
