/* engine/write_behind.h and io/cores.h: threads that write, and who has a core for one. */
#include <fcntl.h>
#include <libdeflate.h>
#include <unistd.h>

#include "core/mem.h"
#include "engine/write_behind.h"
#include "io/cores.h"
#include "io/file.h"
#include "support/folder.h"

enum { PIECE = 5000, PIECES = 300, BUFFERS = 3, UNITS = 7 };

static mgr_err err;
static unsigned char buffers[BUFFERS][PIECE];

static unsigned char value_of(size_t piece, size_t i)
{
    return (unsigned char)(piece * 37 + i * (piece + 1));
}

static void fill(unsigned char *to, size_t piece)
{
    for (size_t i = 0; i < PIECE; i++)
        to[i] = value_of(piece, i);
}

static mgr_write_task task_of(int fd, const unsigned char *bytes, uint32_t piece)
{
    return (mgr_write_task){.fd = fd,
                            .name = "the file",
                            .at = (uint64_t)piece * PIECE,
                            .bytes = bytes,
                            .len = PIECE,
                            .extent = {.what = piece, .bytes = PIECE, .unit = piece % UNITS}};
}

static int open_new(const char *name)
{
    put_file(name, "");
    const int fd = open(in_folder(name), O_RDWR);
    CHECK(fd >= 0);
    return fd;
}

static uint32_t n_lost[UNITS];

static void lose(void *context, uint32_t unit)
{
    CHECK(context == n_lost && unit < UNITS);
    n_lost[unit]++;
}

/* ---- what is written ---- */

static void check_all(int fd, const mgr_extents *written)
{
    static unsigned char found[PIECE], expected[PIECE];
    CHECK_INT(written->n, PIECES);
    for (size_t p = 0; p < PIECES && p < written->n; p++) {
        fill(expected, p);
        CHECK_INT(pread(fd, found, PIECE, (off_t)(p * PIECE)), PIECE);
        CHECK(memcmp(found, expected, PIECE) == 0);
        CHECK_INT(written->list[p].what, p); /* in the order of the tasks */
        CHECK_INT(written->list[p].crc32, libdeflate_crc32(0, expected, PIECE));
    }
}

/* More tasks than the queue holds, from few buffers that are filled again and again. */
static void test_all_is_written(uint32_t threads)
{
    const int fd = open_new("whole");
    mgr_write_behind *w;
    mgr_extents written = {0};
    CHECK_INT(mgr_write_behind_start(&w, threads, &err), MGR_OK);
    for (uint32_t p = 0; p < PIECES; p++) {
        unsigned char *const buffer = buffers[p % BUFFERS];
        mgr_write_behind_wait(w, buffer + PIECE - 1, 1); /* a byte of it is enough */
        fill(buffer, p);
        const mgr_write_task task = task_of(fd, buffer, p);
        CHECK_INT(mgr_write_behind_put(w, &task, &written, &err), MGR_OK);
    }
    CHECK_INT(mgr_write_behind_drain(w, &written, lose, n_lost, &err), MGR_OK);
    check_all(fd, &written);
    mgr_write_behind_stop(w);
    mgr_free(written.list);
    close(fd);
}

static void test_a_known_sum_is_taken(void)
{
    const int fd = open_new("known");
    mgr_write_behind *w;
    mgr_extents written = {0};
    mgr_write_task task = task_of(fd, buffers[0], 0);
    task.summed = true;
    task.extent.crc32 = 0x1234;
    CHECK_INT(mgr_write_behind_start(&w, 1, &err), MGR_OK);
    CHECK_INT(mgr_write_behind_put(w, &task, &written, &err), MGR_OK);
    CHECK_INT(mgr_write_behind_drain(w, &written, lose, n_lost, &err), MGR_OK);
    CHECK_INT(mgr_write_behind_drain(w, &written, lose, n_lost, &err), MGR_OK);
    CHECK_INT(written.n, 1);
    CHECK_INT(written.list[0].crc32, 0x1234);
    mgr_write_behind_stop(w);
    mgr_free(written.list);
    close(fd);
}

/* ---- what is not ---- */

/* Tasks of all units but the first go to a file that cannot be written; more are put until that
 * comes out, which is at the latest where the queue is full. */
static void test_a_failure_comes_out(uint32_t threads)
{
    const int fd = open_new("good"), bad = open(in_folder("good"), O_RDONLY);
    mgr_write_behind *w;
    mgr_extents written = {0};
    uint32_t p = 0;
    int rc = MGR_OK;
    err = (mgr_err)MGR_ERR_INIT;
    memset(n_lost, 0, sizeof n_lost);
    CHECK_INT(mgr_write_behind_start(&w, threads, &err), MGR_OK);
    for (; rc == MGR_OK && p < PIECES; p++) {
        const mgr_write_task task = task_of(p < UNITS && p ? bad : fd, buffers[0], p);
        rc = mgr_write_behind_put(w, &task, &written, &err);
    }
    CHECK(p < PIECES);
    CHECK_INT(rc, MGR_ERR_IO);
    CHECK_HAS(err.msg, "the file");
    mgr_write_behind_wait(w, buffers[0], PIECE); /* what is given up keeps nobody waiting */
    err = (mgr_err)MGR_ERR_INIT;
    CHECK_INT(mgr_write_behind_drain(w, &written, lose, n_lost, &err), MGR_ERR_IO);
    CHECK_HAS(err.msg, "the file");
    uint32_t sum = (uint32_t)written.n;
    for (uint32_t u = 0; u < UNITS; u++)
        sum += n_lost[u];
    CHECK_INT(sum, p - 1); /* each is written or lost, but for the one that was not taken */
    CHECK(n_lost[1] > 0);
    for (size_t i = 0; i < written.n; i++)
        CHECK(written.list[i].what == 0 || written.list[i].what >= UNITS);
    mgr_write_behind_stop(w);
    mgr_free(written.list);
    close(bad);
    close(fd);
}

static void test_nothing_to_wait_for(void)
{
    mgr_write_behind *w;
    mgr_extents written = {0};
    const mgr_write_task task = task_of(open_new("left"), buffers[0], 0);
    mgr_write_behind_wait(NULL, buffers, sizeof buffers);
    CHECK_INT(mgr_write_behind_drain(NULL, &written, lose, n_lost, &err), MGR_OK);
    mgr_write_behind_stop(NULL);
    CHECK_INT(mgr_write_behind_start(&w, 2, &err), MGR_OK);
    CHECK_INT(mgr_write_behind_drain(w, &written, lose, n_lost, &err), MGR_OK);
    CHECK_INT(mgr_write_behind_put(w, &task, &written, &err), MGR_OK);
    mgr_write_behind_stop(w); /* with a task in its hands, or in the queue */
    CHECK_INT(written.n, 0);
    close(task.fd);
}

/* ---- whose a core is ---- */

static void test_cores_for_each(void)
{
    static const struct {
        uint64_t host[4], mask[4];
        size_t n;
        uint32_t each;
    } rows[] = {
        {{1}, {0x3}, 1, 2},                            /* alone on two */
        {{1}, {0x1}, 1, 1},                            /* bound to one */
        {{1, 1}, {0x3, 0x3}, 2, 1},                    /* two on two */
        {{1, 1}, {0xf, 0xf}, 2, 2},                    /* two on four */
        {{1, 1}, {0x3, 0xc}, 2, 2},                    /* each bound to its own two */
        {{1, 1, 1, 1}, {0xf, 0xf, 0xf, 0xf}, 4, 1},    /* a full node */
        {{1, 1, 1, 2}, {0xff, 0xff, 0xff, 0x1}, 4, 1}, /* the other node is full */
        {{1, 2, 1, 2}, {0xf, 0xf, 0xf, 0xf}, 4, 2},    /* two nodes in turn */
        {{1, 1, 1}, {0xf, 0xf, 0x3}, 3, 0},            /* more ranks than cores */
        {{1, 1}, {0xf, 0x0}, 2, 0},                    /* unknown */
    };
    for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++) {
        mgr_cores all[4];
        for (size_t i = 0; i < rows[r].n; i++)
            all[i] = (mgr_cores){.host = rows[r].host[i],
                                 .mask = {[MGR_CORES_WORDS - 1] = rows[r].mask[i]}};
        CHECK_INT(mgr_cores_each(all, rows[r].n), rows[r].each);
    }
    const mgr_cores few[2] = {{.host = 1, .mask = {0xff}, .quota = 2},
                              {.host = 1, .mask = {0xff}, .quota = 2}};
    CHECK_INT(mgr_cores_each(few, 1), 2);
    CHECK_INT(mgr_cores_each(few, 2), 1); /* of one group */
    CHECK_INT(mgr_cores_quota("max 100000"), 0);
    CHECK_INT(mgr_cores_quota("150000 100000"), 1);
    CHECK_INT(mgr_cores_quota("50000 100000"), 1);
    CHECK_INT(mgr_cores_quota("400000 100000"), 4);
    CHECK_INT(mgr_cores_quota("1 0"), 0);
    CHECK_INT(mgr_cores_quota(""), 0);
    CHECK_INT(mgr_cores_each(NULL, 0), 0);
    mgr_cores mine;
    mgr_cores_ask(&mine);
    CHECK(mgr_cores_each(&mine, 1) >= 1);
}

int main(void)
{
    folder_begin();
    test_all_is_written(1);
    test_all_is_written(3);
    test_all_is_written(MGR_MOST_WRITERS);
    test_a_known_sum_is_taken();
    test_a_failure_comes_out(1);
    test_a_failure_comes_out(4);
    test_nothing_to_wait_for();
    test_cores_for_each();
    folder_end();
    return CHECK_DONE();
}
