"""A run that is stopped in any step of any format, or whose leftover somebody spoils, and --resume: the
bytes of an undisturbed run, also with another number of ranks; or an error that names what is wrong.

MGR_STOPS=all takes ten stops of each format and signal (label `slow`)."""

import os
import pathlib
import shutil
import subprocess
import tempfile
import time
import unittest

import runner

STAGING = ".partial-"
ALL = os.environ.get("MGR_STOPS") == "all"

# name: settings of the target, and whether it is an upcycling
FORMATS = {
    "moe-recipes": ({"format": "moe-recipes", "expert_parallel": 2}, True),
    "huggingface": ({"format": "huggingface"}, False),
    "megatron-torch": ({"format": "megatron-torch", "tensor_parallel": 2, "expert_parallel": 2}, True),
    "megatron-dist": ({"format": "megatron-dist"}, True),
    "hdf5": ({"format": "hdf5", "expert_parallel": 2}, True),
    "hdf5-deflate": ({"format": "hdf5", "expert_parallel": 2, "compression": "deflate"}, True),
    "deepspeed": ({"format": "deepspeed"}, True),
    "deepspeed-zero3": ({"format": "deepspeed", "data_parallel": 3, "sub_group_size": 5000}, False),
}

# Where: while rank 1 writes, between the engine and settling, behind it, behind the ledger, behind each
# packed file, among the small files, before and behind the rename. `src/run/write.c` counts the steps.
QUICK = ("rank:1,pwrite:9:kill", "phase:1:term", "phase:2:kill", "phase:4:kill", "phase:5:term", "rename:2:kill")
WRITES = tuple("rank:1,pwrite:%d" % k for k in (2, 5, 8, 12, 17, 23, 30, 38, 47, 57))
STEPS = tuple("phase:%d" % k for k in range(1, 11))
ENDS = tuple("rename:%d" % k for k in range(1, 11))
EACH = tuple(place + signal for place in WRITES + STEPS + ENDS for signal in (":kill", ":term"))


class Folder(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(tempfile.mkdtemp(prefix="mgr-stops-"))
        cls.addClassCleanup(shutil.rmtree, cls.folder, ignore_errors=True)
        cls.source = runner.synth(cls.folder / "dense", tp=2, vocab=200)

    def clean(self):
        shutil.rmtree(self.outputs, ignore_errors=True)
        self.outputs.mkdir()

    def run_it(self, *options, np=2, fault=None):
        return runner.upcycle(
            self.config,
            np=np,
            options=["--journal", "0", "--set", "io_threads=%d" % self.threads(np), *options],
            env={"MGR_FAULT": fault} if fault else None,
        )

    def threads(self, np):
        """A rank writes itself, or has threads for it; files of HDF5 hold the configuration."""
        return 1 if "hdf5" in self.config.name else 2 * (np % 2)

    def hashes(self):
        return runner.hashes(self.target)  # the manifest has the ledger's checksum

    def prepare(self, name):
        target, upcycle = FORMATS[name]
        self.outputs = self.folder / name
        self.target = self.outputs / "Mixtral"
        changes = {"target__" + key: value for key, value in target.items()}
        changes["model__vocab_size"] = 200  # padding, which no unit writes
        if not upcycle:
            changes.update(mode="reshard", upcycle=None)
        self.config = runner.write_config(self.folder / (name + ".yaml"), self.source, self.target, **changes)
        self.clean()
        result = self.run_it()
        self.assertEqual(result.status, 0, str(result))
        self.expected = self.hashes()

    def assert_resumed(self, np, told):
        result = self.run_it("--resume", np=np)
        told = "%s\n%s" % (told, result)
        self.assertEqual(result.status, 0, told)
        self.assertEqual(os.listdir(self.outputs), [self.target.name], told)
        self.assertEqual(self.hashes(), self.expected, told)
        return result


class Stops(Folder):
    def stop(self, name, fault, np):
        """False: the run was over before."""
        self.clean()
        stopped = self.run_it(fault=fault)
        if stopped.status == 0 and not os.path.exists(self.target):
            self.fail(str(stopped))
        if stopped.status != 0 and fault.endswith(":term"):
            self.assertEqual(stopped.status, runner.INTERRUPTED, str(stopped))
            self.assertIn("--resume", stopped.err)
        with self.subTest(format=name, stopped=fault, ranks=np):
            self.assert_resumed(np, "%s\n%s" % (fault, stopped))
        return stopped.status != 0

    def stops(self, name):
        self.prepare(name)
        faults = EACH if ALL else QUICK
        reached = [self.stop(name, fault, 2 + i % 2 if i % 5 else 1) for i, fault in enumerate(faults)]
        self.assertGreaterEqual(sum(reached), 20 if ALL else 5, list(zip(faults, reached)))

    def test_moe_recipes(self):
        self.stops("moe-recipes")

    def test_huggingface(self):
        self.stops("huggingface")

    def test_megatron_torch(self):
        self.stops("megatron-torch")

    def test_megatron_dist(self):
        self.stops("megatron-dist")

    def test_hdf5(self):
        self.stops("hdf5")

    def test_hdf5_deflate(self):
        self.stops("hdf5-deflate")

    def test_deepspeed(self):
        self.stops("deepspeed")

    def test_deepspeed_zero3(self):
        self.stops("deepspeed-zero3")


def flip(path):
    content = bytearray(path.read_bytes())
    at = next(i for i in range(len(content) // 2, len(content)) if content[i])
    content[at] ^= 1
    path.write_bytes(content)


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def blank(path):
    size = path.stat().st_size
    os.truncate(path, 0)
    os.truncate(path, size)


def fill(path):
    """Headers and padding, too, which the journal does not speak of."""
    path.write_bytes(b"\xa5" * path.stat().st_size)


def largest(folder):
    files = [path for path in folder.rglob("*") if path.is_file() and ".mgr-journal" not in path.parts]
    return max(files, key=lambda path: (path.stat().st_size, str(path)))


class Spoiled(Folder):
    """Somebody touches what a stopped run left."""

    def left(self, name="moe-recipes", fault="phase:1:kill"):
        if getattr(self, "prepared", None) != name:
            self.prepare(name)
            self.prepared = name
        self.clean()
        stopped = self.run_it(fault=fault)
        self.assertNotEqual(stopped.status, 0, str(stopped))
        (staging,) = self.outputs.iterdir()
        return staging

    def test_damaged_files_are_made_again(self):
        for name, how in (
            ("moe-recipes", flip), ("moe-recipes", cut), ("moe-recipes", blank), ("moe-recipes", os.remove),
            ("megatron-torch", fill), ("hdf5", fill), ("hdf5-deflate", flip),
        ):
            with self.subTest(format=name, how=how.__name__):
                how(largest(self.left(name)))
                self.assert_resumed(3, how.__name__)

    def test_a_damaged_packed_file_is_packed_again(self):
        staging = self.left("hdf5-deflate", "phase:5:kill")
        packed = [path for path in staging.glob("*.h5") if path.name != runner.LEDGER]
        self.assertTrue(packed)
        flip(packed[0])
        self.assert_resumed(2, "packed")

    def test_links_are_not_followed(self):
        victim = self.folder / "victim"
        for kind in ("file", "hard", "folder", "journal"):
            with self.subTest(link=kind):
                staging = self.left("megatron-torch" if kind == "folder" else "moe-recipes")
                shutil.rmtree(victim, ignore_errors=True)
                victim.mkdir()
                inner = victim / "inner"
                file = largest(staging)
                if kind in ("file", "hard"):
                    shutil.move(file, inner)
                    (os.symlink if kind == "file" else os.link)(inner, file)
                else:
                    place = staging / ".mgr-journal" if kind == "journal" else next(
                        path for path in staging.iterdir() if path.is_dir() and path.name[0] != ".")
                    shutil.move(place, inner)
                    os.symlink(inner, place)
                before = runner.hashes(victim)
                self.assert_resumed(2, kind)
                self.assertEqual(runner.hashes(victim), before)

    def test_a_staging_folder_that_is_a_link(self):
        staging = self.left()
        shutil.move(staging, self.folder / "elsewhere")
        os.symlink(self.folder / "elsewhere", staging)
        before = runner.hashes(self.folder / "elsewhere")
        result = self.run_it("--resume")
        self.assertNotEqual(result.status, 0, str(result))
        self.assertEqual(runner.hashes(self.folder / "elsewhere"), before)
        shutil.rmtree(self.folder / "elsewhere")

    def test_strangers_are_refused_by_name(self):
        for place in ("thesis.tex", "sub/thesis.tex", ".mgr-journal/thesis.tex"):
            with self.subTest(place=place):
                staging = self.left()
                (staging / place).parent.mkdir(exist_ok=True)
                (staging / place).write_text("years of work")
                result = self.run_it("--resume")
                self.assertEqual(result.status, runner.CANNOT_CREATE, str(result))
                self.assertIn(place.split("/")[0], result.errors()[0])
                self.assertTrue((staging / place).exists())

    def test_a_journal_of_another_run(self):
        """Of the same shape, with other experts: none of it counts."""
        mine = self.left()
        other = self.folder / "other-journal"
        shutil.rmtree(other, ignore_errors=True)
        shutil.move(mine / ".mgr-journal", other)
        self.clean()
        self.run_it("--set", "upcycle.seed=99", fault="phase:1:kill")
        (theirs,) = self.outputs.iterdir()
        for block in (theirs / ".mgr-journal").glob("rank-*"):
            shutil.copy(block, other)
        theirs.rename(mine)
        shutil.rmtree(mine / ".mgr-journal")
        shutil.move(other, mine / ".mgr-journal")
        self.assert_resumed(2, "another run's")

    def test_a_source_that_changes_during_the_run(self):
        self.prepare("moe-recipes")
        source = self.folder / "moving"
        runner.synth(source, layers=4, hidden=256, ffn=1024, vocab=4096, heads=8)
        config = runner.write_config(
            self.folder / "moving.yaml", source, self.target, upcycle__experts=16)
        self.clean()
        process = subprocess.Popen(
            [runner.program("mgr-upcycle"), config], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        until = time.monotonic() + 60
        while not os.listdir(self.outputs) and process.poll() is None and time.monotonic() < until:
            time.sleep(0.002)
        os.utime(next(source.rglob("*.pt")))
        _, err = process.communicate(timeout=120)
        self.assertEqual(process.returncode, runner.DATA, err)
        self.assertIn(b"the source changed while it was read", err)
        self.assertEqual(os.listdir(self.outputs), [])


class Places(Folder):
    """What of a place can be known before anything is written."""

    def refused(self, target, status, *words, fault=None):
        config = runner.write_config(self.folder / "place.yaml", self.source, target)
        for options in (["--dry-run"], []):
            result = runner.upcycle(config, np=1, options=options, env={"MGR_FAULT": fault} if fault else None)
            self.assertEqual(result.status, status, str(result))
            for word in words:
                self.assertIn(word, result.err)
            self.assertEqual(os.listdir(self.folder / "out"), [], str(result))

    def setUp(self):
        self.outputs = self.folder / "out"
        self.clean()

    def test_names(self):
        self.refused(self.outputs / ("M" * 240), runner.CANNOT_CREATE, "too long", "a name")

    def test_a_full_quota(self):
        self.refused(self.outputs / "Mixtral", runner.CANNOT_CREATE, "quota", fault="probe:1:EDQUOT")

    def test_a_quota_that_the_kernel_knows(self):
        """As far as a kernel's answers can be played: what is left is on the page, and too little is refused."""
        config = runner.write_config(self.folder / "place.yaml", self.source, self.outputs / "Mixtral")
        env = {"LD_PRELOAD": os.environ["MGR_QUOTA_SAYS"], "QUOTA_USED": str(3 << 20), "ASAN_OPTIONS": "verify_asan_link_order=0"}
        for of, limit, status, said in (
            ("user", 1 << 30, 0, "1021.00 MiB left of the user quota of 1.00 GiB"),
            ("group", 4 << 20, runner.CANNOT_CREATE, "the group quota of "),
            ("group", 2 << 20, runner.CANNOT_CREATE, " leaves 0 B of 2.00 MiB"),
        ):
            words = [runner.program("mgr-upcycle"), "--dry-run", "--ranks", 1, config]
            result = runner.run(words, env=dict(env, QUOTA_OF=of, QUOTA_LIMIT=str(limit)))
            self.assertEqual(result.status, status, str(result))
            self.assertIn(said, " ".join((result.out + result.err).split()))
            self.assertEqual(os.listdir(self.outputs), [])
        env.update(QUOTA_OF="user", QUOTA_LIMIT=str(4 << 20))
        result = runner.upcycle(config, np=2, env=env)
        self.assertEqual((result.status, len(result.errors())), (runner.CANNOT_CREATE, 1), str(result))

    def test_calls(self):
        self.refused(self.outputs / "Mixtral", runner.CANNOT_CREATE, "choose another", fault="probe:2:EACCES")

    def test_a_colon(self):
        for name, settings in (("moe", {}), ("h5", {"target__format": "hdf5"})):
            target = self.outputs / ("Mixtral-2026-11-26T10:00:00-" + name)
            config = runner.write_config(self.folder / "colon.yaml", self.source, target, **settings)
            result = runner.upcycle(config, np=2)
            self.assertEqual(result.status, 0, str(result))

    def test_tokenizers(self):
        tokenizer = self.folder / "tokenizer"
        tokenizer.mkdir(exist_ok=True)
        config = runner.write_config(
            self.folder / "tokenizer.yaml", self.source, self.outputs / "Mixtral", source__tokenizer=tokenizer)
        place = tokenizer / "tokenizer.json"
        os.mkfifo(place)
        result = runner.upcycle(config, np=1, options=["--dry-run"])
        self.assertEqual(result.status, runner.DATA, str(result))
        self.assertIn("not a regular file", result.err)
        place.unlink()
        place.touch()
        os.truncate(place, 1 << 29)
        result = runner.upcycle(config, np=1, options=["--dry-run"])
        self.assertEqual(result.status, runner.DATA, str(result))
        self.assertIn("more than", result.err)


if __name__ == "__main__":
    unittest.main()
