"""Megatron-Core's HybridModel, by Megatron-LM's own load_checkpoint and save_checkpoint (megatron_trainer.py):
it loads what we write under its keys and computes what the dense model computed; what it saved goes to a
GPTModel and to transformers with the same logits."""

import pytest
import torch

import harness
import runner
import trainer

SPEC = ["--spec", "megatron.core.models.hybrid.hybrid_layer_specs", "hybrid_stack_spec"]
GIVEN = ["--vocab-size", str(trainer.VOCAB), "--global-batch-size", "8"]
EXPERTS = ["--num-experts", "4", "--moe-router-topk", "2", "--moe-ffn-hidden-size", "48"]
CLOSE = 2e-5


def hybrid(pattern, *more):
    """The options of the trainer's dense model as a HybridModel's."""
    assert trainer.DENSE[0] == "--num-layers"
    return [*trainer.DENSE[2:], *SPEC, "--hybrid-layer-pattern", pattern, *more]


def saved(judge, root, cli, world=1):
    logits = root.with_suffix(".pt")
    judge.run(world, {"do": "save", "to": root, "format": "torch_dist", "cli": cli, "logits": logits})
    return root, torch.load(logits)["logits"]


@pytest.fixture(scope="module")
def judge(module_scratch):
    with trainer.started(module_scratch) as it:
        yield it


@pytest.fixture(scope="module")
def dense(judge, module_scratch):
    """A dense HybridModel on two stages, each of two ranks; its logits."""
    split = ["--tensor-model-parallel-size", "2", "--pipeline-model-parallel-size", "2"]
    return saved(judge, module_scratch / "dense", hybrid("*-*-|*-*-", *split), 4)


@pytest.fixture(scope="module")
def mixed(judge, module_scratch):
    """A HybridModel with experts in two of four layers; its logits."""
    return saved(judge, module_scratch / "mixed", hybrid("*-*E*E*-", *EXPERTS))


def convert(scratch, source, name, format, np=2, **changes):
    config = runner.write_config(
        scratch / f"{name}.yaml", source, scratch / name,
        model={"vocab_size": trainer.VOCAB}, target__format=format, target__dtype="source", **changes,
    )  # fmt: skip
    result = runner.upcycle(config, np=np)
    assert result.status == 0, str(result)
    return scratch / name


def upcycled(scratch, source, name, freq, **changes):
    return convert(
        scratch, source, name, "megatron-dist",
        upcycle={"experts": 4, "top_k": 2, "method": "naive", "seed": 1, "moe_layer_freq": freq},
        target__make_vocab_size_divisible_by=8, **changes,
    )  # fmt: skip


def resharded(scratch, source, name, format="megatron-dist", **changes):
    if format.startswith("megatron"):
        changes["target__make_vocab_size_divisible_by"] = 8
    return convert(scratch, source, name, format, mode="reshard", upcycle=None, **changes)


def load_steps(scratch, out, split=(), options=trainer.DENSE):
    """By the options that the output's manifest tells, and by the checkpoint's args and the few beside them."""
    told = trainer.way_on(out)
    for by_args in (False, True):
        cli = [*GIVEN, *told[by_args], *split, "--no-load-optim", "--no-load-rng"]
        yield {"do": "load", "from": out, "cli": cli, "logits": scratch / f"{out.name}-{by_args}.pt"}


def check_loads(judge, world, steps, wanted):
    judge.run(world, *steps)
    for step in steps:
        got = torch.load(step["logits"])["logits"]
        assert (got - wanted).abs().max() < CLOSE * wanted.abs().max(), step["logits"]


@pytest.mark.parametrize(
    "freq,pattern,grid",
    [("1", "*E*E*E*E", {"tensor": 2, "expert": 2}), ("[0,1,1,0]", "*-*E*E*-", {"tensor": 2, "pipeline": 2})],
)
def test_an_upcycled_hybrid_model_computes_what_the_dense_one_did(judge, dense, scratch, freq, pattern, grid):
    source, wanted = dense
    changes = {f"target__{k}_parallel": n for k, n in grid.items() if k != "pipeline"}
    out = upcycled(scratch, source, "out", freq, **changes)  # dist_keys: a HybridModel stays one
    stages = ["--pipeline-model-parallel-size", str(grid.get("pipeline", 1))]
    steps = list(load_steps(scratch, out, stages))
    assert pattern in steps[0]["cli"] and "--num-layers" not in steps[0]["cli"], steps
    check_loads(judge, 4, steps, wanted)
    result = runner.run([runner.program("mgr-verify"), out])
    assert result.status == 0, str(result)
    again = [upcycled(scratch, source, f"ranks-{np}", freq, np=np, **changes) for np in (1, 3)]
    assert runner.hashes(out) == runner.hashes(again[0]) == runner.hashes(again[1])


def test_a_hybrid_model_becomes_a_gpt_model(judge, dense, mixed, scratch):
    """The dense one stacked, the mixed one with a key per layer."""
    for (source, wanted), keys in ((dense, "stacked"), (mixed, "per-layer")):
        out = resharded(scratch, source, keys, target__names="local", target__dist_keys=keys)
        steps = list(load_steps(scratch, out))
        assert "--num-layers" in steps[0]["cli"] and "--spec" not in steps[0]["cli"], steps
        check_loads(judge, 1, steps, wanted)
        result = runner.run([runner.program("mgr-inspect"), source, out])
        assert keys == "stacked" or " 0 differ" in result.out, str(result)  # of the other the padding is less


def test_a_gpt_model_becomes_a_hybrid_model(judge, mixed, scratch):
    source, wanted = mixed
    gpt = resharded(scratch, source, "gpt", "megatron-torch", target__names="local")
    out = resharded(scratch, gpt, "hybrid", target__dist_keys="hybrid")
    check_loads(judge, 1, list(load_steps(scratch, out)), wanted)
    straight = resharded(scratch, source, "straight")
    skip = (runner.MANIFEST, runner.LEDGER, "common.pt")  # where args of the source go on
    assert runner.hashes(straight, skip) == runner.hashes(out, skip)


def test_a_hybrid_model_becomes_a_llama(dense, scratch):
    from transformers import AutoModelForCausalLM

    source, wanted = dense
    out = resharded(scratch, source, "llama", "huggingface")
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, attn_implementation="eager").eval()
    ids = torch.load(source.with_suffix(".pt"))["ids"]
    with torch.no_grad():
        assert harness.relative_difference(model(ids).logits, wanted) < CLOSE


def test_what_is_not_a_hybrid_models_is_refused(dense, scratch):
    source, _ = dense
    config = runner.write_config(
        scratch / "c.yaml", source, scratch / "out", mode="reshard",
        target__format="megatron-dist", target__names="local",
    )  # fmt: skip
    result = runner.upcycle(config)
    assert result.status == runner.CONFIG and "target.names" in result.err, str(result)
