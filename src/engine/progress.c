#include "engine/progress.h"

#include <stdbool.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "core/mem.h"
#include "core/say_run.h"

struct mgr_progress {
    mgr_comm *comm;
    double seconds, start, last;
    uint64_t totals[2], before[2];
    uint64_t mine[3]; /* read, written, done */
    uint64_t *seen;   /* [ranks][3], rank 0 */
    const char *phase;
    bool terminal, shown, finished;
};

int mgr_progress_start(mgr_progress **out, mgr_comm *comm, double seconds, const mgr_plan *plan,
                       mgr_err *err)
{
    mgr_progress *p;
    *out = NULL;
    if (seconds <= 0)
        return MGR_OK;
    MGR_TRY(mgr_alloc(&p, 1, sizeof *p, err));
    const int rc = mgr_alloc(&p->seen, 3 * (size_t)mgr_comm_size(comm), sizeof *p->seen, err);
    if (rc != MGR_OK) {
        mgr_free(p);
        return rc;
    }
    p->comm = comm;
    p->terminal = isatty(STDERR_FILENO);
    p->seconds = p->terminal && seconds > 1 ? 1 : seconds;
    p->phase = "write";
    p->start = p->last = mgr_now();
    p->totals[0] = plan->total_in;
    p->totals[1] = plan->total_out;
    p->before[0] = plan->done_in;
    p->before[1] = plan->done_out;
    *out = p;
    return MGR_OK;
}

static void take_posts(mgr_progress *p)
{
    uint64_t values[3];
    int rank;
    while (mgr_progress_poll(p->comm, &rank, values))
        for (int k = 0; k < 3; k++)
            p->seen[3 * rank + k] = values[k];
    for (int k = 0; k < 3; k++)
        p->seen[k] = p->mine[k];
}

static int all_done(const mgr_progress *p)
{
    for (int r = 0; r < mgr_comm_size(p->comm); r++)
        if (!p->seen[3 * r + 2])
            return 0;
    return 1;
}

static void say_json(const mgr_progress *p, const uint64_t sum[2], double elapsed, double left)
{
    const mgr_fact facts[] = {{.key = "phase", .text = p->phase},
                              {.key = "read", .number = (double)sum[0]},
                              {.key = "read_of", .number = (double)p->totals[0]},
                              {.key = "written", .number = (double)sum[1]},
                              {.key = "written_of", .number = (double)p->totals[1]},
                              {.key = "seconds", .number = elapsed},
                              {.key = "seconds_left", .number = left}};
    mgr_say_event("progress", facts, sizeof facts / sizeof facts[0]);
}

static void print_line(mgr_progress *p, double now)
{
    uint64_t sum[2] = {p->before[0], p->before[1]};
    for (int r = 0; r < mgr_comm_size(p->comm); r++)
        for (int k = 0; k < 2; k++)
            sum[k] += p->seen[3 * r + k];
    const double elapsed = now - p->start > 1e-3 ? now - p->start : 1e-3;
    const double done = (double)(sum[0] + sum[1]);
    const double now_done = done - (double)(p->before[0] + p->before[1]);
    const double total = (double)(p->totals[0] + p->totals[1]) + 1;
    const double share = done < total ? done / total : 1.0;
    const double left = now_done > 0 && total > done ? elapsed * (total - done) / now_done : 0;
    if (mgr_says_json()) {
        say_json(p, sum, elapsed, left);
        return;
    }
    mgr_say_bytes(p->phase, share, (double)sum[1], (double)p->totals[1], now_done / elapsed, left);
    p->shown = true;
}

void mgr_progress_phase(mgr_progress *p, const char *phase)
{
    if (p)
        p->phase = phase;
}

static void tick(mgr_progress *p)
{
    const double now = mgr_now();
    const int root = mgr_comm_rank(p->comm) == 0;
    if (now - p->last < (root ? p->seconds : p->seconds / 2))
        return;
    p->last = now;
    if (!root) {
        mgr_progress_post(p->comm, p->mine);
        return;
    }
    take_posts(p);
    print_line(p, now);
}

void mgr_progress_add(mgr_progress *p, uint64_t bytes_read, uint64_t bytes_written)
{
    if (!p)
        return;
    p->mine[0] += bytes_read;
    p->mine[1] += bytes_written;
    tick(p);
}

void mgr_progress_finish(mgr_progress *p, bool whole)
{
    if (!p)
        return;
    const struct timespec pause = {0, 2000000};
    p->mine[2] = 1;
    p->finished = whole;
    if (mgr_comm_rank(p->comm) != 0) {
        mgr_progress_post_last(p->comm, p->mine);
        return;
    }
    take_posts(p);
    while (!all_done(p)) {
        nanosleep(&pause, NULL);
        take_posts(p);
        tick(p);
    }
}

void mgr_progress_stop(mgr_progress *p)
{
    if (!p)
        return;
    if (mgr_comm_rank(p->comm) == 0) {
        take_posts(p);
        if (!p->finished) /* how far it got */
            print_line(p, mgr_now());
        if (p->terminal && p->shown)
            fputs("\n", stderr);
    }
    mgr_progress_drain(p->comm);
    mgr_progress_drop(p);
}

void mgr_progress_drop(mgr_progress *p)
{
    if (!p)
        return;
    mgr_free(p->seen);
    mgr_free(p);
}
