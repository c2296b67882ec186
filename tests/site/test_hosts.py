"""Two hosts that share a file system: same bytes as on one; a host that dies; a cable that is cut.

All of it with MPICH and with Open MPI, for which the project is built anew (MGR_BIN_OPENMPI names a build that is there).
`timeout -s KILL` guards each run from outside, as a batch system's limit would. MPICH of Debian 12 (ch4:ucx) hangs in
MPI_Finalize between hosts now and then; the program then ends by itself, and the guard ends what remains of the launcher. So
not MPICH's status but the target is looked at, as the job scripts do; with Open MPI the status counts, too. Where a host dies
MPICH's mpiexec ends at once; Open MPI's waits for the guard, as both do where a cable is cut."""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "cli"))
import openmpi  # noqa: E402
import runner  # noqa: E402
from hosts import Hosts  # noqa: E402


def missing():
    if os.geteuid() != 0:
        return "needs root for namespaces"
    lacking = [name for name in ("ip", "unshare", "nsenter", "mpiexec.mpich") if not shutil.which(name)]
    return "no program " + lacking[0] if lacking else ""


@unittest.skipIf(missing(), missing())
class TwoHosts(unittest.TestCase):
    mpi = "mpich"

    @classmethod
    def choose_mpi(cls):
        cls.bin = runner.BIN

    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(tempfile.mkdtemp(prefix="mgr-hosts-"))
        cls.addClassCleanup(shutil.rmtree, cls.folder, ignore_errors=True)
        cls.source = runner.synth(cls.folder / "dense", layers=8, hidden=512, ffn=1408, heads=8, vocab=8000)
        config = cls.config("one")
        done = runner.upcycle(config, np=2)
        assert done.status == 0, str(done)
        cls.expected = runner.hashes(cls.folder / "Mixtral-one")
        cls.choose_mpi()

    @classmethod
    def config(cls, name):
        return runner.write_config(cls.folder / (name + ".yaml"), cls.source, cls.folder / ("Mixtral-" + name))

    def launch(self, hosts, config, options=(), limit=60):
        """4 ranks on h1 and h2, behind an outer guard; what is said goes to a file, which no rank that is left holds up."""
        tail = [self.bin / "mgr-upcycle", "-q", *options, config]
        where = ["--host", "h1:2,h2:2", "-n", 4] if self.mpi == "openmpi" else ["-n", 4, "-hosts", "h1,h2"]
        argv = getattr(hosts, self.mpi)(where + tail)
        self.said = hosts.folder / "said"
        with open(self.said, "w") as said:
            return subprocess.Popen(["timeout", "-s", "KILL", str(limit)] + argv, stdin=subprocess.DEVNULL,
                                    stdout=said, stderr=subprocess.STDOUT)

    def ended(self, run, what):
        run.wait()
        print("%s %s: exit %d" % (type(self).__name__, what, run.returncode), flush=True)

    def whole(self, name):
        self.assertEqual(runner.hashes(self.folder / ("Mixtral-" + name)), self.expected)

    def wait_for_staging(self, name):
        until = time.monotonic() + 30
        while not list(self.folder.glob("Mixtral-%s.partial-*/model*" % name)):
            self.assertLess(time.monotonic(), until, "the run does not begin to write")
            time.sleep(0.01)

    def test_same_bytes_as_on_one_host(self):
        with Hosts(self.folder / "net-same", 2) as hosts:
            run = self.launch(hosts, self.config("two"))
            self.ended(run, "whole")
            self.assertTrue((self.folder / "Mixtral-two").exists(), self.said.read_text())
            if self.mpi == "openmpi":
                self.assertEqual(run.returncode, 0, self.said.read_text())
        self.whole("two")

    def test_a_host_that_dies_leaves_nothing_published_and_resume_goes_on(self):
        config = self.config("dies")
        with Hosts(self.folder / "net-dies", 2) as hosts:
            run = self.launch(hosts, config, ["--journal", "0"])
            self.wait_for_staging("dies")
            hosts.kill("h2")
            self.ended(run, "host killed")
            self.assertNotEqual(run.returncode, 0)
            self.assertFalse((self.folder / "Mixtral-dies").exists())
        done = runner.upcycle(config, np=3, options=["--resume"])
        self.assertEqual(done.status, 0, str(done))
        self.whole("dies")

    def test_a_cut_cable_publishes_nothing_and_the_outer_limit_ends_it(self):
        config = self.config("cut")
        with Hosts(self.folder / "net-cut", 2) as hosts:
            run = self.launch(hosts, config, ["--journal", "0"], limit=25)
            self.wait_for_staging("cut")
            hosts.cut("h2")
            self.ended(run, "cable cut")
            self.assertNotEqual(run.returncode, 0)
            self.assertFalse((self.folder / "Mixtral-cut").exists())
        done = runner.upcycle(config, np=2, options=["--resume"])
        self.assertEqual(done.status, 0, str(done))
        self.whole("cut")


@unittest.skipIf(openmpi.missing(), openmpi.missing())
class TwoHostsWithOpenMpi(TwoHosts):
    mpi = "openmpi"

    @classmethod
    def choose_mpi(cls):
        cls.bin = openmpi.programs(cls.folder)


SFTP = "/usr/lib/openssh/sftp-server"


def lacks_mounts():
    lacking = [name for name in ("sshfs", SFTP, "/dev/fuse") if not shutil.which(name) and not os.path.exists(name)]
    return missing() or ("no %s" % lacking[0] if lacking else "")


@unittest.skipIf(lacks_mounts(), lacks_mounts())
class OneMountForEachHost(unittest.TestCase):
    """sshfs, without ssh, straight to its server: two clients with caches of their own, and no lock of one reaches the
    other. On a slow disk (tests/support/slow_files.c), so that the first run is alive when the second comes."""

    def start(self, hosts, name, *options, slow="0"):
        words = ["env", "LD_PRELOAD=" + os.environ.get("MGR_SLOW_FILES", ""), "SLOW_UNDER=%s" % self.mount, "SLOW_MS=" + slow]
        return subprocess.Popen(["timeout", "-s", "KILL", "120"] + hosts.enter(name) + words +
                                [str(runner.BIN / "mgr-upcycle"), "-q", *options, str(self.config)],
                                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def begin(self, hosts):
        run = self.start(hosts, "h1", "--journal", "0", slow="40")
        until = time.monotonic() + 60
        while not list(self.real.glob("Mixtral.partial-*/.mgr-journal/alive")):
            self.assertTrue(time.monotonic() < until and run.poll() is None, "the run does not begin to write")
            time.sleep(0.05)
        return run

    def test_a_second_run_ends_in_one_sentence(self):
        folder = pathlib.Path(tempfile.mkdtemp(prefix="mgr-mounts-"))
        self.addCleanup(shutil.rmtree, folder, ignore_errors=True)
        self.real, self.mount = folder / "real", folder / "mount"
        self.real.mkdir()
        self.mount.mkdir()
        source = runner.synth(folder / "dense")
        local = runner.write_config(folder / "local.yaml", source, folder / "Mixtral-local")
        self.assertEqual(runner.upcycle(local).status, 0)
        self.config = runner.write_config(folder / "run.yaml", source, self.mount / "Mixtral")
        server = folder / "server"
        server.write_text("#!/bin/sh\nexec %s\n" % SFTP)
        server.chmod(0o755)
        with Hosts(folder / "net", 2) as hosts:
            for name in hosts.names:
                mount = ["sshfs", "-o", "ssh_command=%s" % server, "server:%s" % self.real, str(self.mount)]
                subprocess.run(hosts.enter(name) + mount, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            first = self.begin(hosts)
            for options in (["--resume"], ["--force"], []):
                second = self.start(hosts, "h2", *options)
                said = second.communicate()[0]
                self.assertEqual((second.returncode, said.count("error:")), (runner.CANNOT_CREATE, 1), said)
                self.assertRegex(said, "error: another run is writing '.*', on host 'h1'\nhint: wait for it, or stop it")
            self.assertIsNone(first.poll(), "the first run was over: nothing was shown")
            said = first.communicate()[0]
            self.assertEqual(first.returncode, 0, said)
            self.same(folder)
            shutil.rmtree(self.real / "Mixtral")
            first = self.begin(hosts)  # one that is dead is no hindrance
            hosts.kill("h1")
            first.communicate()
            second = self.start(hosts, "h2", "--resume")
            said = second.communicate()[0]
            self.assertEqual(second.returncode, 0, said)
            self.same(folder)

    def same(self, folder):
        self.assertEqual(runner.hashes(self.real / "Mixtral"), runner.hashes(folder / "Mixtral-local"))


if __name__ == "__main__":
    unittest.main()
