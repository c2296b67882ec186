"""Contract 1 keeps every byte: the weights of the quickstart, of scaled twins of the presets in configs/ and of what
else the methods and formats make are those of the first release, tests/data/golden/golden_weights.txt.

usage: test_weights.py [Weights | Twice] | test_weights.py --print     (the table, by the programs in MGR_BIN)
"""

import hashlib
import json
import pathlib
import shutil
import struct
import sys
import tempfile
import unittest
import zlib

import runner

GOLDEN = runner.ROOT / "tests" / "data" / "golden" / "golden_weights.txt"
CONFIGS = runner.ROOT / "configs"

# Sources: mgr-synth's options. The presets' models at an eighth to a forty-eighth of their width.
SOURCES = {
    "quickstart": "--layers 4 --hidden 256 --ffn 704 --heads 8 --kv-heads 4 --vocab 4096 --tp 2 --pp 2 --seed 1",
    "152m": "--layers 12 --hidden 64 --ffn 256 --heads 8 --kv-heads 8 --vocab 1556 --seed 2",
    "1.5b": "--layers 6 --hidden 64 --ffn 224 --heads 8 --kv-heads 4 --vocab 1520 --tp 2 --seed 3",
    "3.7b": "--layers 28 --hidden 64 --ffn 176 --heads 8 --kv-heads 8 --vocab 2075 --pp 2 --seed 4",
    "llama": "--layers 4 --hidden 128 --ffn 448 --heads 8 --kv-heads 2 --vocab 2004 --seed 5",
    "small": "--layers 3 --hidden 64 --ffn 96 --heads 4 --kv-heads 2 --vocab 128 --tp 2 --seed 7",
    "small-fp32": "--layers 2 --hidden 64 --ffn 96 --heads 4 --kv-heads 2 --vocab 128 --dtype fp32 --seed 8",
    "small-moe": "--layers 2 --hidden 64 --ffn 96 --heads 4 --kv-heads 2 --vocab 128 --experts 4 --seed 9",
}

# A case: name, source, preset or None, changes of keys.
DROP = {"upcycle.experts": 4, "upcycle.top_k": 2, "upcycle.seed": 1234}
# What follows the source by default where it is Megatron's is named, so that it is what it was when the table was made.
PADDED = {"target.make_vocab_size_divisible_by": 128, "target.names": "te"}
MEGATRON = {"target.tensor_parallel": 2, "target.pipeline_parallel": 1, "target.expert_parallel": 2, **PADDED}
CASES = [
    ("quickstart", "quickstart", "quickstart.yaml", {}),
    ("drop-8x152m", "152m", "drop-8x152m.yaml", {}),
    ("drop-8x1.5b", "1.5b", "drop-8x1.5b.yaml", {}),
    ("drop-8x3.7b", "3.7b", "drop-8x3.7b.yaml", {}),
    ("llama-3-8b-8x", "llama", "llama-3-8b-8x.yaml", {"model.vocab_size": 2004, "model.rotary_base": 10000}),
    ("megatron-8x3.7b", "3.7b", "megatron-8x3.7b.yaml", PADDED),
    ("naive", "small", None, {**DROP, "upcycle.method": "naive"}),
    ("noise", "small", None, {**DROP, "upcycle.method": "noise"}),
    ("ratio-1", "small", None, {**DROP, "upcycle.ratio": 1.0}),
    ("independent", "small", None, {**DROP, "upcycle.index_sets": "independent"}),
    ("shuffle", "small", None, {**DROP, "upcycle.shuffle": "true"}),
    ("shuffle-noise", "small", None, {**DROP, "upcycle.method": "noise", "upcycle.shuffle": "true"}),
    ("router-uniform01", "small", None, {**DROP, "upcycle.router": "uniform01"}),
    ("router-centred", "small", None, {**DROP, "upcycle.router": "uniform01-centred"}),
    ("router-normal", "small", None, {**DROP, "upcycle.router": "normal"}),
    ("float16", "small", None, {**DROP, "target.dtype": "float16"}),
    ("from-float32", "small-fp32", None, {**DROP, "target.dtype": "float32"}),
    ("float32-to-bfloat16", "small-fp32", None, DROP),
    ("hdf5", "small", None, {**DROP, "target.format": "hdf5"}),
    ("torch", "small", None, {**DROP, **MEGATRON, "target.format": "megatron-torch"}),
    ("torch_dist", "small", None, {**DROP, "target.format": "megatron-dist"}),
    ("reshard-dense", "small", None, {"mode": "reshard", "target.format": "huggingface"}),
    ("reshard-moe", "small-moe", None, {"mode": "reshard", **MEGATRON, "target.format": "megatron-torch"}),
]


def make_source(folder, name):
    options = SOURCES[name].split()
    if "--dtype" not in options:
        options += ["--dtype", "bf16"]
    result = runner.run([runner.program("mgr-synth"), folder / name] + options)
    assert result.status == 0, str(result)
    return folder / name


def safetensors_crcs(path):
    """{name: CRC-32 of its bytes}, read here and not believed from a manifest."""
    bytes_ = path.read_bytes()
    (size,) = struct.unpack("<Q", bytes_[:8])
    header = json.loads(bytes_[8 : 8 + size])
    header.pop("__metadata__", None)
    data = memoryview(bytes_)[8 + size :]
    return {name: zlib.crc32(data[slice(*t["data_offsets"])]) for name, t in header.items()}


def digest(output):
    """SHA-256 over name, size and CRC-32 of every stored tensor; where a file is simple enough, its own bytes must agree."""
    sums = runner.tensor_sums(output)
    for path in output.glob("*.safetensors"):
        own = safetensors_crcs(path)
        assert own == {name: int(crc, 16) for (file, name), (_, crc) in sums.items() if file == path.name}, path
    lines = ["%s %s %d %s\n" % (*key, *value) for key, value in sums.items()]
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def make(folder, source, case):
    name, _, preset, changes = case
    target = folder / ("Mixtral-" + name)
    settings = {"source.path": source, "target.path": target, **changes}
    config = CONFIGS / preset if preset else folder / "empty.yaml"
    if not preset:
        config.write_text("mode: %s\n" % settings.pop("mode", "upcycle"))
        settings.setdefault("target.format", "moe-recipes")
    settings["io_threads"] = len(name) % 3  # which changes nothing
    sets = [word for key, value in settings.items() for word in ("--set", "%s=%s" % (key, value))]
    result = runner.upcycle(config, np=2, options=["-q"] + sets)
    assert result.status == 0, str(result)
    return digest(target)


def table():
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        sources = {name: make_source(folder, name) for name in SOURCES}
        for case in CASES:
            yield case[0], make(folder, sources[case[1]], case)


class Weights(unittest.TestCase):
    def test_every_weight_is_that_of_contract_1(self):
        golden = dict(line.split() for line in GOLDEN.read_text().splitlines())
        found = dict(table())
        self.assertEqual(found, golden)


class Twice(unittest.TestCase):
    """Two equal runs are equal in every byte of every file, but for the ledger, in which are the times of the run
    (interop.ledger says where), and for what the manifest says of the ledger, and of itself."""

    FORMATS = {
        "moe-recipes": {"target.expert_parallel": 2},
        "huggingface": {"mode": "reshard"},
        "megatron-torch": MEGATRON,
        "megatron-dist": {},
        "hdf5": {},
        "hdf5-packed": {"target.format": "hdf5", "target.compression": "deflate"},
    }

    def manifest(self, folder):
        tree = json.loads((folder / runner.MANIFEST).read_text())
        del tree["digest"]
        (ledger,) = (file for file in tree["files"] if file["path"] == runner.LEDGER)
        del ledger["crc32"]
        return tree

    def test_every_byte_of_every_file(self):
        with tempfile.TemporaryDirectory() as scratch:
            folder = pathlib.Path(scratch)
            source = make_source(folder, "small")
            for name, changes in self.FORMATS.items():
                upcycle = {} if "mode" in changes else DROP
                case = (name, "small", None, {"target.format": name, **upcycle, **changes})
                first, target = folder / "first", folder / ("Mixtral-" + name)
                make(folder, source, case)
                target.rename(first)
                make(folder, source, case)
                self.assertEqual(runner.hashes(first), runner.hashes(target), name)
                self.assertEqual(self.manifest(first), self.manifest(target), name)
                self.assertEqual((first / runner.LEDGER).stat().st_size, (target / runner.LEDGER).stat().st_size)
                shutil.rmtree(first)


if __name__ == "__main__":
    if sys.argv[1:] == ["--print"]:
        for row in table():
            print(*row)
    else:
        unittest.main()
