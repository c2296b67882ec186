"""--resume: a run that was killed or stopped goes on, does not do again what the journal names, and
ends with the bytes of an undisturbed run."""

import fcntl
import os
import re
import shutil
import unittest

import runner
from test_faults import STAGING, Faulty

RANKS = 3


class Resumed(Faulty):
    def start(self, fault, *options):
        """A run in which rank 1 dies; every unit is journaled as soon as it is written."""
        return runner.upcycle(
            self.config,
            np=RANKS,
            options=["--journal", "0", *options],
            env={"MGR_FAULT": f"rank:1,{fault}"},
            timeout=30,
        )

    def resume(self, np=RANKS, *options):
        return runner.upcycle(self.config, np=np, options=["--resume", *options])

    def staging(self):
        return [path for path in self.outputs.iterdir() if STAGING in path.name]

    def written(self, result):
        return re.search(r"^written +([\d.]+ \w+)", result.out, re.M).group(1)

    def test_killed_anywhere(self):
        amounts = []
        for call in ("pwrite:1", "pwrite:6", "pwrite:12", "pwrite:20", "fsync:1", "fsync:9"):
            with self.subTest(killed_at=call):
                self.clean()
                self.assertNotEqual(self.start(call + ":kill").status, 0)
                self.assertEqual(len(self.staging()), 1)
                result = self.resume()
                self.assertEqual(result.status, 0, str(result))
                self.assert_complete(str(result))
                amounts.append(self.written(result))
        self.assertGreater(len(set(amounts)), 2, amounts)  # the later the kill, the less is left

    def test_killed_twice(self):
        self.clean()
        self.assertNotEqual(self.start("pwrite:9:kill").status, 0)
        self.assertNotEqual(self.start("pwrite:5:kill", "--resume").status, 0)
        result = self.resume()
        self.assertEqual(result.status, 0, str(result))
        self.assert_complete(str(result))

    def test_killed_while_publishing(self):
        self.clean()
        killed = runner.upcycle(
            self.config, np=RANKS, options=["--journal", "0"], env={"MGR_FAULT": "rank:0,rename:1:kill"}
        )
        self.assertNotEqual(killed.status, 0)
        result = self.resume()
        self.assertEqual(result.status, 0, str(result))
        self.assert_complete(str(result))

    def test_nothing_to_resume_begins(self):
        self.clean()
        result = self.resume()
        self.assertEqual(result.status, 0, str(result))
        self.assert_complete(str(result))

    def test_a_torn_journal(self):
        """What a crash left of the last block is passed over."""
        self.clean()
        self.start("pwrite:20:kill")
        for journal in self.staging()[0].glob(".mgr-journal/rank-*"):
            content = journal.read_bytes()
            journal.write_bytes(content[: max(0, len(content) - 11)] + b"\0" * 5)
        result = self.resume()
        self.assertEqual(result.status, 0, str(result))
        self.assert_complete(str(result))

    def test_another_number_of_ranks_and_memory(self):
        """A requeued job may have others; what is there is not done again."""
        for np, memory in ((1, "2GiB"), (4, "64MiB"), (3, "3GiB")):
            with self.subTest(ranks=np, memory=memory):
                self.clean()
                self.start("pwrite:20:kill")
                result = self.resume(np, "--set", "memory_per_rank=" + memory)
                self.assertEqual(result.status, 0, str(result))
                self.assertRegex(result.out, r"(?m)^resumed +[1-9]")
                self.assert_complete(str(result))

    def test_what_is_complete_is_left_alone(self):
        self.clean()
        self.assertEqual(self.resume().status, 0)
        before = runner.hashes(self.target, skip=())
        result = self.resume(2)
        self.assertEqual(result.status, 0, str(result))
        self.assertIn("already complete", result.out)
        self.assertEqual(runner.hashes(self.target, skip=()), before)
        result = self.resume(2, "--set", "upcycle.seed=99")
        self.assertEqual(result.status, runner.CANNOT_CREATE, str(result))
        self.assertIn("another configuration", result.err)

    def test_a_leftover_of_another_configuration_is_named(self):
        self.clean()
        self.start("pwrite:20:kill")
        left = self.staging()[0].name
        result = self.resume(2, "--set", "upcycle.seed=99")
        self.assertEqual(result.status, 0, str(result))
        self.assertIn(left, result.err)
        self.assertTrue((self.outputs / left).exists())

    def test_a_changed_source_is_refused(self):
        self.clean()
        other = self.folder / "other"
        shutil.rmtree(other, ignore_errors=True)
        shutil.copytree(self.source, other)
        config, self.config = self.config, runner.write_config(
            self.folder / "other.yaml", other, self.target
        )
        try:
            self.start("pwrite:20:kill")
            shutil.rmtree(other)
            runner.synth(other, tp=2, pp=2, seed=8)
            result = self.resume()
            self.assertEqual(result.status, runner.CANNOT_CREATE, str(result))
            self.assertIn("cannot resume: the source has changed", result.errors()[0])
            self.assertIn("model_optim_rng.pt", result.errors()[0])
        finally:
            self.config = config

    def test_a_run_that_is_alive_is_left_alone(self):
        """As long as a process holds the staging directory nobody else may touch it."""
        self.clean()
        self.start("pwrite:9:kill")
        before = runner.hashes(self.staging()[0])
        holder = os.open(self.staging()[0], os.O_RDONLY)
        fcntl.flock(holder, fcntl.LOCK_EX)
        for option in ("--resume", "--force"):
            result = runner.upcycle(self.config, np=RANKS, options=[option])
            self.assertEqual(result.status, runner.CANNOT_CREATE, str(result))
            self.assertIn("another run is writing", result.errors()[0])
            self.assertEqual(runner.hashes(self.staging()[0]), before)
        os.close(holder)
        self.assertEqual(self.resume().status, 0)
        self.assert_complete("")

    def test_force_and_resume_together(self):
        result = self.resume(1, "--force")
        self.assertEqual(result.status, 64, str(result))


if __name__ == "__main__":
    unittest.main()
