#include "run/source_sums.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "core/crc.h"
#include "core/mem.h"
#include "core/stop.h"
#include "io/file.h"
#include "look/manifest_read.h"
#include "run/ledger.h"
#include "run/run.h"

/* Beside the tensors of a file that much is read at the start: headers, pickles. */
#define MAX_REST ((uint64_t)64 << 20)
#define MAX_GAPS 4096
#define BLOCK ((size_t)1 << 20)

/* A tensor that the manifest lists. */
typedef struct listed {
    uint32_t stored, file, crc32, pad;
    uint64_t offset, bytes;
} listed;

/* Rank 0. */
typedef struct sums {
    mgr_job *job;
    json_t *manifest;
    mgr_buf root;      /* its folder */
    const json_t **of; /* per file of the catalogue: its entry, NULL if it has none */
    listed *list;
    size_t n;
    unsigned char *buffer;
} sums;

/* The folder of the source, or that of its iteration. */
static int find_manifest(sums *s, mgr_manifest_state *state, mgr_err *err)
{
    const char *const path = s->job->config.source.path;
    size_t len = strlen(path);
    while (len > 1 && path[len - 1] == '/')
        len--;
    MGR_TRY(mgr_buf_add(&s->root, path, len, err));
    MGR_TRY(mgr_manifest_read(s->root.data, state, &s->manifest, err));
    const char *const slash = strrchr(s->root.data, '/');
    if (*state != MGR_MANIFEST_ABSENT || !slash || slash == s->root.data)
        return MGR_OK;
    s->root.len = (size_t)(slash - s->root.data);
    s->root.data[s->root.len] = '\0';
    return mgr_manifest_read(s->root.data, state, &s->manifest, err);
}

/* `path` below the manifest's folder; NULL if it is not there. */
static const char *below(const sums *s, const char *path)
{
    if (strncmp(path, s->root.data, s->root.len) != 0 || path[s->root.len] != '/')
        return NULL;
    path += s->root.len;
    return path + strspn(path, "/");
}

static int differs(const char *path, const char *what, mgr_err *err)
{
    mgr_fail(err, MGR_ERR_FORMAT, "'%s' is not what the source's " MGR_MANIFEST " says: %s", path,
             what);
    return mgr_hint(err, MGR_HINT_MANIFEST);
}

/* Entries of the manifest by the source's files; their sizes are known from the headers. */
static int match_files(sums *s, mgr_err *err)
{
    const mgr_catalogue *const cat = &s->job->source.cat;
    const json_t *const files = json_object_get(json_object_get(s->manifest, "target"), "files");
    const json_t *entry;
    size_t i;
    char what[96];
    MGR_TRY(mgr_alloc(&s->of, cat->n_files, sizeof *s->of, err));
    for (size_t f = 0; f < cat->n_files; f++) {
        const char *const name = below(s, cat->files[f].path);
        json_array_foreach(files, i, entry)
        {
            const char *const path = json_string_value(json_object_get(entry, "path"));
            if (name && path && strcmp(path, name) == 0)
                s->of[f] = entry;
        }
        const uint64_t bytes = (uint64_t)json_integer_value(json_object_get(s->of[f], "bytes"));
        snprintf(what, sizeof what, "it has %llu bytes, not %llu",
                 (unsigned long long)cat->files[f].bytes, (unsigned long long)bytes);
        if (s->of[f] && bytes != cat->files[f].bytes)
            return differs(cat->files[f].path, what, err);
    }
    return MGR_OK;
}

static int by_place(const void *x, const void *y)
{
    const listed *const a = x, *const b = y;
    if (a->file != b->file)
        return a->file < b->file ? -1 : 1;
    return a->offset < b->offset ? -1 : a->offset > b->offset;
}

static bool is_packed(const mgr_stored *s)
{
    uint64_t step = 1;
    for (uint32_t d = s->ndim; d-- > 0; step *= s->shape[d])
        if (s->stride[d] != step)
            return false;
    return s->ndim > 0;
}

/* Tensors with a checksum. What an archive says of one must be the same already. */
static int match_tensors(sums *s, mgr_err *err)
{
    const mgr_catalogue *const cat = &s->job->source.cat;
    MGR_TRY(mgr_alloc(&s->list, cat->n_stored, sizeof *s->list, err));
    for (uint32_t i = 0; i < cat->n_stored; i++) {
        const mgr_stored *const t = &cat->stored[i];
        const json_t *const entry =
            json_object_get(json_object_get(s->of[t->file], "tensors"), t->name);
        const char *const text = json_string_value(json_object_get(entry, "crc32"));
        const uint64_t bytes = mgr_stored_bytes(t);
        if (!text || !is_packed(t) ||
            (uint64_t)json_integer_value(json_object_get(entry, "bytes")) != bytes)
            continue;
        s->list[s->n++] =
            (listed){i, t->file, (uint32_t)strtoul(text, NULL, 16), 0, t->offset, bytes};
        const mgr_record *const r = t->record == MGR_NONE ? NULL : &cat->records[t->record];
        if (r && r->offset == t->offset && r->size == bytes && r->crc32 != s->list[s->n - 1].crc32)
            return differs(cat->files[t->file].path, t->name, err);
    }
    if (s->n)
        qsort(s->list, s->n, sizeof *s->list, by_place);
    return MGR_OK;
}

static uint32_t join(uint32_t a, uint32_t b, uint64_t bytes)
{
    return (uint32_t)crc32_combine64(a, b, (z_off64_t)bytes);
}

static int sum_gap(sums *s, int fd, const char *path, uint64_t at, uint64_t end, uint32_t *crc,
                   mgr_err *err)
{
    while (at < end) {
        const size_t n = end - at < BLOCK ? (size_t)(end - at) : BLOCK;
        MGR_TRY(mgr_pread_full(fd, path, s->buffer, n, at, err));
        *crc = mgr_crc32(*crc, s->buffer, n);
        at += n;
    }
    return MGR_OK;
}

/* The checksum that a file has if its tensors are what the manifest says. */
static int sum_file(sums *s, uint32_t file, const listed *list, size_t n, uint32_t *crc,
                    mgr_err *err)
{
    const mgr_file *const f = &s->job->source.cat.files[file];
    uint64_t at = 0;
    int fd;
    *crc = 0;
    MGR_TRY(mgr_open_read(f->path, &fd, err));
    int rc = MGR_OK;
    for (size_t i = 0; rc == MGR_OK && i < n; i++) {
        rc = sum_gap(s, fd, f->path, at, list[i].offset, crc, err);
        *crc = join(*crc, list[i].crc32, list[i].bytes);
        at = list[i].offset + list[i].bytes;
    }
    if (rc == MGR_OK)
        rc = sum_gap(s, fd, f->path, at, f->bytes, crc, err);
    mgr_close(fd);
    return rc;
}

/* Can what is not tensors be read at once: tensors apart from each other, and little else? */
static bool can_sum(const sums *s, uint32_t file, const listed *list, size_t n)
{
    const uint64_t all = s->job->source.cat.files[file].bytes;
    uint64_t at = 0, rest = 0;
    for (size_t i = 0; i < n; i++) {
        if (list[i].offset < at || list[i].offset > all || list[i].bytes > all - list[i].offset)
            return false;
        rest += list[i].offset - at;
        at = list[i].offset + list[i].bytes;
    }
    return n <= MAX_GAPS && rest + (all - at) <= MAX_REST;
}

/* Headers, pickles, indices: all of a file but its tensors, which come later. */
static int check_rest(sums *s, mgr_err *err)
{
    const mgr_catalogue *const cat = &s->job->source.cat;
    size_t at = 0;
    for (uint32_t f = 0; f < cat->n_files; f++) {
        const char *const said = json_string_value(json_object_get(s->of[f], "crc32"));
        const listed *const list = s->list + at;
        size_t n = 0;
        uint32_t crc;
        while (at + n < s->n && list[n].file == f)
            n++;
        at += n;
        if (!said || !can_sum(s, f, list, n))
            continue;
        MGR_TRY(mgr_check_stop(err));
        MGR_TRY(sum_file(s, f, list, n, &crc, err));
        if (crc != (uint32_t)strtoul(said, NULL, 16))
            return differs(cat->files[f].path, "its header, or what else is not tensors", err);
    }
    return MGR_OK;
}

/* Is the small file another one? Those that are gone are missed where they are needed. */
static int check_small(sums *s, const json_t *entry, mgr_err *err)
{
    const char *const name = json_string_value(json_object_get(entry, "path"));
    const char *const said = json_string_value(json_object_get(entry, "crc32"));
    mgr_buf path = {0}, text = {0};
    if (!name || !said || !mgr_manifest_is_safe(name) || strcmp(name, MGR_LEDGER_NAME) == 0)
        return MGR_OK;
    int rc = mgr_buf_fmt(&path, err, "%s/%s", s->root.data, name);
    uint64_t bytes = 0;
    if (rc == MGR_OK && mgr_is_plain_file(path.data) &&
        mgr_file_bytes(path.data, &bytes, err) == MGR_OK && bytes <= BLOCK) {
        rc = mgr_read_file(path.data, BLOCK, &text, err);
        if (rc == MGR_OK &&
            mgr_crc32(0, text.data ? text.data : "", text.len) != strtoul(said, NULL, 16))
            rc = mgr_remarks_say(&s->job->remarks, MGR_REMARK_WARNING, err,
                                 "the source's %s is not the one that its " MGR_MANIFEST " lists",
                                 name);
    }
    mgr_buf_clear(&path);
    mgr_buf_clear(&text);
    return rc;
}

static int check_others(sums *s, mgr_err *err)
{
    const json_t *const files = json_object_get(s->manifest, "files"), *entry;
    const json_t *const weights = json_object_get(json_object_get(s->manifest, "target"), "files"),
                        *weight;
    size_t i, k;
    json_array_foreach(files, i, entry)
    {
        bool is_weight = false;
        json_array_foreach(weights, k, weight) is_weight =
            is_weight ||
            json_equal(json_object_get(entry, "path"), json_object_get(weight, "path"));
        if (!is_weight)
            MGR_TRY(check_small(s, entry, err));
    }
    return MGR_OK;
}

/* Rank 0: everything that can be told before the weights are read. */
static int look(sums *s, mgr_err *err)
{
    mgr_manifest_state state;
    MGR_TRY(find_manifest(s, &state, err));
    if (state == MGR_MANIFEST_DAMAGED)
        return mgr_remarks_say(&s->job->remarks, MGR_REMARK_WARNING, err,
                               "the source's " MGR_MANIFEST
                               " is damaged: nothing is checked against it");
    if (state != MGR_MANIFEST_WHOLE)
        return MGR_OK;
    MGR_TRY(mgr_alloc_aligned(&s->buffer, BLOCK, err));
    MGR_TRY(match_files(s, err));
    MGR_TRY(match_tensors(s, err));
    MGR_TRY(check_rest(s, err));
    return check_others(s, err);
}

/* Tensors whose archive has no checksum of theirs. All ranks alike. */
static int add_records(mgr_job *job, const mgr_buf *packed, mgr_err *err)
{
    mgr_catalogue *const cat = &job->source.cat;
    job->manifest_records = cat->n_records;
    for (size_t at = 0; at + sizeof(listed) <= packed->len; at += sizeof(listed)) {
        listed l;
        memcpy(&l, packed->data + at, sizeof l);
        mgr_stored *const t = &cat->stored[l.stored];
        const mgr_record r = {t->name, t->file, l.crc32, t->offset, l.bytes};
        if (t->record == MGR_NONE)
            MGR_TRY(mgr_catalogue_add_record(cat, &r, &t->record, err));
    }
    return MGR_OK;
}

static void clear(sums *s)
{
    json_decref(s->manifest);
    mgr_buf_clear(&s->root);
    mgr_free(s->of);
    mgr_free(s->list);
    mgr_free_aligned(s->buffer);
}

int mgr_source_sums(mgr_job *job, mgr_err *err)
{
    sums s = {.job = job};
    mgr_buf packed = {0};
    int rc = job->rank == 0 ? look(&s, err) : MGR_OK;
    if (rc == MGR_OK && s.n)
        rc = mgr_buf_add(&packed, s.list, s.n * sizeof *s.list, err);
    clear(&s);
    rc = mgr_agree_root(job, rc, err);
    if (rc == MGR_OK)
        rc = mgr_bcast_bytes(job->comm, &packed, err);
    if (rc == MGR_OK)
        rc = add_records(job, &packed, err);
    mgr_buf_clear(&packed);
    return mgr_agree(job->comm, rc, err);
}
