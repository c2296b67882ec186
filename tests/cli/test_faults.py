"""Calls that fail, ranks that are killed, runs that are stopped: one message, one exit code, no hang,
and the target is there whole or not at all. The faults are planted by the hook of src/io/fault.h,
which builds with tests have."""

import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time
import unittest

import runner

NEVER = 1000000  # no run makes so many calls
THREADS = {1: 1, 2: 3, 3: 0}  # by ranks: what writes is that rank, or threads of it
STAGING = ".partial-"
OLD = {"config.json": b"an older run's", "model.safetensors": b"\0" * 4096}

# Each call with the error it fails with, the exit code, and which of the calls.
FAULTS = [
    ("pread:%d", runner.IO_ERROR, (1, 2, 5)),
    ("pwrite:%d", runner.IO_ERROR, (1, 2, 5)),
    ("pwrite:%d:ENOSPC", runner.CANNOT_CREATE, (1, 2, 5)),
    ("fsync:%d", runner.IO_ERROR, (1, 2, 5)),
    ("fsync:%d:ENOSPC", runner.CANNOT_CREATE, (1, 2, 5)),
    ("create:%d", runner.CANNOT_CREATE, (1, 2, 5)),
    ("rename:%d", runner.CANNOT_CREATE, (1,)),
    ("space:%d", runner.CANNOT_CREATE, (1,)),
]


def alive(word):
    """Processes that have `word` in their command line: ranks that outlived their launcher."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word.encode() in path.read_bytes():
                found.append(path.parent.name)
        except OSError:
            pass
    return found


class Faulty(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(tempfile.mkdtemp(prefix="mgr-faults-"))
        cls.addClassCleanup(shutil.rmtree, cls.folder, ignore_errors=True)
        cls.source = runner.synth(cls.folder / "dense", tp=2, pp=2)
        cls.outputs = cls.folder / "out"  # nothing but the target may stay here
        cls.target = cls.outputs / "Mixtral"
        cls.config = runner.write_config(cls.folder / "run.yaml", cls.source, cls.target)
        cls.outputs.mkdir()
        undisturbed = runner.upcycle(cls.config, np=1)
        assert undisturbed.status == 0, str(undisturbed)
        cls.expected = runner.hashes(cls.target)

    def clean(self, old=False):
        shutil.rmtree(self.outputs, ignore_errors=True)
        self.outputs.mkdir()
        if old:
            self.target.mkdir()
            for name, content in OLD.items():
                (self.target / name).write_bytes(content)

    def run_with(self, fault, np, force=False, discard=True):
        threads = ["--set", "io_threads=%d" % THREADS[np]]
        return runner.upcycle(
            self.config,
            np=np,
            options=["--force"] * force + ["--discard"] * discard + threads,
            env={"MGR_FAULT": fault} if fault else None,
            timeout=30,
        )

    def left(self):
        return sorted(os.listdir(self.outputs))

    def assert_old(self, told):
        self.assertEqual({p.name: p.read_bytes() for p in self.target.iterdir()}, OLD, told)

    def assert_complete(self, told):
        self.assertEqual(self.left(), [self.target.name], told)
        self.assertEqual(runner.hashes(self.target), self.expected, told)

    def attempt(self, fault, status, np, old=False, reached=True):
        """One run with a fault. If it need not be reached the run may also succeed; so it may if what
        fails is only a look at what kind of source this is."""
        reached = reached and "pread:2" not in fault
        with self.subTest(fault=fault, ranks=np, old=old):
            self.clean(old)
            result = self.run_with(fault, np, force=old)
            told = str(result)
            if result.status == 0 and not reached:
                self.assertEqual(result.errors(), [], told)
                self.assert_complete(told)
                return
            self.assertEqual(result.status, status, told)
            self.assertEqual(len(result.errors()), 1, told)
            self.assertLessEqual(result.err.count("hint:"), 1, told)
            self.assertEqual(self.left(), [self.target.name] if old else [], told)
            if old:
                self.assert_old(told)


class Fails(Faulty):
    """A call fails on one rank or on all."""

    def each(self):
        for form, status, counts in FAULTS:
            for k in counts:
                yield form % k, status

    def test_one_rank(self):
        for fault, status in self.each():
            self.attempt(fault, status, np=1)
            self.attempt(fault, status, np=1, old=True)

    def test_three_ranks_all_fail(self):
        for fault, status in self.each():
            self.attempt(fault, status, np=3)

    def test_three_ranks_the_first_fails(self):
        for fault, status in self.each():
            self.attempt("rank:0," + fault, status, np=3, old=True)

    def test_three_ranks_the_last_fails(self):
        """It reads and writes as the others do; what the first rank does alone it may never do."""
        for fault, status in self.each():
            reached = fault.startswith(("pread", "pwrite")) or fault in ("fsync:1", "fsync:2")
            self.attempt("rank:2," + fault, status, np=3, reached=reached)

    def test_never_reached(self):
        for np in (1, 3):
            for form, _, _ in FAULTS:
                with self.subTest(fault=form, ranks=np):
                    self.clean(old=True)
                    result = self.run_with(form % NEVER, np, force=True)
                    self.assertEqual((result.status, result.errors()), (0, []), str(result))
                    self.assert_complete(str(result))

    def test_each_step_of_publishing(self):
        """Whichever sync or rename it is, and however the file system renames, a failing run leaves
        the old output and a run that reports success has replaced it."""
        for form in ("fsync:%d", "rename:%d"):
            for k in range(1, 40):
                self.clean(old=True)
                result = self.run_with(form % k, 1, force=True)
                told = "%s\n%s" % (form % k, result)
                if result.status == 0:
                    self.assert_complete(told)
                    break
                self.assertEqual(self.left(), [self.target.name], told)
                self.assert_old(told)
            else:
                self.fail("%s never succeeded" % form)

    def test_no_thread_can_be_started(self):
        """What was asked for is an error where it cannot be had; what was not is done without."""
        for threads, status in (("auto", 0), ("2", runner.OS_ERROR)):
            for k in (1, 2):  # the first is that of the run's sign of life
                self.clean()
                options = ["--discard", "--set", "io_threads=" + threads]
                result = runner.upcycle(self.config, np=1, options=options, env={"MGR_FAULT": "thread:%d" % k})
                if k == 2:
                    self.assertEqual((result.status, len(result.errors())), (status, status != 0), str(result))
                if result.status == 0:
                    self.assert_complete(str(result))
                else:
                    self.assertIn("io_threads: 0", result.err)
                    self.assertEqual(self.left(), [], str(result))

    def test_file_system_without_exchange(self):
        for np in (1, 3):
            for old in (False, True):
                self.clean(old)
                result = self.run_with("rename:2:EINVAL", np, force=old)
                self.assertEqual(result.status, 0, str(result))
                self.assert_complete(str(result))


class Kept(Faulty):
    """Without --discard a failure behind the first written byte leaves what there is, and says how to
    go on; one before leaves nothing."""

    def test_failures_that_a_later_run_may_not_have(self):
        for fault, status, np in (
            ("pwrite:9:ENOSPC", runner.CANNOT_CREATE, 1),
            ("rank:1,pwrite:9", runner.IO_ERROR, 2),
            ("rank:1,fsync:1", runner.IO_ERROR, 2),
            ("rank:0,rename:2:EACCES", runner.CANNOT_CREATE, 2),
        ):
            with self.subTest(fault=fault):
                self.clean()
                result = self.run_with(fault, np, discard=False)
                self.assertEqual(result.status, status, str(result))
                self.assertRegex(result.err, "hint: .*continue with --resume")
                self.assertEqual(result.err.count("hint:"), 1, str(result))
                left = self.left()
                self.assertEqual(len(left), 1, str(result))
                self.assertIn(STAGING, left[0])
                result = runner.upcycle(self.config, np=np, options=["--resume"])
                self.assertEqual(result.status, 0, str(result))
                self.assert_complete(str(result))

    def test_before_the_first_byte(self):
        for fault in ("create:1", "space:1", "probe:1:EDQUOT", "probe:2:EACCES"):
            with self.subTest(fault=fault):
                self.clean()
                result = self.run_with(fault, 1, discard=False)
                self.assertEqual(result.status, runner.CANNOT_CREATE, str(result))
                self.assertEqual(len(result.errors()), 1, str(result))
                self.assertEqual(self.left(), [], str(result))

    def test_discard_removes_a_leftover_too(self):
        self.clean()
        self.run_with("pwrite:9:ENOSPC", 1, discard=False)
        result = runner.upcycle(
            self.config, np=1, options=["--resume", "--discard"], env={"MGR_FAULT": "rename:2"}
        )
        self.assertEqual(result.status, runner.CANNOT_CREATE, str(result))
        self.assertEqual(self.left(), [], str(result))


class Killed(Faulty):
    """SIGKILL of a rank; the launcher ends the others."""

    def kill(self, fault, np, old):
        self.clean(old)
        result = self.run_with(fault + ":kill", np, force=old)
        told = str(result)
        self.assertNotEqual(result.status, 0, told)
        until = time.monotonic() + 10
        while alive(str(self.config)) and time.monotonic() < until:
            time.sleep(0.05)
        self.assertEqual(alive(str(self.config)), [], told)
        staging = [name for name in self.left() if STAGING in name]
        self.assertEqual(len(staging), 1, told)
        self.assertEqual(self.left(), sorted(staging + [self.target.name] * old), told)
        if old:
            self.assert_old(told)
        return staging[0]

    def test_killed(self):
        for np, fault in (
            (1, "pwrite:1"),
            (1, "fsync:1"),
            (1, "rename:1"),
            (3, "pwrite:2"),
            (3, "rank:0,pwrite:5"),
            (3, "rank:2,pwrite:1"),
            (3, "rank:2,fsync:1"),
            (3, "rename:1"),
        ):
            for old in (False, True):
                with self.subTest(fault=fault, ranks=np, old=old):
                    staging = self.kill(fault, np, old)
                    if not old:
                        self.refused(staging, np)
                    result = self.run_with(None, np, force=True)
                    self.assertEqual((result.status, result.errors()), (0, []), str(result))
                    self.assert_complete(str(result))

    def refused(self, staging, np):
        """What a killed run left is not touched unasked, and a dry run never touches it."""
        result = self.run_with(None, np)
        self.assertEqual(result.status, runner.CANNOT_CREATE, str(result))
        self.assertEqual(len(result.errors()), 1, str(result))
        self.assertIn(staging, result.errors()[0])
        self.assertRegex(result.err, "hint: .*--force")
        self.assertEqual(self.left(), [staging], str(result))
        result = runner.upcycle(self.config, np=np, options=["--dry-run", "--force"])
        self.assertEqual(result.status, 0, str(result))
        self.assertEqual(self.left(), [staging], str(result))


class Stopped(Faulty):
    """Signals that ask a run to stop, while it writes 1.6 GB."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.large = runner.synth(cls.folder / "large", layers=4, hidden=512, ffn=2048, heads=8)
        cls.config = runner.write_config(
            cls.folder / "large.yaml", cls.large, cls.target, upcycle__experts=64
        )

    def stop(self, signal_number, launcher=()):
        self.clean()
        words = [*launcher, runner.program("mgr-upcycle"), self.config]
        process = subprocess.Popen(
            [str(word) for word in words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self.addCleanup(process.kill)
        until = time.monotonic() + 60
        while not list(self.outputs.glob("*/*.safetensors")) and process.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.3)  # it is at work by then
        self.assertIsNone(process.poll(), "it was over before it could be stopped")
        process.send_signal(signal_number)
        out, err = process.communicate(timeout=60)
        result = runner.Result(words, process.returncode, out.decode(), err.decode())
        left = self.left()
        if "--resume" in result.err:  # a run that can go on leaves what it has
            self.assertEqual([name for name in left if STAGING not in name], [], str(result))
        else:
            self.assertEqual(left, [], str(result))
        self.assertFalse(self.target.exists(), str(result))
        return result

    def test_alone(self):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            with self.subTest(signal=number):
                result = self.stop(number)
                self.assertEqual(result.status, runner.INTERRUPTED, str(result))
                self.assertEqual(len(result.errors()), 1, str(result))
                self.assertIn("stopped by " + number.name, result.err)
                self.assertRegex(result.err, r"[\d.]+ %  .* left")  # how far it got

    def test_launcher(self):
        """MPICH's passes the signal on, and may then end with 0 whatever the ranks say."""
        result = self.stop(signal.SIGTERM, runner.launcher(3))
        self.assertLessEqual(len(result.errors()), 1, str(result))
        self.assertEqual(alive(str(self.config)), [], str(result))

    def test_reader_that_went_away(self):
        self.clean()
        config = runner.write_config(self.folder / "small.yaml", self.source, self.target)
        reading, writing = os.pipe()
        os.close(reading)
        words = [runner.program("mgr-upcycle"), config]
        status = subprocess.run(words, stdout=writing, timeout=60).returncode
        os.close(writing)
        self.assertEqual(status, 0)
        self.assert_complete("")


if __name__ == "__main__":
    unittest.main()
