"""Classes of transformers without a row in the program's table: what is not an FFN passes through unread.

Real models, as save_pretrained writes them. Each tensor must come back bit for bit and config.json word for
word; where a class holds experts beside the rest, it must compute the dense model's logits."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import each_expert
import harness
import real_models
import runner
import test_families as families

SIZES = {**families.SIZES, "head_dim": 8}
NO_HEADS = {k: v for k, v in SIZES.items() if k != "head_dim"}
HYBRID = {**NO_HEADS, "mamba_n_heads": 8, "mamba_d_head": 8, "shared_intermediate_size": 24, "num_local_experts": 0}
SWA = {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 4}
DENSE = {  # the others: test_all_classes.py
    "Glm4": SIZES,  # gate and up are one tensor
    "Starcoder2": NO_HEADS,  # no gate, biases, other names
    "Apertus": SIZES,  # no gate, tensors without axes
    "GraniteMoeHybrid": {**HYBRID, "layer_types": ["mamba", "attention"]},  # Granite 4, with Mamba beside FFNs
}
MIXTURES = {
    "DeepseekV3": dict(
        NO_HEADS, n_routed_experts=4, moe_intermediate_size=20, first_k_dense_replace=1, n_group=1, topk_group=1,
        q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8,
        num_experts_per_tok=2, num_key_value_heads=4,
    ),
    "HunYuanMoEV1": {**SIZES, "num_experts": 4, "moe_topk": 2},  # its router has a name of its own
}  # fmt: skip
LFM2 = {**NO_HEADS, "layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}
SIBLINGS = {
    "Cohere2": ("cohere2_moe", {**SIZES, "sliding_window": 4}),
    "GraniteSWA": ("granitemoe_swa", {**NO_HEADS, **SWA}),
    "Lfm2": ("lfm2_moe", LFM2),
}


def born(kind, sizes):
    torch.manual_seed(4)
    config = getattr(transformers, kind + "Config")(**sizes)
    model = getattr(transformers, kind + "ForCausalLM")(config).to(torch.float32).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model


def saved(kind, sizes, folder, **options):
    model = born(kind, sizes)
    model.save_pretrained(folder, **options)
    return model


def config(folder):
    return json.loads((folder / "config.json").read_text())


def reshard(scratch, source, name, **changes):
    result = families.run(scratch, source, name, mode="reshard", upcycle=None, **changes)
    assert result.status == 0, str(result)
    return result


def there_and_back(scratch, source):
    result = reshard(scratch, source, "h5", target__format="hdf5")
    assert "passed through unread" in " ".join(result.out.split()), str(result)
    reshard(scratch, scratch / "h5", "back", target__format="huggingface")
    families.same_tensors(source, scratch / "back")
    assert config(scratch / "back") == config(source)


@pytest.mark.parametrize("kind", DENSE)
def test_dense(scratch, kind):
    saved(kind, DENSE[kind], scratch / "a", max_shard_size="30kB")
    there_and_back(scratch, scratch / "a")


@pytest.mark.parametrize("kind", MIXTURES)
def test_mixtures(scratch, kind):
    saved(kind, MIXTURES[kind], scratch / "a")
    there_and_back(scratch, scratch / "a")
    reshard(scratch, scratch / "a", "ep", target__format="huggingface", target__expert_parallel=2)
    families.same_tensors(scratch / "a", scratch / "ep")


@pytest.mark.parametrize("kind", SIBLINGS)
def test_a_sibling_computes_the_dense_logits(scratch, kind):
    moe_type, sizes = SIBLINGS[kind]
    dense = saved(kind, sizes, scratch / "a")
    families.convert(scratch, scratch / "a", "out", upcycle__method="naive", upcycle__ratio=None)
    moe = real_models.load(scratch / "out")
    assert moe.config.model_type == moe_type
    assert harness.relative_difference(families.logits(moe), families.logits(dense)) < 1e-5
    each_expert.counts(moe, families.IDS)


def test_drop_changes_its_neurons_alone(scratch):
    saved("Lfm2", LFM2, scratch / "a")
    naive = families.convert(scratch, scratch / "a", "naive", upcycle__method="naive", upcycle__ratio=None)
    drop = families.convert(scratch, scratch / "a", "drop", upcycle__ratio=0.5)
    copied, dropped = families.tensors(naive), families.tensors(drop)
    assert copied.keys() == dropped.keys()
    for name in copied:
        differs = copied[name] != dropped[name]
        if ".experts." not in name:
            assert not differs.any(), name
        else:
            neurons = differs.any(dim=0 if name.endswith("w2.weight") else 1)
            assert neurons.sum() == LFM2["intermediate_size"] // 2, name


def files_of(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.suffix in (".safetensors", ".h5", ".json")}


@pytest.mark.parametrize("target", ["huggingface", "hdf5"])
def test_ranks_and_units_change_no_byte(scratch, target):
    saved("Cohere2", SIBLINGS["Cohere2"][1], scratch / "a")
    found = []
    for np, options in ((1, ()), (3, ("--unit-bytes", "1024"))):
        file = runner.write_config(
            scratch / "run.yaml", scratch / "a", scratch / "out", target__format=target, target__dtype="source"
        )
        result = runner.upcycle(file, np=np, options=options)
        assert result.status == 0, str(result)
        found.append(files_of(scratch / "out"))
        (scratch / "out").rename(scratch / f"was-{np}")
    left = {name for name in found[0] if found[0][name] != found[1][name]}
    assert found[0].keys() == found[1].keys() and left <= {"mgr-manifest.json", "model.h5", "provenance.h5"}, left


# ---- refused


def refused(scratch, source, *words, **changes):
    result = families.run(scratch, source, "no", **changes)
    assert result.status in (runner.DATA, runner.CONFIG), str(result)
    said = " ".join(result.err.split())
    for word in words:
        assert word in said, str(result)
    assert not (scratch / "no").exists()


NAIVE = dict(upcycle__method="naive", upcycle__ratio=None)
RESHARD = dict(mode="reshard", upcycle=None)


def test_what_cannot_be_said_of_it(scratch):
    source = scratch / "a"
    saved("Olmo3", SIZES, source)
    refused(scratch, source, "no class of transformers is known", "mode: reshard", **NAIVE)
    refused(scratch, source, "no class of transformers is known", **NAIVE, target__format="hdf5")
    for target in ("megatron-torch", "megatron-dist"):
        refused(scratch, source, "passed through unread", "huggingface, hdf5", **RESHARD, target__format=target)
    refused(scratch, source, "'mixtral'", "leave it out", **RESHARD, target__class="mixtral")
    families.convert(scratch, source, "named", **NAIVE, target__class="cohere2_moe")


def test_ffns_that_are_no_plain_mlps(scratch):
    saved("Mamba2", dict(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_heads=8, head_dim=8), scratch / "m")
    refused(scratch, scratch / "m", "mamba2", "no FFN that is a plain MLP", **RESHARD)
    saved("Lfm2", LFM2, scratch / "a")
    path = scratch / "a" / "model.safetensors"
    tensors = load_file(path)
    name = "model.layers.1.feed_forward."
    save_file({**tensors, name + "w4.weight": torch.ones(2, 2)}, path, metadata={"format": "pt"})
    refused(scratch, scratch / "a", name + "w4.weight", "no plain MLP", **NAIVE)
    reshard(scratch, scratch / "a", "as-it-is")
    families.same_tensors(scratch / "a", scratch / "as-it-is")
    turned = {k: v.T.contiguous() if "feed_forward.w" in k else v for k, v in tensors.items()}
    save_file(turned, path, metadata={"format": "pt"})
    refused(scratch, scratch / "a", "no matrices [hidden size, neurons]", **RESHARD)
    del tensors[name + "w1.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    refused(scratch, scratch / "a", "layer 1", "no FFN that is a plain MLP", **RESHARD)


def test_mixtures_are_resharded_alone(scratch):
    saved("HunYuanMoEV1", MIXTURES["HunYuanMoEV1"], scratch / "a")
    refused(scratch, scratch / "a", "passed through unread", "mode: reshard", **NAIVE, upcycle__experts=8)
    refused(scratch, scratch / "a", "stay so", **RESHARD, target__names="fused")
