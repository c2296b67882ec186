/* The selection half of engine/engine.h: S sets, permutations and moments of one layer's experts.
 */
#include <string.h>

#include "core/mem.h"
#include "engine/engine.h"

static uint32_t sets(const mgr_job *job)
{
    return job->independent ? MGR_MATRIX_COUNT : 1;
}

uint64_t mgr_selection_bytes(const mgr_job *job)
{
    if (!job->method)
        return 0;
    const uint64_t experts = job->target.tensors.model.experts;
    const uint64_t ffn = job->source.tensors.model.ffn;
    const uint64_t shuffled = job->config.upcycle.shuffle ? 2 * experts * ffn : 0;
    return (experts * sets(job) * job->n_selected + job->n_selected + shuffled + 6 * experts +
            (job->moments ? ffn : 0)) *
           sizeof(uint32_t);
}

int mgr_selection_init(mgr_selection *s, const mgr_job *job, mgr_err *err)
{
    const uint64_t experts = job->target.tensors.model.experts;
    const uint64_t ffn = job->source.tensors.model.ffn;
    *s = (mgr_selection){.layer = MGR_NONE};
    MGR_TRY(mgr_alloc(&s->selected, experts * sets(job), (size_t)job->n_selected * 4, err));
    MGR_TRY(mgr_alloc(&s->dense, job->n_selected, sizeof *s->dense, err));
    MGR_TRY(mgr_alloc(&s->mean, experts * 3, sizeof *s->mean, err));
    MGR_TRY(mgr_alloc(&s->std, experts * 3, sizeof *s->std, err));
    if (job->moments)
        MGR_TRY(mgr_alloc(&s->every, ffn, sizeof *s->every, err));
    for (uint32_t i = 0; s->every && i < ffn; i++)
        s->every[i] = i;
    if (!job->config.upcycle.shuffle)
        return MGR_OK;
    MGR_TRY(mgr_alloc(&s->dense_of, experts, ffn * 4, err));
    return mgr_alloc(&s->expert_of, experts, ffn * 4, err);
}

void mgr_selection_clear(mgr_selection *s)
{
    mgr_free(s->selected);
    mgr_free(s->dense);
    mgr_free(s->mean);
    mgr_free(s->std);
    mgr_free(s->every);
    mgr_free(s->dense_of);
    mgr_free(s->expert_of);
    *s = (mgr_selection){.layer = MGR_NONE};
}

static mgr_stream stream(const mgr_job *job, uint32_t purpose, uint32_t layer, uint32_t expert)
{
    return (mgr_stream){job->config.upcycle.seed, purpose, layer, expert};
}

static int permute(mgr_selection *s, const mgr_job *job, uint32_t expert, mgr_err *err)
{
    const uint32_t ffn = (uint32_t)job->source.tensors.model.ffn;
    const mgr_stream from = stream(job, MGR_PURPOSE_SHUFFLE, s->layer, expert);
    uint32_t *const dense_of = s->dense_of + (size_t)expert * ffn;
    uint32_t *const expert_of = s->expert_of + (size_t)expert * ffn;
    MGR_TRY(mgr_permutation(&from, ffn, dense_of, err));
    for (uint32_t i = 0; i < ffn; i++)
        expert_of[dense_of[i]] = i;
    return MGR_OK;
}

static uint32_t *set_of(const mgr_selection *s, const mgr_job *job, uint32_t expert, int matrix)
{
    const uint32_t n = sets(job);
    return s->selected + ((size_t)expert * n + (n == 1 ? 0 : (size_t)matrix)) * job->n_selected;
}

static int sample(mgr_selection *s, const mgr_job *job, uint32_t expert, mgr_err *err)
{
    const uint32_t ffn = (uint32_t)job->source.tensors.model.ffn;
    for (uint32_t k = 0; k < sets(job); k++) {
        const uint32_t purpose =
            job->independent ? MGR_PURPOSE_SAMPLE_GATE + k : MGR_PURPOSE_SAMPLE;
        const mgr_stream from = stream(job, purpose, s->layer, expert);
        MGR_TRY(mgr_sample(&from, ffn, job->n_selected, set_of(s, job, expert, (int)k), err));
    }
    return MGR_OK;
}

/* Mean and std over exactly the entries that S selects, of the expert as it stands after the
 * shuffle: the same numbers as of the dense neurons it came from. */
static void moments(mgr_selection *s, const mgr_job *job, uint32_t expert, const mgr_sums *sums)
{
    const mgr_model *const m = &job->source.tensors.model;
    for (int matrix = 0; matrix < MGR_MATRIX_COUNT; matrix++) {
        const uint32_t *neurons = set_of(s, job, expert, matrix);
        if (s->dense_of) {
            for (uint32_t k = 0; k < job->n_selected; k++)
                s->dense[k] = s->dense_of[(size_t)expert * m->ffn + neurons[k]];
            neurons = s->dense;
        }
        double mean, std;
        mgr_moments(sums + (size_t)matrix * m->ffn, neurons, job->n_selected, m->hidden, &mean,
                    &std);
        s->mean[expert * 3 + (uint32_t)matrix] = (float)mean;
        s->std[expert * 3 + (uint32_t)matrix] = (float)std;
    }
}

/* Of the whole dense matrices: what the ledger compares the experts with. */
static void dense_moments(mgr_selection *s, const mgr_job *job, const mgr_sums *sums)
{
    const mgr_model *const m = &job->source.tensors.model;
    for (int matrix = 0; matrix < MGR_MATRIX_COUNT; matrix++) {
        double mean, std;
        mgr_moments(sums + (size_t)matrix * m->ffn, s->every, (uint32_t)m->ffn, m->hidden, &mean,
                    &std);
        s->dense_moment[matrix] = (mgr_moment){(float)mean, (float)std};
    }
}

int mgr_selection_set(mgr_selection *s, const mgr_job *job, uint32_t layer, const mgr_sums *sums,
                      mgr_err *err)
{
    if (s->layer == layer)
        return MGR_OK;
    s->layer = layer;
    for (uint32_t e = 0; e < job->target.tensors.model.experts; e++) {
        if (s->dense_of)
            MGR_TRY(permute(s, job, e, err));
        if (job->n_selected)
            MGR_TRY(sample(s, job, e, err));
        if (job->moments && sums)
            moments(s, job, e, sums);
    }
    if (job->moments && sums)
        dense_moments(s, job, sums);
    return MGR_OK;
}

mgr_expert mgr_selection_expert(const mgr_selection *s, const mgr_job *job, uint32_t expert,
                                mgr_matrix matrix)
{
    const mgr_model *const m = &job->source.tensors.model;
    mgr_expert x = {
        .seed = job->config.upcycle.seed,
        .layer = s->layer,
        .expert = expert,
        .matrix = matrix,
        .n_neurons = (uint32_t)m->ffn,
        .hidden = m->hidden,
        .selected = set_of(s, job, expert, (int)matrix),
        .n_selected = job->n_selected,
        .dense_of = s->dense_of ? s->dense_of + (size_t)expert * m->ffn : NULL,
    };
    if (job->moments) {
        x.mean = s->mean[expert * 3 + (uint32_t)matrix];
        x.std = s->std[expert * 3 + (uint32_t)matrix];
    } else {
        x.std = (float)job->config.upcycle.noise_std;
    }
    return x;
}
