/* mgr-bench: what it takes to read back what a run wrote. */
#include <stdio.h>
#include <stdlib.h>

#include "cli/bench.h"
#include "core/mem.h"
#include "io/file.h"
#include "look/audit.h"
#include "run/run.h"

/* This rank's share of one file, which begins at `begin` of all bytes, in blocks, and nothing done
 * with it. */
static int read_part(const mgr_benched *b, size_t i, uint64_t begin, unsigned char *block,
                     mgr_err *err)
{
    const mgr_bench_files *const f = &b->files;
    const uint64_t ranks = (uint64_t)mgr_comm_size(b->comm),
                   rank = (uint64_t)mgr_comm_rank(b->comm);
    const uint64_t from = f->bytes * rank / ranks, to = f->bytes * (rank + 1) / ranks;
    const uint64_t first = from > begin ? from : begin;
    const uint64_t end = to < begin + f->sizes[i] ? to : begin + f->sizes[i];
    int fd, rc = MGR_OK;
    if (first >= end)
        return MGR_OK;
    MGR_TRY(mgr_open_read(f->paths[i], &fd, err));
    for (uint64_t at = first; rc == MGR_OK && at < end; at += MGR_BENCH_BLOCK)
        rc = mgr_pread_full(fd, f->paths[i], block,
                            (size_t)(end - at < MGR_BENCH_BLOCK ? end - at : MGR_BENCH_BLOCK),
                            at - begin, err);
    mgr_close(fd);
    return rc;
}

static int read_plainly(const mgr_benched *b, mgr_err *err)
{
    unsigned char *block = NULL;
    uint64_t begin = 0;
    int rc = mgr_alloc_aligned(&block, MGR_BENCH_BLOCK, err);
    for (size_t i = 0; rc == MGR_OK && i < b->files.n; begin += b->files.sizes[i++])
        rc = read_part(b, i, begin, block, err);
    mgr_free_aligned(block);
    return rc;
}

/* What the run wrote is to come from the disk again. */
static int drop_all(const mgr_benched *b, mgr_err *err)
{
    int rc = MGR_OK;
    for (size_t i = 0; rc == MGR_OK && mgr_comm_rank(b->comm) == 0 && i < b->files.n; i++)
        rc = mgr_drop_cached(b->files.paths[i], err);
    return mgr_agree(b->comm, rc, err);
}

/* Seconds of a plain read of the target, from the disk. */
static int plain_seconds(const mgr_benched *b, double *seconds, mgr_err *err)
{
    MGR_TRY(drop_all(b, err));
    const double start = mgr_now();
    MGR_TRY(mgr_agree(b->comm, read_plainly(b, err), err));
    *seconds = mgr_now() - start;
    return MGR_OK;
}

/* Seconds of three ways of reading the target, each from the disk. Plain reads come before and
 * after: what was just written may come back faster, whoever reads it first. */
static int read_seconds(const mgr_benched *b, double *plain, double *checked, double *again,
                        mgr_err *err)
{
    const mgr_audit_options audit = {.path = b->target, .quiet = true};
    const mgr_run_options options = {.config_path = b->config, .verbosity = -1};
    double before, after;
    bool good = true, same = true;
    MGR_TRY(plain_seconds(b, &before, err));
    MGR_TRY(drop_all(b, err));
    double start = mgr_now();
    MGR_TRY(mgr_audit(b->comm, &audit, &good, err));
    *checked = mgr_now() - start;
    MGR_TRY(plain_seconds(b, &after, err));
    *plain = (before + after) / 2;
    MGR_TRY(drop_all(b, err));
    start = mgr_now();
    MGR_TRY(mgr_run_verify(b->comm, &options, &same, NULL, err));
    *again = mgr_now() - start;
    return good && same ? MGR_OK : mgr_fail(err, MGR_ERR_INTERNAL, "the output is not whole");
}

/* One round; ratios of mgr-verify's rate, of --verify's seconds, and the share of the checks. */
static int read_round(mgr_benched *b, uint64_t round, double ratio[3], mgr_err *err)
{
    double plain, checked, again;
    mgr_bench_cost run;
    mgr_tally tally = {0};
    MGR_TRY(mgr_bench_cost_of(b, mgr_bench_run, &tally, &run, err));
    MGR_TRY(mgr_bench_list_target(b, err)); /* times are in some, which are not as long each time */
    MGR_TRY(read_seconds(b, &plain, &checked, &again, err));
    MGR_TRY(mgr_bench_remove_target(b, err));
    ratio[0] = plain / checked;
    ratio[1] = again / run.seconds;
    ratio[2] = (tally.seconds_proof + tally.seconds_publish) / run.seconds;
    if (b->report && !b->options->json)
        printf("  %-6llu %8.2f GB/s %8.2f GB/s %6.2f %8.2f s %8.2f s %6.2f %8.1f %%\n",
               (unsigned long long)round, (double)b->files.bytes / plain / 1e9,
               (double)b->files.bytes / checked / 1e9, ratio[0], run.seconds, again, ratio[1],
               ratio[2] * 100);
    fflush(stdout);
    return MGR_OK;
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
