"""Every construction against its rule in rule_oracle.py, which was written without the C code: all that is not
drawn bit for bit, the sets that are drawn as include/mgr/rng.h has them, what is drawn by its distribution; and
the same bytes from Megatron's TP 1, 2 and 4. MGR_RULES=all: each construction in each type and from each split."""

import dataclasses
import functools
import json
import os
import re
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch

import megatron_like
import rule_oracle as rule
from harness import runner
from rule_oracle import at
from rule_table import FFN, HEADS, HIDDEN, LAYERS, QUICK, SEED, VOCAB, constructions, router_rows, uniform

ALL = os.environ.get("MGR_RULES") == "all"

# ---- sources and outputs, with numpy alone --------------------------------------------------------


def open_safetensors(path):
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    return header, data[: 8 + size], data[8 + size :]


def canonical(name):
    """One name for each tensor, whatever the class."""
    name = name.replace("block_sparse_moe", "mlp").replace("shared_experts.", "shared.")
    name = name.replace("shared_expert.", "shared.").replace("shared_expert_gate", "shared_gate")
    for old, new in (("w1", "gate_proj"), ("w3", "up_proj"), ("w2", "down_proj")):
        name = re.sub(rf"\.{old}\.weight$", f".{new}.weight", name)
    return name


def read(folder):
    """{canonical name: (float32 values, bits)}"""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        header, _, data = open_safetensors(path)
        for name, entry in header.items():
            a, b = entry["data_offsets"]
            bits = np.frombuffer(data[a:b], {"F32": np.uint32, "BF16": np.uint16}[entry["dtype"]])
            wide = bits if bits.dtype == np.uint32 else bits.astype(np.uint32) << np.uint32(16)
            assert canonical(name) not in found
            found[canonical(name)] = wide.view(np.float32).reshape(entry["shape"]), bits.reshape(entry["shape"])
    return found


def values_for(name, shape, seed):
    """Neurons differ in mean and spread, so that statistics of some are not those of all."""
    draw = np.random.default_rng([zlib.crc32(name.encode()), seed])
    if "norm" in name:
        return 1 + 0.1 * draw.standard_normal(shape)
    if re.search(r"(w[123]|(gate|up|down)_proj)\.weight$", name):
        down = re.search(r"(w2|down_proj)\.weight$", name)
        neurons = (1, shape[1]) if down else (shape[0], 1)
        spread = 0.05 * (0.5 + np.abs(draw.standard_normal(neurons)))
        return draw.standard_normal(shape) * spread + 0.1 * draw.standard_normal(neurons) + 0.02
    return 0.1 * draw.standard_normal(shape)


def write_source(folder, *words, seed=1, ffns=None):
    """mgr-synth's folder of a class, with our values in it, of another seed in FFNs; and what they are."""
    sizes = {"layers": LAYERS, "hidden": HIDDEN, "ffn": FFN, "heads": HEADS, "kv-heads": HEADS, "vocab": VOCAB}
    options = [word for name, size in sizes.items() for word in ("--" + name, size)]
    made = runner.run([runner.program("mgr-synth"), folder, "--format", "huggingface", *options, *words])
    assert made.status == 0, str(made)
    (folder / runner.MANIFEST).unlink()
    for path in folder.glob("*.safetensors"):
        header, head, data = open_safetensors(path)
        data = bytearray(data)
        for name, entry in header.items():
            a, b = entry["data_offsets"]
            of = ffns if ffns and ".mlp." in name else seed
            values = values_for(name, entry["shape"], of).astype(np.float32)
            if entry["dtype"] == "F32":
                data[a:b] = values.tobytes()
            else:
                data[a:b] = rule.rounded(values, 1, True).tobytes()
        path.write_bytes(head + bytes(data))
    return {name: values for name, (values, _) in read(folder).items()}


KINDS = {
    "llama": (),
    "llama-b": ("seed 2",),
    "llama-c": ("seed 3",),
    "llama-ffn": ("seed 4 of the FFNs",),  # all else is that of "llama"
    "qwen3": ("--class", "qwen3"),
    "qwen2": ("--class", "qwen2"),
    "mixtral": ("--class", "mixtral", "--experts", 4),
    "glm4_moe": ("--class", "glm4_moe", "--experts", 4),
    "dots1": ("--class", "dots1", "--experts", 4),
}


@pytest.fixture(scope="module")
def sources(module_scratch):
    @functools.cache
    def source(kind, dtype):
        words = [w for w in KINDS[kind] if not str(w).startswith("seed")] + ["--dtype", dtype]
        seed = next((int(w.split()[1]) for w in KINDS[kind] if str(w).startswith("seed")), 1)
        folder = module_scratch / f"{kind}-{dtype}"
        seeds = {"ffns": seed} if kind == "llama-ffn" else {"seed": seed}
        return folder, write_source(folder, *words, **seeds)

    return source


# ---- running the program --------------------------------------------------------------------------


def write_router(path, rows):
    """A safetensors file with nothing but a matrix for each layer."""
    size, header = rows[0].nbytes, {}
    for i in range(len(rows)):
        entry = {"dtype": "F32", "shape": rows[0].shape, "data_offsets": [i * size, (i + 1) * size]}
        header[f"model.layers.{i}.mlp.gate.weight"] = entry
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(r.tobytes() for r in rows))


def files_of(scratch, how):
    """The keys, with the files that they name written."""
    how = dict(how)
    for key in ("neurons_file", "experts_file"):
        if key in how:
            path = scratch / f"{key}.json"
            path.write_text(json.dumps(how[key]))
            how[key] = str(path)
    if how.get("router") == "file":
        how["router_file"] = str(scratch / "rows.safetensors")
        write_router(scratch / "rows.safetensors", [router_rows(i) for i in range(LAYERS)])
    return how


def run(scratch, source, how, target, dtype="float32"):
    """The program on `source`, a folder or several; returns the output's folder."""
    # What write_config presets is not every method's.
    keys = {"ratio": None, "top_k": None, **files_of(scratch, how)}
    changes = {f"upcycle__{key}": value for key, value in keys.items()}
    changes.update(target__format="huggingface", target__dtype=dtype, **target)
    out, several = scratch / "Mixtral-out", isinstance(source, tuple)
    config = runner.write_config(scratch / "out.yaml", "one" if several else source, out, **changes)
    if several:
        listed = "".join(f"  - path: {json.dumps(str(folder))}\n" for folder in source)
        text = config.read_text()
        assert "source:\n  path: one\n" in text
        config.write_text(text.replace("source:\n  path: one\n", "sources:\n" + listed))
    result = runner.run([runner.program("mgr-upcycle"), config])  # one rank; mpiexec would take half of the time
    assert result.status == 0, config.read_text() + str(result)
    return out


@pytest.fixture(scope="module")
def outputs(module_scratch, sources):
    """What the program makes of a construction, once: (models, what it wrote, the folder)."""

    @functools.cache
    def output(name, dtype, read_as):
        kind, how, target, _ = constructions()[name]
        kinds = kind if isinstance(kind, tuple) else (kind,)
        folders, models = zip(*(sources(k, read_as) for k in kinds))
        folder = module_scratch / f"{name}-{dtype}-{read_as}"
        folder.mkdir()
        out = run(folder, folders if isinstance(kind, tuple) else folders[0], how, target, dtype)
        return models, read(out), out

    return lambda name, dtype="float32", read_as="fp32": output(name, dtype, read_as)


def faults_of(outputs, name, *types):
    models, written, _ = outputs(name, *types)
    return rule.faults(constructions()[name][3](*models), written, types[:1] == ("bfloat16",))


@pytest.mark.parametrize("name", constructions() if ALL else QUICK)
def test_the_rule_is_kept(outputs, name):
    assert not faults_of(outputs, name)


def test_the_ledger_has_the_statistics(outputs):
    """Which distributions could not tell from those with N in the divisor."""
    import h5py

    name = "drop, linear ratios"
    models, _, folder = outputs(name)
    predicted = constructions()[name][3](*models)
    with h5py.File(folder / runner.LEDGER) as ledger:
        for i in range(LAYERS):
            for e in range(4):
                for k, m in enumerate(rule.MATRICES):
                    want = predicted[at(i, f"experts.{e}.{m}_proj.weight")]
                    assert abs(ledger["experts/mean"][i, e, k] - want.mean) < 2e-7 * want.std
                    assert abs(ledger["experts/std"][i, e, k] / want.std - 1) < 2e-7


@pytest.mark.parametrize("source", ["fp32", "bf16"])
@pytest.mark.parametrize("name", constructions() if ALL else QUICK[:1] + ["drop, width 24, published"])
def test_in_bfloat16(outputs, name, source):
    if ALL or source == "bf16":
        assert not faults_of(outputs, name, "bfloat16", source)


def louder(expert):
    return dataclasses.replace(expert, law=rule.Law(True, 0.0, 0.021))


# A wrong rule for each of these must be seen: what is replaced in the oracle, and in which construction.
WRONG = {
    "keys": ("drop", "sample", lambda real: lambda s, purpose, *rest: real(s, purpose + 1, *rest)),
    "one set for all": ("drop, independent", "sample", lambda real: lambda s, p, *rest: real(s, 0, *rest)),
    "statistics of all": ("drop", "statistics", lambda real: lambda v, n: (v.mean(), v.std())),
    "the mean of all": ("drop, shuffled", "statistics", lambda real: lambda v, n: (v.mean(), real(v, n)[1])),
    "noise's spread": ("noise", "made", lambda real: lambda f, x, m: real(f, louder(x), m)),
    "steps": ("drop, linear ratios", "linear_ratio", lambda real: lambda a, b, i, n: a + (b - a) * i / n),
    "scattered": ("drop, shuffled", "shuffled", lambda real: lambda s, i, e, o: o[np.argsort(real(s, i, e, o))]),
    "no shuffle": (
        "drop, width 20, cut shuffled",
        "cut_shuffled",
        lambda real: lambda s, i, e, w, f: rule.cut(e, w, f),
    ),
    "one shuffle for all copies": (
        "drop, width 20, cut shuffled",
        "permutation",
        lambda real: lambda s, p, i, copy, n: real(s, p, i, 0, n),
    ),
    "no wrapping": ("drop, width 160", "cut", lambda real: lambda e, w, f: real(0, w, f)),
    "square root": ("drop, width 24, published", "factors", lambda real: lambda r, f, part=1: real(r, f**1.5, part)),
    "normalised": (
        "naive, width 24, exact, pre-softmax",
        "scale_factor",
        lambda real: lambda f, w, n, k, pre=False: real(f, w, n, k),
    ),
    "groups": ("virtual groups", "normal_router", lambda real: lambda n, h, std=0.02, group=1: real(n, h, std, 2)),
    "mean of a row": ("drop", "uniform_router", lambda real: lambda s, i, n, *rest: real(s, i, 1, *rest)),
    "gate": ("shared half, gate", "add_shared", lambda real: lambda *args: real(*args[:4], 0.25, *args[5:])),
    "float32": ("several models, average", "mean_of", lambda real: lambda t: sum(t[1:], t[0]) * np.float32(1 / 3)),
    "init": ("from scratch, megatron", "from_scratch", lambda real: lambda m, n, e, s, megatron: real(m, n, e, s)),
    "weight": ("side by side, three", "times", lambda real: lambda v, f: real(v, f if f == 1 else 0.33333)),
    "whose noise": ("growth, router noise", "noisy", lambda real: lambda r, share: real(r, share * 1.1)),
    "the copies' keys": (
        "growth, copies drawn anew",
        "drop",
        lambda real: lambda s, i, e, *rest: real(s, i, e % 4, *rest),
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_rule_is_seen(outputs, monkeypatch, what):
    name, function, wrong = WRONG[what]
    monkeypatch.setattr(rule, function, wrong(getattr(rule, function)))
    constructions.cache_clear()
    try:
        assert faults_of(outputs, name)
    finally:
        constructions.cache_clear()


def test_copies_that_move_together_are_seen(outputs):
    models, written, _ = outputs("drop")
    written = dict(written)
    for m in rule.MATRICES:
        written[at(1, f"experts.2.{m}_proj.weight")] = written[at(1, f"experts.1.{m}_proj.weight")]
    cells = [np.random.default_rng(i % 7).standard_normal(500) for i in range(8)]
    assert "correlated" in rule.fits_normal(cells) and not rule.fits_normal(cells[:7])
    assert rule.faults(constructions()["drop"][3](*models), written)


def test_the_generator_is_philox():
    """Known answers of Random123 (kat_vectors)."""
    pi = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0]
    for counter_and_key, out in (
        ([0] * 6, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([0xFFFFFFFF] * 6, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (pi, "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ):
        words = rule.philox.block([np.array([c]) for c in counter_and_key[:4]], counter_and_key[4:])[:, 0]
        assert " ".join("%08x" % w for w in words) == out


# ---- halves: values at which a cast by way of another type shows ----------------------------------


def halves(n, seed):
    """float32 values in the middle between two bfloat16."""
    draw = np.random.default_rng(seed)
    return ((1 + (2 * draw.integers(0, 128, n) + 1) / 256) * 0.125).astype(np.float32)


def change(folder, new):
    """Replace values of a folder: new(name, values) -> values or None."""
    for path in folder.glob("*.safetensors"):
        header, head, data = open_safetensors(path)
        data = bytearray(data)
        for name, entry in header.items():
            a, b = entry["data_offsets"]
            old = np.frombuffer(bytes(data[a:b]), np.float32).reshape(entry["shape"])
            if (values := new(canonical(name), old)) is not None:
                data[a:b] = values.astype(np.float32).tobytes()
        path.write_bytes(head + bytes(data))
    return {name: values for name, (values, _) in read(folder).items()}


def test_products_are_of_float32(scratch):
    write_source(scratch / "dense", "--dtype", "fp32")
    root = np.float32(3 ** (1 / 3))
    model = change(
        scratch / "dense",
        lambda name, old: (halves(old.size, old.size) / root).reshape(old.shape) if ".mlp." in name else None,
    )
    _, how, target, predict = constructions()["naive, width 24, published"]
    written = read(run(scratch, scratch / "dense", how, target, "bfloat16"))
    predicted = predict(model)
    assert not rule.faults(predicted, written, True)
    for t in predicted.values():  # rounded once, from the product in double, most would be others
        t.values, t.factor = t.values.astype(np.float64) * np.float64(np.float32(t.factor)), 1.0
    assert rule.faults(predicted, written, True)


def test_a_mean_is_rounded_once(scratch):
    """Half of the way between two bfloat16, and a little more: a mean in float32 would be the half."""
    models = []
    for name, step in (("a", lambda v: v), ("b", lambda v: np.nextafter(v, np.float32(1)))):
        write_source(scratch / name, "--dtype", "fp32")
        new = lambda n, old: None if ".mlp." in n else step(halves(old.size, 1).reshape(old.shape))
        models.append(change(scratch / name, new))
    how = {"method": "branch-train-mix", "experts": 4, "seed": SEED}
    written = read(run(scratch, (scratch / "a", scratch / "b"), how, {}, "bfloat16"))
    assert not rule.faults(rule.branch_train_mix(models, LAYERS, 4, uniform, "average"), written, True)


def test_noise_on_virtual_groups(scratch, sources):
    """On all rows of a group but the first, as a share of its standard deviation."""
    how = {"method": "naive", "slices": 4, "top_k": 4, "experts": 128, "router": "virtual-groups"}
    folder, _ = sources("llama", "fp32")
    written = read(run(scratch, folder, {**how, "router_noise": 0.1}, {}))
    for i in range(LAYERS):
        rows = written[at(i, "gate.weight")][0].astype(np.float64).reshape(32, 4, HIDDEN)
        noise = (rows[:, 1:] - rows[:, :1]) / (0.1 * rows[:, :1].std(axis=2, ddof=1, keepdims=True))
        assert not rule.fits_normal(list(noise.reshape(12, -1)))
        assert not rule.fits_normal(list(rows[:, 0] / 0.02))


# ---- Megatron's splits ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def splits(module_scratch, sources):
    """The model of a Hugging Face folder as a training run of Megatron saves it."""

    @functools.cache
    def split(kind, tp):
        folder, values = sources(kind, "fp32")
        model = {name: torch.from_numpy(v.copy()) for name, v in values.items()}
        shape = megatron_like.Shape(LAYERS, HIDDEN, FFN, HEADS, HEADS, HIDDEN // HEADS, VOCAB)
        return megatron_like.save(model, shape, module_scratch / f"{kind}-tp{tp}", tp=tp)

    return split


def weights(folder):
    files = {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
    assert files
    return files


DENSE = [name for name, row in constructions().items() if {row[0]} & {"llama"} or isinstance(row[0], tuple)]
SPLIT = ["drop, width 20, cut shuffled", "shared slice, no gate", "several models, average"]


@pytest.mark.parametrize("tp", [1, 2, 4])
@pytest.mark.parametrize("name", DENSE if ALL else SPLIT)
def test_from_each_split_the_same_bytes(scratch, outputs, splits, name, tp):
    kind, how, target, _ = constructions()[name]
    whole = outputs(name)[2]
    source = tuple(splits(k, tp) for k in kind) if isinstance(kind, tuple) else splits(kind, tp)
    assert weights(run(scratch, source, how, target)) == weights(whole)


MIXTURES = [name for name, row in constructions().items() if row[0] == "mixtral"]


@pytest.mark.parametrize("tp, ep", [(1, 2), (2, 1), (4, 2)] if ALL else [(2, 2)])
@pytest.mark.parametrize("name", MIXTURES if ALL else ["growth, copies drawn anew"])
def test_of_mixtures_too(scratch, outputs, sources, name, tp, ep):
    kind, how, target, _ = constructions()[name]
    changes = dict(mode="reshard", target__format="megatron-torch")
    changes.update(target__tensor_parallel=tp, target__expert_parallel=ep, target__dtype="source")
    config = runner.write_config(scratch / "split.yaml", sources(kind, "fp32")[0], scratch / "split", **changes)
    assert runner.upcycle(config, np=1).status == 0
    assert weights(run(scratch, scratch / "split", how, target)) == weights(outputs(name)[2])


# ---- selection by scores, and what a configuration says of it -------------------------------------


@pytest.mark.parametrize("by", ["router-sum", "router-norm", "ffn-norm"])
def test_selection_by_score(scratch, sources, by):
    library = runner.BIN.parent / "src" / "libmgr.so"
    folder, model = sources("mixtral", "fp32")
    made = subprocess.run(
        [sys.executable, "-m", "mgr.experts", folder, "--keep", "2", "--by", by, "-o", scratch / "kept.json"],
        env={**os.environ, "MGR_LIBRARY": str(library), "PYTHONPATH": str(runner.ROOT / "tools" / "python")},
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr
    best = lambda i: sorted(np.argsort(-rule.scores(model, i, 4, by))[:2].tolist())
    kept = json.loads((scratch / "kept.json").read_text())["experts"]
    assert kept == [best(i) for i in range(LAYERS)]


def test_as_many_times_the_top_k(outputs):
    for name, key, value in (
        ("growth of glm4_moe", "num_experts_per_tok", 4),
        ("selection of glm4_moe", "n_routed_experts", 3),
        ("layers from times 2", "num_hidden_layers", 6),
        ("side by side, three", "intermediate_size", 3 * FFN),
    ):
        assert json.loads((outputs(name)[2] / "config.json").read_text())[key] == value, name
