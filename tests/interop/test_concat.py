"""A dense model of a mixture: its experts side by side. Real models of transformers judge, and there and
back of a dense one cut into slices is the identity."""

import json

import pytest
import torch

import harness
import real_models
import runner
from harness import construct as run
from real_models import SIZES, logits
from test_lists import MIXTURE

DENSE = dict(method="concatenate", ratio=None, experts=None, top_k=None)


def joined(mlp, keep, weight):
    """What the dense FFN should compute: the listed experts' outputs, each times `weight`."""
    experts = mlp.experts

    def forward(x):
        out = 0
        for e in keep:
            gate, up = (x @ experts.gate_up_proj[e].T).chunk(2, dim=-1)
            out = out + (torch.nn.functional.silu(gate) * up) @ experts.down_proj[e].T * weight
        return out

    return forward


def mixture(folder, **more):
    lm = real_models.born("Qwen3Moe", dict(SIZES, **{**MIXTURE, "mlp_only_layers": [], **more}))
    lm.save_pretrained(folder)
    return lm


CASES = [
    (dict(), [list(range(6))] * 3, 1 / 6),
    (dict(experts_from="4,0-1"), [[4, 0, 1]] * 3, 1 / 3),
    (dict(experts_from="2,5", expert_weight=1.0), [[2, 5]] * 3, 1.0),
    ("file", [[0, 1], [5, 2], [3, 4]], 1 / 2),
]


@pytest.mark.parametrize("how,lists,weight", CASES, ids=["all", "three", "sum", "file"])
def test_experts_side_by_side(scratch, how, lists, weight):
    lm = mixture(scratch / "moe")
    if how == "file":
        (scratch / "keep.json").write_text(json.dumps(lists))
        how = dict(experts_file=str(scratch / "keep.json"))
    out, result = run(scratch, scratch / "moe", {**DENSE, **how}, target__format="huggingface")
    got = real_models.load(out)
    width = len(lists[0]) * MIXTURE["moe_intermediate_size"]
    assert got.config.model_type == "qwen3" and got.config.intermediate_size == width
    for layer, keep in zip(lm.model.layers, lists):
        layer.mlp.forward = joined(layer.mlp, keep, weight)
    assert harness.relative_difference(logits(got), logits(lm)) < 1e-6
    assert "step 0    not identical" in result.out and f"{len(lists[0])} experts of each layer side by side" in result.out
    assert runner.upcycle(scratch / "out.yaml", np=2, options=["--verify"]).status == 0
    assert runner.run([runner.program("mgr-verify"), out]).status == 0
    again = scratch / "again.yaml"  # the configuration that the manifest holds makes the same again
    again.write_text(json.loads((out / runner.MANIFEST).read_text())["config"].replace(str(out), str(scratch / "again")))
    result = runner.upcycle(again, np=1)
    assert result.status == 0 and runner.tensor_sums(scratch / "again") == runner.tensor_sums(out), str(result)


@pytest.mark.parametrize("between", ["huggingface", "megatron-torch", "hdf5"])
def test_slices_become_the_dense_model_again(scratch, between):
    """Cut in four with `scale: exact`, and put together: bit for bit, from any split and format."""
    real_models.born("Qwen3", SIZES).save_pretrained(scratch / "dense")
    cut = dict(method="naive", ratio=None, slices=4, experts=4, top_k=4, router="virtual-groups", scale="exact")
    more = dict(target__tensor_parallel=2, target__pipeline_parallel=3, target__expert_parallel=2) if between == "megatron-torch" else {}
    moe, _ = run(scratch, scratch / "dense", cut, name="moe", target__format=between, **more)
    wanted = harness.read_output(scratch / "dense")
    for i, ranks in enumerate((1, 3)):
        out, _ = run(scratch, moe, DENSE, name=f"again{i}", np=ranks, target__format="huggingface", memory_per_rank=runner.LITTLE_MEMORY if i else "2GiB")
        found = harness.read_output(out)
        assert found.keys() == wanted.keys() and all(harness.same_bits(found[k], wanted[k]) for k in wanted)


@pytest.mark.parametrize("between", ["megatron-torch", "megatron-dist"])
def test_from_megatron_to_megatron(scratch, between):
    """Its args say nothing of experts then; back it is what comes of the Hugging Face folder."""
    mixture(scratch / "moe")
    keep = {"mode": "reshard", "upcycle": None, "target__dtype": "source"}
    there, _ = run(scratch, scratch / "moe", {}, name="there", target__format=between, target__tensor_parallel=2, **keep)
    dense, result = run(scratch, there, DENSE, name="dense", target__format=between, target__tensor_parallel=1)
    assert "num_experts" in result.out  # dropped, and said so
    back, _ = run(scratch, dense, {}, name="back", target__format="huggingface", **keep)
    want, _ = run(scratch, scratch / "moe", DENSE, name="want", target__format="huggingface")
    mine, theirs = harness.read_output(back), harness.read_output(want)
    assert mine.keys() == theirs.keys() and all(harness.same_bits(mine[k], theirs[k]) for k in theirs)


def test_a_shared_expert_goes_behind_them(scratch):
    """Of a GLM-4.5: its shared expert keeps its weight, routed ones are halved."""
    sizes = {k: v for k, v in SIZES.items()}
    lm = real_models.born("Glm4Moe", dict(
        sizes, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, n_shared_experts=1,
        first_k_dense_replace=0, n_group=1, topk_group=1, use_qk_norm=False, partial_rotary_factor=1.0,
    ))  # fmt: skip
    lm.save_pretrained(scratch / "moe")
    out, _ = run(scratch, scratch / "moe", {**DENSE, "experts_from": "3,1"}, target__format="megatron-torch", target__tensor_parallel=2)
    back, _ = run(scratch, out, {}, name="back", mode="reshard", upcycle=None, target__format="huggingface", target__dtype=None)
    mine, theirs = harness.read_output(back), harness.read_output(scratch / "moe")
    for layer in range(3):
        at = f"model.layers.{layer}.mlp."
        parts = [at + "experts.3.", at + "experts.1.", at + "shared_experts."]
        for name in ("gate_proj", "up_proj"):
            assert harness.same_bits(mine[at + name + ".weight"], torch.cat([theirs[p + name + ".weight"] for p in parts]))
        down = [theirs[p + "down_proj.weight"] * f for p, f in zip(parts, (0.5, 0.5, 1))]
        assert harness.same_bits(mine[at + "down_proj.weight"], torch.cat(down, dim=1))


REFUSED = [
    (dict(experts=3), "the source has 6"),
    (dict(experts_from="0,0"), "is named twice"),
    (dict(experts_from="6"), "numbers below 6"),
    (dict(top_k=1), "is about experts"),
    (dict(router="zeros"), "is about experts"),
    (dict(seed=3, shuffle=True), "is about experts"),
    (dict(router_pre_softmax=True), "is about experts"),
    (dict(layers_from="times 2"), "is about experts"),
]


@pytest.mark.parametrize("how,why", REFUSED, ids=[f"{list(h)[0]}-{w}" for h, w in REFUSED])
def test_what_makes_no_sense_is_refused(scratch, how, why):
    mixture(scratch / "moe")
    out, result = run(scratch, scratch / "moe", {**DENSE, **how}, status=78, target__format="huggingface")
    assert len(result.errors()) == 1 and why in result.err, str(result)
    assert not out.exists()


def test_sources_that_cannot_be_joined_are_refused(scratch):
    real_models.born("Qwen3", SIZES).save_pretrained(scratch / "dense")
    _, result = run(scratch, scratch / "dense", DENSE, status=78, target__format="huggingface")
    assert "is dense already" in result.err
    mixture(scratch / "moe", mlp_only_layers=[1])
    _, result = run(scratch, scratch / "moe", DENSE, status=78, target__format="huggingface")
    assert "dense layers have 48 neurons, and 144 would be" in result.err, str(result)
