/*
 * An HDF5 file from hostile bytes. What is listed lies in the file, and all values of it can be
 * read or are refused. So that checksums do not keep the fuzzer out, those of the blocks that it
 * made are put right first.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "core/le.h"
#include "core/mem.h"
#include "fmt/h5_parse.h"
#include "fmt/h5_read.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MAX_SIZE ((size_t)1 << 20)

/* The length of the block at `at`, without its checksum; 0 if that cannot be told. */
static size_t block_len(const unsigned char *bytes, size_t size, size_t at)
{
    static const struct {
        char signature[5];
        size_t len;
    } fixed[] = {{"BTHD", 34}, {"FRHP", 142}};
    for (size_t i = 0; i < sizeof fixed / sizeof fixed[0]; i++)
        if (memcmp(bytes + at, fixed[i].signature, 4) == 0)
            return fixed[i].len;
    if (memcmp(bytes + at, "OHDR", 4) != 0 || size - at < 40)
        return 0;
    const unsigned flags = bytes[at + 5];
    const size_t head = 6 + (flags & 0x20 ? 16u : 0u) + (flags & 0x10 ? 4u : 0u);
    size_t len = 0, width = (size_t)1 << (flags & 3);
    for (size_t i = 0; i < width && i < 4; i++)
        len |= (size_t)bytes[at + head + i] << 8 * i;
    return head + width + len;
}

static void put_right(unsigned char *bytes, size_t size)
{
    if (size >= 48)
        mgr_store_u32(bytes + 44, mgr_h5_checksum(bytes, 44));
    for (size_t at = 48; at + 8 < size; at++) {
        const size_t len = block_len(bytes, size, at);
        if (len && len < size - at - 4)
            mgr_store_u32(bytes + at + len, mgr_h5_checksum(bytes + at, len));
    }
}

static void read_values(const mgr_reader *in, const mgr_h5_index *index, const char *name)
{
    unsigned char values[4096];
    mgr_h5_set set;
    mgr_h5_image *image = NULL;
    mgr_err err = MGR_ERR_INIT;
    if (mgr_h5_index_set(index, name, &set, &err) != MGR_OK)
        return;
    if (set.offset != MGR_H5_NOWHERE &&
        (set.offset > in->size || set.bytes > in->size - set.offset))
        abort();
    if (mgr_h5_image_open(&image, in, &set, &err) != MGR_OK)
        return;
    for (uint64_t at = 0; at < set.bytes && at < MAX_SIZE; at += sizeof values) {
        const uint64_t left = set.bytes - at;
        const size_t n = left < sizeof values ? (size_t)left : sizeof values;
        if (mgr_h5_image_read(image, at, values, n, &err) != MGR_OK)
            break;
    }
    mgr_h5_image_close(image);
}

static void try_file(const mgr_reader *in)
{
    mgr_h5_index index;
    mgr_catalogue cat = {0};
    mgr_buf text = {0};
    uint32_t file;
    mgr_err err = MGR_ERR_INIT;
    if (mgr_catalogue_add_file(&cat, in->name, in->size, &file, &err) == MGR_OK &&
        mgr_h5_catalogue(in, &cat, file, &err) != MGR_OK && (err.code == MGR_OK || !err.msg[0]))
        abort();
    err = (mgr_err)MGR_ERR_INIT;
    if (mgr_h5_index_make(&index, in, &err) == MGR_OK)
        for (size_t i = 0; i < index.n; i++)
            read_values(in, &index, index.list[i].name);
    mgr_h5_index_clear(&index);
    err = (mgr_err)MGR_ERR_INIT;
    if (mgr_h5_read_text(in, "mgr/model.json", MAX_SIZE, &text, &err) != MGR_OK && !err.msg[0])
        abort();
    mgr_buf_clear(&text);
    mgr_catalogue_clear(&cat);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    mgr_reader in;
    unsigned char *bytes;
    mgr_err err = MGR_ERR_INIT;
    if (size > MAX_SIZE || mgr_alloc(&bytes, size + 1, 1, &err) != MGR_OK)
        return 0;
    memcpy(bytes, data, size);
    for (int right = 0; right < 2; right++) {
        mgr_reader_memory(&in, "fuzz", bytes, size);
        try_file(&in);
        put_right(bytes, size);
    }
    mgr_free(bytes);
    return 0;
}
