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
QWEN2, GLM, GRANITE = "qwen2_moe", "glm4_moe", "granitemoeshared"
HALF = dict(NAIVE, shared_expert="half")
PARTS = dict(NAIVE, experts=None, router="virtual-groups", scale="exact")  # by lists of neurons
MIXTURE = dict(num_experts=8, num_experts_per_tok=2, moe_intermediate_size=24, norm_topk_prob=True)
GROWN = dict(method="naive", ratio=None, experts=16, top_k=None)
# the classes' sources; of "Qwen3Moe" a cell says it
SOURCES = {MIXTRAL: "Llama", QWEN: "Qwen3", QWEN2: "Qwen2", GLM: "Qwen3", GRANITE: "Granite"}
# (construction, class, what of `upcycle:` is not as usual, is it the source's function, the source's class)
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
    ("4 lists of neurons, exact", QWEN, PARTS, True),
    ("drop 0.2 to 0.8 by layer", QWEN, dict(NAIVE, method="drop", layer_ratio="0.2 to 0.8"), False),
    (
        "drop 0.5 of gate and up",
        QWEN,
        dict(NAIVE, method="drop", ratio=0.5, matrix_ratio="1,1,0", index_sets="independent"),
        False,
    ),
    ("half of a shared expert", QWEN2, HALF, True),
    ("half of a shared expert", GLM, HALF, True),
    ("half of a shared expert, drop 0.5", QWEN2, dict(HALF, method="drop", ratio=0.5), False),
    ("half of a shared expert, 4 slices, exact", CORE, dict(GROUPS, scale="exact", shared_expert="half"), True),
    ("a whole shared expert", QWEN2, dict(NAIVE, shared_expert="whole"), False),
    (
        "1 of 4 slices shared, exact, top 3 of 9",
        QWEN2,
        dict(GROUPS, experts=9, top_k=3, scale="exact", shared_expert="slices"),
        True,
    ),
    ("1 of 2 slices shared", GRANITE, dict(NAIVE, slices=2, shared_expert="slices"), True),
    ("each layer twice", QWEN, dict(NAIVE, layers_from="times 2"), False),
    ("8 to 16 experts, top 2 to 4", QWEN, GROWN, True, "Qwen3Moe"),
    (
        "8 to 16 experts, router noise 0.01",
        QWEN,
        dict(GROWN, router="source", router_noise=0.01),
        False,
        "Qwen3Moe",
    ),
    ("8 to 16 experts, top 2 kept", QWEN, dict(GROWN, top_k=2), False, "Qwen3Moe"),
    ("8 to 16 experts, copies drop 0.5", QWEN, dict(GROWN, method="drop", ratio=0.5), False, "Qwen3Moe"),
    ("8 to 4 experts by a list", QWEN, dict(GROWN, experts=None, experts_from="0,2,5-6"), False, "Qwen3Moe"),
    ("8 experts side by side, dense", "qwen3", dict(GROWN, method="concatenate", experts=None), False, "Qwen3Moe"),
]


def real(kind):
    return real_models.born(kind, dict(SIZES, **(MIXTURE if kind == "Qwen3Moe" else {})))


def router_of(cell):
    by_default = "-" if "concatenate" in cell[2].values() else "its own" if cell[4:] else "uniform"
    return cell[2].get("router", by_default)


class World:
    """The dense models, each made once."""

    def __init__(self, folder):
        self.folder, self.dense, self.core, self.n = folder, {}, None, 0

    def close(self):
        if self.core:
            self.core.stop()

    def of_transformers(self, kind):
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

    def lists(self, upcycle):
        """With a file of lists: each layer's neurons in four parts, twice over."""
        if upcycle is not PARTS:
            return upcycle
        parts = [torch.randperm(48, generator=torch.Generator().manual_seed(i)).reshape(4, 12).tolist() for i in range(3)]
        (self.folder / "neurons.json").write_text(json.dumps({"neurons": [part * 2 for part in parts]}))
        return dict(upcycle, neurons_file=str(self.folder / "neurons.json"))

    def measure(self, name, upcycle, source=None):
        """(the statement, the relative error of the logits)"""
        if name == CORE:
            source, dense = self.of_core()
            out, step = self.run(upcycle, source, target__format="megatron-torch", target__names="local", target__make_vocab_size_divisible_by=8)
            width = moe.server.MODEL["ffn"] // upcycle.get("slices", 1)
            model = self.core_model(experts=upcycle["experts"], expert_ffn=width, top_k=upcycle["top_k"])
            if "shared_expert" in upcycle:
                model.update(shared_ffn=moe.server.MODEL["ffn"])
            to = out.with_name(out.name + "-logits")
            self.core.run(model, {}, {"do": "load", "from": out}, {"do": "logits", "to": to})
            return step, harness.relative_difference(moe.logits(to), dense)
        source, dense = self.of_transformers(source or SOURCES[name])
        named = dict(target__class=name) if name in (QWEN2, GLM, GRANITE) else {}
        out, step = self.run(self.lists(upcycle), source, target__format="huggingface", **named)
        lm = real_models.load(out)
        assert lm.config.model_type == name
        return step, harness.relative_difference(logits(lm), dense)


def row(cell, error):
    construction, name = cell[:2]
    shown = "0" if error < 1e-6 else f"{error:.2g}"
    return f"| {construction} | {router_of(cell)} | {name} | {shown} |"


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


@pytest.mark.parametrize("cell", CELLS, ids=lambda c: f"{c[1]}-{c[0]}-{router_of(c)}")
def test_step_zero(world, cell):
    step, error = world.measure(cell[1], cell[2], *cell[4:])
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
            error = world.measure(cell[1], cell[2], *cell[4:])[1]
            print(row(cell, 0 if cell[3] and error < 3e-6 else error), flush=True)
        world.close()


if __name__ == "__main__":
    main()
