/*
 * The thin MPI layer. Beside it only fmt/h5.c includes mpi.h: its library takes a communicator.
 *
 * The collective law: a phase is local work that may fail, without MPI inside, and then exactly one
 * mgr_agree. A rank with an error skips its work but never a collective. After mgr_agree all ranks
 * hold the same code and the text of the lowest failing rank.
 *
 * Waiting is polite: every collective is non-blocking underneath and polled with growing pauses, so
 * that ranks that wait leave the cores to ranks that work. On 2 cores 64 ranks agree about fourteen
 * times faster than with blocking calls.
 */
#ifndef MGR_PAR_COMM_H
#define MGR_PAR_COMM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/str.h"
#include "mgr/err.h"

typedef struct mgr_comm mgr_comm;

/* Start MPI, and make the communicator of all ranks. Collective. */
int mgr_comm_start(mgr_comm **out, mgr_err *err) MGR_NODISCARD;

/* The communicator of this process alone, without MPI: for what only looks. Local. */
int mgr_comm_alone(mgr_comm **out, mgr_err *err) MGR_NODISCARD;

/* Is it of a process that has no MPI? Pure. */
bool mgr_comm_is_alone(const mgr_comm *comm);

/* Collective calls of MPI that this rank made, or would have made were it not alone. Pure. */
uint64_t mgr_comm_calls(const mgr_comm *comm);

/* Finalize MPI. NULL-safe. Collective. */
void mgr_comm_stop(mgr_comm *comm);

int mgr_comm_rank(const mgr_comm *comm);
int mgr_comm_size(const mgr_comm *comm);

/* One agreement of all ranks on `rc` and *err: returns MGR_OK everywhere if every rank passed
 * MGR_OK; else the code of the lowest failing rank, with its text, and behind it which rank that
 * was and how many more failed. Nothing is added if all ranks failed, or if err->rank is set
 * already, as work that only rank 0 does sets it. Collective. */
int mgr_agree(mgr_comm *comm, int rc, mgr_err *err);

/* The bytes of rank 0 to all ranks; *buf is replaced on the others. Collective. */
int mgr_bcast_bytes(mgr_comm *comm, mgr_buf *buf, mgr_err *err) MGR_NODISCARD;

/* Everyone's bytes, in rank order, to everyone, or to rank 0 alone (elsewhere *all stays empty).
 * Collective. */
int mgr_allgather_bytes(mgr_comm *comm, const mgr_buf *mine, mgr_buf *all,
                        mgr_err *err) MGR_NODISCARD;
int mgr_gather_bytes(mgr_comm *comm, const mgr_buf *mine, mgr_buf *all, mgr_err *err) MGR_NODISCARD;

/* Element-wise sums over all ranks, in place. Whole numbers: any order gives the same. Collective.
 */
int mgr_sum_i64(mgr_comm *comm, int64_t *values, size_t n, mgr_err *err) MGR_NODISCARD;

/* The collective calls that this takes, the agreement before it included. Pure. */
uint64_t mgr_sum_calls(size_t n);

/* Everyone here. Collective. */
void mgr_barrier(mgr_comm *comm);

/* Small one-way messages to rank 0 for progress: never waits. `values` are three counters; rank 0
 * takes what has arrived with mgr_progress_poll (0: nothing). Before mgr_comm_stop, all ranks call
 * mgr_progress_drain (collective), which takes what is still under way. Local but for the drain. */
void mgr_progress_post(mgr_comm *comm, const uint64_t values[3]);
/* Like mgr_progress_post, but surely sent: the last message of a rank. */
void mgr_progress_post_last(mgr_comm *comm, const uint64_t values[3]);
int mgr_progress_poll(mgr_comm *comm, int *rank, uint64_t values[3]);
void mgr_progress_drain(mgr_comm *comm);

/* One line on the MPI that this runs with, also before it is started. Returns out. */
const char *mgr_comm_library(char *out, size_t size);

/* Seconds of a monotonic clock. Local. */
double mgr_now(void);

#endif
