/* RoPE (modeling_rope_utils.py) and sliding windows (masking_utils.py) as config.json says them. */
#include <stdio.h>
#include <string.h>

#include "model/huggingface_derive.h"
#include "model/huggingface_keys.h"

/* An empty object is as good as none. */
static bool has_members(const mgr_hf_evidence *ev, const char *name)
{
    const mgr_attr *const a = mgr_hf_arg(ev, name);
    return a && !(a->kind == MGR_ATTR_OTHER && a->i == 0);
}

/* Where there is a rope_scaling, transformers 5 takes it in place of rope_parameters, whose base
 * then says nothing. */
static int check_base(const mgr_hf_evidence *ev, double found, mgr_err *err)
{
    const bool hidden = has_members(ev, "rope_scaling") && !mgr_hf_arg(ev, "rope_theta") &&
                        !mgr_hf_arg(ev, "rope_scaling.rope_theta");
    if (!hidden || found <= 0 || (found >= ev->kind->theta && found <= ev->kind->theta))
        return MGR_OK;
    return mgr_fail(err, MGR_ERR_FORMAT,
                    "'%s' gives %g as the base of RoPE in rope_parameters, but rope_scaling, which "
                    "is taken in its place, has none",
                    mgr_hf_path(ev), found);
}

/* transformers 4 writes rope_theta, 5 writes rope_parameters; where both are, they must agree. */
int mgr_hf_rotary_base(const mgr_hf_evidence *ev, double *out, mgr_err *err)
{
    static const char *const keys[] = {"rope_theta", "rope_parameters.rope_theta",
                                       "rope_scaling.rope_theta"};
    double found = 0;
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        double theta;
        MGR_TRY(mgr_hf_real(ev, keys[i], 0, &theta, err));
        if (found > 0 && theta > 0 && (theta < found || theta > found))
            return mgr_fail(err, MGR_ERR_FORMAT, "'%s' gives %g and %g as the base of RoPE",
                            mgr_hf_path(ev), found, theta);
        found = theta > 0 ? theta : found;
    }
    *out = found > 0 ? found : ev->kind->theta;
    return check_base(ev, found, err);
}

/* A number of RoPE scaling, which has no default. */
static int rope_number(const mgr_hf_evidence *ev, const char *place, const char *name, double *out,
                       mgr_err *err)
{
    char key[96];
    snprintf(key, sizeof key, "%s.%s", place, name);
    if (!mgr_hf_arg(ev, key))
        return mgr_fail(err, MGR_ERR_FORMAT, "'%s' has RoPE scaling, but no %s", mgr_hf_path(ev),
                        key);
    return mgr_hf_real(ev, key, 0, out, err);
}

static int llama3_numbers(const mgr_hf_evidence *ev, const char *place, mgr_rope *rope,
                          mgr_err *err)
{
    char key[96];
    snprintf(key, sizeof key, "%s.original_max_position_embeddings", place);
    MGR_TRY(rope_number(ev, place, "low_freq_factor", &rope->low_freq, err));
    MGR_TRY(rope_number(ev, place, "high_freq_factor", &rope->high_freq, err));
    MGR_TRY(mgr_hf_whole(ev, (mgr_hf_size){key, "", 0, 0, 0}, &rope->original_positions, err));
    if (rope->high_freq > rope->low_freq)
        return MGR_OK;
    return mgr_fail(err, MGR_ERR_FORMAT, "high_freq_factor is not above low_freq_factor in '%s'",
                    mgr_hf_path(ev));
}

/* The scaling that one of the two places says; "type" is the older spelling of "rope_type". */
static int rope_at(const mgr_hf_evidence *ev, const char *place, bool typed, mgr_rope *rope,
                   mgr_err *err)
{
    char newer[64], older[64];
    snprintf(newer, sizeof newer, "%s.rope_type", place);
    snprintf(older, sizeof older, "%s.type", place);
    const char *const key = mgr_hf_arg(ev, newer) ? newer : older;
    const mgr_attr *const type = mgr_hf_arg(ev, key), *const other = mgr_hf_arg(ev, older);
    *rope = (mgr_rope){.kind = MGR_ROPE_PLAIN};
    if (!type && typed)
        return mgr_hf_unsupported(ev, place, "RoPE scaling of no kind", err);
    if (other && !(other->kind == MGR_ATTR_TEXT && mgr_hf_is_text(type, other->text)))
        return mgr_fail(err, MGR_ERR_FORMAT, "%s and %s in '%s' differ", newer, older,
                        mgr_hf_path(ev));
    if (!type || mgr_hf_is_text(type, "default"))
        return MGR_OK;
    rope->kind = mgr_hf_is_text(type, "linear") ? MGR_ROPE_LINEAR : MGR_ROPE_LLAMA3;
    if (rope->kind == MGR_ROPE_LLAMA3 && !mgr_hf_is_text(type, "llama3"))
        return mgr_hf_unsupported(ev, key, "RoPE scaling", err);
    MGR_TRY(rope_number(ev, place, "factor", &rope->factor, err));
    return rope->kind == MGR_ROPE_LLAMA3 ? llama3_numbers(ev, place, rope, err) : MGR_OK;
}

static bool same_rope(const mgr_rope *a, const mgr_rope *b)
{
    return a->kind == b->kind && mgr_hf_same_number(a->factor, b->factor) &&
           mgr_hf_same_number(a->low_freq, b->low_freq) &&
           mgr_hf_same_number(a->high_freq, b->high_freq) &&
           a->original_positions == b->original_positions;
}

/* transformers 5 prefers the one at the top where it is written (modeling_rope_utils.py), 4 does
 * not look there. */
static int check_original(const mgr_hf_evidence *ev, const mgr_rope *rope, mgr_err *err)
{
    static const char name[] = "original_max_position_embeddings";
    const mgr_attr *const top = mgr_hf_arg(ev, name);
    char shown[MGR_HF_SHOWN];
    if (!top || rope->kind != MGR_ROPE_LLAMA3 ||
        (top->kind == MGR_ATTR_INT && top->i >= 0 && (uint64_t)top->i == rope->original_positions))
        return MGR_OK;
    return mgr_fail(err, MGR_ERR_FORMAT, "'%s' has two values of %s: %s, and %llu in the RoPE",
                    mgr_hf_path(ev), name, mgr_huggingface_value(top, shown, sizeof shown),
                    (unsigned long long)rope->original_positions);
}

/* transformers 4 writes rope_scaling, 5 rope_parameters; where both are, they must agree. */
int mgr_hf_rope_scaling(const mgr_hf_evidence *ev, mgr_rope *out, mgr_err *err)
{
    mgr_rope older = {.kind = MGR_ROPE_PLAIN}, newer = {.kind = MGR_ROPE_PLAIN};
    const bool has_older = has_members(ev, "rope_scaling"),
               has_newer = has_members(ev, "rope_parameters");
    MGR_TRY(rope_at(ev, "rope_scaling", has_older, &older, err));
    MGR_TRY(rope_at(ev, "rope_parameters", false, &newer, err));
    if (has_older && has_newer && !same_rope(&older, &newer))
        return mgr_fail(err, MGR_ERR_FORMAT, "rope_scaling and rope_parameters in '%s' differ",
                        mgr_hf_path(ev));
    *out = older.kind == MGR_ROPE_PLAIN ? newer : older;
    return check_original(ev, out, err);
}

/* Has `layer` RoPE, as no_rope_layers says, with 1 for yes? */
static int has_rope(const mgr_hf_evidence *ev, uint64_t layer, bool *out, mgr_err *err)
{
    char name[64], shown[MGR_HF_SHOWN];
    snprintf(name, sizeof name, "no_rope_layers.%llu", (unsigned long long)layer);
    const mgr_attr *const a = mgr_hf_arg(ev, name);
    *out = a && a->i != 0;
    if (a && (a->kind == MGR_ATTR_INT || a->kind == MGR_ATTR_BOOL))
        return MGR_OK;
    return mgr_fail(err, MGR_ERR_FORMAT, "%s of '%s' is %s, neither 0 nor 1", name, mgr_hf_path(ev),
                    a ? mgr_huggingface_value(a, shown, sizeof shown) : "missing");
}

/* Layers without RoPE: as the list says, else each no_rope_layer_interval-th. */
int mgr_hf_nope_layers(const mgr_hf_evidence *ev, mgr_model *m, mgr_err *err)
{
    const mgr_attr *const list = mgr_hf_arg(ev, "no_rope_layers");
    uint64_t step;
    if (!(ev->kind->keys & MGR_HF_KEY_NOPE_LIST))
        return MGR_OK;
    MGR_TRY(mgr_hf_whole(ev, (mgr_hf_size){"no_rope_layer_interval", "", 4, 0, 0}, &step, err));
    if (list && (list->kind != MGR_ATTR_OTHER || (uint64_t)list->i != m->layers))
        return mgr_fail(err, MGR_ERR_FORMAT, "no_rope_layers of '%s' is no list of %llu entries",
                        mgr_hf_path(ev), (unsigned long long)m->layers);
    for (uint64_t layer = 0; layer < m->layers; layer++) {
        bool turns = (layer + 1) % step != 0;
        if (list)
            MGR_TRY(has_rope(ev, layer, &turns, err));
        if (!turns)
            mgr_model_set_nope(m, layer);
    }
    return MGR_OK;
}

/* What is given, or the class's default; 0: none. */
static int window_size(const mgr_hf_evidence *ev, uint64_t *out, mgr_err *err)
{
    const bool written = mgr_hf_is_written(ev, "sliding_window");
    const mgr_attr *const a = mgr_hf_arg(ev, "sliding_window");
    const int64_t otherwise = written ? 0 : ev->kind->window;
    bool on = true;
    if (ev->kind->keys & MGR_HF_KEY_WINDOW_SWITCH)
        MGR_TRY(mgr_hf_flag(ev, "use_sliding_window", &on, err));
    if (a && on && (a->kind != MGR_ATTR_INT || a->i < 1 || a->i >= MGR_HF_MAX_SIZE))
        return mgr_hf_unsupported(ev, "sliding_window", "a window that is no positive number", err);
    const uint64_t window = !on ? 0 : (uint64_t)(a ? a->i : otherwise);
    *out = window;
    return MGR_OK;
}

/* The first layer that slides where layer_types does not say. */
static int first_window(const mgr_hf_evidence *ev, uint64_t *out, mgr_err *err)
{
    const mgr_attr *const a = mgr_hf_arg(ev, "max_window_layers");
    *out = 0;
    if (!(ev->kind->keys & MGR_HF_KEY_WINDOW_LAYERS))
        return MGR_OK;
    *out = (uint64_t)ev->kind->first_window;
    if (a && (a->kind != MGR_ATTR_INT || a->i < 0 || a->i >= MGR_HF_MAX_SIZE))
        return mgr_fail(err, MGR_ERR_FORMAT, "'max_window_layers' in '%s' is no whole number",
                        mgr_hf_path(ev));
    *out = a ? (uint64_t)a->i : *out;
    return MGR_OK;
}

/* Does layer_types say that `layer` slides? */
static int layer_type(const mgr_hf_evidence *ev, uint64_t layer, bool *slides, mgr_err *err)
{
    char name[64], shown[MGR_HF_SHOWN];
    snprintf(name, sizeof name, "layer_types.%llu", (unsigned long long)layer);
    const mgr_attr *const a = mgr_hf_arg(ev, name);
    *slides = mgr_hf_is_text(a, "sliding_attention");
    if (*slides || mgr_hf_is_text(a, "full_attention"))
        return MGR_OK;
    return mgr_fail(err, MGR_ERR_UNSUPPORTED, "'%s' has %s %s, which is not supported",
                    mgr_hf_path(ev), name,
                    a ? mgr_huggingface_value(a, shown, sizeof shown) : "missing");
}

/* Layer by layer; layer_types must say what the class does, or be what decides it. */
static int window_layers(const mgr_hf_evidence *ev, uint64_t given, uint64_t first, mgr_model *m,
                         mgr_err *err)
{
    const bool far = given >= m->max_positions; /* no position leaves it */
    const uint64_t window = far ? 0 : given;
    const mgr_attr *const types = mgr_hf_arg(ev, "layer_types");
    const bool decides = ev->kind->keys & MGR_HF_KEY_WINDOW_LAYERS;
    if (types && types->kind == MGR_ATTR_OTHER && (uint64_t)types->i != m->layers)
        return mgr_fail(err, MGR_ERR_FORMAT, "layer_types of '%s' has %lld entries, not %llu",
                        mgr_hf_path(ev), (long long)types->i, (unsigned long long)m->layers);
    for (uint64_t layer = 0; layer < m->layers; layer++) {
        bool slides = window > 0 && layer >= first, said = slides;
        if (types)
            MGR_TRY(layer_type(ev, layer, &said, err));
        said = said && !far;
        if (said != slides && (!decides || window == 0))
            return mgr_fail(
                err, MGR_ERR_UNSUPPORTED,
                "'%s': layer_types.%llu is \"%s\", but of the sliding_window %s", mgr_hf_path(ev),
                (unsigned long long)layer, said ? "sliding_attention" : "full_attention",
                said ? "there is none that counts" : "all layers of this class have one");
        if (said)
            mgr_model_set_window(m, layer);
    }
    return MGR_OK;
}

/* A window that no position leaves is none, and so is one that is switched off, or of no layer. */
int mgr_hf_windows(const mgr_hf_evidence *ev, mgr_model *m, mgr_err *err)
{
    uint64_t window = 0, first = 0;
    MGR_TRY(window_size(ev, &window, err));
    MGR_TRY(first_window(ev, &first, err));
    if (window && window < m->max_positions && (ev->kind->keys & MGR_HF_KEY_NO_WINDOWS)) {
        mgr_fail(err, MGR_ERR_UNSUPPORTED,
                 "'%s' has a sliding_window of %llu of %llu positions, which %s has not and "
                 "transformers 5 applies to its cache all the same",
                 mgr_hf_path(ev), (unsigned long long)window, (unsigned long long)m->max_positions,
                 ev->kind->name);
        return mgr_hint(err, "set it to null, or 'model.max_position_embeddings' to the window");
    }
    MGR_TRY(window_layers(ev, window, first, m, err));
    m->window = mgr_model_window_layers(m) ? window : 0;
    return MGR_OK;
}
