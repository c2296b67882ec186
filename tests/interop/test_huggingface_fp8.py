"""Hugging Face folders whose weights are FP8 with a scale for each 128 x 128 block, as DeepSeek and Qwen publish
them: what is read is bfloat16(float32(weight) * float32(scale)), by torch's own arithmetic."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import harness
import runner

BLOCK = 128
QUANTIZED = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]}
SIZES = ["--hidden", 192, "--ffn", 272, "--heads", 6, "--kv-heads", 2, "--vocab", 96, "--layers", 2]


def per_element(scale, shape, block=BLOCK):
    return scale.repeat_interleave(block, 0).repeat_interleave(block, 1)[: shape[0], : shape[1]]


def quantise(weight, scale_type, block=BLOCK):
    """A matrix in FP8 and its scales, the largest value of each block at the type's largest, 448."""
    rows, cols = weight.shape
    padded = torch.zeros(-(-rows // block) * block, -(-cols // block) * block)
    padded[:rows, :cols] = weight.float()
    blocks = padded.reshape(padded.shape[0] // block, block, padded.shape[1] // block, block)
    scale = (blocks.abs().amax((1, 3)) / 448).clamp(min=1e-6).to(scale_type)
    values = (weight.float() / per_element(scale.float(), weight.shape, block)).clamp(-448, 448)
    return values.to(torch.float8_e4m3fn), scale


def make(folder, scale_type=torch.float32, apart=False, block=BLOCK, quantized=QUANTIZED, words=()):
    """(source, {name: what it means}); `apart`: the scales in a shard of their own."""
    source = runner.synth_folder(folder / "source", *SIZES, *words)
    tensors, meant = load_file(source / "model.safetensors"), {}
    out, scales = {}, {}
    for name, tensor in tensors.items():
        meant[name] = out[name] = tensor
        if "_proj." not in name:
            continue
        out[name], scale = quantise(tensor, scale_type, block)
        scales[name + "_scale_inv"] = scale
        meant[name] = (out[name].float() * per_element(scale.float(), tensor.shape, block)).bfloat16()
    if apart:
        (source / "model.safetensors").unlink()
        files = {"model-00001-of-00002.safetensors": scales, "model-00002-of-00002.safetensors": out}
        for name, part in files.items():
            save_file(part, source / name, metadata={"format": "pt"})
        weight_map = {name: file for file, part in files.items() for name in part}
        (source / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    else:
        save_file({**out, **scales}, source / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {**quantized, "weight_block_size": [block, block]} if quantized else None
    (source / "config.json").write_text(json.dumps(config))
    return source, meant


def reshard(scratch, source, name="out", np=2, options=(), **changes):
    return harness.convert(
        scratch, source, np=np, name=name, options=options, mode="reshard", upcycle=None,
        **{"target__format": "huggingface", **changes},
    )  # fmt: skip


@pytest.mark.parametrize(
    "how", [{}, {"scale_type": torch.bfloat16}, {"apart": True}, {"block": 48}], ids=["float32", "bfloat16", "apart", "48"]
)
def test_every_value_is_what_torch_makes_of_it(scratch, how):
    source, meant = make(scratch, **how)
    outs = [reshard(scratch, source, f"out-{np}", np, ["--unit-bytes", "2KiB"]) for np in (1, 2, 3)]
    for out in outs:
        got = harness.read_output(out)
        assert set(got) == set(meant)
        for name, tensor in meant.items():
            assert harness.same_bits(got[name], tensor), name
        config = json.loads((out / "config.json").read_text())
        assert not config.get("quantization_config") and config["torch_dtype"] == "bfloat16"
    dropped = json.loads((outs[0] / "mgr-manifest.json").read_text())["remarks"]["dropped"]
    assert [remark for remark in dropped if remark["field"] == "quantization_config"], dropped
    result = runner.run([runner.program("mgr-inspect"), source, outs[0]])
    assert "tensors compared, 0 differ" in result.out, str(result)


def test_all_256_values(scratch):
    """Each value that is a number, by a scale that the product must be rounded for."""
    source, _ = make(scratch)
    tensors = load_file(source / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    weight = tensors[name].view(torch.uint8).flatten()
    bits = torch.arange(256, dtype=torch.uint8)
    bits = bits[(bits & 127) != 127]  # NaN, which is refused
    weight[: len(bits)] = bits
    tensors[name] = weight.reshape(tensors[name].shape).view(torch.float8_e4m3fn)
    tensors[name + "_scale_inv"].fill_(0.0012345)
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    got = harness.read_output(reshard(scratch, source))[name]
    assert harness.same_bits(got, (tensors[name].float() * tensors[name + "_scale_inv"][0, 0]).bfloat16())


def test_upcycling_is_that_of_the_bfloat16_model(scratch):
    source, _ = make(scratch)
    plain = reshard(scratch, source, "plain")
    made = [harness.convert(scratch, s, name=f"Mixtral-{i}", upcycle__seed=5) for i, s in enumerate((source, plain))]
    a, b = (harness.read_output(out) for out in made)
    assert set(a) == set(b) and all(harness.same_bits(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "change,word",
    [
        ({"quant_method": "compressed-tensors"}, "quantization_config"),
        ({"activation_scheme": "static"}, "quantization_config"),
        ({"weight_block_size": None}, "quantization_config"),
        (None, "quantization_config"),
        ({"weight_block_size": [64, 64]}, "for each block"),
    ],
)
def test_other_quantisations_are_refused(scratch, change, word):
    source, _ = make(scratch)
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {**QUANTIZED, **change} if change is not None else None
    (source / "config.json").write_text(json.dumps(config))
    refused(scratch, source, word)


def test_a_weight_without_its_scales_is_refused(scratch):
    source, _ = make(scratch)
    tensors = load_file(source / "model.safetensors")
    del tensors["model.layers.1.mlp.down_proj.weight_scale_inv"]
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    refused(scratch, source, "down_proj.weight_scale_inv")


def refused(scratch, source, word):
    config = runner.write_config(
        scratch / "c.yaml", source, scratch / "out", mode="reshard", target__format="huggingface"
    )
    result = runner.upcycle(config)
    assert result.status == runner.DATA and word in result.err, str(result)
    assert not (scratch / "out").exists()
