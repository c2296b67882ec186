/*
 * Memory: every allocation of the project goes through here (jansson's, too), so that sizes are
 * overflow-checked, their sum has a bound, and tests can make the k-th allocation fail.
 */
#ifndef MGR_CORE_MEM_H
#define MGR_CORE_MEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "mgr/err.h"

/* `n` zeroed elements of `size` bytes into *out (at least one byte, so never NULL on success).
 * The caller frees with mgr_free. Errors: MGR_ERR_NOMEM. Local. */
int mgr_alloc(void *out, size_t n, size_t size, mgr_err *err) MGR_NODISCARD;

/* Grow the array *array of `size`-byte elements so that it holds at least `need` elements.
 * *capacity is in elements and is updated; growth is geometric; new elements are zeroed.
 * Errors: MGR_ERR_NOMEM, and then nothing has changed. Local. */
int mgr_grow(void *array, size_t *capacity, size_t need, size_t size, mgr_err *err) MGR_NODISCARD;

/* A NUL-terminated copy of `len` bytes. The caller frees with mgr_free. Local. */
int mgr_strndup(char **out, const char *text, size_t len, mgr_err *err) MGR_NODISCARD;
int mgr_strdup(char **out, const char *text, mgr_err *err) MGR_NODISCARD;

/* NULL-safe. */
void mgr_free(void *p);

/* From now on what is allocated here may not pass `total` less what of the `resident` bytes belongs
 * to others: the libraries and the program. Past it is MGR_ERR_NOMEM with the size that would do.
 */
void mgr_mem_bound(uint64_t total, uint64_t resident);

/* What is allocated now, as the allocator counts it. */
uint64_t mgr_mem_held(void);

/* Freed pages go back to the system: behind work that freed many small blocks. */
void mgr_mem_trim(void);

/* For libraries that want a malloc; past the bound from a small reserve, so that they come to an
 * end, then NULL. mgr_free frees it. */
void *mgr_mem_take(size_t bytes);
/* Has one of these been without memory since the program started? What was made then is not used.
 */
bool mgr_mem_missed(void);

/* The error of an allocation of `bytes` bytes that failed. */
int mgr_mem_fail(uint64_t bytes, mgr_err *err) MGR_NODISCARD;

/* Tests only: let the k-th allocation from now (1-based) fail, once; 0 switches it off. */
void mgr_alloc_fail_at(uint64_t k);

/* Checked arithmetic for every size that a file tells us: nonzero return means overflow. */
static inline int mgr_mul_overflow(uint64_t a, uint64_t b, uint64_t *out)
{
    return __builtin_mul_overflow(a, b, out);
}

static inline int mgr_add_overflow(uint64_t a, uint64_t b, uint64_t *out)
{
    return __builtin_add_overflow(a, b, out);
}

/* Page-aligned buffer for I/O and kernels, not zeroed; free with mgr_free_aligned. */
int mgr_alloc_aligned(void *out, size_t bytes, mgr_err *err) MGR_NODISCARD;
void mgr_free_aligned(void *p);

#endif
