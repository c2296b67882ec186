#!/usr/bin/env python3
"""The published procedure in torch, beside the same work here: usage: tools/bench/script.py [OPTION]...

What conversions/drop_upcycling.py of Taishi-N324/Drop-Upcycling does with each layer, restated: for each
expert a permutation of the neurons; for gate, down and up a new set of them, the mean and spread of what
they hold, and a redraw. Two things are held against it on one core: the same experts of one layer made in
memory (libmgr), and whole runs, from a Hugging Face folder to safetensors. The script's own way to draw is
taken, and drawing in float32, whichever is faster; reading and writing whole tensors by safetensors, which
is less than what it does (it loads both models with transformers).

  --bin FOLDER      where mgr-synth and mgr-upcycle are (default build/release/bin)
  --library FILE    libmgr.so (default build/release/src/libmgr.so)
  --scratch FOLDER  (default /dev/shm)
  --hidden, --ffn, --layers, --experts, --ratio     (default 2048, 7168, 2, 8, 0.5)
  --rounds N        (default 3)
  --loop            the experts in memory alone

Needs tools/requirements-interop.txt. Exit: 0; 1 a run failed.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MATRICES = ("gate", "down", "up")
SECTION = {"index_sets": "independent", "shuffle": True}


def parse():
    parser = argparse.ArgumentParser(prog="tools/bench/script.py", usage="see its head")
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "build/release/bin")
    parser.add_argument("--library", type=pathlib.Path, default=ROOT / "build/release/src/libmgr.so")
    parser.add_argument("--scratch", type=pathlib.Path, default=pathlib.Path("/dev/shm"))
    for name, value in (("hidden", 2048), ("ffn", 7168), ("layers", 2), ("experts", 8), ("rounds", 3)):
        parser.add_argument("--" + name, type=int, default=value)
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--loop", action="store_true", help="the experts in memory alone")
    parser.add_argument("--whole", nargs=2, help=argparse.SUPPRESS)  # the child's: source and target
    return parser.parse_args()


def draw_script(torch, part, mean, std):
    return torch.empty_like(part).normal_(float(mean), float(std))


def draw_float(torch, part, mean, std):
    return torch.empty(part.shape).normal_(float(mean), float(std)).to(part.dtype)


def experts_of(torch, dense, options, draw):
    """The inner loop: one layer's experts."""
    n = dense["gate"].shape[0]
    count = int(n * options.ratio)
    made = []
    for _ in range(options.experts):
        order = torch.randperm(n)
        expert = {}
        for name in MATRICES:
            down = name == "down"
            matrix = dense[name][:, order] if down else dense[name][order]
            chosen = torch.randperm(n)[:count]
            part = matrix[:, chosen] if down else matrix[chosen]
            drawn = draw(torch, part, part.mean(), part.std())
            if down:
                matrix[:, chosen] = drawn
            else:
                matrix[chosen] = drawn
            expert[name] = matrix
        made.append(expert)
    return made


def cpu(work, *args):
    """Processor seconds of this process."""
    start = time.process_time()
    work(*args)
    return time.process_time() - start


def hold_loop(options):
    import ml_dtypes
    import numpy
    import torch

    os.environ["MGR_LIBRARY"] = str(options.library)
    sys.path.insert(0, str(ROOT / "tools/python"))
    import mgr

    torch.set_num_threads(1)
    shapes = {"gate": (options.ffn, options.hidden), "up": (options.ffn, options.hidden), "down": (options.hidden, options.ffn)}
    dense = {name: (torch.randn(shape) * 0.02).bfloat16() for name, shape in shapes.items()}
    arrays = {name: t.view(torch.int16).numpy().view(numpy.uint16).view(ml_dtypes.bfloat16) for name, t in dense.items()}
    gb = options.experts * 3 * options.ffn * options.hidden * 2 / 1e9

    def ours(**more):
        mgr.upcycle(arrays["gate"], arrays["up"], arrays["down"], experts=options.experts, ratio=options.ratio, **more)

    times = {"script": [], "float32": [], "same": [], "default": []}
    for _ in range(options.rounds):
        times["script"].append(cpu(experts_of, torch, dense, options, draw_script))
        times["float32"].append(cpu(experts_of, torch, dense, options, draw_float))
        times["same"].append(cpu(lambda: ours(**SECTION)))
        times["default"].append(cpu(ours))
    found = {name: statistics.median(t) / gb for name, t in times.items()}
    torchs = min(found["script"], found["float32"])
    print("experts of one layer, H %d, F %d, %d experts, ratio %g, bf16: processor seconds by GB, one core"
          % (options.hidden, options.ffn, options.experts, options.ratio))
    print("  torch %s, as the script draws %.3f, in float32 %.3f" % (torch.__version__, found["script"], found["float32"]))
    for name, what in (("same", "the same procedure"), ("default", "the paper's, the default")):
        print("  libmgr, %-26s %.3f: %.1f times less" % (what, found[name], torchs / found[name]))


def script_whole(options):
    """In a process of its own: a folder's tensors, the loop, a folder."""
    import safetensors.torch
    import torch

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    source, target = map(pathlib.Path, options.whole)
    target.mkdir()
    tensors = {}
    for path in sorted(source.glob("*.safetensors")):
        tensors.update(safetensors.torch.load_file(path))
    out = {name: t for name, t in tensors.items() if ".mlp." not in name}
    for layer in range(options.layers):
        stem = "model.layers.%d." % layer
        dense = {name: tensors["%smlp.%s_proj.weight" % (stem, name)] for name in MATRICES}
        for e, expert in enumerate(experts_of(torch, dense, options, draw_float)):
            for name, word in (("gate", "w1"), ("down", "w2"), ("up", "w3")):
                out["%sblock_sparse_moe.experts.%d.%s.weight" % (stem, e, word)] = expert[name]
        out[stem + "block_sparse_moe.gate.weight"] = (torch.rand(options.experts, options.hidden) * 0.04 - 0.02).bfloat16()
    safetensors.torch.save_file(out, target / "model.safetensors", metadata={"format": "pt"})
    fd = os.open(target / "model.safetensors", os.O_RDONLY)
    os.fsync(fd)


def whole(command, target):
    """Seconds, processor seconds and MiB of a command, and GB that it left."""
    shutil.rmtree(target, ignore_errors=True)
    start = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    if status:
        sys.exit("tools/bench/script.py: error: '%s' failed" % " ".join(map(str, command)))
    seconds = time.monotonic() - start
    return seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def hold_whole(options):
    dense, target = options.scratch / "mgr-script-dense", options.scratch / "mgr-script-Mixtral"
    config = options.scratch / "mgr-script.yaml"
    sizes = ["--layers", str(options.layers), "--hidden", str(options.hidden), "--ffn", str(options.ffn), "--heads", "16"]
    subprocess.run([options.bin / "mgr-synth", dense, "--format", "huggingface", "-q", "-f", *sizes], check=True)
    section = {**SECTION, "experts": options.experts, "ratio": options.ratio}
    config.write_text(json.dumps({"source": {"path": str(dense)}, "upcycle": section, "target": {"path": str(target)}}))
    script = [sys.executable, __file__, "--whole", dense, target]
    for name in ("layers", "hidden", "ffn", "experts", "ratio"):
        script += ["--" + name, str(getattr(options, name))]
    commands = {"torch": script, "mgr-upcycle": [options.bin / "mgr-upcycle", "-q", config]}
    found = {name: [] for name in commands}
    for _ in range(options.rounds):
        for name, command in commands.items():
            found[name].append(whole([str(part) for part in command], target))
    size = sum(f.stat().st_size for f in target.rglob("*") if f.is_file()) / 1e9
    for path in (dense, target):
        shutil.rmtree(path)
    config.unlink()
    print("whole runs, %.2f GB, one process, one thread" % size)
    middle = {name: [statistics.median(column) for column in zip(*rows)] for name, rows in found.items()}
    for name, (seconds, used, resident) in middle.items():
        print("  %-12s %7.2f s, %7.2f of the processor, %6.0f MiB resident" % (name, seconds, used, resident))
    print("  ratios       %7.1f    %7.1f                   %6.1f" % tuple(a / b for a, b in zip(*middle.values())))


def keep_memory():
    """Of both sides: what is freed stays with the process, so that new pages are nobody's cost."""
    keep = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_TOP_PAD_": str(1 << 26)}
    if not keep.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **keep})


def main():
    options = parse()
    if options.whole:
        script_whole(options)
    elif options.loop:
        keep_memory()
        hold_loop(options)
    else:
        subprocess.run([sys.executable, *sys.argv, "--loop"], check=True)
        hold_whole(options)


if __name__ == "__main__":
    main()
