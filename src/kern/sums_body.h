/*
 * The sums of sums.h, written once: compilers make of it what the instruction set of the file that
 * includes this has.
 */
#include "kern/element.h"
#include "kern/sums.h"

#define LANES 8

#define SUMS_INLINE static inline __attribute__((always_inline))

/* Compilers make something slow of vectors that are longer than a register. */
#if defined(__AVX512F__)
#define REGISTER 64
#elif defined(__AVX2__)
#define REGISTER 32
#else
#define REGISTER 16
#endif
#define IN_REGISTER (REGISTER / (int)sizeof(double))
#define REGISTERS (LANES / IN_REGISTER)

typedef double lanes_double __attribute__((vector_size(REGISTER)));
typedef float lanes_float __attribute__((vector_size(REGISTER / 2)));

typedef struct row_lanes {
    lanes_double sum[REGISTERS], square[REGISTERS];
} row_lanes;

/* Element i goes to lane i % LANES. */
SUMS_INLINE void add_to_lanes(row_lanes *lanes, const float x[ELEMENT_BLOCK])
{
    row_lanes l = *lanes;

#pragma GCC unroll 64
    for (int i = 0; i < ELEMENT_BLOCK; i += IN_REGISTER) {
        const int r = i / IN_REGISTER % REGISTERS;
        lanes_float narrow;
        memcpy(&narrow, x + i, sizeof narrow);
        const lanes_double value = __builtin_convertvector(narrow, lanes_double);
        l.sum[r] += value;
        l.square[r] += value * value;
    }
    *lanes = l;
}

SUMS_INLINE double sum_of_lanes(const double v[LANES])
{
    return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

SUMS_INLINE void add_row(const unsigned char *data, mgr_dtype dtype, size_t element_bytes,
                         size_t cols, double *sum, double *square)
{
    row_lanes lanes = {{{0}}, {{0}}};
    double by_lane[2][LANES];
    float x[ELEMENT_BLOCK];
    size_t c = 0;

    for (; c + ELEMENT_BLOCK <= cols; c += ELEMENT_BLOCK) {
        element_load(x, data + c * element_bytes, dtype);
        add_to_lanes(&lanes, x);
    }
    if (c < cols) { /* zeros behind the end change no sum */
        element_load_part(x, data + c * element_bytes, dtype, cols - c);
        add_to_lanes(&lanes, x);
    }
    memcpy(by_lane, &lanes, sizeof by_lane);
    *sum = sum_of_lanes(by_lane[0]);
    *square = sum_of_lanes(by_lane[1]);
}

static void row(const unsigned char *data, mgr_dtype dtype, size_t cols, double *sum,
                double *square)
{
    if (dtype == MGR_DTYPE_BF16)
        add_row(data, MGR_DTYPE_BF16, 2, cols, sum, square);
    else if (dtype == MGR_DTYPE_F16)
        add_row(data, MGR_DTYPE_F16, 2, cols, sum, square);
    else
        add_row(data, MGR_DTYPE_F32, 4, cols, sum, square);
}

/* One row of a block of columns. */
SUMS_INLINE void add_to_columns(double *restrict sum, double *restrict square,
                                const float x[restrict ELEMENT_BLOCK])
{
    for (int i = 0; i < ELEMENT_BLOCK; i++) {
        const double value = (double)x[i];
        sum[i] += value;
        square[i] += value * value;
    }
}

SUMS_INLINE void add_strip(const unsigned char *data, size_t stride, mgr_dtype dtype,
                           size_t element_bytes, size_t rows, size_t cols, double *sum,
                           double *square)
{
    float x[ELEMENT_BLOCK];

    for (size_t r = 0; r < rows; r++, data += stride) {
        for (size_t c = 0; c < cols; c += ELEMENT_BLOCK) {
            if (c + ELEMENT_BLOCK <= cols)
                element_load(x, data + c * element_bytes, dtype);
            else
                element_load_part(x, data + c * element_bytes, dtype, cols - c);
            add_to_columns(sum + c, square + c, x);
        }
    }
}

static void strip(const unsigned char *data, size_t stride, mgr_dtype dtype, size_t rows,
                  size_t cols, double *sum, double *square)
{
    if (dtype == MGR_DTYPE_BF16)
        add_strip(data, stride, MGR_DTYPE_BF16, 2, rows, cols, sum, square);
    else if (dtype == MGR_DTYPE_F16)
        add_strip(data, stride, MGR_DTYPE_F16, 2, rows, cols, sum, square);
    else
        add_strip(data, stride, MGR_DTYPE_F32, 4, rows, cols, sum, square);
}
