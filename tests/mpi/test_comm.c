/* par: one bad rank makes all ranks return the same error; exchanges are in rank order. */
#include "par/comm.h"
#include "support/check.h"

static void test_agree(mgr_comm *c)
{
    const int rank = mgr_comm_rank(c), size = mgr_comm_size(c);
    mgr_err fine = MGR_ERR_INIT;
    CHECK_INT(mgr_agree(c, MGR_OK, &fine), MGR_OK);
    for (int bad = 0; bad < size; bad++) {
        mgr_err err = MGR_ERR_INIT;
        int rc = MGR_OK;
        if (rank == bad) {
            rc = mgr_fail(&err, MGR_ERR_FORMAT, "broken on rank %d", bad);
            mgr_hint(&err, "mend it");
        }
        CHECK_INT(mgr_agree(c, rc, &err), MGR_ERR_FORMAT);
        CHECK_INT(err.rank, bad);
        CHECK_TEXT(err.hint, "mend it");
        char expected[64];
        snprintf(expected, sizeof expected,
                 size > 1 ? "broken on rank %d (rank %d)" : "broken on rank %d", bad, bad);
        CHECK_TEXT(err.msg, expected);
    }
}

/* Different errors on several ranks: the lowest rank's wins, and the others are counted. */
static void test_agree_many(mgr_comm *c)
{
    const int rank = mgr_comm_rank(c), size = mgr_comm_size(c);
    if (size < 3)
        return;
    mgr_err err = MGR_ERR_INIT;
    const int rc = rank == 0   ? MGR_OK
                   : rank == 1 ? mgr_fail(&err, MGR_ERR_IO, "one")
                               : mgr_fail(&err, MGR_ERR_SPACE, "two");
    CHECK_INT(mgr_agree(c, rc, &err), MGR_ERR_IO);
    CHECK_TEXT(err.msg, "one (rank 1, and 1 more of 3)");
    mgr_err all = MGR_ERR_INIT;
    mgr_fail(&all, MGR_ERR_CONFIG, "everyone sees this");
    CHECK_INT(mgr_agree(c, MGR_ERR_CONFIG, &all), MGR_ERR_CONFIG);
    CHECK_TEXT(all.msg, "everyone sees this");
}

static void test_exchange(mgr_comm *c)
{
    const int rank = mgr_comm_rank(c), size = mgr_comm_size(c);
    mgr_err err = MGR_ERR_INIT;
    mgr_buf mine = {0}, all = {0}, root = {0}, text = {0}, expected = {0};
    for (int i = 0; i < rank; i++) /* rank 0 has nothing to say */
        CHECK_INT(mgr_buf_fmt(&mine, &err, "<%d>", rank), MGR_OK);
    for (int r = 0; r < size; r++)
        for (int i = 0; i < r; i++)
            CHECK_INT(mgr_buf_fmt(&expected, &err, "<%d>", r), MGR_OK);
    CHECK_INT(mgr_allgather_bytes(c, &mine, &all, &err), MGR_OK);
    CHECK_TEXT(all.data, expected.data ? expected.data : "");
    CHECK_INT(mgr_gather_bytes(c, &mine, &root, &err), MGR_OK);
    if (rank == 0)
        CHECK_TEXT(root.data, expected.data ? expected.data : "");
    else
        CHECK_INT(root.len, 0);
    if (rank == 0)
        CHECK_INT(mgr_buf_text(&text, "to all", &err), MGR_OK);
    CHECK_INT(mgr_bcast_bytes(c, &text, &err), MGR_OK);
    CHECK_TEXT(text.data, "to all");
    mgr_buf_clear(&mine);
    mgr_buf_clear(&all);
    mgr_buf_clear(&root);
    mgr_buf_clear(&text);
    mgr_buf_clear(&expected);
}

static void test_sums(mgr_comm *c)
{
    const int rank = mgr_comm_rank(c), size = mgr_comm_size(c);
    mgr_err err = MGR_ERR_INIT;
    static int64_t values[100000];
    for (int i = 0; i < 100000; i++)
        values[i] = (int64_t)i * (rank + 1) - (INT64_C(1) << 40);
    CHECK_INT(mgr_sum_i64(c, values, 100000, &err), MGR_OK);
    for (int i = 0; i < 100000; i += 997)
        CHECK(values[i] == (int64_t)i * size * (size + 1) / 2 - size * (INT64_C(1) << 40));
}

static void test_progress(mgr_comm *c)
{
    const uint64_t mine[3] = {(uint64_t)mgr_comm_rank(c), 2, 3};
    for (int i = 0; i < 20; i++)
        mgr_progress_post(c, mine);
    mgr_progress_post_last(c, mine);
    uint64_t seen[3];
    int rank;
    if (mgr_comm_rank(c) == 0)
        while (mgr_progress_poll(c, &rank, seen))
            CHECK_INT(seen[0], rank);
    mgr_progress_drain(c);
}

int main(void)
{
    mgr_comm *c = NULL;
    mgr_err err = MGR_ERR_INIT;
    if (mgr_comm_start(&c, &err) != MGR_OK)
        return 1;
    test_agree(c);
    test_agree_many(c);
    test_exchange(c);
    test_sums(c);
    test_progress(c);
    int64_t failures = check_failures; /* all ranks end with the same status */
    if (mgr_sum_i64(c, &failures, 1, &err) != MGR_OK)
        failures = 1;
    mgr_comm_stop(c);
    return failures ? 1 : 0;
}
