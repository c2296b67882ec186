#include "fmt/h5_read.h"

#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "fmt/h5_parse.h"
#include "fmt/h5_set.h"

/* ---- the root ---- */

static int on_link(void *context, const mgr_h5_link *link, mgr_err *err)
{
    mgr_h5_index *const x = context;
    const char *name;
    MGR_TRY(mgr_arena_strndup(&x->arena, &name, link->name, strlen(link->name), err));
    MGR_TRY(mgr_grow(&x->list, &x->cap, x->n + 1, sizeof *x->list, err));
    x->list[x->n++] = (struct mgr_h5_entry){name, link->hard ? link->object : MGR_H5_NOWHERE};
    return MGR_OK;
}

static int by_name(const void *x, const void *y)
{
    const struct mgr_h5_entry *const a = x, *const b = y;
    return strcmp(a->name, b->name);
}

int mgr_h5_index_make(mgr_h5_index *x, const mgr_reader *in, mgr_err *err)
{
    uint64_t root;
    *x = (mgr_h5_index){.in = in};
    MGR_TRY(mgr_h5_root(in, &root, err));
    MGR_TRY(mgr_h5_walk_links(in, root, on_link, x, err));
    if (x->n)
        qsort(x->list, x->n, sizeof *x->list, by_name);
    for (size_t i = 1; i < x->n; i++)
        if (by_name(&x->list[i - 1], &x->list[i]) == 0)
            return mgr_fail(err, MGR_ERR_FORMAT, "'%s' has '%s' twice", in->name, x->list[i].name);
    return MGR_OK;
}

void mgr_h5_index_clear(mgr_h5_index *x)
{
    mgr_free(x->list);
    mgr_arena_clear(&x->arena);
    *x = (mgr_h5_index){0};
}

static int numbers_of(const mgr_reader *in, const struct mgr_h5_entry *e, mgr_h5_set *set,
                      mgr_err *err)
{
    if (e->object == MGR_H5_NOWHERE)
        return mgr_fail(err, MGR_ERR_UNSUPPORTED, "'%s': '%s' is a link that leads elsewhere",
                        in->name, e->name);
    const int rc = mgr_h5_describe(in, e->object, set, err);
    if (rc == MGR_ERR_NOT_FOUND)
        return rc;
    if (rc != MGR_OK)
        return mgr_wrap(err, "data set '%s'", e->name);
    if (set->dtype == MGR_DTYPE_OTHER)
        return mgr_fail(err, MGR_ERR_FORMAT, "'%s' data set '%s' is no array of numbers", in->name,
                        e->name);
    return MGR_OK;
}

int mgr_h5_index_set(const mgr_h5_index *x, const char *name, mgr_h5_set *set, mgr_err *err)
{
    const struct mgr_h5_entry key = {name, 0};
    const struct mgr_h5_entry *const e =
        x->n ? bsearch(&key, x->list, x->n, sizeof key, by_name) : NULL;
    if (!e)
        return mgr_fail(err, MGR_ERR_FORMAT, "'%s' has no data set '%s'", x->in->name, name);
    return numbers_of(x->in, e, set, err);
}

/* ---- paths ---- */

typedef struct search {
    const char *name;
    size_t len;
    uint64_t object;
} search;

static int on_candidate(void *context, const mgr_h5_link *link, mgr_err *err)
{
    search *const s = context;
    (void)err;
    if (link->hard && strlen(link->name) == s->len && memcmp(link->name, s->name, s->len) == 0)
        s->object = link->object;
    return MGR_OK;
}

int mgr_h5_find(const mgr_reader *in, const char *path, mgr_h5_set *set, mgr_err *err)
{
    uint64_t object;
    MGR_TRY(mgr_h5_root(in, &object, err));
    for (const char *at = path; *at;) {
        search s = {at, strcspn(at, "/"), MGR_H5_NOWHERE};
        MGR_TRY(mgr_h5_walk_links(in, object, on_candidate, &s, err));
        if (s.object == MGR_H5_NOWHERE)
            return mgr_fail(err, MGR_ERR_NOT_FOUND, "'%s' has no '%s'", in->name, path);
        object = s.object;
        at += s.len + (at[s.len] == '/');
    }
    return mgr_h5_describe(in, object, set, err);
}

int mgr_h5_read_text(const mgr_reader *in, const char *path, uint64_t limit, mgr_buf *out,
                     mgr_err *err)
{
    mgr_h5_set set;
    char *text;
    MGR_TRY(mgr_h5_find(in, path, &set, err));
    if (!set.text || set.bytes != set.element || set.bytes > limit || set.offset == MGR_H5_NOWHERE)
        return mgr_fail(err, MGR_ERR_FORMAT, "'%s' data set '%s' is no text of up to %llu bytes",
                        in->name, path, (unsigned long long)limit);
    MGR_TRY(mgr_alloc(&text, set.bytes + 1, 1, err));
    int rc = mgr_reader_read(in, set.offset, text, set.bytes, err);
    if (rc == MGR_OK)
        rc = mgr_buf_add(out, text, strlen(text), err);
    mgr_free(text);
    return rc;
}

/* ---- the catalogue ---- */

static int add_stored(const mgr_h5_set *set, const char *name, uint32_t file, uint64_t *next,
                      mgr_catalogue *cat, mgr_err *err)
{
    mgr_stored s = {.name = name,
                    .file = file,
                    .record = MGR_NONE,
                    .dtype = set->dtype,
                    .ndim = set->ndim,
                    .offset = set->offset};
    uint64_t elements = 1;
    for (uint32_t d = set->ndim; d-- > 0; elements *= set->shape[d]) {
        s.shape[d] = set->shape[d];
        s.stride[d] = elements;
    }
    if (set->offset == MGR_H5_NOWHERE) {
        s.offset = *next;
        *next += set->bytes;
    }
    return mgr_catalogue_add_stored(cat, &s, err);
}

int mgr_h5_catalogue(const mgr_reader *in, mgr_catalogue *cat, uint32_t idx, mgr_err *err)
{
    mgr_h5_index x;
    uint64_t next = MGR_VIRTUAL_OFFSET;
    int rc = mgr_h5_index_make(&x, in, err);
    for (size_t i = 0; rc == MGR_OK && i < x.n; i++) {
        mgr_h5_set set;
        mgr_err why = MGR_ERR_INIT;
        rc = numbers_of(in, &x.list[i], &set, &why);
        if (rc == MGR_ERR_NOT_FOUND) { /* a group, of what we do not know */
            cat->skipped[MGR_SKIP_OTHER]++;
            rc = MGR_OK;
        } else if (rc != MGR_OK) {
            *err = why;
        } else {
            rc = add_stored(&set, x.list[i].name, idx, &next, cat, err);
        }
    }
    mgr_h5_index_clear(&x);
    return rc;
}
