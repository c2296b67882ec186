#include "fmt/pickle_write.h"

#include <string.h>

#include "core/le.h"
#include "core/mem.h"

/*
 * What is written, in opcodes of protocol 2 (src/fmt/README.md):
 *
 *   file      := 80 02 value '.'
 *   value     := 'N' | 88 | 89 | int | 'G' f64be | text | global | dict | namespace | tuple | list
 *   int       := 'K' u8 | 'M' u16 | 'J' i32 | 8A n two's-complement-le
 *   text      := 'X' u32 utf-8
 *   global    := 'c' module '\n' name '\n'
 *   dict      := '}' '(' { value value } 'u'
 *   namespace := 'c' "argparse\nNamespace\n" ')' 81 '}' '(' { text value } 'u' 'b'
 *   tuple     := ')' | '(' { value } 't'
 *   list      := ']' '(' { value } 'e'
 */
static int put(mgr_buf *out, const char *opcodes, size_t n, mgr_err *err)
{
    return mgr_buf_add(out, opcodes, n, err);
}

int mgr_pickle_begin(mgr_buf *out, mgr_err *err)
{
    return put(out, "\x80\x02", 2, err);
}

int mgr_pickle_end(mgr_buf *out, mgr_err *err)
{
    return put(out, ".", 1, err);
}

int mgr_pickle_none(mgr_buf *out, mgr_err *err)
{
    return put(out, "N", 1, err);
}

int mgr_pickle_bool(mgr_buf *out, int value, mgr_err *err)
{
    return put(out, value ? "\x88" : "\x89", 1, err);
}

int mgr_pickle_int(mgr_buf *out, int64_t value, mgr_err *err)
{
    unsigned char op[10];
    if (value >= 0 && value <= 0xff) {
        op[0] = 'K';
        op[1] = (unsigned char)value;
        return mgr_buf_add(out, op, 2, err);
    }
    if (value >= 0 && value <= 0xffff) {
        op[0] = 'M';
        mgr_store_u16(op + 1, (uint16_t)value);
        return mgr_buf_add(out, op, 3, err);
    }
    if (value >= INT32_MIN && value <= INT32_MAX) {
        op[0] = 'J';
        mgr_store_u32(op + 1, (uint32_t)(int32_t)value);
        return mgr_buf_add(out, op, 5, err);
    }
    op[0] = 0x8a;
    mgr_store_u64(op + 2, (uint64_t)value);
    /* as few bytes as keep the sign */
    const unsigned char sign = value < 0 ? 0xff : 0;
    unsigned n = 8;
    while (n > 1 && op[1 + n] == sign && ((op[n] ^ sign) & 0x80) == 0)
        n--;
    op[1] = (unsigned char)n;
    return mgr_buf_add(out, op, 2 + n, err);
}

int mgr_pickle_real(mgr_buf *out, double value, mgr_err *err)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    unsigned char op[9] = {'G'};
    for (unsigned i = 0; i < 8; i++)
        op[1 + i] = (unsigned char)(bits >> (56 - 8 * i));
    return mgr_buf_add(out, op, sizeof op, err);
}

int mgr_pickle_text(mgr_buf *out, const char *value, mgr_err *err)
{
    const size_t len = strlen(value);
    if (len > UINT32_MAX)
        return mgr_fail(err, MGR_ERR_INTERNAL, "text of %zu bytes does not fit a pickle", len);
    unsigned char op[5] = {'X'};
    mgr_store_u32(op + 1, (uint32_t)len);
    MGR_TRY(mgr_buf_add(out, op, sizeof op, err));
    return mgr_buf_add(out, value, len, err);
}

int mgr_pickle_global(mgr_buf *out, const char *module, const char *name, mgr_err *err)
{
    return mgr_buf_fmt(out, err, "c%s\n%s\n", module, name);
}

int mgr_pickle_dict_open(mgr_buf *out, mgr_err *err)
{
    return put(out, "}(", 2, err);
}

int mgr_pickle_dict_close(mgr_buf *out, mgr_err *err)
{
    return put(out, "u", 1, err);
}

int mgr_pickle_object_open(mgr_buf *out, const char *module, const char *name, mgr_err *err)
{
    MGR_TRY(mgr_pickle_global(out, module, name, err));
    return put(out, ")\x81}(", 4, err);
}

int mgr_pickle_object_close(mgr_buf *out, mgr_err *err)
{
    return put(out, "ub", 2, err);
}

int mgr_pickle_namespace_open(mgr_buf *out, mgr_err *err)
{
    return mgr_pickle_object_open(out, "argparse", "Namespace", err);
}

int mgr_pickle_namespace_close(mgr_buf *out, mgr_err *err)
{
    return mgr_pickle_object_close(out, err);
}

int mgr_pickle_tuple_open(mgr_buf *out, mgr_err *err)
{
    return put(out, "(", 1, err);
}

int mgr_pickle_tuple_close(mgr_buf *out, mgr_err *err)
{
    return put(out, "t", 1, err);
}

int mgr_pickle_list_open(mgr_buf *out, mgr_err *err)
{
    return put(out, "](", 2, err);
}

int mgr_pickle_list_close(mgr_buf *out, mgr_err *err)
{
    return put(out, "e", 1, err);
}

#define MOST_DIMS 64

static int put_dims(mgr_buf *out, uint32_t ndim, const uint64_t *dims, mgr_err *err)
{
    if (ndim == 0)
        return put(out, ")", 1, err);
    MGR_TRY(mgr_pickle_tuple_open(out, err));
    for (uint32_t d = 0; d < ndim; d++)
        MGR_TRY(mgr_pickle_int(out, (int64_t)dims[d], err));
    return mgr_pickle_tuple_close(out, err);
}

/* persistent id := '(' "storage" global(torch.<X>Storage) key "cpu" numel 't' 'Q' */
static int put_storage(mgr_buf *out, const char *key, const char *storage, uint64_t numel,
                       mgr_err *err)
{
    MGR_TRY(mgr_pickle_tuple_open(out, err));
    MGR_TRY(mgr_pickle_text(out, "storage", err));
    MGR_TRY(mgr_pickle_global(out, "torch", storage, err));
    MGR_TRY(mgr_pickle_text(out, key, err));
    MGR_TRY(mgr_pickle_text(out, "cpu", err));
    MGR_TRY(mgr_pickle_int(out, (int64_t)numel, err));
    MGR_TRY(mgr_pickle_tuple_close(out, err));
    return put(out, "Q", 1, err);
}

/* tensor := global(torch._utils._rebuild_tensor_v2)
 *           '(' storage offset size stride requires_grad OrderedDict() 't' 'R' */
static int put_tensor(mgr_buf *out, const char *key, const char *storage, uint64_t numel,
                      uint32_t ndim, const uint64_t *shape, const uint64_t *stride, mgr_err *err)
{
    MGR_TRY(mgr_pickle_global(out, "torch._utils", "_rebuild_tensor_v2", err));
    MGR_TRY(mgr_pickle_tuple_open(out, err));
    MGR_TRY(put_storage(out, key, storage, numel, err));
    MGR_TRY(mgr_pickle_int(out, 0, err));
    MGR_TRY(put_dims(out, ndim, shape, err));
    MGR_TRY(put_dims(out, ndim, stride, err));
    MGR_TRY(mgr_pickle_bool(out, 0, err));
    MGR_TRY(mgr_pickle_global(out, "collections", "OrderedDict", err));
    return put(out, ")RtR", 4, err);
}

int mgr_pickle_tensor(mgr_buf *out, const char *key, mgr_dtype dtype, uint32_t ndim,
                      const uint64_t *shape, mgr_err *err)
{
    const char *const storage = mgr_dtype_storage(dtype);
    uint64_t stride[MOST_DIMS], numel = 1, step = 1;
    if (!storage || ndim > MOST_DIMS)
        return mgr_fail(err, MGR_ERR_INTERNAL, "storage '%s' cannot be written as a tensor", key);
    for (uint32_t d = ndim; d-- > 0;) {
        stride[d] = step;
        if (mgr_mul_overflow(numel, shape[d], &numel) || shape[d] > INT64_MAX ||
            mgr_mul_overflow(step, shape[d] ? shape[d] : 1, &step) || step > INT64_MAX)
            return mgr_fail(err, MGR_ERR_INTERNAL, "tensor in storage '%s' is too large", key);
    }
    return put_tensor(out, key, storage, numel, ndim, shape, stride, err);
}

int mgr_pickle_repeated(mgr_buf *out, const char *key, mgr_dtype dtype, uint32_t ndim,
                        const uint64_t *shape, mgr_err *err)
{
    static const uint64_t stride[MOST_DIMS];
    const char *const storage = mgr_dtype_storage(dtype);
    if (!storage || ndim > MOST_DIMS)
        return mgr_fail(err, MGR_ERR_INTERNAL, "storage '%s' cannot be written as a tensor", key);
    return put_tensor(out, key, storage, 1, ndim, shape, stride, err);
}

int mgr_pickle_size(mgr_buf *out, uint32_t ndim, const uint64_t *shape, mgr_err *err)
{
    MGR_TRY(mgr_pickle_global(out, "torch", "Size", err));
    MGR_TRY(mgr_pickle_tuple_open(out, err));
    MGR_TRY(put_dims(out, ndim, shape, err));
    return put(out, "tR", 2, err);
}
