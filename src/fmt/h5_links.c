/*
 * The links of a group: messages of its header where they are few, else in a fractal heap, and
 * found there by a B-tree of version 2. The tree is read whole for the places, and the heap then in
 * the order of its bytes.
 */
#include <stdlib.h>
#include <string.h>

#include "core/le.h"
#include "core/mem.h"
#include "fmt/h5_parse.h"

#define MAX_LINKS ((uint64_t)1 << 20)
#define MAX_DEPTH 8
#define TREE_HEAD 38
#define HEAP_HEAD 146

/* ---- one link ---- */

/* In parts: version, flags, [kind], [number], [character set], length of the name, name, target. */
static int take_link(const mgr_reader *in, uint64_t at, mgr_h5_bytes b, mgr_h5_on_link *on,
                     void *context, mgr_err *err)
{
    mgr_h5_link link = {.object = MGR_H5_NOWHERE};
    const unsigned version = (unsigned)mgr_h5_take(&b, 1), flags = (unsigned)mgr_h5_take(&b, 1);
    link.hard = !(flags & 8) || mgr_h5_take(&b, 1) == 0;
    mgr_h5_skip(&b, (flags & 4 ? 8u : 0u) + (flags & 16 ? 1u : 0u));
    const uint64_t len = mgr_h5_take(&b, (size_t)1 << (flags & 3));
    if (b.over || version != 1 || len == 0 || len >= sizeof link.name || len > b.left ||
        memchr(b.at, 0, (size_t)len))
        return mgr_h5_damaged(in, at, "a link of no sensible kind", err);
    memcpy(link.name, b.at, (size_t)len);
    mgr_h5_skip(&b, (size_t)len);
    if (link.hard)
        link.object = mgr_h5_take(&b, 8);
    if (b.over)
        return mgr_h5_damaged(in, at, "a link leads nowhere", err);
    return on(context, &link, err);
}

/* ---- the tree ---- */

/* Where in the heap a link is. */
typedef struct place {
    uint64_t offset, len;
} place;

typedef struct tree {
    const mgr_reader *in;
    uint64_t node_bytes, record_bytes, total, n;
    size_t offset_bytes, len_bytes; /* of a place in the heap */
    size_t count_bytes;             /* of a child's number of records */
    size_t sum_bytes[MAX_DEPTH + 1];
    place *list;
} tree;

/* Bytes that hold numbers up to `most`. */
static size_t width_of(uint64_t most)
{
    size_t n = 1;
    while (n < 8 && most >> 8 * n)
        n++;
    return n;
}

static size_t pointer_bytes(const tree *t, unsigned depth)
{
    return 8 + t->count_bytes + t->sum_bytes[depth - 1];
}

/* How wide counts are in nodes follows from how many records there could be. */
static void set_widths(tree *t, unsigned depth)
{
    const uint64_t leaf = (t->node_bytes - 10) / t->record_bytes;
    uint64_t all = leaf;
    t->count_bytes = width_of(leaf);
    t->sum_bytes[0] = 0;
    for (unsigned d = 1; d <= depth; d++) {
        const size_t pointer = pointer_bytes(t, d);
        const uint64_t own = (t->node_bytes - 10 - pointer) / (t->record_bytes + pointer);
        all = own < UINT32_MAX / (all + 1) ? (own + 1) * all + own : UINT32_MAX;
        t->sum_bytes[d] = width_of(all);
    }
}

static int take_records(tree *t, mgr_h5_bytes *b, uint64_t n, uint64_t at, mgr_err *err)
{
    for (uint64_t i = 0; i < n; i++) {
        mgr_h5_skip(b, 4); /* the name's hash */
        const unsigned kind = (unsigned)mgr_h5_take(b, 1);
        place one;
        one.offset = mgr_h5_take(b, t->offset_bytes);
        one.len = mgr_h5_take(b, t->len_bytes);
        if (kind != 0 || b->over || t->n == t->total)
            return mgr_h5_damaged(t->in, at, "a list of links of no sensible form", err);
        t->list[t->n++] = one;
    }
    return MGR_OK;
}

static int take_node(tree *t, uint64_t at, uint64_t n, unsigned depth, mgr_err *err)
{
    unsigned char *block;
    const size_t pointer = depth ? pointer_bytes(t, depth) : 0;
    const uint64_t len = 10 + n * t->record_bytes + (depth ? (n + 1) * pointer : 0);
    if (n == 0 || len > t->node_bytes)
        return mgr_h5_damaged(t->in, at, "a list of links of no sensible size", err);
    MGR_TRY(mgr_h5_block(t->in, at, len, depth ? "BTIN" : "BTLF", &block, err));
    mgr_h5_bytes b = {block + 6, (size_t)len - 10, false};
    int rc = take_records(t, &b, n, at, err);
    for (uint64_t i = 0; rc == MGR_OK && depth && i <= n; i++) {
        const uint64_t child = mgr_h5_take(&b, 8), records = mgr_h5_take(&b, t->count_bytes);
        mgr_h5_skip(&b, t->sum_bytes[depth - 1]);
        rc = take_node(t, child, records, depth - 1, err);
    }
    mgr_free(block);
    return rc;
}

static int by_offset(const void *x, const void *y)
{
    const place *const a = x, *const b = y;
    return a->offset < b->offset ? -1 : a->offset > b->offset;
}

static int read_tree(tree *t, uint64_t at, mgr_err *err)
{
    unsigned char *head;
    MGR_TRY(mgr_h5_block(t->in, at, TREE_HEAD, "BTHD", &head, err));
    mgr_h5_bytes b = {head + 4, TREE_HEAD - 8, false};
    const unsigned version = (unsigned)mgr_h5_take(&b, 1), kind = (unsigned)mgr_h5_take(&b, 1);
    t->node_bytes = mgr_h5_take(&b, 4);
    t->record_bytes = mgr_h5_take(&b, 2);
    const unsigned depth = (unsigned)mgr_h5_take(&b, 2);
    mgr_h5_skip(&b, 2);
    const uint64_t root = mgr_h5_take(&b, 8), n = mgr_h5_take(&b, 2);
    t->total = mgr_h5_take(&b, 8);
    mgr_free(head);
    if (version != 0 || kind != 5 || depth > MAX_DEPTH || t->node_bytes < 64 ||
        t->node_bytes > 65536 || t->record_bytes != 5 + t->offset_bytes + t->len_bytes ||
        t->total > MAX_LINKS || t->total > t->in->size / t->record_bytes)
        return mgr_h5_damaged(t->in, at, "a list of links of no sensible kind", err);
    set_widths(t, depth);
    if (t->total == 0)
        return MGR_OK;
    MGR_TRY(mgr_alloc(&t->list, t->total, sizeof *t->list, err));
    MGR_TRY(take_node(t, root, n, depth, err));
    if (t->n != t->total)
        return mgr_h5_damaged(t->in, at, "a list of links that is not whole", err);
    qsort(t->list, t->n, sizeof *t->list, by_offset);
    return MGR_OK;
}

/* ---- the heap ---- */

typedef struct heap {
    const mgr_reader *in;
    uint64_t at, start, most_direct, root;
    unsigned width, bits, root_rows;
    size_t offset_bytes, len_bytes;
    bool checked; /* its blocks have checksums */
    /* the block at hand */
    unsigned char *block;
    uint64_t block_at, block_offset, block_bytes;
} heap;

static unsigned log2_of(uint64_t n)
{
    unsigned k = 0;
    while (n >>= 1)
        k++;
    return k;
}

static bool is_power(uint64_t n)
{
    return n && !(n & (n - 1));
}

static int read_heap(heap *h, mgr_err *err)
{
    unsigned char *head;
    MGR_TRY(mgr_h5_block(h->in, h->at, HEAP_HEAD, "FRHP", &head, err));
    const unsigned version = head[4], filters = mgr_load_u16(head + 7);
    const uint64_t most = mgr_load_u32(head + 10);
    h->checked = head[9] & 2;
    h->width = mgr_load_u16(head + 110);
    h->start = mgr_load_u64(head + 112);
    h->most_direct = mgr_load_u64(head + 120);
    h->bits = mgr_load_u16(head + 128);
    h->root = mgr_load_u64(head + 132);
    h->root_rows = mgr_load_u16(head + 140);
    mgr_free(head);
    if (version != 0 || filters != 0 || !is_power(h->width) || h->width > 64 ||
        !is_power(h->start) || h->start < 64 || !is_power(h->most_direct) ||
        h->most_direct < h->start || h->most_direct > (1u << 20) || h->bits < 16 || h->bits > 56 ||
        h->root_rows > h->bits)
        return mgr_h5_damaged(h->in, h->at, "a heap of no sensible kind", err);
    const size_t direct = width_of(h->most_direct), object = width_of(most);
    h->offset_bytes = (h->bits + 7) / 8;
    h->len_bytes = direct < object ? direct : object;
    return MGR_OK;
}

static uint64_t row_block(const heap *h, unsigned row)
{
    return row < 2 ? h->start : h->start << (row - 1);
}

static uint64_t row_offset(const heap *h, unsigned row)
{
    return row == 0 ? 0 : h->start * h->width << (row - 1);
}

/* The entry of an indirect block with `rows` rows. */
static int indirect_entry(const heap *h, uint64_t at, unsigned rows, uint64_t entry, uint64_t *out,
                          mgr_err *err)
{
    unsigned char *block;
    const uint64_t head = 13 + h->offset_bytes, len = head + 8ull * rows * h->width + 4;
    MGR_TRY(mgr_h5_block(h->in, at, len, "FHIB", &block, err));
    *out = mgr_load_u64(block + head + 8 * entry);
    mgr_free(block);
    return MGR_OK;
}

/* Find the direct block of byte `offset` of the heap. */
static int find_block(heap *h, uint64_t offset, mgr_err *err)
{
    const unsigned unit = log2_of(h->start) + log2_of(h->width);
    uint64_t at = h->root, base = 0, bytes = h->start;
    for (unsigned rows = h->root_rows; rows > 0;) {
        const uint64_t in = offset - base;
        const unsigned row = in >> unit ? log2_of(in) - unit + 1 : 0;
        if (row >= rows)
            return mgr_h5_damaged(h->in, h->at, "a link lies behind its heap", err);
        bytes = row_block(h, row);
        const uint64_t col = (in - row_offset(h, row)) / bytes;
        MGR_TRY(indirect_entry(h, at, rows, row * h->width + col, &at, err));
        base += row_offset(h, row) + col * bytes;
        if (bytes <= h->most_direct)
            break;
        if (log2_of(bytes) < unit)
            return mgr_h5_damaged(h->in, h->at, "a heap of no sensible form", err);
        rows = log2_of(bytes) - unit + 1; /* fewer than before: bytes are less than all above */
    }
    h->block_at = at;
    h->block_offset = base;
    h->block_bytes = bytes;
    return MGR_OK;
}

/* A direct block's checksum lies in its head, and counts as zeros. */
static int check_block(const heap *h, mgr_err *err)
{
    const size_t head = 13 + h->offset_bytes;
    unsigned char *const sum = h->block + head;
    if (memcmp(h->block, "FHDB", 4) != 0)
        return mgr_h5_damaged(h->in, h->block_at, "no block of a heap", err);
    if (!h->checked)
        return MGR_OK;
    const uint32_t said = mgr_load_u32(sum);
    mgr_store_u32(sum, 0);
    if (said != mgr_h5_checksum(h->block, h->block_bytes))
        return mgr_h5_damaged(h->in, h->block_at, "wrong checksum of metadata", err);
    return MGR_OK;
}

static int take_block(heap *h, uint64_t offset, mgr_err *err)
{
    if (h->block && offset - h->block_offset < h->block_bytes)
        return MGR_OK;
    mgr_free(h->block);
    h->block = NULL;
    MGR_TRY(find_block(h, offset, err));
    if (h->block_at > h->in->size || h->block_bytes > h->in->size - h->block_at)
        return mgr_h5_damaged(h->in, h->block_at, "a block of a heap ends behind the file", err);
    MGR_TRY(mgr_alloc(&h->block, h->block_bytes, 1, err));
    MGR_TRY(mgr_reader_read(h->in, h->block_at, h->block, h->block_bytes, err));
    return check_block(h, err);
}

static int walk_places(heap *h, const tree *t, mgr_h5_on_link *on, void *context, mgr_err *err)
{
    for (uint64_t i = 0; i < t->n; i++) {
        const place *const p = &t->list[i];
        if (p->offset >> h->bits)
            return mgr_h5_damaged(h->in, h->at, "a link lies behind its heap", err);
        MGR_TRY(take_block(h, p->offset, err));
        const uint64_t in = p->offset - h->block_offset;
        if (in > h->block_bytes || p->len > h->block_bytes - in)
            return mgr_h5_damaged(h->in, h->block_at, "a link ends behind its heap", err);
        const mgr_h5_bytes b = {h->block + in, (size_t)p->len, false};
        MGR_TRY(take_link(h->in, h->block_at + in, b, on, context, err));
    }
    return MGR_OK;
}

static int walk_dense(const mgr_reader *in, uint64_t heap_at, uint64_t tree_at, mgr_h5_on_link *on,
                      void *context, mgr_err *err)
{
    heap h = {.in = in, .at = heap_at};
    tree t = {.in = in};
    int rc = read_heap(&h, err);
    t.offset_bytes = h.offset_bytes;
    t.len_bytes = h.len_bytes;
    if (rc == MGR_OK)
        rc = read_tree(&t, tree_at, err);
    if (rc == MGR_OK)
        rc = walk_places(&h, &t, on, context, err);
    mgr_free(t.list);
    mgr_free(h.block);
    return rc;
}

/* ---- groups ---- */

typedef struct group {
    const mgr_reader *in;
    mgr_h5_on_link *on;
    void *context;
    bool is_group;
    uint64_t heap, tree;
} group;

static int on_message(void *context, const mgr_h5_message *m, mgr_err *err)
{
    group *const g = context;
    mgr_h5_bytes b = m->body;
    if (m->type == MGR_H5_LINK)
        return take_link(g->in, m->at, b, g->on, g->context, err);
    if (m->type == MGR_H5_SYMBOLS)
        return mgr_fail(err, MGR_ERR_UNSUPPORTED,
                        "'%s' has groups of an older form than mgr-upcycle writes", g->in->name);
    if (m->type != MGR_H5_LINK_INFO)
        return MGR_OK;
    mgr_h5_skip(&b, 1);
    mgr_h5_skip(&b, mgr_h5_take(&b, 1) & 1 ? 8 : 0);
    g->heap = mgr_h5_take(&b, 8);
    g->tree = mgr_h5_take(&b, 8);
    g->is_group = true;
    return b.over ? mgr_h5_damaged(g->in, m->at, "a group of no sensible form", err) : MGR_OK;
}

int mgr_h5_walk_links(const mgr_reader *in, uint64_t at, mgr_h5_on_link *on, void *context,
                      mgr_err *err)
{
    group g = {in, on, context, false, MGR_H5_NOWHERE, MGR_H5_NOWHERE};
    MGR_TRY(mgr_h5_walk_object(in, at, on_message, &g, err));
    if (!g.is_group)
        return mgr_h5_damaged(in, at, "no group where one should be", err);
    if (g.heap == MGR_H5_NOWHERE)
        return MGR_OK;
    return walk_dense(in, g.heap, g.tree, on, context, err);
}
