#include "model/deepspeed_write.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/mem.h"
#include "model/deepspeed_order.h"

#define PATH_BYTES 320

/* The parameters, as Hugging Face's layout has them, while they find their places. */
typedef struct declaring {
    mgr_layout *into;
    mgr_tensors weights;
    const mgr_deepspeed_plan *plan;
    mgr_deepspeed *ds;
    mgr_catalogue found; /* in the layout's own order */
    mgr_layout view;     /* of it */
    uint32_t *order;     /* of found's tensors */
    uint32_t *place;     /* of each tensor of found: in ds->view */
} declaring;

static void make_float32(mgr_layout *layout)
{
    assert(layout->tensors);
    for (uint32_t i = 0; i < layout->tensors->n; i++)
        layout->types[i] = MGR_DTYPE_F32;
}

static int find_parameters(declaring *d, mgr_err *err)
{
    d->weights = mgr_tensors_weights(d->into->tensors);
    MGR_TRY(mgr_layout_init(&d->view, &d->weights, &d->found, true, MGR_DTYPE_F32, err));
    make_float32(&d->view);
    MGR_TRY(mgr_huggingface_layout(&d->view, &d->ds->hf, err));
    MGR_TRY(mgr_layout_finish(&d->view, err));
    for (size_t i = 0; i < d->found.n_stored; i++)
        if (mgr_stored_bytes(&d->found.stored[i]) == 0)
            return mgr_fail(err, MGR_ERR_UNSUPPORTED,
                            "parameter '%s' has no elements, which DeepSpeed does not save",
                            d->found.stored[i].name);
    MGR_TRY(mgr_alloc(&d->order, d->found.n_stored, sizeof *d->order, err));
    MGR_TRY(mgr_alloc(&d->place, d->found.n_stored, sizeof *d->place, err));
    return mgr_deepspeed_order(&d->found, &d->ds->hf, d->order, err);
}

/* ds->view, and a part of each that lies nowhere yet. */
static int list_parameters(declaring *d, mgr_err *err)
{
    mgr_deepspeed *const ds = d->ds;
    const size_t n = d->found.n_stored;
    MGR_TRY(mgr_alloc(&ds->parts, n, sizeof *ds->parts, err));
    for (size_t k = 0; k < n; k++) {
        const mgr_stored *const s = &d->found.stored[d->order[k]];
        d->place[d->order[k]] = (uint32_t)k;
        MGR_TRY(mgr_catalogue_add_stored(&ds->view, s, err));
        ds->parts[k] = (mgr_zero_part){.name = ds->view.stored[k].name,
                                       .kind = MGR_ZERO_GROUP,
                                       .numel = mgr_stored_bytes(s) / mgr_dtype_size(s->dtype)};
    }
    return MGR_OK;
}

/* ---- universal ---- */

static bool is_declared(const declaring *d, int plane)
{
    return plane == MGR_PLANE_WEIGHT || (d->into->tensors->kept & 1u << plane);
}

/* A file holds one tensor. */
static int declare_file(declaring *d, const mgr_stored *s, mgr_plane plane, uint32_t *stored,
                        mgr_err *err)
{
    char path[PATH_BYTES], name[PATH_BYTES];
    uint32_t file;
    snprintf(path, sizeof path, "%s/zero/%s/%s.pt", d->plan->folder, s->name,
             plane == MGR_PLANE_WEIGHT ? "fp32" : mgr_plane_name(plane));
    snprintf(name, sizeof name, "%s%s%s", plane == MGR_PLANE_WEIGHT ? "" : mgr_plane_name(plane),
             plane == MGR_PLANE_WEIGHT ? "" : ".", s->name);
    MGR_TRY(mgr_catalogue_add_file(d->into->cat, path, 0, &file, err));
    return mgr_layout_tensor(d->into, file, name, s->ndim, s->shape, stored, err);
}

/* The files of one plane, in the order of the parameters, and what lies in them. */
static int declare_files(declaring *d, mgr_plane plane, mgr_err *err)
{
    mgr_deepspeed *const ds = d->ds;
    for (size_t k = 0; k < ds->view.n_stored; k++)
        MGR_TRY(declare_file(d, &ds->view.stored[k], plane, &ds->parts[k].stored[plane], err));
    for (size_t i = 0; i < d->view.n_boxes; i++) {
        mgr_box box = d->view.boxes[i];
        box.stored = ds->parts[d->place[box.stored]].stored[plane];
        box.tensor = mgr_tensors_plane(d->into->tensors, box.tensor, plane);
        MGR_TRY(mgr_layout_box(d->into, &box, err));
    }
    return MGR_OK;
}

static int declare_universal(declaring *d, mgr_err *err)
{
    for (size_t k = 0; k < d->ds->view.n_stored; k++)
        d->ds->parts[k].kind = MGR_ZERO_WHOLE;
    for (int p = 0; p < MGR_PLANE_COUNT; p++)
        if (is_declared(d, p))
            MGR_TRY(declare_files(d, (mgr_plane)p, err));
    return MGR_OK;
}

/* ---- ZeRO-3 ---- */

static uint64_t part_of(const mgr_deepspeed *ds, size_t k)
{
    return ds->parts[k].numel / ds->ranks + (ds->parts[k].numel % ds->ranks != 0);
}

/* A group is closed when what a rank has of it reaches the size; one that no group would reach is
 * one group (stage3.py, _create_fp16_sub_groups). */
static void form_groups(mgr_deepspeed *ds, uint64_t size)
{
    uint64_t filled = 0;
    ds->groups = 0;
    for (size_t k = 0; k < ds->view.n_stored; k++) {
        ds->parts[k].group = ds->groups;
        ds->parts[k].at = filled;
        filled += part_of(ds, k);
        if (filled < size && k + 1 < ds->view.n_stored)
            continue;
        ds->groups++;
        filled = 0;
    }
}

/* Elements of each group's flat tensor on a rank. */
static int measure_groups(const mgr_deepspeed *ds, uint64_t **sizes, mgr_err *err)
{
    MGR_TRY(mgr_alloc(sizes, ds->groups, sizeof **sizes, err));
    for (size_t k = 0; k < ds->view.n_stored; k++)
        (*sizes)[ds->parts[k].group] = ds->parts[k].at + part_of(ds, k);
    return MGR_OK;
}

static int declare_plane(declaring *d, uint32_t file, uint32_t rank, int plane,
                         const uint64_t *sizes, mgr_err *err)
{
    mgr_deepspeed *const ds = d->ds;
    char name[48];
    for (uint32_t g = 0; g < ds->groups; g++) {
        snprintf(name, sizeof name, "%s.%u",
                 plane == MGR_PLANE_WEIGHT ? "fp32" : mgr_plane_name((mgr_plane)plane), g);
        MGR_TRY(mgr_layout_tensor(d->into, file, name, 1, &sizes[g],
                                  &ds->flat[plane][(size_t)rank * ds->groups + g], err));
    }
    return MGR_OK;
}

/* All groups' masters, then their moments of either kind. */
static int declare_rank(declaring *d, uint32_t rank, const uint64_t *sizes, mgr_err *err)
{
    char path[PATH_BYTES];
    uint32_t file;
    snprintf(path, sizeof path, "%s/bf16_zero_pp_rank_%u_mp_rank_00_optim_states.pt",
             d->plan->folder, rank);
    MGR_TRY(mgr_catalogue_add_file(d->into->cat, path, 0, &file, err));
    for (int p = 0; p < MGR_PLANE_COUNT; p++)
        if (d->ds->flat[p])
            MGR_TRY(declare_plane(d, file, rank, p, sizes, err));
    return MGR_OK;
}

/* Behind the last element of a parameter its part goes on to the same size. */
static int pad(declaring *d, size_t k, mgr_err *err)
{
    const mgr_deepspeed *const ds = d->ds;
    const mgr_zero_part *const p = &ds->parts[k];
    const uint64_t part = part_of(ds, k);
    for (uint32_t r = 0; r < ds->ranks; r++) {
        const uint64_t first = r * part;
        const uint64_t own = first >= p->numel         ? 0
                             : p->numel - first < part ? p->numel - first
                                                       : part;
        for (int q = 0; own < part && q < MGR_PLANE_COUNT; q++)
            if (ds->flat[q])
                MGR_TRY(mgr_layout_fill(d->into, ds->flat[q][(size_t)r * ds->groups + p->group],
                                        p->at + own, part - own, err));
    }
    return MGR_OK;
}

static int declare_ranks(declaring *d, mgr_err *err)
{
    mgr_deepspeed *const ds = d->ds;
    uint64_t *sizes = NULL;
    int rc = measure_groups(ds, &sizes, err);
    for (int p = 0; rc == MGR_OK && p < MGR_PLANE_COUNT; p++)
        if (is_declared(d, p))
            rc = mgr_alloc(&ds->flat[p], (size_t)ds->ranks * ds->groups, sizeof **ds->flat, err);
    for (uint32_t r = 0; rc == MGR_OK && r < ds->ranks; r++)
        rc = declare_rank(d, r, sizes, err);
    mgr_free(sizes);
    return rc;
}

static int declare_zero3(declaring *d, mgr_err *err)
{
    mgr_deepspeed *const ds = d->ds;
    ds->zero3 = true;
    ds->ranks = d->plan->ranks;
    form_groups(ds, d->plan->sub_group_size);
    MGR_TRY(declare_ranks(d, err));
    for (size_t i = 0; i < d->view.n_boxes; i++) {
        mgr_box box = d->view.boxes[i];
        box.stored = d->place[box.stored];
        MGR_TRY(mgr_deepspeed_place(ds, d->into, &box, err));
    }
    for (size_t k = 0; k < ds->view.n_stored; k++)
        MGR_TRY(pad(d, k, err));
    return MGR_OK;
}

int mgr_deepspeed_declare(mgr_layout *into, const mgr_deepspeed_plan *plan, mgr_deepspeed *ds,
                          mgr_err *err)
{
    declaring d = {.into = into, .plan = plan, .ds = ds};
    make_float32(into);
    int rc = find_parameters(&d, err);
    if (rc == MGR_OK)
        rc = list_parameters(&d, err);
    if (rc == MGR_OK)
        rc = plan->ranks ? declare_zero3(&d, err) : declare_universal(&d, err);
    mgr_layout_clear(&d.view);
    mgr_catalogue_clear(&d.found);
    mgr_free(d.order);
    mgr_free(d.place);
    return rc;
}
