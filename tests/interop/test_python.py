"""The Python module, installed from its wheel: it reads every format with the right values, and what it writes and
upcycles is what the program does. torch is the judge alone."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import h5py
import ml_dtypes
import numpy
import pytest
import torch
import torch.distributed as dist
import transformers
from safetensors.torch import load_file, save_file

import deepspeed_like
import dist_like
import harness
import megatron_like as ml
import real_models
import runner
import test_huggingface_fp8 as fp8

ROOT = pathlib.Path(__file__).resolve().parents[2]
LIBRARY = pathlib.Path(os.environ.get("MGR_LIBRARY_OF_WHEEL") or runner.BIN.parent / "src" / "libmgr.so")
SHAPE = ml.Shape(layers=2, hidden=32, ffn=48, heads=4, kv_heads=2, head_dim=8, vocab=50, norm_epsilon=1.5e-6)
SIZES = dict(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def mgr(tmp_path_factory):
    """The wheel's module: nothing else of the project is on the path."""
    folder = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [ROOT / "tools" / "python" / "wheel.sh", LIBRARY, folder, sys.executable], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    assert "-py3-none-linux_" in wheel.name, wheel
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder / "site", wheel],
        capture_output=True, text=True,
    )
    assert done.returncode == 0, done.stderr
    sys.path.insert(0, str(folder / "site"))
    import mgr

    assert pathlib.Path(mgr.__file__).is_relative_to(folder)
    return mgr


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dense") / "dense"
    return runner.synth_folder(folder, "--format", "huggingface", "--layers", 2, "--vocab", 96)


def values(tensor):
    return tensor.float().numpy()


def same(found, tensor):
    assert list(found.shape) == list(tensor.shape)
    assert numpy.array_equal(numpy.asarray(found[:], dtype=numpy.float32), values(tensor))


# Of each format: a folder that the libraries of others wrote, the settings that it wants, the model's tensors by
# name, and what its files hold, {name: tensor}, read by those libraries.


def from_megatron(folder):
    model = ml.dense_model(SHAPE)
    ml.save(model, SHAPE, folder / "made", tp=2, pp=2)
    with ml.megatron_enums():
        files = [torch.load(path, weights_only=False)["model"] for path in sorted(folder.rglob("model_optim_rng.pt"))]
    stored = {}
    for file in files:  # of a name that several files have, the first
        stored = {**{"model." + name: value for name, value in file.items() if name.endswith("weight")}, **stored}
    return folder / "made", {"model": {"vocab_size": SHAPE.vocab}}, model, stored


def from_torch_dist(folder):
    model = ml.dense_model(SHAPE)
    root = dist_like.save_megatron(model, SHAPE, folder / "made")
    return root, {"model": {"vocab_size": SHAPE.vocab}}, model, None


def from_transformers(folder, kind, **more):
    model = real_models.born(kind, {**SIZES, **more})
    model.bfloat16().save_pretrained(folder / "made")
    stored = load_file(folder / "made" / "model.safetensors")
    return folder / "made", {}, stored, stored


def from_mixtral(folder):
    return from_transformers(folder, "Mixtral", num_local_experts=3)


def from_hdf5(folder, **changes):
    """The form is our own: h5py is asked what the files hold."""
    source = from_transformers(folder, "Qwen2")[0]
    config = runner.write_config(
        folder / "c.yaml", source, folder / "h5", mode="reshard", target__format="hdf5", target__dtype="source", **changes
    )
    assert runner.run([runner.program("mgr-upcycle"), config]).status == 0
    with h5py.File(folder / "h5" / "model.h5") as file:
        held = {name: file[name] for name in file if name != "mgr"}
        stored = {name: torch.from_numpy(item[()].astype(numpy.float32)) for name, item in held.items()}
    return folder / "h5", {}, load_file(source / "model.safetensors"), stored


def from_deepspeed(folder):
    model = real_models.born("Llama", SIZES)
    model.save_pretrained(folder / "hf")
    params = {name: p.detach().float() for name, p in model.named_parameters()}
    deepspeed_like.zero3(folder / "made", params, ranks=3, size=700)
    return folder / "made", {"source": {"config": str(folder / "hf")}}, params, None


def halves(tensor):
    """Of axis 0, and the first is the larger: offsets and sizes."""
    n, rest = tensor.shape[0], list(tensor.shape[1:])
    cut, zeros = n - n // 3, [0] * len(rest)
    return [([0, *zeros], [cut, *rest]), ([cut, *zeros], [n - cut, *rest])]


def from_dcp(folder):
    """As FSDP2 saves it: two chunks of each tensor where it has rows for them."""
    source, _, tensors, _ = from_transformers(folder, "Qwen3", head_dim=8)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        dist_like.write({name: dist_like.sharded_tensor(t, halves(t)) for name, t in tensors.items()}, folder / "dcp")
    finally:
        dist.destroy_process_group()
    shutil.copy(source / "config.json", folder / "dcp")
    return folder / "dcp", {}, tensors, None


MADE = {
    "megatron-torch": from_megatron,
    "megatron-dist": from_torch_dist,
    "huggingface": lambda folder: from_transformers(folder, "Llama"),
    "moe-recipes": from_mixtral,
    "mixtral": from_mixtral,
    "hdf5": from_hdf5,
    "hdf5, deflate": lambda folder: from_hdf5(folder, target__compression="deflate"),
    "deepspeed": from_deepspeed,
    "torch-dcp": from_dcp,
}


def test_no_format_is_forgotten(mgr):
    assert set(mgr.formats()) == {name.split(",")[0] for name in MADE}


@pytest.mark.parametrize("name", MADE)
def test_every_format(mgr, tmp_path, name):
    folder, settings, model, stored = MADE[name](tmp_path)
    form = name.split(",")[0]
    known = {**settings, "source": {**settings.get("source", {}), "format": form}}
    for how in (known, *([settings] if form not in ("moe-recipes", "mixtral") else [])):  # by its name, and found
        with mgr.open(folder, **how) as checkpoint:
            assert checkpoint.format == form
            assert set(checkpoint) == set(model)
            for key, tensor in model.items():
                same(checkpoint[key], tensor)
            if stored is not None:
                assert set(checkpoint.stored) >= set(stored)
                for key, tensor in stored.items():
                    same(checkpoint.stored[key], tensor)
            assert len(checkpoint.stored) > 0


def test_a_mixture(mgr, dense, tmp_path):
    out = harness.convert(tmp_path, dense, upcycle__experts=2)
    with mgr.open(out) as checkpoint:
        expected = harness.read_output(out)
        assert set(checkpoint) == set(expected) == set(checkpoint.stored)
        for key, tensor in expected.items():
            same(checkpoint[key], tensor)
            same(checkpoint.stored[key], tensor)


@pytest.mark.parametrize("by", ["router-sum", "router-norm", "ffn-norm"])
def test_the_best_experts(mgr, tmp_path, by):
    """A score of a mixture split over ranks, by numpy; and the program takes the list."""
    import importlib

    experts = importlib.import_module("mgr.experts")
    mixture, split = runner.synth_folder(tmp_path / "moe", "--experts", 6), tmp_path / "split"
    config = runner.write_config(
        tmp_path / "c.yaml", mixture, split, mode="reshard", upcycle=None, target__format="megatron-torch",
        target__tensor_parallel=2, target__expert_parallel=3,
    )  # fmt: skip
    assert runner.upcycle(config).status == 0
    listed = tmp_path / "experts.json"
    assert experts.main([str(split), "--keep", "4", "--by", by, "-o", str(listed)]) == 0
    tensors, want = {n: values(t).astype(numpy.float64) for n, t in harness.read_output(mixture).items()}, []
    for layer in range(2):
        rows = tensors[harness.ROUTER % layer]
        parts = [[tensors[harness.EXPERT % (layer, e, w)] for w in ("w1", "w3")] for e in range(6)]
        score = {
            "router-sum": rows.sum(1),
            "router-norm": (rows**2).sum(1) ** 0.5,
            "ffn-norm": [sum((part**2).sum() for part in both) ** 0.5 for both in parts],
        }[by]
        want.append(sorted(sorted(range(6), key=lambda e: -score[e])[:4]))
    assert json.loads(listed.read_text())["experts"] == want
    changes = dict(upcycle__method="naive", upcycle__ratio=None, upcycle__experts=None, upcycle__top_k=None)
    out = harness.convert(tmp_path, split, upcycle__experts_file=str(listed), model__vocab_size=128, **changes)
    new = harness.read_output(out)
    for layer in range(2):
        for e, old in enumerate(want[layer]):
            assert numpy.array_equal(values(new[harness.EXPERT % (layer, e, "w2")]), tensors[harness.EXPERT % (layer, old, "w2")])
    assert experts.main([str(mixture), "--keep", "7", "-o", str(listed)]) == 65


def test_compare(mgr, dense, tmp_path):
    with mgr.open(dense) as checkpoint:
        key, other = "model.norm.weight", "lm_head.weight"
        held = {name: tensor[:] for name, tensor in checkpoint.items()}
        assert mgr.compare(checkpoint, held) == mgr.compare(held, checkpoint) == {}
        nan = held[key].copy()
        nan[3] = numpy.nan
        held[key] = nan
        assert mgr.compare(checkpoint, held) == {key: "1 of 64 elements differ"}
        assert mgr.compare({key: nan}, {key: nan.astype(numpy.float32)}) == {}
        assert mgr.compare({key: nan}, {other: nan}) == {key: "only in the first", other: "only in the second"}
        assert mgr.compare({key: nan}, {key: nan[:4]}) == {key: "[64] and [4]"}
        moved = {other: numpy.asarray(checkpoint[other][:], numpy.float32) + 1}
        assert mgr.compare({other: checkpoint[other]}, moved) == {other: "%d of %d elements differ" % ((96 * 64,) * 2)}
        assert mgr.compare({"s": numpy.float32(2).reshape(())}, {"s": numpy.zeros(())}) == {"s": "1 of 1 elements differ"}


def test_indices(mgr, dense):
    with mgr.open(dense) as checkpoint:
        key = "model.layers.1.mlp.down_proj.weight"
        tensor, expected = checkpoint[key], values(harness.read_output(dense)[key])
        for index in (0, -1, slice(3, 7), slice(None, None, 3), slice(8, 2, -2), (slice(2, 4), 5), (4, 3),
                      slice(5, 5), numpy.int64(2), Ellipsis, slice(None, None, -1), slice(1000, 2000)):
            found = numpy.asarray(tensor[index], dtype=numpy.float32)
            assert numpy.array_equal(found, expected[index]), index
        for index in (len(tensor), -len(tensor) - 1):
            with pytest.raises(IndexError):
                tensor[index]
        assert numpy.array_equal(numpy.asarray(tensor, dtype=numpy.float32), expected)
        assert len(list(tensor)) == len(expected)


def test_the_page_of_the_documents(mgr, dense, tmp_path, monkeypatch):
    """The Python of tools/docs/library.md, as it stands there."""
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "tools" / "docs" / "library.md").read_text(), re.M | re.S)
    assert len(blocks) == 4
    (tmp_path / "dense").symlink_to(dense)
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks:
        exec(compile(block, "library.md", "exec"), names)
    with mgr.open("dense") as whole, mgr.open("halved") as half:
        for name in whole:
            factor = 0.5 if name.endswith("norm.weight") else 1
            assert numpy.array_equal(half[name][:], whole[name][:] * whole[name].dtype.type(factor)), name
    assert len(names["layer"].experts) == 8


def test_types_of_all_kinds(mgr, tmp_path):
    path = tmp_path / "any.safetensors"
    tensors = {
        "a": torch.arange(24).reshape(2, 3, 4), "b": torch.tensor(3.5), "c": torch.zeros(0, 4),
        "d": torch.tensor([True, False]), "e": torch.randn(5, 3).half(), "f": torch.randn(3, 2, 2, 2).double(),
    }
    save_file(tensors, path)
    with mgr.open(path) as checkpoint:
        assert len(checkpoint) == 0
        assert set(checkpoint.stored) == set(tensors)
        for key, tensor in load_file(path).items():
            found = checkpoint.stored[key]
            assert found.shape == tuple(tensor.shape)
            assert numpy.array_equal(found[...], tensor.numpy()), key
        assert numpy.array_equal(checkpoint.stored["a"][1, 2], tensors["a"][1, 2])


def test_errors(mgr, dense, tmp_path):
    with pytest.raises(mgr.Error) as missing:
        mgr.open(tmp_path / "nothing")
    assert missing.value.code == "MGR_ERR_NOT_FOUND" and "nothing" in str(missing.value)
    spoilt = shutil.copytree(dense, tmp_path / "spoilt")  # the other tests go on with the whole one
    checkpoint = mgr.open(spoilt)
    with pytest.raises(KeyError):
        checkpoint["no.such.tensor"]
    tensor = checkpoint["model.norm.weight"]
    (weights,) = spoilt.glob("*.safetensors")
    os.truncate(weights, weights.stat().st_size // 2)
    with pytest.raises(mgr.Error) as cut:
        for each in checkpoint.values():
            each[:]
    assert cut.value.code == "MGR_ERR_FORMAT" and weights.name in str(cut.value)
    checkpoint.close()
    with pytest.raises(ValueError, match="closed"):
        tensor[:]


def run(folder, dense, name="run", **changes):
    config = runner.write_config(folder / (name + ".yaml"), dense, folder / name, **changes)
    done = runner.run([runner.program("mgr-upcycle"), config])
    assert done.status == 0, str(done)
    return folder / name


def test_a_run_of_deepspeed(mgr, tmp_path):
    torch.manual_seed(4)
    model = real_models.born("Llama", dict(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    ))  # fmt: skip
    model.save_pretrained(tmp_path / "hf")
    params = {name: p.detach().float() for name, p in model.named_parameters()}
    deepspeed_like.zero3(tmp_path / "step", params, ranks=3, size=700)
    with mgr.open(tmp_path / "step", source={"config": str(tmp_path / "hf")}) as checkpoint:
        assert checkpoint.format == "deepspeed" and set(checkpoint) == set(params)
        for name, p in params.items():
            same(checkpoint[name], p)
    with mgr.open(tmp_path / "step") as checkpoint:
        assert len(checkpoint) == 0 and "source.config" in checkpoint.about
    with pytest.raises(mgr.Error, match="settings:1:.*'confg'"):
        mgr.open(tmp_path / "step", source={"confg": "hf"})


def test_fp8_in_blocks(mgr, tmp_path):
    source, meant = fp8.make(tmp_path)
    with mgr.open(source) as checkpoint:
        assert set(checkpoint) == set(meant)
        for name, tensor in meant.items():
            assert checkpoint[name].stored_dtype == "bfloat16"
            same(checkpoint[name], tensor)


def test_a_bin(mgr, dense, tmp_path):
    tensors = harness.read_output(dense)
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text((pathlib.Path(dense) / "config.json").read_text())
    for path in (tmp_path, tmp_path / "pytorch_model.bin"):
        with mgr.open(path) as checkpoint:
            found = checkpoint if path == tmp_path else checkpoint.stored
            assert set(found) == set(tensors)
            for name, tensor in tensors.items():
                same(found[name], tensor)


def test_t5(mgr, tmp_path):
    torch.manual_seed(5)
    config = transformers.T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    with mgr.open(tmp_path / "t5") as checkpoint:
        expected = load_file(tmp_path / "t5" / "model.safetensors")
        assert set(checkpoint) == set(expected)
        for name, tensor in expected.items():
            same(checkpoint[name], tensor)


@pytest.mark.parametrize("name", ["huggingface", "megatron-torch", "megatron-dist", "deepspeed"])
def test_write_is_what_a_run_writes(mgr, dense, tmp_path, name):
    target = {"format": name, **({"tensor_parallel": 2} if "megatron" in name else {})}
    made = run(tmp_path, dense, mode="reshard", upcycle=None, **{"target__" + k: v for k, v in target.items()})
    with mgr.open(dense) as checkpoint:
        tensors = checkpoint if name == "huggingface" else lambda key: checkpoint[key][:]
        mgr.write(tmp_path / "out", checkpoint, tensors, mode="reshard", target=target)
    assert runner.hashes(tmp_path / "out") == runner.hashes(made)
    assert runner.run([runner.program("mgr-verify"), tmp_path / "out"]).status == 0


def test_write_a_mixture_of_arrays(mgr, dense, tmp_path):
    """Weights that are in no file: with a type of their own, cast where it is asked for."""
    with mgr.open(dense) as checkpoint:
        known = {}
        def of(name):
            known[name] = checkpoint[name][:] if name in checkpoint else numpy.random.default_rng(
                len(known)).standard_normal((4, 64) if ".gate." in name else (64, 96) if ".w2." in name else (96, 64))
            return known[name]

        mgr.write(tmp_path / "out", checkpoint, of, upcycle={"experts": 4}, target={"dtype": "float32"})
    out = harness.read_output(tmp_path / "out")
    assert len(out) == len(known) and sum(".experts." in name for name in out) == 2 * 4 * 3
    for name, tensor in out.items():
        assert tensor.dtype == torch.float32
        assert numpy.array_equal(tensor.numpy(), numpy.asarray(known[name], numpy.float32)), name


def test_write_leaves_nothing(mgr, dense, tmp_path):
    out = tmp_path / "out"
    with mgr.open(dense) as checkpoint:
        good = {name: tensor[:] for name, tensor in checkpoint.items()}
        bad = {**good, "model.norm.weight": numpy.full(64, numpy.nan, numpy.float32)}
        short = {**good, "model.norm.weight": numpy.zeros(63, numpy.float32)}
        less = {name: values for name, values in good.items() if name != "lm_head.weight"}

        def write(values, **settings):
            mgr.write(out, checkpoint, values, **{"mode": "reshard", "target": {"format": "huggingface"}, **settings})

        for values, kind, words in (
            (bad, mgr.Error, "model.norm.weight.*row 0.*NaN"), (short, ValueError, "model.norm.weight.*64.*63"),
            (less, KeyError, "lm_head.weight"),
        ):  # fmt: skip
            with pytest.raises(kind, match=words):
                write(values)
            assert list(tmp_path.iterdir()) == []
        for settings, words in (
            ({"target": {"format": "hdf5"}}, "known are"), ({"target": {"tensor_parallel": 2}}, "is for target format"),
            ({"mode": "upcycle", "upcycle": {"expert": 2}}, "did you mean 'experts'"),
        ):  # fmt: skip
            with pytest.raises(mgr.Error, match=words) as refused:
                write(good, **settings)
            assert refused.value.code == "MGR_ERR_CONFIG" and list(tmp_path.iterdir()) == []
        write(good)
        with pytest.raises(mgr.Error, match="exists already") as there:
            write(good)
        assert there.value.code == "MGR_ERR_EXISTS" and "--" not in str(there.value)


METHODS = {
    "drop": {},
    "independent": {"index_sets": "independent", "ratio": 0.3},
    "shuffled": {"shuffle": True},
    "naive": {"method": "naive", "ratio": None},
    "noise": {"method": "noise"},
    "ratios": {"layer_ratio": "0.2 to 0.6", "matrix_ratio": "1, 0.5, 1", "index_sets": "independent", "ratio": None},
    "law": {"redraw_mean": "zero", "redraw_std": 0.01},
    "slices": {"slices": 2, "router": "virtual-groups", "scale": "exact"},
    "wide": {"expert_width": 80, "cut": "shuffled", "scale": "published", "ratio": 1.0},
    "listed": {"neurons_file": "lists.json", "ratio": 0.25},
}


@pytest.mark.parametrize(
    "name,dtype", [*((name, "bfloat16") for name in METHODS), ("drop", "float32"), ("wide", "float32")]
)
def test_upcycle_is_what_a_run_makes(mgr, dense, tmp_path, name, dtype):
    keys = {"experts": 4, "ratio": 0.5, "seed": 99, **METHODS[name]}
    if "neurons_file" in keys:  # of each layer, each expert's
        lists = [[[(l + 3 * e + 2 * k) % 96 for k in range(40)] for e in range(4)] for l in range(2)]
        keys["neurons_file"] = str(tmp_path / "lists.json")
        (tmp_path / "lists.json").write_text(json.dumps({"neurons": lists}))
    changes = {"target__dtype": dtype, **{"upcycle__" + key: value for key, value in keys.items()}}
    out = harness.read_output(run(tmp_path, dense, target__format="moe-recipes", **changes))
    keys = {key: value for key, value in keys.items() if value is not None}
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else numpy.float32
    with mgr.open(dense) as checkpoint:
        for layer in range(2):
            prefix = "model.layers.%d.mlp.%%s_proj.weight" % layer
            ffn = [checkpoint[prefix % m][:].astype(kind) for m in ("gate", "up", "down")]
            assert all(numpy.count_nonzero(matrix) > 0.99 * matrix.size for matrix in ffn)
            made = mgr.upcycle(*ffn, layer=layer, layers=2, **keys)
            moe = "model.layers.%d.block_sparse_moe." % layer
            same(made.router, out[moe + "gate.weight"])
            for e, expert in enumerate(made.experts):
                assert expert.up.dtype == kind
                for w, matrix in zip(("w1", "w3", "w2"), expert):
                    same(matrix, out[moe + "experts.%d.%s.weight" % (e, w)])
            other = mgr.upcycle(*ffn, layer=layer, layers=2, **{**keys, "seed": 100})
            assert not numpy.array_equal(other.router, made.router)


def test_upcycle_refuses(mgr):
    up = numpy.ones((6, 4), numpy.float32)
    hot = up.copy()
    hot[2, 3] = numpy.inf
    for arrays, keys, words in (
        ((up, up, up.T), {"expert": 2}, "did you mean 'experts'"),
        ((up, hot, up.T), {}, "up of layer 0, row 2, column 3"),
        ((up, up, up.T), {"method": "branch-train-mix"}, "does not make experts of one FFN"),
        ((None, up, up.T), {"scale": "published", "slices": 2}, "without a gate"),
        ((up, up, up.T), {"layer_ratio": "0 to 1"}, "set 'model.num_layers'"),
        ((up, up, up.T), {"neurons_file": "no.json"}, "set 'model.num_layers'"),
        ((up, up, up.T), {"neurons_file": "no.json", "layers": 2}, "no.json"),
        ((up, up, up.T), {"moe_layer_freq": "2"}, "'upcycle.moe_layer_freq' is for a model.*remove"),
        ((up, up, up.T), {"experts_from": "0-1"}, "'upcycle.experts_from' is for a model"),
        ((up, up, up.T), {"shared_expert": "whole"}, "'upcycle.shared_expert' is for a model"),
        ((up, up, up.T), {"layers_from": "0,0"}, "'upcycle.layers_from' is for a model"),
        ((up, up, up.T), {"router": "file", "router_file": "r"}, "'upcycle.router: file' is for a model"),
        ((up, up, up.T), {"method": "from-scratch"}, "does not make experts of one FFN"),
        ((up, up, up.T), {"layers": 2, "layer": 2}, "no layer 2"),
        ((up, up, up.T), {"slices": 4}, "does not divide the 6 neurons"),
    ):
        with pytest.raises(mgr.Error, match=words):
            mgr.upcycle(*arrays, **keys)
    for arrays in ((up, up, up), (up.T, up, up.T), (up.astype(float), up, up.T)):
        with pytest.raises(ValueError):
            mgr.upcycle(*arrays)
    bare = mgr.upcycle(None, up, up.T, experts=2, ratio=1.0)
    assert bare.experts[0].gate is None and bare.experts[1].down.shape == (4, 6)


COMMA = """LC_NUMERIC
decimal_point "<U002C>"
thousands_sep ""
grouping -1
END LC_NUMERIC
"""
HOST = """
import ctypes, locale, sys
sys.path.insert(0, sys.argv[1])
import mgr, numpy
out, name = sys.argv[3], sys.argv[4]
locale.setlocale(locale.LC_NUMERIC, name)

def half():
    text = ctypes.create_string_buffer(8)
    ctypes.CDLL(None).snprintf(text, 8, b"%g", ctypes.c_double(0.5))
    return text.value.decode()

seen = {half()}
dense = mgr.open(sys.argv[2], source={"unknown": "warn"})
def values(name):
    seen.add(half())
    return dense[name]
for form in ("huggingface", "megatron-torch", "megatron-dist", "deepspeed"):
    mgr.write(out + "/" + form, dense, values, mode="reshard", target={"format": form})
    again = mgr.open(out + "/" + form, **({"source": {"config": sys.argv[2]}} if form == "deepspeed" else {}))
    assert set(again) == set(dense)
    print(again.about)
mgr.write(out + "/moe", dense, lambda n: dense[n] if n in dense else numpy.zeros({".gate.": (4, 64), ".w2.": (64, 96)}.get(
    next((k for k in (".gate.", ".w2.") if k in n), ""), (96, 64)), "float32"),
    upcycle={"experts": 4, "top_k": 2, "router": "normal", "router_std": 0.0125})
ffn = [dense["model.layers.0.mlp.%s_proj.weight" % m][:] for m in ("gate", "up", "down")]
made = mgr.upcycle(*ffn, layers=2, experts=2, layer_ratio="0.25 to 0.75", redraw_std=0.0625, redraw_mean="zero")
print(hash(b"".join(m.tobytes() for m in (*made.experts[1], made.router))))
try:
    mgr.upcycle(*ffn, ratio=1.5)
except mgr.Error as error:
    print(error)
seen.add(half())
print(*seen, file=sys.stderr)
"""


def test_a_decimal_comma(mgr, dense, tmp_path):
    """The locale of a program that has the library: numbers in files, settings and messages have a point, and a
    callback has the program's locale. The bytes are those of a program without one."""
    (tmp_path / "comma.src").write_text(COMMA)
    subprocess.run(
        ["localedef", "-c", "-i", tmp_path / "comma.src", "-f", "ANSI_X3.4-1968", tmp_path / "comma"], capture_output=True
    )
    site = pathlib.Path(mgr.__file__).parents[1]
    said, made = {}, {}
    for name, half in (("C", "0.5"), ("comma", "0,5")):
        out = tmp_path / ("out-" + name)
        out.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", HOST, site, dense, out, name], capture_output=True, text=True,
            env={**os.environ, "LOCPATH": str(tmp_path), "PYTHONHASHSEED": "0"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stderr.split() == [half]
        said[name], made[name] = done.stdout, runner.hashes(out)
        manifest = json.loads((out / "moe" / runner.MANIFEST).read_text())
        said[name] += json.dumps(manifest["remarks"]).replace(str(out), "")
    assert said["C"] == said["comma"] and made["C"] == made["comma"]
    assert "'upcycle.ratio' is 1.5" in said["C"]
