#include "form/huggingface_next.h"

#include <stdio.h>
#include <string.h>

#include "core/str.h"
#include "fmt/json.h"

#define SCALING                                                                                    \
    "RoPE scaling in a", " directory is right", "; older ones load it and ignore the scaling"
#define WINDOWS                                                                                    \
    "a window of some layers in a", " directory is right",                                         \
        "; with older ones, such as 4.46, it is of all layers"
#define HEAD_DIM "a head_dim other than hidden_size by heads loads as a", "", ""
#define FUSED                                                                                      \
    "experts under fused names load as a", "", "; older ones leave theirs at random values"

#define TURNED                                                                                     \
    "experts as they lie here load as a", "", "; 4.57 has them transposed, as published files do"

/* ---- releases ---- */

static bool always(const mgr_output *out, const json_t *config)
{
    (void)config;
    return out != NULL;
}

static bool is_scaled(const mgr_output *out, const json_t *config)
{
    (void)config;
    return out->layout->tensors->model.rope.kind != MGR_ROPE_PLAIN;
}

static bool has_own_head_dim(const mgr_output *out, const json_t *config)
{
    (void)config;
    const mgr_model *const m = &out->layout->tensors->model;
    return m->head_dim * m->heads != m->hidden;
}

static bool is_fused(const mgr_output *out, const json_t *config)
{
    (void)config;
    return out->layout->tensors->model.experts && strcmp(out->config->target.names, "fused") == 0;
}

/* max_window_layers may be more than there are: then no layer has the window that is given. */
static bool has_window_of_some(const mgr_output *out, const json_t *config)
{
    const mgr_model *const m = &out->layout->tensors->model;
    return json_is_true(json_object_get(config, "use_sliding_window")) &&
           json_is_integer(json_object_get(config, "sliding_window")) &&
           mgr_model_window_layers(m) < m->layers;
}

/* From which release on a class does what config.json says. Seen in its modeling file and in its
 * configuration of 4.46.3, 4.47.1, 4.48.0 and 4.57.6: whether they read rope_scaling and head_dim,
 * and which layers a window is of; and in the models of 4.50.3 and 4.51.0. */
static const struct {
    const char *type;
    bool (*when)(const mgr_output *out, const json_t *config);
    unsigned since;                /* 448: 4.48 */
    const char *what, *is, *else_; /* "what CLASS is from RELEASE on else_", if it must be said */
} bounds[] = {
    {"llama", always, 446, NULL, NULL, NULL}, /* the oldest that the tests load outputs with */
    {"mistral", always, 446, NULL, NULL, NULL},   {"qwen2", always, 446, NULL, NULL, NULL},
    {"mixtral", always, 446, NULL, NULL, NULL},   {"mistral", is_scaled, 448, SCALING},
    {"mixtral", is_scaled, 448, SCALING},         {"mixtral", has_own_head_dim, 447, HEAD_DIM},
    {"qwen2", has_own_head_dim, 448, HEAD_DIM},   {"qwen2_moe", has_own_head_dim, 500, HEAD_DIM},
    {"qwen2", has_window_of_some, 457, WINDOWS},  {"qwen3", always, 451, NULL, NULL, NULL},
    {"qwen3_moe", always, 451, NULL, NULL, NULL}, {"mixtral", is_fused, 500, FUSED},
    {"qwen3_vl_moe", always, 500, TURNED},
};

/* "4.48" */
static const char *release(unsigned number, char out[16])
{
    snprintf(out, 16, number % 100 ? "%u.%u" : "%u", number / 100, number % 100);
    return out;
}

/* Say each bound of this output; *least is the release that keeps them all, 0 where
 * none is known. */
static int say_bounds(const mgr_output *out, const json_t *config, unsigned *least,
                      mgr_remarks *remarks, mgr_err *err)
{
    const char *const type = json_string_value(json_object_get(config, "model_type"));
    const char *const class =
        json_string_value(json_array_get(json_object_get(config, "architectures"), 0));
    const int shown = class ? (int)strcspn(class, "F") : 0; /* "Mixtral" of "MixtralForCausalLM" */
    char since[16];
    *least = 0;
    for (size_t i = 0; type && class && i < sizeof bounds / sizeof bounds[0]; i++) {
        if (strcmp(bounds[i].type, type) != 0 || !bounds[i].when(out, config))
            continue;
        *least = bounds[i].since > *least ? bounds[i].since : *least;
        if (bounds[i].what)
            MGR_TRY(mgr_remarks_say(remarks, MGR_REMARK_WARNING, err,
                                    "%s %.*s%s from transformers %s on%s", bounds[i].what, shown,
                                    class, bounds[i].is, release(bounds[i].since, since),
                                    bounds[i].else_));
    }
    return MGR_OK;
}

/* from_pretrained makes all of a model one type. */
static int say_types(const mgr_output *out, mgr_remarks *remarks, mgr_err *err)
{
    const mgr_layout *const layout = out->layout;
    for (size_t i = 0; i < layout->cat->n_stored; i++)
        if (layout->cat->stored[i].dtype != layout->dtype)
            return mgr_remarks_say(
                remarks, MGR_REMARK_WARNING, err,
                "not all tensors are %s, as config.json says: from_pretrained casts the others",
                mgr_dtype_name(layout->dtype));
    return MGR_OK;
}

/* ---- lines ---- */

static int say(mgr_remarks *remarks, mgr_err *err, const char *line)
{
    return mgr_remarks_say(remarks, MGR_REMARK_NEXT, err, "%s", line);
}

/* A path as Python spells it is one as JSON does. */
static int next_transformers(const mgr_output *out, const json_t *config, unsigned least,
                             mgr_remarks *remarks, mgr_err *err)
{
    char number[16];
    mgr_buf text = {0};
    const bool two = out->layout->tensors->model.encoder_layers > 0;
    const char *const class = two ? "AutoModelForSeq2SeqLM"
                              : json_object_get(config, "vision_config")
                                  ? "AutoModelForImageTextToText"
                                  : "AutoModelForCausalLM";
    json_t *const path = json_string(out->config->target.path);
    int rc = mgr_json_dump(path, 0, &text, err);
    if (rc == MGR_OK)
        rc = least ? mgr_remarks_say(remarks, MGR_REMARK_NEXT, err,
                                     "# transformers %s or later:", release(least, number))
                   : say(remarks, err, "# transformers that has the class:");
    if (rc == MGR_OK)
        rc = mgr_remarks_say(remarks, MGR_REMARK_NEXT, err, "from transformers import %s", class);
    if (rc == MGR_OK)
        rc = mgr_remarks_say(remarks, MGR_REMARK_NEXT, err,
                             "model = %s.from_pretrained(%s, torch_dtype=\"%s\")", class, text.data,
                             mgr_dtype_name(out->layout->dtype));
    mgr_buf_clear(&text);
    json_decref(path);
    return rc;
}

/* Options of its examples/finetuning.py, as its authors' jobs give them; it makes the model one of
 * bfloat16 or float16, with as many positions as --seq-length says. */
static int next_moe_recipes(const mgr_output *out, mgr_remarks *remarks, mgr_err *err)
{
    const bool half = out->layout->dtype == MGR_DTYPE_F16;
    char path[MGR_CONFIG_TEXT + 64];
    mgr_shell_word(out->config->target.path, path, sizeof path);
    MGR_TRY(say(remarks, err, "# moe-recipes' options, beside those of your data and schedule:"));
    MGR_TRY(mgr_remarks_say(remarks, MGR_REMARK_NEXT, err, "  --base-model %s \\", path));
    MGR_TRY(mgr_remarks_say(remarks, MGR_REMARK_NEXT, err,
                            "  --tokenizer-type Llama2Tokenizer --tokenizer-model %s%s \\", path,
                            "/tokenizer.model"));
    return mgr_remarks_say(remarks, MGR_REMARK_NEXT, err,
                           "  --seq-length %llu %s --output-router-logits --use-zero --use-mpi",
                           (unsigned long long)out->layout->tensors->model.max_positions,
                           half ? "--fp16" : "--bf16");
}

/* Nobody but this program and h5py reads it. */
static int next_hdf5(const mgr_output *out, mgr_remarks *remarks, mgr_err *err)
{
    char from[MGR_CONFIG_TEXT + 64], to[MGR_CONFIG_TEXT + 64], place[MGR_CONFIG_TEXT + 8];
    snprintf(place, sizeof place, "%s-hf", out->config->target.path);
    mgr_shell_word(out->config->target.path, from, sizeof from);
    mgr_shell_word(place, to, sizeof to);
    MGR_TRY(say(remarks, err, "# to another format, such as Hugging Face's:"));
    MGR_TRY(say(remarks, err, "echo 'mode: reshard' > reshard.yaml"));
    MGR_TRY(mgr_remarks_say(remarks, MGR_REMARK_NEXT, err,
                            "mpiexec -n 4 mgr-upcycle -s source.path=%s \\", from));
    return mgr_remarks_say(remarks, MGR_REMARK_NEXT, err,
                           "  -s target.path=%s -s target.format=huggingface reshard.yaml", to);
}

/* By config.json a model is built, of random weights, which the engine then loads. */
static int next_deepspeed(const mgr_output *out, mgr_remarks *remarks, mgr_err *err)
{
    mgr_buf text = {0};
    json_t *const path = json_string(out->config->target.path);
    int rc = mgr_json_dump(path, 0, &text, err);
    if (rc == MGR_OK && !out->config->target.data_parallel)
        rc = say(remarks, err,
                 "# in DeepSpeed's config: \"checkpoint\": {\"load_universal\": true}");
    if (rc == MGR_OK)
        rc = mgr_remarks_say(
            remarks, MGR_REMARK_NEXT, err,
            "model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(%s))", text.data);
    if (rc == MGR_OK)
        rc = mgr_remarks_say(remarks, MGR_REMARK_NEXT, err,
                             "deepspeed.initialize(model=model, ...)[0].load_checkpoint(%s)",
                             text.data);
    mgr_buf_clear(&text);
    json_decref(path);
    return rc;
}

int mgr_huggingface_next(const mgr_output *out, const json_t *config, mgr_remarks *remarks,
                         mgr_err *err)
{
    const char *const format = out->config->target.format;
    unsigned least;
    MGR_TRY(say_bounds(out, config, &least, remarks, err));
    if (strcmp(format, "hdf5") == 0)
        return next_hdf5(out, remarks, err);
    if (strcmp(format, "deepspeed") == 0)
        return next_deepspeed(out, remarks, err);
    MGR_TRY(say_types(out, remarks, err));
    if (strcmp(format, "moe-recipes") == 0)
        MGR_TRY(next_moe_recipes(out, remarks, err));
    return next_transformers(out, config, least, remarks, err);
}
