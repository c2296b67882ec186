#include "model/megatron_kin_dist.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "model/megatron_dist_key.h"

/* ---- a source ---- */

/* A chunk whose key is that of an opaque tensor. */
typedef struct chunk {
    mgr_kin_key key;
    uint64_t layer, layers; /* within the stack; 1 of those that are in none */
    uint32_t ndim;          /* without the axis of layers */
    uint64_t shape[MGR_MAX_NDIM], offset[MGR_MAX_NDIM];
} chunk;

static bool read_chunk(mgr_megatron_kin kin, const mgr_stored *s, chunk *c)
{
    uint64_t offset[MGR_MAX_NDIM] = {0};
    size_t len;
    *c = (chunk){.layers = 1};
    if (!mgr_megatron_dist_parse(s, &len, offset))
        return false;
    const char *const key = mgr_dist_skip_wrappers(s->name, &len);
    c->key = mgr_kin_parse(kin, key, len);
    const uint32_t lead = c->key.stacked ? 1 : 0;
    if (!c->key.row || s->ndim < lead + 1)
        return false;
    c->layer = c->key.stacked ? offset[0] : c->key.layer;
    c->layers = c->key.stacked ? s->shape[0] : 1;
    c->ndim = s->ndim - lead;
    memcpy(c->shape, s->shape + lead, c->ndim * sizeof c->shape[0]);
    memcpy(c->offset, offset + lead, c->ndim * sizeof c->offset[0]);
    return c->layer < MGR_MAX_LAYERS && c->layers <= MGR_MAX_LAYERS;
}

int mgr_kin_dist_opaque(mgr_tensors *ts, const mgr_catalogue *cat, mgr_err *err)
{
    const mgr_megatron_kin kin = (mgr_megatron_kin)ts->model.kin;
    mgr_kin_list list = {0};
    int rc = MGR_OK;
    if (!kin)
        return MGR_OK;
    for (size_t i = 0; rc == MGR_OK && i < cat->n_stored; i++) {
        uint64_t reach[MGR_MAX_NDIM];
        chunk c;
        if (!read_chunk(kin, &cat->stored[i], &c) || c.key.again)
            continue;
        for (uint32_t d = 0; d < c.ndim; d++)
            reach[d] = c.offset[d] + c.shape[d];
        for (uint64_t l = 0; rc == MGR_OK && l < c.layers; l++)
            rc = mgr_kin_note(&list, &c.key, c.layer + l, c.ndim, reach, err);
    }
    return mgr_kin_add(&list, ts, rc, err);
}

/* The opaque tensor that a layer of the chunk is of; MGR_NONE: there is none. */
static uint32_t find(const mgr_tensors *ts, const chunk *c, uint64_t layer)
{
    char name[MGR_KIN_NAME_BYTES];
    const mgr_opaque named = {.name = name};
    if (c->key.in_layer)
        snprintf(name, sizeof name, "%s%" PRIu64 ".%s", mgr_kin_layers(c->key.stack), layer,
                 c->key.row->name);
    else
        snprintf(name, sizeof name, "%s", c->key.row->name);
    return mgr_tensors_match(ts, &(mgr_tensor){.opaque = &named});
}

/* Of more than two axes a chunk is the whole; rows behind the true vocabulary are padding. */
static bool box_of(const chunk *c, const mgr_tensor *t, mgr_box *b)
{
    const bool matrix = c->ndim == 2;
    if (c->ndim > 2) {
        *b = (mgr_box){.rows = t->rows, .cols = t->cols};
        for (uint32_t d = 0; d < c->ndim; d++)
            if (c->offset[d] || c->shape[d] != t->opaque->shape[d])
                return false;
        return true;
    }
    *b = (mgr_box){.row = c->offset[0],
                   .rows = c->shape[0],
                   .col = matrix ? c->offset[1] : 0,
                   .cols = matrix ? c->shape[1] : 1};
    if (c->key.row->split != MGR_KIN_VOCABULARY)
        return b->row + b->rows <= t->rows && b->col + b->cols <= t->cols;
    b->row = b->row < t->rows ? b->row : t->rows;
    b->rows = t->rows - b->row < b->rows ? t->rows - b->row : b->rows;
    return b->col + b->cols <= t->cols;
}

static int put(mgr_layout *layout, const mgr_stored *s, const chunk *c, mgr_err *err)
{
    const mgr_tensors *const ts = layout->tensors;
    uint32_t stored;
    MGR_TRY(mgr_layout_tensor(layout, s->file, s->name, s->ndim, s->shape, &stored, err));
    for (uint64_t l = 0; l < c->layers; l++) {
        mgr_box b;
        const uint32_t idx = find(ts, c, c->layer + l);
        if (idx == MGR_NONE || ts->list[idx].opaque->ndim != c->ndim ||
            !box_of(c, &ts->list[idx], &b))
            return mgr_fail(err, MGR_ERR_FORMAT,
                            "tensor '%s' in '%s' does not fit the other chunks of its key", s->name,
                            layout->cat->files[s->file].path);
        b.tensor = idx;
        b.stored = stored;
        b.stored_row = l * c->shape[0];
        b.copy = c->key.again;
        MGR_TRY(mgr_layout_box(layout, &b, err));
    }
    return MGR_OK;
}

int mgr_kin_dist_layout(mgr_layout *layout, mgr_err *err)
{
    for (size_t i = 0; i < layout->cat->n_stored; i++) {
        chunk c;
        const mgr_stored s = layout->cat->stored[i];
        if (read_chunk((mgr_megatron_kin)layout->tensors->model.kin, &s, &c))
            MGR_TRY(put(layout, &s, &c, err));
    }
    return MGR_OK;
}

/* ---- a target ---- */

/* Norms have the names of Transformer Engine, which the specs of T5, and not those of vision
 * transformers, give to their own in this format (sharded_state_dict_keys_map). */
static const char *name_of(const mgr_layout *layout, const mgr_megatron_dist_target *target,
                           const mgr_kin_key *key, bool again)
{
    const mgr_kin_row *const row = key->row;
    const mgr_model *const m = &layout->tensors->model;
    const bool te = target->names == MGR_NAMES_TE;
    const bool moe = te && key->in_layer &&
                     mgr_model_is_moe(m, mgr_model_stack_first(m, key->stack) + key->layer);
    if (again)
        return row->again;
    return mgr_kin_is_fused(row, te || m->kin == MGR_KIN_T5, moe) ? row->fused : row->name;
}

static void make_key(const mgr_kin_key *key, bool stacked, const char *name,
                     char out[MGR_KIN_NAME_BYTES])
{
    if (!key->in_layer)
        snprintf(out, MGR_KIN_NAME_BYTES, "%s", name);
    else if (stacked)
        snprintf(out, MGR_KIN_NAME_BYTES, "%s%s", mgr_kin_layers(key->stack), name);
    else
        snprintf(out, MGR_KIN_NAME_BYTES, "%s%" PRIu64 ".%s", mgr_kin_layers(key->stack),
                 key->layer, name);
}

/* Rows of one chunk, and of all of them. */
static uint64_t chunk_rows(const mgr_megatron_dist_target *target, const mgr_kin_row *row,
                           const mgr_tensor *t, uint64_t *all)
{
    const bool vocabulary = row->split == MGR_KIN_VOCABULARY;
    *all = vocabulary ? target->padded_vocab : t->rows;
    return vocabulary ? target->vocab_rows : t->rows;
}

bool mgr_kin_dist_chunk(const mgr_layout *layout, const mgr_megatron_dist_target *target,
                        uint32_t idx, uint64_t number, mgr_kin_chunk *out)
{
    const mgr_tensor *const t = &layout->tensors->list[idx];
    const mgr_opaque *const o = t->opaque;
    const mgr_kin_key key = mgr_kin_key_of(&layout->tensors->model, o);
    const mgr_kin_row *const row = key.row;
    uint64_t all;
    const uint64_t most = chunk_rows(target, row, t, &all), each = (all + most - 1) / most;
    const bool again = number >= each, stacked = key.in_layer && target->stacked;
    const uint64_t first = (number - (again ? each : 0)) * most;
    if (number >= (row->again ? 2 : 1) * each)
        return false;
    const uint64_t rows = all - first < most ? all - first : most;
    const uint64_t from = first < t->rows ? first : t->rows;
    const uint64_t kept = t->rows - from < rows ? t->rows - from : rows;
    *out = (mgr_kin_chunk){.ndim = o->ndim + (stacked ? 1 : 0),
                           .box = {.tensor = idx, .row = from, .rows = kept, .cols = t->cols},
                           .pad = rows - kept,
                           .kind = (key.number * 2 + again) * 2 + (key.stack == MGR_STACK_ENCODER)};
    make_key(&key, stacked, name_of(layout, target, &key, again), out->key);
    memcpy(out->shape + (stacked ? 1 : 0), o->shape, o->ndim * sizeof o->shape[0]);
    if (row->split == MGR_KIN_VOCABULARY) {
        out->shape[0] = rows;
        out->offset[0] = first;
    }
    if (stacked) {
        out->shape[0] = 1;
        out->offset[0] = key.layer;
    }
    out->box.copy = again;
    return true;
}
