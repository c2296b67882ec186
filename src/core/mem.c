#include "core/mem.h"

#include <assert.h>
#include <malloc.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/str.h"

static uint64_t fail_at;

/* What is allocated, as the allocator counts it, and the most that may be; 0: no bound. */
static _Atomic uint64_t held;
static uint64_t most, named;
static _Atomic bool missed; /* a library's allocation failed */

void mgr_alloc_fail_at(uint64_t k)
{
    fail_at = k;
}

static int planted_failure(void)
{
    return fail_at != 0 && --fail_at == 0;
}

/* Blocks of this size and more go back to the system as they are freed. glibc raises the bound
 * by itself as it sees such blocks, and then keeps them; the peak would be what it kept. */
#define OWN_MAPPING (1 << 20)

void mgr_mem_bound(uint64_t total, uint64_t resident)
{
    const uint64_t others = resident > held ? resident - held : 0;
    (void)mallopt(M_MMAP_THRESHOLD, OWN_MAPPING);
    named = total;
    most = total > others ? total - others : 1;
}

uint64_t mgr_mem_held(void)
{
    return held;
}

void mgr_mem_trim(void)
{
    (void)malloc_trim(0);
}

static bool has_room(uint64_t more)
{
    return most == 0 || (held <= most && more <= most - held);
}

int mgr_mem_fail(uint64_t bytes, mgr_err *err)
{
    char bound[32], room[32], asked[32];
    if (has_room(bytes) || bytes > UINT64_MAX / 4)
        return mgr_fail(err, MGR_ERR_NOMEM, "cannot allocate %llu bytes",
                        (unsigned long long)bytes);
    const uint64_t left = most > held ? most - held : 0;
    const uint64_t need = (named - left + bytes) / (1 << 20) + 1;
    mgr_fail(err, MGR_ERR_NOMEM, "memory_per_rank is %s, %s of it are left, and %s are needed",
             mgr_format_bytes(named, bound, sizeof bound),
             mgr_format_bytes(left, room, sizeof room),
             mgr_format_bytes(bytes, asked, sizeof asked));
    mgr_hint(err, "set memory_per_rank to %lluMiB or more", (unsigned long long)(need + need / 4));
    return MGR_ERR_NOMEM;
}

static void *counted(void *p)
{
    held += p ? malloc_usable_size(p) : 0;
    return p;
}

/* Only what was counted: a block that a library allocated is freed as it says, not here. */
static void uncounted(void *p)
{
    const uint64_t bytes = p ? malloc_usable_size(p) : 0;
    assert(held >= bytes);
    held -= bytes;
}

/* The last bytes that libraries get. jansson drops a character where its buffer cannot grow, and
 * then aborts over the text that it spoilt; with these it comes to an end, and `missed` tells. */
static _Alignas(max_align_t) unsigned char reserve[1 << 16];
static size_t reserved;

static bool is_reserve(const void *p)
{
    return (uintptr_t)p >= (uintptr_t)reserve &&
           (uintptr_t)p < (uintptr_t)(reserve + sizeof reserve);
}

static void *take_reserve(size_t bytes)
{
    const size_t step = (bytes / sizeof(max_align_t) + 1) * sizeof(max_align_t);
    if (bytes >= sizeof reserve || step > sizeof reserve - reserved)
        return NULL;
    void *const p = reserve + reserved;
    reserved += step;
    return p;
}

void *mgr_mem_take(size_t bytes)
{
    void *const p =
        planted_failure() || !has_room(bytes) ? NULL : counted(malloc(bytes ? bytes : 1));
    missed = missed || !p;
    return p ? p : take_reserve(bytes);
}

bool mgr_mem_missed(void)
{
    return missed;
}

int mgr_alloc(void *out, size_t n, size_t size, mgr_err *err)
{
    uint64_t bytes;
    if (mgr_mul_overflow(n, size, &bytes) || bytes > SIZE_MAX / 2)
        return mgr_mem_fail(UINT64_MAX, err);
    void *const p =
        planted_failure() || !has_room(bytes) ? NULL : calloc(1, bytes ? (size_t)bytes : 1);
    if (!p)
        return mgr_mem_fail(bytes, err);
    counted(p);
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
        return mgr_mem_fail(UINT64_MAX, err);
    void *old = NULL;
    memcpy(&old, array, sizeof old);
    const uint64_t more = bytes - *capacity * size;
    const uint64_t before = old ? malloc_usable_size(old) : 0;
    char *const p = planted_failure() || !has_room(more) ? NULL : realloc(old, (size_t)bytes);
    if (!p)
        return mgr_mem_fail(more, err);
    held -= before;
    counted(p);
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
    if (is_reserve(p)) /* taken once */
        return;
    uncounted(p);
    free(p);
}

int mgr_alloc_aligned(void *out, size_t bytes, mgr_err *err)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    void *p = NULL;
    if (planted_failure() || !has_room(bytes) || posix_memalign(&p, page, bytes ? bytes : 1) != 0)
        return mgr_mem_fail(bytes, err);
    counted(p);
    memcpy(out, &p, sizeof p);
    return MGR_OK;
}

void mgr_free_aligned(void *p)
{
    mgr_free(p);
}
