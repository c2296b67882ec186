"""The output depends on the source's values, the `upcycle:` section and the seed alone, whatever the model is:
windows, layers without RoPE, vision-language models, FP8 in blocks, pieces of torch DCP, what is passed through
unread, layers for multi-token prediction, HybridModels. Each shape is stored in several ways, and from each the
same bytes are made by other ranks, memory, units and CPU paths, also by a run that was stopped and goes on.

MGR_EVERY_SHAPE=1 takes all shapes; else some."""

import json
import os
import shutil

import pytest
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file

import runner
import test_families as families
import test_huggingface_fp8 as fp8
import test_mtp as mtp
import test_passed as passed
import test_vision as vision

RESHARD = dict(mode="reshard", upcycle=None)
DROP = dict(upcycle__ratio=0.5, upcycle__shuffle=True)
HF = dict(target__format="huggingface", target__max_shard_size="1MiB")
HDF5 = dict(target__format="hdf5", target__compression="deflate")
TORCH = dict(target__format="megatron-torch", target__make_vocab_size_divisible_by=8)
GRID = dict(TORCH, target__tensor_parallel=2, target__pipeline_parallel=2)
DIST = dict(target__format="megatron-dist", target__make_vocab_size_divisible_by=8)
KEYS = dict(DIST, target__dist_keys="hybrid")
WINDOWS = {"sliding_window": 8, "head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]}
LLAVA = "Llava"


def model(kind, **options):
    return lambda folder: families.real(kind, **options).save_pretrained(folder / "a")


def with_mtp(folder):
    mtp.published(folder, "glm4_moe")
    (folder / "a").rename(folder / "without")
    (folder / "b").rename(folder / "a")


def fp8_blocks(folder):
    fp8.make(folder, apart=True)
    (folder / "source").rename(folder / "a")


# what it is, how it is made in folder / "a", what is made of it, and the other ways to store it
SHAPES = {
    "windows": (model("Mistral", sliding_window=8), DROP | HF, ["shards", GRID, DIST, HDF5]),
    "windows of some layers": (model("Ministral", **WINDOWS), DROP | TORCH, [HDF5, GRID, DIST]),
    "layers without RoPE": (model("SmolLM3", no_rope_layers=[1, 0]), DROP | TORCH, ["shards", GRID, DIST]),
    "interleaved RoPE": (
        model("Ernie4_5", head_dim=8, tie_word_embeddings=True), DROP | HF, [GRID, DIST, HDF5],
    ),
    "a vision tower": (lambda f: vision.born(LLAVA, vision.MODELS[LLAVA][0](), f / "a"), DROP | HF, ["shards", HDF5]),
    "FP8 in blocks": (fp8_blocks, DROP | HF, ["shards", GRID, HDF5]),
    "pieces of torch": (model("Qwen3", head_dim=16), DROP | HF, ["dcp", GRID]),
    "passed through": (lambda f: passed.saved("Lfm2", passed.LFM2, f / "a"), DROP | HF, ["shards", HDF5, "dcp"]),
    "MTP": (with_mtp, RESHARD | HF, [HDF5, "shards", "dcp"]),
    "without MTP": (with_mtp, RESHARD | HF | dict(source__mtp="drop"), [HDF5, "shards", "dcp"]),
    "hybrid": (model("Llama"), DROP | KEYS | dict(upcycle__moe_layer_freq="[0,1]"), [KEYS, GRID, HDF5]),
}  # fmt: skip
SOME = ("windows of some layers", "a vision tower", "FP8 in blocks", "MTP", "hybrid")
HOW = [
    dict(np=1),
    dict(np=3, units="2KiB", memory=runner.LITTLE_MEMORY, threads=2),
    dict(np=2, units="4KiB", simd="scalar", stopped=3, threads=1),
    dict(np=5, units="1KiB"),
    dict(np=2, memory=runner.LITTLE_MEMORY, simd="scalar"),
]
EVERY = bool(os.environ.get("MGR_EVERY_SHAPE"))


def in_shards(source, out):
    """One tensor here, the next one there."""
    names = sorted(tensors := families.tensors(source))
    out.mkdir()
    where = {name: f"model-{n % 3}.safetensors" for n, name in enumerate(names)}
    for file in set(where.values()):
        save_file({n: tensors[n].contiguous() for n in names if where[n] == file}, out / file, {"format": "pt"})
    (out / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    shutil.copy(source / "config.json", out)
    return out


def stored(folder, way, n):
    """The source in another way, which is read without its manifest, as from others."""
    out = folder / f"way-{n}"
    if way == "shards":
        return in_shards(folder / "a", out)
    if way == "dcp":
        dcp.save(families.tensors(folder / "a"), checkpoint_id=out, no_dist=True)
        shutil.copy(folder / "a" / "config.json", out)
        return out
    split = {"target__expert_parallel": 2} if (folder / "without").exists() else {}
    config = runner.write_config(folder / f"{n}.yaml", folder / "a", out, **RESHARD, **{**split, **way})
    result = runner.upcycle(config)
    assert result.status == 0, str(result)
    (out / runner.MANIFEST).unlink(missing_ok=True)
    return out


def make(folder, source, n, changes, np, units=None, memory="2GiB", simd=None, stopped=0, threads=0):
    out = folder / f"out-{n}"
    said = json.loads((folder / "a" / "config.json").read_text())
    vocab = said.get("vocab_size") or said["text_config"]["vocab_size"]
    more = {"target__dtype": "source", "model__vocab_size": vocab, "io_threads": threads, **changes}
    config = runner.write_config(folder / f"out-{n}.yaml", source, out, memory_per_rank=memory, **more)
    options = (["--unit-bytes", units] if units else []) + (["--simd", simd] if simd else [])
    if stopped:
        fault = {"MGR_FAULT": f"rank:{np - 1},pwrite:7:ENOSPC"}
        result = runner.upcycle(config, np=np, options=["--journal", "0", *options], env=fault)
        assert result.status in (runner.CANNOT_CREATE, runner.IO_ERROR), str(result)
        options.append("--resume")
    result = runner.upcycle(config, np=stopped or np, options=options)
    assert result.status == 0, str(result)
    return runner.tensor_sums(out)


@pytest.mark.parametrize("shape", SHAPES if EVERY else SOME)
def test_the_same_bytes(scratch, shape):
    born, changes, ways = SHAPES[shape]
    born(scratch)
    sources = [scratch / "a", *(stored(scratch, way, n) for n, way in enumerate(ways))]
    hows = [*HOW, HOW[0]] if EVERY else HOW[: len(sources)]
    runs = [(sources[n % len(sources)], how) for n, how in enumerate(hows)]
    made = [make(scratch, source, n, changes, **how) for n, (source, how) in enumerate(runs)]
    assert all(sums == made[0] for sums in made), [n for n, sums in enumerate(made) if sums != made[0]]
    if changes.get("mode") != "reshard":
        other = make(scratch, scratch / "a", "seed", changes | dict(upcycle__seed=5), np=2)
        assert other.keys() == made[0].keys() and other != made[0]  # what is compared can differ
