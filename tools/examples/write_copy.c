/*
 * Write a checkpoint's model once more, in any format and layout, without MPI.
 *
 *     cc write_copy.c $(pkg-config --cflags --libs mgr) -o write_copy
 *     ./write_copy CHECKPOINT OUT '{format: megatron-torch, tensor_parallel: 2}'
 */
#include <stdio.h>

#include <mgr/checkpoint.h>

/* Where a model of your own has its weights: here they are rows of another checkpoint. */
static int give_rows(void *context, uint32_t idx, const mgr_checkpoint_tensor *tensor, uint64_t row,
                     uint64_t n, void *out, mgr_err *err)
{
    mgr_checkpoint *const from = context;
    const uint64_t cols = tensor->ndim == 2 ? tensor->shape[1] : 1;
    const uint32_t same = mgr_checkpoint_find(from, MGR_LOGICAL, tensor->name);
    (void)idx;
    return mgr_checkpoint_read(from, MGR_LOGICAL, same, row, n, tensor->dtype, out,
                               n * cols * mgr_dtype_size(tensor->dtype), err);
}

int main(int argc, char **argv)
{
    mgr_err err = MGR_ERR_INIT;
    mgr_checkpoint *from = NULL;
    mgr_checkpoint_writer *writer = NULL;
    char settings[512];
    if (argc != 4) {
        fprintf(stderr, "usage: write_copy CHECKPOINT OUT TARGET\n");
        return 64;
    }
    snprintf(settings, sizeof settings, "{mode: reshard, target: %s}", argv[3]);
    int rc = mgr_checkpoint_open(argv[1], &from, &err);
    if (rc == MGR_OK)
        rc = mgr_checkpoint_writer_open(from, argv[2], settings, &writer, &err);
    if (rc == MGR_OK)
        rc = mgr_checkpoint_writer_run(writer, give_rows, from, &err);
    if (rc != MGR_OK)
        fprintf(stderr, "write_copy: %s%s%s\n", err.msg, err.hint[0] ? "; " : "", err.hint);
    mgr_checkpoint_writer_close(writer);
    mgr_checkpoint_close(from);
    return mgr_code_exit(rc);
}
