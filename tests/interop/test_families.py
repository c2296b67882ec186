"""The families of Hugging Face: each dense class becomes the mixture with the same attention, each
mixture is read as save_pretrained writes it and comes back; real transformers computes the same.

A dense model's tensors are found in its mixture by their names, so that what is written is held against
what transformers itself calls them."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import each_expert
import harness
import real_models
import runner
import transformers_judge as judge

torch.set_num_threads(1)  # tiny models: a second thread only waits
transformers.utils.logging.disable_progress_bar()
IDS = torch.arange(24).reshape(1, 24) * 7 % 61
SIZES = dict(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
    tie_word_embeddings=False,
    attn_implementation="eager",
)
GRANITE = dict(embedding_multiplier=3.0, logits_scaling=2.0, residual_multiplier=0.7, attention_multiplier=0.3)
THETA = dict(rope_parameters={"rope_type": "default", "rope_theta": 5e4})


def real(kind, **changes):
    """A real model with random weights; norms and biases are not what they are born as."""
    return real_models.born(kind, {**SIZES, **changes})


def logits(lm):
    with torch.no_grad():
        return lm(IDS).logits


def run(scratch, source, name, **changes):
    changes = {"target__format": "huggingface", "target__dtype": "source", **changes}
    config = runner.write_config(scratch / "run.yaml", source, scratch / name, **changes)
    return runner.upcycle(config, np=2)


def convert(scratch, source, name, **changes):
    result = run(scratch, source, name, **changes)
    assert result.status == 0, str(result)
    return scratch / name


def reshard(scratch, source, name, **changes):
    return convert(scratch, source, name, mode="reshard", upcycle=None, **changes)


def tensors(folder):
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def same_tensors(a, b):
    a, b = tensors(a), tensors(b)
    assert a.keys() == b.keys(), a.keys() ^ b.keys()
    for name in a:
        assert harness.same_bits(a[name], b[name]), name


# ---- dense, and dense -> mixture

# class, its options, the mixture's class, options of the conversion
PAIRS = {
    "llama": ("Llama", {}, "MixtralForCausalLM", {}),
    "mistral": ("Mistral", {"sliding_window": 8}, "MixtralForCausalLM", {}),
    "phi3": ("Phi3", {"sliding_window": 8}, "MixtralForCausalLM", {}),
    "smollm3 with RoPE everywhere": ("SmolLM3", {"no_rope_layers": [1, 1]}, "MixtralForCausalLM", {}),
    "qwen3": ("Qwen3", {"head_dim": 16}, "Qwen3MoeForCausalLM", {}),
    "olmo2": ("Olmo2", THETA, "FlexOlmoForCausalLM", {}),
    "granite": ("Granite", GRANITE, "GraniteMoeForCausalLM", {}),
    "llama to granitemoe": ("Llama", {}, "GraniteMoeForCausalLM", {"target__class": "granitemoe"}),
    "ministral": ("Ministral", {"sliding_window": 8, "head_dim": 8}, "MixtralForCausalLM", {}),
    "ministral, all it sees": ("Ministral", {"sliding_window": 4096, "head_dim": 8}, "MixtralForCausalLM", {}),
    "qwen2": ("Qwen2", {}, "Qwen2MoeForCausalLM", {}),
    "seed-oss": ("SeedOss", {"head_dim": 16}, "Qwen2MoeForCausalLM", {}),
    "ernie": ("Ernie4_5", {"head_dim": 8, "tie_word_embeddings": True}, "Ernie4_5_MoeForCausalLM", {}),
    "seed-oss to glm4_moe": ("SeedOss", {"head_dim": 16}, "Glm4MoeForCausalLM", {"target__class": "glm4_moe"}),
    "llama to glm4_moe": ("Llama", {}, "Glm4MoeForCausalLM", {"target__class": "glm4_moe"}),
    "qwen3 to dots1": ("Qwen3", {"head_dim": 16}, "Dots1ForCausalLM", {"target__class": "dots1"}),
    "llama to granitemoeshared": ("Llama", {}, "GraniteMoeSharedForCausalLM", {"target__class": "granitemoeshared"}),
    "llama with biases": ("Llama", {"attention_bias": True}, "GraniteMoeForCausalLM", {}),
}
# whose class of 4.57 knows no heads but as wide as the model
NOT_IN_4 = ("seed-oss",)
EMPTY = ("qwen2", "seed-oss", "seed-oss to glm4_moe", "llama to glm4_moe", "qwen3 to dots1")  # a shared expert


@pytest.fixture(scope="module")
def releases():
    with judge.Releases() as running:
        yield running


def experts_of(folder):
    """{(layer, expert, gate|up|down): tensor}, however they are stored."""
    found = {}
    names = {"w1": "gate", "w3": "up", "w2": "down", "gate_proj": "gate", "up_proj": "up", "down_proj": "down"}
    for name, tensor in tensors(folder).items():
        words = name.split(".")
        if "input_linear" in words or "output_linear" in words:
            half = tensor.shape[1] // 2
            for e, matrix in enumerate(tensor):
                if "output_linear" in words:
                    found[int(words[2]), e, "down"] = matrix
                else:
                    found[int(words[2]), e, "gate"], found[int(words[2]), e, "up"] = matrix[:half], matrix[half:]
        elif "experts" in words:
            found[int(words[2]), int(words[5]), names[words[6]]] = tensor
    return found


def changes_its_neurons(naive, drop):
    """Half of each expert's, the same of its three matrices; nothing else."""
    copied, dropped = experts_of(naive), experts_of(drop)
    assert copied.keys() == dropped.keys() and len(copied) == 2 * 4 * 3
    for layer, expert in {key[:2] for key in copied}:
        rows = {}
        for which in ("gate", "up", "down"):
            differs = copied[layer, expert, which] != dropped[layer, expert, which]
            rows[which] = differs.any(dim=0 if which == "down" else 1)
            assert rows[which].sum() == SIZES["intermediate_size"] // 2
            assert differs.sum() >= rows[which].sum() * SIZES["hidden_size"] * 0.99  # those neurons whole
        assert torch.equal(rows["gate"], rows["up"]) and torch.equal(rows["gate"], rows["down"])
    a, b = tensors(naive), tensors(drop)
    for name in a:
        if "experts." not in name and "_linear" not in name:
            assert harness.same_bits(a[name], b[name]), name


@pytest.mark.parametrize("pair", PAIRS)
def test_naive_copies_compute_what_the_dense_model_does_and_drop_changes_its_neurons(scratch, releases, pair):
    kind, options, mixture, how = PAIRS[pair]
    dense = real(kind, **options)
    dense.save_pretrained(scratch / "dense")
    out = convert(scratch, scratch / "dense", "out", upcycle__method="naive", upcycle__ratio=None, **how)
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == [mixture]
    moe = real_models.load(out)
    assert harness.relative_difference(logits(moe), logits(dense)) < 1e-5
    each_expert.counts(moe, IDS)
    if pair not in NOT_IN_4:
        got = releases.ask(judge.pinned()[-1], do="logits", folder=out, ids=IDS.tolist(), each=True)["logits"]
        assert harness.relative_difference(torch.tensor(got), logits(dense)) < 1e-5
    warnings = json.loads((out / runner.MANIFEST).read_text())["remarks"].get("warning", [])
    assert any("is there without neurons" in w["why"] for w in warnings) == (pair in EMPTY), warnings
    changes_its_neurons(out, convert(scratch, scratch / "dense", "drop", upcycle__ratio=0.5, **how))


# class, its options, can Megatron say it?
DENSE = {
    "ministral": (
        "Ministral",
        {"sliding_window": 8, "head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]},
        True,
    ),
    "phi3": ("Phi3", {}, True),
    "phi3 with a window": ("Phi3", {"sliding_window": 8}, True),
    "seed-oss": ("SeedOss", {"head_dim": 16}, True),
    "seed-oss with other biases": ("SeedOss", {"head_dim": 8, "attention_bias": False, "attention_out_bias": True, "mlp_bias": True}, False),
    "smollm3": ("SmolLM3", {"no_rope_layer_interval": 2}, True),
    "ernie": ("Ernie4_5", {"head_dim": 16, "tie_word_embeddings": True}, True),
    "granite": ("Granite", GRANITE, False),
    "granite with neutral multipliers": ("Granite", {"attention_multiplier": 8**-0.5, "mlp_bias": True}, False),
    "olmo2": ("Olmo2", {"attention_bias": True}, False),
}
ERNIE = dict(moe_num_experts=6, moe_k=3, moe_intermediate_size=20, moe_num_shared_experts=2, moe_layer_start_index=1)
DOTS1 = dict(
    n_routed_experts=6,
    n_shared_experts=2,
    num_experts_per_tok=3,
    moe_intermediate_size=20,
    norm_topk_prob=True,
    routed_scaling_factor=2.5,
    attention_bias=True,
)
MIXTURES = {
    "flex_olmo": ("FlexOlmo", {"num_experts": 6, "num_experts_per_tok": 3, "norm_topk_prob": True, **THETA}),
    "olmoe": ("Olmoe", {"num_experts": 6, "num_experts_per_tok": 3}),
    "granitemoe": ("GraniteMoe", {"num_local_experts": 6, "num_experts_per_tok": 3, **GRANITE}),
    "mixtral": ("Mixtral", {"num_local_experts": 6, "num_experts_per_tok": 3}),
    "granitemoeshared": (
        "GraniteMoeShared",
        {"num_local_experts": 6, "num_experts_per_tok": 3, "shared_intermediate_size": 20, **GRANITE},
    ),
    "ernie4_5_moe": ("Ernie4_5_Moe", ERNIE),
    "ernie4_5_moe, every second": (
        "Ernie4_5_Moe",
        {**ERNIE, "num_hidden_layers": 4, "moe_layer_interval": 2, "moe_num_shared_experts": 0},
    ),
    "dots1": ("Dots1", {**DOTS1, "sliding_window": 8, "max_window_layers": 1}),
    "dots1, groups": (
        "Dots1",
        {**DOTS1, "n_group": 3, "topk_group": 2, "first_k_dense_replace": 1, "norm_topk_prob": False},
    ),
    "minimax_m2": (
        "MiniMaxM2",
        {"num_local_experts": 6, "num_experts_per_tok": 3, "head_dim": 16, "rotary_dim": 8},
    ),
    "glm4_moe without a shared expert": (
        "Glm4Moe",
        {"n_routed_experts": 6, "n_shared_experts": 0, "moe_intermediate_size": 20, "num_experts_per_tok": 3},
    ),
    "qwen2_moe without a shared expert": (
        "Qwen2Moe",
        {"num_experts": 6, "shared_expert_intermediate_size": 0, "moe_intermediate_size": 20, "num_experts_per_tok": 3},
    ),
}
IN_MEGATRON = {"mixtral", "dots1, full attention", "glm4_moe without a shared expert"}


def there_and_back(scratch, lm, megatron):
    """Every format gives the tensors back, bit for bit, and the same class in the same dialect."""
    ways = [("hdf5", {"target__format": "hdf5"}), ("same", {})]
    if megatron:
        ways.append(("dist", {"target__format": "megatron-dist", "target__tensor_parallel": 2}))
    for name, way in ways:
        there = reshard(scratch, scratch / "a", name, **way)
        back = there if name == "same" else reshard(scratch, there, name + "-back")
        config = json.loads((back / "config.json").read_text())
        assert config["model_type"] == lm.config.model_type, name
        again = real_models.load(back)
        if name != "dist":  # whose vocabulary is padded
            same_tensors(scratch / "a", back)
        assert torch.equal(logits(again)[..., : SIZES["vocab_size"]], logits(lm)), name
    if not megatron:
        result = run(scratch, scratch / "a", "no", mode="reshard", upcycle=None, target__format="megatron-torch")
        assert result.status == runner.DATA and "Megatron" in result.err, str(result)


@pytest.mark.parametrize("kind", DENSE)
def test_a_dense_model_there_and_back(scratch, kind):
    name, options, megatron = DENSE[kind]
    lm = real(name, **options)
    lm.save_pretrained(scratch / "a")
    there_and_back(scratch, lm, megatron)


@pytest.mark.parametrize("kind", MIXTURES)
def test_a_mixture_there_and_back(scratch, kind):
    name, options = MIXTURES[kind]
    lm = real(name, **options)
    lm.save_pretrained(scratch / "a")
    there_and_back(scratch, lm, kind in IN_MEGATRON)
    lm.save_pretrained(scratch / "fused", save_original_format=False)  # as version 5 has it in memory
    assert any("gate_up_proj" in n for n in tensors(scratch / "fused"))
    same_tensors(reshard(scratch, scratch / "fused", "unfused"), scratch / "a")
    same_tensors(reshard(scratch, scratch / "a", "refused", target__names="fused"), scratch / "fused")


# ---- what has no mixture

NO_MIXTURE = {
    "seed-oss": ("SeedOss", {"attention_bias": False, "attention_out_bias": True}, ["bias of the attention"]),
    "smollm3": ("SmolLM3", {"no_rope_layer_interval": 2}, ["mixtral", "no layers without RoPE"]),
}


@pytest.mark.parametrize("kind", NO_MIXTURE)
def test_what_has_no_mixture_says_so(scratch, kind):
    name, options, words = NO_MIXTURE[kind]
    real(name, **options).save_pretrained(scratch / "a")
    result = run(scratch, scratch / "a", "out")
    assert result.status == runner.DATA and all(w in result.err for w in words), str(result)


def test_a_class_that_does_not_compute_the_model_is_refused(scratch):
    real("Granite", **GRANITE).save_pretrained(scratch / "a")
    result = run(scratch, scratch / "a", "out", target__class="mixtral")
    assert result.status == runner.CONFIG and "has no multipliers" in result.err, str(result)
    assert "granitemoe" in result.err
    convert(scratch, scratch / "a", "out")


def test_a_hybrid_model_has_no_windows(scratch):
    """Its args count half layers; the keys of a GPTModel take them, as the hint says."""
    real("Mistral", sliding_window=8).save_pretrained(scratch / "a")
    way = dict(mode="reshard", upcycle=None, target__format="megatron-dist")
    result = run(scratch, scratch / "a", "no", **way, target__dist_keys="hybrid")
    assert result.status == runner.DATA and "are not written for a HybridModel" in result.err, str(result)
    assert "'target.dist_keys: stacked'" in result.err and not (scratch / "no").exists(), str(result)
    assert run(scratch, scratch / "a", "out", **way, target__dist_keys="stacked").status == 0


def test_experts_of_other_layouts_are_refused_by_name(scratch):
    """Transposed, as Llama 4 and GPT-OSS have them: a block of an expert's rows is none of the file."""
    lm = real("Mixtral", num_local_experts=4, num_experts_per_tok=2)
    lm.save_pretrained(scratch / "a", save_original_format=False)
    held = load_file(scratch / "a" / "model.safetensors")
    turned = {n: t.transpose(1, 2).contiguous() if "experts" in n else t for n, t in held.items()}
    save_file(turned, scratch / "a" / "model.safetensors", metadata={"format": "pt"})
    result = run(scratch, scratch / "a", "out", mode="reshard", upcycle=None)
    assert result.status == runner.DATA and "is transposed" in result.err, str(result)
    for kind, word in {"gpt_oss": "transposed", "llama4_text": "transposed"}.items():
        path = scratch / "a" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": kind, "architectures": None}))
        result = run(scratch, scratch / "a", "out", mode="reshard", upcycle=None)
        assert result.status == runner.DATA and word in result.err and kind in result.err, str(result)
