"""Depth growth: layers of the source taken more than once. Real models with their layers repeated judge."""

import copy

import h5py
import numpy as np
import pytest
import torch
import transformers

import harness
import megatron_like as ml
import real_models
import runner
import upcycle_oracle as oracle
from harness import construct as run
from real_models import SIZES, logits

MIXTURE = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, norm_topk_prob=True, mlp_only_layers=[0])
SHAPE = ml.Shape(layers=3, hidden=64, ffn=90, heads=4, kv_heads=4, head_dim=16, vocab=128)


def deeper(lm, layers):
    lm = copy.deepcopy(lm)
    stack = [copy.deepcopy(lm.model.layers[i]) for i in layers]
    for i, layer in enumerate(stack):
        layer.self_attn.layer_idx = i
    lm.model.layers = torch.nn.ModuleList(stack)
    lm.config.num_hidden_layers = len(stack)
    if getattr(lm.config, "layer_types", None):
        lm.config.layer_types = [lm.config.layer_types[i] for i in layers]
    return lm


@pytest.mark.parametrize(
    "kind,text,layers",
    [("Qwen3", "times 2", [0, 0, 1, 1, 2, 2]), ("Qwen3", "0-1,1-2", [0, 1, 1, 2]), ("Qwen3Moe", "1-2,0-2", [1, 2, 0, 1, 2]),
     ("Qwen3Moe", "2", [2])],
)  # fmt: skip
def test_a_real_model_with_its_layers_repeated(scratch, kind, text, layers):
    lm = real_models.born(kind, dict(SIZES, **(MIXTURE if kind == "Qwen3Moe" else {})))
    lm.save_pretrained(scratch / "source")
    how = dict(method="naive", ratio=None, layers_from=text, experts=None, top_k=None)
    if kind == "Qwen3":
        how.update(experts=4, top_k=2)
    out, result = run(scratch, scratch / "source", how, target__format="huggingface")
    assert f"{len(layers)} layers, made of the source's 3" in result.out
    got = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, attn_implementation="eager")
    assert got.config.num_hidden_layers == len(layers)
    assert harness.relative_difference(logits(got.eval()), logits(deeper(lm, layers))) < 1e-6
    assert runner.run([runner.program("mgr-verify"), out]).status == 0


def test_each_copy_is_drawn_by_its_own_place(scratch):
    """Drop of repeated layers, from two splits: the same bytes, and the contract's sets for every layer."""
    model, layers, seen = ml.dense_model(SHAPE, seed=3, dtype=torch.float32), [0, 1, 1, 2, 2], []
    how = dict(layers_from="0-1,1-2,2", ratio=None, layer_ratio="0.2 to 0.6", experts=3, seed=7, moe_layer_freq="[1]*4+[0]")
    for tp, ranks in ((1, 1), (2, 3)):
        source = ml.save(model, SHAPE, scratch / f"tp{tp}", tp, 1)
        memory = runner.LITTLE_MEMORY if tp == 2 else "2GiB"
        out, _ = run(
            scratch, source, how, np=ranks, name=f"tp{tp}", model__vocab_size=128, memory_per_rank=memory,
            target__format="megatron-torch", target__names="local", target__tensor_parallel=2,
        )  # fmt: skip
        again = runner.upcycle(scratch / f"tp{tp}.yaml", np=2, options=["--verify"])
        assert again.status == 0, str(again)
        seen.append(runner.tensor_sums(out))
    assert seen[0] == seen[1]
    with h5py.File(out / runner.LEDGER) as ledger:
        assert list(ledger["layers"]) == [0, 1, 2, 3]
        for layer, of in enumerate(layers[:4]):
            count = int((0.2 + (0.6 - 0.2) * layer / 4) * SHAPE.ffn)
            dense = harness.dense_ffn(model, of)
            for e in range(3):
                chosen = oracle.contract_sets(7, layer, e, SHAPE.ffn, count, False)["up"]
                mean, std = oracle.statistics(dense["up"][chosen])
                assert abs(ledger["experts/mean"][layer, e, 1] - mean) < 1e-6 * std
                assert abs(ledger["experts/std"][layer, e, 1] / std - 1) < 1e-5
            assert abs(ledger["dense/std"][layer, 1] / oracle.statistics(dense["up"])[1] - 1) < 1e-5


def test_copies_against_the_rule(scratch):
    """Each copy of a layer has its own draws, from the statistics of the layer that it copies."""
    model, layers = ml.dense_model(SHAPE, seed=3, dtype=torch.float32), [0, 1, 1, 2, 2]
    source = ml.save(model, SHAPE, scratch / "tp2", 2, 1)
    how = dict(layers_from="0-1,1-2,2", ratio=0.4, experts=3, seed=7)
    tensors = harness.read_output(run(scratch, source, how, model__vocab_size=128)[0])
    for layer, of in enumerate(layers):
        ffn = harness.dense_ffn(model, of)
        name = "model.layers.%d.self_attn.q_proj.weight"
        assert harness.same_bits(tensors[name % layer], model[name % of])
        for e in range(3):
            want, done = oracle.contract_expert(ffn, 7, layer, e, 0.4)
            got = harness.expert_ffn(tensors, layer, e)
            for m in oracle.MATRICES:
                mine, theirs = oracle.neurons(m, got[m]), oracle.neurons(m, want[m])
                kept = np.setdiff1d(np.arange(SHAPE.ffn), done["sets"][m])
                assert (mine[kept] == theirs[kept].astype(np.float32)).all()
                assert np.abs(mine - theirs).max() < 1e-5 * np.abs(theirs).max()


REFUSED = [("0-3", "numbers below 3"), ("times 0", "times N"), ("times 9999", "4096 at most"), ("2-1", "numbers below 3")]


@pytest.mark.parametrize("text,why", REFUSED)
def test_what_makes_no_sense_is_refused(scratch, text, why):
    source = ml.save(ml.dense_model(SHAPE), SHAPE, scratch / "tp1", 1, 1)
    out, result = run(scratch, source, dict(layers_from=text), status=78)
    assert len(result.errors()) == 1 and why in result.err, str(result)
    assert not out.exists()
