#include "run/lists_file.h"

#include <string.h>

#include "core/mem.h"
#include "fmt/h5_read.h"
#include "fmt/json_scan.h"
#include "io/reader.h"
#include "run/run.h"

#define CHUNK 4096

/* What job->lists begins with; the numbers follow, uint32_t. */
typedef struct head {
    uint64_t lists, experts, width; /* width is 1 of lists of experts */
} head;

typedef struct reading {
    const mgr_reader *in;
    const char *name;  /* "neurons" */
    int depth;         /* 3; of experts 2 */
    uint64_t shape[3]; /* 0: not known yet */
    mgr_buf *out;
} reading;

static int add_number(reading *r, int64_t number, mgr_err *err)
{
    const uint32_t n = (uint32_t)number;
    if (number < 0 || number >= UINT32_MAX)
        return mgr_fail(err, MGR_ERR_FORMAT, "'%s' has %lld in its %s", r->in->name,
                        (long long)number, r->name);
    return mgr_buf_add(r->out, &n, sizeof n, err);
}

static int fail_shape(const reading *r, mgr_err *err)
{
    return mgr_fail(err, MGR_ERR_FORMAT,
                    "'%s' has no %s as lists [layer][expert]%s of whole numbers, all of one length",
                    r->in->name, r->name, r->depth == 3 ? "[neuron]" : "");
}

/* ---- JSON ---- */

static int read_list(reading *r, mgr_json_scan *s, int level, mgr_err *err)
{
    uint64_t n = 0;
    mgr_json_kind kind;
    MGR_TRY(mgr_json_scan_kind(s, &kind));
    if (kind != MGR_JSON_ARRAY)
        return fail_shape(r, err);
    MGR_TRY(mgr_json_scan_open(s, '['));
    for (bool more;; n++) {
        int64_t number;
        bool whole;
        MGR_TRY(mgr_json_scan_element(s, &more));
        if (!more)
            break;
        if (level + 1 < r->depth) {
            MGR_TRY(read_list(r, s, level + 1, err));
            continue;
        }
        MGR_TRY(mgr_json_scan_kind(s, &kind));
        if (kind != MGR_JSON_NUMBER)
            return fail_shape(r, err);
        MGR_TRY(mgr_json_scan_number(s, &number, &whole));
        if (!whole)
            return fail_shape(r, err);
        MGR_TRY(add_number(r, number, err));
    }
    if (n == 0 || (r->shape[level] && r->shape[level] != n))
        return fail_shape(r, err);
    r->shape[level] = n;
    return MGR_OK;
}

static int read_members(reading *r, mgr_json_scan *s, mgr_err *err)
{
    bool more, found = false;
    MGR_TRY(mgr_json_scan_open(s, '{'));
    for (;;) {
        MGR_TRY(mgr_json_scan_member(s, &more));
        if (!more)
            return found ? MGR_OK : fail_shape(r, err);
        const bool mine = strcmp(s->text.data, r->name) == 0;
        if (mine && found)
            return mgr_fail(err, MGR_ERR_FORMAT, "'%s' has two members '%s'", r->in->name, r->name);
        MGR_TRY(mine ? read_list(r, s, 0, err) : mgr_json_scan_skip(s));
        found = found || mine;
    }
}

static int read_json(reading *r, mgr_err *err)
{
    mgr_json_scan *s = NULL;
    mgr_json_kind kind = MGR_JSON_WORD;
    MGR_TRY(mgr_alloc(&s, 1, sizeof *s, err));
    mgr_json_scan_start(s, r->in, 0, r->in->size, err);
    int rc = mgr_json_scan_kind(s, &kind);
    if (rc == MGR_OK)
        rc = kind == MGR_JSON_OBJECT ? read_members(r, s, err) : read_list(r, s, 0, err);
    if (rc == MGR_OK)
        rc = mgr_json_scan_end(s);
    mgr_json_scan_stop(s);
    mgr_free(s);
    return rc;
}

/* ---- HDF5 ---- */

static int add_numbers(reading *r, const unsigned char *bytes, size_t n, mgr_dtype dtype,
                       mgr_err *err)
{
    for (size_t i = 0; i < n; i++) {
        int64_t wide;
        int32_t narrow;
        memcpy(&narrow, bytes + i * sizeof narrow, sizeof narrow);
        if (dtype == MGR_DTYPE_I64)
            memcpy(&wide, bytes + i * sizeof wide, sizeof wide);
        MGR_TRY(add_number(r, dtype == MGR_DTYPE_I64 ? wide : narrow, err));
    }
    return MGR_OK;
}

static int read_set(reading *r, const mgr_h5_set *set, mgr_err *err)
{
    const size_t size = set->dtype == MGR_DTYPE_I64 ? 8 : 4;
    unsigned char chunk[CHUNK];
    mgr_h5_image *image = NULL;
    int rc = mgr_h5_image_open(&image, r->in, set, err);
    for (uint64_t at = 0; rc == MGR_OK && at < set->bytes; at += CHUNK) {
        const size_t n = set->bytes - at < CHUNK ? (size_t)(set->bytes - at) : CHUNK;
        rc = mgr_h5_image_read(image, at, chunk, n, err);
        if (rc == MGR_OK)
            rc = add_numbers(r, chunk, n / size, set->dtype, err);
    }
    mgr_h5_image_close(image);
    return rc;
}

static int read_hdf5(reading *r, mgr_err *err)
{
    mgr_h5_set set;
    const int rc = mgr_h5_find(r->in, r->name, &set, err);
    if (rc != MGR_OK)
        return mgr_hint(err,
                        "write it in h5py as h5py.File(path, 'w', libver='latest')"
                        ".create_dataset('%s', data=lists)",
                        r->name);
    if (set.text || (set.dtype != MGR_DTYPE_I32 && set.dtype != MGR_DTYPE_I64) ||
        set.ndim != (uint32_t)r->depth || set.bytes == 0) {
        fail_shape(r, err);
        return mgr_hint(err, "store '%s' as int32 or int64 with %d axes", r->name, r->depth);
    }
    memcpy(r->shape, set.shape, (size_t)r->depth * sizeof *r->shape);
    return read_set(r, &set, err);
}

/* ---- reading ---- */

static int read_file(const char *path, bool neurons, mgr_buf *out, mgr_err *err)
{
    static const unsigned char hdf5[4] = {0x89, 'H', 'D', 'F'};
    mgr_reader in;
    head h = {0};
    unsigned char magic[4] = {0};
    MGR_TRY(mgr_reader_open(&in, path, err));
    reading r = {&in, neurons ? "neurons" : "experts", neurons ? 3 : 2, {0}, out};
    int rc = mgr_buf_add(out, &h, sizeof h, err);
    if (rc == MGR_OK && in.size >= sizeof magic)
        rc = mgr_reader_read(&in, 0, magic, sizeof magic, err);
    if (rc == MGR_OK)
        rc = memcmp(magic, hdf5, sizeof hdf5) == 0 ? read_hdf5(&r, err) : read_json(&r, err);
    mgr_reader_close(&in);
    if (rc == MGR_OK) {
        h = (head){r.shape[0], r.shape[1], neurons ? r.shape[2] : 1};
        memcpy(out->data, &h, sizeof h);
    }
    return rc;
}

int mgr_lists_file_read(mgr_job *job, mgr_err *err)
{
    const mgr_config *const c = &job->config;
    const bool neurons = c->upcycle.neurons_file[0] != '\0';
    int rc = MGR_OK;
    if (!job->method || (!neurons && c->upcycle.experts_file[0] == '\0'))
        return MGR_OK;
    if (job->rank == 0)
        rc = neurons && c->upcycle.experts_file[0]
                 ? mgr_config_fail(c, "upcycle.neurons_file", err,
                                   "'upcycle.neurons_file' is for a dense source and "
                                   "'upcycle.experts_file' for a mixture: give one")
                 : read_file(neurons ? c->upcycle.neurons_file : c->upcycle.experts_file, neurons,
                             &job->lists, err);
    rc = mgr_agree_root(job, rc, err);
    if (rc == MGR_OK)
        rc = mgr_bcast_bytes(job->comm, &job->lists, err);
    return mgr_agree(job->comm, rc, err);
}

/* ---- what is in them ---- */

static head head_of(const mgr_job *job)
{
    head h = {0};
    if (job->lists.len >= sizeof h)
        memcpy(&h, job->lists.data, sizeof h);
    return h;
}

/* Numbers of the lists, each below `below`, and no one twice in a row of `width` if it is a set. */
static int take(mgr_job *job, const char *key, const char *path, uint64_t below, const char *what,
                uint32_t **out, mgr_err *err)
{
    const head h = head_of(job);
    const size_t n = (size_t)(h.lists * h.experts * h.width);
    uint32_t *seen = NULL;
    if (n == 0)
        return mgr_config_fail(&job->config, key, err, "'%s' is for mgr-upcycle", key);
    MGR_TRY(mgr_arena_alloc(&job->arena, out, n * sizeof **out, err));
    memcpy(*out, job->lists.data + sizeof h, n * sizeof **out);
    MGR_TRY(mgr_alloc(&seen, below, sizeof *seen, err));
    int rc = MGR_OK;
    for (size_t i = 0; rc == MGR_OK && i < n; i++) {
        const uint32_t number = (*out)[i], row = (uint32_t)(i / h.width) + 1;
        const unsigned long long list = i / h.width / h.experts, expert = i / h.width % h.experts;
        if (number >= below)
            rc = mgr_fail(err, MGR_ERR_FORMAT,
                          "'%s' list %llu expert %llu: there is no %s %u, but "
                          "%llu from 0 on",
                          path, list, expert, what, number, (unsigned long long)below);
        else if (h.width > 1 && seen[number] == row)
            rc = mgr_fail(err, MGR_ERR_FORMAT, "'%s' list %llu expert %llu: %s %u is there twice",
                          path, list, expert, what, number);
        else
            seen[number] = row;
    }
    mgr_free(seen);
    return rc;
}

/* The number of experts is the file's. */
static int settle_experts(mgr_job *job, const char *key, uint64_t n, mgr_err *err)
{
    mgr_config *const c = &job->config;
    if (!mgr_config_place(c, "upcycle.experts"))
        c->upcycle.experts = n;
    if (c->upcycle.experts != n)
        return mgr_config_fail(c, key, err, "'%s' has %llu experts, 'upcycle.experts' is %llu", key,
                               (unsigned long long)n, (unsigned long long)c->upcycle.experts);
    if (n > 65536)
        return mgr_config_fail(c, key, err, "'%s' has more than 65536 experts", key);
    if (c->upcycle.top_k > n && mgr_config_place(c, "upcycle.top_k"))
        return mgr_config_fail(c, "upcycle.top_k", err,
                               "'upcycle.top_k' is %llu, must not exceed the %llu experts",
                               (unsigned long long)c->upcycle.top_k, (unsigned long long)n);
    return MGR_OK;
}

int mgr_lists_of_experts(mgr_job *job, mgr_err *err)
{
    const head h = head_of(job);
    uint32_t *from = NULL;
    MGR_TRY(take(job, "upcycle.experts_file", job->config.upcycle.experts_file,
                 job->source.tensors.model.experts, "expert", &from, err));
    job->recipe.from = from;
    job->recipe.lists = (uint32_t)h.lists;
    return settle_experts(job, "upcycle.experts_file", h.experts, err);
}

/* What says how the FFN is cut, which the lists do. */
static int refuse_cuts(const mgr_job *job, mgr_err *err)
{
    const mgr_config *const c = &job->config;
    const char *const key = c->upcycle.expert_width            ? "upcycle.expert_width"
                            : c->upcycle.slices                ? "upcycle.slices"
                            : c->upcycle.shuffle               ? "upcycle.shuffle"
                            : strcmp(c->upcycle.cut, "slices") ? "upcycle.cut"
                                                               : NULL;
    if (key)
        return mgr_config_fail(c, key, err, "'%s' beside 'upcycle.neurons_file', which says it",
                               key);
    if (job->n_branches || job->method->draws_all || job->source.tensors.model.encoder_layers)
        return mgr_config_fail(c, "upcycle.neurons_file", err,
                               "'upcycle.neurons_file' is for experts of one dense model with one "
                               "stack of layers");
    return MGR_OK;
}

int mgr_lists_width(const mgr_job *job, uint32_t *width, mgr_err *err)
{
    const uint64_t w = head_of(job).width;
    *width = (uint32_t)w;
    return w == 0 ? mgr_config_fail(&job->config, "upcycle.neurons_file", err,
                                    "'upcycle.neurons_file' is for mgr-upcycle")
                  : refuse_cuts(job, err);
}

int mgr_lists_of_neurons(mgr_job *job, mgr_err *err)
{
    const head h = head_of(job);
    uint32_t *neurons = NULL;
    if (job->source.tensors.model.experts) /* said by the recipe of mixtures */
        return MGR_OK;
    MGR_TRY(take(job, "upcycle.neurons_file", job->config.upcycle.neurons_file,
                 job->recipe.source_width, "neuron", &neurons, err));
    job->recipe.neurons = neurons;
    job->recipe.lists = (uint32_t)h.lists;
    job->recipe.experts = (uint32_t)h.experts;
    return settle_experts(job, "upcycle.neurons_file", h.experts, err);
}

int mgr_lists_place(mgr_job *job, const mgr_model *target, mgr_err *err)
{
    const uint64_t moe = mgr_model_moe_layers(target);
    const bool neurons = job->recipe.neurons;
    uint32_t *list_of, n = 0;
    if (!job->lists.len || job->recipe.lists == 1)
        return MGR_OK;
    if (job->recipe.lists != moe)
        return mgr_fail(
            err, MGR_ERR_FORMAT, "'%s' has %s of %u layers, and %llu layers have experts",
            neurons ? job->config.upcycle.neurons_file : job->config.upcycle.experts_file,
            neurons ? "neurons" : "experts", job->recipe.lists, (unsigned long long)moe);
    MGR_TRY(mgr_arena_alloc(&job->arena, &list_of, target->layers * sizeof *list_of, err));
    for (uint32_t l = 0; l < target->layers; l++) {
        list_of[l] = n < moe ? n : 0;
        n += mgr_model_is_moe(target, l);
    }
    job->recipe.list_of = list_of;
    return MGR_OK;
}

bool mgr_lists_make_groups(const mgr_recipe *r, uint32_t n)
{
    const size_t group = (size_t)n * r->width, all = (size_t)r->lists * r->experts * r->width;
    uint32_t *seen = NULL;
    mgr_err ignored = MGR_ERR_INIT;
    bool whole =
        group == r->source_width && mgr_alloc(&seen, group, sizeof *seen, &ignored) == MGR_OK;
    for (size_t i = 0; whole && i < all; i++) {
        const uint32_t mark = (uint32_t)(i / group) + 1;
        whole = seen[r->neurons[i]] != mark;
        seen[r->neurons[i]] = mark;
    }
    mgr_free(seen);
    return whole;
}

uint32_t mgr_lists_leave(const mgr_recipe *r)
{
    const size_t each = (size_t)r->experts * r->width;
    uint32_t *seen = NULL, most = 0;
    mgr_err ignored = MGR_ERR_INIT;
    if (mgr_alloc(&seen, r->source_width, sizeof *seen, &ignored) != MGR_OK)
        return 0;
    for (uint32_t l = 0; l < r->lists; l++) {
        uint32_t used = 0;
        for (size_t i = 0; i < each; i++) {
            used += seen[r->neurons[l * each + i]] != l + 1;
            seen[r->neurons[l * each + i]] = l + 1;
        }
        most = r->source_width - used > most ? r->source_width - used : most;
    }
    mgr_free(seen);
    return most;
}
