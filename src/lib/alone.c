/*
 * par/comm.h for one process and without MPI, so that libmgr.so asks for none: a program that has
 * its own MPI keeps it to itself.
 */
#include "par/comm.h"

#include <stdio.h>
#include <time.h>

#include "core/mem.h"

struct mgr_comm {
    int ranks;
};

double mgr_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

int mgr_comm_alone(mgr_comm **out, mgr_err *err)
{
    MGR_TRY(mgr_alloc(out, 1, sizeof **out, err));
    (*out)->ranks = 1;
    return MGR_OK;
}

void mgr_comm_stop(mgr_comm *comm)
{
    mgr_free(comm);
}

int mgr_comm_rank(const mgr_comm *comm)
{
    (void)comm;
    return 0;
}

int mgr_comm_size(const mgr_comm *comm)
{
    return comm->ranks;
}

uint64_t mgr_comm_calls(const mgr_comm *comm)
{
    (void)comm;
    return 0;
}

uint64_t mgr_sum_calls(size_t n)
{
    (void)n;
    return 0;
}

int mgr_agree(mgr_comm *comm, int rc, mgr_err *err)
{
    (void)comm;
    if (rc != MGR_OK && err->code == MGR_OK)
        mgr_fail(err, (mgr_code)rc, "%s", mgr_code_text(rc));
    return rc;
}

int mgr_bcast_bytes(mgr_comm *comm, mgr_buf *buf, mgr_err *err)
{
    (void)comm, (void)buf, (void)err;
    return MGR_OK;
}

int mgr_allgather_bytes(mgr_comm *comm, const mgr_buf *mine, mgr_buf *all, mgr_err *err)
{
    (void)comm;
    return mgr_buf_add(all, mine->data ? mine->data : "", mine->len, err);
}

int mgr_gather_bytes(mgr_comm *comm, const mgr_buf *mine, mgr_buf *all, mgr_err *err)
{
    return mgr_allgather_bytes(comm, mine, all, err);
}

int mgr_sum_i64(mgr_comm *comm, int64_t *values, size_t n, mgr_err *err)
{
    (void)comm, (void)values, (void)n, (void)err;
    return MGR_OK;
}

void mgr_progress_post(mgr_comm *comm, const uint64_t values[3])
{
    (void)comm, (void)values;
}

void mgr_progress_post_last(mgr_comm *comm, const uint64_t values[3])
{
    (void)comm, (void)values;
}

int mgr_progress_poll(mgr_comm *comm, int *rank, uint64_t values[3])
{
    (void)comm, (void)rank, (void)values;
    return 0;
}

void mgr_progress_drain(mgr_comm *comm)
{
    (void)comm;
}
