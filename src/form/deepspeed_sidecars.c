#include "form/deepspeed_sidecars.h"

#include <stdio.h>
#include <string.h>

#include "fmt/pickle_write.h"
#include "fmt/torch_write.h"
#include "io/file.h"

#define FOLDER "archive" /* in an archive */

/* ---- entries of dicts ---- */

static int put_int(mgr_buf *out, const char *key, int64_t value, mgr_err *err)
{
    MGR_TRY(mgr_pickle_text(out, key, err));
    return mgr_pickle_int(out, value, err);
}

static int put_bool(mgr_buf *out, const char *key, bool value, mgr_err *err)
{
    MGR_TRY(mgr_pickle_text(out, key, err));
    return mgr_pickle_bool(out, value, err);
}

static int put_real(mgr_buf *out, const char *key, double value, mgr_err *err)
{
    MGR_TRY(mgr_pickle_text(out, key, err));
    return mgr_pickle_real(out, value, err);
}

static int put_text(mgr_buf *out, const char *key, const char *value, mgr_err *err)
{
    MGR_TRY(mgr_pickle_text(out, key, err));
    return mgr_pickle_text(out, value, err);
}

static int put_nones(mgr_buf *out, const char *const *keys, size_t n, mgr_err *err)
{
    for (size_t i = 0; i < n; i++) {
        MGR_TRY(mgr_pickle_text(out, keys[i], err));
        MGR_TRY(mgr_pickle_none(out, err));
    }
    return MGR_OK;
}

static int open_dict(mgr_buf *out, const char *key, mgr_err *err)
{
    MGR_TRY(mgr_pickle_text(out, key, err));
    return mgr_pickle_dict_open(out, err);
}

static int put_empty(mgr_buf *out, const char *key, mgr_err *err)
{
    MGR_TRY(open_dict(out, key, err));
    return mgr_pickle_dict_close(out, err);
}

static int open_list(mgr_buf *out, const char *key, mgr_err *err)
{
    MGR_TRY(mgr_pickle_text(out, key, err));
    return mgr_pickle_list_open(out, err);
}

static int put_empty_list(mgr_buf *out, const char *key, mgr_err *err)
{
    MGR_TRY(open_list(out, key, err));
    return mgr_pickle_list_close(out, err);
}

/* ---- one file ---- */

/* Makes the one object of a file. */
typedef struct maker {
    int (*make)(const struct maker *m, mgr_buf *out, mgr_err *err);
    const mgr_deepspeed *ds;
    const mgr_stored *param; /* of a moment */
    bool tied;
    uint64_t iteration;
} maker;

/* Its tensors have storage "0", of `len` bytes of zeros. */
static int write_object(const maker *m, const char *path, size_t len, mgr_err *err)
{
    static const char zeros[8];
    mgr_buf pickle = {0}, archive = {0};
    int rc = mgr_pickle_begin(&pickle, err);
    if (rc == MGR_OK)
        rc = m->make(m, &pickle, err);
    if (rc == MGR_OK)
        rc = mgr_pickle_end(&pickle, err);
    if (rc == MGR_OK)
        rc = mgr_torch_archive_with(FOLDER, &pickle, zeros, len, &archive, err);
    if (rc == MGR_OK)
        rc = mgr_write_file(path, archive.data, archive.len, err);
    mgr_buf_clear(&pickle);
    mgr_buf_clear(&archive);
    return rc;
}

static int write_at(const maker *m, const char *directory, const char *name, size_t len,
                    mgr_err *err)
{
    mgr_buf path = {0};
    int rc = mgr_buf_fmt(&path, err, "%s/%s", directory, name);
    if (rc == MGR_OK)
        rc = write_object(m, path.data, len, err);
    mgr_buf_clear(&path);
    return rc;
}

/* ---- the model's ---- */

#define HEAD "lm_head.weight"
#define EMBEDDING "model.embed_tokens.weight"

/* What ZeRO-3 leaves of a parameter in a module. */
static int put_shell(mgr_buf *out, const char *name, mgr_err *err)
{
    static const uint64_t none;
    MGR_TRY(mgr_pickle_text(out, name, err));
    return mgr_pickle_tensor(out, "0", MGR_DTYPE_BF16, 1, &none, err);
}

static int put_module(const maker *m, mgr_buf *out, mgr_err *err)
{
    const mgr_catalogue *const view = &m->ds->view;
    MGR_TRY(open_dict(out, "module", err));
    for (size_t i = 0; i < view->n_stored; i++)
        MGR_TRY(put_shell(out, view->stored[i].name, err));
    if (m->tied)
        MGR_TRY(put_shell(out, HEAD, err));
    return mgr_pickle_dict_close(out, err);
}

/* A dict for each group, of which a universal checkpoint has one. */
static int put_shapes(const maker *m, mgr_buf *out, mgr_err *err)
{
    const mgr_deepspeed *const ds = m->ds;
    MGR_TRY(open_list(out, "param_shapes", err));
    MGR_TRY(mgr_pickle_dict_open(out, err));
    for (size_t i = 0; i < ds->view.n_stored; i++) {
        const mgr_stored *const s = &ds->view.stored[i];
        if (i && ds->parts[i].group != ds->parts[i - 1].group) {
            MGR_TRY(mgr_pickle_dict_close(out, err));
            MGR_TRY(mgr_pickle_dict_open(out, err));
        }
        MGR_TRY(mgr_pickle_text(out, s->name, err));
        MGR_TRY(mgr_pickle_size(out, s->ndim, s->shape, err));
    }
    MGR_TRY(mgr_pickle_dict_close(out, err));
    return mgr_pickle_list_close(out, err);
}

static int put_counts(const maker *m, mgr_buf *out, mgr_err *err)
{
    MGR_TRY(put_int(out, "skipped_steps", 0, err));
    MGR_TRY(put_int(out, "global_steps", (int64_t)m->iteration, err));
    MGR_TRY(put_int(out, "global_samples", 0, err));
    MGR_TRY(put_int(out, "dp_world_size", m->ds->ranks ? m->ds->ranks : 1, err));
    MGR_TRY(put_int(out, "mp_world_size", 1, err));
    MGR_TRY(put_empty(out, "ds_config", err));
    return put_text(out, "ds_version", MGR_DEEPSPEED_VERSION, err);
}

/* engine.py, _common_checkpoint_state and save_checkpoint */
static int make_model(const maker *m, mgr_buf *out, mgr_err *err)
{
    static const char *const nones[] = {
        "optimizer",    "frozen_param_shapes", "frozen_param_fragments",
        "lr_scheduler", "data_sampler",        "random_ltd"};
    MGR_TRY(mgr_pickle_dict_open(out, err));
    MGR_TRY(put_module(m, out, err));
    MGR_TRY(put_empty_list(out, "buffer_names", err));
    MGR_TRY(put_shapes(m, out, err));
    MGR_TRY(open_dict(out, "shared_params", err));
    if (m->tied)
        MGR_TRY(put_text(out, HEAD, EMBEDDING, err));
    MGR_TRY(mgr_pickle_dict_close(out, err));
    MGR_TRY(put_nones(out, nones, sizeof nones / sizeof nones[0], err));
    MGR_TRY(put_empty_list(out, "sparse_tensor_module_names", err));
    if (!m->ds->ranks)
        MGR_TRY(put_empty(out, "universal_checkpoint_info", err));
    MGR_TRY(put_counts(m, out, err));
    return mgr_pickle_dict_close(out, err);
}

/* ---- the optimizer's ---- */

/* ZeRO 1 and 2 ask for {"param": tensor}, ZeRO-3 takes it. */
static int make_moment(const maker *m, mgr_buf *out, mgr_err *err)
{
    MGR_TRY(mgr_pickle_dict_open(out, err));
    MGR_TRY(mgr_pickle_text(out, "param", err));
    MGR_TRY(mgr_pickle_repeated(out, "0", MGR_DTYPE_F32, m->param->ndim, m->param->shape, err));
    return mgr_pickle_dict_close(out, err);
}

/* As torch's Adam counts. ZeRO 1 and 2 ask for one of each parameter. */
static int make_step(const maker *m, mgr_buf *out, mgr_err *err)
{
    (void)m;
    return mgr_pickle_tensor(out, "0", MGR_DTYPE_F32, 0, NULL, err);
}

/* A group without settings: those of the run that loads it stay. */
static int put_groups(mgr_buf *out, mgr_err *err)
{
    MGR_TRY(open_list(out, "param_groups", err));
    MGR_TRY(mgr_pickle_dict_open(out, err));
    MGR_TRY(put_empty_list(out, "params", err));
    MGR_TRY(mgr_pickle_dict_close(out, err));
    return mgr_pickle_list_close(out, err);
}

/* zero/optimizer_state.pt: what stage3.py looks for lies in a dict, what base_optimizer.py does
 * beside it. */
static int make_universal(const maker *m, mgr_buf *out, mgr_err *err)
{
    MGR_TRY(mgr_pickle_dict_open(out, err));
    MGR_TRY(open_dict(out, "optimizer_state_dict", err));
    MGR_TRY(open_dict(out, "state", err));
    MGR_TRY(mgr_pickle_int(out, 0, err));
    MGR_TRY(mgr_pickle_dict_open(out, err));
    MGR_TRY(mgr_pickle_text(out, "step", err));
    MGR_TRY(make_step(m, out, err));
    MGR_TRY(mgr_pickle_dict_close(out, err));
    MGR_TRY(mgr_pickle_dict_close(out, err));
    MGR_TRY(put_groups(out, err));
    MGR_TRY(mgr_pickle_dict_close(out, err));
    MGR_TRY(put_groups(out, err));
    MGR_TRY(put_text(out, "ds_version", MGR_DEEPSPEED_VERSION, err));
    return mgr_pickle_dict_close(out, err);
}

/* Settings that torch's AdamW has by itself, and the numbers of the groups. */
static int put_settings(const mgr_deepspeed *ds, mgr_buf *out, mgr_err *err)
{
    static const char *const nones[] = {"foreach", "fused"};
    MGR_TRY(mgr_pickle_dict_open(out, err));
    MGR_TRY(put_real(out, "lr", 1e-3, err));
    MGR_TRY(mgr_pickle_text(out, "betas", err));
    MGR_TRY(mgr_pickle_tuple_open(out, err));
    MGR_TRY(mgr_pickle_real(out, 0.9, err));
    MGR_TRY(mgr_pickle_real(out, 0.999, err));
    MGR_TRY(mgr_pickle_tuple_close(out, err));
    MGR_TRY(put_real(out, "eps", 1e-8, err));
    MGR_TRY(put_real(out, "weight_decay", 0.01, err));
    MGR_TRY(put_bool(out, "bias_correction", true, err));
    MGR_TRY(put_bool(out, "amsgrad", false, err));
    MGR_TRY(put_bool(out, "maximize", false, err));
    MGR_TRY(put_bool(out, "capturable", false, err));
    MGR_TRY(put_bool(out, "differentiable", false, err));
    MGR_TRY(put_bool(out, "decoupled_weight_decay", true, err));
    MGR_TRY(put_nones(out, nones, sizeof nones / sizeof nones[0], err));
    MGR_TRY(open_list(out, "params", err));
    for (uint32_t g = 0; g < ds->groups; g++)
        MGR_TRY(mgr_pickle_int(out, g, err));
    MGR_TRY(mgr_pickle_list_close(out, err));
    return mgr_pickle_dict_close(out, err);
}

/* The engine takes the scaler as it is (runtime/fp16/loss_scaler.py); that of bfloat16. */
static int put_scaler(mgr_buf *out, mgr_err *err)
{
    MGR_TRY(mgr_pickle_text(out, "loss_scaler", err));
    MGR_TRY(mgr_pickle_object_open(out, "deepspeed.runtime.fp16.loss_scaler", "LossScaler", err));
    MGR_TRY(put_real(out, "cur_scale", 1.0, err));
    MGR_TRY(put_bool(out, "dynamic", false, err));
    return mgr_pickle_object_close(out, err);
}

/* The state of Adam is left out: torch and DeepSpeed begin it at zero where there is none. */
static int put_inner(const mgr_deepspeed *ds, const uint64_t *sizes, mgr_buf *out, mgr_err *err)
{
    char key[24];
    MGR_TRY(open_dict(out, "optimizer_state_dict", err));
    MGR_TRY(put_int(out, "zero_stage", 3, err));
    MGR_TRY(put_scaler(out, err));
    MGR_TRY(put_bool(out, "dynamic_loss_scale", false, err));
    MGR_TRY(put_bool(out, "overflow", false, err));
    MGR_TRY(put_int(out, "partition_count", ds->ranks, err));
    MGR_TRY(open_dict(out, "optimizer_state_dict", err));
    MGR_TRY(put_empty(out, "state", err));
    MGR_TRY(open_list(out, "param_groups", err));
    MGR_TRY(put_settings(ds, out, err));
    MGR_TRY(mgr_pickle_list_close(out, err));
    MGR_TRY(mgr_pickle_dict_close(out, err));
    MGR_TRY(open_list(out, "fp32_flat_groups", err));
    for (uint32_t g = 0; g < ds->groups; g++) {
        snprintf(key, sizeof key, "%u", g);
        MGR_TRY(mgr_pickle_tensor(out, key, MGR_DTYPE_F32, 1, &sizes[g], err));
    }
    MGR_TRY(mgr_pickle_list_close(out, err));
    return mgr_pickle_dict_close(out, err);
}

int mgr_deepspeed_emit_optimizer(const mgr_deepspeed *ds, const uint64_t *sizes, mgr_buf *out,
                                 mgr_err *err)
{
    MGR_TRY(mgr_pickle_dict_open(out, err));
    MGR_TRY(put_inner(ds, sizes, out, err));
    MGR_TRY(put_empty(out, "ds_config", err));
    MGR_TRY(put_text(out, "ds_version", MGR_DEEPSPEED_VERSION, err));
    return mgr_pickle_dict_close(out, err);
}

/* ---- all ---- */

/* What an optimizer has of a parameter that was never trained. */
static int write_state(maker *m, const char *folder, mgr_err *err)
{
    m->make = make_moment;
    MGR_TRY(write_at(m, folder, "exp_avg.pt", sizeof(float), err));
    MGR_TRY(write_at(m, folder, "exp_avg_sq.pt", sizeof(float), err));
    m->make = make_step;
    return write_at(m, folder, "step.pt", sizeof(float), err);
}

static int write_states(maker *m, const char *folder, mgr_err *err)
{
    mgr_buf at = {0};
    int rc = MGR_OK;
    for (size_t i = 0; rc == MGR_OK && i < m->ds->view.n_stored; i++) {
        m->param = &m->ds->view.stored[i];
        at.len = 0;
        rc = mgr_buf_fmt(&at, err, "%s/zero/%s", folder, m->param->name);
        if (rc == MGR_OK)
            rc = write_state(m, at.data, err);
    }
    mgr_buf_clear(&at);
    return rc;
}

/* The engine reads one under ZeRO-3's name, or under that of ZeRO 1 and 2. */
static int write_models(maker *m, const char *folder, mgr_err *err)
{
    char name[64];
    m->make = make_model;
    for (uint32_t r = 0; r < m->ds->ranks || r == 0; r++) {
        snprintf(name, sizeof name, "zero_pp_rank_%u_mp_rank_00_model_states.pt", r);
        MGR_TRY(write_at(m, folder, name, 0, err));
    }
    return m->ds->ranks ? MGR_OK : write_at(m, folder, "mp_rank_00_model_states.pt", 0, err);
}

static int write_all(maker *m, const char *folder, mgr_err *err)
{
    MGR_TRY(write_models(m, folder, err));
    if (m->ds->ranks)
        return MGR_OK;
    MGR_TRY(write_states(m, folder, err));
    m->make = make_universal;
    return write_at(m, folder, "zero/optimizer_state.pt", sizeof(float), err);
}

int mgr_deepspeed_sidecars(const mgr_deepspeed *ds, bool tied, uint64_t iteration,
                           const char *folder, const char *directory, mgr_err *err)
{
    const char *const latest = ds->ranks ? "latest" : "latest_universal";
    maker m = {.ds = ds, .tied = tied, .iteration = iteration};
    mgr_buf path = {0};
    int rc = mgr_buf_fmt(&path, err, "%s/%s", directory, folder);
    if (rc == MGR_OK)
        rc = write_all(&m, path.data, err);
    path.len = 0;
    if (rc == MGR_OK)
        rc = mgr_buf_fmt(&path, err, "%s/%s", directory, latest);
    if (rc == MGR_OK)
        rc = mgr_write_file(path.data, folder, strlen(folder), err);
    mgr_buf_clear(&path);
    return rc;
}
