"""tools/docs: each page's shell blocks run as they stand there; errors have the words that the page says; no link is dead."""

import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

import runner
import test_terminal

DOCS = runner.ROOT / "tools" / "docs"


class Docs(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.place = pathlib.Path(folder.name)

    def walk(self, page):
        """One script of a page's blocks; mpiexec is the one that the programs were built with."""
        blocks = re.findall(r"^```sh\n(.*?)^```$", (DOCS / page).read_text(), re.M | re.S)
        self.assertTrue(blocks, page)
        launch = " ".join(runner.launcher(0)[:-2])
        script = self.place / "walk.sh"
        script.write_text('set -eu\nmpiexec() { command %s "$@"; }\n%s' % (launch, "\n".join(blocks)))
        work = self.place / pathlib.Path(page).stem
        work.mkdir()
        path = "%s:%s" % (runner.BIN.resolve(), os.environ["PATH"])
        result = runner.run(["bash", script], 120, env={"PATH": path}, cwd=work)
        self.assertEqual(result.status, 0, str(result))
        return result, work

    def test_every_walk(self):
        """Of the pages that have one."""
        for page in sorted(DOCS.glob("*.md")):
            if "```sh\n" in page.read_text():
                with self.subTest(page=page.name):
                    result, work = self.walk(page.name)
                    getattr(self, "of_" + page.stem.replace("-", "_"), self.of_any)(result, work)

    def of_any(self, result, work):
        self.assertNotEqual(result.out, "")

    def of_laptop(self, result, work):
        self.assertRegex(result.out, r"step 0 +(?!not )\w")  # of the copies
        self.assertTrue((work / "moe" / "config.json").is_file() and (work / "copies" / "config.json").is_file())

    def of_megatron(self, result, work):
        self.assertIn("--tensor-model-parallel-size 2", result.out)

    def of_site(self, result, work):
        self.assertEqual((result.out.count("64 ranks read"), result.out.count("already complete")), (2, 1))

    def of_llm_jp(self, result, work):
        files = list((work / "8x13B-TP2PP4EP4" / "release").iterdir())
        self.assertEqual((len(files), files[0].name[:8]), (2 * 4 * 4, "mp_rank_"))
        self.assertIn("--moe-grouped-gemm", result.out)
        self.assertRegex(result.out, r"[1-9]\d* logical tensors compared, 0 differ")

    def of_from_scripts(self, result, work):
        self.assertEqual(len(re.findall(r"[1-9]\d* logical tensors compared, 0 differ", result.out)), 2)

    def of_formats(self, result, work):
        self.assertEqual(len(re.findall(r"[1-9]\d* logical tensors compared, 0 differ", result.out)), 6)

    def of_cards(self, result, work):
        known = json.loads((work / "checked" / "verification.json").read_text())
        manifest = work / "moe" / runner.MANIFEST
        self.assertEqual(known["manifest"]["sha256"], hashlib.sha256(manifest.read_bytes()).hexdigest())
        self.assertEqual(known["target"]["files"], json.loads(manifest.read_text())["files"])
        sizes = {p.name: p.stat().st_size for p in (work / "moe").iterdir() if p.name != runner.MANIFEST}
        self.assertEqual(known["target"]["bytes"], sum(sizes.values()))
        self.assertEqual(known["target"]["parameters"] * 2, known["target"]["weight_bytes"])
        text = (work / "cards" / "VERIFICATION.md").read_text()
        step = json.loads(manifest.read_text())["step_zero"]["text"]
        for word in ("`mpiexec -n 2 mgr-upcycle moe.yaml`", "| step 0 | %s |" % step, *sizes):
            self.assertIn(word, text)
        self.assertIn("by `drop` with ratio 0.5", (work / "cards" / "MODEL_CARD.md").read_text())

    def test_a_card_of_what_was_changed(self):
        config, out = self.place / "run.yaml", self.place / "Mixtral-x"
        self.assertEqual(runner.upcycle(runner.write_config(config, runner.synth(self.place / "dense"), out)).status, 0)
        with open(out / "model-00002-of-00002.safetensors", "r+b") as file:
            file.seek(-2, os.SEEK_END)
            file.write(b"!!")

        def card(*words):
            return runner.run([runner.program("mgr-card"), *words])

        for words, status, said in (
            ((out, "--check"), 1, "model-00002-of-00002.safetensors"), ((self.place / "no",), 66, "does not exist"),
            ((self.place / "dense",), 65, "has no mgr-manifest.json"), (("--chekc", out), 64, "--chekc"),
            ((out, "-o", out), 73, "strangers"),
        ):  # fmt: skip
            result = card(*words)
            self.assertEqual((result.status, result.out, len(result.errors())), (status, "", 1), str(result))
            self.assertIn(said, result.err)
        self.assertFalse((self.place / "Mixtral-x.cards").exists())
        self.assertEqual([card(out).status, card(out).status, card(out, "--force").status], [0, 73, 0])

    def test_a_card_of_several_sources(self):
        """Each with its revision: of the hub's cache by its path, of a download by its notes."""
        commits = ("0123456789abcdef" * 3)[:40], ("fedcba9876543210" * 3)[:40]
        cached, loaded = self.place / "snapshots" / commits[0], self.place / "loaded"
        cached.parent.mkdir()
        for folder, seed in ((cached, 1), (loaded, 2)):
            runner.synth_folder(folder, "--seed", seed)
        notes = loaded / ".cache" / "huggingface" / "download"
        notes.mkdir(parents=True)
        (notes / "config.json.metadata").write_text(commits[1] + "\nan etag\n1.5\n")
        config, out = self.place / "mix.yaml", self.place / "moe"
        config.write_text(
            "sources: [%s, {path: %s}]\nupcycle: {method: branch-train-mix, experts: 4}\n"
            "target: {path: %s, format: huggingface}\n" % (cached, loaded, out)
        )
        self.assertEqual(runner.upcycle(config).status, 0)
        self.assertEqual(runner.run([runner.program("mgr-card"), out]).status, 0)
        known = json.loads((self.place / "moe.cards" / "verification.json").read_text())
        self.assertEqual([s["revision"] for s in known["source"]["of"]], list(commits))
        self.assertEqual(len({f["header_xxh3"] for f in known["source"]["files"]}), 3)  # one config.json, two weights
        for name in ("MODEL_CARD.md", "VERIFICATION.md"):
            text = (self.place / "moe.cards" / name).read_text()
            for word in (*commits, str(cached), str(loaded), "4 experts" if name[0] == "M" else "`mpiexec -n N mgr-upcycle CONFIG`"):
                self.assertIn(word, text)

    def test_errors(self):
        rows = re.findall(r"^\| (.*?) \| (\d+) \|", (DOCS / "errors.md").read_text(), re.M)
        source, out = runner.synth(self.place / "dense"), self.place / "Mixtral-x"
        moe = runner.synth_folder(self.place / "moe", "--experts", 4)
        cut = runner.synth_folder(self.place / "cut")
        (weights,) = cut.glob("*.safetensors")
        os.truncate(weights, weights.stat().st_size // 2)
        nan = runner.synth_folder(self.place / "nan")
        (weights,) = nan.glob("*.safetensors")
        with open(weights, "r+b") as file:
            file.seek(-2, os.SEEK_END)
            file.write(b"\xc0\x7f")
        path = self.place / "run.yaml"
        texts = list(test_terminal.ERRORS.values()) + [
            (text, ("--dry-run",))
            for text in (
                "source: {path: SOURCE}\ntarget: {path: SOURCE}\n", "target: {path: OUT}\n",
                "source: {path: }\ntarget: {path: OUT}\n", "source: {path: SOURCE}\ntarget: {path: OUT/no/x}\n",
                "source: {path: SOURCE}\ntarget: {path: OUT}\nupcycle: {ratio: 2}\n",
                "source: {path: SOURCE}\ntarget: {path: OUT}\nupcycle: {experts: 2, top_k: 3}\n",
                "source: {path: SOURCE}\ntarget: {path: OUT}\nupcycle: {expert_width: 48, slices: 2}\n",
                "source: {path: %s}\ntarget: {path: OUT}\nupcycle: {experts: 3}\n" % moe, "source: {path: %s}\ntarget: {path: OUT}\n" % cut,
                "source: {path: %s}\ntarget: {path: OUT}\n" % self.place,
            )
        ] + [("source: {path: %s}\ntarget: {path: OUT}\n" % nan, ())]  # fmt: skip
        said = []
        for text, words in texts:
            path.write_text(text.replace("SOURCE", str(source)).replace("OUT", str(out)))
            result = runner.run([runner.program("mgr-upcycle"), *words, path])
            said.append((result.status, result.err))
        taken = self.place / "Mixtral-taken"
        self.assertEqual(runner.upcycle(runner.write_config(path, source, taken)).status, 0)
        result = runner.upcycle(runner.write_config(path, source, taken, upcycle__seed=5))
        said.append((result.status, result.err))
        for words, status in rows:
            self.assertIn(int(status), [s for s, err in said if words in err], "%s\n%s" % (words, said))

    def build_site(self):
        site = self.place / "site"
        result = runner.run([sys.executable, DOCS / "build.py", site, "--program", runner.program("mgr-upcycle")])
        self.assertEqual((result.status, result.out, result.err), (0, "", ""), str(result))
        return site

    def test_no_link_is_dead(self):
        pages = sorted(DOCS.glob("*.md"))
        listed = (DOCS / "README.md").read_text()
        for page in pages:
            for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
                self.assertTrue((DOCS / link).is_file(), "%s: %s" % (page.name, link))
            if page.name != "README.md":
                self.assertIn("(%s)" % page.name, listed)
        site = self.build_site()
        built = sorted(p.stem for p in site.glob("*.html"))
        self.assertEqual(built, sorted(p.stem if p.name != "README.md" else "index" for p in pages))
        # what of markdown a page may have, has become a page's: nothing of it shows
        for page in site.glob("*.html"):
            text = re.sub(r"<pre>.*?</pre>|<code>.*?</code>", "", page.read_text(), flags=re.S)
            self.assertNotRegex(text, r"\]\(|\*\*|^\||```|^#|\0", page.name)
        self.assertIn("target.expert_names", (site / "keys.html").read_text())

    def test_a_dead_link_is_noticed(self):
        sys.path.insert(0, str(DOCS))
        self.addCleanup(sys.path.remove, str(DOCS))
        import build

        (self.place / "a.html").write_text('<h1 id="x"></h1><a href="b.html"></a><a href="#y"></a><a href="#x"></a>')
        self.assertEqual(len(list(build.check_links(self.place))), 2)

    def test_the_search_in_a_browser(self):
        browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        if not browser:
            self.assertNotEqual(os.environ.get("CI"), "true", "no chromium")
            self.skipTest("no chromium (Debian: apt-get install chromium)")
        page = self.build_site() / "index.html"
        dom = subprocess.run(
            [browser, "--headless", "--no-sandbox", "--disable-gpu", "--user-data-dir=%s" % (self.place / "profile"),
             "--dump-dom", page.as_uri() + "?q=expert_names+grouped"],
            capture_output=True, text=True, timeout=120, check=True,
        ).stdout  # fmt: skip
        found = re.search(r'<ul id="found">(.*?)</ul>', dom, re.S)[1]
        self.assertIn('href="llm-jp.html#', found)
        self.assertNotIn('href="site.html', found)


if __name__ == "__main__":
    unittest.main()
