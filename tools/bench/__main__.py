#!/usr/bin/env python3
"""What a build of mgr-upcycle costs, beside what is known of it: usage: tools/bench [OPTION]...

Runs mgr-bench on each number of ranks, prints what it found and the ratios that may be quoted, and
compares these with tools/bench/baseline.json: ratios of processor seconds and of kernels, of which a
loaded machine spoils little. Needs Python alone; tools/bench/script.py (torch) holds the published script beside a run.

  --bin FOLDER      where mgr-bench is (default build/release/bin)
  --scratch FOLDER  on the file system to measure (default /dev/shm)
  --ranks N[,N]     numbers of ranks (default 1)
  --size BYTES      about how much a run writes (default 1GiB)
  --rounds N        floors and run in turn, N times (default 5)
  --only NAMES      as mgr-bench has it (default: all but reading)
  --small N[,N]     and a run that writes 157 MB, on so many ranks, by one on 1
  --compare FILE    another baseline; --save FILE writes what was found as one
  --plot FILE       an SVG of processor seconds by GB
  --within PERCENT  how much worse a ratio may be (default 25)

Exit: 0 nothing is worse; 1 something is, or a run failed; 2 usage.
"""

import argparse
import json
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ALL = "kernels,drop,drop-threads,drop-all,naive,reshard,huggingface,megatron-torch,megatron-dist,deepspeed,hdf5,hdf5-deflate"
SMALL = "157MB"


def numbers(text):
    return [int(part) for part in text.split(",") if part]


def parse():
    parser = argparse.ArgumentParser(prog="tools/bench", usage="see the head of tools/bench/__main__.py")
    for name, default in (("bin", HERE.parents[1] / "build/release/bin"), ("scratch", pathlib.Path("/dev/shm"))):
        parser.add_argument("--" + name, type=pathlib.Path, default=default)
    parser.add_argument("--ranks", type=numbers, default=[1])
    parser.add_argument("--small", type=numbers, default=[])
    parser.add_argument("--size", default="1GiB")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default=ALL)
    parser.add_argument("--compare", type=pathlib.Path, default=HERE / "baseline.json")
    parser.add_argument("--save", type=pathlib.Path)
    parser.add_argument("--plot", type=pathlib.Path)
    parser.add_argument("--within", type=float, default=25)
    return parser.parse_args()


def bench(options, ranks, only, size):
    command = ["mpiexec", "-n", str(ranks), str(options.bin / "mgr-bench"), "--json", "--scratch", str(options.scratch),
               "--size", size, "--rounds", str(options.rounds), "--only", only]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit("tools/bench: error: '%s' ended with %d" % (" ".join(command), done.returncode))
    return json.loads(done.stdout)


def kernel_ratios(report):
    """Seconds by seconds, so that less is better."""
    out = {}
    normals = report.get("kernels", {}).get("normals to bf16", {})
    for path, rate in normals.items():
        if path != "scalar":
            out["normals, %s by scalar" % path] = normals["scalar"] / rate
    for name, paths in report.get("kernel_ratios", {}).items():
        if name.startswith("down"):
            out.update({"%s, %s" % (name, path): ratio for path, ratio in paths.items()})
    return out


def ratios(report):
    """What is kept of a report."""
    out = kernel_ratios(report) if report["ranks"] == 1 else {}
    for name, one in report["contests"].items():
        out["%s on %d, processor seconds by the floor's" % (name, report["ranks"])] = one["cpu_ratio"]["median"]
    return out


def show(report):
    print("%s, %d ranks, %d rounds" % (report["cpu"], report["ranks"], report["rounds"]))
    for name, paths in report.get("kernels", {}).items():
        print("  %-24s %s billion a second" % (name, "  ".join("%s %.2f" % (p, r) for p, r in paths.items())))
    for name, paths in report.get("kernel_ratios", {}).items():
        print("  %-32s %s" % (name, "  ".join("%s %.2f" % (p, r) for p, r in paths.items())))
    if report["contests"]:
        print("  %-14s %6s  %-19s %-19s %s" % ("", "GB", "seconds by floor's", "processor's", "user + system s/GB, floor's"))
    for name, one in report["contests"].items():
        spread = ["%.2f (%.2f, %.2f)" % (one[r]["median"], one[r]["least"], one[r]["most"]) for r in ("ratio", "cpu_ratio")]
        cost = ["%.3f + %.3f" % (one[k]["user_per_gb"], one[k]["system_per_gb"]) for k in ("run", "floor")]
        print("  %-14s %6.2f  %-19s %-19s %s, %s  %d MiB" % (name, one["bytes"] / 1e9, *spread, *cost, one["peak_rss"] >> 20))


def small(options):
    """Seconds on more ranks by those on one, of a run so small that what surrounds the weights counts."""
    def seconds(ranks):
        one = bench(options, ranks, "drop", SMALL)["contests"]["drop"]
        return one["run"]["seconds_per_gb"] * one["bytes"] / 1e9

    alone = seconds(1)
    out = {"small run on %d ranks, seconds by one's" % n: seconds(n) / alone for n in options.small}
    print("  a run that writes %s takes %.2f s on 1 rank" % (SMALL, alone))
    return out


def compare(found, path, within):
    """Prints each ratio beside the baseline's; how many are worse."""
    known = json.loads(path.read_text())["ratios"] if path.exists() else {}
    worse = 0
    print("%-58s %8s %9s" % ("ratio", "found", "baseline"))
    for name, value in found.items():
        was = known.get(name)
        bad = was is not None and value > was * (1 + within / 100)
        worse += bad
        print("%-58s %8.3f %9s%s" % (name, value, "" if was is None else "%.3f" % was, "  WORSE" if bad else ""))
    return worse


def plot(reports, path):
    """Bars of user and system seconds by GB, of each run and under it of its floor."""
    rows = [(("%s, %d ranks" % (name, r["ranks"])), one) for r in reports for name, one in r["contests"].items()]
    most = max((sum(list(one["run"].values())[1:]) for _, one in rows), default=1)
    parts, width, left = [], 620, 180
    for i, (title, one) in enumerate(rows):
        y = 30 + 34 * i
        parts.append('<text x="%d" y="%d" text-anchor="end">%s</text>' % (left - 8, y + 13, title))
        for k, (side, dy, height) in enumerate((("run", 0, 14), ("floor", 16, 6))):
            x = left
            for part, colour in (("user_per_gb", "#4477aa"), ("system_per_gb", "#bbbbbb")):
                w = one[side][part] / most * (width - left - 60)
                parts.append('<rect x="%.1f" y="%d" width="%.1f" height="%d" fill="%s"/>' % (x, y + dy, w, height, colour))
                x += w
            if k == 0:
                parts.append('<text x="%.1f" y="%d">%.2f</text>' % (x + 6, y + 12, (x - left) / (width - left - 60) * most))
    head = "processor seconds by GB written: user (blue), system (grey); the thin bar is the floor"
    path.write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">'
        '<rect width="100%%" height="100%%" fill="#fff"/><text x="10" y="18">%s</text>%s</svg>\n'
        % (width, 40 + 34 * len(rows), head, "".join(parts)))  # fmt: skip
    print("plot: %s" % path)


def main():
    options = parse()
    reports, found = [], {}
    for ranks in options.ranks:
        reports.append(bench(options, ranks, options.only, options.size))
        show(reports[-1])
        found.update(ratios(reports[-1]))
    if options.small:
        found.update(small(options))
    worse = compare(found, options.compare, options.within)
    if options.plot:
        plot(reports, options.plot)
    if options.save:
        kept = {name: round(value, 3) for name, value in found.items()}
        options.save.write_text(json.dumps({"cpu": reports[0]["cpu"] if reports else "", "ratios": kept}, indent=2) + "\n")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
