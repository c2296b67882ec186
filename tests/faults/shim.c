/*
 * Faults below the program, by LD_PRELOAD: the k-th call of a kind on files below a folder fails,
 * moves only a part, or ends the process.
 *
 *   MGR_SHIM=CALL:K:WHAT     CALL: pread pwrite fsync close open ftruncate fallocate rename mkdir
 *                            unlink malloc; read and write count as pread and pwrite
 *                            WHAT: an errno | +errno, from the K-th on | short, half of it |
 *                            none, a transfer of 0 bytes | kill
 *   MGR_SHIM=list            nothing fails
 *   MGR_SHIM_UNDER=FOLDER    whose files; descriptors are known by their paths
 *   MGR_SHIM_NAME=TEXT       only those with this in their path
 *   MGR_SHIM_RANK=R          of one rank only
 *   MGR_SHIM_LOG=FILE        a line for each call that failed; of `list`, for each that could have
 *
 * malloc is the program's own calls alone: what its libraries do without memory is their affair.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <link.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum what { NOTHING, FAIL, FAIL_ON, SHORT, NONE, KILL, LIST };

static struct {
    enum what what;
    char call[16];
    long k;
    int error, rank, log;
    const char *under, *name;
    uintptr_t code, code_end; /* of the program itself */
} plan = {.log = -1};

static atomic_long counts[16];
static const char *const calls[] = {"pread",     "pwrite", "fsync", "close",  "open",   "ftruncate",
                                    "fallocate", "rename", "mkdir", "unlink", "malloc", NULL};

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t),
    *__libc_memalign(size_t, size_t);

/* ---- the plan ---- */

static int find_program(struct dl_phdr_info *info, size_t size, void *unused)
{
    (void)size, (void)unused; /* the program comes first */
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *const p = &info->dlpi_phdr[i];
        if (p->p_type == PT_LOAD && (p->p_flags & PF_X)) {
            plan.code = info->dlpi_addr + p->p_vaddr;
            plan.code_end = plan.code + p->p_memsz;
        }
    }
    return 1;
}

static int rank_of_environment(void)
{
    static const char *const names[] = {"PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK"};
    for (size_t i = 0; i < 3; i++)
        if (getenv(names[i]))
            return atoi(getenv(names[i]));
    return 0;
}

__attribute__((constructor)) static void read_plan(void)
{
    const char *const text = getenv("MGR_SHIM"), *const log = getenv("MGR_SHIM_LOG");
    const char *const rank = getenv("MGR_SHIM_RANK");
    char what[16] = "";
    plan.under = getenv("MGR_SHIM_UNDER");
    plan.name = getenv("MGR_SHIM_NAME");
    plan.rank = rank_of_environment();
    if (!text || !plan.under || (rank && atoi(rank) != plan.rank))
        return;
    dl_iterate_phdr(find_program, NULL);
    if (log)
        plan.log = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (strcmp(text, "list") == 0)
        plan.what = LIST;
    else if (sscanf(text, "%15[^:]:%ld:%15s", plan.call, &plan.k, what) == 3)
        plan.what = strcmp(what, "short") == 0  ? SHORT
                    : strcmp(what, "none") == 0 ? NONE
                    : strcmp(what, "kill") == 0 ? KILL
                    : what[0] == '+'            ? FAIL_ON
                                                : FAIL;
    plan.error = atoi(what[0] == '+' ? what + 1 : what);
}

static int is_meant(const char *path)
{
    const size_t len = strlen(plan.under);
    return strncmp(path, plan.under, len) == 0 && (path[len] == '/' || path[len] == '\0') &&
           (!plan.name || strstr(path, plan.name));
}

static void note(const char *call, long k, const char *path)
{
    char line[PATH_MAX + 64];
    const int n = snprintf(line, sizeof line, "%d %s %ld %s\n", plan.rank, call, k, path);
    if (plan.log >= 0 && write(plan.log, line, (size_t)n) < 0)
        plan.log = -1;
}

/* Is this the call? With its errno set, unless only a part is to be moved. */
static int strikes(const char *call, const char *path)
{
    int i = 0;
    while (strcmp(calls[i], call) != 0)
        i++;
    const long k = atomic_fetch_add(&counts[i], 1) + 1;
    if (plan.what == LIST)
        note(call, k, path);
    if (plan.what == LIST || k < plan.k || (k > plan.k && plan.what != FAIL_ON))
        return 0;
    note(call, k, path);
    if (plan.what == KILL)
        raise(SIGKILL);
    errno = plan.error;
    return 1;
}

static int is_planned(const char *call)
{
    return plan.what == LIST || (plan.what != NOTHING && strcmp(plan.call, call) == 0);
}

static int on_path(const char *call, int folder, const char *path)
{
    char full[PATH_MAX], link[64];
    if (!is_planned(call))
        return 0;
    if (path[0] != '/') {
        ssize_t n = -1;
        snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        if (folder == AT_FDCWD)
            n = getcwd(full, sizeof full) ? (ssize_t)strlen(full) : -1;
        else
            n = readlink(link, full, sizeof full - 1);
        if (n < 0 || (size_t)n + strlen(path) + 2 > sizeof full)
            return 0;
        full[n] = '/';
        strcpy(full + n + 1, path);
        path = full;
    }
    return is_meant(path) && strikes(call, path);
}

static int on_file(const char *call, int fd)
{
    char path[PATH_MAX], link[64];
    if (!is_planned(call) || fd == plan.log)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    const ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0)
        return 0;
    path[n] = '\0';
    return is_meant(path) && strikes(call, path);
}

static void *real(const char *name)
{
    return dlsym(RTLD_NEXT, name);
}

/* ---- transfers ---- */

/* What is left of a transfer that is struck; -1: it fails. */
static ssize_t part(size_t len)
{
    return plan.what == SHORT ? (ssize_t)(len > 1 ? len / 2 : len) : plan.what == NONE ? 0 : -1;
}

#define TRANSFER(name, call, arguments, pass)                                                      \
    ssize_t name arguments                                                                         \
    {                                                                                              \
        static ssize_t(*next) arguments;                                                           \
        if (!next)                                                                                 \
            next = (ssize_t(*) arguments)real(#name);                                              \
        const ssize_t n = on_file(call, fd) ? part(len) : (ssize_t)len;                            \
        if (n < 0 || (n == 0 && len > 0))                                                          \
            return n;                                                                              \
        len = (size_t)n;                                                                           \
        return next pass;                                                                          \
    }
TRANSFER(pread, "pread", (int fd, void *to, size_t len, off_t at), (fd, to, len, at))
TRANSFER(pread64, "pread", (int fd, void *to, size_t len, off_t at), (fd, to, len, at))
TRANSFER(pwrite, "pwrite", (int fd, const void *from, size_t len, off_t at), (fd, from, len, at))
TRANSFER(pwrite64, "pwrite", (int fd, const void *from, size_t len, off_t at), (fd, from, len, at))
TRANSFER(read, "pread", (int fd, void *to, size_t len), (fd, to, len))
TRANSFER(write, "pwrite", (int fd, const void *from, size_t len), (fd, from, len))

/* ---- descriptors ---- */

#define DESCRIPTOR(name, call, arguments, pass)                                                    \
    int name arguments                                                                             \
    {                                                                                              \
        static int(*next) arguments;                                                               \
        if (!next)                                                                                 \
            next = (int(*) arguments)real(#name);                                                  \
        return on_file(call, fd) ? -1 : next pass;                                                 \
    }
DESCRIPTOR(fsync, "fsync", (int fd), (fd))
DESCRIPTOR(fdatasync, "fsync", (int fd), (fd))
DESCRIPTOR(ftruncate, "ftruncate", (int fd, off_t len), (fd, len))
DESCRIPTOR(ftruncate64, "ftruncate", (int fd, off_t len), (fd, len))
DESCRIPTOR(fallocate, "fallocate", (int fd, int mode, off_t at, off_t len), (fd, mode, at, len))
DESCRIPTOR(fallocate64, "fallocate", (int fd, int mode, off_t at, off_t len), (fd, mode, at, len))

/* A close that fails has closed. */
int close(int fd)
{
    static int (*next)(int);
    if (!next)
        next = (int (*)(int))real("close");
    const int struck = on_file("close", fd);
    const int rc = next(fd);
    if (struck)
        errno = plan.error;
    return struck ? -1 : rc;
}

int posix_fallocate(int fd, off_t at, off_t len)
{
    static int (*next)(int, off_t, off_t);
    if (!next)
        next = (int (*)(int, off_t, off_t))real("posix_fallocate");
    return on_file("fallocate", fd) ? plan.error : next(fd, at, len);
}

/* ---- paths ---- */

#define OPEN(name)                                                                                 \
    int name(const char *path, int flags, ...)                                                     \
    {                                                                                              \
        static int (*next)(const char *, int, ...);                                                \
        va_list list;                                                                              \
        va_start(list, flags);                                                                     \
        const mode_t mode = flags & (O_CREAT) ? va_arg(list, mode_t) : 0;                          \
        va_end(list);                                                                              \
        if (!next)                                                                                 \
            next = (int (*)(const char *, int, ...))real(#name);                                   \
        return on_path("open", AT_FDCWD, path) ? -1 : next(path, flags, mode);                     \
    }
#define OPENAT(name)                                                                               \
    int name(int folder, const char *path, int flags, ...)                                         \
    {                                                                                              \
        static int (*next)(int, const char *, int, ...);                                           \
        va_list list;                                                                              \
        va_start(list, flags);                                                                     \
        const mode_t mode = flags & (O_CREAT) ? va_arg(list, mode_t) : 0;                          \
        va_end(list);                                                                              \
        if (!next)                                                                                 \
            next = (int (*)(int, const char *, int, ...))real(#name);                              \
        return on_path("open", folder, path) ? -1 : next(folder, path, flags, mode);               \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

#define PATH(name, call, folder, which, arguments, pass)                                           \
    int name arguments                                                                             \
    {                                                                                              \
        static int(*next) arguments;                                                               \
        if (!next)                                                                                 \
            next = (int(*) arguments)real(#name);                                                  \
        return on_path(call, folder, which) ? -1 : next pass;                                      \
    }
PATH(rename, "rename", AT_FDCWD, from, (const char *from, const char *to), (from, to))
PATH(renameat, "rename", a, from, (int a, const char *from, int b, const char *to),
     (a, from, b, to))
PATH(renameat2, "rename", a, from, (int a, const char *from, int b, const char *to, unsigned flags),
     (a, from, b, to, flags))
PATH(mkdir, "mkdir", AT_FDCWD, path, (const char *path, mode_t mode), (path, mode))
PATH(mkdirat, "mkdir", a, path, (int a, const char *path, mode_t mode), (a, path, mode))
PATH(unlink, "unlink", AT_FDCWD, path, (const char *path), (path))
PATH(rmdir, "unlink", AT_FDCWD, path, (const char *path), (path))
PATH(unlinkat, "unlink", a, path, (int a, const char *path, int flags), (a, path, flags))

/* ---- memory ---- */

static int on_memory(const void *caller)
{
    const uintptr_t at = (uintptr_t)caller;
    return is_planned("malloc") && at >= plan.code && at < plan.code_end &&
           strikes("malloc", "memory");
}

void *malloc(size_t len)
{
    return on_memory(__builtin_return_address(0)) ? NULL : __libc_malloc(len);
}

void *calloc(size_t n, size_t size)
{
    return on_memory(__builtin_return_address(0)) ? NULL : __libc_calloc(n, size);
}

void *realloc(void *p, size_t len)
{
    return on_memory(__builtin_return_address(0)) ? NULL : __libc_realloc(p, len);
}

int posix_memalign(void **p, size_t align, size_t len)
{
    if (on_memory(__builtin_return_address(0)))
        return ENOMEM;
    *p = __libc_memalign(align, len);
    return *p ? 0 : ENOMEM;
}

void *aligned_alloc(size_t align, size_t len)
{
    return on_memory(__builtin_return_address(0)) ? NULL : __libc_memalign(align, len);
}
