#include "fmt/torch_settings.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/str.h"
#include "fmt/literal.h"

#define MAX_DEPTH 8
#define MAX_NAME 1024
#define MAX_ATTRS (UINT64_C(64) << 20) /* bytes of all attributes: shared text is copied */
#define NAME_SHOWN 200

/* ---- attributes ---- */

/* megatron.core.enums.ModelType(1) and the like: a call of a class with one number or text. */
static bool is_enum(const mgr_node *node)
{
    static const char *const others[] = {"torch", "numpy",       "pathlib",
                                         "_",     "collections", "copy_reg"};
    const mgr_node *const class = mgr_node_callable(node), *const value = mgr_node_arg(node, 0);
    if (!class || class->kind != MGR_NODE_GLOBAL || node->u.c.call->newobj ||
        mgr_node_n_args(node) != 1 || mgr_node_state(node) || node->u.c.n ||
        (value->kind != MGR_NODE_INT && !mgr_node_text(value)))
        return false;
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++)
        if (mgr_has_prefix(class->u.g.module, others[i]))
            return false;
    return true;
}

/* Kinds that are scalars only in the checkpoint's eyes, spelt as text; false for others. */
static int spell(mgr_torch_archive *t, const mgr_node *node, mgr_buf *out, bool *done)
{
    *done = true;
    if (node->kind == MGR_NODE_GLOBAL && strcmp(node->u.g.module, "torch") == 0 &&
        node->u.g.name[0] >= 'a')
        return mgr_buf_fmt(out, t->err, "torch.%s", node->u.g.name);
    if (is_enum(node)) {
        const mgr_node *const value = mgr_node_arg(node, 0);
        const char *const class = mgr_node_callable(node)->u.g.name;
        if (value->kind == MGR_NODE_INT)
            return mgr_buf_fmt(out, t->err, "%s(%" PRId64 ")", class, value->u.i);
        return mgr_buf_fmt(out, t->err, "%s(%s)", class, mgr_node_text(value));
    }
    if (mgr_node_is_call(node, "__builtin__", "getattr")) /* the enums of Python 3.11.2 */
        return mgr_buf_fmt(out, t->err, "%s.%s", mgr_node_arg(node, 0)->u.g.name,
                           mgr_node_text(mgr_node_arg(node, 1)));
    *done = false;
    return MGR_OK;
}

int mgr_torch_attr_add(mgr_torch_archive *t, const char *key, const mgr_node *node)
{
    mgr_attr attr = {.key = key, .file = t->file, .kind = MGR_ATTR_OTHER};
    char kind[NAME_SHOWN + 40];
    mgr_buf text = {0};
    bool spelt;
    int rc = spell(t, node, &text, &spelt);
    if (rc)
        goto out;
    if (spelt) {
        attr.kind = MGR_ATTR_SYMBOL;
        attr.text = text.data;
    } else if (node->kind == MGR_NODE_NONE) {
        attr.kind = MGR_ATTR_NULL;
    } else if (node->kind == MGR_NODE_BOOL || node->kind == MGR_NODE_INT) {
        attr.kind = node->kind == MGR_NODE_BOOL ? MGR_ATTR_BOOL : MGR_ATTR_INT;
        attr.i = node->u.i;
    } else if (node->kind == MGR_NODE_REAL) {
        attr.kind = MGR_ATTR_REAL;
        attr.r = node->u.r;
    } else if (mgr_node_text(node)) {
        attr.kind = MGR_ATTR_TEXT;
        attr.text = mgr_node_text(node);
    } else {
        rc = mgr_literal_spell(node, &text, t->err);
        attr.kind = text.len ? MGR_ATTR_LITERAL : MGR_ATTR_OTHER;
        attr.text = text.len ? text.data : mgr_node_describe(node, kind, sizeof kind);
        if (rc)
            goto out;
    }
    t->attr_bytes += strlen(key) + (attr.text ? strlen(attr.text) : 0);
    rc = t->attr_bytes > MAX_ATTRS
             ? mgr_fail(t->err, MGR_ERR_UNSUPPORTED,
                        "arguments of '%s' have more than %" PRIu64 " bytes of text",
                        t->reader->name, MAX_ATTRS)
             : mgr_catalogue_add_attr(t->cat, &attr, t->err);
out:
    mgr_buf_clear(&text);
    return rc;
}

bool mgr_torch_attr_is_scalar(const mgr_node *node)
{
    return node->kind == MGR_NODE_NONE || node->kind == MGR_NODE_BOOL ||
           node->kind == MGR_NODE_INT || node->kind == MGR_NODE_REAL || mgr_node_text(node);
}

/* ---- an optimizer's settings ---- */

static int add_settings(mgr_torch_archive *t, const mgr_node *node, unsigned depth);

static int add_setting(mgr_torch_archive *t, const mgr_node *value, unsigned depth, const char *key,
                       int64_t number)
{
    const size_t len = t->name.len;
    MGR_TRY(key ? mgr_buf_fmt(&t->name, t->err, ".%s", key)
                : mgr_buf_fmt(&t->name, t->err, ".%" PRId64, number));
    MGR_TRY(add_settings(t, value, depth + 1));
    t->name.len = len;
    t->name.data[len] = '\0';
    return MGR_OK;
}

/* A number in a tensor, as torch's optimizers count steps; it is none of the model's tensors. */
int mgr_torch_number_add(mgr_torch_archive *t, const mgr_node *node)
{
    float value = 0;
    mgr_attr attr = {.key = t->name.data, .file = t->file, .kind = MGR_ATTR_REAL};
    MGR_TRY(mgr_torch_archive_leaf(t, node));
    const mgr_stored s = t->cat->stored[--t->cat->n_stored];
    if (s.dtype != MGR_DTYPE_F32 || mgr_stored_bytes(&s) != sizeof value)
        return mgr_torch_archive_bad(t, MGR_ERR_UNSUPPORTED, node, "one number in float32");
    MGR_TRY(mgr_reader_read(t->reader, s.offset - t->reader->base, &value, sizeof value, t->err));
    attr.r = (double)value;
    return mgr_catalogue_add_attr(t->cat, &attr, t->err);
}

static int add_pairs(mgr_torch_archive *t, const mgr_node *dict, unsigned depth)
{
    for (size_t i = 0; i < mgr_node_n_pairs(dict); i++) {
        const mgr_node *const key = mgr_node_key(dict, i);
        const char *const text = mgr_node_text(key);
        int64_t number = 0;
        if (text || mgr_node_int(key, &number))
            MGR_TRY(add_setting(t, mgr_node_value(dict, i), depth, text, number));
    }
    return MGR_OK;
}

/* Groups in optimizers in a chain of them: what is deeper, or longer, is refused. */
static int add_settings(mgr_torch_archive *t, const mgr_node *node, unsigned depth)
{
    mgr_node *const *items;
    size_t n;
    if (depth > MAX_DEPTH || t->name.len > MAX_NAME)
        return mgr_torch_archive_bad(t, MGR_ERR_UNSUPPORTED, node, "settings of an optimizer");
    if (mgr_node_is_dict(node))
        return add_pairs(t, node, depth);
    if (node->kind == MGR_NODE_LIST && mgr_node_elements(node, &items, &n)) {
        for (size_t i = 0; i < n; i++)
            MGR_TRY(add_setting(t, items[i], depth, NULL, (int64_t)i));
        return MGR_OK;
    }
    if (mgr_has_suffix(t->name.data, ".common_step") && !mgr_torch_attr_is_scalar(node))
        return mgr_torch_number_add(t, node);
    return mgr_torch_attr_add(t, t->name.data, node);
}

int mgr_torch_settings_add(mgr_torch_archive *t, const mgr_node *node)
{
    return add_settings(t, node, 0);
}
