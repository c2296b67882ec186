"""Values are looked at: what is not finite, or too large for the target's type, is found wherever it
is, in every mode, and named with its place; matrices of zeros are said."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import harness
import runner

METHODS = ["naive", "noise", "drop", "reshard"]


@pytest.fixture(scope="module")
def source(module_scratch):
    return runner.synth_folder(module_scratch / "dense", "--layers", 2)


def changed(source, folder, name, place, value, dtype=None):
    tensors = load_file(source / "model.safetensors")
    tensors = {n: t.to(dtype) if dtype else t for n, t in tensors.items()}
    tensors[name][place] = value
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    return folder


def convert(folder, source, method, **changes):
    reshard = {"mode": "reshard", "upcycle": None, "target__format": "huggingface"}
    words = reshard if method == "reshard" else {"upcycle__method": method}
    config = runner.write_config(
        folder / "run.yaml", source, folder / "Mixtral-out", **{**words, **changes}
    )
    return runner.upcycle(config, np=2)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "name,label,place,value,said",
    [
        ("model.layers.1.self_attn.q_proj.weight", "layer 1 q", (5, 7), "nan", "NaN"),
        ("model.layers.1.mlp.down_proj.weight", "layer 1 down", (63, 95), "-inf", "infinite"),
        ("model.layers.0.mlp.up_proj.weight", "layer 0 up", (95, 0), "nan", "NaN"),
        ("lm_head.weight", "lm head", (127, 63), "inf", "infinite"),
        ("model.norm.weight", "final norm", (9,), "nan", "NaN"),
    ],
)
def test_what_is_not_finite_is_refused_with_its_place(
    scratch, source, method, name, label, place, value, said
):
    folder = changed(source, scratch / "bad", name, place, float(value))
    result = convert(scratch, folder, method)
    row, column = (*place, 0)[:2]
    assert result.status == runner.DATA, str(result)
    assert len(result.errors()) == 1, str(result)
    assert f"{label}, row {row}, column {column} ('{name}' in '{folder}/model.safetensors'" in result.err
    assert result.err.split("byte ")[1].split(")")[1].startswith(f" is {said}"), str(result)
    assert "source.allow_nonfinite: true" in result.err
    assert not (scratch / "Mixtral-out").exists()


@pytest.mark.parametrize("method", METHODS)
def test_it_is_passed_on_where_that_is_allowed(scratch, source, method):
    name = "model.layers.1.self_attn.q_proj.weight"
    folder = changed(source, scratch / "odd", name, (5, 7), float("nan"))
    result = convert(scratch, folder, method, source__allow_nonfinite=True)
    assert result.status == 0, str(result)
    assert "1 tensor of the source holds values that are not finite" in result.err, str(result)
    found = harness.read_output(scratch / "Mixtral-out")[name]
    assert harness.same_bits(found, load_file(folder / "model.safetensors")[name])
    manifest = json.loads((scratch / "Mixtral-out" / runner.MANIFEST).read_text())
    assert any("layer 1 q, row 5, column 7" in w["why"] for w in manifest["remarks"]["warning"])


def test_drop_has_no_statistics_of_it(scratch, source):
    folder = changed(source, scratch / "odd", "model.layers.0.mlp.up_proj.weight", (1, 2), float("inf"))
    result = convert(scratch, folder, "drop", source__allow_nonfinite=True)
    assert result.status == runner.DATA and "layer 0 up, row 1, column 2" in result.err, str(result)
    assert "upcycle.method" in result.err, str(result)


@pytest.mark.parametrize(
    "target,value,good",
    [
        ("float16", 65519.0, True), ("float16", -65520.0, False),
        ("bfloat16", 3.3895e38, True), ("bfloat16", -3.4e38, False),
    ],
)  # fmt: skip
def test_a_cast_that_would_overflow_is_refused(scratch, source, target, value, good):
    name = "model.layers.1.self_attn.o_proj.weight"
    folder = changed(source, scratch / "wide", name, (4, 4), value, torch.float32)
    result = convert(scratch, folder, "reshard", target__dtype=target)
    if good:
        assert result.status == 0, str(result)
        return
    assert result.status == runner.DATA, str(result)
    assert f"{target} cannot" in result.err and "layer 1 o, row 4, column 4" in result.err, str(result)


@pytest.mark.parametrize("method", METHODS)
def test_matrices_of_zeros_are_said(scratch, source, method):
    name = "model.layers.1.mlp.up_proj.weight"
    folder = changed(source, scratch / "zeros", name, slice(None), 0)
    result = convert(scratch, folder, method)
    assert result.status == 0, str(result)
    assert "1 FFN matrix is all zeros in the source, first layer 1 up" in result.err, str(result)
    folder = changed(folder, scratch / "almost", name, (95, 63), -0.5)
    result = convert(scratch, folder, method, target__path=scratch / "Mixtral-2")
    assert result.status == 0 and "all zeros" not in result.err, str(result)
