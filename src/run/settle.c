#include "run/settle.h"

#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "core/crc.h"
#include "core/mem.h"
#include "core/say_run.h"
#include "core/stop.h"
#include "io/file.h"
#include "run/branches.h"
#include "run/source_sums.h"

int mgr_settle_gather(mgr_comm *comm, mgr_extents *extents, mgr_err *err)
{
    mgr_buf mine = {0}, all = {0};
    int rc = mgr_buf_add(&mine, extents->list, extents->n * sizeof *extents->list, err);
    rc = mgr_agree(comm, rc, err);
    if (rc == MGR_OK)
        rc = mgr_gather_bytes(comm, &mine, &all, err);
    if (rc == MGR_OK && mgr_comm_rank(comm) == 0) {
        mgr_free(extents->list);
        *extents = (mgr_extents){0};
        extents->n = all.len / sizeof *extents->list;
        rc = mgr_grow(&extents->list, &extents->capacity, extents->n, sizeof *extents->list, err);
        if (rc == MGR_OK && all.len)
            memcpy(extents->list, all.data, all.len);
    }
    mgr_buf_clear(&mine);
    mgr_buf_clear(&all);
    return mgr_agree(comm, rc, err);
}

static int by_place(const void *x, const void *y)
{
    const mgr_extent *const a = x, *const b = y;
    if (a->what != b->what)
        return a->what < b->what ? -1 : 1;
    return a->offset < b->offset ? -1 : a->offset > b->offset;
}

static void sort(mgr_extents *extents)
{
    if (extents->n)
        qsort(extents->list, extents->n, sizeof *extents->list, by_place);
}

/* CRC-32 of the `n` extents joined; false unless they cover 0 .. bytes without hole or overlap. */
static bool join(const mgr_extent *list, size_t n, uint64_t bytes, uint32_t *crc)
{
    uint64_t at = 0;
    uint32_t sum = 0;
    for (size_t i = 0; i < n; i++) {
        if (list[i].offset != at)
            return false;
        sum = (uint32_t)crc32_combine64(sum, list[i].crc32, (z_off64_t)list[i].bytes);
        at += list[i].bytes;
    }
    *crc = sum;
    return at == bytes;
}

/* The extents of `what`, from *at on. */
static size_t count_of(const mgr_extents *extents, size_t *at, uint32_t what)
{
    while (*at < extents->n && extents->list[*at].what < what)
        ++*at;
    size_t n = 0;
    while (*at + n < extents->n && extents->list[*at + n].what == what)
        n++;
    return n;
}

/* The byte of its file behind a stored tensor's last. */
static uint64_t end_of(const mgr_stored *s)
{
    uint64_t last = 0;
    for (uint32_t d = 0; d < s->ndim; d++) {
        if (s->shape[d] == 0)
            return s->offset;
        last += (s->shape[d] - 1) * s->stride[d];
    }
    return s->offset + (last + 1) * mgr_dtype_size(s->dtype);
}

static int by_offset(const void *x, const void *y)
{
    const mgr_stored *const a = *(const mgr_stored *const *)x, *const b =
                                                                   *(const mgr_stored *const *)y;
    if (a->record != b->record)
        return a->record < b->record ? -1 : 1;
    return a->offset < b->offset ? -1 : a->offset > b->offset;
}

/* Where two tensors are views of the same bytes, what is needed of a record cannot be added up. */
static int mark_shared(const mgr_catalogue *cat, uint64_t *needed, mgr_err *err)
{
    const mgr_stored **order = NULL;
    size_t n = 0;
    MGR_TRY(mgr_alloc(&order, cat->n_stored, sizeof *order, err));
    for (size_t i = 0; i < cat->n_stored; i++)
        if (cat->stored[i].record != MGR_NONE)
            order[n++] = &cat->stored[i];
    if (n)
        qsort(order, n, sizeof *order, by_offset);
    uint64_t end = 0;
    for (size_t i = 0; i < n; i++) {
        const uint32_t record = order[i]->record;
        if (i == 0 || order[i - 1]->record != record)
            end = 0;
        if (order[i]->offset < end)
            needed[record] = UINT64_MAX;
        end = end_of(order[i]) > end ? end_of(order[i]) : end;
    }
    mgr_free(order);
    return MGR_OK;
}

/* Does the plan read a tensor of the source? It goes by the first of a bundle. */
static bool is_read(const mgr_job *job, uint32_t tensor)
{
    const uint32_t lead = job->source.tensors.list[tensor].bundle;
    return job->plan.first_target[lead] < job->plan.first_target[lead + 1];
}

/* needed[i]: how many bytes of record i the tensors are that something is made of. */
static int count_needed(const mgr_job *job, uint64_t *needed, mgr_err *err)
{
    const mgr_layout *const layout = &job->source.layout;
    for (size_t b = 0; b < layout->n_boxes; b++) {
        const mgr_box *const box = &layout->boxes[b];
        const mgr_stored *const s = &layout->cat->stored[box->stored];
        if (s->record != MGR_NONE && is_read(job, box->tensor))
            needed[s->record] += box->rows * box->cols * mgr_dtype_size(s->dtype);
    }
    return mark_shared(layout->cat, needed, err);
}

/* `n` extents of record `i`: a record of which all is needed was read once, without a hole, and has
 * the checksum that its archive says. Of others only parts are weights, so there is none. */
static int settle_record(mgr_job *job, uint32_t i, const mgr_extent *extents, size_t n,
                         uint64_t needed, mgr_err *err)
{
    const mgr_record *const r = &job->source.cat.records[i];
    const char *const path = job->source.cat.files[r->file].path;
    uint32_t crc;
    job->tally.records_total++;
    if (!join(extents, n, r->size, &crc))
        return needed != r->size ? MGR_OK
                                 : mgr_fail(err, MGR_ERR_INTERNAL,
                                            "'%s' of '%s' at byte %llu was not read exactly once",
                                            r->name, path, (unsigned long long)r->offset);
    job->tally.records_checked += n > 0;
    if (n == 0 || crc == r->crc32)
        return MGR_OK;
    const bool ours = mgr_is_manifests(job, i);
    mgr_fail(err, MGR_ERR_FORMAT,
             "'%s' is damaged: CRC-32 of '%s' at byte %llu is %08x, %s says %08x", path, r->name,
             (unsigned long long)r->offset, crc, ours ? "its " MGR_MANIFEST : "the archive",
             r->crc32);
    return ours ? mgr_hint(err, MGR_HINT_MANIFEST) : MGR_ERR_FORMAT;
}

int mgr_settle_source(mgr_job *job, mgr_extents *read, mgr_err *err)
{
    const mgr_catalogue *const cat = &job->source.cat;
    uint64_t *needed = NULL;
    size_t at = 0;
    MGR_TRY(mgr_alloc(&needed, cat->n_records, sizeof *needed, err));
    int rc = count_needed(job, needed, err);
    sort(read);
    for (uint32_t i = 0; rc == MGR_OK && i < cat->n_records; i++) {
        const size_t n = count_of(read, &at, i);
        rc = settle_record(job, i, read->list + at, n, needed[i], err);
    }
    mgr_free(needed);
    return rc;
}

/* Twice as many in each step: it may be a whole checkpoint. */
static uint32_t crc_of_zeros(uint64_t bytes)
{
    static const unsigned char zero;
    uint32_t crc = 0;
    for (int bit = 63; bit >= 0; bit--) {
        const uint64_t half = bit < 63 ? bytes >> (bit + 1) : 0;
        crc = (uint32_t)crc32_combine64(crc, crc, (z_off64_t)half);
        if (bytes >> bit & 1)
            crc = mgr_crc32(crc, &zero, 1);
    }
    return crc;
}

/* Padding rows were never written: the file was made at its full size and reads as zeros there. */
static int add_fills(const mgr_job *job, mgr_extents *written, mgr_err *err)
{
    const mgr_layout *const layout = &job->target.layout;
    for (size_t i = 0; i < layout->n_fills; i++) {
        const mgr_fill *const f = &layout->fills[i];
        const mgr_stored *const s = &layout->cat->stored[f->stored];
        const uint64_t row = s->stride[0] * mgr_dtype_size(s->dtype);
        const mgr_extent extent = {
            f->stored, crc_of_zeros(f->rows * row), f->row * row, f->rows * row, 0, 0};
        MGR_TRY(mgr_extents_add(written, &extent, err));
    }
    return MGR_OK;
}

static int join_tensors(mgr_job *job, mgr_extents *written, mgr_err *err)
{
    const mgr_catalogue *const cat = &job->target.cat;
    size_t at = 0;
    MGR_TRY(add_fills(job, written, err));
    sort(written);
    MGR_TRY(mgr_alloc(&job->stored_crc, cat->n_stored, sizeof *job->stored_crc, err));
    for (uint32_t i = 0; i < cat->n_stored; i++) {
        const mgr_stored *const s = &cat->stored[i];
        const size_t n = count_of(written, &at, i);
        const uint64_t bytes = mgr_stored_bytes(s);
        if (!join(written->list + at, n, bytes, &job->stored_crc[i]))
            return mgr_fail(err, MGR_ERR_INTERNAL,
                            "tensor '%s' of '%s' was not written exactly once", s->name,
                            cat->files[s->file].path);
    }
    return MGR_OK;
}

static mgr_moment moment_of(const mgr_extent *note)
{
    return (mgr_moment){mgr_bits_f32((uint32_t)note->offset), mgr_bits_f32((uint32_t)note->bytes)};
}

/* Take the notes out of the sorted extents: checksums of experts that lie in pieces, moments. */
static int take_notes(mgr_job *job, const mgr_extents *written, mgr_err *err)
{
    const mgr_layout *const layout = &job->target.layout;
    const mgr_tensors *const ts = layout->tensors;
    const uint32_t n_source = job->source.tensors.n;
    size_t at = 0;
    MGR_TRY(mgr_alloc(&job->tensor_crc, ts->n, sizeof *job->tensor_crc, err));
    MGR_TRY(mgr_alloc(&job->target_moment, ts->n, sizeof *job->target_moment, err));
    MGR_TRY(mgr_alloc(&job->source_moment, n_source, sizeof *job->source_moment, err));
    for (uint32_t i = 0; i < ts->n; i++) {
        const uint64_t bytes = mgr_layout_tensor_bytes(layout, i);
        const size_t n = count_of(written, &at, mgr_note_what(job, MGR_NOTE_ROWS, i));
        if (mgr_is_whole(layout, i))
            job->tensor_crc[i] = job->stored_crc[layout->boxes[layout->first_box[i]].stored];
        else if (n && !join(written->list + at, n, bytes, &job->tensor_crc[i]))
            return mgr_fail(err, MGR_ERR_INTERNAL, "an expert was not made exactly once");
    }
    for (uint32_t i = 0; i < ts->n; i++)
        if (count_of(written, &at, mgr_note_what(job, MGR_NOTE_TARGET_MOMENT, i)))
            job->target_moment[i] = moment_of(&written->list[at]);
    for (uint32_t i = 0; i < n_source; i++)
        if (count_of(written, &at, mgr_note_what(job, MGR_NOTE_SOURCE_MOMENT, i)))
            job->source_moment[i] = moment_of(&written->list[at]);
    return mgr_say_values(job, written, err);
}

/* Where a container's blobs go. */
typedef struct blob_writer {
    int fd;
    const char *name;
    uint32_t file;
    mgr_extents *extents; /* of files */
} blob_writer;

static int put_blob(void *context, const mgr_blob *blob, mgr_err *err)
{
    const blob_writer *const w = context;
    MGR_TRY(mgr_check_stop(err));
    MGR_TRY(mgr_pwrite_full(w->fd, w->name, blob->bytes, blob->len, blob->offset, err));
    const mgr_extent extent = {
        w->file, mgr_crc32(0, blob->bytes, blob->len), blob->offset, blob->len, 0, 0};
    return mgr_extents_add(w->extents, &extent, err);
}

static int finish_file(const mgr_job *job, mgr_open_files *files, uint32_t file,
                       mgr_extents *extents, mgr_err *err)
{
    blob_writer writer = {-1, job->target.cat.files[file].path, file, extents};
    const mgr_blob_sink sink = {put_blob, &writer};
    MGR_TRY(mgr_open_files_get(files, file, &writer.fd, err));
    return job->container->finish(&job->target.layout, file, job->target_state, job->stored_crc,
                                  &sink, err);
}

static int join_files(mgr_job *job, mgr_extents *extents, mgr_err *err)
{
    const mgr_catalogue *const cat = &job->target.cat;
    size_t at = 0;
    for (uint32_t i = 0; i < cat->n_stored; i++) {
        const mgr_stored *const s = &cat->stored[i];
        const uint64_t bytes = mgr_stored_bytes(s);
        const mgr_extent extent = {s->file, job->stored_crc[i], s->offset, bytes, 0, 0};
        MGR_TRY(mgr_extents_add(extents, &extent, err));
    }
    sort(extents);
    MGR_TRY(mgr_alloc(&job->file_crc, cat->n_files, sizeof *job->file_crc, err));
    for (uint32_t f = 0; f < cat->n_files; f++) {
        const size_t n = count_of(extents, &at, f);
        if (!join(extents->list + at, n, cat->files[f].bytes, &job->file_crc[f]))
            return mgr_fail(err, MGR_ERR_INTERNAL, "'%s' was not written exactly once",
                            cat->files[f].path);
    }
    return MGR_OK;
}

int mgr_settle_target(mgr_job *job, const char *directory, mgr_extents *written, mgr_err *err)
{
    const mgr_catalogue *const cat = &job->target.cat;
    mgr_open_files files;
    mgr_extents extents = {0};
    int rc = mgr_open_files_init(&files, cat, directory, true, err);
    if (rc == MGR_OK)
        rc = join_tensors(job, written, err);
    if (rc == MGR_OK)
        rc = take_notes(job, written, err);
    mgr_say_work("files", cat->n_files, 1);
    for (uint32_t f = 0; rc == MGR_OK && f < cat->n_files; f++) {
        rc = finish_file(job, &files, f, &extents, err);
        if (rc == MGR_OK)
            rc = mgr_say_step(1, err);
    }
    const int closed = mgr_open_files_close(&files, rc != MGR_OK, err);
    rc = rc != MGR_OK ? rc : closed;
    if (rc == MGR_OK)
        rc = join_files(job, &extents, err);
    mgr_free(extents.list);
    mgr_free(files.list);
    return rc;
}
