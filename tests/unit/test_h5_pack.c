/*
 * Packing pieces of HDF5: whatever the bytes, zlib gives them back, and no plane is packed worse
 * than by zlib's own choice.
 */
#include "support/check.h"

#include <libdeflate.h>
#include <zlib.h>

#include "core/mem.h"
#include "fmt/h5_filter.h"
#include "fmt/h5_literals.h"
#include "kern/kern.h"

enum { ROOM = 1 << 19 };

static unsigned char bytes[ROOM], back[ROOM], joined[ROOM], packed[ROOM + ROOM / 8];
static _Alignas(64) unsigned char planes[ROOM + sizeof(mgr_pairs)];
static mgr_pairs pairs;

/* The packed size, after the way there and back, by zlib and by ours. */
static size_t there_and_back(size_t len, size_t element)
{
    mgr_err err = MGR_ERR_INIT;
    size_t size = 0;
    uLongf got = sizeof back;
    memset(packed, 0, sizeof packed);
    CHECK_INT(mgr_h5_pack(bytes, len, element, 1, planes, packed, &size, &err), MGR_OK);
    CHECK(size <= mgr_h5_packed_bound(len) && mgr_h5_pack_scratch(len) <= sizeof planes);
    CHECK_INT(uncompress(back, &got, packed, size), Z_OK);
    CHECK_INT(got, len);
    mgr_h5_unshuffle(back, len, element, joined);
    CHECK(memcmp(joined, bytes, len) == 0);
    memset(back, 0, len);
    CHECK_INT(mgr_h5_inflate(packed, size, back, len, "piece", 0, &err), MGR_OK);
    CHECK(memcmp(back, planes, len) == 0);
    return size;
}

/* What zlib makes of the same planes by itself, at the level that is stated in the file. */
static size_t by_zlib(size_t len)
{
    uLongf size = sizeof packed;
    CHECK_INT(compress2(packed, &size, planes, len, 1), Z_OK);
    return size;
}

static void draw(size_t len, mgr_dtype dtype)
{
    const mgr_stream stream = {7, MGR_PURPOSE_SYNTH, 0, 0};
    mgr_normals_scaled(&stream, 0, len / mgr_dtype_size(dtype), 0, 0.02f, bytes, dtype);
}

static void test_weights(void)
{
    static const mgr_dtype types[] = {MGR_DTYPE_BF16, MGR_DTYPE_F16, MGR_DTYPE_F32};
    for (int i = 0; i < 3; i++) {
        draw(ROOM, types[i]);
        const size_t ours = there_and_back(ROOM, mgr_dtype_size(types[i]));
        CHECK(ours <= by_zlib(ROOM));
    }
    draw(ROOM, MGR_DTYPE_BF16);
    const size_t ours = there_and_back(ROOM, 2);
    CHECK(ours < ROOM * 68 / 100); /* 0.723 by level 1 alone */
}

static void test_what_repeats_itself(void)
{
    enum { ROW = 4096 };
    draw(ROOM, MGR_DTYPE_BF16);
    for (size_t at = ROW; at < ROOM; at += ROW) /* rows of tied experts */
        memcpy(bytes + at, bytes, ROW);
    CHECK(there_and_back(ROOM, 2) <= by_zlib(ROOM) + 64);
    draw(ROOM, MGR_DTYPE_BF16);
    memset(bytes + ROOM / 2, 0, ROOM / 2); /* padding */
    CHECK(there_and_back(ROOM, 2) <= by_zlib(ROOM) + 64);
    memset(bytes, 0, ROOM);
    CHECK(there_and_back(ROOM, 4) <= by_zlib(ROOM) + 64);
}

/* Weights with zeros behind them, as the last piece of a tensor has. */
static void test_zeros_at_the_end(void)
{
    static const size_t used[] = {0, 1, 2, 7, 8, 9, 255, 1000, 65536, ROOM / 4, ROOM - 4096};
    for (size_t element = 1; element <= 8; element *= 2)
        for (size_t i = 0; i < sizeof used / sizeof *used; i++) {
            draw(ROOM, element == 4 ? MGR_DTYPE_F32 : MGR_DTYPE_BF16);
            memset(bytes + used[i], 0, ROOM - used[i]);
            const size_t size = there_and_back(ROOM, element);
            CHECK(size <= by_zlib(ROOM));
            there_and_back(used[i] + 3, element);
        }
    draw(ROOM, MGR_DTYPE_BF16);
    const size_t weights = there_and_back(ROOM / 2, 2);
    memset(bytes + ROOM / 2, 0, ROOM / 2);
    CHECK(there_and_back(ROOM, 2) < weights + 1024); /* 258 zeros are 2 bits */
    memset(bytes, 0, 2048);
    for (size_t tail = 0; tail < 1400; tail++) { /* each number of zeros for themselves */
        memset(bytes, 0x81, 64);
        there_and_back(64 + tail, 2);
    }
}

static void test_any_length(void)
{
    draw(ROOM, MGR_DTYPE_F32);
    for (size_t len = 1; len < 40; len++)
        for (size_t element = 1; element <= 4; element *= 2)
            there_and_back(len, element);
    for (size_t len = 1000; len < ROOM; len = len * 3 + 1)
        there_and_back(len, 2);
    for (size_t i = 0; i < ROOM; i++) /* nothing to gain anywhere */
        bytes[i] = (unsigned char)(i * i * 2654435761u >> 11);
    there_and_back(ROOM, 2);
}

static void test_equal_bytes_are_packed_equally(void)
{
    static unsigned char first[ROOM + ROOM / 8];
    draw(ROOM, MGR_DTYPE_BF16);
    const size_t size = there_and_back(ROOM, 2);
    memcpy(first, packed, size);
    CHECK_INT(there_and_back(ROOM, 2), size);
    CHECK(memcmp(first, packed, size) == 0);
}

/* A stream of the first `len` bytes, read by zlib and by libdeflate; its size. */
static size_t literals(size_t len)
{
    mgr_bits b;
    uLongf got = sizeof back;
    size_t also = 0;
    struct libdeflate_decompressor *const d = libdeflate_alloc_decompressor();
    mgr_bits_begin(&b, packed);
    mgr_bits_literals(&b, bytes, len, &pairs);
    const size_t size = (size_t)(mgr_bits_end(&b, (uint32_t)adler32(1, bytes, (uInt)len)) - packed);
    CHECK_INT(uncompress(back, &got, packed, size), Z_OK);
    CHECK(got == len && memcmp(back, bytes, len) == 0);
    CHECK_INT(libdeflate_zlib_decompress(d, packed, size, joined, len, &also), LIBDEFLATE_SUCCESS);
    CHECK(also == len && memcmp(joined, bytes, len) == 0);
    libdeflate_free_decompressor(d);
    CHECK(size <= mgr_h5_packed_bound(len));
    return size;
}

/* Codes of every form: one symbol, all alike, so uneven that the longest must be cut, noise. */
static void test_codes(void)
{
    uint32_t state = 1;
    memset(bytes, 7, ROOM);
    for (size_t len = 0; len < 700; len++)
        literals(len);
    CHECK(literals(ROOM) < ROOM / 7);
    for (size_t i = 0; i < ROOM; i++)
        bytes[i] = (unsigned char)i;
    CHECK(literals(ROOM) <= ROOM + 64); /* nothing to gain */
    for (size_t at = 0, n = 1, before = 1, symbol = 0; at < 131070; symbol++) {
        for (size_t i = 0; i < n && at < 131070; i++) /* as many as Fibonacci says */
            bytes[at++] = (unsigned char)symbol;
        const size_t next = n + before;
        before = n;
        n = next;
    }
    CHECK(literals(131070) < 131070 / 2);
    for (unsigned gap = 1; gap < 256; gap++) { /* each run of lengths that are zero */
        for (size_t i = 0; i < 1000; i++)
            bytes[i] = (unsigned char)(i % 3 ? gap : 0);
        CHECK(literals(1000) < 300);
    }
    for (unsigned few = 1; few < 250; few += 31) {
        for (size_t i = 0; i < ROOM; i++) {
            state = state * 1664525 + 1013904223;
            bytes[i] = (unsigned char)((state >> 24) % few * 3);
        }
        literals(ROOM);
        literals(131071 + few);
    }
}

/* Planes that a look at their beginnings takes for something else. */
static void test_what_was_not_looked_at(void)
{
    uint32_t state = 1;
    for (size_t i = 0; i < ROOM; i++) {
        state = state * 1664525 + 1013904223;
        bytes[i] =
            i / 2 % 32768 < 4096 ? (unsigned char)(state >> 29) : (unsigned char)(state >> 24);
    }
    there_and_back(ROOM, 2);
    for (size_t i = 0; i < ROOM; i++)
        bytes[i] = i / 2 % 32768 < 4096 ? bytes[i] + (unsigned char)(i * 2654435761u >> 13)
                                        : (unsigned char)(bytes[i] >> 5);
    there_and_back(ROOM, 2);
}

int main(void)
{
    test_codes();
    test_what_was_not_looked_at();
    test_weights();
    test_what_repeats_itself();
    test_zeros_at_the_end();
    test_any_length();
    test_equal_bytes_are_packed_equally();
    return CHECK_DONE();
}
