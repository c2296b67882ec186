"""What must hold of a run: each check is (what, outcome, detail, n), n of what was looked at: one that
holds of nothing fails. Outcome None is "not looked at", for a reason that the detail gives."""

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
        for i in chosen:
            found += of_weights(ledger, weights, i)
    return [judge(*check) for check in found]


def judge(what, outcome, detail, n=0):
    if outcome is None:
        return what, None, detail
    if n == 0:
        return what, False, "there is nothing to look at (%s)" % detail
    return what, bool(outcome), detail  # numpy's truth values are none of Python's


def sources_named(ledger):
    what, files = "the source's files have fingerprints", ledger.sources
    with_records = [f for f in files if int(str(f["records_xxh3"]), 16)]
    if files and not with_records:
        return (what, None, "%d files of a format without checksums of its own" % len(files))
    return (what, True, "%d of %d files" % (len(with_records), len(files)), len(with_records))


def timeline_in_order(ledger):
    t, bad = ledger.timeline, 0
    for rank in np.unique(t["rank"]):
        mine = t["rank"] == rank
        start, end = t["start"][mine], (t["start"] + t["seconds"])[mine]
        bad += int((start[1:] < end[:-1] - 1e-6).sum())
    return ("each rank's phases follow each other", bad == 0, "%d overlaps" % bad, len(t["rank"]))


def bytes_add_up(ledger):
    what = "bytes written are the output's"
    manifest = ledger.path.parent / "mgr-manifest.json"
    if not manifest.exists():
        return (what, None, "no manifest beside the ledger")
    files = json.loads(manifest.read_text())["target"]["files"]
    wanted = sum(t["bytes"] for file in files for t in file.get("tensors", {}).values())
    written = int(ledger.timeline["bytes_written"].sum())
    # a resumed run wrote only the rest; padding rows are not written
    return (what, written <= wanted and written > 0, "%d of %d" % (written, wanted), wanted)


def wanted_sizes(ledger):
    """|S| [layers][gate, up, down]"""
    needs = ledger.run["method"] != "naive"
    one = int(ledger.run["ratio"] * ledger.run["neurons"]) if needs else 0
    return np.array(ledger.run.get("wanted", [[one] * 3] * len(ledger.layers)), dtype=int).reshape(-1, 3)


def span_of(sizes):
    low, high = sizes.min(initial=1 << 30), sizes.max(initial=0)
    return "%d" % high if low >= high else "%d to %d" % (low, high)


def sizes(ledger):
    size = wanted_sizes(ledger)
    # of a mixture the first that is made of an expert is left as it is
    right = bool(((ledger.selected == size[:, None]) | (ledger.of_mixture & (ledger.selected == 0))).all())
    return ("every set S has floor(r F) neurons", right, "%s of %d" % (span_of(size), ledger.run["neurons"]),
            ledger.selected.size)


def masks(ledger):
    bad = 0
    for i in range(len(ledger.layers)):
        for expert in range(ledger.experts):
            for matrix in range(3):
                bad += ledger.mask(i, expert, matrix).sum() != ledger.selected[i, expert, matrix]
    return ("the masks hold that many bits", bad == 0, "%d differ" % bad, ledger.selected.size)


def overlap_sigma(ledger):
    """Of |K1 & K2| / |K| of each layer: hypergeometric, over as many independent sets as there are."""
    total, kept = ledger.run["neurons"], kept_sizes(ledger)
    share = kept / total
    variance = kept * share * (1 - share) * (total - kept) / max(total - 1, 1)
    return np.sqrt(variance.sum(axis=1)) / np.maximum(kept.sum(axis=1), 1)


def kept_sizes(ledger):
    """Of each layer and set, how many neurons it leaves alone."""
    return ledger.run["neurons"] - wanted_sizes(ledger)[:, : ledger.sets]


def expected_overlap(ledger):
    """Of each layer: 1 - r, where a layer has one ratio."""
    kept = kept_sizes(ledger)
    return (kept**2).sum(axis=1) / ledger.run["neurons"] / np.maximum(kept.sum(axis=1), 1)


def overlaps(ledger):
    off = ledger.overlap[:, ~np.eye(ledger.experts, dtype=bool)]
    if ledger.experts == 1:
        return ("experts share 1 - r of what they keep", None, "there is one expert")
    if ledger.of_mixture or ledger.run["neurons"] != ledger.run.get("source_neurons", ledger.run["neurons"]):
        return ("experts share 1 - r of what they keep", None, "they are not made of the same neurons")
    expected, sigma = expected_overlap(ledger), overlap_sigma(ledger)
    away = np.abs(off - expected[:, None]).max(axis=1)
    worst = int((away - SIGMAS * sigma).argmax())  # the layer that is farthest off
    limit = SIGMAS * sigma[worst] + 1e-9
    return ("experts share 1 - r of what they keep", bool(away[worst] <= limit),
            "expected %.4f, farthest %.4f away, %d sigma is %.4f" % (expected[worst], away[worst], SIGMAS, limit), off.size)


def moments(ledger):
    what = "the draws had finite moments"
    if ledger.run["method"] != "drop" or not wanted_sizes(ledger).any():
        return (what, None, "nothing was drawn from the weights")
    drawn = ledger.selected > 0
    right = bool(np.isfinite(ledger.mean[drawn]).all() and (ledger.std[drawn] > 0).all())
    return (what, right, "std %.5f to %.5f" % (ledger.std[drawn].min(initial=9), ledger.std[drawn].max(initial=0)), int(drawn.sum()))


def router(ledger):
    mean, std = ledger.router["mean"], ledger.router["std"]
    if ledger.run["router"] in ("source", "zeros", "file"):
        return ("the routers are as '%s' says" % ledger.run["router"], None, "it is not drawn")
    right = bool(np.isfinite(mean).all() and (std > 0).all())
    if ledger.run["router"] == "uniform":
        right = right and bool((np.abs(mean) < 1e-3).all() and (np.abs(std - 0.02) < 2e-3).all())
    return ("the routers are as '%s' says" % ledger.run["router"], right,
            "mean %.2e, std %.5f" % (np.abs(mean).max(initial=0), std.sum() / max(1, std.size)), std.size)


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
    return bad == 0, "layer %d: %d of %d differ" % (layer, bad, 3 * ledger.experts), ledger.experts


def copies(ledger, weights, chosen):
    """The last expert that kept a neuron gave it to the dense matrix: the others must agree."""
    if ledger.of_mixture:
        return None, "experts are those of a mixture, which is not here"
    if ledger.run["method"] == "noise":
        return None, "noise leaves them alone, but nothing to compare with"
    layer, bad, n = int(ledger.layers[chosen]), 0, 0
    for m, kind in enumerate(KINDS):
        dense, _ = dense_matrix(ledger, weights, chosen, kind)
        for expert in range(ledger.experts):
            kept = ~ledger.mask(chosen, expert, m)
            n += int(kept.sum())
            order = ledger.dense_of(chosen, expert)[kept]
            mine = weights.neurons(layer, expert, kind)[kept]
            bad += int((mine.view(np.uint32) != dense[order].view(np.uint32)).any(axis=1).sum())
    if n == 0 and not kept_sizes(ledger)[chosen].any():
        return None, "with ratio 1 nothing is kept"
    return bad == 0, "layer %d: %d of %d neurons differ" % (layer, bad, n), n


def draws(ledger, weights, chosen):
    if ledger.run["method"] != "drop" or not wanted_sizes(ledger)[chosen].any():
        return None, "nothing was drawn from the weights"
    layer, worst = int(ledger.layers[chosen]), 0.0
    for expert in range(ledger.experts):
        for m, kind in enumerate(KINDS):
            drawn = weights.neurons(layer, expert, kind)[ledger.mask(chosen, expert, m)].astype(np.float64)
            if not drawn.size:
                continue
            drawn /= ledger.run.get("scale", (1, 1, 1))[m]  # the last thing that was done
            mean, std = float(ledger.mean[chosen, expert, m]), float(ledger.std[chosen, expert, m])
            off_mean = abs(drawn.mean() - mean) / (std / math.sqrt(drawn.size))
            # rounding to bfloat16 adds up to 2^-9 of each value to the spread, which is small
            off_std = abs(drawn.std() - std) / (std / math.sqrt(2 * drawn.size) + std * 2.0**-16)
            worst = max(worst, off_mean, off_std)
    return worst < SIGMAS, "layer %d: farthest %.1f sigma" % (layer, worst), ledger.experts
