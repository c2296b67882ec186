#include "fmt/h5_filter.h"

#include <libdeflate.h>
#include <string.h>

int mgr_h5_inflate(const void *packed, size_t packed_len, void *out, size_t len, const char *name,
                   uint64_t at, mgr_err *err)
{
    struct libdeflate_decompressor *const d = libdeflate_alloc_decompressor();
    if (!d)
        return mgr_fail(err, MGR_ERR_NOMEM, "no memory to inflate %zu bytes", len);
    const enum libdeflate_result r =
        libdeflate_zlib_decompress(d, packed, packed_len, out, len, NULL);
    libdeflate_free_decompressor(d);
    if (r != LIBDEFLATE_SUCCESS)
        return mgr_fail(err, MGR_ERR_FORMAT, "'%s' at byte %llu: what is compressed is damaged",
                        name, (unsigned long long)at);
    return MGR_OK;
}

void mgr_h5_unshuffle(const void *bytes, size_t len, size_t element, void *out)
{
    const unsigned char *const from = bytes;
    unsigned char *const to = out;
    const size_t n = len / element;
    for (size_t b = 0; b < element; b++)
        for (size_t i = 0; i < n; i++)
            to[i * element + b] = from[b * n + i];
    memcpy(to + n * element, from + n * element, len - n * element);
}
