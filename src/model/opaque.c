#include "model/opaque.h"

#include <stdlib.h>
#include <string.h>

#include "core/mem.h"

typedef const mgr_stored *entry;

static int by_name(const void *a, const void *b)
{
    return strcmp((*(const entry *)a)->name, (*(const entry *)b)->name);
}

static int order(uint64_t a, uint64_t b)
{
    return a < b ? -1 : a > b;
}

/* By place, and at one place the shortest name first: "shared.weight", of which others are parts'.
 */
static int by_place(const void *x, const void *y)
{
    const entry a = *(const entry *)x, b = *(const entry *)y;
    int c = order(a->file, b->file);
    if (c == 0)
        c = order(a->offset, b->offset);
    if (c == 0)
        c = order(strlen(a->name), strlen(b->name));
    return c ? c : strcmp(a->name, b->name);
}

bool mgr_same_bytes(const mgr_stored *a, const mgr_stored *b)
{
    return a->file == b->file && a->offset == b->offset && a->dtype == b->dtype &&
           a->ndim == b->ndim && memcmp(a->shape, b->shape, a->ndim * sizeof a->shape[0]) == 0 &&
           memcmp(a->stride, b->stride, a->ndim * sizeof a->stride[0]) == 0;
}

/* Take out what the model's tensors are stored as; returns how many are left, by name. */
static size_t take_named(entry *list, size_t n, uint8_t *named, const mgr_tensors *ts,
                         mgr_namer name, const void *context)
{
    char text[MGR_HF_NAME_BYTES];
    size_t left = 0;
    for (uint32_t i = 0; i < ts->n; i++) {
        const mgr_stored wanted = {.name = text};
        const entry key = &wanted;
        if (!name(context, ts, &ts->list[i], text))
            continue;
        const entry *const found = bsearch(&key, list, n, sizeof *list, by_name);
        if (found)
            named[found - list] = 1;
    }
    for (size_t i = 0; i < n; i++)
        if (!named[i])
            list[left++] = list[i];
    return left;
}

/* Of each place one name; returns how many are left, by name. */
static size_t drop_aliases(entry *list, size_t n)
{
    size_t left = 0;
    qsort(list, n, sizeof *list, by_place);
    for (size_t i = 0; i < n; i++)
        if (left == 0 || !mgr_same_bytes(list[left - 1], list[i]))
            list[left++] = list[i];
    qsort(list, left, sizeof *list, by_name);
    return left;
}

static int add(mgr_tensors *ts, const entry *list, size_t n, mgr_err *err)
{
    MGR_TRY(mgr_alloc(&ts->opaque, n, sizeof *ts->opaque, err));
    for (size_t i = 0; i < n; i++) {
        mgr_opaque *const o = &ts->opaque[i];
        o->name = list[i]->name;
        o->ndim = list[i]->ndim;
        memcpy(o->shape, list[i]->shape, sizeof o->shape);
    }
    return mgr_tensors_add_opaque(ts, ts->opaque, n, err);
}

int mgr_opaque_find(mgr_tensors *ts, const mgr_catalogue *cat, uint32_t first_file, mgr_namer name,
                    mgr_repeats repeats, const void *context, mgr_err *err)
{
    entry *list = NULL;
    uint8_t *named = NULL;
    size_t n = 0;
    int rc = mgr_alloc(&list, cat->n_stored, sizeof *list, err);
    if (rc == MGR_OK)
        rc = mgr_alloc(&named, cat->n_stored, 1, err);
    for (size_t i = 0; rc == MGR_OK && i < cat->n_stored; i++)
        if (cat->stored[i].file >= first_file &&
            !(repeats && repeats(cat, &ts->model, &cat->stored[i])))
            list[n++] = &cat->stored[i];
    if (rc == MGR_OK && n > 0) {
        qsort(list, n, sizeof *list, by_name);
        n = take_named(list, n, named, ts, name, context);
    }
    if (rc == MGR_OK && n > 0)
        rc = add(ts, list, drop_aliases(list, n), err);
    mgr_free(list);
    mgr_free(named);
    return rc;
}

int mgr_opaque_aliases(mgr_layout *layout, uint32_t first_file, mgr_err *err)
{
    const mgr_catalogue *const cat = layout->cat;
    for (size_t i = 0; i < cat->n_stored; i++) {
        const mgr_stored *const s = &cat->stored[i];
        bool again = false;
        for (size_t k = 0; k < cat->n_stored && !layout->used[i] && s->file >= first_file; k++)
            again = again || (layout->used[k] && mgr_same_bytes(&cat->stored[k], s));
        uint32_t stored;
        if (again)
            MGR_TRY(mgr_layout_tensor(layout, s->file, s->name, s->ndim, s->shape, &stored, err));
    }
    return MGR_OK;
}
