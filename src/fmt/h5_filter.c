#include "fmt/h5_filter.h"

#include <string.h>
#include <zlib.h>

size_t mgr_h5_packed_bound(size_t len)
{
    return compressBound(len);
}

/* The first bytes of all elements, then the second ones, ... */
static void shuffle(const unsigned char *bytes, size_t len, size_t element, unsigned char *out)
{
    const size_t n = len / element;
    for (size_t b = 0; b < element; b++)
        for (size_t i = 0; i < n; i++)
            out[b * n + i] = bytes[i * element + b];
    memcpy(out + n * element, bytes + n * element, len - n * element);
}

int mgr_h5_pack(const void *bytes, size_t len, size_t element, unsigned level, void *scratch,
                void *out, size_t *out_len, mgr_err *err)
{
    uLongf packed = compressBound(len);
    shuffle(bytes, len, element, scratch);
    if (compress2(out, &packed, scratch, len, (int)level) != Z_OK)
        return mgr_fail(err, MGR_ERR_NOMEM, "no memory to deflate %zu bytes", len);
    *out_len = packed;
    return MGR_OK;
}
