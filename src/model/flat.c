#include "model/flat.h"

#include "core/mem.h"
#include "model/huggingface_tower.h"
#include "model/megatron_kin.h"
#include "model/mtp.h"
#include "model/opaque.h"

/* The file, counted from flat->first_file, that a target's tensor belongs to. */
static uint32_t place_of(const mgr_tensors *ts, const mgr_flat *flat, uint32_t expert)
{
    if (expert == MGR_NONE || flat->n_files < 2)
        return 0;
    return 1 + expert / (uint32_t)(ts->model.experts / (flat->n_files - 1));
}

/* The file that holds `name`; the search begins where the tensor belongs. */
static int file_of(const mgr_layout *layout, const mgr_flat *flat, uint32_t hint, const char *name,
                   uint32_t *file, mgr_err *err)
{
    for (uint32_t k = 0; k < flat->n_files; k++) {
        *file = flat->first_file + (hint + k) % flat->n_files;
        if (mgr_layout_has(layout, *file, name))
            return MGR_OK;
    }
    return mgr_fail(err, MGR_ERR_FORMAT, "tensor '%s' is missing in '%s' and the files beside it",
                    name, layout->cat->files[flat->first_file].path);
}

bool mgr_flat_name(const mgr_tensors *ts, const mgr_tensor *t, char name[MGR_HF_NAME_BYTES])
{
    if (ts->model.kin) {
        mgr_kin_name(ts, t, name, MGR_HF_NAME_BYTES);
        return true;
    }
    const bool dense = mgr_role_is_ffn(t->role) && t->expert == MGR_NONE;
    const mgr_hf_ffn ffn =
        dense ? mgr_huggingface_dense(&ts->model) : mgr_huggingface_ffn(&ts->model);
    const bool found =
        mgr_huggingface_name(mgr_huggingface_class(&ts->model), ffn, t->role,
                             mgr_model_layer_key(&ts->model, t->layer), t->expert, name);
    mgr_huggingface_tower_name(ts->model.tower, name);
    return found;
}

static int add_tensor(mgr_layout *layout, const mgr_flat *flat, uint32_t i, mgr_err *err)
{
    const mgr_tensor *const t = &layout->tensors->list[i];
    const uint64_t matrix[2] = {t->rows, t->cols};
    const uint64_t *const shape = t->opaque ? t->opaque->shape : matrix;
    const uint32_t ndim = t->opaque ? t->opaque->ndim : t->ndim;
    const uint32_t place = place_of(layout->tensors, flat, t->expert);
    uint32_t file = flat->first_file + place, stored;
    char known[MGR_HF_NAME_BYTES];
    const char *const name = t->opaque ? t->opaque->name : known;
    if (!t->opaque && !mgr_flat_name(layout->tensors, t, known))
        return mgr_fail(err, MGR_ERR_UNSUPPORTED, "%s has no Hugging Face name",
                        mgr_tensor_label(t, known, sizeof known));
    if (!layout->declare)
        MGR_TRY(file_of(layout, flat, place, name, &file, err));
    MGR_TRY(mgr_layout_tensor(layout, file, name, ndim, shape, &stored, err));
    const mgr_box box = {.tensor = i, .stored = stored, .rows = t->rows, .cols = t->cols};
    return mgr_layout_box(layout, &box, err);
}

/* For mgr_opaque_find. */
static bool namer(const void *context, const mgr_tensors *ts, const mgr_tensor *t,
                  char name[MGR_HF_NAME_BYTES])
{
    (void)context;
    return mgr_flat_name(ts, t, name);
}

int mgr_flat_opaque(const mgr_catalogue *cat, const mgr_flat *flat, mgr_tensors *tensors,
                    mgr_err *err)
{
    const mgr_model *const m = &tensors->model;
    const bool known = !m->ffns_only && !m->tower; /* all but what is for multi-token prediction */
    return mgr_model_is_part(m) ? mgr_opaque_find(tensors, cat, flat->first_file, namer,
                                                  known ? mgr_mtp_is_other : NULL, NULL, err)
                                : MGR_OK;
}

int mgr_flat_layout(mgr_layout *layout, const mgr_flat *flat, mgr_err *err)
{
    if (layout->declare) {
        MGR_TRY(
            mgr_alloc(&layout->file_owner, layout->cat->n_files, sizeof *layout->file_owner, err));
        for (uint32_t f = 0; f < flat->n_files; f++)
            layout->file_owner[flat->first_file + f] = (int32_t)f - 1;
    }
    for (uint32_t i = 0; i < layout->tensors->n; i++)
        MGR_TRY(add_tensor(layout, flat, i, err));
    return MGR_OK;
}
