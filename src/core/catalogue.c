#include "mgr/catalogue.h"

#include "core/mem.h"
#include "core/str.h"

int mgr_catalogue_own(mgr_catalogue *cat, const char **text, mgr_err *err)
{
    if (!*text)
        return MGR_OK;
    if (!cat->arena)
        MGR_TRY(mgr_alloc(&cat->arena, 1, sizeof *cat->arena, err));
    return mgr_arena_strndup(cat->arena, text, *text, strlen(*text), err);
}

int mgr_catalogue_add_file(mgr_catalogue *cat, const char *path, uint64_t bytes, uint32_t *out,
                           mgr_err *err)
{
    mgr_file file = {.path = path, .bytes = bytes};
    MGR_TRY(mgr_grow(&cat->files, &cat->cap_files, cat->n_files + 1, sizeof file, err));
    MGR_TRY(mgr_catalogue_own(cat, &file.path, err));
    cat->files[cat->n_files] = file;
    *out = (uint32_t)cat->n_files++;
    return MGR_OK;
}

int mgr_catalogue_add_stored(mgr_catalogue *cat, const mgr_stored *stored, mgr_err *err)
{
    mgr_stored copy = *stored;
    if (copy.ndim == 0) /* one row of one element */
        copy.shape[0] = copy.stride[0] = 1;
    MGR_TRY(mgr_grow(&cat->stored, &cat->cap_stored, cat->n_stored + 1, sizeof copy, err));
    MGR_TRY(mgr_catalogue_own(cat, &copy.name, err));
    cat->stored[cat->n_stored++] = copy;
    return MGR_OK;
}

int mgr_catalogue_add_record(mgr_catalogue *cat, const mgr_record *record, uint32_t *out,
                             mgr_err *err)
{
    mgr_record copy = *record;
    MGR_TRY(mgr_grow(&cat->records, &cat->cap_records, cat->n_records + 1, sizeof copy, err));
    MGR_TRY(mgr_catalogue_own(cat, &copy.name, err));
    cat->records[cat->n_records] = copy;
    *out = (uint32_t)cat->n_records++;
    return MGR_OK;
}

int mgr_catalogue_add_attr(mgr_catalogue *cat, const mgr_attr *attr, mgr_err *err)
{
    mgr_attr copy = *attr;
    MGR_TRY(mgr_grow(&cat->attrs, &cat->cap_attrs, cat->n_attrs + 1, sizeof copy, err));
    MGR_TRY(mgr_catalogue_own(cat, &copy.key, err));
    MGR_TRY(mgr_catalogue_own(cat, &copy.text, err));
    cat->attrs[cat->n_attrs++] = copy;
    return MGR_OK;
}

const mgr_attr *mgr_catalogue_attr(const mgr_catalogue *cat, uint32_t file, const char *key)
{
    for (size_t i = 0; i < cat->n_attrs; i++)
        if (cat->attrs[i].file == file && strcmp(cat->attrs[i].key, key) == 0)
            return &cat->attrs[i];
    return NULL;
}

void mgr_catalogue_clear(mgr_catalogue *cat)
{
    mgr_free(cat->files);
    mgr_free(cat->stored);
    mgr_free(cat->records);
    mgr_free(cat->attrs);
    if (cat->arena)
        mgr_arena_clear(cat->arena);
    mgr_free(cat->arena);
    *cat = (mgr_catalogue){0};
}

uint64_t mgr_stored_bytes(const mgr_stored *s)
{
    return s->shape[0] * s->stride[0] * mgr_dtype_size(s->dtype);
}

const char *mgr_skip_name(mgr_skip kind)
{
    static const char *const names[MGR_SKIP_COUNT] = {"optimizer", "rng", "extra state", "other"};
    return (unsigned)kind < MGR_SKIP_COUNT ? names[kind] : "other";
}

/*
 * Exchange form: four counts, the skip counters, then each entry as its plain struct followed by
 * its strings (u32 length with 0 for NULL, else length+1, then the bytes). All ranks run the same
 * program, so struct bytes may travel as they are; the bounds are checked all the same.
 */
static int put_text(mgr_buf *out, const char *text, mgr_err *err)
{
    const uint32_t len = text ? (uint32_t)strlen(text) + 1 : 0;
    MGR_TRY(mgr_buf_add(out, &len, sizeof len, err));
    return mgr_buf_add(out, text, len ? len - 1 : 0, err);
}

int mgr_catalogue_pack(const mgr_catalogue *cat, mgr_buf *out, mgr_err *err)
{
    const uint64_t counts[4] = {cat->n_files, cat->n_stored, cat->n_records, cat->n_attrs};
    MGR_TRY(mgr_buf_add(out, counts, sizeof counts, err));
    MGR_TRY(mgr_buf_add(out, cat->skipped, sizeof cat->skipped, err));
    for (size_t i = 0; i < cat->n_files; i++) {
        MGR_TRY(mgr_buf_add(out, &cat->files[i], sizeof cat->files[i], err));
        MGR_TRY(put_text(out, cat->files[i].path, err));
    }
    for (size_t i = 0; i < cat->n_records; i++) {
        MGR_TRY(mgr_buf_add(out, &cat->records[i], sizeof cat->records[i], err));
        MGR_TRY(put_text(out, cat->records[i].name, err));
    }
    for (size_t i = 0; i < cat->n_stored; i++) {
        MGR_TRY(mgr_buf_add(out, &cat->stored[i], sizeof cat->stored[i], err));
        MGR_TRY(put_text(out, cat->stored[i].name, err));
    }
    for (size_t i = 0; i < cat->n_attrs; i++) {
        MGR_TRY(mgr_buf_add(out, &cat->attrs[i], sizeof cat->attrs[i], err));
        MGR_TRY(put_text(out, cat->attrs[i].key, err));
        MGR_TRY(put_text(out, cat->attrs[i].text, err));
    }
    return MGR_OK;
}

typedef struct cursor {
    const char *at;
    size_t left;
} cursor;

static int take(cursor *c, void *out, size_t len, mgr_err *err)
{
    if (c->left < len)
        return mgr_fail(err, MGR_ERR_INTERNAL, "catalogue message cut short");
    memcpy(out, c->at, len);
    c->at += len;
    c->left -= len;
    return MGR_OK;
}

/* A string of the message as a NUL-terminated copy in `scratch`; NULL stays NULL. */
static int take_text(cursor *c, mgr_buf *scratch, const char **out, mgr_err *err)
{
    uint32_t len;
    MGR_TRY(take(c, &len, sizeof len, err));
    scratch->len = 0;
    *out = NULL;
    if (len == 0)
        return MGR_OK;
    if (c->left < len - 1)
        return mgr_fail(err, MGR_ERR_INTERNAL, "catalogue message cut short");
    MGR_TRY(mgr_buf_add(scratch, c->at, len - 1, err));
    c->at += len - 1;
    c->left -= len - 1;
    *out = scratch->data;
    return MGR_OK;
}

static int take_files(mgr_catalogue *cat, cursor *c, uint64_t n, mgr_buf *scratch, mgr_err *err)
{
    for (uint64_t i = 0; i < n; i++) {
        mgr_file file;
        uint32_t idx;
        MGR_TRY(take(c, &file, sizeof file, err));
        MGR_TRY(take_text(c, scratch, &file.path, err));
        MGR_TRY(mgr_catalogue_add_file(cat, file.path, file.bytes, &idx, err));
        cat->files[idx].modified = file.modified;
        cat->files[idx].inode = file.inode;
    }
    return MGR_OK;
}

static int take_tensors(mgr_catalogue *cat, cursor *c, const uint64_t counts[4], uint32_t file_base,
                        mgr_buf *scratch, mgr_err *err)
{
    const uint32_t record_base = (uint32_t)cat->n_records;
    for (uint64_t i = 0; i < counts[2]; i++) {
        mgr_record record;
        uint32_t idx;
        MGR_TRY(take(c, &record, sizeof record, err));
        MGR_TRY(take_text(c, scratch, &record.name, err));
        record.file += file_base;
        MGR_TRY(mgr_catalogue_add_record(cat, &record, &idx, err));
    }
    for (uint64_t i = 0; i < counts[1]; i++) {
        mgr_stored stored;
        MGR_TRY(take(c, &stored, sizeof stored, err));
        MGR_TRY(take_text(c, scratch, &stored.name, err));
        stored.file += file_base;
        if (stored.record != MGR_NONE)
            stored.record += record_base;
        MGR_TRY(mgr_catalogue_add_stored(cat, &stored, err));
    }
    return MGR_OK;
}

static int take_attrs(mgr_catalogue *cat, cursor *c, uint64_t n, uint32_t file_base,
                      mgr_buf scratch[2], mgr_err *err)
{
    for (uint64_t i = 0; i < n; i++) {
        mgr_attr attr;
        MGR_TRY(take(c, &attr, sizeof attr, err));
        MGR_TRY(take_text(c, &scratch[0], &attr.key, err));
        MGR_TRY(take_text(c, &scratch[1], &attr.text, err));
        attr.file += file_base;
        MGR_TRY(mgr_catalogue_add_attr(cat, &attr, err));
    }
    return MGR_OK;
}

static int take_catalogue(mgr_catalogue *cat, cursor *c, mgr_buf scratch[2], mgr_err *err)
{
    uint64_t counts[4], skipped[MGR_SKIP_COUNT];
    const uint32_t file_base = (uint32_t)cat->n_files;
    MGR_TRY(take(c, counts, sizeof counts, err));
    MGR_TRY(take(c, skipped, sizeof skipped, err));
    MGR_TRY(take_files(cat, c, counts[0], &scratch[0], err));
    MGR_TRY(take_tensors(cat, c, counts, file_base, &scratch[0], err));
    MGR_TRY(take_attrs(cat, c, counts[3], file_base, scratch, err));
    for (int k = 0; k < MGR_SKIP_COUNT; k++)
        cat->skipped[k] += skipped[k];
    return MGR_OK;
}

int mgr_catalogue_unpack(mgr_catalogue *cat, const void *bytes, size_t len, mgr_err *err)
{
    cursor c = {bytes, len};
    mgr_buf scratch[2] = {{0}, {0}};
    int rc = MGR_OK;
    while (rc == MGR_OK && c.left > 0)
        rc = take_catalogue(cat, &c, scratch, err);
    mgr_buf_clear(&scratch[0]);
    mgr_buf_clear(&scratch[1]);
    return rc;
}
