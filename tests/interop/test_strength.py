"""How much of an expert is drawn anew, by layer and by matrix, and from what: rules restated in numpy."""

import json

import h5py
import numpy as np
import pytest

import harness
import megatron_like as ml
import philox
import runner
import upcycle_oracle as oracle

SHAPE = ml.Shape(layers=3, hidden=64, ffn=90, heads=4, kv_heads=4, head_dim=16, vocab=128)
SEED, EXPERTS = 91, 3
# {name: what of `upcycle:` is not as usual}
CASES = {
    "linear": dict(layer_ratio="0.2 to 0.7"),
    "a list": dict(layer_ratio="0, 0.5,1"),
    "by matrix": dict(ratio=0.8, matrix_ratio="1, 0.5,0", index_sets="independent"),
    "both": dict(layer_ratio="0.9 to 0.1", matrix_ratio="0.3,1,0.5", index_sets="independent"),
    "noise": dict(method="noise", layer_ratio="0.1,0.2,0.3", noise_std=0.5),
    "centred": dict(ratio=0.5, redraw_mean="zero"),
    "fixed": dict(ratio=0.5, redraw_std=0.3),
    "0.02 about zero": dict(ratio=0.5, redraw_mean="zero", redraw_std=0.02),
}


def ratios(how):
    """[layer][matrix]"""
    text = how.get("layer_ratio")
    if text is None:
        rows = [how["ratio"]] * SHAPE.layers
    elif " to " in text:
        first, last = map(float, text.split(" to "))
        rows = [first + (last - first) * layer / (SHAPE.layers - 1) for layer in range(SHAPE.layers)]
    else:
        rows = [float(part) for part in text.split(",")]
    factors = [float(part) for part in how.get("matrix_ratio", "1,1,1").split(",")]
    return [[row * factor for factor in factors] for row in rows]


def wanted(dense, how, layer, expert):
    """({matrix: neurons as rows}, {matrix: S}, {matrix: (mean, std)})"""
    n, hidden = dense["gate"].shape
    independent, noise = how.get("index_sets") == "independent", how.get("method") == "noise"
    rows, sets, law = {}, {}, {}
    for i, name in enumerate(oracle.MATRICES):
        count = int(ratios(how)[layer][i] * n)
        sets[name] = oracle.contract_sets(SEED, layer, expert, n, count, independent)[name] if count else np.arange(0)
        rows[name] = oracle.neurons(name, dense[name]).astype(np.float64)
        if not count:
            continue
        purpose = (oracle._NOISE if noise else oracle._VALUES)[name]
        z = philox.normals(SEED, purpose, layer, expert, 0, count * hidden).reshape(count, hidden)
        mean, std = oracle.statistics(rows[name][sets[name]])
        mean, std = 0 if how.get("redraw_mean") == "zero" else mean, how.get("redraw_std") or std
        if noise:
            rows[name][sets[name]] += how["noise_std"] * z
        else:
            law[name] = mean, std
            rows[name][sets[name]] = mean + std * z
    return rows, sets, law


@pytest.fixture(scope="module")
def dense(module_scratch):
    import torch

    model = ml.dense_model(SHAPE, seed=5, dtype=torch.float32)
    return model, {tp: ml.save(model, SHAPE, module_scratch / f"tp{tp}", tp, 1) for tp in (1, 2)}


def run(scratch, source, how, name="out", **more):
    how = {"ratio": None, "experts": EXPERTS, "seed": SEED, **how}
    return harness.construct(scratch, source, how, name, **{"model__vocab_size": 128, **more})


@pytest.mark.parametrize("name", CASES)
def test_against_the_rule(scratch, dense, name):
    how, (model, sources) = CASES[name], dense
    out, result = run(scratch, sources[1], how)
    tensors = harness.read_output(out)
    with h5py.File(out / runner.LEDGER) as ledger:
        mean, std, selected = (ledger["experts/" + key][()] for key in ("mean", "std", "selected"))
        said = np.array(json.loads(ledger["run"][()])["wanted"])
    for layer in range(SHAPE.layers):
        for e in range(EXPERTS):
            rows, sets, law = wanted(harness.dense_ffn(model, layer), how, layer, e)
            got = harness.expert_ffn(tensors, layer, e)
            for i, matrix in enumerate(oracle.MATRICES):
                mine, chosen = oracle.neurons(matrix, got[matrix]), sets[matrix]
                kept = np.setdiff1d(np.arange(SHAPE.ffn), chosen)
                assert (mine[kept] == rows[matrix][kept].astype(np.float32)).all(), (layer, e, matrix)
                assert np.abs(mine - rows[matrix]).max() < 1e-5
                assert selected[layer, e, i] == said[layer][i] == len(chosen)
                if matrix in law:
                    assert np.allclose((mean[layer, e, i], std[layer, e, i]), law[matrix], rtol=1e-5, atol=1e-9)
    if name not in ("both", "noise", "centred"):
        return
    again, _ = run(scratch, sources[2], how, "again", np=3, memory_per_rank=runner.LITTLE_MEMORY)
    assert runner.tensor_sums(again) == runner.tensor_sums(out)


@pytest.mark.parametrize("name", ["linear", "both", "centred"])
def test_those_who_look_back_understand_it(scratch, dense, name):
    import sys

    out, _ = run(scratch, dense[1][2], CASES[name])
    found = runner.run([runner.program("mgr-verify"), out])
    assert found.status == 0 and "no two alike" in found.out, str(found)
    found = runner.upcycle(scratch / "out.yaml", np=2, options=["--verify"])
    assert found.status == 0, str(found)
    page = runner.run([sys.executable, runner.ROOT / "tools" / "report", out, "-o", scratch / "page.html"])
    assert page.status == 0 and " 0 failed" in page.out, str(page)


REFUSED = [
    (dict(layer_ratio="0.5,0.5"), "for each of the 3 layers"),
    (dict(layer_ratio="0.5,0.5,1.5"), "within 0 .. 1"),
    (dict(layer_ratio="0.001 to 0.5"), "at least one of 90 neurons"),
    (dict(layer_ratio="0.1 to 0.5", ratio=0.5), "say the same"),
    (dict(matrix_ratio="1,0.5,1"), "index_sets: independent"),
    (dict(matrix_ratio="1,0.5"), "three numbers"),
    (dict(method="naive", layer_ratio="0.1 to 0.5"), "is for method 'drop' or 'noise'"),
    (dict(method="noise", redraw_mean="zero"), "is for method 'drop'"),
]


@pytest.mark.parametrize("how,why", REFUSED, ids=[why for _, why in REFUSED])
def test_what_makes_no_sense_is_refused(scratch, dense, how, why):
    out, result = run(scratch, dense[1][1], how, status=78)
    assert len(result.errors()) == 1 and why in result.err, str(result)
    assert not out.exists()
