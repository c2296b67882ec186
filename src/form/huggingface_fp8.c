#include "form/huggingface_fp8.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "core/str.h"
#include "io/reader.h"
#include "model/huggingface.h"
#include "model/huggingface_keys.h"

#define OUT_BYTES 2 /* of a bfloat16, for each byte of the file */

static bool is_fp8(const mgr_stored *s)
{
    return s->offset >= MGR_VIRTUAL_OFFSET;
}

/* Where the element at a virtual offset lies in its file, and back. */
static uint64_t place_of(uint64_t offset)
{
    return (offset - MGR_VIRTUAL_OFFSET) / OUT_BYTES;
}

void mgr_huggingface_fp8_take(mgr_catalogue *cat, size_t first)
{
    for (size_t i = first; i < cat->n_stored; i++) {
        mgr_stored *const s = &cat->stored[i];
        if (s->dtype != MGR_DTYPE_F8_E4M3 || s->ndim != 2 || !mgr_has_suffix(s->name, ".weight"))
            continue;
        s->dtype = MGR_DTYPE_BF16;
        s->offset = MGR_VIRTUAL_OFFSET + OUT_BYTES * s->offset;
    }
}

bool mgr_huggingface_fp8_is(const mgr_catalogue *cat)
{
    for (size_t i = 0; i < cat->n_stored; i++)
        if (is_fp8(&cat->stored[i]))
            return true;
    return false;
}

/* ---- weights and their scales ---- */

typedef struct pair {
    const mgr_stored *weight, *scale; /* NULL: it has none */
} pair;

/* All pairs, by file and place in it. */
typedef struct pairs {
    pair *list;
    size_t n;
} pairs;

static int by_name(const void *x, const void *y)
{
    const mgr_stored *const *const a = x, *const *const b = y;
    return strcmp((*a)->name, (*b)->name);
}

static int by_place(const void *x, const void *y)
{
    const mgr_stored *const a = ((const pair *)x)->weight, *const b = ((const pair *)y)->weight;
    if (a->file != b->file)
        return a->file < b->file ? -1 : 1;
    return a->offset < b->offset ? -1 : a->offset > b->offset;
}

static int find_scale(const mgr_stored *const *scales, size_t n, pair *p, mgr_err *err)
{
    mgr_buf name = {0};
    int rc = mgr_buf_fmt(&name, err, "%s" MGR_HF_SCALE, p->weight->name);
    if (rc == MGR_OK) {
        const mgr_stored wanted = {.name = name.data}, *const key = &wanted;
        const mgr_stored *const *const found = bsearch(&key, scales, n, sizeof key, by_name);
        p->scale = found ? *found : NULL;
    }
    mgr_buf_clear(&name);
    return rc;
}

static int find_pairs(const mgr_catalogue *cat, pairs *out, mgr_err *err)
{
    const mgr_stored **scales = NULL;
    size_t n = 0;
    *out = (pairs){0};
    MGR_TRY(mgr_alloc(&scales, cat->n_stored, sizeof *scales, err));
    int rc = mgr_alloc(&out->list, cat->n_stored, sizeof *out->list, err);
    for (size_t i = 0; rc == MGR_OK && i < cat->n_stored; i++)
        if (is_fp8(&cat->stored[i]))
            out->list[out->n++].weight = &cat->stored[i];
        else if (mgr_has_suffix(cat->stored[i].name, MGR_HF_SCALE))
            scales[n++] = &cat->stored[i];
    if (n)
        qsort(scales, n, sizeof *scales, by_name);
    for (size_t i = 0; rc == MGR_OK && i < out->n; i++)
        rc = find_scale(scales, n, &out->list[i], err);
    if (rc == MGR_OK && out->n)
        qsort(out->list, out->n, sizeof *out->list, by_place);
    mgr_free(scales);
    if (rc != MGR_OK)
        mgr_free(out->list);
    return rc;
}

/* ---- what must be so ---- */

static uint64_t blocks(uint64_t n, uint64_t block)
{
    return n / block + (n % block > 0);
}

static int check_pair(const mgr_catalogue *cat, const pair *p, const uint64_t block[2],
                      mgr_err *err)
{
    const mgr_stored *const w = p->weight, *const s = p->scale;
    const char *const path = cat->files[w->file].path;
    char name[200];
    mgr_printable(w->name, strlen(w->name), name, sizeof name);
    if (!s)
        return mgr_fail(err, MGR_ERR_FORMAT,
                        "tensor '%s' in '%s' is FP8, but there is no '%s" MGR_HF_SCALE "'", name,
                        path, name);
    if (!mgr_dtype_is_weight(s->dtype))
        return mgr_fail(err, MGR_ERR_UNSUPPORTED,
                        "'%s" MGR_HF_SCALE
                        "' in '%s' is of a type that is not supported for scales",
                        name, cat->files[s->file].path);
    if (s->ndim == 2 && s->shape[0] == blocks(w->shape[0], block[0]) &&
        s->shape[1] == blocks(w->shape[1], block[1]))
        return MGR_OK;
    return mgr_fail(
        err, MGR_ERR_FORMAT,
        "'%s" MGR_HF_SCALE "' in '%s' does not have a number for each block of %llu x %llu of "
        "the [%llu, %llu] that '%s' is",
        name, cat->files[s->file].path, (unsigned long long)block[0], (unsigned long long)block[1],
        (unsigned long long)w->shape[0], (unsigned long long)w->shape[1], name);
}

int mgr_huggingface_fp8_check(const mgr_catalogue *cat, mgr_err *err)
{
    uint64_t block[2];
    pairs all;
    if (!mgr_huggingface_fp8_is(cat))
        return MGR_OK;
    if (!mgr_huggingface_fp8_blocks(cat, block)) {
        mgr_fail(err, MGR_ERR_UNSUPPORTED,
                 "'%s' has FP8 weights, but no quantization_config of the method fp8 with dynamic "
                 "activations and a weight_block_size, the only one that is read",
                 cat->files[0].path);
        return mgr_hint(err, "take the model that it was made from, in bfloat16");
    }
    MGR_TRY(find_pairs(cat, &all, err));
    int rc = MGR_OK;
    for (size_t i = 0; rc == MGR_OK && i < all.n; i++)
        rc = check_pair(cat, &all.list[i], block, err);
    mgr_free(all.list);
    return rc;
}

int mgr_huggingface_fp8_layout(mgr_layout *layout, mgr_err *err)
{
    pairs all;
    uint32_t stored;
    if (!mgr_huggingface_fp8_is(layout->cat))
        return MGR_OK;
    MGR_TRY(find_pairs(layout->cat, &all, err));
    int rc = MGR_OK;
    for (size_t i = 0; rc == MGR_OK && i < all.n; i++) {
        const mgr_stored *const s = all.list[i].scale;
        rc = mgr_layout_tensor(layout, s->file, s->name, s->ndim, s->shape, &stored, err);
    }
    mgr_free(all.list);
    return rc;
}

/* ---- bytes ---- */

/* What is open between calls: a file of weights, and the scales of the last one. */
typedef struct opened {
    pairs all;
    uint64_t block[2];
    mgr_reader file;
    uint32_t number;    /* of `file`; MGR_NONE: none is open */
    const pair *scaled; /* whose scales these are */
    float *scales;
} opened;

static void close_file(opened *o)
{
    if (o->number != MGR_NONE)
        mgr_reader_close(&o->file);
    o->number = MGR_NONE;
}

void mgr_huggingface_fp8_fetched(void *reader)
{
    opened *const o = reader;
    if (!o)
        return;
    close_file(o);
    mgr_free(o->all.list);
    mgr_free(o->scales);
    mgr_free(o);
}

static int start(void **reader, const mgr_catalogue *cat, mgr_err *err)
{
    opened *o;
    if (*reader)
        return MGR_OK;
    MGR_TRY(mgr_alloc(&o, 1, sizeof *o, err));
    o->number = MGR_NONE;
    const int rc = find_pairs(cat, &o->all, err);
    if (rc != MGR_OK) {
        mgr_free(o);
        return rc;
    }
    const bool known = mgr_huggingface_fp8_blocks(cat, o->block);
    assert(known);
    (void)known;
    *reader = o;
    return MGR_OK;
}

static int open_file(opened *o, const mgr_catalogue *cat, uint32_t file, mgr_err *err)
{
    if (o->number == file)
        return MGR_OK;
    close_file(o);
    MGR_TRY(mgr_reader_open(&o->file, cat->files[file].path, err));
    o->number = file;
    return MGR_OK;
}

/* The pair that has the byte at `place` of the file, or NULL. */
static const pair *find_pair(const opened *o, uint32_t file, uint64_t place)
{
    size_t low = 0, high = o->all.n;
    while (low < high) {
        const size_t mid = low + (high - low) / 2;
        const mgr_stored *const w = o->all.list[mid].weight;
        if (w->file < file || (w->file == file && place_of(w->offset) <= place))
            low = mid + 1;
        else
            high = mid;
    }
    const pair *const p = low ? &o->all.list[low - 1] : NULL;
    const bool in = p && p->weight->file == file &&
                    place - place_of(p->weight->offset) < p->weight->shape[0] * p->weight->shape[1];
    return in ? p : NULL;
}

/* As float32: what the type holds, exactly. */
static float scale_at(const unsigned char *raw, mgr_dtype type, size_t i)
{
    uint16_t half;
    float whole;
    if (type == MGR_DTYPE_F32) {
        memcpy(&whole, raw + i * sizeof whole, sizeof whole);
        return whole;
    }
    memcpy(&half, raw + i * sizeof half, sizeof half);
    return type == MGR_DTYPE_BF16 ? mgr_bf16_to_f32(half) : mgr_f16_to_f32(half);
}

static int load_scales(opened *o, const mgr_catalogue *cat, const pair *p, mgr_err *err)
{
    const mgr_stored *const s = p->scale;
    const size_t n = (size_t)(s->shape[0] * s->shape[1]), size = mgr_dtype_size(s->dtype);
    mgr_reader reader;
    unsigned char *raw = NULL;
    if (o->scaled == p)
        return MGR_OK;
    o->scaled = NULL;
    mgr_free(o->scales);
    o->scales = NULL;
    MGR_TRY(mgr_reader_open(&reader, cat->files[s->file].path, err));
    int rc = mgr_alloc(&o->scales, n, sizeof *o->scales, err);
    if (rc == MGR_OK)
        rc = mgr_alloc(&raw, n, size, err);
    if (rc == MGR_OK)
        rc = mgr_reader_read(&reader, s->offset, raw, n * size, err);
    for (size_t i = 0; rc == MGR_OK && i < n; i++)
        o->scales[i] = scale_at(raw, s->dtype, i);
    mgr_free(raw);
    mgr_reader_close(&reader);
    if (rc == MGR_OK)
        o->scaled = p;
    return rc;
}

/* Elements first .. first+n-1 of the pair's weight, from `bytes` to bfloat16. The bytes may lie in
 * the last half of `out`: none is written over before it is read. */
static void dequantise(const opened *o, const pair *p, uint64_t first, size_t n,
                       const unsigned char *bytes, unsigned char *out)
{
    const uint64_t cols = p->weight->shape[1], per_row = p->scale->shape[1];
    for (size_t i = 0; i < n; i++) {
        const uint64_t row = (first + i) / cols, col = (first + i) % cols;
        const float scale = o->scales[row / o->block[0] * per_row + col / o->block[1]];
        const uint16_t value = mgr_f32_to_bf16(mgr_e4m3_to_f32(bytes[i]) * scale);
        memcpy(out + OUT_BYTES * i, &value, sizeof value);
    }
}

int mgr_huggingface_fp8_fetch(void **reader, const mgr_catalogue *cat, uint32_t file,
                              uint64_t offset, void *out, size_t len, mgr_err *err)
{
    const size_t n = len / OUT_BYTES;
    unsigned char *const to = out, *const bytes = to + n;
    uint64_t place = place_of(offset);
    MGR_TRY(start(reader, cat, err));
    opened *const o = *reader;
    MGR_TRY(open_file(o, cat, file, err));
    MGR_TRY(mgr_reader_read(&o->file, place, bytes, n, err));
    for (size_t done = 0; done < n;) { /* tensors may lie one behind the other */
        const pair *const p = find_pair(o, file, place + done);
        if (!p)
            return mgr_fail(err, MGR_ERR_INTERNAL, "no FP8 tensor at byte %llu of '%s'",
                            (unsigned long long)(place + done), cat->files[file].path);
        const uint64_t first = place + done - place_of(p->weight->offset);
        const uint64_t left = p->weight->shape[0] * p->weight->shape[1] - first;
        const size_t count = left < n - done ? (size_t)left : n - done;
        MGR_TRY(load_scales(o, cat, p, err));
        dequantise(o, p, first, count, bytes + done, to + OUT_BYTES * done);
        done += count;
    }
    return MGR_OK;
}
