"""Real megatron-core on a CPU, for models of any description: builds them, saves them, loads ours.

    PYTHONPATH=.venv/megatron-core-0.19.2 python megatron_core_server.py

One line of JSON in, one out: {"model": {...}, "split": {...}, "steps": [...]}, and {"failed": [ranks]}
once the ranks of the split, forked for it, have ended. What a step does:

    {"do": "save", "to": F}          fill the model with values of its own; F/torch as Megatron-LM's
                                     --ckpt-format torch, F/live as `live`
    {"do": "load", "from": F}        strictly, from a checkpoint in the format torch
    {"do": "live", "to": F}          F/RANK.pt: the place of the rank, and of each of its chunks the
                                     state dict, the global numbers of its layers and which have experts
    {"do": "logits", "to": F}        F/RANK.pt: the place and the logits (no pipeline); each expert counts
    {"do": "upcycle", "dense": D, "from": F}   what megatron-core's own upcycling makes of the dense
                                     model in D, with F's routers, is what F holds; with "sets": "own"
                                     it is where tensor-parallel ranks cut what each of them has

Models and splits are dictionaries over the defaults below. Written for megatron-core 0.13 to 0.19.
"""

import argparse
import json
import multiprocessing.connection
import os
import pathlib
import sys
import tempfile
import types
import zlib

import megatron_core_cpu as cpu

import each_expert

MODEL = {
    "layers": 4,
    "hidden": 48,
    "ffn": 80,
    "heads": 8,
    "kv_heads": 4,
    "head_dim": 8,
    "vocab": 96,
    "positions": 64,
    "norm": "RMSNorm",
    "activation": "swiglu",  # geglu, gelu, squared_relu
    "bias": False,
    "qkv_bias": False,
    "qk_norm": False,
    "learned": False,
    "tied": False,
    "experts": 0,
    "expert_ffn": 0,  # 0: as ffn
    "top_k": 2,
    "pre_softmax": False,
    "layer_freq": 1,  # or a list
    "grouped": False,  # GroupedMLP, up to core 0.16
    "shared_ffn": 0,
    "shared_gate": False,
    "score": "softmax",
    "pre_softmax": False,
    "expert_bias": False,
    "scale": None,
    "groups": None,
    "group_topk": None,
    "rotary_percent": 1.0,
    "dtype": "bfloat16",
}
SPLIT = {"tp": 1, "pp": 1, "ep": 1, "etp": 0, "vpp": 1, "first": 0, "last": 0}
ITERATION = 7


def with_defaults(job):
    model, split = {**MODEL, **job["model"]}, {**SPLIT, **job["split"]}
    model["expert_ffn"] = model["expert_ffn"] or model["ffn"]
    split["etp"] = split["etp"] or split["tp"]
    return model, split


def world_size(split):
    """The fewest ranks of a stage that hold all of the dense part, and all of the experts."""
    in_stage = max(split["tp"], split["ep"] * split["etp"])
    return in_stage * split["pp"]


# ---- building ------------------------------------------------------------------------------------


def activation_of(kind):
    import torch

    def squared_relu(x):
        return torch.nn.functional.relu(x) ** 2

    silu, gelu = torch.nn.functional.silu, torch.nn.functional.gelu
    return {"swiglu": silu, "geglu": gelu, "gelu": gelu, "squared_relu": squared_relu}[kind]


def router_config(m):
    """Of the router and the shared expert, as TransformerConfig and Megatron-LM's arguments name it."""
    return {
        "moe_router_score_function": m["score"],
        "moe_router_pre_softmax": m["pre_softmax"],
        "moe_router_enable_expert_bias": m["expert_bias"],
        "moe_router_topk_scaling_factor": m["scale"],
        "moe_router_num_groups": m["groups"],
        "moe_router_group_topk": m["group_topk"],
        "moe_shared_expert_intermediate_size": m["shared_ffn"] or None,
        **({"moe_shared_expert_gate": True} if m["shared_gate"] else {}),
    }


def transformer_config(m, s):
    import torch
    from megatron.core.transformer.transformer_config import TransformerConfig

    dtype = getattr(torch, m["dtype"])
    uneven = {}
    if s["first"]:
        uneven["num_layers_in_first_pipeline_stage"] = s["first"]
    if s["last"]:
        uneven["num_layers_in_last_pipeline_stage"] = s["last"]
    experts = {}
    if m["experts"]:
        experts = {
            "num_moe_experts": m["experts"],
            "moe_router_pre_softmax": m["pre_softmax"],
            "moe_router_topk": m["top_k"],
            "moe_ffn_hidden_size": m["expert_ffn"],
            "moe_layer_freq": m["layer_freq"],
            "moe_grouped_gemm": m["grouped"],
            "moe_token_dispatcher_type": "allgather",
            **router_config(m),
        }
    return TransformerConfig(
        num_layers=m["layers"],
        hidden_size=m["hidden"],
        ffn_hidden_size=m["ffn"],
        num_attention_heads=m["heads"],
        num_query_groups=m["kv_heads"],
        kv_channels=m["head_dim"],
        gated_linear_unit=m["activation"] in ("swiglu", "geglu"),
        activation_func=activation_of(m["activation"]),
        normalization=m["norm"],
        add_bias_linear=m["bias"],
        add_qkv_bias=m["qkv_bias"],
        qk_layernorm=m["qk_norm"],
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bias_activation_fusion=False,
        masked_softmax_fusion=False,
        use_cpu_initialization=True,
        tensor_model_parallel_size=s["tp"],
        pipeline_model_parallel_size=s["pp"],
        virtual_pipeline_model_parallel_size=s["vpp"] if s["vpp"] > 1 else None,
        expert_model_parallel_size=s["ep"],
        expert_tensor_parallel_size=s["etp"],
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        **experts,
        **uneven,
    )


def build(m, s):
    """The chunks of this rank: one model, or as many as the pipeline is virtual."""
    import torch
    from megatron.core import parallel_state
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
    from megatron.core.models.gpt.gpt_model import GPTModel

    config, chunks = transformer_config(m, s), []
    for chunk in range(s["vpp"]):
        vp_stage = chunk if s["vpp"] > 1 else None
        at = {"ignore_virtual": False, "vp_stage": vp_stage}
        model = GPTModel(
            config=config,
            transformer_layer_spec=get_gpt_decoder_block_spec(
                config, use_transformer_engine=False, normalization=m["norm"], vp_stage=vp_stage
            ),
            vocab_size=m["vocab"],
            max_sequence_length=m["positions"],
            pre_process=parallel_state.is_pipeline_first_stage(**at),
            post_process=parallel_state.is_pipeline_last_stage(**at),
            position_embedding_type="learned_absolute" if m["learned"] else "rope",
            share_embeddings_and_output_weights=m["tied"],
            rotary_percent=m["rotary_percent"],
            vp_stage=vp_stage,
        )
        chunks.append(model.to(getattr(torch, m["dtype"])))
    return chunks


def place():
    from megatron.core import parallel_state

    return {
        "tp": parallel_state.get_tensor_model_parallel_rank(),
        "pp": parallel_state.get_pipeline_model_parallel_rank(),
        "ep": parallel_state.get_expert_model_parallel_rank(),
        "etp": parallel_state.get_expert_tensor_parallel_rank(),
    }


def layer_numbers(chunk):
    return [layer.layer_number - 1 for layer in chunk.decoder.layers]


def fill(chunks, m):
    """Values of which no two are in the same place anywhere: Megatron's own start is the same in every
    stage, and all ones in the norms. A tensor's values follow from its name with the global numbers of
    layer and expert in it, and from which shard of it this is."""
    import torch

    at = place()
    with torch.no_grad():
        for chunk in chunks:
            numbers = layer_numbers(chunk)
            biases = [each for each in chunk.named_buffers() if each[0].endswith("expert_bias")]
            for name, parameter in [*chunk.named_parameters(), *biases]:
                parts, shard = name.split("."), at["tp"]
                if parts[:2] == ["decoder", "layers"]:
                    parts[2] = f"global {numbers[int(parts[2])]}"
                if "experts" in parts:
                    parts.append(f"of {at['ep']}")
                    shard = at["etp"]
                if m["tied"] and name == "output_layer.weight":
                    parts = ["embedding", "word_embeddings", "weight"]
                if not getattr(parameter, "tensor_model_parallel", False):
                    shard = 0
                seed = zlib.crc32(f"{'.'.join(parts)}, shard {shard}".encode())
                drawn = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)) * 0.1
                is_norm = "norm" in name and name.endswith("weight")
                parameter.copy_(drawn + 1 if is_norm else drawn)


# ---- files ---------------------------------------------------------------------------------------


def rank_folder(s):
    """checkpointing.py, get_checkpoint_name"""
    at = place()
    name = f"mp_rank_{at['tp']:02d}" + (f"_{at['pp']:03d}" if s["pp"] > 1 else "")
    return name + (f"_{at['ep']:03d}" if s["ep"] > 1 else "")


def keys(s):
    return ["model"] if s["vpp"] == 1 else [f"model{chunk}" for chunk in range(s["vpp"])]


def training_args(m, s):
    """Of Megatron-LM's arguments those that describe the model, as validate_args leaves them."""
    import torch

    dtype = getattr(torch, m["dtype"])
    moe = {"num_experts": None, "moe_layer_freq": 1, "moe_router_topk": 2, "moe_ffn_hidden_size": None}
    if m["experts"]:
        moe = {
            "num_experts": m["experts"],
            "moe_layer_freq": m["layer_freq"],
            "moe_router_topk": m["top_k"],
            "moe_ffn_hidden_size": m["expert_ffn"],
        }
    return argparse.Namespace(
        num_layers=m["layers"],
        hidden_size=m["hidden"],
        ffn_hidden_size=m["ffn"],
        num_attention_heads=m["heads"],
        group_query_attention=m["kv_heads"] != m["heads"],
        num_query_groups=m["kv_heads"] if m["kv_heads"] != m["heads"] else 1,
        kv_channels=m["head_dim"],
        padded_vocab_size=m["vocab"],
        seq_length=m["positions"],
        max_position_embeddings=m["positions"],
        position_embedding_type="learned_absolute" if m["learned"] else "rope",
        add_position_embedding=True,  # whatever the type is, it stays at its default
        rotary_base=10000,
        rotary_percent=m["rotary_percent"],
        swiglu=m["activation"] == "swiglu",
        squared_relu=m["activation"] == "squared_relu",
        normalization=m["norm"],
        norm_epsilon=1e-5,
        add_bias_linear=m["bias"],
        add_qkv_bias=m["bias"] or m["qkv_bias"],
        qk_layernorm=m["qk_norm"],
        untie_embeddings_and_output_weights=not m["tied"],
        **({"gated_linear_unit": True} if m["activation"] == "geglu" else {}),
        **moe,
        moe_grouped_gemm=m["grouped"],
        moe_use_legacy_grouped_gemm=m["grouped"],
        **router_config(m),
        tensor_model_parallel_size=s["tp"],
        pipeline_model_parallel_size=s["pp"],
        virtual_pipeline_model_parallel_size=s["vpp"] if s["vpp"] > 1 else None,
        expert_model_parallel_size=s["ep"],
        expert_tensor_parallel_size=s["etp"],
        decoder_first_pipeline_num_layers=s["first"] or None,
        decoder_last_pipeline_num_layers=s["last"] or None,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        params_dtype=dtype,
    )


def save(chunks, m, s, out):
    import torch
    from megatron.core import parallel_state

    root = out / "torch"
    folder = root / f"iter_{ITERATION:07d}" / rank_folder(s)
    content = {"args": training_args(m, s), "checkpoint_version": 3.0, "iteration": ITERATION}
    content.update(zip(keys(s), (chunk.state_dict() for chunk in chunks)))
    # of the ranks that would write one file, one does
    if (
        parallel_state.get_data_parallel_rank() == 0
        or parallel_state.get_expert_data_parallel_rank() == 0
    ):
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(content, folder / "model_optim_rng.pt")
    (root / "latest_checkpointed_iteration.txt").write_text(str(ITERATION))
    live(chunks, out / "live")
    torch.distributed.barrier()


def live(chunks, out):
    import torch
    from megatron.core.transformer.moe.moe_layer import BaseMoELayer

    out.mkdir(parents=True, exist_ok=True)
    held = [
        {
            "state": {k: v for k, v in chunk.state_dict().items() if v is not None},
            "layers": layer_numbers(chunk),
            "moe": [isinstance(layer.mlp, BaseMoELayer) for layer in chunk.decoder.layers],
        }
        for chunk in chunks
    ]
    torch.save({"place": place(), "chunks": held}, out / f"{torch.distributed.get_rank()}.pt")


def read(root, s):
    """What Megatron-LM would load on this rank; torch's safe loader, with the Namespace let in."""
    import torch

    root = pathlib.Path(root)
    tracker = (root / "latest_checkpointed_iteration.txt").read_text().strip()
    folder = tracker if tracker == "release" else "iter_%07d" % int(tracker)
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(root / folder / rank_folder(s) / "model_optim_rng.pt", weights_only=True)


def load(chunks, s, root):
    content = read(root, s)
    numbered = {key for key in content if key.startswith("model")}
    assert numbered == set(keys(s)), (numbered, keys(s))
    for key, chunk in zip(keys(s), chunks):
        for name, value in content[key].items():
            own = chunk.state_dict().get(name)
            assert own is None or own.dtype == value.dtype, (name, own.dtype, value.dtype)
        print(key, chunk.load_state_dict(content[key], strict=True), flush=True)


# ---- judging -------------------------------------------------------------------------------------


def logits(chunks, m, s, out):
    import torch

    length = m["positions"] // 2
    ids = (torch.arange(length).reshape(1, length) * 13 + 5) % m["vocab"]
    positions = torch.arange(length).reshape(1, length)
    hidden_from = torch.triu(torch.ones(1, 1, length, length, dtype=torch.bool), diagonal=1)
    (model,) = chunks
    with torch.no_grad(), each_expert.chosen_by_megatron(chunks) as chosen:
        values = model.eval()(ids, positions, hidden_from)
    if any(".local_experts." in name for name, _ in model.named_parameters()):
        experts = each_expert.of_megatron(chunks, m["experts"], place()["ep"], s["ep"])
        each_expert.check(lambda: model(ids, positions, hidden_from), experts, chosen)
    out.mkdir(parents=True, exist_ok=True)
    torch.save({"place": place(), "logits": values}, out / f"{torch.distributed.get_rank()}.pt")


def local_cut(dense, m, scale):
    """Experts cut, as megatron-core does it, from the neurons that this tensor-parallel rank has."""
    import torch

    slices = m["ffn"] // m["expert_ffn"]
    made = {}
    for name, value in dense.items():
        at, _, kind = name.partition(".mlp.linear_fc")
        if kind not in ("1.weight", "2.weight"):
            continue
        matrices = value.chunk(2) if kind[0] == "1" else (value.T,)
        for e in range(m["experts"]):
            w = matrices[0].shape[0] // slices
            cut = [x[e % slices * w : (e % slices + 1) * w] * scale for x in matrices]
            full = cut[0].T if kind[0] == "2" else torch.cat(cut)
            made[f"{at}.mlp.experts.local_experts.{e}.linear_fc{kind}"] = full
    return made


def upcycle(chunks, m, s, dense_root, root, sets):
    import torch
    from megatron.core.transformer.moe.upcycling_utils import upcycle_state_dict

    slices = m["ffn"] // m["expert_ffn"]
    dense = build({**m, "experts": 0, "expert_ffn": m["ffn"]}, s)
    load(dense, s, dense_root)
    ours = {k: v for k, v in read(root, s)["model"].items() if v is not None}
    with torch.no_grad():  # it takes the first rows of its router, each for a group of experts
        for name, router in chunks[0].named_parameters():
            if name.endswith(".mlp.router.weight"):
                router[: m["experts"] // slices] = ours[name][::slices]
    theirs = {k: v for k, v in upcycle_state_dict(chunks, dense)["model"].items() if v is not None}
    assert theirs.keys() == ours.keys(), theirs.keys() ^ ours.keys()
    experts, other = 0, 0
    for name, value in theirs.items():
        experts += ".local_experts." in name
        same = torch.equal(value, ours[name]) and value.dtype == ours[name].dtype
        other += not same
        assert same or sets == "own" and ".local_experts." in name, name
    assert experts == m["layers"] * m["experts"] // s["ep"] * 2, experts
    if sets == "own":
        # of two ranks the first has its part of slice 0 in common with ours, the last of the last
        assert other == experts * (slices - 1) // slices, (other, experts)
        for name, value in local_cut(dense[0].state_dict(), m, slices ** (1 / 3)).items():
            assert torch.equal(value, theirs[name]), name


def rank_main(rank, job, rendezvous):
    import torch
    from megatron.core import parallel_state

    m, s = with_defaults(job)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", world_size=world_size(s), rank=rank
    )
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=s["tp"],
        pipeline_model_parallel_size=s["pp"],
        virtual_pipeline_model_parallel_size=s["vpp"] if s["vpp"] > 1 else None,
        expert_model_parallel_size=s["ep"],
        expert_tensor_parallel_size=s["etp"],
    )
    torch.manual_seed(1234)
    chunks = build(m, s)
    for step in job["steps"]:
        kind = step["do"]
        if kind == "save":
            fill(chunks, m)
            save(chunks, m, s, pathlib.Path(step["to"]))
        elif kind == "load":
            load(chunks, s, step["from"])
        elif kind == "live":
            live(chunks, pathlib.Path(step["to"]))
        elif kind == "logits":
            logits(chunks, m, s, pathlib.Path(step["to"]))
        elif kind == "upcycle":
            upcycle(chunks, m, s, step["dense"], step["from"], step.get("sets"))
        else:
            raise ValueError(kind)
    torch.distributed.destroy_process_group()


def run(job):
    """All ranks of one job; the first that fails ends the others. Returns the ranks that failed."""
    with tempfile.TemporaryDirectory(prefix="mgr-core-") as folder:
        context = multiprocessing.get_context("fork")
        ranks = [
            context.Process(target=rank_main, args=(rank, job, folder + "/rendezvous"))
            for rank in range(world_size(with_defaults(job)[1]))
        ]
        for process in ranks:
            process.start()
        waiting = list(ranks)
        while waiting:
            multiprocessing.connection.wait([process.sentinel for process in waiting])
            waiting = [process for process in waiting if process.exitcode is None]
            failed = [rank for rank, process in enumerate(ranks) if process.exitcode not in (None, 0)]
            if failed:
                for process in waiting:
                    process.terminate()
                for process in waiting:
                    process.join()
                return failed
    return []


def stand_in_for_grouped_gemm():
    """The package that GroupedMLP asks for: CUDA kernels that multiply the rows of each expert with its
    matrix."""
    import torch

    def gmm(rows, matrices, counts, trans_b=False):
        assert not trans_b
        parts = torch.split(rows, counts.tolist())
        return torch.cat([part @ matrix for part, matrix in zip(parts, matrices)])

    package = types.ModuleType("grouped_gemm")
    package.ops = types.SimpleNamespace(gmm=gmm)
    sys.modules[package.__name__] = package


def main():
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    stand_in_for_grouped_gemm()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the libraries print is no answer
    cpu.import_megatron()
    for line in sys.stdin:
        print(json.dumps({"failed": run(json.loads(line))}), file=answers, flush=True)


if __name__ == "__main__":
    main()
