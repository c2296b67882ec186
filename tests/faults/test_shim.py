"""Each call that the program makes on its files fails once, below the program (shim.c).

What may happen: the output that an undisturbed run makes, with status 0; or one error with the right
status, nothing under the target's name, no hang, and then `--resume` makes that output. A killed rank
ends the run in any way but those that leave half an output.

    test_shim.py [--every N] [--jobs N] [--format F] [--call C] [--ranks N]     every N-th fault of the sweep
"""

import argparse
import collections
import concurrent.futures
import errno
import functools
import itertools
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "cli"))
import runner  # noqa: E402

SHIM = os.environ["MGR_SHIM_SO"]
EIO, ENOSPC, EDQUOT, EINTR, EMFILE, ENOMEM = (
    errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EINTR, errno.EMFILE, errno.ENOMEM
)
SPACE, IO, SYSTEM = {runner.CANNOT_CREATE}, {runner.IO_ERROR}, {runner.OS_ERROR}
NONE = set()  # the program has to cope

# Faults of each call, and the statuses that say so. What reads may take what it cannot read for
# damaged or absent; a call that only tidies up, or asks what there is, need not be noticed.
FAULTS = {
    "pwrite": {EIO: IO, ENOSPC: SPACE, EDQUOT: SPACE, EINTR: NONE, "short": NONE, "none": IO, "kill": None},
    "pread": {EIO: IO, EINTR: NONE, "short": NONE, "none": IO | {runner.DATA}, "kill": None},
    "fsync": {EIO: IO, ENOSPC: SPACE, "kill": None},
    "close": {EIO: IO, ENOSPC: SPACE},
    "open": {EIO: IO | SPACE, EMFILE: IO | SPACE, "kill": None},
    "ftruncate": {EIO: IO | SPACE, ENOSPC: SPACE, "kill": None},
    "fallocate": {EIO: IO | SPACE, ENOSPC: SPACE, "kill": None},
    "rename": {EIO: IO | SPACE, ENOSPC: SPACE, "kill": None},
    "mkdir": {EIO: IO | SPACE, ENOSPC: SPACE, "kill": None},
    "unlink": {EIO: IO | SPACE, "kill": None},
    "malloc": {ENOMEM: SYSTEM},
}

MIXTURE = dict(mode="upcycle", upcycle__experts=4)
DENSE = dict(mode="reshard", upcycle=None)
FORMATS = {
    "moe-recipes": dict(MIXTURE, target__format="moe-recipes", target__expert_parallel=2),
    "huggingface": dict(DENSE, target__format="huggingface"),
    "megatron-torch": dict(MIXTURE, target__format="megatron-torch", target__tensor_parallel=2),
    "megatron-dist": dict(MIXTURE, target__format="megatron-dist"),
    "hdf5": dict(MIXTURE, target__format="hdf5", target__expert_parallel=2),
    "hdf5-deflate": dict(MIXTURE, target__format="hdf5", target__compression="deflate"),
    "deepspeed": dict(MIXTURE, target__format="deepspeed"),
    "deepspeed-zero3": dict(DENSE, target__format="deepspeed", target__data_parallel=2),
}

Fault = collections.namedtuple("Fault", "format ranks rank call k what")


class Hung(Exception):
    pass


def told(result):
    """How a run ended, and what it said of that; what it says before is not of interest here."""
    return "%s\nexit status %d\n%s" % (" ".join(result.argv), result.status, result.err[-2000:])


class Bench:
    """A source, and for each format what an undisturbed run makes of it."""

    def __init__(self, folder):
        self.folder = folder
        self.source = runner.synth(folder / "dense", layers=1, hidden=128, ffn=256, vocab=256)
        self.outputs = folder / "out"
        self.target = self.outputs / "Mixtral"
        self.log = pathlib.Path(str(folder) + ".log")  # not below the folder: not a fault itself
        self.expected, self.configs = {}, {}
        for name, changes in FORMATS.items():
            self.configs[name] = runner.write_config(folder / (name + ".yaml"), self.source, self.target, **changes)

    def run(self, name, ranks, env=None, options=()):
        words = [runner.program("mgr-upcycle"), *options, self.configs[name]]
        if env:
            pairs = dict(env, LD_PRELOAD=SHIM, MGR_SHIM_UNDER=self.folder, MGR_SHIM_LOG=self.log)
            words = ["env", *("%s=%s" % pair for pair in pairs.items()), *words]
        if ranks > 1:
            words = [*runner.launcher(ranks), *words]
        return self.end(words)

    @staticmethod
    def end(words, limit=30):
        """runner.run takes a killed process for one that hung; here the clock tells."""
        words = [str(word) for word in words]
        start = time.monotonic()
        done = subprocess.run(
            ["timeout", "--kill-after=5", str(limit), *words], capture_output=True, stdin=subprocess.DEVNULL
        )
        result = runner.Result(
            words, done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        )
        if time.monotonic() - start > limit:
            raise Hung(told(result))
        return result

    def clean(self):
        shutil.rmtree(self.outputs, ignore_errors=True)
        self.outputs.mkdir()
        self.log.unlink(missing_ok=True)

    def listing(self, name, ranks):
        """{(rank, call): paths in order} of an undisturbed run, whose output is the expected one."""
        self.clean()
        result = self.run(name, ranks, {"MGR_SHIM": "list"})
        assert result.status == 0, str(result)
        self.expected[name] = self.hashes()
        found = collections.defaultdict(list)
        for line in self.log.read_text().splitlines():
            rank, call, _, path = line.split(" ", 3)
            found[int(rank), call].append(path)
        return found

    def hashes(self):
        return runner.hashes(self.target)

    def alone(self, fault):
        """Nothing lies beside the output, but for what could not be removed."""
        return fault.call == "unlink" or os.listdir(self.outputs) == [self.target.name]

    def resumed(self, fault, said):
        result = self.run(fault.format, fault.ranks, options=["--resume"])
        if (result.status, result.errors()) != (0, []):
            return "no --resume after %s\n%s" % (said, told(result))
        if not self.alone(fault) or self.hashes() != self.expected[fault.format]:
            return "another output after --resume of %s" % said
        return None

    def attempt(self, fault):
        """None, or what is wrong with how it ended."""
        self.clean()
        plan = {"MGR_SHIM": "%s:%d:%s" % fault[3:], "MGR_SHIM_RANK": fault.rank}
        try:
            result = self.run(fault.format, fault.ranks, plan)
        except Hung as hung:
            return "no end\n%s" % hung
        statuses = FAULTS[fault.call][fault.what]
        said = told(result)
        if self.target.exists() and (result.status == 0 or statuses is None):
            if self.hashes() != self.expected[fault.format] or (result.status == 0 and not self.alone(fault)):
                return "another output\n" + said
            return None
        complete = "is complete" in result.err  # only what it left beside its output is the error
        if self.target.exists() and (not complete or self.hashes() != self.expected[fault.format]):
            return "something is published\n" + said
        if statuses is not None and (result.status not in statuses or len(result.errors()) != 1):
            return "the wrong end\n" + said
        if statuses is None and result.status == 0:
            return "success without an output\n" + said
        return self.resumed(fault, said)


def faults(bench, options):
    """All faults of the sweep."""
    for name in options.format or FORMATS:
        for ranks in options.ranks or (1, 2):
            for (rank, call), paths in sorted(bench.listing(name, ranks).items()):
                if options.call and call not in options.call:
                    continue
                for k in range(1, len(paths) + 1):
                    for what in FAULTS[call]:
                        yield Fault(name, ranks, rank, call, k, what), paths[k - 1]


def sampled(bench, options):
    """Every N-th, beginning elsewhere in each row of equal calls so that all kinds come up."""
    row, last, at = 0, None, 0
    for fault, path in faults(bench, options):
        key = fault[:4]
        if key != last:
            row, last, at = row + 1, key, 0
        if (at + row * 7) % options.every == 0:
            yield fault, path
        at += 1


def share(options, part):
    """What one of several workers, each with files of its own, takes of the sweep: counts of all and of what ended right."""
    tried, right = collections.Counter(), collections.Counter()
    with tempfile.TemporaryDirectory(prefix="mgr-shim-") as folder:
        bench = Bench(pathlib.Path(folder))
        for fault, path in itertools.islice(sampled(bench, options), part, None, options.jobs):
            wrong = bench.attempt(fault)
            for group in ("all", fault.call, "%s on %d" % (fault.format, fault.ranks)):
                tried[group] += 1
                right[group] += not wrong
            if wrong:
                print("%s\n  on %s\n  %s" % (fault, path, wrong.replace("\n", "\n  ")), flush=True)
        bench.log.unlink(missing_ok=True)
    return tried, right


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--format", action="append")
    parser.add_argument("--call", action="append")
    parser.add_argument("--ranks", type=int, action="append")
    options = parser.parse_args()
    tried, right = collections.Counter(), collections.Counter()
    with concurrent.futures.ProcessPoolExecutor(options.jobs) as workers:
        for part in workers.map(functools.partial(share, options), range(options.jobs)):
            tried.update(part[0])
            right.update(part[1])
    for group in sorted(tried):
        print("%s: %d of %d faults ended right" % (group, right[group], tried[group]))
    return 0 if tried and right == tried else 1


if __name__ == "__main__":
    sys.exit(main())
