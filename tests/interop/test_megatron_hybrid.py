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
STRICT = ["--dist-ckpt-strictness", "raise_unexpected"]  # of what the model asks for
CLOSE = 2e-5


def hybrid(pattern, *more):
    """The options of the trainer's dense model as a HybridModel's."""
    assert trainer.DENSE[0] == "--num-layers"
    return [*trainer.DENSE[2:], *SPEC, "--hybrid-layer-pattern", pattern, *more]


@pytest.fixture(scope="module")
def judge(module_scratch):
    with trainer.started(module_scratch) as it:
        yield it


def saves(judge, folder, world, steps):
    """{name: (folder, logits)} of models that the trainer saves: {name: (its options, args left out)}. Those of the
    same options are the same model."""
    jobs = [
        {"do": "save", "to": folder / name, "format": "torch_dist", "cli": cli, "without": without,
         "logits": None if without else folder / f"{name}.pt"}
        for name, (cli, without) in steps.items()
    ]  # fmt: skip
    judge.run(world, *jobs)
    return {job["to"].name: (job["to"], torch.load(job["logits"]) if job["logits"] else None) for job in jobs}


PATTERNS = {"*-*-*-*-": [], "*E*E*E*E": EXPERTS, "*-*E*E*-": EXPERTS}
NO_PATTERN, NO_ARGS = ["hybrid_layer_pattern", "hybrid_override_pattern"], ["args"]
# What keys and shapes do not tell
SAID = {
    "vocab_size": trainer.VOCAB, "num_attention_heads": 8, "num_query_groups": 4, "norm_epsilon": 1e-6,
    "rotary_base": 50000, "max_position_embeddings": 64,
}  # fmt: skip


@pytest.fixture(scope="module")
def native(judge, module_scratch):
    """Each pattern, as it is saved, by someone who does not keep the pattern, and who keeps no args."""
    folder = module_scratch / "native"
    folder.mkdir()
    kinds = {"whole": [], "no-pattern": NO_PATTERN, "no-args": NO_ARGS}
    steps = {
        f"{kind}-{n}": (hybrid(pattern, *more), without)
        for n, (pattern, more) in enumerate(PATTERNS.items())
        for kind, without in kinds.items()
    }
    made = saves(judge, folder, 1, steps)
    return {pattern: {kind: made[f"{kind}-{n}"] for kind in kinds} for n, pattern in enumerate(PATTERNS)}


@pytest.fixture(scope="module")
def dense(judge, module_scratch):
    """A dense HybridModel on two stages, each of two ranks; its logits."""
    split = ["--tensor-model-parallel-size", "2", "--pipeline-model-parallel-size", "2"]
    source, saw = saves(judge, module_scratch, 4, {"dense": (hybrid("*-*-|*-*-", *split), [])})["dense"]
    return source, saw["logits"]


@pytest.fixture(scope="module")
def mixed(native):
    """A HybridModel with experts in two of four layers; its logits."""
    source, saw = native["*-*E*E*-"]["whole"]
    return source, saw["logits"]


def convert(scratch, source, name, format, np=2, **changes):
    changes.setdefault("model__vocab_size", trainer.VOCAB)
    config = runner.write_config(
        scratch / f"{name}.yaml", source, scratch / name,
        target__format=format, target__dtype="source", **changes,
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
        cli = [*GIVEN, *told[by_args], *split, "--no-load-optim", "--no-load-rng", *STRICT]
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


@pytest.mark.parametrize("pattern", ["*-*-*-*-", "*E*E*E*E"])
def test_what_its_own_keys_tell_is_read(native, scratch, pattern):
    """With its args, without the pattern in them, and without args but with `model:` keys; in real transformers."""
    import each_expert
    from transformers import AutoModelForCausalLM

    said = SAID | ({"moe_router_topk": 2} if "E" in pattern else {})
    sums, saw = {}, native[pattern]["whole"][1]
    for kind, (source, _) in native[pattern].items():
        out = resharded(scratch, source, kind, "huggingface", **{f"model__{k}": v for k, v in said.items()})
        sums[kind] = runner.tensor_sums(out)
    assert sums["whole"] == sums["no-pattern"] == sums["no-args"]
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        assert harness.relative_difference(model(saw["ids"]).logits, saw["logits"]) < CLOSE
    if "E" in pattern:
        each_expert.counts(model, saw["ids"])


def test_layers_of_both_kinds_without_args(judge, native, scratch):
    """They stay a HybridModel, and become a GPTModel; to the real ones."""
    (whole, saw), (bare, _) = native["*-*E*E*-"]["whole"], native["*-*E*E*-"]["no-args"]
    said = {f"model__{k}": v for k, v in SAID.items()} | {"model__moe_router_topk": 2}
    outs = [resharded(scratch, source, f"hybrid-{n}", **said) for n, source in enumerate((whole, bare))]
    assert runner.tensor_sums(outs[0]) == runner.tensor_sums(outs[1])
    gpt = resharded(scratch, bare, "gpt", "megatron-torch", target__names="local", **said)
    for out in (outs[1], gpt):
        check_loads(judge, 1, list(load_steps(scratch, out)), saw["logits"])


def test_what_keys_do_not_tell_is_asked_for(native, scratch):
    for pattern, key in (("*-*-*-*-", "num_attention_heads"), ("*E*E*E*E", "moe_router_topk")):
        said = {f"model__{k}": v for k, v in SAID.items() if k != key}
        config = runner.write_config(
            scratch / "c.yaml", native[pattern]["no-args"][0], scratch / "no", mode="reshard", upcycle=None,
            target__format="huggingface", **said,
        )  # fmt: skip
        result = runner.upcycle(config)
        assert result.status == runner.CONFIG and f"model.{key}" in result.err, str(result)
        assert not (scratch / "no").exists()


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
