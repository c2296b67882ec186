/* safetensors: good files, a table of lies, truncation at every byte, headers as we write them. */
#include "fmt/safetensors.h"

#include <stdlib.h>
#include <string.h>

#include "core/le.h"
#include "core/mem.h"
#include "fmt/json.h"
#include "support/check.h"

/* A file of this header and `data_len` bytes of data, on the heap and not a byte larger. */
static unsigned char *make(const char *header, size_t data_len, size_t *len)
{
    const size_t n = strlen(header);
    *len = 8 + n + data_len;
    unsigned char *file = calloc(1, *len);
    mgr_store_u64(file, n);
    /* NOLINTNEXTLINE(bugprone-not-null-terminated-result): a file, no string */
    memcpy(file + 8, header, n);
    return file;
}

static int read_bytes(mgr_catalogue *cat, const unsigned char *bytes, size_t len, mgr_err *err)
{
    mgr_reader reader;
    *err = (mgr_err)MGR_ERR_INIT;
    mgr_reader_memory(&reader, "f", bytes, len);
    return mgr_safetensors_read(cat, 7, &reader, err);
}

static int read_text(mgr_catalogue *cat, const char *header, size_t data_len, mgr_err *err)
{
    size_t len = 0;
    unsigned char *file = make(header, data_len, &len);
    const int rc = read_bytes(cat, file, len, err);
    free(file);
    return rc;
}

static const char good[] =
    "{\"b\":{\"dtype\":\"F32\",\"shape\":[2,3,4],\"data_offsets\":[6,102]},"
    "\"__metadata__\":{\"format\":\"pt\",\"\":\"\"},"
    "\"a\":{\"data_offsets\":[0,6],\"shape\":[3],\"dtype\":\"BF16\",\"extra\":[null,{}]},"
    "\"none\":{\"dtype\":\"I64\",\"shape\":[5,0],\"data_offsets\":[6,6]},"
    "\"scalar\":{\"dtype\":\"U16\",\"shape\":[],\"data_offsets\":[102,104]},"
    "\"\\u00e9\":{\"dtype\":\"F4\",\"shape\":[2,1],\"data_offsets\":[104,105]}} \n";

static void test_good(void)
{
    mgr_catalogue cat = {0};
    mgr_err err;
    CHECK_INT(read_text(&cat, good, 105, &err), MGR_OK);
    CHECK_TEXT(err.msg, "");
    CHECK_INT(cat.n_stored, 5);
    if (cat.n_stored == 5) {
        const mgr_stored *b = &cat.stored[0], *a = &cat.stored[1]; /* the order of the header */
        const uint64_t data = 8 + sizeof good - 1;
        CHECK_TEXT(b->name, "b");
        CHECK_INT(b->file, 7);
        CHECK_INT(b->record, MGR_NONE);
        CHECK_INT(b->dtype, MGR_DTYPE_F32);
        CHECK_INT(b->ndim, 3);
        CHECK(b->shape[0] == 2 && b->shape[1] == 3 && b->shape[2] == 4 && b->shape[3] == 0);
        CHECK(b->stride[0] == 12 && b->stride[1] == 4 && b->stride[2] == 1 && b->stride[3] == 0);
        CHECK_INT(b->offset, data + 6);
        CHECK_TEXT(a->name, "a");
        CHECK_INT(a->dtype, MGR_DTYPE_BF16);
        CHECK_INT(a->offset, data);
        CHECK_INT(cat.stored[2].dtype, MGR_DTYPE_I64);
        CHECK_INT(cat.stored[2].shape[1], 0);
        CHECK_INT(cat.stored[3].dtype, MGR_DTYPE_OTHER);
        CHECK_INT(cat.stored[3].ndim, 0);
        CHECK_TEXT(cat.stored[4].name, "\xc3\xa9");
        CHECK_INT(cat.stored[4].dtype, MGR_DTYPE_OTHER);
    }
    mgr_catalogue_clear(&cat);
}

static void test_dtypes(void)
{
    static const struct {
        const char *name;
        unsigned bits;
        mgr_dtype dtype;
    } types[] = {
        {"BOOL", 8, MGR_DTYPE_BOOL},
        {"U8", 8, MGR_DTYPE_U8},
        {"I8", 8, MGR_DTYPE_I8},
        {"I16", 16, MGR_DTYPE_I16},
        {"F16", 16, MGR_DTYPE_F16},
        {"BF16", 16, MGR_DTYPE_BF16},
        {"I32", 32, MGR_DTYPE_I32},
        {"F32", 32, MGR_DTYPE_F32},
        {"F64", 64, MGR_DTYPE_F64},
        {"I64", 64, MGR_DTYPE_I64},
        {"F4", 4, MGR_DTYPE_OTHER},
        {"F6_E2M3", 6, MGR_DTYPE_OTHER},
        {"F6_E3M2", 6, MGR_DTYPE_OTHER},
        {"F8_E5M2", 8, MGR_DTYPE_OTHER},
        {"F8_E4M3", 8, MGR_DTYPE_F8_E4M3},
        {"F8_E8M0", 8, MGR_DTYPE_OTHER},
        {"F8_E4M3FNUZ", 8, MGR_DTYPE_OTHER},
        {"F8_E5M2FNUZ", 8, MGR_DTYPE_OTHER},
        {"U16", 16, MGR_DTYPE_OTHER},
        {"U32", 32, MGR_DTYPE_OTHER},
        {"C64", 64, MGR_DTYPE_OTHER},
        {"U64", 64, MGR_DTYPE_OTHER},
    };
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        char header[128];
        mgr_catalogue cat = {0};
        mgr_err err;
        snprintf(header, sizeof header,
                 "{\"t\":{\"dtype\":\"%s\",\"shape\":[4],\"data_offsets\":[0,%u]}}", types[i].name,
                 types[i].bits / 2);
        CHECK_INT(read_text(&cat, header, types[i].bits / 2, &err), MGR_OK);
        CHECK_TEXT(err.msg, "");
        CHECK_INT(cat.n_stored == 1 ? cat.stored[0].dtype : MGR_DTYPE_NONE, types[i].dtype);
        mgr_catalogue_clear(&cat);
    }
}

/* "t" of F32[1] unless the lie says otherwise. */
#define T(name, dtype, shape, offsets)                                                             \
    "\"" name "\":{\"dtype\":" dtype ",\"shape\":" shape ",\"data_offsets\":" offsets "}"
#define F32 "\"F32\""
#define MSG(text) "'f': tensor 't'" text

static const struct {
    const char *header;
    size_t data_len;
    int code;
    const char *message;
} lies[] = {
    /* the header as text */
    {"", 0, MGR_ERR_FORMAT, "'f': the header does not begin with '{' at byte 8"},
    {" {}", 0, MGR_ERR_FORMAT, "'f': the header does not begin with '{' at byte 8"},
    {"[]", 0, MGR_ERR_FORMAT, "'f': the header does not begin with '{' at byte 8"},
    {"{", 0, MGR_ERR_FORMAT, "'f' is not valid JSON at byte 9: '\"' expected"},
    {"{}x", 0, MGR_ERR_FORMAT, "'f' is not valid JSON at byte 10: the end expected"},
    {"{}{}", 0, MGR_ERR_FORMAT, "'f' is not valid JSON at byte 10: the end expected"},
    {"{\"t\":1,\"t\":2}", 0, MGR_ERR_FORMAT, "'f': tensor 't': is no object"},
    {"{\"a\":\"\xff\"}", 0, MGR_ERR_FORMAT, "'f' is not valid JSON at byte 14: no UTF-8"},
    {"{\"a\\u0000\":{}}", 0, MGR_ERR_FORMAT, "'f' is not valid JSON at byte 17: a NUL in a text"},
    {"{\"a\":[18446744073709551615]}", 0, MGR_ERR_FORMAT,
     "'f' is not valid JSON at byte 14: a number outside 64 bits"},
    {"{\"a\":NaN}", 0, MGR_ERR_FORMAT, "'f' is not valid JSON at byte 13: a value expected"},
    {"{}", 1, MGR_ERR_FORMAT, "'f': the last tensor ends at byte 10, the file at byte 11"},

    {"{\"a\":{\"dtype\":\"\\ud800\"}}", 0, MGR_ERR_FORMAT,
     "'f' is not valid JSON at byte 30: half of a surrogate pair"},
    {"{\"a\":01}", 0, MGR_ERR_FORMAT,
     "'f' is not valid JSON at byte 13: a number that begins with 0"},
    {"{\"a\":1.}", 0, MGR_ERR_FORMAT, "'f' is not valid JSON at byte 15: a digit expected"},
    {"{\"a\":\"\\q\"}", 0, MGR_ERR_FORMAT, "'f' is not valid JSON at byte 16: unknown escape"},
    {"{\"a\":[1 2]}", 0, MGR_ERR_FORMAT, "'f' is not valid JSON at byte 16: ',' or ']' expected"},
    {"{" T("t", F32, "[0]", "[0,0]") "," T("t", F32, "[0]", "[0,0]") "}", 0, MGR_ERR_FORMAT,
     "'f': two tensors are called 't'"},
    {"{\"t\":{\"dtype\":\"F32\",\"dtype\":\"F32\"}}", 0, MGR_ERR_FORMAT,
     "'f': tensor 't': 'dtype' stands there twice"},

    /* metadata */
    {"{\"__metadata__\":{},\"__metadata__\":{}}", 0, MGR_ERR_FORMAT,
     "'f': '__metadata__' stands there twice"},
    {"{\"__metadata__\":{\"a\":\"b\",\"a\":\"c\"}}", 0, MGR_ERR_FORMAT,
     "'f': a key of '__metadata__' stands there twice"},
    {"{\"__metadata__\":[]}", 0, MGR_ERR_FORMAT, "'f': '__metadata__' is no object"},
    {"{\"__metadata__\":{\"a\":\"b\",\"\x1b\":1}}", 0, MGR_ERR_FORMAT,
     "'f' is not valid JSON at byte 34: a control character in a text"},
    {"{\"__metadata__\":{\"a\":\"b\",\"c\":1}}", 0, MGR_ERR_FORMAT,
     "'f': '__metadata__': 'c' is no text"},
    {"{\"__metadata__\":{\"a\":null}}", 0, MGR_ERR_FORMAT, "'f': '__metadata__': 'a' is no text"},

    /* fields */
    {"{\"t\":[]}", 0, MGR_ERR_FORMAT, MSG(": is no object")},
    {"{\"\\u001b[2J\":null}", 0, MGR_ERR_FORMAT, "'f': tensor '?[2J': is no object"},
    {"{\"t\":{}}", 0, MGR_ERR_FORMAT, MSG(": has no 'dtype' text")},
    {"{" T("t", "1", "[1]", "[0,4]") "}", 4, MGR_ERR_FORMAT, MSG(": has no 'dtype' text")},
    {"{" T("t", "\"F128\"", "[1]", "[0,4]") "}", 4, MGR_ERR_UNSUPPORTED,
     MSG(": unknown dtype 'F128'")},
    {"{" T("t", "\"f32\"", "[1]", "[0,4]") "}", 4, MGR_ERR_UNSUPPORTED,
     MSG(": unknown dtype 'f32'")},
    {"{" T("t", "\"\"", "[1]", "[0,4]") "}", 4, MGR_ERR_UNSUPPORTED, MSG(": unknown dtype ''")},
    {"{\"t\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4, MGR_ERR_FORMAT,
     MSG(": has no 'shape' array")},
    {"{" T("t", F32, "1", "[0,4]") "}", 4, MGR_ERR_FORMAT, MSG(": has no 'shape' array")},
    {"{" T("t", F32, "{}", "[0,4]") "}", 4, MGR_ERR_FORMAT, MSG(": has no 'shape' array")},
    {"{" T("t", F32, "[-1]", "[0,4]") "}", 4, MGR_ERR_FORMAT,
     MSG(": 'shape' must hold whole numbers that are not negative")},
    {"{" T("t", F32, "[1.0]", "[0,4]") "}", 4, MGR_ERR_FORMAT,
     MSG(": 'shape' must hold whole numbers that are not negative")},
    {"{" T("t", F32, "[\"1\"]", "[0,4]") "}", 4, MGR_ERR_FORMAT,
     MSG(": 'shape' must hold whole numbers that are not negative")},
    {"{" T("t", F32, "[true]", "[0,4]") "}", 4, MGR_ERR_FORMAT,
     MSG(": 'shape' must hold whole numbers that are not negative")},
    {"{" T("t", F32, "[1,1,1,1,1,1,1,1,1]", "[0,4]") "}", 4, MGR_ERR_UNSUPPORTED,
     MSG(": 9 dimensions, at most 8 are supported")},
    {"{\"t\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, MGR_ERR_FORMAT,
     MSG(": 'data_offsets' must be two whole numbers")},
    {"{" T("t", F32, "[1]", "[0]") "}", 4, MGR_ERR_FORMAT,
     MSG(": 'data_offsets' must be two whole numbers")},
    {"{" T("t", F32, "[1]", "[0,4,4]") "}", 4, MGR_ERR_FORMAT,
     MSG(": 'data_offsets' must be two whole numbers")},
    {"{" T("t", F32, "[1]", "[0,4.0]") "}", 4, MGR_ERR_FORMAT,
     MSG(": 'data_offsets' must be two whole numbers")},
    {"{" T("t", F32, "[1]", "[-4,0]") "}", 4, MGR_ERR_FORMAT,
     MSG(": 'data_offsets' must be two whole numbers")},
    {"{" T("t", F32, "[1]", "[0,null]") "}", 4, MGR_ERR_FORMAT,
     MSG(": 'data_offsets' must be two whole numbers")},

    /* sizes */
    {"{" T("t", F32, "[1]", "[4,0]") "}", 4, MGR_ERR_FORMAT,
     MSG(": data_offsets [4, 0] end before they begin")},
    {"{" T("t", F32, "[1]", "[0,4]") "}", 3, MGR_ERR_FORMAT,
     MSG(": data_offsets [0, 4] pass the end of the data (3 bytes from byte 62)")},
    {"{" T("t", F32, "[1]", "[9223372036854775803,9223372036854775807]") "}", 4, MGR_ERR_FORMAT,
     MSG(": data_offsets [9223372036854775803, 9223372036854775807] pass the end of the data (4 "
         "bytes from byte 98)")},
    {"{" T("t", F32, "[2]", "[0,4]") "}", 4, MGR_ERR_FORMAT,
     MSG(" at byte 62: data_offsets give 4 bytes, dtype and shape need 8")},
    {"{" T("t", F32, "[0]", "[0,4]") "}", 4, MGR_ERR_FORMAT,
     MSG(" at byte 62: data_offsets give 4 bytes, dtype and shape need 0")},
    {"{" T("t", F32, "[1]", "[0,0]") "}", 0, MGR_ERR_FORMAT,
     MSG(" at byte 62: data_offsets give 0 bytes, dtype and shape need 4")},
    {"{" T("t", "\"F4\"", "[3]", "[0,1]") "}", 1, MGR_ERR_FORMAT,
     MSG(": 3 elements of 4 bits are no whole bytes")},
    {"{" T("t", F32, "[4294967296,4294967296]", "[0,0]") "}", 0, MGR_ERR_FORMAT,
     MSG(": 'shape' is too large")},
    {"{" T("t", F32, "[4611686018427387904]", "[0,0]") "}", 0, MGR_ERR_FORMAT,
     MSG(": 'shape' is too large")},
    {"{" T("t", F32, "[4294967296,4294967296,0]", "[0,0]") "}", 0, MGR_ERR_FORMAT,
     MSG(": 'shape' is too large")},

    /* tiling */
    {"{" T("t", F32, "[1]", "[4,8]") "}", 8, MGR_ERR_FORMAT,
     "'f': tensor 't' begins at byte 66, the data before it ends at byte 62"},
    {"{" T("t", F32, "[1]", "[0,4]") "," T("u", F32, "[1]", "[5,9]") "}", 9, MGR_ERR_FORMAT,
     "'f': tensor 'u' begins at byte 120, the data before it ends at byte 119"},
    {"{" T("t", F32, "[1]", "[0,4]") "," T("u", F32, "[1]", "[3,7]") "}", 7, MGR_ERR_FORMAT,
     "'f': tensors 't' and 'u' overlap at byte 118"},
    {"{" T("t", F32, "[1]", "[0,4]") "," T("u", F32, "[1]", "[0,4]") "}", 4, MGR_ERR_FORMAT,
     "'f': tensors 't' and 'u' overlap at byte 115"},
    {"{" T("t", F32, "[2]", "[0,8]") "," T("u", F32, "[0]", "[4,4]") "}", 8, MGR_ERR_FORMAT,
     "'f': tensors 't' and 'u' overlap at byte 119"},
    {"{" T("t", F32, "[1]", "[0,4]") "}", 5, MGR_ERR_FORMAT,
     "'f': the last tensor ends at byte 66, the file at byte 67"},
    {"{" T("t", F32, "[0]", "[4,4]") "}", 4, MGR_ERR_FORMAT,
     "'f': tensor 't' begins at byte 66, the data before it ends at byte 62"},
};

static void test_lies(void)
{
    for (size_t i = 0; i < sizeof lies / sizeof lies[0]; i++) {
        mgr_catalogue cat = {0};
        mgr_err err;
        CHECK_INT(read_text(&cat, lies[i].header, lies[i].data_len, &err), lies[i].code);
        CHECK_TEXT(err.msg, lies[i].message);
        CHECK_INT(cat.n_stored, 0);
        mgr_catalogue_clear(&cat);
    }
}

/* Lies in the length word, and padding that is no space. */
static void test_length(void)
{
    static const struct {
        uint64_t length;
        const char *message;
    } words[] = {
        {3, "'f' is truncated: the header ends at byte 11, the file at byte 10"},
        {100000000, "'f' is truncated: the header ends at byte 100000008, the file at byte 10"},
        {100000001, "'f': the header has 100000001 bytes, at most 100000000 are allowed"},
        {UINT64_MAX,
         "'f': the header has 18446744073709551615 bytes, at most 100000000 are allowed"},
        {UINT64_MAX - 7,
         "'f': the header has 18446744073709551608 bytes, at most 100000000 are allowed"},
        {1, "'f' is not valid JSON at byte 9: '\"' expected"},
        {0, "'f': the header does not begin with '{' at byte 8"},
    };
    unsigned char bytes[] = "........{}\0";
    mgr_catalogue cat = {0};
    mgr_err err;
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
        mgr_store_u64(bytes, words[i].length);
        CHECK_INT(read_bytes(&cat, bytes, 10, &err), MGR_ERR_FORMAT);
        CHECK_TEXT(err.msg, words[i].message);
    }
    mgr_store_u64(bytes, 2);
    CHECK_INT(read_bytes(&cat, bytes, 10, &err), MGR_OK); /* no tensors is no lie */
    mgr_store_u64(bytes, 3);                              /* padding with NUL */
    CHECK_INT(read_bytes(&cat, bytes, 11, &err), MGR_ERR_FORMAT);
    CHECK_HAS(err.msg, "'f' is not valid JSON at byte 10: the end expected");
    CHECK_INT(read_bytes(&cat, bytes, 7, &err), MGR_ERR_FORMAT);
    CHECK_TEXT(err.msg, "'f' has 7 bytes, a safetensors file begins with 8");
    CHECK_INT(cat.n_stored, 0);
    mgr_catalogue_clear(&cat);
}

static void test_tolerated(void)
{
    mgr_catalogue cat = {0};
    mgr_err err;
    CHECK_INT(read_text(&cat, "{\"__metadata__\":null}", 0, &err), MGR_OK);
    CHECK_INT(read_text(&cat,
                        "{\"__metadata__\":{\"\\ud83d\\ude00\\u00e9\":\"\\\"\\/\xe2\x82\xac\"}}", 0,
                        &err),
              MGR_OK);
    CHECK_INT(read_text(&cat,
                        "{"
                        "\"t\":{\"x\":[1,-0.5e+3,{\"y\":[[],{}]},null,true],\"dtype\":\"F32\","
                        "\"shape\":[0],\"data_offsets\":[0,0]}"
                        "}",
                        0, &err),
              MGR_OK);
    mgr_catalogue_clear(&cat);
    CHECK_INT(read_text(&cat, "{ \n\"__metadata__\" : {} }\t\n ", 0, &err), MGR_OK);
    /* no product overflows before the 0 */
    CHECK_INT(read_text(&cat, "{" T("t", F32, "[0,4294967296,4294967296]", "[0,0]") "}", 0, &err),
              MGR_OK);
    CHECK_INT(cat.n_stored, 1);
    mgr_catalogue_clear(&cat);
}

static void check_truncated(const unsigned char *file, size_t len)
{
    for (size_t n = 0; n < len; n++) {
        mgr_catalogue cat = {0};
        mgr_err err;
        unsigned char *cut = malloc(n ? n : 1);
        memcpy(cut, file, n);
        CHECK_INT(read_bytes(&cat, cut, n, &err), MGR_ERR_FORMAT);
        CHECK_INT(cat.n_stored, 0);
        mgr_catalogue_clear(&cat);
        free(cut);
    }
}

static void test_truncated(void)
{
    static const struct {
        const char *header;
        size_t data_len;
    } fixtures[] = {
        {good, 105},
        {"{}", 0},
        {"{" T("t", F32, "[1]", "[0,4]") "}      ", 4},
        {"{" T("t", F32, "[0]", "[0,0]") "}", 0},
    };
    for (size_t i = 0; i < sizeof fixtures / sizeof fixtures[0]; i++) {
        size_t len = 0;
        mgr_catalogue cat = {0};
        mgr_err err;
        unsigned char *file = make(fixtures[i].header, fixtures[i].data_len, &len);
        CHECK_INT(read_bytes(&cat, file, len, &err), MGR_OK);
        mgr_catalogue_clear(&cat);
        check_truncated(file, len);
        free(file);
    }
}

static const uint64_t shape_ab[] = {2, 3};
static const uint64_t shape_0[] = {5, 0};

static const mgr_safetensors_entry entries[] = {
    {"z\"\n\xc3\xa9", MGR_DTYPE_BF16, 2, shape_ab, 4, 16},
    {"scalar", MGR_DTYPE_F32, 0, NULL, 0, 4},
    {"none", MGR_DTYPE_F16, 2, shape_0, 16, 16},
};

static const char written[] =
    "{\"__metadata__\":{\"format\":\"pt\"},"
    "\"z\\\"\\n\xc3\xa9\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[4,16]},"
    "\"scalar\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]},"
    "\"none\":{\"dtype\":\"F16\",\"shape\":[5,0],\"data_offsets\":[16,16]}}";

static void test_header(void)
{
    static const uint32_t aligns[] = {8, 64, 4096};
    for (size_t i = 0; i < 3; i++) {
        mgr_buf out = {0};
        mgr_catalogue cat = {0};
        mgr_err err = MGR_ERR_INIT;
        CHECK_INT(mgr_buf_text(&out, "before", &err), MGR_OK); /* it appends */
        CHECK_INT(mgr_safetensors_header(entries, 3, aligns[i], &out, &err), MGR_OK);
        const size_t len = out.len - 6;
        CHECK_INT(len % aligns[i], 0);
        CHECK(len - (8 + sizeof written - 1) < aligns[i]); /* and not more padding than needed */
        CHECK_INT(mgr_load_u64(out.data + 6), len - 8);
        CHECK(memcmp(out.data, "before", 6) == 0);
        CHECK(memcmp(out.data + 14, written, sizeof written - 1) == 0);
        CHECK_INT(strspn(out.data + 14 + sizeof written - 1, " "), len - 8 - (sizeof written - 1));

        CHECK_INT(mgr_buf_add(&out, "0123456789abcdef", 16, &err), MGR_OK);
        const unsigned char *file = (const unsigned char *)out.data + 6;
        CHECK_INT(read_bytes(&cat, file, len + 16, &err), MGR_OK);
        CHECK_INT(cat.n_stored, 3);
        CHECK_TEXT(cat.n_stored ? cat.stored[0].name : "", entries[0].name);
        CHECK_INT(cat.n_stored ? cat.stored[0].offset : 0, len + 4);
        mgr_catalogue_clear(&cat);
        mgr_buf_clear(&out);
    }
}

static void check_refused(const mgr_safetensors_entry *list, size_t n, uint32_t align,
                          const char *message)
{
    mgr_buf out = {0};
    mgr_err err = MGR_ERR_INIT;
    CHECK_INT(mgr_buf_text(&out, "kept", &err), MGR_OK);
    CHECK_INT(mgr_safetensors_header(list, n, align, &out, &err), MGR_ERR_INTERNAL);
    CHECK_TEXT(err.msg, message);
    CHECK_INT(err.code, MGR_ERR_INTERNAL);
    CHECK_TEXT(out.data, "kept");
    mgr_buf_clear(&out);
}

/* Plans that no reader would take are not written. */
static void test_header_refused(void)
{
    static const uint64_t one[] = {1}, huge[] = {UINT64_C(1) << 62, 4};
    const mgr_safetensors_entry a = {"a", MGR_DTYPE_F32, 0, NULL, 0, 4};
    mgr_safetensors_entry b = {"b", MGR_DTYPE_F32, 1, one, 0, 4};
    mgr_safetensors_entry two[2] = {a, a};
    check_refused(&a, 1, 4, "header alignment 4");
    check_refused(&a, 1, 0, "header alignment 0");
    check_refused(&a, 1, 96, "header alignment 96");
    check_refused(two, 2, 8, "'planned file': tensors 'a' and 'a' overlap at byte 0");
    two[1] = (mgr_safetensors_entry){"a", MGR_DTYPE_F32, 0, NULL, 4, 8};
    check_refused(two, 2, 8, "two tensors are called 'a'");
    two[1] = (mgr_safetensors_entry){"b", MGR_DTYPE_F32, 0, NULL, 5, 9};
    check_refused(two, 2, 8,
                  "'planned file': tensor 'b' begins at byte 5, the data before it ends at byte 4");
    b.name = "__metadata__";
    check_refused(&b, 1, 8, "tensor '__metadata__' has no place in safetensors");
    b.name = "\xff";
    check_refused(&b, 1, 8, "a text for JSON is not valid UTF-8");
    b.name = "b";
    b.dtype = MGR_DTYPE_OTHER;
    check_refused(&b, 1, 8, "tensor 'b' has no place in safetensors");
    b.dtype = MGR_DTYPE_F32;
    b.ndim = MGR_MAX_NDIM + 1;
    check_refused(&b, 1, 8, "tensor 'b' has no place in safetensors");
    b.ndim = 1;
    b.end = 3;
    check_refused(&b, 1, 8, "tensor 'b': bytes 0 .. 3 do not fit its shape");
    b.begin = 4;
    check_refused(&b, 1, 8, "tensor 'b': bytes 4 .. 3 do not fit its shape");
    b = (mgr_safetensors_entry){"b", MGR_DTYPE_F32, 2, huge, 0, 0};
    check_refused(&b, 1, 8, "tensor 'b': bytes 0 .. 0 do not fit its shape");
}

/* Every failed allocation is reported; nothing leaks, nothing half-done stays. */
static void test_memory(void)
{
    size_t len = 0;
    unsigned char *file = make(good, 105, &len);
    int rc = MGR_ERR_NOMEM;
    for (uint64_t k = 1; rc != MGR_OK && k < 100; k++) {
        mgr_catalogue cat = {0};
        mgr_err err;
        mgr_alloc_fail_at(k);
        rc = read_bytes(&cat, file, len, &err);
        mgr_alloc_fail_at(0);
        CHECK_INT(rc, rc == MGR_OK ? MGR_OK : MGR_ERR_NOMEM);
        CHECK_INT(err.code, rc);
        CHECK(rc != MGR_OK || k > 3);
        mgr_catalogue_clear(&cat);
    }
    CHECK_INT(rc, MGR_OK);
    rc = MGR_ERR_NOMEM;
    for (uint64_t k = 1; rc != MGR_OK && k < 100; k++) {
        mgr_buf out = {0};
        mgr_err err = MGR_ERR_INIT;
        mgr_alloc_fail_at(k);
        rc = mgr_safetensors_header(entries, 3, 4096, &out, &err);
        mgr_alloc_fail_at(0);
        CHECK_INT(rc, rc == MGR_OK ? MGR_OK : MGR_ERR_NOMEM);
        CHECK(rc == MGR_OK || out.len == 0);
        mgr_buf_clear(&out);
    }
    CHECK_INT(rc, MGR_OK);
    free(file);
}

static void check_json(const char *text, int indent, const char *expected)
{
    json_t *value = NULL;
    mgr_buf out = {0};
    mgr_err err = MGR_ERR_INIT;
    CHECK_INT(mgr_json_parse(&value, "j", text, strlen(text), &err), MGR_OK);
    if (value)
        CHECK_INT(mgr_json_dump(value, indent, &out, &err), MGR_OK);
    CHECK_TEXT(out.data, expected);
    mgr_buf_clear(&out);
    json_decref(value);
}

/* Text of JSON files for people and for Python: order kept, reals are reals, ints are ints. */
static void test_json(void)
{
    check_json(
        " { \"z\" : 1e-05, \"a\": [1, -2, 1.0, 1e22, 0.1, 1e15, -0.0, 123456.789, 1e6],"
        "\"b\": {}, \"c\": [], \"d\": [true,false,null] } ",
        0,
        "{\"z\":1e-05,\"a\":[1,-2,1.0,1e+22,0.1,1e+15,-0.0,123456.789,1000000.0],\"b\":{},\"c\":[],"
        "\"d\":[true,false,null]}");
    check_json("{\"b\":[1,{\"x\":\"\\u00e9\\n\\\"/\"}],\"a\":9223372036854775807}", 2,
               "{\n  \"b\": [\n    1,\n    {\n      \"x\": \"\xc3\xa9\\n\\\"/\"\n    }\n  ],\n"
               "  \"a\": 9223372036854775807\n}\n");
    json_t *value = NULL;
    mgr_err err = MGR_ERR_INIT;
    CHECK_INT(mgr_json_parse(&value, "j", "{\"a\":1,\"a\":1}", 13, &err), MGR_ERR_FORMAT);
    CHECK_TEXT(err.msg, "'j' is not valid JSON at byte 10: duplicate object key near '\"a\"'");
    CHECK(value == NULL);
}

/* What Python writes comes back as it was, and no text of a file passes for it. */
static void test_numbers_that_json_has_not(void)
{
    static const struct {
        const char *text;
        int rc;
    } cases[] = {{"{\"NaN\":[NaN,-Infinity,Infinity],\"a\":\"\\u0001NaN, \\\"b\\\": 1\"}", MGR_OK},
                 {"[\"\\u0001Infinity\"]", MGR_ERR_FORMAT},
                 {"[NaN,\"\\u0001NaN\"]", MGR_ERR_FORMAT},
                 {"[\"\\u0001NaNs\",\"NaN\",\"\\\"NaN\"]", MGR_OK},
                 {"[nan]", MGR_ERR_FORMAT}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *const text = cases[i].text;
        json_t *value = NULL;
        mgr_buf out = {0};
        mgr_err err = MGR_ERR_INIT;
        CHECK_INT(mgr_json_parse_python(&value, "j", text, strlen(text), &err), cases[i].rc);
        if (value) {
            CHECK_INT(mgr_json_dump(value, 0, &out, &err), MGR_OK);
            CHECK_TEXT(out.data, text);
        }
        mgr_buf_clear(&out);
        json_decref(value);
    }
}

/* jansson aborts over a text from which it lost a character for lack of memory. The last test: what
 * ran out once is not trusted again. */
static void test_json_without_memory(void)
{
    /* the 16th character of the text in quotes makes the buffer grow: a 'u' */
    static const char text[] =
        "{\"a\":[\"x\\u00e9\\u00e9\\u00e9\\u00e9\\u00e9\\u00e9\\u00e9\",1,2.5,{\"x\":null}]}";
    mgr_json_count_memory();
    for (uint64_t k = 0; k < 64; k++) { /* 0: none fails */
        json_t *value = NULL;
        mgr_err err = MGR_ERR_INIT;
        mgr_alloc_fail_at(k);
        const int rc = mgr_json_parse(&value, "j", text, sizeof text - 1, &err);
        CHECK_INT(rc, k == 0 ? MGR_OK : MGR_ERR_NOMEM);
        json_decref(value);
    }
    mgr_alloc_fail_at(0);
}

int main(void)
{
    test_good();
    test_dtypes();
    test_lies();
    test_length();
    test_tolerated();
    test_truncated();
    test_header();
    test_header_refused();
    test_memory();
    test_json();
    test_numbers_that_json_has_not();
    test_json_without_memory();
    return CHECK_DONE();
}
