#include "form/source.h"

#include <string.h>

#include "model/mtp.h"

extern const mgr_source_format mgr_source_megatron_dist;
extern const mgr_source_format mgr_source_megatron_torch;
extern const mgr_source_format mgr_source_deepspeed;
extern const mgr_source_format mgr_source_hdf5;
extern const mgr_source_format mgr_source_torch_dcp;
extern const mgr_source_format mgr_source_huggingface;
extern const mgr_source_format mgr_source_moe_recipes;
extern const mgr_source_format mgr_source_mixtral;

static const mgr_source_format *const table[] = {
    &mgr_source_megatron_dist, /* before megatron-torch, as in Megatron's own detection */
    &mgr_source_megatron_torch, &mgr_source_hdf5, /* before huggingface: it has a config.json, too
                                                   */
    &mgr_source_torch_dcp,      &mgr_source_deepspeed, /* may have one */
    &mgr_source_huggingface,    &mgr_source_moe_recipes, &mgr_source_mixtral,
};

const mgr_source_format *mgr_source_at(size_t idx)
{
    return idx < sizeof table / sizeof table[0] ? table[idx] : NULL;
}

const mgr_source_format *mgr_source_find(const char *name)
{
    for (size_t i = 0; mgr_source_at(i); i++)
        if (strcmp(mgr_source_at(i)->name, name) == 0)
            return mgr_source_at(i);
    return NULL;
}

const mgr_source_format *mgr_source_probe(const char *path)
{
    for (size_t i = 0; mgr_source_at(i); i++)
        if (mgr_source_at(i)->probe(path))
            return mgr_source_at(i);
    return NULL;
}

static unsigned planes_of(const mgr_source_format *format, const mgr_catalogue *cat,
                          const mgr_config *config)
{
    const unsigned asked = format->planes ? config->source.planes : 0;
    return asked == MGR_PLANES_FOUND ? format->planes(cat) : asked;
}

int mgr_source_lay_out(const mgr_source_format *format, mgr_catalogue *cat,
                       const mgr_config *config, void **state, mgr_tensors *tensors,
                       mgr_layout *layout, mgr_err *err)
{
    mgr_model model;
    if (mgr_mtp_is_dropped(config))
        mgr_mtp_drop(cat);
    MGR_TRY(format->describe(cat, config, state, &model, err));
    MGR_TRY(mgr_mtp_check(cat, config, &model, err));
    MGR_TRY(mgr_tensors_init(tensors, &model, err));
    if (format->opaque)
        MGR_TRY(format->opaque(*state, cat, tensors, err));
    MGR_TRY(mgr_tensors_add_planes(tensors, planes_of(format, cat, config), err));
    MGR_TRY(mgr_layout_init(layout, tensors, cat, false, model.dtype, err));
    MGR_TRY(format->layout(*state, layout, err));
    MGR_TRY(mgr_layout_finish(layout, err));
    tensors->model.dtype = layout->dtype;
    return MGR_OK;
}
