/*
 * Megatron-Core's models beside GPTModel, in both of its formats: T5Model, with an encoder's and a
 * decoder's layers, and CLIPViTModel, whose layers are called a decoder's. Their FFNs are
 * understood; all else is opaque, under the name that its module has, and of the shape that it has
 * in one piece: what tensor-parallel ranks share is cut as Megatron cuts it. Rules:
 * megatron/core/models/{T5/t5_model,T5/t5_spec,vision/clip_vit_model,vision/vit_layer_specs}.py and
 * transformer/attention.py of NVIDIA/Megatron-LM.
 */
#ifndef MGR_MODEL_MEGATRON_KIN_H
#define MGR_MODEL_MEGATRON_KIN_H

#include <stdbool.h>
#include <stdint.h>

#include "core/str.h"
#include "mgr/layout.h"
#include "model/megatron.h"

#define MGR_KIN_NAME_BYTES 192

/* What a tensor-parallel rank has of a tensor. Cross attention's linear_kv has k then v of each
 * head, linear_qkv q, k and v of each group: both are cut between heads, as plain rows. */
typedef enum mgr_kin_split {
    MGR_KIN_WHOLE,
    MGR_KIN_ROWS,
    MGR_KIN_COLS,
    MGR_KIN_VOCABULARY /* rows, with padding behind */
} mgr_kin_split;

/* One kind of tensor. */
typedef struct mgr_kin_row {
    const char *name;  /* of the module; behind "<stack>.layers.<l>." where it is of a layer */
    const char *fused; /* where a norm is a part of the linear behind it; NULL: never */
    const char *again; /* a second name of the same tensor; NULL: it has none */
    mgr_kin_split split;
    bool in_layer;
    uint8_t of;   /* bits 1 << kin: the models that have it */
    bool needed;  /* all of them do */
    bool decoder; /* of a layer: only a decoder's has it */
} mgr_kin_row;

#define MGR_KIN_ROWS_MOST 40

/* "encoder.layers.3.input_layernorm.weight" and the like, taken apart. */
typedef struct mgr_kin_key {
    const mgr_kin_row *row; /* NULL: none that is opaque */
    size_t number;          /* of the row, below MGR_KIN_ROWS_MOST */
    bool in_layer, stacked; /* without a number the layers are an axis */
    bool again;             /* by its second name */
    mgr_stack stack;
    uint64_t layer;   /* within the stack */
    const char *rest; /* behind the layer, or all */
    size_t rest_len;
} mgr_kin_key;

/* "decoder.layers.", "encoder.layers.". Pure. */
const char *mgr_kin_layers(mgr_stack stack);

/* Whose tensors are these? Pure. */
mgr_megatron_kin mgr_megatron_kin_of(const mgr_catalogue *cat);

/* The first `len` bytes of `name`. Pure. */
mgr_kin_key mgr_kin_parse(mgr_megatron_kin kin, const char *name, size_t len);

/* The name of an opaque tensor of a model that has it: there is a row. Pure. */
mgr_kin_key mgr_kin_key_of(const mgr_model *model, const mgr_opaque *opaque);

/* The opaque tensor's name with `name`, one of the row's three, in the place of the first. Pure. */
void mgr_kin_spell(const mgr_kin_row *row, const char *opaque, const char *name,
                   char out[MGR_KIN_NAME_BYTES]);

/* Whether a target has a norm as a part of the linear behind it: one in front of experts has no
 * linear behind it in Transformer Engine's names. Pure. */
bool mgr_kin_is_fused(const mgr_kin_row *row, bool fuses, bool moe);

/* Opaque tensors while they are gathered. */
typedef struct mgr_kin_list {
    mgr_opaque *list; /* names are `arena`'s */
    size_t n, cap;
    mgr_arena arena;
} mgr_kin_list;

/* Note that the tensor of `key` reaches as far as `shape`, of `layer` of the stack where the key
 * has no number. Local. */
int mgr_kin_note(mgr_kin_list *list, const mgr_kin_key *key, uint64_t layer, uint32_t ndim,
                 const uint64_t *shape, mgr_err *err) MGR_NODISCARD;
/* Put all that were noted behind the model's tensors, which own them then, and free the list; with
 * `rc` an error only that. Returns `rc`, or how it went. Local. */
int mgr_kin_add(mgr_kin_list *list, mgr_tensors *tensors, int rc, mgr_err *err) MGR_NODISCARD;

/* Layers, routers and sizes that the tensors of the format torch show in `shapes->file`: `experts`
 * and the like stay as they are where nothing shows them. Local. */
int mgr_kin_measure(const mgr_catalogue *cat, const mgr_megatron *megatron,
                    mgr_megatron_shapes *shapes, mgr_err *err) MGR_NODISCARD;

/* No stack may be missing. MGR_ERR_UNSUPPORTED. Local. */
int mgr_kin_check(const mgr_catalogue *cat, uint32_t file, mgr_megatron_kin kin,
                  const uint64_t layers[MGR_STACK_COUNT], mgr_err *err) MGR_NODISCARD;

/* The opaque tensors of a source of the format torch. Local. */
int mgr_kin_opaque(mgr_tensors *tensors, const mgr_catalogue *cat, const mgr_megatron *megatron,
                   mgr_err *err) MGR_NODISCARD;

/* "decoder.layers.1.mlp.experts.0.up" of an FFN's or a router's tensor, for people. Pure. */
void mgr_kin_name(const mgr_tensors *tensors, const mgr_tensor *tensor, char *out, size_t size);

#endif
