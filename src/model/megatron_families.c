/* Names: megatron-core's models/T5/t5_model.py, models/vision/clip_vit_model.py and radio.py,
 * models/multimodal/llava_model.py; `inter_attention` is from before Megatron-Core. */
#include "model/megatron_families.h"

#include <string.h>

#include "model/mtp.h"

static const struct {
    const char *part, *what;
} families[] = {
    {"vision_model.", "a vision-language model: a vision tower beside its text decoder"},
    {"vision_projection.", "a vision-language model: a vision tower beside its text decoder"},
    {".inter_attention.", "a T5 from before Megatron-Core"},
    {"embedder.weight", "a RADIO vision transformer"},
};

int mgr_megatron_families_check(const mgr_catalogue *cat, mgr_err *err)
{
    for (size_t k = 0; k < sizeof families / sizeof families[0]; k++)
        for (size_t i = 0; i < cat->n_stored; i++) {
            const mgr_stored *const s = &cat->stored[i];
            if (strstr(s->name, families[k].part))
                return mgr_fail(
                    err, MGR_ERR_UNSUPPORTED,
                    "'%s' is of %s ('%s'), which is not supported in Megatron's formats",
                    cat->files[s->file].path, families[k].what, s->name);
        }
    const mgr_stored *const mtp = mgr_mtp_find(cat, 0);
    return mtp ? mgr_mtp_refuse(cat, mtp, err) : MGR_OK;
}
