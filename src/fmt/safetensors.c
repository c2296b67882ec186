/*
 * safetensors, read and written. The grammar (src/fmt/README.md):
 *
 *   file   = length header data
 *   length = u64 LE, bytes of the header, at most 100,000,000
 *   header = {"__metadata__": {text: text}, name: tensor, ...} and white space
 *   tensor = {"dtype": text, "shape": [n, ...], "data_offsets": [begin, end]}
 *   data   = the tensors, in any order, without a hole, an overlap or a rest
 */
#include "fmt/safetensors.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "core/le.h"
#include "core/mem.h"
#include "fmt/json.h"
#include "fmt/json_scan.h"

#define LENGTH_BYTES 8
#define MAX_HEADER 100000000u
#define METADATA "__metadata__"
#define NAME_SHOWN 200
#define MAX_NAME 65536

/* Every type of the format with its bits per element. */
static const struct {
    const char *name;
    unsigned bits;
} types[] = {
    {"BOOL", 8}, {"F4", 4},      {"F6_E2M3", 6},     {"F6_E3M2", 6}, {"U8", 8},
    {"I8", 8},   {"F8_E5M2", 8}, {"F8_E4M3", 8},     {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8},
    {"I16", 16}, {"U16", 16},    {"F8_E5M2FNUZ", 8}, {"F16", 16},    {"BF16", 16},
    {"I32", 32}, {"U32", 32},    {"F32", 32},        {"C64", 64},    {"F64", 64},
    {"I64", 64}, {"U64", 64},
};

/* One tensor while its file is checked. Byte numbers are relative to the data. */
typedef struct span {
    const char *name;
    uint64_t begin, end;
} span;

/* What the checks of one file need. */
typedef struct context {
    const mgr_reader *reader;
    uint64_t data, data_len; /* where the data begins in the file, and its bytes */
} context;

/* "'file': tensor 'name': " before a message, and nothing that a terminal would obey. */
typedef struct subject {
    char text[NAME_SHOWN];
} subject;

static subject show(const char *name)
{
    subject s = {{0}};
    mgr_printable(name, strlen(name), s.text, sizeof s.text);
    return s;
}

static unsigned type_bits(const char *name)
{
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++)
        if (strcmp(types[i].name, name) == 0)
            return types[i].bits;
    return 0;
}

/* Element count and row-major strides of a shape. The order of the multiplications is the
 * library's, so that both refuse the same shapes. Nonzero: overflow. */
static int measure(mgr_stored *t, uint64_t *n_elems)
{
    uint64_t n = 1, stride = 1;
    for (uint32_t i = 0; i < t->ndim; i++)
        if (mgr_mul_overflow(n, t->shape[i], &n))
            return -1;
    for (uint32_t i = t->ndim; i-- > 0;) {
        t->stride[i] = stride;
        if (mgr_mul_overflow(stride, t->shape[i], &stride) && n != 0)
            return -1;
    }
    *n_elems = n;
    return 0;
}

static int fail_field(const context *c, const char *name, const char *what, mgr_err *err)
{
    return mgr_fail(err, MGR_ERR_FORMAT, "'%s': tensor '%s': %s", c->reader->name, show(name).text,
                    what);
}

/* ---- one entry, as it passes ---- */

/* A list of whole numbers that are not negative, or what else stands there. */
typedef struct numbers {
    bool given, list, whole;
    size_t n; /* those that are listed; MGR_MAX_NDIM are kept */
    uint64_t values[MGR_MAX_NDIM];
} numbers;

typedef struct fields {
    bool object, given, text; /* is it one, does it have a dtype, and is that a text */
    char dtype[32];
    numbers shape, offsets;
} fields;

static int scan_number(mgr_json_scan *s, numbers *out)
{
    mgr_json_kind kind;
    int64_t value = -1;
    bool whole = false;
    MGR_TRY(mgr_json_scan_kind(s, &kind));
    if (kind != MGR_JSON_NUMBER)
        MGR_TRY(mgr_json_scan_skip(s));
    else
        MGR_TRY(mgr_json_scan_number(s, &value, &whole));
    if (!whole || value < 0)
        out->whole = false;
    else if (out->n < MGR_MAX_NDIM)
        out->values[out->n] = (uint64_t)value;
    out->n++;
    return MGR_OK;
}

static int scan_numbers(mgr_json_scan *s, numbers *out)
{
    mgr_json_kind kind;
    MGR_TRY(mgr_json_scan_kind(s, &kind));
    out->given = out->whole = true;
    out->list = kind == MGR_JSON_ARRAY;
    if (!out->list)
        return mgr_json_scan_skip(s);
    MGR_TRY(mgr_json_scan_open(s, '['));
    for (bool more;;) {
        MGR_TRY(mgr_json_scan_element(s, &more));
        if (!more)
            return MGR_OK;
        MGR_TRY(scan_number(s, out));
    }
}

static int scan_dtype(mgr_json_scan *s, fields *e)
{
    mgr_json_kind kind;
    MGR_TRY(mgr_json_scan_kind(s, &kind));
    e->given = true;
    e->text = kind == MGR_JSON_STRING;
    if (!e->text)
        return mgr_json_scan_skip(s);
    MGR_TRY(mgr_json_scan_string(s));
    snprintf(e->dtype, sizeof e->dtype, "%s", s->text.data);
    return MGR_OK;
}

static int scan_field(mgr_json_scan *s, const char *name, fields *e, mgr_err *err)
{
    const bool dtype = strcmp(s->text.data, "dtype") == 0;
    numbers *const list = strcmp(s->text.data, "shape") == 0          ? &e->shape
                          : strcmp(s->text.data, "data_offsets") == 0 ? &e->offsets
                                                                      : NULL;
    if ((dtype && e->given) || (list && list->given))
        return mgr_fail(err, MGR_ERR_FORMAT, "'%s': tensor '%s': '%s' stands there twice",
                        s->reader->name, show(name).text, s->text.data);
    return dtype ? scan_dtype(s, e) : list ? scan_numbers(s, list) : mgr_json_scan_skip(s);
}

static int scan_entry(mgr_json_scan *s, const char *name, fields *e, mgr_err *err)
{
    mgr_json_kind kind;
    *e = (fields){.object = false};
    MGR_TRY(mgr_json_scan_kind(s, &kind));
    e->object = kind == MGR_JSON_OBJECT;
    if (!e->object)
        return mgr_json_scan_skip(s);
    MGR_TRY(mgr_json_scan_open(s, '{'));
    for (bool more;;) {
        MGR_TRY(mgr_json_scan_member(s, &more));
        if (!more)
            return MGR_OK;
        MGR_TRY(scan_field(s, name, e, err));
    }
}

/* ---- what it says ---- */

static int take_dtype(const context *c, const fields *e, mgr_stored *t, unsigned *bits,
                      mgr_err *err)
{
    if (!e->text)
        return fail_field(c, t->name, "has no 'dtype' text", err);
    *bits = type_bits(e->dtype);
    if (*bits == 0)
        return mgr_fail(err, MGR_ERR_UNSUPPORTED, "'%s': tensor '%s': unknown dtype '%s'",
                        c->reader->name, show(t->name).text, show(e->dtype).text);
    t->dtype = mgr_dtype_from_safetensors(e->dtype);
    if (t->dtype == MGR_DTYPE_NONE)
        t->dtype = MGR_DTYPE_OTHER;
    return MGR_OK;
}

static int take_shape(const context *c, const fields *e, mgr_stored *t, mgr_err *err)
{
    if (!e->shape.list)
        return fail_field(c, t->name, "has no 'shape' array", err);
    if (e->shape.n > MGR_MAX_NDIM)
        return mgr_fail(err, MGR_ERR_UNSUPPORTED,
                        "'%s': tensor '%s': %zu dimensions, at most %d are supported",
                        c->reader->name, show(t->name).text, e->shape.n, MGR_MAX_NDIM);
    if (!e->shape.whole)
        return fail_field(c, t->name, "'shape' must hold whole numbers that are not negative", err);
    t->ndim = (uint32_t)e->shape.n;
    memcpy(t->shape, e->shape.values, e->shape.n * sizeof *t->shape);
    return MGR_OK;
}

static int take_offsets(const context *c, const fields *e, span *s, mgr_err *err)
{
    s->begin = e->offsets.values[0];
    s->end = e->offsets.values[1];
    if (!e->offsets.list || e->offsets.n != 2 || !e->offsets.whole)
        return fail_field(c, s->name, "'data_offsets' must be two whole numbers", err);
    if (s->begin > s->end)
        return mgr_fail(err, MGR_ERR_FORMAT,
                        "'%s': tensor '%s': data_offsets [%" PRIu64 ", %" PRIu64
                        "] end before they begin",
                        c->reader->name, show(s->name).text, s->begin, s->end);
    if (s->end > c->data_len)
        return mgr_fail(err, MGR_ERR_FORMAT,
                        "'%s': tensor '%s': data_offsets [%" PRIu64 ", %" PRIu64
                        "] pass the end of the data (%" PRIu64 " bytes from byte %" PRIu64 ")",
                        c->reader->name, show(s->name).text, s->begin, s->end, c->data_len,
                        c->data);
    return MGR_OK;
}

/* dtype x shape = bytes */
static int check_size(const context *c, mgr_stored *t, const span *s, unsigned bits, mgr_err *err)
{
    uint64_t n_elems = 0, n_bits = 0;
    if (measure(t, &n_elems) || mgr_mul_overflow(n_elems, bits, &n_bits))
        return fail_field(c, t->name, "'shape' is too large", err);
    if (n_bits % 8 != 0)
        return mgr_fail(err, MGR_ERR_FORMAT,
                        "'%s': tensor '%s': %" PRIu64 " elements of %u bits are no whole bytes",
                        c->reader->name, show(t->name).text, n_elems, bits);
    if (s->end - s->begin != n_bits / 8)
        return mgr_fail(err, MGR_ERR_FORMAT,
                        "'%s': tensor '%s' at byte %" PRIu64 ": data_offsets give %" PRIu64
                        " bytes, dtype and shape need %" PRIu64,
                        c->reader->name, show(t->name).text, c->data + s->begin, s->end - s->begin,
                        n_bits / 8);
    return MGR_OK;
}

static int take_tensor(const context *c, const fields *e, mgr_stored *t, mgr_err *err)
{
    unsigned bits = 0;
    span place = {.name = t->name}, *const s = &place;
    if (!e->object)
        return fail_field(c, t->name, "is no object", err);
    MGR_TRY(take_dtype(c, e, t, &bits, err));
    MGR_TRY(take_shape(c, e, t, err));
    MGR_TRY(take_offsets(c, e, s, err));
    MGR_TRY(check_size(c, t, s, bits, err));
    t->offset = c->data + s->begin;
    return MGR_OK;
}

/* ---- metadata: looked at and not kept ---- */

typedef struct hashes {
    uint64_t *list;
    size_t n, capacity;
} hashes;

static int scan_text(const context *c, mgr_json_scan *s, hashes *keys, mgr_err *err)
{
    mgr_json_kind kind;
    MGR_TRY(mgr_json_scan_kind(s, &kind));
    if (kind != MGR_JSON_STRING)
        return mgr_fail(err, MGR_ERR_FORMAT, "'%s': '" METADATA "': '%s' is no text",
                        c->reader->name, show(s->text.data).text);
    MGR_TRY(mgr_grow(&keys->list, &keys->capacity, keys->n + 1, sizeof *keys->list, err));
    keys->list[keys->n++] = XXH3_64bits(s->text.data, s->text.len);
    return mgr_json_scan_skip(s);
}

static int by_hash(const void *a, const void *b)
{
    const uint64_t *x = a, *y = b;
    return (*x > *y) - (*x < *y);
}

static int check_keys(const context *c, const hashes *keys, mgr_err *err)
{
    if (keys->n)
        qsort(keys->list, keys->n, sizeof *keys->list, by_hash);
    for (size_t i = 1; i < keys->n; i++)
        if (keys->list[i] == keys->list[i - 1])
            return mgr_fail(err, MGR_ERR_FORMAT, "'%s': a key of '" METADATA "' stands there twice",
                            c->reader->name);
    return MGR_OK;
}

static int scan_texts(const context *c, mgr_json_scan *s, hashes *keys, mgr_err *err)
{
    MGR_TRY(mgr_json_scan_open(s, '{'));
    for (bool more;;) {
        MGR_TRY(mgr_json_scan_member(s, &more));
        if (!more)
            return check_keys(c, keys, err);
        MGR_TRY(scan_text(c, s, keys, err));
    }
}

static int scan_metadata(const context *c, mgr_json_scan *s, mgr_err *err)
{
    mgr_json_kind kind;
    hashes keys = {0};
    MGR_TRY(mgr_json_scan_kind(s, &kind));
    if (kind == MGR_JSON_WORD) /* null, which the library takes as absent */
        return mgr_json_scan_skip(s);
    if (kind != MGR_JSON_OBJECT)
        return mgr_fail(err, MGR_ERR_FORMAT, "'%s': '" METADATA "' is no object", c->reader->name);
    const int rc = scan_texts(c, s, &keys, err);
    mgr_free(keys.list);
    return rc;
}

static int by_place(const void *a, const void *b)
{
    const span *x = a, *y = b;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    return (x->end > y->end) - (x->end < y->end);
}

/* Sorted by place, the tensors must tile [0, data_len). */
static int check_tiling(const context *c, span *spans, size_t n, mgr_err *err)
{
    uint64_t at = 0;
    if (n)
        qsort(spans, n, sizeof *spans, by_place);
    for (size_t i = 0; i < n; i++) {
        if (spans[i].begin > at)
            return mgr_fail(err, MGR_ERR_FORMAT,
                            "'%s': tensor '%s' begins at byte %" PRIu64
                            ", the data before it ends at byte %" PRIu64,
                            c->reader->name, show(spans[i].name).text, c->data + spans[i].begin,
                            c->data + at);
        if (spans[i].begin < at)
            return mgr_fail(err, MGR_ERR_FORMAT,
                            "'%s': tensors '%s' and '%s' overlap at byte %" PRIu64, c->reader->name,
                            show(spans[i - 1].name).text, show(spans[i].name).text,
                            c->data + spans[i].begin);
        at = spans[i].end;
    }
    if (at != c->data_len)
        return mgr_fail(err, MGR_ERR_FORMAT,
                        "'%s': the last tensor ends at byte %" PRIu64 ", the file at byte %" PRIu64,
                        c->reader->name, c->data + at, c->data + c->data_len);
    return MGR_OK;
}

static int by_name(const void *a, const void *b)
{
    const span *x = a, *y = b;
    return strcmp(x->name, y->name);
}

static int check_names(const context *c, span *spans, size_t n, mgr_err *err)
{
    if (n)
        qsort(spans, n, sizeof *spans, by_name);
    for (size_t i = 1; i < n; i++)
        if (strcmp(spans[i - 1].name, spans[i].name) == 0)
            return mgr_fail(err, MGR_ERR_FORMAT, "'%s': two tensors are called '%s'",
                            c->reader->name, show(spans[i].name).text);
    return MGR_OK;
}

/* One file on its way into the catalogue. */
typedef struct filling {
    mgr_catalogue *cat;
    uint32_t file;
    span *spans; /* of the tensors that were added */
    size_t n, capacity;
} filling;

/* The member whose name was read. */
static int scan_tensor(const context *c, mgr_json_scan *s, filling *f, mgr_err *err)
{
    mgr_stored t = {.name = s->text.data, .file = f->file, .record = MGR_NONE};
    fields e;
    if (s->cut || strlen(t.name) != s->text.len)
        return mgr_fail(err, MGR_ERR_UNSUPPORTED, "'%s': a tensor's name has more than %d bytes",
                        c->reader->name, MAX_NAME);
    MGR_TRY(mgr_catalogue_own(f->cat, &t.name, err));
    MGR_TRY(scan_entry(s, t.name, &e, err));
    MGR_TRY(take_tensor(c, &e, &t, err));
    MGR_TRY(mgr_grow(&f->spans, &f->capacity, f->n + 1, sizeof *f->spans, err));
    f->spans[f->n++] = (span){t.name, e.offsets.values[0], e.offsets.values[1]};
    return mgr_catalogue_add_stored(f->cat, &t, err);
}

static int scan_header(const context *c, mgr_json_scan *s, filling *f, mgr_err *err)
{
    bool metadata = false;
    MGR_TRY(mgr_json_scan_open(s, '{'));
    for (bool more;;) {
        MGR_TRY(mgr_json_scan_member(s, &more));
        if (!more)
            break;
        if (strcmp(s->text.data, METADATA) != 0) {
            MGR_TRY(scan_tensor(c, s, f, err));
            continue;
        }
        if (metadata)
            return mgr_fail(err, MGR_ERR_FORMAT, "'%s': '" METADATA "' stands there twice",
                            c->reader->name);
        metadata = true;
        MGR_TRY(scan_metadata(c, s, err));
    }
    MGR_TRY(mgr_json_scan_end(s));
    MGR_TRY(check_names(c, f->spans, f->n, err));
    return check_tiling(c, f->spans, f->n, err);
}

/* Nothing of a file stays in the catalogue that is not good as a whole. */
static int read_header(mgr_catalogue *cat, const context *c, uint32_t file, mgr_err *err)
{
    mgr_json_scan *s;
    filling f = {.cat = cat, .file = file};
    const size_t first = cat->n_stored;
    char begin = '\0';
    if (c->data > LENGTH_BYTES)
        MGR_TRY(mgr_reader_read(c->reader, LENGTH_BYTES, &begin, 1, err));
    if (begin != '{')
        return mgr_fail(err, MGR_ERR_FORMAT, "'%s': the header does not begin with '{' at byte %d",
                        c->reader->name, LENGTH_BYTES);
    MGR_TRY(mgr_alloc(&s, 1, sizeof *s, err));
    mgr_json_scan_start(s, c->reader, LENGTH_BYTES, c->data, err);
    s->keep = MAX_NAME;
    const int rc = scan_header(c, s, &f, err);
    if (rc != MGR_OK)
        cat->n_stored = first;
    mgr_json_scan_stop(s);
    mgr_free(s);
    mgr_free(f.spans);
    return rc;
}

static int read_length(const mgr_reader *reader, uint64_t *len, mgr_err *err)
{
    unsigned char bytes[LENGTH_BYTES];
    if (reader->size < LENGTH_BYTES)
        return mgr_fail(err, MGR_ERR_FORMAT,
                        "'%s' has %" PRIu64 " bytes, a safetensors file begins with %d",
                        reader->name, reader->size, LENGTH_BYTES);
    MGR_TRY(mgr_reader_read(reader, 0, bytes, sizeof bytes, err));
    *len = mgr_load_u64(bytes);
    if (*len > MAX_HEADER)
        return mgr_fail(err, MGR_ERR_FORMAT,
                        "'%s': the header has %" PRIu64 " bytes, at most %u are allowed",
                        reader->name, *len, MAX_HEADER);
    if (*len > reader->size - LENGTH_BYTES)
        return mgr_fail(err, MGR_ERR_FORMAT,
                        "'%s' is truncated: the header ends at byte %" PRIu64
                        ", the file at byte %" PRIu64,
                        reader->name, *len + LENGTH_BYTES, reader->size);
    return MGR_OK;
}

int mgr_safetensors_read(mgr_catalogue *cat, uint32_t file, const mgr_reader *reader, mgr_err *err)
{
    uint64_t len = 0;
    MGR_TRY(read_length(reader, &len, err));
    const uint64_t data = LENGTH_BYTES + len;
    const context c = {reader, data, reader->size - data};
    return read_header(cat, &c, file, err);
}

/* An entry that does not describe itself rightly is our own mistake. */
static int check_entry(const mgr_safetensors_entry *entry, mgr_err *err)
{
    mgr_stored t = {.ndim = entry->ndim};
    uint64_t n_elems = 0, n_bytes = 0;
    if (entry->ndim > MGR_MAX_NDIM || !mgr_dtype_safetensors(entry->dtype) ||
        strcmp(entry->name, METADATA) == 0)
        return mgr_fail(err, MGR_ERR_INTERNAL, "tensor '%s' has no place in safetensors",
                        show(entry->name).text);
    for (uint32_t i = 0; i < entry->ndim; i++)
        t.shape[i] = entry->shape[i];
    if (entry->begin > entry->end || measure(&t, &n_elems) ||
        mgr_mul_overflow(n_elems, mgr_dtype_size(entry->dtype), &n_bytes) ||
        n_bytes != entry->end - entry->begin)
        return mgr_fail(err, MGR_ERR_INTERNAL,
                        "tensor '%s': bytes %" PRIu64 " .. %" PRIu64 " do not fit its shape",
                        show(entry->name).text, entry->begin, entry->end);
    return MGR_OK;
}

/* What a reader would refuse is not written: names twice, holes, overlaps. */
static int check_entries(const mgr_safetensors_entry *entries, size_t n, span *spans, mgr_err *err)
{
    const mgr_reader planned = {.name = "planned file"};
    context c = {&planned, 0, 0};
    for (size_t i = 0; i < n; i++) {
        MGR_TRY(check_entry(&entries[i], err));
        spans[i] = (span){entries[i].name, entries[i].begin, entries[i].end};
        c.data_len = entries[i].end > c.data_len ? entries[i].end : c.data_len;
    }
    mgr_err tiling = MGR_ERR_INIT;
    if (check_tiling(&c, spans, n, &tiling) != MGR_OK)
        return mgr_fail(err, MGR_ERR_INTERNAL, "%s", tiling.msg);
    if (n)
        qsort(spans, n, sizeof *spans, by_name);
    for (size_t i = 1; i < n; i++)
        if (strcmp(spans[i - 1].name, spans[i].name) == 0)
            return mgr_fail(err, MGR_ERR_INTERNAL, "two tensors are called '%s'",
                            show(spans[i].name).text);
    return MGR_OK;
}

static int write_entry(const mgr_safetensors_entry *entry, mgr_buf *out, mgr_err *err)
{
    MGR_TRY(mgr_buf_text(out, ",", err));
    MGR_TRY(mgr_json_text(entry->name, out, err));
    MGR_TRY(mgr_buf_fmt(out, err, ":{\"dtype\":\"%s\",\"shape\":[",
                        mgr_dtype_safetensors(entry->dtype)));
    for (uint32_t i = 0; i < entry->ndim; i++)
        MGR_TRY(mgr_buf_fmt(out, err, "%s%" PRIu64, i ? "," : "", entry->shape[i]));
    return mgr_buf_fmt(out, err, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", entry->begin,
                       entry->end);
}

/* Blanks, until what is behind `start` is a multiple of `align`, a power of two. */
static int pad(mgr_buf *out, size_t start, uint32_t align, mgr_err *err)
{
    char blanks[256];
    memset(blanks, ' ', sizeof blanks);
    for (size_t left = -(out->len - start) & (align - 1), n; left > 0; left -= n) {
        n = left < sizeof blanks ? left : sizeof blanks;
        MGR_TRY(mgr_buf_add(out, blanks, n, err));
    }
    return MGR_OK;
}

static int write_header(const mgr_safetensors_entry *entries, size_t n, uint32_t align,
                        mgr_buf *out, mgr_err *err)
{
    unsigned char length[LENGTH_BYTES] = {0};
    const size_t start = out->len;
    MGR_TRY(mgr_buf_add(out, length, sizeof length, err));
    MGR_TRY(mgr_buf_text(out, "{\"" METADATA "\":{\"format\":\"pt\"}", err));
    for (size_t i = 0; i < n; i++)
        MGR_TRY(write_entry(&entries[i], out, err));
    MGR_TRY(mgr_buf_text(out, "}", err));
    MGR_TRY(pad(out, start, align, err));
    const uint64_t len = out->len - start - LENGTH_BYTES;
    if (len > MAX_HEADER)
        return mgr_fail(err, MGR_ERR_UNSUPPORTED,
                        "a safetensors header of %" PRIu64 " bytes, at most %u are allowed", len,
                        MAX_HEADER);
    mgr_store_u64(length, len);
    memcpy(out->data + start, length, sizeof length);
    return MGR_OK;
}

int mgr_safetensors_header(const mgr_safetensors_entry *entries, size_t n, uint32_t align,
                           mgr_buf *out, mgr_err *err)
{
    span *spans = NULL;
    const size_t start = out->len;
    if (align < LENGTH_BYTES || (align & (align - 1)) != 0)
        return mgr_fail(err, MGR_ERR_INTERNAL, "header alignment %" PRIu32, align);
    MGR_TRY(mgr_alloc(&spans, n, sizeof *spans, err));
    int rc = check_entries(entries, n, spans, err);
    if (rc == MGR_OK)
        rc = write_header(entries, n, align, out, err);
    if (rc != MGR_OK && out->data) { /* nothing half-written stays */
        out->len = start;
        out->data[start] = '\0';
    }
    mgr_free(spans);
    return rc;
}
