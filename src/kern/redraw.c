/*
 * Normal draws in the type of the weights.
 */
#include <assert.h>

#include "kern/kern.h"
#include "rng/normal.h"

#define F16_CHUNK 1024

/* F16 by way of float32, which is what the value is defined in. */
static void scaled_f16(const mgr_stream *stream, uint64_t first, size_t n, float mean, float std,
                       unsigned char *out)
{
    float values[F16_CHUNK];
    while (n > 0) {
        const size_t chunk = n < F16_CHUNK ? n : F16_CHUNK;
        mgr_normals_affine(stream, first, chunk, mean, std, values, MGR_DTYPE_F32);
        mgr_cast(out, MGR_DTYPE_F16, values, MGR_DTYPE_F32, chunk);
        first += chunk;
        n -= chunk;
        out += chunk * sizeof(uint16_t);
    }
}

void mgr_normals_scaled(const mgr_stream *stream, uint64_t first, size_t n, float mean, float std,
                        void *out, mgr_dtype to)
{
    assert(mgr_dtype_is_weight(to));
    if (to == MGR_DTYPE_F16)
        scaled_f16(stream, first, n, mean, std, out);
    else
        mgr_normals_affine(stream, first, n, mean, std, out, to);
}
