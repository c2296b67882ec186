#include "look/audit_experts.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/mem.h"
#include "fmt/h5_read.h"
#include "io/file.h"
#include "look/audit_draws.h"
#include "mgr/config.h"
#include "mgr/upcycle.h"

#define LEDGER "provenance.h5"
#define MATRICES ((size_t)3)

typedef struct experts {
    mgr_findings *report;
    const mgr_view *view;
    const json_t *manifest, *files; /* of these what holds tensors, by path */
    size_t root;                    /* where a path below the folder begins */
    mgr_config config;
    uint64_t layers, n, neurons; /* layers with experts, experts, F */
    bool selects;                /* has any expert an S? */
    uint32_t *wanted;            /* |S| [decoder's layers][3], or one line of them for all */
    uint64_t of_layers;          /* lines of `wanted` */
    uint32_t sets;
    int64_t *crc, *counts; /* [layers][n][3] */
    double *kept;
    float *mean, *std;   /* NaN: nothing was drawn */
    unsigned char *mask; /* [layers][n][sets][(F + 7) / 8] */
} experts;

static const char *const matrix_names[MATRICES] = {"gate", "up", "down"};

static int find(const experts *x, uint64_t layer, uint64_t expert, const char *what, mgr_err *err)
{
    char text[200];
    snprintf(text, sizeof text, "expert %llu of the layer with experts number %llu: %s",
             (unsigned long long)expert, (unsigned long long)layer, what);
    return mgr_findings_add(x->report, LEDGER, NULL, UINT64_MAX, text, err);
}

/* The configuration that made the output, and what it asks of the experts. */
static int read_config(experts *x, bool *made, mgr_err *err)
{
    const char *const text = json_string_value(json_object_get(x->manifest, "config"));
    const mgr_model *const m = &x->view->tensors.model;
    *made = false;
    if (!text || m->experts == 0)
        return MGR_OK;
    MGR_TRY(mgr_config_parse(&x->config, mgr_config_tables, "the manifest's configuration", text,
                             strlen(text), NULL, 0, err));
    *made = strcmp(x->config.mode, "upcycle") == 0;
    x->layers = mgr_model_moe_layers(m);
    x->n = m->experts;
    x->neurons = mgr_model_expert_ffn(m);
    x->sets = strcmp(x->config.upcycle.index_sets, "independent") == 0 ? 3 : 1;
    const mgr_method *const method = mgr_method_find(x->config.upcycle.method);
    const bool selects = method && method->needs_selection;
    x->of_layers = mgr_model_stack_layers(m, MGR_STACK_DECODER);
    MGR_TRY(mgr_alloc(&x->wanted, x->of_layers * MATRICES, sizeof *x->wanted, err));
    const char *const wrong =
        selects ? mgr_selected_counts(&x->config, x->of_layers, (uint32_t)x->neurons, x->wanted)
                : NULL;
    if (wrong)
        return mgr_fail(err, MGR_ERR_FORMAT,
                        "the manifest's configuration has a '%s' that is no "
                        "list for %llu layers",
                        wrong, (unsigned long long)x->of_layers);
    for (uint64_t i = 0; i < x->of_layers * MATRICES; i++) {
        if (method && method->draws_all)
            x->wanted[i] = (uint32_t)x->neurons;
        x->selects = x->selects || x->wanted[i] > 0;
    }
    return MGR_OK;
}

static int read_array(const mgr_reader *in, const char *name, size_t n, size_t size, void *out,
                      mgr_err *err)
{
    mgr_h5_set set;
    mgr_h5_image *image = NULL;
    void *bytes = NULL;
    MGR_TRY(mgr_h5_find(in, name, &set, err));
    if (set.text || set.bytes != n * size)
        return mgr_fail(err, MGR_ERR_FORMAT, "'%s' data set '%s' has %llu bytes, not %llu",
                        in->name, name, (unsigned long long)set.bytes,
                        (unsigned long long)(n * size));
    MGR_TRY(mgr_alloc(&bytes, n, size, err));
    memcpy(out, &bytes, sizeof bytes); /* *out is a pointer of any type */
    int rc = mgr_h5_image_open(&image, in, &set, err);
    if (rc == MGR_OK)
        rc = mgr_h5_image_read(image, 0, bytes, n * size, err);
    mgr_h5_image_close(image);
    return rc;
}

static int read_ledger(experts *x, const char *path, mgr_err *err)
{
    mgr_reader in;
    const size_t n = (size_t)(x->layers * x->n), row = (size_t)(x->neurons + 7) / 8;
    MGR_TRY(mgr_reader_open(&in, path, err));
    int rc = read_array(&in, "experts/crc32", n * MATRICES, sizeof *x->crc, &x->crc, err);
    if (rc == MGR_OK)
        rc = read_array(&in, "experts/selected", n * MATRICES, sizeof *x->counts, &x->counts, err);
    if (rc == MGR_OK)
        rc = read_array(&in, "experts/kept", n * MATRICES, sizeof *x->kept, &x->kept, err);
    if (rc == MGR_OK)
        rc = read_array(&in, "experts/mean", n * MATRICES, sizeof *x->mean, &x->mean, err);
    if (rc == MGR_OK)
        rc = read_array(&in, "experts/std", n * MATRICES, sizeof *x->std, &x->std, err);
    if (rc == MGR_OK)
        rc = read_array(&in, "experts/mask", n * x->sets, row, &x->mask, err);
    mgr_reader_close(&in);
    return rc;
}

/* The manifest's checksum of a tensor that is one stored tensor; false if it is not. */
static bool crc_in_output(const experts *x, mgr_role role, uint32_t layer, uint32_t expert,
                          int64_t *crc)
{
    const mgr_layout *const l = &x->view->layout;
    const uint32_t t = mgr_tensors_find(l->tensors, role, layer, expert);
    if (t == MGR_NONE || l->first_box[t + 1] - l->first_box[t] != 1)
        return false;
    const mgr_box *const b = &l->boxes[l->first_box[t]];
    const mgr_stored *const s = &l->cat->stored[b->stored];
    if (b->transposed || mgr_view_elements(s) != b->rows * b->cols)
        return false;
    const json_t *const file = json_object_get(x->files, l->cat->files[s->file].path + x->root);
    const json_t *const found = json_object_get(json_object_get(file, "tensors"), s->name);
    const char *const text = json_string_value(json_object_get(found, "crc32"));
    if (text)
        *crc = strtoll(text, NULL, 16);
    return text;
}

static bool has_matrix(const experts *x, size_t matrix)
{
    return matrix != MGR_MATRIX_GATE || mgr_model_is_gated(&x->view->tensors.model);
}

/* |S| of the three matrices of a layer. Without a ratio for each layer the first stands for all,
 * also of an encoder. */
static const uint32_t *of_layer(const experts *x, uint32_t layer)
{
    return x->wanted + (layer < x->of_layers ? layer : 0) * MATRICES;
}

/* Checksums of one expert: those of the output, and of no other expert of the layer. */
static int check_sums(const experts *x, uint64_t i, uint32_t layer, uint32_t expert, mgr_err *err)
{
    char text[120];
    for (size_t m = 0; m < MATRICES; m++) {
        const int64_t *const crc = x->crc + (i * x->n * MATRICES);
        int64_t stored;
        if (!has_matrix(x, m))
            continue;
        if (crc_in_output(x, (mgr_role)(MGR_ROLE_GATE + (int)m), layer, expert, &stored) &&
            stored != crc[expert * MATRICES + m]) {
            snprintf(text, sizeof text, "%s has another checksum than in the output",
                     matrix_names[m]);
            MGR_TRY(find(x, i, expert, text, err));
        }
        for (uint32_t other = 0; of_layer(x, layer)[m] > 0 && other < expert; other++)
            if (crc[other * MATRICES + m] == crc[expert * MATRICES + m]) {
                snprintf(text, sizeof text, "%s is the same as of expert %u", matrix_names[m],
                         other);
                MGR_TRY(find(x, i, expert, text, err));
            }
    }
    return MGR_OK;
}

static uint64_t count_bits(const unsigned char *bytes, uint64_t n)
{
    uint64_t count = 0;
    for (uint64_t i = 0; i < n; i++)
        count += (unsigned)__builtin_popcount(bytes[i]);
    return count;
}

/* Of a mixture the first expert that is made of one is left as it is. */
static bool is_left(const experts *x, uint64_t i, uint64_t expert)
{
    const json_t *from = json_object_get(x->manifest, "experts_from");
    if (json_is_array(json_array_get(from, 0)))
        from = json_array_get(from, i);
    const json_int_t mine = json_integer_value(json_array_get(from, expert));
    for (uint64_t e = 0; e < expert; e++)
        if (from && json_integer_value(json_array_get(from, e)) == mine)
            return false;
    return from;
}

/* The size of S and what it leaves, as asked for and as the sets say. */
static int check_sets(const experts *x, uint64_t i, uint32_t layer, uint64_t expert, mgr_err *err)
{
    const uint64_t row = (x->neurons + 7) / 8, at = i * x->n + expert;
    const bool left = is_left(x, i, expert);
    for (uint32_t s = 0; s < x->sets; s++)
        if (count_bits(x->mask + (at * x->sets + s) * row, row) !=
            (left ? 0 : of_layer(x, layer)[s]))
            MGR_TRY(find(x, i, expert, "its set has another size than asked for", err));
    for (size_t m = 0; m < MATRICES; m++) {
        const uint64_t selected = left ? 0 : of_layer(x, layer)[m];
        const double kept = 1 - (double)selected / (double)x->neurons;
        const double off = x->kept[at * MATRICES + m] - kept;
        if (has_matrix(x, m) &&
            ((uint64_t)x->counts[at * MATRICES + m] != selected || off > 1e-9 || off < -1e-9))
            MGR_TRY(find(x, i, expert, "another share of neurons is kept than asked for", err));
    }
    return MGR_OK;
}

/* What was drawn of one expert has the moments that the ledger gives. What is scaled, has not. */
static int check_draws(const experts *x, mgr_rows *in, uint64_t i, uint32_t layer, uint32_t expert,
                       mgr_err *err)
{
    const mgr_tensors *const ts = &x->view->tensors;
    const uint64_t row = (x->neurons + 7) / 8, at = i * x->n + expert;
    char text[120];
    for (size_t m = 0; m < MATRICES; m++) {
        const uint32_t t = mgr_tensors_find(ts, (mgr_role)(MGR_ROLE_GATE + (int)m), layer, expert);
        bool good;
        if (t == MGR_NONE)
            continue;
        const mgr_drawn drawn = {t,
                                 m == MGR_MATRIX_DOWN,
                                 ts->list[t].rows,
                                 ts->list[t].cols,
                                 x->mask + (at * x->sets + m % x->sets) * row,
                                 x->mean[at * MATRICES + m],
                                 x->std[at * MATRICES + m]};
        MGR_TRY(mgr_drawn_check(in, &drawn, &good, err));
        snprintf(text, sizeof text, "%s has other moments than what was drawn had",
                 matrix_names[m]);
        if (!good)
            MGR_TRY(find(x, i, expert, text, err));
    }
    return MGR_OK;
}

/* Are the ledger's moments those of what was drawn? Not of what was scaled then. */
static bool was_drawn(const experts *x)
{
    const mgr_method *const method = mgr_method_find(x->config.upcycle.method);
    return method && method->needs_moments && strcmp(x->config.upcycle.scale, "none") == 0 &&
           strcmp(x->config.upcycle.shared_expert, "half") != 0;
}

/* Moments are looked at of one expert in each layer. */
static int check_all(const experts *x, mgr_rows *in, mgr_err *err)
{
    const mgr_model *const m = &x->view->tensors.model;
    uint64_t i = 0;
    assert(x->n > 0);
    for (uint32_t layer = 0; layer < m->layers; layer++) {
        if (!mgr_model_is_moe(m, layer))
            continue;
        for (uint32_t e = 0; e < x->n; e++) {
            MGR_TRY(check_sums(x, i, layer, e, err));
            MGR_TRY(check_sets(x, i, layer, e, err));
        }
        if (was_drawn(x))
            MGR_TRY(check_draws(x, in, i, layer, (uint32_t)(x->n - 1 - i % x->n), err));
        i++;
    }
    return MGR_OK;
}

static int add_fact(const experts *x, mgr_err *err)
{
    char text[200];
    const mgr_model *const model = &x->view->tensors.model;
    uint32_t least = UINT32_MAX, most = 0;
    for (uint32_t layer = 0; layer < model->layers; layer++)
        for (size_t m = 0; m < MATRICES && mgr_model_is_moe(model, layer); m++) {
            const uint32_t chosen = of_layer(x, layer)[m];
            least = has_matrix(x, m) && chosen < least ? chosen : least;
            most = has_matrix(x, m) && chosen > most ? chosen : most;
        }
    const int n =
        snprintf(text, sizeof text, "%llu in %llu layers, %s, %llu", (unsigned long long)x->n,
                 (unsigned long long)x->layers, x->selects ? "no two alike" : "copies",
                 (unsigned long long)(x->neurons - most));
    if (least < most)
        snprintf(text + n, sizeof text - (size_t)n, " to %llu of %llu neurons kept",
                 (unsigned long long)(x->neurons - least), (unsigned long long)x->neurons);
    else
        snprintf(text + n, sizeof text - (size_t)n, " of %llu neurons kept",
                 (unsigned long long)x->neurons);
    return mgr_findings_fact(x->report, "experts", text, err);
}

int mgr_audit_experts(mgr_findings *report, const char *directory, const mgr_view *view,
                      const json_t *manifest, const json_t *files, mgr_err *err)
{
    experts *x = NULL;
    mgr_buf path = {0};
    mgr_rows in = {.fd = -1};
    bool made = false;
    MGR_TRY(mgr_alloc(&x, 1, sizeof *x, err));
    x->report = report;
    x->view = view;
    x->manifest = manifest;
    x->files = files;
    x->root = strlen(directory) + 1;
    int rc = read_config(x, &made, err);
    if (rc == MGR_OK)
        rc = mgr_buf_fmt(&path, err, "%s/" LEDGER, directory);
    if (rc == MGR_OK && made && mgr_path_exists(path.data)) {
        rc = read_ledger(x, path.data, err);
        if (rc == MGR_OK)
            rc = mgr_rows_open(&in, view, err);
        if (rc == MGR_OK)
            rc = check_all(x, &in, err);
        mgr_rows_close(&in);
        if (rc == MGR_OK)
            rc = add_fact(x, err);
    }
    mgr_buf_clear(&path);
    mgr_free(x->crc);
    mgr_free(x->counts);
    mgr_free(x->kept);
    mgr_free(x->mean);
    mgr_free(x->std);
    mgr_free(x->mask);
    mgr_free(x->wanted);
    mgr_free(x);
    return rc;
}
