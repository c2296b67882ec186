#include "fmt/torch_file.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "core/str.h"
#include "fmt/torch_archive.h"
#include "fmt/torch_optimizer.h"
#include "fmt/torch_settings.h"

/* The pickle of Megatron-LM is a dict with "model" (or "model0", "model1", ...), "args" and more.
 */
#define MAX_DEPTH 64  /* of dicts in dicts */
#define MAX_NAME 1024 /* bytes of a tensor's joined name */
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

/* ---- args ---- */

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
        return mgr_torch_attr_add(t, "args", args);
    MGR_TRY(check_keys(t, dict, "argument"));
    for (size_t i = 0; i < mgr_node_n_pairs(dict); i++) {
        const char *const key = mgr_node_text(mgr_node_key(dict, i));
        if (!key)
            continue;
        t->name.len = 0;
        MGR_TRY(mgr_buf_text(&t->name, "args.", t->err));
        MGR_TRY(mgr_buf_text(&t->name, key, t->err));
        MGR_TRY(mgr_torch_attr_add(t, t->name.data, mgr_node_value(dict, i)));
    }
    return MGR_OK;
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
    const bool of_optimizer =
        strcmp(key, "optimizer") == 0 || strcmp(key, "opt_param_scheduler") == 0;
    if (of_optimizer && t->stepped)
        return MGR_OK;
    if (of_optimizer && t->optimizer) {
        t->name.len = 0;
        MGR_TRY(mgr_buf_text(&t->name, key, t->err));
        return mgr_torch_settings_add(t, value);
    }
    if (of_optimizer || strcmp(key, "lr_scheduler") == 0)
        t->cat->skipped[MGR_SKIP_OPTIMIZER]++;
    else if (strcmp(key, "rng_state") == 0)
        t->cat->skipped[MGR_SKIP_RNG]++;
    else if (mgr_torch_attr_is_scalar(value))
        return mgr_torch_attr_add(t, key, value);
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
    READ_STEPPED,   /* the model with an optimizer */
    READ_SETTINGS,  /* the same, with its settings */
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
    MGR_TRY(read_top(t, root, mode == READ_MODEL || t->stepped));
    return t->stepped ? mgr_torch_optimizer_add(t, root, mode == READ_SETTINGS) : MGR_OK;
}

static int read_archive(mgr_catalogue *cat, uint32_t file, const mgr_reader *reader, read_mode mode,
                        const char *name, mgr_err *err)
{
    mgr_torch_archive t;
    int rc = mgr_torch_archive_open(&t, cat, file, reader, err);
    t.optimizer = mode == READ_OPTIMIZER;
    t.stepped = mode == READ_STEPPED || mode == READ_SETTINGS;
    if (!rc)
        rc = read_root(&t, mode, name);
    mgr_torch_archive_close(&t);
    return rc;
}

int mgr_torch_file_read(mgr_catalogue *cat, uint32_t file, const mgr_reader *reader, mgr_err *err)
{
    return read_archive(cat, file, reader, READ_MODEL, NULL, err);
}

int mgr_torch_file_read_stepped(mgr_catalogue *cat, uint32_t file, const mgr_reader *reader,
                                bool settings, mgr_err *err)
{
    return read_archive(cat, file, reader, settings ? READ_SETTINGS : READ_STEPPED, NULL, err);
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
