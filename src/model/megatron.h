/*
 * Megatron's legacy `torch` layout of a GPT, dense or a mixture of experts: names, shapes and the
 * TP x PP x VPP x EP x ETP partition, with the names of Megatron-Core and those from before it.
 * Rules: megatron/core/models/gpt/{gpt_layer_specs,moe_module_specs}.py,
 * transformer/{attention,mlp}.py, transformer/moe/{moe_layer,experts,router}.py,
 * tensor_parallel/layers.py, transformer/transformer_block.py, parallel_state.py of
 * NVIDIA/Megatron-LM; old names: megatron/legacy/model/{language_model,transformer}.py up to core
 * 0.17.
 */
#ifndef MGR_MODEL_MEGATRON_H
#define MGR_MODEL_MEGATRON_H

#include <stdbool.h>
#include <stdint.h>

#include "mgr/config.h"
#include "mgr/layout.h"

/* Where the pre-MLP and attention norms live: fused into the linears (Transformer Engine) or as
 * modules of their own (local). */
typedef enum mgr_norm_names { MGR_NAMES_TE, MGR_NAMES_LOCAL } mgr_norm_names;

/* SequentialMLP, TEGroupedMLP, and GroupedMLP (up to core 0.16), which keeps all experts of a rank,
 * transposed, in two tensors. */
typedef enum mgr_expert_names {
    MGR_EXPERTS_SEQUENTIAL,
    MGR_EXPERTS_GROUPED,
    MGR_EXPERTS_GROUPED_OLD
} mgr_expert_names;

/* A virtual pipeline chunk v of stage p holds the layers behind those of every (v', p') with v' <
 * v, or v' = v and p' < p: interleaved, uneven and accounted stages and explicit pipeline layouts
 * all number layers in that order, so counting them is enough. Expert-parallel rank r holds experts
 * r*E/EP .. of every layer, split over ETP ranks of which tensor-parallel rank t is number t mod
 * ETP; everything else is in the file of each r again. */
typedef struct mgr_megatron {
    uint32_t tensor_parallel, pipeline_parallel;
    uint32_t expert_parallel, expert_tensor_parallel;
    uint32_t virtual_pipeline; /* chunks of a stage, keys model0, model1, ...; 1: key model */
    uint64_t padded_vocab;
    mgr_norm_names names;         /* targets; a source is asked tensor by tensor */
    mgr_expert_names experts;     /* targets */
    bool masters;                 /* sources: where a weight has one, it is read in its place */
    const uint32_t *stage_layers; /* [virtual][pipeline] decoder layers of each chunk; borrowed */
    /* [pipeline][expert][tensor]: file of the layout; MGR_NONE for one that a save with ETP below
     * TP need not have. Borrowed. */
    const uint32_t *files;
} mgr_megatron;

/* What precedes the names of args in a catalogue. */
#define MGR_ARGS "args."

/* What Megatron-LM scales Llama 3's RoPE by, whatever args.rope_scaling_factor says. */
#define MGR_MEGATRON_ROPE_FACTOR 8.0

/* Index into mgr_megatron.files. Pure. */
size_t mgr_megatron_cell(const mgr_megatron *megatron, uint32_t pp, uint32_t ep, uint32_t tp);

/* Put every tensor of every file into `layout`. Fused QKV, [gate; up] per rank, row and column
 * splits and vocabulary padding are all boxes; what several files hold is a copy. Errors:
 * MGR_ERR_FORMAT. Local. */
int mgr_megatron_layout(mgr_layout *layout, const mgr_megatron *megatron,
                        mgr_err *err) MGR_NODISCARD;

/* The sizes do not split over the ranks: MGR_ERR_FORMAT naming the size. Pure. */
int mgr_megatron_check(const mgr_model *model, const mgr_megatron *megatron,
                       mgr_err *err) MGR_NODISCARD;

/* Derive model and partition from the catalogue of all files (files[] as in mgr_megatron): from
 * args, from the tensors' shapes and from the configuration's `model:` section, each checked
 * against the others; kinds that are not supported are refused by name. `stage_layers` has room
 * for virtual_pipeline * pipeline_parallel entries. Local. */
int mgr_megatron_model(const mgr_catalogue *cat, const mgr_config *config, mgr_megatron *megatron,
                       uint32_t *stage_layers, mgr_model *model, mgr_err *err) MGR_NODISCARD;

/* What the tensors of a checkpoint show of its model, whatever the format: sizes of whole tensors.
 * 0 is "unknown" or "there is none". */
typedef struct mgr_megatron_shapes {
    uint32_t file; /* whose attributes are read */
    mgr_dtype dtype;
    mgr_megatron_kin kin;
    uint64_t layers, hidden, padded_vocab;
    uint64_t encoder_layers; /* of them */
    bool hybrid; /* a HybridModel's, whose args count attention and FFN as a layer each */
    uint64_t ffn, fc1_rows;               /* of dense FFNs: columns of fc2, rows of fc1 */
    uint64_t experts;                     /* rows of the router */
    uint64_t expert_ffn, expert_fc1_rows; /* of experts */
    uint64_t shared_ffn;                  /* columns of the shared expert's fc2 */
    uint64_t positions;                   /* rows of learned positions */
    uint64_t most_layers;                 /* that there can be, by the number of tensors */
    bool output;                          /* there is an output layer */
    /* there are such tensors */
    bool norm_bias, qkv_bias, o_bias, mlp_bias, router_bias, qk_norm;
    bool selection_bias, shared_switch;
    uint8_t moe_layers[MGR_MAX_LAYERS / 8]; /* bit of a layer: it has a router */
} mgr_megatron_shapes;

/* Refuse what names or args, those of `shapes->file`, show to be another kind of model: of `shapes`
 * that needs no sizes. Local. */
int mgr_megatron_model_check(const mgr_catalogue *cat, const mgr_config *config,
                             const mgr_megatron_shapes *shapes, mgr_err *err) MGR_NODISCARD;

/* The model of these shapes, of the args that `file` has and of the configuration, as above. */
int mgr_megatron_model_of(const mgr_catalogue *cat, const mgr_config *config,
                          const mgr_megatron_shapes *shapes, mgr_model *model,
                          mgr_err *err) MGR_NODISCARD;

#endif
