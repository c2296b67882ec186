"""Megatron-LM's own load_checkpoint takes what we write, by its args and by the printed options, and
computes what the dense model computed (megatron_trainer.py)."""

import json

import pytest
import torch

import runner
import trainer

GRIDS = {"tp2 pp2": {"tensor_parallel": 2, "pipeline_parallel": 2}, "tp2 ep2": {"tensor_parallel": 2, "expert_parallel": 2}}
FORMATS = ("torch", "dist")
GIVEN = ["--vocab-size", str(trainer.VOCAB), "--global-batch-size", "8"]


@pytest.fixture(scope="module")
def judge(module_scratch):
    with trainer.started(module_scratch) as it:
        yield it


@pytest.fixture(scope="module")
def dense(judge, module_scratch):
    """A dense model that Megatron-LM saved; its logits."""
    root = module_scratch / "dense"
    judge.run(
        1,
        {"do": "save", "to": root, "format": "torch", "cli": trainer.DENSE, "logits": root.with_suffix(".pt")},
    )
    return root, torch.load(root.with_suffix(".pt"))["logits"]


def upcycle(scratch, source, format, grid):
    split = dict(grid)
    if format == "dist":
        split.pop("pipeline_parallel", None)
    out = scratch / f"{format}-{'-'.join(map(str, grid.values()))}"
    config = runner.write_config(
        scratch / "run.yaml",
        source,
        out,
        model={"vocab_size": trainer.VOCAB},
        upcycle={"experts": 4, "top_k": 2, "method": "naive", "seed": 1},
        target__format=f"megatron-{format}",
        target__dtype="source",
        target__names="local",
        target__make_vocab_size_divisible_by=8,
        **{f"target__{name}": value for name, value in {"expert_parallel": 1, **split}.items()},
    )
    result = runner.upcycle(config, np=2)
    assert result.status == 0, str(result)
    return out


def own_choice(format, grid):
    """What a torch_dist checkpoint leaves to the run: its stages. And that all it asks for must be there:
    what it does not ask for is the Transformer Engine's _extra_state alone."""
    if format == "torch":
        return []
    stages = str(grid.get("pipeline_parallel", 1))
    return ["--pipeline-model-parallel-size", stages, "--dist-ckpt-strictness", "raise_unexpected"]


@pytest.mark.parametrize("name", GRIDS)
def test_both_formats_load_both_ways(judge, dense, scratch, name):
    source, wanted = dense
    grid, steps = GRIDS[name], []
    for format in FORMATS:
        out = upcycle(scratch, source, format, grid)
        told = trainer.way_on(out)
        for by_args in (True, False):
            own = GIVEN if by_args else trainer.DENSE
            cli = [*own, *told[by_args], *own_choice(format, grid)]
            logits = scratch / f"{out.name}-{by_args}.pt"
            steps.append({"do": "load", "from": out, "cli": cli, "logits": logits})
    for step, loaded in zip(steps, judge.run(4, *steps)):
        assert loaded["iteration"] == 0
        sizes = {f"{key}_model_parallel_size": grid.get(f"{key}_parallel", 1) for key in ("tensor", "pipeline", "expert")}
        assert {key: loaded[key] for key in sizes} == sizes, step["cli"]
        got = torch.load(step["logits"])["logits"]
        assert (got - wanted).abs().max() < 2e-5 * wanted.abs().max(), step["logits"]


def test_the_options_say_what_the_args_say(judge, dense, scratch):
    """Every arg that is in the output and that an option makes has the output's value."""
    out = upcycle(scratch, dense[0], "torch", {"tensor_parallel": 1})
    args = vars(torch.load(next(out.rglob("*.pt")), weights_only=False)["args"])
    parsed = judge.run(1, {"do": "parse", "cli": [*GIVEN, *trainer.way_on(out)[False]]})[0]
    manifest = json.loads((out / "mgr-manifest.json").read_text())["remarks"]
    ours = {remark["field"] for kind in ("set", "altered") for remark in manifest[kind]}
    for name in sorted(ours & set(parsed)):
        assert parsed[name] == args[name] or isinstance(args[name], torch.dtype), name
    for name in ("layernorm_epsilon", "rotary_base", "swiglu", "num_experts", "moe_ffn_hidden_size"):
        assert parsed[name] == args[name], name
