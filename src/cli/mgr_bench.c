/* mgr-bench: kernel rates, floors, and a run's ratio to them. */
#include <stdio.h>

#include "cli/bench.h"
#include "cli/cli.h"

enum { SIZE, SCRATCH, ROUNDS, ONLY, JSON };

static const mgr_option options[] = {
    [SIZE] = {"size", 0, "BYTES", "about how much a run writes (default 1GiB)"},
    [SCRATCH] = {"scratch", 0, "DIR", "an existing directory to work in (default .)"},
    [ROUNDS] = {"rounds", 0, "N", "floors and run in turn, N times (default 3)"},
    [ONLY] = {"only", 0, "NAMES", "with commas between some of " MGR_BENCH_NAMES " (default: all)"},
    [JSON] = {"json", 'j', NULL, "print one JSON object in the end"},
};

static const mgr_program program = {
    .name = "mgr-bench",
    .synopsis = "[OPTION]...",
    .about =
        "Measure, in one run: the kernels on each CPU path, and whole runs beside the fastest of "
        "several ways in which the same ranks write files of the same sizes, or copy the source. "
        "Run it under mpiexec; compare the ratios.",
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
    if (idx == ONLY) {
        o->only = value;
        return MGR_OK;
    }
    if (idx == JSON) {
        o->json = true;
        return MGR_OK;
    }
    if (idx == SIZE)
        return mgr_cli_uint("size", value, 1, UINT64_C(1) << 50, &o->output_bytes, err);
    return mgr_cli_uint("rounds", value, 1, MGR_BENCH_MAX_ROUNDS, &o->rounds, err);
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
        rc = mgr_bench(comm, &o, &err);
    return mgr_cli_end(&program, comm, rc, &err);
}
