#!/usr/bin/env python3
"""One self-contained HTML page about a run: usage: tools/report LEDGER [-o PAGE] [--layer N]...

LEDGER is provenance.h5 or the folder that holds it; the weights beside it are looked at, too, if
they are of Hugging Face's names (safetensors or HDF5). Needs tools/requirements-report.txt, which
tools/venv.sh installs: .venv/bin/python tools/report OUTPUT -o report.html

Exit: 0 all checks passed; 1 one failed; 2 usage.
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import checks  # noqa: E402
import pictures  # noqa: E402
import tables  # noqa: E402
from ledger import Ledger, Weights  # noqa: E402
from pictures import escape  # noqa: E402

STYLE = """
:root { --back: #fff; --text: #222; --dim: #666; --line: #ddd; --box: #f6f6f4; --pass: #2c6e1f; --fail: #b00; color-scheme: light dark }
@media (prefers-color-scheme: dark) {
  :root { --back: #181a1b; --text: #ddd; --dim: #999; --line: #3a3d3f; --box: #232627; --pass: #7cc36b; --fail: #ff7b72 }
  img { filter: invert(.9) hue-rotate(180deg) }
}
body { font: 15px/1.45 system-ui, sans-serif; color: var(--text); background: var(--back); max-width: 1120px; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin-top: 2em; border-bottom: 1px solid var(--line) }
table { border-collapse: collapse } td, th { text-align: left; padding: .25em 1em .25em 0; vertical-align: top }
tr + tr td { border-top: 1px solid var(--line) } figure { margin: 1em 0 } img { max-width: 100% }
td.number { text-align: right; font-variant-numeric: tabular-nums } td { overflow-wrap: anywhere }
table[id^="experts-"] td { overflow-wrap: normal }
figcaption { color: var(--dim); font-size: .9em } pre { background: var(--box); padding: 1em; overflow-x: auto }
.pass { color: var(--pass); font-weight: bold } .fail { color: var(--fail); font-weight: bold } .none { color: var(--dim) }
"""


def row(*cells):
    return "<tr>%s</tr>" % "".join("<td>%s</td>" % escape(str(cell)) for cell in cells)


def check_row(what, outcome, detail):
    word = {True: "pass", False: "fail", None: "none"}[outcome]
    shown = {"pass": "pass", "fail": "FAIL", "none": "not looked at"}[word]
    return '<tr><td class="%s">%s</td><td>%s</td><td>%s</td></tr>' % (
        word, shown, escape(what), escape(detail))


def sections(ledger, weights, chosen, found):
    yield "Checks", '<table id="checks">%s</table>' % "".join(check_row(*check) for check in found)
    yield "Paths", "<table id=\"paths\">%s</table>" % "".join(row(*path) for path in ledger.paths())
    facts = dict(ledger.run, peak_memory="%.1f MiB, the largest rank" % (ledger.peak_rss.max() / 2**20))
    yield "Run", "<table>%s</table>" % "".join(row(key, value) for key, value in facts.items())
    if ledger.has_experts:
        yield "Expected and measured", tables.expectations(ledger, weights, chosen)
        yield "Overlap of experts", pictures.overlap(ledger, chosen[0])
        yield "Statistics by layer", pictures.statistics(ledger, weights)
        for i in chosen:
            layer = "Layer %d" % ledger.layers[i]
            yield layer + ": experts", tables.experts(ledger, weights, i)
            if weights is not None:
                yield layer + ": weights", pictures.histograms(ledger, weights, i)
    yield "Ranks", pictures.timeline(ledger) + pictures.throughput(ledger)
    yield "Source", "<table>%s</table>" % "".join(
        row(f["path"], f["bytes"], f["records_xxh3"]) for f in ledger.sources)
    yield "Configuration", "<pre>%s</pre>" % escape(ledger.config)


def page(ledger, weights, chosen, found):
    body = "".join("<h2>%s</h2>%s" % part for part in sections(ledger, weights, chosen, found))
    title = escape("mgr-upcycle: %s to %s" % (ledger.run["source_format"], ledger.run["target_format"]))
    return ('<!doctype html><html lang="en"><meta charset="utf-8"><title>%s</title><style>%s</style>'
            "<h1>%s</h1>%s</html>\n" % (title, STYLE, title, body))


def choose(ledger, wanted):
    """Places of the layers that are asked for; the first with experts if none is."""
    if not ledger.has_experts:
        return []
    places = {int(layer): i for i, layer in enumerate(ledger.layers)}
    for layer in wanted:
        if layer not in places:
            sys.exit("tools/report: error: layer %d has no experts" % layer)
    return [places[layer] for layer in dict.fromkeys(wanted)] or [0]


def open_ledger(path):
    """The ledger, or one line that says why not."""
    try:
        return Ledger(path)
    except FileNotFoundError:
        why = "there is none"
    except (OSError, KeyError, ValueError, UnicodeDecodeError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
    sys.exit("tools/report: error: no ledger in '%s': %s\nhint: give the folder that mgr-upcycle wrote, or its "
             "provenance.h5" % (pictures.plain(path), pictures.plain(why)))


def main():
    parser = argparse.ArgumentParser(prog="tools/report", description=__doc__.splitlines()[0])
    parser.add_argument("ledger", type=pathlib.Path)
    parser.add_argument("-o", "--output", type=pathlib.Path, default=pathlib.Path("report.html"))
    parser.add_argument("--layer", type=int, action="append", default=[], metavar="N",
                        help="one to look into, may be repeated; the first with experts")
    options = parser.parse_args()
    path = options.ledger / "provenance.h5" if options.ledger.is_dir() else options.ledger
    ledger = open_ledger(path)
    chosen = choose(ledger, options.layer)
    weights = Weights(path.parent)
    if not all(weights.has(ledger.layers[i]) for i in chosen) or not chosen:
        weights = None
    found = checks.run_checks(ledger, weights, chosen)
    try:
        options.output.write_text(page(ledger, weights, chosen, found))
    except OSError as error:
        sys.exit("tools/report: error: cannot write '%s': %s" % (pictures.plain(options.output), error.strerror))
    failed = [what for what, outcome, _ in found if outcome is False]
    print("%s: %d checks, %d failed" % (options.output, len(found), len(failed)))
    for what in failed:
        print("failed: " + what)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
