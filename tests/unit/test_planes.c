/*
 * Planes: which tensors have them, in which bundles, and what becomes of an expert's moments.
 */
#include <string.h>

#include "mgr/model.h"
#include "mgr/upcycle.h"
#include "support/check.h"

static mgr_model mixture(void)
{
    mgr_model m = {.layers = 2,
                   .hidden = 4,
                   .heads = 2,
                   .kv_groups = 1,
                   .head_dim = 2,
                   .ffn = 6,
                   .vocab = 5,
                   .experts = 2,
                   .top_k = 1,
                   .dtype = MGR_DTYPE_BF16};
    m.router.selection_bias = true;
    return m;
}

/* Each weight but a buffer has each plane once, of its shape, in the bundle of its neighbours. */
static void each_parameter_has_them(void)
{
    const mgr_model m = mixture();
    mgr_err err = MGR_ERR_INIT;
    mgr_tensors ts;
    CHECK_INT(mgr_tensors_init(&ts, &m, &err), MGR_OK);
    const uint32_t n = ts.n;
    CHECK_INT(mgr_tensors_add_planes(&ts, MGR_PLANES_MOMENTS, &err), MGR_OK);
    CHECK(ts.n_weights == n && ts.n == n + 2 * (n - 2) && ts.first_opaque == ts.n);
    for (uint32_t i = 0; i < n; i++) {
        const mgr_tensor *const t = &ts.list[i];
        const uint32_t at = mgr_tensors_plane(&ts, i, MGR_PLANE_EXP_AVG_SQ);
        CHECK(t->plane == MGR_PLANE_WEIGHT && mgr_tensors_match(&ts, t) == i);
        CHECK(mgr_tensors_plane(&ts, i, MGR_PLANE_MASTER) == MGR_NONE);
        CHECK((at == MGR_NONE) == (t->role == MGR_ROLE_SELECTION_BIAS));
        if (at == MGR_NONE)
            continue;
        const mgr_tensor *const p = &ts.list[at];
        CHECK(p->plane == MGR_PLANE_EXP_AVG_SQ && p->rows == t->rows && p->cols == t->cols);
        CHECK(at - p->bundle == i - t->bundle && mgr_tensors_match(&ts, p) == at);
    }
    mgr_tensors_clear(&ts);
}

/* Neuron 1 of 3 is drawn anew; the neurons come from places 4, 0 and 2 of 5. */
static void moments_follow_neurons(void)
{
    const uint32_t origin[] = {4, 0, 2}, selected[] = {1};
    const float source[10] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
    const float rows[6] = {90, 100, 0, 0, 50, 60}, down[6] = {50, 0, 30, 100, 0, 80};
    const mgr_expert x = {.width = 3,
                          .source_width = 5,
                          .hidden = 2,
                          .selected = selected,
                          .n_selected = 1,
                          .origin = origin,
                          .scale = 10};
    float out[6];
    mgr_expert_rows(&mgr_method_moment, &x, 0, 3, source, 0, MGR_DTYPE_F32, out, MGR_DTYPE_F32);
    CHECK(memcmp(out, rows, sizeof rows) == 0);
    mgr_expert_down_rows(&mgr_method_moment, &x, 0, 2, source, MGR_DTYPE_F32, out, MGR_DTYPE_F32);
    CHECK(memcmp(out, down, sizeof down) == 0);
}

static void factors_of_planes(void)
{
    const float two = 2, half = 0.5f, quarter = 0.25f;
    const float weight = mgr_plane_scale(two, MGR_PLANE_WEIGHT);
    const float master = mgr_plane_scale(two, MGR_PLANE_MASTER);
    const float first = mgr_plane_scale(two, MGR_PLANE_EXP_AVG);
    const float second = mgr_plane_scale(two, MGR_PLANE_EXP_AVG_SQ);
    CHECK(memcmp(&weight, &two, sizeof two) == 0 && memcmp(&master, &two, sizeof two) == 0);
    CHECK(memcmp(&first, &half, sizeof half) == 0);
    CHECK(memcmp(&second, &quarter, sizeof quarter) == 0);
}

int main(void)
{
    each_parameter_has_them();
    moments_follow_neurons();
    factors_of_planes();
    return CHECK_DONE();
}
