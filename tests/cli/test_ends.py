"""A run whose result is agreed ends, with its status, also where MPI_Finalize never returns."""

import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

import runner

STUCK = os.environ.get("MGR_STUCK_FINALIZE", "")


class Ends(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(tempfile.mkdtemp(prefix="mgr-ends-"))
        cls.addClassCleanup(shutil.rmtree, cls.folder, ignore_errors=True)
        cls.source = runner.synth(cls.folder / "dense")

    def start(self, source, target):
        config = runner.write_config(self.folder / (target + ".yaml"), source, self.folder / target)
        return subprocess.Popen(
            ["timeout", "-s", "KILL", "60", runner.program("mgr-upcycle"), "-q", config],
            env=dict(os.environ, LD_PRELOAD=STUCK, ASAN_OPTIONS="verify_asan_link_order=0"),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def test_a_finalize_that_hangs_holds_no_job(self):
        good, bad = self.start(self.source, "Mixtral"), self.start(self.folder / "absent", "Mixtral-2")
        errors = [run.communicate()[1] for run in (good, bad)]
        self.assertEqual((good.returncode, bad.returncode), (runner.OK, runner.NO_INPUT), errors)
        self.assertTrue((self.folder / "Mixtral" / "config.json").exists())
        for text in errors:
            self.assertEqual(text.count("MPI did not end within"), 1, text)

    def test_a_launcher_of_another_mpi_is_refused(self):
        """Each of its processes would be a run of its own."""
        target = self.folder / "Mixtral-alone"
        config = runner.write_config(self.folder / "alone.yaml", self.source, target)
        for name in ("OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
            for rank, said in (("0", 1), ("1", 0)):
                env = {name: "2", "OMPI_COMM_WORLD_RANK": rank, "SLURM_PROCID": rank}
                result = runner.run([runner.program("mgr-upcycle"), config], env=env)
                self.assertEqual((result.status, len(result.errors())), (runner.OS_ERROR, said), str(result))
                self.assertEqual([p for p in self.folder.iterdir() if "alone." in p.name], [config])
        for np in (1, 2):  # under Hydra the step's size is that of Slurm's own processes
            target = self.folder / ("Mixtral-step-%d" % np)
            config = runner.write_config(self.folder / "step.yaml", self.source, target)
            result = runner.upcycle(config, np=np, env={"SLURM_STEP_NUM_TASKS": "3"})
            self.assertEqual(result.status, 0, str(result))


if __name__ == "__main__":
    unittest.main()
