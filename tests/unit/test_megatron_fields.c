/* The allow-list of Megatron's args, and lists in args on their way from one pickle to another. */
#include "model/megatron_fields.h"

#include <string.h>

#include "fmt/literal.h"
#include "fmt/pickle.h"
#include "fmt/pickle_write.h"
#include "support/check.h"

static mgr_attr whole(int64_t i)
{
    return (mgr_attr){.kind = MGR_ATTR_INT, .i = i};
}

static mgr_attr real(double r)
{
    return (mgr_attr){.kind = MGR_ATTR_REAL, .r = r};
}

static mgr_attr text(const char *s)
{
    return (mgr_attr){.kind = MGR_ATTR_TEXT, .text = s};
}

static mgr_attr literal(const char *s)
{
    return (mgr_attr){.kind = MGR_ATTR_LITERAL, .text = s};
}

/* Each name in one row alone, found by itself, and by no part of itself. */
static void check_names(void)
{
    char name[128], before[128] = "";
    size_t n = 0;
    for (; mgr_megatron_field_at(n, name, sizeof name); n++) {
        CHECK(strcmp(before, name) < 0);
        CHECK(mgr_megatron_field(name).rule != MGR_FIELD_UNKNOWN);
        const mgr_field f = mgr_megatron_field(name);
        CHECK(f.source && f.source[0]);
        CHECK((f.neutral != NULL) == (f.rule == MGR_FIELD_NEUTRAL || f.rule == MGR_FIELD_KEPT));
        memcpy(before, name, sizeof name);
    }
    CHECK(n > 1000);
    CHECK_INT(mgr_megatron_field("num").rule, MGR_FIELD_UNKNOWN);
    CHECK_INT(mgr_megatron_field("").rule, MGR_FIELD_UNKNOWN);
    CHECK_INT(mgr_megatron_field("num_layers hidden_size").rule, MGR_FIELD_UNKNOWN);
    CHECK_INT(mgr_megatron_field("num_layers").rule, MGR_FIELD_READ);
    CHECK_INT(mgr_megatron_field("wandb_project").rule, MGR_FIELD_INERT);
}

static void check_neutral(void)
{
    const struct {
        const char *name;
        mgr_attr value;
        bool neutral;
    } cases[] = {
        {"no_rope_freq", {.kind = MGR_ATTR_NULL}, true},
        {"no_rope_freq", whole(0), true},
        {"no_rope_freq", whole(2), false},
        {"no_rope_freq", literal("[0, 0, 0]"), true},
        {"no_rope_freq", literal("[0, 1, 0]"), false},
        {"no_rope_freq", literal("[]"), true},
        {"softmax_type", text("vanilla"), true},
        {"softmax_type", text("off-by-one"), false},
        {"softmax_type", whole(0), false},
        {"moe_expert_capacity_factor", {.kind = MGR_ATTR_NULL}, true},
        {"glu_linear_offset", real(0.0 / 0.0), false},
        {"moe_expert_capacity_factor", real(0.5), false},
        {"window_size", literal("(4, 0)"), false},
        {"window_size", literal("(0, 0)"), false},
        {"window_size", text(""), true},
        {"glu_linear_offset", real(0.0), true},
        {"glu_linear_offset", real(1.0), false},
        {"use_mup", {.kind = MGR_ATTR_BOOL, .i = 1}, false},
        {"use_mup", {.kind = MGR_ATTR_BOOL}, true},
        {"moe_router_load_balancing_type", text("seq_aux_loss"), true},
        {"moe_router_load_balancing_type", text("sinkhorn"), false},
        {"moe_router_load_balancing_type", literal("['aux_loss', 'seq_aux_loss']"), true},
        {"moe_router_load_balancing_type", literal("['aux_loss', 'sinkhorn']"), false},
        {"spec", {.kind = MGR_ATTR_OTHER, .text = "object"}, false},
        {"model_type", {.kind = MGR_ATTR_SYMBOL, .text = "ModelType(1)"}, true},
        {"model_type", {.kind = MGR_ATTR_SYMBOL, .text = "ModelType(2)"}, false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const mgr_field f = mgr_megatron_field(cases[i].name);
        CHECK_INT(mgr_megatron_is_neutral(&f, &cases[i].value), cases[i].neutral);
    }
    CHECK(mgr_attr_is_nothing(&(mgr_attr){.kind = MGR_ATTR_BOOL}));
    CHECK(!mgr_attr_is_nothing(&(mgr_attr){.kind = MGR_ATTR_REAL, .r = 0.0 / 0.0}));
    CHECK(!mgr_attr_is_nothing(&(mgr_attr){.kind = MGR_ATTR_OTHER, .text = "object"}));
}

/* Text to a pickle, that read again, and back to text. */
static void check_text(const char *given)
{
    mgr_err err = MGR_ERR_INIT;
    mgr_buf bytes = {0}, spelt = {0};
    mgr_pickle pickle;
    CHECK_INT(mgr_pickle_begin(&bytes, &err), MGR_OK);
    CHECK_INT(mgr_literal_pickle(given, &bytes, &err), MGR_OK);
    CHECK_INT(mgr_pickle_end(&bytes, &err), MGR_OK);
    CHECK_TEXT(err.msg, "");
    CHECK_INT(mgr_pickle_read(&pickle, "text", bytes.data, bytes.len, NULL, &err), MGR_OK);
    CHECK_INT(mgr_literal_spell(pickle.root, &spelt, &err), MGR_OK);
    CHECK_TEXT(spelt.data ? spelt.data : "", given);
    mgr_pickle_clear(&pickle);
    mgr_buf_clear(&bytes);
    mgr_buf_clear(&spelt);
}

static void check_literals(void)
{
    check_text("[0, 1, 1, 0]");
    check_text("(4, 0)");
    check_text("(4,)");
    check_text("()");
    check_text("[]");
    check_text("{}");
    check_text("['0.7', 'a \\x27quoted\\x27 path\\x5c', '\xe3\x83\x86']");
    check_text("{'a': 1, 2: [None, True, False, -7, 0.1, 1e+300, 2.0]}");
    check_text("[torch.bfloat16, (1, (2, (3,)))]");
    check_text("[9223372036854775807, -9223372036854775807]");
}

/* What has no spelling, or too much of one, gives no text at all. */
static void check_no_literal(void)
{
    static const char deep[] = "\x80\x02]]]]]]]]]]aaaaaaaaa.";
    static const char object[] = "\x80\x02](cargparse\nNamespace\n)\x81"
                                 "e.";
    static const char itself[] = "\x80\x02]q\0h\0a.";
    const struct {
        const char *bytes;
        size_t len;
    } cases[] = {{deep, sizeof deep - 1}, {object, sizeof object - 1}, {itself, sizeof itself - 1}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        mgr_err err = MGR_ERR_INIT;
        mgr_buf spelt = {0};
        mgr_pickle pickle;
        CHECK_INT(mgr_pickle_read(&pickle, "text", cases[i].bytes, cases[i].len, NULL, &err),
                  MGR_OK);
        CHECK_INT(mgr_literal_spell(pickle.root, &spelt, &err), MGR_OK);
        CHECK_INT(spelt.len, 0);
        mgr_pickle_clear(&pickle);
        mgr_buf_clear(&spelt);
    }
}

int main(void)
{
    check_names();
    check_neutral();
    check_literals();
    check_no_literal();
    return CHECK_DONE();
}
