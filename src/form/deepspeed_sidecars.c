#include "form/deepspeed_sidecars.h"

#include <stdio.h>
#include <string.h>

#include "fmt/torch_write.h"
#include "form/pickle_entry.h"
#include "io/file.h"

#define FOLDER "archive" /* in an archive */

/* ---- one file ---- */

/* Makes the one object of a file. */
typedef struct maker {
    int (*make)(const struct maker *m, mgr_buf *out, mgr_err *err);
    const mgr_deepspeed *ds;
    const mgr_deepspeed_optimizer *optimizer;
    const mgr_stored *param; /* of a moment */
    bool tied;
    uint64_t iteration;
} maker;

/* Its tensors have storage "0", of `len` bytes: one number, that of the steps. */
static int write_object(const maker *m, const char *path, size_t len, mgr_err *err)
{
    const float number = (float)m->optimizer->step;
    const mgr_torch_bytes storage = {&number, len};
    mgr_buf pickle = {0}, archive = {0};
    int rc = mgr_pickle_begin(&pickle, err);
    if (rc == MGR_OK)
        rc = m->make(m, &pickle, err);
    if (rc == MGR_OK)
        rc = mgr_pickle_end(&pickle, err);
    if (rc == MGR_OK)
        rc = mgr_torch_archive_with(FOLDER, &pickle, &storage, 1, &archive, err);
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
    MGR_TRY(mgr_entry_dict(out, "module", err));
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
    MGR_TRY(mgr_entry_list(out, "param_shapes", err));
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
    MGR_TRY(mgr_entry_int(out, "skipped_steps", 0, err));
    MGR_TRY(mgr_entry_int(out, "global_steps", (int64_t)m->iteration, err));
    MGR_TRY(mgr_entry_int(out, "global_samples", 0, err));
    MGR_TRY(mgr_entry_int(out, "dp_world_size", m->ds->ranks ? m->ds->ranks : 1, err));
    MGR_TRY(mgr_entry_int(out, "mp_world_size", 1, err));
    MGR_TRY(mgr_entry_empty(out, "ds_config", err));
    return mgr_entry_text(out, "ds_version", MGR_DEEPSPEED_VERSION, err);
}

/* engine.py, _common_checkpoint_state and save_checkpoint */
static int make_model(const maker *m, mgr_buf *out, mgr_err *err)
{
    static const char *const nones[] = {"optimizer", "frozen_param_shapes",
                                        "frozen_param_fragments", "data_sampler", "random_ltd"};
    MGR_TRY(mgr_pickle_dict_open(out, err));
    MGR_TRY(put_module(m, out, err));
    MGR_TRY(mgr_entry_empty_list(out, "buffer_names", err));
    MGR_TRY(put_shapes(m, out, err));
    MGR_TRY(mgr_entry_dict(out, "shared_params", err));
    if (m->tied)
        MGR_TRY(mgr_entry_text(out, HEAD, EMBEDDING, err));
    MGR_TRY(mgr_pickle_dict_close(out, err));
    MGR_TRY(mgr_entry_nones(out, nones, sizeof nones / sizeof nones[0], err));
    MGR_TRY(mgr_deepspeed_emit_scheduler(m->optimizer, out, err));
    MGR_TRY(mgr_entry_empty_list(out, "sparse_tensor_module_names", err));
    if (!m->ds->ranks)
        MGR_TRY(mgr_entry_empty(out, "universal_checkpoint_info", err));
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

static int make_step(const maker *m, mgr_buf *out, mgr_err *err)
{
    return mgr_deepspeed_emit_step(m->optimizer, out, err);
}

/* zero/optimizer_state.pt */
static int make_universal(const maker *m, mgr_buf *out, mgr_err *err)
{
    return mgr_deepspeed_emit_universal(m->optimizer, out, err);
}

/* ---- all ---- */

/* A step that is a number is in no tensor. */
static size_t step_len(const maker *m)
{
    return m->optimizer->int_step ? 0 : sizeof(float);
}

/* What an optimizer has of a parameter beside moments that are kept, or of one that was never
 * trained: then the number is 0. */
static int write_state(maker *m, const char *folder, mgr_err *err)
{
    m->make = make_moment;
    if (!m->optimizer->from) {
        MGR_TRY(write_at(m, folder, "exp_avg.pt", sizeof(float), err));
        MGR_TRY(write_at(m, folder, "exp_avg_sq.pt", sizeof(float), err));
    }
    m->make = make_step;
    return write_at(m, folder, "step.pt", step_len(m), err);
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
    return write_at(m, folder, "zero/optimizer_state.pt", step_len(m), err);
}

int mgr_deepspeed_sidecars(const mgr_deepspeed *ds, const mgr_deepspeed_optimizer *optimizer,
                           bool tied, uint64_t iteration, const char *folder, const char *directory,
                           mgr_err *err)
{
    const char *const latest = ds->ranks ? "latest" : "latest_universal";
    const char *const slash = strrchr(folder, '/'); /* it lies beside the folder that it names */
    const int above = slash ? (int)(slash - folder) : 1;
    maker m = {.ds = ds, .optimizer = optimizer, .tied = tied, .iteration = iteration};
    mgr_buf path = {0};
    int rc = mgr_buf_fmt(&path, err, "%s/%s", directory, folder);
    if (rc == MGR_OK)
        rc = write_all(&m, path.data, err);
    path.len = 0;
    if (rc == MGR_OK)
        rc = mgr_buf_fmt(&path, err, "%s/%.*s/%s", directory, above, slash ? folder : ".", latest);
    if (rc == MGR_OK)
        rc = mgr_write_file(path.data, slash ? slash + 1 : folder,
                            strlen(slash ? slash + 1 : folder), err);
    mgr_buf_clear(&path);
    return rc;
}
