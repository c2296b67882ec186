#include <inttypes.h>
#include <string.h>

#include "core/le.h"
#include "core/mem.h"
#include "fmt/zip.h"

/*
 * What is written (src/fmt/README.md): stored members without data descriptors, true CRC and sizes
 * in the local headers, payloads aligned by a pad field, and always all three end records.
 *
 *   local := "PK\3\4" needed flags 0 0 date crc csize usize namelen extralen name
 *            [ 0x0001 16 usize:u64 csize:u64 ]   if size >= 0xffffffff
 *            "FB" padlen 'Z'*
 *   entry := "PK\1\2" madeby needed flags 0 0 date crc csize usize namelen extralen 0 0 0 0 offset
 *            name [ 0x0001 len [usize:u64 csize:u64] [offset:u64] ]
 *   tail  := zip64 end record, zip64 locator, end record
 */
#define BIG UINT64_C(0xffffffff) /* this value and above need a 64-bit field */
#define LOCAL_SIZE 30u
#define FIELD_SIZE 4u   /* id and length of an extra field */
#define ZIP64_SIZES 20u /* the field with both sizes */
#define VERSION 20u
#define VERSION_ZIP64 45u
#define FLAG_UTF8 0x0800u
#define DATE 0x0021u /* 1980-01-01: outputs depend on nothing but their content */
#define NAME_MAX_LEN 4096u

static uint32_t saturated(uint64_t value)
{
    return value >= BIG ? 0xffffffffu : (uint32_t)value;
}

static uint32_t name_flags(const char *name)
{
    for (; *name; name++)
        if ((unsigned char)*name >= 0x80)
            return FLAG_UTF8;
    return 0;
}

static uint64_t local_size(const mgr_zip_entry *entry)
{
    return LOCAL_SIZE + strlen(entry->name) + (entry->size >= BIG ? ZIP64_SIZES : 0) + FIELD_SIZE;
}

int mgr_zip_layout(mgr_zip_entry *entries, size_t n, uint32_t align, uint64_t *directory,
                   uint64_t *total, mgr_err *err)
{
    if (align < 64 || align > 4096 || (align & (align - 1)) != 0)
        return mgr_fail(err, MGR_ERR_INTERNAL, "zip alignment %" PRIu32 " is not allowed", align);
    uint64_t at = 0, size = 0;
    for (size_t i = 0; i < n; i++) {
        mgr_zip_entry *const e = &entries[i];
        const size_t name = strlen(e->name);
        if (name == 0 || name > NAME_MAX_LEN)
            return mgr_fail(err, MGR_ERR_INTERNAL, "zip member name of %zu bytes", name);
        if (at > UINT64_MAX / 4 || e->size > UINT64_MAX / 4)
            return mgr_fail(err, MGR_ERR_INTERNAL, "zip archive too large at '%s'", e->name);
        e->header = at;
        e->offset = (at + local_size(e) + align - 1) & ~(uint64_t)(align - 1);
        at = e->offset + e->size;
        size += 46 + name;
        if (e->size >= BIG || e->header >= BIG)
            size += FIELD_SIZE + (e->size >= BIG ? 16u : 0u) + (e->header >= BIG ? 8u : 0u);
    }
    *directory = at;
    *total = at + size + 56 + 20 + 22;
    return MGR_OK;
}

int mgr_zip_local_header(const mgr_zip_entry *entry, uint32_t align, mgr_buf *out, mgr_err *err)
{
    const size_t name = strlen(entry->name);
    const bool big = entry->size >= BIG;
    const uint64_t start = entry->header + local_size(entry);
    if (entry->offset < start || entry->offset - start >= align)
        return mgr_fail(err, MGR_ERR_INTERNAL, "zip member '%s' has not been placed", entry->name);
    const size_t pad = (size_t)(entry->offset - start);
    unsigned char h[LOCAL_SIZE + ZIP64_SIZES + FIELD_SIZE] = {'P', 'K', 3, 4};
    mgr_store_u16(h + 4, big ? VERSION_ZIP64 : VERSION);
    mgr_store_u16(h + 6, (uint16_t)name_flags(entry->name));
    mgr_store_u16(h + 12, DATE);
    mgr_store_u32(h + 14, entry->crc32);
    mgr_store_u32(h + 18, saturated(entry->size));
    mgr_store_u32(h + 22, saturated(entry->size));
    mgr_store_u16(h + 26, (uint16_t)name);
    mgr_store_u16(h + 28, (uint16_t)((big ? ZIP64_SIZES : 0u) + FIELD_SIZE + pad));
    MGR_TRY(mgr_buf_add(out, h, LOCAL_SIZE, err));
    MGR_TRY(mgr_buf_add(out, entry->name, name, err));
    if (big) {
        unsigned char field[ZIP64_SIZES] = {1, 0, 16, 0};
        mgr_store_u64(field + 4, entry->size);
        mgr_store_u64(field + 12, entry->size);
        MGR_TRY(mgr_buf_add(out, field, sizeof field, err));
    }
    char fill[FIELD_SIZE + 4096] = {'F', 'B'};
    mgr_store_u16(fill + 2, (uint16_t)pad);
    memset(fill + FIELD_SIZE, 'Z', pad);
    return mgr_buf_add(out, fill, FIELD_SIZE + pad, err);
}

static int add_entry(const mgr_zip_entry *entry, mgr_buf *out, mgr_err *err)
{
    const size_t name = strlen(entry->name);
    unsigned char extra[FIELD_SIZE + 24] = {1, 0};
    size_t extra_len = 0;
    if (entry->size >= BIG) {
        mgr_store_u64(extra + FIELD_SIZE, entry->size);
        mgr_store_u64(extra + FIELD_SIZE + 8, entry->size);
        extra_len = 16;
    }
    if (entry->header >= BIG) {
        mgr_store_u64(extra + FIELD_SIZE + extra_len, entry->header);
        extra_len += 8;
    }
    mgr_store_u16(extra + 2, (uint16_t)extra_len);
    if (extra_len)
        extra_len += FIELD_SIZE;
    unsigned char h[46] = {'P', 'K', 1, 2};
    mgr_store_u16(h + 4, extra_len ? VERSION_ZIP64 : VERSION);
    mgr_store_u16(h + 6, extra_len ? VERSION_ZIP64 : VERSION);
    mgr_store_u16(h + 8, (uint16_t)name_flags(entry->name));
    mgr_store_u16(h + 14, DATE);
    mgr_store_u32(h + 16, entry->crc32);
    mgr_store_u32(h + 20, saturated(entry->size));
    mgr_store_u32(h + 24, saturated(entry->size));
    mgr_store_u16(h + 28, (uint16_t)name);
    mgr_store_u16(h + 30, (uint16_t)extra_len);
    mgr_store_u32(h + 42, saturated(entry->header));
    MGR_TRY(mgr_buf_add(out, h, sizeof h, err));
    MGR_TRY(mgr_buf_add(out, entry->name, name, err));
    return mgr_buf_add(out, extra, extra_len, err);
}

/* Always with the zip64 records: simpler, and what torch does. */
static int add_tail(size_t n, uint64_t directory, uint64_t size, mgr_buf *out, mgr_err *err)
{
    unsigned char t[56 + 20 + 22] = {'P', 'K', 6, 6};
    unsigned char *const locator = t + 56;
    unsigned char *const end = t + 56 + 20;
    mgr_store_u64(t + 4, 44); /* bytes of this record behind this field */
    mgr_store_u16(t + 12, VERSION_ZIP64);
    mgr_store_u16(t + 14, VERSION_ZIP64);
    mgr_store_u64(t + 24, n);
    mgr_store_u64(t + 32, n);
    mgr_store_u64(t + 40, size);
    mgr_store_u64(t + 48, directory);
    memcpy(locator, "PK\6\7", 4);
    mgr_store_u64(locator + 8, directory + size);
    mgr_store_u32(locator + 16, 1); /* disks in all */
    memcpy(end, "PK\5\6", 4);
    mgr_store_u16(end + 8, (uint16_t)(n < 0xffff ? n : 0xffff));
    mgr_store_u16(end + 10, (uint16_t)(n < 0xffff ? n : 0xffff));
    mgr_store_u32(end + 12, saturated(size));
    mgr_store_u32(end + 16, saturated(directory));
    return mgr_buf_add(out, t, sizeof t, err);
}

int mgr_zip_directory(const mgr_zip_entry *entries, size_t n, uint64_t directory, mgr_buf *out,
                      mgr_err *err)
{
    const size_t before = out->len;
    for (size_t i = 0; i < n; i++)
        MGR_TRY(add_entry(&entries[i], out, err));
    return add_tail(n, directory, out->len - before, out, err);
}
