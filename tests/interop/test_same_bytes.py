"""The output depends on the source's values, the `upcycle:` section and the seed, and on nothing
else: not on the ranks, the source's split, the memory budget or the CPU's instructions."""

import pytest

import harness
import megatron_like as ml
import runner

SPLITS = [(1, 1), (2, 1), (1, 2), (2, 2), (4, 2)]
SYNTH = dict(layers=4, hidden=256, ffn=704, heads=8, kv_heads=4, vocab=192, seed=21)
CONFIG = dict(
    upcycle__experts=4,
    upcycle__shuffle=True,
    upcycle__index_sets="independent",
    target__expert_parallel=2,
    target__max_shard_size="2MiB",
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
    "shape", [ml.Shape(ffn=360, kv_heads=4, hidden=136, head_dim=18, heads=8)], ids=["torch.save"]
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
            target__max_shard_size="1MiB",
        )
    assert all(hashes == seen[1, 1] for hashes in seen.values())


def test_memory_budgets(scratch):
    """Larger than the smaller budget; more so in test_scale.py."""
    source = runner.synth(
        scratch / "dense", layers=2, hidden=1024, ffn=2816, heads=8, kv_heads=4, vocab=512, tp=2, pp=2
    )
    changes = dict(target__max_shard_size="64MB", upcycle__experts=8)
    small = output_hashes(scratch, source, "small", memory_per_rank="64MiB", **changes)
    assert output_hashes(scratch, source, "large", memory_per_rank="2GiB", **changes) == small


def test_threads_that_write(scratch, synth):
    for threads in (0, 1, 3):
        assert output_hashes(scratch, synth[0], f"threads-{threads}", np=2, io_threads=threads) == synth[1], threads


def test_every_simd_path(scratch, synth):
    """Those that this CPU has; the others are refused."""
    with open("/proc/cpuinfo") as info:
        cpu = set(info.read().split())
    has = {
        "scalar": True,
        "avx2": "avx2" in cpu,
        "avx512": {"avx512f", "avx512dq", "avx512bw", "avx512vl"} <= cpu,
        "neon": "asimd" in cpu,
    }
    for path, present in has.items():
        if present:
            assert output_hashes(scratch, synth[0], path, options=["--simd", path]) == synth[1], path
        else:
            target = scratch / f"Mixtral-{path}"
            config = runner.write_config(scratch / "absent.yaml", synth[0], target, **CONFIG)
            result = runner.upcycle(config, options=["--simd", path])
            assert result.status != 0 and len(result.errors()) == 1, str(result)
            assert not target.exists()
