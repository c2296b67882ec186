/* fmt/torch_file.c: what a file says, and every refusal by its words. Files are built here from
 * pieces of pickle; what real torch writes is tested with corpus files and by the interop tests. */
#include <stdlib.h>

#include <libdeflate.h>

#include "core/mem.h"
#include "core/str.h"
#include "fmt/pickle_write.h"
#include "fmt/torch_file.h"
#include "fmt/zip.h"
#include "support/check.h"

static mgr_err err;

#define BYTES(text) (text), sizeof(text) - 1

/* ---- pieces of pickle; all keys are one letter ---- */
#define KEY(letter) "X\1\0\0\0" letter
#define STORAGE_OF(class, key, numel) "(X\7\0\0\0storagec" class "\n" key "X\3\0\0\0cpu" numel "tQ"
#define FLOATS STORAGE_OF("torch\nFloatStorage", KEY("0"), "K\6") /* 24 bytes */
#define V2 "ctorch._utils\n_rebuild_tensor_v2\n("
#define HOOKS "\211ccollections\nOrderedDict\n)R"
#define TENSOR(storage, geometry) V2 storage geometry HOOKS "tR"
#define PLAIN "K\0(K\2K\3t(K\3K\1t" /* offset 0, size (2, 3), stride (3, 1) */
#define GOOD TENSOR(FLOATS, PLAIN)
/* {'model': {'a': value}}; the value starts at byte 20 of the pickle, 84 of the file */
#define MODEL(value) "\x80\2}X\5\0\0\0model}" KEY("a") value "ss."
enum { PICKLE = 64 };

typedef struct member {
    const char *name;
    const char *bytes;
    size_t len;
} member;

/* The members of every file, if a test does not say otherwise. */
static const member usual[] = {
    {"a/byteorder", BYTES("little")},
    {"a/data/0", BYTES("\0\0\0\0\0\0\200\77\0\0\0\100\0\0\100\100\0\0\200\100\0\0\240\100")},
    {"a/data/1", BYTES("\1\2\3")},
    {"a/data/2", BYTES("")},
    {"a/data/3", BYTES("\4\5\6")},
    {"a/version", BYTES("3\n")},
};
enum { N_USUAL = sizeof usual / sizeof usual[0], VERSION = N_USUAL - 1 };

static mgr_buf build(const char *pickle, size_t len, const member *members, size_t n)
{
    mgr_zip_entry e[16] = {{.name = "a/data.pkl", .size = len}};
    const void *payloads[16] = {pickle};
    uint64_t directory, total;
    mgr_buf file = {0};
    for (size_t i = 0; i < n; i++) {
        e[i + 1] = (mgr_zip_entry){.name = members[i].name, .size = members[i].len};
        payloads[i + 1] = members[i].bytes;
    }
    CHECK_INT(mgr_zip_layout(e, n + 1, 64, &directory, &total, &err), MGR_OK);
    for (size_t i = 0; i < n + 1; i++) {
        e[i].crc32 = libdeflate_crc32(0, payloads[i], (size_t)e[i].size);
        CHECK_INT(mgr_zip_local_header(&e[i], 64, &file, &err), MGR_OK);
        CHECK_INT(mgr_buf_add(&file, payloads[i], (size_t)e[i].size, &err), MGR_OK);
    }
    CHECK_INT(mgr_zip_directory(e, n + 1, directory, &file, &err), MGR_OK);
    return file;
}

static int read_bytes(mgr_catalogue *cat, const void *bytes, size_t len)
{
    mgr_reader reader;
    err = (mgr_err)MGR_ERR_INIT;
    *cat = (mgr_catalogue){0};
    mgr_reader_memory(&reader, "f.pt", bytes, len);
    return mgr_torch_file_read(cat, 5, &reader, &err);
}

static int read_pickle(mgr_catalogue *cat, const char *pickle, size_t len)
{
    mgr_buf file = build(pickle, len, usual, N_USUAL);
    const int rc = read_bytes(cat, file.data, file.len);
    mgr_buf_clear(&file);
    return rc;
}

static void test_tensors(void)
{
    /* clang-format off */
    static const char pickle[] =
        "\x80\2}X\6\0\0\0model0}("
        KEY("a") GOOD
        /* a transposed view at an offset, as a parameter */
        KEY("b") "ctorch._utils\n_rebuild_parameter\n("
                 TENSOR(FLOATS, "K\1(K\2K\2t(K\1K\3t") HOOKS "tR"
        /* nested dicts; the keys join */
        KEY("c") "}" KEY("d") "}" KEY("e")
                 TENSOR(STORAGE_OF("torch\nByteStorage", KEY("1"), "K\3"), "K\2))") "ss"
        /* no elements, at an offset behind the storage, as torch writes slices of nothing */
        KEY("f") TENSOR(STORAGE_OF("torch\nBFloat16Storage", KEY("2"), "K\0"), "K\7(K\0t(K\1t")
        /* an untyped storage with the type in the call */
        KEY("g") "ctorch._utils\n_rebuild_tensor_v3\n("
                 STORAGE_OF("torch.storage\nUntypedStorage", KEY("3"), "K\3")
                 "K\0(K\3t(K\1t" HOOKS "ctorch\nuint8\ntR"
        /* attributes on a tensor */
        KEY("h") "ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._utils\n_rebuild_tensor_v2\n"
                 "ctorch\nTensor\n(" FLOATS PLAIN HOOKS "t}tR"
        KEY("i") "ctorch._utils\n_rebuild_tensor\n(" FLOATS PLAIN "tR"
        KEY("j") "ctorch._utils\n_rebuild_parameter_with_state\n(" GOOD "\x88}}tR"
        "us.";
    /* clang-format on */
    mgr_catalogue cat;
    CHECK_INT(read_pickle(&cat, BYTES(pickle)), MGR_OK);
    CHECK_TEXT(err.msg, "");
    CHECK_INT(cat.n_stored, 8);
    CHECK_INT(cat.n_records, 4);
    static const struct {
        const char *name;
        mgr_dtype dtype;
        uint64_t offset;
        uint32_t record, ndim;
        uint64_t shape[2], stride[2];
    } expected[] = {
        {"model0.a", MGR_DTYPE_F32, 0, 0, 2, {2, 3}, {3, 1}},
        {"model0.b", MGR_DTYPE_F32, 4, 0, 2, {2, 2}, {1, 3}},
        {"model0.c.d.e", MGR_DTYPE_U8, 2, 1, 0, {0}, {0}},
        {"model0.f", MGR_DTYPE_BF16, 0, 2, 1, {0}, {1}},
        {"model0.g", MGR_DTYPE_U8, 0, 3, 1, {3}, {1}},
        {"model0.h", MGR_DTYPE_F32, 0, 0, 2, {2, 3}, {3, 1}},
        {"model0.i", MGR_DTYPE_F32, 0, 0, 2, {2, 3}, {3, 1}},
        {"model0.j", MGR_DTYPE_F32, 0, 0, 2, {2, 3}, {3, 1}},
    };
    for (size_t i = 0; i < cat.n_stored && i < 8; i++) {
        const mgr_stored *const s = &cat.stored[i];
        CHECK_TEXT(s->name, expected[i].name);
        CHECK_INT(s->dtype, expected[i].dtype);
        CHECK_INT(s->file, 5);
        CHECK_INT(s->record, expected[i].record);
        CHECK_INT(s->offset, cat.records[s->record].offset + expected[i].offset);
        CHECK_INT(s->ndim, expected[i].ndim);
        for (uint32_t d = 0; d < s->ndim; d++) {
            CHECK_INT(s->shape[d], expected[i].shape[d]);
            CHECK_INT(s->stride[d], expected[i].stride[d]);
        }
    }
    CHECK_TEXT(cat.records[0].name, "a/data/0");
    CHECK_INT(cat.records[0].size, 24);
    CHECK_INT(cat.records[0].offset % 64, 0);
    CHECK_INT(cat.records[0].crc32, libdeflate_crc32(0, usual[1].bytes, 24));
    mgr_catalogue_clear(&cat);
}

static void test_untyped(void)
{
    static const char pickle[] = MODEL("ctorch._utils\n_rebuild_tensor_v3\n(" STORAGE_OF(
        "torch.storage\nUntypedStorage", KEY("0"), "K\30") "K\2(K\3t(K\1t" HOOKS
                                                           "ctorch\nint32\n}X\4\0\0\0conj\x89stR");
    mgr_catalogue cat;
    CHECK_INT(read_pickle(&cat, BYTES(pickle)), MGR_OK);
    CHECK_TEXT(err.msg, "");
    CHECK_INT(cat.n_stored, 1);
    CHECK_INT(cat.stored[0].dtype, MGR_DTYPE_I32);
    CHECK_INT(cat.stored[0].offset, cat.records[0].offset + 8);
    mgr_catalogue_clear(&cat);
}

#define ENUM "cmegatron.core.enums\nModelType\nK\1\x85R"
#define ENUM_3_11_2 "c__builtin__\ngetattr\ncmegatron.core.enums\nModelType\nX\5\0\0\0retro\x86R"
#define PATH "cpathlib._local\nPosixPath\nX\4\0\0\0/tmp\x85R"

static void test_attributes(void)
{
    /* clang-format off */
    static const char pickle[] =
        "\x80\2}("
        "X\5\0\0\0model}"
        "X\4\0\0\0argscargparse\nNamespace\n)\x81}("
        KEY("a") "K\5"
        KEY("b") "\x88"
        KEY("c") "G\77\360\0\0\0\0\0\0"
        KEY("d") "N"
        KEY("e") "X\2\0\0\0hi"
        KEY("f") "ctorch\nbfloat16\n"
        KEY("g") ENUM
        KEY("h") ENUM_3_11_2
        KEY("i") PATH
        KEY("j") "]"
        KEY("k") "X\2\0\0\0a\0"
        KEY("l") "csignal\nSIGTERM\n"
        KEY("m") "c__builtin__\nbytes\n)R"
        KEY("n") "\x8a\11\0\0\0\0\0\0\0\200\0"
        "K\1N" /* a key that is no text is nothing for us */
        "ub"
        "X\22\0\0\0checkpoint_version" "G\100\10\0\0\0\0\0\0"
        "X\11\0\0\0iteration" "M\350\3"
        "X\11\0\0\0optimizer" "}"
        "X\23\0\0\0opt_param_scheduler" "]"
        "X\11\0\0\0rng_state" "]"
        "X\16\0\0\0modelopt_state" "}"
        "K\1" "K\2"
        "u.";
    /* clang-format on */
    static const struct {
        const char *key;
        mgr_attr_kind kind;
        int64_t i;
        double r;
        const char *text;
    } expected[] = {
        {"args.a", MGR_ATTR_INT, 5, 0, NULL},
        {"args.b", MGR_ATTR_BOOL, 1, 0, NULL},
        {"args.c", MGR_ATTR_REAL, 0, 1.0, NULL},
        {"args.d", MGR_ATTR_NULL, 0, 0, NULL},
        {"args.e", MGR_ATTR_TEXT, 0, 0, "hi"},
        {"args.f", MGR_ATTR_SYMBOL, 0, 0, "torch.bfloat16"},
        {"args.g", MGR_ATTR_SYMBOL, 0, 0, "ModelType(1)"},
        {"args.h", MGR_ATTR_SYMBOL, 0, 0, "ModelType.retro"},
        {"args.i", MGR_ATTR_OTHER, 0, 0, "pathlib._local.PosixPath"},
        {"args.j", MGR_ATTR_LITERAL, 0, 0, "[]"},
        {"args.k", MGR_ATTR_OTHER, 0, 0, "str"},
        {"args.l", MGR_ATTR_OTHER, 0, 0, "global signal.SIGTERM"},
        {"args.m", MGR_ATTR_OTHER, 0, 0, "bytes"},
        {"args.n", MGR_ATTR_OTHER, 0, 0, "int"},
        {"checkpoint_version", MGR_ATTR_REAL, 0, 3.0, NULL},
        {"iteration", MGR_ATTR_INT, 1000, 0, NULL},
    };
    mgr_catalogue cat;
    CHECK_INT(read_pickle(&cat, BYTES(pickle)), MGR_OK);
    CHECK_TEXT(err.msg, "");
    CHECK_INT(cat.n_attrs, sizeof expected / sizeof expected[0]);
    for (size_t i = 0; i < cat.n_attrs; i++) {
        CHECK_TEXT(cat.attrs[i].key, expected[i].key);
        CHECK_INT(cat.attrs[i].file, 5);
        CHECK_INT(cat.attrs[i].kind, expected[i].kind);
        CHECK_INT(cat.attrs[i].i, expected[i].i);
        CHECK(cat.attrs[i].r >= expected[i].r && cat.attrs[i].r <= expected[i].r);
        if (expected[i].text)
            CHECK_TEXT(cat.attrs[i].text, expected[i].text);
        else
            CHECK(!cat.attrs[i].text);
    }
    CHECK_INT(cat.skipped[MGR_SKIP_OPTIMIZER], 2);
    CHECK_INT(cat.skipped[MGR_SKIP_RNG], 1);
    CHECK_INT(cat.skipped[MGR_SKIP_OTHER], 2);
    mgr_catalogue_clear(&cat);
}

/* One text of 1 MiB that a hundred arguments share would become 100 MiB. */
static void test_shared_text(void)
{
    mgr_catalogue cat;
    mgr_buf b = {0};
    static char text[1 << 20];
    memset(text, 'x', sizeof text - 1);
    int rc = mgr_buf_add(&b, BYTES("\x80\2}(X\4\0\0\0args}(X\0\0\0\0"), &err);
    rc |= mgr_pickle_text(&b, text, &err);
    rc |= mgr_buf_add(&b, BYTES("q\0"), &err);
    for (char c = ' '; c < 127; c++) {
        const char key[] = {'X', 1, 0, 0, 0, c, 'h', 0};
        rc |= mgr_buf_add(&b, key, sizeof key, &err);
    }
    rc |= mgr_buf_add(&b, BYTES("uX\5\0\0\0model}u."), &err);
    CHECK_INT(rc, MGR_OK);
    CHECK_INT(read_pickle(&cat, b.data, b.len), MGR_ERR_UNSUPPORTED);
    CHECK_TEXT(err.msg, "arguments of 'f.pt' have more than 67108864 bytes of text");
    mgr_catalogue_clear(&cat);
    mgr_buf_clear(&b);
}

#define EXTRA(value) "\x80\2}X\5\0\0\0model}X\16\0\0\0a._extra_state" value "ss."

static void test_extra_state(void)
{
    static const struct {
        const char *bytes;
        size_t len;
        const char *message; /* NULL: it is skipped */
    } cases[] = {
        {BYTES(EXTRA("N")), NULL},
        {BYTES(EXTRA("c_io\nBytesIO\n)\x81(c__builtin__\nbytes\n)RK\0Ntb")), NULL},
        {BYTES(EXTRA("c__builtin__\nbytes\n)R")), NULL},
        {BYTES(EXTRA(TENSOR(STORAGE_OF("torch\nByteStorage", KEY("9"), "K\0"), "K\0(K\0t(K\1t"))),
         NULL},
        {BYTES(EXTRA(GOOD)), "entry 'model.a._extra_state' of 'f.pt' at byte 225 is a "
                             "'torch._utils._rebuild_tensor_v2', "
                             "expected extra state (None, BytesIO, uint8 tensor)"},
        {BYTES(EXTRA("}")),
         "entry 'model.a._extra_state' of 'f.pt' at byte 97 is a 'dict', expected extra state "
         "(None, BytesIO, uint8 tensor)"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        mgr_catalogue cat;
        const int rc = read_pickle(&cat, cases[i].bytes, cases[i].len);
        CHECK_INT(rc, cases[i].message ? MGR_ERR_UNSUPPORTED : MGR_OK);
        CHECK_TEXT(err.msg, cases[i].message ? cases[i].message : "");
        CHECK_INT(cat.skipped[MGR_SKIP_EXTRA_STATE], cases[i].message ? 0 : 1);
        CHECK_INT(cat.n_stored, 0);
        mgr_catalogue_clear(&cat);
    }
}

typedef struct refusal {
    const char *bytes;
    size_t len;
    int code;
    const char *message;
} refusal;

/* Where REDUCE of the tensor in MODEL(TENSOR(FLOATS, geometry)) lies moves with the geometry, so
 * the words in front of it are checked apart. */
#define A "tensor 'model.a' of 'f.pt' at byte 212: "
#define G(geometry) BYTES(MODEL(TENSOR(FLOATS, geometry)))
#define S(class, key, numel) BYTES(MODEL(TENSOR(STORAGE_OF(class, key, numel), PLAIN)))
#define V3(type) BYTES(MODEL("ctorch._utils\n_rebuild_tensor_v3\n(" FLOATS PLAIN HOOKS type "tR"))

static const refusal refusals[] = {
    {BYTES("\x80\2]."), MGR_ERR_FORMAT, "'f.pt' holds a 'list', expected a dict with 'model'"},
    {BYTES("\x80\2}."), MGR_ERR_FORMAT, "no 'model' entry in 'f.pt'"},
    {BYTES("\x80\2}X\6\0\0\0modelx}s."), MGR_ERR_FORMAT, "no 'model' entry in 'f.pt'"},
    {BYTES("\x80\2}(X\5\0\0\0model}X\5\0\0\0model}u."), MGR_ERR_FORMAT,
     "entry 'model' occurs twice in 'f.pt'"},
    {BYTES("\x80\2}X\4\0\0\0args}(" KEY("a") "N" KEY("a") "Nus."), MGR_ERR_FORMAT,
     "argument 'a' occurs twice in 'f.pt'"},
    {BYTES("\x80\2}X\5\0\0\0model}(" KEY("a") GOOD KEY("a") GOOD "us."), MGR_ERR_FORMAT,
     "tensor 'model.a' occurs twice in 'f.pt'"},
    {BYTES("\x80\2}X\5\0\0\0model}(" KEY("a") "}" KEY("b") GOOD "sX\3\0\0\0a.b" GOOD "us."),
     MGR_ERR_FORMAT, "tensor 'model.a.b' occurs twice in 'f.pt'"},
    {BYTES("\x80\2}X\5\0\0\0modelNs."), MGR_ERR_UNSUPPORTED,
     "entry 'model' of 'f.pt' at byte 77 is a 'None', expected a dict of tensors"},
    {BYTES(MODEL("K\1")), MGR_ERR_UNSUPPORTED,
     "entry 'model.a' of 'f.pt' at byte 84 is a 'int', expected a tensor"},
    {BYTES("\x80\2}X\5\0\0\0model}K\1K\1ss."), MGR_ERR_UNSUPPORTED,
     "a key in entry 'model' of 'f.pt' at byte 78 is no text"},
    {BYTES(MODEL("}q\0" KEY("b") "h\0s")), MGR_ERR_UNSUPPORTED, /* a dict in itself */
     "entry 'model.a.b.b.b.b.b.b.b' of 'f.pt' at byte 84 is a 'dict', expected dicts that do "
     "not share their parts"},
    {BYTES(MODEL("cos\nsystem\n" KEY("a") "\x85R")), MGR_ERR_FORMAT,
     "refusing pickle in 'f.pt' at byte 84: global 'os.system' is not on the allow list"},
    {BYTES(MODEL("ctransformer_engine.pytorch.float8_tensor\nFloat8Tensor\n)\x81")),
     MGR_ERR_UNSUPPORTED,
     "tensor 'model.a' of 'f.pt' at byte 140: FP8 parameters are not supported"},
    {BYTES(MODEL("ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._utils\n_rebuild_tensor_v2\n"
                 "ctransformer_engine.x\nQ\n(t}tR")),
     MGR_ERR_UNSUPPORTED,
     "tensor 'model.a' of 'f.pt' at byte 183: FP8 parameters are not supported"},
    {BYTES(MODEL("ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._utils\n_rebuild_tensor_v2\n"
                 "cmegatron.x\nQ\n(t}tR")),
     MGR_ERR_UNSUPPORTED,
     "tensor 'model.a' of 'f.pt' at byte 173: tensor subclass 'megatron.x.Q' is not supported"},
    {BYTES(MODEL("ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._utils\n_rebuild_tensor_v2\n"
                 "ctorch.distributed.tensor\nDTensor\n(t}tR")),
     MGR_ERR_UNSUPPORTED,
     "tensor 'model.a' of 'f.pt' at byte 193: tensor subclass 'torch.distributed.tensor.DTensor' "
     "is not supported"},
    {BYTES(MODEL("ctorch._tensor\n_rebuild_from_type_v2\n)R")), MGR_ERR_FORMAT,
     "tensor 'model.a' of 'f.pt' at byte 122: damaged arguments of _rebuild_from_type_v2"},
    {BYTES(MODEL("ctorch._utils\n_rebuild_parameter\n(ctransformer_engine.x\nQ\n)RtR")),
     MGR_ERR_UNSUPPORTED,
     "tensor 'model.a' of 'f.pt' at byte 145: FP8 parameters are not supported"},
    /* Float8Tensor._make_in_reduce_ex(...) */
    {BYTES(MODEL("c__builtin__\ngetattr\nctransformer_engine.x\nQ\nX\1\0\0\0m\x86R)R")),
     MGR_ERR_UNSUPPORTED,
     "tensor 'model.a' of 'f.pt' at byte 138: FP8 parameters are not supported"},
    {BYTES(MODEL("ctorch._utils\n_rebuild_parameter\n)R")), MGR_ERR_FORMAT,
     "tensor 'model.a' of 'f.pt' at byte 118: a parameter without its tensor"},
    {BYTES(MODEL("ctorch._utils\n_rebuild_qtensor\n)R")), MGR_ERR_UNSUPPORTED,
     "entry 'model.a' of 'f.pt' at byte 116 is a 'torch._utils._rebuild_qtensor', expected a "
     "tensor"},
    {BYTES(MODEL(V2 "tR")), MGR_ERR_FORMAT,
     "tensor 'model.a' of 'f.pt' at byte 119: wrong number of arguments"},
    {BYTES(MODEL(V2 "N" PLAIN HOOKS "tR")), MGR_ERR_FORMAT,
     "tensor 'model.a' of 'f.pt' at byte 162: its storage is no persistent id"},
    {BYTES(MODEL(V2 "(tQ" PLAIN HOOKS "tR")), MGR_ERR_FORMAT,
     "tensor 'model.a' of 'f.pt' at byte 164: its storage is no persistent id"},
    {S("torch\nFloatStorage", KEY("0"), "K\7"), MGR_ERR_FORMAT,
     A "7 elements of 'FloatStorage' are not the 24 bytes of member 'a/data/0'"},
    {S("torch\nFloatStorage", KEY("0"), "K\5"), MGR_ERR_FORMAT,
     A "5 elements of 'FloatStorage' are not the 24 bytes of member 'a/data/0'"},
    {S("torch\nFloatStorage", KEY("0"), "\x8a\10\6\0\0\0\0\0\0\100"), MGR_ERR_FORMAT,
     "tensor 'model.a' of 'f.pt' at byte 220: 4611686018427387910 elements of 'FloatStorage' are "
     "not the 24 bytes of member 'a/data/0'"},
    {S("torch\nFloatStorage", KEY("0"), "J\377\377\377\377"), MGR_ERR_FORMAT,
     "tensor 'model.a' of 'f.pt' at byte 215: its storage has no valid number of elements"},
    {S("torch\nFloatStorage", KEY("0"), "\x88"), MGR_ERR_FORMAT,
     "tensor 'model.a' of 'f.pt' at byte 211: its storage has no valid number of elements"},
    {S("torch\nFloatStorage", KEY("9"), "K\6"), MGR_ERR_FORMAT,
     A "no member 'a/data/9' in the archive"},
    {S("torch\nFloatStorage", "X\4\0\0\0../x", "K\6"), MGR_ERR_FORMAT,
     "tensor 'model.a' of 'f.pt' at byte 215: its storage key has other characters than letters, "
     "digits, '_.-'"},
    {S("torch\nFloatStorage", "X\0\0\0\0", "K\6"), MGR_ERR_FORMAT,
     "tensor 'model.a' of 'f.pt' at byte 211: its storage key has other characters than letters, "
     "digits, '_.-'"},
    {S("torch\nFloatStorage", "K\0", "K\6"), MGR_ERR_FORMAT,
     "tensor 'model.a' of 'f.pt' at byte 208: its storage key has other characters than letters, "
     "digits, '_.-'"},
    {S("torch\nQInt8Storage", KEY("0"), "K\6"), MGR_ERR_UNSUPPORTED,
     A "element type of 'QInt8Storage' is not supported"},
    {S("torch.storage\nUntypedStorage", KEY("0"), "K\30"), MGR_ERR_FORMAT,
     "tensor 'model.a' of 'f.pt' at byte 222: its storage has no element type"},
    {V3("ctorch\nfloat8_e4m3fn\n"), MGR_ERR_UNSUPPORTED,
     "tensor 'model.a' of 'f.pt' at byte 233: FP8 parameters are not supported"},
    {V3("ctorch\nuint16\n"), MGR_ERR_UNSUPPORTED,
     "tensor 'model.a' of 'f.pt' at byte 226: element type 'torch.uint16' is not supported"},
    {BYTES("\x80\2}X\5\0\0\0model}(" KEY("a") GOOD KEY("b")
               TENSOR(STORAGE_OF("torch\nIntStorage", KEY("0"), "K\6"), PLAIN) "us."),
     MGR_ERR_FORMAT,
     "tensor 'model.b' of 'f.pt' at byte 346: its storage has another type elsewhere"},
    {V3("N"), MGR_ERR_FORMAT,
     "tensor 'model.a' of 'f.pt' at byte 213: its element type is no torch dtype"},
    {G("J\377\377\377\377(K\2K\3t(K\3K\1t"), MGR_ERR_FORMAT,
     "tensor 'model.a' of 'f.pt' at byte 215: its storage offset is no positive number"},
    {G("\x88(K\2K\3t(K\3K\1t"), MGR_ERR_FORMAT,
     "tensor 'model.a' of 'f.pt' at byte 211: its storage offset is no positive number"},
    {G("K\1(K\2K\3t(K\3K\1t"), MGR_ERR_FORMAT, A "it reaches past the end of its storage"},
    {G("K\0(K\2K\4t(K\3K\1t"), MGR_ERR_FORMAT, A "it reaches past the end of its storage"},
    {G("K\0(K\2K\3t(K\4K\1t"), MGR_ERR_FORMAT, A "it reaches past the end of its storage"},
    {G("K\0(K\3K\3t(K\1K\1t"), MGR_ERR_UNSUPPORTED,
     A "it has more elements than its storage (expanded with stride 0)"},
    {G("K\0(\x8a\6\0\0\0\0\0\1K\3t(K\0K\1t"), MGR_ERR_UNSUPPORTED,
     "tensor 'model.a' of 'f.pt' at byte 218: it has more elements than its storage (expanded "
     "with stride 0)"},
    {G("K\0(\x8a\10\0\0\0\0\0\0\0\100K\10t(K\0K\1t"), MGR_ERR_FORMAT,
     "tensor 'model.a' of 'f.pt' at byte 220: its extent overflows 64 bits"},
    {G("K\0(K\3K\3t(\x8a\10\0\0\0\0\0\0\0\177K\1t"), MGR_ERR_FORMAT,
     "tensor 'model.a' of 'f.pt' at byte 220: it reaches past the end of its storage"},
    {G("K\0(K\2K\3t(J\377\377\377\377K\1t"), MGR_ERR_FORMAT,
     "tensor 'model.a' of 'f.pt' at byte 215: its size or stride is no positive number"},
    {G("K\0(K\2K\3t(K\3t"), MGR_ERR_FORMAT,
     "tensor 'model.a' of 'f.pt' at byte 210: size and stride have different lengths"},
    {G("K\0N(K\3t"), MGR_ERR_FORMAT,
     "tensor 'model.a' of 'f.pt' at byte 205: its size or stride is no tuple"},
    {G("K\0(K\1K\1K\1K\1K\1K\1K\1K\1K\1t)"), MGR_ERR_UNSUPPORTED,
     "tensor 'model.a' of 'f.pt' at byte 221: it has too many dimensions"},
    {BYTES(MODEL(V2 FLOATS PLAIN HOOKS "}X\4\0\0\0conj\x88stR")), MGR_ERR_UNSUPPORTED,
     "tensor 'model.a' of 'f.pt' at byte 224: it has metadata (conjugate, negative) that change "
     "its values"},
    {BYTES(MODEL(V2 FLOATS PLAIN HOOKS "]tR")), MGR_ERR_FORMAT,
     "tensor 'model.a' of 'f.pt' at byte 213: its metadata is no dict"},
};

static void test_refusals(void)
{
    for (size_t i = 0; i < sizeof refusals / sizeof refusals[0]; i++) {
        mgr_catalogue cat;
        CHECK_INT(read_pickle(&cat, refusals[i].bytes, refusals[i].len), refusals[i].code);
        CHECK_TEXT(err.msg, refusals[i].message);
        mgr_catalogue_clear(&cat);
    }
}

/* Dicts nested 70 deep, each the only value of the one before; then a key of 2000 bytes. */
static void test_deep(void)
{
    mgr_catalogue cat;
    mgr_buf b = {0};
    int rc = mgr_buf_add(&b, BYTES("\x80\2}X\5\0\0\0model}"), &err);
    for (int i = 0; i < 70; i++)
        rc |= mgr_buf_add(&b, BYTES(KEY("d") "}"), &err);
    for (int i = 0; i < 70; i++)
        rc |= mgr_buf_text(&b, "s", &err);
    rc |= mgr_buf_text(&b, "s.", &err);
    CHECK_INT(rc, MGR_OK);
    CHECK_INT(read_pickle(&cat, b.data, b.len), MGR_ERR_UNSUPPORTED);
    CHECK_HAS(err.msg, ".d.d.d' of 'f.pt' at byte 525 is a 'dict', expected dicts that are not "
                       "nested so deep");
    mgr_catalogue_clear(&cat);
    static char key[2000];
    memset(key, 'k', sizeof key - 1);
    b.len = 0;
    rc = mgr_buf_add(&b, BYTES("\x80\2}X\5\0\0\0model}"), &err);
    rc |= mgr_pickle_text(&b, key, &err);
    rc |= mgr_buf_text(&b, "Nss.", &err);
    CHECK_INT(rc, MGR_OK);
    CHECK_INT(read_pickle(&cat, b.data, b.len), MGR_ERR_UNSUPPORTED);
    CHECK_TEXT(err.msg, "a key in entry 'model' of 'f.pt' at byte 78 is too long");
    mgr_catalogue_clear(&cat);
    mgr_buf_clear(&b);
}

/* What stands for args in odd files. */
static void test_odd_args(void)
{
    static const struct {
        const char *bytes;
        size_t len;
        size_t n_attrs;
        mgr_attr_kind kind;
        const char *text;
    } cases[] = {
        {BYTES("\x80\2}(X\4\0\0\0argsNX\5\0\0\0model}u."), 1, MGR_ATTR_NULL, NULL},
        {BYTES("\x80\2}(X\4\0\0\0argscargparse\nNamespace\n)\x81X\5\0\0\0model}u."), 0,
         MGR_ATTR_NULL, NULL},
        {BYTES("\x80\2}(X\4\0\0\0args}" KEY("a") "cmegatron.x\nE\n" KEY("f") "\x85Rs"
                                                                             "X\5\0\0\0model}u."),
         1, MGR_ATTR_SYMBOL, "E(f)"},
        {BYTES("\x80\2}(X\4\0\0\0argsctypes\nSimpleNamespace\n)R}" KEY("a") "NsbX\5\0\0\0model}u."),
         1, MGR_ATTR_NULL, NULL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        mgr_catalogue cat;
        CHECK_INT(read_pickle(&cat, cases[i].bytes, cases[i].len), MGR_OK);
        CHECK_TEXT(err.msg, "");
        CHECK_INT(cat.n_attrs, cases[i].n_attrs);
        if (cat.n_attrs == 1) {
            CHECK_INT(cat.attrs[0].kind, cases[i].kind);
            CHECK_TEXT(cat.attrs[0].text ? cat.attrs[0].text : "",
                       cases[i].text ? cases[i].text : "");
        }
        mgr_catalogue_clear(&cat);
    }
}

/* One member more, changed or absent. */
static void check_members(const member *members, size_t n, int code, const char *message)
{
    mgr_catalogue cat;
    mgr_buf file = build(BYTES(MODEL(GOOD)), members, n);
    CHECK_INT(read_bytes(&cat, file.data, file.len), code);
    CHECK_TEXT(err.msg, message);
    mgr_catalogue_clear(&cat);
    mgr_buf_clear(&file);
}

static void test_members(void)
{
    member m[N_USUAL + 1];
    memcpy(m, usual, sizeof usual);
    check_members(m, N_USUAL, MGR_OK, "");
    check_members(m, N_USUAL - 1, MGR_ERR_FORMAT, "'f.pt' has no member 'a/version'");
    m[N_USUAL] = (member){"a/constants.pkl", BYTES("x")};
    check_members(m, N_USUAL + 1, MGR_ERR_UNSUPPORTED,
                  "'f.pt' is a TorchScript archive, not a torch.save file");
    m[0] = (member){"a/byteorder", BYTES("big")};
    check_members(m, N_USUAL, MGR_ERR_UNSUPPORTED, "'f.pt' was written on a big-endian machine");
    m[0] = (member){"a/byteorder", BYTES("odd")};
    check_members(m, N_USUAL, MGR_ERR_FORMAT, "member 'a/byteorder' of 'f.pt' is 'odd'");
    m[0] = (member){"a/other", BYTES("x")};
    check_members(m, N_USUAL, MGR_OK, "");
    m[VERSION] = (member){"a/.data/version", BYTES("10")};
    check_members(m, N_USUAL, MGR_OK, "");
    m[VERSION] = (member){"a/version", BYTES("11\n")};
    check_members(m, N_USUAL, MGR_ERR_UNSUPPORTED,
                  "'f.pt' has archive version 11, known are 1 .. 10");
    m[VERSION] = (member){"a/version", BYTES("x")};
    check_members(m, N_USUAL, MGR_ERR_FORMAT, "member 'a/version' of 'f.pt' is 'x', no number");
    m[VERSION] = usual[VERSION];
    m[1] = (member){"a/DATA/0", usual[1].bytes, 24};
    check_members(m, N_USUAL, MGR_ERR_FORMAT,
                  "tensor 'model.a' of 'f.pt' at byte 212: no member 'a/data/0' in the archive");
}

static void test_archive_lies(void)
{
    mgr_catalogue cat;
    mgr_buf file = build(BYTES(MODEL(GOOD)), usual, N_USUAL);
    for (size_t i = 0; i + 10 < file.len; i++)
        if (memcmp(file.data + i, "a/data.pkl", 10) == 0)
            file.data[i + 2] = 'e';
    CHECK_INT(read_bytes(&cat, file.data, file.len), MGR_ERR_FORMAT);
    CHECK_TEXT(err.msg, "'f.pt' has no member 'a/data.pkl'");
    mgr_catalogue_clear(&cat);
    mgr_buf_clear(&file);
    file = build(BYTES(MODEL(GOOD)), usual, N_USUAL);
    /* a compressed storage: the method in both headers of a/data/0 */
    unsigned char *const local = memmem(file.data, file.len, BYTES("a/data/0"));
    unsigned char *const central =
        memmem(local + 1, file.len - (size_t)((char *)local + 1 - file.data), BYTES("a/data/0"));
    local[-30 + 8] = central[-46 + 10] = 8;
    CHECK_INT(read_bytes(&cat, file.data, file.len), MGR_ERR_UNSUPPORTED);
    CHECK_TEXT(err.msg, "tensor 'model.a' of 'f.pt' at byte 212: member 'a/data/0' is compressed");
    mgr_catalogue_clear(&cat);
    local[-30 + 8] = central[-46 + 10] = 0;
    /* the pickle has another CRC than its directory entry */
    file.data[PICKLE + 3] = 'Y';
    CHECK_INT(read_bytes(&cat, file.data, file.len), MGR_ERR_FORMAT);
    CHECK_HAS(err.msg, "member 'a/data.pkl' of 'f.pt' at byte 64: CRC-32 is ");
    mgr_catalogue_clear(&cat);
    file.data[PICKLE + 3] = 'X';
    /* a window of a larger file: offsets count from the start of the file */
    mgr_reader whole, window;
    mgr_buf outer = {0};
    CHECK_INT(mgr_buf_add(&outer, "0123456789", 10, &err), MGR_OK);
    CHECK_INT(mgr_buf_add(&outer, file.data, file.len, &err), MGR_OK);
    mgr_reader_memory(&whole, "f.pt", outer.data, outer.len);
    CHECK_INT(mgr_reader_window(&window, &whole, 10, file.len, &err), MGR_OK);
    err = (mgr_err)MGR_ERR_INIT;
    CHECK_INT(mgr_torch_file_read(&cat, 0, &window, &err), MGR_OK);
    CHECK_TEXT(err.msg, "");
    CHECK_INT(cat.n_stored, 1);
    CHECK(memcmp(outer.data + cat.stored[0].offset, usual[1].bytes, 24) == 0);
    CHECK_INT(cat.records[0].offset, cat.stored[0].offset);
    mgr_catalogue_clear(&cat);
    mgr_buf_clear(&outer);
    mgr_buf_clear(&file);
}

/* torch's compute_crc32=False: no CRC anywhere, so none is checked later either. */
static void test_without_crcs(void)
{
    mgr_catalogue cat;
    mgr_buf file = build(BYTES(MODEL(GOOD)), usual, N_USUAL);
    for (size_t i = 0; i + 46 < file.len; i++) {
        if (memcmp(file.data + i, "PK\3\4", 4) == 0)
            memset(file.data + i + 14, 0, 4);
        if (memcmp(file.data + i, "PK\1\2", 4) == 0)
            memset(file.data + i + 16, 0, 4);
    }
    CHECK_INT(read_bytes(&cat, file.data, file.len), MGR_OK);
    CHECK_TEXT(err.msg, "");
    CHECK_INT(cat.n_stored, 1);
    CHECK_INT(cat.n_records, 0);
    CHECK(cat.n_stored == 1 && cat.stored[0].record == MGR_NONE);
    mgr_catalogue_clear(&cat);
    mgr_buf_clear(&file);
}

static void test_other_formats(void)
{
    static char tar[512];
    memcpy(tar + 257, "ustar", 6);
    static const struct {
        const char *bytes;
        size_t len;
        int code;
        const char *message;
    } cases[] = {
        {BYTES(""), MGR_ERR_FORMAT, "'f.pt' is empty"},
        {BYTES("\x80\2\x8a\12\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19\x2e\x80\2M\xe9\3."),
         MGR_ERR_UNSUPPORTED, "'f.pt' is a torch.save file of before torch 1.6"},
        {BYTES("PYTORCH1xx"), MGR_ERR_UNSUPPORTED, "'f.pt' is a torch.save file of a 2018 preview"},
        {tar, sizeof tar, MGR_ERR_UNSUPPORTED,
         "'f.pt' is a tar archive, as torch.save wrote them before 2018"},
        {BYTES("\x89HDF\r\n\x1a\nxx"), MGR_ERR_UNSUPPORTED,
         "'f.pt' is an HDF5 file, not a torch.save file"},
        {BYTES("GGUF\3\0\0\0"), MGR_ERR_UNSUPPORTED,
         "'f.pt' is a GGUF file, not a torch.save file"},
        {BYTES("\2\0\0\0\0\0\0\0{}"), MGR_ERR_UNSUPPORTED,
         "'f.pt' is a safetensors file, not a torch.save file"},
        {BYTES("\x80\4N."), MGR_ERR_UNSUPPORTED, "'f.pt' is a bare pickle, not a torch.save file"},
        {BYTES("hello"), MGR_ERR_FORMAT, "'f.pt' is not a torch.save file: it starts with 6865"},
        {BYTES("P"), MGR_ERR_FORMAT, "'f.pt' is not a torch.save file: it starts with 5000"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        mgr_catalogue cat;
        CHECK_INT(read_bytes(&cat, cases[i].bytes, cases[i].len), cases[i].code);
        CHECK_TEXT(err.msg, cases[i].message);
        CHECK(cases[i].code != MGR_ERR_UNSUPPORTED || err.hint[0]);
        mgr_catalogue_clear(&cat);
    }
}

static void test_truncation_and_memory(void)
{
    mgr_catalogue cat;
    mgr_buf file = build(BYTES(MODEL(GOOD)), usual, N_USUAL);
    for (size_t len = 0; len < file.len; len++) {
        char *const copy = malloc(len ? len : 1);
        CHECK(copy != NULL);
        if (!copy)
            break;
        memcpy(copy, file.data, len);
        CHECK_INT(read_bytes(&cat, copy, len), MGR_ERR_FORMAT);
        CHECK_INT(cat.n_stored, 0);
        mgr_catalogue_clear(&cat);
        free(copy);
    }
    int rc = MGR_ERR_NOMEM;
    for (uint64_t k = 1; rc == MGR_ERR_NOMEM && k < 200; k++) {
        mgr_alloc_fail_at(k);
        rc = read_bytes(&cat, file.data, file.len);
        mgr_catalogue_clear(&cat);
    }
    mgr_alloc_fail_at(0);
    CHECK_INT(rc, MGR_OK);
    /* any bit of the pickle wrong, behind CRCs that are not there */
    for (size_t i = 0; i + 46 < file.len; i++) {
        if (memcmp(file.data + i, "PK\3\4", 4) == 0)
            memset(file.data + i + 14, 0, 4);
        if (memcmp(file.data + i, "PK\1\2", 4) == 0)
            memset(file.data + i + 16, 0, 4);
    }
    for (size_t i = 8 * PICKLE; i < 8 * (PICKLE + sizeof MODEL(GOOD) - 1); i++) {
        file.data[i / 8] = (char)(file.data[i / 8] ^ 1 << i % 8);
        rc = read_bytes(&cat, file.data, file.len);
        CHECK(rc == MGR_OK || rc == MGR_ERR_FORMAT || rc == MGR_ERR_UNSUPPORTED);
        CHECK(rc != MGR_OK || cat.n_stored + cat.n_attrs + cat.skipped[MGR_SKIP_OTHER] > 0);
        mgr_catalogue_clear(&cat);
        file.data[i / 8] = (char)(file.data[i / 8] ^ 1 << i % 8);
    }
    mgr_buf_clear(&file);
}

/* A file that torch wrote (tools/gen/torch_corpus.py), whole and cut anywhere. */
static void test_real_file(void)
{
    mgr_catalogue cat;
    mgr_reader reader;
    char *bytes = NULL;
    err = (mgr_err)MGR_ERR_INIT;
    CHECK_INT(mgr_reader_open(&reader, MGR_TEST_DATA "/corpus/torch/megatron.pt", &err), MGR_OK);
    CHECK_TEXT(err.msg, "");
    CHECK_INT(mgr_alloc(&bytes, (size_t)reader.size, 1, &err), MGR_OK);
    CHECK_INT(mgr_reader_read(&reader, 0, bytes, (size_t)reader.size, &err), MGR_OK);
    CHECK_INT(read_bytes(&cat, bytes, (size_t)reader.size), MGR_OK);
    CHECK_TEXT(err.msg, "");
    CHECK_INT(cat.n_stored, 6);
    CHECK_INT(cat.n_records, 4);
    CHECK_INT(cat.skipped[MGR_SKIP_EXTRA_STATE], 3);
    const mgr_attr *const attr = mgr_catalogue_attr(&cat, 5, "args.model_type");
    CHECK(attr != NULL);
    CHECK_TEXT(attr ? attr->text : "", "ModelType(1)");
    for (size_t i = 0; i < cat.n_stored; i++) {
        const mgr_stored *const s = &cat.stored[i];
        if (strcmp(s->name, "model.decoder.layers.0.mlp.linear_fc2.weight") != 0)
            continue;
        CHECK(s->shape[0] == 4 && s->shape[1] == 16 && s->stride[0] == 1 && s->stride[1] == 4);
        /* element (1, 2) of the transposed view at element 200 of 0, 1, 2, ...: 200 + 1 + 2*4 */
        const unsigned char *const p = (const unsigned char *)bytes + s->offset + 2 * (1 + 2 * 4);
        CHECK(mgr_bf16_to_f32((uint16_t)(p[0] | p[1] << 8)) == 209.0F);
    }
    mgr_catalogue_clear(&cat);
    for (size_t len = 0; len < reader.size; len++) {
        CHECK_INT(read_bytes(&cat, bytes, len), MGR_ERR_FORMAT);
        CHECK_INT(cat.n_stored, 0);
        mgr_catalogue_clear(&cat);
    }
    mgr_free(bytes);
    mgr_reader_close(&reader);
}

int main(void)
{
    test_tensors();
    test_untyped();
    test_attributes();
    test_shared_text();
    test_extra_state();
    test_refusals();
    test_deep();
    test_odd_args();
    test_members();
    test_archive_lies();
    test_without_crcs();
    test_other_formats();
    test_truncation_and_memory();
    test_real_file();
    return CHECK_DONE();
}
