#include "cfg/map.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cfg/value.h"
#include "core/str.h"

#define MAX_DEPTH 4 /* of lists and maps */
#define MAX_KEYS 64 /* of one map */

typedef struct map {
    const mgr_key *key;
    mgr_yaml *yaml;
    mgr_buf text;
} map;

static int fail_here(const map *m, mgr_err *err, const char *what)
{
    return mgr_yaml_fail(m->yaml, m->yaml->event.start_mark, err, "'%s': %s", m->key->name, what);
}

static mgr_scalar scalar_of(const yaml_event_t *event)
{
    return (mgr_scalar){(const char *)event->data.scalar.value, event->data.scalar.length,
                        event->data.scalar.style == YAML_PLAIN_SCALAR_STYLE};
}

static int put_text(map *m, const mgr_scalar *scalar, mgr_err *err)
{
    if (strlen(scalar->text) != scalar->len)
        return fail_here(m, err, "a text contains a NUL byte");
    return mgr_dump_quoted(scalar->text, &m->text, err);
}

static int put_real(map *m, const mgr_scalar *scalar, mgr_err *err)
{
    char text[64];
    const double value = strtod(scalar->text, NULL);
    if (!isfinite(value))
        return fail_here(m, err, "a number is out of range");
    return mgr_buf_text(&m->text, mgr_exact_real(value, text, sizeof text), err);
}

static int put_scalar(map *m, mgr_err *err)
{
    const mgr_scalar scalar = scalar_of(&m->yaml->event);
    bool value = false;
    if (!scalar.plain)
        return put_text(m, &scalar, err);
    if (scalar.len == 0 || mgr_scalar_is_null(&scalar))
        return mgr_buf_text(&m->text, "null", err);
    if (mgr_scalar_is_bool(&scalar, &value))
        return mgr_buf_text(&m->text, value ? "true" : "false", err);
    if (mgr_scalar_is_whole(&scalar)) {
        if (scalar.len > 18) /* what any reader of JSON takes */
            return fail_here(m, err, "a number is out of range");
        return mgr_buf_text(&m->text, scalar.text, err);
    }
    return mgr_scalar_is_real(&scalar) ? put_real(m, &scalar, err) : put_text(m, &scalar, err);
}

static int put_value(map *m, int depth, mgr_err *err);

static int put_list(map *m, int depth, mgr_err *err)
{
    const char *lead = "";
    MGR_TRY(mgr_buf_text(&m->text, "[", err));
    for (;; lead = ", ") {
        MGR_TRY(mgr_yaml_next(m->yaml, err));
        if (m->yaml->event.type == YAML_SEQUENCE_END_EVENT)
            return mgr_buf_text(&m->text, "]", err);
        MGR_TRY(mgr_buf_text(&m->text, lead, err));
        MGR_TRY(put_value(m, depth + 1, err));
    }
}

/* One key of a map, written as text from `*at` on; no map has it twice. */
static int put_key(map *m, size_t *starts, size_t *n, mgr_err *err)
{
    if (m->yaml->event.type != YAML_SCALAR_EVENT)
        return fail_here(m, err, "a key must be a word");
    if (*n == MAX_KEYS)
        return fail_here(m, err, "too many keys");
    const mgr_scalar scalar = scalar_of(&m->yaml->event);
    const size_t start = m->text.len;
    MGR_TRY(put_text(m, &scalar, err));
    MGR_TRY(mgr_buf_text(&m->text, ": ", err));
    const size_t len = m->text.len - start;
    for (size_t i = 0; i < *n; i++)
        if (strncmp(m->text.data + starts[i], m->text.data + start, len) == 0)
            return fail_here(m, err, "a key is there twice");
    starts[(*n)++] = start;
    return MGR_OK;
}

static int put_map(map *m, int depth, mgr_err *err)
{
    size_t starts[MAX_KEYS], n = 0;
    MGR_TRY(mgr_buf_text(&m->text, "{", err));
    for (;;) {
        MGR_TRY(mgr_yaml_next(m->yaml, err));
        if (m->yaml->event.type == YAML_MAPPING_END_EVENT)
            return mgr_buf_text(&m->text, "}", err);
        MGR_TRY(mgr_buf_text(&m->text, n ? ", " : "", err));
        MGR_TRY(put_key(m, starts, &n, err));
        MGR_TRY(mgr_yaml_next(m->yaml, err));
        MGR_TRY(put_value(m, depth + 1, err));
    }
}

static int put_value(map *m, int depth, mgr_err *err)
{
    if (m->yaml->event.type == YAML_SCALAR_EVENT)
        return put_scalar(m, err);
    if (depth >= MAX_DEPTH)
        return fail_here(m, err, "lists and maps are nested too deeply");
    return m->yaml->event.type == YAML_SEQUENCE_START_EVENT ? put_list(m, depth, err)
                                                            : put_map(m, depth, err);
}

static int store(mgr_config *config, const map *m, mgr_err *err)
{
    char *const field = (char *)config + m->key->offset;
    if (m->text.len >= m->key->size)
        return mgr_config_fail(config, m->key->name, err,
                               "'%s' has %zu bytes as JSON, at most %zu fit", m->key->name,
                               m->text.len, m->key->size - 1);
    memset(field, 0, m->key->size);
    if (strcmp(m->text.data, "{}") != 0)
        memcpy(field, m->text.data, m->text.len);
    return MGR_OK;
}

int mgr_map_read(mgr_config *config, const mgr_key *key, mgr_yaml *yaml, mgr_err *err)
{
    map m = {key, yaml, {0}};
    if (yaml->event.type != YAML_MAPPING_START_EVENT)
        return mgr_config_fail(config, key->name, err, "'%s' is %s, must be a map: {key: value}",
                               key->name, mgr_yaml_event_name(yaml));
    int rc = put_map(&m, 0, err);
    if (rc == MGR_OK)
        rc = store(config, &m, err);
    mgr_buf_clear(&m.text);
    return rc;
}
