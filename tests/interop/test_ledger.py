"""provenance.h5: what it says is what numpy finds in the source and in the output."""

import binascii
import hashlib
import json
import math

import h5py
import numpy as np
import pytest
import torch

import harness
import megatron_like as ml
import runner

SHAPE = ml.Shape(layers=3, hidden=64, ffn=200, heads=4, kv_heads=2, head_dim=16, vocab=96)
EXPERTS = 4
KINDS = list(harness.W)
# The timeline and the time of day tell runs apart; nothing else does.
CHANGES = ("timeline", "run", "config")


def open_ledger(out):
    return h5py.File(out / runner.LEDGER, "r")


def arrays(ledger):
    """{path: array} of everything that is the same for any number of ranks."""
    found = {}
    ledger.visititems(
        lambda name, item: found.update({name: item[()]})
        if isinstance(item, h5py.Dataset) and not name.startswith(CHANGES)
        else None
    )
    return found


@pytest.fixture(scope="module")
def dense(module_scratch):
    model = ml.dense_model(SHAPE)
    return model, ml.save(model, SHAPE, module_scratch / "dense", 2, 1)


def make(folder, dense, name="Mixtral-out", **how):
    return harness.convert(
        folder, dense[1], name=name, **{"upcycle__experts": EXPERTS, "model__vocab_size": SHAPE.vocab, **how}
    )


def selected(ledger, layer, expert, matrix):
    sets = ledger["experts/mask"][layer, expert]
    bits = np.unpackbits(sets[matrix % len(sets)], bitorder="little")[: SHAPE.ffn]
    return np.flatnonzero(bits)


def neurons_first(kind, values):
    return values.T if kind == "down" else values


def dense_of(ledger, layer, expert):
    if "dense_of" in ledger["experts"]:
        return ledger["experts/dense_of"][layer, expert]
    return np.arange(SHAPE.ffn)


@pytest.mark.parametrize("sets", ["shared", "independent"])
@pytest.mark.parametrize("shuffle", [False, True], ids=["in order", "shuffled"])
def test_it_agrees_with_numpy(scratch, dense, sets, shuffle):
    out = make(scratch, dense, upcycle__index_sets=sets, upcycle__shuffle=shuffle, upcycle__ratio=0.3)
    tensors, ledger = harness.read_output(out), open_ledger(out)
    assert list(ledger["layers"]) == list(range(SHAPE.layers))
    assert ledger["experts/mask"].shape == (SHAPE.layers, EXPERTS, 3 if sets == "independent" else 1, 25)
    for layer in range(SHAPE.layers):
        source = harness.dense_ffn(dense[0], layer)
        for m, kind in enumerate(KINDS):
            whole = source[kind].astype(np.float64)
            assert math.isclose(ledger["dense/mean"][layer, m], whole.mean(), rel_tol=1e-5, abs_tol=1e-9)
            assert math.isclose(ledger["dense/std"][layer, m], whole.std(ddof=1), rel_tol=1e-5)
        for expert in range(EXPERTS):
            check_expert(ledger, tensors, source, layer, expert)
        check_overlap(ledger, layer)
        check_router(ledger, tensors, layer)


def check_expert(ledger, tensors, source, layer, expert):
    result = harness.expert_ffn(tensors, layer, expert)
    order = dense_of(ledger, layer, expert)
    assert sorted(order) == list(range(SHAPE.ffn))
    for m, kind in enumerate(KINDS):
        chosen = selected(ledger, layer, expert, m)
        size = int(0.3 * SHAPE.ffn)
        assert len(chosen) == size == ledger["experts/selected"][layer, expert, m]
        assert ledger["experts/kept"][layer, expert, m] == pytest.approx(1 - size / SHAPE.ffn)
        before = neurons_first(kind, source[kind])[order]
        after = neurons_first(kind, result[kind])
        differing = np.flatnonzero((before != after).any(axis=1))
        assert list(differing) == list(chosen), (layer, expert, kind)
        drawn_from = before[chosen].astype(np.float64)
        assert math.isclose(
            ledger["experts/mean"][layer, expert, m], drawn_from.mean(), rel_tol=1e-5, abs_tol=1e-9
        )
        assert math.isclose(ledger["experts/std"][layer, expert, m], drawn_from.std(ddof=1), rel_tol=1e-5)
        stored = tensors[harness.EXPERT % (layer, expert, harness.W[kind])]
        raw = stored.contiguous().view(torch.uint8).numpy().tobytes()
        assert ledger["experts/crc32"][layer, expert, m] == binascii.crc32(raw)


def check_overlap(ledger, layer):
    kept = []
    for expert in range(EXPERTS):
        order, sets = dense_of(ledger, layer, expert), ledger["experts/mask"].shape[2]
        kept.append(
            [
                set(order[np.setdiff1d(np.arange(SHAPE.ffn), selected(ledger, layer, expert, m))])
                for m in range(sets)
            ]
        )
    for a in range(EXPERTS):
        for b in range(EXPERTS):
            both = sum(len(x & y) for x, y in zip(kept[a], kept[b]))
            share = both / sum(len(x) for x in kept[a])
            assert ledger["experts/overlap"][layer, a, b] == pytest.approx(share)


def check_router(ledger, tensors, layer):
    router = tensors[harness.ROUTER % layer].double().numpy()
    for name, value in {
        "mean": router.mean(),
        "std": router.std(),
        "min": router.min(),
        "max": router.max(),
        "norm": np.linalg.norm(router, axis=1),
    }.items():
        assert np.allclose(ledger["router/" + name][layer], value, rtol=1e-9, atol=1e-12), name


def test_the_same_for_any_number_of_ranks(scratch, dense):
    seen = [
        arrays(open_ledger(make(scratch, dense, name="Mixtral-%d" % np_, np=np_, upcycle__shuffle=True)))
        for np_ in (1, 2, 3, 4)
    ]
    for other in seen[1:]:
        assert other.keys() == seen[0].keys()
        assert all(np.array_equal(other[name], seen[0][name]) for name in other)


@pytest.mark.parametrize("target", ["megatron-torch", "megatron-dist", "hdf5"])
@pytest.mark.parametrize("shuffle", [False, True], ids=["in order", "shuffled"])
def test_the_same_checksums_for_every_target(scratch, dense, target, shuffle):
    """Of the experts as they are, however they are cut: a Megatron target splits and fuses them."""
    first = open_ledger(make(scratch, dense, upcycle__shuffle=shuffle))
    config = runner.write_config(
        scratch / "other.yaml", dense[1], scratch / "other", upcycle__experts=EXPERTS,
        upcycle__shuffle=shuffle, model__vocab_size=SHAPE.vocab, target__dtype="source",
        target__format=target, target__expert_parallel=2,
        **({"target__tensor_parallel": 2} if target == "megatron-torch" else {}),
    )
    result = runner.upcycle(config, np=3)
    assert result.status == 0, str(result)
    other = open_ledger(scratch / "other")
    assert np.array_equal(first["experts/crc32"][()], other["experts/crc32"][()])
    assert len(np.unique(first["experts/crc32"][()])) == SHAPE.layers * EXPERTS * len(KINDS)


def test_a_resumed_run_knows_it_too(scratch, dense):
    """What was journaled before the kill is not summed again."""
    expected = arrays(open_ledger(make(scratch, dense, name="Mixtral-whole")))
    config = runner.write_config(
        scratch / "run.yaml", dense[1], scratch / "Mixtral-resumed", upcycle__experts=EXPERTS,
        model__vocab_size=SHAPE.vocab, target__dtype="source",
    )
    killed = runner.upcycle(
        config, np=2, options=["--journal", "0"], env={"MGR_FAULT": "rank:0,rename:1:kill"}
    )
    assert killed.status != 0
    result = runner.upcycle(config, np=2, options=["--resume"])
    assert result.status == 0, str(result)
    again = arrays(open_ledger(scratch / "Mixtral-resumed"))
    assert all(np.array_equal(again[name], expected[name]) for name in expected)


def test_the_timeline(scratch, dense):
    out = make(scratch, dense, np=3)
    ledger = open_ledger(out)
    time = {name: item[()] for name, item in ledger["timeline"].items()}
    phases = [name.decode() for name in time["phases"]]
    assert phases == ["find", "plan", "sums", "write", "sync", "settle"]
    assert set(time["rank"]) == {0, 1, 2} and len(time["peak_rss"]) == 3
    for rank in range(3):
        mine = time["rank"] == rank
        start, end = time["start"][mine], time["start"][mine] + time["seconds"][mine]
        assert (start >= 0).all() and (start[1:] >= end[:-1] - 1e-6).all()
    stored = sum(t.numel() * t.element_size() for t in harness.read_output(out).values())
    assert time["bytes_written"].sum() == stored
    assert time["bytes_read"].sum() >= sum(t.numel() * t.element_size() for t in dense[0].values())


def test_where_two_equal_runs_differ(scratch, dense):
    """In the times of the run, and in its memory."""
    seen = [make(scratch, dense, np=2), None]
    seen[1] = seen[0].rename(scratch / "first")
    seen[0] = make(scratch, dense, np=2)
    one, other = (open_ledger(out) for out in seen)
    runs = [json.loads(ledger["run"][()]) for ledger in (one, other)]
    assert all(run.pop("written") for run in runs) and runs[0] == runs[1]
    names = []
    one.visit(names.append)
    times = {"run", "timeline/start", "timeline/seconds", "timeline/peak_rss"}
    for name in names:
        if isinstance(one[name], h5py.Dataset) and name not in times:
            assert one[name].dtype == other[name].dtype
            assert one[name][()].tobytes() == other[name][()].tobytes(), name


def test_the_texts(scratch, dense):
    out = make(scratch, dense)
    ledger = open_ledger(out)
    manifest = json.loads((out / runner.MANIFEST).read_text())
    run = json.loads(ledger["run"][()])
    assert ledger["config"][()].decode() == manifest["config"]
    assert json.loads(ledger["sources"][()]) == manifest["source"]["files"]
    assert (run["method"], run["ratio"], run["seed"], run["ranks"]) == ("drop", 0.5, "1234", 2)


def test_reshard_has_one_without_experts(scratch, dense):
    config = runner.write_config(
        scratch / "run.yaml", dense[1], scratch / "out", mode="reshard", upcycle=None,
        target__format="huggingface", model__vocab_size=SHAPE.vocab,
    )
    result = runner.upcycle(config)
    assert result.status == 0, str(result)
    ledger = open_ledger(scratch / "out")
    assert "experts" not in ledger and len(ledger["timeline/rank"]) > 0


@pytest.mark.parametrize("method,ratio", [("naive", None), ("noise", 0.5), ("drop", 0.0), ("drop", 1.0)])
def test_other_methods(scratch, dense, method, ratio):
    ledger = open_ledger(make(scratch, dense, upcycle__method=method, upcycle__ratio=ratio))
    size = int((ratio or 0) * SHAPE.ffn)
    assert (ledger["experts/selected"][()] == size).all()
    assert np.isnan(ledger["experts/mean"][()]).all() == (method != "drop" or ratio == 0)
    if size == SHAPE.ffn:
        assert (ledger["experts/overlap"][()] == 0).all()


# ---- mgr-verify against it


def change(out, name, how):
    """A ledger that says something else, in an output whose checksums are right again."""
    path, manifest = out / runner.LEDGER, out / runner.MANIFEST
    before = binascii.crc32(path.read_bytes())
    with h5py.File(path, "r+") as ledger:
        ledger[name][...] = how(ledger[name][()])
    text = manifest.read_text().replace(f"{before:08x}", f"{binascii.crc32(path.read_bytes()):08x}")
    was = json.loads(text)["digest"]
    text = text.replace(was, "0" * 64)
    manifest.write_text(text.replace("0" * 64, hashlib.sha256(text.encode()).hexdigest()))


def scaled(values):
    """Somewhat larger in each layer's expert that a sample is taken of."""
    values[..., 0] *= 1.5
    return values


@pytest.mark.parametrize("format", ["moe-recipes", "megatron-dist", "hdf5"])
def test_verify_finds_what_the_ledger_has_wrong(scratch, dense, format):
    def verify():
        return runner.run([runner.program("mgr-verify"), "--json", out])

    out = scratch / "Mixtral"
    settings = {"target__format": format, "model__vocab_size": SHAPE.vocab, "target__dtype": "source"}
    result = runner.upcycle(runner.write_config(scratch / "run.yaml", dense[1], out, **settings), np=1)
    assert result.status == 0, str(result)
    assert verify().status == 0
    wrongs = [
        ("std", scaled, "gate has other moments"),
        ("mean", lambda v: v + 0.1, "up has other moments"),
        ("kept", lambda v: v * 0.5, "another share of neurons is kept"),
        ("mask", lambda v: v ^ 1, "its set has another size"),
        ("crc32", lambda v: v ^ 4, "has another checksum"),
    ]
    whole = (out / runner.LEDGER).read_bytes(), (out / runner.MANIFEST).read_bytes()
    for name, how, words in wrongs:
        change(out, "experts/" + name, how)
        result = verify()
        found = [difference["what"] for difference in json.loads(result.out)["differences"]]
        assert result.status == 1 and any(words in what for what in found), str(result)
        (out / runner.LEDGER).write_bytes(whole[0])
        (out / runner.MANIFEST).write_bytes(whole[1])
    assert verify().status == 0
