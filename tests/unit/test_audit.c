/* What mgr-verify is made of: which bit was flipped, values that are no numbers, a sealed text. */
#include <libdeflate.h>
#include <string.h>

#include "fmt/sha256.h"
#include "kern/kern.h"
#include "look/flip.h"
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
    test_a_seal();
    return CHECK_DONE();
}
