#include "engine/write_behind.h"

#include <assert.h>

#include "core/crc.h"
#include "core/mem.h"
#include "io/file.h"
#include "io/thread.h"

/* Tasks that wait at most: a few buffers full, and many small tensors. */
#define QUEUE 64

typedef enum state { WAITING, WRITING, WRITTEN, FAILED } state;

typedef struct place {
    mgr_write_task task;
    state state;
} place;

struct mgr_write_behind {
    pthread_mutex_t lock;
    pthread_cond_t more, less; /* tasks to do; tasks that are done */
    place queue[QUEUE];
    size_t first, next, end; /* of those not taken back yet; of those that wait; behind the last */
    bool ended;
    int rc; /* of the first task that failed, and how */
    mgr_err err;
    uint32_t n_threads;
    pthread_t threads[MGR_MOST_WRITERS];
};

int mgr_write_task_do(mgr_write_task *t, mgr_err *err)
{
    MGR_TRY(mgr_pwrite_full(t->fd, t->name, t->bytes, t->len, t->at, err));
    if (t->len >= MGR_WRITEBACK_MIN)
        mgr_begin_writeback(t->fd, t->at, t->len);
    if (!t->summed)
        t->extent.crc32 = mgr_crc32(0, t->bytes, t->len);
    t->summed = true;
    return MGR_OK;
}

static place *place_at(mgr_write_behind *w, size_t i)
{
    return &w->queue[i % QUEUE];
}

/* The next task that waits, or NULL when there will be none. With the lock. */
static place *take(mgr_write_behind *w)
{
    while (!w->ended && (w->next == w->end || w->rc != MGR_OK))
        pthread_cond_wait(&w->more, &w->lock);
    if (w->ended)
        return NULL;
    place *const p = place_at(w, w->next++);
    assert(p->state == WAITING);
    p->state = WRITING;
    return p;
}

static void *work(void *context)
{
    mgr_write_behind *const w = context;
    pthread_mutex_lock(&w->lock);
    for (place *p; (p = take(w)) != NULL;) {
        mgr_err err = MGR_ERR_INIT;
        pthread_mutex_unlock(&w->lock);
        const int rc = mgr_write_task_do(&p->task, &err);
        pthread_mutex_lock(&w->lock);
        p->state = rc == MGR_OK ? WRITTEN : FAILED;
        if (rc != MGR_OK && w->rc == MGR_OK) {
            w->rc = rc;
            w->err = err;
        }
        pthread_cond_broadcast(&w->less);
    }
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

int mgr_write_behind_start(mgr_write_behind **out, uint32_t threads, mgr_err *err)
{
    mgr_write_behind *w;
    assert(threads > 0 && threads <= MGR_MOST_WRITERS);
    *out = NULL;
    MGR_TRY(mgr_alloc(&w, 1, sizeof *w, err));
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->more, NULL);
    pthread_cond_init(&w->less, NULL);
    int sys = 0;
    for (; sys == 0 && w->n_threads < threads; w->n_threads += sys == 0)
        sys = mgr_thread_start(&w->threads[w->n_threads], work, w);
    if (sys != 0) {
        mgr_write_behind_stop(w);
        mgr_fail_errno(err, MGR_ERR_NOMEM, sys, "cannot start a thread that writes");
        return mgr_hint(err, "set 'io_threads: 0'");
    }
    *out = w;
    return MGR_OK;
}

/* Extents of what was written, in order, as far as that goes without a gap. With the lock. */
static int take_back(mgr_write_behind *w, mgr_extents *written, mgr_err *err)
{
    for (; w->first < w->next && place_at(w, w->first)->state == WRITTEN; w->first++)
        MGR_TRY(mgr_extents_add(written, &place_at(w, w->first)->task.extent, err));
    return MGR_OK;
}

static int put(mgr_write_behind *w, const mgr_write_task *task, mgr_extents *written, mgr_err *err)
{
    MGR_TRY(take_back(w, written, err));
    while (w->rc == MGR_OK && w->end - w->first == QUEUE) {
        pthread_cond_wait(&w->less, &w->lock);
        MGR_TRY(take_back(w, written, err));
    }
    if (w->rc != MGR_OK) {
        *err = w->err;
        return w->rc;
    }
    *place_at(w, w->end++) = (place){*task, WAITING};
    pthread_cond_signal(&w->more);
    return MGR_OK;
}

int mgr_write_behind_put(mgr_write_behind *w, const mgr_write_task *task, mgr_extents *written,
                         mgr_err *err)
{
    pthread_mutex_lock(&w->lock);
    const int rc = put(w, task, written, err);
    pthread_mutex_unlock(&w->lock);
    return rc;
}

/* Has a thread still to write bytes of [from, to)? What waits behind a failure is never done. */
static bool is_in_hand(mgr_write_behind *w, uintptr_t from, uintptr_t to)
{
    for (size_t i = w->first; i < w->end; i++) {
        const place *const p = place_at(w, i);
        const uintptr_t at = (uintptr_t)p->task.bytes;
        if ((p->state == WRITING || (p->state == WAITING && w->rc == MGR_OK)) && at < to &&
            at + p->task.len > from)
            return true;
    }
    return false;
}

void mgr_write_behind_wait(mgr_write_behind *w, const void *bytes, size_t len)
{
    if (!w)
        return;
    pthread_mutex_lock(&w->lock);
    while (is_in_hand(w, (uintptr_t)bytes, (uintptr_t)bytes + len))
        pthread_cond_wait(&w->less, &w->lock);
    pthread_mutex_unlock(&w->lock);
}

int mgr_write_behind_drain(mgr_write_behind *w, mgr_extents *written, mgr_unit_lost *lost,
                           void *context, mgr_err *err)
{
    if (!w)
        return MGR_OK;
    int rc = MGR_OK;
    mgr_write_behind_wait(w, NULL, SIZE_MAX);
    pthread_mutex_lock(&w->lock);
    for (; w->first < w->end; w->first++) {
        const place *const p = place_at(w, w->first);
        if (p->state == WRITTEN && rc == MGR_OK)
            rc = mgr_extents_add(written, &p->task.extent, err);
        if (p->state != WRITTEN || rc != MGR_OK)
            lost(context, p->task.extent.unit);
    }
    w->next = w->end;
    if (w->rc != MGR_OK && rc == MGR_OK) {
        *err = w->err;
        rc = w->rc;
    }
    pthread_mutex_unlock(&w->lock);
    return rc;
}

void mgr_write_behind_stop(mgr_write_behind *w)
{
    if (!w)
        return;
    pthread_mutex_lock(&w->lock);
    w->ended = true;
    pthread_cond_broadcast(&w->more);
    pthread_mutex_unlock(&w->lock);
    for (uint32_t i = 0; i < w->n_threads; i++)
        pthread_join(w->threads[i], NULL);
    pthread_cond_destroy(&w->less);
    pthread_cond_destroy(&w->more);
    pthread_mutex_destroy(&w->lock);
    mgr_free(w);
}
