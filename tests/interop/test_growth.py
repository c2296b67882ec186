"""A mixture as the source: its experts each as often, or some of them, with their rows of the router.
Real Qwen3-MoE and Mixtral models judge; the copies that are drawn anew are held against the oracle."""

import json
import re

import numpy as np
import pytest
import torch
import transformers

import harness
import philox
import real_models
import runner
import upcycle_oracle as oracle
from real_models import logits

SEED, EXPERTS, TOP, WIDTH, HIDDEN = 99, 8, 2, 20, 32
SIZES = dict(
    vocab_size=64, hidden_size=HIDDEN, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    head_dim=16, max_position_embeddings=64, num_experts_per_tok=TOP, attn_implementation="eager",
)  # fmt: skip
KINDS = {
    "Mixtral": dict(num_local_experts=EXPERTS, intermediate_size=WIDTH),
    "Qwen3Moe": dict(num_experts=EXPERTS, moe_intermediate_size=WIDTH, intermediate_size=48, norm_topk_prob=True),
    "Qwen3Moe, pre-softmax": dict(
        num_experts=EXPERTS, moe_intermediate_size=WIDTH, intermediate_size=48, norm_topk_prob=False,
        mlp_only_layers=[1],
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def sources(module_scratch):
    """{kind: (folder, logits, tensors)}"""
    made = {}
    for kind, more in KINDS.items():
        name = kind.split(",")[0]
        torch.manual_seed(2)
        config = getattr(transformers, name + "Config")(**SIZES, **more)
        lm = getattr(transformers, name + "ForCausalLM")(config).to(torch.float32).eval()
        with torch.no_grad():
            for p in lm.parameters():
                p.add_(torch.randn_like(p) * 0.15)
        folder = module_scratch / re.sub(r"\W", "", kind)
        lm.save_pretrained(folder)
        made[kind] = folder, logits(lm), harness.read_output(folder)
    return made


def grow(scratch, source, name="out", np=2, method="naive", **how):
    changes = {"upcycle__" + k: v for k, v in {"top_k": None, "experts": None, "seed": SEED, **how}.items()}
    if method == "naive":
        changes["upcycle__ratio"] = None
    changes = {"target__format": "huggingface", "target__dtype": "source", **changes}
    more = {k[9:] if k.startswith("upcycle__target__") else k: v for k, v in changes.items()}
    config = runner.write_config(scratch / f"{name}.yaml", source, scratch / name, upcycle__method=method, **more)
    return runner.upcycle(config, np=np), scratch / name


def judged(scratch, source, dense, **how):
    """(statement, error of the logits, folder)"""
    result, out = grow(scratch, source, **how)
    assert result.status == 0, str(result)
    lm = real_models.load(out)
    step = json.loads((out / runner.MANIFEST).read_text())["step_zero"]
    assert runner.run([runner.program("mgr-verify"), out]).status == 0
    return step, harness.relative_difference(logits(lm.eval()), dense), out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("times", [2, 4])
def test_growth_keeps_the_function(scratch, sources, kind, times):
    source, dense, _ = sources[kind]
    step, error, out = judged(scratch, source, dense, experts=times * EXPERTS)
    assert step == {"identical": True, "text": "identical to the source"} and error < 3e-6, (step, error)
    assert json.loads((out / "config.json").read_text())["num_experts_per_tok"] == times * TOP
    if times == 2:  # and again, from what was made
        step, error, _ = judged(scratch, out, dense, name="more", experts=4 * EXPERTS)
        assert step["identical"] and error < 3e-6


@pytest.mark.parametrize("kind", KINDS)
def test_top_k_kept_is_said(scratch, sources, kind):
    source, dense, _ = sources[kind]
    step, error, _ = judged(scratch, source, dense, experts=2 * EXPERTS, top_k=TOP)
    assert not step["identical"] and "the source's top 2 is 4 here" in step["text"], step
    assert error > 1e-2


def names_of(tensors, layer, expert):
    at = [n for n in tensors if re.search(rf"layers\.{layer}\..*experts\.{expert}\.", n)]
    kinds = {"gate_proj": "gate", "w1": "gate", "up_proj": "up", "w3": "up", "down_proj": "down", "w2": "down"}
    return {kinds[n.split(".")[-2]]: n for n in at}


def router_name(tensors, layer):
    (name,) = [n for n in tensors if re.search(rf"layers\.{layer}\..*\.gate\.weight$", n) and "experts" not in n]
    return name


@pytest.mark.parametrize("kind,how", [
    ("Mixtral", dict(method="drop")), ("Qwen3Moe, pre-softmax", dict(method="drop")),
    ("Mixtral", dict(method="noise", noise_std=0.3)),
])  # fmt: skip
def test_copies_are_drawn_anew_and_originals_stay(scratch, sources, kind, how):
    source, dense, old = sources[kind]
    step, error, out = judged(scratch, source, dense, experts=2 * EXPERTS, ratio=0.5, **how)
    assert not step["identical"] and error > 1e-2
    new = harness.read_output(out)
    for layer in range(3):
        if not names_of(old, layer, 0):
            continue  # a dense one
        rows = old[router_name(old, layer)]
        assert harness.same_bits(new[router_name(new, layer)], torch.cat([rows, rows]))
        for e in range(2 * EXPERTS):
            was = {k: old[n].numpy() for k, n in names_of(old, layer, e % EXPERTS).items()}
            is_ = {k: new[n].numpy() for k, n in names_of(new, layer, e).items()}
            ratio = 0.5 if e >= EXPERTS else 0
            # its own numbers: the source's expert is taken as expert 0 of a dense FFN
            want, done = oracle.contract_expert(was, SEED, layer, e, ratio, **how)
            for name in oracle.MATRICES:
                kept = np.setdiff1d(np.arange(WIDTH), done["sets"][name] if ratio else [])
                mine, theirs = oracle.neurons(name, is_[name]), oracle.neurons(name, want[name])
                assert (mine[kept] == oracle.neurons(name, was[name])[kept]).all(), (layer, e, name)
                assert np.abs(mine - theirs).max() < 1e-5 * np.abs(theirs).max(), (layer, e, name)


def test_noise_on_the_rows_of_copies(scratch, sources):
    source, dense, old = sources["Mixtral"]
    step, error, out = judged(scratch, source, dense, experts=3 * EXPERTS, router="source", router_noise=0.01)
    assert not step["identical"] and "noise of 0.01" in step["text"] and 1e-5 < error < 0.2, (step, error)
    new = harness.read_output(out)
    for layer in range(3):
        was, is_ = (t[router_name(t, layer)].numpy().astype(np.float64) for t in (old, new))
        assert (is_[:EXPERTS] == was).all()
        for e in range(EXPERTS, 3 * EXPERTS):
            row = was[e % EXPERTS]
            z = philox.normals(SEED, philox.ROUTER_NOISE, layer, e, 0, HIDDEN)
            assert np.abs(is_[e] - (row + 0.01 * row.std(ddof=1) * z)).max() < 1e-6
    result, again = grow(scratch, source, "again", np=3, experts=3 * EXPERTS, router="source", router_noise=0.01)
    assert result.status == 0 and runner.tensor_sums(again) == runner.tensor_sums(out)


def test_the_same_bytes_by_any_ranks_and_from_any_format(scratch, sources):
    source = sources["Mixtral"][0]
    how = dict(experts=3 * EXPERTS, method="drop", ratio=0.4)
    seen = []
    for i, (np_, memory) in enumerate([(1, "2GiB"), (3, "64MiB")]):
        result, out = grow(scratch, source, f"o{i}", np=np_, **how)
        assert result.status == 0, str(result)
        seen.append(runner.tensor_sums(out))
    for i, more in enumerate([
        dict(format="megatron-torch", tensor_parallel=2), dict(format="megatron-torch", tensor_parallel=4), dict(format="hdf5"),
    ]):
        there = scratch / f"there{i}"
        more = {"target__" + k: v for k, v in more.items()}
        config = runner.write_config(scratch / "r.yaml", source, there, mode="reshard", upcycle=None, **more)
        assert runner.upcycle(config).status == 0
        result, out = grow(scratch, there, f"from{i}", **how)
        assert result.status == 0, str(result)
        seen.append(runner.tensor_sums(out))
    assert len({json.dumps(sorted(map(str, s.items()))) for s in seen}) == 1


def test_selection_takes_the_experts_and_their_rows(scratch, sources):
    source, dense, old = sources["Qwen3Moe"]
    chosen = [1, 4, 5, 6]
    step, error, out = judged(scratch, source, dense, experts_from="1, 4-6")
    assert not step["identical"] and error > 1e-2
    config = json.loads((out / "config.json").read_text())
    assert (config["num_experts"], config["num_experts_per_tok"]) == (4, TOP)
    new = harness.read_output(out)
    for layer in range(3):
        assert harness.same_bits(new[router_name(new, layer)], old[router_name(old, layer)][chosen])
        for e, source_expert in enumerate(chosen):
            was, is_ = names_of(old, layer, source_expert), names_of(new, layer, e)
            assert was.keys() == is_.keys() == set(oracle.MATRICES)
            assert all(harness.same_bits(new[is_[k]], old[was[k]]) for k in was)
    step, error, _ = judged(scratch, source, dense, name="all", experts_from="7,0-6")
    assert step["identical"] and error < 3e-6


def test_selection_from_archives_whose_other_members_are_not_read(scratch, sources):
    source, there = sources["Mixtral"][0], scratch / "there"
    config = runner.write_config(
        scratch / "r.yaml", source, there, mode="reshard", target__format="megatron-torch", target__tensor_parallel=1
    )
    assert runner.upcycle(config).status == 0
    seen = []
    for name, of in (("a", source), ("b", there)):
        result, out = grow(scratch, of, name, experts_from="1,4-6")
        assert result.status == 0, str(result)
        seen.append({n: v for (_, n), v in runner.tensor_sums(out).items()})
    assert seen[0] == seen[1]


REFUSED = [
    (dict(), "is not two or more times that"),
    (dict(experts=12), "is not two or more times that"),
    (dict(experts=4), "is not two or more times that"),
    (dict(experts=16, slices=2), "'upcycle.slices' is for a dense source"),
    (dict(experts=16, scale="exact"), "'upcycle.scale' is for a dense source"),
    (dict(experts=16, router="virtual-groups"), "virtual-groups"),
    (dict(experts_from="0-8"), "must be numbers below 8"),
    (dict(experts_from="0,,1"), "must be numbers below 8"),
    (dict(experts_from="3-1"), "must be numbers below 8"),
    (dict(experts_from="0,1", experts=3), "names 2 experts"),
    (dict(experts_from="0,1", method="drop", ratio=0.5), "there is none"),
    (dict(experts=16, top_k=17), "must not exceed"),
]


@pytest.mark.parametrize("how,why", REFUSED, ids=lambda x: x if isinstance(x, str) else None)
def test_what_makes_no_sense_is_refused(scratch, sources, how, why):
    result, out = grow(scratch, sources["Mixtral"][0], **how)
    assert result.status != 0 and len(result.errors()) == 1 and why in result.err, str(result)
    assert not out.exists()


@pytest.mark.parametrize("how", [dict(experts_from="0-3"), dict(router="source")])
def test_a_dense_source_has_no_experts(scratch, how):
    result, out = grow(scratch, runner.synth_folder(scratch / "dense"), experts=4, **how)
    assert result.status != 0 and "the source is dense" in result.err and not out.exists(), str(result)
