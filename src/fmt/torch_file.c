#include "fmt/torch_file.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "core/str.h"
#include "fmt/literal.h"
#include "fmt/torch_archive.h"

/* The pickle of Megatron-LM is a dict with "model" (or "model0", "model1", ...), "args" and more.
 */
#define MAX_SETTINGS_DEPTH 8
#define MAX_DEPTH 64                   /* of dicts in dicts */
#define MAX_NAME 1024                  /* bytes of a tensor's joined name */
#define MAX_ATTRS (UINT64_C(64) << 20) /* bytes of all attributes: shared text is copied */
#define NAME_SHOWN 200

/* ---- the model: dicts in dicts, keys joined with '.' ---- */

typedef struct frame {
    const mgr_node *dict;
    size_t next;     /* pair */
    size_t name_len; /* of the dict's own name */
} frame;

static int bad_key(mgr_torch_archive *t, const mgr_node *key, const char *what)
{
    char shown[NAME_SHOWN];
    mgr_fail(t->err, MGR_ERR_UNSUPPORTED, "a key in entry '%s' of '%s' at byte %" PRIu64 " %s",
             mgr_printable(t->name.data, t->name.len, shown, sizeof shown), t->reader->name,
             key->at, what);
    return MGR_ERR_UNSUPPORTED;
}

static int join_name(mgr_torch_archive *t, const frame *f, const mgr_node *key)
{
    const char *const text = mgr_node_text(key);
    t->name.len = f->name_len;
    t->name.data[t->name.len] = '\0';
    if (!text || !*text)
        return bad_key(t, key, "is no text");
    if (f->name_len + 1 + key->u.s.len > MAX_NAME)
        return bad_key(t, key, "is too long");
    MGR_TRY(mgr_buf_add(&t->name, ".", 1, t->err));
    return mgr_buf_add(&t->name, text, key->u.s.len, t->err);
}

/* A dict can be reached by many ways, or hold itself: the depth and the number of steps, which in
 * a tree is below the number of nodes, are bounded. */
static int read_model(mgr_torch_archive *t, const char *key, const mgr_node *model)
{
    frame stack[MAX_DEPTH];
    size_t depth = 1, steps = 0;
    t->name.len = 0;
    MGR_TRY(mgr_buf_text(&t->name, key, t->err));
    if (!mgr_node_is_dict(model))
        return mgr_torch_archive_bad(t, MGR_ERR_UNSUPPORTED, model, "a dict of tensors");
    stack[0] = (frame){model, 0, t->name.len};
    while (depth > 0) {
        frame *const f = &stack[depth - 1];
        if (f->next == mgr_node_n_pairs(f->dict)) {
            depth--;
            continue;
        }
        const mgr_node *const value = mgr_node_value(f->dict, f->next);
        MGR_TRY(join_name(t, f, mgr_node_key(f->dict, f->next)));
        f->next++;
        if (++steps > t->pickle.n_nodes)
            return mgr_torch_archive_bad(t, MGR_ERR_UNSUPPORTED, value,
                                         "dicts that do not share their parts");
        if (!mgr_node_is_dict(value) || mgr_has_suffix(t->name.data, "_extra_state")) {
            MGR_TRY(mgr_torch_archive_leaf(t, value));
            continue;
        }
        if (depth == MAX_DEPTH)
            return mgr_torch_archive_bad(t, MGR_ERR_UNSUPPORTED, value,
                                         "dicts that are not nested so deep");
        stack[depth++] = (frame){value, 0, t->name.len};
    }
    return MGR_OK;
}

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

static int add_attr(mgr_torch_archive *t, const char *key, const mgr_node *node)
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

static bool is_scalar(const mgr_node *node)
{
    return node->kind == MGR_NODE_NONE || node->kind == MGR_NODE_BOOL ||
           node->kind == MGR_NODE_INT || node->kind == MGR_NODE_REAL || mgr_node_text(node);
}

static int compare_text(const void *a, const void *b)
{
    const char *const *const ta = a;
    const char *const *const tb = b;
    return strcmp(*ta, *tb);
}

/* `names` is sorted on return. */
static int check_unique(mgr_torch_archive *t, const char **names, size_t n, const char *what)
{
    char shown[NAME_SHOWN];
    qsort(names, n, sizeof *names, compare_text);
    for (size_t i = 1; i < n; i++)
        if (strcmp(names[i - 1], names[i]) == 0)
            return mgr_fail(t->err, MGR_ERR_FORMAT, "%s '%s' occurs twice in '%s'", what,
                            mgr_printable(names[i], strlen(names[i]), shown, sizeof shown),
                            t->reader->name);
    return MGR_OK;
}

/* Python writes no key twice; in a dict that says so nobody can tell which value is meant. */
static int check_keys(mgr_torch_archive *t, const mgr_node *dict, const char *what)
{
    const char **names = NULL;
    size_t n = 0;
    MGR_TRY(mgr_alloc(&names, mgr_node_n_pairs(dict), sizeof *names, t->err));
    for (size_t i = 0; i < mgr_node_n_pairs(dict); i++) {
        const char *const text = mgr_node_text(mgr_node_key(dict, i));
        if (text)
            names[n++] = text;
    }
    const int rc = check_unique(t, names, n, what);
    mgr_free(names);
    return rc;
}

/* argparse.Namespace (types.SimpleNamespace, a dict); one without attributes has no state. */
static int read_args(mgr_torch_archive *t, const mgr_node *args)
{
    const bool namespace = mgr_node_is_call(args, "argparse", "Namespace") ||
                           mgr_node_is_call(args, "types", "SimpleNamespace");
    const mgr_node *const dict = namespace ? mgr_node_state(args) : args;
    if (namespace && !dict)
        return MGR_OK;
    if (!mgr_node_is_dict(dict))
        return add_attr(t, "args", args);
    MGR_TRY(check_keys(t, dict, "argument"));
    for (size_t i = 0; i < mgr_node_n_pairs(dict); i++) {
        const char *const key = mgr_node_text(mgr_node_key(dict, i));
        if (!key)
            continue;
        t->name.len = 0;
        MGR_TRY(mgr_buf_text(&t->name, "args.", t->err));
        MGR_TRY(mgr_buf_text(&t->name, key, t->err));
        MGR_TRY(add_attr(t, t->name.data, mgr_node_value(dict, i)));
    }
    return MGR_OK;
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
static int add_number(mgr_torch_archive *t, const mgr_node *node)
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
    if (depth > MAX_SETTINGS_DEPTH || t->name.len > MAX_NAME)
        return mgr_torch_archive_bad(t, MGR_ERR_UNSUPPORTED, node, "settings of an optimizer");
    if (mgr_node_is_dict(node))
        return add_pairs(t, node, depth);
    if (node->kind == MGR_NODE_LIST && mgr_node_elements(node, &items, &n)) {
        for (size_t i = 0; i < n; i++)
            MGR_TRY(add_setting(t, items[i], depth, NULL, (int64_t)i));
        return MGR_OK;
    }
    if (mgr_has_suffix(t->name.data, ".common_step") && !is_scalar(node))
        return add_number(t, node);
    return add_attr(t, t->name.data, node);
}

/* ---- the top level ---- */

static bool is_model_key(const char *key)
{
    return mgr_has_prefix(key, "model") && strspn(key + 5, "0123456789") == strlen(key + 5);
}

static int read_entry(mgr_torch_archive *t, const char *key, const mgr_node *value)
{
    if (is_model_key(key))
        return read_model(t, key, value);
    if (strcmp(key, "args") == 0)
        return read_args(t, value);
    if (t->optimizer &&
        (strcmp(key, "optimizer") == 0 || strcmp(key, "opt_param_scheduler") == 0)) {
        t->name.len = 0;
        MGR_TRY(mgr_buf_text(&t->name, key, t->err));
        return add_settings(t, value, 0);
    }
    if (strcmp(key, "optimizer") == 0 || strcmp(key, "opt_param_scheduler") == 0 ||
        strcmp(key, "lr_scheduler") == 0)
        t->cat->skipped[MGR_SKIP_OPTIMIZER]++;
    else if (strcmp(key, "rng_state") == 0)
        t->cat->skipped[MGR_SKIP_RNG]++;
    else if (is_scalar(value))
        return add_attr(t, key, value);
    else
        t->cat->skipped[MGR_SKIP_OTHER]++;
    return MGR_OK;
}

static int check_names(mgr_torch_archive *t)
{
    const size_t n = t->cat->n_stored - t->first;
    const char **names = NULL;
    MGR_TRY(mgr_alloc(&names, n, sizeof *names, t->err));
    for (size_t i = 0; i < n; i++)
        names[i] = t->cat->stored[t->first + i].name;
    const int rc = check_unique(t, names, n, "tensor");
    mgr_free(names);
    return rc;
}

static int read_top(mgr_torch_archive *t, const mgr_node *root, bool need_model)
{
    bool model = false;
    char kind[NAME_SHOWN + 40];
    if (!mgr_node_is_dict(root))
        return mgr_fail(t->err, MGR_ERR_FORMAT, "'%s' holds a '%s', expected a dict with 'model'",
                        t->reader->name, mgr_node_describe(root, kind, sizeof kind));
    MGR_TRY(check_keys(t, root, "entry"));
    for (size_t i = 0; i < mgr_node_n_pairs(root); i++) {
        const char *const key = mgr_node_text(mgr_node_key(root, i));
        if (!key) {
            t->cat->skipped[MGR_SKIP_OTHER]++;
            continue;
        }
        model = model || is_model_key(key);
        MGR_TRY(read_entry(t, key, mgr_node_value(root, i)));
    }
    if (!model && need_model)
        return mgr_fail(t->err, MGR_ERR_FORMAT, "no 'model' entry in '%s'", t->reader->name);
    return check_names(t);
}

/* A state dict by itself: no dicts in it, and no key but a tensor's name. */
static int read_flat(mgr_torch_archive *t)
{
    const mgr_node *const root = t->pickle.root;
    char kind[NAME_SHOWN + 40];
    if (!mgr_node_is_dict(root))
        return mgr_fail(t->err, MGR_ERR_FORMAT, "'%s' holds a '%s', expected a state dict",
                        t->reader->name, mgr_node_describe(root, kind, sizeof kind));
    for (size_t i = 0; i < mgr_node_n_pairs(root); i++) {
        const mgr_node *const key = mgr_node_key(root, i);
        const char *const text = mgr_node_text(key);
        t->name.len = 0;
        MGR_TRY(mgr_buf_text(&t->name, "", t->err));
        if (!text || !*text)
            return bad_key(t, key, "is no text");
        if (key->u.s.len > MAX_NAME)
            return bad_key(t, key, "is too long");
        MGR_TRY(mgr_buf_add(&t->name, text, key->u.s.len, t->err));
        MGR_TRY(mgr_torch_archive_leaf(t, mgr_node_value(root, i)));
    }
    return check_names(t);
}

/* What is asked of a file. */
typedef enum read_mode {
    READ_MODEL,
    READ_COMMON,
    READ_OPTIMIZER, /* the same, with an optimizer's settings */
    READ_TENSOR,
    READ_FLAT
} read_mode;

static int read_root(mgr_torch_archive *t, read_mode mode, const char *name)
{
    const mgr_node *root = t->pickle.root;
    mgr_node *const *items;
    size_t n;
    if (mode == READ_TENSOR) {
        MGR_TRY(mgr_buf_text(&t->name, name, t->err));
        return mgr_torch_archive_leaf(t, root);
    }
    if (mode == READ_FLAT)
        return read_flat(t);
    if ((mode == READ_COMMON || mode == READ_OPTIMIZER) && root->kind == MGR_NODE_LIST &&
        mgr_node_elements(root, &items, &n) && n == 1)
        root = items[0];
    return read_top(t, root, mode == READ_MODEL);
}

static int read_archive(mgr_catalogue *cat, uint32_t file, const mgr_reader *reader, read_mode mode,
                        const char *name, mgr_err *err)
{
    mgr_torch_archive t;
    int rc = mgr_torch_archive_open(&t, cat, file, reader, err);
    t.optimizer = mode == READ_OPTIMIZER;
    if (!rc)
        rc = read_root(&t, mode, name);
    mgr_torch_archive_close(&t);
    return rc;
}

int mgr_torch_file_read(mgr_catalogue *cat, uint32_t file, const mgr_reader *reader, mgr_err *err)
{
    return read_archive(cat, file, reader, READ_MODEL, NULL, err);
}

int mgr_torch_file_read_common(mgr_catalogue *cat, uint32_t file, const mgr_reader *reader,
                               bool optimizer, mgr_err *err)
{
    return read_archive(cat, file, reader, optimizer ? READ_OPTIMIZER : READ_COMMON, NULL, err);
}

int mgr_torch_file_read_tensor(mgr_catalogue *cat, uint32_t file, const mgr_reader *reader,
                               const char *name, mgr_err *err)
{
    return read_archive(cat, file, reader, READ_TENSOR, name, err);
}

int mgr_torch_file_read_flat(mgr_catalogue *cat, uint32_t file, const mgr_reader *reader,
                             mgr_err *err)
{
    return read_archive(cat, file, reader, READ_FLAT, NULL, err);
}
