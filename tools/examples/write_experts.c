/*
 * A dense checkpoint to a Mixtral, layer by layer in memory: the weights that mgr-upcycle writes.
 *
 *     cc write_experts.c $(pkg-config --cflags --libs mgr) -o write_experts
 *     ./write_experts DENSE OUT '{experts: 8, ratio: 0.5, seed: 1234}'
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <mgr/checkpoint.h>

static const char *const matrices[] = {"gate_proj", "up_proj", "down_proj"}; /* w1, w3, w2 */

typedef struct state {
    mgr_checkpoint *dense;
    mgr_upcycler *upcycler;
    unsigned char *ffn[3]; /* of the layer at hand */
    unsigned char *made;   /* one matrix of an expert, or a router */
    uint32_t layer, idx;   /* what these are of; UINT32_MAX: of nothing yet */
    uint64_t hidden, neurons;
} state;

/* All of a tensor of the dense model, as bfloat16. */
static int read_all(state *s, const char *name, void *out, mgr_err *err)
{
    mgr_checkpoint_tensor t;
    const uint32_t idx = mgr_checkpoint_find(s->dense, MGR_LOGICAL, name);
    if (!mgr_checkpoint_at(s->dense, MGR_LOGICAL, idx, &t))
        return mgr_fail(err, MGR_ERR_NOT_FOUND, "there is no tensor '%s'", name);
    return mgr_checkpoint_read(s->dense, MGR_LOGICAL, idx, 0, t.shape[0], MGR_DTYPE_BF16, out,
                               s->hidden * s->neurons * 2, err);
}

static int take_layer(state *s, uint32_t layer, mgr_err *err)
{
    char name[96];
    if (s->layer == layer)
        return MGR_OK;
    s->layer = UINT32_MAX;
    for (int m = 0; m < 3; m++) {
        snprintf(name, sizeof name, "model.layers.%" PRIu32 ".mlp.%s.weight", layer, matrices[m]);
        MGR_TRY(read_all(s, name, s->ffn[m], err));
    }
    MGR_TRY(mgr_upcycler_layer(s->upcycler, layer, MGR_DTYPE_BF16, s->ffn[0], s->ffn[1], s->ffn[2],
                               err));
    s->layer = layer;
    return MGR_OK;
}

/* One matrix of an expert, or a router, whole into s->made. */
static int make(state *s, uint32_t layer, uint32_t expert, int w, mgr_err *err)
{
    if (w == 0)
        return mgr_upcycler_router(s->upcycler, layer, MGR_DTYPE_BF16, s->made, err);
    MGR_TRY(take_layer(s, layer, err));
    return mgr_upcycler_expert(s->upcycler, expert, MGR_DTYPE_BF16, w == 1 ? s->made : NULL,
                               w == 3 ? s->made : NULL, w == 2 ? s->made : NULL, err);
}

static int give_rows(void *context, uint32_t idx, const mgr_checkpoint_tensor *t, uint64_t row,
                     uint64_t n, void *out, mgr_err *err)
{
    state *const s = context;
    const uint64_t row_bytes = (t->ndim == 2 ? t->shape[1] : 1) * mgr_dtype_size(t->dtype);
    uint32_t layer, expert = 0;
    int w = 0, end = 0;
    if (sscanf(t->name, "model.layers.%" SCNu32 ".block_sparse_moe.experts.%" SCNu32 ".w%d.%n",
               &layer, &expert, &w, &end) == 3 ||
        (sscanf(t->name, "model.layers.%" SCNu32 ".block_sparse_moe.gate.%n", &layer, &end) == 1 &&
         end > 0)) {
        if (s->idx != idx)
            MGR_TRY(make(s, layer, expert, w, err));
        s->idx = idx;
        memcpy(out, s->made + row * row_bytes, n * row_bytes);
        return MGR_OK;
    }
    const uint32_t same = mgr_checkpoint_find(s->dense, MGR_LOGICAL, t->name);
    return mgr_checkpoint_read(s->dense, MGR_LOGICAL, same, row, n, t->dtype, out, n * row_bytes,
                               err);
}

static int open_all(state *s, char **argv, mgr_checkpoint_writer **writer, mgr_err *err)
{
    char settings[512];
    mgr_checkpoint_tensor up;
    snprintf(settings, sizeof settings, "{upcycle: %s}", argv[3]);
    MGR_TRY(mgr_checkpoint_open(argv[1], &s->dense, err));
    MGR_TRY(mgr_checkpoint_writer_open(s->dense, argv[2], settings, writer, err));
    if (!mgr_checkpoint_at(
            s->dense, MGR_LOGICAL,
            mgr_checkpoint_find(s->dense, MGR_LOGICAL, "model.layers.0.mlp.up_proj.weight"), &up))
        return mgr_fail(err, MGR_ERR_UNSUPPORTED, "'%s' has no dense FFN", argv[1]);
    s->neurons = up.shape[0];
    s->hidden = up.shape[1];
    MGR_TRY(mgr_upcycler_open(settings, s->hidden, s->neurons, true, &s->upcycler, err));
    const uint64_t experts = mgr_upcycler_experts(s->upcycler);
    const uint64_t rows = experts > s->neurons ? experts : s->neurons;
    s->made = malloc(rows * s->hidden * 2);
    for (int m = 0; m < 3; m++)
        s->ffn[m] = malloc(s->hidden * s->neurons * 2);
    return s->made && s->ffn[0] && s->ffn[1] && s->ffn[2]
               ? MGR_OK
               : mgr_fail(err, MGR_ERR_NOMEM, "no memory for a layer");
}

int main(int argc, char **argv)
{
    mgr_err err = MGR_ERR_INIT;
    mgr_checkpoint_writer *writer = NULL;
    state s = {.layer = UINT32_MAX, .idx = UINT32_MAX};
    if (argc != 4) {
        fprintf(stderr, "usage: write_experts DENSE OUT UPCYCLE\n");
        return 64;
    }
    int rc = open_all(&s, argv, &writer, &err);
    if (rc == MGR_OK)
        rc = mgr_checkpoint_writer_run(writer, give_rows, &s, &err);
    if (rc != MGR_OK)
        fprintf(stderr, "write_experts: %s%s%s\n", err.msg, err.hint[0] ? "; " : "", err.hint);
    mgr_checkpoint_writer_close(writer);
    mgr_upcycler_close(s.upcycler);
    mgr_checkpoint_close(s.dense);
    free(s.made);
    for (int m = 0; m < 3; m++)
        free(s.ffn[m]);
    return mgr_code_exit(rc);
}
