"""The tables: what was to be expected beside what was measured, and the experts of a layer."""

import numpy as np

from checks import expected_overlap, wanted_sizes
from ledger import KINDS
from pictures import SAMPLE, escape

MOST_EXPERTS = 64


def table(name, head, rows):
    """Cells that are numbers are set right; all are text of files."""
    cells = "".join("<th>%s</th>" % escape(cell) for cell in head)
    lines = []
    for row in rows:
        parts = ('<td class="number">%s</td>' % cell if isinstance(cell, (int, float)) else "<td>%s</td>" % escape(cell)
                 for cell in row)
        lines.append("<tr>%s</tr>" % "".join(parts))
    return '<table id="%s"><tr>%s</tr>%s</table>' % (name, cells, "".join(lines))


def span(values):
    values = np.asarray(values, float)
    if not values.size:
        return "-"
    low, high = values.min(), values.max()
    return "%.4f" % low if high - low < 5e-5 else "%.4f to %.4f" % (low, high)


def comparable(ledger):
    """Are all experts made of the same neurons, each in its place?"""
    same = ledger.run["neurons"] == ledger.run.get("source_neurons", ledger.run["neurons"])
    return same and not ledger.of_mixture and not ledger.run["shuffle"]


def cosines(ledger, weights, i):
    """Of each pair of experts of a layer, over gate, up and down, from at most SAMPLE values of each."""
    rows = []
    for expert in range(ledger.experts):
        parts = []
        for kind in KINDS:
            values = weights.neurons(int(ledger.layers[i]), expert, kind).ravel()
            parts.append(values[:: max(1, values.size // SAMPLE)].astype(np.float64))
        row = np.concatenate(parts)
        rows.append(row / max(np.linalg.norm(row), 1e-300))
    gram = np.array(rows) @ np.array(rows).T
    return gram[np.triu_indices(ledger.experts, 1)]


def cosine_row(ledger, weights, i):
    what = "cosine of two experts, layer %d" % ledger.layers[i]
    if not comparable(ledger):
        return what, "-", "experts are not made of the same neurons in the same places"
    r = wanted_sizes(ledger)[i] / ledger.run["neurons"]
    known = ledger.run["method"] in ("drop", "naive") and np.ptp(r) == 0
    expected = "(1 - r)^2 = %.4f" % ((1 - r[0]) ** 2) if known else "-"
    if weights is None:
        return what, expected, "no weights that this reads"
    found = cosines(ledger, weights, i)
    return what, expected, "%s, mean %.4f" % (span(found), found.mean()) if found.size else "one expert"


def expectations(ledger, weights, chosen):
    kept, shared = span(1 - wanted_sizes(ledger) / ledger.run["neurons"]), span(expected_overlap(ledger))
    n = ledger.run["neurons"]
    changed = ledger.selected if not ledger.of_mixture else ledger.selected[ledger.selected > 0]
    rows = [("share of neurons kept", kept, span(1 - changed / n))]
    off = ledger.overlap[:, ~np.eye(ledger.experts, dtype=bool)]
    if off.size and comparable(ledger):
        rows.append(("overlap of what two experts keep", "1 - r = " + shared, "%s, mean %.4f" % (span(off), off.mean())))
    rows += [cosine_row(ledger, weights, i) for i in chosen]
    if ledger.run["router"] == "uniform":
        rows.append(("spread of the routers", "0.0200", span(ledger.router["std"])))
    rows.append(("step 0", ledger.step_zero(), "as the run said; tests/interop/test_step_zero.py measures"))
    return table("expected", ("what", "expected", "measured"), rows)


def experts(ledger, weights, i):
    """One line each: what was drawn from, and what is there."""
    lines, layer = [], int(ledger.layers[i])
    shown = min(ledger.experts, MOST_EXPERTS)
    for expert in range(shown):
        line = [expert, "%.4f" % (1 - ledger.selected[i, expert].mean() / ledger.run["neurons"])]
        for m, kind in enumerate(KINDS):
            mean, std = ledger.mean[i, expert, m], ledger.std[i, expert, m]
            line.append("%.2e, %.5f" % (mean, std) if ledger.selected[i, expert, m] and np.isfinite(std) else "-")
            if weights is not None:
                line.append("%.5f" % weights.neurons(layer, expert, kind).astype(np.float64).std())
        line.append("%08x" % ledger.crc32[i, expert, 0])
        lines.append(line)
    head = ["expert", "kept"]
    for kind in KINDS:
        head += [kind + " drawn from: mean, std"] + (["std now"] if weights is not None else [])
    more = "<p>%d more are in the ledger.</p>" % (ledger.experts - shown) if shown < ledger.experts else ""
    return table("experts-%d" % layer, [*head, "CRC-32 of gate"], lines) + more
