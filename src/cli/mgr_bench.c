/* mgr-bench: kernel rates, the plain-write floor, and a run's ratio to it. */
#include <stdio.h>

#include "cli/bench.h"
#include "cli/cli.h"

enum { SIZE, SCRATCH, ROUNDS };

static const mgr_option options[] = {
    [SIZE] = {"size", 0, "BYTES", "about how much a run writes (default 1GiB)"},
    [SCRATCH] = {"scratch", 0, "DIR", "an existing directory to work in (default .)"},
    [ROUNDS] = {"rounds", 0, "N", "floor and run in turn, N times (default 3)"},
};

static const mgr_program program = {
    .name = "mgr-bench",
    .synopsis = "[OPTION]...",
    .about =
        "Measure, in one run: the kernels on each CPU path, and whole runs beside plain writes and "
        "copies of the same size by the same ranks. Run it under mpiexec; compare the ratios.",
    .options = options,
    .n_options = sizeof options / sizeof options[0],
};

static int take(void *context, size_t idx, const char *value, mgr_err *err)
{
    mgr_bench_options *const o = context;
    if (idx == SCRATCH) {
        o->scratch = value;
        return MGR_OK;
    }
    if (idx == SIZE)
        return mgr_cli_uint("size", value, 1, UINT64_C(1) << 50, &o->output_bytes, err);
    return mgr_cli_uint("rounds", value, 1, 16, &o->rounds, err);
}

int main(int argc, char **argv)
{
    mgr_err err = MGR_ERR_INIT;
    mgr_bench_options o = {.scratch = ".", .output_bytes = UINT64_C(1) << 30, .rounds = 3};
    mgr_comm *comm = NULL;
    int first;
    if (mgr_cli_parse(&program, argc, argv, take, &o, &first, &err) != MGR_OK)
        return mgr_cli_usage_end(&program, &err);
    int rc = mgr_cli_start(&comm, &err);
    mgr_cli_catch_signals();
    if (rc == MGR_OK)
        rc = mgr_agree(comm, mgr_comm_rank(comm) == 0 ? mgr_bench_kernels(&err) : MGR_OK, &err);
    if (rc == MGR_OK)
        rc = mgr_bench_end_to_end(comm, &o, &err);
    return mgr_cli_end(&program, comm, rc, &err);
}
