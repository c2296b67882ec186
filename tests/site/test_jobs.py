"""configs/jobs: slurm.sh under a real Slurm, to the end, stopped by its signal, requeued and finished; pbs.sh and age.sh by
their grammar and under the variables that their schedulers set (of which there are no packages)."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "cli"))
import openmpi  # noqa: E402
import runner  # noqa: E402
import slurm  # noqa: E402

JOBS = runner.ROOT / "configs" / "jobs"


class Jobs(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(tempfile.mkdtemp(prefix="mgr-jobs-"))
        cls.addClassCleanup(shutil.rmtree, cls.folder, ignore_errors=True)
        cls.small = runner.synth(cls.folder / "small")
        # packing makes it long enough to be stopped
        cls.large = runner.synth(cls.folder / "large", layers=8, hidden=512, ffn=1408, heads=8, vocab=8000)

    @classmethod
    def config(cls, name, source, **changes):
        return runner.write_config(cls.folder / (name + ".yaml"), source, cls.folder / ("Mixtral-" + name), **changes)

    @classmethod
    def packed(cls, name):
        return cls.config(name, cls.large, target__format="hdf5", target__compression="deflate")

    def script(self, job, name, config, *edits):
        """The job script as a user would edit it."""
        text = (JOBS / job).read_text()
        edits = [(r"^bin=\S+", "bin=%s" % runner.BIN), (r"\bconfig=\S+", "config=%s" % config),
                 ("--progress 30", "--progress 1"), *edits]
        for pattern, value in edits:
            text, count = re.subn(pattern, value, text, count=1, flags=re.M)
            self.assertEqual(count, 1, pattern)
        path = self.folder / (name + ".sh")
        path.write_text(text)
        return path

    def same_as_in_one_go(self, name):
        whole = self.folder / "Mixtral-whole"
        if not whole.exists():
            done = runner.upcycle(self.packed("whole"), np=2, timeout=120)
            self.assertEqual(done.status, 0, str(done))
        skip = (runner.MANIFEST, runner.LEDGER, "model.h5")  # they quote settings
        self.assertEqual(runner.hashes(self.folder / ("Mixtral-" + name), skip), runner.hashes(whole, skip))


@unittest.skipIf(slurm.missing(), slurm.missing())
class UnderSlurm(Jobs):
    def slurm_script(self, name, config, *edits):
        return self.script("slurm.sh", name, config, (r"^#SBATCH --nodes=\d+", "#SBATCH --nodes=1"),
                           (r"^#SBATCH --ntasks-per-node=\d+", "#SBATCH --ntasks-per-node=2"), *edits)

    def test_whole_and_again_and_stopped_and_requeued(self):
        with slurm.Slurm(self.folder / "slurm") as site:
            script = self.slurm_script("plain", self.config("plain", self.small))
            for again in (False, True):
                state, code, log = site.run(script)
                self.assertEqual((state, code), ("COMPLETED", "0:0"), log)
                self.assertEqual("already complete" in log, again, log)
            # Slurm warns 55 s before the end of the first minute, give or take half of one; the disk is slow until then, so that
            # the run is at work; it restarts a requeued job after some time
            slow = self.folder / "slow"
            slow.touch()
            site.env.update(LD_PRELOAD=os.environ.get("MGR_SLOW_FILES", ""), SLOW_MS="2", SLOW_MORE=str(slow),
                            SLOW_UNDER="%s/Mixtral-requeued" % self.folder)
            script = self.slurm_script("requeued", self.packed("requeued"), ("02:00:00", "00:01:00"), ("TERM@300", "TERM@55"))
            state, code, log = site.run(script, seconds=800, until=("stopped by SIGTERM", slow.unlink))
            self.assertEqual((state, code), ("COMPLETED", "0:0"), log)
            self.assertIn("start 1", log)
            self.assertIn("stopped by SIGTERM", log)
            self.same_as_in_one_go("requeued")

    def test_the_chain_trains_with_what_was_printed(self):
        """chain.sh: slurm.sh to its end, then train.sh with the options of the target's trainer."""
        show = self.folder / "show"
        show.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
        show.chmod(0o755)
        with slurm.Slurm(self.folder / "slurm-chain") as site:
            for form, option in (("megatron-torch", "--num-experts"), ("moe-recipes", "--base-model")):
                place = self.folder / ("chain-" + form)
                place.mkdir()
                config = self.config("chain-" + form, self.small, target__format=form)
                self.slurm_script("slurm", config).rename(place / "slurm.sh")
                train = (JOBS / "train.sh").read_text()
                train = re.sub(r"^trainer=.*", "trainer=(%s)" % show, train, flags=re.M)
                (place / "train.sh").write_text(re.sub(r"^data=.*", "data=(--mock-data)", train, flags=re.M))
                chain = place / "chain.sh"
                chain.write_text((JOBS / "chain.sh").read_text().replace("train=$HOME/train.sh", "train=%s/train.sh" % place))
                said = subprocess.run(["bash", str(chain)], env=site.env, cwd=place, capture_output=True, text=True)
                self.assertEqual(said.returncode, 0, said.stderr)
                jobs = re.findall(r"job (\d+) (?:upcycles|trains)", said.stdout)
                self.assertEqual(len(jobs), 2, said.stdout)
                site.wait_for_end(jobs[1])
                log = (place / ("train-%s.log" % jobs[1])).read_text()
                self.assertEqual([site.field(job, "JobState") for job in jobs], ["COMPLETED"] * 2, log)
                words = log.splitlines()
                self.assertIn("--mock-data", words)
                self.assertIn(option, words, log)
                self.assertIn(str(self.folder / ("Mixtral-chain-" + form)), words)

    @unittest.skipIf(openmpi.missing(), openmpi.missing())
    def test_open_mpi_by_pmix(self):
        folder = openmpi.programs(self.folder)
        with slurm.Slurm(self.folder / "slurm-pmix") as site:
            if "pmix" not in site.ask("srun", "--mpi=list"):
                self.skipTest("this Slurm has no PMIx")
            script = self.slurm_script("pmix", self.config("pmix", self.small), (r"^bin=\S+", "bin=%s" % folder))
            state, code, log = site.run(script)
            self.assertEqual((state, code), ("COMPLETED", "0:0"), log)
            self.assertIn("2 ranks read", log)

    def test_a_step_without_an_mpi_is_refused(self):
        with slurm.Slurm(self.folder / "slurm-wrong") as site:
            script = self.slurm_script("wrong", self.config("wrong", self.small), ("--mpi=pmi2", "--mpi=none"))
            state, code, log = site.run(script)
            self.assertEqual(state, "FAILED", log)
            self.assertFalse((self.folder / "Mixtral-wrong").exists(), log)


class WithoutScheduler(Jobs):
    def run_job(self, script, **env):
        return subprocess.run(["bash", str(script)], env=dict(os.environ, PATH=str(self.folder / "bin") + ":" + os.environ["PATH"], **env),
                              cwd="/", capture_output=True, text=True, stdin=subprocess.DEVNULL)

    def setUp(self):
        (self.folder / "bin").mkdir(exist_ok=True)
        submitted = self.folder / "submitted"
        qsub = self.folder / "bin" / "qsub"  # stands for PBS's: notes what was submitted
        qsub.write_text("#!/bin/sh\necho \"$@\" >>%s\n" % submitted)
        qsub.chmod(0o755)
        submitted.unlink(missing_ok=True)
        self.submitted = submitted
        (self.folder / "nodes").write_text("localhost\nlocalhost\n")

    def pbs(self, name, config, walltime, **env):
        script = self.script("pbs.sh", name, config, (r"^#PBS -l walltime=\S+", "#PBS -l walltime=" + walltime))
        return self.run_job(script, PBS_O_WORKDIR=str(self.folder), PBS_JOBID="1.local", PBS_NODEFILE=str(self.folder / "nodes"), **env)

    def launcher(self, name, text):
        path = self.folder / "bin" / name
        path.write_text("#!/bin/sh\n" + text)
        path.chmod(0o755)
        self.addCleanup(path.unlink, missing_ok=True)


class Scripts(WithoutScheduler):
    def test_pbs_grammar(self):
        text = (JOBS / "pbs.sh").read_text()
        head = [line for line in text.splitlines() if line.startswith("#PBS ")]
        known = re.compile(r"#PBS (-N [A-Za-z][\w.+-]{0,229}|-j (oe|eo|n)|-r [yn]|-l walltime=\d+(:[0-5]\d){2}"
                           r"|-l select=[1-9]\d*(:(ncpus|mpiprocs|ompthreads|mem)=[0-9a-z]+)*)")
        self.assertEqual([line for line in head if not known.fullmatch(line)], [])
        self.assertLess(text.index(head[-1]), text.index("set -uo pipefail"), "qsub stops at the first command")

    def test_age_and_slurm_grammar(self):
        """What their manuals take, of what these scripts ask for."""
        for job, mark, known in (
            ("age.sh", "#$ ", r"-cwd|-j y|-r y|-N [A-Za-z][\w.-]*|-l h_rt=\d+:[0-5]\d:[0-5]\d|-l [a-z]+_\w+=[1-9]\d*"),
            ("slurm.sh", "#SBATCH ", r"--(job-name=\S+|output=[\w%.-]+|open-mode=append|mem-per-cpu=\d+[KMGT]|requeue"
                                     r"|time=\d+:[0-5]\d:[0-5]\d|signal=[A-Z0-9]+@\d+|nodes=\d+|ntasks-per-node=\d+)"),
        ):
            text = (JOBS / job).read_text()
            head = [line for line in text.splitlines() if line.startswith(mark)]
            self.assertTrue(head, job)
            self.assertEqual([line for line in head if not re.fullmatch(known, line[len(mark):])], [], job)
            self.assertLess(text.index(head[-1]), text.index("set -uo pipefail"), job)

    def test_what_each_script_promises(self):
        for job, memory, again in (("slurm.sh", "--mem-per-cpu=", "scontrol requeue"), ("pbs.sh", ":mem=", "qsub -v MGR_START="),
                                   ("age.sh", "#$ -l cpu_80=", "exit 99")):
            text = (JOBS / job).read_text()
            subprocess.run(["bash", "-n", str(JOBS / job)], check=True)
            self.assertIn(memory, text)
            self.assertIn(again, text)
            self.assertIn("-lt 10 ]", text)
            self.assertIn("mgr-verify", text)
            self.assertEqual(len(re.findall(r"(?m)^(?:#SBATCH --time=|#PBS -l walltime=|#\$ -l h_rt=)", text)), 1, job)
            numbers = re.findall(r"\d", "".join(re.findall(r"(?m)^# EDIT (\d(?: and \d)?)", text)))
            self.assertEqual(numbers, ["1", "2", "3"], job)
            self.assertRegex(text, "was at hand|no test had one|were at hand")

    def test_each_mpi_is_started_as_it_wants(self):
        """By what stands for its launcher, which says who it is; it is the line that the job prints."""
        nodes = str(self.folder / "nodes")
        for name, says, words in (("PALS", "PALS 1.3.2", "mpiexec -n 2 %s"), ("Open MPI", "mpiexec (OpenRTE) 4.1.4", "mpiexec -n 2 --hostfile " + nodes + " %s"),
                                  ("Hydra", "HYDRA build details:", "mpiexec -n 2 -f " + nodes + " %s")):
            self.launcher("mpiexec", 'case "$*" in --version) echo "%s"; exit ;; esac\nexit 66\n' % says)
            title = "start-" + name.split()[0]
            done = self.pbs(title, self.config(title, self.small), "00:10:00")
            self.assertEqual(done.returncode, 66, done.stdout + done.stderr)
            self.assertIn(words % runner.BIN, done.stdout)
            self.assertIn("--signal=" + ("USR1" if name == "Open MPI" else "TERM"), done.stdout)
        self.launcher("srun", "exit 66\n")
        for library, option in (("libmpi_cray.so.12", "cray_shasta"), ("libmpi_gnu_91.so.12", "cray_shasta"), ("libmpi.so.40", "pmix"),
                                ("libmpich.so.12", "pmi2")):
            self.launcher("ldd", 'echo "\t%s => /somewhere"\n' % library)
            title = "start-" + library.split(".")[0]
            script = self.script("slurm.sh", title, self.config(title, self.small))
            done = self.run_job(script, SLURM_JOB_ID="1")
            self.assertEqual(done.returncode, 66, done.stdout + done.stderr)
            self.assertIn(": srun --mpi=%s %s" % (option, runner.BIN), done.stdout)


class UnderTheirVariables(WithoutScheduler):
    def test_pbs_whole_again_stopped_and_submitted_again(self):
        config = self.config("pbs", self.small)
        for again in (False, True):
            done = self.pbs("pbs", config, "00:10:00")
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            self.assertEqual("already complete" in done.stdout, again, done.stdout)
        config = self.packed("pbs-stopped")
        done = self.pbs("pbs-stopped", config, "00:05:03")
        self.assertEqual(done.returncode, 75, done.stdout + done.stderr)
        self.assertIn("-v MGR_START=1 ", self.submitted.read_text())
        self.submitted.unlink()
        done = self.pbs("pbs-stopped", config, "00:05:03", MGR_START="10")
        self.assertEqual(done.returncode, 75, done.stdout + done.stderr)
        self.assertFalse(self.submitted.exists(), "ten times at most")
        done = self.pbs("pbs-stopped", config, "01:00:00")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.same_as_in_one_go("pbs-stopped")

    def test_pbs_without_a_node_file_and_without_time(self):
        config = self.config("pbs-no", self.small)
        script = self.script("pbs.sh", "pbs-no", config)
        self.assertEqual(self.run_job(script, PBS_NODEFILE="").returncode, 64)
        self.assertEqual(self.pbs("pbs-no", config, "00:04:00").returncode, 64)

    def test_age_under_its_variables(self):
        (self.folder / "pe").write_text("localhost 2 all.q UNDEFINED\n")
        script = self.script("age.sh", "age", self.config("age", self.small), (r"^per_node=\d+", "per_node=2"))
        done = self.run_job(script, PE_HOSTFILE=str(self.folder / "pe"))
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        config = self.packed("age-stopped")
        script = self.script("age.sh", "age-stopped", config, (r"^#\$ -l h_rt=\S+", "#$ -l h_rt=00:05:03"), (r"^per_node=\d+", "per_node=2"))
        again = dict(PE_HOSTFILE=str(self.folder / "pe"), SGE_O_WORKDIR=str(self.folder), JOB_ID="7")
        starts = self.folder / "mgr-upcycle.starts.7"
        done = self.run_job(script, **again)
        self.assertEqual((done.returncode, starts.read_text()), (99, "1\n"), done.stdout + done.stderr)
        starts.write_text("10\n")
        done = self.run_job(script, **again)
        self.assertEqual((done.returncode, starts.exists()), (75, False), "ten times at most")

    def run_all(self, name):
        """Each job script, as its scheduler would start it; what stands for a launcher is in our bin."""
        one, out = (r"^#SBATCH --nodes=\d+", "#SBATCH --nodes=1"), {}
        nodes, pe = self.folder / "nodes", self.folder / "pe"
        pe.write_text("localhost 2 all.q UNDEFINED\n")
        for job, edits in (("slurm.sh", [one]), ("pbs.sh", []), ("age.sh", [(r"^per_node=\d+", "per_node=2")])):
            title = name + "-" + job[:-3]
            script = self.script(job, title, self.config(title, self.small), *edits)
            out[job] = self.run_job(script, PBS_O_WORKDIR=str(self.folder), PBS_JOBID="1.local", PBS_NODEFILE=str(nodes),
                                    PE_HOSTFILE=str(pe), SGE_O_WORKDIR=str(self.folder), JOB_ID="9", SLURM_JOB_ID="1")
        return out

    def test_a_launcher_that_loses_the_status(self):
        """The target is there: the job ends well. It is not: it does not, and goes back into the queue."""
        real = runner.launcher(2)[0]
        real = shutil.which(real)
        as_srun = 'shift; %s -n 2 "$@"' % real
        requeued = self.folder / "requeued"
        self.launcher("scontrol", "echo $@ >>%s\n" % requeued)
        for wrong in ("exit 255", "exit 0"):
            end = "" if wrong == "exit 0" else "case $* in *--resume*) %s ;; esac\n" % wrong
            self.launcher("mpiexec", '%s "$@"\n%s' % (real, end))
            self.launcher("srun", "%s\n%s" % (as_srun, end))
            for job, done in self.run_all("lost-" + wrong[-1]).items():
                self.assertEqual(done.returncode, 0, job + done.stdout + done.stderr)
        for name in ("mpiexec", "srun"):
            self.launcher(name, "exit 0\n")
        for job, done in self.run_all("never").items():
            self.assertEqual(done.returncode, 99 if job == "age.sh" else 75, job + done.stdout + done.stderr)
        self.assertIn("requeue 1", requeued.read_text())
        self.assertIn("-v MGR_START=1 ", self.submitted.read_text())

    def test_a_stop_while_it_is_verified(self):
        """The job goes back into the queue; a difference does not."""
        real = shutil.which(runner.launcher(2)[0])
        requeued = self.folder / "requeued"
        requeued.unlink(missing_ok=True)
        self.launcher("scontrol", "echo $@ >>%s\n" % requeued)
        for status in (75, 1):
            verify = 'case "$*" in *mgr-verify*) exit %d ;; esac\n' % status
            self.launcher("mpiexec", verify + 'exec %s "$@"\n' % real)
            self.launcher("srun", verify + 'shift; exec %s -n 2 "$@"\n' % real)
            for job, done in self.run_all("verify-%d" % status).items():
                self.assertEqual(done.returncode, 99 if (job, status) == ("age.sh", 75) else status, job + done.stdout + done.stderr)
        self.assertEqual(requeued.read_text(), "requeue 1\n")
        self.assertEqual(self.submitted.read_text().count("-v MGR_START=1 "), 1)

    def test_a_target_of_another_configuration_is_no_success(self):
        self.launcher("srun", 'shift; %s -n 2 "$@"\n' % shutil.which(runner.launcher(2)[0]))
        for job in ("slurm.sh", "pbs.sh", "age.sh"):
            (self.folder / ("Mixtral-taken-" + job[:-3])).mkdir(exist_ok=True)
        for job, done in self.run_all("taken").items():
            self.assertEqual(done.returncode, runner.CANNOT_CREATE, job + done.stdout + done.stderr)

    @unittest.skipIf(openmpi.missing(), openmpi.missing())
    def test_pbs_with_open_mpi_stops_in_order(self):
        """Its mpiexec is told by SIGUSR1: SIGTERM would end the ranks after a second."""
        folder = openmpi.programs(self.folder)
        real = shutil.which("mpiexec.openmpi")
        self.launcher("mpiexec", 'exec env OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 %s "$@"\n' % real)
        config = self.packed("pbs-open")
        for walltime, status in (("00:05:03", 75), ("01:00:00", 0)):
            script = self.script("pbs.sh", "pbs-open", config, (r"^#PBS -l walltime=\S+", "#PBS -l walltime=" + walltime),
                                 (r"^bin=\S+", "bin=%s" % folder))
            done = self.run_job(script, PBS_O_WORKDIR=str(self.folder), PBS_JOBID="1.local",
                                PBS_NODEFILE=str(self.folder / "nodes"))
            self.assertEqual(done.returncode, status, done.stdout + done.stderr)
            self.assertEqual("stopped by SIGUSR1" in done.stderr, status == 75, done.stderr)
        self.same_as_in_one_go("pbs-open")

    def test_training_gets_the_options_that_were_printed(self):
        target = self.folder / "Mixtral with blank"
        config = runner.write_config(self.folder / "train.yaml", self.small, target, target__format="megatron-torch")
        done = runner.upcycle(config)
        self.assertEqual(done.status, 0, str(done))
        script = self.folder / "train.sh"
        text = (JOBS / "train.sh").read_text()
        for name, value in (("trainer", "show"), ("data", "--mock-data")):
            text, count = re.subn(r"^%s=.*" % name, "%s=(%s)" % (name, value), text, flags=re.M)
            self.assertEqual(count, 1, name)
        script.write_text(text)
        show = self.folder / "bin" / "show"
        show.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
        show.chmod(0o755)
        done = self.run_job(script, MGR_TARGET=str(target), MGR_MANIFEST=str(target / runner.MANIFEST))
        words = done.stdout.splitlines()[1:]
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn("--mock-data", words)
        self.assertEqual(words[words.index("--load") + 1], str(target))
        self.assertEqual(words[words.index("--num-experts") + 1], "4")
        self.assertNotIn("\\", words)
        missing = self.run_job(script, MGR_TARGET="", MGR_MANIFEST="")
        self.assertEqual(missing.returncode, 64, missing.stderr)


if __name__ == "__main__":
    unittest.main()
