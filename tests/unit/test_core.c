/* core: errors, memory, text, catalogue exchange. */
#include "core/mem.h"
#include "core/str.h"
#include "mgr/catalogue.h"
#include "support/check.h"

static void test_error_codes(void)
{
    static const struct {
        int code, exit_status;
    } expected[] = {{MGR_OK, 0},
                    {MGR_ERR_USAGE, 64},
                    {MGR_ERR_CONFIG, 78},
                    {MGR_ERR_FORMAT, 65},
                    {MGR_ERR_UNSUPPORTED, 65},
                    {MGR_ERR_NOT_FOUND, 66},
                    {MGR_ERR_EXISTS, 73},
                    {MGR_ERR_CREATE, 73},
                    {MGR_ERR_SPACE, 73},
                    {MGR_ERR_IO, 74},
                    {MGR_ERR_NOMEM, 71},
                    {MGR_ERR_MPI, 71},
                    {MGR_ERR_INTERRUPTED, 75},
                    {MGR_ERR_INTERNAL, 70}};
    for (size_t i = 0; i < sizeof expected / sizeof expected[0]; i++) {
        CHECK_INT(mgr_code_exit(expected[i].code), expected[i].exit_status);
        CHECK(strncmp(mgr_code_name(expected[i].code), "MGR_", 4) == 0);
        CHECK(mgr_code_text(expected[i].code)[0] != '\0');
        for (size_t j = 0; j < i; j++)
            CHECK(strcmp(mgr_code_name(expected[i].code), mgr_code_name(expected[j].code)) != 0);
    }
}

static void test_error_text(void)
{
    mgr_err err = MGR_ERR_INIT;
    CHECK_INT(mgr_fail(&err, MGR_ERR_FORMAT, "inner %d", 7), MGR_ERR_FORMAT);
    CHECK_INT(mgr_fail(&err, MGR_ERR_IO, "later"), MGR_ERR_IO);
    CHECK_TEXT(err.msg, "inner 7"); /* the first failure is kept */
    CHECK_INT(mgr_wrap(&err, "outer '%s'", "x"), MGR_ERR_FORMAT);
    CHECK_TEXT(err.msg, "outer 'x': inner 7");
    mgr_hint(&err, "do this");
    mgr_hint(&err, "or that");
    CHECK_TEXT(err.hint, "do this");
    mgr_err sys = MGR_ERR_INIT;
    mgr_fail_errno(&sys, MGR_ERR_IO, 2, "cannot open 'f'");
    CHECK_TEXT(sys.msg, "cannot open 'f': No such file or directory");
    CHECK_INT(sys.sys, 2);
    for (int i = 0; i < 100; i++) /* never overruns */
        mgr_wrap(&err, "context number %d of a long chain", i);
    CHECK(strlen(err.msg) < sizeof err.msg);
    CHECK_HAS(err.msg, "context number 99");
}

static void test_memory(void)
{
    mgr_err err = MGR_ERR_INIT;
    int *p = NULL;
    CHECK_INT(mgr_alloc(&p, SIZE_MAX, 8, &err), MGR_ERR_NOMEM);
    err = (mgr_err)MGR_ERR_INIT;
    mgr_alloc_fail_at(2);
    CHECK_INT(mgr_alloc(&p, 4, sizeof *p, &err), MGR_OK);
    int *q = NULL;
    CHECK_INT(mgr_alloc(&q, 4, sizeof *q, &err), MGR_ERR_NOMEM);
    err = (mgr_err)MGR_ERR_INIT;
    size_t capacity = 4;
    CHECK_INT(mgr_grow(&p, &capacity, 100, sizeof *p, &err), MGR_OK);
    CHECK(capacity >= 100);
    for (size_t i = 0; i < capacity; i++)
        CHECK_INT(p[i], 0);
    mgr_free(p);
}

/* Past the bound: the size that would do. What is freed may be taken again. */
static void test_memory_bound(void)
{
    mgr_err err = MGR_ERR_INIT, again = MGR_ERR_INIT;
    const uint64_t mib = 1 << 20;
    char *big = NULL, *more = NULL;
    size_t capacity = 0;
    mgr_mem_bound(64 * mib, 16 * mib);
    CHECK_INT(mgr_alloc(&big, 40 * mib, 1, &err), MGR_OK);
    CHECK_INT(mgr_alloc(&more, 9 * mib, 1, &err), MGR_ERR_NOMEM);
    CHECK_HAS(err.msg, "memory_per_rank is 64.00 MiB, ");
    CHECK_HAS(err.msg, " and 9.00 MiB are needed");
    CHECK_TEXT(err.hint, "set memory_per_rank to 82MiB or more");
    CHECK_INT(mgr_grow(&more, &capacity, 9 * mib, 1, &again), MGR_ERR_NOMEM);
    CHECK(mgr_mem_take(9 * mib) == NULL);
    mgr_free(big);
    CHECK_INT(mgr_grow(&more, &capacity, 40 * mib, 1, &again), MGR_ERR_NOMEM); /* doubled: 64 */
    big = mgr_mem_take(40 * mib);
    CHECK(big != NULL);
    mgr_free(big);
    mgr_mem_bound(1, 0); /* past it, to come to an end with */
    big = mgr_mem_take(mib / 32);
    CHECK(big != NULL && mgr_mem_missed());
    memset(big, 1, mib / 32);
    CHECK(mgr_mem_take(mib / 16) == NULL);
    mgr_free(big);
    mgr_mem_bound(UINT64_MAX, 0);
}

static void test_bytes(void)
{
    static const struct {
        const char *text;
        uint64_t value;
    } good[] = {{"0", 0},
                {"1000", 1000},
                {"4GiB", UINT64_C(4) << 30},
                {"1.5GB", 1500000000},
                {"512 MiB", 512 << 20},
                {"5GB", 5000000000},
                {"18446744073709551615", UINT64_MAX}};
    static const char *const bad[] = {"",
                                      "GiB",
                                      "-1",
                                      "1 2",
                                      "1.2.3GB",
                                      "4gib",
                                      "0x10",
                                      " 1",
                                      "18446744073709551616",
                                      "99999999999TiB",
                                      "1e3",
                                      "nan"};
    char text[32];
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        uint64_t value = 77;
        CHECK(mgr_parse_bytes(good[i].text, &value));
        CHECK(value == good[i].value);
    }
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        uint64_t value = 77;
        CHECK(!mgr_parse_bytes(bad[i], &value));
        CHECK(value == 77);
    }
    CHECK_TEXT(mgr_format_bytes(1536, text, sizeof text), "1.50 KiB");
    CHECK_TEXT(mgr_format_bytes(12, text, sizeof text), "12 B");
}

static void test_names(void)
{
    static const char *const names[] = {"init_ratio", "seed", "experts"};
    CHECK_TEXT(mgr_nearest("init_ration", names, 3), "init_ratio");
    CHECK_TEXT(mgr_nearest("sed", names, 3), "seed");
    CHECK(mgr_nearest("something_else_entirely", names, 3) == NULL);
    char out[8];
    CHECK_TEXT(mgr_printable("a\n\x80z", 4, out, sizeof out), "a??z");
    CHECK_TEXT(mgr_printable("0123456789", 10, out, sizeof out), "0123456");
}

static void test_half(void)
{
    /* every half survives the way to float and back; rounding is to nearest even */
    for (uint32_t h = 0; h < 65536; h++) {
        const int nan = (h & 0x7c00) == 0x7c00 && (h & 0x3ff);
        if (!nan)
            CHECK_INT(mgr_f32_to_f16(mgr_f16_to_f32((uint16_t)h)), h);
    }
    CHECK_INT(mgr_f32_to_f16(65520.0f), 0x7c00);
    CHECK_INT(mgr_f32_to_f16(65519.0f), 0x7bff);
    CHECK_INT(mgr_f32_to_f16(0x1p-25f), 0);
    CHECK_INT(mgr_f32_to_f16(0x1.8p-25f), 1);
    CHECK_INT(mgr_f32_to_bf16(mgr_bits_f32(0x3f808000)), 0x3f80);
    CHECK_INT(mgr_f32_to_bf16(mgr_bits_f32(0x3f818000)), 0x3f82);
}

static void fill(mgr_catalogue *cat, const char *path, mgr_err *err)
{
    uint32_t file, record;
    CHECK_INT(mgr_catalogue_add_file(cat, path, 100, &file, err), MGR_OK);
    const mgr_record r = {.name = "a/data/0", .file = file, .crc32 = 5, .offset = 64, .size = 8};
    CHECK_INT(mgr_catalogue_add_record(cat, &r, &record, err), MGR_OK);
    const mgr_stored s = {.name = "w",
                          .file = file,
                          .record = record,
                          .dtype = MGR_DTYPE_BF16,
                          .ndim = 1,
                          .shape = {4},
                          .stride = {1},
                          .offset = 64};
    CHECK_INT(mgr_catalogue_add_stored(cat, &s, err), MGR_OK);
    const mgr_attr a = {.key = "args.x", .file = file, .kind = MGR_ATTR_TEXT, .text = path};
    CHECK_INT(mgr_catalogue_add_attr(cat, &a, err), MGR_OK);
    cat->skipped[MGR_SKIP_RNG]++;
}

static void test_catalogue(void)
{
    mgr_err err = MGR_ERR_INIT;
    mgr_catalogue one = {0}, two = {0}, all = {0};
    mgr_buf packed = {0};
    fill(&one, "first", &err);
    fill(&two, "second", &err);
    CHECK_INT(mgr_catalogue_pack(&one, &packed, &err), MGR_OK);
    CHECK_INT(mgr_catalogue_pack(&two, &packed, &err), MGR_OK);
    CHECK_INT(mgr_catalogue_unpack(&all, packed.data, packed.len, &err), MGR_OK);
    CHECK_INT(all.n_files, 2);
    CHECK_INT(all.stored[1].file, 1);
    CHECK_INT(all.stored[1].record, 1);
    CHECK_INT(all.records[1].file, 1);
    CHECK_INT(all.skipped[MGR_SKIP_RNG], 2);
    CHECK_TEXT(mgr_catalogue_attr(&all, 1, "args.x")->text, "second");
    CHECK(mgr_catalogue_attr(&all, 1, "args.y") == NULL);
    for (size_t len = 0; len < packed.len; len += 7) { /* a message cut short is refused */
        mgr_catalogue cut = {0};
        mgr_err why = MGR_ERR_INIT;
        const int rc = mgr_catalogue_unpack(&cut, packed.data, len, &why);
        CHECK(rc == MGR_OK ? cut.n_files < 2 : rc == MGR_ERR_INTERNAL);
        mgr_catalogue_clear(&cut);
    }
    mgr_buf_clear(&packed);
    mgr_catalogue_clear(&one);
    mgr_catalogue_clear(&two);
    mgr_catalogue_clear(&all);
}

int main(void)
{
    test_error_codes();
    test_error_text();
    test_memory();
    test_memory_bound();
    test_bytes();
    test_names();
    test_half();
    test_catalogue();
    return CHECK_DONE();
}
