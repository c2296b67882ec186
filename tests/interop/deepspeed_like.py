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


# of torch's AdamW, as DeepSpeed saves it
SETTINGS = {"lr": 2e-4, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1, "amsgrad": False, "fused": None}
STEP = 5


def torch_state(flats, settings):
    """{group: its state} and the groups of torch's optimizer; `flats` are (exp_avg, exp_avg_sq) of each."""
    state = {
        g: {"step": torch.tensor(float(STEP)), "exp_avg": first, "exp_avg_sq": second}
        for g, (first, second) in enumerate(flats)
    }
    own = [list(range(g, len(flats), len(settings))) for g in range(len(settings))]
    return {"state": state, "param_groups": [{**s, "params": ids} for s, ids in zip(settings, own)]}


def zero3(
    folder, params, ranks=2, size=10**9, frozen=None, shared=None, prefix="bf16_", buffers=None, moments=None,
    settings=(SETTINGS,),
):  # fmt: skip
    """Write `params` {name: tensor}, trained in this order, and `frozen` ones; and of the first two `moments`."""
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
        kept = [
            tuple(torch.cat([parts(kind[name], ranks)[rank] for name in group]) for kind in moments)
            for group in groups
        ] if moments else []  # fmt: skip
        inner = {
            "zero_stage": 3,
            "partition_count": ranks,
            "optimizer_state_dict": torch_state(kept, settings),
            "fp32_flat_groups": flat,
        }
        torch.save(
            {"optimizer_state_dict": inner, "ds_config": {}, "ds_version": "0.19.8"},
            folder / f"{prefix}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt",
        )


def vector(tensors, names, pad):
    return torch.cat(
        [torch.cat([tensors[n].float().flatten(), torch.full((p,), float("nan"))]) for n, p in zip(names, pad)]
    )


def zero2(
    folder, params, ranks=2, groups=1, paddings=None, shared=None, module=None, moments=None, elastic=False,
    settings=(SETTINGS,),
):  # fmt: skip
    """ZeRO-1 or 2: the vector of a group is cut among the ranks; the last piece lacks its padding, which its
    moments have unless they are elastic."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [list(params)[g::groups] for g in range(groups)]
    copies = {name: t.bfloat16() for name, t in params.items()} if module is None else module
    copies.update({alias: copies[name] for alias, name in (shared or {}).items()})
    torch.save(
        state(params, names, copies, ranks, shared=shared), folder / "mp_rank_00_model_states.pt"
    )
    gaps = [paddings[g] if paddings else [0] * len(group) for g, group in enumerate(names)]

    def cut(tensors, rank, padded=False):
        mine = []
        for group, gap in zip(names, gaps):
            whole = vector(tensors, group, gap)
            step = math.ceil(whole.numel() / (2 * ranks)) * 2
            piece = whole[rank * step : (rank + 1) * step].clone()
            mine.append(torch.nn.functional.pad(piece, (0, step - piece.numel() if padded else 0)))
        return mine

    for rank in range(ranks):
        kept = list(zip(*(cut(kind, rank, not elastic) for kind in moments))) if moments else []
        inner = {
            "zero_stage": 2,
            "partition_count": [ranks] * groups,
            "base_optimizer_state": torch_state(kept, settings),
            "single_partition_of_fp32_groups": cut(params, rank),
            "group_paddings": [0] * groups,
        }
        if elastic:
            inner["base_optimizer_state"] = list(inner["base_optimizer_state"]["state"].values())
        if paddings:
            inner["param_alignment_paddings"] = paddings
        torch.save(
            {"optimizer_state_dict": inner, "ds_config": {}, "ds_version": "0.19.8"},
            folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt",
        )
