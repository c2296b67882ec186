"""Every construction, made in many ways, gives the same weights: ranks, split and format of source and target, memory,
units, CPU path, stopped and resumed, verified. Each pair of two values occurs together in the full sweep
(MGR_PAIRS=all, ctest -L slow -R pairs; but for a target that cannot hold a construction); by default each construction and each value does."""

import itertools
import json
import os
import random

import numpy as np
import pytest

import runner

LAYERS, FFN, SEED = 4, 96, 23
SYNTH = ["--layers", LAYERS, "--ffn", FFN]
NAIVE = dict(method="naive", ratio=None)
SLICES = dict(slices=4, experts=8, top_k=4, scale="exact", router="virtual-groups")
DENSE, MOE, TWO = "dense", "moe", "two"  # what a construction is made of
# {construction: (its source, what of `upcycle:` is not as usual)}
CONSTRUCTIONS = {
    "naive": (DENSE, NAIVE),
    "drop": (DENSE, dict(ratio=0.5)),
    "drop, sets of their own": (DENSE, dict(ratio=0.3, index_sets="independent", shuffle=True)),
    "noise": (DENSE, dict(method="noise", ratio=0.5, shuffle=True)),
    "slices": (DENSE, dict(SLICES, ratio=0.5)),
    "slices, published": (DENSE, dict(SLICES, **NAIVE, scale="published", router_pre_softmax=False)),
    "Qwen2's cut": (DENSE, dict(expert_width=28, experts=6, ratio=0.5, cut="shuffled")),
    "any width": (DENSE, dict(expert_width=44, experts=4, ratio=0.25, shuffle=True)),
    "wider": (DENSE, dict(expert_width=200, experts=2, ratio=0.5, scale="exact")),
    "by layer": (DENSE, dict(ratio=None, layer_ratio="0.2 to 0.7", redraw_mean="zero")),
    "by matrix": (DENSE, dict(ratio=0.8, matrix_ratio="1,0.5,0", index_sets="independent", redraw_std=0.05)),
    "some layers": (DENSE, dict(ratio=0.5, moe_layer_freq="[1,0,1,1]")),
    "lists of neurons": (DENSE, dict(ratio=0.5, experts=None, neurons_file="neurons.json")),
    "layers again": (DENSE, dict(ratio=0.5, layers_from="0-2,1-3")),
    "half a shared expert": (DENSE, dict(shared_expert="half", shared_gate=True, ratio=0.5)),
    "slices shared": (
        DENSE,
        dict(shared_expert="slices", shared_gate=True, slices=4, shared_slices=2, cut="shuffled", ratio=0.5),
    ),
    "from scratch": (DENSE, dict(method="from-scratch", ratio=None, init_std=0.02)),
    "several sources": (TWO, dict(method="branch-train-mix", ratio=None)),
    "growth": (MOE, dict(NAIVE, experts=8, top_k=None)),
    "growth, drop": (MOE, dict(ratio=0.4, experts=12, top_k=None)),
    "growth, noise": (MOE, dict(method="noise", ratio=0.4, experts=8, top_k=None)),
    "selection": (MOE, dict(NAIVE, experts=None, top_k=None, experts_from="3,0")),
    "selection by layer": (MOE, dict(NAIVE, experts=None, top_k=None, experts_file="experts.json")),
    "side by side": (MOE, dict(method="concatenate", ratio=None, experts=None, top_k=None)),
}
FORMATS = {
    "hf": dict(format="huggingface"),
    "tp1": dict(format="megatron-torch", tensor_parallel=1),
    "tp2": dict(format="megatron-torch", tensor_parallel=2, pipeline_parallel=2, expert_parallel=2),
    "tp4": dict(format="megatron-torch", tensor_parallel=4),
    "dist": dict(format="megatron-dist", tensor_parallel=2),
    "hdf5": dict(format="hdf5", expert_parallel=2),
}
ONE_FILE = {"target__format": "megatron-torch", "target__names": "te", "target__expert_names": "sequential"}
CPU = open("/proc/cpuinfo").read().split()
FACTORS = {
    "construction": list(CONSTRUCTIONS),
    "source": list(FORMATS),
    "target": list(FORMATS),
    "ranks": [1, 2, 3, 5],
    "memory": ["2GiB", runner.LITTLE_MEMORY],
    "units": [None, "2KiB"],
    "threads": [0, 1, 3],
    "simd": ["scalar"] + [path for path in ("avx2", "neon") if {"neon": "asimd"}.get(path, path) in CPU],
    "stopped": [None, 1, 3],  # and resumed by so many ranks
}


def covering(factors):
    """Rows of one value of each factor, so that each two values are in one: the one that has most of the pairs
    that are left, of some that begin with such a pair and go on greedily."""
    dice = random.Random(1)
    left = {
        frozenset(((a, x), (b, y)))
        for a, b in itertools.combinations(factors, 2)
        for x in factors[a]
        for y in factors[b]
    }
    rows = []
    while left:
        best, most = None, -1
        for pair in dice.sample(sorted(left, key=lambda p: sorted(map(str, p))), min(8, len(left))):
            row = dict(pair)
            for name in dice.sample(list(factors), len(factors)):
                if name in row:
                    continue
                gain = {v: sum(frozenset(((name, v), had)) in left for had in row.items()) for v in factors[name]}
                row[name] = max(dice.sample(factors[name], len(factors[name])), key=gain.get)
            new = sum(frozenset(two) in left for two in itertools.combinations(row.items(), 2))
            if new > most:
                best, most = row, new
        rows.append({name: best[name] for name in factors})
        left -= {frozenset(two) for two in itertools.combinations(best.items(), 2)}
    return rows


def sample(factors):
    """Each construction once, each other value about equally often."""
    dice, rows = random.Random(4), []
    decks = {name: [] for name in factors if name != "construction"}
    for one in factors["construction"]:
        row = {"construction": one}
        for name, deck in decks.items():
            if not deck:
                deck += dice.sample(factors[name], len(factors[name]))
            row[name] = deck.pop()
        rows.append(row)
    return rows


ROWS = covering(FACTORS) if os.environ.get("MGR_PAIRS") else sample(FACTORS)


def test_the_rows_cover_what_they_should():
    every = {name: {row[name] for row in ROWS} for name in FACTORS}
    assert all(every[name] == set(values) for name, values in FACTORS.items())
    rows = covering({name: values[:4] for name, values in FACTORS.items()})
    seen = {frozenset(two) for row in rows for two in itertools.combinations(row.items(), 2)}
    assert len(seen) == sum(
        len(a[:4]) * len(b[:4]) for a, b in itertools.combinations(FACTORS.values(), 2)
    ) and len(rows) < 40


class World:
    """Sources in each format, and what each construction is, made once by one rank."""

    def __init__(self, folder):
        self.folder, self.made, self.wanted, self.n = folder, {}, {}, 0
        self.asked = self.stopped = 0  # runs to be stopped, and those that were
        dice = np.random.default_rng(2)
        lists = {
            "neurons": [[dice.permutation(FFN)[:32].tolist() for _ in range(4)] for _ in range(LAYERS)],
            "experts": [dice.permutation(4)[:3].tolist() for _ in range(LAYERS)],
        }
        for name, value in lists.items():
            (folder / f"{name}.json").write_text(json.dumps({name: value}))

    def source(self, kind, format):
        if (kind, format) not in self.made:
            out = self.folder / f"{kind}-{format}"
            if format == "hf":
                words = ["--experts", 4] if kind == MOE else ["--seed", 8] if kind == TWO else []
                runner.synth_folder(out, *SYNTH, *words)
            else:
                self.reshard(self.source(kind, "hf"), out, self.split(format, kind == MOE))
            self.made[kind, format] = out
        return self.made[kind, format]

    def split(self, format, experts):
        split = FORMATS[format]
        return {"target__" + k: v for k, v in split.items() if experts or k != "expert_parallel"}

    def reshard(self, source, out, how):
        config = runner.write_config(
            self.folder / "reshard.yaml", source, out, mode="reshard", upcycle=None, model__vocab_size=128,
            **{"target__dtype": "source", **how},
        )  # fmt: skip
        result = runner.upcycle(config)
        assert result.status == 0, str(result)
        return out

    def config(self, row, out):
        kind, how = CONSTRUCTIONS[row["construction"]]
        if row["construction"] == "some layers" and row["target"] in ("hf", "hdf5"):
            row = {**row, "target": "dist"}  # no class of transformers has these without more tensors
        how = {"seed": SEED, "experts": 4, **how}
        for key in ("neurons_file", "experts_file"):
            if key in how:
                how[key] = str(self.folder / how[key])
        more = {"upcycle__" + k: v for k, v in how.items()}
        more |= self.split(row["target"], how.get("method") != "concatenate")
        if "shared_expert" in how and row["target"] == "hf":
            more["target__class"] = "qwen2_moe"
        source = self.source(MOE if kind == MOE else DENSE, row["source"])
        if kind == TWO:
            more["sources"] = [{"path": str(source)}, {"path": str(self.source(TWO, "hf"))}]
            more["source__path"] = None
        if row["construction"] == "selection by layer":  # three experts have no two ranks
            more.pop("target__expert_parallel", None)
        return runner.write_config(
            out.with_suffix(".yaml"), source, out, memory_per_rank=row["memory"], model__vocab_size=128,
            io_threads=row["threads"], **more
        )

    def weights(self, out):
        """{name in Megatron's one file: CRC-32}"""
        out = self.reshard(out, out.with_name(out.name + "-again"), ONE_FILE)
        return {name: crc for (_, name), crc in runner.tensor_sums(out).items()}

    def want(self, construction):
        if construction not in self.wanted:
            row = {name: values[0] for name, values in FACTORS.items()} | {"construction": construction}
            self.wanted[construction] = self.make(row)
        return self.wanted[construction]

    def make(self, row):
        self.n += 1
        out = self.folder / f"Mixtral-{self.n}"
        config = self.config(row, out)
        options = ["--simd", row["simd"], *(["--unit-bytes", row["units"]] if row["units"] else [])]
        if row["stopped"]:
            stop = {"MGR_FAULT": f"rank:{row['ranks'] - 1},pwrite:7:ENOSPC"}
            result = runner.upcycle(config, np=row["ranks"], options=["--journal", "0", *options], env=stop)
            assert result.status in (0, runner.CANNOT_CREATE, runner.IO_ERROR), str(result)
            self.asked, self.stopped = self.asked + 1, self.stopped + (result.status != 0)
            if result.status:
                result = runner.upcycle(config, np=row["stopped"], options=["--resume", *options])
        else:
            result = runner.upcycle(config, np=row["ranks"], options=options)
        assert result.status == 0, str(result)
        for check in (runner.upcycle(config, np=3, options=["--verify"]), runner.run([runner.program("mgr-verify"), out])):
            assert check.status == 0, str(check)
        return self.weights(out)


@pytest.fixture(scope="module")
def world(module_scratch):
    return World(module_scratch)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(map(str, row.values())).replace(" ", "_"))
def test_the_same_weights(world, row):
    want, got = world.want(row["construction"]), world.make(row)
    assert got.keys() == want.keys() and len(want) > 4 * LAYERS
    assert [name for name in want if want[name] != got[name]] == []


def test_constructions_differ(world):
    """The comparison can fail, and runs were stopped."""
    assert world.stopped > world.asked // 2
    made = [world.want(name) for name in ("naive", "drop", "drop, sets of their own", "noise")]
    assert len({json.dumps(sorted(map(str, one.items()))) for one in made}) == len(made)
