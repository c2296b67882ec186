"""Format hdf5: read by h5py, h5dump and h5ls, the same for any number of ranks, there and back."""

import json
import os
import shutil
import subprocess
import zlib

import h5py
import numpy as np
import pytest
import torch

import harness
import megatron_like as ml
import runner

SHAPE = ml.Shape(layers=3, hidden=96, ffn=352, heads=6, kv_heads=2, head_dim=16, vocab=200)
EXPERTS = 4
COMPRESSION = pytest.mark.parametrize("compression", ["none", "deflate"])


@pytest.fixture(scope="module")
def dense(module_scratch):
    return ml.save(ml.dense_model(SHAPE), SHAPE, module_scratch / "dense", 2, 1)


def upcycled(folder, source, name, **how):
    how = {
        "upcycle__experts": EXPERTS,
        "model__vocab_size": SHAPE.vocab,
        "target__expert_parallel": 2,
        "target__format": "hdf5",
        **how,
    }
    return harness.convert(folder, source, name=name, **how)


def reshard(folder, source, name, np=2, **changes):
    config = runner.write_config(
        folder / (name + ".yaml"), source, folder / name, mode="reshard", upcycle=None,
        **{"target__dtype": "source", **changes}
    )
    result = runner.upcycle(config, np=np)
    assert result.status == 0, str(result)
    return folder / name


def weight_files(out):
    return sorted(p for p in out.glob("*.h5") if p.name not in ("model.h5", runner.LEDGER))


def bits(dataset):
    """The bytes as they are stored: bfloat16 is read as numbers otherwise."""
    raw = np.empty(dataset.shape, dtype=np.uint16 if dataset.id.get_type().get_size() == 2 else np.uint32)
    dataset.id.read(h5py.h5s.ALL, h5py.h5s.ALL, raw, mtype=dataset.id.get_type())
    return raw


def tensors_of(out):
    """{name: stored bytes}, all through model.h5."""
    with h5py.File(out / "model.h5", "r") as file:
        return {name: bits(file[name]).tobytes() for name in file if name != "mgr"}


@COMPRESSION
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_h5py_sees_what_safetensors_holds(scratch, dense, dtype, compression):
    expected = harness.read_output(
        upcycled(scratch, dense, "Mixtral-st", target__format="moe-recipes", target__dtype=dtype)
    )
    out = upcycled(scratch, dense, "h5", target__compression=compression, target__dtype=dtype)
    with h5py.File(out / "model.h5", "r") as file:
        assert set(file) == set(expected) | {"mgr"}
        for name, tensor in expected.items():
            assert file[name].shape == tuple(tensor.shape)
            assert file[name].dtype == (np.float16 if dtype == "float16" else np.float32)
            assert np.array_equal(file[name][()], harness.as_numpy(tensor)), name
            assert bits(file[name]).tobytes() == tensor.contiguous().view(torch.uint8).numpy().tobytes()
            assert file[name].attrs["dtype"].decode() == dtype
            packed = file[name].compression == "gzip" and file[name].shuffle
            assert packed == (compression == "deflate" and tensor.nbytes >= 65536), name


def test_the_texts(scratch, dense):
    out = upcycled(scratch, dense, "h5")
    with h5py.File(out / "model.h5", "r") as file:
        texts = {name: json.loads(file["mgr"][name][()]) for name in file["mgr"]}
        names = set(file) - {"mgr"}
    assert texts["config.json"] == json.loads((out / "config.json").read_text())
    manifest = json.loads((out / runner.MANIFEST).read_text())
    assert "model.h5" in [f["path"] for f in manifest.pop("files")]  # which was not there when the copy was made
    assert len(manifest.pop("digest")) == 64
    assert texts["manifest.json"] == manifest
    assert texts["tokenizer.json"] == []
    assert texts["model.json"]["experts"] == EXPERTS
    files = texts["manifest.json"]["target"]["files"]
    assert {t for f in files for t in f["tensors"]} == names
    owners = {f["path"]: f["expert_parallel_rank"] for f in files}
    assert owners == {"shared.h5": None, "experts-00000-of-00002.h5": 0, "experts-00001-of-00002.h5": 1}
    for name in names:
        owner = [f["expert_parallel_rank"] for f in files if name in f["tensors"]]
        expert = int(name.split("experts.")[1].split(".")[0]) if "experts." in name else None
        assert owner == [None if expert is None else expert // 2], name


@COMPRESSION
def test_h5dump_and_h5ls(scratch, dense, compression):
    out = upcycled(scratch, dense, "h5", target__compression=compression)
    name = harness.EXPERT % (1, 3, "w2")
    for command in (["h5dump", "-H", out / "model.h5"], ["h5ls", "-r", out / "model.h5"]):
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert name in listed and "lm_head.weight" in listed
    one = subprocess.run(
        ["h5dump", "-d", "/model.norm.weight", out / "shared.h5"], capture_output=True, text=True, check=True
    ).stdout
    assert "16-bit little-endian floating-point" in one and "(0): " in one


@COMPRESSION
def test_the_same_for_any_number_of_ranks(scratch, dense, compression):
    seen = [
        upcycled(scratch, dense, "h5-%d" % np, np=np, target__compression=compression, upcycle__shuffle=True)
        for np in (1, 2, 3, 4)
    ]
    expected = tensors_of(seen[0])
    for out in seen:
        sums = {f["path"]: f["crc32"] for f in json.loads((out / runner.MANIFEST).read_text())["files"]}
        assert all(sums[file.name] == "%08x" % zlib.crc32(file.read_bytes()) for file in out.glob("*.h5"))
    for out in seen[1:]:
        assert tensors_of(out) == expected
        for a, b in zip(weight_files(seen[0]), weight_files(out)):
            assert a.name == b.name and a.read_bytes() == b.read_bytes()


@COMPRESSION
def test_more_ranks_than_work(scratch, compression):
    source = runner.synth(scratch / "dense", layers=1, hidden=32, ffn=64, heads=2, kv_heads=2, vocab=16)
    how = dict(model__vocab_size=16, target__compression=compression, upcycle__experts=2)
    one = upcycled(scratch, source, "one", np=1, **how)
    assert tensors_of(upcycled(scratch, source, "many", np=8, **how)) == tensors_of(one)


def test_large_rows_and_pieces(scratch):
    """Tensors of many pieces, in units that do not end where pieces do, with little memory."""
    source = runner.synth(
        scratch / "dense", layers=2, hidden=1024, ffn=2816, heads=8, kv_heads=4, vocab=512, tp=2, pp=2
    )
    how = dict(model__vocab_size=512, upcycle__experts=4)
    plain = tensors_of(upcycled(scratch, source, "plain", np=2, **how))
    for np_, memory in ((1, "2GiB"), (3, "96MiB")):
        name = "deflate-%d" % np_
        out = upcycled(
            scratch, source, name, np=np_, memory_per_rank=memory, target__compression="deflate", **how
        )
        assert tensors_of(out) == plain


@COMPRESSION
def test_there_and_back_dense(scratch, dense, compression):
    first = reshard(
        scratch, dense, "h5", model__vocab_size=SHAPE.vocab, target__format="hdf5",
        target__compression=compression,
    )
    model = ml.dense_model(SHAPE)
    with h5py.File(first / "model.h5", "r") as file:
        assert set(file) == set(model) | {"mgr"}
        assert all(np.array_equal(file[n][()], harness.as_numpy(model[n])) for n in model)
    for name, changes in {
        "megatron": dict(target__format="megatron-torch", target__tensor_parallel=2,
                         target__pipeline_parallel=3),
        "huggingface": dict(target__format="huggingface"),
        "hdf5": dict(target__format="hdf5", target__compression="deflate"),
    }.items():
        middle = reshard(scratch, first, name, np=3, **changes)
        back = reshard(
            scratch, middle, name + "-back", target__format="hdf5", target__compression=compression,
            **({"model__vocab_size": SHAPE.vocab} if name == "megatron" else {}),
        )
        assert tensors_of(back) == tensors_of(first), name
        if compression == "none":
            assert (back / "shared.h5").read_bytes() == (first / "shared.h5").read_bytes(), name
        with h5py.File(first / "model.h5") as a, h5py.File(back / "model.h5") as b:
            assert json.loads(a["mgr/model.json"][()]) == json.loads(b["mgr/model.json"][()]), name


@COMPRESSION
def test_a_mixture_becomes_what_upcycling_writes(scratch, dense, compression):
    """hdf5 -> moe-recipes gives the files of a run that went there at once, byte by byte."""
    direct = upcycled(scratch, dense, "Mixtral-direct", target__format="moe-recipes")
    out = upcycled(scratch, dense, "h5", target__compression=compression)
    again = reshard(
        scratch, out, "Mixtral-again", np=3, target__format="moe-recipes", target__expert_parallel=2
    )
    assert runner.hashes(again) == runner.hashes(direct)
    copy = reshard(scratch, out, "copy", np=3, target__format="hdf5", target__expert_parallel=4)
    assert tensors_of(copy) == tensors_of(out) and len(weight_files(copy)) == 5


@pytest.mark.parametrize(
    "middle",
    [
        dict(target__format="moe-recipes"),
        dict(target__format="megatron-torch", target__tensor_parallel=2, target__expert_parallel=2),
        dict(target__format="megatron-dist"),
    ],
    ids=["moe-recipes", "megatron-torch", "megatron-dist"],
)
def test_a_mixture_there_and_back(scratch, dense, middle):
    """hdf5 -> another format -> hdf5 is the identity."""
    out = upcycled(scratch, dense, "h5")
    padded = middle["target__format"] != "moe-recipes"
    back = reshard(
        scratch, reshard(scratch, out, "Mixtral", np=3, **middle), "back", target__format="hdf5",
        target__expert_parallel=2, **({"model__vocab_size": SHAPE.vocab} if padded else {}),
    )
    assert tensors_of(back) == tensors_of(out)
    for a, b in zip(weight_files(out), weight_files(back)):
        assert a.name == b.name and a.read_bytes() == b.read_bytes()


@COMPRESSION
def test_inspect(scratch, dense, compression):
    out = upcycled(scratch, dense, "h5", target__compression=compression)
    other = upcycled(scratch, dense, "Mixtral-st", target__format="moe-recipes")
    listed = runner.run([runner.program("mgr-inspect"), out])
    assert listed.status == 0 and "hdf5" in listed.out, str(listed)
    assert harness.EXPERT % (0, 0, "w1") in listed.out
    again = reshard(scratch, out, "again", target__format="hdf5")
    same = runner.run([runner.program("mgr-inspect"), out, again])
    assert same.status == 0, str(same)
    changed = upcycled(scratch, dense, "other", upcycle__seed=5)
    differ = runner.run([runner.program("mgr-inspect"), out, changed])
    assert differ.status == 1 and "differ" in differ.out, str(differ)
    assert other.is_dir()


@COMPRESSION
@pytest.mark.parametrize("fault", ["rank:1,pwrite:9:kill", "rank:2,fsync:3:kill", "rank:0,rename:4:kill"])
def test_resumed(scratch, dense, compression, fault):
    expected = upcycled(scratch, dense, "expected", np=3, target__compression=compression)
    config = runner.write_config(
        scratch / "run.yaml", dense, scratch / "h5", upcycle__experts=EXPERTS, target__format="hdf5",
        target__expert_parallel=2, model__vocab_size=SHAPE.vocab, target__dtype="source",
        target__compression=compression,
    )
    killed = runner.upcycle(config, np=3, options=["--journal", "0"], env={"MGR_FAULT": fault})
    assert killed.status != 0, str(killed)
    result = runner.upcycle(config, np=3, options=["--resume"])
    assert result.status == 0, str(result)
    assert tensors_of(scratch / "h5") == tensors_of(expected)
    if compression == "none":
        for a, b in zip(weight_files(scratch / "h5"), weight_files(expected)):
            assert a.name == b.name and a.read_bytes() == b.read_bytes()
    assert not list((scratch / "h5").glob("*.draft"))


FAULTS = ["rank:0,pwrite:1", "rank:1,pwrite:4", "rank:2,pwrite:7", "pwrite:3", "rank:1,pread:3",
          "create:3", "rank:0,fsync:3"]


@pytest.mark.parametrize(
    "compression,fault",
    [(compression, fault) for compression in ("none", "deflate") for fault in FAULTS],
)
def test_one_rank_fails(scratch, dense, compression, fault):
    """No hang, one message, nothing published."""
    (scratch / "out").mkdir()
    config = runner.write_config(
        scratch / "run.yaml", dense, scratch / "out" / "h5", upcycle__experts=EXPERTS,
        target__format="hdf5", target__compression=compression, target__expert_parallel=2,
        model__vocab_size=SHAPE.vocab,
    )
    result = runner.upcycle(config, np=3, env={"MGR_FAULT": fault}, timeout=30)
    assert result.status in (runner.IO_ERROR, runner.CANNOT_CREATE), str(result)
    assert len(result.errors()) == 1 and "another rank" not in result.err, str(result)
    assert not (scratch / "out" / "h5").exists(), str(result)


def test_killed_while_packed_files_take_their_places(scratch, dense):
    how = dict(
        upcycle__experts=EXPERTS, target__format="hdf5", target__expert_parallel=2,
        model__vocab_size=SHAPE.vocab, target__compression="deflate", target__dtype="source",
    )
    expected = upcycled(scratch, dense, "expected", target__compression="deflate")
    config = runner.write_config(scratch / "run.yaml", dense, scratch / "h5", **how)
    killed = runner.upcycle(config, np=2, env={"MGR_FAULT": "rank:0,rename:5:kill"})
    assert killed.status != 0 and not (scratch / "h5").exists(), str(killed)
    result = runner.upcycle(config, np=2, options=["--resume"])
    assert result.status == 0, str(result)
    for a, b in zip(weight_files(scratch / "h5"), weight_files(expected)):
        assert a.name == b.name and a.read_bytes() == b.read_bytes()


@pytest.mark.parametrize("words", [["--norm", "layernorm"], ["--positions", "learned"], ["--activation", "gelu"]])
def test_what_no_class_of_transformers_computes(scratch, words):
    result = runner.run([runner.program("mgr-synth"), scratch / "x", "--layers", 1, "--format", "hdf5", *words])
    assert result.status == runner.DATA and "cannot express" in result.err, str(result)
    assert not (scratch / "x").exists()


def test_dense_layers_among_experts(scratch, dense):
    """A Qwen2-MoE has them: to a Hugging Face directory and back is the identity."""
    config = runner.write_config(
        scratch / "run.yaml", dense, scratch / "h5", upcycle__moe_layer_freq="2", target__format="hdf5"
    )
    result = runner.upcycle(config, np=2)
    assert result.status == 0, str(result)
    names = tensors_of(scratch / "h5")
    assert any(".0.mlp.experts." in name for name in names) and not any(".1.mlp.experts." in name for name in names)
    middle = reshard(scratch, scratch / "h5", "hf", target__format="huggingface")
    assert tensors_of(reshard(scratch, middle, "back", target__format="hdf5")) == names


def test_damaged(scratch, dense):
    out = upcycled(scratch, dense, "h5")
    (out / "experts-00001-of-00002.h5").rename(out / "aside.h5")
    config = runner.write_config(
        scratch / "run.yaml", out, scratch / "again", mode="reshard", upcycle=None, target__format="hdf5"
    )
    result = runner.upcycle(config)
    assert result.status == runner.DATA and "is missing in" in result.err, str(result)
    whole = (out / "aside.h5").read_bytes()
    for size in (0, 100, len(whole) // 2, len(whole) - 1):
        (out / "experts-00001-of-00002.h5").write_bytes(whole[:size])
        result = runner.upcycle(config)
        assert result.status == runner.DATA and len(result.errors()) == 1, str(result)
    assert not (scratch / "again").exists()


def packed_with_hole(group, name, like):
    made = group.create_dataset(name, like.shape, "<f4", chunks=(1, *like.shape[1:]), compression=1)
    made[0] = 1


def virtual(group, name, like):
    layout = h5py.VirtualLayout(like.shape, "<f4")
    layout[...] = h5py.VirtualSource("other.h5", "x", like.shape)
    group.create_virtual_dataset(name, layout)


# What a file of weights may not have: how it is made, and the word that refuses it.
ELSEWHERE = {
    "external": (lambda g, n, d: g.create_dataset(n, d.shape, "<f4", external=[("secret", 0, 1 << 20)]), "other files"),
    "soft": (lambda g, n, d: g.__setitem__(n, h5py.SoftLink("/model.norm.weight")), "leads elsewhere"),
    "link": (lambda g, n, d: g.__setitem__(n, h5py.ExternalLink("secret", "/x")), "leads elsewhere"),
    "virtual": (virtual, "virtual"),
    "hole": (packed_with_hole, "of its"),
    "unstored": (lambda g, n, d: g.create_dataset(n, d.shape, "<f4"), "without stored values"),
    "filter": (lambda g, n, d: g.create_dataset(n, data=d[()], chunks=d.shape, fletcher32=True), "filters"),
    "columns": (lambda g, n, d: g.create_dataset(n, data=d[()], chunks=(d.shape[0], 8)), "whole rows"),
    "group": (lambda g, n, d: g.create_group(n), "missing"),
}


def test_what_is_not_in_the_file(scratch, dense):
    source = upcycled(scratch, dense, "h5")
    (scratch / "secret").write_bytes(b"secret!!" * (1 << 17))
    for kind, (make, word) in ELSEWHERE.items():
        copy = scratch / kind
        shutil.copytree(source, copy, ignore=shutil.ignore_patterns(runner.MANIFEST))  # which would find it first
        libver = ("v110", "v110") if kind == "virtual" else ("v108", "v108")
        with h5py.File(copy / "shared.h5", "r+", libver=libver) as file:
            name = "model.embed_tokens.weight"
            like = h5py.File(source / "shared.h5", "r")[name]
            del file[name]
            make(file, name, like)
        config = runner.write_config(
            scratch / "run.yaml", copy, scratch / "out", mode="reshard", upcycle=None, target__format="hdf5"
        )
        result = runner.upcycle(config, np=2)
        assert result.status == runner.DATA and len(result.errors()) == 1, kind + str(result)
        assert word in result.err, kind + str(result)
        assert not (scratch / "out").exists()


@pytest.mark.parametrize("compression", ["none", "deflate"])
def test_mutants(scratch, compression):
    """Bytes of metadata or of packed values changed at random: one error or none, never a crash."""
    made = runner.run([runner.program("mgr-synth"), scratch / "dense", "--layers", 1, "--hidden", 128, "--ffn", 256,
                       "--vocab", 256, "--heads", 4, "--kv-heads", 2, "--format", "hdf5", "-q"])
    assert made.status == 0, str(made)
    source = reshard(scratch, scratch / "dense", "h5", target__format="hdf5", target__compression=compression)
    (source / runner.MANIFEST).unlink()  # which would find each of them
    config = runner.write_config(
        scratch / "run.yaml", source, scratch / "out", mode="reshard", upcycle=None, target__format="hdf5"
    )
    whole = {name: (source / name).read_bytes() for name in ("shared.h5", "model.h5")}
    rng = np.random.default_rng(5)
    ends = {0: 0, runner.DATA: 0, runner.NO_INPUT: 0}
    many = int(os.environ.get("MGR_MUTANTS", "20"))
    for i in range(many):
        name = "model.h5" if i % 5 == 0 else "shared.h5"
        bytes_ = bytearray(whole[name])
        for _ in range(rng.integers(1, 4)):
            at = int(rng.integers(0, len(bytes_) if i % 2 else min(len(bytes_), 8192)))
            bytes_[at] = int(rng.choice([0, 1, 255, bytes_[at] ^ 1 << int(rng.integers(0, 8)), bytes_[at] ^ 128]))
        if i % 7 == 0:
            del bytes_[int(rng.integers(0, len(bytes_))):]
        (source / name).write_bytes(bytes_)
        result = runner.run([runner.program("mgr-upcycle"), "-q", config], timeout=300)
        (source / name).write_bytes(whole[name])
        assert result.status in ends, "%d: %s" % (i, result)
        ends[result.status] += 1
        assert len(result.errors()) == (result.status != 0), "%d: %s" % (i, result)
        shutil.rmtree(scratch / "out", ignore_errors=True)
        if i % 100 == 99:
            print("%d mutants: %s" % (i + 1, ends), flush=True)


def test_upcycling_a_mixture_is_refused(scratch, dense):
    out = upcycled(scratch, dense, "h5")
    result = runner.upcycle(runner.write_config(scratch / "run.yaml", out, scratch / "Mixtral"))
    assert result.status == runner.CONFIG and "already" in result.err, str(result)
