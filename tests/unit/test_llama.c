/*
 * The Llama layout: what a target declares, a source finds, over one file or several, with a cut
 * vocabulary and with the head of a tied model; and the model from a parsed config.json.
 */
#include "core/mem.h"
#include "model/llama.h"
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
static mgr_llama make(mgr_catalogue *cat, const mgr_model *m)
{
    mgr_err err = MGR_ERR_INIT;
    mgr_tensors tensors;
    mgr_layout layout;
    uint32_t file;
    mgr_llama llama = {.first_file = 1, .n_files = FILES, .vocab_rows = m->vocab};
    CHECK_INT(mgr_catalogue_add_file(cat, "config.json", 0, &file, &err), MGR_OK);
    for (int i = 0; i < FILES; i++)
        CHECK_INT(mgr_catalogue_add_file(cat, i ? "b" : "a", 0, &file, &err), MGR_OK);
    CHECK_INT(mgr_tensors_init(&tensors, m, &err), MGR_OK);
    CHECK_INT(mgr_layout_init(&layout, &tensors, cat, true, m->dtype, &err), MGR_OK);
    CHECK_INT(mgr_llama_layout(&layout, &llama, &err), MGR_OK);
    CHECK_INT(mgr_layout_finish(&layout, &err), MGR_OK);
    CHECK_INT(layout.n_boxes, tensors.n);
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
    return llama;
}

static mgr_config plain(void)
{
    mgr_config c = {0};
    c.model.bos_token_id = c.model.eos_token_id = -1;
    return c;
}

/* Describe and lay out; returns the number of boxes, 0 for an error. */
static size_t find(mgr_catalogue *cat, mgr_llama llama, const mgr_config *config, mgr_model *m,
                   mgr_err *err)
{
    mgr_tensors tensors;
    mgr_layout layout;
    if (mgr_llama_model(cat, config, &llama, m, err) != MGR_OK)
        return 0;
    CHECK_INT(mgr_tensors_init(&tensors, m, err), MGR_OK);
    CHECK_INT(mgr_layout_init(&layout, &tensors, cat, false, m->dtype, err), MGR_OK);
    int rc = mgr_llama_layout(&layout, &llama, err);
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
    const mgr_llama llama = make(&cat, &small);
    for (size_t i = 0; i < cat.n_stored; i++) /* scattered over the files */
        cat.stored[i].file = 1 + (uint32_t)(i * 7 % FILES);
    config.model.vocab_size = 9; /* a row is cut off */
    CHECK_INT(find(&cat, llama, &config, &m, &err), 1 + 9 * 2 + 2);
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
        const mgr_llama llama = make(&cat, &m);
        mgr_stored head = cat.stored[0];
        head.name = "lm_head.weight";
        head.offset += copy ? 4096 : 0;
        CHECK_INT(mgr_catalogue_add_stored(&cat, &head, &err), MGR_OK);
        CHECK_INT(find(&cat, llama, &config, &m, &err), 1 + 9 * 2 + 1 + copy);
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
    const mgr_llama llama = make(&cat, &small);
    const size_t boxes = find(&cat, llama, &config, &m, &err);
    CHECK_INT(err.code, code);
    CHECK_INT(boxes == 0, code != MGR_OK);
    CHECK_HAS(err.msg, said);
    mgr_catalogue_clear(&cat);
}

static void check_entries(void)
{
    const mgr_code no = MGR_ERR_UNSUPPORTED, bad = MGR_ERR_FORMAT;
    check_entry("config.model_type", MGR_ATTR_TEXT, 0, "qwen2", no, "'qwen2': QKV with a bias");
    check_entry("config.model_type", MGR_ATTR_TEXT, 0, "qwen3", no, "norms of q and k");
    check_entry("config.model_type", MGR_ATTR_TEXT, 0, "x\ny", no, "known are: llama, mistral");
    check_entry("config.model_type", MGR_ATTR_NULL, 0, NULL, bad, "names no model_type");
    check_entry("config.architectures.0", MGR_ATTR_TEXT, 0, "LlamaModel", no, "no causal LM");
    check_entry("config.attention_bias", MGR_ATTR_BOOL, 1, NULL, no, "(attention_bias)");
    check_entry("config.attention_bias", MGR_ATTR_BOOL, 0, NULL, MGR_OK, "");
    check_entry("config.mlp_bias", MGR_ATTR_TEXT, 0, "yes", no, "(mlp_bias: yes)");
    check_entry("config.hidden_act", MGR_ATTR_TEXT, 0, "gelu", no, "(hidden_act: gelu)");
    check_entry("config.hidden_act", MGR_ATTR_TEXT, 0, "silu", MGR_OK, "");
    check_entry("config.quantization_config", MGR_ATTR_OTHER, 0, "object", no, "quantized");
    check_entry("config.num_local_experts", MGR_ATTR_INT, 8, NULL, no, "mixture of experts");
    check_entry("config.rope_scaling", MGR_ATTR_OTHER, 0, "object", no, "(rope_scaling)");
    check_entry("config.rope_scaling", MGR_ATTR_NULL, 0, NULL, MGR_OK, "");
    check_entry("config.rope_scaling.type", MGR_ATTR_TEXT, 0, "linear", no, "scaling.type: linear");
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
        {"config.max_position_embeddings", MGR_ATTR_INT, 4097, MGR_ERR_UNSUPPORTED, "by default"},
        {"config.sliding_window", MGR_ATTR_INT, 512, MGR_ERR_UNSUPPORTED, "512 of 131072"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        mgr_err err = MGR_ERR_INIT;
        mgr_catalogue cat = {0};
        mgr_model m;
        const mgr_config config = plain();
        attr(&cat, "config.model_type", MGR_ATTR_TEXT, 0, "mistral");
        attr(&cat, cases[i].key, cases[i].kind, cases[i].value, NULL);
        const mgr_llama llama = make(&cat, &small);
        find(&cat, llama, &config, &m, &err);
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
    const mgr_llama llama = make(&cat, &small);
    config.model.num_layers = 3;
    CHECK_INT(find(&cat, llama, &config, &m, &err), 0);
    CHECK_INT(err.code, MGR_ERR_CONFIG);
    CHECK_HAS(err.msg, "'model.num_layers' is 3, but 'config.json' says 2 (num_hidden_layers)");
    err = (mgr_err)MGR_ERR_INIT;
    config = plain();
    config.model.vocab_size = 11;
    CHECK_INT(find(&cat, llama, &config, &m, &err), 0);
    CHECK_HAS(err.msg, "the checkpoint holds 10 rows");
    mgr_catalogue_clear(&cat);
}

int main(void)
{
    check_round_trip();
    check_tied_head();
    check_entries();
    check_mistral();
    check_configuration();
    return CHECK_DONE();
}
