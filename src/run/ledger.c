#include "run/ledger.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "core/mem.h"
#include "core/say_run.h"
#include "core/stop.h"
#include "engine/engine.h"
#include "fmt/h5.h"
#include "fmt/json.h"
#include "io/file.h"
#include "kern/kern.h"
#include "mgr/version.h"
#include "run/recipe.h"
#include "run/record.h"

/* More cannot write a few megabytes faster, and opening a file together costs each of them. */
#define MAX_WRITERS 16
#define MATRICES ((uint64_t)MGR_MATRIX_COUNT)

static const char *const phase_names[MGR_PHASE_COUNT] = {"find",  "plan", "sums",
                                                         "write", "sync", "settle"};

/* The sizes that all arrays have, and this rank's share of them. */
typedef struct ledger {
    mgr_job *job;
    mgr_h5 *file;
    uint64_t layers, experts, neurons, hidden; /* layers that have experts; 0 without upcycling */
    uint32_t sets;
    uint64_t mask_bytes; /* of one set */
    uint64_t kept_bytes; /* of as many bits as the source has neurons */
    uint32_t *layer;     /* [layers]: their numbers */
    uint64_t first, end; /* of layers: this rank's */
    uint32_t writers;    /* ranks that have layers */
    char ended[32];      /* when the run was */
    bool check;          /* it is written, and now compared with what it should be */
    mgr_buf events;      /* of all ranks; rank 0 */
} ledger;

/* ---- the shape ---- */

static int measure(ledger *l, mgr_err *err)
{
    const mgr_job *const job = l->job;
    const mgr_model *const m = &job->target.tensors.model;
    if (!job->method)
        return MGR_OK;
    l->experts = m->experts;
    l->neurons = job->recipe.width;
    l->hidden = m->hidden;
    l->sets = job->recipe.independent ? MGR_MATRIX_COUNT : 1;
    l->mask_bytes = (l->neurons + 7) / 8;
    l->kept_bytes = (job->recipe.source_width + 7) / 8;
    MGR_TRY(mgr_alloc(&l->layer, m->layers, sizeof *l->layer, err));
    for (uint32_t i = 0; i < m->layers; i++)
        if (mgr_model_is_moe(m, i))
            l->layer[l->layers++] = i;
    l->writers = job->ranks < MAX_WRITERS ? job->ranks : MAX_WRITERS;
    l->writers = l->layers < l->writers ? (uint32_t)l->layers : l->writers;
    if (job->rank < l->writers) {
        l->first = l->layers * job->rank / l->writers;
        l->end = l->layers * (job->rank + 1) / l->writers;
    }
    return MGR_OK;
}

/* All ranks' events to rank 0, which writes the timeline: each rank sends its peak of memory, the
 * number of its events, and these. Collective. */
static int gather_events(ledger *l, int rc, mgr_err *err)
{
    const mgr_job *const job = l->job;
    const uint64_t head[2] = {mgr_peak_rss(), job->n_events};
    mgr_buf mine = {0};
    if (rc == MGR_OK)
        rc = mgr_buf_add(&mine, head, sizeof head, err);
    for (size_t i = 0; rc == MGR_OK && i < job->n_events; i++) {
        mgr_event e = job->events[i]; /* clocks of different nodes begin at different times */
        e.start -= job->start;
        e.end -= job->start;
        rc = mgr_buf_add(&mine, &e, sizeof e, err);
    }
    rc = mgr_agree(job->comm, rc, err);
    if (rc == MGR_OK)
        rc = mgr_gather_bytes(job->comm, &mine, &l->events, err);
    mgr_buf_clear(&mine);
    return rc;
}

/* ---- writing, and reading back: the same steps ---- */

static int add(ledger *l, const char *name, mgr_dtype dtype, uint32_t ndim, const uint64_t *shape,
               mgr_err *err)
{
    mgr_h5_shape s = {.dtype = dtype, .ndim = ndim};
    memcpy(s.shape, shape, ndim * sizeof *shape);
    return l->check ? MGR_OK : mgr_h5_add(l->file, name, &s, err);
}

static int put(ledger *l, const char *name, uint64_t row, uint64_t rows, const void *bytes,
               mgr_err *err)
{
    MGR_TRY(mgr_check_stop(err));
    return l->check ? mgr_h5_compare(l->file, name, row, rows, bytes, err)
                    : mgr_h5_write(l->file, name, row, rows, bytes, err);
}

static int put_text(ledger *l, const char *name, const mgr_buf *text, mgr_err *err)
{
    return l->check ? mgr_h5_compare_text(l->file, name, text->data, text->len, err)
                    : mgr_h5_add_text(l->file, name, text->data, text->len, err);
}

/* ---- rank 0: the file with all that it knows alone ---- */

static int add_json(ledger *l, const char *name, const json_t *value, mgr_err *err)
{
    mgr_buf text = {0};
    int rc = mgr_json_dump(value, 2, &text, err);
    if (rc == MGR_OK)
        rc = put_text(l, name, &text, err);
    mgr_buf_clear(&text);
    return rc;
}

/* |S| that every layer and matrix should have. */
static json_t *wanted(const ledger *l)
{
    json_t *const layers = json_array();
    for (uint64_t i = 0; i < l->layers; i++) {
        json_t *const matrices = json_array();
        for (int m = 0; m < MGR_MATRIX_COUNT; m++)
            json_array_append_new(
                matrices, json_integer(mgr_count_selected(l->job, l->layer[i], (mgr_matrix)m)));
        json_array_append_new(layers, matrices);
    }
    return layers;
}

static int add_run(ledger *l, mgr_err *err)
{
    const mgr_job *const job = l->job;
    const mgr_config *const c = &job->config;
    /* the seed is text, as in the manifest */
    json_t *const run = json_pack(
        "{s:s,s:s,s:i,s:s,s:s,s:i,s:s,s:s,s:s,s:o}", "program", "mgr-upcycle", "version",
        MGR_VERSION, "contract", MGR_CONTRACT_VERSION, "written", l->ended, "mode", c->mode,
        "ranks", (int)job->ranks, "source_format", job->source_format->name, "target_format",
        job->target_format->name, "dtype", mgr_dtype_name(job->target.layout.dtype), "seed",
        json_sprintf("%llu", (unsigned long long)c->upcycle.seed));
    if (run && job->method) {
        json_object_set_new(run, "method", json_string(job->method->name));
        json_object_set_new(run, "router", json_string(mgr_router_name(job->router.kind)));
        json_object_set_new(run, "index_sets", json_string(c->upcycle.index_sets));
        json_object_set_new(run, "ratio", json_real(c->upcycle.ratio));
        json_object_set_new(run, "shuffle", json_boolean(c->upcycle.shuffle));
        json_object_set_new(run, "wanted", wanted(l));
        const float *const scale = job->recipe.scale;
        json_object_set_new(
            run, "scale",
            json_pack("[f,f,f]", (double)scale[0], (double)scale[1], (double)scale[2]));
        json_object_set_new(run, "source_neurons", json_integer(job->recipe.source_width));
        json_object_set_new(run, "source_experts", json_integer(job->recipe.sources));
        json_object_set_new(run, "neurons", json_integer((json_int_t)l->neurons));
        json_object_set_new(run, "hidden", json_integer((json_int_t)l->hidden));
        json_object_set_new(run, "top_k", json_integer((json_int_t)c->upcycle.top_k));
    }
    const int rc = run ? add_json(l, "run", run, err)
                       : mgr_fail(err, MGR_ERR_NOMEM, "no memory to describe the run");
    json_decref(run);
    return rc;
}

static int add_texts(ledger *l, mgr_err *err)
{
    mgr_buf config = {0};
    MGR_TRY(add_run(l, err));
    int rc = mgr_config_dump(&l->job->config, mgr_config_tables, &config, err);
    if (rc == MGR_OK)
        rc = put_text(l, "config", &config, err);
    mgr_buf_clear(&config);
    json_t *const sources = mgr_record_sources(l->job);
    if (rc == MGR_OK)
        rc = add_json(l, "sources", sources, err);
    json_decref(sources);
    return rc;
}

static int add_expert_sets(ledger *l, mgr_err *err)
{
    static const struct {
        const char *name;
        mgr_dtype dtype;
    } per_matrix[] = {{"experts/selected", MGR_DTYPE_I64},
                      {"experts/kept", MGR_DTYPE_F64},
                      {"experts/mean", MGR_DTYPE_F32},
                      {"experts/std", MGR_DTYPE_F32},
                      {"experts/crc32", MGR_DTYPE_I64}};
    static const char *const router[] = {"router/mean", "router/std", "router/min", "router/max"};
    const uint64_t matrix[] = {l->layers, l->experts, MATRICES};
    const uint64_t dense[] = {l->layers, MATRICES}, pair[] = {l->layers, l->experts, l->experts};
    const uint64_t mask[] = {l->layers, l->experts, l->sets, l->mask_bytes};
    const uint64_t neurons[] = {l->layers, l->experts, l->neurons};
    for (size_t i = 0; i < sizeof per_matrix / sizeof per_matrix[0]; i++)
        MGR_TRY(add(l, per_matrix[i].name, per_matrix[i].dtype, 3, matrix, err));
    for (size_t i = 0; i < sizeof router / sizeof router[0]; i++)
        MGR_TRY(add(l, router[i], MGR_DTYPE_F64, 1, matrix, err));
    MGR_TRY(add(l, "router/norm", MGR_DTYPE_F64, 2, matrix, err));
    MGR_TRY(add(l, "layers", MGR_DTYPE_I64, 1, matrix, err));
    MGR_TRY(add(l, "dense/mean", MGR_DTYPE_F32, 2, dense, err));
    MGR_TRY(add(l, "dense/std", MGR_DTYPE_F32, 2, dense, err));
    MGR_TRY(add(l, "experts/overlap", MGR_DTYPE_F64, 3, pair, err));
    MGR_TRY(add(l, "experts/mask", MGR_DTYPE_U8, 4, mask, err));
    if (mgr_recipe_has_origin(&l->job->recipe))
        MGR_TRY(add(l, "experts/dense_of", MGR_DTYPE_I32, 3, neurons, err));
    return MGR_OK;
}

enum { RANK, PHASE, GROUP, READ, WRITTEN, START, SECONDS, COLUMNS };

static const struct {
    const char *name;
    mgr_dtype dtype;
} columns[COLUMNS] = {
    {"timeline/rank", MGR_DTYPE_I64},          {"timeline/phase", MGR_DTYPE_I64},
    {"timeline/group", MGR_DTYPE_I64},         {"timeline/bytes_read", MGR_DTYPE_I64},
    {"timeline/bytes_written", MGR_DTYPE_I64}, {"timeline/start", MGR_DTYPE_F64},
    {"timeline/seconds", MGR_DTYPE_F64}};

static int spread_event(const mgr_event *e, int64_t rank, mgr_buf out[COLUMNS], mgr_err *err)
{
    const int64_t whole[] = {rank, e->phase, e->group == MGR_NONE ? -1 : (int64_t)e->group,
                             (int64_t)e->bytes_read, (int64_t)e->bytes_written};
    const double seconds = e->end - e->start;
    for (int c = RANK; c <= WRITTEN; c++)
        MGR_TRY(mgr_buf_add(&out[c], &whole[c], sizeof whole[c], err));
    MGR_TRY(mgr_buf_add(&out[START], &e->start, sizeof e->start, err));
    return mgr_buf_add(&out[SECONDS], &seconds, sizeof seconds, err);
}

/* What gather_events brought, to columns. */
static int spread_events(const ledger *l, mgr_buf out[COLUMNS], mgr_buf *peaks, mgr_err *err)
{
    const char *at = l->events.data;
    for (int64_t rank = 0; at < l->events.data + l->events.len; rank++) {
        uint64_t head[2];
        memcpy(head, at, sizeof head);
        at += sizeof head;
        MGR_TRY(mgr_buf_add(peaks, &head[0], sizeof head[0], err));
        for (uint64_t i = 0; i < head[1]; i++, at += sizeof(mgr_event)) {
            mgr_event e;
            memcpy(&e, at, sizeof e);
            MGR_TRY(spread_event(&e, rank, out, err));
        }
    }
    return MGR_OK;
}

static int add_column(ledger *l, const char *name, mgr_dtype dtype, const mgr_buf *bytes,
                      mgr_err *err)
{
    const uint64_t n = bytes->len / 8;
    MGR_TRY(add(l, name, dtype, 1, &n, err));
    return put(l, name, 0, n, bytes->data, err);
}

static int add_timeline(ledger *l, mgr_err *err)
{
    mgr_buf out[COLUMNS], peaks = {0};
    memset(out, 0, sizeof out);
    int rc = spread_events(l, out, &peaks, err);
    for (int c = 0; rc == MGR_OK && c < COLUMNS; c++)
        rc = add_column(l, columns[c].name, columns[c].dtype, &out[c], err);
    if (rc == MGR_OK)
        rc = add_column(l, "timeline/peak_rss", MGR_DTYPE_I64, &peaks, err);
    if (rc == MGR_OK && !l->check)
        rc = mgr_h5_add_texts(l->file, "timeline/phases", phase_names, MGR_PHASE_COUNT, err);
    for (int c = 0; c < COLUMNS; c++)
        mgr_buf_clear(&out[c]);
    mgr_buf_clear(&peaks);
    return rc;
}

/* Checksum and moments of what `role` is in a layer; NaN where there are none. */
static void settled_of(const ledger *l, mgr_role role, uint32_t layer, uint32_t expert,
                       int64_t *crc, mgr_moment *moment)
{
    const mgr_job *const job = l->job;
    const mgr_side *const side = expert == MGR_NONE ? &job->source : &job->target;
    const uint32_t of = expert == MGR_NONE ? mgr_layer_from(job, layer) : layer;
    const uint32_t t = mgr_tensors_find(&side->tensors, role, of, expert);
    *crc = 0;
    *moment = (mgr_moment){NAN, NAN};
    if (t == MGR_NONE)
        return;
    if (expert != MGR_NONE)
        *crc = job->tensor_crc[t];
    if (job->moments)
        *moment = expert == MGR_NONE ? job->source_moment[t] : job->target_moment[t];
}

/* What is known of one expert of layer `i` of ours, or of the dense FFN, goes behind what is. */
static int collect(const ledger *l, uint64_t i, uint32_t expert, mgr_buf out[3], mgr_err *err)
{
    for (uint32_t matrix = 0; matrix < MGR_MATRIX_COUNT; matrix++) {
        int64_t crc;
        mgr_moment m;
        settled_of(l, mgr_role_of(matrix), l->layer[i], expert, &crc, &m);
        MGR_TRY(mgr_buf_add(&out[0], &crc, sizeof crc, err));
        MGR_TRY(mgr_buf_add(&out[1], &m.mean, sizeof m.mean, err));
        MGR_TRY(mgr_buf_add(&out[2], &m.std, sizeof m.std, err));
    }
    return MGR_OK;
}

/* Checksums and moments, which only rank 0 has. */
static int write_settled(ledger *l, mgr_err *err)
{
    static const char *const names[] = {"experts/crc32", "experts/mean", "experts/std"};
    mgr_buf of_experts[3] = {{0}, {0}, {0}}, of_dense[3] = {{0}, {0}, {0}};
    int rc = MGR_OK;
    for (uint64_t i = 0; rc == MGR_OK && i < l->layers; i++) {
        for (uint32_t e = 0; rc == MGR_OK && e < l->experts; e++)
            rc = collect(l, i, e, of_experts, err);
        if (rc == MGR_OK)
            rc = collect(l, i, MGR_NONE, of_dense, err);
    }
    for (int k = 0; rc == MGR_OK && k < 3; k++)
        rc = put(l, names[k], 0, l->layers, of_experts[k].data, err);
    if (rc == MGR_OK)
        rc = put(l, "dense/mean", 0, l->layers, of_dense[1].data, err);
    if (rc == MGR_OK)
        rc = put(l, "dense/std", 0, l->layers, of_dense[2].data, err);
    for (int k = 0; k < 3; k++) {
        mgr_buf_clear(&of_experts[k]);
        mgr_buf_clear(&of_dense[k]);
    }
    return rc;
}

static int put_all(ledger *l, mgr_err *err)
{
    MGR_TRY(add_texts(l, err));
    MGR_TRY(add_timeline(l, err));
    if (!l->layers)
        return MGR_OK;
    MGR_TRY(add_expert_sets(l, err));
    return write_settled(l, err);
}

/* ---- all ranks: their layers ---- */

static unsigned bits_in(const uint8_t *a, const uint8_t *b, uint64_t bytes)
{
    unsigned n = 0;
    for (uint64_t i = 0; i < bytes; i++)
        n += (unsigned)__builtin_popcount((unsigned)(a[i] & b[i]));
    return n;
}

/* The set S of one matrix as bits, and, as bits of dense neurons, what it leaves alone. */
static void mark(const ledger *l, const mgr_expert *x, uint8_t *mask, uint8_t *kept)
{
    for (uint32_t k = 0; k < x->n_selected; k++)
        mask[x->selected[k] / 8] |= (uint8_t)(1u << x->selected[k] % 8);
    for (uint32_t n = 0; n < l->neurons; n++) {
        const uint32_t origin = x->origin ? x->origin[n] : n;
        if (!(mask[n / 8] >> n % 8 & 1))
            kept[origin / 8] |= (uint8_t)(1u << origin % 8);
    }
}

/* Room for one layer. */
typedef struct page {
    mgr_selection selection;
    uint8_t *mask, *kept; /* [experts][sets][mask_bytes], [kept_bytes] */
    double *overlap;      /* [experts][experts] */
    int64_t *selected;    /* [experts][3] */
    double *share;        /* [experts][3] */
    unsigned char *router;
    float *values; /* the router in float32 */
    double *norm;  /* [experts] */
} page;

static int page_init(page *p, const ledger *l, mgr_err *err)
{
    const size_t e = l->experts, router = e * l->hidden;
    MGR_TRY(mgr_selection_init(&p->selection, l->job, err));
    MGR_TRY(mgr_alloc(&p->mask, e * l->sets, l->mask_bytes, err));
    MGR_TRY(mgr_alloc(&p->kept, e * l->sets, l->kept_bytes, err));
    MGR_TRY(mgr_alloc(&p->overlap, e * e, sizeof *p->overlap, err));
    MGR_TRY(mgr_alloc(&p->selected, e * 3, sizeof *p->selected, err));
    MGR_TRY(mgr_alloc(&p->share, e * 3, sizeof *p->share, err));
    MGR_TRY(mgr_alloc(&p->router, router, mgr_dtype_size(l->job->target.layout.dtype), err));
    MGR_TRY(mgr_alloc(&p->values, router, sizeof *p->values, err));
    return mgr_alloc(&p->norm, e, sizeof *p->norm, err);
}

static void page_clear(page *p)
{
    mgr_selection_clear(&p->selection);
    mgr_free(p->mask);
    mgr_free(p->kept);
    mgr_free(p->overlap);
    mgr_free(p->selected);
    mgr_free(p->share);
    mgr_free(p->router);
    mgr_free(p->values);
    mgr_free(p->norm);
}

static void fill_overlap(const ledger *l, page *p)
{
    const uint64_t bytes = l->sets * l->kept_bytes;
    for (uint64_t a = 0; a < l->experts; a++) {
        const uint8_t *const mine = p->kept + a * bytes;
        const unsigned all = bits_in(mine, mine, bytes);
        for (uint64_t b = 0; b < l->experts; b++)
            p->overlap[a * l->experts + b] =
                all && p->selection.maps[a].source == p->selection.maps[b].source
                    ? (double)bits_in(mine, p->kept + b * bytes, bytes) / all
                    : 0.0;
    }
}

/* The sets are drawn again: they are a function of the seed, and keeping them would cost memory. */
static int write_sets(ledger *l, uint64_t i, page *p, mgr_err *err)
{
    const mgr_job *const job = l->job;
    memset(p->mask, 0, l->experts * l->sets * l->mask_bytes);
    memset(p->kept, 0, l->experts * l->sets * l->kept_bytes);
    MGR_TRY(mgr_selection_set(&p->selection, job, l->layer[i], NULL, err));
    for (uint32_t e = 0; e < l->experts; e++) {
        for (uint32_t k = 0; k < MATRICES; k++) {
            const mgr_expert x = mgr_selection_expert(&p->selection, job, e, (mgr_matrix)k);
            const uint64_t set = e * l->sets + k;
            p->selected[e * MATRICES + k] = x.n_selected;
            p->share[e * MATRICES + k] = 1.0 - (double)x.n_selected / (double)l->neurons;
            if (k < l->sets)
                mark(l, &x, p->mask + set * l->mask_bytes, p->kept + set * l->kept_bytes);
        }
    }
    fill_overlap(l, p);
    MGR_TRY(put(l, "experts/selected", i, 1, p->selected, err));
    MGR_TRY(put(l, "experts/kept", i, 1, p->share, err));
    MGR_TRY(put(l, "experts/mask", i, 1, p->mask, err));
    MGR_TRY(put(l, "experts/overlap", i, 1, p->overlap, err));
    return p->selection.origin ? put(l, "experts/dense_of", i, 1, p->selection.origin, err)
                               : MGR_OK;
}

static int write_router(ledger *l, uint64_t i, page *p, mgr_err *err)
{
    const mgr_job *const job = l->job;
    const mgr_dtype dtype = job->target.layout.dtype;
    const size_t n = l->experts * l->hidden;
    if (job->router.kind == MGR_ROUTER_SOURCE) /* its values are the source's */
        return MGR_OK;
    double sum = 0, squares = 0, low = INFINITY, high = -INFINITY;
    MGR_TRY(mgr_job_router(job, l->layer[i], p->router, dtype, err));
    mgr_cast(p->values, MGR_DTYPE_F32, p->router, dtype, n);
    for (size_t e = 0; e < l->experts; e++) {
        double norm = 0;
        for (size_t h = 0; h < l->hidden; h++) {
            const double v = p->values[e * l->hidden + h];
            sum += v;
            norm += v * v;
            low = v < low ? v : low;
            high = v > high ? v : high;
        }
        squares += norm;
        p->norm[e] = sqrt(norm);
    }
    const double mean = sum / (double)n, variance = squares / (double)n - mean * mean;
    const double std = variance > 0 ? sqrt(variance) : 0.0;
    MGR_TRY(put(l, "router/mean", i, 1, &mean, err));
    MGR_TRY(put(l, "router/std", i, 1, &std, err));
    MGR_TRY(put(l, "router/min", i, 1, &low, err));
    MGR_TRY(put(l, "router/max", i, 1, &high, err));
    return put(l, "router/norm", i, 1, p->norm, err);
}

static int write_layers(ledger *l, mgr_err *err)
{
    page p = {0};
    if (l->first == l->end)
        return MGR_OK;
    int rc = page_init(&p, l, err);
    mgr_say_work("layers", l->end - l->first, 1);
    for (uint64_t i = l->first; rc == MGR_OK && i < l->end; i++) {
        const int64_t layer = l->layer[i];
        rc = put(l, "layers", i, 1, &layer, err);
        if (rc == MGR_OK)
            rc = write_sets(l, i, &p, err);
        if (rc == MGR_OK)
            rc = write_router(l, i, &p, err);
        if (rc == MGR_OK)
            rc = mgr_say_step(1, err);
    }
    page_clear(&p);
    return rc;
}

/* ---- phases ---- */

static int close_file(ledger *l, int rc, mgr_err *err)
{
    mgr_err ignored = MGR_ERR_INIT;
    const int closed = mgr_h5_close(l->file, rc == MGR_OK ? err : &ignored);
    l->file = NULL;
    return rc != MGR_OK ? rc : closed;
}

static int make_file(ledger *l, const char *path, mgr_err *err)
{
    const time_t now = time(NULL);
    struct tm utc;
    if (gmtime_r(&now, &utc))
        strftime(l->ended, sizeof l->ended, "%Y-%m-%dT%H:%M:%SZ", &utc);
    MGR_TRY(mgr_h5_create(&l->file, path, err));
    return close_file(l, put_all(l, err), err);
}

/* A writer's part. */
static int fill(ledger *l, const char *path, mgr_err *err)
{
    if (l->first == l->end)
        return MGR_OK;
    MGR_TRY(mgr_h5_open_rows(&l->file, path, err));
    return close_file(l, write_layers(l, err), err);
}

/* Each rank finds in the file what it put there. */
static int read_back(ledger *l, const char *path, mgr_err *err)
{
    const bool root = l->job->rank == 0;
    int rc = MGR_OK;
    if (!root && l->first == l->end)
        return MGR_OK;
    MGR_TRY(mgr_h5_open(&l->file, path, err));
    l->check = true;
    if (root)
        rc = put_all(l, err);
    if (rc == MGR_OK)
        rc = write_layers(l, err);
    return close_file(l, rc, err);
}

uint64_t mgr_ledger_bytes(const mgr_job *job)
{
    const mgr_model *const m = &job->target.tensors.model;
    const uint64_t widest = job->recipe.width > job->source.tensors.model.ffn
                                ? job->recipe.width
                                : job->source.tensors.model.ffn;
    const uint64_t neurons = job->source_format ? widest : 0;
    const uint64_t of_expert = MATRICES * (neurons / 8 + 64) + 8 * m->experts +
                               (mgr_recipe_has_origin(&job->recipe) ? 4 : 0) * neurons;
    const uint64_t texts = 1024 * (uint64_t)job->source.cat.n_files;
    return job->source_format ? (m->layers * m->experts * of_expert + texts + ((uint64_t)4 << 20))
                              : 0;
}

int mgr_ledger_write(mgr_job *job, const char *directory, double settled, mgr_err *err)
{
    ledger l = {.job = job};
    mgr_buf path = {0};
    const mgr_tally *const t = &job->tally;
    int rc = mgr_note_event(job, MGR_PHASE_SETTLE, MGR_NONE, settled, t->bytes_read,
                            t->bytes_written, err);
    if (rc == MGR_OK)
        rc = mgr_buf_fmt(&path, err, "%s/" MGR_LEDGER_NAME, directory);
    if (rc == MGR_OK)
        rc = measure(&l, err);
    rc = gather_events(&l, rc, err);
    if (rc == MGR_OK) {
        rc = job->rank == 0 ? make_file(&l, path.data, err) : MGR_OK;
        rc = mgr_agree(job->comm, rc, err);
    }
    if (rc == MGR_OK && l.writers)
        rc = mgr_agree(job->comm, fill(&l, path.data, err), err);
    if (rc == MGR_OK)
        rc = mgr_agree(job->comm, read_back(&l, path.data, err), err);
    mgr_free(l.layer);
    mgr_buf_clear(&l.events);
    mgr_buf_clear(&path);
    return rc;
}
