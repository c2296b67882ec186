/* Which layers have experts: numbers and list expressions as Megatron takes them. */
#include <string.h>

#include "model/moe_layers.h"
#include "support/check.h"

/* "101" for a model of three layers: 1 where a layer has experts; "no" where it was refused. */
static const char *layers_of(const char *text, uint64_t layers, char out[64])
{
    mgr_model m = {.layers = layers, .experts = 2};
    mgr_model_set_dense(&m, 1); /* must be forgotten, or left alone */
    if (mgr_moe_layers(text, MGR_STACK_DECODER, &m) != 0) {
        CHECK(!mgr_model_is_moe(&m, 1));
        return "no";
    }
    for (uint64_t l = 0; l < layers; l++)
        out[l] = mgr_model_is_moe(&m, l) ? '1' : '0';
    out[layers] = '\0';
    return out;
}

static void check_taken(void)
{
    static const struct {
        const char *text, *expected;
    } cases[] = {
        {"1", "111111"},
        {"2", "101010"},
        {"6", "100000"},
        {"100", "100000"},
        {"[0,1,1,0,0,1]", "011001"},
        {"[0]*2+[1]*4", "001111"},
        {"([0]+[1]*2)*2", "011011"},
        {" ( [ 0 , 1 ] * 3 ) ", "010101"},
        {"[1]*6*1", "111111"},
        {"[0]*0+[1]*6", "111111"},
        {"[0]*6", "000000"},
        {"none", "000000"},
        {"every-second", "010101"},
        {"last-half", "000111"},
    };
    char out[64];
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        CHECK_TEXT(layers_of(cases[i].text, 6, out), cases[i].expected);
}

static void check_refused(void)
{
    static const char *const cases[] = {
        "",
        "0",
        "-1",
        "x",
        "1.5",
        "2x",
        "[",
        "[]",
        "[1",
        "[1,]",
        "[2]*6",
        "[1]*5",
        "[1]*7",
        "[1]*",
        "every",
        "last-half ",
        "[1]+",
        "([1]*6",
        "[1]*6)",
        "[1]*99999",
        "99999999",
        "[1] [1]",
        "6*[1]",
        "[1]*-6",
        "[1]**6",
        "((((((((((((((((((((([1]*6)))))))))))))))))))))",
        "[1]*4096*4096*4096",
        "18446744073709551617",
    };
    char out[64];
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        CHECK_TEXT(layers_of(cases[i], 6, out), "no");
}

/* Each stack by itself, and what it is called in random streams. */
/* Each layer has its own list: dense, or experts, and beside them the shared one. */
static void check_ffns(void)
{
    mgr_model m = {.layers = 2, .ffn = 96, .experts = 4, .expert_ffn = 16, .shared_ffn = 32};
    mgr_ffn ffns[MGR_FFN_KINDS];
    mgr_model_set_dense(&m, 0);
    CHECK(mgr_model_ffns(&m, 0, ffns) == 1);
    CHECK(ffns[0].kind == MGR_FFN_DENSE && ffns[0].count == 1 && ffns[0].width == 96);
    CHECK(mgr_model_ffns(&m, 1, ffns) == 2);
    CHECK(ffns[0].kind == MGR_FFN_ROUTED && ffns[0].count == 4 && ffns[0].width == 16);
    CHECK(ffns[1].kind == MGR_FFN_SHARED && ffns[1].count == 1 && ffns[1].width == 32);
    CHECK(mgr_model_ffn_width(&m, 0, MGR_FFN_ROUTED) == 0);
    CHECK(mgr_model_ffn_width(&m, 1, MGR_FFN_DENSE) == 0);
    CHECK(mgr_model_ffn_width(&m, 1, MGR_FFN_SHARED) == 32);
}

static void check_stacks(void)
{
    mgr_model m = {.layers = 7, .encoder_layers = 3, .experts = 2};
    uint32_t within;
    CHECK_INT(mgr_moe_layers("every-second", MGR_STACK_DECODER, &m), 0);
    CHECK_INT(mgr_moe_layers("last-half", MGR_STACK_ENCODER, &m), 0);
    CHECK(mgr_moe_layers("[1]*4", MGR_STACK_ENCODER, &m) != 0);
    for (uint32_t l = 0; l < 7; l++)
        CHECK_INT(mgr_model_is_moe(&m, l), l == 1 || l == 3 || l == 6);
    CHECK_INT(mgr_model_stack(&m, 3, &within), MGR_STACK_DECODER);
    CHECK_INT(within, 3);
    CHECK_INT(mgr_model_stack(&m, 4, &within), MGR_STACK_ENCODER);
    CHECK_INT(within, 0);
    CHECK_INT(mgr_model_layer_key(&m, 3), 3);
    CHECK_INT(mgr_model_layer_key(&m, 6), 1 << 16 | 2);
    CHECK_INT(mgr_layer_key_stack(1 << 16 | 2), MGR_STACK_ENCODER);
    CHECK_INT(mgr_layer_key_layer(1 << 16 | 2), 2);
}

int main(void)
{
    check_ffns();
    check_stacks();
    check_taken();
    check_refused();
    return CHECK_DONE();
}
