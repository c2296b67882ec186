#include "mgr/model.h"

#include <stdio.h>

#include "core/mem.h"
#include "mgr/upcycle.h"

const char *mgr_role_name(mgr_role role)
{
    static const char *const names[MGR_ROLE_COUNT] = {
        "embedding", "attention norm", "q",  "k",    "v",          "o",      "mlp norm",
        "router",    "gate",           "up", "down", "final norm", "lm head"};
    return (unsigned)role < MGR_ROLE_COUNT ? names[role] : "?";
}

/* Shape and bundling of a role; `step` 1 unless units must keep rows together. */
static mgr_tensor describe(const mgr_model *m, mgr_role role)
{
    const uint64_t h = m->hidden, q = m->heads * m->head_dim, kv = m->kv_groups * m->head_dim;
    mgr_tensor t = {.role = role, .layer = MGR_NONE, .expert = MGR_NONE, .ndim = 2, .step = 1};
    switch (role) {
    case MGR_ROLE_EMBEDDING:
    case MGR_ROLE_LM_HEAD:
        t.rows = m->vocab, t.cols = h;
        break;
    case MGR_ROLE_Q:
        t.rows = q, t.cols = h, t.step = q / m->kv_groups;
        break;
    case MGR_ROLE_K:
    case MGR_ROLE_V:
        t.rows = kv, t.cols = h, t.step = m->head_dim;
        break;
    case MGR_ROLE_O:
        t.rows = h, t.cols = q;
        break;
    case MGR_ROLE_ROUTER:
        t.rows = m->experts, t.cols = h;
        break;
    case MGR_ROLE_GATE:
    case MGR_ROLE_UP:
        t.rows = m->ffn, t.cols = h;
        break;
    case MGR_ROLE_DOWN:
        t.rows = h, t.cols = m->ffn, t.step = MGR_CANONICAL_ROWS;
        break;
    default: /* norms */
        t.rows = h, t.cols = 1, t.ndim = 1;
        break;
    }
    return t;
}

static void add(mgr_tensors *ts, mgr_role role, uint32_t layer, uint32_t expert)
{
    mgr_tensor t = describe(&ts->model, role);
    t.layer = layer;
    t.expert = expert;
    t.bundle = ts->n;
    if (role == MGR_ROLE_K)
        t.bundle = ts->n - 1;
    if (role == MGR_ROLE_V)
        t.bundle = ts->n - 2;
    ts->list[ts->n++] = t;
}

/* The order within a layer; mgr_tensors_find counts on it. */
static void add_layer(mgr_tensors *ts, uint32_t layer)
{
    for (int role = MGR_ROLE_ATTN_NORM; role <= MGR_ROLE_MLP_NORM; role++)
        add(ts, (mgr_role)role, layer, MGR_NONE);
    const uint32_t experts = (uint32_t)ts->model.experts;
    if (experts)
        add(ts, MGR_ROLE_ROUTER, layer, MGR_NONE);
    for (uint32_t e = 0; e < (experts ? experts : 1); e++)
        for (int role = MGR_ROLE_GATE; role <= MGR_ROLE_DOWN; role++)
            add(ts, (mgr_role)role, layer, experts ? e : MGR_NONE);
}

int mgr_tensors_init(mgr_tensors *tensors, const mgr_model *model, mgr_err *err)
{
    mgr_tensors ts = {.model = *model};
    ts.per_layer = 6 + (model->experts ? 1 + 3 * (uint32_t)model->experts : 3);
    uint64_t total;
    if (mgr_mul_overflow(ts.per_layer, model->layers, &total) || total > UINT32_MAX / 2)
        return mgr_fail(err, MGR_ERR_UNSUPPORTED, "%llu layers of %u tensors are too many",
                        (unsigned long long)model->layers, ts.per_layer);
    MGR_TRY(mgr_alloc(&ts.list, (size_t)total + 3, sizeof *ts.list, err));
    add(&ts, MGR_ROLE_EMBEDDING, MGR_NONE, MGR_NONE);
    for (uint32_t l = 0; l < model->layers; l++)
        add_layer(&ts, l);
    add(&ts, MGR_ROLE_FINAL_NORM, MGR_NONE, MGR_NONE);
    if (!model->tied)
        add(&ts, MGR_ROLE_LM_HEAD, MGR_NONE, MGR_NONE);
    *tensors = ts;
    return MGR_OK;
}

void mgr_tensors_clear(mgr_tensors *tensors)
{
    mgr_free(tensors->list);
    *tensors = (mgr_tensors){0};
}

uint32_t mgr_tensors_find(const mgr_tensors *ts, mgr_role role, uint32_t layer, uint32_t expert)
{
    uint32_t idx;
    if (layer == MGR_NONE) {
        const uint32_t tail = 1 + (uint32_t)ts->model.layers * ts->per_layer;
        idx = role == MGR_ROLE_EMBEDDING ? 0 : tail + (role == MGR_ROLE_LM_HEAD);
    } else if (layer >= ts->model.layers) {
        return MGR_NONE;
    } else {
        idx = 1 + layer * ts->per_layer;
        if (role <= MGR_ROLE_ROUTER)
            idx += (uint32_t)(role - MGR_ROLE_ATTN_NORM);
        else
            idx += 6 + (ts->model.experts ? 1 + 3 * (expert == MGR_NONE ? 0 : expert) : 0) +
                   (uint32_t)(role - MGR_ROLE_GATE);
    }
    if (idx >= ts->n)
        return MGR_NONE;
    const mgr_tensor *t = &ts->list[idx];
    return t->role == role && t->layer == layer && t->expert == expert ? idx : MGR_NONE;
}

const char *mgr_tensor_label(const mgr_tensor *tensor, char *out, size_t size)
{
    const char *const role = mgr_role_name(tensor->role);
    if (tensor->layer == MGR_NONE)
        snprintf(out, size, "%s", role);
    else if (tensor->expert == MGR_NONE)
        snprintf(out, size, "layer %u %s", tensor->layer, role);
    else
        snprintf(out, size, "layer %u expert %u %s", tensor->layer, tensor->expert, role);
    return out;
}

uint64_t mgr_tensors_elements(const mgr_tensors *tensors)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < tensors->n; i++)
        sum += tensors->list[i].rows * tensors->list[i].cols;
    return sum;
}
