#include "model/mixtral.h"

#include <stdio.h>

#include "core/mem.h"

/* Hugging Face name of each role; %u are layer and expert. */
static const char *const names[MGR_ROLE_COUNT] = {
    [MGR_ROLE_EMBEDDING] = "model.embed_tokens.weight",
    [MGR_ROLE_ATTN_NORM] = "model.layers.%u.input_layernorm.weight",
    [MGR_ROLE_Q] = "model.layers.%u.self_attn.q_proj.weight",
    [MGR_ROLE_K] = "model.layers.%u.self_attn.k_proj.weight",
    [MGR_ROLE_V] = "model.layers.%u.self_attn.v_proj.weight",
    [MGR_ROLE_O] = "model.layers.%u.self_attn.o_proj.weight",
    [MGR_ROLE_MLP_NORM] = "model.layers.%u.post_attention_layernorm.weight",
    [MGR_ROLE_ROUTER] = "model.layers.%u.block_sparse_moe.gate.weight",
    [MGR_ROLE_GATE] = "model.layers.%u.block_sparse_moe.experts.%u.w1.weight",
    [MGR_ROLE_UP] = "model.layers.%u.block_sparse_moe.experts.%u.w3.weight",
    [MGR_ROLE_DOWN] = "model.layers.%u.block_sparse_moe.experts.%u.w2.weight",
    [MGR_ROLE_FINAL_NORM] = "model.norm.weight",
    [MGR_ROLE_LM_HEAD] = "lm_head.weight",
};

/* The FFN of a dense model; all else is named as above. */
static const char *const dense_names[MGR_ROLE_COUNT] = {
    [MGR_ROLE_GATE] = "model.layers.%u.mlp.gate_proj.weight",
    [MGR_ROLE_UP] = "model.layers.%u.mlp.up_proj.weight",
    [MGR_ROLE_DOWN] = "model.layers.%u.mlp.down_proj.weight",
};

static void tensor_name(const mgr_tensor *t, char *out, size_t size)
{
    const bool dense = t->expert == MGR_NONE && dense_names[t->role];
    const char *const name = dense ? dense_names[t->role] : names[t->role];
    /* the table is ours; the format strings in it take layer, then expert */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    snprintf(out, size, name, t->layer, t->expert);
#pragma GCC diagnostic pop
}

static int32_t owner_of(const mgr_tensors *ts, const mgr_mixtral *mx, uint32_t idx)
{
    const uint32_t expert = ts->list[idx].expert;
    return expert == MGR_NONE ? -1 : (int32_t)(expert / (ts->model.experts / mx->expert_parallel));
}

/* Number the shards: shard[i] of tensor i, owner[s] of shard s. Returns how many there are. */
static uint32_t assign_shards(const mgr_layout *layout, const mgr_mixtral *mx, uint32_t *shard,
                              int32_t *owner)
{
    const mgr_tensors *const ts = layout->tensors;
    uint32_t n = 0;
    for (int32_t who = -1; who < (int32_t)mx->expert_parallel; who++) {
        uint64_t filled = 0;
        for (uint32_t i = 0; i < ts->n; i++) {
            if (owner_of(ts, mx, i) != who)
                continue;
            const uint64_t bytes =
                ts->list[i].rows * ts->list[i].cols * mgr_dtype_size(layout->dtype);
            if (filled == 0 || filled + bytes > mx->max_shard_size) {
                owner[n++] = who;
                filled = 0;
            }
            shard[i] = n - 1;
            filled += bytes;
        }
    }
    return n;
}

static int declare(mgr_layout *layout, const uint32_t *shard, uint32_t first_file, mgr_err *err)
{
    const mgr_tensors *const ts = layout->tensors;
    for (uint32_t i = 0; i < ts->n; i++) {
        const mgr_tensor *const t = &ts->list[i];
        const uint64_t shape[2] = {t->rows, t->cols};
        uint32_t stored;
        char name[160];
        tensor_name(t, name, sizeof name);
        MGR_TRY(
            mgr_layout_tensor(layout, first_file + shard[i], name, t->ndim, shape, &stored, err));
        const mgr_box box = {.tensor = i, .stored = stored, .rows = t->rows, .cols = t->cols};
        MGR_TRY(mgr_layout_box(layout, &box, err));
    }
    return MGR_OK;
}

int mgr_mixtral_layout(mgr_layout *layout, const mgr_mixtral *mx, mgr_err *err)
{
    const uint32_t n = layout->tensors->n, first = (uint32_t)layout->cat->n_files;
    uint32_t *shard = NULL, file;
    int rc = mgr_alloc(&shard, n, sizeof *shard, err);
    if (rc == MGR_OK)
        rc = mgr_alloc(&layout->file_owner, n, sizeof *layout->file_owner, err);
    const uint32_t shards = rc == MGR_OK ? assign_shards(layout, mx, shard, layout->file_owner) : 0;
    for (uint32_t s = 0; rc == MGR_OK && s < shards; s++) {
        char path[64];
        if (shards == 1)
            snprintf(path, sizeof path, "model.safetensors");
        else
            snprintf(path, sizeof path, "model-%05u-of-%05u.safetensors", s + 1, shards);
        rc = mgr_catalogue_add_file(layout->cat, path, 0, &file, err);
    }
    if (rc == MGR_OK)
        rc = declare(layout, shard, first, err);
    mgr_free(shard);
    return rc;
}
