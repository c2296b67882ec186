/*
 * What becomes of Adam's moments: they go where their weights go, and begin anew where the weights
 * do. No method of its own to choose.
 *
 * With w' = s w the gradient of w' is 1/s of that of w: the first moment is divided by s, the
 * second by its square.
 */
#include <string.h>

#include "kern/method.h"

float mgr_plane_scale(float scale, mgr_plane plane)
{
    const double s = scale;
    if (plane == MGR_PLANE_WEIGHT || plane == MGR_PLANE_MASTER)
        return scale;
    return plane == MGR_PLANE_EXP_AVG ? (float)(1 / s) : (float)(1 / (s * s));
}

/* All bytes of a zero are zero in every type. */
static void zero_row(const mgr_expert *x, uint32_t k, const void *source, mgr_dtype from, void *out,
                     mgr_dtype to)
{
    (void)k;
    (void)source;
    (void)from;
    memset(out, 0, (size_t)x->hidden * mgr_dtype_size(to));
}

static void zero_columns(const mgr_expert *x, const mgr_down_part *part, uint32_t k, uint32_t n,
                         void *tile)
{
    const size_t bytes = mgr_dtype_size(part->to);
    unsigned char *const first = tile;
    (void)x;
    (void)k;
    for (uint32_t r = 0; r < part->n_rows; r++)
        memset(first + (size_t)r * part->tile_stride * bytes, 0, n * bytes);
}

const mgr_method mgr_method_moment = {
    .name = "moment", .draw_row = zero_row, .draw_columns = zero_columns};
