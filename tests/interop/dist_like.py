"""Dense models as Megatron's `torch_dist`, written by torch.distributed.checkpoint.save of the
installed torch. Run as a program it is one of several ranks of such a save."""

import io
import json
import logging
import pathlib
import pickle
import subprocess
import sys

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

import megatron_like as ml

logging.getLogger("torch.distributed.checkpoint.dcp_logger").setLevel(logging.ERROR)
for _name in list(logging.root.manager.loggerDict):
    if "dcp_logger" in _name:
        logging.getLogger(_name).setLevel(logging.ERROR)

COMMON_OBJECT = "common_state/shard_0_1"
MANIFEST = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}


def layer_tensors(model, shape, i, singleton=False):
    """{key behind "decoder.layers.": global tensor} of layer i."""
    get = lambda name: model[f"model.layers.{i}.{name}.weight"]
    gate, up = get("mlp.gate_proj"), get("mlp.up_proj")
    fc1 = (
        {"mlp.linear_fc1.weight_w": gate, "mlp.linear_fc1.weight_v": up}
        if singleton
        else {"mlp.linear_fc1.weight": torch.cat([gate, up])}
    )
    return {
        "self_attention.linear_qkv.layer_norm_weight": get("input_layernorm"),
        "self_attention.linear_qkv.weight": ml.fused_qkv(
            *(get(f"self_attn.{x}_proj") for x in "qkv"), shape
        ),
        "self_attention.linear_proj.weight": get("self_attn.o_proj"),
        "mlp.linear_fc1.layer_norm_weight": get("post_attention_layernorm"),
        **fc1,
        "mlp.linear_fc2.weight": get("mlp.down_proj"),
    }


def global_tensors(model, shape, stacked=True, singleton=False, prefix="", padded_for=2):
    """{key: global tensor} under the keys of Megatron-Core."""
    vocab = shape.padded_vocab(padded_for)
    out = {"embedding.word_embeddings.weight": ml.padded(model["model.embed_tokens.weight"], vocab)}
    layers = [layer_tensors(model, shape, i, singleton) for i in range(shape.layers)]
    for name in layers[0]:
        if stacked:
            out["decoder.layers." + name] = torch.stack([layer[name] for layer in layers])
        else:
            out.update({f"decoder.layers.{i}.{name}": layer[name] for i, layer in enumerate(layers)})
    out["decoder.final_layernorm.weight"] = model["model.norm.weight"]
    if not shape.tied:
        out["output_layer.weight"] = ml.padded(model["lm_head.weight"], vocab)
    return {prefix + key: tensor.clone().contiguous() for key, tensor in out.items()}


def megatron_chunks(key, tensor, tp):
    """Boxes (offsets, sizes) as Megatron cuts: a layer, a tensor-parallel rank, a half of fc1."""
    stacked = "decoder.layers." in key and not key.split("decoder.layers.")[1][0].isdigit()
    lead = [[(i, 1)] for i in range(tensor.shape[0])] if stacked else [[]]
    size = tensor.shape[1:] if stacked else tensor.shape
    axis = 1 if key.endswith(("linear_proj.weight", "linear_fc2.weight")) else 0
    if len(size) == 1:
        parts = [[(0, size[0])]]
    else:
        pieces = tp * 2 if key.endswith("linear_fc1.weight") else tp
        step = size[axis] // pieces
        cuts = [(k * step, step) for k in range(pieces)]
        whole = (0, size[1 - axis])
        parts = [[cut, whole] if axis == 0 else [whole, cut] for cut in cuts]
    for first in lead:
        for part in parts:
            box = first + part
            yield [o for o, _ in box], [n for _, n in box]


def sharded_tensor(tensor, boxes):
    """All chunks on this rank, as Megatron hands them to torch."""
    from torch.distributed._shard.metadata import ShardMetadata
    from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor, ShardedTensorMetadata
    from torch.distributed._shard.sharded_tensor.metadata import TensorProperties

    shards = []
    for offsets, sizes in boxes:
        where = tuple(slice(o, o + n) for o, n in zip(offsets, sizes))
        meta = ShardMetadata(offsets, sizes, placement="rank:0/cpu")
        shards.append(Shard(tensor[where].clone().contiguous(), meta))
    whole = ShardedTensorMetadata(
        [shard.metadata for shard in shards], tensor.shape, TensorProperties(dtype=tensor.dtype)
    )
    return ShardedTensor._init_from_local_shards_and_global_metadata(shards, whole)


def common_state(shape, dtype, tp=2, pp=2, with_args=True):
    with ml.megatron_enums() as enums:
        content = {"args": ml.run_args(shape, tp, pp, dtype, enums)} if with_args else {}
        content.update(
            checkpoint_version=3.0,
            iteration=7,
            content_metadata={"distrib_optim_sharding_type": "fully_sharded", "singleton_local_shards": False},
            opt_param_scheduler={"max_lr": 3e-4},
            optimizer={"optimizer": {"param_groups": [{"lr": 1e-4}]}},
        )
        out = io.BytesIO()
        torch.save(content, out)  # while the enums can be pickled
    return out.getvalue(), content


def other_entries(shape):
    """What a save holds beside the model."""
    out = {
        f"decoder.layers.mlp.linear_fc1._extra_state/shard_{i}_{shape.layers}": [None]
        for i in range(shape.layers)
    }
    out.update(
        {
            "rng_state/shard_0.0_1.1": [{"random": (3, (1, 2), None)}],
            "rerun_state_machine_state/shard_0_1": [{"mode": "disabled"}],
            "optimizer.state.exp_avg.decoder.final_layernorm.weight": torch.randn(shape.hidden),
            "chained_0.optimizer.state.fp32_param.x": torch.randn(3, 5),
        }
    )
    return out


def finish(root, shape, dtype, common="file", manifest=None, with_args=True, iteration=7):
    folder = root / f"iter_{iteration:07d}"
    if common == "file":
        (folder / "common.pt").write_bytes(common_state(shape, dtype, with_args=with_args)[0])
    (folder / "metadata.json").write_text(json.dumps(MANIFEST if manifest is None else manifest))
    (root / "latest_checkpointed_iteration.txt").write_text(str(iteration))
    return root


def new_folder(root, iteration=7):
    folder = pathlib.Path(root) / f"iter_{iteration:07d}"
    folder.mkdir(parents=True)
    return folder


def write(state, folder, **writer):
    dcp.save(
        state,
        storage_writer=dcp.FileSystemWriter(folder, **writer),
        planner=DefaultSavePlanner(flatten_state_dict=False),
        no_dist=not dist.is_initialized(),
    )


def save_whole(model, shape, root, common="file", extra=None, edit=lambda state: None, writer=None, **how):
    """One process, each tensor one chunk."""
    root = pathlib.Path(root)
    folder = new_folder(root)
    dtype = model["model.norm.weight"].dtype
    state = {**global_tensors(model, shape, **how), **other_entries(shape), **(extra or {})}
    if common == "object":
        with ml.megatron_enums() as enums:
            args = ml.run_args(shape, 2, 2, dtype, enums)
            state[COMMON_OBJECT] = [{"args": args, "checkpoint_version": 3.0, "iteration": 7}]
            edit(state)
            write(state, folder, **(writer or {}))
    else:
        edit(state)
        write(state, folder, **(writer or {}))
    return finish(root, shape, dtype, common)


def save_megatron(model, shape, root, tp=2, common="file", edit=lambda state: None, **how):
    """One process with the chunks of tp ranks."""
    root = pathlib.Path(root)
    folder = new_folder(root)
    started = not dist.is_initialized()
    if started:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        state = {
            key: sharded_tensor(tensor, megatron_chunks(key, tensor, tp))
            for key, tensor in global_tensors(model, shape, **how).items()
        }
        state.update(other_entries(shape))
        edit(state)
        write(state, folder)
    finally:
        if started:
            dist.destroy_process_group()
    return finish(root, shape, model["model.norm.weight"].dtype, common)


def save_ranks(model, shape, root, ranks=2, **how):
    """Several processes with DTensors, each tensor cut along another axis; also into more parts than
    it has rows. torch writes one file for each rank."""
    root = pathlib.Path(root)
    new_folder(root)
    torch.save((global_tensors(model, shape, **how), other_entries(shape)), root / "state.pt")
    workers = [
        subprocess.Popen([sys.executable, __file__, str(root), str(rank), str(ranks)])
        for rank in range(ranks)
    ]
    assert [worker.wait(timeout=120) for worker in workers] == [0] * ranks
    (root / "state.pt").unlink()
    return finish(root, shape, model["model.norm.weight"].dtype)


def work(root, rank, ranks):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    dist.init_process_group("gloo", init_method=f"file://{root}/store", rank=rank, world_size=ranks)
    tensors, others = torch.load(root / "state.pt", weights_only=False)
    mesh = init_device_mesh("cpu", (ranks,))
    state = {
        key: distribute_tensor(tensor, mesh, [Shard(i % tensor.dim())])
        for i, (key, tensor) in enumerate(tensors.items())
    }
    state.update(others)
    write(state, root / "iter_0000007")
    dist.barrier()
    if rank == 0:
        (root / "store").unlink(missing_ok=True)
    dist.destroy_process_group()


# ---- any model, from the file of a single rank -----------------------------------------------------


def of_one_rank(root):
    """The state dict of a checkpoint of the format torch that is not split, without extra states."""
    path = next(pathlib.Path(root).rglob("model_optim_rng.pt"))
    state = torch.load(path, weights_only=False)["model"]
    return {name: value for name, value in state.items() if value is not None}


def keys_of_dist(state, stacked=True, local=False, singleton=False):
    """{key: global tensor} of Megatron-Core for a state dict with the names of Transformer Engine
    and sequential experts; `local`: the keys that the local spec gives; `singleton`: a key per expert
    and half of a gated fc1."""
    experts, out = {}, {}
    for name, tensor in state.items():
        if local:
            name = name.replace("pre_mlp_layernorm.", "mlp.linear_fc1.layer_norm_")
        layer, _, rest = name.removeprefix("decoder.layers.").partition(".mlp.experts.local_experts.")
        if rest:
            expert, _, what = rest.partition(".")
            experts.setdefault((layer, what), {})[int(expert)] = tensor
        else:
            out[name] = tensor
    for (layer, what), tensors in experts.items():
        key = f"decoder.layers.{layer}.mlp.experts.experts."
        if singleton:
            out.update({f"{key}{e}.{what}": tensor for e, tensor in tensors.items()})
        else:
            out[key + what] = torch.stack([tensors[e] for e in range(len(tensors))])
    if singleton:
        return dict(part for item in out.items() for part in halves(*item))
    return stack_layers(out) if stacked else out


def halves(key, tensor):
    if ".linear_fc1." not in key or "layer_norm" in key:
        return [(key, tensor)]
    gate, up = tensor.chunk(2)
    return [(key + "_w", gate.clone()), (key + "_v", up.clone())]


def stack_layers(tensors):
    out, layers = {}, {}
    for name, tensor in tensors.items():
        if not name.startswith("decoder.layers."):
            out[name] = tensor
            continue
        layer, _, rest = name.removeprefix("decoder.layers.").partition(".")
        layers.setdefault(rest, {})[int(layer)] = tensor
    for rest, of_layers in layers.items():
        out["decoder.layers." + rest] = torch.stack([of_layers[i] for i in range(len(of_layers))])
    return out


def save_like(state, args_of, root, **writer):
    """torch.distributed.checkpoint.save of the tensors, with the args of another checkpoint."""
    folder = new_folder(root)
    write({key: tensor.clone() for key, tensor in state.items()}, folder, **writer)
    rank = torch.load(next(pathlib.Path(args_of).rglob("model_optim_rng.pt")), weights_only=False)
    rank.pop("model")
    torch.save(rank, folder / "common.pt")
    (folder / "metadata.json").write_text(json.dumps(MANIFEST))
    (root / "latest_checkpointed_iteration.txt").write_text("7")
    return root


# ---- .metadata by hand ---------------------------------------------------------------------------


def edit_metadata(root, edit, protocol=4):
    """edit(metadata) on the unpickled `.metadata`, which is then pickled again."""
    path = next(pathlib.Path(root).glob("*/.metadata"))
    metadata = pickle.loads(path.read_bytes())
    edit(metadata)
    path.write_bytes(pickle.dumps(metadata, protocol))


def place_of(metadata, key, offset):
    """(index, info) of a chunk in storage_data."""
    for index, info in metadata.storage_data.items():
        if index.fqn == key and tuple(index.offset or ()) == tuple(offset):
            return index, info
    raise KeyError((key, offset))


if __name__ == "__main__":
    work(pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
