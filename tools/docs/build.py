#!/usr/bin/env python3
"""A site of these pages, with a search: usage: tools/docs/build.py FOLDER [--program MGR-UPCYCLE]

FOLDER, which is made, can be opened as it lies, or put behind any web server. Every key is asked of
the program. Python's standard library is enough. Exit: 0 done; 1 a link leads nowhere; 2 usage.
"""

import argparse
import html
import json
import pathlib
import re
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
STYLE = """
:root { --back: #fff; --text: #222; --dim: #666; --line: #ddd; --box: #f5f5f2; --link: #0b57d0; color-scheme: light dark }
@media (prefers-color-scheme: dark) { :root { --back: #181a1b; --text: #ddd; --dim: #999; --line: #3a3d3f; --box: #232627; --link: #8ab4f8 } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); margin: 0; display: grid; grid-template-columns: 16em minmax(0, 50em); gap: 3em }
nav { padding: 1.5em; border-right: 1px solid var(--line); min-height: 100vh; box-sizing: border-box }
nav ul, #found { list-style: none; padding: 0 } nav li { margin: .45em 0; line-height: 1.3 } nav .here { font-weight: bold }
main { padding: 1em 1em 4em } h1 { font-size: 1.7em } h2 { font-size: 1.2em; margin-top: 2em; border-bottom: 1px solid var(--line) }
a { color: var(--link); text-decoration: none } a:hover { text-decoration: underline }
code { background: var(--box); padding: .1em .25em; border-radius: 3px; font-size: .9em; overflow-wrap: anywhere }
pre { background: var(--box); padding: 1em; overflow-x: auto; border-radius: 4px } pre code { padding: 0; background: none }
.wide { overflow-x: auto } table { border-collapse: collapse } td { min-width: 8em } td:first-child { min-width: 4em } td:first-child code, th code { overflow-wrap: normal } td, th { text-align: left; padding: .35em 1em .35em 0; vertical-align: top } tr + tr td, tbody td { border-top: 1px solid var(--line) }
input { width: 100%; box-sizing: border-box; font: inherit; padding: .3em .5em; margin: .8em 0 } #found small { color: var(--dim); display: block }
@media (max-width: 50em) { body { display: block } nav { min-height: 0; border: 0 } }
"""
# Every word must be in a section; those in its title count more.
SEARCH = """
function search(words) {
  const wanted = words.toLowerCase().split(/\\s+/).filter(Boolean), list = document.getElementById("found");
  const hits = wanted.length ? sections.map(s => [wanted.reduce((sum, w) => {
    const title = (s.page + " " + s.title).toLowerCase().includes(w), text = s.text.toLowerCase().includes(w);
    return sum < 0 || !(title || text) ? -1 : sum + (title ? 5 : 1); }, 0), s]).filter(h => h[0] > 0) : [];
  hits.sort((a, b) => b[0] - a[0]);
  list.replaceChildren(...hits.slice(0, 12).map(([, s]) => {
    const item = document.createElement("li"), link = document.createElement("a"), where = document.createElement("small");
    link.href = s.url; link.textContent = s.title; where.textContent = s.page;
    item.append(link, where); return item; }));
  if (wanted.length && !hits.length) list.textContent = "nothing found";
}
addEventListener("DOMContentLoaded", () => {
  const box = document.getElementById("q"), asked = new URLSearchParams(location.search).get("q");
  box.addEventListener("input", () => search(box.value));
  if (asked) { box.value = asked; search(asked); }
});
"""
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>%(title)s - mgr-upcycle</title><link rel="stylesheet" href="style.css"><script src="search.js"></script></head>
<body><nav><a href="index.html"><b>mgr-upcycle</b></a><input id="q" type="search" aria-label="search"><ul id="found"></ul>
<ul>%(menu)s</ul></nav><main>%(body)s</main></body></html>
"""


def slug(text):
    return re.sub(r"[^\w]+", "-", re.sub(r"[`*]", "", text).lower()).strip("-")


def inline(text):
    """`code`, **bold**, [links](to) of one line."""
    kept = []

    def keep(markup):
        kept.append(markup)
        return "\0%d\0" % (len(kept) - 1)

    text = re.sub(r"`([^`]+)`", lambda m: keep("<code>%s</code>" % html.escape(m[1])), text)
    text = re.sub(r"\\([\\`*_{}\[\]()#+.!|<>-])", lambda m: keep(html.escape(m[1])), text)
    text = html.escape(text, quote=False)
    text = re.sub(r"\*\*([^*]+)\*\*", r"<b>\1</b>", text)
    text = re.sub(r"\[([^\]]+)\]\(([^)\s]+)\)", lambda m: '<a href="%s">%s</a>' % (target(m[2]), m[1]), text)
    return re.sub(r"\0(\d+)\0", lambda m: kept[int(m[1])], text)


def target(link):
    if re.match(r"[a-z]+:", link):
        return html.escape(link)
    page, hash_, anchor = link.partition("#")
    page = "index.html" if page == "README.md" else re.sub(r"\.md$", ".html", page)
    return page + hash_ + anchor


def cells(line):
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]


def table(lines):
    head, rows = cells(lines[0]), [cells(line) for line in lines[2:]]
    out = '<div class="wide"><table>'
    if any(head):
        out += "<thead><tr>%s</tr></thead>" % "".join("<th>%s</th>" % inline(c) for c in head)
    return out + "<tbody>%s</tbody></table></div>" % "".join(
        "<tr>%s</tr>" % "".join("<td>%s</td>" % inline(c) for c in row) for row in rows
    )


def listing(lines):
    items = re.split(r"^[-*] ", "\n".join(lines), flags=re.M)[1:]
    return "<ul>%s</ul>" % "".join("<li>%s</li>" % inline(" ".join(item.split())) for item in items)


def code(lines):
    return "<pre><code>%s</code></pre>" % html.escape("\n".join(lines).strip("\n"))


def blocks(text):
    """(kind, lines) of a page, one after the other."""
    lines, i = text.split("\n"), 0
    while i < len(lines):
        start = i
        if lines[i].startswith("```"):
            i += 1
            while not lines[i].startswith("```"):
                i += 1
            i += 1
            yield "code", lines[start + 1 : i - 1]
        elif not lines[i].strip():
            i += 1
        elif lines[i].startswith("#"):
            i += 1
            yield "title", lines[start:i]
        else:
            kind = "table" if lines[i].startswith("|") else "list" if re.match(r"[-*] ", lines[i]) else "text"
            kind = "indented" if lines[i].startswith("    ") else kind
            while i < len(lines) and lines[i].strip() and not re.match(r"#|```", lines[i]):
                i += 1
            yield kind, lines[start:i]


def render(text):
    """HTML of a page, and its sections: (anchor, title, words)."""
    out, sections = [], []
    for kind, lines in blocks(text):
        if kind == "title":
            level, title = re.match(r"(#+) +(.*)", lines[0]).groups()
            plain = re.sub(r"[`*]|\\(?=[_*])", "", title)
            sections.append([slug(title), plain, ""])
            out.append('<h%d id="%s">%s</h%d>' % (len(level), slug(title), inline(title), len(level)))
            continue
        make = {"code": code, "table": table, "list": listing}.get(kind)
        if kind == "indented":
            out.append(code([line[4:] for line in lines]))
        else:
            out.append(make(lines) if make else "<p>%s</p>" % inline(" ".join(lines)))
        sections[-1][2] += " ".join(lines) + " "
    return "\n".join(out), sections


def read_pages(program):
    """{name: text}, in the order of the list in README.md."""
    front = (HERE / "README.md").read_text()
    names = ["README.md", *dict.fromkeys(re.findall(r"\]\(([\w-]+\.md)\)", front))]
    pages = {name: (HERE / name).read_text() for name in names if (HERE / name).is_file()}
    keys = subprocess.run([program, "--keys", "markdown"], check=True, capture_output=True, text=True).stdout
    pages["keys.md"] = pages["keys.md"].rstrip() + "\n\n" + keys
    return pages


def check_links(site):
    """What leads nowhere: files, and places in them."""
    places = {p.name: set(re.findall(r' id="([^"]+)"', p.read_text())) for p in site.glob("*.html")}
    for name in sorted(places):
        for link in re.findall(r'href="([^"]+)"', (site / name).read_text()):
            page, _, anchor = link.partition("#")
            if re.match(r"[a-z]+:", link):
                continue
            if not (site / (page or name)).is_file() or (anchor and anchor not in places[page or name]):
                yield "%s: '%s' leads nowhere" % (name, link)


def build(site, program):
    pages = read_pages(program)
    titles = {name: re.match(r"# +(.*)", text)[1] for name, text in pages.items()}
    site.mkdir(parents=True, exist_ok=True)
    index = []
    for name, text in pages.items():
        body, sections = render(text)
        menu = "".join(
            '<li%s><a href="%s">%s</a></li>' % (' class="here"' if other == name else "", target(other), inline(titles[other]))
            for other in pages if other != "README.md"
        )  # fmt: skip
        (site / target(name)).write_text(PAGE % {"title": html.escape(titles[name]), "menu": menu, "body": body})
        index += [
            {"page": titles[name], "title": title, "url": target(name) + "#" + anchor, "text": words}
            for anchor, title, words in sections
        ]
    (site / "style.css").write_text(STYLE)
    (site / "search.js").write_text("const sections = %s;\n%s" % (json.dumps(index), SEARCH))
    return list(check_links(site))


def main():
    parser = argparse.ArgumentParser(usage=__doc__.split("usage: ")[1].split("\n")[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--program", default="mgr-upcycle")
    options = parser.parse_args()
    dead = build(options.folder, options.program)
    print("\n".join(dead), end="\n" if dead else "")
    return 1 if dead else 0


if __name__ == "__main__":
    sys.exit(main())
