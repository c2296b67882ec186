"""What must hold of a run: each check is (what, outcome, detail); outcome None is "not looked at"."""

import binascii
import json
import math

import numpy as np

from ledger import KINDS, dense_matrix

SIGMAS = 6  # of sampling: beyond, it is no accident


def run_checks(ledger, weights, chosen):
    found = [sources_named(ledger), timeline_in_order(ledger), bytes_add_up(ledger)]
    if ledger.has_experts:
        found += [sizes(ledger), masks(ledger), overlaps(ledger), moments(ledger), router(ledger)]
        found += of_weights(ledger, weights, chosen)
    # numpy's truth values are none of Python's
    return [(what, None if outcome is None else bool(outcome), detail) for what, outcome, detail in found]


def sources_named(ledger):
    files = ledger.sources
    return ("the source's files have fingerprints", bool(files), "%d files" % len(files))


def timeline_in_order(ledger):
    t, bad = ledger.timeline, 0
    for rank in np.unique(t["rank"]):
        mine = t["rank"] == rank
        start, end = t["start"][mine], (t["start"] + t["seconds"])[mine]
        bad += int((start[1:] < end[:-1] - 1e-6).sum())
    return ("each rank's phases follow each other", bad == 0, "%d overlaps" % bad)


def bytes_add_up(ledger):
    what = "bytes written are the output's"
    manifest = ledger.path.parent / "mgr-manifest.json"
    if not manifest.exists():
        return (what, None, "no manifest beside the ledger")
    files = json.loads(manifest.read_text())["target"]["files"]
    wanted = sum(t["bytes"] for file in files for t in file["tensors"].values())
    written = int(ledger.timeline["bytes_written"].sum())
    # a resumed run wrote only the rest; padding rows are not written
    return (what, written <= wanted and written > 0, "%d of %d" % (written, wanted))


def wanted_size(ledger):
    needs = ledger.run["method"] != "naive"
    return int(ledger.run["ratio"] * ledger.run["neurons"]) if needs else 0


def sizes(ledger):
    size = wanted_size(ledger)
    right = bool((ledger.selected == size).all())
    return ("every set S has floor(r F) neurons", right, "%d of %d" % (size, ledger.run["neurons"]))


def masks(ledger):
    bad = 0
    for i in range(len(ledger.layers)):
        for expert in range(ledger.experts):
            for matrix in range(3):
                bad += ledger.mask(i, expert, matrix).sum() != ledger.selected[i, expert, matrix]
    return ("the masks hold that many bits", bad == 0, "%d differ" % bad)


def overlap_sigma(ledger):
    """Of |K1 & K2| / |K|: hypergeometric, over as many independent sets as there are."""
    total, kept = ledger.run["neurons"], ledger.run["neurons"] - wanted_size(ledger)
    if kept in (0, total) or total < 2:
        return 0.0
    share = kept / total
    variance = kept * share * (1 - share) * (total - kept) / (total - 1)
    return math.sqrt(variance) / kept / math.sqrt(ledger.sets)


def overlaps(ledger):
    off = ledger.overlap[:, ~np.eye(ledger.experts, dtype=bool)]
    expected = 1 - wanted_size(ledger) / ledger.run["neurons"]
    worst = float(np.abs(off - expected).max()) if off.size else 0.0
    limit = SIGMAS * overlap_sigma(ledger) + 1e-9
    return ("experts share 1 - r of what they keep", worst <= limit,
            "expected %.4f, farthest %.4f away, %d sigma is %.4f" % (expected, worst, SIGMAS, limit))


def moments(ledger):
    what = "the draws had finite moments"
    if ledger.run["method"] != "drop" or wanted_size(ledger) == 0:
        return (what, None, "nothing was drawn from the weights")
    right = bool(np.isfinite(ledger.mean).all() and (ledger.std > 0).all())
    return (what, right, "std %.5f to %.5f" % (ledger.std.min(), ledger.std.max()))


def router(ledger):
    mean, std = ledger.router["mean"], ledger.router["std"]
    right = bool(np.isfinite(mean).all() and (std > 0).all())
    if ledger.run["router"] == "uniform":
        right = right and bool((np.abs(mean) < 1e-3).all() and (np.abs(std - 0.02) < 2e-3).all())
    return ("the routers are as '%s' says" % ledger.run["router"], right,
            "mean %.2e, std %.5f" % (np.abs(mean).max(), std.mean()))


def of_weights(ledger, weights, chosen):
    names = ("the output's CRC-32s are the ledger's", "neurons outside S are the dense ones, in every expert",
             "what was drawn has the moments of what it replaced")
    if weights is None:
        return [(name, None, "no weights of a kind that this reads beside the ledger") for name in names]
    outcomes = (checksums(ledger, weights, chosen), copies(ledger, weights, chosen),
                draws(ledger, weights, chosen))
    return [(name, *outcome) for name, outcome in zip(names, outcomes)]


def checksums(ledger, weights, chosen):
    layer, bad = int(ledger.layers[chosen]), 0
    for expert in range(ledger.experts):
        for m, kind in enumerate(KINDS):
            bad += binascii.crc32(weights.raw(layer, expert, kind)) != ledger.crc32[chosen, expert, m]
    return bad == 0, "layer %d: %d of %d differ" % (layer, bad, 3 * ledger.experts)


def copies(ledger, weights, chosen):
    """The last expert that kept a neuron gave it to the dense matrix: the others must agree."""
    if ledger.run["method"] == "noise":
        return None, "noise leaves them alone, but nothing to compare with"
    layer, bad = int(ledger.layers[chosen]), 0
    for m, kind in enumerate(KINDS):
        dense, _ = dense_matrix(ledger, weights, chosen, kind)
        for expert in range(ledger.experts):
            kept = ~ledger.mask(chosen, expert, m)
            order = ledger.dense_of(chosen, expert)[kept]
            mine = weights.neurons(layer, expert, kind)[kept]
            bad += int((mine.view(np.uint32) != dense[order].view(np.uint32)).any(axis=1).sum())
    return bad == 0, "layer %d: %d neurons differ" % (layer, bad)


def draws(ledger, weights, chosen):
    if ledger.run["method"] != "drop" or wanted_size(ledger) == 0:
        return None, "nothing was drawn from the weights"
    layer, worst = int(ledger.layers[chosen]), 0.0
    for expert in range(ledger.experts):
        for m, kind in enumerate(KINDS):
            drawn = weights.neurons(layer, expert, kind)[ledger.mask(chosen, expert, m)].astype(np.float64)
            mean, std = float(ledger.mean[chosen, expert, m]), float(ledger.std[chosen, expert, m])
            off_mean = abs(drawn.mean() - mean) / (std / math.sqrt(drawn.size))
            # rounding to bfloat16 adds up to 2^-9 of each value to the spread, which is small
            off_std = abs(drawn.std() - std) / (std / math.sqrt(2 * drawn.size) + std * 2.0**-16)
            worst = max(worst, off_mean, off_std)
    return worst < SIGMAS, "layer %d: farthest %.1f sigma" % (layer, worst)
