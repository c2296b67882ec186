/*
 * Any range of a stream out of kernels that know whole groups only.
 */
#include <assert.h>
#include <string.h>

#include "rng/normal.h"

#define ELEMENTS_PER_BLOCK 4

/* Of the first rounds, what no block's number enters: philox.c with words 1 to 3 of the counter. */
static void begin_rounds(const mgr_stream *stream, mgr_normal_job *job)
{
    const uint64_t p1 = (uint64_t)stream->layer * MGR_PHILOX_MULTIPLIER_1;
    const uint32_t c0 = (uint32_t)(p1 >> 32) ^ stream->purpose ^ job->key[0][0];
    const uint64_t p0 = (uint64_t)c0 * MGR_PHILOX_MULTIPLIER_0;

    job->early[0] = stream->expert ^ job->key[0][1];
    job->early[1] = (uint32_t)p1 ^ job->key[1][0];
    job->early[2] = (uint32_t)(p0 >> 32) ^ job->key[1][1];
    job->early[3] = (uint32_t)p0 ^ job->key[2][1];
}

static mgr_normal_job job_of(const mgr_stream *stream, float mean, float std)
{
    mgr_normal_job job = {.mean = mean, .std = std};
    mgr_philox_schedule(stream->seed, job.key);
    begin_rounds(stream, &job);
    return job;
}

/* Whole groups go straight to `out`; a head inside a block and a tail inside a group go through a
 * group on the stack. */
static void fill_range(const mgr_normal_job *job, mgr_normal_fill *fill, size_t group,
                       size_t element_bytes, uint64_t first, size_t n, unsigned char *out)
{
    unsigned char spare[MGR_NORMAL_GROUP_MAX * sizeof(uint32_t)];

    assert(n == 0 || (first + n - 1) / ELEMENTS_PER_BLOCK <= UINT32_MAX);
    while (n > 0) {
        const uint32_t block = (uint32_t)(first / ELEMENTS_PER_BLOCK);
        const size_t skip = (size_t)(first % ELEMENTS_PER_BLOCK);
        size_t done;

        if (skip == 0 && n >= group) {
            done = n - n % group;
            fill(job, block, n / group, out);
        } else {
            done = group - skip < n ? group - skip : n;
            fill(job, block, 1, spare);
            memcpy(out, spare + skip * element_bytes, done * element_bytes);
        }
        first += done;
        n -= done;
        out += done * element_bytes;
    }
}

void mgr_words(const mgr_stream *stream, uint64_t first, size_t n, uint32_t *out)
{
    const mgr_normal_path *path = mgr_normal_path_current();
    const mgr_normal_job job = job_of(stream, 0.0f, 1.0f);
    fill_range(&job, path->words, path->group, sizeof *out, first, n, (unsigned char *)out);
}

void mgr_normals(const mgr_stream *stream, uint64_t first, size_t n, float *out)
{
    const mgr_normal_path *path = mgr_normal_path_current();
    const mgr_normal_job job = job_of(stream, 0.0f, 1.0f);
    fill_range(&job, path->normals, path->group, sizeof *out, first, n, (unsigned char *)out);
}

void mgr_normals_affine(const mgr_stream *stream, uint64_t first, size_t n, float mean, float std,
                        void *out, mgr_dtype to)
{
    const mgr_normal_path *path = mgr_normal_path_current();
    const mgr_normal_job job = job_of(stream, mean, std);

    assert(to == MGR_DTYPE_BF16 || to == MGR_DTYPE_F32);
    if (to == MGR_DTYPE_BF16)
        fill_range(&job, path->scaled_bf16, path->group, sizeof(uint16_t), first, n, out);
    else
        fill_range(&job, path->scaled_f32, path->group, sizeof(float), first, n, out);
}

/* One block of each run, of which rows skip .. skip + n_rows - 1 are wanted. */
static void across_part(const mgr_normal_job *job, mgr_normal_across *across, mgr_normal_rows rows,
                        uint32_t skip, uint32_t n_rows, size_t element_bytes, unsigned char *out)
{
    unsigned char spare[ELEMENTS_PER_BLOCK * MGR_NORMAL_ACROSS * sizeof(float)];
    const size_t out_stride = rows.stride * element_bytes, n = rows.n;

    rows.n_blocks = 1;
    rows.stride = MGR_NORMAL_ACROSS;
    for (size_t j = 0; j < n; j += MGR_NORMAL_ACROSS) {
        rows.n = n - j < MGR_NORMAL_ACROSS ? n - j : MGR_NORMAL_ACROSS;
        across(job, &rows, spare);
        for (uint32_t r = 0; r < n_rows; r++)
            memcpy(out + r * out_stride + j * element_bytes,
                   spare + (skip + r) * MGR_NORMAL_ACROSS * element_bytes, rows.n * element_bytes);
        rows.block += MGR_NORMAL_ACROSS * rows.step;
    }
}

void mgr_normals_affine_across(const mgr_stream *stream, mgr_runs runs, float mean, float std,
                               void *out, size_t stride, mgr_dtype to)
{
    const mgr_normal_path *path = mgr_normal_path_current();
    const mgr_normal_job job = job_of(stream, mean, std);
    mgr_normal_across *const across = to == MGR_DTYPE_BF16 ? path->across_bf16 : path->across_f32;
    const size_t bytes = mgr_dtype_size(to);
    unsigned char *row = out;

    assert(to == MGR_DTYPE_BF16 || to == MGR_DTYPE_F32);
    assert(runs.step % ELEMENTS_PER_BLOCK == 0);
    while (runs.n_rows > 0) {
        const uint32_t skip = (uint32_t)(runs.first % ELEMENTS_PER_BLOCK);
        const mgr_normal_rows rows = {.block = (uint32_t)(runs.first / ELEMENTS_PER_BLOCK),
                                      .step = (uint32_t)(runs.step / ELEMENTS_PER_BLOCK),
                                      .n_blocks = runs.n_rows / ELEMENTS_PER_BLOCK,
                                      .n = runs.n,
                                      .stride = stride};
        uint32_t done = rows.n_blocks * ELEMENTS_PER_BLOCK;
        if (skip == 0 && done > 0) {
            across(&job, &rows, row);
        } else {
            done = ELEMENTS_PER_BLOCK - skip;
            done = runs.n_rows < done ? runs.n_rows : done;
            across_part(&job, across, rows, skip, done, bytes, row);
        }
        runs.first += done;
        runs.n_rows -= done;
        row += done * stride * bytes;
    }
}
