"""Real megatron-core on a CPU loads `torch_dist` checkpoints and says what came out.

    PYTHONPATH=.venv/megatron-core-0.16.1 python megatron_core_load.py JOBS.json

Each job is {"name", "checkpoint": folder of an iteration, "ranks": that of the same model in the
format torch at the same split, "tp", "pp", "ep", "norms": "local" or "te", "config", "model":
arguments of TransformerConfig and GPTModel, "again": where to save, or null}. All parameters are NaN before
megatron.core.dist_checkpointing.load; afterwards each rank's state dict must be exactly what its
file of the format torch holds, and may be saved by megatron.core.dist_checkpointing.save.

The loader is asked twice: with raise_unexpected, which ends at anything that the model asks for and
the checkpoint lacks, and with return_all, after which the only entries that nobody asked for may be
extra states.
"""

import argparse
import inspect
import json
import os
import pathlib
import sys

import megatron_core_cpu as core

TE_MAP = {"input_layernorm.": "self_attention.linear_qkv.layer_norm_"}


def layer_spec(config, job):
    """The local spec; with norms "te" it asks for the keys of Transformer Engine, which cannot be
    had without a GPU: there the norm in front of experts keeps its name."""
    from megatron.core.models.gpt import gpt_layer_specs as specs

    spec = specs.get_gpt_decoder_block_spec(config, False, normalization=config.normalization)
    for layer in spec.layer_specs:
        if job["norms"] == "te" and "MoELayer" in str(layer.submodules.mlp):
            layer.submodules.sharded_state_dict_keys_map = TE_MAP
    return spec


def build(job):
    import torch
    from megatron.core import parallel_state
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.transformer.transformer_config import TransformerConfig

    options = dict(job["config"])
    activation = options.pop("activation")
    config = TransformerConfig(
        activation_func=getattr(torch.nn.functional, activation),
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        use_cpu_initialization=True,
        perform_initialization=False,
        tensor_model_parallel_size=job["tp"],
        pipeline_model_parallel_size=job["pp"],
        expert_model_parallel_size=job["ep"],
        params_dtype=torch.bfloat16,
        pipeline_dtype=torch.bfloat16,
        bf16=True,
        **options,
    )
    model = GPTModel(
        config=config,
        transformer_layer_spec=layer_spec(config, job),
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        **job["model"],
    ).to(torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    return model


def rank_file(job):
    from megatron.core import parallel_state

    name = "mp_rank_%02d" % parallel_state.get_tensor_model_parallel_rank()
    if job["pp"] > 1:
        name += "_%03d" % parallel_state.get_pipeline_model_parallel_rank()
    if job["ep"] > 1:
        name += "_%03d" % parallel_state.get_expert_model_parallel_rank()
    return pathlib.Path(job["ranks"]) / name / "model_optim_rng.pt"


def tensors(state):
    return {name: value for name, value in state.items() if value is not None and "_extra_state" not in name}


def check_strict(model, job):
    from megatron.core import dist_checkpointing

    metadata = dist_checkpointing.load_content_metadata(job["checkpoint"])
    ask = lambda: model.sharded_state_dict(prefix="", metadata=metadata)
    known = inspect.signature(dist_checkpointing.load).parameters  # integrity.json: from 0.19 on
    verify = {"verify_integrity": True} if "verify_integrity" in known else {}
    loaded = dist_checkpointing.load(ask(), job["checkpoint"], strict="raise_unexpected", **verify)
    _, missing, unexpected = dist_checkpointing.load(ask(), job["checkpoint"], strict="return_all")
    assert not unexpected, unexpected
    assert all("_extra_state" in key for key in missing), missing
    return loaded


def check(model, job):
    import torch

    loaded = check_strict(model, job)
    assert loaded["args"].num_layers == job["config"]["num_layers"]
    assert loaded["checkpoint_version"] == 3.0
    wanted = tensors(torch.load(rank_file(job), weights_only=False)["model"])
    model.load_state_dict({name: loaded[name] for name in model.state_dict() if name in loaded}, strict=True)
    got = tensors(model.state_dict())
    assert set(got) == set(wanted), set(got) ^ set(wanted)
    for name, value in got.items():
        assert value.dtype == wanted[name].dtype and torch.equal(value, wanted[name]), name
    return {key: loaded[key] for key in ("args", "checkpoint_version", "iteration")}


def save(model, job, common):
    import torch
    from megatron.core import dist_checkpointing

    folder = pathlib.Path(job["again"]) / "iter_0000001"
    folder.mkdir(parents=True, exist_ok=True)
    torch.distributed.barrier()
    metadata = dist_checkpointing.load_content_metadata(job["checkpoint"])
    state = model.sharded_state_dict(prefix="", metadata=metadata)
    dist_checkpointing.save({**common, **state}, str(folder))
    torch.distributed.barrier()


def rank_main(rank, world, job, rendezvous):
    import torch
    from megatron.core import parallel_state

    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", world_size=world, rank=rank
    )
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=job["tp"],
        pipeline_model_parallel_size=job["pp"],
        expert_model_parallel_size=job["ep"],
    )
    model = build(job)
    common = check(model, job)
    if job["again"]:
        save(model, job, common)
    torch.distributed.destroy_process_group()


def main():
    jobs = pathlib.Path(sys.argv[1]).resolve()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    core.import_megatron()
    import torch.serialization

    torch.serialization.add_safe_globals([argparse.Namespace])
    for number, job in enumerate(json.loads(jobs.read_text())):
        world = job["tp"] * job["pp"] * job["ep"]
        print(job["name"], "on", world, "ranks", flush=True)
        core.run_ranks(world, rank_main, (world, job, f"{jobs}.{number}"))


if __name__ == "__main__":
    main()
