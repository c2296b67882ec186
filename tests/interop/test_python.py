"""The Python module, installed from its wheel, reads every format with the right values, without torch."""

import os
import pathlib
import subprocess
import sys

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file

import harness
import runner

ROOT = pathlib.Path(__file__).resolve().parents[2]
FORMATS = {
    "huggingface": {},
    "megatron-torch": {"target__tensor_parallel": 2, "target__pipeline_parallel": 2},
    "megatron-dist": {"target__tensor_parallel": 2},
    "hdf5": {},
    "hdf5-deflate": {"target__format": "hdf5", "target__compression": "deflate"},
}


@pytest.fixture(scope="module")
def mgr(tmp_path_factory):
    """The wheel's module: nothing else of the project is on the path."""
    folder = tmp_path_factory.mktemp("wheel")
    library = runner.BIN.parent / "src" / "libmgr.so"
    done = subprocess.run(
        [ROOT / "tools" / "python" / "wheel.sh", library, folder, sys.executable], capture_output=True, text=True
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


@pytest.mark.parametrize("name", FORMATS)
def test_every_format(mgr, dense, tmp_path, name):
    out = tmp_path / "out"
    changes = {"target__format": name, **FORMATS[name]}
    config = runner.write_config(tmp_path / "c.yaml", dense, out, mode="reshard", upcycle=None, **changes)
    assert runner.run([runner.program("mgr-upcycle"), config]).status == 0
    expected = harness.read_output(dense)
    with mgr.open(out) as checkpoint:
        assert checkpoint.format == changes["target__format"]
        assert set(checkpoint) == set(expected)
        for key, tensor in checkpoint.items():
            same(tensor, expected[key])
        assert len(checkpoint.stored) > 0


def test_a_mixture(mgr, dense, tmp_path):
    out = harness.convert(tmp_path, dense, upcycle__experts=2)
    with mgr.open(out) as checkpoint:
        expected = harness.read_output(out)
        assert set(checkpoint) == set(expected) == set(checkpoint.stored)
        for key, tensor in expected.items():
            same(checkpoint[key], tensor)
            same(checkpoint.stored[key], tensor)


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
    checkpoint = mgr.open(dense)
    with pytest.raises(KeyError):
        checkpoint["no.such.tensor"]
    tensor = checkpoint["model.norm.weight"]
    (weights,) = pathlib.Path(dense).glob("*.safetensors")
    size = weights.stat().st_size
    os.truncate(weights, size // 2)
    try:
        with pytest.raises(mgr.Error) as cut:
            for each in checkpoint.values():
                each[:]
        assert cut.value.code == "MGR_ERR_FORMAT" and weights.name in str(cut.value)
    finally:
        os.truncate(weights, size)
    checkpoint.close()
    with pytest.raises(ValueError, match="closed"):
        tensor[:]
