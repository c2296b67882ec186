"""The pictures, each as the text of an <img>."""

import base64
import html
import io
import unicodedata

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from matplotlib.ticker import MaxNLocator  # noqa: E402

from checks import expected_overlap, overlap_sigma  # noqa: E402
from ledger import KINDS, dense_matrix  # noqa: E402

BLUE, ORANGE, GREEN, GREY = "#3465a4", "#d9730d", "#4e8a3e", "#888a85"
MATRIX_COLOURS = dict(zip(KINDS, (BLUE, ORANGE, GREEN)))
PHASE_COLOURS = {
    "find": "#babdb6", "plan": "#888a85", "sums": ORANGE, "write": BLUE, "sync": "#75507b", "settle": GREEN,
}
SAMPLE = 1 << 20
plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})


def plain(text):
    """Text of a file: no character that is not seen (control, C1, marks of direction): as numbers."""
    hidden = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
    return "".join(c if c == "\n" or unicodedata.category(c) not in hidden else "\\u%04x" % ord(c) for c in str(text))


def escape(text):
    """And no markup, for a page."""
    return html.escape(plain(text))


def image(figure, name, words):
    out = io.BytesIO()
    figure.tight_layout()
    figure.savefig(out, format="png", dpi=110)
    plt.close(figure)
    data = base64.b64encode(out.getvalue()).decode()
    return '<figure id="%s"><img alt="%s" src="data:image/png;base64,%s"><figcaption>%s</figcaption></figure>' % (
        name, escape(words), data, escape(words))


def beside(axis):
    """A legend that covers no data."""
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)


def overlap(ledger, chosen):
    expected, band = expected_overlap(ledger), 3 * overlap_sigma(ledger)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), width_ratios=(1, 1.7))
    drawn = left.imshow(ledger.overlap[chosen], vmin=0, vmax=1, cmap="Blues")
    left.set(title="layer %d" % ledger.layers[chosen], xlabel="expert", ylabel="expert")
    for axis in (left.xaxis, left.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    figure.colorbar(drawn, ax=left, label="share of kept neurons")
    off = ledger.overlap[:, ~np.eye(ledger.experts, dtype=bool)]
    x = np.arange(len(ledger.layers))
    if len(x) == 1 or np.ptp(expected) == 0:
        right.axhspan(expected[0] - band[0], expected[0] + band[0], color=ORANGE, alpha=0.15, label="3 sigma of chance")
        right.axhline(expected[0], color=ORANGE, label="expected 1 - r = %.3f" % expected[0])
    else:
        right.fill_between(x, expected - band, expected + band, color=ORANGE, alpha=0.15, label="3 sigma of chance")
        right.plot(x, expected, color=ORANGE, label="expected 1 - r")
    if off.size:
        right.plot(np.repeat(x, off.shape[1]), off.ravel(), ".", color=BLUE, ms=3, alpha=0.5, label="a pair of experts")
    right.set(title="all pairs, by layer", xlabel="layer", ylabel="overlap")
    shown = x[:: max(1, len(x) // 16)]
    right.set_xticks(shown, ledger.layers[shown])
    beside(right)
    return image(figure, "overlap", "Of the neurons that one expert keeps, the share that another keeps too")


def after(ledger, weights, i, kind):
    """Mean and std of each expert's matrix, from at most SAMPLE of its values."""
    found = []
    for expert in range(ledger.experts):
        values = weights.neurons(int(ledger.layers[i]), expert, kind).ravel()
        values = values[:: max(1, values.size // SAMPLE)].astype(np.float64)
        found.append((values.mean(), values.std()))
    return np.array(found)


def statistics(ledger, weights):
    figure, axes = plt.subplots(2, 3, figsize=(10, 4.6), sharex=True)
    x = ledger.layers
    for m, (kind, colour) in enumerate(MATRIX_COLOURS.items()):
        rows = ((ledger.dense_mean, ledger.mean), (ledger.dense_std, ledger.std))
        results = None
        if weights is not None:
            results = np.array([after(ledger, weights, i, kind) for i in range(len(x))])
        for row, (dense, used) in enumerate(rows):
            axis = axes[row, m]
            axis.plot(x, dense[:, m], "o-", color=GREY, ms=4, label="dense, before")
            axis.plot(np.repeat(x, ledger.experts), used[:, :, m].ravel(), "x", color=ORANGE, ms=4,
                      label="drawn from, each expert")
            if results is not None:
                axis.plot(np.repeat(x, ledger.experts), results[:, :, row].ravel(), ".", color=colour, ms=4,
                          label="experts, after")
        axes[0, m].set_title(kind)
        axes[1, m].set_xlabel("layer")
    axes[0, 0].set_ylabel("mean")
    axes[1, 0].set_ylabel("standard deviation")
    for axis in axes[0]:
        axis.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    axes[1, 0].xaxis.set_major_locator(MaxNLocator(integer=True))
    beside(axes[0, 2])
    return image(figure, "statistics", "Mean and standard deviation by layer, before and after")


def histograms(ledger, weights, chosen):
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.2), sharey=True)
    layer = int(ledger.layers[chosen])
    for m, kind in enumerate(KINDS):
        dense, known = dense_matrix(ledger, weights, chosen, kind)
        before = dense[known].ravel()
        mask = ledger.mask(chosen, 0, m)
        values = weights.neurons(layer, 0, kind)
        everything = np.concatenate([before, values.ravel()])
        edges = np.linspace(*np.percentile(everything, (0.01, 99.99)), 80)
        for data, colour, name in ((before, GREY, "dense, before"), (values.ravel(), BLUE, "expert 0, after"),
                                   (values[mask].ravel(), ORANGE, "expert 0, drawn anew")):
            if data.size:
                axes[m].hist(data, edges, density=True, histtype="step", color=colour, label=name, lw=1.3)
        axes[m].set(title=kind, xlabel="weight")
        axes[m].xaxis.set_major_locator(MaxNLocator(5))
    axes[0].set_ylabel("density")
    beside(axes[2])
    return image(figure, "histograms-%d" % layer, "Weights of layer %d; the dense ones as far as some expert kept them" % layer)


def most_ranks(ledger, most=48):
    ranks = np.unique(ledger.timeline["rank"])
    return ranks if len(ranks) <= most else ranks[np.linspace(0, len(ranks) - 1, most).astype(int)]


def timeline(ledger):
    t, ranks = ledger.timeline, most_ranks(ledger)
    figure, axis = plt.subplots(figsize=(10, 1.4 + 0.22 * len(ranks)))
    for p, phase in enumerate(ledger.phases):
        for y, rank in enumerate(ranks):
            mine = (t["rank"] == rank) & (t["phase"] == p)
            bars = list(zip(t["start"][mine], np.maximum(t["seconds"][mine], 1e-4)))
            axis.broken_barh(bars, (y - 0.38, 0.76), color=PHASE_COLOURS.get(phase, GREY),
                             label=phase if y == 0 else None)
    axis.set(xlabel="seconds", ylabel="rank", title="what each rank did when")
    axis.set_yticks(range(len(ranks)), ranks)
    axis.invert_yaxis()
    axis.margins(y=0.02)
    beside(axis)
    return image(figure, "timeline", "Phases of each rank")


def throughput(ledger):
    t, ranks = ledger.timeline, most_ranks(ledger)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3))
    ends = float((t["start"] + t["seconds"]).max())
    grid = np.linspace(0, ends, 200)
    for name, colour in (("bytes_read", GREEN), ("bytes_written", BLUE)):
        rate = np.zeros_like(grid)
        for start, seconds, size in zip(t["start"], t["seconds"], t[name]):
            if seconds > 0:
                rate += np.where((grid >= start) & (grid < start + seconds), size / seconds, 0)
        left.plot(grid, rate / 1e9, color=colour, label=name.replace("bytes_", ""))
    left.set(xlabel="seconds", ylabel="GB/s, all ranks", title="throughput")
    left.legend(fontsize=8, ncols=2, loc="lower left", bbox_to_anchor=(0.0, 1.08), frameon=False)
    busy = t["bytes_written"] > 0
    per_rank = [t["bytes_written"][busy & (t["rank"] == r)].sum() / max(t["seconds"][busy & (t["rank"] == r)].sum(), 1e-9)
                for r in ranks]
    right.bar(range(len(ranks)), np.array(per_rank) / 1e9, color=BLUE)
    right.set(xlabel="rank", ylabel="GB/s while writing", title="each rank")
    right.set_xticks(range(len(ranks)), ranks, fontsize=7)
    return image(figure, "throughput", "Rates of reading and writing")
