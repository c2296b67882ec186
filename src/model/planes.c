/*
 * The planes of a model's parameters: what an optimizer keeps beside the weights.
 */
#include <assert.h>
#include <string.h>

#include "core/mem.h"
#include "mgr/model.h"

const char *mgr_plane_name(mgr_plane plane)
{
    static const char *const names[MGR_PLANE_COUNT] = {"weight", "master", "exp_avg", "exp_avg_sq"};
    return names[plane];
}

/* No gradient reaches it: transformer/moe/router.py registers it as a buffer. */
static bool is_buffer(const mgr_tensor *t)
{
    return t->role == MGR_ROLE_SELECTION_BIAS;
}

static void add_plane(mgr_tensors *ts, mgr_plane plane)
{
    const uint32_t n = ts->n_weights;
    uint32_t *const place = ts->planes + (size_t)plane * n;
    for (uint32_t i = 0; i < n; i++) {
        if (is_buffer(&ts->list[i]))
            continue;
        place[i] = ts->n;
        ts->list[ts->n] = ts->list[i];
        ts->list[ts->n].plane = plane;
        ts->list[ts->n++].bundle = place[ts->list[i].bundle];
    }
}

int mgr_tensors_add_planes(mgr_tensors *ts, unsigned planes, mgr_err *err)
{
    const uint32_t n = ts->n_weights;
    mgr_tensor *list;
    if (!planes)
        return MGR_OK;
    assert(!ts->planes);
    if (ts->n != n || ts->first_opaque != n)
        return mgr_fail(err, MGR_ERR_UNSUPPORTED,
                        "what an optimizer keeps goes along with a model that is known whole; of "
                        "this one some tensors are known by name alone");
    if (n > UINT32_MAX / MGR_PLANE_COUNT)
        return mgr_fail(err, MGR_ERR_UNSUPPORTED, "%u tensors are too many", n);
    MGR_TRY(mgr_alloc(&list, (size_t)n * MGR_PLANE_COUNT, sizeof *list, err));
    memcpy(list, ts->list, n * sizeof *list);
    mgr_free(ts->list);
    ts->list = list;
    MGR_TRY(mgr_alloc(&ts->planes, (size_t)n * MGR_PLANE_COUNT, sizeof *ts->planes, err));
    ts->kept = planes;
    memset(ts->planes, 0xff, (size_t)n * MGR_PLANE_COUNT * sizeof *ts->planes);
    for (int p = MGR_PLANE_WEIGHT + 1; p < MGR_PLANE_COUNT; p++)
        if (planes & 1u << p)
            add_plane(ts, (mgr_plane)p);
    ts->first_opaque = ts->n; /* there are none */
    return MGR_OK;
}

uint32_t mgr_tensors_plane(const mgr_tensors *ts, uint32_t idx, mgr_plane plane)
{
    if (plane == MGR_PLANE_WEIGHT || idx == MGR_NONE)
        return idx;
    return ts->planes ? ts->planes[(size_t)plane * ts->n_weights + idx] : MGR_NONE;
}

mgr_tensors mgr_tensors_weights(const mgr_tensors *ts)
{
    mgr_tensors weights = *ts;
    if (ts->planes) /* then there are no opaque tensors */
        weights.n = weights.first_opaque = ts->n_weights;
    weights.planes = NULL;
    weights.kept = 0;
    return weights;
}
