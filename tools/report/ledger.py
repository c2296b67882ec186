"""Reading: the ledger of a run, and the weights that lie beside it."""

import json
import pathlib

import h5py
import numpy as np

KINDS = {"gate": "w1", "up": "w3", "down": "w2"}
EXPERT = "model.layers.%d.block_sparse_moe.experts.%d.%s.weight"


class Ledger:
    """provenance.h5 in memory but for the masks, which are read layer by layer."""

    def __init__(self, path):
        self.path = pathlib.Path(path)
        self.file = h5py.File(self.path, "r")
        self.run = json.loads(self.file["run"][()])
        self.config = self.file["config"][()].decode(errors="backslashreplace")
        self.sources = json.loads(self.file["sources"][()])
        self.has_experts = "experts" in self.file
        self.of_mixture = self.run.get("source_experts", 0) > 0
        if self.has_experts:
            self.layers = self.file["layers"][()]
            self.selected = self.file["experts/selected"][()]
            self.mean, self.std = self.file["experts/mean"][()], self.file["experts/std"][()]
            self.crc32 = self.file["experts/crc32"][()]
            self.overlap = self.file["experts/overlap"][()]
            self.dense_mean, self.dense_std = self.file["dense/mean"][()], self.file["dense/std"][()]
            self.router = {name: item[()] for name, item in self.file["router"].items()}
            self.experts = self.selected.shape[1]
            self.sets = self.file["experts/mask"].shape[2]
        self.timeline = {name: item[()] for name, item in self.file["timeline"].items()}
        self.phases = [name.decode() for name in self.timeline.pop("phases")]
        self.peak_rss = self.timeline.pop("peak_rss")

    def manifest(self, *keys):
        """A text of the manifest beside the ledger; "not known" where there is none."""
        try:
            found = json.loads((self.path.parent / "mgr-manifest.json").read_text())
            for key in keys:
                found = found[key]
        except (OSError, ValueError, KeyError, TypeError):
            return "not known"
        return str(found)

    def paths(self):
        return [("source", self.manifest("source", "path")), ("target", self.path.parent.resolve())]

    def step_zero(self):
        return self.manifest("step_zero", "text")

    def mask(self, i, expert, matrix):
        """Which of the expert's neurons were drawn anew: a bool for each."""
        row = self.file["experts/mask"][i, expert, matrix % self.sets]
        return np.unpackbits(row, bitorder="little")[: self.run["neurons"]].astype(bool)

    def dense_of(self, i, expert):
        if "dense_of" in self.file["experts"]:
            return self.file["experts/dense_of"][i, expert]
        return np.arange(self.run["neurons"])


def widen(raw, dtype):
    """Stored bytes to float32; numpy has no bfloat16."""
    if dtype == "bfloat16":
        return (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(raw, {"float16": np.float16, "float32": np.float32}[dtype]).astype(np.float32)


class Safetensors:
    TYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}

    def __init__(self, folder):
        self.where = {}
        for path in sorted(folder.glob("*.safetensors")):
            with open(path, "rb") as file:
                size = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(size))
            for name, entry in header.items():
                if name != "__metadata__":
                    self.where[name] = (path, 8 + size, entry)

    def raw(self, name):
        path, base, entry = self.where[name]
        begin, end = entry["data_offsets"]
        with open(path, "rb") as file:
            file.seek(base + begin)
            return file.read(end - begin), self.TYPES[entry["dtype"]], entry["shape"]


class Hdf5:
    def __init__(self, folder):
        self.file = h5py.File(folder / "model.h5", "r")
        self.where = self.file

    def raw(self, name):
        item = self.file[name]
        kind, words = item.id.get_type(), {2: np.uint16, 4: np.uint32}
        raw = np.empty(item.shape, words[kind.get_size()])
        item.id.read(h5py.h5s.ALL, h5py.h5s.ALL, raw, mtype=kind)
        return raw.tobytes(), item.attrs["dtype"].decode(), item.shape


class Weights:
    """The experts of an output, if it is of a kind that this can read."""

    def __init__(self, folder):
        self.store = Hdf5(folder) if (folder / "model.h5").exists() else Safetensors(folder)

    def has(self, layer):
        return EXPERT % (layer, 0, "w1") in self.store.where

    def raw(self, layer, expert, kind):
        return self.store.raw(EXPERT % (layer, expert, KINDS[kind]))[0]

    def neurons(self, layer, expert, kind):
        """[neurons, hidden] in float32: down is turned."""
        raw, dtype, shape = self.store.raw(EXPERT % (layer, expert, KINDS[kind]))
        matrix = widen(raw, dtype).reshape(shape)
        return matrix.T if kind == "down" else matrix


def dense_matrix(ledger, weights, i, kind):
    """The dense matrix before, put together from the neurons that experts kept, and which of its
    neurons some expert kept."""
    n = ledger.run.get("source_neurons", ledger.run["neurons"])
    matrix, known = None, np.zeros(n, bool)
    for expert in range(ledger.experts):
        kept = ~ledger.mask(i, expert, list(KINDS).index(kind))
        order = ledger.dense_of(i, expert)[kept]
        values = weights.neurons(int(ledger.layers[i]), expert, kind)
        if matrix is None:
            matrix = np.zeros((n, values.shape[1]), np.float32)
        matrix[order] = values[kept]
        known[order] = True
    return matrix, known
