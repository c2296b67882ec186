#include "fmt/h5_parse.h"

#include <string.h>

#include "core/le.h"
#include "core/mem.h"

/* No block of ours comes near it. */
#define MAX_BLOCK ((uint64_t)16 << 20)
/* Of one object header. */
#define MAX_PARTS 64

/* ---- bytes ---- */

uint64_t mgr_h5_take(mgr_h5_bytes *b, size_t n)
{
    uint64_t value = 0;
    if (n > b->left || b->over) {
        b->over = true;
        return 0;
    }
    for (size_t i = 0; i < n; i++)
        value |= (uint64_t)b->at[i] << 8 * i;
    mgr_h5_skip(b, n);
    return value;
}

void mgr_h5_skip(mgr_h5_bytes *b, size_t n)
{
    b->over = b->over || n > b->left;
    n = b->over ? b->left : n;
    b->at += n;
    b->left -= n;
}

int mgr_h5_damaged(const mgr_reader *in, uint64_t at, const char *what, mgr_err *err)
{
    return mgr_fail(err, MGR_ERR_FORMAT, "'%s' at byte %llu: HDF5: %s", in->name,
                    (unsigned long long)at, what);
}

static uint32_t rotate(uint32_t x, unsigned by)
{
    return x << by | x >> (32 - by);
}

static void mix(uint32_t s[3])
{
    static const unsigned turns[6] = {4, 6, 8, 16, 19, 4};
    for (size_t i = 0; i < 6; i++) {
        uint32_t *const a = &s[i % 3], *const b = &s[(i + 1) % 3], *const c = &s[(i + 2) % 3];
        *a -= *c;
        *a ^= rotate(*c, turns[i]);
        *c += *b;
    }
}

static void mix_last(uint32_t s[3])
{
    static const unsigned turns[7] = {14, 11, 25, 16, 4, 14, 24};
    for (size_t i = 0; i < 7; i++) {
        uint32_t *const to = &s[(i + 2) % 3], from = s[(i + 1) % 3];
        *to ^= from;
        *to -= rotate(from, turns[i]);
    }
}

uint32_t mgr_h5_checksum(const unsigned char *bytes, size_t len)
{
    uint32_t s[3];
    unsigned char last[12] = {0};
    s[0] = s[1] = s[2] = 0xdeadbeef + (uint32_t)len;
    for (; len > 12; bytes += 12, len -= 12) {
        for (size_t i = 0; i < 3; i++)
            s[i] += mgr_load_u32(bytes + 4 * i);
        mix(s);
    }
    if (len == 0)
        return s[2];
    memcpy(last, bytes, len);
    for (size_t i = 0; i < 3; i++)
        s[i] += mgr_load_u32(last + 4 * i);
    mix_last(s);
    return s[2];
}

int mgr_h5_block(const mgr_reader *in, uint64_t at, uint64_t len, const char *signature,
                 unsigned char **out, mgr_err *err)
{
    unsigned char *block;
    if (len < 8 || len > MAX_BLOCK)
        return mgr_h5_damaged(in, at, "a block of metadata of no sensible size", err);
    if (at > in->size || len > in->size - at)
        return mgr_h5_damaged(in, at, "a block of metadata ends behind the file", err);
    MGR_TRY(mgr_alloc(&block, len, 1, err));
    int rc = mgr_reader_read(in, at, block, len, err);
    if (rc == MGR_OK && memcmp(block, signature, 4) != 0)
        rc = mgr_h5_damaged(in, at, "another kind of metadata than expected", err);
    if (rc == MGR_OK && mgr_load_u32(block + len - 4) != mgr_h5_checksum(block, len - 4))
        rc = mgr_h5_damaged(in, at, "wrong checksum of metadata", err);
    if (rc != MGR_OK)
        mgr_free(block);
    else
        *out = block;
    return rc;
}

/* ---- the front of the file ---- */

int mgr_h5_root(const mgr_reader *in, uint64_t *object, mgr_err *err)
{
    static const unsigned char signature[8] = {0x89, 'H', 'D', 'F', '\r', '\n', 0x1a, '\n'};
    unsigned char front[48];
    if (in->size < sizeof front)
        return mgr_fail(err, MGR_ERR_FORMAT, "'%s' is truncated: it has %llu bytes", in->name,
                        (unsigned long long)in->size);
    MGR_TRY(mgr_reader_read(in, 0, front, sizeof front, err));
    if (memcmp(front, signature, sizeof signature) != 0)
        return mgr_fail(err, MGR_ERR_FORMAT, "'%s' is no HDF5 file", in->name);
    if ((front[8] != 2 && front[8] != 3) || front[9] != 8 || front[10] != 8)
        return mgr_fail(err, MGR_ERR_UNSUPPORTED,
                        "'%s' is an HDF5 file of another version (%u) than mgr-upcycle writes",
                        in->name, front[8]);
    if (mgr_load_u32(front + 44) != mgr_h5_checksum(front, 44))
        return mgr_h5_damaged(in, 0, "wrong checksum of the superblock", err);
    if (mgr_load_u64(front + 12) != 0 || mgr_load_u64(front + 20) != MGR_H5_NOWHERE)
        return mgr_fail(err, MGR_ERR_UNSUPPORTED, "'%s' has a user block or extensions", in->name);
    if (mgr_load_u64(front + 28) > in->size)
        return mgr_fail(err, MGR_ERR_FORMAT, "'%s' is truncated: %llu bytes of %llu", in->name,
                        (unsigned long long)in->size, (unsigned long long)mgr_load_u64(front + 28));
    *object = mgr_load_u64(front + 36);
    return MGR_OK;
}

/* ---- object headers ---- */

/* Parts of an object header that are still to be read; the first is the header itself. */
typedef struct parts {
    size_t n;
    struct {
        uint64_t at, len;
    } list[MAX_PARTS];
    bool ordered; /* messages have a number each */
} parts;

static int add_part(const mgr_reader *in, parts *p, const mgr_h5_message *m, mgr_err *err)
{
    mgr_h5_bytes b = m->body;
    const uint64_t at = mgr_h5_take(&b, 8), len = mgr_h5_take(&b, 8);
    if (b.over || p->n == MAX_PARTS)
        return mgr_h5_damaged(in, m->at, "an object of too many parts", err);
    p->list[p->n].at = at;
    p->list[p->n++].len = len;
    return MGR_OK;
}

static int walk_messages(const mgr_reader *in, parts *p, mgr_h5_bytes b, uint64_t at,
                         mgr_h5_on_message *on, void *context, mgr_err *err)
{
    const size_t head = p->ordered ? 6 : 4;
    const unsigned char *const start = b.at;
    while (b.left >= head) {
        mgr_h5_message m = {.type = (unsigned)mgr_h5_take(&b, 1)};
        const size_t len = (size_t)mgr_h5_take(&b, 2);
        m.flags = (unsigned)mgr_h5_take(&b, 1);
        mgr_h5_skip(&b, head - 4);
        m.at = at + (uint64_t)(b.at - start);
        m.body = (mgr_h5_bytes){b.at, len, false};
        if (len > b.left)
            return mgr_h5_damaged(in, m.at, "a message ends behind its object", err);
        mgr_h5_skip(&b, len);
        MGR_TRY(m.type == MGR_H5_CONTINUED ? add_part(in, p, &m, err) : on(context, &m, err));
    }
    return MGR_OK;
}

/* How long the header is, in front of the messages, and how long with these and the checksum. */
static int measure(const mgr_reader *in, uint64_t object, parts *p, size_t *head, uint64_t *len,
                   mgr_err *err)
{
    unsigned char front[34];
    const uint64_t left = object < in->size ? in->size - object : 0;
    const size_t n = left < sizeof front ? (size_t)left : sizeof front;
    if (n < 8)
        return mgr_h5_damaged(in, object, "an object lies behind the file", err);
    MGR_TRY(mgr_reader_read(in, object, front, n, err));
    if (memcmp(front, "OHDR", 4) != 0 || front[4] != 2)
        return mgr_h5_damaged(in, object, "no object of the version that mgr-upcycle writes", err);
    mgr_h5_bytes b = {front + 6, n - 6, false};
    mgr_h5_skip(&b, (front[5] & 0x20 ? 16u : 0u) + (front[5] & 0x10 ? 4u : 0u));
    const uint64_t messages = mgr_h5_take(&b, (size_t)1 << (front[5] & 3));
    if (b.over || messages > MAX_BLOCK)
        return mgr_h5_damaged(in, object, "an object of no sensible size", err);
    p->ordered = front[5] & 4;
    *head = n - b.left;
    *len = *head + messages + 4;
    return MGR_OK;
}

int mgr_h5_walk_object(const mgr_reader *in, uint64_t object, mgr_h5_on_message *on, void *context,
                       mgr_err *err)
{
    parts p = {.n = 1};
    size_t head;
    MGR_TRY(measure(in, object, &p, &head, &p.list[0].len, err));
    p.list[0].at = object;
    for (size_t i = 0; i < p.n; i++) {
        unsigned char *block;
        const uint64_t at = p.list[i].at, len = p.list[i].len;
        const size_t skip = i ? 4 : head;
        MGR_TRY(mgr_h5_block(in, at, len, i ? "OCHK" : "OHDR", &block, err));
        const mgr_h5_bytes b = {block + skip, (size_t)len - skip - 4, false};
        const int rc = walk_messages(in, &p, b, at + skip, on, context, err);
        mgr_free(block);
        MGR_TRY(rc);
    }
    return MGR_OK;
}
