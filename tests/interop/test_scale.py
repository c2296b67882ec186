"""More data than memory, and more ranks than cores."""

import pathlib
import sys
import time

import pytest

import harness
import runner

# Runs a command and writes its peak resident size (KiB) into a new file of the folder argv[1].
# fork and exec, so that MPI's file descriptors and environment reach the program.
PEAK = """
import os, sys, tempfile
child = os.fork()
if child == 0:
    os.execv(sys.argv[2], sys.argv[2:])
_, status, usage = os.wait4(child, 0)
with tempfile.NamedTemporaryFile("w", dir=sys.argv[1], delete=False) as out:
    out.write(str(usage.ru_maxrss))
os._exit(os.waitstatus_to_exitcode(status) & 255)
"""


def peaks(folder):
    return [int(p.read_text()) * 1024 for p in pathlib.Path(folder).iterdir()]


def measured(scratch, source, name, **changes):
    folder = scratch / (name + "-rss")
    folder.mkdir()
    out = harness.convert(
        scratch, source, name=name, wrapper=[sys.executable, "-I", "-S", "-c", PEAK, folder], **changes
    )
    found = peaks(folder)
    assert len(found) == 2 and min(found) > 1 << 20
    return out, max(found)


@pytest.mark.skipif(runner.SANITIZED, reason="sanitizers take memory of their own")
def test_peak_memory_stays_below_the_budget(scratch):
    """1.2 GB of experts under 256 MiB for each of two ranks; and the same bytes with 2 GiB."""
    source = runner.synth(
        scratch / "dense",
        layers=8,
        hidden=1024,
        ffn=2816,
        heads=16,
        kv_heads=8,
        vocab=2048,
        tp=2,
        pp=2,
        timeout=120,
    )
    changes = dict(upcycle__experts=8, target__max_shard_size="200MB", target__expert_parallel=4)
    out, peak = measured(scratch, source, "Mixtral-small", memory_per_rank="256MiB", **changes)
    written = sum(p.stat().st_size for p in out.glob("*.safetensors"))
    assert written > 4 * (256 << 20)
    print("peak RSS %.0f MiB of 256 MiB, %.2f GB written" % (peak / 2**20, written / 1e9))
    assert peak < 256 << 20, peak
    hashes = runner.hashes(out)
    for file in out.iterdir():
        file.unlink()
    larger, _ = measured(scratch, source, "Mixtral-large", memory_per_rank="2GiB", **changes)
    assert runner.hashes(larger) == hashes


def test_sixty_four_ranks_on_the_quickstart_checkpoint(scratch):
    source = runner.synth(
        scratch / "dense", layers=4, hidden=256, ffn=704, heads=8, kv_heads=4, vocab=1000, tp=2, pp=2
    )
    changes = dict(upcycle__experts=8, target__expert_parallel=8)
    few = harness.convert(scratch, source, name="Mixtral-2", np=2, **changes)
    begin = time.monotonic()
    many = harness.convert(scratch, source, name="Mixtral-64", np=64, timeout=60, **changes)
    print("64 ranks: %.1f s" % (time.monotonic() - begin))
    assert runner.hashes(many) == runner.hashes(few)
