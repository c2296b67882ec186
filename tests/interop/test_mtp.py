"""Layers for multi-token prediction: moved as they are to where the same class is stored, else refused with the way
on, and left out with `source.mtp: drop`. What is left is the model, to real transformers and by Megatron-LM's own
logits; what is moved is what transformers' generate(use_mtp=True) reads."""

import json

import pytest
import torch
import torch.distributed.checkpoint as dcp
import transformers
from safetensors.torch import load_file, save_file
from transformers.modeling_layers import MtpModel

import harness
import real_models
import runner
import test_families as families
import test_huggingface_fp8 as fp8
import test_passed as passed
import test_vision as vision
import trainer

RESHARD = dict(mode="reshard", upcycle=None)
DROP = dict(RESHARD, source__mtp="drop")
GLM = dict(
    families.SIZES, head_dim=16, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=20,
    num_mtp_layers=1,
)  # fmt: skip
ERNIE = dict(families.SIZES, **families.ERNIE)


def behind(tensors, layers):
    """A layer behind the last, as DeepSeek-V3 and GLM-4.5 are published with."""
    last, new = f"model.layers.{layers - 1}.", f"model.layers.{layers}."
    width = tensors["model.norm.weight"].numel()
    more = {new + n[len(last) :]: t * 2 for n, t in tensors.items() if n.startswith(last)}
    more |= {new + n: torch.randn(width) for n in ("enorm.weight", "hnorm.weight", "shared_head.norm.weight")}
    more |= {new + "eh_proj.weight": torch.randn(width, 2 * width)}
    return more | {new + n: tensors["lm_head.weight"] * 3 for n in ("embed_tokens.weight", "shared_head.head.weight")}


def named(tensors, layers):
    """As Ernie 4.5, Qwen3-Next and others name them."""
    return {"model.mtp_block.0.mlp.up_proj.weight": torch.randn(6, 4), "mtp.fc.weight": torch.randn(4, 8)}


KINDS = {
    "glm4_moe": (lambda **how: real_models.born("Glm4Moe", {**GLM, **how}), behind, "num_nextn_predict_layers"),
    "ernie4_5_moe": (lambda: real_models.born("Ernie4_5_Moe", ERNIE), named, "num_nextn_predict_layers"),
    "deepseek_v3": (lambda: passed.born("DeepseekV3", passed.MIXTURES["DeepseekV3"]), behind, "num_nextn_predict_layers"),
}


def published(folder, kind, **how):
    """A model in folder / "a", and the same with such a layer in folder / "b"."""
    make, more, key = KINDS[kind]
    lm = make(**how)
    lm.save_pretrained(folder / "a")
    tensors = load_file(folder / "a" / "model.safetensors")
    config = json.loads((folder / "a" / "config.json").read_text())
    config.pop("num_mtp_layers", None)
    (folder / "b").mkdir()
    for at, part in enumerate((tensors, more(tensors, lm.config.num_hidden_layers))):
        save_file({n: t.contiguous() for n, t in part.items()}, folder / "b" / f"{at}.safetensors", {"format": "pt"})
        index = {n: f"{at}.safetensors" for n in part} | (index if at else {})
    (folder / "b" / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (folder / "b" / "config.json").write_text(json.dumps({**config, key: 1}))
    return lm, key


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("kind", KINDS)
def test_dropped_it_is_the_model_without(scratch, kind):
    lm, key = published(scratch, kind)
    result = families.run(scratch, scratch / "b", "out", **DROP)
    assert result.status == 0 and f"{len(index(scratch)) - len(families.tensors(scratch / 'a'))} other" in result.out, str(result)
    families.same_tensors(scratch / "a", scratch / "out")
    assert config_of(scratch / "out")[key] == 0
    assert torch.equal(families.logits(real_models.load(scratch / "out")), families.logits(lm))
    families.reshard(scratch, scratch / "b", "h5", source__mtp="drop", target__format="hdf5")
    families.same_tensors(scratch / "a", families.reshard(scratch, scratch / "h5", "back"))
    assert config_of(scratch / "back")[key] == 0


def test_behind_the_decoder_of_a_vision_model_too(scratch):
    model = vision.born("Qwen3VL", vision.MODELS["Qwen3VL"][0](), scratch / "a")
    tensors = load_file(scratch / "a" / "model.safetensors")
    stem, n = "model.language_model.layers.", model.config.text_config.num_hidden_layers
    more = {stem + f"{n}." + k[len(stem) + 2 :]: t * 2 for k, t in tensors.items() if k.startswith(stem + "0.")}
    assert len(more) > 8
    save_file({**tensors, **more}, scratch / "a" / "model.safetensors", {"format": "pt"})
    vision.edit(scratch / "a", text_config={**config_of(scratch / "a")["text_config"], "num_nextn_predict_layers": 1})
    families.convert(scratch, scratch / "a", "out", **DROP)
    assert families.tensors(scratch / "out").keys() == tensors.keys()
    assert config_of(scratch / "out")["text_config"]["num_nextn_predict_layers"] == 0


def index(scratch):
    return json.loads((scratch / "b" / "model.safetensors.index.json").read_text())["weight_map"]


def moved(lm, folder):
    """The model of `folder`, which loads whole but for such layers, and those as transformers itself reads them."""
    stem = f"model.layers.{lm.config.num_hidden_layers}."
    again, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"] and all(n.startswith(stem) for n in info["unexpected_keys"]), info
    assert torch.equal(families.logits(again.eval()), families.logits(lm))
    if lm.config.model_type != "glm4_moe":
        return {}
    said = [rf"model\.layers\.{lm.config.num_hidden_layers}.*"]  # as the class has it of 46 layers and of 92
    again._keys_to_ignore_on_load_unexpected = said
    made = MtpModel.from_pretrained(again)  # raises where one is missing
    return {n: p for n, p in made.named_parameters() if n.startswith("layers.")}


@pytest.mark.parametrize("kind", ["glm4_moe", "ernie4_5_moe"])
def test_the_same_class_carries_it(scratch, kind):
    lm, key = published(scratch, kind)
    wanted = moved(lm, scratch / "b")
    families.reshard(scratch, scratch / "b", "h5", target__format="hdf5", target__expert_parallel=2)
    families.reshard(scratch, scratch / "b", "out", target__max_shard_size="1MiB", target__expert_parallel=2)
    families.reshard(scratch, scratch / "h5", "back")
    for name in ("out", "back"):
        families.same_tensors(scratch / "b", scratch / name)
        assert config_of(scratch / name)[key] == 1
        got = moved(lm, scratch / name)
        assert got.keys() == wanted.keys() and all(torch.equal(got[n], wanted[n]) for n in got)
    assert len(wanted) > 10 or kind != "glm4_moe"
    families.convert(scratch, scratch / "h5", "dropped", **DROP)
    families.same_tensors(scratch / "a", scratch / "dropped")
    assert config_of(scratch / "dropped")[key] == 0


NO_MTP = {
    "megatron-dist": dict(RESHARD, target__format="megatron-dist"),
    "megatron-torch": dict(RESHARD, target__format="megatron-torch"),
    "more experts": dict(upcycle={"method": "naive", "experts": 12, "seed": 1}),
}


@pytest.mark.parametrize("kind", ["glm4_moe", "ernie4_5_moe"])
def test_what_cannot_carry_it_names_the_key(scratch, kind):
    """From a folder and from HDF5; the hint works where the model itself may go."""
    published(scratch, kind)
    families.reshard(scratch, scratch / "b", "h5", target__format="hdf5")
    for source, ways in {"b": NO_MTP, "h5": ["more experts"]}.items():
        for name, how in ((name, NO_MTP[name]) for name in ways):
            result = families.run(scratch, scratch / source, "no", **how)
            assert result.status in (runner.DATA, runner.CONFIG) and not (scratch / "no").exists(), f"{name}: {result}"
            follows = "set 'source.mtp: drop'" in result.err
            assert follows == ("multi-token prediction" in result.err), f"{name}: {result}"
            after = families.run(scratch, scratch / source, f"{source}-{name}", source__mtp="drop", **how)
            assert (after.status == 0) == follows, f"{name}: {after}"
            assert follows or kind == "ernie4_5_moe", f"{name}: {result}"  # which is refused for its router


def test_another_class_that_computes_the_model_is_none(scratch):
    lm, _ = published(scratch, "glm4_moe", use_qk_norm=True, partial_rotary_factor=1.0)
    result = families.run(scratch, scratch / "b", "no", **RESHARD, target__class="dots1")
    assert result.status == runner.DATA and "'dots1'" in result.err, str(result)
    assert "set 'source.mtp: drop'" in result.err and not (scratch / "no").exists(), str(result)
    out = families.convert(scratch, scratch / "b", "out", **DROP, target__class="dots1")
    assert harness.relative_difference(families.logits(real_models.load(out)), families.logits(lm)) < 1e-5


def test_a_stranger_beside_it_is_refused(scratch):
    """Only what is of such layers is moved unread."""
    published(scratch, "glm4_moe")
    tensors = families.tensors(scratch / "b") | {"model.layers.0.self_attn.q_proj.lora": torch.ones(4)}
    for path in (scratch / "b").glob("model.safetensors.index.json"):
        path.unlink()
    for path in (scratch / "b").glob("*.safetensors"):
        path.unlink()
    save_file({n: t.contiguous() for n, t in tensors.items()}, scratch / "b" / "model.safetensors", {"format": "pt"})
    result = families.run(scratch, scratch / "b", "no", **RESHARD)
    assert result.status == runner.DATA and "q_proj.lora" in result.err, str(result)


def test_what_is_moved_unread_carries_it(scratch):
    published(scratch, "deepseek_v3")
    passed.there_and_back(scratch, scratch / "b")
    assert len(families.tensors(scratch / "back")) == len(index(scratch))


def in_fp8(folder):
    """The model of folder / "b" in blocks of FP8, as DeepSeek-V3 is published; what its tensors mean."""
    tensors, meant = families.tensors(folder / "b"), {}
    for name, tensor in list(tensors.items()):
        meant[name] = tensors[name] = tensor if "correction" in name else tensor.bfloat16()
        if name.endswith("_proj.weight"):
            tensors[name], scale = fp8.quantise(tensor.bfloat16(), torch.float32)
            tensors[name + "_scale_inv"] = scale
            meant[name] = (tensors[name].float() * fp8.per_element(scale, tensor.shape)).bfloat16()
    said = config_of(folder / "b") | {"quantization_config": fp8.QUANTIZED, "torch_dtype": "bfloat16"}
    (folder / "fp8").mkdir()
    save_file(tensors, folder / "fp8" / "model.safetensors", {"format": "pt"})
    (folder / "fp8" / "config.json").write_text(json.dumps(said))
    return tensors, meant


@pytest.mark.parametrize("kind", ["glm4_moe", "deepseek_v3"])
def test_in_fp8_it_becomes_bfloat16(scratch, kind):
    """What moves unread, too: no scale is a tensor of its own, and one without a weight is refused."""
    published(scratch, kind)
    tensors, meant = in_fp8(scratch)
    for name, way in (("out", {}), ("h5", {"target__format": "hdf5"})):
        out = families.reshard(scratch, scratch / "fp8", name, **way)
    for folder in (scratch / "out", families.reshard(scratch, out, "back")):
        got = families.tensors(folder)
        assert got.keys() == meant.keys() and not config_of(folder).get("quantization_config")
        assert [n for n in got if not harness.same_bits(got[n], meant[n])] == []
    stranger = {"model.layers.0.self_attn.other.weight_scale_inv": torch.ones(1, 1)}
    save_file(tensors | stranger, scratch / "fp8" / "model.safetensors", {"format": "pt"})
    result = families.run(scratch, scratch / "fp8", "no", **RESHARD)
    assert result.status == runner.DATA and "other.weight_scale_inv" in result.err, str(result)


def test_of_torch_dcp_too(scratch):
    published(scratch, "glm4_moe")
    dcp.save(families.tensors(scratch / "b"), checkpoint_id=scratch / "dcp", no_dist=True)
    (scratch / "dcp" / "config.json").write_text((scratch / "b" / "config.json").read_text())
    families.same_tensors(scratch / "b", families.reshard(scratch, scratch / "dcp", "kept"))
    result = families.run(scratch, scratch / "dcp", "no", **NO_MTP["more experts"])
    assert result.status == runner.DATA and "set 'source.mtp: drop'" in result.err, str(result)
    families.convert(scratch, scratch / "dcp", "out", **DROP)
    families.same_tensors(scratch / "a", scratch / "out")


def test_hdf5_without_such_layers_says_so(scratch):
    published(scratch, "glm4_moe")
    families.reshard(scratch, scratch / "a", "h5", target__format="hdf5")
    result = families.run(scratch, scratch / "h5", "no", **DROP)
    assert result.status == runner.CONFIG and "source.mtp" in result.err, str(result)


# ---- Megatron


@pytest.fixture(scope="module")
def saved(module_scratch):
    """Models that Megatron-LM itself saved with such layers, on two stages of two ranks; their logits."""
    split = ["--tensor-model-parallel-size", "2", "--pipeline-model-parallel-size", "2"]
    cli = [*trainer.DENSE, *split, "--mtp-num-layers", "1"]
    steps = [
        {"do": "save", "to": module_scratch / name, "format": name, "logits": module_scratch / f"{name}.pt", "cli": cli}
        for name in ("torch", "torch_dist")
    ]
    with trainer.started(module_scratch) as judge:
        judge.run(4, *steps)
    return {step["to"].name: (step["to"], torch.load(step["logits"])) for step in steps}


@pytest.mark.parametrize("name", ["torch", "torch_dist"])
def test_megatron(scratch, saved, name):
    source, said = saved[name]
    model = {"vocab_size": trainer.VOCAB}
    result = families.run(scratch, source, "no", **RESHARD, model=model)
    assert result.status == runner.DATA and "multi-token prediction" in result.err, str(result)
    assert "set 'source.mtp: drop'" in result.err, str(result)
    out = families.convert(scratch, source, "out", **DROP, model=model)
    with torch.no_grad():
        got = real_models.load(out)(said["ids"]).logits
    assert harness.relative_difference(got, said["logits"]) < 2e-5
    again = families.convert(scratch, source, "dist", **DROP, model=model, target__format="megatron-dist")
    families.same_tensors(out, families.reshard(scratch, again, "back", model=model))
