/* mgr-upcycle, phase by phase. */
#include <assert.h>
#include <stdio.h>
#include <string.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "core/mem.h"
#include "core/say_run.h"
#include "engine/engine.h"
#include "form/sidecar.h"
#include "form/strange.h"
#include "io/cores.h"
#include "io/fault.h"
#include "io/file.h"
#include "run/branches.h"
#include "run/found.h"
#include "run/lists_file.h"
#include "run/optimizer.h"
#include "run/recipe.h"
#include "run/router_file.h"
#include "run/run.h"
#include "run/source_sums.h"

#define BASELINE_UNIT ((uint64_t)8 << 20)

/* What MPI will take beside a plan that is made without it, as seen of MPICH and Open MPI. */
#define MPI_BYTES ((uint64_t)16 << 20)

/* Rank 0 parses; all get the same struct. */
static int read_config(mgr_job *job, const mgr_run_options *o, mgr_err *err)
{
    mgr_buf text = {0};
    int rc = MGR_OK;
    if (job->rank == 0) {
        rc = mgr_read_file(o->config_path, MGR_CONFIG_MOST, &text, err);
        if (rc == MGR_OK)
            rc = mgr_config_parse(&job->config, mgr_config_tables, o->config_path,
                                  text.data ? text.data : "", text.len, o->sets, o->n_sets, err);
        text.len = 0;
        if (rc == MGR_OK)
            rc = mgr_buf_add(&text, &job->config, sizeof job->config, err);
    }
    rc = mgr_agree_root(job, rc, err);
    if (rc == MGR_OK)
        rc = mgr_bcast_bytes(job->comm, &text, err);
    if (rc == MGR_OK)
        memcpy(&job->config, text.data, sizeof job->config);
    mgr_buf_clear(&text);
    if (rc == MGR_OK)
        mgr_mem_bound(job->config.memory_per_rank, mgr_current_rss());
    return rc;
}

/* Several sources are for a method that takes them, which takes no single one. */
static int check_sources(const mgr_job *job, mgr_err *err)
{
    const mgr_config *const c = &job->config;
    if (c->n_sources && !job->method)
        return mgr_config_fail(c, "mode", err, "'sources' are for 'mode: upcycle'");
    if (!job->method || job->method->takes_sources == (c->n_sources > 0))
        return MGR_OK;
    mgr_config_fail(c, "upcycle.method", err,
                    c->n_sources ? "method '%s' makes experts of one model, and there are 'sources'"
                                 : "method '%s' makes experts of several models: 'sources' lists "
                                   "them",
                    job->method->name);
    return c->n_sources ? mgr_hint(err, "set 'upcycle.method: branch-train-mix'") : MGR_ERR_CONFIG;
}

/* Names of the configuration to entries of the registries; mgr_config_settle knows them all. */
static int resolve(mgr_job *job, mgr_err *err)
{
    const mgr_config *const c = &job->config;
    MGR_TRY(mgr_io_threads_check(c, err));
    job->target_format = mgr_target_find(c->target.format);
    if (strcmp(c->mode, "upcycle") == 0) {
        job->method = mgr_method_find(c->upcycle.method);
        job->router.kind = mgr_router_find(c->upcycle.router);
    }
    MGR_TRY(check_sources(job, err));
    MGR_TRY(mgr_branches_init(job, err));
    for (uint32_t i = 0; i < c->n_sources; i++) {
        mgr_config_use_source(&job->config, i);
        MGR_TRY(mgr_sidecar_check_tokenizer(c, err));
    }
    mgr_config_use_source(&job->config, 0);
    return mgr_sidecar_check_tokenizer(c, err);
}

/* "owner/name", as the hub has it and no path that was meant? */
static bool like_hub_name(const char *path)
{
    const char *const slash = strchr(path, '/');
    return slash && slash != path && slash[1] != '\0' && !strchr(slash + 1, '/') && path[0] != '.';
}

static int no_source(const char *path, mgr_err *err)
{
    mgr_fail(err, MGR_ERR_NOT_FOUND, "source.path '%s' does not exist", path);
    if (like_hub_name(path))
        mgr_hint(err,
                 "names of the Hugging Face hub are not downloaded: hf download %s "
                 "--local-dir DIR, then 'source.path: DIR'",
                 path);
    return err->code;
}

/* What 'auto' turned out to be, and whether the keys that are written are its own. */
static int settle_format(mgr_job *job, mgr_err *err)
{
    mgr_config *const c = &job->config;
    memset(c->source.format, 0, sizeof c->source.format);
    memcpy(c->source.format, job->source_format->name, strlen(job->source_format->name));
    MGR_TRY(mgr_config_settle(c, mgr_config_tables, err));
    return mgr_optimizer_ask(job, err);
}

/* Is it the config.json that the user names, or that of the folder? */
static bool is_named(const mgr_config *c, const char *path)
{
    const size_t n = strlen(c->source.config);
    return n > 0 && strncmp(path, c->source.config, n) == 0 &&
           (path[n] == '\0' || strcmp(path + n, "/config.json") == 0);
}

/* No file of the source lies elsewhere than it seems to; one that the user names may lie anywhere.
 */
static int check_links(const mgr_job *job, mgr_err *err)
{
    const mgr_config *const c = &job->config;
    for (size_t i = 0; i < job->source_files.n; i++)
        if (!is_named(c, job->source_files.paths[i]))
            MGR_TRY(mgr_check_link(job->source_files.paths[i], c->source.path, err));
    return MGR_OK;
}

static int detect_source(mgr_job *job, mgr_err *err)
{
    const mgr_config *const c = &job->config;
    const bool automatic = strcmp(c->source.format, "auto") == 0;
    if (automatic && !mgr_path_exists(c->source.path))
        return no_source(c->source.path, err);
    job->source_format =
        automatic ? mgr_source_probe(c->source.path) : mgr_source_find(c->source.format);
    if (!job->source_format)
        return mgr_strange_path(c->source.path, err);
    MGR_TRY(settle_format(job, err));
    MGR_TRY(job->source_format->find(c, &job->arena, &job->source_files, err));
    return check_links(job, err);
}

/* The list of files travels as NUL-terminated strings: format, directory, paths. */
static int pack_files(const mgr_job *job, mgr_buf *out, mgr_err *err)
{
    const mgr_source_files *const f = &job->source_files;
    MGR_TRY(mgr_buf_add(out, job->source_format->name, strlen(job->source_format->name) + 1, err));
    MGR_TRY(mgr_buf_add(out, f->directory, strlen(f->directory) + 1, err));
    for (size_t i = 0; i < f->n; i++)
        MGR_TRY(mgr_buf_add(out, f->paths[i], strlen(f->paths[i]) + 1, err));
    return MGR_OK;
}

static int unpack_files(mgr_job *job, const mgr_buf *in, mgr_err *err)
{
    mgr_source_files *const f = &job->source_files;
    const char *at = in->data, *const end = in->data + in->len;
    size_t n = 0;
    for (const char *p = at; p < end; p += strlen(p) + 1)
        n++;
    MGR_TRY(mgr_arena_alloc(&job->arena, &f->paths, n * sizeof *f->paths, err));
    job->source_format = mgr_source_find(at);
    at += strlen(at) + 1;
    MGR_TRY(mgr_arena_strndup(&job->arena, &f->directory, at, strlen(at), err));
    f->n = 0;
    for (at += strlen(at) + 1; at < end; at += strlen(at) + 1)
        MGR_TRY(mgr_arena_strndup(&job->arena, &f->paths[f->n++], at, strlen(at), err));
    return MGR_OK;
}

static int find_source(mgr_job *job, mgr_err *err)
{
    mgr_buf list = {0};
    int rc = MGR_OK;
    if (job->rank == 0) {
        rc = detect_source(job, err);
        if (rc == MGR_OK)
            rc = pack_files(job, &list, err);
    }
    rc = mgr_agree_root(job, rc, err);
    if (rc == MGR_OK)
        rc = mgr_bcast_bytes(job->comm, &list, err);
    if (rc == MGR_OK && job->rank != 0)
        rc = unpack_files(job, &list, err);
    if (rc == MGR_OK && job->rank != 0)
        rc = settle_format(job, err);
    mgr_buf_clear(&list);
    return mgr_agree(job->comm, rc, err);
}

static int read_header(mgr_job *job, mgr_catalogue *cat, const char *path, mgr_err *err)
{
    mgr_reader reader;
    uint32_t file;
    MGR_TRY(mgr_reader_open(&reader, path, err));
    int rc = mgr_catalogue_add_file(cat, path, reader.size, &file, err);
    if (rc == MGR_OK) {
        cat->files[file].modified = reader.modified;
        cat->files[file].inode = reader.inode;
    }
    if (rc == MGR_OK)
        rc = job->source_format->read(cat, file, &reader, &job->source_files.held, err);
    mgr_reader_close(&reader);
    return rc == MGR_ERR_NOMEM ? mgr_wrap(err, "reading the header of '%s'", path) : rc;
}

/* Each rank reads the headers of a stretch of the files; all get all, in the files' order. */
static int read_headers(mgr_job *job, mgr_err *err)
{
    const mgr_source_files *const f = &job->source_files;
    const size_t first = f->n * job->rank / job->ranks, end = f->n * (job->rank + 1) / job->ranks;
    mgr_catalogue mine = {0};
    mgr_buf packed = {0}, all = {0};
    int rc = MGR_OK;
    mgr_say_work("files", f->n, job->ranks);
    if (job->source_format->begin && end > first)
        rc = job->source_format->begin(&job->config, f->directory, &job->source_files.held, err);
    for (size_t i = first; rc == MGR_OK && i < end; i++) {
        rc = read_header(job, &mine, f->paths[i], err);
        if (rc == MGR_OK)
            rc = mgr_say_step(1, err);
    }
    mgr_forget_source(job);
    if (rc == MGR_OK && job->ranks > 1 && end > first)
        rc = mgr_catalogue_pack(&mine, &packed, err);
    rc = mgr_agree(job->comm, rc, err);
    if (rc == MGR_OK && job->ranks == 1) {
        job->source.cat = mine;
        mine = (mgr_catalogue){0};
    }
    mgr_catalogue_clear(&mine);
    if (rc == MGR_OK && job->ranks > 1)
        rc = mgr_allgather_bytes(job->comm, &packed, &all, err);
    mgr_buf_clear(&packed);
    if (rc == MGR_OK)
        rc = mgr_catalogue_unpack(&job->source.cat, all.data, all.len, err);
    mgr_buf_clear(&all);
    mgr_mem_trim();
    return mgr_agree(job->comm, rc, err);
}

/* The checkpoint that job->config.source names. */
static int describe_one(mgr_job *job, const mgr_source_format *format, void **state, mgr_side *s,
                        mgr_err *err)
{
    return mgr_source_lay_out(format, &s->cat, &job->config, state, &s->tensors, &s->layout, err);
}

static int describe_branches(mgr_job *job, mgr_err *err)
{
    int rc = MGR_OK;
    for (uint32_t i = 0; rc == MGR_OK && i < job->n_branches; i++) {
        mgr_branch *const b = &job->branches[i];
        mgr_config_use_source(&job->config, i);
        rc = describe_one(job, b->format, &b->state, &b->side, err);
    }
    mgr_config_use_source(&job->config, 0);
    return rc == MGR_OK ? mgr_branches_join(job, err) : rc;
}

static int describe_source(mgr_job *job, mgr_err *err)
{
    mgr_side *const s = &job->source;
    MGR_TRY(job->n_branches ? describe_branches(job, err)
                            : describe_one(job, job->source_format, &job->source_state, s, err));
    job->origin =
        (mgr_origin){job->source_format->name, job->source_files.directory,
                     job->n_branches ? &job->branches[0].side.cat : &s->cat, &s->tensors.model};
    return MGR_OK;
}

/* Of a mixture: experts come from its experts, and what it has for each of them goes along. */
static mgr_define define_of_mixture(const mgr_job *job, const mgr_tensor *t)
{
    const mgr_tensors *const from = &job->source.tensors;
    const bool kept = job->router.kind == MGR_ROUTER_SOURCE;
    const uint32_t layer = mgr_layer_from(job, t->layer);
    if (t->role == MGR_ROLE_ROUTER && !kept)
        return (mgr_define){MGR_OP_ROUTER, MGR_NONE};
    if (t->role == MGR_ROLE_ROUTER || t->role == MGR_ROLE_ROUTER_BIAS ||
        t->role == MGR_ROLE_SELECTION_BIAS)
        return kept ? (mgr_define){MGR_OP_ROWS, mgr_tensors_find(from, t->role, layer, MGR_NONE)}
                    : (mgr_define){MGR_OP_ZERO, MGR_NONE};
    if (t->expert == MGR_NONE)
        return (mgr_define){MGR_OP_COPY, mgr_tensors_find(from, t->role, layer, MGR_NONE)};
    return (mgr_define){
        t->role != MGR_ROLE_DOWN_BIAS ? MGR_OP_EXPERT : MGR_OP_COPY,
        mgr_tensors_find(from, t->role, layer, mgr_recipe_from(&job->recipe, t->layer)[t->expert])};
}

static uint32_t match_weight(const mgr_tensors *from, const mgr_tensor *t)
{
    return t->opaque ? mgr_tensors_match(from, t)
                     : mgr_tensors_find(from, t->role, t->layer, t->expert);
}

/* Is what several sources have each and the target once their mean? */
static bool has_mean(const mgr_job *job)
{
    return job->n_branches && mgr_others_find(job->config.upcycle.others) == MGR_OTHERS_AVERAGE;
}

/* Training from scratch: biases are 0. */
static mgr_define define_drawn(const mgr_tensor *t)
{
    const bool bias = t->ndim == 1 && !mgr_role_is_norm(t->role);
    return (mgr_define){t->role == MGR_ROLE_ROUTER ? MGR_OP_ROUTER
                        : bias                     ? MGR_OP_ZERO
                                                   : MGR_OP_INIT,
                        MGR_NONE};
}

/* How the tensor `t` of the target is made, of another plane: how its weight is. An expert's own
 * tensors come from the dense FFN, all others from the tensor of the same name. */
static mgr_define define(const mgr_job *job, const mgr_tensor *t)
{
    const mgr_tensors *const from = &job->source.tensors;
    const uint32_t layer = mgr_layer_from(job, t->layer);
    if (job->joined && t->role == MGR_ROLE_DOWN)
        return (mgr_define){MGR_OP_JOINED, mgr_tensors_match(from, t)};
    if (!job->method || t->opaque)
        return (mgr_define){MGR_OP_COPY, match_weight(from, t)};
    if (job->method->draws_all)
        return define_drawn(t);
    if (job->source.tensors.model.experts)
        return define_of_mixture(job, t);
    if (t->role == MGR_ROLE_ROUTER)
        return (mgr_define){MGR_OP_ROUTER, MGR_NONE};
    if (t->role == MGR_ROLE_ROUTER_BIAS || t->role == MGR_ROLE_SELECTION_BIAS ||
        t->role == MGR_ROLE_SHARED_SWITCH)
        return (mgr_define){MGR_OP_ZERO, MGR_NONE};
    if (mgr_role_is_shared(t->role))
        return (mgr_define){MGR_OP_SHARED,
                            mgr_tensors_ffn(from, mgr_role_unshared(t->role), layer, 0)};
    const bool of_neurons = t->role != MGR_ROLE_DOWN_BIAS; /* that bias is the same for all */
    if (t->expert == MGR_NONE)
        return (mgr_define){has_mean(job) ? MGR_OP_AVERAGE : MGR_OP_COPY,
                            mgr_tensors_find(from, t->role, layer, MGR_NONE)};
    const uint32_t *const list = mgr_recipe_from(&job->recipe, t->layer);
    const uint32_t ffn = list ? list[t->expert] : 0;
    return (mgr_define){of_neurons ? MGR_OP_EXPERT : MGR_OP_COPY,
                        mgr_tensors_ffn(from, t->role, layer, ffn)};
}

static int define_targets(mgr_job *job, mgr_err *err)
{
    const mgr_tensors *const to = &job->target.tensors;
    MGR_TRY(mgr_alloc(&job->defines, to->n, sizeof *job->defines, err));
    for (uint32_t i = 0; i < to->n; i++) {
        job->defines[i] = define(job, &to->list[i]);
        if (to->list[i].plane != MGR_PLANE_WEIGHT)
            job->defines[i] =
                mgr_optimizer_define(&job->source.tensors, to->list[i].plane, &job->defines[i]);
        const mgr_op op = job->defines[i].op;
        if (job->defines[i].source == MGR_NONE && op != MGR_OP_ROUTER && op != MGR_OP_ZERO &&
            op != MGR_OP_INIT)
            return mgr_fail(err, MGR_ERR_INTERNAL, "no source for %s",
                            mgr_role_name(to->list[i].role));
    }
    return MGR_OK;
}

/* The type that a tensor has in the source; of a mean the narrowest that holds all values of all.
 */
static mgr_dtype type_of_sources(const mgr_job *job, const mgr_define *d)
{
    const mgr_tensors *const ts = &job->source.tensors;
    const mgr_dtype *const types = job->source.layout.types;
    mgr_dtype type = mgr_layout_type(&job->source.layout, d->source);
    for (uint32_t i = d->source; d->op == MGR_OP_AVERAGE && i < ts->n; i++)
        if (ts->list[i].bundle == ts->list[d->source].bundle &&
            ts->list[i].role == ts->list[d->source].role && types[i] != type)
            type = MGR_DTYPE_F32;
        else if (ts->list[i].bundle != ts->list[d->source].bundle)
            break;
    return type;
}

static int describe_target(mgr_job *job, mgr_err *err)
{
    const mgr_config *const c = &job->config;
    mgr_side *const t = &job->target;
    mgr_model model;
    MGR_TRY(mgr_run_model(job, &model, err));
    MGR_TRY(mgr_lists_place(job, &model, err));
    const bool as_source = strcmp(c->target.dtype, "source") == 0;
    const mgr_dtype dtype = as_source ? model.dtype : mgr_dtype_from_name(c->target.dtype);
    if (job->target_format->settle)
        job->target_format->settle(&job->origin, &job->config);
    MGR_TRY(mgr_target_check(job->target_format, c, &job->origin, &model, err));
    MGR_TRY(mgr_tensors_init(&t->tensors, &model, err));
    MGR_TRY(mgr_tensors_share_opaque(&t->tensors, &job->source.tensors, err));
    MGR_TRY(mgr_optimizer_add(job, dtype, err));
    MGR_TRY(define_targets(job, err));
    MGR_TRY(mgr_layout_init(&t->layout, &t->tensors, &t->cat, true, dtype, err));
    for (uint32_t i = 0; as_source && i < t->tensors.n_weights; i++)
        if (job->defines[i].source != MGR_NONE)
            t->layout.types[i] = type_of_sources(job, &job->defines[i]);
    MGR_TRY(job->target_format->layout(c, &job->origin, &t->layout, &job->target_state, err));
    MGR_TRY(mgr_layout_finish(&t->layout, err));
    return mgr_router_file_match(job, err);
}

/* What source and target have to say, behind the last thing that can fail. */
/* Rows of the vocabulary as it is stored, padding and all. Whole pieces of padding belong to no
 * logical tensor; they go by the name, up to the place that torch_dist has in it. */
static uint64_t stored_vocabulary(const mgr_layout *l)
{
    const uint32_t idx = mgr_tensors_find(l->tensors, MGR_ROLE_EMBEDDING, MGR_NONE, MGR_NONE);
    const mgr_box *const boxes = &l->boxes[l->first_box[idx]];
    const size_t n = l->first_box[idx + 1] - l->first_box[idx];
    const char *const name = l->cat->stored[boxes[0].stored].name;
    const size_t len = strcspn(name, "@");
    uint64_t rows = 0, copies = 1;
    if (l->cat->stored[boxes[0].stored].ndim != 2) /* a flat piece of many tensors: no padding */
        return l->tensors->model.vocab;
    for (size_t i = 0; i < l->cat->n_stored; i++) {
        const mgr_stored *const s = &l->cat->stored[i];
        if (strncmp(s->name, name, len) == 0 && (s->name[len] == '\0' || s->name[len] == '@'))
            rows += s->shape[0];
    }
    for (size_t i = 0; i < n; i++)
        if (boxes[i].copy >= copies && strcmp(l->cat->stored[boxes[i].stored].name, name) == 0)
            copies = boxes[i].copy + (uint64_t)1;
    return rows / copies;
}

/* What nobody looks into. */
static int review_passed(mgr_job *job, mgr_err *err)
{
    const mgr_model *const m = &job->source.tensors.model;
    if (!m->passed && !m->tower && !m->mtp)
        return MGR_OK;
    if (!m->passed && !m->tower)
        return mgr_remarks_say(&job->remarks, MGR_REMARK_WARNING, err,
                               "%u tensors of layers for multi-token prediction are moved unread",
                               job->source.tensors.n - job->source.tensors.first_opaque);
    return mgr_remarks_say(&job->remarks, MGR_REMARK_WARNING, err,
                           "%u tensors beside the %s are passed through unread%s",
                           job->source.tensors.n - job->source.tensors.first_opaque,
                           m->passed ? "FFNs" : "text decoder",
                           m->passed ? ": this class has no row here" : "");
}

/* Sparse Upcycling (arXiv 2212.05055) gave encoders and vision transformers another router. */
static int review_choice(mgr_job *job, mgr_err *err)
{
    const mgr_model *const m = &job->target.tensors.model;
    const bool encoder = m->encoder_layers > 0, seer = m->kin == MGR_KIN_VIT;
    if (!job->method || (!encoder && !seer))
        return MGR_OK;
    return mgr_remarks_say(&job->remarks, MGR_REMARK_WARNING, err,
                           "the %s's routers choose experts for tokens: with Expert Choice, as the "
                           "paper on Sparse Upcycling trained it, nothing loads it outside JAX",
                           encoder ? "encoder" : "vision transformer");
}

/* What becomes of padding behind the vocabulary. */
static int review_vocabulary(mgr_job *job, mgr_err *err)
{
    const uint64_t vocab = job->source.tensors.model.vocab;
    if (job->source.tensors.model.ffns_only) /* nothing is cut or padded that is opaque */
        return MGR_OK;
    const uint64_t from =
        stored_vocabulary(job->n_branches ? &job->branches[0].side.layout : &job->source.layout);
    const uint64_t to = stored_vocabulary(&job->target.layout);
    if (from > vocab)
        MGR_TRY(
            mgr_remarks_say(&job->remarks, MGR_REMARK_WARNING, err,
                            "%llu of the source's %llu rows of the vocabulary are taken, the "
                            "others for padding, as %s says",
                            (unsigned long long)vocab, (unsigned long long)from,
                            job->config.model.vocab_size ? "model.vocab_size" : "args.vocab_size"));
    if (to > vocab)
        MGR_TRY(mgr_remarks_say(&job->remarks, MGR_REMARK_WARNING, err,
                                "the %llu rows of the vocabulary are padded with zeros to %llu, a "
                                "multiple of make_vocab_size_divisible_by %llu x tensor_parallel "
                                "%llu",
                                (unsigned long long)vocab, (unsigned long long)to,
                                (unsigned long long)job->config.target.make_vocab_size_divisible_by,
                                (unsigned long long)job->config.target.tensor_parallel));
    return MGR_OK;
}

/* What each of several sources has to say. */
static int review_branches(mgr_job *job, mgr_err *err)
{
    int rc = MGR_OK;
    for (uint32_t i = 0; rc == MGR_OK && i < job->n_branches; i++) {
        const mgr_branch *const b = &job->branches[i];
        mgr_config_use_source(&job->config, i);
        if (b->format->review)
            rc = b->format->review(b->state, &b->side.cat, &job->config, &job->remarks, err);
    }
    mgr_config_use_source(&job->config, 0);
    return rc == MGR_OK ? mgr_branches_check_tokenizers(job, err) : rc;
}

static int review(mgr_job *job, mgr_err *err)
{
    MGR_TRY(review_passed(job, err));
    MGR_TRY(review_choice(job, err));
    MGR_TRY(review_vocabulary(job, err));
    const mgr_source_format *const from = job->source_format;
    const mgr_target_format *const to = job->target_format;
    const mgr_output out = {.config = &job->config,
                            .layout = &job->target.layout,
                            .state = job->target_state,
                            .origin = &job->origin};
    if (job->n_branches)
        MGR_TRY(review_branches(job, err));
    else if (from->review)
        MGR_TRY(
            from->review(job->source_state, &job->source.cat, &job->config, &job->remarks, err));
    return to->review ? to->review(&out, &job->remarks, err) : MGR_OK;
}

/* What ranks say of themselves before the plan is made. */
typedef struct about_rank {
    uint64_t rss;
    mgr_cores cores;
} about_rank;

/* The nodes of those that run, or of those that a dry run is told of. */
static int find_places(mgr_job *job, const mgr_run_options *o, const mgr_cores *cores, mgr_err *err)
{
    const uint32_t pretended = mgr_fault_nodes();
    uint64_t *host = NULL;
    if (o->plan_ranks)
        return o->plan_each
                   ? mgr_places_even(&job->places, job->plan_ranks, (uint32_t)o->plan_each, err)
                   : MGR_OK;
    MGR_TRY(mgr_alloc(&host, job->ranks, sizeof *host, err));
    for (uint32_t i = 0; i < job->ranks; i++)
        host[i] = pretended ? i % pretended : cores[i].host;
    const int rc = mgr_places_make(&job->places, host, job->ranks, err);
    mgr_free(host);
    return rc;
}

/* The most memory that any rank has in use before the buffers, rounded up, so that equal runs have
 * equal plans; the threads that each rank gets, and the nodes. */
static int look_around(mgr_job *job, const mgr_run_options *o, uint64_t *baseline, mgr_err *err)
{
    about_rank mine = {.rss = mgr_current_rss() + (mgr_comm_is_alone(job->comm) ? MPI_BYTES : 0)};
    mgr_buf text = {0}, all = {0};
    mgr_cores *cores = NULL;
    mgr_cores_ask(&mine.cores);
    int rc = mgr_buf_add(&text, &mine, sizeof mine, err);
    if (rc == MGR_OK)
        rc = mgr_alloc(&cores, job->ranks, sizeof *cores, err);
    rc = mgr_agree(job->comm, rc, err);
    if (rc == MGR_OK)
        rc = mgr_allgather_bytes(job->comm, &text, &all, err);
    assert(cores || rc != MGR_OK);
    *baseline = 0;
    for (size_t i = 0; rc == MGR_OK && i < job->ranks; i++) {
        memcpy(&mine, all.data + i * sizeof mine, sizeof mine);
        *baseline = mine.rss > *baseline ? mine.rss : *baseline;
        cores[i] = mine.cores;
    }
    *baseline = (*baseline + BASELINE_UNIT - 1) / BASELINE_UNIT * BASELINE_UNIT;
    if (rc == MGR_OK)
        mgr_io_threads_choose(job, cores, job->ranks);
    if (rc == MGR_OK)
        rc = mgr_agree(job->comm, find_places(job, o, cores, err), err);
    mgr_free(cores);
    mgr_buf_clear(&text);
    mgr_buf_clear(&all);
    return rc;
}

static int plan(mgr_job *job, const mgr_run_options *o, mgr_err *err)
{
    uint64_t base;
    int rc = describe_source(job, err);
    if (rc == MGR_OK)
        rc = mgr_run_concat(job, err);
    if (rc == MGR_OK)
        rc = mgr_run_recipe(job, err);
    if (rc == MGR_OK)
        rc = describe_target(job, err);
    if (rc == MGR_OK && job->rank == 0)
        rc = review(job, err);
    rc = mgr_agree(job->comm, rc, err);
    if (rc == MGR_OK && job->found)
        rc = mgr_found_open(job, job->found, err);
    if (rc == MGR_OK)
        rc = look_around(job, o, &base, err);
    if (rc == MGR_OK)
        rc = mgr_agree(job->comm, mgr_run_plan(job, base, err), err);
    return rc;
}

/* Memory, threads and ranks change no byte: a run may be continued with others. */
static int config_id(mgr_job *job, mgr_err *err)
{
    mgr_config *c;
    mgr_buf text = {0};
    MGR_TRY(mgr_alloc(&c, 1, sizeof *c, err));
    *c = job->config;
    c->memory_per_rank = 0;
    c->io_threads[0] = '\0';
    int rc = mgr_config_dump(c, mgr_config_tables, &text, err);
    if (rc == MGR_OK && job->router_file.n_files) /* another file of this name is another run */
        rc = mgr_catalogue_pack(&job->router_file, &text, err);
    if (rc == MGR_OK)
        rc = mgr_buf_add(&text, job->lists.data, job->lists.len, err);
    if (rc == MGR_OK)
        snprintf(job->id, sizeof job->id, "%016llx",
                 (unsigned long long)XXH3_64bits(text.data, text.len));
    mgr_buf_clear(&text);
    mgr_free(c);
    return rc;
}

static int note_phases(mgr_job *job, double start, double found, mgr_err *err)
{
    MGR_TRY(mgr_note_event(job, MGR_PHASE_FIND, MGR_NONE, start, 0, 0, err));
    job->events[0].end = found;
    return mgr_note_event(job, MGR_PHASE_PLAN, MGR_NONE, found, 0, 0, err);
}

/* The source that job->config names: its headers and what is said about its bytes. */
static int find_and_read(mgr_job *job, mgr_err *err)
{
    int rc = find_source(job, err);
    if (rc == MGR_OK)
        rc = read_headers(job, err);
    if (rc == MGR_OK)
        rc = mgr_source_integrity(job, err);
    if (rc == MGR_OK)
        rc = mgr_source_sums(job, err);
    return rc;
}

/* The same for each of several. */
static int find_branches(mgr_job *job, mgr_err *err)
{
    int rc = MGR_OK;
    for (uint32_t i = 0; rc == MGR_OK && i < job->n_branches; i++) {
        mgr_branch_begin(job, i);
        rc = find_and_read(job, err);
        if (rc == MGR_OK)
            mgr_branch_end(job, i);
    }
    if (rc == MGR_OK) {
        mgr_config_use_source(&job->config, 0);
        job->source_format = job->branches[0].format;
        job->source_files = job->branches[0].files;
    }
    return rc;
}

static int prepare(mgr_job *job, const mgr_run_options *o, mgr_err *err)
{
    const double start = mgr_now();
    int rc = read_config(job, o, err);
    if (rc == MGR_OK)
        rc = mgr_agree(job->comm, resolve(job, err), err);
    mgr_say_phase("headers");
    if (rc == MGR_OK)
        rc = job->n_branches ? find_branches(job, err) : find_and_read(job, err);
    if (rc == MGR_OK)
        rc = mgr_router_file_read(job, err);
    if (rc == MGR_OK)
        rc = mgr_lists_file_read(job, err);
    const double found = mgr_now();
    mgr_say_phase("plan");
    if (rc == MGR_OK)
        rc = plan(job, o, err);
    if (rc == MGR_OK)
        rc = mgr_agree(job->comm, config_id(job, err), err);
    if (rc == MGR_OK)
        rc = mgr_agree(job->comm, note_phases(job, start, found, err), err);
    job->tally.seconds_find = found - start;
    job->tally.seconds_plan = mgr_now() - found;
    return rc;
}

int mgr_run_begin(mgr_job *job, const mgr_run_options *o, mgr_err *err)
{
    job->rank = (uint32_t)mgr_comm_rank(job->comm);
    job->ranks = (uint32_t)mgr_comm_size(job->comm);
    job->plan_ranks = (uint32_t)o->plan_ranks;
    job->start = mgr_now();
    job->unit_min = o->unit_min;
    MGR_TRY(prepare(job, o, err));
    job->planned_remarks = job->remarks.n;
    mgr_say_no_phase();
    if (job->rank == 0)
        mgr_say_plan(job);
    if (job->rank == 0 && o->verbosity >= 0) {
        mgr_print_plan(job);
        if (o->verbosity > 0)
            mgr_print_config(job);
    }
    return MGR_OK;
}

int mgr_run_upcycle(mgr_comm *comm, const mgr_run_options *o, mgr_tally *tally, mgr_err *err)
{
    mgr_job *job = NULL;
    mgr_write_options write = o->write;
    write.quiet = o->verbosity < 0;
    int rc = mgr_agree(comm, mgr_alloc(&job, 1, sizeof *job, err), err);
    if (rc != MGR_OK) {
        mgr_free(job);
        return rc;
    }
    job->comm = comm;
    rc = mgr_run_begin(job, o, err);
    if (rc == MGR_OK)
        rc = mgr_run_write(job, job->config.target.path, &write, err);
    mgr_say_no_phase();
    if (rc == MGR_OK && job->rank == 0)
        mgr_say_done(job, o);
    /* where there is no room for it, what it would need is worth the more */
    const bool shown = rc == MGR_OK || (o->write.dry_run && rc == MGR_ERR_SPACE);
    if (shown && job->rank == 0 && o->verbosity >= 0)
        mgr_print_summary(job, o);
    if (tally)
        *tally = job->tally;
    mgr_job_clear(job);
    mgr_free(job);
    return rc;
}
