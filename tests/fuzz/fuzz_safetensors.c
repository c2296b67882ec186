/*
 * A safetensors file from hostile bytes. The fuzzer's bytes are a whole file, or, if they begin
 * with '{', a header behind a right length word with as much data as the highest end asks for.
 * What is accepted lies within the file and can be written and read again.
 */
#include "fmt/safetensors.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/le.h"
#include "core/mem.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MAX_DATA 4096

static uint64_t bytes_of(const mgr_stored *t)
{
    uint64_t n = mgr_dtype_size(t->dtype);
    for (uint32_t i = 0; i < t->ndim; i++)
        n *= t->shape[i];
    return n;
}

static void check_inside(const mgr_catalogue *cat, uint64_t file_size)
{
    for (size_t i = 0; i < cat->n_stored; i++) {
        const mgr_stored *t = &cat->stored[i];
        const uint64_t bytes = bytes_of(t);
        if (t->ndim > MGR_MAX_NDIM || t->offset > file_size || bytes > file_size - t->offset)
            abort();
        if (t->ndim && t->stride[t->ndim - 1] != 1)
            abort();
    }
}

/* Write what was read, read it again: the same tensors at the same places of the data. */
static void check_rewrite(const mgr_catalogue *cat, uint64_t data, uint64_t data_len)
{
    mgr_safetensors_entry *entries = NULL;
    mgr_buf out = {0};
    mgr_catalogue again = {0};
    mgr_reader reader;
    mgr_err err = MGR_ERR_INIT;
    if (mgr_alloc(&entries, cat->n_stored, sizeof *entries, &err) != MGR_OK)
        return;
    for (size_t i = 0; i < cat->n_stored; i++) {
        const mgr_stored *t = &cat->stored[i];
        if (t->dtype == MGR_DTYPE_OTHER) /* its name is not kept */
            goto out;
        entries[i] = (mgr_safetensors_entry){
            t->name, t->dtype, t->ndim, t->shape, t->offset - data, t->offset - data + bytes_of(t)};
    }
    if (mgr_safetensors_header(entries, cat->n_stored, 64, &out, &err) != MGR_OK) {
        fprintf(stderr, "%s\n", err.msg);
        abort();
    }
    const size_t header = out.len;
    for (uint64_t i = 0; i < data_len; i++)
        if (mgr_buf_add(&out, "", 1, &err) != MGR_OK)
            goto out;
    mgr_reader_memory(&reader, "again", out.data, out.len);
    if (mgr_safetensors_read(&again, 0, &reader, &err) != MGR_OK ||
        again.n_stored != cat->n_stored) {
        fprintf(stderr, "%s\n", err.msg);
        abort();
    }
    for (size_t i = 0; i < cat->n_stored; i++)
        if (strcmp(again.stored[i].name, cat->stored[i].name) != 0 ||
            again.stored[i].offset - header != cat->stored[i].offset - data ||
            memcmp(again.stored[i].shape, cat->stored[i].shape, sizeof cat->stored[i].shape) != 0)
            abort();
out:
    mgr_catalogue_clear(&again);
    mgr_buf_clear(&out);
    mgr_free(entries);
}

static int run(const uint8_t *bytes, size_t size)
{
    mgr_reader reader;
    mgr_catalogue cat = {0};
    mgr_err err = MGR_ERR_INIT;
    mgr_reader_memory(&reader, "fuzz", bytes, size);
    const int rc = mgr_safetensors_read(&cat, 0, &reader, &err);
    if (rc == MGR_OK) {
        const uint64_t data = 8 + mgr_load_u64(bytes);
        check_inside(&cat, size);
        check_rewrite(&cat, data, size - data);
    } else if (err.code != rc || err.msg[0] == '\0' || rc == MGR_ERR_INTERNAL || cat.n_stored) {
        abort();
    }
    mgr_catalogue_clear(&cat);
    return rc;
}

/* The largest number behind a ',' or '[' that could be the end of the data. */
static size_t guess_data(const uint8_t *header, size_t size)
{
    size_t most = 0;
    for (size_t i = 0; i < size; i++) {
        size_t n = 0, digits = 0;
        while (i < size && header[i] >= '0' && header[i] <= '9' && digits < 5) {
            n = 10 * n + (size_t)(header[i++] - '0');
            digits++;
        }
        if (i < size && header[i] == ']' && n > most && n <= MAX_DATA)
            most = n;
    }
    return most;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0 || data[0] != '{') {
        run(data, size);
        return 0;
    }
    const size_t guess = guess_data(data, size);
    uint8_t *file = calloc(1, 8 + size + guess);
    if (!file)
        return 0;
    mgr_store_u64(file, size);
    memcpy(file + 8, data, size);
    run(file, 8 + size + guess);
    free(file);
    return 0;
}
