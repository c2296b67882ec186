#include "model/huggingface_t5.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/str.h"

#define ENCODER "encoder.block.%u.layer.1."
#define DECODER "decoder.block.%u.layer.2."
#define EMBEDDING MGR_HF_T5_EMBEDDING
#define HEAD "lm_head.weight"
#define POSITIONS 512 /* of the models that were published; positions are relative */

/* ---- names ---- */

static const char *const t5_names[MGR_STACK_COUNT][2] = {
    [MGR_STACK_DECODER] = {DECODER "DenseReluDense.wi.weight", DECODER "DenseReluDense.wo.weight"},
    [MGR_STACK_ENCODER] = {ENCODER "DenseReluDense.wi.weight", ENCODER "DenseReluDense.wo.weight"},
};
static const char *const dense_names[MGR_STACK_COUNT][2] = {
    [MGR_STACK_DECODER] = {DECODER "mlp.wi.weight", DECODER "mlp.wo.weight"},
    [MGR_STACK_ENCODER] = {ENCODER "mlp.wi.weight", ENCODER "mlp.wo.weight"},
};
static const char *const expert_names[MGR_STACK_COUNT][2] = {
    [MGR_STACK_DECODER] = {DECODER "mlp.experts.expert_%u.wi.weight",
                           DECODER "mlp.experts.expert_%u.wo.weight"},
    [MGR_STACK_ENCODER] = {ENCODER "mlp.experts.expert_%u.wi.weight",
                           ENCODER "mlp.experts.expert_%u.wo.weight"},
};
static const char *const router_names[MGR_STACK_COUNT][2] = {
    [MGR_STACK_DECODER] = {DECODER "mlp.router.classifier.weight",
                           DECODER "mlp.router.classifier.bias"},
    [MGR_STACK_ENCODER] = {ENCODER "mlp.router.classifier.weight",
                           ENCODER "mlp.router.classifier.bias"},
};

static const char *ffn_name(const char *const names[2], mgr_role role)
{
    return role == MGR_ROLE_UP ? names[0] : role == MGR_ROLE_DOWN ? names[1] : NULL;
}

const char *mgr_huggingface_t5_name(bool expert, mgr_role role, mgr_stack stack)
{
    return expert ? NULL : ffn_name(t5_names[stack], role);
}

const char *mgr_huggingface_switch_name(bool expert, mgr_role role, mgr_stack stack)
{
    if (role == MGR_ROLE_ROUTER || role == MGR_ROLE_ROUTER_BIAS)
        return router_names[stack][role == MGR_ROLE_ROUTER_BIAS];
    return ffn_name(expert ? expert_names[stack] : dense_names[stack], role);
}

/* ---- the model ---- */

static const mgr_stored *find(const mgr_catalogue *cat, const char *name)
{
    for (size_t i = 0; i < cat->n_stored; i++)
        if (strcmp(cat->stored[i].name, name) == 0)
            return &cat->stored[i];
    return NULL;
}

/* One more than the highest index behind `prefix` in the names. */
static uint64_t count_blocks(const mgr_hf_evidence *ev, const char *prefix)
{
    uint64_t blocks = 0;
    for (size_t i = 0; i < ev->cat->n_stored; i++) {
        if (!mgr_has_prefix(ev->cat->stored[i].name, prefix))
            continue;
        const unsigned long idx = strtoul(ev->cat->stored[i].name + strlen(prefix), NULL, 10);
        if (idx < MGR_MAX_LAYERS && idx + 1 > blocks)
            blocks = idx + 1;
    }
    return blocks;
}

static int stacks(const mgr_hf_evidence *ev, mgr_model *m, mgr_err *err)
{
    const uint64_t encoder = count_blocks(ev, "encoder.block."),
                   decoder = count_blocks(ev, "decoder.block.");
    uint64_t layers;
    if (!decoder || !encoder)
        return mgr_fail(err, MGR_ERR_UNSUPPORTED,
                        "'%s' is of half a %s: there is no %s beside it, which is not supported",
                        mgr_hf_path(ev), ev->kind->name, decoder ? "encoder" : "decoder");
    MGR_TRY(
        mgr_hf_whole(ev, (mgr_hf_size){"num_layers", "", 0, 0, encoder}, &m->encoder_layers, err));
    MGR_TRY(mgr_hf_whole(ev, (mgr_hf_size){"num_decoder_layers", "", m->encoder_layers, 0, decoder},
                         &layers, err));
    m->layers = layers + m->encoder_layers;
    return m->layers <= MGR_MAX_LAYERS
               ? MGR_OK
               : mgr_fail(err, MGR_ERR_UNSUPPORTED, "%llu layers are more than %d",
                          (unsigned long long)m->layers, MGR_MAX_LAYERS);
}

static int sizes(const mgr_hf_evidence *ev, mgr_model *m, mgr_err *err)
{
    const mgr_config *const c = ev->config;
    const mgr_stored *const e = find(ev->cat, EMBEDDING);
    if (!e || e->ndim != 2)
        return mgr_fail(err, MGR_ERR_FORMAT, "no matrix '" EMBEDDING "' beside '%s'",
                        mgr_hf_path(ev));
    m->dtype = e->dtype;
    MGR_TRY(mgr_hf_whole(
        ev, (mgr_hf_size){"d_model", "model.hidden_size", 0, c->model.hidden_size, e->shape[1]},
        &m->hidden, err));
    MGR_TRY(mgr_hf_whole(
        ev, (mgr_hf_size){"vocab_size", "model.vocab_size", 0, c->model.vocab_size, e->shape[0]},
        &m->vocab, err));
    MGR_TRY(mgr_hf_whole(
        ev, (mgr_hf_size){"d_ff", "model.ffn_hidden_size", 2048, c->model.ffn_hidden_size, 0},
        &m->ffn, err));
    MGR_TRY(mgr_hf_whole(ev,
                         (mgr_hf_size){"num_heads", "model.num_attention_heads",
                                       ev->kind->experts ? 12 : 8, c->model.num_attention_heads, 0},
                         &m->heads, err));
    MGR_TRY(mgr_hf_whole(ev,
                         (mgr_hf_size){"d_kv", "model.kv_channels", 64, c->model.kv_channels, 0},
                         &m->head_dim, err));
    m->kv_groups = m->heads;
    return mgr_hf_whole(ev, (mgr_hf_size){"n_positions", "", POSITIONS, 0, 0}, &m->max_positions,
                        err);
}

/* T5's feed_forward_proj says it with what stands before it, and both classes take dense_act_fn. */
static int activation(const mgr_hf_evidence *ev, const char *key, mgr_err *err)
{
    const mgr_attr *const a = mgr_hf_arg(ev, key);
    const mgr_attr *const gated = mgr_hf_arg(ev, "is_gated_act");
    if ((!a || mgr_hf_is_text(a, "relu")) && !(gated && gated->i))
        return MGR_OK;
    if ((gated && gated->i) || (a->kind == MGR_ATTR_TEXT && mgr_has_prefix(a->text, "gated-")))
        return mgr_hf_unsupported(ev, key,
                                  "gated FFNs, as T5 1.1, FLAN-T5 and mT5 have, which Switch "
                                  "Transformers cannot hold",
                                  err);
    return mgr_hf_unsupported(ev, key, "an activation other than ReLU", err);
}

/* Have both the same values, of which a sample was taken? */
static bool same_values(const mgr_catalogue *cat, const mgr_stored *a, const mgr_stored *b)
{
    const mgr_attr *const x = mgr_catalogue_attr(cat, a->file, a->name);
    const mgr_attr *const y = mgr_catalogue_attr(cat, b->file, b->name);
    return x && y && x->i == y->i;
}

/* Is the head a tensor of its own? A .bin may mean the embedding by both names, and others may hold
 * the same values twice. */
static bool has_head(const mgr_hf_evidence *ev)
{
    const mgr_stored *const head = find(ev->cat, HEAD), *const e = find(ev->cat, EMBEDDING);
    if (!head || (head->file == e->file && head->offset == e->offset))
        return false;
    return !same_values(ev->cat, head, e);
}

/* T5 scales what its decoder gives where scale_decoder_outputs says so, before transformers 5 where
 * tie_word_embeddings did, and has a head of its own where the file has one. Switch has one word
 * for both, and for the embeddings of the stacks, which T5's files do not hold. */
static int head(const mgr_hf_evidence *ev, mgr_model *m, mgr_err *err)
{
    bool said, scaled;
    MGR_TRY(mgr_hf_flag_or(ev, "tie_word_embeddings", true, &said, err));
    m->tied = said;
    if (ev->kind->experts)
        return MGR_OK;
    m->tied = !has_head(ev);
    MGR_TRY(mgr_hf_flag_or(ev, "scale_decoder_outputs", said, &scaled, err));
    if (m->tied == scaled)
        return MGR_OK;
    return mgr_fail(err, MGR_ERR_UNSUPPORTED,
                    "'%s' is of a T5 with %s head whose decoder's output is %s, which Switch "
                    "Transformers cannot say: its output is scaled where the head is tied",
                    mgr_hf_path(ev), m->tied ? "a tied" : "its own",
                    scaled ? "scaled" : "not scaled");
}

/* Which layers of a stack have experts. The step that is written wins over the number of layers
 * that it is derived from (SwitchTransformersConfig). */
static int sparse_layers(const mgr_hf_evidence *ev, mgr_stack stack, mgr_model *m, mgr_err *err)
{
    const bool encoder = stack == MGR_STACK_ENCODER;
    const uint64_t layers = mgr_model_stack_layers(m, stack),
                   first = mgr_model_stack_first(m, stack);
    uint64_t n, step;
    MGR_TRY(mgr_hf_number(ev, encoder ? "num_sparse_encoder_layers" : "num_sparse_decoder_layers",
                          3, &n, err));
    MGR_TRY(mgr_hf_number(ev, encoder ? "encoder_sparse_step" : "decoder_sparse_step",
                          n ? layers / n : layers, &step, err));
    for (uint64_t l = 0; l < layers; l++)
        if (step == 0 || (step > 1 && l % step != 1))
            mgr_model_set_dense(m, first + l);
    return MGR_OK;
}

static int experts(const mgr_hf_evidence *ev, mgr_model *m, mgr_err *err)
{
    if (!ev->kind->experts)
        return MGR_OK;
    MGR_TRY(mgr_hf_whole(ev, (mgr_hf_size){"num_experts", "", ev->kind->experts, 0, 0}, &m->experts,
                         err));
    m->top_k = 1;
    m->router.unnormalised = true;
    MGR_TRY(mgr_hf_flag(ev, "router_bias", &m->bias_router, err));
    MGR_TRY(sparse_layers(ev, MGR_STACK_DECODER, m, err));
    MGR_TRY(sparse_layers(ev, MGR_STACK_ENCODER, m, err));
    if (mgr_model_moe_layers(m))
        return MGR_OK;
    return mgr_fail(err, MGR_ERR_UNSUPPORTED, "'%s' gives no layer experts", mgr_hf_path(ev));
}

static int64_t token(const mgr_hf_evidence *ev, const char *name, int64_t said)
{
    const mgr_attr *const a = mgr_hf_arg(ev, name);
    return said >= 0 ? said : a && a->kind == MGR_ATTR_INT ? a->i : -1;
}

int mgr_huggingface_t5_model(const mgr_hf_evidence *ev, mgr_model *model, mgr_err *err)
{
    mgr_model m = {.ffns_only = true, .init_std = 0.02, .activation = MGR_ACTIVATION_RELU};
    MGR_TRY(activation(ev, "feed_forward_proj", err));
    MGR_TRY(activation(ev, "dense_act_fn", err));
    MGR_TRY(stacks(ev, &m, err));
    MGR_TRY(sizes(ev, &m, err));
    MGR_TRY(head(ev, &m, err));
    MGR_TRY(experts(ev, &m, err));
    MGR_TRY(mgr_hf_real(ev, "layer_norm_epsilon", ev->kind->epsilon, &m.norm_epsilon, err));
    m.bos_token_id = token(ev, "bos_token_id", ev->config->model.bos_token_id);
    m.eos_token_id = token(ev, "eos_token_id", ev->config->model.eos_token_id);
    *model = m;
    return MGR_OK;
}

/* ---- what Switch can express ---- */

bool mgr_huggingface_t5_repeats(const mgr_catalogue *cat, const mgr_model *m, const mgr_stored *s)
{
    for (unsigned k = 0; mgr_huggingface_t5_again(m, k); k++)
        if (strcmp(s->name, mgr_huggingface_t5_again(m, k)) == 0) {
            const mgr_stored *const e = find(cat, EMBEDDING);
            return e && same_values(cat, s, e);
        }
    return false;
}

const char *mgr_huggingface_t5_again(const mgr_model *m, unsigned idx)
{
    static const char *const again[] = {"encoder.embed_tokens.weight",
                                        "decoder.embed_tokens.weight"};
    return m->encoder_layers && m->experts && !m->tied && idx < 2 ? again[idx] : NULL;
}

static bool says(const mgr_model *m, mgr_stack stack, uint64_t step)
{
    const uint64_t first = mgr_model_stack_first(m, stack);
    for (uint64_t l = 0; l < mgr_model_stack_layers(m, stack); l++)
        if (mgr_model_is_moe(m, first + l) != (step == 1 || (step > 1 && l % step == 1)))
            return false;
    return true;
}

bool mgr_huggingface_sparse_step(const mgr_model *m, mgr_stack stack, uint64_t *step)
{
    const uint64_t layers = mgr_model_stack_layers(m, stack);
    for (*step = 0; *step <= layers; ++*step)
        if (says(m, stack, *step))
            return true;
    return false;
}

int mgr_huggingface_switch_check(const mgr_model *m, mgr_err *err)
{
    uint64_t step;
    if (!m->router.unnormalised) {
        mgr_fail(err, MGR_ERR_UNSUPPORTED,
                 "Switch Transformers weighs an expert by a softmax over all of them, and never "
                 "normalises");
        return mgr_hint(err, "set 'upcycle.router_pre_softmax: true', and 'upcycle.scale: exact' "
                             "to start as the dense model");
    }
    if (m->top_k != 1) {
        mgr_fail(err, MGR_ERR_UNSUPPORTED,
                 "Switch Transformers uses one expert for each token, not %llu",
                 (unsigned long long)m->top_k);
        return mgr_hint(err, "set 'upcycle.top_k: 1'");
    }
    if (m->experts && mgr_model_expert_ffn(m) != m->ffn)
        return mgr_fail(err, MGR_ERR_UNSUPPORTED,
                        "the experts of Switch Transformers are as wide as its dense FFNs");
    for (int s = 0; s < MGR_STACK_COUNT; s++)
        if (!mgr_huggingface_sparse_step(m, (mgr_stack)s, &step)) {
            mgr_fail(err, MGR_ERR_UNSUPPORTED,
                     "Switch Transformers cannot give experts to these layers of its %s: they are "
                     "all, none, or those with i mod step = 1",
                     s == MGR_STACK_ENCODER ? "encoder" : "decoder");
            return mgr_hint(err, "'upcycle.moe_layer_freq: every-second' gives them to layers 1, "
                                 "3, 5, ...");
        }
    return MGR_OK;
}
