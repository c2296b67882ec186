/*
 * Several dense models of one shape as one list of tensors: bundle by bundle, source by source.
 */
#include <string.h>

#include "core/mem.h"
#include "mgr/model.h"

mgr_others mgr_others_find(const char *name)
{
    static const char *const names[MGR_OTHERS_COUNT] = {"average", "base", "equal"};
    int i = 0;
    while (i < MGR_OTHERS_COUNT && strcmp(names[i], name) != 0)
        i++;
    return (mgr_others)i;
}

/* Has each source this tensor for itself? */
static bool is_own(const mgr_tensor *t, const mgr_model *target)
{
    return mgr_role_is_ffn(t->role) && mgr_model_is_moe(target, t->layer);
}

/* Tensors first .. end-1 of `each`, a bundle, as source `source` has them. */
static void add_bundle(mgr_tensors *ts, const mgr_tensors *each, uint32_t first, uint32_t end,
                       uint32_t source, uint32_t bundle)
{
    for (uint32_t i = first; i < end; i++) {
        ts->place[(size_t)source * each->n + i] = ts->n;
        mgr_tensor *const t = &ts->list[ts->n++];
        *t = each->list[i];
        t->source = source;
        t->bundle = bundle;
    }
}

static void join_bundle(mgr_tensors *ts, const mgr_tensors *each, uint32_t first, uint32_t end,
                        mgr_others others, const mgr_model *target)
{
    const bool own = is_own(&each->list[first], target);
    const uint32_t lead = ts->n;
    for (uint32_t s = 0; s < ts->sources; s++) {
        uint32_t *const place = ts->place + (size_t)s * each->n;
        if (s == 0 || own || others == MGR_OTHERS_AVERAGE)
            add_bundle(ts, each, first, end, s, own ? ts->n : lead);
        else
            for (uint32_t i = first; i < end; i++)
                place[i] = others == MGR_OTHERS_EQUAL ? ts->place[i] : MGR_NONE;
    }
}

int mgr_tensors_join(mgr_tensors *ts, const mgr_model *model, uint32_t sources, mgr_others others,
                     const mgr_model *target, mgr_err *err)
{
    mgr_tensors each;
    mgr_tensor *list = NULL;
    *ts = (mgr_tensors){0};
    MGR_TRY(mgr_tensors_init(&each, model, err));
    int rc = mgr_alloc(&list, (size_t)each.n * sources, sizeof *list, err);
    if (rc == MGR_OK)
        rc = mgr_alloc(&ts->place, (size_t)each.n * sources, sizeof *ts->place, err);
    if (rc != MGR_OK) {
        mgr_free(list);
        mgr_tensors_clear(&each);
        return rc;
    }
    uint32_t *const place = ts->place;
    *ts = each;
    ts->list = list;
    ts->place = place;
    ts->n_each = each.n;
    ts->sources = sources;
    ts->n = 0;
    for (uint32_t i = 0, end; i < each.n; i = end) {
        for (end = i + 1; end < each.n && each.list[end].bundle == i; end++)
            ;
        join_bundle(ts, &each, i, end, others, target);
    }
    ts->first_opaque = ts->n_weights = ts->n;
    mgr_free(each.list); /* the rest of it is part of *ts now */
    return MGR_OK;
}
