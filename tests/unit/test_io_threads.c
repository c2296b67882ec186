/* `io_threads`: whole runs without MPI whose files do not depend on how many threads write them.
 * Under ThreadSanitizer (ctest -R tsan) it looks at each access, too. */
#include <zlib.h>

#include "core/mem.h"
#include "run/run.h"
#include "support/folder.h"

static mgr_err err;
static mgr_comm *comm;

/* Units of a few rows: thousands of tasks, and every buffer is filled many times. */
#define UNIT_BYTES 4096

static void make_source(void)
{
    const mgr_synth_options o = {.out = in_folder("dense"),
                                 .format = "megatron-torch",
                                 .names = "auto",
                                 .dist_keys = "auto",
                                 .model = {.layers = 3,
                                           .hidden = 64,
                                           .ffn = 96,
                                           .heads = 4,
                                           .kv_groups = 2,
                                           .head_dim = 16,
                                           .vocab = 200,
                                           .dtype = MGR_DTYPE_BF16,
                                           .norm_epsilon = 1e-5,
                                           .rotary_base = 1e4,
                                           .max_positions = 128,
                                           .bos_token_id = -1,
                                           .eos_token_id = -1,
                                           .init_std = 0.02},
                                 .dtype = MGR_DTYPE_BF16,
                                 .tensor_parallel = 2,
                                 .pipeline_parallel = 1,
                                 .virtual_pipeline = 1,
                                 .expert_parallel = 1,
                                 .vocab_divisor = 1,
                                 .seed = 7,
                                 .verbosity = -1};
    CHECK_INT(mgr_run_synth(comm, &o, &err), MGR_OK);
}

/* Of all files of a model, by name and content. */
static uint64_t sum_of(const char *folder)
{
    mgr_arena arena = {0};
    const char **names;
    size_t n = 0;
    uint64_t sum = 0;
    CHECK_INT(mgr_list_tree(folder, &arena, &names, &n, &err), MGR_OK);
    for (size_t i = 0; i < n; i++) {
        char path[1024];
        mgr_buf text = {0};
        if (strstr(names[i], "manifest") || strstr(names[i], "provenance"))
            continue; /* what the run says of itself */
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        CHECK_INT(mgr_read_file(path, 1 << 24, &text, &err), MGR_OK);
        sum = sum * 31 + crc32(0, (const unsigned char *)names[i], (unsigned)strlen(names[i]));
        sum = sum * 31 + crc32(0, (const unsigned char *)text.data, (unsigned)text.len);
        mgr_buf_clear(&text);
    }
    mgr_arena_clear(&arena);
    return sum;
}

static uint64_t run(const char *what, const char *threads, double journal)
{
    char path[64], io_threads[64];
    put_file("run.yaml", what);
    snprintf(path, sizeof path, "source.path=%s/dense", folder_path);
    char target[64];
    snprintf(target, sizeof target, "target.path=%s/out", folder_path);
    snprintf(io_threads, sizeof io_threads, "io_threads=%s", threads);
    const char *const sets[] = {path, target, io_threads};
    const mgr_run_options o = {.config_path = in_folder("run.yaml"),
                               .sets = sets,
                               .n_sets = sizeof sets / sizeof sets[0],
                               .verbosity = -1,
                               .unit_min = UNIT_BYTES,
                               .write = {.force = true, .quiet = true, .journal = journal}};
    err = (mgr_err)MGR_ERR_INIT;
    CHECK_INT(mgr_run_upcycle(comm, &o, NULL, &err), MGR_OK);
    if (err.code != MGR_OK)
        fprintf(stderr, "%s with %s: %s\n", what, threads, err.msg);
    return sum_of(in_folder("out"));
}

/* None may be closed to make room for another while it is written. */
static void test_more_files_than_are_held_open(void)
{
    static const char many[] = "upcycle: {experts: 64, top_k: 1}\n"
                               "target: {format: megatron-torch, pipeline_parallel: 3,\n"
                               "         expert_parallel: 64, tensor_parallel: 2}\n";
    CHECK(run(many, "3", -1) == run(many, "0", -1));
}

int main(void)
{
    static const char *const runs[] = {
        "upcycle: {experts: 4}\ntarget: {expert_parallel: 2}\n",
        "upcycle: {method: naive}\ntarget: {format: megatron-torch, tensor_parallel: 2}\n",
        "upcycle: {experts: 4, shuffle: true}\ntarget: {format: deepspeed}\n",
        /* stored the other way round, and cut */
        "target: {format: megatron-torch, expert_names: grouped-old, tensor_parallel: 2}\n",
        "mode: reshard\ntarget: {format: megatron-dist}\n",
        "mode: reshard\ntarget: {format: megatron-torch, tensor_parallel: 1, dtype: float32}\n",
    };
    folder_begin();
    CHECK_INT(mgr_comm_alone(&comm, &err), MGR_OK);
    make_source();
    for (size_t i = 0; i < sizeof runs / sizeof runs[0]; i++) {
        const uint64_t sum = run(runs[i], "0", -1);
        CHECK(run(runs[i], "1", MGR_JOURNAL_SECONDS) == sum);
        CHECK(run(runs[i], "4", 0) == sum); /* waited for behind each unit */
        CHECK(run(runs[i], "16", -1) == sum);
    }
    test_more_files_than_are_held_open();
    mgr_comm_stop(comm);
    folder_end();
    return CHECK_DONE();
}
