"""A stop in every phase of a run on a slow file system (tests/support/slow_files.c: 10 ms for each call, and 200 ms from the
phase in question on): within 5 seconds each rank ends in order with 75, there is one message, and --resume makes the
bytes of an undisturbed run. Then a result whose MPI_Finalize hangs. With the project's MPI and with the other one
(MGR_BIN_OPENMPI names a build with Open MPI that is there); `timeout -s KILL` guards both from outside.

mpirun of Open MPI ends its processes a second after SIGTERM, whatever they do, but hands SIGUSR1 on: so there the job
scripts send that one. Hydra of MPICH 4.0 now and then loses status and message of what it was told to stop; so each process
notes its own status."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "cli"))
import openmpi  # noqa: E402
import runner  # noqa: E402

SECONDS = 5
SLOW = 10  # milliseconds for each call
FORMATS = {
    "megatron-torch": dict(target__format="megatron-torch", target__tensor_parallel=2, target__expert_parallel=4,
                           target__sha256=True),
    "hdf5": dict(target__format="hdf5", target__compression="deflate", target__expert_parallel=4),
}
PHASES = {
    "megatron-torch": ("headers", "make files", "weights", "sync", "settle", "ledger", "hash", "checksums", "verify",
                       "publish"),
    "hdf5": ("make files", "settle", "pack", "verify", "publish"),
}


class Signals(unittest.TestCase):
    stop, loses = signal.SIGTERM, True
    env = {}

    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(tempfile.mkdtemp(prefix="mgr-signals-"))
        cls.addClassCleanup(shutil.rmtree, cls.folder, ignore_errors=True)
        cls.source = runner.synth(cls.folder / "dense", layers=2, tp=2, pp=2, vocab=200)
        cls.choose_mpi()

    @classmethod
    def choose_mpi(cls):
        cls.bin, cls.launcher = runner.BIN, runner.launcher(2)

    def config(self, name, changes):
        return runner.write_config(self.folder / (name + ".yaml"), self.source, self.folder / ("Mixtral-" + name), **changes)

    def start(self, config, *options, preload=os.environ.get("MGR_SLOW_FILES", ""), guard=120):
        self.more, self.ends = self.folder / "more", self.folder / "ends"
        for path in (self.more, self.ends):
            path.unlink(missing_ok=True)
        slow = ["env", "LD_PRELOAD=" + preload, "SLOW_UNDER=%s/" % self.folder, "SLOW_MS=%d" % SLOW,
                "SLOW_MORE=%s" % self.more, "SLOW_ENDS=%s" % self.ends]
        words = [*self.launcher, *slow, self.bin / "mgr-upcycle", *options, config]
        return subprocess.Popen(["timeout", "-s", "KILL", str(guard)] + [str(word) for word in words], text=True,
                                env=dict(os.environ, **self.env), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE)

    def launchers(self, run):
        """mpiexec below `timeout`, which hands on none of our signals but SIGTERM."""
        return [int(pid) for pid in pathlib.Path("/proc/%d/task/%d/children" % (run.pid, run.pid)).read_text().split()]

    def stopped_in(self, config, phase):
        """How many seconds it took, how all processes ended, the launcher's status, and all that was said."""
        run = self.start(config, "--log-json", "--progress", "1")
        seen = []
        for line in run.stdout:
            event = json.loads(line)
            seen.append(event)
            if event["event"] == "phase" and event["phase"] == phase:
                break
        else:
            self.fail("no phase %s: %s\n%s" % (phase, seen, run.stderr.read()))
        begin = time.monotonic()
        self.more.touch()
        for pid in self.launchers(run):
            os.kill(pid, self.stop)
        out, err = run.communicate()
        wanted = 2 if self.loses else 1  # Open MPI kills the others once one has ended, too
        while len(ends := self.ends.read_text().split() if self.ends.exists() else []) < wanted:
            self.assertLess(time.monotonic() - begin, 30, "some rank does not end: " + out + err)
            time.sleep(0.02)
        return time.monotonic() - begin, [int(end) for end in ends], run.returncode, out, err

    def whole(self, name, changes):
        config = self.config("whole-" + name, changes)
        done = self.start(config, "-q", preload="")
        said = done.communicate()
        self.assertEqual(done.returncode, 0, said)
        return self.hashes("whole-" + name)

    def hashes(self, name):  # model.h5 quotes the configuration
        return runner.hashes(self.folder / ("Mixtral-" + name), (runner.MANIFEST, runner.LEDGER, "model.h5", "integrity.json"))

    def check(self, name):
        expected = self.whole(name, FORMATS[name])
        for phase in PHASES[name]:
            with self.subTest(format=name, phase=phase):
                target = "%s-%s" % (name, phase.replace(" ", "-"))
                config = self.config(target, FORMATS[name])
                seconds, ends, status, out, err = self.stopped_in(config, phase)
                print("%s %-14s %-10s %.2f s, exit %d" % (type(self).__name__, name, phase, seconds, status), flush=True)
                self.assertEqual(set(ends), {runner.INTERRUPTED}, out + err)
                self.assertLess(seconds, SECONDS, out + err)
                errors = [line for line in err.splitlines() if "error:" in line]
                if status:  # what the launcher did not lose
                    self.assertEqual((status, len(errors)), (runner.INTERRUPTED, 1), err)
                    self.assertIn("stopped by " + self.stop.name, errors[0])
                self.assertTrue(status or self.loses)
                self.assertFalse((self.folder / ("Mixtral-" + target)).exists())
                again = self.start(config, "-q", "--resume", preload="")
                said = again.communicate()
                self.assertEqual(again.returncode, 0, said)
                self.assertEqual(self.hashes(target), expected)

    def test_megatron_torch(self):
        self.check("megatron-torch")

    def test_hdf5_packed(self):
        self.check("hdf5")

    def test_each_phase_says_how_far_it_is(self):
        """Of what it has to do, in plain units; no line is too long."""
        for name, some in (("megatron-torch", ("settle", "ledger", "verify", "hash")), ("hdf5", ("pack", "verify"))):
            run = self.start(self.config("said-" + name, FORMATS[name]), "--log-json", "--progress", "0.01")
            events = [json.loads(line) for line in run.communicate()[0].splitlines()]
            self.assertEqual(run.returncode, 0)
            for phase in some:
                said = [e for e in events if e["event"] == "progress" and e["phase"] == phase]
                self.assertTrue(said, phase)
                done = [e["done"] for e in said]
                self.assertTrue(all(0 < d <= e["done_of"] for d, e in zip(done, said)), said)

    def test_a_finalize_that_hangs(self):
        begin = time.monotonic()
        config = self.config("stuck", {})
        run = self.start(config, "-q", preload=os.environ["MGR_STUCK_FINALIZE"], guard=60)
        out, err = run.communicate()
        print("%s stuck MPI_Finalize: %.1f s, exit %d" % (type(self).__name__, time.monotonic() - begin, run.returncode))
        self.assertNotEqual(run.returncode, -signal.SIGKILL, "the outer guard had to end it")
        self.assertEqual((out + err).count("MPI did not end within"), 1, out + err)
        self.assertTrue((self.folder / "Mixtral-stuck" / "config.json").exists())


@unittest.skipIf(openmpi.missing(), openmpi.missing())
class SignalsWithOpenMpi(Signals):
    stop, loses = signal.SIGUSR1, False
    env = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}

    @classmethod
    def choose_mpi(cls):
        cls.bin = openmpi.programs(cls.folder)
        cls.launcher = ["mpiexec.openmpi", "--oversubscribe", "-n", "2"]


if __name__ == "__main__":
    unittest.main()
