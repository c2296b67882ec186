#include "model/huggingface_evidence.h"

#include <stdio.h>
#include <string.h>

#include "core/str.h"
#include "model/huggingface_tower.h"

static const mgr_attr *written(const mgr_hf_evidence *ev, const char *name)
{
    char key[112];
    snprintf(key, sizeof key, "config.%s%s", ev->hf->section ? ev->hf->section : "", name);
    return mgr_catalogue_attr(ev->cat, ev->hf->config, key);
}

bool mgr_hf_is_written(const mgr_hf_evidence *ev, const char *name)
{
    return written(ev, name);
}

const mgr_attr *mgr_hf_arg(const mgr_hf_evidence *ev, const char *name)
{
    const mgr_attr *const a = written(ev, name);
    return a && a->kind != MGR_ATTR_NULL ? a : NULL;
}

const char *mgr_hf_path(const mgr_hf_evidence *ev)
{
    return ev->cat->files[ev->hf->config].path;
}

bool mgr_hf_is_text(const mgr_attr *a, const char *text)
{
    return a && a->kind == MGR_ATTR_TEXT && strcmp(a->text, text) == 0;
}

int mgr_hf_unsupported(const mgr_hf_evidence *ev, const char *name, const char *what, mgr_err *err)
{
    const mgr_attr *const a = mgr_hf_arg(ev, name);
    const char *const text = a && a->kind == MGR_ATTR_TEXT ? a->text : "";
    char shown[MGR_HF_SHOWN];
    return mgr_fail(err, MGR_ERR_UNSUPPORTED, "'%s' has %s (%s%s%s), which is not supported",
                    mgr_hf_path(ev), what, name, *text ? ": " : "",
                    mgr_printable(text, strlen(text), shown, sizeof shown));
}

int mgr_hf_flag(const mgr_hf_evidence *ev, const char *name, bool *out, mgr_err *err)
{
    const mgr_attr *const a = mgr_hf_arg(ev, name);
    *out = a && a->i;
    return !a || a->kind == MGR_ATTR_BOOL
               ? MGR_OK
               : mgr_fail(err, MGR_ERR_FORMAT, "'%s' in '%s' is neither true nor false", name,
                          mgr_hf_path(ev));
}

int mgr_hf_flag_or(const mgr_hf_evidence *ev, const char *name, bool otherwise, bool *out,
                   mgr_err *err)
{
    *out = otherwise;
    return mgr_hf_arg(ev, name) ? mgr_hf_flag(ev, name, out, err) : MGR_OK;
}

int mgr_hf_whole(const mgr_hf_evidence *ev, mgr_hf_size s, uint64_t *out, mgr_err *err)
{
    const mgr_attr *const a = mgr_hf_arg(ev, s.theirs);
    if (a && (a->kind != MGR_ATTR_INT || a->i < 1 || a->i >= MGR_HF_MAX_SIZE))
        return mgr_fail(err, MGR_ERR_FORMAT, "'%s' in '%s' is not a positive whole number",
                        s.theirs, mgr_hf_path(ev));
    uint64_t known = a ? (uint64_t)a->i : s.otherwise;
    if (known && s.from_config && known != s.from_config) {
        mgr_config_fail(ev->config, s.ours, err, "'%s' is %llu, but '%s' says %llu (%s)", s.ours,
                        (unsigned long long)s.from_config, mgr_hf_path(ev),
                        (unsigned long long)known, s.theirs);
        return MGR_ERR_CONFIG;
    }
    known = known ? known : s.from_config;
    if (known && s.from_tensors && known != s.from_tensors)
        return mgr_fail(err, MGR_ERR_FORMAT,
                        "%s is %llu in '%s'%s, but the tensors' shapes and names say %llu",
                        s.theirs, (unsigned long long)known, mgr_hf_path(ev),
                        a ? "" : " by default", (unsigned long long)s.from_tensors);
    *out = known ? known : s.from_tensors;
    if (*out)
        return MGR_OK;
    mgr_fail(err, MGR_ERR_FORMAT, "'%s' has no %s", mgr_hf_path(ev), s.theirs);
    if (*s.ours)
        mgr_hint(err, "set '%s' in the configuration", s.ours);
    return MGR_ERR_FORMAT;
}

int mgr_hf_number(const mgr_hf_evidence *ev, const char *name, uint64_t otherwise, uint64_t *out,
                  mgr_err *err)
{
    const mgr_attr *const a = mgr_hf_arg(ev, name);
    *out = a ? (uint64_t)a->i : otherwise;
    if (!a || (a->kind == MGR_ATTR_INT && a->i >= 0 && a->i < MGR_HF_MAX_SIZE))
        return MGR_OK;
    return mgr_fail(err, MGR_ERR_FORMAT, "'%s' in '%s' is no whole number", name, mgr_hf_path(ev));
}

int mgr_hf_real(const mgr_hf_evidence *ev, const char *name, double otherwise, double *out,
                mgr_err *err)
{
    const mgr_attr *const a = mgr_hf_arg(ev, name);
    const double value = !a ? otherwise : a->kind == MGR_ATTR_REAL ? a->r : (double)a->i;
    if (a && ((a->kind != MGR_ATTR_REAL && a->kind != MGR_ATTR_INT) || !(value > 0)))
        return mgr_fail(err, MGR_ERR_FORMAT, "'%s' in '%s' is not a positive number", name,
                        mgr_hf_path(ev));
    *out = value;
    return MGR_OK;
}

bool mgr_hf_same_number(double a, double b)
{
    return a >= b && a <= b;
}

const mgr_stored *mgr_hf_first_of(const mgr_hf_evidence *ev, mgr_hf_ffn ffn, mgr_role role,
                                  uint32_t ndim)
{
    char name[MGR_HF_NAME_BYTES];
    const bool of_ffn = role == MGR_ROLE_GATE || role == MGR_ROLE_ROUTER;
    const uint32_t layer = !of_ffn ? 0 : ffn == MGR_HF_DENSE ? ev->dense_layer : ev->moe_layer;
    mgr_huggingface_name(ev->class, ffn, role, layer, 0, name);
    mgr_huggingface_tower_name(ev->tower, name);
    for (size_t i = 0; i < ev->cat->n_stored; i++)
        if (strcmp(ev->cat->stored[i].name, name) == 0 && ev->cat->stored[i].ndim == ndim)
            return &ev->cat->stored[i];
    return NULL;
}

uint64_t mgr_hf_rows_of(const mgr_hf_evidence *ev, mgr_role role)
{
    const mgr_stored *const s = mgr_hf_first_of(ev, ev->hf->ffn, role, 2);
    return s ? s->shape[0] : 0;
}
