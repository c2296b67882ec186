"""Source `huggingface`: directories of Llama, Mistral, Qwen2, Qwen3 and Mixtral. transformers and torch
write them, the program reads them with every value right, as it reads the same model from Megatron's
shards; what it writes of them, transformers loads and computes the same. What the target cannot
express or the files contradict is refused in one message with no output."""

import json
import os
import pathlib

import pytest
import torch
from safetensors.torch import load_file, save_file

import harness
import megatron_like as ml
import runner

SHAPE = ml.Shape()
NAIVE = {"upcycle__method": "naive", "upcycle__ratio": None, "upcycle__experts": 2}
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
INDEX = "model.safetensors.index.json"


def causal_lm(model, shape, kind="llama", **changes):
    """transformers' model of this kind with these weights."""
    from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

    settings = dict(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        rms_norm_eps=shape.norm_epsilon,
        max_position_embeddings=shape.positions,
        rope_parameters={"rope_type": "default", "rope_theta": float(shape.rotary_base)},
        tie_word_embeddings=shape.tied,
        bos_token_id=1,
        eos_token_id=2,
    )
    if kind == "mistral":
        settings["sliding_window"] = None
    config = {"llama": LlamaConfig, "mistral": MistralConfig}[kind](**{**settings, **changes})
    lm = {"llama": LlamaForCausalLM, "mistral": MistralForCausalLM}[kind](config)
    lm = lm.to(model["model.norm.weight"].dtype)
    state = dict(model, **({HEAD: model[EMBEDDING]} if shape.tied else {}))
    lm.load_state_dict(state, strict=True)
    return lm


def save(folder, model, shape=SHAPE, form="single", kind="llama", **changes):
    """Let transformers save it; the .bin forms, which version 5 no longer writes, by torch.save of
    the state dict, as version 4 did."""
    lm = causal_lm(model, shape, kind, **changes)
    lm.save_pretrained(folder, max_shard_size="20KB" if form == "sharded" else "5GB")
    if form == "sharded":
        assert (folder / INDEX).is_file() and len(list(folder.glob("*.safetensors"))) > 3
    if form.startswith("bin"):
        (folder / "model.safetensors").unlink()
        save_bin(folder, lm.state_dict(), 3 if form == "bin-sharded" else 1)
    return folder


def save_bin(folder, state, shards):
    if shards == 1:
        torch.save(state, folder / "pytorch_model.bin")
        return
    files = {}
    for i, name in enumerate(state):
        file = f"pytorch_model-{i * shards // len(state) + 1:05d}-of-{shards:05d}.bin"
        files.setdefault(file, {})[name] = state[name]
    for file, tensors in files.items():
        torch.save(tensors, folder / file)
    weight_map = {name: file for file, tensors in files.items() for name in tensors}
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def edit_json(path, **changes):
    """Change entries; None writes null, a name in `without` is left out."""
    content = json.loads(path.read_text())
    for key in changes.pop("without", ()):
        content.pop(key, None)
    path.write_text(json.dumps({**content, **changes}))


def naive(scratch, source, model, shape=SHAPE, **changes):
    out = harness.convert(scratch, source, **{**NAIVE, **changes})
    harness.check_naive(harness.read_output(out), model, shape, 2)
    return out


def refused(scratch, source, *words, status=runner.DATA, **changes):
    (scratch / "out").mkdir(exist_ok=True)
    config = runner.write_config(
        scratch / "run.yaml", source, scratch / "out" / "Mixtral", **{**NAIVE, **changes}
    )
    result = runner.upcycle(config, np=2, timeout=30)
    assert result.status == status and len(result.errors()) == 1, str(result)
    assert not list((scratch / "out").iterdir()), str(result)
    for word in words:
        assert word in result.err, str(result)


# ---- read right


@pytest.mark.parametrize("form", ["single", "sharded", "bin", "bin-sharded"])
@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_what_transformers_saved(scratch, kind, form):
    model = ml.dense_model(SHAPE, dtype=torch.float32 if form == "single" else torch.bfloat16)
    source = save(scratch / "dense", model, form=form, kind=kind)
    out = naive(scratch, source, model, np=3)
    config = json.loads((out / "config.json").read_text())
    assert (config["rope_theta"], config["rms_norm_eps"]) == (SHAPE.rotary_base, SHAPE.norm_epsilon)
    assert (config["max_position_embeddings"], config["tie_word_embeddings"]) == (SHAPE.positions, False)
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)
    assert json.loads((out / runner.MANIFEST).read_text())["source"]["format"] == "huggingface"


@pytest.mark.parametrize("kv_heads", [1, 4])
def test_one_key_head_and_as_many_as_query_heads(scratch, kv_heads):
    shape = ml.Shape(kv_heads=kv_heads)
    model = ml.dense_model(shape, dtype=torch.float16)
    naive(scratch, save(scratch / "dense", model, shape), model, shape)


@pytest.mark.parametrize("form", ["single", "sharded", "bin"])
def test_tied_embeddings(scratch, form):
    """transformers stores no head in safetensors; a .bin has both names for the same bytes."""
    shape = ml.Shape(tied=True)
    model = ml.dense_model(shape)
    source = save(scratch / "dense", model, shape, form)
    if form == "bin":
        assert HEAD in torch.load(source / "pytorch_model.bin")
    naive(scratch, source, model, shape)


@pytest.mark.parametrize("equal", [True, False])
def test_a_head_stored_although_it_is_tied(scratch, equal):
    shape = ml.Shape(tied=True)
    model = ml.dense_model(shape)
    source = save(scratch / "dense", model, shape)
    tensors = load_file(source / "model.safetensors")
    tensors[HEAD] = tensors[EMBEDDING].clone()
    if not equal:
        tensors[HEAD][7, 3] += 1
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    if equal:
        naive(scratch, source, model, shape)
    else:
        refused(scratch, source, "embedding")


def test_configs_as_transformers_4_wrote_them(scratch):
    """rope_theta at the top, torch_dtype, no head_dim; keys that may be absent or null."""
    model = ml.dense_model(SHAPE)
    source = save(scratch / "dense", model)
    edit_json(
        source / "config.json",
        without=["rope_parameters", "dtype", "head_dim", "attention_bias", "tie_word_embeddings"],
        rope_theta=500000,
        rope_scaling=None,
        torch_dtype="float32",  # of another program: the tensors decide
        pretraining_tp=1,
        eos_token_id=[2, 7],
    )
    out = naive(scratch, source, model)
    config = json.loads((out / "config.json").read_text())
    assert (config["rope_theta"], config["torch_dtype"], config["eos_token_id"]) == (5e5, "bfloat16", [2, 7])


def test_frequencies_in_old_checkpoints_are_counted(scratch):
    model = ml.dense_model(SHAPE)
    source = save(scratch / "dense", model)
    state = dict(model)
    for i in range(SHAPE.layers):
        state[f"model.layers.{i}.self_attn.rotary_emb.inv_freq"] = torch.ones(SHAPE.head_dim // 2)
    (source / "model.safetensors").unlink()
    save_bin(source, state, 2)
    out = naive(scratch, source, model)
    assert json.loads((out / runner.MANIFEST).read_text())["source"]["skipped"]["other"] == SHAPE.layers


def test_parameters_and_metadata_in_a_bin(scratch):
    model = ml.dense_model(SHAPE)
    source = save(scratch / "dense", model, form="bin")
    state = causal_lm(model, SHAPE).state_dict(keep_vars=True)
    assert isinstance(state[EMBEDDING], torch.nn.Parameter) and hasattr(state, "_metadata")
    torch.save(state, source / "pytorch_model.bin")
    naive(scratch, source, model)


def test_transposed_views_in_a_bin(scratch):
    """As a model leaves them whose layers were made for x @ w."""
    model = ml.dense_model(SHAPE)
    source = save(scratch / "dense", model, form="bin")
    views = {k: v.t().contiguous().t() if v.dim() == 2 else v for k, v in model.items()}
    assert not views[EMBEDDING].is_contiguous()
    torch.save(views, source / "pytorch_model.bin")
    naive(scratch, source, model, np=3)


def test_the_file_that_transformers_would_take(scratch):
    """model.safetensors before its index, that before the .bin."""
    model, other = ml.dense_model(SHAPE), ml.dense_model(SHAPE, seed=2)
    source = save(scratch / "dense", model)
    save(scratch / "other", other, form="sharded")
    for path in (scratch / "other").glob("model*"):
        path.rename(source / path.name)
    save_bin(source, other, 1)
    naive(scratch, source, model)
    (source / "model.safetensors").unlink()
    naive(scratch, source, other, target__path=scratch / "Mixtral-2", name="Mixtral-2")


def test_links_as_in_the_hub_cache(scratch):
    model = ml.dense_model(SHAPE)
    cache = scratch / "models--a--b"
    blobs = save(cache / "blobs", model, form="sharded")
    snapshot = cache / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(os.path.relpath(path, snapshot))
    naive(scratch, snapshot, model)
    (scratch / "elsewhere.json").write_text("{}")
    (snapshot / "tokenizer.json").symlink_to(scratch / "elsewhere.json")
    refused(scratch, snapshot, "tokenizer.json", "is a link to a place outside")
    (snapshot / "tokenizer.json").unlink()
    for name in ("config.json", shard(snapshot, 0)):  # the same outside of the cache
        (scratch / name).write_bytes((snapshot / name).read_bytes())
        (snapshot / name).unlink()
        (snapshot / name).symlink_to(scratch / name)
        refused(scratch, snapshot, name, "is a link to a place outside")
        (snapshot / name).unlink()
        (scratch / name).rename(snapshot / name)


def test_a_cut_vocabulary(scratch):
    padded = ml.Shape(vocab=64)
    model = ml.dense_model(padded)
    source = save(scratch / "dense", model, padded, "sharded")
    cut = dict(model, **{name: model[name][: SHAPE.vocab].clone() for name in (EMBEDDING, HEAD)})
    naive(scratch, source, cut, model__vocab_size=SHAPE.vocab)


# ---- the same as from Megatron


def tokenizer(folder):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"w{i}": i for i in range(SHAPE.vocab)}
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")), bos_token="w1", eos_token="w2"
    ).save_pretrained(folder)


def without_carried(out):
    return {k: v for k, v in runner.hashes(out).items() if k not in ("config.json", "generation_config.json")}


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_the_same_bytes_as_from_megatron_shards(scratch, tied):
    """All files but the manifest and those that carry what Megatron has no place for."""
    shape = ml.Shape(ffn=360, kv_heads=4, hidden=136, head_dim=18, heads=8, tied=tied)
    model = ml.dense_model(shape)
    changes = dict(
        upcycle__experts=4,
        upcycle__shuffle=True,
        target__expert_parallel=2,
        target__max_shard_size="1MiB",
        model__vocab_size=shape.vocab,
    )
    shards = ml.save(model, shape, scratch / "megatron", 2, 2)
    seen = {}
    for form in ("single", "sharded", "bin", "bin-sharded"):
        source = save(scratch / form, model, shape, form)
        tokenizer(source)
        for np in (1, 3) if form == "sharded" else (2,):
            out = harness.convert(scratch, source, np=np, name=f"Mixtral-{form}-{np}", **changes)
            seen[form, np] = without_carried(out)
    out = harness.convert(
        scratch, shards, name="Mixtral-megatron", source__tokenizer=str(scratch / "single"), **changes
    )
    expected = without_carried(out)
    assert {"tokenizer.json", INDEX} < set(expected)
    assert len(expected) > 6
    for key, hashes in seen.items():
        assert hashes == expected, key


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_logits_equal_the_dense_models(scratch, kind):
    """The oracle is the directory itself, loaded by transformers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = save(scratch / "dense", ml.dense_model(SHAPE), form="sharded", kind=kind)
    tokenizer(source)
    out = harness.convert(scratch, source, **{**NAIVE, "upcycle__experts": 8})
    dense = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="eager")
    ids = harness.token_ids(SHAPE)
    with torch.no_grad():
        expected = dense.eval()(ids).logits
    assert harness.relative_difference(harness.mixtral_logits(out, ids), expected) < 2e-5
    assert AutoTokenizer.from_pretrained(out).convert_tokens_to_ids("w7") == 7


def test_to_megatron_shards(scratch):
    shape = ml.Shape(kv_heads=4, heads=8, head_dim=6, hidden=48)
    model = ml.dense_model(shape)
    config = runner.write_config(
        scratch / "run.yaml",
        save(scratch / "dense", model, shape, "sharded"),
        scratch / "out",
        mode="reshard",
        upcycle=None,
        target__format="megatron-torch",
        target__tensor_parallel=2,
        target__pipeline_parallel=2,
        target__make_vocab_size_divisible_by=8,
        target__dtype="source",
    )
    result = runner.upcycle(config, np=3)
    assert result.status == 0, str(result)
    again, _ = ml.load(scratch / "out", shape.vocab)
    assert again.keys() == model.keys()
    assert all(harness.same_bits(again[name], model[name]) for name in model)


# ---- detection and inspection


def test_megatron_is_found_first(scratch):
    """A folder of both is Megatron's, unless the configuration says otherwise."""
    model, other = ml.dense_model(SHAPE), ml.dense_model(SHAPE, seed=2)
    both = save(scratch / "both", other)
    ml.save(model, SHAPE, both, 2, 1)
    naive(scratch, both, model, model__vocab_size=SHAPE.vocab)
    naive(scratch, both, other, name="Mixtral-2", source__format="huggingface")


def test_inspect(scratch):
    source = save(scratch / "dense", ml.dense_model(SHAPE), form="sharded", kind="mistral")
    result = runner.run([runner.program("mgr-inspect"), source])
    assert result.status == 0, str(result)
    for words in ("huggingface", "Mistral, weights in", "4 heads in 2 groups of 10", "vocabulary 50"):
        assert words in result.out, str(result)
    assert "model.layers.3.mlp.down_proj.weight" in result.out
    edit_json(source / "config.json", model_type="gemma2")
    result = runner.run([runner.program("mgr-inspect"), source, "--summary"])
    assert result.status == 0 and "passed through unread" in " ".join(result.out.split()), str(result)
    assert "gemma2, weights in" in result.out, str(result)
    edit_json(source / "config.json", model_type="gpt2")
    result = runner.run([runner.program("mgr-inspect"), source, "--summary"])
    assert result.status == 0 and "not one for mgr-upcycle" in result.out and "gpt2" in result.out, str(result)


# ---- refused


@pytest.mark.parametrize(
    "changes,words",
    [
        ({"model_type": "qwen2"}, ["contradicts itself", "LlamaForCausalLM", "qwen2"]),
        ({"model_type": "qwen2", "architectures": None}, ["q_proj.bias", "missing"]),
        ({"model_type": "qwen3", "architectures": None}, ["q_norm.weight", "missing"]),
        ({"model_type": "mixtral", "architectures": None}, ["block_sparse_moe", "missing"]),
        ({"model_type": "qwen2_moe"}, ["contradicts itself", "LlamaForCausalLM", "qwen2_moe"]),
        ({"model_type": "gemma2"}, ["passed through unread"]),
        ({"model_type": "something"}, ["passed through unread"]),
        ({"architectures": ["LlamaForSequenceClassification"]}, ["LlamaForSequenceClassification"]),
        ({"attention_bias": True}, ["q_proj.bias", "missing"]),
        ({"mlp_bias": True}, ["gate_proj.bias", "missing"]),
        ({"mlp_bias": "yes"}, ["mlp_bias", "neither true nor false"]),
        ({"hidden_act": "gelu_pytorch_tanh"}, ["hidden_act", "gelu_pytorch_tanh"]),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, ["quantization_config"]),
        ({"num_local_experts": 8}, ["num_local_experts"]),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, ["rope_scaling.type", "dynamic"]),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, ["rope_scaling and rope_parameters", "differ"]),
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 5e5, "factor": 8.0}},
            ["RoPE scaling", "yarn"],
        ),
        (
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0}},
            ["RoPE scaling", "no rope_parameters.low_freq_factor"],
        ),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor"]),
        ({"rope_theta": 10000.0}, ["base of RoPE"]),  # beside another in rope_parameters
        ({"sliding_window": 32}, ["sliding_window", "32 of 64"]),
        ({"num_hidden_layers": 3}, ["num_hidden_layers", "4"]),
        ({"hidden_size": 48}, ["hidden_size", "40"]),
        ({"vocab_size": 64}, ["vocab_size", "50"]),
        ({"num_key_value_heads": 4}, ["num_key_value_heads"]),
        ({"tie_word_embeddings": True}, ["embedding"]),  # the stored head differs
        ({"without": ["model_type"]}, ["model_type"]),
        ({"without": ["num_attention_heads"]}, ["num_attention_heads"]),
    ],
)
def test_another_architecture_or_size_by_its_config(scratch, changes, words):
    source = save(scratch / "dense", ml.dense_model(SHAPE))
    edit_json(source / "config.json", **dict(changes))
    refused(scratch, source, *words)


def test_mistrals_window_by_default(scratch):
    shape = ml.Shape(positions=8192)
    source = save(scratch / "dense", ml.dense_model(shape), shape, kind="mistral")
    edit_json(source / "config.json", without=["sliding_window"])
    out = naive(scratch, source, ml.dense_model(shape), shape)
    assert json.loads((out / "config.json").read_text())["sliding_window"] == 4096
    config = runner.write_config(
        scratch / "megatron.yaml", source, scratch / "megatron", **NAIVE, target__format="megatron-torch"
    )
    result = runner.upcycle(config, np=2)
    assert result.status == 0 and "--window-size '(4095,0)'" in result.out, str(result)


# ---- real models of every kind


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}


def real(name, shape=SHAPE, **changes):
    """A small model of transformers. Biases and norms, too, are random: zeros and ones would hide
    one that is lost."""
    import transformers

    torch.manual_seed(1)
    settings = dict(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
        attn_implementation="eager",
    )
    if name == "Mistral":
        settings["sliding_window"] = None
    config = getattr(transformers, name + "Config")(**{**settings, **changes})
    lm = getattr(transformers, name + "ForCausalLM")(config).to(torch.float32).eval()
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return lm


def saved(folder, name, **changes):
    """(the model, the folder where transformers saved it)"""
    lm = real(name, **changes)
    lm.save_pretrained(folder)
    return lm, folder


def reshard(scratch, source, name="out", **changes):
    settings = {"mode": "reshard", "upcycle": None, "target__format": "huggingface", **changes}
    return harness.convert(scratch, source, name=name, **settings)


def load(folder):
    """Whatever class its config.json names, strictly."""
    from transformers import AutoModelForCausalLM

    lm, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info.get(kind), (kind, info[kind])
    return lm.eval()


def logits(lm):
    with torch.no_grad():
        return lm(harness.token_ids(SHAPE)).logits


def check_same(lm, out):
    """The directory is this model: every weight, and what it computes."""
    again = load(out)
    want, got = lm.state_dict(), again.state_dict()
    assert want.keys() == got.keys()
    assert all(harness.same_bits(got[name], want[name]) for name in want)
    assert torch.equal(logits(again), logits(lm))
    return again


KINDS = [
    ("Llama", {}, "Llama"),
    ("Llama", {"attention_bias": True}, "Llama"),
    ("Llama", {"mlp_bias": True}, "Llama"),
    ("Llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}, "Llama"),
    ("Llama", {"hidden_act": "gelu"}, "Llama"),
    ("Llama", {"rope_parameters": LLAMA3}, "Llama"),
    ("Llama", {"rope_parameters": LINEAR}, "Llama"),
    ("Mistral", {"head_dim": 6}, "Mistral"),
    ("Qwen2", {}, "Qwen2"),
    ("Qwen2", {"tie_word_embeddings": True, "rope_parameters": LINEAR}, "Qwen2"),
    ("Qwen3", {}, "Qwen3"),
    ("Qwen3", {"attention_bias": True, "head_dim": 12}, "Qwen3"),
]


@pytest.mark.parametrize("name,changes,class_name", KINDS)
def test_every_kind_is_the_same_model_again(scratch, name, changes, class_name):
    lm, source = saved(scratch / "dense", name, **changes)
    out = reshard(scratch, source)
    assert json.loads((out / "config.json").read_text())["architectures"] == [class_name + "ForCausalLM"]
    again = check_same(lm, out)
    for key in ("rope_parameters", "hidden_act", "rms_norm_eps", "max_position_embeddings"):
        assert getattr(again.config, key) == getattr(lm.config, key), key


def test_a_scaled_rope_as_transformers_4_wrote_it(scratch):
    """rope_scaling beside rope_theta; the output has both spellings, and either is the model."""
    lm, source = saved(scratch / "dense", "Llama", rope_parameters=LLAMA3)
    scaling = {key: value for key, value in LLAMA3.items() if key != "rope_theta"}
    edit_json(source / "config.json", without=["rope_parameters"], rope_theta=5e5, rope_scaling=scaling)
    out = reshard(scratch, source)
    check_same(lm, out)
    config = json.loads((out / "config.json").read_text())
    assert (config["rope_scaling"], config["rope_theta"]) == (scaling, 5e5)
    assert config["rope_parameters"] == LLAMA3
    edit_json(out / "config.json", without=["rope_scaling"])
    check_same(lm, out)


def megatron_layer(scratch, source, layer):
    """The tensors of a layer as torch loads them from Megatron's shard."""
    out = reshard_to_megatron(scratch, source)
    (file,) = out.glob("release/mp_rank_00/model_optim_rng.pt")
    prefix = f"decoder.layers.{layer}."
    state = torch.load(file, weights_only=False)["model"]
    return {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}


def reshard_to_megatron(scratch, source):
    config = runner.write_config(
        scratch / "megatron.yaml",
        source,
        scratch / "megatron",
        mode="reshard",
        upcycle=None,
        target__format="megatron-torch",
        target__dtype="source",
    )
    result = runner.upcycle(config, np=2)
    assert result.status == 0, str(result)
    return scratch / "megatron"


def test_norms_of_q_and_k_under_megatrons_names(scratch):
    """A name that is wrong on the way in and on the way out would go unseen otherwise."""
    lm, source = saved(scratch / "dense", "Qwen3")
    layer, attention = megatron_layer(scratch, source, 1), lm.model.layers[1].self_attn
    assert torch.equal(layer["self_attention.q_layernorm.weight"], attention.q_norm.weight)
    assert torch.equal(layer["self_attention.k_layernorm.weight"], attention.k_norm.weight)


def test_biases_under_megatrons_names(scratch):
    lm, source = saved(scratch / "dense", "Llama", attention_bias=True, mlp_bias=True)
    layer, hf = megatron_layer(scratch, source, 2), lm.model.layers[2]
    q, k, v = (getattr(hf.self_attn, x + "_proj").bias.reshape(SHAPE.kv_heads, -1) for x in "qkv")
    assert torch.equal(layer["self_attention.linear_qkv.bias"], torch.cat([q, k, v], dim=1).reshape(-1))
    assert torch.equal(layer["self_attention.linear_proj.bias"], hf.self_attn.o_proj.bias)
    fc1 = torch.cat([hf.mlp.gate_proj.bias, hf.mlp.up_proj.bias])
    assert torch.equal(layer["mlp.linear_fc1.bias"], fc1)
    assert torch.equal(layer["mlp.linear_fc2.bias"], hf.mlp.down_proj.bias)


@pytest.mark.parametrize(
    "changes", [{"hidden_act": "gelu"}, {"rope_parameters": LLAMA3}, {"rope_parameters": LINEAR}]
)
def test_what_mixtral_can_express_is_upcycled(scratch, changes):
    """Equal experts of a naive upcycling compute what the dense model does."""
    lm, source = saved(scratch / "dense", "Llama", **changes)
    out = harness.convert(scratch, source, **{**NAIVE, "upcycle__experts": 4})
    moe = harness.mixtral_logits(out, harness.token_ids(SHAPE))
    assert harness.relative_difference(moe, logits(lm)) < 2e-5
    remarks = json.loads((out / runner.MANIFEST).read_text())["remarks"]["warning"]
    assert any("transformers 4.48" in remark["why"] for remark in remarks) == ("rope_parameters" in changes)


@pytest.mark.parametrize(
    "name,changes,words",
    [
        ("Qwen2", {}, ["biases of q, k and v", "megatron-torch", "megatron-dist"]),
        ("Qwen3", {}, ["norms of q and k", "Qwen3-MoE"]),
        ("Llama", {"mlp_bias": True}, ["biases of the FFN"]),  # and no format holds that
        ("Llama", {"attention_bias": True}, ["biases of the attention", "Granite-MoE"]),
    ],
)
def test_what_mixtral_cannot_express(scratch, name, changes, words):
    _, source = saved(scratch / "dense", name, **changes)
    refused(scratch, source, "moe-recipes", *words)


def test_a_window_that_is_switched_on(scratch):
    on = {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 1}
    _, source = saved(scratch / "dense", "Qwen2", **on)
    refused(scratch, source, "sliding-window", "biases")


def test_a_real_model_of_another_kind(scratch):
    _, source = saved(scratch / "dense", "Gemma")
    refused(scratch, source, "passed through unread")


# ---- Mixtral as the source


EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 3}
MOE = {"target__format": "moe-recipes"}


def mixtral(scratch, **how):
    lm = real("Mixtral", **EXPERTS)
    lm.save_pretrained(scratch / "Mixtral", **how)
    return lm, scratch / "Mixtral"


def fused_by_transformers(scratch):
    """As version 5 has it in memory."""
    lm, source = mixtral(scratch, save_original_format=False)
    assert "model.layers.0.mlp.experts.gate_up_proj" in load_file(source / "model.safetensors")
    return lm, source


@pytest.mark.parametrize("expert_parallel", [1, 4])
def test_a_mixtral_in_other_shards(scratch, expert_parallel):
    """The very tensors that transformers saved, in shards of their owners."""
    lm, source = mixtral(scratch)
    out = reshard(scratch, source, np=3, target__expert_parallel=expert_parallel, **MOE)
    want, got = load_file(source / "model.safetensors"), harness.read_output(out)
    assert want.keys() == got.keys()
    assert all(harness.same_bits(got[name], want[name]) for name in want)
    assert len(set(harness.read_index(out).values())) == 1 + expert_parallel
    again = check_same(lm, out)
    assert (again.config.num_local_experts, again.config.num_experts_per_tok) == (4, 3)
    back = reshard(scratch, out, "back", source__format="moe-recipes", target__max_shard_size="1MiB", **MOE)
    check_same(lm, back)


def test_fused_experts(scratch):
    """per-expert to fused to per-expert; transformers loads both, and fuses to the same tensors."""
    lm, source = mixtral(scratch)
    expected, _ = fused_by_transformers(scratch / "fused-by-transformers")
    fused = reshard(scratch, source, "fused", np=3, target__names="fused", **MOE)
    theirs = load_file(scratch / "fused-by-transformers" / "Mixtral" / "model.safetensors")
    ours = harness.read_output(fused)
    assert ours.keys() == theirs.keys()
    assert all(harness.same_bits(ours[name], theirs[name]) for name in theirs)
    check_same(lm, fused)
    once, twice = (reshard(scratch, s, n, **MOE) for s, n in ((source, "once"), (fused, "twice")))
    assert runner.hashes(once) == runner.hashes(twice)


def test_fused_experts_as_transformers_saves_them(scratch):
    lm, source = fused_by_transformers(scratch)
    check_same(lm, reshard(scratch, source, target__expert_parallel=2, **MOE))


def test_an_upcycled_model_with_fused_experts(scratch):
    model = ml.dense_model(SHAPE)
    source = save(scratch / "dense", model)
    drop = {"target__max_shard_size": "1MiB"}
    ids = harness.token_ids(SHAPE)
    seen = []
    for names in ("per-expert", "fused"):
        out = harness.convert(scratch, source, name="Mixtral-" + names, target__names=names, **drop)
        seen.append(harness.mixtral_logits(out, ids))
    assert torch.equal(*seen)


def test_inspect_a_mixtral(scratch):
    _, source = fused_by_transformers(scratch)
    result = runner.run([runner.program("mgr-inspect"), source])
    assert result.status == 0 and "Mixtral with fused experts" in result.out, str(result)
    assert "format    huggingface" in result.out
    out = reshard(scratch, source, **MOE)
    result = runner.run([runner.program("mgr-inspect"), source, out])
    assert result.status == 0, str(result)


@pytest.mark.parametrize("names", ["per-expert", "fused"])
def test_one_target_for_dense_models_and_mixtures(scratch, names):
    _, source = mixtral(scratch)
    targets = ("huggingface", "moe-recipes", "mixtral")
    made = [reshard(scratch, source, t, target__format=t, target__names=names) for t in targets]
    first, *others = (runner.hashes(out) for out in made)
    assert all(other == first for other in others) and "config.json" in first


def test_a_mixtral_grows_by_multiples_only(scratch):
    _, source = mixtral(scratch)
    refused(scratch, source, "mixture of 4 experts", "times", "reshard", status=runner.CONFIG)


@pytest.mark.parametrize(
    "changes,words,status",
    [
        ({**MOE, "target__names": "te"}, ["target.names", "'te'", "per-expert"], runner.CONFIG),
        ({**MOE, "target__names": "local"}, ["target.names", "'local'"], runner.CONFIG),
        (
            {**MOE, "target__names": "fused", "target__expert_parallel": 2},
            ["expert_parallel", "fused"],
            runner.CONFIG,
        ),
        ({**MOE, "target__expert_parallel": 3}, ["4 experts", "3 expert-parallel"], runner.CONFIG),
        ({**MOE, "model__moe_router_topk": 2}, ["moe_router_topk", "num_experts_per_tok"], runner.CONFIG),
    ],
)
def test_what_a_mixtral_cannot_become(scratch, changes, words, status):
    _, source = mixtral(scratch)
    refused(scratch, source, *words, mode="reshard", upcycle=None, **without_naive(changes), status=status)


def test_names_of_a_dense_target(scratch):
    source = save(scratch / "dense", ml.dense_model(SHAPE))
    changes = without_naive({"target__format": "huggingface", "target__names": "fused"})
    words = ["target.names", "model is dense"]
    refused(scratch, source, *words, mode="reshard", status=runner.CONFIG, **changes)


def without_naive(changes):
    """`refused` upcycles unless told otherwise."""
    return {**dict.fromkeys(NAIVE), **changes}


@pytest.mark.parametrize(
    "option,words",
    [
        (["--norm", "layernorm"], ["LayerNorm"]),
        (["--activation", "gelu"], ["GELU"]),
        (["--activation", "squared-relu", "--positions", "learned"], ["squared ReLU and learned positions"]),
        (["--qkv-bias", "--qk-norm"], ["biases of q, k and v and norms of q and k"]),
    ],
)
def test_what_no_class_computes(scratch, option, words):
    """From Megatron, and by mgr-synth itself."""
    synth = [runner.program("mgr-synth"), "--layers", 2, "--hidden", 32, "--ffn", 48, "--heads", 4]
    result = runner.run([*synth, *option, scratch / "x", "--format", "huggingface"])
    assert result.status == runner.DATA and not (scratch / "x").exists(), str(result)
    for word in words:
        assert word in result.err and "huggingface" in result.err, str(result)
    result = runner.run([*synth, *option, scratch / "dense"])
    assert result.status == 0, str(result)
    changes = without_naive({"target__format": "huggingface"})
    refused(scratch, scratch / "dense", "megatron-torch", *words, mode="reshard", **changes)


def test_biases_that_config_does_not_mention(scratch):
    source = save(scratch / "dense", ml.dense_model(SHAPE))
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.1.self_attn.q_proj.bias"] = torch.zeros(SHAPE.heads * SHAPE.head_dim)
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    refused(scratch, source, "unknown tensor", "layers.1.self_attn.q_proj.bias")


@pytest.mark.parametrize("form", ["single", "sharded", "bin-sharded"])
def test_a_tensor_is_missing(scratch, form):
    model = ml.dense_model(SHAPE)
    source = save(scratch / "dense", model, form=form)
    del model["model.layers.2.mlp.up_proj.weight"]
    for path in source.glob("*model*"):
        path.unlink()
    if form == "single":
        save_file(model, source / "model.safetensors", metadata={"format": "pt"})
    else:
        save_bin(source, model, 2)
    refused(scratch, source, "layers.2.mlp.up_proj.weight", "missing")


def change_map(source, change):
    content = json.loads((source / INDEX).read_text())
    change(content["weight_map"])
    (source / INDEX).write_text(json.dumps(content))


def shard(source, k):
    return sorted(path.name for path in source.glob("*.safetensors"))[k]


def sharded(scratch):
    return save(scratch / "dense", ml.dense_model(SHAPE), form="sharded")


def test_a_missing_shard(scratch):
    source = sharded(scratch)
    name = shard(source, 1)
    (source / name).unlink()
    refused(scratch, source, "missing shard", name, INDEX, status=runner.NO_INPUT)


def test_a_ghost_in_the_index(scratch):
    source = sharded(scratch)
    change_map(source, lambda m: m.update({"model.layers.9.ghost.weight": shard(source, 0)}))
    refused(scratch, source, "model.layers.9.ghost.weight", "not there")


def test_a_shard_that_the_index_leaves_out(scratch):
    source = sharded(scratch)
    first, last = shard(source, 0), shard(source, -1)
    change_map(source, lambda m: m.update({name: last for name in m if m[name] == first}))
    refused(scratch, source, INDEX, EMBEDDING, "not there")


def test_one_tensor_in_another_shard_than_the_index_says(scratch):
    source = sharded(scratch)
    change_map(source, lambda m: m.update({"model.norm.weight": shard(source, 0)}))
    refused(scratch, source, "model.norm.weight", "it is in")


def test_a_tensor_that_the_index_leaves_out(scratch):
    source = sharded(scratch)
    change_map(source, lambda m: m.pop("model.layers.0.mlp.up_proj.weight"))
    refused(scratch, source, "model.layers.0.mlp.up_proj.weight", "is not in")


def test_a_tensor_in_two_shards(scratch):
    source = sharded(scratch)
    first = source / shard(source, 0)
    tensors = load_file(first)
    tensors["model.norm.weight"] = torch.ones(SHAPE.hidden, dtype=torch.bfloat16)
    save_file(tensors, first, metadata={"format": "pt"})
    refused(scratch, source, "model.norm.weight", "both in")


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", ".hidden.safetensors", "x.bin", 7])
def test_an_index_that_leaves_the_directory(scratch, name):
    source = sharded(scratch)
    change_map(source, lambda m: m.update({"model.norm.weight": name}))
    refused(scratch, source, INDEX)


@pytest.mark.parametrize("text", ["{}", '{"weight_map": {}}', '{"weight_map": []}', "[1]", "{", ""])
def test_a_broken_index(scratch, text):
    source = sharded(scratch)
    (source / INDEX).write_text(text)
    refused(scratch, source, INDEX)


@pytest.mark.parametrize("text", ["[]", "{", "", '{"model_type": 3}', '{"a": 1, "a": 2}'])
def test_a_broken_config(scratch, text):
    source = save(scratch / "dense", ml.dense_model(SHAPE))
    (source / "config.json").write_text(text)
    refused(scratch, source, "config.json")


def test_no_weights(scratch):
    source = save(scratch / "dense", ml.dense_model(SHAPE))
    (source / "model.safetensors").unlink()
    refused(scratch, source, "no model.safetensors", status=runner.NO_INPUT)


def test_no_config(scratch):
    source = save(scratch / "dense", ml.dense_model(SHAPE))
    (source / "config.json").unlink()
    refused(scratch, source, status=runner.NO_INPUT)
    refused(scratch, source, "config.json", status=runner.NO_INPUT, source__format="huggingface")


def test_a_bin_that_is_no_state_dict(scratch):
    model = ml.dense_model(SHAPE)
    source = save(scratch / "dense", model, form="bin")
    torch.save({"state_dict": model, "epoch": 3}, source / "pytorch_model.bin")
    refused(scratch, source, "state_dict", "expected a tensor")


def test_a_bin_from_before_the_zip_format(scratch):
    model = ml.dense_model(SHAPE)
    source = save(scratch / "dense", model, form="bin")
    torch.save(model, source / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    refused(scratch, source, "before torch 1.6")


class Call:
    def __reduce__(self):
        return (os.system, ("touch /tmp/mgr-was-here",))


def test_a_bin_that_would_run_code(scratch):
    model = ml.dense_model(SHAPE)
    source = save(scratch / "dense", model, form="bin")
    torch.save(dict(model, x=Call()), source / "pytorch_model.bin")
    refused(scratch, source, "pytorch_model.bin", "system")
    assert not pathlib.Path("/tmp/mgr-was-here").exists()


@pytest.mark.parametrize(
    "changes,words",
    [
        ({"model__num_layers": 5}, ["model.num_layers", "num_hidden_layers"]),
        ({"model__num_query_groups": 4}, ["model.num_query_groups"]),
        ({"model__vocab_size": 51}, ["50 rows"]),
        ({"model__tensor_parallel": 2}, ["model.tensor_parallel"]),
        ({"source__iteration": 100}, ["source.iteration"]),
    ],
)
def test_a_configuration_that_means_another_model(scratch, changes, words):
    source = save(scratch / "dense", ml.dense_model(SHAPE))
    refused(scratch, source, *words, status=runner.CONFIG, **changes)
