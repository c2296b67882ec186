#include "form/huggingface_config_file.h"

#include <stdio.h>
#include <string.h>

#include <jansson.h>

#include "core/mem.h"
#include "fmt/json.h"
#include "form/huggingface_class.h"
#include "io/file.h"
#include "model/huggingface_keys.h"

#define MAX_JSON ((uint64_t)16 << 20) /* as a tree */
#define MAX_ATTRS ((size_t)64 << 20)  /* bytes of all keys and texts */
#define MAX_KEY 1024
#define MAX_DEPTH 5
#define NAME_SHOWN 200

/* A JSON file on its way into attributes: keys joined with '.', elements of a list by number. */
typedef struct flattening {
    mgr_catalogue *cat;
    uint32_t file;
    const char *name;
    mgr_buf key;
    size_t bytes;
    mgr_err *err;
} flattening;

static int add_attr(flattening *f, const json_t *value)
{
    mgr_attr attr = {.key = f->key.data, .file = f->file, .kind = MGR_ATTR_OTHER};
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        attr.text = "object";
        attr.i = (int64_t)json_object_size(value);
        break;
    case JSON_ARRAY:
        attr.text = "list";
        attr.i = (int64_t)json_array_size(value);
        break;
    case JSON_STRING:
        attr.kind = MGR_ATTR_TEXT;
        attr.text = json_string_value(value);
        break;
    case JSON_INTEGER:
        attr.kind = MGR_ATTR_INT;
        attr.i = json_integer_value(value);
        break;
    case JSON_REAL:
        attr.kind = MGR_ATTR_REAL;
        attr.r = json_real_value(value);
        break;
    case JSON_TRUE:
    case JSON_FALSE:
        attr.kind = MGR_ATTR_BOOL;
        attr.i = json_is_true(value);
        break;
    case JSON_NULL:
        attr.kind = MGR_ATTR_NULL;
        break;
    }
    f->bytes += f->key.len + (attr.text ? strlen(attr.text) : 0);
    if (f->bytes > MAX_ATTRS)
        return mgr_fail(f->err, MGR_ERR_UNSUPPORTED,
                        "'%s' has more than %zu bytes of keys and text", f->name, MAX_ATTRS);
    return mgr_catalogue_add_attr(f->cat, &attr, f->err);
}

static int flatten(flattening *f, json_t *value, int depth);

/* `value` under the key at hand with `.name` behind it. */
static int flatten_member(flattening *f, const char *name, json_t *value, int depth)
{
    const size_t len = f->key.len;
    if (strlen(name) > MAX_KEY)
        return mgr_fail(f->err, MGR_ERR_UNSUPPORTED, "a key in '%s' has more than %d bytes",
                        f->name, MAX_KEY);
    MGR_TRY(mgr_buf_fmt(&f->key, f->err, "%s%s", len ? "." : "", name));
    for (char *c = f->key.data + len + 1; len && *c; c++)
        *c = *c == '.' ? '/' : *c; /* a point in a name is not one between names */
    MGR_TRY(flatten(f, value, depth));
    f->key.len = len;
    f->key.data[len] = '\0';
    return MGR_OK;
}

static int flatten(flattening *f, json_t *value, int depth)
{
    const char *name;
    json_t *member;
    if (f->key.len)
        MGR_TRY(add_attr(f, value));
    if (depth == MAX_DEPTH)
        return MGR_OK;
    json_object_foreach(value, name, member) MGR_TRY(flatten_member(f, name, member, depth + 1));
    for (size_t i = 0; i < json_array_size(value); i++) {
        char number[24];
        snprintf(number, sizeof number, "%zu", i);
        MGR_TRY(flatten_member(f, number, json_array_get(value, i), depth + 1));
    }
    return MGR_OK;
}

/* The whole of config.json, which an output's may carry on. */
static int keep_text(flattening *f, const char *text, size_t len)
{
    mgr_buf copy = {0};
    int rc = mgr_buf_add(&copy, text, len, f->err);
    if (rc == MGR_OK)
        rc = mgr_catalogue_add_attr(f->cat,
                                    &(mgr_attr){.key = MGR_HF_CONFIG_TEXT,
                                                .file = f->file,
                                                .kind = MGR_ATTR_TEXT,
                                                .text = copy.data},
                                    f->err);
    mgr_buf_clear(&copy);
    return rc;
}

static int parse(flattening *f, const mgr_reader *reader, mgr_err *err)
{
    char *text = NULL;
    json_t *root = NULL;
    if (reader->size > MAX_JSON)
        return mgr_fail(err, MGR_ERR_UNSUPPORTED, "'%s' has more than %llu bytes", reader->name,
                        (unsigned long long)MAX_JSON);
    int rc = mgr_alloc(&text, reader->size, 1, err);
    if (rc == MGR_OK)
        rc = mgr_reader_read(reader, 0, text, reader->size, err);
    if (rc == MGR_OK)
        rc = mgr_json_parse_python(&root, reader->name, text, reader->size, err);
    if (rc == MGR_OK && !json_is_object(root))
        rc = mgr_fail(err, MGR_ERR_FORMAT, "'%s' holds no JSON object", reader->name);
    if (rc == MGR_OK)
        rc = mgr_buf_text(&f->key, "config", err);
    if (rc == MGR_OK)
        rc = flatten(f, root, 0);
    if (rc == MGR_OK)
        rc = keep_text(f, text, reader->size);
    json_decref(root);
    mgr_free(text);
    return rc;
}

int mgr_huggingface_config_named(const char *said, mgr_arena *arena, const char **out, mgr_err *err)
{
    MGR_TRY(mgr_is_dir(said) ? mgr_arena_fmt(arena, out, err, "%s/config.json", said)
                             : mgr_arena_fmt(arena, out, err, "%s", said));
    return mgr_path_exists(*out) && !mgr_is_dir(*out)
               ? MGR_OK
               : mgr_fail(err, MGR_ERR_NOT_FOUND, "no file '%s', which 'source.config' names",
                          *out);
}

int mgr_huggingface_read_config(mgr_catalogue *cat, uint32_t file, const mgr_reader *reader,
                                mgr_err *err)
{
    flattening f = {.cat = cat, .file = file, .name = reader->name, .err = err};
    const int rc = parse(&f, reader, err);
    mgr_buf_clear(&f.key);
    return rc;
}

/* What is not understood and says nothing, or is of another class. */
static int review_key(const mgr_attr *a, const mgr_huggingface *hf, mgr_hf_verdict verdict,
                      mgr_remarks *remarks, mgr_err *err)
{
    char value[NAME_SHOWN], why[NAME_SHOWN];
    const bool ignored = verdict == MGR_HF_PASSED_OVER;
    mgr_huggingface_value(a, value, sizeof value);
    snprintf(why, sizeof why, ignored ? "%s does not look at it" : "not known to be of %s",
             mgr_huggingface_family(hf->class)->name);
    const mgr_remark r = {.kind = MGR_REMARK_UNKNOWN,
                          .field = a->key + sizeof "config." - 1,
                          .was = value,
                          .why = why};
    return mgr_remarks_add(remarks, &r, err);
}

int mgr_huggingface_review_config(const mgr_huggingface *hf, const mgr_catalogue *cat,
                                  mgr_remarks *remarks, mgr_err *err)
{
    const mgr_hf_key *row;
    for (size_t i = 0; i < cat->n_attrs; i++) {
        const mgr_attr *const a = &cat->attrs[i];
        if (a->file != hf->config || !mgr_has_prefix(a->key, "config."))
            continue;
        const mgr_hf_verdict verdict =
            mgr_huggingface_judge(cat, a, MGR_HF_BIT(hf->class), hf->section, &row);
        if (verdict != MGR_HF_KNOWN)
            MGR_TRY(review_key(a, hf, verdict, remarks, err));
    }
    return MGR_OK;
}
