/* The I/O half of engine/engine.h: boxes to extents, extents to bytes. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "core/crc.h"
#include "core/mem.h"
#include "core/stop.h"
#include "engine/engine.h"
#include "engine/journal.h"
#include "engine/progress.h"
#include "io/file.h"
#include "kern/kern.h"

/* Rows that lie one behind the other in a file, and where they go in memory. Of a transposed box it
 * is a piece of one column, each of whose elements is a row here. */
typedef struct mgr_read_item {
    uint32_t file, record, tensor;
    bool compare; /* a replica: its bytes must be there already */
    uint64_t offset, record_offset;
    size_t row_bytes, rows, stride; /* stride of the destination */
    unsigned char *to;
} mgr_read_item;

static int by_file_order(const void *x, const void *y)
{
    const mgr_read_item *const a = x, *const b = y;
    if (a->compare != b->compare) /* replicas last: they are compared with what was read */
        return a->compare ? 1 : -1;
    if (a->file != b->file)
        return a->file < b->file ? -1 : 1;
    return a->offset < b->offset ? -1 : a->offset > b->offset;
}

static int add_item(mgr_engine *e, const mgr_read_item *item, mgr_err *err)
{
    assert(item->offset >= MGR_VIRTUAL_OFFSET || item->offset + item->rows * item->row_bytes <=
                                                     e->job->source.cat.files[item->file].bytes);
    MGR_TRY(mgr_grow(&e->items, &e->cap_items, e->n_items + 1, sizeof *item, err));
    e->items[e->n_items++] = *item;
    return MGR_OK;
}

/* A transposed box: the piece's rows are a stretch of each stored row. */
static int add_transposed(mgr_engine *e, const mgr_box *box, uint64_t from, uint64_t to,
                          unsigned char *into, mgr_err *err)
{
    const mgr_layout *const layout = &e->job->source.layout;
    const mgr_stored *const s = &layout->cat->stored[box->stored];
    const size_t element = mgr_dtype_size(s->dtype);
    for (uint64_t col = box->col; col < box->col + box->cols; col++) {
        const mgr_read_item item = {
            .file = s->file,
            .record = s->record,
            .tensor = box->tensor,
            .compare = box->copy > 0,
            .offset = mgr_box_offset(layout, box, from, col),
            .record_offset = s->record == MGR_NONE ? 0 : layout->cat->records[s->record].offset,
            .row_bytes = element,
            .rows = (size_t)(to - from),
            .stride = layout->tensors->list[box->tensor].cols * element,
            .to = into + col * element,
        };
        MGR_TRY(add_item(e, &item, err));
    }
    return MGR_OK;
}

/* Items of the rows that `box` and `piece` share. `into` is the piece's first row in memory. */
static int add_box(mgr_engine *e, const mgr_box *box, const mgr_piece *piece, unsigned char *into,
                   mgr_err *err)
{
    const mgr_layout *const layout = &e->job->source.layout;
    const mgr_stored *const s = &layout->cat->stored[box->stored];
    const size_t element = mgr_dtype_size(s->dtype);
    const uint64_t from = box->row > piece->row ? box->row : piece->row;
    const uint64_t box_end = box->row + box->rows, piece_end = piece->row + piece->rows;
    const uint64_t to = box_end < piece_end ? box_end : piece_end;
    if (from >= to)
        return MGR_OK;
    const size_t stride = layout->tensors->list[box->tensor].cols * element;
    if (box->transposed)
        return add_transposed(e, box, from, to, into + (from - piece->row) * stride, err);
    const size_t row_bytes = box->cols * element;
    const uint64_t fit = e->job->plan.chunk_bytes / row_bytes;
    const bool dense = box->row_stride == box->cols;
    const uint64_t per_item = dense ? (fit ? fit : 1) : 1;
    for (uint64_t row = from; row < to; row += per_item) {
        const mgr_read_item item = {
            .file = s->file,
            .record = s->record,
            .tensor = box->tensor,
            .compare = box->copy > 0,
            .offset = mgr_box_offset(layout, box, row, box->col),
            .record_offset = s->record == MGR_NONE ? 0 : layout->cat->records[s->record].offset,
            .row_bytes = row_bytes,
            .rows = (size_t)(to - row < per_item ? to - row : per_item),
            .stride = stride,
            .to = into + (row - piece->row) * stride + box->col * element,
        };
        MGR_TRY(add_item(e, &item, err));
    }
    return MGR_OK;
}

static int collect_whole(mgr_engine *e, const mgr_unit *unit, unsigned char *into, mgr_err *err)
{
    const mgr_layout *const layout = &e->job->source.layout;
    for (uint32_t p = 0; p < unit->n_pieces; p++) {
        const mgr_piece *const piece = &e->job->plan.pieces[unit->piece + p];
        for (size_t b = layout->first_box[piece->source]; b < layout->first_box[piece->source + 1];
             b++)
            MGR_TRY(add_box(e, &layout->boxes[b], piece, into, err));
        into += piece->rows * mgr_layout_row_bytes(layout, piece->source);
    }
    return MGR_OK;
}

/* Replicas were compared where the whole tensor was read. */
static int collect_gathered(mgr_engine *e, const mgr_unit *unit, const uint32_t *origin,
                            unsigned char *into, mgr_err *err)
{
    const mgr_layout *const layout = &e->job->source.layout;
    const mgr_piece *const piece = &e->job->plan.pieces[unit->piece];
    const uint64_t row_bytes = mgr_layout_row_bytes(layout, piece->source);
    assert(unit->n_pieces == 1);
    for (uint64_t r = 0; r < piece->rows; r++, into += row_bytes) {
        const mgr_piece row = {.source = piece->source, .row = origin[piece->row + r], .rows = 1};
        for (size_t b = layout->first_box[row.source]; b < layout->first_box[row.source + 1]; b++)
            if (layout->boxes[b].copy == 0)
                MGR_TRY(add_box(e, &layout->boxes[b], &row, into, err));
    }
    return MGR_OK;
}

static int collect_items(mgr_engine *e, const mgr_unit *unit, const uint32_t *origin,
                         unsigned char *into, mgr_err *err)
{
    assert(unit->gathered == (origin != NULL));
    e->n_items = 0;
    MGR_TRY(origin ? collect_gathered(e, unit, origin, into, err)
                   : collect_whole(e, unit, into, err));
    qsort(e->items, e->n_items, sizeof *e->items, by_file_order);
    return MGR_OK;
}

/* Sum of 0 .. n-1, modulo 2^64. */
static uint64_t sum_below(uint64_t n)
{
    return n & 1 ? (n - 1) / 2 * n : n / 2 * (n - 1);
}

static void count_item(mgr_placed *placed, const mgr_read_item *item)
{
    const uint64_t at = (uint64_t)(item->to - placed->unit);
    const uint64_t rows = item->rows, width = item->row_bytes, stride = item->stride;
    assert(item->to >= placed->unit && rows > 0 && width <= stride);
    assert(at + (rows - 1) * stride + width <= placed->limit);
    if (item->compare) {
        placed->compared += rows * width;
        return;
    }
    placed->bytes += rows * width;
    placed->places +=
        rows * width * at + width * stride * sum_below(rows) + rows * sum_below(width);
}

/* Bytes that replicas have of a piece. */
static uint64_t replica_bytes(const mgr_layout *layout, const mgr_piece *piece)
{
    uint64_t bytes = 0;
    for (size_t b = layout->first_box[piece->source]; b < layout->first_box[piece->source + 1];
         b++) {
        const mgr_box *const box = &layout->boxes[b];
        const uint64_t end = piece->row + piece->rows, box_end = box->row + box->rows;
        const uint64_t from = box->row > piece->row ? box->row : piece->row;
        const uint64_t to = box_end < end ? box_end : end;
        if (box->copy && from < to)
            bytes += (to - from) * box->cols * mgr_dtype_size(layout->types[box->tensor]);
    }
    return bytes;
}

/* Was every byte of the unit read, and every replica of one compared? */
static int check_placed(const mgr_engine *e, const mgr_unit *unit, mgr_err *err)
{
    const mgr_layout *const layout = &e->job->source.layout;
    const mgr_piece *const pieces = &e->job->plan.pieces[unit->piece];
    uint64_t replicas = 0;
    for (uint32_t p = 0; p < unit->n_pieces && !unit->gathered; p++)
        replicas += replica_bytes(layout, &pieces[p]);
    if (e->placed.bytes == unit->in_bytes && e->placed.places == sum_below(unit->in_bytes) &&
        e->placed.compared == replicas)
        return MGR_OK;
    char label[96];
    return mgr_fail(err, MGR_ERR_INTERNAL,
                    "%s, rows from %llu on, was not read exactly once: %llu of %llu bytes, %llu of "
                    "%llu of its replicas",
                    mgr_tensor_label(&layout->tensors->list[pieces->source], label, sizeof label),
                    (unsigned long long)pieces->row, (unsigned long long)e->placed.bytes,
                    (unsigned long long)unit->in_bytes, (unsigned long long)e->placed.compared,
                    (unsigned long long)replicas);
}

/* Spread an item's bytes over its rows, unless they are there, or compare them with what is. */
static int place_item(mgr_engine *e, const mgr_read_item *item, const unsigned char *bytes,
                      mgr_err *err)
{
    count_item(&e->placed, item);
    if (bytes == item->to)
        return MGR_OK;
    if (!item->compare) {
        mgr_copy_2d(item->to, item->stride, bytes, item->row_bytes, item->row_bytes, item->rows);
        return MGR_OK;
    }
    for (size_t r = 0; r < item->rows; r++) {
        if (memcmp(item->to + r * item->stride, bytes + r * item->row_bytes, item->row_bytes) == 0)
            continue;
        char label[96];
        const mgr_layout *const layout = &e->job->source.layout;
        return mgr_fail(err, MGR_ERR_FORMAT,
                        "shards disagree: the copy of %s in '%s' at byte %llu differs from the "
                        "first one",
                        mgr_tensor_label(&layout->tensors->list[item->tensor], label, sizeof label),
                        layout->cat->files[item->file].path,
                        (unsigned long long)(item->offset + r * item->row_bytes));
    }
    return MGR_OK;
}

/* How many items, from `first` on, follow each other in the file and fit the buffer together. */
static size_t run_length(const mgr_engine *e, size_t first, uint64_t *bytes)
{
    const mgr_read_item *const lead = &e->items[first];
    uint64_t total = (uint64_t)lead->rows * lead->row_bytes;
    size_t n = 1;
    for (; first + n < e->n_items; n++) {
        const mgr_read_item *const next = &e->items[first + n];
        const uint64_t more = (uint64_t)next->rows * next->row_bytes;
        if (next->file != lead->file || next->record != lead->record ||
            next->compare != lead->compare || next->offset != lead->offset + total ||
            total + more > e->job->plan.chunk_bytes)
            break;
        total += more;
    }
    *bytes = total;
    return n;
}

static bool is_within(const unsigned char *at, const unsigned char *buffer, uint64_t size)
{
    return buffer && (uintptr_t)at >= (uintptr_t)buffer && (uintptr_t)at - (uintptr_t)buffer < size;
}

/* Is it in a buffer that only reading changes? */
static bool is_kept(const mgr_engine *e, const void *bytes)
{
    return is_within(bytes, e->unit.at, e->job->plan.unit_bytes) ||
           is_within(bytes, e->cache, e->job->plan.cache_bytes);
}

static const mgr_known_crc *find_known(const mgr_engine *e, const unsigned char *bytes, size_t len)
{
    for (uint32_t i = 0; i < MGR_KNOWN_CRCS && i < e->n_known; i++)
        if (e->known[i].bytes == bytes && e->known[i].len == len)
            return &e->known[i];
    return NULL;
}

uint32_t mgr_engine_crc(mgr_engine *e, const void *bytes, size_t len)
{
    const bool stays = is_kept(e, bytes);
    const mgr_known_crc *const known = stays ? find_known(e, bytes, len) : NULL;
    if (known)
        return known->crc32;
    const double start = mgr_now();
    const uint32_t crc = mgr_crc32(0, bytes, len);
    e->job->tally.seconds_proof += mgr_now() - start;
    if (stays)
        e->known[e->n_known++ % MGR_KNOWN_CRCS] = (mgr_known_crc){bytes, len, crc};
    return crc;
}

/* By the format of the source that the file is of, in that source's own catalogue. */
static int fetch(mgr_engine *e, const mgr_read_item *from, unsigned char *into, uint64_t bytes,
                 mgr_err *err)
{
    const mgr_job *const job = e->job;
    uint32_t i = 0;
    if (!job->n_branches)
        return job->source_format->fetch(&e->fetchers[0], &job->source.cat, from->file,
                                         from->offset, into, bytes, err);
    while (i + 1 < job->n_branches && from->file >= job->branches[i + 1].first_file)
        i++;
    const mgr_branch *const b = &job->branches[i];
    return b->format->fetch(&e->fetchers[i], &b->side.cat, from->file - b->first_file, from->offset,
                            into, bytes, err);
}

/* Bytes of a source file: as they lie there, or as its format makes them. */
static int read_bytes(mgr_engine *e, const mgr_read_item *from, unsigned char *into, uint64_t bytes,
                      mgr_err *err)
{
    const mgr_catalogue *const cat = &e->job->source.cat;
    int fd;
    if (from->offset >= MGR_VIRTUAL_OFFSET)
        return fetch(e, from, into, bytes, err);
    MGR_TRY(mgr_open_files_get(&e->read_files, from->file, &fd, err));
    return mgr_pread_full(fd, cat->files[from->file].path, into, bytes, from->offset, err);
}

/* Do the items lie in memory as they do in the file? Then they are read to where they belong. */
static bool lies_alike(const mgr_read_item *items, size_t n)
{
    const unsigned char *at = items->to;
    for (size_t i = 0; i < n; i++) {
        if (items[i].compare || items[i].to != at ||
            (items[i].rows > 1 && items[i].stride != items[i].row_bytes))
            return false;
        at += items[i].rows * items[i].row_bytes;
    }
    return true;
}

static int read_run(mgr_engine *e, size_t first, size_t n, uint64_t bytes, bool count, mgr_err *err)
{
    const mgr_read_item *const lead = &e->items[first];
    const bool alike = lies_alike(lead, n);
    unsigned char *const into = alike ? lead->to : e->bounce.at;
    assert(bytes <= e->job->plan.chunk_bytes &&
           (uint64_t)(lead->to - e->placed.unit) + (alike ? bytes : 0) <= e->placed.limit);
    MGR_TRY(mgr_check_stop(err));
    MGR_TRY(read_bytes(e, lead, into, bytes, err));
    e->job->tally.bytes_read += bytes;
    e->job->tally.calls_read++;
    mgr_progress_add(e->progress, bytes, 0);
    if (count && lead->record != MGR_NONE) {
        const mgr_extent extent = {lead->record,
                                   mgr_engine_crc(e, into, bytes),
                                   lead->offset - lead->record_offset,
                                   bytes,
                                   e->unit_idx,
                                   0};
        MGR_TRY(mgr_extents_add(&e->read_extents, &extent, err));
    }
    const unsigned char *at = into;
    for (size_t i = first; i < first + n; i++) {
        MGR_TRY(place_item(e, &e->items[i], at, err));
        at += e->items[i].rows * e->items[i].row_bytes;
    }
    return MGR_OK;
}

int mgr_engine_see_reads(mgr_engine *e, const mgr_unit *unit, const uint32_t *origin,
                         mgr_see_read see, void *context, mgr_err *err)
{
    MGR_TRY(collect_items(e, unit, origin, e->unit.at, err));
    for (size_t i = 0; i < e->n_items;) {
        uint64_t bytes;
        const size_t n = run_length(e, i, &bytes);
        see(context, e->items[i].file, bytes);
        i += n;
    }
    return MGR_OK;
}

int mgr_engine_read(mgr_engine *e, const mgr_unit *unit, const uint32_t *origin,
                    unsigned char *into, bool count, mgr_err *err)
{
    e->placed = (mgr_placed){.unit = into, .limit = unit->in_bytes};
    e->n_known = 0;
    MGR_TRY(collect_items(e, unit, origin, into, err));
    for (size_t i = 0; i < e->n_items;) {
        uint64_t bytes;
        const size_t n = run_length(e, i, &bytes);
        MGR_TRY(read_run(e, i, n, bytes, count, err));
        i += n;
    }
    return check_placed(e, unit, err);
}

static void lose(void *context, uint32_t unit)
{
    const mgr_engine *const e = context;
    mgr_journal_lose(e->journal, unit);
}

int mgr_engine_drain(mgr_engine *e, mgr_err *err)
{
    return mgr_write_behind_drain(e->behind, &e->write_extents, lose, e, err);
}

/* Where others write, no file may be closed to make room for this one meanwhile. */
static int open_to_write(mgr_engine *e, uint32_t file, int *fd, mgr_err *err)
{
    if (e->behind && mgr_open_files_is_full(&e->write_files, file))
        MGR_TRY(mgr_engine_drain(e, err));
    return mgr_open_files_get(&e->write_files, file, fd, err);
}

/* Into the files of a new output. What may be asked for once more is summed here, where it is
 * remembered. */
static int put_into_file(mgr_engine *e, const mgr_stretch *at, mgr_err *err)
{
    const mgr_catalogue *const cat = e->job->target.layout.cat;
    const mgr_stored *const s = &cat->stored[at->stored];
    mgr_write_task task = {
        .name = cat->files[s->file].path,
        .at = at->offset,
        .bytes = at->bytes,
        .len = at->len,
        .summed = !e->behind || is_kept(e, at->bytes),
        .extent = {at->stored, 0, at->offset - s->offset, at->len, e->unit_idx, 0},
    };
    MGR_TRY(open_to_write(e, s->file, &task.fd, err));
    if (task.summed)
        task.extent.crc32 = mgr_engine_crc(e, at->bytes, at->len);
    if (e->behind)
        return mgr_write_behind_put(e->behind, &task, &e->write_extents, err);
    MGR_TRY(mgr_write_task_do(&task, err));
    return mgr_extents_add(&e->write_extents, &task.extent, err);
}

/* One contiguous stretch of a stored tensor, from the logical element (row, col) on. */
static int put_stretch(mgr_engine *e, const mgr_box *box, uint64_t row, uint64_t col,
                       const void *bytes, size_t len, mgr_err *err)
{
    const mgr_layout *const layout = &e->job->target.layout;
    const mgr_stretch stretch = {box->stored, mgr_box_offset(layout, box, row, col), bytes, len};
    assert(len > 0 && stretch.offset >= layout->cat->stored[box->stored].offset);
    assert(stretch.offset + len <= layout->cat->stored[box->stored].offset +
                                       mgr_stored_bytes(&layout->cat->stored[box->stored]));
    MGR_TRY(mgr_check_stop(err));
    MGR_TRY(e->sink ? e->sink->put(e->sink->context, &stretch, err)
                    : put_into_file(e, &stretch, err));
    e->job->tally.bytes_written += len;
    e->job->tally.calls_written++;
    mgr_progress_add(e->progress, 0, len);
    return MGR_OK;
}

uint64_t mgr_engine_at_once(const mgr_job *job, const mgr_box *box, uint64_t n, uint64_t inside)
{
    const mgr_layout *const layout = &job->target.layout;
    const uint64_t cols = layout->tensors->list[box->tensor].cols;
    const uint64_t element = mgr_dtype_size(layout->types[box->tensor]);
    if (box->transposed)
        return inside == box->row_stride ? job->plan.chunk_bytes / (inside * element) : 1;
    return box->row_stride != box->cols ? 1
           : box->cols == cols          ? n
                                        : job->plan.chunk_bytes / (box->cols * element);
}

/* Rows [from, end) of a transposed box are a stretch of each stored row; where they are all of it,
 * stored rows follow each other. As many stored rows as the buffer holds are made at a time. */
static int write_transposed(mgr_engine *e, const mgr_box *box, uint64_t from, uint64_t end,
                            const unsigned char *rows, mgr_err *err)
{
    const mgr_layout *const layout = &e->job->target.layout;
    const size_t element = mgr_dtype_size(layout->types[box->tensor]);
    const size_t stride = layout->tensors->list[box->tensor].cols * element;
    const size_t n = (size_t)(end - from), len = n * element;
    const uint64_t step = mgr_engine_at_once(e->job, box, n, n);
    assert(step > 0 && end <= box->row + box->rows);
    for (uint64_t col = 0; col < box->cols; col += step) {
        const uint64_t count = box->cols - col < step ? box->cols - col : step;
        for (uint64_t k = 0; k < count; k++)
            mgr_copy_2d(e->bounce.at + k * len, element, rows + (box->col + col + k) * element,
                        stride, element, n);
        MGR_TRY(put_stretch(e, box, from, box->col + col, e->bounce.at, count * len, err));
        mgr_turns_next(&e->bounce, e->behind);
    }
    return MGR_OK;
}

/* The part of rows [row, row+n) that lies in `box`; packed column parts go through the read buffer,
 * which is free while rows are written. */
static int write_box(mgr_engine *e, const mgr_box *box, uint64_t row, uint64_t n,
                     const unsigned char *rows, mgr_err *err)
{
    const mgr_layout *const layout = &e->job->target.layout;
    const size_t element = mgr_dtype_size(layout->types[box->tensor]);
    const size_t stride = layout->tensors->list[box->tensor].cols * element;
    const size_t row_bytes = box->cols * element;
    const uint64_t from = box->row > row ? box->row : row;
    const uint64_t end = box->row + box->rows < row + n ? box->row + box->rows : row + n;
    if (box->transposed)
        return from < end ? write_transposed(e, box, from, end, rows + (from - row) * stride, err)
                          : MGR_OK;
    const uint64_t step = mgr_engine_at_once(e->job, box, n, end - from);
    for (uint64_t r = from; r < end; r += step) {
        const uint64_t count = end - r < step ? end - r : step;
        const unsigned char *bytes = rows + (r - row) * stride + box->col * element;
        if (row_bytes != stride && count > 1) {
            assert(count * row_bytes <= e->job->plan.chunk_bytes);
            mgr_copy_2d(e->bounce.at, row_bytes, bytes, stride, row_bytes, count);
            bytes = e->bounce.at;
        }
        MGR_TRY(put_stretch(e, box, r, box->col, bytes, count * row_bytes, err));
        if (bytes == e->bounce.at)
            mgr_turns_next(&e->bounce, e->behind);
    }
    return MGR_OK;
}

uint32_t mgr_note_what(const mgr_job *job, mgr_note note, uint32_t tensor)
{
    const uint32_t n_target = job->target.tensors.n, n_source = job->source.tensors.n;
    const uint32_t of_source = note < MGR_NOTE_SOURCE_MOMENT ? 0 : note - MGR_NOTE_SOURCE_MOMENT;
    return (uint32_t)job->target.cat.n_stored + (note - of_source) * n_target +
           of_source * n_source + tensor;
}

bool mgr_is_whole(const mgr_layout *target, uint32_t tensor)
{
    const mgr_tensor *const t = &target->tensors->list[tensor];
    const mgr_box *const box = &target->boxes[target->first_box[tensor]];
    const mgr_stored *const s = &target->cat->stored[box->stored];
    return target->first_box[tensor + 1] > target->first_box[tensor] && box->rows == t->rows &&
           box->cols == t->cols && !box->transposed &&
           s->shape[0] * s->stride[0] == t->rows * t->cols;
}

/* An expert that a layout cuts is checksummed as the model sees it, too: the ledger's number does
 * not depend on the layout. Another sink has no ledger. */
static int note_rows(mgr_engine *e, uint32_t target, uint64_t row, uint64_t n,
                     const unsigned char *rows, mgr_err *err)
{
    const mgr_layout *const layout = &e->job->target.layout;
    const uint64_t row_bytes = mgr_layout_row_bytes(layout, target);
    const bool expert = e->job->defines[target].op == MGR_OP_EXPERT ||
                        (e->job->defines[target].op == MGR_OP_INIT &&
                         layout->tensors->list[target].expert != MGR_NONE);
    if (e->sink || !expert || mgr_is_whole(layout, target))
        return MGR_OK;
    const mgr_extent extent = {mgr_note_what(e->job, MGR_NOTE_ROWS, target),
                               mgr_engine_crc(e, rows, n * row_bytes),
                               row * row_bytes,
                               n * row_bytes,
                               e->unit_idx,
                               0};
    return mgr_extents_add(&e->write_extents, &extent, err);
}

int mgr_engine_write(mgr_engine *e, uint32_t target, uint64_t row, uint64_t n,
                     const unsigned char *rows, mgr_err *err)
{
    const mgr_layout *const layout = &e->job->target.layout;
    assert(row + n <= layout->tensors->list[target].rows);
    MGR_TRY(note_rows(e, target, row, n, rows, err));
    for (size_t b = layout->first_box[target]; b < layout->first_box[target + 1]; b++)
        MGR_TRY(write_box(e, &layout->boxes[b], row, n, rows, err));
    if (rows == e->out.at)
        mgr_turns_next(&e->out, e->behind);
    return MGR_OK;
}
