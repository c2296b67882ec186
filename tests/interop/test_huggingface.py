"""Source `huggingface`: dense Llama and Mistral directories. transformers and torch write them, the
program reads them with every value right, as it reads the same model from Megatron's shards; what
the target cannot express or the files contradict is refused in one message with no output."""

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
    assert (config["rope_theta"], config["torch_dtype"], config["eos_token_id"]) == (5e5, "bfloat16", 2)


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
    blobs = save(scratch / "blobs", model, form="sharded")
    snapshot = scratch / "models--a--b" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(os.path.relpath(path, snapshot))
    naive(scratch, snapshot, model)


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


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_the_same_bytes_as_from_megatron_shards(scratch, tied):
    """All files but the manifest, config.json and the tokenizer's among them."""
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
            seen[form, np] = runner.hashes(out)
    out = harness.convert(
        scratch, shards, name="Mixtral-megatron", source__tokenizer=str(scratch / "single"), **changes
    )
    expected = runner.hashes(out)
    assert {"config.json", "generation_config.json", "tokenizer.json", INDEX} < set(expected)
    assert len(expected) > 8
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
    edit_json(source / "config.json", model_type="qwen2")
    result = runner.run([runner.program("mgr-inspect"), source, "--summary"])
    assert result.status == 0 and "not one for mgr-upcycle" in result.out and "qwen2" in result.out, str(result)


# ---- refused


@pytest.mark.parametrize(
    "changes,words",
    [
        ({"model_type": "qwen2"}, ["qwen2", "bias"]),
        ({"model_type": "qwen3"}, ["qwen3", "norms of q and k"]),
        ({"model_type": "mixtral"}, ["mixture of experts"]),
        ({"model_type": "gemma2"}, ["gemma2"]),
        ({"model_type": "something"}, ["something", "llama, mistral"]),
        ({"architectures": ["LlamaForSequenceClassification"]}, ["LlamaForSequenceClassification"]),
        ({"attention_bias": True}, ["attention_bias"]),
        ({"mlp_bias": True}, ["mlp_bias"]),
        ({"hidden_act": "gelu"}, ["hidden_act", "gelu"]),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, ["quantization_config"]),
        ({"num_local_experts": 8}, ["num_local_experts"]),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, ["rope_scaling.type", "linear"]),
        (
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0}},
            ["RoPE scaling", "llama3"],
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
    refused(scratch, source, "sliding_window", "by default")
    naive(scratch, source, ml.dense_model(shape), shape, model__max_position_embeddings=4096)


def real(name, shape):
    """Small models of other kinds, as transformers saves them."""
    import transformers

    config = getattr(transformers, name + "Config")
    return getattr(transformers, name + "ForCausalLM")(
        config(
            vocab_size=shape.vocab,
            hidden_size=shape.hidden,
            intermediate_size=shape.ffn,
            num_hidden_layers=2,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
        )
    )


@pytest.mark.parametrize("name", ["Qwen2", "Qwen3", "Mixtral", "Gemma"])
def test_real_models_of_other_kinds(scratch, name):
    real(name, SHAPE).save_pretrained(scratch / "dense")
    refused(scratch, scratch / "dense", name.lower())


def test_biases_that_config_does_not_mention(scratch):
    source = save(scratch / "dense", ml.dense_model(SHAPE))
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.1.self_attn.q_proj.bias"] = torch.zeros(SHAPE.heads * SHAPE.head_dim)
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    refused(scratch, source, "unknown tensor", "layers.1.self_attn.q_proj.bias")


def test_mixed_types(scratch):
    source = save(scratch / "dense", ml.dense_model(SHAPE))
    tensors = load_file(source / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float()
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    refused(scratch, source, "model.norm.weight", "float32", "bfloat16")


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
