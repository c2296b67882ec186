/* The part of engine/engine.h that looks at values: what is not finite, what the target's type
 * cannot hold, what is all zeros. */
#include <stdio.h>

#include "engine/engine.h"
#include "kern/kern.h"

/* An element of a source tensor, for people: "layer 0 q, row 3, column 5 ('name' in 'file', byte
 * 1234)". */
typedef struct place {
    char text[600];
} place;

static place place_of(const mgr_job *job, uint32_t tensor, uint64_t row, uint64_t col)
{
    const mgr_layout *const layout = &job->source.layout;
    const mgr_tensor *const t = &layout->tensors->list[tensor];
    place p;
    char label[96];
    int used = snprintf(p.text, sizeof p.text, "%s, row %llu, column %llu",
                        mgr_tensor_label(t, label, sizeof label), (unsigned long long)row,
                        (unsigned long long)col);
    for (size_t b = layout->first_box[tensor]; b < layout->first_box[tensor + 1]; b++) {
        const mgr_box *const box = &layout->boxes[b];
        const mgr_stored *const s = &layout->cat->stored[box->stored];
        if (row < box->row || row - box->row >= box->rows || col < box->col ||
            col - box->col >= box->cols)
            continue;
        snprintf(p.text + used, sizeof p.text - (size_t)used, " ('%s' in '%s', byte %llu)", s->name,
                 layout->cat->files[s->file].path,
                 (unsigned long long)mgr_box_offset(layout, box, row, col));
        break;
    }
    return p;
}

/* The place of element `i` of a piece. */
static place place_in(const mgr_job *job, const mgr_piece *piece, size_t i)
{
    const uint64_t cols = job->source.tensors.list[piece->source].cols;
    return place_of(job, piece->source, piece->row + i / cols, i % cols);
}

static size_t elements(const mgr_job *job, const mgr_piece *piece)
{
    return (size_t)(piece->rows * job->source.tensors.list[piece->source].cols);
}

static int note(mgr_engine *e, mgr_note kind, const mgr_piece *piece, uint64_t offset,
                uint64_t bytes, mgr_err *err)
{
    const mgr_extent extent = {
        mgr_note_what(e->job, kind, piece->source), 0, offset, bytes, e->unit_idx, 0};
    return mgr_extents_add(&e->write_extents, &extent, err);
}

/* May the source that the piece is of hold what is not finite? */
static bool is_allowed(const mgr_job *job, const mgr_piece *piece)
{
    const uint32_t branch = job->source.tensors.list[piece->source].source;
    return job->n_branches ? job->config.sources[branch].is.allow_nonfinite
                           : job->config.source.allow_nonfinite;
}

int mgr_engine_not_finite(const mgr_engine *e, const mgr_piece *piece, const unsigned char *data,
                          mgr_err *err)
{
    const mgr_dtype type = e->job->source.layout.types[piece->source];
    const size_t n = elements(e->job, piece);
    const size_t i = mgr_find_magnitude(data, type, n, mgr_infinity_bits(type), UINT32_MAX);
    if (i == n)
        return MGR_OK;
    const bool nan = mgr_find_magnitude(data + i * mgr_dtype_size(type), type, 1,
                                        mgr_infinity_bits(type) + 1, UINT32_MAX) == 0;
    mgr_fail(err, MGR_ERR_FORMAT, "%s is %s", place_in(e->job, piece, i).text,
             nan ? "NaN" : "infinite");
    return mgr_hint(err, is_allowed(e->job, piece)
                             ? "an upcycle.method without statistics, naive or noise, passes it on"
                             : "set 'source.allow_nonfinite: true' to pass such values on");
}

static int look_at_not_finite(mgr_engine *e, const mgr_piece *piece, const unsigned char *data,
                              mgr_err *err)
{
    const mgr_dtype type = e->job->source.layout.types[piece->source];
    const size_t n = elements(e->job, piece);
    if (!is_allowed(e->job, piece))
        return mgr_engine_not_finite(e, piece, data, err);
    const size_t i = mgr_find_magnitude(data, type, n, mgr_infinity_bits(type), UINT32_MAX);
    const uint64_t cols = e->job->source.tensors.list[piece->source].cols;
    return note(e, MGR_NOTE_SOURCE_NOT_FINITE, piece, piece->row * cols + i, 1, err);
}

/* The tensor that targets are defined by: of several that are averaged the first. */
static uint32_t made_of(const mgr_job *job, uint32_t source)
{
    const mgr_tensor *const t = &job->source.tensors.list[source];
    if (job->plan.first_target[source] != job->plan.first_target[source + 1] || !t->source)
        return source;
    return mgr_tensors_find(&job->source.tensors, t->role, t->layer, t->expert);
}

/* The narrowest of the types that the piece goes to. */
static uint32_t least_overflow(const mgr_job *job, const mgr_piece *piece, mgr_dtype *to)
{
    const mgr_plan *const plan = &job->plan;
    const mgr_dtype from = job->source.layout.types[piece->source];
    const uint32_t of = made_of(job, piece->source);
    uint32_t least = mgr_infinity_bits(from);
    for (uint32_t k = plan->first_target[of]; k < plan->first_target[of + 1]; k++) {
        const mgr_dtype type = job->target.layout.types[plan->targets[k]];
        const uint32_t bits = mgr_overflow_bits(from, type);
        *to = bits < least ? type : *to;
        least = bits < least ? bits : least;
    }
    return least;
}

/* What a narrower type cannot hold is refused, not turned into infinities. */
static int check_range(const mgr_engine *e, const mgr_piece *piece, const unsigned char *data,
                       mgr_err *err)
{
    const mgr_dtype from = e->job->source.layout.types[piece->source];
    const uint32_t infinity = mgr_infinity_bits(from);
    mgr_dtype to = from;
    const uint32_t least = least_overflow(e->job, piece, &to);
    const size_t n = elements(e->job, piece);
    const size_t i = mgr_find_magnitude(data, from, n, least, infinity);
    if (i == n)
        return MGR_OK;
    mgr_fail(err, MGR_ERR_FORMAT, "%s holds a value that %s cannot",
             place_in(e->job, piece, i).text, mgr_dtype_name(to));
    return mgr_hint(err, "set target.dtype to %s",
                    to == MGR_DTYPE_F16 ? "bfloat16 or float32" : "float32");
}

int mgr_engine_look(mgr_engine *e, const mgr_piece *piece, const unsigned char *data, mgr_err *err)
{
    const mgr_job *const job = e->job;
    const mgr_dtype from = job->source.layout.types[piece->source];
    const uint32_t most = mgr_largest_magnitude(data, from, elements(job, piece));
    mgr_dtype to = from;
    if (most >= mgr_infinity_bits(from))
        MGR_TRY(look_at_not_finite(e, piece, data, err));
    if (most >= least_overflow(job, piece, &to))
        MGR_TRY(check_range(e, piece, data, err));
    const mgr_tensor *const t = &job->source.tensors.list[piece->source];
    if (most == 0 && t->plane == MGR_PLANE_WEIGHT && mgr_role_is_matrix(t->role))
        return note(e, MGR_NOTE_SOURCE_ZERO, piece, piece->row, piece->rows, err);
    return MGR_OK;
}

int mgr_engine_check_drawn(const mgr_engine *e, uint32_t target, uint64_t rows, mgr_err *err)
{
    const mgr_layout *const layout = &e->job->target.layout;
    const mgr_tensor *const t = &layout->tensors->list[target];
    char label[96];
    const mgr_method *const method = e->job->method; /* none: experts were joined, and scaled */
    const bool as_read = method && !method->needs_selection && mgr_shared_scale(e->job) <= 1 &&
                         e->job->router.noise == 0 && !mgr_recipe_is_scaled(&e->job->recipe);
    if (layout->types[target] != MGR_DTYPE_F16 || as_read ||
        e->job->config.source.allow_nonfinite ||
        mgr_largest_magnitude(e->out.at, MGR_DTYPE_F16, (size_t)(rows * t->cols)) <
            mgr_infinity_bits(MGR_DTYPE_F16))
        return MGR_OK;
    mgr_fail(err, MGR_ERR_FORMAT, "%s: method %s makes a value that float16 cannot hold",
             mgr_tensor_label(t, label, sizeof label), e->job->config.upcycle.method);
    return mgr_hint(err, "set target.dtype to bfloat16 or float32");
}

static uint64_t zero_rows(const mgr_job *job, const mgr_extents *written, uint32_t tensor)
{
    const uint32_t what = mgr_note_what(job, MGR_NOTE_SOURCE_ZERO, tensor);
    uint64_t rows = 0, next = 0; /* a stretch that was made twice, around a stop, counts once */
    for (size_t i = mgr_extents_find(written, what);
         i < written->n && written->list[i].what == what; i++) {
        const mgr_extent *const e = &written->list[i];
        const uint64_t end = e->offset + e->bytes, from = e->offset > next ? e->offset : next;
        if (end <= from)
            continue;
        rows += end - from;
        next = end;
    }
    return rows;
}

static int say_zeros(mgr_job *job, const mgr_extents *written, mgr_err *err)
{
    const mgr_tensors *const ts = &job->source.tensors;
    uint32_t n = 0, first = 0;
    char label[96];
    for (uint32_t i = ts->n; i-- > 0;)
        if (zero_rows(job, written, i) == ts->list[i].rows) {
            n++;
            first = i;
        }
    if (n == 0)
        return MGR_OK;
    return mgr_remarks_say(
        &job->remarks, MGR_REMARK_WARNING, err, "%u FFN matri%s all zeros in the source, first %s",
        n, n == 1 ? "x is" : "ces are", mgr_tensor_label(&ts->list[first], label, sizeof label));
}

static int say_not_finite(mgr_job *job, const mgr_extents *written, mgr_err *err)
{
    const mgr_tensors *const ts = &job->source.tensors;
    uint32_t n = 0;
    place first;
    for (uint32_t i = ts->n; i-- > 0;) {
        const uint32_t what = mgr_note_what(job, MGR_NOTE_SOURCE_NOT_FINITE, i);
        const size_t at = mgr_extents_find(written, what);
        if (at == written->n || written->list[at].what != what)
            continue;
        const uint64_t element = written->list[at].offset;
        first = place_of(job, i, element / ts->list[i].cols, element % ts->list[i].cols);
        n++;
    }
    if (n == 0)
        return MGR_OK;
    return mgr_remarks_say(&job->remarks, MGR_REMARK_WARNING, err,
                           "%u tensor%s of the source hold%s values that are not finite, passed on "
                           "as allowed; first: %s",
                           n, n == 1 ? "" : "s", n == 1 ? "s" : "", first.text);
}

int mgr_say_values(mgr_job *job, const mgr_extents *written, mgr_err *err)
{
    MGR_TRY(say_zeros(job, written, err));
    return say_not_finite(job, written, err);
}
