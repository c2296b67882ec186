"""Qwen3-MoE: the mixture with norms of q and k. From a dense Qwen3, from itself in every spelling, to
Megatron and HDF5 and back; real transformers computes the same, and each expert counts."""

import json

import pytest
import torch
from safetensors.torch import load_file

import each_expert
import harness
import real_models
import runner
import transformers_judge as judge

torch.set_num_threads(1)  # tiny models: a second thread only waits
IDS = torch.arange(24).reshape(1, 24) * 7 % 61
SIZES = dict(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=64,
    bos_token_id=1,
    eos_token_id=[2, 3],
    attn_implementation="eager",
)
EXPERTS = dict(num_experts=6, num_experts_per_tok=3, moe_intermediate_size=20)


def real(kind, **changes):
    return real_models.born(kind, {**SIZES, **changes})


def logits(lm):
    with torch.no_grad():
        return lm(IDS).logits


def convert(scratch, source, name, **changes):
    changes = {"target__format": "huggingface", "target__dtype": "source", **changes}
    config = runner.write_config(scratch / "run.yaml", source, scratch / name, **changes)
    result = runner.upcycle(config, np=2)
    assert result.status == 0, str(result)
    return scratch / name


def reshard(scratch, source, name, **changes):
    return convert(scratch, source, name, mode="reshard", upcycle=None, **changes)


@pytest.mark.parametrize("changes", [{}, {"attention_bias": True, "tie_word_embeddings": True}])
def test_a_dense_qwen3_becomes_one(scratch, changes):
    dense = real("Qwen3", **changes)
    dense.save_pretrained(scratch / "dense")
    out = convert(scratch, scratch / "dense", "out", upcycle__method="naive", upcycle__ratio=None)
    config = json.loads((out / "config.json").read_text())
    assert (config["architectures"], config["model_type"]) == (["Qwen3MoeForCausalLM"], "qwen3_moe")
    assert (config["num_experts"], config["num_local_experts"], config["norm_topk_prob"]) == (4, 4, True)
    assert config["moe_intermediate_size"] == SIZES["intermediate_size"]
    assert config["eos_token_id"] == [2, 3]
    moe = real_models.load(out)
    assert harness.relative_difference(logits(moe), logits(dense)) < 1e-5
    each_expert.counts(moe, IDS)
    with judge.Releases() as releases:  # the last 4 knows it, too
        got = releases.ask(judge.pinned()[-1], do="logits", folder=out, ids=IDS.tolist(), each=True)["logits"]
    assert harness.relative_difference(torch.tensor(got), logits(dense)) < 1e-5


KINDS = {
    "plain": {},
    "not normalised": {"norm_topk_prob": False},
    "normalised": {"norm_topk_prob": True, "attention_bias": True},
    "dense layers": {"mlp_only_layers": [0], "norm_topk_prob": True},
    "every second": {"decoder_sparse_step": 2, "norm_topk_prob": True},
}


@pytest.mark.parametrize("fused", [False, True], ids=["per-expert", "fused"])
@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back(scratch, kind, fused):
    """Hugging Face in either spelling, HDF5, Megatron at TP2 x EP2 where it can be said, and back."""
    lm = real("Qwen3Moe", **EXPERTS, **KINDS[kind])
    lm.save_pretrained(scratch / "a", save_original_format=not fused)
    assert any("gate_up_proj" in name for name in load_file(scratch / "a" / "model.safetensors")) == fused
    same = reshard(scratch, scratch / "a", "same", target__names="per-expert" if fused else "fused")
    assert torch.equal(logits(real_models.load(same)), logits(lm))
    if fused:
        return
    ways = [("hdf5", {"target__format": "hdf5", "target__expert_parallel": 2})]
    if not lm.config.attention_bias:  # Megatron has it for all linear layers or for none
        ways.append(("dist", {"target__format": "megatron-dist", "target__expert_parallel": 2, "target__tensor_parallel": 2}))
    for name, way in ways:
        there = reshard(scratch, scratch / "a", name, **way)
        back = reshard(scratch, there, name + "-back", target__expert_parallel=3)
        again = real_models.load(back)
        want, got = lm.state_dict(), again.state_dict()
        assert want.keys() == got.keys()
        for key in want:
            assert harness.same_bits(got[key][: len(want[key])], want[key]), (name, key)
        assert torch.equal(logits(again)[..., : SIZES["vocab_size"]], logits(lm)), name


# Of the shape that people train, LLM-jp-4's and Qwen3-30B-A3B's: 128 experts of which 8, norms of q and k, heads
# wider than the model, a vocabulary that Megatron pads, every field of the class written.
LARGE = dict(
    num_hidden_layers=2, num_experts=128, num_experts_per_tok=8, moe_intermediate_size=8, norm_topk_prob=True,
    vocab_size=99, rope_theta=1e6, max_window_layers=2, use_sliding_window=False, sliding_window=None,
    output_router_logits=False, router_aux_loss_coef=0.001, decoder_sparse_step=1, mlp_only_layers=[],
)  # fmt: skip


def test_128_experts(scratch):
    lm = real("Qwen3Moe", **LARGE)
    lm.save_pretrained(scratch / "a")
    torch_2d = {"target__tensor_parallel": 2, "target__expert_parallel": 4, "target__pipeline_parallel": 2}
    there = reshard(scratch, scratch / "a", "torch", target__format="megatron-torch", **torch_2d)
    there = reshard(scratch, there, "dist", target__format="megatron-dist", model__vocab_size=99)
    back = reshard(scratch, there, "back", target__expert_parallel=8, model__vocab_size=99)
    tensors = lambda folder: {n: t for f in folder.glob("*.safetensors") for n, t in load_file(f).items()}
    before, after = tensors(scratch / "a"), tensors(back)
    assert before.keys() == after.keys() and len(before) > 768
    assert all(harness.same_bits(after[name], before[name]) for name in before)
    again = real_models.load(back)
    assert torch.equal(logits(again), logits(lm)) and again.config.num_experts_per_tok == 8
    was, now = (json.loads((f / "config.json").read_text()) for f in (scratch / "a", back))
    same = ("norm_topk_prob", "moe_intermediate_size", "head_dim", "intermediate_size", "rope_parameters", "eos_token_id")
    assert {k: now[k] for k in same} == {k: was[k] for k in same}


def test_moe_recipes_is_mixtral_alone(scratch):
    """The hint leads somewhere."""
    real("Qwen3Moe", **EXPERTS).save_pretrained(scratch / "a")
    config = runner.write_config(
        scratch / "run.yaml", scratch / "a", scratch / "Mixtral", mode="reshard", upcycle=None
    )
    result = runner.upcycle(config, np=1)
    assert result.status == runner.DATA and "choose target format 'huggingface'" in result.err, str(result)
    reshard(scratch, scratch / "a", "out")
