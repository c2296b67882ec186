#include "look/audit.h"

#include <assert.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/crc.h"
#include "core/say.h"
#include "core/str.h"
#include "form/source.h"
#include "io/file.h"
#include "look/audit_experts.h"
#include "look/file_sums.h"
#include "look/flip.h"
#include "look/scan.h"
#include "look/view.h"

#define BLOCK ((uint64_t)8 << 20)

typedef struct audit {
    mgr_comm *comm;
    bool root;
    const char *path; /* without a slash at the end */
    json_t *manifest; /* rank 0 */
    json_t *tensors;  /* rank 0: the files that hold tensors, by path */
    mgr_findings report;
    mgr_file_sums sums; /* files that are there with the right size */
    uint32_t *wanted;   /* their CRC-32s by the manifest; rank 0 */
    mgr_catalogue cat;  /* all ranks: what the view has */
    mgr_scan scan;      /* of what this rank reads */
    mgr_view view;      /* rank 0 */
    mgr_buf refusal;    /* why it shows no model */
    bool viewed, late;
    size_t extra; /* files that the manifest does not name */
} audit;

/* ---- the manifest ---- */

static int old_manifest(const audit *a, mgr_err *err)
{
    return mgr_fail(err, MGR_ERR_UNSUPPORTED,
                    "'%s/" MGR_MANIFEST "' is of an older version, without checksums of all files",
                    a->path);
}

/* Rank 0. A manifest that is not what it was leaves a->manifest NULL: nothing else can be told. */
static int read_manifest(audit *a, mgr_err *err)
{
    mgr_manifest_state state;
    MGR_TRY(mgr_manifest_read(a->path, &state, &a->manifest, err));
    switch (state) {
    case MGR_MANIFEST_WHOLE:
        return MGR_OK;
    case MGR_MANIFEST_OLD:
        return old_manifest(a, err);
    case MGR_MANIFEST_DAMAGED:
        return mgr_findings_add(&a->report, MGR_MANIFEST, NULL, UINT64_MAX,
                                "its own digest is not that of its text", err);
    default:
        mgr_fail(err, MGR_ERR_NOT_FOUND, "no '" MGR_MANIFEST "' in '%s'", a->path);
        return mgr_hint(err, "give the folder of an output of mgr-upcycle");
    }
}

/* One file of the list: is it there, as large as it was? */
static int take_file(audit *a, const json_t *entry, mgr_err *err)
{
    const char *const name = json_string_value(json_object_get(entry, "path"));
    const char *const crc = json_string_value(json_object_get(entry, "crc32"));
    const uint64_t bytes = (uint64_t)json_integer_value(json_object_get(entry, "bytes"));
    mgr_buf path = {0};
    uint64_t found = 0;
    char what[128];
    if (!name || !crc || !mgr_manifest_is_safe(name))
        return mgr_fail(err, MGR_ERR_FORMAT, "'" MGR_MANIFEST "' lists a file without path or sum");
    int rc = mgr_buf_fmt(&path, err, "%s/%s", a->path, name);
    const bool plain = rc == MGR_OK && mgr_is_plain_file(path.data);
    if (rc == MGR_OK && !plain)
        rc = mgr_findings_add(&a->report, name, NULL, UINT64_MAX,
                              mgr_path_exists(path.data) ? "is no plain file" : "is missing", err);
    else if (rc == MGR_OK)
        rc = mgr_file_bytes(path.data, &found, err);
    mgr_buf_clear(&path);
    if (rc != MGR_OK || !plain)
        return rc;
    snprintf(what, sizeof what, "has %" PRIu64 " bytes, the manifest says %" PRIu64, found, bytes);
    if (found != bytes)
        return mgr_findings_add(&a->report, name, NULL, found < bytes ? found : bytes, what, err);
    a->wanted[a->sums.n] = (uint32_t)strtoul(crc, NULL, 16);
    return mgr_file_sums_add(&a->sums, name, bytes, err);
}

/* How many files lie there that the manifest does not name. */
static int count_extra(audit *a, const json_t *files, mgr_err *err)
{
    const char **names = NULL;
    mgr_arena arena = {0};
    json_t *listed = NULL;
    size_t n = 0;
    int rc = mgr_manifest_by_path(files, &listed, err);
    if (rc == MGR_OK)
        rc = mgr_list_tree(a->path, &arena, &names, &n, err);
    for (size_t i = 0; rc == MGR_OK && i < n; i++)
        a->extra += !mgr_has_suffix(names[i], "/") && strcmp(names[i], MGR_MANIFEST) != 0 &&
                    !json_object_get(listed, names[i]);
    json_decref(listed);
    mgr_arena_clear(&arena);
    return rc;
}

static int take_files(audit *a, mgr_err *err)
{
    const json_t *const files = json_object_get(a->manifest, "files");
    const json_t *const target = json_object_get(a->manifest, "target");
    const size_t n = json_array_size(files);
    if (n == 0)
        return old_manifest(a, err);
    MGR_TRY(mgr_alloc(&a->wanted, n, sizeof *a->wanted, err));
    for (size_t i = 0; i < n; i++)
        MGR_TRY(take_file(a, json_array_get(files, i), err));
    MGR_TRY(mgr_manifest_by_path(json_object_get(target, "files"), &a->tensors, err));
    return count_extra(a, files, err);
}

static const char *target_format(const audit *a)
{
    const json_t *const target = json_object_get(a->manifest, "target");
    const char *const name = json_string_value(json_object_get(target, "format"));
    return name ? name : "";
}

/* What was written beside the weights. */
static unsigned planes(const audit *a)
{
    const json_t *const target = json_object_get(a->manifest, "target");
    const json_t *const names = json_object_get(target, "planes");
    unsigned set = 0;
    for (size_t i = 0; i < json_array_size(names); i++) {
        const char *const name = json_string_value(json_array_get(names, i));
        for (int p = 0; name && p < MGR_PLANE_COUNT; p++)
            set |= strcmp(name, mgr_plane_name((mgr_plane)p)) == 0 ? 1u << p : 0;
    }
    return set;
}

/* ---- the weights ---- */

/* Rank 0: open the output as a source would. That it cannot be is a difference, which is told
 * behind those of the files that may have caused it. */
static int open_view(audit *a, mgr_err *err)
{
    mgr_err why = MGR_ERR_INIT;
    const mgr_source_format *const format = mgr_source_find(target_format(a));
    const int rc = format ? mgr_view_open_as(&a->view, format, a->path, planes(a), &why)
                          : mgr_view_open(&a->view, a->path, false, &why);
    a->viewed = rc == MGR_OK;
    if (rc != MGR_OK || !a->view.has_model)
        return mgr_buf_text(&a->refusal, rc != MGR_OK ? why.msg : a->view.refusal.data, err);
    return MGR_OK;
}

static int tell_refusal(audit *a, mgr_err *err)
{
    return a->refusal.len
               ? mgr_findings_add(&a->report, NULL, NULL, UINT64_MAX, a->refusal.data, err)
               : MGR_OK;
}

/* What rank 0's view has, to all. Collective. */
static int share_catalogue(audit *a, mgr_err *err)
{
    mgr_buf packed = {0};
    int rc = a->root && a->viewed ? mgr_catalogue_pack(&a->view.cat, &packed, err) : MGR_OK;
    rc = mgr_agree(a->comm, rc, err);
    if (rc == MGR_OK)
        rc = mgr_bcast_bytes(a->comm, &packed, err);
    if (rc == MGR_OK && packed.len)
        rc = mgr_catalogue_unpack(&a->cat, packed.data, packed.len, err);
    mgr_buf_clear(&packed);
    return mgr_agree(a->comm, rc, err);
}

/* ---- what differs ---- */

/* The manifest's entry of a tensor. */
static const json_t *tensor_entry(const audit *a, const char *file, const char *tensor)
{
    return json_object_get(json_object_get(json_object_get(a->tensors, file), "tensors"), tensor);
}

static int crc_of(const char *path, uint64_t offset, uint64_t bytes, uint32_t *crc, mgr_err *err)
{
    unsigned char *buffer = NULL;
    int fd = -1;
    int rc = mgr_alloc_aligned(&buffer, BLOCK, err);
    if (rc == MGR_OK)
        rc = mgr_open_read(path, &fd, err);
    *crc = 0;
    for (uint64_t at = 0; rc == MGR_OK && at < bytes; at += BLOCK) {
        const size_t len = (size_t)(bytes - at < BLOCK ? bytes - at : BLOCK);
        rc = mgr_pread_full(fd, path, buffer, len, offset + at, err);
        if (rc == MGR_OK)
            *crc = mgr_crc32(*crc, buffer, len);
    }
    if (fd >= 0)
        mgr_close(fd);
    mgr_free_aligned(buffer);
    return rc;
}

/* The first tensor of a file whose bytes are not those of the manifest; *diff is what its CRC-32
 * differs by. NULL if none. */
static int find_tensor(const audit *a, const char *file, const mgr_stored **out, uint32_t *diff,
                       mgr_err *err)
{
    const mgr_catalogue *const cat = &a->cat;
    const size_t root = strlen(a->path) + 1;
    uint32_t f = 0;
    *out = NULL;
    while (f < cat->n_files && strcmp(cat->files[f].path + root, file) != 0)
        f++;
    for (size_t i = 0; f < cat->n_files && i < cat->n_stored; i++) {
        const mgr_stored *const s = &cat->stored[i];
        if (s->file != f || !mgr_scan_is_plain(s) || (*out && (*out)->offset < s->offset))
            continue;
        const json_t *const entry = tensor_entry(a, file, s->name);
        const char *const said = json_string_value(json_object_get(entry, "crc32"));
        uint32_t crc;
        if (!said)
            continue;
        MGR_TRY(crc_of(cat->files[s->file].path, s->offset, mgr_view_bytes(s), &crc, err));
        if (crc == (uint32_t)strtoul(said, NULL, 16))
            continue;
        *out = s;
        *diff = crc ^ (uint32_t)strtoul(said, NULL, 16);
    }
    return MGR_OK;
}

/* Name tensor and byte as well as the checksums allow. */
static int blame(audit *a, const mgr_file_sum *file, uint32_t wanted, mgr_err *err)
{
    const mgr_stored *s;
    uint32_t diff = file->crc32 ^ wanted;
    uint64_t from = 0, bytes = file->bytes, at;
    char what[160];
    MGR_TRY(find_tensor(a, file->path, &s, &diff, err));
    if (s) {
        from = s->offset;
        bytes = mgr_view_bytes(s);
    }
    const bool one = mgr_find_flip(diff, bytes, &at);
    if (one)
        snprintf(what, sizeof what, "one bit differs from what was written");
    else
        snprintf(what, sizeof what,
                 "differs from what was written, somewhere from byte %" PRIu64 " to %" PRIu64, from,
                 from + bytes - 1);
    return mgr_findings_add(&a->report, file->path, s ? s->name : NULL, from + (one ? at : 0), what,
                            err);
}

static int compare_sums(audit *a, mgr_err *err)
{
    for (size_t i = 0; i < a->sums.n; i++)
        if (a->sums.list[i].crc32 != a->wanted[i])
            MGR_TRY(blame(a, &a->sums.list[i], a->wanted[i], err));
    return MGR_OK;
}

/* Keys and sizes: the manifest's on the one side, what the files show on the other. */
static int compare_keys(audit *a, mgr_err *err)
{
    const mgr_catalogue *const cat = &a->view.cat;
    const char *path;
    json_t *entry;
    size_t planned = 0;
    json_object_foreach(a->tensors, path, entry) planned +=
        json_object_size(json_object_get(entry, "tensors"));
    for (size_t i = 0; i < cat->n_stored; i++) {
        const mgr_stored *const s = &cat->stored[i];
        const char *const file = cat->files[s->file].path + strlen(a->path) + 1;
        const json_t *const t = tensor_entry(a, file, s->name);
        if (!t || (uint64_t)json_integer_value(json_object_get(t, "bytes")) != mgr_view_bytes(s))
            MGR_TRY(mgr_findings_add(
                &a->report, file, s->name, UINT64_MAX,
                t ? "has another size than the manifest says" : "is not in the manifest", err));
    }
    return planned == cat->n_stored
               ? MGR_OK
               : mgr_findings_add(&a->report, NULL, NULL, UINT64_MAX,
                                  "the manifest has another number of tensors", err);
}

/* All ranks' oddities to rank 0. Collective. */
static int gather_odd(audit *a, mgr_err *err)
{
    mgr_buf all = {0};
    int rc = mgr_gather_bytes(a->comm, &a->scan.odd, &all, err);
    for (size_t at = 0; rc == MGR_OK && at < all.len; at += sizeof(mgr_odd)) {
        mgr_odd o;
        memcpy(&o, all.data + at, sizeof o);
        assert(a->cat.stored && o.stored < a->cat.n_stored);
        const mgr_stored *const s = &a->cat.stored[o.stored];
        rc = mgr_findings_add(&a->report, a->cat.files[s->file].path + strlen(a->path) + 1, s->name,
                              o.offset < MGR_VIRTUAL_OFFSET ? o.offset : UINT64_MAX,
                              "holds a value that is not finite", err);
    }
    mgr_buf_clear(&all);
    return mgr_agree(a->comm, rc, err);
}

/* ---- all of it ---- */

/* Rank 0, before anything is read. */
static int begin(audit *a, mgr_err *err)
{
    MGR_TRY(read_manifest(a, err));
    if (!a->manifest)
        return MGR_OK;
    MGR_TRY(take_files(a, err));
    a->late = strcmp(target_format(a), "hdf5") == 0;
    return a->late || a->report.list ? MGR_OK : open_view(a, err);
}

static int late_view(audit *a, mgr_err *err)
{
    return a->root && a->late && !a->report.list ? open_view(a, err) : MGR_OK;
}

static int finish(audit *a, mgr_err *err)
{
    if (!a->viewed || a->report.list)
        return MGR_OK;
    MGR_TRY(compare_keys(a, err));
    return a->view.has_model
               ? mgr_audit_experts(&a->report, a->path, &a->view, a->manifest, a->tensors, err)
               : MGR_OK;
}

static int read_all(audit *a, mgr_err *err)
{
    const mgr_sum_visitor visitor = {mgr_scan_piece, &a->scan};
    const size_t rank = (size_t)mgr_comm_rank(a->comm), ranks = (size_t)mgr_comm_size(a->comm);
    int rc = share_catalogue(a, err);
    if (rc == MGR_OK)
        rc = mgr_file_sums_share(a->comm, &a->sums, err);
    if (rc == MGR_OK)
        rc = mgr_agree(a->comm, mgr_scan_begin(&a->scan, &a->cat, a->path, &a->sums, err), err);
    if (rc == MGR_OK)
        rc = mgr_file_sums_take(a->comm, a->path, &a->sums, &visitor, err);
    if (rc == MGR_OK && a->root)
        rc = compare_sums(a, err);
    rc = mgr_agree(a->comm, rc, err);
    if (rc == MGR_OK)
        rc = mgr_agree(a->comm, late_view(a, err), err);
    if (rc == MGR_OK)
        rc = mgr_agree(a->comm, tell_refusal(a, err), err);
    if (rc == MGR_OK && a->cat.n_stored == 0) { /* the same on all ranks: a library keeps them */
        rc = share_catalogue(a, err);
        if (rc == MGR_OK)
            rc = mgr_agree(a->comm, mgr_scan_kept(&a->scan, rank, ranks, err), err);
    }
    return rc == MGR_OK ? gather_odd(a, err) : rc;
}

static void clear(audit *a)
{
    json_decref(a->tensors);
    json_decref(a->manifest);
    mgr_file_sums_clear(&a->sums);
    mgr_free(a->wanted);
    mgr_catalogue_clear(&a->cat);
    mgr_scan_clear(&a->scan);
    if (a->root)
        mgr_view_close(&a->view);
    mgr_buf_clear(&a->refusal);
    mgr_findings_clear(&a->report);
}

static void print_text(const audit *a)
{
    uint64_t bytes = 0;
    char text[32];
    for (size_t i = 0; i < a->sums.n; i++)
        bytes += a->sums.list[i].bytes;
    mgr_say(stdout, "path      %s\nread      %zu files, %s\n", a->path, a->sums.n,
            mgr_format_bytes(bytes, text, sizeof text));
    if (a->extra)
        mgr_say(stdout, "besides   %zu files that are not in the manifest\n", a->extra);
    mgr_findings_print(&a->report, false);
    if (json_array_size(a->report.list) == 0)
        mgr_say(stdout, "verified  all is as it was written\n");
}

static int print_json(const audit *a, mgr_err *err)
{
    json_t *const more = json_pack("{s:I,s:I}", "files", (json_int_t)a->sums.n, "not_in_manifest",
                                   (json_int_t)a->extra);
    return mgr_findings_json(&a->report, a->path, more, err);
}

int mgr_audit(mgr_comm *comm, const mgr_audit_options *o, bool *good, mgr_err *err)
{
    audit a = {.comm = comm, .root = mgr_comm_rank(comm) == 0};
    char path[4096];
    int64_t n_findings = 0;
    int rc = MGR_OK;
    snprintf(path, sizeof path, "%s", o->path);
    for (size_t len = strlen(path); len > 1 && path[len - 1] == '/';)
        path[--len] = '\0';
    a.path = path;
    rc = mgr_agree(comm, a.root ? begin(&a, err) : MGR_OK, err);
    if (rc == MGR_OK)
        rc = read_all(&a, err);
    if (rc == MGR_OK)
        rc = mgr_agree(comm, a.root ? finish(&a, err) : MGR_OK, err);
    if (a.root)
        n_findings = (int64_t)json_array_size(a.report.list);
    if (rc == MGR_OK)
        rc = mgr_sum_i64(comm, &n_findings, 1, err);
    *good = n_findings == 0;
    if (rc == MGR_OK && a.root && o->json)
        rc = print_json(&a, err);
    else if (rc == MGR_OK && a.root && !o->quiet)
        print_text(&a);
    clear(&a);
    return mgr_agree(comm, rc, err);
}
