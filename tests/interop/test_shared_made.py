"""A shared expert that is made of the dense FFN: the whole of it, with half the weight, or some slices. The rule in
numpy; the same bytes from any split, by any ranks; real Qwen2-MoE, GLM-4.5, Granite and megatron-core judge step 0
in test_step_zero."""

import json

import numpy as np
import pytest
import torch

import harness
import megatron_like as ml
import runner
import upcycle_oracle as oracle
from harness import construct as run

SHAPE = ml.Shape(layers=2, hidden=64, ffn=96, heads=4, kv_heads=4, head_dim=16, vocab=128)
SEED = 31
# {name: (what of `upcycle:` is not as usual, neurons of the shared expert, its down, neurons set aside)}
CASES = {
    "whole": (dict(shared_expert="whole", ratio=0.5, experts=3), 96, 1, 0),
    "half": (dict(shared_expert="half", ratio=0.25, experts=4, slices=2, scale="exact"), 96, 0.5, 0),
    "half, drop": (dict(shared_expert="half", ratio=0.5, experts=2), 96, 0.5, 0),
    "half, noise": (dict(shared_expert="half", method="noise", ratio=0.5, experts=2), 96, 0.5, 0),
    "slices": (
        dict(shared_expert="slices", slices=4, shared_slices=1, experts=6, top_k=3, ratio=0.5, scale="exact",
             router="virtual-groups"), 24, 1, 24,
    ),
    "half of the slices": (dict(shared_expert="slices", slices=2, method="naive", experts=3), 48, 1, 48),
    "slices, Qwen2": (
        dict(shared_expert="slices", slices=6, shared_slices=2, experts=5, ratio=0.5, cut="shuffled"), 32, 1, 32,
    ),
    "slices, shuffled": (
        dict(shared_expert="slices", slices=3, shared_slices=2, experts=3, method="naive", shuffle=True), 64, 1, 64,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def dense(module_scratch):
    model = ml.dense_model(SHAPE, seed=6, dtype=torch.float32)
    return model, {tp: ml.save(model, SHAPE, module_scratch / f"tp{tp}", tp, 1) for tp in (1, 2, 4)}


def built(scratch, source, how, name="out", **more):
    how = {"seed": SEED, **({"ratio": None} if how.get("method") == "naive" else {}), **how}
    more = {"target__format": "huggingface", "target__class": "qwen2_moe", "model__vocab_size": 128, **more}
    return run(scratch, source, how, name=name, **more)


def ffn_of(tensors, at):
    return {kind: tensors[f"{at}.{kind}_proj.weight"].numpy() for kind in oracle.MATRICES}


def wanted(ffn, how, layer, e, aside):
    width = SHAPE.ffn // how.get("slices", 1)
    factor = (SHAPE.ffn - aside) / width if how.get("scale") == "exact" else 1
    factor *= 0.5 if how["shared_expert"] == "half" else 1
    factors = dict(gate=1, up=1, down=factor)
    ratio = 0 if how.get("method") == "naive" else how["ratio"]
    if how.get("method") == "noise":
        rows, done = oracle.contract_expert(ffn, SEED, layer, e, ratio, method="noise")
        return {m: rows[m] * np.float32(factors[m]) for m in rows}, done["sets"]["gate"]
    rows, done = oracle.built_expert(
        ffn, SEED, layer, e, width, ratio, factors, how.get("cut", "slices"), how.get("shuffle", False), aside
    )
    return rows, done["chosen"]


@pytest.mark.parametrize("name", CASES)
def test_against_the_rule(scratch, dense, name):
    (how, width, down, aside), (model, sources) = CASES[name], dense
    out, result = built(scratch, sources[1], how)
    tensors = harness.read_output(out)
    for layer in range(SHAPE.layers):
        ffn = harness.dense_ffn(model, layer)
        at = f"model.layers.{layer}.mlp"
        assert not tensors[at + ".shared_expert_gate.weight"].any()
        got = ffn_of(tensors, at + ".shared_expert")
        for m in oracle.MATRICES:  # a gate of zeros is one half, for which down is doubled
            factor = np.float32(2 * down if m == "down" else 1)
            mine, theirs = oracle.neurons(m, got[m]), oracle.neurons(m, ffn[m])[:width] * factor
            assert mine.shape == theirs.shape and (mine == theirs).all(), (layer, m)
        for e in range(how["experts"]):
            want, chosen = wanted(ffn, how, layer, e, aside)
            got = ffn_of(tensors, f"{at}.experts.{e}")
            for m in oracle.MATRICES:
                mine, theirs = oracle.neurons(m, got[m]), oracle.neurons(m, want[m])
                kept = np.setdiff1d(np.arange(len(theirs)), chosen)
                assert (mine[kept] == theirs[kept].astype(np.float32)).all(), (layer, e, m)
                assert np.abs(mine - theirs).max() < 1e-5 * np.abs(theirs).max(), (layer, e, m)
    assert runner.run([runner.program("mgr-verify"), out]).status == 0


@pytest.mark.parametrize("name", ["half", "slices", "slices, Qwen2"])
def test_the_same_bytes_from_any_split(scratch, dense, name):
    how, seen = CASES[name][0], []
    for tp, np_, more in ((1, 1, {}), (2, 3, dict(memory_per_rank=runner.LITTLE_MEMORY)), (4, 2, dict(options=["--simd", "scalar"]))):
        out, _ = built(scratch, dense[1][tp], how, f"tp{tp}", np=np_, **more)
        seen.append(runner.tensor_sums(out))
        assert runner.upcycle(scratch / f"tp{tp}.yaml", np=2, options=["--verify"]).status == 0
    assert seen[0] == seen[1] == seen[2]


def test_without_a_gate_and_in_some_layers(scratch, dense):
    """Megatron has no gate unless it is asked for; a layer without experts has no shared one."""
    how, seen = CASES["slices"][0], {}
    for gate in (False, True):
        out, result = built(
            scratch, dense[1][2], {**how, "shared_gate": gate, "moe_layer_freq": "[0,1]"}, name=f"g{gate}",
            target__format="megatron-torch", target__class=None, target__tensor_parallel=2, target__names="local",
        )  # fmt: skip
        args = torch.load(next(out.glob("*/mp_rank_00/model_optim_rng.pt")), weights_only=False)["args"]
        assert (args.moe_shared_expert_intermediate_size, args.moe_shared_expert_gate) == (24, gate)
        parts = [
            torch.load(file, weights_only=False)["model"]["decoder.layers.1.mlp.shared_experts.linear_fc2.weight"]
            for file in sorted(out.glob("*/mp_rank_0?/model_optim_rng.pt"))
        ]
        seen[gate] = torch.cat(parts, 1)
        assert "a shared expert of the FFN's first 24 neurons" in " ".join(result.out.split())
    down = dense[0]["model.layers.1.mlp.down_proj.weight"][:, :24]
    assert torch.equal(seen[False], down) and torch.equal(seen[True], 2 * down)


def test_what_float16_cannot_hold(scratch, dense):
    model = dict(dense[0])
    name = "model.layers.1.mlp.down_proj.weight"
    model[name] = model[name].clone()
    model[name][3, 5] = 40000.0
    source = ml.save(model, SHAPE, scratch / "big", 1, 1)
    how = dict(CASES["whole"][0], method="naive", ratio=None)
    built(scratch, source, how, "fits", target__dtype="float16", target__format="megatron-torch", target__class=None)
    config = runner.write_config(
        scratch / "run.yaml", source, scratch / "no", model__vocab_size=128, target__dtype="float16",
        target__format="huggingface", target__class="qwen2_moe", **{"upcycle__" + k: v for k, v in how.items()},
    )  # fmt: skip
    result = runner.upcycle(config, np=2)
    assert result.status != 0 and "float16 cannot hold" in result.err and not (scratch / "no").exists(), str(result)


REFUSED = [
    (dict(shared_slices=2), "is for 'upcycle.shared_expert: slices'"),
    (dict(shared_gate=True), "is for an 'upcycle.shared_expert'"),
    (dict(shared_expert="slices"), "do not leave one"),
    (dict(shared_expert="slices", slices=4, shared_slices=4), "do not leave one"),
    (dict(shared_expert="slices", expert_width=25), "do not leave one"),
    (dict(shared_expert="some"), "must be none, whole, half or slices"),
    (dict(shared_expert="slices", slices=4, experts=8, router="virtual-groups"), "no whole number of copies of 72"),
    (dict(shared_expert="whole", method="from-scratch", ratio=None), "is for method"),
]


@pytest.mark.parametrize("how,why", REFUSED, ids=[why for _, why in REFUSED])
def test_what_makes_no_sense_is_refused(scratch, dense, how, why):
    out, result = built(scratch, dense[1][1], how, status=78)
    assert len(result.errors()) == 1 and why in result.err, str(result)
    assert not out.exists()


def test_classes_without_one_are_refused_by_name(scratch, dense):
    out, result = built(scratch, dense[1][1], CASES["whole"][0], status=78, target__class="mixtral")
    assert "has no shared experts" in result.err and not out.exists(), str(result)


def test_a_mixture_has_its_own(scratch, dense):
    mixture = runner.synth_folder(scratch / "moe", "--experts", 2)
    out, result = built(scratch, mixture, dict(shared_expert="half", experts=4, method="naive"), status=78)
    assert "is for a dense source" in result.err and not out.exists(), str(result)


def test_the_summary_and_the_manifest(scratch, dense):
    out, result = built(scratch, dense[1][1], CASES["half"][0])
    said = " ".join(result.out.split())
    assert "a shared expert that is the FFN with half the weight; the others have the other half" in said
    manifest = json.loads((out / runner.MANIFEST).read_text())
    assert "shared_expert: half" in manifest["config"] and not manifest["step_zero"]["identical"]
    again = scratch / "again.yaml"  # the configuration that the manifest holds makes the same again
    again.write_text(manifest["config"].replace(str(out), str(scratch / "again")))
    assert runner.upcycle(again, np=1).status == 0
    assert runner.tensor_sums(scratch / "again") == runner.tensor_sums(out)
