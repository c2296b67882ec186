/*
 * mgr-bench: the least that could be asked of the same ranks and the same file system in the place
 * of a run. There are several ways, and none is the fastest everywhere; the best of a round counts.
 */
#include <assert.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cli/bench.h"
#include "core/mem.h"
#include "form/source.h"
#include "io/file.h"
#include "mgr/config.h"

#define BUFFER_MIN ((uint64_t)64 << 20)
#define BUFFER_MAX ((uint64_t)512 << 20)

const char *mgr_bench_way_name(int way)
{
    static const char *const names[MGR_BENCH_WAYS] = {[MGR_BENCH_PLAIN] = "plain",
                                                      [MGR_BENCH_WRITEBACK] = "writeback",
                                                      [MGR_BENCH_RESERVED] = "reserved"};
    return names[way];
}

/* What comes out of a cache is no weight: these have been read from memory. */
static int make_buffer(mgr_bench_floor *f, mgr_err *err)
{
    uint64_t state = 0x9E3779B97F4A7C15u;
#ifdef _SC_LEVEL3_CACHE_SIZE
    const long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
#else
    const long cache = 0;
#endif
    f->buffer_bytes = cache > 0 ? 2 * (uint64_t)cache : BUFFER_MIN;
    f->buffer_bytes = f->buffer_bytes < BUFFER_MIN   ? BUFFER_MIN
                      : f->buffer_bytes > BUFFER_MAX ? BUFFER_MAX
                                                     : f->buffer_bytes;
    f->buffer_bytes -= f->buffer_bytes % MGR_BENCH_BLOCK;
    MGR_TRY(mgr_alloc_aligned(&f->buffer, f->buffer_bytes, err));
    for (uint64_t at = 0; at < f->buffer_bytes; at += sizeof state) { /* nothing that shrinks */
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        memcpy(f->buffer + at, &state, sizeof state);
    }
    return MGR_OK;
}

static int find_source(const mgr_benched *b, mgr_bench_floor *f, mgr_err *err)
{
    mgr_arena arena = {0};
    mgr_config *config = NULL;
    mgr_source_files files = {0};
    int rc = mgr_alloc(&config, 1, sizeof *config, err);
    if (rc == MGR_OK) {
        snprintf(config->source.path, sizeof config->source.path, "%s", b->source);
        snprintf(config->source.iteration, sizeof config->source.iteration, "latest");
        rc = mgr_source_find("megatron-torch")->find(config, &arena, &files, err);
    }
    if (rc == MGR_OK)
        rc = mgr_bench_list(&f->source, "", files.paths, files.n, err);
    mgr_free(config);
    mgr_arena_clear(&arena);
    return rc;
}

int mgr_bench_floor_init(const mgr_benched *b, mgr_bench_floor *floor, bool copies, mgr_err *err)
{
    *floor = (mgr_bench_floor){.copies = copies};
    MGR_TRY(make_buffer(floor, err));
    return copies ? find_source(b, floor, err) : MGR_OK;
}

void mgr_bench_floor_clear(mgr_bench_floor *floor)
{
    mgr_arena_clear(&floor->source.arena);
    mgr_free_aligned(floor->buffer);
}

/* Bytes at `at` of the source's files, one behind the other and again from the start, into a block.
 */
static int read_source(const mgr_bench_files *f, uint64_t at, unsigned char *into, size_t n,
                       mgr_err *err)
{
    assert(f->bytes > 0);
    for (size_t done = 0; done < n;) {
        uint64_t offset = (at + done) % f->bytes;
        size_t i = 0;
        int fd;
        for (; offset >= f->sizes[i]; i++)
            offset -= f->sizes[i];
        const uint64_t left = f->sizes[i] - offset;
        const size_t part = left < n - done ? (size_t)left : n - done;
        MGR_TRY(mgr_open_read(f->paths[i], &fd, err));
        const int rc = mgr_pread_full(fd, f->paths[i], into + done, part, offset, err);
        mgr_close(fd);
        MGR_TRY(rc);
        done += part;
    }
    return MGR_OK;
}

/* How it is done, and by whom. */
typedef struct share {
    const mgr_bench_floor *floor;
    int way;
    uint64_t from, end; /* of all bytes */
} share;

static const char *name_of(const mgr_benched *b, size_t i, char out[600])
{
    snprintf(out, 600, "%s/%zu", b->plain, i);
    return out;
}

/* Rank 0: all files at their full size, as a run makes them. */
static int make_files(const mgr_benched *b, int way, mgr_err *err)
{
    char path[600];
    MGR_TRY(mgr_make_dir(b->plain, err));
    for (size_t i = 0; i < b->files.n; i++) {
        int fd;
        MGR_TRY(mgr_create_open(name_of(b, i, path), &fd, err));
        int rc = mgr_set_size(fd, path, b->files.sizes[i], err);
        if (rc == MGR_OK && way == MGR_BENCH_RESERVED)
            rc = mgr_reserve(fd, path, b->files.sizes[i], err);
        mgr_close(fd);
        if (rc == MGR_ERR_UNSUPPORTED) /* not every file system can */
            *err = (mgr_err)MGR_ERR_INIT, rc = MGR_OK;
        MGR_TRY(rc);
    }
    return MGR_OK;
}

/* This rank's part of a file that begins at `begin` of all bytes, durable. */
static int write_part(const share *s, const char *path, uint64_t begin, uint64_t size, mgr_err *err)
{
    const uint64_t first = s->from > begin ? s->from - begin : 0;
    const uint64_t end = s->end < begin + size ? s->end - begin : size;
    const mgr_bench_floor *const f = s->floor;
    int fd, rc = MGR_OK;
    MGR_TRY(mgr_open_write(path, &fd, err));
    for (uint64_t at = first; rc == MGR_OK && at < end; at += MGR_BENCH_BLOCK) {
        const size_t n = (size_t)(end - at < MGR_BENCH_BLOCK ? end - at : MGR_BENCH_BLOCK);
        unsigned char *const block =
            f->buffer +
            (f->copies ? 0 : (begin + at) / MGR_BENCH_BLOCK * MGR_BENCH_BLOCK % f->buffer_bytes);
        if (f->copies)
            rc = read_source(&f->source, begin + at, block, n, err);
        if (rc == MGR_OK)
            rc = mgr_pwrite_full(fd, path, block, n, at, err);
        if (s->way != MGR_BENCH_PLAIN)
            mgr_begin_writeback(fd, at, n);
    }
    const int closed = mgr_sync_close(fd, path, err);
    return rc != MGR_OK ? rc : closed;
}

static int write_share(const mgr_benched *b, void *context, mgr_err *err)
{
    const share *const s = context;
    const bool root = mgr_comm_rank(b->comm) == 0;
    char path[600];
    uint64_t begin = 0;
    MGR_TRY(mgr_agree(b->comm, root ? make_files(b, s->way, err) : MGR_OK, err));
    int rc = MGR_OK;
    for (size_t i = 0; rc == MGR_OK && i < b->files.n; begin += b->files.sizes[i++])
        if (begin < s->end && begin + b->files.sizes[i] > s->from)
            rc = write_part(s, name_of(b, i, path), begin, b->files.sizes[i], err);
    return rc;
}

int mgr_bench_floor_cost(const mgr_benched *b, const mgr_bench_floor *floor, int way,
                         mgr_bench_cost *cost, mgr_err *err)
{
    const uint64_t ranks = (uint64_t)mgr_comm_size(b->comm),
                   rank = (uint64_t)mgr_comm_rank(b->comm);
    share s = {floor, way, b->files.bytes * rank / ranks, b->files.bytes * (rank + 1) / ranks};
    const int rc = mgr_bench_cost_of(b, write_share, &s, cost, err);
    mgr_err ignored = MGR_ERR_INIT;
    const int removed = rank == 0 ? mgr_remove_tree(b->plain, &ignored) : MGR_OK;
    return rc != MGR_OK ? rc : mgr_agree(b->comm, removed, &ignored);
}
