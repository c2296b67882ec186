#include "form/huggingface_class.h"

#include <string.h>

#include "fmt/json.h"
#include "io/file.h"
#include "model/huggingface_passed.h"
#include "model/huggingface_tower.h"
#include "model/mtp.h"

#define MAX_CONFIG ((uint64_t)16 << 20)

/* A config.json that came with the tokenizer of a Megatron checkpoint: of the model that it was
 * made from. One that makes no sense is passed over. */
static int parse_kept(const mgr_origin *origin, json_t **base, mgr_err *err)
{
    mgr_err ignored = MGR_ERR_INIT;
    mgr_buf path = {0}, text = {0};
    int rc = mgr_buf_fmt(&path, err, "%s/" MGR_HF_KEPT_CONFIG, origin->directory);
    if (rc == MGR_OK && mgr_path_exists(path.data) &&
        mgr_read_file(path.data, MAX_CONFIG, &text, &ignored) == MGR_OK && text.len &&
        mgr_json_parse_python(base, path.data, text.data, text.len, &ignored) == MGR_OK &&
        !json_is_object(*base)) {
        json_decref(*base);
        *base = NULL;
    }
    mgr_buf_clear(&path);
    mgr_buf_clear(&text);
    return rc;
}

int mgr_huggingface_base(const mgr_origin *origin, json_t **base, mgr_err *err)
{
    *base = NULL;
    if (!origin)
        return MGR_OK;
    const mgr_attr *const text = mgr_catalogue_attr(origin->cat, 0, MGR_HF_CONFIG_TEXT);
    return text ? mgr_json_parse_python(base, "config.json", text->text, strlen(text->text), err)
                : parse_kept(origin, base, err);
}

json_t *mgr_huggingface_keys_of(json_t *base, const mgr_model *model)
{
    return model->tower && !model->passed ? json_object_get(base, MGR_HF_TEXT_CONFIG) : base;
}

mgr_hf_class mgr_huggingface_pick(const mgr_config *config, const mgr_model *model,
                                  const char *type)
{
    const char *const format = config->target.format, *const said = config->target.model_class;
    if (strcmp(format, "moe-recipes") == 0 || strcmp(format, "mixtral") == 0)
        return MGR_HF_MIXTRAL;
    const bool free = strcmp(format, "huggingface") != 0 || !*said || strcmp(said, "auto") == 0;
    return mgr_huggingface_class_like(model, free ? type : said);
}

void mgr_huggingface_fill(const mgr_config *config, mgr_model *model)
{
    const bool may_say = strcmp(config->target.format, "huggingface") == 0;
    const char *const said = may_say ? config->target.model_class : "";
    if (model->passed)
        mgr_huggingface_become_sibling(model, said);
    else
        mgr_huggingface_complete(model, said);
}

int mgr_huggingface_choose(const mgr_config *config, const mgr_origin *origin,
                           const mgr_model *model, mgr_hf_class *class, mgr_err *err)
{
    json_t *base = NULL;
    const int rc = mgr_huggingface_base(origin, &base, err);
    const char *const type =
        json_string_value(json_object_get(mgr_huggingface_keys_of(base, model), "model_type"));
    *class = mgr_huggingface_pick(config, model, type ? type : "");
    const bool moved = !model->mtp || *class == mgr_huggingface_type(type ? type : "");
    json_decref(base);
    if (rc != MGR_OK || moved)
        return rc;
    mgr_fail(err, MGR_ERR_UNSUPPORTED,
             "layers for multi-token prediction stay those of their own class, which '%s' is not",
             mgr_huggingface_family(*class)->type);
    return mgr_hint(err, MGR_MTP_HINT);
}
