/* mgr-bench: what it takes to read back what a run wrote. */
#include <stdio.h>
#include <stdlib.h>

#include "cli/bench.h"
#include "core/mem.h"
#include "io/file.h"
#include "look/audit.h"
#include "run/run.h"

/* Reading plainly: the files, a block, and how many bytes there are. */
typedef struct reading {
    mgr_arena arena;
    const char **names; /* below the target; folders end in a slash */
    size_t n;
    uint64_t bytes;
    unsigned char *block;
} reading;

typedef int (*visit)(const mgr_benched *b, const reading *r, const char *path, uint64_t begin,
                     uint64_t size, mgr_err *err);

/* Each file of the target, as one stretch of bytes behind the other. */
static int each_file(const mgr_benched *b, reading *r, visit see, uint64_t *all, mgr_err *err)
{
    int rc = MGR_OK;
    *all = 0;
    for (size_t i = 0; rc == MGR_OK && i < r->n; i++) {
        const char *path;
        uint64_t size = 0;
        if (mgr_has_suffix(r->names[i], "/"))
            continue;
        rc = mgr_arena_fmt(&r->arena, &path, err, "%s/%s", b->target, r->names[i]);
        if (rc == MGR_OK)
            rc = mgr_file_bytes(path, &size, err);
        if (rc == MGR_OK && see)
            rc = see(b, r, path, *all, size, err);
        *all += size;
    }
    return rc;
}

/* This rank's share of one file, in blocks, and nothing done with it. */
static int plain_read(const mgr_benched *b, const reading *r, const char *path, uint64_t begin,
                      uint64_t size, mgr_err *err)
{
    const uint64_t ranks = (uint64_t)mgr_comm_size(b->comm),
                   rank = (uint64_t)mgr_comm_rank(b->comm);
    const uint64_t from = r->bytes * rank / ranks, to = r->bytes * (rank + 1) / ranks;
    const uint64_t first = from > begin ? from : begin;
    const uint64_t end = to < begin + size ? to : begin + size;
    int fd, rc = MGR_OK;
    if (first >= end)
        return MGR_OK;
    MGR_TRY(mgr_open_read(path, &fd, err));
    for (uint64_t at = first; rc == MGR_OK && at < end; at += MGR_BENCH_BLOCK)
        rc = mgr_pread_full(fd, path, r->block,
                            (size_t)(end - at < MGR_BENCH_BLOCK ? end - at : MGR_BENCH_BLOCK),
                            at - begin, err);
    mgr_close(fd);
    return rc;
}

static int drop(const mgr_benched *b, const reading *r, const char *path, uint64_t begin,
                uint64_t size, mgr_err *err)
{
    (void)b, (void)r, (void)begin, (void)size;
    return mgr_drop_cached(path, err);
}

/* What the run wrote is to come from the disk again. */
static int drop_all(const mgr_benched *b, reading *r, mgr_err *err)
{
    uint64_t all;
    const int rc = mgr_comm_rank(b->comm) == 0 ? each_file(b, r, drop, &all, err) : MGR_OK;
    return mgr_agree(b->comm, rc, err);
}

/* Seconds of a plain read of the target, from the disk. */
static int plain_seconds(const mgr_benched *b, reading *r, double *seconds, mgr_err *err)
{
    uint64_t all;
    MGR_TRY(drop_all(b, r, err));
    const double start = mgr_now();
    MGR_TRY(mgr_agree(b->comm, each_file(b, r, plain_read, &all, err), err));
    *seconds = mgr_now() - start;
    return MGR_OK;
}

/* Seconds of three ways of reading the target, each from the disk. Plain reads come before and
 * after: what was just written may come back faster, whoever reads it first. */
static int read_seconds(const mgr_benched *b, reading *r, double *plain, double *checked,
                        double *again, mgr_err *err)
{
    const mgr_audit_options audit = {.path = b->target, .quiet = true};
    const mgr_run_options options = {.config_path = b->config, .verbosity = -1};
    double before, after;
    bool good = true, same = true;
    MGR_TRY(plain_seconds(b, r, &before, err));
    MGR_TRY(drop_all(b, r, err));
    double start = mgr_now();
    MGR_TRY(mgr_audit(b->comm, &audit, &good, err));
    *checked = mgr_now() - start;
    MGR_TRY(plain_seconds(b, r, &after, err));
    *plain = (before + after) / 2;
    MGR_TRY(drop_all(b, r, err));
    start = mgr_now();
    MGR_TRY(mgr_run_verify(b->comm, &options, &same, NULL, err));
    *again = mgr_now() - start;
    return good && same ? MGR_OK : mgr_fail(err, MGR_ERR_INTERNAL, "the output is not whole");
}

/* What is there now; the block is taken beside. Local. */
static int begin_reading(const mgr_benched *b, reading *r, mgr_err *err)
{
    *r = (reading){.n = 0};
    MGR_TRY(mgr_alloc_aligned(&r->block, MGR_BENCH_BLOCK, err));
    MGR_TRY(mgr_list_tree(b->target, &r->arena, &r->names, &r->n, err));
    return each_file(b, r, NULL, &r->bytes, err);
}

/* One round; ratios of mgr-verify's rate, of --verify's seconds, and the share of the checks. */
static int read_round(const mgr_benched *b, uint64_t round, double ratio[3], mgr_err *err)
{
    double plain = 1, checked = 1, again = 1;
    mgr_bench_cost run;
    mgr_tally tally = {0};
    reading r;
    MGR_TRY(mgr_bench_cost_of(b, mgr_bench_run, &tally, &run, err));
    int rc = mgr_agree(b->comm, begin_reading(b, &r, err), err);
    if (rc == MGR_OK)
        rc = read_seconds(b, &r, &plain, &checked, &again, err);
    if (rc == MGR_OK)
        rc = mgr_bench_remove_target(b, err);
    ratio[0] = plain / checked;
    ratio[1] = again / run.seconds;
    ratio[2] = (tally.seconds_proof + tally.seconds_publish) / run.seconds;
    if (rc == MGR_OK && b->report && !b->options->json)
        printf("  %-6llu %8.2f GB/s %8.2f GB/s %6.2f %8.2f s %8.2f s %6.2f %8.1f %%\n",
               (unsigned long long)round, (double)r.bytes / plain / 1e9,
               (double)r.bytes / checked / 1e9, ratio[0], run.seconds, again, ratio[1],
               ratio[2] * 100);
    fflush(stdout);
    mgr_free_aligned(r.block);
    mgr_arena_clear(&r.arena);
    return rc;
}

int mgr_bench_reading(mgr_benched *b, mgr_err *err)
{
    static const char *const names[] = {"mgr_verify_rate", "verify_seconds", "checks_share"};
    double ratios[3][MGR_BENCH_MAX_ROUNDS];
    const uint64_t n = b->options->rounds;
    const bool tell = b->report && !b->options->json;
    if (tell)
        printf("reading back, from the disk\n  %-6s %13s %13s %6s %10s %10s %6s %10s\n", "round",
               "plain read", "mgr-verify", "ratio", "run", "--verify", "ratio", "checks");
    for (uint64_t i = 0; i < n; i++) {
        double ratio[3];
        MGR_TRY(read_round(b, i + 1, ratio, err));
        for (int k = 0; k < 3; k++)
            ratios[k][i] = ratio[k];
    }
    json_t *const to = b->report ? json_object() : NULL;
    for (int k = 0; k < 3; k++) {
        qsort(ratios[k], n, sizeof **ratios, mgr_bench_by_size);
        if (to)
            json_object_set_new(to, names[k], json_real(ratios[k][n / 2]));
    }
    if (to)
        json_object_set_new(b->report, "reading", to);
    if (tell)
        printf("  medians: mgr-verify at %.2f of plain reading; --verify in %.2f of the run; "
               "checksums, journal and reading back %.1f %% of it\n",
               ratios[0][n / 2], ratios[1][n / 2], ratios[2][n / 2] * 100);
    return MGR_OK;
}
