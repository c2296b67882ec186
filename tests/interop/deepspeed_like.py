"""ZeRO checkpoints as DeepSpeed's engine lays them out, without DeepSpeed: for splits and damage that
no run makes in a second. test_deepspeed.py holds them against real ones."""

import collections
import math

import torch


def parts(tensor, ranks):
    """The part of each rank, padded with what nobody may read."""
    part = math.ceil(tensor.numel() / ranks)
    flat = torch.full((part * ranks,), float("nan"))
    flat[: tensor.numel()] = tensor.float().flatten()
    return flat.split(part)


def sub_groups(names, params, ranks, size):
    """runtime/zero/stage3.py, _create_fp16_sub_groups."""
    groups, filled = [[]], 0
    for name in names:
        groups[-1].append(name)
        filled += math.ceil(params[name].numel() / ranks)
        if filled >= size:
            groups.append([])
            filled = 0
    return groups if groups[-1] else groups[:-1]


def state(params, groups, module, ranks, frozen=None, pieces=None, shared=None, version="0.19.8"):
    return {
        "module": collections.OrderedDict(module),
        "buffer_names": [],
        "optimizer": None,
        "param_shapes": [
            collections.OrderedDict((name, params[name].shape) for name in group) for group in groups
        ],
        "frozen_param_shapes": None
        if frozen is None
        else collections.OrderedDict((name, t.shape) for name, t in frozen.items()),
        "shared_params": collections.OrderedDict(shared or {}),
        "frozen_param_fragments": pieces,
        "lr_scheduler": None,
        "global_steps": 2,
        "dp_world_size": ranks,
        "mp_world_size": 1,
        "ds_config": {"zero_optimization": {"stage": 3}},
        "ds_version": version,
    }


def zero3(folder, params, ranks=2, size=10**9, frozen=None, shared=None, prefix="bf16_", buffers=None):
    """Write `params` {name: tensor}, trained in this order, and `frozen` ones."""
    folder.mkdir(parents=True, exist_ok=True)
    groups = sub_groups(list(params), params, ranks, size)
    split = {name: parts(t, ranks) for name, t in params.items()}
    empty = {name: torch.empty(0, dtype=torch.bfloat16) for name in [*params, *(frozen or {}), *(shared or {})]}
    for rank in range(ranks):
        pieces = None
        if frozen is not None:
            pieces = {name: parts(t, ranks)[rank].to(t.dtype) for name, t in frozen.items()}
        module = {**empty, **(buffers or {})}
        torch.save(
            state(params, groups, module, ranks, frozen, pieces, shared),
            folder / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt",
        )
        flat = [torch.cat([split[name][rank] for name in group]) for group in groups]
        inner = {
            "zero_stage": 3,
            "partition_count": ranks,
            "optimizer_state_dict": {
                "state": {i: {"step": torch.tensor(2.0), "exp_avg": f * 0} for i, f in enumerate(flat)}
            },
            "fp32_flat_groups": flat,
        }
        torch.save(
            {"optimizer_state_dict": inner, "ds_config": {}, "ds_version": "0.19.8"},
            folder / f"{prefix}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt",
        )


def zero2(folder, params, ranks=2, groups=1, paddings=None, shared=None, module=None):
    """ZeRO-1 or 2: the vector of a group is cut among the ranks; the last piece lacks its padding."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [list(params)[g::groups] for g in range(groups)]
    copies = {name: t.bfloat16() for name, t in params.items()} if module is None else module
    copies.update({alias: copies[name] for alias, name in (shared or {}).items()})
    torch.save(
        state(params, names, copies, ranks, shared=shared), folder / "mp_rank_00_model_states.pt"
    )
    vectors = []
    for g, group in enumerate(names):
        pad = paddings[g] if paddings else [0] * len(group)
        vectors.append(
            torch.cat(
                [
                    torch.cat([params[name].float().flatten(), torch.full((p,), float("nan"))])
                    for name, p in zip(group, pad)
                ]
            )
        )
    for rank in range(ranks):
        mine = []
        for vector in vectors:
            step = math.ceil(vector.numel() / (2 * ranks)) * 2
            mine.append(vector[rank * step : (rank + 1) * step].clone())
        inner = {
            "zero_stage": 2,
            "partition_count": [ranks] * groups,
            "base_optimizer_state": [],
            "single_partition_of_fp32_groups": mine,
            "group_paddings": [0] * groups,
        }
        if paddings:
            inner["param_alignment_paddings"] = paddings
        torch.save(
            {"optimizer_state_dict": inner, "ds_config": {}, "ds_version": "0.19.8"},
            folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt",
        )
