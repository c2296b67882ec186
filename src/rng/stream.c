/*
 * Any range of a stream out of kernels that know whole groups only.
 */
#include <assert.h>
#include <string.h>

#include "rng/normal.h"

#define ELEMENTS_PER_BLOCK 4

static mgr_normal_job job_of(const mgr_stream *stream, float mean, float std)
{
    mgr_normal_job job = {.purpose = stream->purpose,
                          .layer = stream->layer,
                          .expert = stream->expert,
                          .mean = mean,
                          .std = std};
    mgr_philox_schedule(stream->seed, job.key);
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
