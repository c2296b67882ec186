"""What is installed: it works from another place, and cannot be told to fail as the tests' programs can."""

import os
import pathlib
import shutil
import tempfile
import unittest

import runner


class Install(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(tempfile.mkdtemp(prefix="mgr-install-"))
        cls.addClassCleanup(shutil.rmtree, cls.folder, ignore_errors=True)
        cls.prefix = cls.folder / "prefix"
        built = runner.BIN.parent
        done = runner.run([os.environ.get("CMAKE", "cmake"), "--install", built, "--prefix", cls.prefix])
        assert done.status == 0, str(done)

    def test_no_fault_can_be_planted(self):
        for place, status in ((runner.BIN, runner.IO_ERROR), (self.prefix / "bin", 0)):
            out = self.folder / place.name
            result = runner.run([place / "mgr-synth", "-q", out], env={"MGR_FAULT": "pwrite:1"})
            self.assertEqual(result.status, status, str(result))
            shutil.rmtree(out, ignore_errors=True)

    def test_programs(self):
        for name in ("mgr-upcycle", "mgr-inspect", "mgr-synth", "mgr-bench"):
            result = runner.run([self.prefix / "bin" / name, "--version"])
            self.assertEqual((result.status, result.err), (0, ""), str(result))


if __name__ == "__main__":
    unittest.main()
