/*
 * Casts between weight types, and strided copies.
 */
#include <assert.h>
#include <string.h>

#include "kern/element.h"
#include "kern/kern.h"

/* Inlined once per pair of types, so that the block loops see them as constants. */
static inline __attribute__((always_inline)) void
cast_blocks(unsigned char *dst, mgr_dtype to, size_t to_bytes, const unsigned char *src,
            mgr_dtype from, size_t from_bytes, size_t n)
{
    float x[ELEMENT_BLOCK];

    for (; n >= ELEMENT_BLOCK; n -= ELEMENT_BLOCK) {
        element_load(x, src, from);
        element_store(dst, to, x);
        src += ELEMENT_BLOCK * from_bytes;
        dst += ELEMENT_BLOCK * to_bytes;
    }
    if (n > 0) {
        element_load_part(x, src, from, n);
        element_store_part(dst, to, x, n);
    }
}

void mgr_cast(void *dst, mgr_dtype to, const void *src, mgr_dtype from, size_t n)
{
    assert(mgr_dtype_is_weight(to) && mgr_dtype_is_weight(from));
    if (to == from)
        memcpy(dst, src, n * mgr_dtype_size(to));
    else if (from == MGR_DTYPE_BF16 && to == MGR_DTYPE_F32)
        cast_blocks(dst, MGR_DTYPE_F32, 4, src, MGR_DTYPE_BF16, 2, n);
    else if (from == MGR_DTYPE_F16 && to == MGR_DTYPE_F32)
        cast_blocks(dst, MGR_DTYPE_F32, 4, src, MGR_DTYPE_F16, 2, n);
    else if (from == MGR_DTYPE_F32 && to == MGR_DTYPE_BF16)
        cast_blocks(dst, MGR_DTYPE_BF16, 2, src, MGR_DTYPE_F32, 4, n);
    else if (from == MGR_DTYPE_F32 && to == MGR_DTYPE_F16)
        cast_blocks(dst, MGR_DTYPE_F16, 2, src, MGR_DTYPE_F32, 4, n);
    else if (from == MGR_DTYPE_F16)
        cast_blocks(dst, MGR_DTYPE_BF16, 2, src, MGR_DTYPE_F16, 2, n);
    else
        cast_blocks(dst, MGR_DTYPE_F16, 2, src, MGR_DTYPE_BF16, 2, n);
}

void mgr_copy_2d(void *dst, size_t dst_stride, const void *src, size_t src_stride, size_t row_bytes,
                 size_t rows)
{
    unsigned char *to = dst;
    const unsigned char *from = src;

    assert(rows < 2 || (dst_stride >= row_bytes && src_stride >= row_bytes));
    if (dst_stride == row_bytes && src_stride == row_bytes) {
        row_bytes *= rows;
        rows = row_bytes > 0;
    }
    for (size_t r = 0; r < rows; r++)
        memcpy(to + r * dst_stride, from + r * src_stride, row_bytes);
}
