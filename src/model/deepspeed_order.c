#include "model/deepspeed_order.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "core/str.h"

/* transformers 5.23 and 4.4x, modeling_*.py, as their classes' __init__ go; seen in
 * named_parameters(). Where fused experts come before their router, version 5 has it so. */
#define KNOWN                                                                                      \
    (MGR_HF_BIT(MGR_HF_LLAMA) | MGR_HF_BIT(MGR_HF_MISTRAL) | MGR_HF_BIT(MGR_HF_QWEN2) |            \
     MGR_HF_BIT(MGR_HF_QWEN3) | MGR_HF_BIT(MGR_HF_OLMO2) | MGR_HF_BIT(MGR_HF_GRANITE) |            \
     MGR_HF_BIT(MGR_HF_SMOLLM3) | MGR_HF_BIT(MGR_HF_ERNIE) | MGR_HF_BIT(MGR_HF_SEED_OSS) |         \
     MGR_HF_BIT(MGR_HF_PHI3) | MGR_HF_BIT(MGR_HF_MINISTRAL) | MGR_HF_BIT(MGR_HF_MIXTRAL) |         \
     MGR_HF_BIT(MGR_HF_QWEN3_MOE) | MGR_HF_BIT(MGR_HF_QWEN2_MOE) | MGR_HF_BIT(MGR_HF_FLEX_OLMO) |  \
     MGR_HF_BIT(MGR_HF_OLMOE))
#define EXPERTS_FIRST (MGR_HF_BIT(MGR_HF_QWEN3_MOE))

/* What of a layer comes before what. */
static const char *const layer_parts[] = {"self_attn.q_proj.",
                                          "self_attn.k_proj.",
                                          "self_attn.v_proj.",
                                          "self_attn.o_proj.",
                                          "self_attn.qkv_proj.",
                                          "self_attn.q_norm.",
                                          "self_attn.k_norm.",
                                          "mlp.gate.",
                                          "block_sparse_moe.gate.",
                                          "mlp.experts.",
                                          "block_sparse_moe.experts.",
                                          "mlp.shared_expert.",
                                          "mlp.shared_expert_gate.",
                                          "mlp.gate_proj.",
                                          "mlp.gate_up_proj.",
                                          "mlp.up_proj.",
                                          "mlp.down_proj.",
                                          "input_layernorm.",
                                          "post_attention_layernorm.",
                                          "post_feedforward_layernorm."};
#define N_LAYER_PARTS (sizeof layer_parts / sizeof layer_parts[0])
#define ROUTER "mlp.gate."

/* What of an expert: w1 and w2 stand before w3, which is up. */
static const char *const expert_parts[] = {"w1.", "gate_proj.", "gate_up_proj", "up_proj.",
                                           "w2.", "w3.",        "down_proj"};
#define N_EXPERT_PARTS (sizeof expert_parts / sizeof expert_parts[0])

#define LAYERS "model.layers."
#define EXPERTS "experts."

/* Compared number by number: zone, layer, part, expert, part of it, bias. */
typedef struct place {
    unsigned long key[6];
    uint32_t idx;
} place;

static unsigned long first_of(const char *const *parts, size_t n, const char *name)
{
    for (size_t i = 0; i < n; i++)
        if (mgr_has_prefix(name, parts[i]))
            return i;
    return n;
}

static void place_in_layer(const char *name, bool experts_first, place *p)
{
    char *end;
    p->key[1] = strtoul(name, &end, 10);
    const char *const part = *end ? end + 1 : end, *const experts = strstr(part, "." EXPERTS);
    /* twice, so that there is room behind each */
    p->key[2] = 2 * first_of(layer_parts, N_LAYER_PARTS, part);
    if (experts_first && mgr_has_prefix(part, ROUTER))
        p->key[2] = 2 * first_of(layer_parts, N_LAYER_PARTS, "mlp." EXPERTS) + 1;
    const char *inner = experts ? experts + sizeof EXPERTS : strrchr(part, '.');
    if (experts && isdigit((unsigned char)*inner)) {
        p->key[3] = strtoul(inner, &end, 10);
        inner = *end ? end + 1 : end;
    }
    if (mgr_has_prefix(part, "mlp.shared_expert."))
        inner = part + strlen("mlp.shared_expert.");
    p->key[4] = inner ? first_of(expert_parts, N_EXPERT_PARTS, inner) : 0;
    p->key[5] = mgr_has_suffix(part, ".bias");
}

static place place_of(const char *name, bool experts_first, uint32_t idx)
{
    place p = {.idx = idx};
    if (mgr_has_prefix(name, LAYERS)) {
        p.key[0] = 1;
        place_in_layer(name + strlen(LAYERS), experts_first, &p);
    } else if (mgr_has_prefix(name, "model.norm.")) {
        p.key[0] = 2;
    } else if (mgr_has_prefix(name, "lm_head.")) {
        p.key[0] = 3;
    }
    return p;
}

static int by_place(const void *a, const void *b)
{
    const place *const x = a, *const y = b;
    for (size_t i = 0; i < sizeof x->key / sizeof x->key[0]; i++)
        if (x->key[i] != y->key[i])
            return x->key[i] < y->key[i] ? -1 : 1;
    return x->idx < y->idx ? -1 : x->idx > y->idx;
}

bool mgr_deepspeed_has_order(mgr_hf_class class)
{
    return class < MGR_HF_NO_CLASS && (KNOWN & MGR_HF_BIT(class));
}

int mgr_deepspeed_order(const mgr_catalogue *params, const mgr_huggingface *hf, uint32_t *order,
                        mgr_err *err)
{
    const bool experts_first =
        (EXPERTS_FIRST & MGR_HF_BIT(hf->class)) && mgr_huggingface_is_fused(hf->ffn);
    place *places;
    MGR_TRY(mgr_alloc(&places, params->n_stored, sizeof *places, err));
    for (uint32_t i = 0; i < params->n_stored; i++)
        places[i] = place_of(params->stored[i].name, experts_first, i);
    qsort(places, params->n_stored, sizeof *places, by_place);
    for (size_t i = 0; i < params->n_stored; i++)
        order[i] = places[i].idx;
    mgr_free(places);
    return MGR_OK;
}
