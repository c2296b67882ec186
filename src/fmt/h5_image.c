/*
 * Values of a data set, in one piece or in compressed ones. Where these are says a B-tree of
 * version 1, which has no checksum: each piece must come in its turn, and lie in the file.
 */
#include <string.h>

#include "core/mem.h"
#include "fmt/h5_filter.h"
#include "fmt/h5_parse.h"
#include "fmt/h5_read.h"

#define NODE_HEAD 24
#define MAX_LEVEL 16
#define MAX_NODE ((uint64_t)4 << 20)

typedef struct piece {
    uint64_t offset;
    uint32_t bytes, mask; /* of filters that were left out */
} piece;

struct mgr_h5_image {
    const mgr_reader *in;
    mgr_h5_set set;
    uint64_t row_bytes, piece_bytes;
    piece *pieces;
    uint64_t n, total, cap;
    /* the piece at hand, and room for what it is made of */
    uint64_t held;
    unsigned char *values, *packed, *scratch;
};

/* ---- where pieces are ---- */

static int add_piece(mgr_h5_image *m, uint64_t node, mgr_h5_bytes *b, mgr_err *err)
{
    piece p;
    p.bytes = (uint32_t)mgr_h5_take(b, 4);
    p.mask = (uint32_t)mgr_h5_take(b, 4);
    const uint64_t row = mgr_h5_take(b, 8);
    mgr_h5_skip(b, 8 * (size_t)m->set.ndim);
    p.offset = mgr_h5_take(b, 8);
    if (b->over || m->n == m->total || row != m->n * m->set.piece_rows)
        return mgr_h5_damaged(m->in, node, "pieces of a data set that are not in their order", err);
    if (p.offset > m->in->size || p.bytes > m->in->size - p.offset || p.bytes == 0 ||
        p.bytes > mgr_h5_packed_bound(m->piece_bytes))
        return mgr_h5_damaged(m->in, node, "a piece of a data set of no sensible place", err);
    size_t cap = (size_t)m->cap;
    MGR_TRY(mgr_grow(&m->pieces, &cap, (size_t)m->n + 1, sizeof p, err));
    m->cap = cap;
    m->pieces[m->n++] = p;
    return MGR_OK;
}

static int take_node(mgr_h5_image *m, uint64_t at, unsigned level, mgr_err *err);

static int take_entries(mgr_h5_image *m, uint64_t at, unsigned level, uint64_t n, mgr_h5_bytes b,
                        mgr_err *err)
{
    const size_t key = 8 + 8 * ((size_t)m->set.ndim + 1);
    for (uint64_t i = 0; i < n; i++) {
        if (level == 0) {
            MGR_TRY(add_piece(m, at, &b, err));
            continue;
        }
        mgr_h5_skip(&b, key);
        MGR_TRY(take_node(m, mgr_h5_take(&b, 8), level - 1, err));
    }
    return MGR_OK;
}

static int take_node(mgr_h5_image *m, uint64_t at, unsigned level, mgr_err *err)
{
    unsigned char head[NODE_HEAD], *node;
    const size_t key = 8 + 8 * ((size_t)m->set.ndim + 1);
    if (at > m->in->size || m->in->size - at < sizeof head)
        return mgr_h5_damaged(m->in, at, "a list of pieces lies behind the file", err);
    MGR_TRY(mgr_reader_read(m->in, at, head, sizeof head, err));
    const uint64_t n = head[6] | (uint64_t)head[7] << 8, len = n * (key + 8);
    if (memcmp(head, "TREE", 4) != 0 || head[4] != 1 || head[5] > MAX_LEVEL || n == 0 ||
        len > MAX_NODE || (level <= MAX_LEVEL && head[5] != level))
        return mgr_h5_damaged(m->in, at, "a list of pieces of no sensible kind", err);
    MGR_TRY(mgr_alloc(&node, len, 1, err));
    int rc = mgr_reader_read(m->in, at + sizeof head, node, len, err);
    if (rc == MGR_OK)
        rc = take_entries(m, at, head[5], n, (mgr_h5_bytes){node, len, false}, err);
    mgr_free(node);
    return rc;
}

static int find_pieces(mgr_h5_image *m, mgr_err *err)
{
    m->total = (m->set.shape[0] + m->set.piece_rows - 1) / m->set.piece_rows;
    m->piece_bytes = m->set.piece_rows * m->row_bytes;
    if (m->set.tree != MGR_H5_NOWHERE)
        MGR_TRY(take_node(m, m->set.tree, MAX_LEVEL + 1, err));
    if (m->n != m->total)
        return mgr_fail(err, MGR_ERR_FORMAT, "'%s': a data set has %llu of its %llu pieces",
                        m->in->name, (unsigned long long)m->n, (unsigned long long)m->total);
    MGR_TRY(mgr_alloc(&m->values, m->piece_bytes, 1, err));
    MGR_TRY(mgr_alloc(&m->scratch, m->piece_bytes, 1, err));
    return mgr_alloc(&m->packed, mgr_h5_packed_bound(m->piece_bytes), 1, err);
}

/* ---- values ---- */

int mgr_h5_image_open(mgr_h5_image **out, const mgr_reader *in, const mgr_h5_set *set, mgr_err *err)
{
    mgr_h5_image *m;
    MGR_TRY(mgr_alloc(&m, 1, sizeof *m, err));
    m->in = in;
    m->set = *set;
    m->held = UINT64_MAX;
    int rc = MGR_OK;
    if (set->offset == MGR_H5_NOWHERE) {
        m->row_bytes = set->bytes / set->shape[0];
        rc = find_pieces(m, err);
    }
    if (rc != MGR_OK)
        mgr_h5_image_close(m);
    else
        *out = m;
    return rc;
}

void mgr_h5_image_close(mgr_h5_image *m)
{
    if (!m)
        return;
    mgr_free(m->pieces);
    mgr_free(m->values);
    mgr_free(m->scratch);
    mgr_free(m->packed);
    mgr_free(m);
}

/* Undo the filters, the last one first. */
static int unpack(mgr_h5_image *m, const piece *p, mgr_err *err)
{
    const unsigned char *bytes = m->packed;
    uint64_t len = p->bytes;
    for (uint32_t i = m->set.n_filters; i-- > 0;) {
        unsigned char *const to = bytes == m->scratch ? m->values : m->scratch;
        if (p->mask >> i & 1)
            continue;
        if (m->set.filters[i] == 1) {
            MGR_TRY(mgr_h5_inflate(bytes, len, to, m->piece_bytes, m->in->name, p->offset, err));
            len = m->piece_bytes;
        } else if (len == m->piece_bytes) {
            mgr_h5_unshuffle(bytes, len, m->set.element, to);
        } else {
            break;
        }
        bytes = to;
    }
    if (len != m->piece_bytes)
        return mgr_h5_damaged(m->in, p->offset, "a piece of a data set of the wrong size", err);
    if (bytes != m->values)
        memcpy(m->values, bytes, len);
    return MGR_OK;
}

static int hold(mgr_h5_image *m, uint64_t i, mgr_err *err)
{
    if (m->held == i)
        return MGR_OK;
    m->held = UINT64_MAX;
    MGR_TRY(mgr_reader_read(m->in, m->pieces[i].offset, m->packed, m->pieces[i].bytes, err));
    MGR_TRY(unpack(m, &m->pieces[i], err));
    m->held = i;
    return MGR_OK;
}

int mgr_h5_image_read(mgr_h5_image *m, uint64_t at, void *out, size_t len, mgr_err *err)
{
    char *to = out;
    if (at > m->set.bytes || len > m->set.bytes - at)
        return mgr_fail(err, MGR_ERR_INTERNAL, "'%s': values behind a data set", m->in->name);
    if (m->set.offset != MGR_H5_NOWHERE)
        return mgr_reader_read(m->in, m->set.offset + at, out, len, err);
    while (len > 0) {
        const uint64_t in = at % m->piece_bytes, left = m->piece_bytes - in;
        const size_t n = len < left ? len : (size_t)left;
        MGR_TRY(hold(m, at / m->piece_bytes, err));
        memcpy(to, m->values + in, n);
        to += n;
        at += n;
        len -= n;
    }
    return MGR_OK;
}
