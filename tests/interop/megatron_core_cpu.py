"""Real megatron-core on a CPU: dense GPT models, saved in both of its formats.

    PYTHONPATH=.venv/megatron-core-0.16.1 python megatron_core_cpu.py OUT 2x2 1x1

For each TPxPP it writes, with that many ranks over gloo,

    OUT/TPxPP/torch/           a pickle per rank, as Megatron-LM's --ckpt-format torch
    OUT/TPxPP/torch_dist/      by megatron.core.dist_checkpointing.save
    OUT/TPxPP/live/RANK.pt     the live model's state dict and the rank's place, to compare with

and at 1x1, where the model is float32 (elsewhere bfloat16), OUT/1x1/judge.pt: the model's logits,
and what megatron-core's own upcycling makes of it.

Only the standard library is imported at the top: megatron-core's writer starts a process by `spawn`,
which imports this file again. The ranks are forked from a process that has imported megatron-core,
because that import costs more than all the rest.
"""

import argparse
import contextlib
import multiprocessing.connection
import os
import pathlib
import sys
import types
import warnings
import zlib

ITERATION = 7
EXPERTS = 4
SHAPE = types.SimpleNamespace(
    layers=4, hidden=96, ffn=208, heads=12, kv_heads=4, head_dim=8, vocab=1024, positions=64
)


class NoStream:
    """A CUDA stream on which there is never any work."""

    def __init__(self, *args, **kwargs):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *args):
        return False

    def nothing(self, *args, **kwargs):
        return None

    wait_stream = wait_event = synchronize = nothing

    def record_event(self, *args):
        return self  # an event that has happened


class NoTracker:
    """Megatron's keeper of CUDA's random states. Nothing random is left to it here."""

    def fork(self, *args):
        return contextlib.nullcontext()


def import_megatron():
    """Import megatron-core, with stand-ins for what it asks of CUDA even where there is none."""
    warnings.simplefilter("ignore")  # that Transformer Engine and Apex are absent, many times
    import torch

    torch.set_num_threads(1)  # a pool of threads would not survive the fork
    torch.cuda.current_device = lambda: "cpu"
    torch.cuda.synchronize = lambda *args, **kwargs: None
    torch.cuda.Stream = torch.cuda.stream = NoStream
    torch.cuda.current_stream = torch.cuda.default_stream = NoStream
    torch.Tensor.cuda = lambda self, *args, **kwargs: self

    # GPU kernels of a feature that is off here: since 0.19 in a module of their own, which imports
    # triton without asking whether it is there.
    kernels = types.ModuleType("megatron.core.transformer.moe.ops.paged_stash")
    kernels.GLOBAL_BLOCK_SIZE = 1024
    kernels.paged_stash_copy_kernel = kernels.paged_stash_pop_kernel = None
    sys.modules[kernels.__name__] = kernels

    from megatron.core import dist_checkpointing, parallel_state, tensor_parallel  # noqa: F401
    from megatron.core.models.gpt import gpt_layer_specs, gpt_model  # noqa: F401
    from megatron.core.transformer.moe import moe_utils, upcycling_utils  # noqa: F401

    if not hasattr(moe_utils, "te_general_gemm"):  # 0.16 asks for it where it has not defined it
        moe_utils.te_general_gemm = None
    tensor_parallel.get_cuda_rng_tracker = NoTracker
    warnings.simplefilter("ignore")


def build(tp, pp, dtype, experts=None):
    import torch
    from megatron.core import parallel_state
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.transformer.transformer_config import TransformerConfig

    moe = {"moe_router_topk": 2, "moe_ffn_hidden_size": SHAPE.ffn} if experts else {}
    config = TransformerConfig(
        num_layers=SHAPE.layers,
        hidden_size=SHAPE.hidden,
        ffn_hidden_size=SHAPE.ffn,
        num_attention_heads=SHAPE.heads,
        num_query_groups=SHAPE.kv_heads,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        normalization="RMSNorm",
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bias_activation_fusion=False,
        masked_softmax_fusion=False,
        use_cpu_initialization=True,
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        num_moe_experts=experts,
        **moe,
    )
    model = GPTModel(
        config=config,
        transformer_layer_spec=get_gpt_layer_local_spec(
            num_experts=experts, moe_grouped_gemm=False, normalization="RMSNorm"
        ),
        vocab_size=SHAPE.vocab,
        max_sequence_length=SHAPE.positions,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        position_embedding_type="rope",
        share_embeddings_and_output_weights=False,
    )
    return model.to(dtype)


def fill(model, stage, rank):
    """Values of which no two are in the same place anywhere: Megatron's own start is the same in
    every stage, and all ones in the norms."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            shard = rank if getattr(parameter, "tensor_model_parallel", False) else 0
            seed = zlib.crc32(f"{name} of stage {stage}, shard {shard}".encode())
            drawn = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)) * 0.1
            parameter.copy_(drawn + 1 if parameter.dim() == 1 else drawn)


def training_args(tp, pp, dtype):
    """Of Megatron-LM's arguments those that describe the model."""
    import torch

    return argparse.Namespace(
        num_layers=SHAPE.layers,
        hidden_size=SHAPE.hidden,
        ffn_hidden_size=SHAPE.ffn,
        num_attention_heads=SHAPE.heads,
        group_query_attention=True,
        num_query_groups=SHAPE.kv_heads,
        kv_channels=SHAPE.head_dim,
        padded_vocab_size=SHAPE.vocab,
        seq_length=SHAPE.positions,
        max_position_embeddings=SHAPE.positions,
        position_embedding_type="rope",
        rotary_base=10000,
        rotary_percent=1.0,
        swiglu=True,
        normalization="RMSNorm",
        norm_epsilon=1e-5,
        add_bias_linear=False,
        untie_embeddings_and_output_weights=True,
        num_experts=None,
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        bf16=dtype == torch.bfloat16,
        fp16=False,
        params_dtype=dtype,
    )


def save(model, out, tp, pp, dtype):
    import torch
    from megatron.core import dist_checkpointing, parallel_state

    t = parallel_state.get_tensor_model_parallel_rank()
    p = parallel_state.get_pipeline_model_parallel_rank()
    (out / "live").mkdir(parents=True, exist_ok=True)
    live = {"stage": p, "rank": t, "state": {k: v for k, v in model.state_dict().items() if v is not None}}
    torch.save(live, out / "live" / f"{torch.distributed.get_rank()}.pt")

    content = {"args": training_args(tp, pp, dtype), "checkpoint_version": 3.0, "iteration": ITERATION}
    name = f"mp_rank_{t:02d}" + (f"_{p:03d}" if pp > 1 else "")
    folders = {kind: out / kind / f"iter_{ITERATION:07d}" for kind in ("torch", "torch_dist")}
    for folder in (folders["torch"] / name, folders["torch_dist"]):
        folder.mkdir(parents=True, exist_ok=True)
    torch.save({**content, "model": model.state_dict()}, folders["torch"] / name / "model_optim_rng.pt")
    torch.distributed.barrier()
    dist_checkpointing.save({**content, **model.sharded_state_dict(prefix="")}, str(folders["torch_dist"]))
    if torch.distributed.get_rank() == 0:
        for kind in folders:
            (out / kind / "latest_checkpointed_iteration.txt").write_text(str(ITERATION))
    torch.distributed.barrier()


def judge(model, out):
    """What megatron-core computes of this model, and how it would upcycle it."""
    import torch
    from megatron.core.transformer.moe.upcycling_utils import upcycle_state_dict

    length = SHAPE.positions // 2
    ids = (torch.arange(length).reshape(1, length) * 13 + 5) % SHAPE.vocab
    positions = torch.arange(length).reshape(1, length)
    hidden_from = torch.triu(torch.ones(1, 1, length, length, dtype=torch.bool), diagonal=1)
    with torch.no_grad():
        logits = model.eval()(ids, positions, hidden_from)
    upcycled = upcycle_state_dict([build(1, 1, torch.float32, EXPERTS)], [model])["model"]
    upcycled = {name: value for name, value in upcycled.items() if isinstance(value, torch.Tensor)}
    torch.save({"ids": ids, "logits": logits, "upcycled": upcycled}, out / "judge.pt")


def rank_main(rank, out, tp, pp):
    import torch
    from megatron.core import parallel_state

    dtype = torch.float32 if tp * pp == 1 else torch.bfloat16
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{out}/rendezvous", world_size=tp * pp, rank=rank
    )
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp
    )
    model = build(tp, pp, dtype)
    fill(
        model,
        parallel_state.get_pipeline_model_parallel_rank(),
        parallel_state.get_tensor_model_parallel_rank(),
    )
    save(model, out, tp, pp, dtype)
    if tp * pp == 1:
        judge(model, out)
    torch.distributed.destroy_process_group()


def run_ranks(world, target, arguments):
    """target(rank, *arguments) in a process per rank; the first that fails ends the others."""
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=target, args=(rank, *arguments)) for rank in range(world)]
    for process in ranks:
        process.start()
    waiting = list(ranks)
    while waiting:
        multiprocessing.connection.wait([process.sentinel for process in waiting])
        ended = [process for process in waiting if process.exitcode is not None]
        waiting = [process for process in waiting if process not in ended]
        if any(process.exitcode != 0 for process in ended):
            for process in waiting:
                process.terminate()
            sys.exit(f"a rank of {target.__module__}{arguments} failed")


def run(out, tp, pp):
    out.mkdir(parents=True)
    run_ranks(tp * pp, rank_main, (out, tp, pp))


def main():
    out = pathlib.Path(sys.argv[1]).resolve()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import_megatron()
    for split in sys.argv[2:]:
        tp, pp = map(int, split.split("x"))
        run(out / split, tp, pp)


if __name__ == "__main__":
    main()
