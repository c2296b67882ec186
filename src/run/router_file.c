#include "run/router_file.h"

#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "fmt/safetensors.h"
#include "io/reader.h"
#include "run/run.h"

static int read_header(mgr_catalogue *cat, const char *path, mgr_err *err)
{
    mgr_reader in;
    uint32_t file;
    MGR_TRY(mgr_reader_open(&in, path, err));
    int rc = mgr_catalogue_add_file(cat, path, in.size, &file, err);
    if (rc == MGR_OK) {
        cat->files[file].modified = in.modified;
        rc = mgr_safetensors_read(cat, file, &in, err);
    }
    mgr_reader_close(&in);
    return rc;
}

int mgr_router_file_read(mgr_job *job, mgr_err *err)
{
    mgr_buf packed = {0};
    int rc = MGR_OK;
    if (job->router.kind != MGR_ROUTER_FILE)
        return MGR_OK;
    if (job->config.upcycle.router_file[0] == '\0')
        return mgr_config_fail(&job->config, "upcycle.router", err,
                               "'upcycle.router' is 'file', but 'upcycle.router_file' names none");
    if (job->rank == 0) {
        rc = read_header(&job->router_file, job->config.upcycle.router_file, err);
        if (rc == MGR_OK)
            rc = mgr_catalogue_pack(&job->router_file, &packed, err);
    }
    rc = mgr_agree_root(job, rc, err);
    if (rc == MGR_OK)
        rc = mgr_bcast_bytes(job->comm, &packed, err);
    if (rc == MGR_OK && job->rank != 0)
        rc = mgr_catalogue_unpack(&job->router_file, packed.data, packed.len, err);
    mgr_buf_clear(&packed);
    return mgr_agree(job->comm, rc, err);
}

/* The layer that a router's name is of; MGR_NONE for another name. */
static uint32_t layer_of(const char *name)
{
    static const char *const starts[] = {"model.layers.", "decoder.layers.", "layers."};
    static const char *const ends[] = {".mlp.gate.weight", ".block_sparse_moe.gate.weight",
                                       ".mlp.router.weight", ".router"};
    for (size_t i = 0; i < sizeof starts / sizeof starts[0]; i++) {
        const size_t len = strlen(starts[i]);
        char *end = NULL;
        if (strncmp(name, starts[i], len) != 0 || name[len] < '0' || name[len] > '9')
            continue;
        const unsigned long layer = strtoul(name + len, &end, 10);
        for (size_t k = 0; k < sizeof ends / sizeof ends[0]; k++)
            if (strcmp(end, ends[k]) == 0 && layer < MGR_MAX_LAYERS)
                return (uint32_t)layer;
    }
    return MGR_NONE;
}

static int check_one(const mgr_job *job, const mgr_stored *s, uint32_t layer, mgr_err *err)
{
    const mgr_model *const m = &job->target.tensors.model;
    const char *const path = job->router_file.files[0].path;
    if (layer == MGR_NONE || layer >= m->layers || !mgr_model_is_moe(m, layer)) {
        mgr_fail(err, MGR_ERR_FORMAT, "'%s' tensor '%s' is the router of no layer with experts",
                 path, s->name);
        return mgr_hint(err,
                        "routers are named model.layers.N.mlp.gate.weight, or as in Mixtral or "
                        "Megatron; write a file of nothing else");
    }
    if (job->router_of_layer[layer] != MGR_NONE)
        return mgr_fail(err, MGR_ERR_FORMAT, "'%s' has two routers of layer %u, '%s' and '%s'",
                        path, layer, job->router_file.stored[job->router_of_layer[layer]].name,
                        s->name);
    if (s->ndim != 2 || s->shape[0] != m->experts || s->shape[1] != m->hidden ||
        !mgr_dtype_is_weight(s->dtype))
        return mgr_fail(err, MGR_ERR_FORMAT,
                        "'%s' tensor '%s' is no matrix of %llu experts x %llu in bfloat16, float16 "
                        "or float32",
                        path, s->name, (unsigned long long)m->experts,
                        (unsigned long long)m->hidden);
    return MGR_OK;
}

int mgr_router_file_match(mgr_job *job, mgr_err *err)
{
    const mgr_model *const m = &job->target.tensors.model;
    const mgr_catalogue *const cat = &job->router_file;
    if (!job->method || job->router.kind != MGR_ROUTER_FILE)
        return MGR_OK;
    MGR_TRY(mgr_alloc(&job->router_of_layer, m->layers, sizeof *job->router_of_layer, err));
    for (uint32_t l = 0; l < m->layers; l++)
        job->router_of_layer[l] = MGR_NONE;
    for (uint32_t i = 0; i < cat->n_stored; i++) {
        const uint32_t layer = layer_of(cat->stored[i].name);
        MGR_TRY(check_one(job, &cat->stored[i], layer, err));
        job->router_of_layer[layer] = i;
    }
    for (uint32_t l = 0; l < m->layers; l++)
        if (mgr_model_is_moe(m, l) && job->router_of_layer[l] == MGR_NONE)
            return mgr_fail(err, MGR_ERR_FORMAT, "'%s' has no router of layer %u",
                            cat->files[0].path, l);
    return MGR_OK;
}
