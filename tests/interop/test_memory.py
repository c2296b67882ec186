"""Headers as long as formats allow stay inside memory_per_rank, or are refused with the size that
would do: measured as the program's own peak (VmHWM)."""

import json
import re
import struct

import pytest
import torch

import dist_like as dl
import runner

BUDGET = "512MiB"
LIMIT = 512 << 20
FULL = 100_000_000  # the most that a safetensors header may have
UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def upcycle(tmp_path, source, np=1, **changes):
    changes = {"memory_per_rank": BUDGET, **changes}
    config = runner.write_config(tmp_path / "c.yaml", source, tmp_path / "Mixtral-out", **changes)
    return runner.upcycle(config, np=np, timeout=300)


def fits(result):
    """The summary's peak of the largest rank is its VmHWM."""
    assert result.status == 0, str(result)
    number, unit = re.search(r"memory +([\d.]+) (KiB|MiB|GiB) +peak", result.out).groups()
    assert float(number) * UNITS[unit] < LIMIT, str(result)
    print("peak %s %s of %s" % (number, unit, BUDGET))




def read_header(path):
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(length)), file.read()


def write_header(path, header, data):
    text = json.dumps(header, separators=(",", ":")).encode()
    assert len(text) <= FULL
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return len(text)


def hub(tmp_path):
    root = runner.synth_folder(tmp_path / "hub")
    return root, root / "model.safetensors"


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_header_of_100_mb_of_metadata(tmp_path, ranks):
    root, weights = hub(tmp_path)
    header, data = read_header(weights)
    one = {"key.%07d" % i: "v" * 77 for i in range(FULL // 96)}
    header["__metadata__"].update(one)
    assert write_header(weights, header, data) > 0.95 * FULL
    fits(upcycle(tmp_path, root, np=ranks))


def test_a_header_of_100_mb_of_entries(tmp_path):
    """Buffers of RoPE, as old checkpoints have them, up to the format's limit."""
    root, weights = hub(tmp_path)
    header, data = read_header(weights)
    at = len(data)
    name = "model.layers.%d.self_attn.rotary_emb.inv_freq"
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [at, at + 4]}
    size = len(json.dumps(entry, separators=(",", ":"))) + len(name) + 14
    n = (FULL - 100_000) // size
    for i in range(n):
        header[name % i] = {**entry, "data_offsets": [at + 4 * i, at + 4 * i + 4]}
    assert write_header(weights, header, data + bytes(4 * n)) > 0.9 * FULL
    fits(upcycle(tmp_path, root))


def grow_metadata(root, keys, optimizer):
    """Keys with a chunk each, as a model's optimizer or experts have them."""
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorStorageMetadata
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    def edit(metadata):
        like = next(m for m in metadata.state_dict_metadata.values() if hasattr(m, "chunks"))
        path = next(iter(metadata.storage_data.values())).relative_path
        for i in range(keys):
            key = "%sdecoder.layers.%d.mlp.experts.local_experts.%d.linear_fc1.weight" % (optimizer, i // 256, i % 256)
            offset, size = torch.Size([0, 0]), torch.Size([2816, 1024])
            chunk = ChunkStorageMetadata(offset, size)
            metadata.state_dict_metadata[key] = TensorStorageMetadata(like.properties, size, [chunk])
            metadata.storage_data[MetadataIndex(key, offset, 0)] = _StorageInfo(path, 4096 * i, 4096)

    dl.edit_metadata(root, edit)


def dist(tmp_path, keys, optimizer="optimizer.state.exp_avg."):
    root = tmp_path / "dist"
    dense = runner.synth(tmp_path / "dense")
    made = runner.upcycle(
        runner.write_config(
            tmp_path / "d.yaml", dense, root, mode="reshard", target__format="megatron-dist"
        ),
        np=1,
    )
    assert made.status == 0, str(made)
    grow_metadata(root, keys, optimizer)
    return root


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_metadata_of_100_000_keys(tmp_path, ranks):
    fits(upcycle(tmp_path, dist(tmp_path, 100_000), np=ranks))


def test_more_is_refused_with_the_size_that_would_do(tmp_path):
    """The size is true: with it the same run ends well."""
    root = dist(tmp_path, 60_000)
    small = {"memory_per_rank": "80MiB"}
    result = upcycle(tmp_path, root, **small)
    assert result.status == runner.OS_ERROR, str(result)
    assert not (tmp_path / "Mixtral-out").exists()
    for _ in range(12):  # each hint is what the step at hand needs
        found = re.search(r"hint: set memory_per_rank to (\d+MiB) or more", result.err)
        assert result.status in (runner.OS_ERROR, runner.CONFIG) and found, str(result)
        result = upcycle(tmp_path, root, memory_per_rank=found.group(1))
        if result.status == 0:
            return
    raise AssertionError(str(result))
