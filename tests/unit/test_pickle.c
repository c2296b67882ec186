/* fmt/pickle.c, pickle_node.c and pickle_write.c: every opcode, every refusal by its words. */
#include <math.h>
#include <stdlib.h>

#include "core/mem.h"
#include "fmt/pickle.h"
#include "fmt/pickle_write.h"
#include "support/check.h"

static mgr_err err;

static int run_with(mgr_pickle *pickle, const void *bytes, size_t len,
                    const mgr_pickle_limits *limits)
{
    err = (mgr_err)MGR_ERR_INIT;
    return mgr_pickle_read(pickle, "f.pt", bytes, len, limits, &err);
}

/* A literal with NULs in it, without its terminator. */
#define BYTES(text) (text), sizeof(text) - 1

/* The root of a pickle that must be fine; free with mgr_pickle_clear. */
static const mgr_node *good(mgr_pickle *pickle, const void *bytes, size_t len)
{
    CHECK_INT(run_with(pickle, bytes, len, NULL), MGR_OK);
    CHECK_TEXT(err.msg, "");
    return pickle->root;
}

static void test_numbers(void)
{
    static const struct {
        const char *bytes;
        size_t len;
        int64_t value;
    } ints[] = {
        {BYTES("\x80\2K\377."), 255},
        {BYTES("\x80\2M\377\377."), 65535},
        {BYTES("\x80\2J\377\377\377\377."), -1},
        {BYTES("\x80\2J\0\0\0\200."), INT32_MIN},
        {BYTES("\x80\2\x8a\0."), 0}, /* LONG1 of no bytes */
        {BYTES("\x80\2\x8a\1\377."), -1},
        {BYTES("\x80\2\x8a\2\377\0."), 255},
        {BYTES("\x80\2\x8a\10\0\0\0\0\0\0\0\200."), INT64_MIN},
        {BYTES("\x80\2\x8a\12\377\377\377\377\377\377\377\177\0\0."), INT64_MAX},
        {BYTES("\x80\2\x8a\12\0\0\0\0\0\0\0\200\377\377."), INT64_MIN},
        {BYTES("\x80\2\x8b\2\0\0\0\0\1."), 256},
        {BYTES("\x80\2I-12\n."), -12},
        {BYTES("\x80\2L12L\n."), 12},
    };
    for (size_t i = 0; i < sizeof ints / sizeof ints[0]; i++) {
        mgr_pickle p;
        int64_t value = -999;
        const mgr_node *const root = good(&p, ints[i].bytes, ints[i].len);
        CHECK(mgr_node_int(root, &value));
        CHECK_INT(value, ints[i].value);
        mgr_pickle_clear(&p);
    }
    mgr_pickle p;
    int64_t value;
    const mgr_node *root = good(&p, BYTES("\x80\2\x8a\11\0\0\0\0\0\0\0\200\0."));
    CHECK(root && root->kind == MGR_NODE_BIGINT && root->u.s.len == 9);
    CHECK(!mgr_node_int(root, &value));
    mgr_pickle_clear(&p);
    root = good(&p, BYTES("\x80\2G\277\370\0\0\0\0\0\0."));
    CHECK(root && root->kind == MGR_NODE_REAL && root->u.r == -1.5);
    mgr_pickle_clear(&p);
    root = good(&p, BYTES("\x80\2F-inf\n."));
    CHECK(root && root->kind == MGR_NODE_REAL && isinf(root->u.r) && root->u.r < 0);
    mgr_pickle_clear(&p);
    root = good(&p, BYTES("\x80\2(\x88\x89NI01\nt."));
    CHECK(root && root->u.c.n == 4 && root->u.c.items[0]->u.i == 1 && root->u.c.items[1]->u.i == 0);
    CHECK(root && root->u.c.items[0]->kind == MGR_NODE_BOOL &&
          root->u.c.items[3]->kind == MGR_NODE_BOOL && root->u.c.items[2]->kind == MGR_NODE_NONE);
    CHECK(!mgr_node_int(root->u.c.items[0], &value)); /* a bool is no int */
    CHECK_INT(root->u.c.items[2]->at, 5);
    mgr_pickle_clear(&p);
}

static void test_strings(void)
{
    static const struct {
        const char *bytes;
        size_t len;
        mgr_node_kind kind;
        const char *text;
        size_t text_len;
    } strings[] = {
        {BYTES("\x80\2X\3\0\0\0abc."), MGR_NODE_TEXT, BYTES("abc")},
        {BYTES("\x80\4\x8c\3abc."), MGR_NODE_TEXT, BYTES("abc")},
        {BYTES("\x80\4\x8d\3\0\0\0\0\0\0\0abc."), MGR_NODE_TEXT, BYTES("abc")},
        {BYTES("\x80\2X\6\0\0\0\xe6\x97\xa5\xed\xa0\x80."), MGR_NODE_TEXT,
         BYTES("\xe6\x97\xa5\xed\xa0\x80")},
        {BYTES("\x80\2X\4\0\0\0\xf4\x8f\xbf\xbf."), MGR_NODE_TEXT, BYTES("\xf4\x8f\xbf\xbf")},
        {BYTES("\x80\2U\1a."), MGR_NODE_TEXT, BYTES("a")},
        {BYTES("\x80\2T\1\0\0\0\377."), MGR_NODE_BYTES, BYTES("\377")},
        {BYTES("\x80\3B\2\0\0\0\0\1."), MGR_NODE_BYTES, BYTES("\0\1")},
        {BYTES("\x80\3C\2\0\1."), MGR_NODE_BYTES, BYTES("\0\1")},
        {BYTES("\x80\4\x8e\2\0\0\0\0\0\0\0\0\1."), MGR_NODE_BYTES, BYTES("\0\1")},
        {BYTES("\x80\5\x96\2\0\0\0\0\0\0\0\0\1."), MGR_NODE_BYTES, BYTES("\0\1")},
        {BYTES("\x80\2c__builtin__\nbytes\n)R."), MGR_NODE_BYTES, BYTES("")},
        {BYTES("\x80\2cbuiltins\nbytearray\n)R."), MGR_NODE_BYTES, BYTES("")},
        {BYTES("\x80\2c__builtin__\nbytearray\nC\1x\x85R."), MGR_NODE_BYTES, BYTES("x")},
        {BYTES("\x80\2c_codecs\nencode\nX\5\0\0\0a\xc2\x80\xc3\xbfX\6\0\0\0latin1\x86R."),
         MGR_NODE_BYTES, BYTES("a\200\377")},
        {BYTES("\x80\2c__builtin__\nbytearray\nX\1\0\0\0aX\7\0\0\0latin-1\x86R."), MGR_NODE_BYTES,
         BYTES("a")},
    };
    for (size_t i = 0; i < sizeof strings / sizeof strings[0]; i++) {
        mgr_pickle p;
        const mgr_node *const root = good(&p, strings[i].bytes, strings[i].len);
        CHECK_INT(root->kind, strings[i].kind);
        CHECK_INT(root->u.s.len, strings[i].text_len);
        CHECK(memcmp(root->u.s.bytes, strings[i].text, strings[i].text_len) == 0);
        CHECK_INT(root->u.s.bytes[root->u.s.len], 0);
        mgr_pickle_clear(&p);
    }
    mgr_pickle p;
    CHECK(!mgr_node_text(good(&p, BYTES("\x80\2X\3\0\0\0a\0c."))));
    mgr_pickle_clear(&p);
}

static void test_containers(void)
{
    mgr_pickle p;
    const mgr_node *root = good(&p, BYTES("\x80\2}(X\1\0\0\0aK\1K\7K\2X\1\0\0\0aK\3u."));
    int64_t value;
    CHECK(mgr_node_is_dict(root));
    CHECK_INT(mgr_node_n_pairs(root), 3);
    CHECK(mgr_node_int(mgr_node_get(root, "a"), &value) && value == 3); /* the last wins */
    CHECK(mgr_node_int(mgr_node_key(root, 1), &value) && value == 7);
    CHECK(mgr_node_int(mgr_node_value(root, 1), &value) && value == 2);
    CHECK(!mgr_node_key(root, 3) && !mgr_node_value(root, 3) && !mgr_node_get(root, "b"));
    mgr_pickle_clear(&p);

    root = good(&p, BYTES("\x80\2(](K\1K\2e]K\3a)K\4\x85K\5K\6\x86K\7K\10K\11\x87(K\1t(K\1K\2l"
                          "(K\1K\2dt."));
    static const size_t lengths[] = {2, 1, 0, 1, 2, 3, 1, 2, 2};
    CHECK_INT(root->u.c.n, 9);
    for (size_t i = 0; i < 9; i++)
        CHECK_INT(root->u.c.items[i]->u.c.n, lengths[i]);
    mgr_pickle_clear(&p);

    root = good(&p, BYTES("\x80\4(\x8f(K\1K\2\x90(K\1\221ccollections\ndeque\n)RK\5ac__builtin__\n"
                          "set\n](K\1e\x85Rctorch\nSize\n(K\2K\3t\x85Rt."));
    mgr_node *const *items;
    size_t n;
    CHECK(mgr_node_elements(root->u.c.items[0], &items, &n) && n == 2);
    CHECK(mgr_node_elements(root->u.c.items[1], &items, &n) && n == 1);
    CHECK(mgr_node_elements(root->u.c.items[2], &items, &n) && n == 1);
    CHECK(!mgr_node_elements(root->u.c.items[3], &items, &n));
    CHECK(mgr_node_elements(root->u.c.items[4], &items, &n) && n == 2);
    CHECK_INT(items[1]->u.i, 3);
    mgr_pickle_clear(&p);
}

static void test_objects(void)
{
    mgr_pickle p;
    int64_t value;
    char text[100];
    const mgr_node *root =
        good(&p, BYTES("\x80\2cargparse\nNamespace\n)\x81}(X\1\0\0\0aK\1X\1\0\0\0bNub."));
    CHECK(mgr_node_is_call(root, "argparse", "Namespace") && root->u.c.call->newobj);
    CHECK(mgr_node_int(mgr_node_attr(root, "a"), &value) && value == 1);
    CHECK(!mgr_node_attr(root, "c") && mgr_node_attr(root, "b")->kind == MGR_NODE_NONE);
    CHECK_TEXT(mgr_node_describe(root, text, sizeof text), "argparse.Namespace");
    mgr_pickle_clear(&p);

    root = good(&p,
                BYTES("\x80\2ccollections\nOrderedDict\n)RX\1\0\0\0aK\1s}X\11\0\0\0_metadataNsb."));
    CHECK(mgr_node_is_dict(root) && mgr_node_n_pairs(root) == 1);
    CHECK(mgr_node_attr(root, "_metadata") && !mgr_node_get(root, "_metadata"));
    mgr_pickle_clear(&p);

    /* an enum of Python 3.11.2, and a method of a class */
    root =
        good(&p, BYTES("\x80\2cbuiltins\ngetattr\ncmegatron.core.enums\nModelType\nX\5\0\0\0retro"
                       "\x86R."));
    CHECK(mgr_node_is_call(root, "__builtin__", "getattr"));
    CHECK_TEXT(mgr_node_text(mgr_node_arg(root, 1)), "retro");
    CHECK(!mgr_node_arg(root, 2));
    mgr_pickle_clear(&p);
    root = good(&p, BYTES("\x80\2c__builtin__\ngetattr\nctransformer_engine.pytorch\nT\nX\1\0\0\0m"
                          "\x86R(K\1tR."));
    CHECK(mgr_node_is_global(mgr_node_class(root), "transformer_engine.pytorch", "T"));
    CHECK(mgr_node_callable(root)->kind == MGR_NODE_OBJECT);
    mgr_pickle_clear(&p);
}

static void test_identity(void)
{
    mgr_pickle p;
    /* a list in itself */
    const mgr_node *root = good(&p, BYTES("\x80\4]\x94h\0a."));
    CHECK(root->u.c.n == 1 && root->u.c.items[0] == root);
    CHECK_INT(p.used, 8);
    mgr_pickle_clear(&p);
    /* a list in a tuple in that list */
    root = good(&p, BYTES("\x80\2]q\0(h\0K\1tq\1ah\1\x86."));
    CHECK(root->u.c.n == 2 && root->u.c.items[0]->u.c.items[0] == root->u.c.items[1]);
    CHECK(root->u.c.items[1]->u.c.items[0] == root->u.c.items[0]);
    mgr_pickle_clear(&p);
    /* POP of a mark and of an item, POP_MARK, DUP, LONG_BINPUT, LONG_BINGET; bytes after STOP */
    root = good(&p, BYTES("\x80\2K\1(0K\2K\3(K\4K\0051002r\200\0\0\0j\200\0\0\0\x87.garbage"));
    CHECK(root->u.c.n == 3 && root->u.c.items[0]->u.i == 1 && root->u.c.items[2]->u.i == 1);
    CHECK(root->u.c.items[0] == root->u.c.items[1]);
    mgr_pickle_clear(&p);
}

typedef struct refusal {
    const char *bytes;
    size_t len;
    int code;
    const char *message;
} refusal;

#define DAMAGED "damaged pickle in 'f.pt' at byte "
#define REFUSED "refusing pickle in 'f.pt' at byte "

static const refusal refusals[] = {
    {BYTES(""), MGR_ERR_FORMAT, DAMAGED "0: it does not start with a protocol number"},
    {BYTES("N."), MGR_ERR_FORMAT, DAMAGED "0: it does not start with a protocol number"},
    {BYTES("\x80\1N."), MGR_ERR_UNSUPPORTED, REFUSED "0: its protocol is not 2, 3, 4 or 5"},
    {BYTES("\x80\6N."), MGR_ERR_UNSUPPORTED, REFUSED "0: its protocol is not 2, 3, 4 or 5"},
    {BYTES("\x80\2"), MGR_ERR_FORMAT, DAMAGED "2: it is truncated: no STOP"},
    {BYTES("\x80\2\x80\2N."), MGR_ERR_FORMAT, DAMAGED "2: PROTO in the middle"},
    {BYTES("\x80\2."), MGR_ERR_FORMAT, DAMAGED "2: STOP with other than one object on the stack"},
    {BYTES("\x80\2NN."), MGR_ERR_FORMAT, DAMAGED "4: STOP with other than one object on the stack"},
    {BYTES("\x80\2(N."), MGR_ERR_FORMAT, DAMAGED "4: STOP with other than one object on the stack"},
    {BYTES("\x80\2\377"), MGR_ERR_FORMAT, DAMAGED "2: unknown opcode"},
    {BYTES("\x80\2\x82\1"), MGR_ERR_UNSUPPORTED, REFUSED "2: opcode 0x82 is not supported"},
    {BYTES("\x80\5\x97"), MGR_ERR_UNSUPPORTED, REFUSED "2: opcode 0x97 is not supported"},
    {BYTES("\x80\2P1\n."), MGR_ERR_UNSUPPORTED, REFUSED "2: opcode 0x50 is not supported"},
    {BYTES("\x80\2(ios\nsystem\n."), MGR_ERR_UNSUPPORTED,
     REFUSED "3: opcode 0x69 is not supported"},
    {BYTES("\x80\2J\0\0"), MGR_ERR_FORMAT, DAMAGED "2: operand passes the end"},
    {BYTES("\x80\2X\377\377\377\377a."), MGR_ERR_FORMAT, DAMAGED "2: operand passes the end"},
    {BYTES("\x80\4\x8d\377\377\377\377\377\377\377\377a."), MGR_ERR_FORMAT,
     DAMAGED "2: operand passes the end"},
    {BYTES("\x80\4\x8e\0\0\0\0\0\0\0\200a."), MGR_ERR_FORMAT, DAMAGED "2: operand passes the end"},
    {BYTES("\x80\4\x95\2\0\0\0\0\0\0\0."), MGR_ERR_FORMAT, DAMAGED "2: frame passes the end"},
    {BYTES("\x80\2X\1\0\0\0\377."), MGR_ERR_FORMAT, DAMAGED "2: text is not UTF-8"},
    {BYTES("\x80\2X\2\0\0\0\xc0\x80."), MGR_ERR_FORMAT, DAMAGED "2: text is not UTF-8"},
    {BYTES("\x80\2X\3\0\0\0\xe0\x9f\xbf."), MGR_ERR_FORMAT, DAMAGED "2: text is not UTF-8"},
    {BYTES("\x80\2X\4\0\0\0\xf4\x90\x80\x80."), MGR_ERR_FORMAT, DAMAGED "2: text is not UTF-8"},
    {BYTES("\x80\2X\2\0\0\0\xe6\x97."), MGR_ERR_FORMAT, DAMAGED "2: text is not UTF-8"},
    {BYTES("\x80\2\x8b\377\377\377\377."), MGR_ERR_FORMAT, DAMAGED "2: integer of negative length"},
    {BYTES("\x80\2\x8b\1\0\1\0."), MGR_ERR_UNSUPPORTED, REFUSED "2: integer of more than 64 KiB"},
    {BYTES("\x80\2I\n."), MGR_ERR_FORMAT, DAMAGED "2: integer without digits"},
    {BYTES("\x80\2I1x\n."), MGR_ERR_FORMAT, DAMAGED "2: integer with other bytes than digits"},
    {BYTES("\x80\2L9223372036854775808L\n."), MGR_ERR_UNSUPPORTED,
     REFUSED "2: integer text beyond 64 bits"},
    {BYTES("\x80\2I12"), MGR_ERR_FORMAT, DAMAGED "2: line without an end"},
    {BYTES("\x80\2Fabc\n."), MGR_ERR_FORMAT, DAMAGED "2: no number"},
    {BYTES("\x80\2F1.5.5\n."), MGR_ERR_FORMAT, DAMAGED "2: no number"},
    {BYTES("\x80\2a."), MGR_ERR_FORMAT, DAMAGED "2: stack underflow"},
    {BYTES("\x80\2N(a."), MGR_ERR_FORMAT, DAMAGED "4: stack underflow"}, /* below the mark */
    {BYTES("\x80\2N\x86."), MGR_ERR_FORMAT, DAMAGED "3: stack underflow"},
    {BYTES("\x80\2(2."), MGR_ERR_FORMAT, DAMAGED "3: stack underflow"},
    {BYTES("\x80\2t."), MGR_ERR_FORMAT, DAMAGED "2: no mark on the stack"},
    {BYTES("\x80\2}(Nu."), MGR_ERR_FORMAT, DAMAGED "5: a key without a value"},
    {BYTES("\x80\2}]Ns."), MGR_ERR_FORMAT, DAMAGED "5: a key that cannot be hashed"},
    {BYTES("\x80\2}}Ns."), MGR_ERR_FORMAT, DAMAGED "5: a key that cannot be hashed"},
    {BYTES("\x80\2]NNs."), MGR_ERR_FORMAT, DAMAGED "5: pairs for something that is no dict"},
    {BYTES("\x80\2NNa."), MGR_ERR_FORMAT,
     DAMAGED "4: elements for something that is no list or set"},
    {BYTES("\x80\4](N\x90."), MGR_ERR_FORMAT,
     DAMAGED "5: elements for something that is no list or set"},
    {BYTES("\x80\2ccollections\ndeque\n)RNaNNs."), MGR_ERR_FORMAT,
     DAMAGED "27: pairs for something that is no dict"},
    {BYTES("\x80\2h\0."), MGR_ERR_FORMAT, DAMAGED "2: memo entry that was never written"},
    {BYTES("\x80\2Nq\0h\1."), MGR_ERR_FORMAT, DAMAGED "5: memo entry that was never written"},
    {BYTES("\x80\2Nj\377\377\377\377."), MGR_ERR_FORMAT,
     DAMAGED "3: memo entry that was never written"},
    {BYTES("\x80\2q\0."), MGR_ERR_FORMAT, DAMAGED "2: stack underflow"},
    {BYTES("\x80\2Nr\377\377\377\377."), MGR_ERR_FORMAT, DAMAGED "3: memo index out of proportion"},
    {BYTES("\x80\2cos\nsystem\n."), MGR_ERR_FORMAT,
     REFUSED "2: global 'os.system' is not on the allow list"},
    {BYTES("\x80\4\x8c\2os\x8c\6system\x93."), MGR_ERR_FORMAT,
     REFUSED "14: global 'os.system' is not on the allow list"},
    {BYTES("\x80\2cposix\nsystem\n."), MGR_ERR_FORMAT,
     REFUSED "2: global 'posix.system' is not on the allow list"},
    {BYTES("\x80\2csubprocess\nPopen\n."), MGR_ERR_FORMAT,
     REFUSED "2: global 'subprocess.Popen' is not on the allow list"},
    {BYTES("\x80\2cbuiltins\neval\n."), MGR_ERR_FORMAT,
     REFUSED "2: global 'builtins.eval' is not on the allow list"},
    {BYTES("\x80\2ctorch\nload\n."), MGR_ERR_FORMAT,
     REFUSED "2: global 'torch.load' is not on the allow list"},
    {BYTES("\x80\2cmegatronx.y\nz\n."), MGR_ERR_FORMAT,
     REFUSED "2: global 'megatronx.y.z' is not on the allow list"},
    {BYTES("\x80\2ca b\nc\n."), MGR_ERR_FORMAT, DAMAGED "2: a global is not named by identifiers"},
    {BYTES("\x80\2c\nc\n."), MGR_ERR_FORMAT, DAMAGED "2: a global is not named by identifiers"},
    {BYTES("\x80\2cos"), MGR_ERR_FORMAT, DAMAGED "2: line without an end"},
    {BYTES("\x80\4NN\x93."), MGR_ERR_FORMAT, DAMAGED "4: a global is not named by text"},
    {BYTES("\x80\2N)R."), MGR_ERR_FORMAT, DAMAGED "4: a call of something that is no global"},
    {BYTES("\x80\2ctorch\nSize\nNR."), MGR_ERR_FORMAT,
     DAMAGED "15: a call with arguments that are no tuple"},
    {BYTES("\x80\4ctorch\nSize\n)N\x92."), MGR_ERR_FORMAT,
     DAMAGED "16: a call with arguments that are no tuple"},
    {BYTES("\x80\2cbuiltins\ngetattr\n)R."), MGR_ERR_FORMAT,
     REFUSED "21: getattr of something else than a class and a name"},
    {BYTES("\x80\2cbuiltins\ngetattr\nNX\1\0\0\0a\x86R."), MGR_ERR_FORMAT,
     REFUSED "28: getattr of something else than a class and a name"},
    {BYTES("\x80\2NNb."), MGR_ERR_FORMAT, DAMAGED "4: state for something that is no object"},
    {BYTES("\x80\2ctypes\nSimpleNamespace\n)RNbNb."), MGR_ERR_FORMAT,
     DAMAGED "30: an object gets its state twice"},
    {BYTES("\x80\2c_codecs\nencode\nX\2\0\0\0\xc4\x80X\6\0\0\0latin1\x86R."), MGR_ERR_FORMAT,
     DAMAGED "37: latin-1 text with characters beyond U+00FF"},
};

static void test_refusals(void)
{
    for (size_t i = 0; i < sizeof refusals / sizeof refusals[0]; i++) {
        mgr_pickle p;
        CHECK_INT(run_with(&p, refusals[i].bytes, refusals[i].len, NULL), refusals[i].code);
        CHECK_TEXT(err.msg, refusals[i].message);
        CHECK(!p.root);
    }
}

static void test_limits(void)
{
    mgr_pickle p;
    const mgr_pickle_rule only = {"os", "*"};
    mgr_pickle_limits limits = {.max_nodes = 3, .base = 1000};
    CHECK_INT(run_with(&p, BYTES("\x80\2NNN."), &limits), MGR_ERR_UNSUPPORTED);
    CHECK_TEXT(err.msg, REFUSED "1004: it holds more objects than the limit allows");
    limits = (mgr_pickle_limits){.memory = 1000};
    CHECK_INT(run_with(&p,
                       BYTES("\x80\2((((((((((((((((((((((((((((((((((((((((((((((((((((((((((("
                             "(((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((("
                             "((((((((((((((((((."),
                       &limits),
              MGR_ERR_UNSUPPORTED);
    CHECK_HAS(err.msg, "it needs more memory than the limit allows");
    /* a caller's own list replaces ours */
    limits = (mgr_pickle_limits){.allow = &only, .n_allow = 1};
    CHECK_INT(run_with(&p, BYTES("\x80\2cos\nsystem\n."), &limits), MGR_OK);
    mgr_pickle_clear(&p);
    CHECK_INT(run_with(&p, BYTES("\x80\2ctorch\nSize\n."), &limits), MGR_ERR_FORMAT);
}

/* Something of everything: 2500 pairs in batches, a string of 70 000 bytes, depth 10 000. */
static void test_large(void)
{
    mgr_buf b = {0};
    mgr_pickle p;
    int64_t value;
    static char text[70001];
    memset(text, 'x', sizeof text - 1);
    CHECK_INT(mgr_pickle_begin(&b, &err), MGR_OK);
    CHECK_INT(mgr_buf_text(&b, "}", &err), MGR_OK);
    for (int i = 0; i < 2500; i++) {
        if (i % 1000 == 0)
            CHECK_INT(mgr_buf_text(&b, i ? "u(" : "(", &err), MGR_OK);
        CHECK_INT(mgr_pickle_int(&b, i, &err), MGR_OK);
        CHECK_INT(mgr_pickle_int(&b, -i, &err), MGR_OK);
    }
    CHECK_INT(mgr_pickle_text(&b, "text", &err), MGR_OK);
    CHECK_INT(mgr_pickle_text(&b, text, &err), MGR_OK);
    CHECK_INT(mgr_pickle_text(&b, "deep", &err), MGR_OK);
    for (int i = 0; i < 10000; i++)
        CHECK_INT(mgr_buf_text(&b, "]", &err), MGR_OK);
    for (int i = 1; i < 10000; i++)
        CHECK_INT(mgr_buf_text(&b, "a", &err), MGR_OK);
    CHECK_INT(mgr_buf_text(&b, "u", &err), MGR_OK);
    CHECK_INT(mgr_pickle_end(&b, &err), MGR_OK);
    const mgr_node *const root = good(&p, b.data, b.len);
    CHECK_INT(mgr_node_n_pairs(root), 2502);
    CHECK(mgr_node_int(mgr_node_value(root, 1999), &value) && value == -1999);
    CHECK_TEXT(mgr_node_text(mgr_node_get(root, "text")), text);
    size_t depth = 0;
    for (const mgr_node *n = mgr_node_get(root, "deep"); n; depth++)
        n = n->u.c.n ? n->u.c.items[0] : NULL;
    CHECK_INT(depth, 10000);
    mgr_pickle_clear(&p);
    mgr_buf_clear(&b);
}

/* What pickle_write.c makes, pickle.c reads back. */
static mgr_buf sample(void)
{
    static const uint64_t shape[] = {2, 3};
    mgr_buf b = {0};
    const int64_t ints[] = {0,
                            255,
                            256,
                            65535,
                            65536,
                            -1,
                            -128,
                            INT32_MAX,
                            INT32_MIN,
                            INT32_MAX + INT64_C(1),
                            INT32_MIN - INT64_C(1),
                            INT64_MAX,
                            INT64_MIN,
                            INT64_C(0x7fffffffff),
                            INT64_C(0x8000000000),
                            -129};
    int rc = mgr_pickle_begin(&b, &err);
    rc |= mgr_pickle_dict_open(&b, &err);
    rc |= mgr_pickle_text(&b, "ints", &err);
    rc |= mgr_pickle_list_open(&b, &err);
    for (size_t i = 0; i < 16; i++)
        rc |= mgr_pickle_int(&b, ints[i], &err);
    rc |= mgr_pickle_list_close(&b, &err);
    rc |= mgr_pickle_text(&b, "args", &err);
    rc |= mgr_pickle_namespace_open(&b, &err);
    rc |= mgr_pickle_text(&b, "real", &err);
    rc |= mgr_pickle_real(&b, 1e-5, &err);
    rc |= mgr_pickle_text(&b, "yes", &err);
    rc |= mgr_pickle_bool(&b, 1, &err);
    rc |= mgr_pickle_text(&b, "none", &err);
    rc |= mgr_pickle_none(&b, &err);
    rc |= mgr_pickle_text(&b, "dtype", &err);
    rc |= mgr_pickle_global(&b, "torch", "bfloat16", &err);
    rc |= mgr_pickle_text(&b, "pair", &err);
    rc |= mgr_pickle_tuple_open(&b, &err);
    rc |= mgr_pickle_bool(&b, 0, &err);
    rc |= mgr_pickle_tuple_close(&b, &err);
    rc |= mgr_pickle_namespace_close(&b, &err);
    rc |= mgr_pickle_text(&b, "w", &err);
    rc |= mgr_pickle_tensor(&b, "0", MGR_DTYPE_BF16, 2, shape, &err);
    rc |= mgr_pickle_text(&b, "scalar", &err);
    rc |= mgr_pickle_tensor(&b, "1", MGR_DTYPE_F32, 0, NULL, &err);
    rc |= mgr_pickle_dict_close(&b, &err);
    rc |= mgr_pickle_end(&b, &err);
    CHECK_INT(rc, MGR_OK);
    return b;
}

static void test_writer(void)
{
    mgr_buf b = sample();
    mgr_pickle p;
    const mgr_node *const root = good(&p, b.data, b.len);
    const mgr_node *const ints = mgr_node_get(root, "ints"), *const args =
                                                                 mgr_node_get(root, "args");
    CHECK_INT(ints->u.c.n, 16);
    CHECK_INT(ints->u.c.items[4]->u.i, 65536);
    CHECK_INT(ints->u.c.items[8]->u.i, INT32_MIN);
    CHECK_INT(ints->u.c.items[9]->u.i, INT32_MAX + INT64_C(1));
    CHECK_INT(ints->u.c.items[10]->u.i, INT32_MIN - INT64_C(1));
    CHECK_INT(ints->u.c.items[11]->u.i, INT64_MAX);
    CHECK_INT(ints->u.c.items[12]->u.i, INT64_MIN);
    CHECK_INT(ints->u.c.items[14]->u.i, INT64_C(0x8000000000));
    CHECK(mgr_node_attr(args, "real")->u.r == 1e-5);
    CHECK(mgr_node_is_global(mgr_node_attr(args, "dtype"), "torch", "bfloat16"));
    const mgr_node *const w = mgr_node_get(root, "w");
    CHECK(mgr_node_is_call(w, "torch._utils", "_rebuild_tensor_v2") && mgr_node_n_args(w) == 6);
    CHECK_INT(mgr_node_arg(w, 0)->kind, MGR_NODE_PERSID);
    CHECK_TEXT(mgr_node_text(mgr_node_arg(w, 0)->u.persid->u.c.items[2]), "0");
    CHECK_INT(mgr_node_arg(w, 3)->u.c.items[0]->u.i, 3);
    CHECK_INT(mgr_node_arg(mgr_node_get(root, "scalar"), 2)->u.c.n, 0);
    mgr_pickle_clear(&p);
    /* cut anywhere, it is refused */
    for (size_t len = 0; len < b.len; len++) {
        char *const copy = malloc(len + 1);
        CHECK(copy != NULL);
        if (!copy)
            break;
        memcpy(copy, b.data, len);
        char *const exact = realloc(copy, len ? len : 1);
        CHECK_INT(run_with(&p, exact, len, NULL), MGR_ERR_FORMAT);
        free(exact);
    }
    /* and no allocation failure goes unnoticed */
    int rc = MGR_ERR_NOMEM;
    for (uint64_t k = 1; rc == MGR_ERR_NOMEM && k < 1000; k++) {
        mgr_alloc_fail_at(k);
        rc = run_with(&p, b.data, b.len, NULL);
    }
    mgr_alloc_fail_at(0);
    CHECK_INT(rc, MGR_OK);
    mgr_pickle_clear(&p);
    mgr_buf_clear(&b);
}

static void test_writer_refusals(void)
{
    static const uint64_t huge[] = {UINT64_C(1) << 40, UINT64_C(1) << 40};
    mgr_buf b = {0};
    CHECK_INT(mgr_pickle_tensor(&b, "0", MGR_DTYPE_OTHER, 0, NULL, &err), MGR_ERR_INTERNAL);
    CHECK_INT(mgr_pickle_tensor(&b, "0", MGR_DTYPE_F32, 2, huge, &err), MGR_ERR_INTERNAL);
    CHECK_INT(b.len, 0);
    mgr_buf_clear(&b);
}

static void test_null(void)
{
    mgr_node *const *items;
    size_t n;
    int64_t value;
    char text[20];
    CHECK(!mgr_node_text(NULL) && !mgr_node_int(NULL, &value) && !mgr_node_is_dict(NULL));
    CHECK(!mgr_node_get(NULL, "a") && !mgr_node_attr(NULL, "a") && !mgr_node_arg(NULL, 0));
    CHECK(!mgr_node_elements(NULL, &items, &n) && !mgr_node_class(NULL) && !mgr_node_state(NULL));
    CHECK(!mgr_node_is_call(NULL, "a", "b") && !mgr_node_is_global(NULL, "a", "b"));
    CHECK_TEXT(mgr_node_describe(NULL, text, sizeof text), "nothing");
}

int main(void)
{
    test_numbers();
    test_strings();
    test_containers();
    test_objects();
    test_identity();
    test_refusals();
    test_limits();
    test_large();
    test_writer();
    test_writer_refusals();
    test_null();
    return CHECK_DONE();
}
