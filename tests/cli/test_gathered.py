"""Experts whose neurons come from anywhere, with more ranks than hold a whole matrix each: their rows are
gathered and written together, with the bytes of a run that has whole matrices, and such a run goes on."""

import itertools
import re
import unittest

import runner
from test_faults import Faulty

SMALL = ["--unit-bytes", "4KiB"]  # of matrices of 96 rows of 128 bytes
WAYS = {
    "permuted": dict(upcycle__shuffle=True),
    "copies": dict(upcycle__method="noise", upcycle__shuffle=True),
    "cut": dict(upcycle__expert_width=44, upcycle__cut="shuffled", upcycle__scale="exact"),
    "dist": dict(upcycle__shuffle=True, target__format="megatron-dist"),
}


class Gathered(Faulty):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.source = runner.synth(cls.folder / "one", layers=1, tp=2)

    def begin(self, **changes):
        """What one rank makes of it, which holds each matrix whole."""
        self.clean()
        self.config = runner.write_config(self.folder / "run.yaml", self.source, self.target, **changes)
        result = runner.upcycle(self.config, np=1)
        self.assertEqual(result.status, 0, str(result))
        self.expected = runner.hashes(self.target)
        self.clean()

    def test_same_bytes(self):
        for name, changes in WAYS.items():
            self.begin(**changes)
            for np, options in itertools.product((2, 3), ([], SMALL)):
                with self.subTest(way=name, ranks=np, options=options):
                    self.clean()
                    result = runner.upcycle(self.config, np=np, options=options)
                    self.assertEqual(result.status, 0, str(result))
                    self.assert_complete(str(result))

    def test_nodes_are_not_seen(self):
        """The same bytes where ranks go round nodes, and work is dealt in another order than theirs; such a run goes
        on, too, on other nodes and in their order."""
        for way in ("permuted", "dist"):
            self.begin(**WAYS[way])
            for np, nodes in ((3, 2), (5, 2), (6, 4)):
                with self.subTest(way=way, ranks=np, nodes=nodes):
                    self.clean()
                    result = runner.upcycle(self.config, np=np, options=SMALL, env={"MGR_FAULT": "nodes:%d" % nodes})
                    self.assertEqual(result.status, 0, str(result))
                    self.assert_complete(str(result))
            self.clean()
            stop = {"MGR_FAULT": "nodes:2,rank:1,pwrite:20:term"}
            options = ["--journal", "0", *SMALL]
            result = runner.upcycle(self.config, np=3, options=options, env=stop)
            self.assertEqual(result.status, runner.INTERRUPTED, str(result))
            result = runner.upcycle(self.config, np=5, options=["--resume", *SMALL], env={"MGR_FAULT": "nodes:3"})
            self.assertEqual(result.status, 0, str(result))
            self.assert_complete(str(result))

    def test_rows_are_written_together(self):
        """In windows of a unit with few ranks and in whole matrices with as many experts; not one by one, which
        would be 4 x 96 for each of gate and up."""
        self.begin(**WAYS["permuted"])
        for np in (2, 3, 64):
            result = runner.upcycle(self.config, np=1, options=["--dry-run", "--ranks", str(np), "-v", *SMALL])
            self.assertEqual(result.status, 0, str(result))
            reads, writes = map(int, re.search(r"^calls +(\d+) reads and (\d+) writes", result.out, re.M).groups())
            self.assertLess(writes, 4 * 96, str(result))
            if np < 4:
                self.assertLess(reads, 4 * 96, str(result))

    def test_it_goes_on_as_it_was_cut(self):
        """Whole matrices, windows of rows and rows one by one say different things of the same units."""
        stopped = 0
        self.begin(**WAYS["permuted"])
        for first, then in itertools.permutations(((1, []), (2, SMALL), (3, SMALL)), 2):
            for call in ("pwrite:5", "pwrite:20"):
                with self.subTest(first=first, then=then, killed_at=call):
                    self.clean()
                    fault = {"MGR_FAULT": "rank:0,%s:kill" % call}
                    killed = runner.upcycle(
                        self.config, np=first[0], options=["--journal", "0", *first[1]], env=fault, timeout=30
                    )
                    stopped += killed.status != 0
                    result = runner.upcycle(self.config, np=then[0], options=["--resume", *then[1]])
                    self.assertEqual(result.status, 0, str(result))
                    self.assert_complete(str(result))
        self.assertGreater(stopped, 6)  # of 12


if __name__ == "__main__":
    unittest.main()
