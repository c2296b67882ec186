#include "form/recipes_folder.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/str.h"
#include "fmt/torch_write.h"
#include "form/pickle_entry.h"
#include "io/file.h"

#define FOLDER "archive" /* in an archive */
#define WORDS 624        /* of a Mersenne Twister */

/* The state of torch's generator on a CPU (aten/src/ATen/CPUGeneratorImpl.cpp,
 * CPUGeneratorImplStateLegacy and what follows it), and on a GPU: seed and offset. */
typedef struct cpu_state {
    uint64_t seed;
    int32_t left, seeded;
    uint64_t next, words[WORDS];
    double normals[3];
    uint64_t rest[2];
} cpu_state;

_Static_assert(sizeof(cpu_state) == 5056, "as torch.get_rng_state() has it");

typedef struct gpu_state {
    uint64_t seed, offset;
} gpu_state;

static void seed_words(uint64_t seed, uint64_t words[WORDS])
{
    words[0] = (uint32_t)seed;
    for (uint32_t i = 1; i < WORDS; i++)
        words[i] = (uint32_t)(1812433253u * (uint32_t)(words[i - 1] ^ words[i - 1] >> 30) + i);
}

static int put_words(uint64_t seed, mgr_buf *out, mgr_err *err)
{
    uint64_t words[WORDS];
    seed_words(seed, words);
    for (size_t i = 0; i < WORDS; i++)
        MGR_TRY(mgr_pickle_int(out, (int64_t)words[i], err));
    return MGR_OK;
}

/* ("MT19937", [word], place, has_gauss, gauss), as numpy.random.set_state takes it. */
static int put_numpy(uint64_t seed, mgr_buf *out, mgr_err *err)
{
    MGR_TRY(mgr_pickle_text(out, "np_rng_state", err));
    MGR_TRY(mgr_pickle_tuple_open(out, err));
    MGR_TRY(mgr_pickle_text(out, "MT19937", err));
    MGR_TRY(mgr_pickle_list_open(out, err));
    MGR_TRY(put_words(seed, out, err));
    MGR_TRY(mgr_pickle_list_close(out, err));
    MGR_TRY(mgr_pickle_int(out, WORDS, err));
    MGR_TRY(mgr_pickle_int(out, 0, err));
    MGR_TRY(mgr_pickle_real(out, 0, err));
    return mgr_pickle_tuple_close(out, err);
}

/* (3, (word, ..., place), None), as random.setstate takes it. */
static int put_python(uint64_t seed, mgr_buf *out, mgr_err *err)
{
    MGR_TRY(mgr_pickle_text(out, "py_rng_state", err));
    MGR_TRY(mgr_pickle_tuple_open(out, err));
    MGR_TRY(mgr_pickle_int(out, 3, err));
    MGR_TRY(mgr_pickle_tuple_open(out, err));
    MGR_TRY(put_words(seed, out, err));
    MGR_TRY(mgr_pickle_int(out, WORDS, err));
    MGR_TRY(mgr_pickle_tuple_close(out, err));
    MGR_TRY(mgr_pickle_none(out, err));
    return mgr_pickle_tuple_close(out, err);
}

static int put_bytes(const char *name, const char *storage, uint64_t size, mgr_buf *out,
                     mgr_err *err)
{
    MGR_TRY(mgr_pickle_text(out, name, err));
    return mgr_pickle_tensor(out, storage, MGR_DTYPE_U8, 1, &size, err);
}

static int put_random(uint64_t seed, mgr_buf *out, mgr_err *err)
{
    MGR_TRY(mgr_pickle_begin(out, err));
    MGR_TRY(mgr_pickle_dict_open(out, err));
    MGR_TRY(put_bytes("torch_cpu_rng_state", "0", sizeof(cpu_state), out, err));
    MGR_TRY(put_bytes("torch_gpu_rng_state", "1", sizeof(gpu_state), out, err));
    MGR_TRY(put_numpy(seed + 1, out, err));
    MGR_TRY(put_python(seed + 2, out, err));
    MGR_TRY(mgr_pickle_dict_close(out, err));
    return mgr_pickle_end(out, err);
}

/* torch/optim/lr_scheduler.py: load_state_dict updates what the run has by what is here. */
static int put_scheduler(uint64_t iteration, mgr_buf *out, mgr_err *err)
{
    MGR_TRY(mgr_pickle_begin(out, err));
    MGR_TRY(mgr_pickle_dict_open(out, err));
    MGR_TRY(mgr_entry_int(out, "last_epoch", (int64_t)iteration, err));
    MGR_TRY(mgr_entry_int(out, "_step_count", (int64_t)iteration + 1, err));
    MGR_TRY(mgr_entry_empty_list(out, "lr_lambdas", err));
    MGR_TRY(mgr_pickle_dict_close(out, err));
    return mgr_pickle_end(out, err);
}

/* ---- files ---- */

static int write_bytes(const char *directory, const char *folder, const char *name,
                       const mgr_buf *bytes, mgr_err *err)
{
    mgr_buf path = {0};
    int rc = mgr_buf_fmt(&path, err, "%s/%s/%s", directory, folder, name);
    if (rc == MGR_OK)
        rc = mgr_write_file(path.data, bytes->data, bytes->len, err);
    mgr_buf_clear(&path);
    return rc;
}

static int write_random(const char *directory, const char *folder, uint64_t seed, mgr_err *err)
{
    cpu_state cpu = {.seed = seed, .left = 1, .seeded = 1};
    const gpu_state gpu = {.seed = seed};
    const mgr_torch_bytes storages[] = {{&cpu, sizeof cpu}, {&gpu, sizeof gpu}};
    mgr_buf pickle = {0}, archive = {0};
    seed_words(seed, cpu.words);
    int rc = put_random(seed, &pickle, err);
    if (rc == MGR_OK)
        rc = mgr_torch_archive_with(FOLDER, &pickle, storages, 2, &archive, err);
    if (rc == MGR_OK)
        rc = write_bytes(directory, folder, "rng.pt", &archive, err);
    mgr_buf_clear(&pickle);
    mgr_buf_clear(&archive);
    return rc;
}

static int write_scheduler(const char *directory, const char *folder, uint64_t iteration,
                           mgr_err *err)
{
    mgr_buf pickle = {0}, archive = {0};
    int rc = put_scheduler(iteration, &pickle, err);
    if (rc == MGR_OK)
        rc = mgr_torch_archive(FOLDER, &pickle, &archive, err);
    if (rc == MGR_OK)
        rc = write_bytes(directory, folder, "scheduler.pt", &archive, err);
    mgr_buf_clear(&pickle);
    mgr_buf_clear(&archive);
    return rc;
}

const char *mgr_recipes_folder(uint64_t iteration, char *out, size_t size)
{
    snprintf(out, size, "iter_%07" PRIu64, iteration);
    return out;
}

int mgr_recipes_write(const char *directory, uint64_t iteration, uint64_t seed, mgr_err *err)
{
    char folder[40];
    mgr_buf text = {0};
    (void)mgr_recipes_folder(iteration, folder, sizeof folder);
    int rc = write_random(directory, folder, seed, err);
    if (rc == MGR_OK)
        rc = write_scheduler(directory, folder, iteration, err);
    if (rc == MGR_OK)
        rc = mgr_buf_fmt(&text, err, "%" PRIu64, iteration);
    if (rc == MGR_OK)
        rc = write_bytes(directory, ".", "latest_iteration.txt", &text, err);
    mgr_buf_clear(&text);
    return rc;
}
