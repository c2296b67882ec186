/* Which layers of a HybridModel are taken: those of a transformer, by keys and by args. */
#include "model/megatron_hybrid.h"

#include <string.h>

#include "support/check.h"

static mgr_err err;

static const char *key_of(char symbol)
{
    switch (symbol) {
    case '*':
        return "self_attention.linear_qkv.weight";
    case '-':
        return "mlp.linear_fc2.weight";
    case 'E':
        return "mlp.router.weight";
    case 'M':
        return "mixer.in_proj.weight";
    case 'G':
        return "self_attention.in_proj.weight";
    case '+':
        return "self_attention.linear_kv_up_proj.weight";
    default:
        return "input_layernorm.weight";
    }
}

static void add_key(mgr_catalogue *cat, unsigned layer, const char *name)
{
    mgr_buf text = {0};
    CHECK_INT(mgr_buf_fmt(&text, &err, "decoder.layers.%u.%s@0", layer, name), MGR_OK);
    const mgr_stored s = {.name = text.data, .record = MGR_NONE, .ndim = 1, .shape = {1}};
    CHECK_INT(mgr_catalogue_add_stored(cat, &s, &err), MGR_OK);
    mgr_buf_clear(&text);
}

/* One key of each layer that tells its kind, from the last to the first. */
static void make(mgr_catalogue *cat, const char *layers, const char *arg)
{
    uint32_t file;
    const mgr_attr a = {.key = "args.hybrid_layer_pattern", .kind = MGR_ATTR_TEXT, .text = arg};
    *cat = (mgr_catalogue){0};
    CHECK_INT(mgr_catalogue_add_file(cat, "file", 0, &file, &err), MGR_OK);
    for (size_t i = strlen(layers); i-- > 0;)
        add_key(cat, (unsigned)i, key_of(layers[i]));
    if (arg)
        CHECK_INT(mgr_catalogue_add_attr(cat, &a, &err), MGR_OK);
}

/* NULL: taken; else refused, with this in the message. */
static void expect(const char *layers, const char *arg, const char *word)
{
    mgr_catalogue cat;
    err = (mgr_err)MGR_ERR_INIT;
    make(&cat, layers, arg);
    const int rc = mgr_megatron_hybrid_check(&cat, &err);
    CHECK((rc == MGR_OK) == (word == NULL));
    CHECK(!word || strstr(err.msg, word));
    mgr_catalogue_clear(&cat);
}

static void test_patterns(void)
{
    expect("*-*E", NULL, NULL);
    expect("*-*E", "*-*E", NULL);
    expect("*-*E*-*-", "*-*E|*-*-", NULL);
    expect("*-", "*-/*-", NULL); /* what is behind the slash has keys of its own */
    expect("*-*E", "*-*-", "keys");
    expect("*-*", NULL, "in turn");
    expect("**--", NULL, "in turn");
    expect("-*", NULL, "in turn");
    expect("*-?-", NULL, "in turn");
    expect("", NULL, "in turn");
    expect("M-M*", NULL, "Mamba");
    expect("G-*-", NULL, "gated delta net");
    expect("+-*-", NULL, "multi-latent");
    expect("*-", "[*-]", "groups");
    expect("*-*-", "D-*-", "sparse attention");
}

static void test_layers(void)
{
    mgr_buf out = {0};
    mgr_model m = {.layers = 3, .experts = 2};
    mgr_model_set_dense(&m, 1);
    CHECK_INT(mgr_megatron_hybrid_pattern(&m, &out, &err), MGR_OK);
    CHECK_TEXT(out.data, "*E*-*E");
    mgr_buf_clear(&out);
    CHECK_INT(mgr_megatron_hybrid_layer(MGR_ROLE_Q, 5), 10);
    CHECK_INT(mgr_megatron_hybrid_layer(MGR_ROLE_K_NORM_BIAS, 5), 10);
    CHECK_INT(mgr_megatron_hybrid_layer(MGR_ROLE_MLP_NORM, 5), 11);
    CHECK_INT(mgr_megatron_hybrid_layer(MGR_ROLE_SHARED_DOWN, 5), 11);
}

int main(void)
{
    test_patterns();
    test_layers();
    return CHECK_DONE();
}
