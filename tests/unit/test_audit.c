/* What mgr-verify is made of: which bit was flipped, values that are no numbers, a sealed text. */
#include <libdeflate.h>
#include <string.h>

#include "fmt/sha256.h"
#include "kern/kern.h"
#include "look/flip.h"
#include "look/scan.h"
#include "support/check.h"

/* Every bit of a text, by what its flip does to the CRC-32. */
static void test_a_flipped_bit_is_found(void)
{
    unsigned char text[97];
    for (size_t i = 0; i < sizeof text; i++)
        text[i] = (unsigned char)(i * 37);
    const uint32_t good = libdeflate_crc32(0, text, sizeof text);
    for (size_t bit = 0; bit < 8 * sizeof text; bit++) {
        uint64_t at = UINT64_MAX;
        text[bit / 8] ^= (unsigned char)(1 << bit % 8);
        CHECK(mgr_find_flip(good ^ libdeflate_crc32(0, text, sizeof text), sizeof text, &at));
        CHECK_INT(at, bit / 8);
        text[bit / 8] ^= (unsigned char)(1 << bit % 8);
    }
}

static void test_more_than_a_bit_is_not(void)
{
    uint64_t at;
    CHECK(!mgr_find_flip(UINT32_C(0x12345678), 97, &at));
    CHECK(!mgr_find_flip(1, UINT64_C(1) << 40, &at)); /* too far to be sure */
}

static size_t first_odd(const void *values, mgr_dtype dtype, size_t n)
{
    return mgr_find_magnitude(values, dtype, n, mgr_infinity_bits(dtype), UINT32_MAX);
}

static void test_values_that_are_no_numbers(void)
{
    static float f32[9000];
    static uint16_t half[9000];
    CHECK_INT(first_odd(f32, MGR_DTYPE_F32, 9000), 9000);
    const uint32_t nan = UINT32_C(0x7fc00001);
    memcpy(&f32[8191], &nan, sizeof nan);
    CHECK_INT(first_odd(f32, MGR_DTYPE_F32, 9000), 8191);
    CHECK_INT(first_odd(f32, MGR_DTYPE_F32, 8191), 8191);
    half[4096] = 0xff80; /* -infinity as bfloat16, no number as float16 */
    CHECK_INT(first_odd(half, MGR_DTYPE_BF16, 9000), 4096);
    CHECK_INT(first_odd(half, MGR_DTYPE_F16, 9000), 4096);
    half[4096] = 0x7bff; /* the largest float16 */
    CHECK_INT(first_odd(half, MGR_DTYPE_F16, 9000), 9000);
}

static void add_tensor(mgr_catalogue *cat, uint32_t file, uint64_t offset, uint64_t n,
                       uint64_t stride)
{
    const mgr_stored s = {.name = "t",
                          .file = file,
                          .record = MGR_NONE,
                          .dtype = MGR_DTYPE_BF16,
                          .ndim = 1,
                          .shape = {n},
                          .stride = {stride},
                          .offset = offset};
    mgr_err err = MGR_ERR_INIT;
    CHECK_INT(mgr_catalogue_add_stored(cat, &s, &err), MGR_OK);
}

/* Two files, which the list of sums has in the other order; tensors in no order, two of which share
 * bytes, one that is not plain. */
static void open_scan(mgr_scan *scan, mgr_catalogue *cat, mgr_file_sums *sums)
{
    mgr_err err = MGR_ERR_INIT;
    uint32_t file;
    for (int i = 0; i < 3; i++)
        CHECK_INT(
            mgr_catalogue_add_file(cat, (const char *[]){"o/a", "o/b", "p/b"}[i], 100, &file, &err),
            MGR_OK);
    for (int i = 0; i < 3; i++)
        CHECK_INT(mgr_file_sums_add(sums, (const char *[]){"b", "0", "a"}[i], 100, &err), MGR_OK);
    add_tensor(cat, 0, 60, 20, 1); /* bytes 60 to 100 of a, the third of the sums */
    add_tensor(cat, 1, 0, 10, 1);
    add_tensor(cat, 0, 10, 40, 1); /* 10 to 90: reaches over the next */
    add_tensor(cat, 0, 20, 2, 1);
    add_tensor(cat, 1, 40, 10, 2);
    add_tensor(cat, 2, 60, 10, 1);
    CHECK_INT(mgr_scan_begin(scan, cat, "o", sums, &err), MGR_OK);
}

/* What is told of one byte pair that is no number, when a file of 100 bytes goes by in pieces. */
static void check_scan(mgr_scan *scan, uint32_t file, size_t at, size_t piece, uint64_t wanted)
{
    unsigned char bytes[100] = {0};
    mgr_err err = MGR_ERR_INIT;
    uint64_t seen = 0;
    scan->odd.len = 0;
    bytes[at] = 0x80, bytes[at + 1] = 0x7f;
    for (size_t from = 0; from < sizeof bytes; from += piece) {
        const size_t len = sizeof bytes - from < piece ? sizeof bytes - from : piece;
        CHECK_INT(mgr_scan_piece(scan, file, from, bytes + from, len, &err), MGR_OK);
    }
    for (size_t i = 0; i < scan->odd.len / sizeof(mgr_odd); i++) {
        mgr_odd o;
        memcpy(&o, scan->odd.data + i * sizeof o, sizeof o);
        CHECK_INT(o.offset, at);
        seen |= UINT64_C(1) << o.stored;
    }
    CHECK_INT(seen, wanted);
}

static void test_each_tensor_that_lies_in_a_piece_is_seen(void)
{
    static const struct {
        uint32_t file;
        size_t at;
        uint64_t tensors; /* bits */
    } cases[] = {{2, 8, 0},  {2, 10, 4}, {2, 22, 12}, {2, 24, 4}, {2, 58, 4}, {2, 60, 5},
                 {2, 88, 5}, {2, 90, 1}, {2, 98, 1},  {0, 0, 2},  {0, 18, 2}, {0, 20, 0},
                 {0, 40, 0}, {0, 60, 0}, {1, 0, 0},   {1, 60, 0}};
    mgr_catalogue cat = {0};
    mgr_file_sums sums = {0};
    mgr_scan scan = {0};
    open_scan(&scan, &cat, &sums);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (size_t piece = 2; piece <= 100; piece += 2)
            check_scan(&scan, cases[i].file, cases[i].at, piece, cases[i].tensors);
    mgr_scan_clear(&scan);
    mgr_file_sums_clear(&sums);
    mgr_catalogue_clear(&cat);
}

static void test_a_seal(void)
{
    char text[] = "{\n  \"a\": 1,\n  \"digest\": \"" MGR_SEAL_ZEROS "\"\n}\n";
    mgr_err err = MGR_ERR_INIT;
    bool good;
    CHECK_INT(mgr_digest_seal(text, sizeof text - 1, &err), MGR_OK);
    for (size_t bit = 0; bit < 8 * (sizeof text - 1); bit++) {
        text[bit / 8] ^= (char)(1 << bit % 8);
        CHECK_INT(mgr_digest_check(text, sizeof text - 1, &good, &err), MGR_OK);
        CHECK(!good);
        text[bit / 8] ^= (char)(1 << bit % 8);
    }
    CHECK_INT(mgr_digest_check(text, sizeof text - 1, &good, &err), MGR_OK);
    CHECK(good);
    CHECK_INT(mgr_digest_seal(text, sizeof text - 1, &err), MGR_ERR_INTERNAL); /* it has one */
}

int main(void)
{
    test_a_flipped_bit_is_found();
    test_more_than_a_bit_is_not();
    test_values_that_are_no_numbers();
    test_each_tensor_that_lies_in_a_piece_is_seen();
    test_a_seal();
    return CHECK_DONE();
}
