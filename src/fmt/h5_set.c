#include "fmt/h5_set.h"

#include <string.h>

#include "core/mem.h"

/* In memory three times while it is read. */
#define MAX_PIECE ((uint64_t)16 << 20)

enum { SEEN_SPACE = 1, SEEN_TYPE = 2, SEEN_LAYOUT = 4, SEEN_LINKS = 8 };

typedef struct description {
    const mgr_reader *in;
    mgr_h5_set *set;
    unsigned seen;
    uint64_t stored;                   /* bytes of what is in one piece */
    uint64_t pieces[MGR_MAX_NDIM + 1]; /* extents of a piece, and the element's bytes */
    uint64_t n_pieces;
} description;

static int refuse(const description *d, const char *what, mgr_err *err)
{
    return mgr_fail(err, MGR_ERR_UNSUPPORTED, "'%s': %s, which mgr-upcycle does not read",
                    d->in->name, what);
}

static int take_space(description *d, const mgr_h5_message *m, mgr_err *err)
{
    mgr_h5_bytes b = m->body;
    const unsigned version = (unsigned)mgr_h5_take(&b, 1), ndim = (unsigned)mgr_h5_take(&b, 1);
    mgr_h5_skip(&b, 1);
    const unsigned kind = (unsigned)mgr_h5_take(&b, 1);
    if (version != 2 || ndim > MGR_MAX_NDIM || kind > 1)
        return refuse(d, "a data space of another kind", err);
    d->set->ndim = ndim;
    for (unsigned i = 0; i < ndim; i++)
        d->set->shape[i] = mgr_h5_take(&b, 8);
    return b.over ? mgr_h5_damaged(d->in, m->at, "a shape ends too early", err) : MGR_OK;
}

/* The types that we write, as their messages have them: class and version, class bits, bytes, what
 * is special to the class. */
static const struct {
    mgr_dtype dtype;
    unsigned char bytes[20];
} types[] = {
    {MGR_DTYPE_BF16, {0x11, 0x20, 15, 0, 2, 0, 0, 0, 0, 0, 16, 0, 7, 8, 0, 7, 127, 0, 0, 0}},
    {MGR_DTYPE_F16, {0x11, 0x20, 15, 0, 2, 0, 0, 0, 0, 0, 16, 0, 10, 5, 0, 10, 15, 0, 0, 0}},
    {MGR_DTYPE_F32, {0x11, 0x20, 31, 0, 4, 0, 0, 0, 0, 0, 32, 0, 23, 8, 0, 23, 127, 0, 0, 0}},
    {MGR_DTYPE_F64, {0x11, 0x20, 63, 0, 8, 0, 0, 0, 0, 0, 64, 0, 52, 11, 0, 52, 0xff, 3, 0, 0}},
    {MGR_DTYPE_U8, {0x10, 0x00, 0, 0, 1, 0, 0, 0, 0, 0, 8, 0}},
    {MGR_DTYPE_I8, {0x10, 0x08, 0, 0, 1, 0, 0, 0, 0, 0, 8, 0}},
    {MGR_DTYPE_I16, {0x10, 0x08, 0, 0, 2, 0, 0, 0, 0, 0, 16, 0}},
    {MGR_DTYPE_I32, {0x10, 0x08, 0, 0, 4, 0, 0, 0, 0, 0, 32, 0}},
    {MGR_DTYPE_I64, {0x10, 0x08, 0, 0, 8, 0, 0, 0, 0, 0, 64, 0}},
};

static int take_type(description *d, const mgr_h5_message *m, mgr_err *err)
{
    mgr_h5_bytes b = m->body;
    const unsigned char *const all = b.at;
    mgr_h5_skip(&b, 4);
    d->set->element = (uint32_t)mgr_h5_take(&b, 4);
    if (b.over)
        return mgr_h5_damaged(d->in, m->at, "a type ends too early", err);
    if (m->flags & 2)
        return refuse(d, "a type that is stored elsewhere", err);
    d->set->dtype = MGR_DTYPE_OTHER;
    d->set->text = (all[0] & 15) == 3;
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        const size_t len = (types[i].bytes[0] & 15) == 1 ? 20 : 12;
        if (m->body.left >= len && memcmp(all, types[i].bytes, len) == 0)
            d->set->dtype = types[i].dtype;
    }
    return MGR_OK;
}

static int take_layout(description *d, const mgr_h5_message *m, mgr_err *err)
{
    mgr_h5_bytes b = m->body;
    const unsigned version = (unsigned)mgr_h5_take(&b, 1), kind = (unsigned)mgr_h5_take(&b, 1);
    if (version != 3 || kind > 2)
        return refuse(d, "a data set that is virtual, or stored in a newer way", err);
    if (kind == 0) {
        d->stored = mgr_h5_take(&b, 2);
        d->set->offset = m->at + 4;
        b.over = b.over || d->stored > b.left;
    } else if (kind == 1) {
        d->set->offset = mgr_h5_take(&b, 8);
        d->stored = mgr_h5_take(&b, 8);
        if (d->set->offset == MGR_H5_NOWHERE && d->stored)
            return refuse(d, "a data set without stored values", err);
    } else {
        d->n_pieces = mgr_h5_take(&b, 1);
        d->set->tree = mgr_h5_take(&b, 8);
        for (uint64_t i = 0; i < d->n_pieces && i <= MGR_MAX_NDIM; i++)
            d->pieces[i] = mgr_h5_take(&b, 4);
    }
    return b.over ? mgr_h5_damaged(d->in, m->at, "a layout ends too early", err) : MGR_OK;
}

static int take_filters(description *d, const mgr_h5_message *m, mgr_err *err)
{
    mgr_h5_bytes b = m->body;
    const unsigned version = (unsigned)mgr_h5_take(&b, 1), n = (unsigned)mgr_h5_take(&b, 1);
    if (version != 2 || n > 2)
        return refuse(d, "a data set with other filters than shuffle and deflate", err);
    for (unsigned i = 0; i < n; i++) {
        d->set->filters[i] = (uint16_t)mgr_h5_take(&b, 2);
        if (d->set->filters[i] != 1 && d->set->filters[i] != 2)
            return refuse(d, "a data set with other filters than shuffle and deflate", err);
        mgr_h5_skip(&b, 2);
        mgr_h5_skip(&b, 4 * (size_t)mgr_h5_take(&b, 2));
    }
    d->set->n_filters = n;
    return b.over ? mgr_h5_damaged(d->in, m->at, "filters end too early", err) : MGR_OK;
}

static int on_message(void *context, const mgr_h5_message *m, mgr_err *err)
{
    static const struct {
        unsigned type, bit;
        int (*take)(description *, const mgr_h5_message *, mgr_err *);
    } known[] = {{MGR_H5_DATASPACE, SEEN_SPACE, take_space},
                 {MGR_H5_DATATYPE, SEEN_TYPE, take_type},
                 {MGR_H5_LAYOUT, SEEN_LAYOUT, take_layout},
                 {MGR_H5_FILTERS, 16, take_filters}};
    description *const d = context;
    if (m->type == MGR_H5_EXTERNAL)
        return refuse(d, "a data set whose values are in other files", err);
    if (m->type == MGR_H5_LINK_INFO || m->type == MGR_H5_SYMBOLS)
        d->seen |= SEEN_LINKS;
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (m->type != known[i].type)
            continue;
        if (d->seen & known[i].bit)
            return mgr_h5_damaged(d->in, m->at, "a data set says twice what it is", err);
        d->seen |= known[i].bit;
        return known[i].take(d, m, err);
    }
    return MGR_OK;
}

/* Pieces are of whole rows. */
static int check_pieces(description *d, uint64_t row_bytes, mgr_err *err)
{
    mgr_h5_set *const s = d->set;
    bool rows = d->n_pieces == s->ndim + 1 && s->ndim > 0 && d->pieces[0] > 0;
    for (uint32_t i = 1; rows && i <= s->ndim; i++)
        rows = d->pieces[i] == (i < s->ndim ? s->shape[i] : s->element);
    if (!rows)
        return refuse(d, "a data set in pieces other than of whole rows", err);
    if (d->pieces[0] > MAX_PIECE / row_bytes)
        return refuse(d, "a data set in pieces of more than 16 MiB", err);
    s->piece_rows = d->pieces[0];
    return MGR_OK;
}

static int check_set(description *d, mgr_err *err)
{
    mgr_h5_set *const s = d->set;
    uint64_t bytes = s->element;
    for (uint32_t i = 0; i < s->ndim; i++)
        if (mgr_mul_overflow(bytes, s->shape[i], &bytes) || bytes > MGR_VIRTUAL_OFFSET / 256)
            return refuse(d, "a data set of too many bytes", err);
    if (bytes == 0)
        return refuse(d, "a data set without elements", err);
    s->bytes = bytes;
    if (s->offset == MGR_H5_NOWHERE)
        return check_pieces(d, s->ndim ? bytes / s->shape[0] : bytes, err);
    if (s->n_filters)
        return refuse(d, "a data set that is filtered and not in pieces", err);
    if (d->stored != bytes)
        return refuse(d, "a data set that is not stored whole", err);
    if (s->offset > d->in->size || bytes > d->in->size - s->offset)
        return mgr_fail(err, MGR_ERR_FORMAT, "'%s' is truncated: a data set ends behind it",
                        d->in->name);
    return MGR_OK;
}

int mgr_h5_describe(const mgr_reader *in, uint64_t object, mgr_h5_set *set, mgr_err *err)
{
    description d = {.in = in, .set = set};
    *set = (mgr_h5_set){.offset = MGR_H5_NOWHERE, .tree = MGR_H5_NOWHERE};
    MGR_TRY(mgr_h5_walk_object(in, object, on_message, &d, err));
    if (d.seen & SEEN_LINKS)
        return mgr_fail(err, MGR_ERR_NOT_FOUND, "'%s' has a group where a data set should be",
                        in->name);
    if ((d.seen & 7) != (SEEN_SPACE | SEEN_TYPE | SEEN_LAYOUT))
        return mgr_h5_damaged(in, object, "an object that is no data set", err);
    return check_set(&d, err);
}
