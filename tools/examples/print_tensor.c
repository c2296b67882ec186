/*
 * Print the tensors of any checkpoint, or the first values of one of them.
 *
 *     cc print_tensor.c $(pkg-config --cflags --libs mgr) -o print_tensor
 *     ./print_tensor CHECKPOINT
 *     ./print_tensor CHECKPOINT model.layers.0.mlp.up_proj.weight
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include <mgr/checkpoint.h>

#define MOST 8

static void print_list(const mgr_checkpoint *checkpoint, mgr_checkpoint_list list)
{
    mgr_checkpoint_tensor t;
    for (uint32_t i = 0; mgr_checkpoint_at(checkpoint, list, i, &t); i++) {
        const char *const dtype = mgr_dtype_name(t.dtype);
        printf("%s %s", t.name, dtype ? dtype : "?");
        for (uint32_t d = 0; d < t.ndim; d++)
            printf("%s%" PRIu64, d ? "x" : " ", t.shape[d]);
        printf("\n");
    }
}

/* A few values of the first row, whatever their type in the file. */
static int print_values(mgr_checkpoint *checkpoint, const char *name, mgr_err *err)
{
    mgr_checkpoint_tensor t;
    const uint32_t idx = mgr_checkpoint_find(checkpoint, MGR_LOGICAL, name);
    if (!mgr_checkpoint_at(checkpoint, MGR_LOGICAL, idx, &t))
        return mgr_fail(err, MGR_ERR_NOT_FOUND, "there is no tensor '%s'", name);
    const uint64_t cols = t.ndim == 2 ? t.shape[1] : 1;
    float *const row = calloc(cols, sizeof *row);
    if (!row)
        return mgr_fail(err, MGR_ERR_NOMEM, "no memory for a row of '%s'", name);
    const int rc = mgr_checkpoint_read(checkpoint, MGR_LOGICAL, idx, 0, 1, MGR_DTYPE_F32, row,
                                       cols * sizeof *row, err);
    for (uint64_t i = 0; rc == MGR_OK && i < cols && i < MOST; i++)
        printf("%.9g\n", (double)row[i]);
    free(row);
    return rc;
}

int main(int argc, char **argv)
{
    mgr_err err = MGR_ERR_INIT;
    mgr_checkpoint *checkpoint = NULL;
    if (argc != 2 && argc != 3) {
        fprintf(stderr, "usage: print_tensor CHECKPOINT [TENSOR]\n");
        return 64;
    }
    int rc = mgr_checkpoint_open(argv[1], &checkpoint, &err);
    if (rc == MGR_OK && argc == 2) {
        printf("%s: %s\n", mgr_checkpoint_format(checkpoint), mgr_checkpoint_about(checkpoint));
        print_list(checkpoint,
                   mgr_checkpoint_count(checkpoint, MGR_LOGICAL) ? MGR_LOGICAL : MGR_STORED);
    } else if (rc == MGR_OK) {
        rc = print_values(checkpoint, argv[2], &err);
    }
    if (rc != MGR_OK)
        fprintf(stderr, "print_tensor: %s\n", err.msg);
    mgr_checkpoint_close(checkpoint);
    return mgr_code_exit(rc);
}
