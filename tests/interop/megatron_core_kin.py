"""Real megatron-core on a CPU: T5Model and CLIPViTModel, dense or with experts in their layer specs.

    PYTHONPATH=.venv/megatron-core-0.19.2 python megatron_core_kin.py

reads jobs from its standard input, a list on a line, and answers each line when they are done.

megatron-core has no spec of either with experts, so this one is made by hand: its local layer specs with
another `mlp` in some layers, and all process groups, which MoELayer wants. Each job is {"kind", "tp",
"decoder", "encoder": lists with 1 for layers of experts, "model": options, and of "fill", "torch", "dist",
"save" (a folder) and "formats" those that are meant, "out": a file for what came out}. A job fills the model or, with NaN in all
parameters, loads a checkpoint strictly: of the format torch, or of torch_dist, or of both one after the
other, which must be the same then. Nothing is left NaN. "save" writes the formats that it names.
"""

import argparse
import json
import os
import pathlib
import sys
import tempfile
import zlib

import each_expert
import megatron_core_cpu as core

ITERATION = 7
HIDDEN, FFN, HEADS, CHANNELS, POSITIONS, VOCAB = 48, 80, 4, 16, 24, 90
IMAGE, PATCH = 28, 7


def config_of(job, freq):
    import torch
    from megatron.core.transformer.transformer_config import TransformerConfig

    model, experts = job["model"], {}
    if any(freq):
        experts = dict(
            num_moe_experts=job["experts"], moe_router_topk=2, moe_ffn_hidden_size=FFN, moe_grouped_gemm=False,
            moe_token_dispatcher_type="allgather", moe_layer_freq=freq if 0 in freq else 1,
        )  # fmt: skip
    return TransformerConfig(
        num_layers=len(freq), hidden_size=HIDDEN, ffn_hidden_size=FFN, num_attention_heads=HEADS, kv_channels=CHANNELS,
        gated_linear_unit=model.get("gated", False), activation_func=torch.nn.functional.gelu,
        normalization=model.get("norm", "LayerNorm"), add_bias_linear=model.get("bias", True),
        hidden_dropout=0.0, attention_dropout=0.0, bias_activation_fusion=False, masked_softmax_fusion=False,
        use_cpu_initialization=True, tensor_model_parallel_size=job["tp"], expert_tensor_parallel_size=etp_of(job),
        params_dtype=torch.float32, **experts,
    )  # fmt: skip


def etp_of(job):
    """Experts with biases are not split (transformer_config.py)."""
    return 1 if job["model"].get("bias", True) else job["tp"]


def specs(layer, freq, experts):
    from megatron.core.models.gpt.moe_module_specs import get_moe_module_spec
    from megatron.core.transformer.torch_norm import WrappedTorchNorm
    from megatron.core.transformer.transformer_block import TransformerBlockSubmodules

    layers = [layer() for _ in freq]
    for spec, moe in zip(layers, freq):
        if moe:
            spec.submodules.mlp = get_moe_module_spec(use_te=False, num_experts=experts)
    return TransformerBlockSubmodules(layers, layer_norm=WrappedTorchNorm)


def build(job):
    from megatron.core.models.T5 import t5_model, t5_spec
    from megatron.core.models.vision import clip_vit_model, vit_layer_specs
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.transformer.torch_norm import WrappedTorchNorm

    model, experts = job["model"], job["experts"]
    groups = ProcessGroupCollection.use_mpu_process_groups()
    if job["kind"] == "vit":
        sub = model.get("subtype", "clip")
        return clip_vit_model.CLIPViTModel(
            config_of(job, job["decoder"]),
            specs(vit_layer_specs.get_vit_layer_with_local_spec, job["decoder"], experts),
            ln_pre_impl=WrappedTorchNorm, ln_post_impl=WrappedTorchNorm, add_class_token=sub == "clip",
            class_token_len=1 if sub == "clip" else 0, patch_dim=PATCH, img_h=IMAGE, img_w=IMAGE, model_subtype=sub,
            pg_collection=groups,
        )  # fmt: skip
    return t5_model.T5Model(
        config_of(job, job["decoder"]),
        config_of(job, job["encoder"]),
        specs(t5_spec.encoder_model_with_local_spec, job["encoder"], experts),
        specs(t5_spec.decoder_model_with_local_spec, job["decoder"], experts),
        vocab_size=padded(job), max_sequence_length=POSITIONS, parallel_output=False,
        share_embeddings_and_output_weights=model.get("tied", True),
        position_embedding_type=model.get("positions", "learned_absolute"), pg_collection=groups,
    )  # fmt: skip


def padded(job):
    if "vocab" in job:
        return job["vocab"]
    return -(-VOCAB // (32 * job["tp"])) * 32 * job["tp"]


def fill(model):
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            drawn = torch.randn(parameter.shape, generator=drawn) * 0.1
            parameter.copy_(drawn + 1 if ("norm" in name or "ln_" in name) and name.endswith("weight") else drawn)


def compute(job, model):
    import torch

    with torch.no_grad():
        if job["kind"] == "vit":
            image = torch.randn(12, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(1)) * 3
            return model.eval()(image)
        n, to = POSITIONS - 2, POSITIONS
        ids = torch.randint(0, VOCAB, (8, n + to), generator=torch.Generator().manual_seed(2))
        none = torch.zeros(1, 1, n, n, dtype=torch.bool), torch.zeros(1, 1, to, n, dtype=torch.bool)
        causal = torch.triu(torch.ones(1, 1, to, to, dtype=torch.bool), diagonal=1)
        return model.eval()(ids[:, :n], ids[:, n:], none[0], causal, none[1])[..., :VOCAB]


def rank():
    from megatron.core import parallel_state

    return parallel_state.get_tensor_model_parallel_rank()


def args_of(job):
    import torch

    model = job["model"]
    t5 = dict(
        encoder_num_layers=len(job["encoder"]), decoder_num_layers=len(job["decoder"]), vocab_size=VOCAB,
        padded_vocab_size=padded(job), make_vocab_size_divisible_by=32, relative_attention_num_buckets=32,
        relative_attention_max_distance=128, encoder_seq_length=POSITIONS, decoder_seq_length=POSITIONS,
        num_layers=len(job["encoder"]), position_embedding_type=model.get("positions", "learned_absolute"),
        untie_embeddings_and_output_weights=not model.get("tied", True), max_position_embeddings=POSITIONS,
    )  # fmt: skip
    vit = dict(num_layers=len(job["decoder"]), img_h=IMAGE, img_w=IMAGE, patch_dim=PATCH)
    return argparse.Namespace(
        hidden_size=HIDDEN, ffn_hidden_size=FFN, num_attention_heads=HEADS, kv_channels=CHANNELS,
        group_query_attention=False, num_query_groups=1, swiglu=False, gated_linear_unit=model.get("gated", False),
        normalization=model.get("norm", "LayerNorm"), norm_epsilon=1e-5, add_bias_linear=model.get("bias", True),
        num_experts=None, tensor_model_parallel_size=job["tp"], pipeline_model_parallel_size=1, bf16=False, fp16=False,
        params_dtype=torch.float32, **(vit if job["kind"] == "vit" else t5),
    )  # fmt: skip


def save(job, model):
    import torch
    from megatron.core import dist_checkpointing

    out, content = pathlib.Path(job["save"]), {"args": args_of(job), "checkpoint_version": 3.0, "iteration": ITERATION}
    folders = {kind: out / kind / f"iter_{ITERATION:07d}" for kind in job["formats"]}
    mine = folders["torch"] / f"mp_rank_{rank():02d}"
    for folder in (mine, *folders.values()):
        folder.mkdir(parents=True, exist_ok=True)
    torch.save({**content, "model": model.state_dict()}, mine / "model_optim_rng.pt")
    torch.distributed.barrier()
    if "torch_dist" in folders:
        dist_checkpointing.save({**content, **model.sharded_state_dict(prefix="")}, str(folders["torch_dist"]))
    if rank() == 0:
        for kind in folders:
            (out / kind / "latest_checkpointed_iteration.txt").write_text(str(ITERATION))
    torch.distributed.barrier()


def folder_of(checkpoint):
    return pathlib.Path(checkpoint) / f"iter_{ITERATION:07d}"


def load_torch(job, model):
    import torch

    path = folder_of(job["torch"]) / f"mp_rank_{rank():02d}" / "model_optim_rng.pt"
    model.load_state_dict(torch.load(path, weights_only=False)["model"], strict=True)


def load_dist(job, model):
    """Strictly in both directions: what the model asks for is there, and nothing else is, but for extra states."""
    from megatron.core import dist_checkpointing

    folder = str(folder_of(job["dist"]))
    metadata = dist_checkpointing.load_content_metadata(folder)
    asked = model.sharded_state_dict(prefix="", metadata=metadata)
    loaded, missing, unexpected = dist_checkpointing.load(asked, folder, strict="return_all")
    assert not unexpected, unexpected
    assert all("_extra_state" in key for key in missing), missing
    model.load_state_dict({k: v for k, v in loaded.items() if k in model.state_dict()}, strict=True)


def load(job, model):
    import torch

    held = []
    for kind, loader in (("torch", load_torch), ("dist", load_dist)):
        if not job.get(kind):
            continue
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(float("nan"))
        loader(job, model)
        assert not any(p.isnan().any() for p in model.parameters()), kind
        held.append([p.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(held[0], held[-1])), "the formats differ"


def experts_of(model, n):
    """fc2 of each expert in all layers."""
    found = [[] for _ in range(n)]
    for name, parameter in model.named_parameters():
        for e in range(n):
            if f".local_experts.{e}.linear_fc2.weight" in name:
                found[e].append(parameter)
    assert all(found), "no experts"
    return found


def run_job(job):
    import torch

    model = build(job)
    if job.get("fill"):
        fill(model)
    else:
        load(job, model)
    if job.get("save"):
        save(job, model)
    if job["model"].get("positions") == "relative":
        return  # its attention is Transformer Engine's alone
    made = compute(job, model)
    if any(job["decoder"] + job["encoder"]) and job.get("each", True):
        each_expert.check(lambda: compute(job, model), experts_of(model, job["experts"]))
    if rank() == 0:
        torch.save(made, job["out"])


def rank_main(place, rendezvous, tp, jobs):
    import torch
    from megatron.core import parallel_state

    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", world_size=tp, rank=place)
    for job in jobs:
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=tp, expert_tensor_parallel_size=etp_of(job)
        )
        try:
            run_job({"encoder": [], "experts": 0, **job})
        except Exception as error:
            raise AssertionError(f"job {job}") from error
        parallel_state.destroy_model_parallel()
    torch.distributed.destroy_process_group()


def run(jobs):
    for tp in sorted({job["tp"] for job in jobs}):
        with tempfile.TemporaryDirectory(prefix="mgr-core-") as folder:
            mine = [job for job in jobs if job["tp"] == tp]
            core.run_ranks(tp, rank_main, (f"{folder}/rendezvous", tp, mine))  # ends with the first that fails


def main():
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the libraries print is no answer
    core.import_megatron()
    from megatron.core.models.T5 import t5_model, t5_spec  # noqa: F401
    from megatron.core.models.vision import clip_vit_model, vit_layer_specs  # noqa: F401

    for line in sys.stdin:
        run(json.loads(line))
        print(json.dumps({"failed": []}), file=answers, flush=True)


if __name__ == "__main__":
    main()
