"""Checkpoints that megatron-core itself wrote, on a CPU (megatron_core_cpu.py): in both formats every
tensor is read as the live model held it, and both give the same bytes. What megatron-core computes
and how it upcycles judges the output."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys

import pytest
import torch

import harness
import megatron_core_cpu as core
import megatron_like as ml
import runner

# {release: the splits it writes}; 1x1 is float32, and judged.
RELEASES = {"0.13.1": ("2x1", "1x1"), "0.16.1": ("2x2", "1x1"), "0.19.2": ("2x2", "1x1")}
CASES = [(release, split) for release, splits in RELEASES.items() for split in splits]
FORMATS = ("torch", "torch_dist")
SHAPE = ml.Shape(
    layers=core.SHAPE.layers,
    hidden=core.SHAPE.hidden,
    ffn=core.SHAPE.ffn,
    heads=core.SHAPE.heads,
    kv_heads=core.SHAPE.kv_heads,
    head_dim=core.SHAPE.head_dim,
    vocab=core.SHAPE.vocab,
    positions=core.SHAPE.positions,
    norm_epsilon=1e-5,
    rotary_base=10000,
)


def run_core(packages, out, splits, program="megatron_core_cpu.py"):
    """Run the program in a session of its own, of which nothing is left behind: a rank that
    fails would leave the processes of megatron-core's writer."""
    log = out.with_name(out.name + ".log")
    with open(log, "w") as file:
        process = subprocess.Popen(
            [sys.executable, pathlib.Path(core.__file__).with_name(program), out, *splits],
            env={**os.environ, "PYTHONPATH": str(packages), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait(timeout=180)
        except subprocess.TimeoutExpired:
            status = "none within 180 s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert status == 0, f"exit status {status}\n{log.read_text()}"


@pytest.fixture(scope="module")
def written(module_scratch):
    """written(release): the folder in which that release has saved its splits."""
    folders = {}

    def write(release):
        if release not in folders:
            packages = runner.ROOT / ".venv" / f"megatron-core-{release}"
            assert packages.is_dir(), f"no {packages}: run tools/venv.sh"
            run_core(packages, module_scratch / release, RELEASES[release])
            folders[release] = module_scratch / release
        return folders[release]

    return write


def live_model(folder):
    """The logical tensors, from the state dicts of the live models."""
    shards = {}
    for path in folder.glob("live/*.pt"):
        live = torch.load(path)
        shards[live["stage"], live["rank"]] = live["state"]
    stages, ranks = max(shards)[0] + 1, max(shards)[1] + 1
    assert len(shards) == stages * ranks
    per_stage = SHAPE.layers // stages
    model, used = {}, set()

    def across(stage, name):
        used.add((stage, name))
        return [shards[stage, rank][name] for rank in range(ranks)]

    def same(stage, name):
        first, *others = across(stage, name)
        assert all(torch.equal(first, other) for other in others), name
        return first

    model["model.embed_tokens.weight"] = torch.cat(across(0, "embedding.word_embeddings.weight"))
    for layer in range(SHAPE.layers):
        stage, local = divmod(layer, per_stage)
        at, to = f"decoder.layers.{local}.", f"model.layers.{layer}."
        model[to + "input_layernorm.weight"] = same(stage, at + "input_layernorm.weight")
        model[to + "post_attention_layernorm.weight"] = same(stage, at + "pre_mlp_layernorm.weight")
        qkv = torch.cat(across(stage, at + "self_attention.linear_qkv.weight"))
        d, each = SHAPE.head_dim, SHAPE.heads // SHAPE.kv_heads
        qkv = qkv.reshape(SHAPE.kv_heads, each + 2, d, SHAPE.hidden)
        for name, part in (("q", qkv[:, :each]), ("k", qkv[:, each]), ("v", qkv[:, each + 1])):
            model[to + f"self_attn.{name}_proj.weight"] = part.reshape(-1, SHAPE.hidden).contiguous()
        model[to + "self_attn.o_proj.weight"] = torch.cat(
            across(stage, at + "self_attention.linear_proj.weight"), dim=1
        )
        half = SHAPE.ffn // ranks
        fc1 = across(stage, at + "mlp.linear_fc1.weight")
        model[to + "mlp.gate_proj.weight"] = torch.cat([shard[:half] for shard in fc1])
        model[to + "mlp.up_proj.weight"] = torch.cat([shard[half:] for shard in fc1])
        model[to + "mlp.down_proj.weight"] = torch.cat(across(stage, at + "mlp.linear_fc2.weight"), dim=1)
    model["model.norm.weight"] = same(stages - 1, "decoder.final_layernorm.weight")
    model["lm_head.weight"] = torch.cat(across(stages - 1, "output_layer.weight"))
    held = {(stage, name) for (stage, _), state in shards.items() for name in state}
    weights = {(stage, name) for stage, name in held if not name.endswith("_extra_state")}
    assert used == weights
    return model


def naive(scratch, source, name, **options):
    changes = {"upcycle__method": "naive", "upcycle__ratio": None, "upcycle__experts": core.EXPERTS}
    return harness.convert(scratch, source, name="Mixtral-" + name, **changes, **options)


@pytest.mark.parametrize("release,split", CASES)
def test_every_tensor_is_that_of_the_live_model(scratch, written, release, split):
    folder = written(release) / split
    model = live_model(folder)
    assert model["model.norm.weight"].dtype == (torch.float32 if split == "1x1" else torch.bfloat16)
    hashes = []
    for np, kind in zip((2, 3), FORMATS):
        out = naive(scratch, folder / kind, kind, np=np)
        harness.check_naive(harness.read_output(out), model, SHAPE, core.EXPERTS)
        hashes.append(runner.hashes(out))
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize("release,split", CASES)
def test_inspect_finds_both_formats_equal(written, release, split):
    folder = written(release) / split
    result = runner.run([runner.program("mgr-inspect")] + [folder / kind for kind in FORMATS])
    assert result.status == 0 and "0 differ" in result.out, str(result)


@pytest.mark.parametrize("release", RELEASES)
def test_experts_are_those_of_megatron_cores_own_upcycling(scratch, written, release):
    folder = written(release) / "1x1"
    theirs = torch.load(folder / "judge.pt")["upcycled"]
    ours = harness.read_output(naive(scratch, folder / "torch", "x"))
    compared = set()
    for layer in range(SHAPE.layers):
        for expert in range(core.EXPERTS):
            at = f"decoder.layers.{layer}.mlp.experts.local_experts.{expert}."
            get = lambda kind: ours[harness.EXPERT % (layer, expert, harness.W[kind])]
            fc1 = torch.cat([get("gate"), get("up")])
            assert harness.same_bits(theirs[at + "linear_fc1.weight"], fc1), at
            assert harness.same_bits(theirs[at + "linear_fc2.weight"], get("down")), at
            compared |= {at + "linear_fc1.weight", at + "linear_fc2.weight"}
        assert theirs[f"decoder.layers.{layer}.mlp.router.weight"].shape == ours[harness.ROUTER % layer].shape
    assert compared == {name for name in theirs if ".experts." in name and name.endswith(".weight")}


@pytest.mark.parametrize("release", RELEASES)
def test_transformers_computes_the_logits_of_megatron_core(scratch, written, release):
    folder = written(release) / "1x1"
    judge = torch.load(folder / "judge.pt")
    out = naive(scratch, folder / "torch_dist", "x")
    logits = harness.mixtral_logits(out, judge["ids"])
    assert logits.shape == judge["logits"].shape and judge["logits"].std() > 0.1
    difference = harness.relative_difference(logits, judge["logits"])
    assert difference < 1e-4, difference
