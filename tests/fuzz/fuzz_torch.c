/* Bytes that start like a pickle become the data.pkl of an archive with a few storages, so that
 * mutations get past the zip reader; all others are taken as a whole file. Each is read as
 * everything that such a file can be. */
#include <stdlib.h>
#include <string.h>

#include <libdeflate.h>

#include "core/mem.h"
#include "fmt/deepspeed_file.h"
#include "fmt/torch_file.h"
#include "fmt/zip.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Storages "0" to "7" of the sizes that the corpus uses most. */
static const uint64_t sizes[] = {24, 3, 0, 4, 64, 1024, 10000, 1};
enum { N_STORAGES = sizeof sizes / sizeof sizes[0], N_ENTRIES = N_STORAGES + 2 };

static void wrap(const uint8_t *data, size_t size, mgr_buf *file)
{
    static const unsigned char zeros[10000];
    static const char *const names[N_STORAGES] = {"a/data/0", "a/data/1", "a/data/2", "a/data/3",
                                                  "a/data/4", "a/data/5", "a/data/6", "a/data/7"};
    mgr_err err = MGR_ERR_INIT;
    mgr_zip_entry e[N_ENTRIES] = {{.name = "a/data.pkl", .size = size}};
    const void *payloads[N_ENTRIES] = {data};
    uint64_t directory, total;
    for (size_t i = 0; i < N_STORAGES; i++) {
        e[i + 1] = (mgr_zip_entry){.name = names[i], .size = sizes[i]};
        payloads[i + 1] = zeros;
    }
    e[N_ENTRIES - 1] = (mgr_zip_entry){.name = "a/version", .size = 2};
    payloads[N_ENTRIES - 1] = "3\n";
    int rc = mgr_zip_layout(e, N_ENTRIES, 64, &directory, &total, &err);
    for (size_t i = 0; i < N_ENTRIES && !rc; i++) {
        e[i].crc32 = libdeflate_crc32(0, payloads[i], (size_t)e[i].size);
        rc = mgr_zip_local_header(&e[i], 64, file, &err);
        if (!rc)
            rc = mgr_buf_add(file, payloads[i], (size_t)e[i].size, &err);
    }
    if (!rc)
        rc = mgr_zip_directory(e, N_ENTRIES, directory, file, &err);
    if (rc || file->len != total)
        abort();
}

/* Every element of an accepted tensor lies in its record and in the file. */
static void check(const mgr_catalogue *cat, uint64_t file_size)
{
    for (size_t i = 0; i < cat->n_stored; i++) {
        const mgr_stored *const s = &cat->stored[i];
        uint64_t last = 0, numel = 1;
        for (uint32_t d = 0; d < s->ndim; d++) {
            numel *= s->shape[d];
            last += s->shape[d] ? (s->shape[d] - 1) * s->stride[d] : 0;
        }
        const uint64_t item = mgr_dtype_size(s->dtype);
        if (item == 0 || s->offset > file_size)
            abort();
        if (numel && s->offset + (last + 1) * item > file_size)
            abort();
        if (s->record == MGR_NONE || numel == 0)
            continue;
        const mgr_record *const r = &cat->records[s->record];
        if (s->offset < r->offset || s->offset + (last + 1) * item > r->offset + r->size ||
            numel * item > r->size)
            abort();
    }
}

/* ---- what the file may be ---- */

static int model(mgr_catalogue *cat, const mgr_reader *r, mgr_err *err)
{
    return mgr_torch_file_read(cat, 0, r, err);
}

static int stepped(mgr_catalogue *cat, const mgr_reader *r, mgr_err *err)
{
    return mgr_torch_file_read_stepped(cat, 0, r, true, err);
}

static int common(mgr_catalogue *cat, const mgr_reader *r, mgr_err *err)
{
    return mgr_torch_file_read_common(cat, 0, r, true, err);
}

static int zero_model(mgr_catalogue *cat, const mgr_reader *r, mgr_err *err)
{
    return mgr_deepspeed_read_model(cat, 0, r, true, err);
}

static int zero_optimizer(mgr_catalogue *cat, const mgr_reader *r, mgr_err *err)
{
    return mgr_deepspeed_read_optimizer(cat, 0, r, true, true, err);
}

static int zero_param(mgr_catalogue *cat, const mgr_reader *r, mgr_err *err)
{
    return mgr_deepspeed_read_param(cat, 0, r, "a", err);
}

static int zero_settings(mgr_catalogue *cat, const mgr_reader *r, mgr_err *err)
{
    return mgr_deepspeed_read_settings(cat, 0, r, err);
}

static int zero_step(mgr_catalogue *cat, const mgr_reader *r, mgr_err *err)
{
    return mgr_deepspeed_read_step(cat, 0, r, err);
}

static int (*const readings[])(mgr_catalogue *, const mgr_reader *, mgr_err *) = {
    model, stepped, common, zero_model, zero_optimizer, zero_param, zero_settings, zero_step};

static void read_as(size_t k, const mgr_reader *reader)
{
    mgr_err err = MGR_ERR_INIT;
    mgr_catalogue cat = {0};
    const int rc = readings[k](&cat, reader, &err);
    if (rc == MGR_OK)
        check(&cat, reader->size);
    else if (err.code != rc || !err.msg[0])
        abort();
    mgr_catalogue_clear(&cat);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    mgr_reader reader;
    mgr_buf file = {0};
    if (size > 0 && data[0] == 0x80) {
        wrap(data, size, &file);
        mgr_reader_memory(&reader, "fuzz.pt", file.data, file.len);
    } else {
        mgr_reader_memory(&reader, "fuzz.pt", data, size);
    }
    for (size_t k = 0; k < sizeof readings / sizeof readings[0]; k++)
        read_as(k, &reader);
    mgr_buf_clear(&file);
    return 0;
}
