"""Megatron-core's T5Model and CLIPViTModel, dense and with experts, in both formats and at TP 1 and 2: real
megatron-core 0.19.2 writes the sources, loads every output strictly and computes with it (megatron_core_kin.py)."""

import argparse
import itertools
import pathlib

import numpy as np
import pytest
import torch

import megatron_core_kin as core
import philox
import runner
import test_megatron_moe as moe
import upcycle_oracle as oracle

E, SEED = 4, 77
STACK = {"decoder": 0, "encoder": 1}
KINDS = {  # what each is, and whether megatron-core saves it as torch_dist, too
    "t5": dict(kind="t5", decoder=[0] * 3, encoder=[0] * 4, model={}),
    "rope": dict(
        kind="t5", decoder=[0] * 2, encoder=[0] * 3,
        model=dict(positions="rope", gated=True, norm="RMSNorm", bias=False, tied=False),
    ),
    "relative": dict(kind="t5", decoder=[0], encoder=[0] * 2, model=dict(positions="relative")),
    "clip": dict(kind="vit", decoder=[0] * 4, encoder=[], model={}),
    "siglip": dict(kind="vit", decoder=[0] * 2, encoder=[], model=dict(subtype="siglip")),
}  # fmt: skip
SECOND = {"decoder": "every-second", "encoder": "every-second"}


FORMATS = {name: ("torch", "torch_dist") if name in ("t5", "clip") else ("torch",) for name in KINDS}


@pytest.fixture(scope="module")
def judge(module_scratch):
    """judge(jobs): what megatron-core computes in each; None where it cannot."""
    server = moe.Core(moe.NEWEST, module_scratch / "core.log", core.__file__)
    count = itertools.count()

    def run(jobs):
        outs = [module_scratch / f"{next(count)}.pt" for _ in jobs]
        lines = [{key: str(v) if isinstance(v, pathlib.Path) else v for key, v in job.items()} for job in jobs]
        server.send([dict(job, out=str(out)) for job, out in zip(lines, outs)])
        return [torch.load(out) if out.exists() else None for out in outs]

    yield run
    server.stop()


@pytest.fixture(scope="module")
def dense(judge, module_scratch):
    """{name: (folder, what it computes)}; "tp2" is the gated one as two ranks save it."""
    jobs = [
        dict(job, tp=1, fill=True, save=module_scratch / name, formats=FORMATS[name]) for name, job in KINDS.items()
    ]
    jobs.append(dict(KINDS["rope"], tp=2, fill=True, save=module_scratch / "tp2", formats=FORMATS["t5"]))
    return {job["save"].name: (job["save"], value) for job, value in zip(jobs, judge(jobs))}


def convert(folder, name, source, status=0, np=2, env=None, **changes):
    out = folder / name
    changes = {"target__dtype": "source", "target__iteration": core.ITERATION, **changes}
    result = runner.upcycle(runner.write_config(folder / f"{name}.yaml", source, out, **changes), np=np, env=env)
    assert result.status == status, str(result)
    return out if status == 0 else result


def reshard(folder, name, source, fmt, tp=1, **changes):
    return convert(
        folder, name, source, mode="reshard", upcycle=None, target__format=f"megatron-{fmt}",
        target__tensor_parallel=tp, **{"target__names": "local", **changes},
    )  # fmt: skip


def upcycle(folder, name, source, fmt, tp=1, method="naive", freq="every-second", **changes):
    return convert(
        folder, name, source, target__format=f"megatron-{fmt}", target__tensor_parallel=tp, upcycle__method=method,
        upcycle__experts=E, upcycle__seed=SEED, upcycle__moe_layer_freq=freq, **{"target__names": "local", **changes},
    )  # fmt: skip


def weights(out, rank=0):
    file = next(pathlib.Path(out).glob(f"iter_*/mp_rank_{rank:02d}/model_optim_rng.pt"))
    return {k: v for k, v in torch.load(file, weights_only=False)["model"].items() if isinstance(v, torch.Tensor)}


def same(a, b):
    a, b = weights(a), weights(b)
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name][: core.VOCAB], b[name][: core.VOCAB]), name  # behind it is padding


def bits(words, job, stack):
    n = len(job[stack])
    return {"every-second": [i % 2 for i in range(n)], "1": [1] * n, "last-half": [int(i >= n - n // 2) for i in range(n)]}[
        words
    ]


def of_experts(name, freq, **more):
    job = KINDS[name]
    layers = {stack: bits(freq, job, stack) for stack in ("decoder", "encoder")}
    return {**job, **layers, "experts": E, **more}


@pytest.mark.parametrize("name", KINDS)
def test_there_and_back(dense, module_scratch, name):
    """Both formats of megatron-core, and TP 2 in between, are the same tensors; second names are written, too."""
    source, folder = dense[name][0], module_scratch / f"back-{name}"
    folder.mkdir()
    for fmt in FORMATS[name]:
        two = reshard(folder, f"{fmt}-two", source / fmt, "torch", tp=2)
        dist = reshard(folder, f"{fmt}-dist", two, "dist", tp=2)
        same(reshard(folder, f"{fmt}-one", dist, "torch"), source / "torch")


def test_as_two_ranks_save_it(dense, module_scratch):
    source = dense["tp2"][0]
    one = reshard(module_scratch, "of-torch", source / "torch", "torch")
    same(one, reshard(module_scratch, "of-dist", source / "torch_dist", "torch"))
    two = weights(source / "torch", 0), weights(source / "torch", 1)
    kv = "decoder.layers.1.cross_attention.linear_kv.weight"
    assert torch.equal(weights(one)[kv], torch.cat([half[kv] for half in two]))
    proj = "decoder.layers.1.cross_attention.linear_proj.weight"
    assert torch.equal(weights(one)[proj], torch.cat([half[proj] for half in two], dim=1))
    fc1 = "encoder.layers.2.mlp.linear_fc1.weight"
    halves = [half[fc1].chunk(2) for half in two]
    assert torch.equal(weights(one)[fc1], torch.cat([h[0] for h in halves] + [h[1] for h in halves]))


def test_megatron_core_loads_all_of_it_and_computes_the_same(judge, dense, module_scratch):
    """Strictly, in each format at TP 1 and 2; naive copies are the dense model, and each expert alone counts."""
    folder, jobs = module_scratch / "strict", {}
    folder.mkdir()
    for name, job in KINDS.items():
        source, freq, tps = dense[name][0] / "torch", "last-half" if job["kind"] == "vit" else "every-second", (1, 2)
        if name in ("t5", "rope", "clip"):
            two = {f: reshard(folder, f"{name}-{f}", source, f, tp=2) for f in ("torch", "dist")}
            jobs[name, "dense", 2] = {**job, "tp": 2, **two}
        else:
            tps = (2,)
        etp = {} if name == "rope" else {"target__expert_tensor_parallel": 1}  # their experts have biases
        padded = {"target__make_vocab_size_divisible_by": 64}
        dist = upcycle(folder, f"{name}-moe-dist", source, "dist", 2, freq=freq, **padded)
        for tp in tps:
            mine = upcycle(folder, f"{name}-moe{tp}", source, "torch", tp, freq=freq, **etp, **{k: 128 // tp for k in padded})
            jobs[name, "naive", tp] = of_experts(name, freq, tp=tp, torch=mine, dist=dist, vocab=128, each=tp == 1)
    for name in ("t5", "clip"):  # all layers: stacked keys
        source = dense[name][0]
        mine = upcycle(folder, f"{name}-all", source / "torch", "torch", method="drop", freq="1")
        dist = upcycle(folder, f"{name}-all-dist", source / "torch_dist", "dist", method="drop", freq="1")
        jobs[name, "drop", 1] = of_experts(name, "1", tp=1, torch=mine, dist=dist)
    for (name, what, tp), made in zip(jobs, judge(list(jobs.values()))):
        if name == "relative":  # its attention is Transformer Engine's alone
            assert made is None
            continue
        change = (made - dense[name][1]).abs().max() / dense[name][1].abs().max()
        print(f"{name} {what} TP{tp} {change:.1e}")
        assert change > 1e-3 if what == "drop" else change < 1e-6, (name, what, tp)


def test_drop_is_the_contract_with_the_stack_in_the_key(dense, module_scratch):
    """Of either format, in any split and memory, over any ranks: the same bytes, from the stream of each stack."""
    source, drop = dense["t5"][0], dict(method="drop", upcycle__ratio=0.5)
    out = upcycle(module_scratch, "drop", source / "torch", "torch", **drop)
    model, made = weights(source / "torch"), weights(out)
    for stack, layers in (("decoder", (1,)), ("encoder", (1, 3))):
        for layer in layers:
            key, at = STACK[stack] << 16 | layer, f"{stack}.layers.{layer}.mlp."
            up, down = (model[at + f"linear_fc{i}.weight"].numpy() for i in (1, 2))
            for e in range(E):
                want, _ = oracle.contract_expert({"gate": up, "up": up, "down": down}, SEED, key, e, 0.5)
                chosen = philox.sample(SEED, philox.SAMPLE, key, e, core.FFN, core.FFN // 2)
                got = [made[at + f"experts.local_experts.{e}.linear_fc{i}.weight"].numpy() for i in (1, 2)]
                assert np.array_equal(np.flatnonzero((got[0] != up).any(axis=1)), chosen)
                assert np.abs(got[0] - want["up"]).max() < 1e-5 and np.abs(got[1] - want["down"]).max() < 1e-5
    other = module_scratch / "other"
    other.mkdir()
    two = reshard(other, "two", source / "torch_dist", "torch", tp=2)
    again = upcycle(other, "one", two, "torch", np=3, memory_per_rank="64MiB", env={"MGR_UNIT_BYTES": "2KiB"}, **drop)
    assert weights(again).keys() == made.keys()
    for name, value in weights(again).items():
        assert torch.equal(value, made[name]), name


# ---- without megatron-core ----------------------------------------------------------------------------------------


def t5_by_hand():
    """The tensors of a tiny T5Model with its second names."""
    h, f, inner, v = 16, 24, 32, 30
    shapes = {"embedding.word_embeddings.weight": (32, h), "lm_head.output_layer.bias": (32,)}
    shapes |= {"embedding.position_embeddings.weight": (8, h)}
    for stack, layers in (("encoder", 2), ("decoder", 1)):
        for at in (f"{stack}.layers.{i}." for i in range(layers)):
            linears = {"self_attention.linear_qkv": (3 * inner, h), "self_attention.linear_proj": (h, inner)}
            linears |= {"mlp.linear_fc1": (f, h), "mlp.linear_fc2": (h, f)}
            norms = ["input_layernorm", "pre_mlp_layernorm"]
            if stack == "decoder":
                linears |= {"cross_attention.linear_q": (inner, h), "cross_attention.linear_kv": (2 * inner, h)}
                linears |= {"cross_attention.linear_proj": (h, inner)}
                norms.append("pre_cross_attn_layernorm")
            for name, shape in linears.items():
                shapes |= {at + name + ".weight": shape, at + name + ".bias": shape[:1]}
            shapes |= {at + norm + end: (h,) for norm in norms for end in (".weight", ".bias")}
        shapes |= {f"{stack}.final_layernorm{end}": (h,) for end in (".weight", ".bias")}
    torch.manual_seed(5)
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    tensors["embedding.word_embeddings.weight"][v:] = tensors["lm_head.output_layer.bias"][v:] = 0
    tensors["position_embeddings.weight"] = tensors["embedding.position_embeddings.weight"]
    tensors["output_layer.bias"] = tensors["lm_head.output_layer.bias"]
    return tensors


ARGS = dict(
    hidden_size=16, ffn_hidden_size=24, num_attention_heads=4, kv_channels=8, encoder_num_layers=2, num_layers=2,
    vocab_size=30, make_vocab_size_divisible_by=8, add_bias_linear=True, normalization="LayerNorm",
    tensor_model_parallel_size=1, pipeline_model_parallel_size=1, position_embedding_type="learned_absolute",
)  # fmt: skip


def write(root, tensors, rank="mp_rank_00", **args):
    folder = root / f"iter_{core.ITERATION:07d}" / rank
    folder.mkdir(parents=True, exist_ok=True)
    content = {"args": argparse.Namespace(**{**ARGS, **args}), "checkpoint_version": 3.0, "iteration": core.ITERATION}
    torch.save({**content, "model": tensors}, folder / "model_optim_rng.pt")
    (root / "latest_checkpointed_iteration.txt").write_text(str(core.ITERATION))
    return root


def test_by_hand_through_both_formats(scratch):
    """Padding for two ranks comes and goes; what an expert is made of is its stack's, in the names of either spec."""
    tensors = t5_by_hand()
    source = write(scratch / "t5", tensors)
    two = reshard(scratch, "two", source, "torch", tp=2, target__names="te")
    assert weights(two)["embedding.word_embeddings.weight"].shape == (16, 16)
    te = "decoder.layers.0.self_attention.linear_qkv.layer_norm_weight"
    assert torch.equal(weights(two)[te], tensors["decoder.layers.0.input_layernorm.weight"])
    dist = reshard(scratch, "dist", two, "dist", tp=2, target__dist_keys="per-layer", target__names="te")
    back = weights(reshard(scratch, "back", dist, "torch"))
    assert back.keys() == tensors.keys()
    for name, tensor in back.items():
        assert torch.equal(tensor, tensors[name]), name
    made = upcycle(scratch, "moe", two, "dist", freq="none", upcycle__encoder_moe_layer_freq="1", target__names="te")
    made = weights(reshard(scratch, "made", made, "torch"))
    for e in range(E):
        at = f"encoder.layers.1.mlp.experts.local_experts.{e}.linear_fc2.weight"
        assert torch.equal(made[at], tensors["encoder.layers.1.mlp.linear_fc2.weight"])
    assert torch.equal(made["decoder.layers.0.mlp.linear_fc1.bias"], tensors["decoder.layers.0.mlp.linear_fc1.bias"])
    assert torch.equal(made["encoder.layers.1.pre_mlp_layernorm.bias"], tensors["encoder.layers.1.pre_mlp_layernorm.bias"])


def refused(folder, source, *words, **changes):
    changes = {"mode": "reshard", "upcycle": None, "target__format": "megatron-torch", "target__dtype": "source", **changes}
    result = runner.upcycle(runner.write_config(folder / "no.yaml", source, folder / "no", **changes), np=1)
    assert result.status in (runner.DATA, runner.CONFIG) and len(result.errors()) == 1, str(result)
    for word in words:
        assert word in " ".join(result.err.split()), (word, str(result))
    assert not (folder / "no").exists()


def test_refusals(scratch):
    tensors = t5_by_hand()
    source = write(scratch / "t5", tensors)
    hold = "target formats that hold this model: megatron-torch, megatron-dist"
    for fmt in ("hdf5", "huggingface", "moe-recipes", "deepspeed"):
        refused(scratch, source, f"'{fmt}' cannot hold Megatron-Core's T5", hold, target__format=fmt)
    refused(scratch, source, "one pipeline stage", target__pipeline_parallel=2)
    refused(scratch, source, "num_attention_heads (4) does not split over 3", target__tensor_parallel=3)
    refused(scratch, source, "HybridModel cannot hold", target__format="megatron-dist", target__dist_keys="hybrid")
    dist = reshard(scratch, "dist", source, "dist")
    refused(scratch, dist, "its optimizer is not read", "source.weights: copies", source__weights="masters")
    keep = dict(target__format="megatron-dist", target__iteration=1, target__optimizer="keep", source__weights="masters")
    refused(scratch, dist, "its optimizer is not read", "target.optimizer: none", **keep)

    def changed(name, words, edit, rank="mp_rank_00", **args):
        mine = dict(tensors)
        edit(mine)
        refused(scratch, write(scratch / name, mine, rank, **args), *words)

    def half(mine):
        for name in [name for name in mine if name.startswith("encoder.")]:
            del mine[name]

    changed("half", ["is of a T5", "no layers of its encoder"], half)
    changed("more", ["unknown tensor", "ls1"], lambda mine: mine.update({"decoder.layers.0.ls1": torch.ones(16)}))
    changed("twice", ["output_layer.bias"], lambda mine: mine.update({"output_layer.bias": torch.ones(32)}))
    changed("shape", ["another shape"], lambda mine: mine.update({"encoder.layers.1.input_layernorm.bias": torch.ones(17)}))
    changed("cross", ["unknown tensor"], lambda mine: mine.update({"encoder.layers.0.cross_attention.linear_q.bias": torch.ones(32)}))
    changed("one", ["1 tensors", "2 are needed"], lambda mine: mine.pop("encoder.layers.0.self_attention.linear_qkv.bias"))
    changed("final", ["0 tensors", "decoder.final"], lambda mine: mine.pop("decoder.final_layernorm.weight"))
    changed("short", ["linear_kv"], lambda mine: mine.pop("decoder.layers.0.cross_attention.linear_kv.weight"))
    changed("radio", ["a RADIO vision transformer"], lambda mine: mine.update({"embedder.weight": torch.ones(4, 4)}))

    def many(mine):
        mine.update({f"{stack}.layers.{n}.mlp.linear_fc1.bias": torch.ones(1) for stack in STACK for n in range(2, 4096)})

    changed("many", ["8192 layers", "more than 4096"], many)
    stages = dict(pipeline_model_parallel_size=2)
    write(scratch / "stages", tensors, "mp_rank_00_000", **stages)
    refused(scratch, write(scratch / "stages", tensors, "mp_rank_00_001", **stages), "a T5 in 2 pipeline stages")
