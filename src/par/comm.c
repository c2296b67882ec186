#include "par/comm.h"

#include <limits.h>
#include <mpi.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "core/mem.h"

#define PROGRESS_TAG 17
#define REDUCE_CHUNK ((size_t)1 << 20) /* elements per reduction: bounds MPI's own buffers */

struct mgr_comm {
    MPI_Comm comm, progress;
    int rank, size;
    int alone;              /* MPI was not started: nothing below may call it */
    uint64_t calls;         /* collective ones */
    uint64_t posted, taken; /* progress messages */
    uint64_t slot[3];       /* of the one message that may be under way */
    MPI_Request pending;
};

double mgr_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Poll until done: first only yielding, then with pauses that grow up to `longest_us`. */
static void wait_politely(MPI_Request *request, long longest_us)
{
    int done = 0;
    long pause_us = 10;
    for (int turn = 0; !done; turn++) {
        MPI_Test(request, &done, MPI_STATUS_IGNORE);
        if (done)
            break;
        if (turn < 50) {
            sched_yield();
            continue;
        }
        const struct timespec pause = {0, pause_us * 1000};
        nanosleep(&pause, NULL);
        if (pause_us < longest_us)
            pause_us += pause_us / 4; /* a fifth of what was waited: no phase ends much later */
    }
}

static long longest_pause(size_t bytes)
{
    return bytes > 65536 ? 40 : 1000; /* a long message advances only while it is polled */
}

int mgr_comm_start(mgr_comm **out, mgr_err *err)
{
    mgr_comm *c;
    int initialized = 0, level;
    MPI_Initialized(&initialized); /* threads beside this one do not call MPI, but there are some */
    if (!initialized && MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &level) != MPI_SUCCESS)
        return mgr_fail(err, MGR_ERR_MPI, "cannot start MPI");
    MGR_TRY(mgr_alloc(&c, 1, sizeof *c, err));
    MPI_Comm_dup(MPI_COMM_WORLD, &c->comm);
    MPI_Comm_dup(MPI_COMM_WORLD, &c->progress);
    MPI_Comm_rank(c->comm, &c->rank);
    MPI_Comm_size(c->comm, &c->size);
    c->pending = MPI_REQUEST_NULL;
    *out = c;
    return MGR_OK;
}

int mgr_comm_alone(mgr_comm **out, mgr_err *err)
{
    MGR_TRY(mgr_alloc(out, 1, sizeof **out, err));
    (*out)->size = 1;
    (*out)->alone = 1;
    return MGR_OK;
}

void mgr_comm_stop(mgr_comm *comm)
{
    if (!comm)
        return;
    if (comm->alone) {
        mgr_free(comm);
        return;
    }
    MPI_Comm_free(&comm->progress);
    MPI_Comm_free(&comm->comm);
    mgr_free(comm);
    MPI_Finalize();
}

int mgr_comm_rank(const mgr_comm *comm)
{
    return comm->rank;
}

int mgr_comm_size(const mgr_comm *comm)
{
    return comm->size;
}

bool mgr_comm_is_alone(const mgr_comm *comm)
{
    return comm->alone;
}

uint64_t mgr_comm_calls(const mgr_comm *comm)
{
    return comm->calls;
}

static void bcast(mgr_comm *c, void *bytes, size_t len, int root)
{
    char *at = bytes;
    while (len > 0) {
        const size_t n = len < INT_MAX ? len : INT_MAX;
        MPI_Request request;
        c->calls++;
        if (c->alone)
            return;
        MPI_Ibcast(at, (int)n, MPI_BYTE, root, c->comm, &request);
        wait_politely(&request, longest_pause(n));
        at += n;
        len -= n;
    }
}

int mgr_agree(mgr_comm *c, int rc, mgr_err *err)
{
    int first = rc != MGR_OK ? c->rank : INT_MAX, lowest = INT_MAX;
    MPI_Request request;
    c->calls++;
    if (c->alone && rc != MGR_OK && err->code == MGR_OK)
        mgr_fail(err, (mgr_code)rc, "%s", mgr_code_text(rc));
    if (c->alone)
        return rc;
    MPI_Iallreduce(&first, &lowest, 1, MPI_INT, MPI_MIN, c->comm, &request);
    wait_politely(&request, 1000);
    if (lowest == INT_MAX)
        return MGR_OK;
    int failed = rc != MGR_OK, total = 0;
    MPI_Iallreduce(&failed, &total, 1, MPI_INT, MPI_SUM, c->comm, &request);
    wait_politely(&request, 1000);
    if (c->rank == lowest) {
        if (err->code == MGR_OK)
            mgr_fail(err, (mgr_code)rc, "%s", mgr_code_text(rc));
        if (total < c->size && err->rank < 0) { /* what all ranks found needs no rank */
            char where[64];
            if (total > 1)
                snprintf(where, sizeof where, " (rank %d, and %d more of %d)", lowest, total - 1,
                         c->size);
            else
                snprintf(where, sizeof where, " (rank %d)", lowest);
            const size_t used = strlen(err->msg), len = strlen(where);
            if (used + len < sizeof err->msg)
                memcpy(err->msg + used, where, len + 1);
        }
        err->rank = lowest;
    }
    bcast(c, err, sizeof *err, lowest);
    return err->code;
}

int mgr_bcast_bytes(mgr_comm *c, mgr_buf *buf, mgr_err *err)
{
    uint64_t len = c->rank == 0 ? buf->len : 0;
    bcast(c, &len, sizeof len, 0);
    int rc = MGR_OK;
    if (c->rank != 0) {
        buf->len = 0;
        rc = mgr_grow(&buf->data, &buf->capacity, (size_t)len + 1, 1, err);
    }
    rc = mgr_agree(c, rc, err);
    if (rc != MGR_OK)
        return rc;
    if (len)
        bcast(c, buf->data, (size_t)len, 0);
    if (c->rank != 0) {
        buf->len = (size_t)len;
        buf->data[len] = '\0';
    }
    return MGR_OK;
}

/* Sizes to displacements; fails on all ranks alike. */
static int displacements(const mgr_comm *c, const int *counts, int *starts, size_t *total,
                         mgr_err *err)
{
    size_t sum = 0;
    for (int i = 0; i < c->size; i++) {
        starts[i] = (int)sum;
        sum += (size_t)counts[i];
        if (sum > INT_MAX)
            return mgr_fail(err, MGR_ERR_UNSUPPORTED, "ranks exchange more than 2 GiB at once");
    }
    *total = sum;
    return MGR_OK;
}

static int gather(mgr_comm *c, const mgr_buf *mine, mgr_buf *all, int everyone, mgr_err *err)
{
    int *counts = NULL;
    size_t total = 0;
    c->calls += 2;
    if (c->alone) {
        c->calls += 2; /* of the two agreements below */
        return mgr_buf_add(all, mine->data ? mine->data : "", mine->len, err);
    }
    const int len = mine->len < INT_MAX ? (int)mine->len : INT_MAX;
    MPI_Request request;
    int rc = mgr_agree(c, mgr_alloc(&counts, 2 * (size_t)c->size, sizeof *counts, err), err);
    if (rc != MGR_OK)
        goto out;
    MPI_Iallgather(&len, 1, MPI_INT, counts, 1, MPI_INT, c->comm, &request);
    wait_politely(&request, 1000);
    rc = displacements(c, counts, counts + c->size, &total, err);
    if (rc == MGR_OK && (everyone || c->rank == 0))
        rc = mgr_grow(&all->data, &all->capacity, total + 1, 1, err);
    rc = mgr_agree(c, rc, err);
    if (rc != MGR_OK)
        goto out;
    if (everyone)
        MPI_Iallgatherv(mine->data, len, MPI_BYTE, all->data, counts, counts + c->size, MPI_BYTE,
                        c->comm, &request);
    else
        MPI_Igatherv(mine->data, len, MPI_BYTE, all->data, counts, counts + c->size, MPI_BYTE, 0,
                     c->comm, &request);
    wait_politely(&request, longest_pause(total));
    if (everyone || c->rank == 0) {
        all->len = total;
        all->data[total] = '\0';
    }
out:
    mgr_free(counts);
    return rc;
}

int mgr_allgather_bytes(mgr_comm *comm, const mgr_buf *mine, mgr_buf *all, mgr_err *err)
{
    return gather(comm, mine, all, 1, err);
}

int mgr_gather_bytes(mgr_comm *comm, const mgr_buf *mine, mgr_buf *all, mgr_err *err)
{
    return gather(comm, mine, all, 0, err);
}

uint64_t mgr_sum_calls(size_t n)
{
    return 1 + n / REDUCE_CHUNK + (n % REDUCE_CHUNK != 0);
}

int mgr_sum_i64(mgr_comm *c, int64_t *values, size_t n, mgr_err *err)
{
    int64_t *sums = NULL;
    const size_t chunk = n < REDUCE_CHUNK ? n : REDUCE_CHUNK;
    c->calls += mgr_sum_calls(n) - 1;
    if (c->alone) {
        c->calls++; /* of the agreement below */
        return MGR_OK;
    }
    const int rc = mgr_agree(c, mgr_alloc(&sums, chunk, sizeof *sums, err), err);
    for (size_t at = 0; rc == MGR_OK && at < n; at += chunk) {
        const size_t part = n - at < chunk ? n - at : chunk;
        MPI_Request request;
        MPI_Iallreduce(values + at, sums, (int)part, MPI_INT64_T, MPI_SUM, c->comm, &request);
        wait_politely(&request, longest_pause(part * sizeof *sums));
        memcpy(values + at, sums, part * sizeof *sums);
    }
    mgr_free(sums);
    return rc;
}

void mgr_barrier(mgr_comm *c)
{
    MPI_Request request;
    c->calls++;
    if (c->alone)
        return;
    MPI_Ibarrier(c->comm, &request);
    wait_politely(&request, 1000);
}

void mgr_progress_post(mgr_comm *c, const uint64_t values[3])
{
    int done = 1;
    if (c->rank == 0)
        return;
    if (c->pending != MPI_REQUEST_NULL)
        MPI_Test(&c->pending, &done, MPI_STATUS_IGNORE);
    if (!done)
        return; /* rank 0 is busy; the next message says more anyway */
    memcpy(c->slot, values, sizeof c->slot);
    MPI_Isend(c->slot, 3, MPI_UINT64_T, 0, PROGRESS_TAG, c->progress, &c->pending);
    c->posted++;
}

void mgr_progress_post_last(mgr_comm *c, const uint64_t values[3])
{
    if (c->pending != MPI_REQUEST_NULL)
        wait_politely(&c->pending, 1000);
    mgr_progress_post(c, values);
}

int mgr_progress_poll(mgr_comm *c, int *rank, uint64_t values[3])
{
    int there = 0;
    MPI_Status status;
    if (c->alone)
        return 0;
    MPI_Iprobe(MPI_ANY_SOURCE, PROGRESS_TAG, c->progress, &there, &status);
    if (!there)
        return 0;
    MPI_Recv(values, 3, MPI_UINT64_T, status.MPI_SOURCE, PROGRESS_TAG, c->progress,
             MPI_STATUS_IGNORE);
    c->taken++;
    *rank = status.MPI_SOURCE;
    return 1;
}

void mgr_progress_drain(mgr_comm *c)
{
    uint64_t sent = 0;
    MPI_Request request;
    c->calls++;
    if (c->alone)
        return;
    MPI_Ireduce(&c->posted, &sent, 1, MPI_UINT64_T, MPI_SUM, 0, c->comm, &request);
    wait_politely(&request, 1000);
    while (c->rank == 0 && c->taken < sent) {
        uint64_t values[3];
        int rank;
        mgr_progress_poll(c, &rank, values);
    }
    if (c->pending != MPI_REQUEST_NULL)
        wait_politely(&c->pending, 1000);
}

/* "MPICH Version:\t4.0.2\nMPICH Release date...", "Open MPI v4.1.4, package: ...". */
const char *mgr_comm_library(char *out, size_t size)
{
    char text[MPI_MAX_LIBRARY_VERSION_STRING + 1] = "";
    int len = 0;
    if (MPI_Get_library_version(text, &len) != MPI_SUCCESS)
        len = 0;
    text[len] = '\0';
    text[strcspn(text, "\n,")] = '\0';
    for (char *c = text; *c; c++)
        *c = *c == '\t' ? ' ' : *c;
    snprintf(out, size, "%s", text);
    return out;
}
