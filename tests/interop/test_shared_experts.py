"""Mixtures with shared experts and routers of other kinds: Qwen2-MoE and GLM-4.5, from transformers'
own files in either spelling to HDF5 and to Megatron and back, bit by bit; each part counts."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import harness
import megatron_core_server as server
import real_models
import runner
import test_megatron_core_dist as dist
import transformers_judge as judge
from test_megatron_moe import NEWEST, core, logits as gathered  # noqa: F401 (a fixture)

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
    rms_norm_eps=1e-5,  # as in megatron_core_server.py
    bos_token_id=1,
    eos_token_id=[2, 3],
    num_experts_per_tok=3,
    moe_intermediate_size=20,
    attn_implementation="eager",
)
KINDS = {
    "qwen2_moe": ("Qwen2Moe", dict(num_experts=6, shared_expert_intermediate_size=28, norm_topk_prob=True)),
    "qwen2_moe, not normalised": (
        "Qwen2Moe",
        dict(num_experts=6, shared_expert_intermediate_size=40, norm_topk_prob=False, mlp_only_layers=[1]),
    ),
    "qwen2_moe, no biases": (
        "Qwen2Moe",
        dict(num_experts=6, shared_expert_intermediate_size=40, qkv_bias=False, decoder_sparse_step=2),
    ),
    "glm4_moe": ("Glm4Moe", dict(n_routed_experts=6)),
    "glm4_moe, all of it": (
        "Glm4Moe",
        dict(
            n_routed_experts=6,
            n_shared_experts=2,
            routed_scaling_factor=2.5,
            attention_bias=True,
            use_qk_norm=True,
            first_k_dense_replace=0,
            partial_rotary_factor=1.0,
        ),
    ),
    "glm4_moe, groups": (
        "Glm4Moe",
        dict(n_routed_experts=6, n_group=3, topk_group=2, num_experts_per_tok=4, first_k_dense_replace=2),
    ),
    "glm4_moe, not normalised": ("Glm4Moe", dict(n_routed_experts=6, norm_topk_prob=False)),
}
NOT_IN_MEGATRON = ["glm4_moe, not normalised"]  # whose sigmoid is normalised but for a top 1


def real(kind, **more):
    torch.manual_seed(2)
    name, changes = KINDS[kind]
    config = getattr(transformers, name + "Config")(**{**SIZES, **changes, **more})
    lm = getattr(transformers, name + "ForCausalLM")(config).to(torch.float32).eval()
    with torch.no_grad():
        for p in list(lm.parameters()) + [b for n, b in lm.named_buffers() if "correction" in n]:
            p.add_(torch.randn_like(p) * 0.15)
    return lm


def logits(lm):
    with torch.no_grad():
        return lm(IDS).logits


def run(scratch, source, name, **changes):
    changes = {"target__format": "huggingface", "target__dtype": "source", **changes}
    config = runner.write_config(
        scratch / "run.yaml", source, scratch / name, mode="reshard", upcycle=None, **changes
    )
    return runner.upcycle(config, np=2)


def reshard(scratch, source, name, **changes):
    result = run(scratch, source, name, **changes)
    assert result.status == 0, str(result)
    return scratch / name


def same_model(folder, lm):
    again = real_models.load(folder)
    want, got = lm.state_dict(), again.state_dict()
    assert want.keys() == got.keys()
    for key in want:
        assert harness.same_bits(got[key][: len(want[key])], want[key]), key
    assert torch.equal(logits(again)[..., : SIZES["vocab_size"]], logits(lm))
    return again


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back(scratch, kind):
    lm = real(kind)
    lm.save_pretrained(scratch / "fused", save_original_format=False)
    one_by_one = reshard(scratch, scratch / "fused", "a")
    assert not any("gate_up_proj" in name for name in harness.read_index(one_by_one))
    same_model(one_by_one, lm)
    there = reshard(scratch, one_by_one, "hdf5", target__format="hdf5", target__expert_parallel=2)
    ranks = {"target__expert_parallel": 2, "target__tensor_parallel": 2}
    if kind in NOT_IN_MEGATRON:
        for format in ("megatron-torch", "megatron-dist"):
            result = run(scratch, there, "no", target__format=format, **ranks)
            assert result.status == runner.DATA and "sigmoid" in result.err, str(result)
            assert "formats that hold this model: " in result.err and "huggingface" in result.err, str(result)
    else:
        there = reshard(scratch, there, "torch", target__format="megatron-torch", **ranks)
        there = reshard(scratch, there, "dist", target__format="megatron-dist", **ranks)
    same_model(reshard(scratch, there, "back", target__expert_parallel=3), lm)


@pytest.mark.parametrize("kind", ["qwen2_moe", "glm4_moe"])
def test_each_part_counts(scratch, kind):
    """Equality would pass on a class that leaves some of them out."""
    real(kind).save_pretrained(scratch / "fused", save_original_format=False)
    out = reshard(scratch, scratch / "fused", "a")
    before = logits(real_models.load(out))
    parts = [f"mlp.experts.{e}.down_proj.weight" for e in range(6)]
    if kind == "glm4_moe":
        parts += ["mlp.shared_experts.down_proj.weight", "mlp.gate.e_score_correction_bias"]
    else:
        parts += ["mlp.shared_expert.down_proj.weight", "mlp.shared_expert_gate.weight"]
    for part in parts:
        name = f"model.layers.2.{part}"
        path = out / harness.read_index(out)[name]
        tensors = load_file(path)
        save_file({**tensors, name: tensors[name] * -3}, path, metadata={"format": "pt"})
        assert not torch.allclose(logits(real_models.load(out)), before, atol=1e-4), part
        save_file(tensors, path, metadata={"format": "pt"})


def test_the_last_release_4_computes_the_same(scratch):
    with judge.Releases() as releases:
        for kind in ("qwen2_moe", "glm4_moe, all of it"):
            lm = real(kind, head_dim=8)  # its Qwen2-MoE has heads of hidden size by heads alone
            lm.save_pretrained(scratch / kind, save_original_format=False)
            out = reshard(scratch, scratch / kind, kind + "-out")
            got = releases.ask(judge.pinned()[-1], do="logits", folder=out, ids=IDS.tolist())["logits"]
            assert harness.relative_difference(torch.tensor(got), logits(lm)) < 1e-5, kind


def test_the_selection_bias_stays_float32(scratch):
    lm = real("glm4_moe")
    lm.save_pretrained(scratch / "a")
    out = reshard(scratch, scratch / "a", "out", target__dtype="bfloat16")
    tensors = {name: load_file(out / file)[name] for name, file in harness.read_index(out).items()}
    for name, value in tensors.items():
        assert value.dtype == (torch.float32 if "correction" in name else torch.bfloat16), name
    key = "model.layers.1.mlp.gate.e_score_correction_bias"
    assert harness.same_bits(tensors[key], lm.state_dict()[key])


REFUSED = {
    "a layer behind the last": ("num_hidden_layers", 2, "the tensors' shapes and names say 3"),
    "groups that do not divide": ("n_group", 4, "groups"),
    "more groups than there are": ("topk_group", 2, "groups"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_is_refused(scratch, what):
    key, value, word = REFUSED[what]
    real("glm4_moe").save_pretrained(scratch / "a")
    config = json.loads((scratch / "a" / "config.json").read_text())
    (scratch / "a" / "config.json").write_text(json.dumps({**config, key: value}))
    result = run(scratch, scratch / "a", "out")
    assert result.status == runner.DATA and word in result.err, str(result)
    assert not (scratch / "out").exists()


# ---- real megatron-core ------------------------------------------------------------------------------

COMMON = dict(
    layers=3, hidden=32, ffn=48, heads=4, kv_heads=2, head_dim=16, vocab=64, positions=64, experts=6,
    expert_ffn=20, top_k=3, dtype="float32",
)
IN_CORE = {
    "qwen2_moe": dict(qkv_bias=True, shared_ffn=28, shared_gate=True),
    "qwen2_moe, not normalised": dict(
        qkv_bias=True, shared_ffn=40, shared_gate=True, pre_softmax=True, layer_freq=[1, 0, 1]
    ),
    "glm4_moe": dict(
        shared_ffn=20, score="sigmoid", expert_bias=True, rotary_percent=0.5, layer_freq=[0, 1, 1]
    ),
    "glm4_moe, all of it": dict(
        shared_ffn=40, score="sigmoid", expert_bias=True, scale=2.5, qkv_bias=True, qk_norm=True
    ),
    "glm4_moe, groups": dict(
        shared_ffn=20, score="sigmoid", expert_bias=True, rotary_percent=0.5, layer_freq=[0, 0, 1],
        groups=3, group_topk=2, top_k=4,
    ),
}


@pytest.mark.parametrize("kind", IN_CORE)
def test_megatron_core_computes_the_same(core, scratch, kind):  # noqa: F811
    """Strictly loaded, some of them on one rank and on two of either kind: transformers' logits; and what
    megatron-core saves goes the other way."""
    lm = real(kind)
    lm.save_pretrained(scratch / "a")
    model = {**COMMON, **IN_CORE[kind]}
    ids = (torch.arange(32).reshape(1, 32) * 13 + 5) % 64
    with torch.no_grad():
        want = lm(ids).logits
    splits = {"tp2": {"tp": 2}}
    if kind in ("qwen2_moe", "glm4_moe, all of it"):
        splits.update({"one": {}, "ep2": {"ep": 2}})
    for name, split in splits.items():
        parallel = {"target__tensor_parallel": split.get("tp", 1), "target__expert_parallel": split.get("ep", 1)}
        out = reshard(
            scratch, scratch / "a", name, target__format="megatron-torch", target__names="local",
            target__make_vocab_size_divisible_by=32, **parallel,
        )
        core().run(model, split, {"do": "load", "from": out}, {"do": "logits", "to": scratch / f"{name}-logits"})
        got = gathered(scratch / f"{name}-logits")
        assert harness.relative_difference(got.float(), want) < 1e-5, (kind, name)
    core().run(model, {"tp": 2}, {"do": "save", "to": scratch / "saved"}, {"do": "logits", "to": scratch / "saved/logits"})
    back = reshard(scratch, scratch / "saved/torch", "back")
    assert json.loads((back / "config.json").read_text())["model_type"] == kind.split(",")[0]
    with torch.no_grad():
        got = real_models.load(back)(ids).logits
    assert harness.relative_difference(gathered(scratch / "saved/logits").float(), got) < 1e-4, kind


def test_megatron_core_loads_torch_dist(scratch):
    """megatron.core.dist_checkpointing, strictly; each tensor is what the format torch has."""
    jobs = []
    for kind, key in (("qwen2_moe", "tp"), ("glm4_moe", "ep")):
        real(kind).save_pretrained(scratch / kind)
        split = {"target__tensor_parallel": 1, "target__expert_parallel": 1}
        split[{"tp": "target__tensor_parallel", "ep": "target__expert_parallel"}[key]] = 2
        how = {
            "target__names": "local", "target__make_vocab_size_divisible_by": 32, "target__iteration": 1,
            "target__dtype": "bfloat16", "target__sha256": "true",
        }
        ranks = reshard(scratch, scratch / kind, f"{kind}-torch", target__format="megatron-torch", **split, **how)
        whole = reshard(scratch, scratch / kind, f"{kind}-dist", target__format="megatron-dist", **how)
        m = {**server.MODEL, **COMMON, **IN_CORE[kind]}
        config = {
            "num_layers": 3, "hidden_size": 32, "ffn_hidden_size": 48, "num_attention_heads": 4,
            "num_query_groups": 2, "kv_channels": 16, "normalization": "RMSNorm", "gated_linear_unit": True,
            "activation": "silu", "add_bias_linear": False, "add_qkv_bias": m["qkv_bias"],
            "num_moe_experts": 6, "moe_ffn_hidden_size": 20, "moe_router_topk": 3,
            "moe_layer_freq": m["layer_freq"], **server.router_config(m),
        }
        gpt = {**dist.MODEL, "vocab_size": 64}
        job = {"tp": 1, "pp": 1, "ep": 1, "norms": "local", "config": config, "model": gpt, "name": kind}
        jobs.append({**job, key: 2, "ranks": ranks, "checkpoint": whole})
    dist.run(NEWEST, scratch / "core", jobs)
