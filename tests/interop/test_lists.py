"""Experts by lists from a file: the neurons of each (MoEfication and kin), or which experts of a mixture
stay (REAP and kin), against numpy and real models."""

import copy
import json

import h5py
import numpy as np
import pytest
import torch

import harness
import megatron_like as ml
import real_models
import runner
import upcycle_oracle as oracle
from harness import construct as run
from real_models import SIZES, logits

MIXTURE = dict(num_experts=6, num_experts_per_tok=2, moe_intermediate_size=24, norm_topk_prob=True, mlp_only_layers=[0])
SHAPE = ml.Shape(layers=2, hidden=64, ffn=96, heads=4, kv_heads=4, head_dim=16, vocab=128)


def write(path, name, lists):
    if path.suffix == ".json":
        path.write_text(json.dumps({"made by": ["a test", {"x": None}], name: np.asarray(lists).tolist()}))
    else:
        with h5py.File(path, "w", libver="latest") as file:
            file.create_dataset(name, data=np.asarray(lists), dtype=np.int32 if len(np.shape(lists)) == 3 else np.int64)
    return str(path)


@pytest.mark.parametrize("suffix,per_layer", [("json", True), ("h5", False)])
def test_neurons_against_the_rule(scratch, suffix, per_layer):
    """Half of each expert drawn anew from the statistics of its own neurons, and scaled last."""
    model, rng, seen = ml.dense_model(SHAPE, seed=4, dtype=torch.float32), np.random.default_rng(5), []
    experts, width, seed = 5, 30, 11
    lists = np.array([[rng.permutation(SHAPE.ffn)[:width] for _ in range(experts)] for _ in range(2 if per_layer else 1)])
    path = write(scratch / f"neurons.{suffix}", "neurons", lists)
    how = dict(neurons_file=path, ratio=0.5, experts=None, top_k=2, seed=seed, scale="exact")
    for tp, ranks in ((1, 1), (2, 3)):
        source = ml.save(model, SHAPE, scratch / f"tp{tp}", tp, 1)
        out, result = run(scratch, source, how, np=ranks, name=f"tp{tp}", model__vocab_size=128)
        seen.append(runner.tensor_sums(out))
    assert seen[0] == seen[1] and "5, top 2" in result.out
    left = max(SHAPE.ffn - len(np.unique(part)) for part in lists)
    assert f"of some layer {left} neurons are in no expert" in " ".join(result.out.split())
    again = runner.upcycle(scratch / "tp2.yaml", np=2, options=["--verify"])
    assert again.status == 0 and runner.run([runner.program("mgr-verify"), out]).status == 0, str(again)
    tensors = harness.read_output(out)
    factors = dict(gate=1, up=1, down=SHAPE.ffn / width)
    for layer in range(2):
        ffn = harness.dense_ffn(model, layer)
        for e in range(experts):
            origin = lists[layer if per_layer else 0, e]
            cut = {m: oracle.neurons(m, oracle.neurons(m, ffn[m])[origin]) for m in oracle.MATRICES}
            want, done = oracle.contract_expert(cut, seed, layer, e, 0.5)
            got = harness.expert_ffn(tensors, layer, e)
            for m in oracle.MATRICES:
                mine, theirs = oracle.neurons(m, got[m]), oracle.neurons(m, want[m]) * np.float32(factors[m])
                kept = np.setdiff1d(np.arange(width), done["sets"][m])
                assert (mine[kept] == theirs.astype(np.float32)[kept]).all()
                assert np.abs(mine - theirs).max() < 1e-5 * np.abs(theirs).max()


def test_a_partition_is_the_dense_model(scratch):
    """A random split of the neurons, the same twice over: chosen together and scaled they are the FFN."""
    lm = real_models.born("Qwen3", SIZES)
    lm.save_pretrained(scratch / "dense")
    rng = np.random.default_rng(3)
    lists = [rng.permutation(48).reshape(4, 12) for _ in range(3)]
    good = write(scratch / "good.h5", "neurons", [np.concatenate([one, one]) for one in lists])
    how = dict(method="naive", ratio=None, experts=8, top_k=4, router="virtual-groups", scale="exact")
    out, result = run(scratch, scratch / "dense", dict(how, neurons_file=good), target__format="huggingface")
    assert "step 0    identical" in result.out
    assert harness.relative_difference(logits(real_models.load(out)), logits(lm)) < 1e-6
    bad = write(scratch / "bad.json", "neurons", [np.concatenate([one, one[[0, 1, 2, 2]]]) for one in lists])
    out, result = run(scratch, scratch / "dense", dict(how, neurons_file=bad), name="bad", target__format="huggingface")
    assert "step 0    not identical" in result.out and "do not make up the FFN" in " ".join(result.out.split())


def prune(lm, lists):
    """REAP: the listed experts of each layer with experts, with their rows of the router."""
    lm = copy.deepcopy(lm)
    layers = [layer.mlp for layer in lm.model.layers if hasattr(layer.mlp, "experts")]
    for mlp, keep in zip(layers, lists):
        mlp.gate.weight.data = mlp.gate.weight.data[keep]
        for name in ("gate_up_proj", "down_proj"):
            getattr(mlp.experts, name).data = getattr(mlp.experts, name).data[keep]
        mlp.experts.num_experts = mlp.gate.num_experts = len(keep)
    return lm


@pytest.mark.parametrize("suffix", ["json", "h5"])
def test_experts_of_a_real_mixture(scratch, suffix):
    lm = real_models.born("Qwen3Moe", dict(SIZES, **MIXTURE))
    lm.save_pretrained(scratch / "moe")
    lists = [[0, 2, 5], [1, 2, 4]]
    path = write(scratch / f"keep.{suffix}", "experts", lists)
    how = dict(method="naive", ratio=None, experts=None, top_k=None, experts_file=path)
    out, result = run(scratch, scratch / "moe", how, target__format="huggingface")
    got = real_models.load(out)
    assert got.config.num_experts == 3 and "not every expert" in " ".join(result.out.split())
    assert harness.relative_difference(logits(got), logits(prune(lm, lists))) < 1e-6
    assert json.loads((out / runner.MANIFEST).read_text())["experts_from"] == lists
    assert runner.run([runner.program("mgr-verify"), out]).status == 0
    page = runner.upcycle(scratch / "out.yaml", np=1, options=["--dry-run", "-v", "--force", "--ranks", 2])
    assert page.status == 0 and "reads and" in page.out, str(page)


def test_copies_of_listed_experts_are_drawn_anew(scratch):
    """In each layer the first that is made of an expert stays, by that layer's own list."""
    real_models.born("Qwen3Moe", dict(SIZES, **MIXTURE)).save_pretrained(scratch / "moe")
    lists = [[3, 3, 0, 1], [5, 0, 5, 5]]
    path = write(scratch / "grow.json", "experts", lists)
    how = dict(ratio=0.5, experts=None, top_k=None, experts_file=path)
    out, _ = run(scratch, scratch / "moe", how, target__format="huggingface")
    with h5py.File(out / runner.LEDGER) as ledger:
        assert (ledger["experts/selected"][:, :, 0] == [[0, 12, 0, 0], [0, 0, 12, 12]]).all()
    assert runner.run([runner.program("mgr-verify"), out]).status == 0


GOOD = np.arange(96).reshape(1, 4, 24)
REFUSED = {
    "no neuron 96": ("neurons", GOOD + 1),
    "twice": ("neurons", np.where(GOOD == 5, 6, GOOD)),
    "has -1": ("neurons", np.where(GOOD == 5, -1, GOOD)),
    "neurons of 3 layers": ("neurons", np.repeat(GOOD, 3, axis=0)),
    "neurons": ("experts", GOOD[0]),
    "is for a mixture": ("experts", GOOD[0] % 4),
}  # fmt: skip


@pytest.mark.parametrize("suffix", ["json", "h5"])
@pytest.mark.parametrize("why", REFUSED)
def test_lists_that_are_none_are_refused(scratch, why, suffix):
    source = ml.save(ml.dense_model(SHAPE), SHAPE, scratch / "tp1", 1, 1)
    name, lists = REFUSED[why]
    path = write(scratch / f"lists.{suffix}", name, lists)
    how = dict(method="naive", ratio=None, experts=None, top_k=2)
    how["experts_file" if "mixture" in why else "neurons_file"] = path
    result = runner.upcycle(runner.write_config(
        scratch / "run.yaml", source, scratch / "Mixtral-x", **{f"upcycle__{k}": v for k, v in how.items()}), np=2)
    assert result.status in (65, 66, 78) and len(result.errors()) == 1 and why in result.err, str(result)
    assert not (scratch / "Mixtral-x").exists()


TEXTS = {
    "": None, "[]": None, "[[[0.5]]]": None, '[[[0],[1,2]]]': None, '[[["a"]]]': None, '{"neurons": 3}': None,
    '{"neurons": [[[0]]], "neurons": [[[1]]]}': "two members", "[[[0]]": None, "[[[0]]] 1": None,
}  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_json_that_is_no_list_is_refused(scratch, text):
    source = ml.save(ml.dense_model(SHAPE), SHAPE, scratch / "tp1", 1, 1)
    (scratch / "lists.json").write_text(text)
    config = runner.write_config(
        scratch / "run.yaml", source, scratch / "Mixtral-x", upcycle__method="naive", upcycle__ratio=None,
        upcycle__experts=None, upcycle__neurons_file=str(scratch / "lists.json"),
    )  # fmt: skip
    result = runner.upcycle(config)
    assert result.status == 65 and len(result.errors()) == 1 and "lists.json" in result.err, str(result)
    assert (TEXTS[text] or "") in result.err


TOGETHER = [
    (dict(expert_width=24), "which says it"),
    (dict(shuffle=True), "which says it"),
    (dict(experts=3), "has 4 experts, 'upcycle.experts' is 3"),
    (dict(top_k=5), "must not exceed the 4 experts"),
    (dict(experts_from="0,1"), "is for a mixture"),
]


@pytest.mark.parametrize("more,why", TOGETHER, ids=[why for _, why in TOGETHER])
def test_what_makes_no_sense_is_refused(scratch, more, why):
    source = ml.save(ml.dense_model(SHAPE), SHAPE, scratch / "tp1", 1, 1)
    how = dict(method="naive", ratio=None, experts=None, top_k=2, neurons_file=write(scratch / "n.json", "neurons", GOOD))
    out, result = run(scratch, source, {**how, **more}, status=78)
    assert len(result.errors()) == 1 and why in result.err, str(result)
    assert not out.exists()
