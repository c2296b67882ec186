"""The logical tensors of a Megatron model, gathered from its shards: from the live models of
megatron-core (megatron_core_server.py) or from files in the format torch.

Names are those of Llama in transformers, with ".bias" where there is one, "mlp.router" and
"mlp.experts.E.<gate|up|down>_proj" for what a Llama has not. Written apart from the program and from
megatron_like.py: it starts from shards and knows nothing but the partition of each kind of tensor.
"""

import argparse
import pathlib
import re

import torch

# {name below decoder.layers.N.: (logical name, kind)}
LAYER = {
    "input_layernorm": ("input_layernorm", "whole"),
    "self_attention.linear_qkv.layer_norm": ("input_layernorm", "whole"),
    "self_attention.linear_qkv": ("self_attn", "qkv"),
    "self_attention.linear_proj": ("self_attn.o_proj", "columns"),
    "self_attention.q_layernorm": ("self_attn.q_norm", "whole"),
    "self_attention.k_layernorm": ("self_attn.k_norm", "whole"),
    "pre_mlp_layernorm": ("post_attention_layernorm", "whole"),
    "mlp.linear_fc1.layer_norm": ("post_attention_layernorm", "whole"),
    "mlp.linear_fc1": ("mlp", "fc1"),
    "mlp.linear_fc2": ("mlp.down_proj", "columns"),
    "mlp.router": ("mlp.router", "whole"),
}
TOP = {
    "embedding.word_embeddings": ("model.embed_tokens", "rows"),
    "embedding.position_embeddings": ("model.embed_positions", "whole"),
    "decoder.final_layernorm": ("model.norm", "whole"),
    "output_layer": ("lm_head", "rows"),
}


def split_name(name):
    """(module, "weight" or "bias", local expert or None)"""
    grouped = re.fullmatch(r"(.*mlp)\.experts\.(linear_fc[12])\.(weight|bias)(\d+)", name)
    if grouped:
        mlp, linear, kind, expert = grouped.groups()
        return f"{mlp}.{linear}", kind, int(expert)
    sequential = re.fullmatch(r"(.*mlp)\.experts\.local_experts\.(\d+)\.(.*)\.(weight|bias)", name)
    if sequential:
        mlp, expert, linear, kind = sequential.groups()
        return f"{mlp}.{linear}", kind, int(expert)
    fused = re.fullmatch(r"(.*layer_norm)_(weight|bias)", name)
    module, kind = fused.groups() if fused else name.rsplit(".", 1)
    return module, kind, None


def same(tensors):
    first, *others = tensors
    for other in others:
        assert first.dtype == other.dtype and torch.equal(first, other)
    return first


def join_qkv(shards, m, to, kind):
    """Rows: for each query group its query heads, its K, its V."""
    fused, d, each = torch.cat(shards), m["head_dim"], m["heads"] // m["kv_heads"]
    groups = fused.reshape(m["kv_heads"], each + 2, d, *fused.shape[1:])
    for letter, part in (("q", groups[:, :each]), ("k", groups[:, each]), ("v", groups[:, each + 1])):
        yield f"{to}.{letter}_proj.{kind}", part.reshape(-1, *fused.shape[1:])


def join_fc1(shards, m, to, kind):
    """[gate; up] of each rank; up alone without a gate."""
    if m["activation"] not in ("swiglu", "geglu"):
        yield f"{to}.up_proj.{kind}", torch.cat(shards)
        return
    halves = [shard.chunk(2) for shard in shards]
    yield f"{to}.gate_proj.{kind}", torch.cat([gate for gate, _ in halves])
    yield f"{to}.up_proj.{kind}", torch.cat([up for _, up in halves])


def join(shards, m, to, kind, how):
    if how == "qkv":
        yield from join_qkv(shards, m, to, kind)
    elif how == "fc1":
        yield from join_fc1(shards, m, to, kind)
    elif how == "whole" or (how == "columns" and kind == "bias"):
        yield f"{to}.{kind}", same(shards)
    else:
        yield f"{to}.{kind}", torch.cat(shards, dim=1 if how == "columns" else 0)


def ungrouped(state, m, experts):
    """The experts of GroupedMLP one by one: weight1 and weight2 are read as [experts, rows, columns] of
    the transposed matrices, whatever their shape (GroupedMLP.forward)."""
    for name, tensor in state.items():
        old = re.fullmatch(r"(.*\.experts\.)weight([12])", name)
        if not old:
            yield name, tensor
            continue
        rows = m["hidden"] if old[2] == "1" else -1
        columns = -1 if old[2] == "1" else m["hidden"]
        for expert, matrix in enumerate(tensor.reshape(experts, rows, columns)):
            yield f"{old[1]}local_experts.{expert}.linear_fc{old[2]}.weight", matrix.T.contiguous()


def gather(ranks, m, s):
    """ranks: [{"place": {tp, pp, ep, etp}, "chunks": [{"state": ..., "layers": global numbers}]}].
    Whatever several ranks hold must be the same, bit for bit; all tensors are used."""
    found = {}  # {(logical name, kind, how): {shard: [tensors]}}
    per_rank = m["experts"] // s["ep"]
    for rank in ranks:
        at = rank["place"]
        for chunk in rank["chunks"]:
            for name, tensor in ungrouped(chunk["state"], m, per_rank):
                if name.endswith("_extra_state"):
                    continue
                module, kind, expert = split_name(name)
                layer = re.match(r"decoder\.layers\.(\d+)\.", module)
                shard = at["tp"] if expert is None else at["etp"]
                if layer:
                    to, how = LAYER[module[layer.end() :]]
                    to = f"model.layers.{chunk['layers'][int(layer[1])]}.{to}"
                    if expert is not None:
                        where = f"mlp.experts.{at['ep'] * per_rank + expert}"
                        to = re.sub(r"\bmlp\b", where, to)
                else:
                    to, how = TOP[module]
                    if m["tied"] and to == "lm_head":
                        to = "model.embed_tokens"
                found.setdefault((to, kind, how), {}).setdefault(shard, []).append(tensor)
    model = {}
    for (to, kind, how), shards in found.items():
        expected = s["etp"] if ".experts." in to else s["tp"]
        assert sorted(shards) == list(range(expected)), (to, sorted(shards))
        for name, tensor in join([same(shards[k]) for k in sorted(shards)], m, to, kind, how):
            assert name not in model, name
            model[name] = tensor.contiguous()
    return model


def live(folder, m, s):
    ranks = [torch.load(path, weights_only=True) for path in sorted(pathlib.Path(folder).glob("*.pt"))]
    return gather(ranks, m, s)


def load_rank(path):
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, weights_only=True)


def files(root, m, s):
    """From a checkpoint in the format torch. Chunks are numbered behind each other: all first chunks of
    all stages, then all second ones."""
    root, ranks = pathlib.Path(root), []
    for path in sorted(root.glob("*/mp_rank_*/model_optim_rng.pt")):
        tp, *rest = map(int, path.parent.name.split("_")[2:])
        pp = rest.pop(0) if s["pp"] > 1 else 0
        ep = rest.pop(0) if s["ep"] > 1 else 0
        content = load_rank(path)
        states = (
            [content["model"]] if s["vpp"] == 1 else [content[f"model{chunk}"] for chunk in range(s["vpp"])]
        )
        place = {"tp": tp, "pp": pp, "ep": ep, "etp": tp % s["etp"]}
        ranks.append({"place": place, "chunks": [{"state": state} for state in states]})
    layers = {}
    for rank in ranks:
        for v, chunk in enumerate(rank["chunks"]):
            local = {int(n.split(".")[2]) for n in chunk["state"] if n.startswith("decoder.layers.")}
            layers[v, rank["place"]["pp"]] = len(local)
    for rank in ranks:
        for v, chunk in enumerate(rank["chunks"]):
            first = sum(n for at, n in layers.items() if at < (v, rank["place"]["pp"]))
            chunk["layers"] = list(range(first, first + layers[v, rank["place"]["pp"]]))
    return gather(ranks, m, s)
