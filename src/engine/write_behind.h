/*
 * Writing behind: threads of a rank that write, and sum what they write, while the rank makes what
 * comes next. What is written where does not depend on them.
 *
 *     mgr_write_behind *w;
 *     mgr_write_behind_start(&w, 1, &err);
 *     mgr_write_behind_put(w, &task, &extents, &err);    the bytes stay as they are until ...
 *     mgr_write_behind_wait(w, task.bytes, task.len);    ... this, and may change then
 *     mgr_write_behind_drain(w, &extents, lost, context, &err);
 *     mgr_write_behind_stop(w);
 *
 * One thread calls these functions. The others allocate nothing, open and close nothing, and know
 * nothing of MPI; what they are given is in a queue of fixed length, in order, and what comes back
 * of it is taken in the same order.
 */
#ifndef MGR_ENGINE_WRITE_BEHIND_H
#define MGR_ENGINE_WRITE_BEHIND_H

#include "engine/extents.h"
#include "mgr/err.h"

/* Most threads of a rank. */
#define MGR_MOST_WRITERS 16

typedef struct mgr_write_behind mgr_write_behind;

/* A stretch of a file: fd and all that is pointed to are borrowed until it is written. */
typedef struct mgr_write_task {
    int fd;
    const char *name; /* of the file, for messages */
    uint64_t at;      /* in the file */
    const void *bytes;
    size_t len;
    bool summed; /* extent.crc32 is that of the bytes; else it is found when they are written */
    mgr_extent extent; /* what is to be known of it */
} mgr_write_task;

/* Begin writing to the disk what is at least so long as soon as it is written; less is left for the
 * system to gather. */
#define MGR_WRITEBACK_MIN ((size_t)1 << 20)

/* Do a task, by the thread that calls: its bytes into the file, its sum into its extent. Local. */
int mgr_write_task_do(mgr_write_task *task, mgr_err *err) MGR_NODISCARD;

/* `threads` of them, 1 to MGR_MOST_WRITERS. Local. Errors: MGR_ERR_NOMEM where the system starts no
 * thread. */
int mgr_write_behind_start(mgr_write_behind **out, uint32_t threads, mgr_err *err) MGR_NODISCARD;

/* Queue a task; waits only where the queue is full. Extents of what was written meanwhile are added
 * to *written. Fails with the error of an earlier task, once one has failed. Local. */
int mgr_write_behind_put(mgr_write_behind *behind, const mgr_write_task *task, mgr_extents *written,
                         mgr_err *err) MGR_NODISCARD;

/* Until no task that is queued or being done is of bytes in [bytes, bytes + len). NULL-safe. Local.
 */
void mgr_write_behind_wait(mgr_write_behind *behind, const void *bytes, size_t len);

/* Told of a unit of which something was not written. */
typedef void mgr_unit_lost(void *context, uint32_t unit);

/* Until all is written, or given up because something failed: then with that error, and `lost` is
 * called for each task that is not known to be written. Extents of all that was are added to
 * *written. Behind a failure nothing more is taken. NULL-safe. Local. */
int mgr_write_behind_drain(mgr_write_behind *behind, mgr_extents *written, mgr_unit_lost *lost,
                           void *context, mgr_err *err) MGR_NODISCARD;

/* End the threads and free; what is queued still is not written. NULL-safe. Local. */
void mgr_write_behind_stop(mgr_write_behind *behind);

#endif
