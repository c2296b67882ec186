"""Shards: experts of one expert-parallel rank only, shared weights apart, sizes kept, and an index
and a manifest that say so."""

import json
import re

import pytest

import harness
import runner

SHAPE = dict(layers=3, hidden=256, ffn=704, heads=4, kv_heads=2, vocab=4096, seed=3)
EXPERTS, EP = 8, 4
EXPERT_NAME = re.compile(r"model\.layers\.\d+\.block_sparse_moe\.experts\.(\d+)\.w[123]\.weight")


@pytest.fixture(scope="module")
def source(module_scratch):
    return runner.synth(module_scratch / "dense", tp=2, pp=1, **SHAPE)


def owner(name):
    """The EP rank of an expert's tensor; None for a shared weight."""
    match = EXPERT_NAME.fullmatch(name)
    return int(match.group(1)) // (EXPERTS // EP) if match else None


def run(scratch, source, limit, **changes):
    return harness.convert(
        scratch,
        source,
        upcycle__experts=EXPERTS,
        **{"target__expert_parallel": EP, "target__max_shard_size": limit, **changes},
    )


@pytest.mark.parametrize("limit,size", [("2MB", 2_000_000), ("1MiB", 1 << 20), ("5GB", 5_000_000_000)])
def test_a_shard_belongs_to_one_owner_and_keeps_its_size(scratch, source, limit, size):
    out = run(scratch, source, limit)
    files = {}
    for name, file in harness.read_index(out).items():
        files.setdefault(file, []).append(name)
    for file, names in files.items():
        assert len({owner(name) for name in names}) == 1, (file, names)
        assert (out / file).stat().st_size <= size or len(names) == 1, file
    owners = [owner(names[0]) for names in files.values()]
    assert set(owners) == {None, *range(EP)}
    if limit == "5GB":
        assert len(files) == EP + 1
    else:
        assert owners.count(0) == owners.count(1) > 1
    count = len(files)
    assert sorted(files) == ["model-%05d-of-%05d.safetensors" % (i + 1, count) for i in range(count)]


def test_a_tensor_larger_than_the_limit_has_a_shard_of_its_own(scratch, source):
    out = run(scratch, source, "1MiB")
    files = list(harness.read_index(out).values())
    large = {
        name: t for name, t in harness.read_output(out).items() if t.numel() * t.element_size() > 1 << 20
    }
    assert large
    for name in large:
        assert files.count(harness.read_index(out)[name]) == 1, name


def test_index_is_complete(scratch, source):
    out = run(scratch, source, "2MiB")
    index = json.loads((out / "model.safetensors.index.json").read_text())
    tensors = harness.read_output(out)
    assert set(index["weight_map"]) == set(tensors)
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in tensors.values())
    assert len(tensors) == 3 + SHAPE["layers"] * (7 + 3 * EXPERTS)


def owners_in_manifest(node, files, found):
    """Whatever the manifest's form: an object that names a shard and a whole number `expert_parallel_rank`."""
    if isinstance(node, dict):
        named = [v for v in node.values() if isinstance(v, str) and v in files]
        for file in named:
            found.setdefault(file, []).append(node.get("expert_parallel_rank", "absent"))
        for value in node.values():
            owners_in_manifest(value, files, found)
    elif isinstance(node, list):
        for value in node:
            owners_in_manifest(value, files, found)


def test_manifest_names_the_owner_of_every_shard(scratch, source):
    out = run(scratch, source, "2MiB")
    weight_map = harness.read_index(out)
    found = {}
    owners_in_manifest(json.loads((out / runner.MANIFEST).read_text()), set(weight_map.values()), found)
    for name, file in weight_map.items():
        assert owner(name) in found.get(file, []), (file, owner(name), found.get(file))


def test_one_owner_by_default(scratch, source):
    out = run(scratch, source, "5GB", target__expert_parallel=None)
    files = {}
    for name, file in harness.read_index(out).items():
        files.setdefault(file, set()).add(EXPERT_NAME.fullmatch(name) is not None)
    assert all(len(kinds) == 1 for kinds in files.values()) and len(files) == 2


def test_files_are_what_safetensors_calls_canonical(scratch, source):
    """No holes, no overlap, 8-byte header padding; every tensor at a multiple of its type's size."""
    out = run(scratch, source, "2MiB")
    for file in out.glob("*.safetensors"):
        raw = file.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + length])
        assert raw[8:9] == b"{" and (8 + length) % 8 == 0
        spans = sorted(v["data_offsets"] for k, v in header.items() if k != "__metadata__")
        assert spans[0][0] == 0 and spans[-1][1] == len(raw) - 8 - length
        assert all(a[1] == b[0] for a, b in zip(spans, spans[1:]))
        assert header["__metadata__"]["format"] == "pt"


def test_no_stray_files(scratch, source):
    out = run(scratch, source, "2MiB")
    other = {p.name for p in out.iterdir() if p.suffix != ".safetensors"}
    assert other == {"config.json", "generation_config.json", "model.safetensors.index.json", runner.MANIFEST, runner.LEDGER}
