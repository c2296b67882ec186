/* mgr-synth: a deterministic dense checkpoint of any size and split. */
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "io/fault.h"
#include "run/run.h"

enum {
    LAYERS,
    HIDDEN,
    FFN,
    HEADS,
    KV_HEADS,
    VOCAB,
    TP,
    PP,
    SEED,
    DTYPE,
    NAMES,
    FORMAT,
    DIVISOR,
    TIED,
    FORCE,
    QUIET
};

static const mgr_option options[] = {
    [LAYERS] = {"layers", 0, "L", "transformer layers (default 4)"},
    [HIDDEN] = {"hidden", 0, "H", "hidden size (default 256)"},
    [FFN] = {"ffn", 0, "F", "intermediate size of the FFN (default 704)"},
    [HEADS] = {"heads", 0, "N", "attention heads (default 8)"},
    [KV_HEADS] = {"kv-heads", 0, "G", "key and value heads (default: as many as heads)"},
    [VOCAB] = {"vocab", 0, "V", "vocabulary size (default 1000)"},
    [TP] = {"tp", 0, "T", "tensor parallel size (default 1)"},
    [PP] = {"pp", 0, "P", "pipeline parallel size (default 1)"},
    [SEED] = {"seed", 0, "S", "seed of the values (default 1234)"},
    [DTYPE] = {"dtype", 0, "TYPE", "bf16, fp16 or fp32 (default bf16)"},
    [NAMES] = {"names", 0, "SPEC", "te or local: how norms are named (default te)"},
    [FORMAT] = {"format", 0, "NAME", "megatron-torch or huggingface (default megatron-torch)"},
    [DIVISOR] = {"make-vocab-size-divisible-by", 0, "N",
                 "pad the vocabulary with zeros to a multiple of N x T (default 1)"},
    [TIED] = {"tied", 0, NULL, "tie the embedding and the output layer"},
    [FORCE] = {"force", 'f', NULL, "replace an existing OUT"},
    [QUIET] = {"quiet", 'q', NULL, "print errors only"},
};

static const mgr_program program = {
    .name = "mgr-synth",
    .synopsis = "[OPTION]... OUT",
    .about =
        "Write a dense Megatron checkpoint (format torch) at OUT. Values depend on the seed and\n"
        "on each weight's place in the model alone, not on the split or the number of ranks.",
    .options = options,
    .n_options = sizeof options / sizeof options[0],
};

static int take_names(mgr_synth_options *o, const char *value, mgr_err *err)
{
    o->local_names = strcmp(value, "local") == 0;
    if (o->local_names || strcmp(value, "te") == 0)
        return MGR_OK;
    return mgr_fail(err, MGR_ERR_USAGE, "--names '%s' is neither te nor local", value);
}

static int take_format(mgr_synth_options *o, const char *value, mgr_err *err)
{
    o->format = value;
    if (strcmp(value, "megatron-torch") == 0 || strcmp(value, "huggingface") == 0)
        return MGR_OK;
    return mgr_fail(err, MGR_ERR_USAGE, "--format '%s' is neither megatron-torch nor huggingface",
                    value);
}

static int take_dtype(mgr_synth_options *o, const char *value, mgr_err *err)
{
    o->dtype = mgr_dtype_from_name(value);
    if (mgr_dtype_is_weight(o->dtype))
        return MGR_OK;
    return mgr_fail(err, MGR_ERR_USAGE, "--dtype '%s' is none of bf16, fp16, fp32", value);
}

static int take(void *context, size_t idx, const char *value, mgr_err *err)
{
    mgr_synth_options *const o = context;
    uint64_t *const sizes[] = {[LAYERS] = &o->model.layers,
                               [HIDDEN] = &o->model.hidden,
                               [FFN] = &o->model.ffn,
                               [HEADS] = &o->model.heads,
                               [KV_HEADS] = &o->model.kv_groups,
                               [VOCAB] = &o->model.vocab,
                               [TP] = &o->tensor_parallel,
                               [PP] = &o->pipeline_parallel,
                               [SEED] = &o->seed,
                               [DTYPE] = NULL,
                               [NAMES] = NULL,
                               [DIVISOR] = &o->vocab_divisor};
    switch (idx) {
    case DTYPE:
        return take_dtype(o, value, err);
    case NAMES:
        return take_names(o, value, err);
    case FORMAT:
        return take_format(o, value, err);
    case TIED:
        o->model.tied = true;
        return MGR_OK;
    case FORCE:
        o->force = true;
        return MGR_OK;
    case QUIET:
        o->verbosity = -1;
        return MGR_OK;
    case SEED:
        return mgr_cli_uint("seed", value, 0, UINT64_MAX, &o->seed, err);
    default:
        return mgr_cli_uint(options[idx].name, value, 1, INT32_MAX, sizes[idx], err);
    }
}

static int check_sizes(mgr_synth_options *o, mgr_err *err)
{
    mgr_model *const m = &o->model;
    if (m->kv_groups == 0)
        m->kv_groups = m->heads;
    if (m->hidden % m->heads != 0 || m->heads % m->kv_groups != 0)
        return mgr_fail(err, MGR_ERR_USAGE,
                        "--heads must divide --hidden, and --kv-heads must divide --heads");
    m->head_dim = m->hidden / m->heads;
    m->dtype = o->dtype;
    return MGR_OK;
}

static int parse(mgr_synth_options *o, int argc, char **argv, mgr_err *err)
{
    int first;
    *o = (mgr_synth_options){.model = {.layers = 4,
                                       .hidden = 256,
                                       .ffn = 704,
                                       .heads = 8,
                                       .vocab = 1000,
                                       .norm_epsilon = 1e-5,
                                       .rotary_base = 10000.0,
                                       .max_positions = 2048,
                                       .bos_token_id = -1,
                                       .eos_token_id = -1,
                                       .init_std = 0.02},
                             .dtype = MGR_DTYPE_BF16,
                             .tensor_parallel = 1,
                             .pipeline_parallel = 1,
                             .vocab_divisor = 1,
                             .format = "megatron-torch",
                             .seed = 1234};
    MGR_TRY(mgr_cli_parse(&program, argc, argv, take, o, &first, err));
    if (argc - first != 1) {
        mgr_fail(err, MGR_ERR_USAGE, "one OUT is needed");
        return mgr_hint(err, "see mgr-synth --help");
    }
    o->out = argv[first];
    return check_sizes(o, err);
}

int main(int argc, char **argv)
{
    mgr_err err = MGR_ERR_INIT;
    mgr_synth_options o;
    mgr_comm *comm = NULL;
    if (parse(&o, argc, argv, &err) != MGR_OK)
        return mgr_cli_usage_end(&program, &err);
    int rc = mgr_comm_start(&comm, &err);
    mgr_cli_catch_signals();
    if (rc == MGR_OK) {
        mgr_fault_set_rank(mgr_comm_rank(comm));
        rc = mgr_run_synth(comm, &o, &err);
    }
    return mgr_cli_end(&program, comm, rc, &err);
}
