"""tools/docs: each page's shell blocks run as they stand there; errors have the words that the page says; no link is dead."""

import os
import pathlib
import re
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
        work = self.place / "work"
        work.mkdir()
        path = "%s:%s" % (runner.BIN.resolve(), os.environ["PATH"])
        result = runner.run(["bash", script], 120, env={"PATH": path}, cwd=work)
        self.assertEqual(result.status, 0, str(result))
        return result, work

    def test_laptop(self):
        result, work = self.walk("laptop.md")
        self.assertRegex(result.out, r"step 0 +(?!not )\w")  # of the copies
        self.assertTrue((work / "moe" / "config.json").is_file() and (work / "copies" / "config.json").is_file())

    def test_megatron(self):
        result, work = self.walk("megatron.md")
        self.assertIn("--tensor-model-parallel-size 2", result.out)

    def test_site(self):
        result, work = self.walk("site.md")
        self.assertEqual((result.out.count("64 ranks read"), result.out.count("already complete")), (2, 1))

    def test_errors(self):
        rows = re.findall(r"^\| (.*?) \| (\d+) \|", (DOCS / "errors.md").read_text(), re.M)
        source, out = runner.synth(self.place / "dense"), self.place / "Mixtral-x"
        texts = list(test_terminal.ERRORS.values()) + [("source: {path: SOURCE}\ntarget: {path: SOURCE}\n", ("--dry-run",))]
        said = []
        for text, words in texts:
            path = self.place / "run.yaml"
            path.write_text(text.replace("SOURCE", str(source)).replace("OUT", str(out)))
            result = runner.run([runner.program("mgr-upcycle"), *words, path])
            said.append((result.status, result.err))
        taken = self.place / "Mixtral-taken"
        self.assertEqual(runner.upcycle(runner.write_config(path, source, taken)).status, 0)
        result = runner.upcycle(runner.write_config(path, source, taken, upcycle__seed=5))
        said.append((result.status, result.err))
        for words, status in rows:
            self.assertIn(int(status), [s for s, err in said if words in err], "%s\n%s" % (words, said))

    def test_no_link_is_dead(self):
        pages = sorted(DOCS.glob("*.md"))
        listed = (DOCS / "README.md").read_text()
        for page in pages:
            for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
                self.assertTrue((DOCS / link).is_file(), "%s: %s" % (page.name, link))
            if page.name != "README.md":
                self.assertIn("(%s)" % page.name, listed)


if __name__ == "__main__":
    unittest.main()
