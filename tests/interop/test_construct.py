"""Experts of any width, cut and scaled, against the rules restated in numpy (upcycle_oracle): what is
not drawn is equal bit for bit; and the same bytes from any split, by any ranks, memory and CPU path."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import harness
import megatron_like as ml
import philox
import runner
import upcycle_oracle as oracle

SHAPE = ml.Shape(layers=2, hidden=64, ffn=96, heads=4, kv_heads=4, head_dim=16, vocab=128)
SEED = 77
SLICES = dict(slices=4, experts=8, top_k=4)
# {name: what of `upcycle:` is not as usual}
CASES = {
    "slices, published": dict(SLICES, ratio=0.5, scale="published"),
    "slices, exact, groups": dict(SLICES, method="naive", scale="exact", router="virtual-groups"),
    "Qwen2": dict(expert_width=28, experts=7, top_k=2, ratio=0.5, cut="shuffled"),
    "Qwen2, narrow": dict(expert_width=24, experts=8, top_k=2, method="naive", cut="shuffled", scale="exact"),
    "any width": dict(expert_width=25, experts=5, top_k=2, ratio=0.25, shuffle=True),
    "wider": dict(expert_width=250, experts=3, top_k=1, ratio=0.5, scale="exact"),
}


def changes(how):
    how = dict(how)
    if how.get("method") == "naive":
        how["ratio"] = None
    return {"upcycle__seed": SEED, **{"upcycle__" + key: value for key, value in how.items()}}


def run(scratch, source, how, name, np=2, options=(), **more):
    out = scratch / f"Mixtral-{name}"
    more = {"target__dtype": "source", **changes(how), **more}
    config = runner.write_config(scratch / f"{name}.yaml", source, out, **more)
    result = runner.upcycle(config, np=np, options=options)
    assert result.status == 0, str(result)
    return out, result


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dense(request, module_scratch):
    model = ml.dense_model(SHAPE, seed=4, dtype=request.param)
    return model, ml.save(model, SHAPE, module_scratch / str(request.param), 2, 1), request.param


def rounded(values, dtype):
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(dtype).float().numpy()


@pytest.mark.parametrize("name", CASES)
def test_against_the_rule(scratch, dense, name):
    how, (model, source, dtype) = CASES[name], dense
    tensors = harness.read_output(run(scratch, source, how, "x")[0])
    width = how.get("expert_width") or SHAPE.ffn // how["slices"]
    factors = oracle.scale_factors(
        how.get("scale", "none"), SHAPE.ffn, width, how["experts"], how["top_k"]
    )
    ratio = 0 if how.get("method") == "naive" else how["ratio"]
    z = []
    for layer in range(SHAPE.layers):
        ffn = harness.dense_ffn(model, layer)
        for e in range(how["experts"]):
            want, done = oracle.built_expert(
                ffn, SEED, layer, e, width, ratio, factors, how.get("cut", "slices"), how.get("shuffle", False)
            )
            got = harness.expert_ffn(tensors, layer, e)
            for matrix in oracle.MATRICES:
                mine, theirs = (oracle.neurons(matrix, x[matrix]) for x in (got, want))
                kept = np.setdiff1d(np.arange(width), done["chosen"])
                assert mine.shape == theirs.shape == (width, SHAPE.hidden)
                assert (mine[kept] == rounded(theirs[kept], dtype)).all(), (layer, e, matrix)
                near = 1e-5 if dtype is torch.float32 else 2**-7
                off = np.abs(mine[done["chosen"]] - theirs[done["chosen"]])
                assert off.max(initial=0) <= near * np.abs(theirs).max(), (layer, e, matrix)
                if len(done["chosen"]):
                    lost = oracle.neurons(matrix, ffn[matrix])[done["origin"][done["chosen"]]]
                    mean, std = oracle.statistics(lost)
                    z.append((mine[done["chosen"]] / factors[matrix] - mean) / std)
    if z:
        assert oracle.ks_statistic(np.concatenate([part.ravel() for part in z])) < oracle.ks_limit()


@pytest.mark.parametrize("name", CASES)
def test_each_neuron_as_often_as_the_rule_has_it(name):
    """Qwen2's copies hold every neuron once; only the rest of the last is in no expert."""
    how, n = CASES[name], 96
    width = how.get("expert_width") or n // how["slices"]
    cut, shuffle = how.get("cut", "slices"), how.get("shuffle", False)
    all_of = np.concatenate(
        [oracle.cut_neurons(SEED, 1, e, n, width, cut, shuffle) for e in range(how["experts"])]
    )
    for first in range(0, len(all_of) - n + 1, n):
        if not shuffle:
            assert sorted(all_of[first : first + n]) == list(range(n))
    assert np.bincount(all_of, minlength=n).max() - np.bincount(all_of, minlength=n).min() <= 1


VARIANTS = [  # each pair of a case and a way of running it is covered in a few runs
    dict(tp=1, np=1),
    dict(tp=2, np=3, memory_per_rank="64MiB"),
    dict(tp=4, np=2, options=["--simd", "scalar"]),
]


@pytest.fixture(scope="module")
def splits(module_scratch):
    size = dict(layers=2, hidden=64, ffn=96, heads=4, kv_heads=4, vocab=128)
    return {tp: runner.synth(module_scratch / f"tp{tp}", tp=tp, **size) for tp in (1, 2, 4)}


@pytest.mark.parametrize("name", CASES)
def test_the_same_bytes_from_any_split(scratch, splits, name):
    seen = []
    for i, variant in enumerate(VARIANTS):
        variant = dict(variant)
        source = splits[variant.pop("tp")]
        out, _ = run(scratch, source, CASES[name], f"v{i}", model__vocab_size=128, **variant)
        seen.append(runner.tensor_sums(out))
    assert seen[0] == seen[1] == seen[2]


def router_of(out, layer):
    return harness.read_output(out)[harness.ROUTER % layer]


def test_virtual_groups_are_rows_of_a_normal_router(scratch, splits):
    how = dict(SLICES, method="naive", router="virtual-groups", router_std=0.5)
    out, _ = run(scratch, splits[1], how, "x", target__dtype="float32")
    for layer in range(2):
        rows = np.stack([philox.normals(SEED, philox.ROUTER, layer, g, 0, 64) for g in range(2)]) * 0.5
        assert np.abs(router_of(out, layer).numpy() - np.repeat(rows, 4, axis=0)).max() < 1e-6


def test_noise_breaks_the_ties_of_virtual_groups(scratch, splits):
    how = dict(SLICES, method="naive", router="virtual-groups", router_std=0.5, router_noise=0.1)
    out, result = run(scratch, splits[1], how, "x", target__dtype="float32")
    assert "have noise of 0.1 of their std" in " ".join(result.out.split())
    for layer in range(2):
        for e in range(8):
            row = philox.normals(SEED, philox.ROUTER, layer, e // 4, 0, 64) * 0.5
            noise = philox.normals(SEED, philox.ROUTER_NOISE, layer, e, 0, 64) * 0.05 * (e % 4 > 0)
            assert np.abs(router_of(out, layer)[e].numpy() - row - noise).max() < 1e-6


def test_zeros_and_a_file(scratch, splits):
    how = dict(experts=4, top_k=2, method="naive")
    out, _ = run(scratch, splits[1], dict(how, router="zeros"), "zeros")
    assert not router_of(out, 0).any() and not router_of(out, 1).any()
    given = {f"model.layers.{i}.mlp.gate.weight": torch.randn(4, 64) for i in range(2)}
    save_file(given, scratch / "rows.safetensors")
    how = dict(how, router="file", router_file=str(scratch / "rows.safetensors"))
    for i, np_ in enumerate((1, 3)):
        out, result = run(scratch, splits[2], how, f"file{i}", np=np_)
        for layer in range(2):
            rows = given[f"model.layers.{layer}.mlp.gate.weight"].bfloat16()
            assert harness.same_bits(router_of(out, layer), rows)
    import h5py

    with h5py.File(out / runner.LEDGER) as ledger:
        norms = given["model.layers.1.mlp.gate.weight"].bfloat16().float().norm(dim=1)
        assert np.allclose(ledger["router/norm"][1], norms.numpy(), rtol=1e-5)


FILES = {
    "no router of layer 1": lambda t: {"model.layers.0.mlp.gate.weight": t},
    "two routers of layer 0": lambda t: {"model.layers.0.mlp.gate.weight": t, "layers.0.router": t + 1},
    "no matrix of 4 experts x 64": lambda t: {f"layers.{i}.router": t[:3] + i for i in range(2)},
    "of no layer with experts": lambda t: {f"layers.{i}.router": t + i for i in range(3)},
    "not finite": lambda t: {f"layers.{i}.router": t / 0 + i for i in range(2)},
}


@pytest.mark.parametrize("why", FILES)
def test_files_that_are_no_routers_are_refused(scratch, splits, why):
    save_file(FILES[why](torch.randn(4, 64)), scratch / "rows.safetensors")
    refused(scratch, splits[1], dict(experts=4, router="file", router_file=str(scratch / "rows.safetensors")), why)


def refused(scratch, source, how, why):
    config = runner.write_config(scratch / "run.yaml", source, scratch / "Mixtral-x", **changes(how))
    result = runner.upcycle(config, np=2)
    assert result.status != 0 and len(result.errors()) == 1 and why in result.err, str(result)
    assert not (scratch / "Mixtral-x").exists()


REFUSED = [
    (dict(slices=5, experts=5), "does not divide the 96 neurons"),
    (dict(slices=4, expert_width=24), "say the same"),
    (dict(cut="shuffled", shuffle=True), "shuffles the neurons already"),
    (dict(router="virtual-groups"), "no whole number of copies"),
    (dict(router="virtual-groups", slices=4, experts=6), "no whole number of copies"),
    (dict(router="virtual-groups", expert_width=25, experts=8), "no whole number of copies"),
    (dict(router="file"), "'upcycle.router_file' names none"),
    (dict(router_file="/nowhere"), "'upcycle.router_file' is for router 'file'"),
    (dict(scale="double"), "must be none, published or exact"),
    (dict(slices=4, router_pre_softmax=True), "softmax before top-k"),
]


@pytest.mark.parametrize("how,why", REFUSED, ids=lambda x: x if isinstance(x, str) else None)
def test_what_makes_no_sense_is_refused(scratch, splits, how, why):
    refused(scratch, splits[1], how, why)


def test_a_scaled_value_that_float16_cannot_hold(scratch):
    """Nothing is drawn: it is the scale alone."""
    dense = runner.synth_folder(scratch / "dense")
    tensors = load_file(dense / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][3, 5] = 30000.0
    save_file(tensors, dense / "model.safetensors", metadata={"format": "pt"})
    how = dict(SLICES, method="naive", scale="exact")
    config = runner.write_config(
        scratch / "run.yaml", dense, scratch / "Mixtral-x", target__dtype="float16", **changes(how)
    )
    result = runner.upcycle(config, np=2)
    assert result.status != 0 and "float16 cannot hold" in result.err, str(result)
    assert not (scratch / "Mixtral-x").exists()


def test_the_rest_is_stated(scratch, splits):
    out, result = run(scratch, splits[1], CASES["Qwen2"], "x")
    said = " ".join(result.out.split())
    assert "28 of the FFN's 96 neurons each, of shuffled copies: 3 copies of the FFN, of which the last leaves 92" in said
    config = json.loads((out / runner.MANIFEST).read_text())["config"]
    assert "cut: shuffled" in config
