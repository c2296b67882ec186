#include "core/mem.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static uint64_t fail_at;

void mgr_alloc_fail_at(uint64_t k)
{
    fail_at = k;
}

static int planted_failure(void)
{
    return fail_at != 0 && --fail_at == 0;
}

static int no_memory(uint64_t bytes, mgr_err *err)
{
    return mgr_fail(err, MGR_ERR_NOMEM, "cannot allocate %llu bytes", (unsigned long long)bytes);
}

int mgr_alloc(void *out, size_t n, size_t size, mgr_err *err)
{
    uint64_t bytes;
    if (mgr_mul_overflow(n, size, &bytes) || bytes > SIZE_MAX / 2)
        return no_memory(UINT64_MAX, err);
    void *const p = planted_failure() ? NULL : calloc(1, bytes ? (size_t)bytes : 1);
    if (!p)
        return no_memory(bytes, err);
    memcpy(out, &p, sizeof p); /* *out is a pointer of any type */
    return MGR_OK;
}

int mgr_grow(void *array, size_t *capacity, size_t need, size_t size, mgr_err *err)
{
    if (need <= *capacity)
        return MGR_OK;
    size_t wanted = *capacity ? *capacity : 8;
    while (wanted < need)
        wanted = wanted <= SIZE_MAX / 4 ? wanted * 2 : need;
    uint64_t bytes;
    if (mgr_mul_overflow(wanted, size, &bytes) || bytes > SIZE_MAX / 2)
        return no_memory(UINT64_MAX, err);
    void *old;
    memcpy(&old, array, sizeof old);
    char *const p = planted_failure() ? NULL : realloc(old, (size_t)bytes);
    if (!p)
        return no_memory(bytes, err);
    memset(p + *capacity * size, 0, (wanted - *capacity) * size);
    memcpy(array, &p, sizeof p);
    *capacity = wanted;
    return MGR_OK;
}

int mgr_strndup(char **out, const char *text, size_t len, mgr_err *err)
{
    char *copy;
    MGR_TRY(mgr_alloc(&copy, len + 1, 1, err));
    if (len)
        memcpy(copy, text, len);
    *out = copy;
    return MGR_OK;
}

int mgr_strdup(char **out, const char *text, mgr_err *err)
{
    return mgr_strndup(out, text, strlen(text), err);
}

void mgr_free(void *p)
{
    free(p);
}

int mgr_alloc_aligned(void *out, size_t bytes, mgr_err *err)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    void *p = NULL;
    if (planted_failure() || posix_memalign(&p, page, bytes ? bytes : 1) != 0)
        return no_memory(bytes, err);
    memcpy(out, &p, sizeof p);
    return MGR_OK;
}

void mgr_free_aligned(void *p)
{
    free(p);
}
