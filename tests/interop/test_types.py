"""Element types: each tensor has its own, and resharding keeps it, through every pair of formats."""

import json
import random

import pytest
import torch
from safetensors.torch import load_file, save_file

import harness
import runner

FORMATS = {
    "huggingface": {},
    "megatron-torch": {"target__tensor_parallel": 2, "target__make_vocab_size_divisible_by": 8},
    "megatron-dist": {"target__make_vocab_size_divisible_by": 8},
    "hdf5": {},
}
TYPES = (torch.bfloat16, torch.float16, torch.float32)


def reshard(source, out, name, **changes):
    changes = {"target__format": name, **FORMATS.get(name, {}), **changes}
    config = runner.write_config(
        out.with_suffix(".yaml"), source, out, mode="reshard", upcycle=None, **changes
    )
    return runner.run([runner.program("mgr-upcycle"), config])


def resharded(source, out, name, **changes):
    result = reshard(source, out, name, **changes)
    assert result.status == 0, str(result)
    return out


def mix(folder, choose):
    """Give each tensor of a Hugging Face folder the type that `choose(name)` says, with values that
    it and every other type can hold; the tensors."""
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        here = load_file(path)
        for name, value in here.items():
            here[name] = value.to(torch.float16).to(torch.bfloat16).to(choose(name))
        # below bfloat16's bits, where there is room for them
        for name, value in here.items():
            if value.dtype == torch.float32:
                here[name] = value * (1 + 2.0**-20)
        save_file(here, path, metadata={"format": "pt"})
        tensors.update(here)
    return tensors


def synth(out, experts):
    words = ["--experts", experts, "--top-k", 2] if experts else []
    return runner.synth_folder(out, "--layers", 3, "--vocab", 64, *words)


def norms_and_routers(name):
    return torch.float32 if "norm" in name or "block_sparse_moe.gate" in name else torch.bfloat16


def anything(seed):
    draw = random.Random(seed)
    return lambda name: draw.choice(TYPES)


def check(found, wanted, fused):
    """Values are equal; types too, but that what a format stores together is widened together."""
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        if fused:
            assert found[name].dtype in (value.dtype, torch.float32), name
            assert torch.equal(found[name].float(), value.float()), name
        else:
            assert harness.same_bits(found[name], value), name


@pytest.mark.parametrize("experts", [0, 4], ids=["dense", "experts"])
@pytest.mark.parametrize("choose", [norms_and_routers, anything(5)], ids=["norms", "anything"])
def test_there_and_back_through_every_pair(scratch, choose, experts):
    source = synth(scratch / "source", experts)
    wanted = mix(source, choose)
    home = "moe-recipes" if experts else "huggingface"
    formats = [home] + [name for name in FORMATS if name != "huggingface"]
    first = {name: resharded(source, scratch / name, name) for name in formats}
    for a in formats:
        for b in formats:
            then = resharded(first[a], scratch / f"{a}-{b}", b)
            back = resharded(then, scratch / f"{a}-{b}-back", home)
            fused = choose is not norms_and_routers and any("megatron" in name for name in (a, b))
            check(harness.read_output(back), wanted, fused)
            assert json.loads((back / "config.json").read_text())["torch_dtype"] in map(
                harness.DTYPE_NAMES.get, TYPES
            )


def test_a_target_type_is_that_of_every_tensor(scratch):
    source = synth(scratch / "source", 0)
    wanted = mix(source, norms_and_routers)
    out = resharded(source, scratch / "out", "huggingface", target__dtype="bfloat16")
    for name, value in harness.read_output(out).items():
        assert harness.same_bits(value, wanted[name].to(torch.bfloat16)), name


@pytest.mark.parametrize("method", ["naive", "drop"])
def test_upcycling_from_mixed_types(scratch, method):
    """Experts have the types of the matrices they come from; without `dtype: source`, the target's."""
    source = synth(scratch / "source", 0)
    wanted = mix(source, lambda name: torch.float32 if "norm" in name or "up_proj" in name else torch.bfloat16)
    kept = harness.convert(scratch, source, name="Mixtral-kept", upcycle__method=method)
    plain = harness.convert(scratch, source, name="Mixtral-bf16", upcycle__method=method, target__dtype=None)
    for name, value in harness.read_output(plain).items():
        assert value.dtype == torch.bfloat16, name
    for name, value in harness.read_output(kept).items():
        wide = "norm" in name or ".w3." in name
        assert value.dtype == (torch.float32 if wide else torch.bfloat16), name
        if method == "naive" and ".w3." in name:
            layer = name.split(".")[2]
            assert harness.same_bits(value, wanted[f"model.layers.{layer}.mlp.up_proj.weight"])


def test_parts_of_one_tensor_in_two_types_are_refused(scratch):
    source = runner.synth(scratch / "dense", tp=2)
    path = next(source.rglob("mp_rank_01*/model_optim_rng.pt"))
    state = torch.load(path, weights_only=False)
    name = "decoder.layers.0.mlp.linear_fc2.weight"
    state["model"][name] = state["model"][name].float()
    torch.save(state, path)
    result = reshard(source, scratch / "out", "huggingface")
    assert result.status == runner.DATA, str(result)
    assert "layer 0 down is bfloat16" in result.err and "has type float32" in result.err, str(result)


@pytest.mark.parametrize("name", ["megatron-torch", "megatron-dist"])
def test_the_true_vocabulary_comes_back(scratch, name):
    """Padded for two ranks, by a divisor of the source's; the way back cuts the padding, and says so."""
    source = runner.synth_folder(scratch / "source", "--vocab", 100)
    padded = {"target__tensor_parallel": 2, "target__make_vocab_size_divisible_by": 64}
    result = reshard(source, scratch / "padded", name, **padded)
    assert result.status == 0 and "100 rows of the vocabulary are padded" in result.out, str(result)
    plain = {"target__tensor_parallel": None, "target__make_vocab_size_divisible_by": None}
    again = resharded(scratch / "padded", scratch / "again", "megatron-torch", **plain)
    args = torch.load(next(again.rglob("model_optim_rng.pt")), weights_only=False)["args"]
    assert (args.make_vocab_size_divisible_by, args.padded_vocab_size, args.vocab_size) == (64, 128, 100)
    result = reshard(scratch / "padded", scratch / "back", "huggingface")
    assert result.status == 0 and "100 of the source's 128 rows" in result.out, str(result)
    check(harness.read_output(scratch / "back"), harness.read_output(source), False)


def test_a_number_that_pads_to_something_else_is_no_vocabulary(scratch):
    source = runner.synth(scratch / "dense", vocab=128)
    path = next(source.rglob("model_optim_rng.pt"))
    for size, tokenizer, rows in ((100, "Llama2Tokenizer", 100), (100, "NullTokenizer", 128), (129, "X", 128)):
        state = torch.load(path, weights_only=False)
        state["args"].vocab_size, state["args"].tokenizer_type = size, tokenizer
        torch.save(state, path)
        out = resharded(source, scratch / f"{size}{tokenizer}", "huggingface")
        assert json.loads((out / "config.json").read_text())["vocab_size"] == rows


@pytest.mark.parametrize("names", ["te", "local"])
def test_names_follow_the_source(scratch, names):
    source = runner.synth(scratch / "dense", names=names)
    out = resharded(source, scratch / "out", "megatron-torch")
    keys = torch.load(next(out.rglob("model_optim_rng.pt")), weights_only=False)["model"].keys()
    assert any("input_layernorm" in key for key in keys) == (names == "local")
