/*
 * CRC-32: our kernel and our choice among kernels against zlib, which computes it byte by byte.
 */
#include "support/check.h"

#include <stdbool.h>
#include <zlib.h>

#include "core/crc.h"

#define LONGEST 5000
#define ALIGNMENTS 65

static unsigned char bytes[LONGEST + ALIGNMENTS];

static uint32_t oracle(uint32_t crc, const unsigned char *at, size_t n)
{
    return (uint32_t)crc32(crc, at, (uInt)n);
}

/* Every length around the steps of a kernel, some far from them; every place in two registers. */
static bool same(mgr_crc32_kernel *crc_of, size_t least)
{
    static const uint32_t before[] = {0, 1, UINT32_MAX, 0xdeadbeef};
    for (size_t n = least; n <= LONGEST; n += n < 1200 ? 1 : 61)
        for (size_t at = 0; at < ALIGNMENTS; at += n % 7 + 1)
            for (size_t b = 0; b < sizeof before / sizeof *before; b++)
                if (crc_of(before[b], bytes + at, n) != oracle(before[b], bytes + at, n)) {
                    printf("differs: %zu bytes at %zu\n", n, at);
                    return false;
                }
    return true;
}

static uint32_t chosen(uint32_t crc, const unsigned char *at, size_t n)
{
    return mgr_crc32(crc, at, n);
}

static void test_known_values(void)
{
    CHECK_INT(mgr_crc32(0, "123456789", 9), 0xcbf43926); /* the check value of CRC catalogues */
    CHECK_INT(mgr_crc32(0, "", 0), 0);
    CHECK_INT(mgr_crc32(0xcbf43926, "", 0), 0xcbf43926);
}

static void check_kernel(mgr_crc32_kernel *kernel, size_t step, const char *name)
{
    if (kernel)
        CHECK(same(kernel, step));
    else
        printf("this CPU or build has no kernel of %s\n", name);
}

static void test_any_length_and_alignment(void)
{
    CHECK(same(chosen, 0));
    check_kernel(mgr_crc32_runs_256(), MGR_CRC32_STEP, "256 bits");
    check_kernel(mgr_crc32_runs_512(), MGR_CRC32_STEP_512, "512 bits");
}

static void test_pieces_of_a_whole(void)
{
    for (size_t cut = 0; cut <= LONGEST; cut += 97)
        CHECK_INT(mgr_crc32(mgr_crc32(0, bytes, cut), bytes + cut, LONGEST - cut),
                  oracle(0, bytes, LONGEST));
}

static void test_a_flipped_bit_shows(void)
{
    const uint32_t sum = mgr_crc32(0, bytes, LONGEST);
    for (size_t at = 0; at < LONGEST; at += 111) {
        bytes[at] ^= 16;
        CHECK(mgr_crc32(0, bytes, LONGEST) != sum);
        bytes[at] ^= 16;
    }
}

int main(void)
{
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (unsigned char)(i * 2654435761u >> 13);
    test_known_values();
    test_any_length_and_alignment();
    test_pieces_of_a_whole();
    test_a_flipped_bit_shows();
    return CHECK_DONE();
}
