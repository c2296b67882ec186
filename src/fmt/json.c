#include "fmt/json.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"

/* The depth that jansson parses; what we print was parsed or built by us. */
#define MAX_DEPTH 2048

/* What a tree takes for each byte of its text, at most. */
#define TREE_BYTES 24

/* jansson's column is in characters and its position in bytes; the byte is what tools can seek. */
static int fail_parse(const char *name, uint64_t base, size_t len, const json_error_t *error,
                      mgr_err *err)
{
    char shown[JSON_ERROR_TEXT_LENGTH];
    mgr_printable(error->text, strlen(error->text), shown, sizeof shown);
    const uint64_t byte = base + (error->position > 0 ? (uint64_t)error->position : 0);
    if (json_error_code(error) == json_error_out_of_memory || mgr_mem_missed())
        return mgr_mem_fail(TREE_BYTES * len, err);
    return mgr_fail(err, MGR_ERR_FORMAT, "'%s' is not valid JSON at byte %" PRIu64 ": %s", name,
                    byte, shown);
}

void mgr_json_count_memory(void)
{
    json_set_alloc_funcs(mgr_mem_take, mgr_free);
}

/* The bare word at `at`, of those that JSON does not have, or NULL. */
static const char *bare_word(const char *at, size_t left)
{
    static const char *const words[] = {"NaN", "Infinity", "-Infinity"};
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
        if (left >= strlen(words[i]) && memcmp(at, words[i], strlen(words[i])) == 0)
            return words[i];
    return NULL;
}

/* The bare word that a marked string stands for, or NULL: the mark, the word and nothing else. */
static const char *marked_word(const json_t *string)
{
    const char *const text = json_string_value(string);
    const size_t len = json_string_length(string);
    const char *const word = text[0] == MGR_JSON_BARE[0] ? bare_word(text + 1, len - 1) : NULL;
    return word && strlen(word) == len - 1 ? word : NULL;
}

/* As deep as jansson parses. */
static size_t count_marked(const json_t *value)
{
    json_t *members = (json_t *)(uintptr_t)value; /* see dump_object */
    size_t n = json_is_string(value) && marked_word(value);
    for (size_t i = 0; i < json_array_size(value); i++)
        n += count_marked(json_array_get(value, i));
    for (void *at = json_object_iter(members); at; at = json_object_iter_next(members, at))
        n += count_marked(json_object_iter_value(at));
    return n;
}

/* A text in which `marks` bare words were marked. One that has marks of its own is refused: it
 * would be printed as another value. */
static int parse(json_t **out, const char *name, uint64_t base, const char *text, size_t len,
                 size_t marks, mgr_err *err)
{
    json_error_t error = {.position = -1};
    json_t *value = json_loadb(text, len, JSON_REJECT_DUPLICATES, &error);
    if (!value || mgr_mem_missed()) {
        json_decref(value);
        return fail_parse(name, base, len, &error, err);
    }
    if (count_marked(value) != marks) {
        json_decref(value);
        return mgr_fail(err, MGR_ERR_FORMAT,
                        "'%s' holds a text that is a control character and a number", name);
    }
    *out = value;
    return MGR_OK;
}

int mgr_json_parse_at(json_t **out, const char *name, uint64_t base, const char *text, size_t len,
                      mgr_err *err)
{
    return parse(out, name, base, text, len, 0, err);
}

int mgr_json_parse(json_t **out, const char *name, const char *text, size_t len, mgr_err *err)
{
    return parse(out, name, 0, text, len, 0, err);
}

/* `text` with its bare words as marked strings, and how many they are. */
static int mark_bare(const char *text, size_t len, mgr_buf *out, size_t *marks, mgr_err *err)
{
    bool quoted = false;
    *marks = 0;
    for (size_t i = 0; i < len; i++) {
        const char *const word = quoted ? NULL : bare_word(text + i, len - i);
        if (word) {
            MGR_TRY(mgr_buf_fmt(out, err, "\"\\u0001%s\"", word));
            i += strlen(word) - 1;
            ++*marks;
            continue;
        }
        if (text[i] == '"')
            quoted = !quoted;
        const size_t n = quoted && text[i] == '\\' && i + 1 < len ? 2 : 1;
        MGR_TRY(mgr_buf_add(out, text + i, n, err));
        i += n - 1;
    }
    return MGR_OK;
}

int mgr_json_parse_python(json_t **out, const char *name, const char *text, size_t len,
                          mgr_err *err)
{
    mgr_buf marked = {0};
    mgr_err plain = MGR_ERR_INIT, ignored = MGR_ERR_INIT;
    size_t marks;
    if (mgr_json_parse(out, name, text, len, &plain) == MGR_OK)
        return MGR_OK;
    int rc = mark_bare(text, len, &marked, &marks, err);
    if (rc == MGR_OK &&
        (marks == 0 || parse(out, name, 0, marked.data, marked.len, marks, &ignored) != MGR_OK)) {
        *err = plain;
        rc = plain.code;
    }
    mgr_buf_clear(&marked);
    return rc;
}

/* jansson hands the text over in pieces. */
typedef struct sink {
    mgr_buf *out;
    mgr_err *err;
} sink;

static int add_piece(const char *piece, size_t len, void *data)
{
    const sink *s = data;
    return mgr_buf_add(s->out, piece, len, s->err) == MGR_OK ? 0 : -1;
}

static int dump_string(const json_t *value, mgr_buf *out, mgr_err *err)
{
    sink s = {out, err};
    if (json_dump_callback(value, add_piece, &s, JSON_ENCODE_ANY) != 0)
        return mgr_fail(err, MGR_ERR_NOMEM, "no memory for JSON");
    return MGR_OK;
}

/* jansson's makers give NULL where memory ran out, and leave members out that are NULL: a tree made
 * then is not what it should be, and nothing of it is printed. */
static int check_memory(mgr_err *err)
{
    return mgr_mem_missed() ? mgr_fail(err, MGR_ERR_NOMEM, "no memory for JSON") : MGR_OK;
}

int mgr_json_text(const char *text, mgr_buf *out, mgr_err *err)
{
    json_t *value = json_string(text);
    if (!value && mgr_mem_missed())
        return check_memory(err);
    if (!value)
        return mgr_fail(err, MGR_ERR_INTERNAL, "a text for JSON is not valid UTF-8");
    const int rc = dump_string(value, out, err);
    json_decref(value);
    return rc;
}

static int dump_real(double value, mgr_buf *out, mgr_err *err)
{
    char digits[MGR_REAL_BYTES];
    if (!isfinite(value))
        return mgr_fail(err, MGR_ERR_INTERNAL, "JSON has no infinities and NaNs");
    mgr_shortest_real(value, digits);
    return mgr_buf_fmt(out, err, "%s%s", digits, strpbrk(digits, ".e") ? "" : ".0");
}

/* A line break and the indentation of `depth`, if there is any. */
static int dump_break(int indent, int depth, mgr_buf *out, mgr_err *err)
{
    return indent > 0 ? mgr_buf_fmt(out, err, "\n%*s", indent * depth, "") : MGR_OK;
}

static int dump_value(const json_t *value, int indent, int depth, mgr_buf *out, mgr_err *err);

static int dump_array(const json_t *array, int indent, int depth, mgr_buf *out, mgr_err *err)
{
    const size_t n = json_array_size(array);
    MGR_TRY(mgr_buf_text(out, "[", err));
    for (size_t i = 0; i < n; i++) {
        MGR_TRY(mgr_buf_text(out, i ? "," : "", err));
        MGR_TRY(dump_break(indent, depth + 1, out, err));
        MGR_TRY(dump_value(json_array_get(array, i), indent, depth + 1, out, err));
    }
    if (n)
        MGR_TRY(dump_break(indent, depth, out, err));
    return mgr_buf_text(out, "]", err);
}

static int dump_object(const json_t *object, int indent, int depth, mgr_buf *out, mgr_err *err)
{
    /* the iterator has no const form; it does not change the object */
    json_t *members = (json_t *)(uintptr_t)object;
    bool first = true;
    MGR_TRY(mgr_buf_text(out, "{", err));
    for (void *at = json_object_iter(members); at; at = json_object_iter_next(members, at)) {
        MGR_TRY(mgr_buf_text(out, first ? "" : ",", err));
        MGR_TRY(dump_break(indent, depth + 1, out, err));
        MGR_TRY(mgr_json_text(json_object_iter_key(at), out, err));
        MGR_TRY(mgr_buf_text(out, indent > 0 ? ": " : ":", err));
        MGR_TRY(dump_value(json_object_iter_value(at), indent, depth + 1, out, err));
        first = false;
    }
    if (!first)
        MGR_TRY(dump_break(indent, depth, out, err));
    return mgr_buf_text(out, "}", err);
}

static int dump_value(const json_t *value, int indent, int depth, mgr_buf *out, mgr_err *err)
{
    if (!value) /* what could not be made */
        return mgr_fail(err, MGR_ERR_NOMEM, "no memory for JSON");
    if (depth > MAX_DEPTH)
        return mgr_fail(err, MGR_ERR_INTERNAL, "JSON is nested too deeply");
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        return dump_object(value, indent, depth, out, err);
    case JSON_ARRAY:
        return dump_array(value, indent, depth, out, err);
    case JSON_STRING:
        return marked_word(value) ? mgr_buf_text(out, marked_word(value), err)
                                  : dump_string(value, out, err);
    case JSON_INTEGER:
        return mgr_buf_fmt(out, err, "%" PRId64, (int64_t)json_integer_value(value));
    case JSON_REAL:
        return dump_real(json_real_value(value), out, err);
    case JSON_TRUE:
        return mgr_buf_text(out, "true", err);
    case JSON_FALSE:
        return mgr_buf_text(out, "false", err);
    case JSON_NULL:
        break;
    }
    return mgr_buf_text(out, "null", err);
}

int mgr_json_dump(const json_t *value, int indent, mgr_buf *out, mgr_err *err)
{
    MGR_TRY(check_memory(err));
    MGR_TRY(dump_value(value, indent, 0, out, err));
    return indent > 0 ? mgr_buf_text(out, "\n", err) : MGR_OK;
}
