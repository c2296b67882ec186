/* Names: as save_pretrained of transformers 5 writes them, which turns those in memory back to what
 * the models were published with (conversion_mapping.py, "llava" and its kin). */
#include "model/huggingface_tower.h"

#include <stdio.h>
#include <string.h>

#include "core/str.h"

#define TOP "model."
#define TOP_HEAD "lm_head."

/* What the decoder's names begin with in the place of TOP, and its head's in that of TOP_HEAD. */
static const struct {
    const char *decoder, *head;
} places[] = {
    {TOP, TOP_HEAD},
    {"model.language_model.", TOP_HEAD},                   /* Qwen3-VL, GLM-4V, Gemma 3 */
    {"language_model.model.", "language_model." TOP_HEAD}, /* LLaVA, InternVL, Mistral 3 */
    {"model.text_model.", TOP_HEAD},                       /* Idefics 3, SmolVLM */
};

#define N_PLACES (sizeof places / sizeof places[0])

static bool is_layer(const char *name, const char *decoder)
{
    return mgr_has_prefix(name, decoder) && mgr_has_prefix(name + strlen(decoder), "layers.");
}

uint8_t mgr_huggingface_tower(const mgr_catalogue *cat, uint32_t first_file)
{
    for (size_t k = 1; k < N_PLACES; k++)
        for (size_t i = 0; i < cat->n_stored; i++)
            if (cat->stored[i].file >= first_file &&
                is_layer(cat->stored[i].name, places[k].decoder))
                return (uint8_t)k;
    return 0;
}

void mgr_huggingface_tower_name(uint8_t tower, char name[MGR_HF_NAME_BYTES])
{
    char moved[2 * MGR_HF_NAME_BYTES];
    const bool head = mgr_has_prefix(name, TOP_HEAD);
    if (tower == 0 || tower >= N_PLACES || !(head || mgr_has_prefix(name, TOP)))
        return;
    const char *const place = head ? places[tower].head : places[tower].decoder;
    snprintf(moved, sizeof moved, "%s%s", place, name + strlen(head ? TOP_HEAD : TOP));
    snprintf(name, MGR_HF_NAME_BYTES, "%.*s", MGR_HF_NAME_BYTES - 1, moved);
}

const char *mgr_huggingface_tower_text(uint8_t tower)
{
    return tower > 0 && tower < N_PLACES ? places[tower].decoder : "";
}

uint8_t mgr_huggingface_tower_find(const char *text)
{
    for (size_t k = 1; k < N_PLACES; k++)
        if (strcmp(places[k].decoder, text) == 0)
            return (uint8_t)k;
    return 0;
}

const char *mgr_huggingface_section(const mgr_hf_evidence *ev)
{
    const mgr_attr *const a =
        mgr_catalogue_attr(ev->cat, ev->hf->config, "config." MGR_HF_TEXT_CONFIG);
    return a && a->kind == MGR_ATTR_OTHER && strcmp(a->text, "object") == 0 ? MGR_HF_TEXT_CONFIG "."
                                                                            : "";
}

/* Vision-language models that make of text_config whatever class its model_type names. */
static const char *const hosts[] = {
    "llava",         "llava_next", "llava_next_video", "llava_onevision", "vipllava",
    "internvl",      "mistral3",   "aya_vision",       "cohere2_vision",  "lfm2_vl",
    "idefics2",      "idefics3",   "smolvlm",          "got_ocr2",        "ovis2",
    "perception_lm",
};

bool mgr_huggingface_takes_any(const char *host)
{
    for (size_t i = 0; i < sizeof hosts / sizeof hosts[0]; i++)
        if (strcmp(hosts[i], host) == 0)
            return true;
    return false;
}
