"""What holds at step 0: construction x router x class, each cell a real model of random weights that
transformers or megatron-core runs before and after. The summary and the manifest say of each whether
it is the dense model; where they say so it is, where not, how far off it is stands in README.md.

    .venv/bin/python tests/interop/test_step_zero.py      prints README's table
"""

import json
import pathlib
import re
import tempfile

import pytest
import torch

import harness
import real_models
import runner
import test_megatron_moe as moe
from real_models import SIZES, logits

NAIVE = dict(method="naive", ratio=None, experts=8, top_k=4)
SLICES = dict(NAIVE, slices=4)
GROUPS = dict(SLICES, router="virtual-groups")
MIXTRAL, QWEN, CORE = "mixtral", "qwen3_moe", "Megatron-Core"
# (construction, class, what of `upcycle:` is not as usual, is it the dense model)
CELLS = [
    ("naive copies", MIXTRAL, NAIVE, True),
    ("naive copies", QWEN, NAIVE, True),
    ("naive copies", CORE, NAIVE, True),
    ("naive copies", QWEN, dict(NAIVE, router="zeros"), True),
    ("naive copies, shuffled", MIXTRAL, dict(NAIVE, shuffle=True), True),
    ("naive copies, pre-softmax", QWEN, dict(NAIVE, router_pre_softmax=True), False),
    ("naive copies, pre-softmax, exact", QWEN, dict(NAIVE, router_pre_softmax=True, scale="exact"), False),
    (
        "naive copies, pre-softmax, exact",
        QWEN,
        dict(NAIVE, router_pre_softmax=True, scale="exact", router="zeros"),
        True,
    ),
    ("drop 0.5", MIXTRAL, dict(NAIVE, method="drop", ratio=0.5), False),
    ("drop 0.5", QWEN, dict(NAIVE, method="drop", ratio=0.5), False),
    ("drop 0", QWEN, dict(NAIVE, method="drop", ratio=0.0), True),
    ("noise 0.5", QWEN, dict(NAIVE, method="noise", ratio=0.5), False),
    ("4 slices", QWEN, SLICES, False),
    ("4 slices", QWEN, GROUPS, False),
    ("4 slices, published", QWEN, dict(GROUPS, scale="published"), False),
    ("4 slices, exact", QWEN, dict(SLICES, scale="exact"), False),
    ("4 slices, exact", QWEN, dict(GROUPS, scale="exact"), True),
    ("4 slices, exact", MIXTRAL, dict(GROUPS, scale="exact"), True),
    ("4 slices, exact", CORE, dict(GROUPS, scale="exact"), True),
    ("4 slices, published", CORE, dict(GROUPS, scale="published"), False),
    ("4 slices, exact, top 6", QWEN, dict(GROUPS, scale="exact", top_k=6), False),
    ("3 slices, exact", QWEN, dict(GROUPS, slices=3, experts=9, top_k=3, scale="exact"), True),
    ("4 slices, exact, pre-softmax", QWEN, dict(GROUPS, scale="exact", router_pre_softmax=True), False),
    ("4 slices of shuffled copies, exact", QWEN, dict(GROUPS, cut="shuffled", scale="exact"), True),
    ("4 slices, drop 0.5, exact", QWEN, dict(GROUPS, method="drop", ratio=0.5, scale="exact"), False),
    ("width 20 of 48, shuffled copies", QWEN, dict(NAIVE, expert_width=20, cut="shuffled"), False),
    ("width 96 of 48, exact", QWEN, dict(NAIVE, expert_width=96, scale="exact"), True),
    ("width 96 of 48", QWEN, dict(NAIVE, expert_width=96), False),
]


def real(kind):
    return real_models.born(kind, SIZES)


class World:
    """The dense models, each made once."""

    def __init__(self, folder):
        self.folder, self.dense, self.core, self.n = folder, {}, None, 0

    def close(self):
        if self.core:
            self.core.stop()

    def of_transformers(self, name):
        kind = {MIXTRAL: "Llama", QWEN: "Qwen3"}[name]
        if kind not in self.dense:
            lm = real(kind)
            lm.save_pretrained(self.folder / kind)
            self.dense[kind] = logits(lm)
        return self.folder / kind, self.dense[kind]

    def of_core(self):
        folder = self.folder / "core"
        if not self.core:
            self.core = moe.Core(moe.NEWEST, self.folder / "core.log")
            steps = {"do": "save", "to": folder}, {"do": "logits", "to": folder / "logits"}
            self.core.run(self.core_model(), {}, *steps)
        return folder / "torch", moe.logits(folder / "logits")

    def core_model(self, **more):
        return {**moe.LLAMA, "dtype": "float32", **more}

    def run(self, upcycle, source, **changes):
        self.n += 1
        out = self.folder / f"out-{self.n}"
        changes = {"target__dtype": "float32", **changes, **{"upcycle__" + k: v for k, v in upcycle.items()}}
        result = runner.upcycle(runner.write_config(self.folder / "run.yaml", source, out, **changes), np=1)
        assert result.status == 0, str(result)
        step = json.loads((out / runner.MANIFEST).read_text())["step_zero"]
        said = " ".join(re.search(r"^step 0 (.*?)^\S", result.out, re.M | re.S)[1].split())
        assert said == step["text"], (said, step)
        return out, step

    def measure(self, name, upcycle):
        """(the statement, the relative error of the logits)"""
        if name == CORE:
            source, dense = self.of_core()
            out, step = self.run(upcycle, source, target__format="megatron-torch", target__names="local", target__make_vocab_size_divisible_by=8)
            width = moe.server.MODEL["ffn"] // upcycle.get("slices", 1)
            model = self.core_model(experts=upcycle["experts"], expert_ffn=width, top_k=upcycle["top_k"])
            to = out.with_name(out.name + "-logits")
            self.core.run(model, {}, {"do": "load", "from": out}, {"do": "logits", "to": to})
            return step, harness.relative_difference(moe.logits(to), dense)
        source, dense = self.of_transformers(name)
        out, step = self.run(upcycle, source, target__format="huggingface")
        lm = real_models.load(out)
        assert lm.config.model_type == name
        return step, harness.relative_difference(logits(lm), dense)


def row(cell, error):
    construction, name, upcycle, _ = cell
    shown = "0" if error < 1e-6 else f"{error:.2g}"
    return f"| {construction} | {upcycle.get('router', 'uniform')} | {name} | {shown} |"


def documented():
    """{row without its value: value}"""
    text = (runner.ROOT / "README.md").read_text()
    rows = [line.rsplit("|", 2) for line in text.splitlines() if line.count("|") == 5]
    return {start: value.strip() for start, value, _ in rows}


@pytest.fixture(scope="module")
def world(module_scratch):
    made = World(module_scratch)
    yield made
    made.close()


@pytest.mark.parametrize("cell", CELLS, ids=lambda c: f"{c[1]}-{c[0]}-{c[2].get('router', 'uniform')}")
def test_step_zero(world, cell):
    step, error = world.measure(cell[1], cell[2])
    assert step["identical"] == cell[3], (step, error)
    assert step["text"].startswith("identical" if cell[3] else "not identical to the source: ")
    assert error < 1e-6 * 3 if cell[3] else error > 1e-3, (step, error)
    start, value, _ = row(cell, 0 if cell[3] else error).rsplit("|", 2)
    value, known = float(value), float(documented()[start])
    assert abs(value - known) <= 0.25 * known, (start, value, known)


def main():
    with tempfile.TemporaryDirectory() as folder:
        world = World(pathlib.Path(folder))
        print("| construction | router | class | error of the logits |\n|---|---|---|---|")
        for cell in CELLS:
            error = world.measure(cell[1], cell[2])[1]
            print(row(cell, 0 if cell[3] and error < 3e-6 else error), flush=True)
        world.close()


if __name__ == "__main__":
    main()
