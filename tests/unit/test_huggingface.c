/*
 * Hugging Face's layouts: what a target declares, a source finds, over one file or several, with a
 * cut vocabulary and with the head of a tied model, with biases, norms of q and k, and experts in
 * both spellings; the model from a parsed config.json; the class of a model.
 */
#include "core/mem.h"
#include "model/huggingface.h"
#include "support/check.h"

#define FILES 3

static const mgr_model small = {.layers = 2,
                                .hidden = 8,
                                .ffn = 6,
                                .heads = 4,
                                .kv_groups = 2,
                                .head_dim = 3,
                                .vocab = 10,
                                .dtype = MGR_DTYPE_BF16};

static void attr(mgr_catalogue *cat, const char *key, mgr_attr_kind kind, double value,
                 const char *text)
{
    mgr_err err = MGR_ERR_INIT;
    const mgr_attr a = {.key = key,
                        .kind = kind,
                        .i = kind == MGR_ATTR_REAL ? 0 : (int64_t)value,
                        .r = value,
                        .text = text};
    CHECK_INT(mgr_catalogue_add_attr(cat, &a, &err), MGR_OK);
}

static void number(mgr_catalogue *cat, const char *key, double value)
{
    attr(cat, key, MGR_ATTR_INT, value, NULL);
}

/* The catalogue of a directory with this model: a config.json and, in turn, its weights. */
static mgr_huggingface make_as(mgr_catalogue *cat, const mgr_model *m, mgr_hf_ffn ffn)
{
    mgr_err err = MGR_ERR_INIT;
    mgr_tensors tensors;
    mgr_layout layout;
    uint32_t file;
    const mgr_huggingface target = {.ffn = ffn, .expert_parallel = 1, .max_shard_size = 1 << 20};
    CHECK_INT(mgr_catalogue_add_file(cat, "config.json", 0, &file, &err), MGR_OK);
    CHECK_INT(mgr_tensors_init(&tensors, m, &err), MGR_OK);
    CHECK_INT(mgr_layout_init(&layout, &tensors, cat, true, m->dtype, &err), MGR_OK);
    CHECK_INT(mgr_huggingface_layout(&layout, &target, &err), MGR_OK);
    CHECK_INT(mgr_layout_finish(&layout, &err), MGR_OK);
    CHECK_INT(layout.n_boxes, tensors.n);
    while (cat->n_files < 1 + FILES)
        CHECK_INT(mgr_catalogue_add_file(cat, "b", 0, &file, &err), MGR_OK);
    mgr_layout_clear(&layout);
    mgr_tensors_clear(&tensors);
    attr(cat, "config.model_type", MGR_ATTR_TEXT, 0, "llama");
    number(cat, "config.num_hidden_layers", (double)m->layers);
    number(cat, "config.hidden_size", (double)m->hidden);
    number(cat, "config.intermediate_size", (double)m->ffn);
    number(cat, "config.num_attention_heads", (double)m->heads);
    number(cat, "config.num_key_value_heads", (double)m->kv_groups);
    number(cat, "config.head_dim", (double)m->head_dim);
    number(cat, "config.vocab_size", (double)m->vocab);
    attr(cat, "config.tie_word_embeddings", MGR_ATTR_BOOL, m->tied, NULL);
    return (mgr_huggingface){.first_file = 1, .n_files = FILES};
}

static mgr_huggingface make(mgr_catalogue *cat, const mgr_model *m)
{
    return make_as(cat, m, MGR_HF_DENSE);
}

static mgr_config plain(void)
{
    mgr_config c = {0};
    c.model.bos_token_id = c.model.eos_token_id = -1;
    return c;
}

/* Describe and lay out; returns the number of boxes, 0 for an error. */
static size_t find(mgr_catalogue *cat, mgr_huggingface hf, const mgr_config *config, mgr_model *m,
                   mgr_err *err)
{
    mgr_tensors tensors;
    mgr_layout layout;
    if (mgr_huggingface_model(cat, config, &hf, m, err) != MGR_OK)
        return 0;
    CHECK_INT(mgr_tensors_init(&tensors, m, err), MGR_OK);
    CHECK_INT(mgr_layout_init(&layout, &tensors, cat, false, m->dtype, err), MGR_OK);
    int rc = mgr_huggingface_layout(&layout, &hf, err);
    if (rc == MGR_OK)
        rc = mgr_layout_finish(&layout, err);
    const size_t boxes = rc == MGR_OK ? layout.n_boxes : 0;
    mgr_layout_clear(&layout);
    mgr_tensors_clear(&tensors);
    return boxes;
}

static void check_round_trip(void)
{
    mgr_err err = MGR_ERR_INIT;
    mgr_catalogue cat = {0};
    mgr_model m;
    mgr_config config = plain();
    const mgr_huggingface hf = make(&cat, &small);
    for (size_t i = 0; i < cat.n_stored; i++) /* scattered over the files */
        cat.stored[i].file = 1 + (uint32_t)(i * 7 % FILES);
    config.model.vocab_size = 9; /* a row is cut off */
    CHECK_INT(find(&cat, hf, &config, &m, &err), 1 + 9 * 2 + 2);
    CHECK_TEXT(err.msg, "");
    CHECK_INT(m.layers, 2);
    CHECK_INT(m.kv_groups, 2);
    CHECK_INT(m.head_dim, 3);
    CHECK_INT(m.vocab, 9);
    CHECK_INT(m.max_positions, 2048);
    CHECK(m.rotary_base >= 10000.0 && m.rotary_base <= 10000.0 && !m.tied);
    CHECK_INT(m.bos_token_id, -1);
    mgr_catalogue_clear(&cat);
}

/* A head in a tied model: the same bytes again, or a copy that must be equal. */
static void check_tied_head(void)
{
    for (int copy = 0; copy < 2; copy++) {
        mgr_err err = MGR_ERR_INIT;
        mgr_catalogue cat = {0};
        mgr_model m = small;
        const mgr_config config = plain();
        m.tied = true;
        const mgr_huggingface hf = make(&cat, &m);
        mgr_stored head = cat.stored[0];
        head.name = "lm_head.weight";
        head.offset += copy ? 4096 : 0;
        CHECK_INT(mgr_catalogue_add_stored(&cat, &head, &err), MGR_OK);
        CHECK_INT(find(&cat, hf, &config, &m, &err), 1 + 9 * 2 + 1 + copy);
        CHECK_TEXT(err.msg, "");
        CHECK(m.tied);
        mgr_catalogue_clear(&cat);
    }
}

/* One more entry, which comes first, and what is said about it. */
static void check_entry(const char *key, mgr_attr_kind kind, double value, const char *text,
                        mgr_code code, const char *said)
{
    mgr_err err = MGR_ERR_INIT;
    mgr_catalogue cat = {0};
    mgr_model m;
    const mgr_config config = plain();
    attr(&cat, key, kind, value, text);
    const mgr_huggingface hf = make(&cat, &small);
    const size_t boxes = find(&cat, hf, &config, &m, &err);
    CHECK_INT(err.code, code);
    CHECK_INT(boxes == 0, code != MGR_OK);
    CHECK_HAS(err.msg, said);
    mgr_catalogue_clear(&cat);
}

static void check_entries(void)
{
    const mgr_code no = MGR_ERR_UNSUPPORTED, bad = MGR_ERR_FORMAT;
    check_entry("config.model_type", MGR_ATTR_TEXT, 0, "qwen2", bad, "q_proj.bias' is missing");
    check_entry("config.model_type", MGR_ATTR_TEXT, 0, "qwen3", bad, "q_norm.weight' is missing");
    check_entry("config.model_type", MGR_ATTR_TEXT, 0, "gpt2", no, "'gpt2': matrices that");
    check_entry("config.model_type", MGR_ATTR_NULL, 0, NULL, bad, "names no model_type");
    check_entry("config.architectures.0", MGR_ATTR_TEXT, 0, "LlamaModel", no, "no causal LM");
    check_entry("config.attention_bias", MGR_ATTR_BOOL, 1, NULL, bad, "q_proj.bias' is missing");
    check_entry("config.attention_bias", MGR_ATTR_BOOL, 0, NULL, MGR_OK, "");
    check_entry("config.mlp_bias", MGR_ATTR_TEXT, 0, "yes", bad, "'mlp_bias' in 'config.json' is");
    check_entry("config.mlp_bias", MGR_ATTR_BOOL, 1, NULL, bad, "gate_proj.bias' is missing");
    check_entry("config.hidden_act", MGR_ATTR_TEXT, 0, "gelu", MGR_OK, "");
    check_entry("config.hidden_act", MGR_ATTR_TEXT, 0, "gelu_new", no, "(hidden_act: gelu_new)");
    check_entry("config.hidden_act", MGR_ATTR_TEXT, 0, "silu", MGR_OK, "");
    check_entry("config.quantization_config", MGR_ATTR_OTHER, 0, "object", no, "quantized");
    check_entry("config.num_local_experts", MGR_ATTR_INT, 8, NULL, no, "mixture of experts");
    check_entry("config.rope_scaling", MGR_ATTR_OTHER, 1, "object", no, "(rope_scaling)");
    check_entry("config.rope_scaling", MGR_ATTR_OTHER, 0, "object", MGR_OK, "");
    check_entry("config.is_causal", MGR_ATTR_BOOL, 0, NULL, no, "not causal (is_causal: false)");
    check_entry("config.is_causal", MGR_ATTR_BOOL, 1, NULL, MGR_OK, "");
    check_entry("config.new_trick", MGR_ATTR_REAL, 0.5, NULL, no, "the key 'new_trick' (0.5)");
    check_entry("config.new_trick", MGR_ATTR_INT, 0, NULL, MGR_OK, "");
    check_entry("config.architectures.0", MGR_ATTR_TEXT, 0, "Qwen2ForCausalLM", no, "contradicts");
    check_entry("config.rope_scaling", MGR_ATTR_NULL, 0, NULL, MGR_OK, "");
    check_entry("config.rope_scaling.type", MGR_ATTR_TEXT, 0, "dynamic", no, "type: dynamic");
    check_entry("config.rope_scaling.type", MGR_ATTR_TEXT, 0, "linear", bad, "scaling.factor");
    check_entry("config.rope_parameters.rope_type", MGR_ATTR_TEXT, 0, "yarn", no, "yarn");
    check_entry("config.rope_parameters.rope_type", MGR_ATTR_TEXT, 0, "default", MGR_OK, "");
    check_entry("config.partial_rotary_factor", MGR_ATTR_REAL, 0.5, NULL, no, "a part of the head");
    check_entry("config.partial_rotary_factor", MGR_ATTR_REAL, 1.0, NULL, MGR_OK, "");
    check_entry("config.rms_norm_eps", MGR_ATTR_INT, 0, NULL, bad, "not a positive number");
    check_entry("config.sliding_window", MGR_ATTR_INT, 2047, NULL, no, "2047 of 2048 positions");
    check_entry("config.sliding_window", MGR_ATTR_INT, 2048, NULL, MGR_OK, "");
    check_entry("config.head_dim", MGR_ATTR_NULL, 0, NULL, bad,
                "head_dim is 2 in 'config.json' by");
    check_entry("config.head_dim", MGR_ATTR_INT, -3, NULL, bad, "not a positive whole number");
    check_entry("config.hidden_size", MGR_ATTR_REAL, 8, NULL, bad, "not a positive whole number");
    check_entry("config.num_hidden_layers", MGR_ATTR_INT, 3, NULL, bad, "names say 2");
    check_entry("config.vocab_size", MGR_ATTR_INT, 12, NULL, bad, "vocab_size is 12");
    check_entry("config.tie_word_embeddings", MGR_ATTR_INT, 1, NULL, bad, "neither true nor");
    check_entry("config.tie_word_embeddings", MGR_ATTR_BOOL, 1, NULL, MGR_OK, "");
}

/* Mistral's defaults are others: a window of 4096, eight groups. */
static void check_mistral(void)
{
    const struct {
        const char *key;
        mgr_attr_kind kind;
        double value;
        mgr_code code;
        const char *said;
    } cases[] = {
        {"config.sliding_window", MGR_ATTR_NULL, 0, MGR_OK, ""},
        {"config.max_position_embeddings", MGR_ATTR_INT, 4096, MGR_OK, ""},
        {"config.max_position_embeddings", MGR_ATTR_INT, 4097, MGR_OK, ""}, /* carried */
        {"config.sliding_window", MGR_ATTR_INT, 512, MGR_OK, ""},
        {"config.sliding_window", MGR_ATTR_INT, 0, MGR_ERR_UNSUPPORTED, "no positive number"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        mgr_err err = MGR_ERR_INIT;
        mgr_catalogue cat = {0};
        mgr_model m;
        const mgr_config config = plain();
        attr(&cat, "config.model_type", MGR_ATTR_TEXT, 0, "mistral");
        attr(&cat, cases[i].key, cases[i].kind, cases[i].value, NULL);
        const mgr_huggingface hf = make(&cat, &small);
        find(&cat, hf, &config, &m, &err);
        CHECK_INT(err.code, cases[i].code);
        CHECK_HAS(err.msg, cases[i].said);
        mgr_catalogue_clear(&cat);
    }
}

/* The configuration's `model:` section is checked against config.json. */
static void check_configuration(void)
{
    mgr_err err = MGR_ERR_INIT;
    mgr_catalogue cat = {0};
    mgr_model m;
    mgr_config config = plain();
    const mgr_huggingface hf = make(&cat, &small);
    config.model.num_layers = 3;
    CHECK_INT(find(&cat, hf, &config, &m, &err), 0);
    CHECK_INT(err.code, MGR_ERR_CONFIG);
    CHECK_HAS(err.msg, "'model.num_layers' is 3, but 'config.json' says 2 (num_hidden_layers)");
    err = (mgr_err)MGR_ERR_INIT;
    config = plain();
    config.model.vocab_size = 11;
    CHECK_INT(find(&cat, hf, &config, &m, &err), 0);
    CHECK_HAS(err.msg, "the checkpoint holds 10 rows");
    mgr_catalogue_clear(&cat);
}

/* Kinds of models: what is declared is found again, and the model is as it was. */
static void check_kinds(void)
{
    const struct {
        const char *type, *name;
        mgr_hf_ffn ffn;
        bool qkv, o, mlp, qk_norm, flag;
        uint64_t experts;
        size_t per_layer;
    } cases[] = {
        {"llama", "Llama", MGR_HF_DENSE, true, true, false, false, true, 0, 9 + 4},
        {"qwen2", "Qwen2", MGR_HF_DENSE, true, false, false, false, false, 0, 9 + 3},
        {"qwen3", "Qwen3", MGR_HF_DENSE, false, false, false, true, false, 0, 9 + 2},
        {"qwen3", "Qwen3", MGR_HF_DENSE, true, true, false, true, true, 0, 9 + 2 + 4},
        {"mixtral", "Mixtral", MGR_HF_PER_EXPERT, false, false, false, false, false, 4, 7 + 12},
        {"mixtral", "Mixtral", MGR_HF_FUSED, false, false, false, false, false, 4, 7 + 12},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        mgr_err err = MGR_ERR_INIT;
        mgr_catalogue cat = {0};
        mgr_model m = small, found;
        const mgr_config config = plain();
        m.bias_qkv = cases[i].qkv;
        m.bias_o = cases[i].o;
        m.bias_mlp = cases[i].mlp;
        m.qk_norm = cases[i].qk_norm;
        m.experts = cases[i].experts;
        m.top_k = cases[i].experts ? 2 : 0;
        attr(&cat, "config.model_type", MGR_ATTR_TEXT, 0, cases[i].type);
        attr(&cat, "config.sliding_window", MGR_ATTR_NULL, 0, NULL);
        attr(&cat, "config.attention_bias", MGR_ATTR_BOOL, cases[i].flag, NULL);
        if (m.experts) /* transformers writes either key */
            number(&cat, i % 2 ? "config.num_experts" : "config.num_local_experts", 4);
        mgr_huggingface hf = make_as(&cat, &m, cases[i].ffn);
        CHECK_INT(find(&cat, hf, &config, &found, &err), 1 + cases[i].per_layer * 2 + 2);
        CHECK_TEXT(err.msg, "");
        CHECK(found.bias_qkv == m.bias_qkv && found.bias_o == m.bias_o);
        CHECK(found.bias_mlp == m.bias_mlp && found.qk_norm == m.qk_norm);
        CHECK_INT(found.experts, m.experts);
        CHECK_INT(found.top_k, m.top_k);
        CHECK_INT(found.ffn, m.ffn);
        CHECK_INT(mgr_huggingface_model(&cat, &config, &hf, &found, &err), MGR_OK);
        CHECK_TEXT(mgr_huggingface_family(hf.class)->name, cases[i].name);
        CHECK_INT(hf.ffn, cases[i].ffn);
        mgr_catalogue_clear(&cat);
    }
}

/* Of [E, 2F, H] and [E, H, F], seen as matrices: an expert's gate, its up below, its down. */
static void check_fused_boxes(void)
{
    mgr_err err = MGR_ERR_INIT;
    mgr_catalogue cat = {0};
    mgr_tensors tensors;
    mgr_layout l;
    mgr_model m = small;
    const mgr_huggingface hf = {
        .ffn = MGR_HF_FUSED, .expert_parallel = 1, .max_shard_size = 1 << 20};
    const uint64_t first_row[3] = {2 * 12, 2 * 12 + 6, 2 * 8};
    m.experts = 4;
    CHECK_INT(mgr_tensors_init(&tensors, &m, &err), MGR_OK);
    CHECK_INT(mgr_layout_init(&l, &tensors, &cat, true, MGR_DTYPE_BF16, &err), MGR_OK);
    CHECK_INT(mgr_huggingface_layout(&l, &hf, &err), MGR_OK);
    CHECK_INT(mgr_layout_finish(&l, &err), MGR_OK);
    for (uint32_t k = 0; k < 3; k++) {
        const mgr_role role = (mgr_role)(MGR_ROLE_GATE + k);
        const mgr_box *const b = &l.boxes[l.first_box[mgr_tensors_find(&tensors, role, 1, 2)]];
        const mgr_stored *const stored = &cat.stored[b->stored];
        CHECK_TEXT(stored->name, k == 2 ? "model.layers.1.mlp.experts.down_proj"
                                        : "model.layers.1.mlp.experts.gate_up_proj");
        CHECK_INT(stored->ndim, 3);
        CHECK_INT(stored->shape[0], 4);
        CHECK_INT(stored->shape[1], k == 2 ? 8 : 12);
        CHECK_INT(b->stored_row, first_row[k]);
        CHECK_INT(b->row_stride, k == 2 ? 6 : 8);
    }
    CHECK_INT(cat.n_files, 2); /* shared weights apart from the experts */
    mgr_layout_clear(&l);
    mgr_catalogue_clear(&cat);
    mgr_tensors_clear(&tensors);
}

/* RoPE scaling in the spelling of transformers 4, of 5, and in both. */
static void check_rope(void)
{
    static const char *const places[] = {"rope_scaling", "rope_parameters"};
    for (int turn = 1; turn < 8; turn++) {
        mgr_err err = MGR_ERR_INIT;
        mgr_catalogue cat = {0};
        mgr_model m;
        const mgr_config config = plain();
        for (int k = 0; k < 2; k++) {
            char key[80];
            if (!(turn >> k & 1))
                continue;
            attr(&cat, k ? "config.rope_parameters" : "config.rope_scaling", MGR_ATTR_OTHER, 1,
                 "object");
            snprintf(key, sizeof key, "config.%s.rope_type", places[k]);
            attr(&cat, key, MGR_ATTR_TEXT, 0, "llama3");
            snprintf(key, sizeof key, "config.%s.factor", places[k]);
            attr(&cat, key, MGR_ATTR_REAL, turn & 4 && k ? 16 : 8, NULL);
            snprintf(key, sizeof key, "config.%s.low_freq_factor", places[k]);
            number(&cat, key, 1);
            snprintf(key, sizeof key, "config.%s.high_freq_factor", places[k]);
            attr(&cat, key, MGR_ATTR_REAL, 4.0, NULL);
            snprintf(key, sizeof key, "config.%s.original_max_position_embeddings", places[k]);
            number(&cat, key, 512);
        }
        const bool differ = turn == 7, none = turn == 4;
        const mgr_huggingface hf = make(&cat, &small);
        CHECK_INT(find(&cat, hf, &config, &m, &err) == 0, differ);
        CHECK_HAS(err.msg,
                  differ ? "rope_scaling and rope_parameters in 'config.json' differ" : "");
        if (!differ && !none) {
            CHECK_INT(m.rope.kind, MGR_ROPE_LLAMA3);
            CHECK_INT(m.rope.original_positions, 512);
            CHECK_INT(m.rope.factor, turn == 6 ? 16 : 8);
            CHECK(m.rope.low_freq >= 1 && m.rope.low_freq <= 1);
            CHECK(m.rope.high_freq >= 4 && m.rope.high_freq <= 4);
        }
        mgr_catalogue_clear(&cat);
    }
}

static void check_no_name(void)
{
    mgr_err err = MGR_ERR_INIT;
    mgr_catalogue cat = {0};
    mgr_tensors tensors;
    mgr_layout l;
    mgr_model m = small;
    const mgr_huggingface hf = {.expert_parallel = 1, .max_shard_size = 1 << 20};
    m.norm = MGR_NORM_LAYER;
    CHECK_INT(mgr_tensors_init(&tensors, &m, &err), MGR_OK);
    CHECK_INT(mgr_layout_init(&l, &tensors, &cat, true, MGR_DTYPE_BF16, &err), MGR_OK);
    CHECK_INT(mgr_huggingface_layout(&l, &hf, &err), MGR_ERR_UNSUPPORTED);
    CHECK_HAS(err.msg, "layer 0 attention norm bias cannot be expressed");
    mgr_layout_clear(&l);
    mgr_catalogue_clear(&cat);
    mgr_tensors_clear(&tensors);
}

static void check_classes(void)
{
    mgr_model some_dense = {.layers = 2, .experts = 4};
    mgr_model_set_dense(&some_dense, 1);
    const struct {
        mgr_model m;
        mgr_hf_class class;
    } cases[] = {
        {{0}, MGR_HF_LLAMA},
        {{.activation = MGR_ACTIVATION_GEGLU}, MGR_HF_LLAMA},
        {{.rope = {.kind = MGR_ROPE_LLAMA3}}, MGR_HF_LLAMA},
        {{.bias_qkv = true, .bias_o = true}, MGR_HF_LLAMA},
        {{.bias_qkv = true, .bias_o = true, .bias_mlp = true}, MGR_HF_LLAMA},
        {{.bias_mlp = true}, MGR_HF_LLAMA},
        {{.bias_qkv = true}, MGR_HF_QWEN2},
        {{.bias_qkv = true, .bias_mlp = true}, MGR_HF_SEED_OSS},
        {{.bias_o = true}, MGR_HF_SEED_OSS},
        {{.qk_norm = true}, MGR_HF_QWEN3},
        {{.qk_norm = true, .bias_qkv = true, .bias_o = true}, MGR_HF_QWEN3},
        {{.qk_norm = true, .bias_qkv = true}, MGR_HF_NO_CLASS},
        {{.qk_norm = true, .bias_mlp = true}, MGR_HF_NO_CLASS},
        {{.qk_norm = true, .qk_norm_full = true}, MGR_HF_NO_CLASS},
        {{.qk_norm = true, .qk_norm_full = true, .post_norm = true}, MGR_HF_OLMO2},
        {{.post_norm = true}, MGR_HF_NO_CLASS},
        {{.rope_interleaved = true}, MGR_HF_ERNIE},
        {{.logits_divisor = 8}, MGR_HF_GRANITE},
        {{.layers = 2, .nope_layers = {2}}, MGR_HF_SMOLLM3},
        {{.layers = 2, .experts = 4, .nope_layers = {2}}, MGR_HF_NO_CLASS},
        {{.layers = 2, .experts = 4, .residual_multiplier = 0.5}, MGR_HF_GRANITE_MOE},
        {{.layers = 2, .experts = 4, .qk_norm = true, .qk_norm_full = true, .post_norm = true},
         MGR_HF_FLEX_OLMO},
        {{.layers = 2, .experts = 4, .qk_norm = true, .qk_norm_full = true}, MGR_HF_OLMOE},
        {{.norm = MGR_NORM_LAYER}, MGR_HF_NO_CLASS},
        {{.activation = MGR_ACTIVATION_GELU}, MGR_HF_NO_CLASS},
        {{.activation = MGR_ACTIVATION_SQUARED_RELU}, MGR_HF_NO_CLASS},
        {{.positions = MGR_POSITIONS_LEARNED}, MGR_HF_NO_CLASS},
        {{.layers = 2, .experts = 4}, MGR_HF_MIXTRAL},
        {{.layers = 2, .experts = 4, .bias_qkv = true}, MGR_HF_NO_CLASS},
        {{.layers = 2, .experts = 4, .qk_norm = true}, MGR_HF_QWEN3_MOE},
        {{.layers = 2, .experts = 4, .bias_qkv = true, .bias_o = true}, MGR_HF_GRANITE_MOE},
        {{.layers = 2, .experts = 4, .qk_norm = true, .router.unnormalised = true},
         MGR_HF_QWEN3_MOE},
        {{.layers = 2, .experts = 4, .bias_router = true}, MGR_HF_NO_CLASS},
        {{.layers = 2, .experts = 4, .router.unnormalised = true}, MGR_HF_NO_CLASS},
        {some_dense, MGR_HF_NO_CLASS},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        CHECK_INT(mgr_huggingface_class(&cases[i].m), cases[i].class);
}

int main(void)
{
    check_kinds();
    check_fused_boxes();
    check_rope();
    check_no_name();
    check_classes();
    check_round_trip();
    check_tied_head();
    check_entries();
    check_mistral();
    check_configuration();
    return CHECK_DONE();
}
