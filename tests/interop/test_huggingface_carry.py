"""What lies beside the weights of a Hugging Face folder is carried, and what people have instead of a
folder is named. No model is built here: config.json and the files beside it are compared."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import harness  # puts tests/cli on the path
import megatron_like as ml
import runner

SHAPE = ml.Shape(layers=2)
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": SHAPE.vocab,
    "hidden_size": SHAPE.hidden,
    "intermediate_size": SHAPE.ffn,
    "num_hidden_layers": SHAPE.layers,
    "num_attention_heads": SHAPE.heads,
    "num_key_value_heads": SHAPE.kv_heads,
    "head_dim": SHAPE.head_dim,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "max_position_embeddings": 64,
    "attention_dropout": 0.1,
    "use_cache": False,
    "bos_token_id": 1,
    "eos_token_id": [2, 3, 4],
    "pad_token_id": 5,
    "torch_dtype": "bfloat16",
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3["original_max_position_embeddings"] = 16
GENERATION = {"eos_token_id": [2, 3, 4], "do_sample": True, "temperature": 0.6, "top_p": 0.9}


def folder(path, **changes):
    path.mkdir(parents=True)
    save_file({k: v.contiguous() for k, v in ml.dense_model(SHAPE).items()}, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({**LLAMA, **changes}))
    (path / "generation_config.json").write_text(json.dumps(GENERATION, indent=7))
    return path


def run(scratch, source, name, *options, **changes):
    settings = {"mode": "reshard", "upcycle": None, "target__format": "huggingface", **changes}
    config = runner.write_config(scratch / "run.yaml", source, scratch / name, **settings)
    return runner.run([runner.program("mgr-upcycle"), *options, config])


def reshard(scratch, source, name, **changes):
    result = run(scratch, source, name, **changes)
    assert result.status == 0, str(result)
    return scratch / name, result


def remarks(out):
    kinds = json.loads((out / runner.MANIFEST).read_text())["remarks"]
    return {kind: {entry.get("field") for entry in entries} for kind, entries in kinds.items()}


@pytest.mark.parametrize("way", [None, "hdf5"])
def test_every_field_arrives_or_is_named(scratch, way):
    source = folder(scratch / "a", sep_token_id=7, transformers_version="4.46.0", tokenizer_class="X")
    for name in ("tokenizer.json", "qwen.tiktoken", "tokenization_x.py", "LICENSE", "chat_template.jinja"):
        (source / name).write_text("{}")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tool.jinja").write_text("t")
    (source / "secret.txt").write_text("no")
    there = reshard(scratch, source, "there", target__format=way)[0] if way else source
    out, result = reshard(scratch, there, "out")
    want, got = (json.loads((f / "config.json").read_text()) for f in (source, out))
    assert {key: got.get(key) for key in want} == want
    named = remarks(out).get("set", set()) | (remarks(there)["set"] if way else set())
    assert set(got) - set(want) <= named, str(result)
    for path in source.rglob("*"):
        if path.is_file() and path.name not in ("config.json", "model.safetensors", "secret.txt"):
            assert (out / path.relative_to(source)).read_bytes() == path.read_bytes(), path
    assert not (out / "secret.txt").exists()


ROUTER = {"router_aux_loss_coef": 0.001, "output_router_logits": False, "router_jitter_noise": 0.01}


@pytest.mark.parametrize("way", [None, "hdf5"])
def test_settings_of_a_mixture_arrive(scratch, way):
    """Of its router above all: nothing but the trainer reads them."""
    source = runner.synth_folder(scratch / "a", "--experts", 4)
    config = json.loads((source / "config.json").read_text())
    settings = {**ROUTER, "attention_dropout": 0.1, "use_cache": False, "eos_token_id": [2, 3, 4], "pad_token_id": 5}
    (source / "config.json").write_text(json.dumps({**config, **settings}))
    there = reshard(scratch, source, "there", target__format=way)[0] if way else source
    out, _ = reshard(scratch, there, "Mixtral", target__format="moe-recipes")
    got = json.loads((out / "config.json").read_text())
    assert {key: got[key] for key in settings} == settings


def test_settings_of_the_dense_model_arrive_in_the_mixture(scratch):
    source = folder(scratch / "a")
    (source / "adapter_model.safetensors").write_bytes(b"x")
    upcycle = {"experts": 4, "top_k": 2, "ratio": 0.5, "seed": 1}
    result = run(scratch, source, "Mixtral", mode="upcycle", upcycle=upcycle, target__format="moe-recipes")
    assert result.status == 0 and "adapter_model.safetensors" in result.out, str(result)
    got = json.loads((scratch / "Mixtral" / "config.json").read_text())
    for key in ("eos_token_id", "pad_token_id", "attention_dropout", "use_cache", "rope_theta"):
        assert got[key] == LLAMA[key], key
    generation = (scratch / "Mixtral" / "generation_config.json").read_bytes()
    assert generation == (source / "generation_config.json").read_bytes()
    kept = json.loads((scratch / "Mixtral" / runner.MANIFEST).read_text())["remarks"]["warning"]
    assert any("adapter_model.safetensors" in remark["why"] for remark in kept)


def test_a_field_that_the_user_sets(scratch):
    source = folder(scratch / "a")
    result = run(scratch, source, "out", "--set", 'target.config={"use_cache": true, "pad_token_id": 6}')
    assert result.status == 0, str(result)
    got = json.loads((scratch / "out" / "config.json").read_text())
    assert (got["use_cache"], got["pad_token_id"], got["attention_dropout"]) == (True, 6, 0.1)
    assert {"use_cache", "pad_token_id"} <= remarks(scratch / "out")["altered"]
    refused = run(scratch, source, "no", "--set", 'target.config={"hidden_size": 8}')
    assert refused.status == runner.USAGE and "hidden_size" in refused.err, str(refused)


@pytest.mark.parametrize(
    "changes,words",
    [
        ({"is_causal": False}, ["is_causal", "false"]),
        ({"is_causal": None}, ["is_causal", "null"]),  # false, to transformers 4
        ({"attention_multiplier": 2.0}, ["attention_multiplier", "source.unknown: warn"]),
        ({"auto_map": {"AutoModel": "x.Y"}, "model_type": "mine"}, ["mine"]),
        ({"architectures": ["MistralForCausalLM"]}, ["contradicts itself"]),
        ({"sliding_window": 8}, ["sliding_window"]),
        ({"layer_types": ["full_attention", "sliding_attention"]}, ["layer_types.1"]),
        ({"tie_word_embeddings": True}, ["tied", "lm_head.weight"]),
        ({"rope_scaling": {"type": "linear", "rope_type": "llama3", "factor": 2.0}}, ["differ"]),
        ({"rope_scaling": LLAMA3, "original_max_position_embeddings": 8}, ["two values of original_max", "8", "16"]),
        # a window that is not switched on: transformers 5 fails on it, 4 computes without
        ({"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "sliding_window": 8,
          "layer_types": ["full_attention", "sliding_attention"]}, ["layer_types.1", "sliding_window"]),
    ],
)
def test_refused_in_a_dry_run_too(scratch, changes, words):
    result = run(scratch, folder(scratch / "a", **changes), "out", "--dry-run")
    assert result.status == runner.DATA and len(result.errors()) == 1, str(result)
    assert all(word in result.err for word in words), str(result)


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_scaling": {}},
        {"sliding_window": 64},
        {"use_sliding_window": False},
        {"auto_map": {"AutoModel": "x.Y"}},
        {"attention_multiplier": 0},
        {"task_specific_params": {"limit": float("inf"), "none": float("nan")}},
        {"id2label": {"0": "a.b"}},
    ],
)
def test_taken(scratch, changes):
    out, _ = reshard(scratch, folder(scratch / "a", **changes), "out")
    got = json.loads((out / "config.json").read_text())
    for key, value in changes.items():
        if key == "auto_map":
            assert key not in got and key in remarks(out)["dropped"]
        elif key != "rope_scaling":
            assert json.dumps(got[key]) == json.dumps(value)


def test_an_unknown_key_at_the_users_word(scratch):
    source = folder(scratch / "a", attention_multiplier=2.0)
    out, _ = reshard(scratch, source, "out", source__unknown="warn")
    assert "attention_multiplier" in remarks(out)["unknown"]


# ---- what people have instead

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 4976698672\n"
HEADS = {
    "git lfs pull": LFS,
    "a web page": b"<!DOCTYPE html><html>",
    "GGUF": b"GGUF\3\0\0\0" + bytes(64),
    "gzip": b"\x1f\x8b\x08" + bytes(64),
    "under another name": b"PK\x03\x04" + bytes(64),
    "is empty": b"",
}


@pytest.mark.parametrize("words", HEADS)
def test_a_file_that_is_something_else(scratch, words):
    source = folder(scratch / "a")
    (source / "model.safetensors").write_bytes(HEADS[words])
    result = run(scratch, source, "out")
    assert result.status == runner.DATA and words in result.err and "hint:" in result.err, str(result)


ROOTS = {
    "snapshots/0123/config.json": "cache of the Hugging Face hub",
    "models--a--b/refs/main": "cache of the Hugging Face hub",
    "adapter_config.json": "PEFT",
    "global_step5/zero_pp_rank_0_mp_rank_00_model_states.pt": "global_step1000",
    "global_step5/mp_rank_00_model_states.pt": "global_step1000",
    "checkpoint-500/config.json": "checkpoint-1000",
    "consolidated.00.pth": "convert_llama_weights_to_hf.py",
    "x.nemo": "NeMo",
    "x.gguf": "GGUF",
    "zero_to_fp32.py": "model_states.pt",
    "__0_0.distcp": "fetch it, too",
    "iter_0000005/x": "without an iteration that is whole",
    "model_weights/x": "NeMo",
}


@pytest.mark.parametrize("name", ROOTS)
def test_a_folder_that_is_something_else(scratch, name):
    (scratch / "a" / name).parent.mkdir(parents=True)
    (scratch / "a" / name).write_text("x")
    result = run(scratch, scratch / "a", "out")
    assert result.status == runner.DATA and ROOTS[name] in result.err and "hint:" in result.err, str(result)


@pytest.mark.parametrize(
    "name", ["other.bin", "other.safetensors", "x.gguf", "model-00001-of-00002.safetensors", "tf_model.h5"]
)
def test_weights_under_another_name(scratch, name):
    source = folder(scratch / "a")
    (source / "model.safetensors").rename(source / name)
    result = run(scratch, source, "out")
    assert result.status == runner.NO_INPUT and name in result.err and "hint:" in result.err, str(result)


TENSORS = {
    "only some begin with 'module.'": lambda t: {
        ("module." if "norm" in k else "") + k: v for k, v in t.items()
    },
    "PEFT": lambda t: {"base_model.model." + k: v for k, v in t.items()},
    "ForCausalLM": lambda t: {k.removeprefix("model."): v for k, v in t.items()},
    "ZeRO-3": lambda t: {**t, "model.norm.weight": torch.empty(0)},
    "double precision": lambda t: {**t, "model.norm.weight": t["model.norm.weight"].double()},
    "quantised": lambda t: {**t, "model.norm.weight": t["model.norm.weight"].to(torch.int8)},
}


@pytest.mark.parametrize("words", TENSORS)
def test_tensors_that_are_something_else(scratch, words):
    source = folder(scratch / "a")
    tensors = {k: v.contiguous() for k, v in ml.dense_model(SHAPE).items()}
    save_file(TENSORS[words](tensors), source / "model.safetensors")
    result = run(scratch, source, "out")
    assert result.status == runner.DATA and words in result.err + result.out, str(result)


def wrapped(scratch, depth, name, split):
    """A folder whose names begin with `depth` times 'module.', in one file or in two with an index."""
    source = folder(scratch / "wrapped")
    (source / "model.safetensors").unlink()
    tensors = {"module." * depth + k: v for k, v in ml.dense_model(SHAPE).items()}
    stem, suffix = name.split(".")
    half = len(tensors) // 2 if split else len(tensors)
    parts = [dict(list(tensors.items())[:half]), dict(list(tensors.items())[half:])]
    files = [f"{stem}-0000{i}-of-00002.{suffix}" for i in (1, 2)] if split else [name]
    for file, part in zip(files, parts):
        if suffix == "bin":
            torch.save(part, source / file)
        else:
            save_file({k: v.contiguous() for k, v in part.items()}, source / file)
    if split:
        where = {key: file for file, part in zip(files, parts) for key in part}
        (source / (name + ".index.json")).write_text(json.dumps({"weight_map": where}))
    return source, files


@pytest.mark.parametrize("name", ["fp32_model.bin", "pytorch_model.bin", "model.safetensors"])
@pytest.mark.parametrize("depth, split", [(1, False), (2, True), (0, True)])
def test_names_of_a_wrapped_model(scratch, name, depth, split):
    source, _ = wrapped(scratch, depth, name, split)
    out, _ = reshard(scratch, source, "out")
    plain, _ = reshard(scratch, folder(scratch / "a"), "plain")
    assert (out / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()


def test_shards_of_two_wrappings_are_refused(scratch):
    source, files = wrapped(scratch, 1, "model.safetensors", True)
    tensors = load_file(source / files[1])
    save_file({k.removeprefix("module."): v for k, v in tensors.items()}, source / files[1])
    result = run(scratch, source, "out")
    assert result.status == runner.DATA and all(name in result.err for name in files), str(result)


def test_what_lies_beside_and_is_not_read(scratch):
    source = folder(scratch / "a")
    (source / "adapter_model.safetensors").write_bytes(b"x")
    (source / "pytorch_model.bin").write_bytes(b"x")
    _, result = reshard(scratch, source, "out")
    assert "adapter_model.safetensors" in result.out and "two sets of weights" in result.out, str(result)


def test_a_link_out_of_the_source(scratch):
    source = folder(scratch / "a")
    (scratch / "passwords.json").write_text("{}")
    (source / "tokenizer.json").symlink_to(scratch / "passwords.json")
    result = run(scratch, source, "out", "--dry-run")
    assert result.status == runner.DATA and "is a link to a place outside" in result.err, str(result)


# ---- there and back, by way of every format

TYPES = {
    "bf16": lambda name: torch.bfloat16,
    "fp16": lambda name: torch.float16,
    "fp32": lambda name: torch.float32,
    "mixed": lambda name: torch.float32 if "norm" in name or "embed" in name else torch.bfloat16,
}
NAMED = ("set", "altered", "dropped")


def differences(want, got):
    return {key for key in {*want, *got} if want.get(key, "absent") != got.get(key, "absent")}


def summary_names(result):
    """What the summary says of fields: the words of its lines, however they are wrapped."""
    words, kind = set(), None
    for line in result.out.splitlines():
        kind = line.split()[0] if line[:1].strip() else kind
        if kind in NAMED:
            words |= {part.split()[0] for part in line[9:].split(",") if part.split()}
    return words


@pytest.mark.parametrize("types", TYPES)
@pytest.mark.parametrize("way", ["huggingface", "hdf5", "megatron-torch", "megatron-dist"])
def test_there_and_back(scratch, way, types):
    """config.json, generation_config.json and the tokenizer's files are equal, or the summaries name
    each difference; every value is, bit for bit."""
    source = folder(scratch / "a", sep_token_id=7, tokenizer_class="X", transformers_version="4.46.0")
    tensors = {k: v.to(TYPES[types](k)).contiguous() for k, v in ml.dense_model(SHAPE).items()}
    save_file(tensors, source / "model.safetensors")
    beside = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "LICENSE")
    for name in beside:
        (source / name).write_text('{"model": {"vocab": {}}}')
    split = {"target__tensor_parallel": 2} if way.startswith("megatron") else {}
    there, first = reshard(scratch, source, "there", target__format=way, **split)
    out, second = reshard(scratch, there, "out")
    want, got = (json.loads((f / "config.json").read_text()) for f in (source, out))
    named = set().union(*(remarks(o).get(kind, set()) for o in (there, out) for kind in NAMED))
    assert differences(want, got) <= named, differences(want, got) - named
    assert differences(want, got) <= summary_names(first) | summary_names(second), second.out
    for name in (*beside, "generation_config.json"):
        assert (out / name).read_bytes() == (source / name).read_bytes(), name
    back = harness.read_output(out)
    assert back.keys() == tensors.keys()
    assert all(harness.same_bits(back[name], tensors[name]) for name in tensors)


def test_the_comparison_of_summaries_would_notice():
    class Shown:
        out = "set       head_dim 16,\n          rope 2\ncarried   17 fields\naltered   a 1 -> 2\n"

    assert summary_names(Shown) == {"head_dim", "rope", "a"}
    assert differences({"a": 1, "b": None}, {"a": 1.5, "b": None, "c": None}) == {"a", "c"}


# ---- tokenizers


def megatron(scratch):
    return ml.save(ml.dense_model(SHAPE), SHAPE, scratch / "megatron", 2, 1)


SPECIALS = {
    "added_tokens_decoder": {"7": {"content": "<s>"}, "9": {"content": "</s>"}, "11": {"content": "<pad>"}},
    "bos_token": "<s>",
    "eos_token": {"content": "</s>", "lstrip": False},
    "pad_token": "<pad>",
    "model_max_length": 10**30,
}


def test_ids_of_special_tokens_come_from_the_tokenizer(scratch):
    (scratch / "tokenizer").mkdir()
    (scratch / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(SPECIALS))
    changes = {"source__tokenizer": scratch / "tokenizer", "model__vocab_size": SHAPE.vocab}
    out, _ = reshard(scratch, megatron(scratch), "out", **changes)
    for name in ("config.json", "generation_config.json"):
        ids = json.loads((out / name).read_text())
        assert (ids["bos_token_id"], ids["eos_token_id"], ids["pad_token_id"]) == (7, 9, 11), name


def test_ids_that_config_json_gives_win(scratch):
    source = folder(scratch / "a")
    (source / "tokenizer_config.json").write_text(json.dumps(SPECIALS))
    got = json.loads((reshard(scratch, source, "out")[0] / "config.json").read_text())
    assert (got["bos_token_id"], got["eos_token_id"], got["pad_token_id"]) == (1, [2, 3, 4], 5)


@pytest.mark.parametrize(
    "name,becomes", [("llm.model", "tokenizer.model"), ("v3.json", "tokenizer.json"), ("vocab.txt", "vocab.txt")]
)
def test_a_tokenizer_that_is_one_file(scratch, name, becomes):
    (scratch / name).write_text("{}")
    changes = {"source__tokenizer": scratch / name, "model__vocab_size": SHAPE.vocab}
    out, _ = reshard(scratch, megatron(scratch), "out", **changes)
    assert (out / becomes).read_text() == "{}"
    (scratch / "thesis.tex").write_text("me")
    result = run(scratch, scratch / "megatron", "no", source__tokenizer=scratch / "thesis.tex")
    assert result.status == runner.CONFIG and "no file of a tokenizer" in result.err, str(result)


@pytest.mark.parametrize(
    "name,content",
    [
        ("tokenizer.json", {"model": {"vocab": {"a": 0, "b": SHAPE.vocab}}}),
        ("tokenizer.json", {"model": {"vocab": [["a", 0.0]] * (SHAPE.vocab + 1)}}),
        ("tokenizer.json", {"added_tokens": [{"id": SHAPE.vocab, "content": "x"}], "model": {"vocab": {"a": 0}}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {str(SHAPE.vocab): {"content": "x"}}}),
        ("vocab.json", {"a": SHAPE.vocab}),
    ],
)
def test_a_tokenizer_longer_than_the_vocabulary_is_said(scratch, name, content):
    source = folder(scratch / "a")
    (source / name).write_text(json.dumps(content))
    _, result = reshard(scratch, source, "out")
    words = " ".join(result.out.split())
    assert f"gives out {SHAPE.vocab + 1} ids, the vocabulary has {SHAPE.vocab} rows" in words, str(result)
    assert any("gives out" in e["why"] for e in json.loads((scratch / "out" / runner.MANIFEST).read_text())["remarks"]["warning"])


def test_a_tokenizer_that_is_a_git_lfs_pointer(scratch):
    source = folder(scratch / "a")
    (source / "tokenizer.model").write_bytes(LFS)
    result = run(scratch, source, "out", "--dry-run")
    assert result.status == runner.DATA, str(result)
    assert "tokenizer.model' is a git-lfs pointer" in result.err and "git lfs pull" in result.err, str(result)


# ---- what people write


@pytest.mark.parametrize(
    "place,status,words",
    [
        ("~/model", runner.CONFIG, ["~", "write the home folder in full"]),
        ("$SCRATCH/model", runner.CONFIG, ["$SCRATCH", "--set source.path"]),
        ("someone/some-model-7b", runner.NO_INPUT, ["hf download someone/some-model-7b"]),
    ],
)
def test_a_place_that_is_no_folder(scratch, place, status, words):
    result = run(scratch, place, "out")
    assert result.status == status and len(result.errors()) == 1, str(result)
    assert all(word in result.err for word in words), str(result)


def test_other_spellings_of_values(scratch):
    source = folder(scratch / "a")
    (scratch / "run.yaml").write_text(
        f"mode: reshard\nsource: {{path: {source}, allow_nonfinite: True}}\n"
        f"target: {{path: {scratch / 'out'}, format: huggingface, dtype: bf16}}\n"
    )
    result = runner.run([runner.program("mgr-upcycle"), scratch / "run.yaml"])
    assert result.status == 0, str(result)
    assert {t.dtype for t in harness.read_output(scratch / "out").values()} == {torch.bfloat16}
    refused = run(scratch, source, "no", memory_per_rank="2G")
    assert refused.status == runner.CONFIG and "2GiB" in refused.err, str(refused)
