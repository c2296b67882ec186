#include "mgr/checkpoint.h"

#include <stdio.h>
#include <string.h>

#include "core/mem.h"
#include "core/str.h"
#include "form/source.h"
#include "kern/kern.h"
#include "lib/handle.h"
#include "lib/locale.h"
#include "model/flat.h"

/* Of what is read in another type than it is stored in. */
#define BLOCK ((size_t)4 << 20)

int mgr_checkpoint_abi(void)
{
    return MGR_CHECKPOINT_ABI;
}

int mgr_checkpoint_version(void)
{
    return MGR_CHECKPOINT_VERSION;
}

/* As the class of transformers has it that would hold this model; what no class has is spelled as
 * people read it: "layers.3.attention_norm_bias". */
static int name_tensor(const mgr_tensors *ts, const mgr_tensor *t, mgr_arena *arena,
                       const char **out, mgr_err *err)
{
    char name[MGR_HF_NAME_BYTES];
    if (t->opaque)
        return mgr_arena_fmt(arena, out, err, "%s", t->opaque->name);
    if (!mgr_flat_name(ts, t, name)) {
        mgr_tensor_label(t, name, sizeof name);
        for (char *p = name; *p; p++)
            *p = *p == ' ' ? '_' : *p;
    }
    return mgr_arena_fmt(arena, out, err, "%s", name);
}

int mgr_name_tensors(const mgr_tensors *ts, mgr_arena *arena, const char ***out, mgr_err *err)
{
    MGR_TRY(mgr_arena_alloc(arena, out, (ts->n + (size_t)1) * sizeof **out, err));
    for (uint32_t i = 0; i < ts->n; i++)
        MGR_TRY(name_tensor(ts, &ts->list[i], arena, &(*out)[i], err));
    return MGR_OK;
}

mgr_checkpoint_tensor mgr_logical_tensor(const mgr_layout *layout, const char *const *names,
                                         uint32_t idx)
{
    const mgr_tensor *const t = &layout->tensors->list[idx];
    return (mgr_checkpoint_tensor){.name = names[idx],
                                   .dtype = layout->types[idx],
                                   .ndim = t->ndim,
                                   .shape = {t->rows, t->ndim == 2 ? t->cols : 0}};
}

static int describe(mgr_checkpoint *c, mgr_err *err)
{
    if (c->view.has_model)
        return mgr_view_model(&c->view.tensors.model, &c->about, err);
    return mgr_buf_text(
        &c->about, c->view.refusal.len ? c->view.refusal.data : "tensors without a model", err);
}

static int look(mgr_checkpoint *c, const char *settings, mgr_err *err)
{
    if (!settings)
        return mgr_view_open(&c->view, c->path, false, err);
    MGR_TRY(mgr_alloc(&c->config, 1, sizeof *c->config, err));
    MGR_TRY(mgr_settings_parse(c->config, settings, c->path, "none", err));
    return mgr_view_open_config(&c->view, c->config, err);
}

static int open_with(const char *path, const char *settings, mgr_checkpoint **out, mgr_err *err)
{
    mgr_checkpoint *c = NULL;
    *out = NULL;
    MGR_TRY(mgr_alloc(&c, 1, sizeof *c, err));
    c->rows.fd = -1;
    int rc = mgr_arena_fmt(&c->arena, &c->path, err, "%s", path);
    if (rc == MGR_OK)
        rc = look(c, settings, err);
    if (rc == MGR_OK)
        rc = mgr_rows_open(&c->rows, &c->view, err);
    if (rc == MGR_OK && c->view.has_model)
        rc = mgr_name_tensors(&c->view.tensors, &c->arena, &c->names, err);
    if (rc == MGR_OK)
        rc = describe(c, err);
    if (rc == MGR_OK)
        *out = c;
    else
        mgr_checkpoint_close(c);
    return rc;
}

int mgr_checkpoint_open_with(const char *path, const char *settings, mgr_checkpoint **out,
                             mgr_err *err)
{
    MGR_ASIDE(open_with(path, settings, out, err));
}

int mgr_checkpoint_open(const char *path, mgr_checkpoint **out, mgr_err *err)
{
    return mgr_checkpoint_open_with(path, NULL, out, err);
}

void mgr_checkpoint_close(mgr_checkpoint *c)
{
    if (!c)
        return;
    mgr_rows_close(&c->rows);
    mgr_view_close(&c->view);
    mgr_buf_clear(&c->about);
    mgr_free_aligned(c->block);
    mgr_free(c->config);
    mgr_arena_clear(&c->arena);
    mgr_free(c);
}

const char *mgr_checkpoint_format_at(uint32_t idx)
{
    const mgr_source_format *const format = mgr_source_at(idx);
    return format ? format->name : NULL;
}

const char *mgr_checkpoint_format(const mgr_checkpoint *c)
{
    return c->view.format;
}

const char *mgr_checkpoint_about(const mgr_checkpoint *c)
{
    return c->about.data;
}

uint32_t mgr_checkpoint_count(const mgr_checkpoint *c, mgr_checkpoint_list list)
{
    if (list == MGR_LOGICAL)
        return c->view.has_model ? c->view.tensors.n : 0;
    return list == MGR_STORED ? (uint32_t)c->view.cat.n_stored : 0;
}

bool mgr_checkpoint_at(const mgr_checkpoint *c, mgr_checkpoint_list list, uint32_t idx,
                       mgr_checkpoint_tensor *out)
{
    if (idx >= mgr_checkpoint_count(c, list))
        return false;
    if (list == MGR_LOGICAL) {
        *out = mgr_logical_tensor(&c->view.layout, c->names, idx);
        return true;
    }
    const mgr_stored *const s = &c->view.cat.stored[idx];
    *out = (mgr_checkpoint_tensor){.name = s->name,
                                   .file = c->view.cat.files[s->file].path,
                                   .dtype = s->dtype,
                                   .ndim = s->ndim};
    memcpy(out->shape, s->shape, sizeof s->shape);
    return true;
}

uint32_t mgr_checkpoint_find(const mgr_checkpoint *c, mgr_checkpoint_list list, const char *name)
{
    mgr_checkpoint_tensor t;
    for (uint32_t i = 0; mgr_checkpoint_at(c, list, i, &t); i++)
        if (strcmp(t.name, name) == 0)
            return i;
    return UINT32_MAX;
}

/* A read that has been looked at. */
typedef struct request {
    mgr_checkpoint_list list;
    uint32_t idx;
    mgr_dtype from, to;
    uint64_t cols;
} request;

static int check(const mgr_checkpoint *c, request *r, uint64_t row, uint64_t n, size_t bytes,
                 mgr_err *err)
{
    mgr_checkpoint_tensor t;
    uint64_t rows, elements, needed;
    if (!mgr_checkpoint_at(c, r->list, r->idx, &t))
        return mgr_fail(err, MGR_ERR_USAGE, "'%s' has no tensor number %u", c->path, r->idx);
    if (r->list == MGR_LOGICAL) {
        rows = c->view.tensors.list[r->idx].rows;
        r->cols = c->view.tensors.list[r->idx].cols;
    } else {
        rows = mgr_stored_rows(&c->view.cat.stored[r->idx]);
        r->cols = mgr_stored_columns(&c->view.cat.stored[r->idx]);
    }
    r->from = t.dtype;
    if (row > rows || n > rows - row)
        return mgr_fail(err, MGR_ERR_USAGE, "tensor '%s' has %llu rows, not %llu from row %llu on",
                        t.name, (unsigned long long)rows, (unsigned long long)n,
                        (unsigned long long)row);
    if (r->from != r->to && !(mgr_dtype_is_weight(r->from) && mgr_dtype_is_weight(r->to)))
        return mgr_fail(err, MGR_ERR_USAGE, "tensor '%s' cannot be cast to that type", t.name);
    if (mgr_mul_overflow(n, r->cols, &elements) ||
        mgr_mul_overflow(elements, mgr_dtype_size(r->to), &needed) || needed > bytes)
        return mgr_fail(err, MGR_ERR_USAGE, "%zu bytes do not hold %llu rows of tensor '%s'", bytes,
                        (unsigned long long)n, t.name);
    return MGR_OK;
}

static int read_plain(mgr_checkpoint *c, const request *r, uint64_t row, uint64_t n, void *out,
                      mgr_err *err)
{
    return r->list == MGR_LOGICAL ? mgr_rows_logical(&c->rows, r->idx, row, n, out, err)
                                  : mgr_rows_stored(&c->rows, r->idx, row, n, out, err);
}

/* Through a block of the stored type; a row that is larger makes it larger. */
static int read_cast(mgr_checkpoint *c, const request *r, uint64_t row, uint64_t n,
                     unsigned char *out, mgr_err *err)
{
    const size_t from_bytes = r->cols * mgr_dtype_size(r->from);
    const size_t to_bytes = r->cols * mgr_dtype_size(r->to);
    const uint64_t fit = from_bytes < BLOCK ? BLOCK / from_bytes : 1;
    mgr_free_aligned(c->block);
    c->block = NULL;
    MGR_TRY(mgr_alloc_aligned(&c->block, fit * from_bytes, err));
    for (uint64_t i = 0; i < n; i += fit) {
        const uint64_t count = n - i < fit ? n - i : fit;
        MGR_TRY(read_plain(c, r, row + i, count, c->block, err));
        mgr_cast(out + i * to_bytes, r->to, c->block, r->from, (size_t)(count * r->cols));
    }
    return MGR_OK;
}

static int read_rows(mgr_checkpoint *c, request r, uint64_t row, uint64_t n, void *out,
                     size_t bytes, mgr_err *err)
{
    MGR_TRY(check(c, &r, row, n, bytes, err));
    if (n == 0 || r.cols == 0)
        return MGR_OK;
    return r.from == r.to ? read_plain(c, &r, row, n, out, err)
                          : read_cast(c, &r, row, n, out, err);
}

int mgr_checkpoint_read(mgr_checkpoint *c, mgr_checkpoint_list list, uint32_t idx, uint64_t row,
                        uint64_t n, mgr_dtype dtype, void *out, size_t bytes, mgr_err *err)
{
    const request r = {.list = list, .idx = idx, .to = dtype};
    MGR_ASIDE(read_rows(c, r, row, n, out, bytes, err));
}
