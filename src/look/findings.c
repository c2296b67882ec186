#include "look/findings.h"

#include <stdio.h>

#include "core/say.h"
#include "core/str.h"
#include "fmt/json.h"

void mgr_findings_clear(mgr_findings *f)
{
    json_decref(f->list);
    json_decref(f->facts);
    *f = (mgr_findings){0};
}

int mgr_findings_add(mgr_findings *f, const char *file, const char *tensor, uint64_t byte,
                     const char *what, mgr_err *err)
{
    json_t *const place = byte == UINT64_MAX ? json_null() : json_integer((json_int_t)byte);
    json_t *const one = json_pack("{s:s?,s:s?,s:o,s:s}", "file", file, "tensor", tensor, "byte",
                                  place, "what", what);
    if (!f->list)
        f->list = json_array();
    return one && json_array_append_new(f->list, one) == 0
               ? MGR_OK
               : mgr_fail(err, MGR_ERR_NOMEM, "no memory for what was found");
}

int mgr_findings_fact(mgr_findings *f, const char *word, const char *text, mgr_err *err)
{
    if (!f->facts)
        f->facts = json_object();
    return json_object_set_new(f->facts, word, json_string(text)) == 0
               ? MGR_OK
               : mgr_fail(err, MGR_ERR_NOMEM, "no memory for a fact");
}

static void print_one(const json_t *one)
{
    const char *const file = json_string_value(json_object_get(one, "file"));
    const char *const tensor = json_string_value(json_object_get(one, "tensor"));
    const json_t *const byte = json_object_get(one, "byte");
    mgr_say(stdout, "differs   ");
    if (file)
        mgr_say(stdout, "'%s'", file);
    if (tensor)
        mgr_say(stdout, "%stensor '%s'", file ? ", " : "", tensor);
    if (json_is_integer(byte))
        mgr_say(stdout, ", byte %" JSON_INTEGER_FORMAT, json_integer_value(byte));
    mgr_say(stdout, "%s%s\n", file || tensor ? ": " : "",
            json_string_value(json_object_get(one, "what")));
}

void mgr_findings_print(const mgr_findings *f, bool all)
{
    const size_t n = json_array_size(f->list);
    const char *word;
    json_t *text;
    json_object_foreach(f->facts, word, text)
        mgr_say(stdout, "%-9s %s\n", word, json_string_value(text));
    for (size_t i = 0; i < n && (all || i == 0); i++)
        print_one(json_array_get(f->list, i));
    if (n > 1 && !all)
        mgr_say(stdout, "          and %zu more\n", n - 1);
}

int mgr_findings_json(const mgr_findings *f, const char *path, json_t *more, mgr_err *err)
{
    mgr_buf text = {0};
    json_t *const root =
        json_pack("{s:s,s:b}", "path", path, "good", json_array_size(f->list) == 0);
    json_t *const rest = json_pack("{s:O?,s:O?}", "facts", f->facts, "differences", f->list);
    int rc = root && more && rest && json_object_update(root, more) == 0 &&
                     json_object_update(root, rest) == 0
                 ? mgr_json_dump(root, 2, &text, err)
                 : mgr_fail(err, MGR_ERR_NOMEM, "no memory for JSON");
    if (rc == MGR_OK)
        mgr_say_lines(stdout, text.data);
    json_decref(root);
    json_decref(rest);
    json_decref(more);
    mgr_buf_clear(&text);
    return rc;
}
