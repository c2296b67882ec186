#include "look/inspect.h"

#include <stdio.h>
#include <string.h>

#include "core/say.h"
#include "fmt/json.h"
#include "look/view.h"

static const char *type_text(const mgr_stored *s)
{
    const char *const name = mgr_dtype_name(s->dtype);
    return name ? name : "other";
}

static void print_tensors(const mgr_view *v)
{
    int width = 20;
    for (size_t i = 0; i < v->cat.n_stored; i++) {
        const int len = (int)strlen(v->cat.stored[i].name);
        width = len > width && len < 100 ? len : width;
    }
    for (uint32_t f = 0; f < v->cat.n_files; f++) {
        char bytes[32], shape[128];
        mgr_say(stdout, "\n%s  %s\n", v->cat.files[f].path,
                mgr_format_bytes(v->cat.files[f].bytes, bytes, sizeof bytes));
        for (size_t i = 0; i < v->cat.n_stored; i++) {
            const mgr_stored *const s = &v->cat.stored[i];
            if (s->file == f)
                mgr_say(stdout, "  %-*s  %-8s  %-18s %10s\n", width, s->name, type_text(s),
                        mgr_view_shape(s, shape, sizeof shape),
                        mgr_format_bytes(mgr_view_bytes(s), bytes, sizeof bytes));
        }
    }
}

static void print_text(const mgr_view *v, const mgr_inspect_options *o)
{
    const mgr_model *const m = &v->tensors.model;
    uint64_t count = 0, bytes = 0;
    char text[32];
    mgr_buf model = {0};
    mgr_err ignored = MGR_ERR_INIT;
    for (size_t i = 0; i < v->cat.n_stored; i++) {
        count += mgr_view_elements(&v->cat.stored[i]);
        bytes += mgr_view_bytes(&v->cat.stored[i]);
    }
    mgr_say(stdout, "path      %s\nformat    %s, %zu files%s%s\n", o->path, v->format,
            v->cat.n_files, v->split.len ? ": " : "", v->split.len ? v->split.data : "");
    if (v->refusal.len)
        mgr_say(stdout, "source    not one for mgr-upcycle: %s\n", v->refusal.data);
    if (v->has_model && mgr_view_model(m, &model, &ignored) == MGR_OK &&
        mgr_view_types(&v->layout, &model, &ignored) == MGR_OK)
        mgr_say(stdout, "model     %s\n", model.data);
    mgr_say(stdout, "tensors   %zu stored, %llu elements, %s\n", v->cat.n_stored,
            (unsigned long long)count, mgr_format_bytes(bytes, text, sizeof text));
    mgr_buf_clear(&model);
    if (!o->summary)
        print_tensors(v);
}

static json_t *shape_json(const mgr_stored *s)
{
    json_t *const shape = json_array();
    for (uint32_t d = 0; d < s->ndim; d++)
        json_array_append_new(shape, json_integer((json_int_t)s->shape[d]));
    return shape;
}

static int print_json(const mgr_view *v, mgr_err *err)
{
    mgr_buf text = {0};
    json_t *const files = json_array();
    for (uint32_t f = 0; f < v->cat.n_files; f++) {
        json_t *const tensors = json_array();
        for (size_t i = 0; i < v->cat.n_stored; i++) {
            const mgr_stored *const s = &v->cat.stored[i];
            if (s->file == f)
                json_array_append_new(
                    tensors, json_pack("{s:s,s:s,s:o,s:I}", "name", s->name, "dtype", type_text(s),
                                       "shape", shape_json(s), "offset", (json_int_t)s->offset));
        }
        json_array_append_new(files,
                              json_pack("{s:s,s:I,s:o}", "path", v->cat.files[f].path, "bytes",
                                        (json_int_t)v->cat.files[f].bytes, "tensors", tensors));
    }
    json_t *const root = json_pack("{s:s,s:s,s:o}", "format", v->format, "layout",
                                   v->split.len ? v->split.data : "", "files", files);
    const int rc = mgr_json_dump(root, 2, &text, err);
    if (rc == MGR_OK)
        mgr_say_lines(stdout, text.data);
    json_decref(root);
    mgr_buf_clear(&text);
    return rc;
}

int mgr_inspect(const mgr_inspect_options *o, mgr_err *err)
{
    mgr_view v;
    int rc = mgr_view_open(&v, o->path, o->optimizer, err);
    if (rc == MGR_OK && o->json)
        rc = print_json(&v, err);
    else if (rc == MGR_OK)
        print_text(&v, o);
    mgr_view_close(&v);
    return rc;
}
