"""The presets of Marco's two models on a Qwen3 of their width, of two layers: 232 experts of 384 and 256 of 768, loaded by
transformers, to Megatron at TP2 x EP4 and back. Needs 8 GB of disk. Not run by default: ctest -L slow -R marco."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open

import harness
import real_models
import runner
import upcycle_oracle as oracle

SHAPES = {"marco-nano": (232, 384, 2.0), "marco-mini": (256, 768, 4 ** (1 / 3))}
LAYERS, HIDDEN, FFN, TOP = 2, 1024, 3072, 8


@pytest.fixture(scope="module")
def source(module_scratch):
    words = ["--class", "qwen3", "--layers", LAYERS, "--hidden", HIDDEN, "--ffn", FFN, "--heads", 8, "--kv-heads", 4]
    return runner.synth_folder(module_scratch / "Qwen3-0.6B", *words, "--vocab", 18992, "--tied")


def tensor(folder, name):
    with safe_open(folder / harness.read_index(folder)[name], "pt") as file:
        return file.get_tensor(name).float().numpy()


def check_expert(dense, out, layer, e, width, scale):
    """Slice e mod N, half of it as it was, times the scale; the rest drawn like what it replaces."""
    n, first = FFN // width, e % (FFN // width) * width
    kept = None
    for kind in oracle.MATRICES:
        was = oracle.neurons(kind, tensor(dense, f"model.layers.{layer}.mlp.{kind}_proj.weight"))[first : first + width]
        got = oracle.neurons(kind, tensor(out, f"model.layers.{layer}.mlp.experts.{e}.{kind}_proj.weight"))
        want = torch.from_numpy(was * np.float32(scale)).bfloat16().float().numpy()
        same = (got == want).all(1)
        kept = same if kept is None else kept
        assert got.shape == (width, HIDDEN) and same.sum() == width // 2 and (same == kept).all(), (n, kind)
        lost, new = was[~same], got[~same] / scale
        assert abs(new.mean() - lost.mean()) < 5 * lost.std() / new.size**0.5 and abs(new.std() / lost.std() - 1) < 0.02


def reshard(scratch, source, name, **how):
    how = {"target__" + key: value for key, value in how.items()}
    config = runner.write_config(scratch / f"{name}.yaml", source, scratch / name, mode="reshard", upcycle=None, **how)
    result = runner.upcycle(config, np=2, timeout=600)
    assert result.status == 0, str(result)
    return scratch / name


@pytest.mark.parametrize("name", SHAPES)
def test_the_preset(scratch, source, name):
    experts, width, scale = SHAPES[name]
    out = scratch / name
    text = (runner.ROOT / "configs" / f"{name}.yaml").read_text()
    text = text.replace("/scratch/llm/Qwen3-0.6B", str(source))
    (scratch / "run.yaml").write_text(re.sub(r"/scratch/llm/Marco-\w+", str(out), text))
    result = runner.upcycle(scratch / "run.yaml", np=2, timeout=600)
    assert result.status == 0, str(result)
    config = json.loads((out / "config.json").read_text())
    said = [config[key] for key in ("model_type", "num_experts", "num_experts_per_tok", "moe_intermediate_size")]
    assert said == ["qwen3_moe", experts, TOP, width]
    for layer, e in ((0, 0), (1, experts - 1)):
        check_expert(source, out, layer, e, width, scale)
    import transformers

    lm, info = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16, output_loading_info=True)
    assert not any(info.values()) and type(lm).__name__ == "Qwen3MoeForCausalLM", info
    with torch.no_grad():
        logits = lm.eval()(real_models.IDS).logits
    assert logits.shape[-1] == 18992 and torch.isfinite(logits).all()
    del lm
    megatron = reshard(scratch, out, "megatron", format="megatron-torch", tensor_parallel=2, expert_parallel=4, dtype="source")
    assert len(list(megatron.glob("*/mp_rank_*"))) == 8
    back = reshard(scratch, megatron, "back", format="huggingface", dtype="source")
    sums = [{tensor: crc for (_, tensor), crc in runner.tensor_sums(folder).items()} for folder in (out, back)]
    assert len(sums[0]) > LAYERS * experts * 3 and sums[0] == sums[1]
    for folder in (megatron, back):
        shutil.rmtree(folder)
