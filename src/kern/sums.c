/*
 * Per-neuron sums that can be added in any order, and the moments they give.
 *
 * Why fixed point: an integer sum does not depend on who added what first, so neither does any
 * bit of a mean or a standard deviation, on any number of ranks. The addends are float64 sums
 * over canonical blocks, which no partition of the work may cut, taken in one written order.
 */
#include "kern/sums.h"

#include <assert.h>

#include "mgr/upcycle.h"
#include "rng/root.h"

#define HI_SCALE 0x1p24
#define LO_SCALE 0x1p52 /* on top of HI_SCALE */
#define LO_BITS 52

/* The sum of squares of one block: above this, or NaN, it is refused, so that no hi can overflow.
 * A row is one addend; a column is up to 2^11 of them, which is a hidden size of 131072. Sums are
 * smaller: |sum| <= sqrt(entries * squares). */
#define ROW_SQUARE_LIMIT 0x1p38
#define COLUMN_SQUARE_LIMIT 0x1p27

__extension__ typedef __int128 wide_int;

/* Floor, for magnitudes below 2^63. */
static int64_t floor_of(double x)
{
    const int64_t toward_zero = (int64_t)x;
    return toward_zero - ((double)toward_zero > x);
}

static void add_fixed(int64_t *hi, int64_t *lo, double value)
{
    const int64_t units = floor_of(value * HI_SCALE);
    const double rest = value * HI_SCALE - (double)units; /* in [0, 1]: 1 just below zero */
    const int64_t fraction = (int64_t)(rest * LO_SCALE);
    *hi += units + (fraction >> LO_BITS);
    *lo += fraction & ((INT64_C(1) << LO_BITS) - 1);
}

/* Add one block to a neuron; nonzero if it is out of range or not a number. */
static int add_block(mgr_sums *sums, double sum, double square, double limit)
{
    if (!(square < limit))
        return 1;
    add_fixed(&sums->sum_hi, &sums->sum_lo, sum);
    add_fixed(&sums->square_hi, &sums->square_lo, square);
    return 0;
}

static const mgr_sums_path *current_path(void)
{
    const mgr_simd simd = mgr_simd_current();
    const mgr_sums_path *const path = simd == MGR_SIMD_AVX2     ? &mgr_sums_path_avx2
                                      : simd == MGR_SIMD_AVX512 ? &mgr_sums_path_avx512
                                                                : &mgr_sums_path_plain;
    return path->row ? path : &mgr_sums_path_plain;
}

int mgr_sums_add_rows(mgr_sums *sums, const void *data, mgr_dtype dtype, size_t rows, size_t cols)
{
    const mgr_sums_path *const path = current_path();
    const unsigned char *row = data;
    int bad = 0;

    assert(mgr_dtype_is_weight(dtype));
    for (size_t r = 0; r < rows && !bad; r++, row += cols * mgr_dtype_size(dtype)) {
        double sum, square;
        path->row(row, dtype, cols, &sum, &square);
        bad = add_block(&sums[r], sum, square, ROW_SQUARE_LIMIT);
    }
    return bad;
}

/* A strip of `cols` <= MGR_SUMS_STRIP columns, over the rows of one canonical block. */
static int add_strip(mgr_sums *sums, const unsigned char *data, size_t stride, mgr_dtype dtype,
                     size_t rows, size_t cols)
{
    double sum[MGR_SUMS_STRIP] = {0}, square[MGR_SUMS_STRIP] = {0};
    int bad = 0;

    current_path()->strip(data, stride, dtype, rows, cols, sum, square);
    for (size_t c = 0; c < cols && !bad; c++)
        bad = add_block(&sums[c], sum[c], square[c], COLUMN_SQUARE_LIMIT);
    return bad;
}

int mgr_sums_add_cols(mgr_sums *sums, const void *data, mgr_dtype dtype, size_t rows, size_t cols,
                      double *scratch)
{
    const size_t bytes = mgr_dtype_size(dtype), stride = cols * bytes;
    int bad = 0;

    (void)scratch; /* the accumulators of a strip fit on the stack */
    assert(mgr_dtype_is_weight(dtype));
    for (size_t r = 0; r < rows && !bad; r += MGR_CANONICAL_ROWS) {
        const size_t n_rows = rows - r < MGR_CANONICAL_ROWS ? rows - r : MGR_CANONICAL_ROWS;
        const unsigned char *block = (const unsigned char *)data + r * stride;
        for (size_t c = 0; c < cols && !bad; c += MGR_SUMS_STRIP) {
            const size_t n_cols = cols - c < MGR_SUMS_STRIP ? cols - c : MGR_SUMS_STRIP;
            bad = add_strip(sums + c, block + c * bytes, stride, dtype, n_rows, n_cols);
        }
    }
    return bad;
}

/* The unevaluated sum of two float64: about 106 bits. */
typedef struct two_part {
    double head, tail;
} two_part;

/* hi * 2^-24 + lo * 2^-76, to twice the precision of a double. */
static two_part fixed_value(wide_int hi, wide_int lo)
{
    const wide_int carry = lo >> LO_BITS; /* floor, also of a negative number */
    const wide_int units = hi + carry;
    const wide_int rest = lo - carry * ((wide_int)1 << LO_BITS);
    two_part v;

    v.head = (double)units;
    v.tail = (double)(units - (wide_int)v.head) + (double)(int64_t)rest / LO_SCALE;
    const double sum = v.head + v.tail; /* |head| >= |tail|, or head is 0 */
    v.tail = (v.head - sum) + v.tail;
    v.head = sum;
    return (two_part){v.head / HI_SCALE, v.tail / HI_SCALE};
}

/* a * b, exact (Dekker). */
static two_part product(double a, double b)
{
    const double split = 0x1p27 + 1;
    const double a_high = a * split - (a * split - a), a_low = a - a_high;
    const double b_high = b * split - (b * split - b), b_low = b - b_high;
    const double head = a * b;
    const double tail =
        ((a_high * b_high - head) + a_high * b_low + a_low * b_high) + a_low * b_low;
    return (two_part){head, tail};
}

/* N * Q - S * S, in two parts: with a mean far from zero the leading digits cancel. */
static double spread(two_part sum, two_part square, double n)
{
    const two_part a = product(square.head, n), b = product(sum.head, sum.head);
    const double a_tail = a.tail + square.tail * n;
    const double b_tail = b.tail + 2 * sum.head * sum.tail;
    return (a.head - b.head) + (a_tail - b_tail);
}

void mgr_moments(const mgr_sums *sums, const uint32_t *neurons, uint32_t n, uint64_t per_neuron,
                 double *mean, double *std)
{
    wide_int sum_hi = 0, sum_lo = 0, square_hi = 0, square_lo = 0;
    const double n_entries = (double)(n * per_neuron);

    for (uint32_t i = 0; i < n; i++) {
        const mgr_sums *s = &sums[neurons[i]];
        sum_hi += s->sum_hi;
        sum_lo += s->sum_lo;
        square_hi += s->square_hi;
        square_lo += s->square_lo;
    }
    *mean = 0;
    *std = 0;
    if (n_entries == 0)
        return;
    const two_part sum = fixed_value(sum_hi, sum_lo), square = fixed_value(square_hi, square_lo);
    *mean = sum.head / n_entries;
    if (n_entries < 2)
        return;
    const double variance = spread(sum, square, n_entries) / (n_entries * (n_entries - 1));
    if (variance > 0)
        *std = mgr_root_f64(variance);
}
