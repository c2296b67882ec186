#include "run/record.h"

#include <string.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "core/mem.h"
#include "fmt/json.h"
#include "form/sidecar.h"
#include "io/file.h"
#include "io/reader.h"
#include "mgr/version.h"
#include "run/manifest.h"

#define MAX_RECORD ((uint64_t)256 << 20)

static uint64_t hash_text(const char *text, uint64_t h)
{
    return text ? XXH3_64bits_withSeed(text, strlen(text) + 1, h) : h + 1;
}

static void hash_tensors(const mgr_catalogue *cat, uint64_t *h)
{
    for (size_t i = 0; i < cat->n_stored; i++) {
        const mgr_stored *const s = &cat->stored[i];
        const uint64_t facts[3] = {s->offset, (uint64_t)s->dtype, s->ndim};
        uint64_t *const at = &h[s->file];
        *at = XXH3_64bits_withSeed(facts, sizeof facts, hash_text(s->name, *at));
        *at = XXH3_64bits_withSeed(s->shape, s->ndim * sizeof *s->shape, *at);
        *at = XXH3_64bits_withSeed(s->stride, s->ndim * sizeof *s->stride, *at);
    }
    for (size_t i = 0; i < cat->n_records; i++) {
        const mgr_record *const r = &cat->records[i];
        const uint64_t facts[3] = {r->offset, r->size, r->crc32};
        h[r->file] = XXH3_64bits_withSeed(facts, sizeof facts, hash_text(r->name, h[r->file]));
    }
}

static void hash_attrs(const mgr_catalogue *cat, uint64_t *h)
{
    for (size_t i = 0; i < cat->n_attrs; i++) {
        const mgr_attr *const a = &cat->attrs[i];
        int64_t facts[3] = {(int64_t)a->kind, a->kind == MGR_ATTR_REAL ? 0 : a->i, 0};
        if (a->kind == MGR_ATTR_REAL)
            memcpy(&facts[2], &a->r, sizeof a->r);
        uint64_t *const at = &h[a->file];
        *at = hash_text(a->text, hash_text(a->key, *at));
        *at = XXH3_64bits_withSeed(facts, sizeof facts, *at);
    }
}

static void hash_records(const mgr_catalogue *cat, uint64_t *h)
{
    for (size_t i = 0; i < cat->n_records; i++) {
        const mgr_record *const r = &cat->records[i];
        const uint64_t facts[2] = {r->size, r->crc32};
        h[r->file] = XXH3_64bits_withSeed(r->name, strlen(r->name), h[r->file]);
        h[r->file] = XXH3_64bits_withSeed(facts, sizeof facts, h[r->file]);
    }
}

static json_t *hex(uint64_t value)
{
    return json_sprintf("%016llx", (unsigned long long)value);
}

json_t *mgr_record_sources(const mgr_job *job)
{
    const mgr_catalogue *const cat = &job->source.cat;
    mgr_err ignored = MGR_ERR_INIT;
    uint64_t *h = NULL;
    if (mgr_alloc(&h, 2 * cat->n_files + 1, sizeof *h, &ignored) != MGR_OK)
        return NULL;
    hash_tensors(cat, h);
    hash_attrs(cat, h);
    hash_records(cat, h + cat->n_files);
    json_t *const list = json_array();
    for (size_t f = 0; f < cat->n_files; f++) {
        const mgr_file *const file = &cat->files[f];
        json_array_append_new(list, json_pack("{s:s,s:I,s:I,s:I,s:o,s:o}", "path", file->path,
                                              "bytes", (json_int_t)file->bytes, "modified",
                                              (json_int_t)file->modified, "inode",
                                              (json_int_t)file->inode, "header_xxh3", hex(h[f]),
                                              "records_xxh3", hex(h[cat->n_files + f])));
    }
    mgr_free(h);
    return list;
}

static json_t *record_of(const mgr_job *job)
{
    return json_pack("{s:s,s:i,s:s,s:o}", "version", MGR_VERSION, "contract", MGR_CONTRACT_VERSION,
                     "run", job->id, "source", mgr_record_sources(job));
}

int mgr_record_write(const mgr_job *job, const char *journal, mgr_err *err)
{
    json_t *const record = record_of(job);
    const int rc = record ? mgr_sidecar_json(journal, MGR_RECORD_NAME, record, err)
                          : mgr_fail(err, MGR_ERR_NOMEM, "no memory for the run's record");
    json_decref(record);
    return rc;
}

/* An object that makes no sense is no object. */
static json_t *read_object(const char *directory, const char *name)
{
    mgr_err ignored = MGR_ERR_INIT;
    mgr_buf path = {0}, text = {0};
    json_t *object = NULL;
    if (mgr_buf_fmt(&path, &ignored, "%s/%s", directory, name) != MGR_OK ||
        mgr_read_file(path.data, MAX_RECORD, &text, &ignored) != MGR_OK ||
        mgr_json_parse(&object, path.data, text.data ? text.data : "", text.len, &ignored) !=
            MGR_OK)
        object = NULL;
    mgr_buf_clear(&path);
    mgr_buf_clear(&text);
    return object;
}

static const char *text_at(const json_t *object, const char *key)
{
    const char *const text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

/* The first file of the source that is not what it was; NULL: all are. */
static const char *changed_file(const json_t *was, const json_t *is)
{
    static const char *const keys[] = {"path", "bytes", "modified", "inode", "header_xxh3"};
    for (size_t i = 0; i < json_array_size(is) || i < json_array_size(was); i++) {
        const json_t *const a = json_array_get(was, i), *const b = json_array_get(is, i);
        for (size_t k = 0; k < sizeof keys / sizeof keys[0]; k++)
            if (!a || !b || !json_equal(json_object_get(a, keys[k]), json_object_get(b, keys[k])))
                return text_at(b ? b : a, "path");
    }
    return NULL;
}

int mgr_record_check(const mgr_job *job, const char *journal, bool *known, mgr_err *err)
{
    json_t *const was = read_object(journal, MGR_RECORD_NAME), *const is = record_of(job);
    const char *const changed =
        changed_file(json_object_get(was, "source"), json_object_get(is, "source"));
    int rc = MGR_OK;
    *known = was != NULL;
    if (was && (strcmp(text_at(was, "version"), MGR_VERSION) != 0 ||
                !json_equal(json_object_get(was, "contract"), json_object_get(is, "contract"))))
        rc = mgr_fail(err, MGR_ERR_EXISTS,
                      "cannot resume: the run was begun by version '%s', this is " MGR_VERSION,
                      text_at(was, "version"));
    else if (was && changed)
        rc = mgr_fail(err, MGR_ERR_EXISTS,
                      "cannot resume: the source has changed since the run was begun: '%s'",
                      changed);
    if (rc != MGR_OK)
        mgr_hint(err, "bring back what it was, or begin anew with --force");
    json_decref(was);
    json_decref(is);
    return rc;
}

static bool has_sizes(const json_t *files, const char *target)
{
    size_t i;
    const json_t *file;
    json_array_foreach(files, i, file)
    {
        mgr_err ignored = MGR_ERR_INIT;
        mgr_buf path = {0};
        uint64_t bytes = 0;
        const bool same =
            mgr_buf_fmt(&path, &ignored, "%s/%s", target, text_at(file, "path")) == MGR_OK &&
            mgr_file_bytes(path.data, &bytes, &ignored) == MGR_OK &&
            (json_int_t)bytes == json_integer_value(json_object_get(file, "bytes"));
        mgr_buf_clear(&path);
        if (!same)
            return false;
    }
    return true;
}

bool mgr_record_is_complete(const mgr_job *job, const char *target)
{
    json_t *const manifest = read_object(target, MGR_MANIFEST);
    json_t *const is = mgr_record_sources(job);
    const json_t *const was = json_object_get(json_object_get(manifest, "source"), "files");
    const json_t *const files = json_object_get(json_object_get(manifest, "target"), "files");
    const bool complete = manifest && is && strcmp(text_at(manifest, "run"), job->id) == 0 &&
                          json_array_size(files) == job->target.cat.n_files &&
                          !changed_file(was, is) && has_sizes(files, target);
    json_decref(manifest);
    json_decref(is);
    return complete;
}

int mgr_record_look_again(const mgr_job *job, mgr_err *err)
{
    const mgr_catalogue *const cat = &job->source.cat;
    for (size_t f = job->rank; f < cat->n_files; f += job->ranks) {
        const mgr_file *const file = &cat->files[f];
        mgr_reader reader;
        MGR_TRY(mgr_reader_open(&reader, file->path, err));
        mgr_reader_close(&reader);
        if (reader.size != file->bytes || reader.modified != file->modified ||
            reader.inode != file->inode)
            return mgr_fail(err, MGR_ERR_FORMAT, "the source changed while it was read: '%s'",
                            file->path);
    }
    return MGR_OK;
}
