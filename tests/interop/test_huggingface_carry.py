"""What lies beside the weights of a Hugging Face folder is carried, and what people have instead of a
folder is named. No model is built here: config.json and the files beside it are compared."""

import json

import pytest
import torch
from safetensors.torch import save_file

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
    "zero_pp_rank_0_mp_rank_00_model_states.pt": "zero_to_fp32.py",
    "global_step5/mp_rank_00_model_states.pt": "zero_to_fp32.py",
    "checkpoint-500/config.json": "checkpoint-1000",
    "consolidated.00.pth": "convert_llama_weights_to_hf.py",
    "x.nemo": "NeMo",
    "x.gguf": "GGUF",
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
    "begin with 'module.'": lambda t: {"module." + k: v for k, v in t.items()},
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


assert harness  # its path is set up there
