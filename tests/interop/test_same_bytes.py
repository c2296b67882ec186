"""The output depends on the source's values, the `upcycle:` section and the seed, and on nothing
else: not on the ranks, the source's split, the memory budget or the CPU's instructions."""

import re

import pytest

import harness
import megatron_like as ml
import runner

SPLITS = [(1, 1), (2, 1), (1, 2), (2, 2), (4, 2)]
SYNTH = dict(layers=4, hidden=96, ffn=208, heads=8, kv_heads=4, vocab=192, seed=21)
CONFIG = dict(
    upcycle__experts=4,
    upcycle__shuffle=True,
    upcycle__index_sets="independent",
    target__expert_parallel=2,
    target__max_shard_size="300KB",
)


def output_hashes(folder, source, name, **how):
    hashes = runner.hashes(harness.convert(folder, source, name="Mixtral-" + name, **{**CONFIG, **how}))
    assert (
        len([file for file in hashes if file.endswith(".safetensors")]) > 4
    ), "the test should have several shards"
    return hashes


@pytest.fixture(scope="module")
def synth(module_scratch):
    """mgr-synth's checkpoint at 2x2, and the output of one rank."""
    source = runner.synth(module_scratch / "synth", tp=2, pp=2, **SYNTH)
    return source, output_hashes(module_scratch, source, "one-rank", np=1)


@pytest.mark.parametrize("np", [2, 3, 4])
def test_any_number_of_ranks(scratch, synth, np):
    assert output_hashes(scratch, synth[0], "ranks", np=np) == synth[1]


def test_the_same_run_twice(scratch, synth):
    assert output_hashes(scratch, synth[0], "again", np=1) == synth[1]


def test_another_seed_is_noticed(scratch, synth):
    """The comparison can fail."""
    other = output_hashes(scratch, synth[0], "seed", upcycle__seed=1235)
    assert other.keys() == synth[1].keys()
    differing = {file for file in other if other[file] != synth[1][file]}
    assert differing and all(file.endswith(".safetensors") for file in differing)


@pytest.mark.parametrize("tp,pp", SPLITS)
def test_any_split_by_mgr_synth(scratch, synth, tp, pp):
    source = runner.synth(scratch / "dense", tp=tp, pp=pp, names="local" if tp == pp else "te", **SYNTH)
    assert output_hashes(scratch, source, "split", np=2) == synth[1]


@pytest.mark.parametrize(
    "shape", [ml.Shape(ffn=56, kv_heads=4, hidden=48, head_dim=6, heads=8)], ids=["torch.save"]
)
def test_any_split_by_torch_save(scratch, shape):
    model = ml.dense_model(shape)
    seen = {}
    for tp, pp in SPLITS:
        source = ml.save(
            model,
            shape,
            scratch / f"dense-{tp}-{pp}",
            tp,
            pp,
            names="te" if tp == 2 else "local",
            shared_buffer=pp == 2,
        )
        seen[tp, pp] = output_hashes(
            scratch,
            source,
            f"torch-{tp}-{pp}",
            np=3,
            model__vocab_size=shape.vocab,
            target__max_shard_size="30KB",
        )
    assert all(hashes == seen[1, 1] for hashes in seen.values())


def test_memory_budgets(scratch):
    """Larger than the smaller budget; more so in test_rss.py."""
    source = runner.synth(
        scratch / "dense", layers=2, hidden=1024, ffn=2816, heads=8, kv_heads=4, vocab=512, tp=2, pp=2
    )
    changes = dict(target__max_shard_size="64MB", upcycle__experts=8)
    small = output_hashes(scratch, source, "small", memory_per_rank="64MiB", **changes)
    assert output_hashes(scratch, source, "large", memory_per_rank="2GiB", **changes) == small


def test_every_simd_path(scratch, synth):
    text = runner.run([runner.program("mgr-upcycle"), "--help"]).out
    if "--simd" not in text:
        pytest.skip("mgr-upcycle has no --simd; the unit tests compare the paths")
    tried = 0
    for path in re.search(r"--simd[ =]\S*?((?:\w+\|)+\w+)", text).group(1).split("|"):
        config = runner.write_config(scratch / "x.yaml", synth[0], scratch / f"Mixtral-{path}", **CONFIG)
        result = runner.upcycle(config, options=["--simd", path])
        if result.status == 0:
            assert runner.hashes(scratch / f"Mixtral-{path}") == synth[1], path
            tried += 1
    assert tried
