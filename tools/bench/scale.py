"""What plans say of large models, without their weights: a table of pages.

    python3 tools/bench/scale.py [--bin build/release/bin] [--scratch FOLDER] [--models 8B,405B] [--ranks 8x8,128x8]

Sources of mgr-synth --sparse, 8B, 70B and 405B, into 8, 64 and 256 experts; each row is one mgr-upcycle --dry-run -v.
Makes some 50 MB in the scratch folder, and removes it. Seconds are processor seconds, memory is resident."""

import argparse
import os
import pathlib
import re
import subprocess
import sys
import tempfile

MODELS = {
    "8B": "--layers 32 --hidden 4096 --ffn 14336 --heads 32 --kv-heads 8 --vocab 128256",
    "70B": "--layers 80 --hidden 8192 --ffn 28672 --heads 64 --kv-heads 8 --vocab 128256 --tp 8 --pp 4",
    "405B": "--layers 126 --hidden 16384 --ffn 53248 --heads 128 --kv-heads 8 --vocab 128256 --tp 8 --pp 14",
}
EXPERTS = (8, 64, 256)
CONFIG = "source: {path: %s}\nupcycle: {experts: %d}\ntarget: {path: %s, expert_parallel: 8}\n"
NO_ROOM = 73  # the page is there all the same
HEAD = ("model", "experts", "ranks", "files read, written", "opened by all ranks, by all nodes, by one node",
        "creates, opens, fsyncs", "reads, writes of", "collective", "above the mean", "time", "the page")  # fmt: skip


def page(program, config, ranks, bandwidth):
    """The text of a dry run, its processor seconds and its memory in MiB."""
    command = [program, "--dry-run", "-v", "--ranks", ranks, "--bandwidth", bandwidth, config]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.stdout.read(), process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, NO_ROOM):
        sys.exit(err.decode())
    text = re.sub(r"\n +", " ", out.decode())  # lines that were broken
    return text, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def row(text):
    find = lambda pattern: re.search(r"(?m)^" + pattern, text).groups()
    count = lambda words: ", ".join("{:,}".format(int(word)) for word in words)
    files = find(r"opened +(\d+) \+ (\d+) files, (\d+) times by all ranks")
    nodes = find(r"nodes .* (\d+) opened by all, at most (\d+) by one")
    made = find(r"metadata +at least (\d+) creates, (\d+) opens, (\d+) fsyncs")
    extents = find(r"extents .* reads have (\S+ \S+) and more, of the writes (\S+ \S+)")
    return (count(files[:2]), count(files[2:] + nodes), count(made), ", ".join(extents).replace(".00", ""),
            *find(r"calls .* (\d+) collective"), *find(r"details .* has ([\d.]+ %) more"), *find(r"time +(.*) at "))  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bin", type=pathlib.Path, default="build/release/bin")
    parser.add_argument("--scratch", default=None)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--ranks", default="8x8,128x8,512x8")
    parser.add_argument("--bandwidth", default="100GiB")
    parser.add_argument("--within", type=float, default=None, help="exit status 1 if a page takes more seconds")
    words, longest = parser.parse_args(), 0
    print("| " + " | ".join(HEAD) + " |\n" + "|---" * len(HEAD) + "|")
    with tempfile.TemporaryDirectory(dir=words.scratch) as folder:
        place = pathlib.Path(folder)
        for name in words.models.split(","):
            synth = [words.bin / "mgr-synth", place / name, "--sparse", "-q", *MODELS[name].split()]
            subprocess.run(synth, check=True)
            for experts in EXPERTS:
                config = place / "moe.yaml"
                config.write_text(CONFIG % (place / name, experts, place / "Mixtral-moe"))
                for ranks in words.ranks.split(","):
                    text, seconds, memory = page(words.bin / "mgr-upcycle", config, ranks, words.bandwidth)
                    longest = max(longest, seconds)
                    cost = "%.2f s, %d MiB" % (seconds, memory)
                    print("| " + " | ".join((name, str(experts), ranks, *row(text), cost)) + " |", flush=True)
    if words.within is not None and longest > words.within:
        sys.exit("a page takes %.1f s" % longest)


if __name__ == "__main__":
    main()
