"""--force replaces a checkpoint and nothing else: what is not of it is named, and stays."""

import os
import pathlib
import shutil
import subprocess
import unittest

import runner
from test_bad_input import BadInput

FORMATS = ("moe-recipes", "megatron-torch", "megatron-dist", "hdf5", "deepspeed")
MOUNT = "mount --bind %s %s && exec %s"


def can_mount():
    return shutil.which("unshare") and subprocess.run(
        ["unshare", "--mount", "true"], capture_output=True
    ).returncode == 0


class Force(BadInput):
    def written(self, format):
        """An output, its configuration and its hashes."""
        shutil.rmtree(self.target, ignore_errors=True)
        config = self.config(target__format=format)
        self.accepted(config, np=1)
        return config, runner.hashes(self.target, skip=())

    def kept(self, *words, config=None, options=("--force",)):
        before = runner.hashes(self.target, skip=())
        result = runner.upcycle(config or self.config(), np=1, options=options)
        self.assertEqual(result.status, runner.CANNOT_CREATE, str(result))
        self.assertEqual(len(result.errors()), 1, str(result))
        for word in words:
            self.assertIn(word, result.errors()[0])
        self.assertEqual(os.listdir(self.outputs), [self.target.name])
        self.assertEqual(runner.hashes(self.target, skip=()), before)

    def test_umask_and_a_folder_that_hands_its_group_on(self):
        """Nobody is shut out whom the user lets in, and nobody let in whom the umask keeps out."""
        if os.geteuid() != 0:
            self.skipTest("groups of others need root")
        os.chown(self.outputs, 0, 12345)
        os.chmod(self.outputs, 0o2775)
        for format, mask in zip(FORMATS, (0o027, 0o002, 0o077, 0o022, 0o027)):
            shutil.rmtree(self.target, ignore_errors=True)
            mask_first = ("sh", "-c", "umask %o; exec \"$@\"" % mask, "sh")
            result = runner.upcycle(self.config(target__format=format), np=2, wrapper=mask_first)
            self.assertEqual(result.status, 0, str(result))
            for path in [self.target, *pathlib.Path(self.target).rglob("*")]:
                found = path.lstat()
                wanted = 0o2777 if path.is_dir() else 0o666
                self.assertEqual(oct(found.st_mode & 0o7777), oct(wanted & ~mask), str(path))
                self.assertEqual(found.st_gid, 12345, str(path))

    def test_an_output_is_replaced_with_and_without_its_manifest(self):
        for format in FORMATS:
            with self.subTest(format=format):
                config, before = self.written(format)
                dry = runner.upcycle(config, np=1, options=["--force", "--dry-run"])
                self.assertIn("a run would replace what is there", dry.out)
                self.assertEqual(runner.hashes(self.target, skip=()), before)
                (self.target / runner.MANIFEST).unlink()
                again = self.accepted(config, ["--force"], np=1)
                self.assertRegex(again.out, r"replaced  what was there: [a-z0-9-]+, %d files" % (len(before) - 1))
                self.assertEqual(runner.hashes(self.target).keys(), before.keys() - {runner.MANIFEST, runner.LEDGER})

    def test_what_is_no_checkpoint_stays(self):
        (self.target / ".ssh").mkdir(parents=True)
        (self.target / ".ssh" / "id_rsa").write_text("me")
        self.kept("is no checkpoint", str(self.target))
        self.kept("is no checkpoint", options=["--force", "--dry-run"])
        (self.target / "config.json").write_text("{}")  # many programs have one
        self.kept("is no checkpoint")
        (self.target / "model.h5").write_text("")
        self.kept("is no checkpoint")

    def test_a_file_stays(self):
        self.target.write_text("me")  # on several ranks, too
        self.refused(runner.CANNOT_CREATE, "no directory", options=["--force"], left=[self.target.name])
        self.assertEqual(self.target.read_text(), "me")

    def test_an_empty_folder_is_replaced(self):
        self.target.mkdir()
        self.accepted(options=["--force"])

    def test_what_lies_beside_an_output_is_named(self):
        for format in FORMATS:
            config, before = self.written(format)
            inner = next(self.target.rglob("*" + max(before, key=len).split("/")[-1])).parent
            with self.subTest(format=format, beside="a thesis"):
                (inner / "thesis.tex").write_text("me")
                (self.target / "figures").mkdir()
                self.kept("thesis.tex", "figures/", config=config)
                (inner / "thesis.tex").unlink()
                (self.target / "figures").rmdir()
            with self.subTest(format=format, beside="weights that the run did not write"):
                for name in ("model-finetuned.safetensors", "experts-9.h5", "extra.distcp"):
                    (inner / name).write_text("me")
                self.kept("model-finetuned.safetensors", "experts-9.h5", "extra.distcp", config=config)

    def test_only_the_latest_iteration_is_of_a_checkpoint(self):
        config, _ = self.written("megatron-torch")
        (self.target / runner.MANIFEST).unlink()
        shutil.copytree(self.target / "release", self.target / "iter_0000001")
        self.kept("iter_0000001/mp_rank_00/model_optim_rng.pt", config=config)

    def test_a_link_in_it_goes_and_what_it_points_to_stays(self):
        config, _ = self.written("moe-recipes")
        (self.place / "kept").mkdir()
        for name in ("config.json", "generation_config.json"):
            outside = (self.target / name).rename(self.place / "kept" / name)
            (self.target / name).symlink_to(outside)
        self.accepted(config, ["--force"], np=1)
        self.assertFalse((self.target / "config.json").is_symlink())
        self.assertEqual(len(list((self.place / "kept").iterdir())), 2)
        (self.target / "more").symlink_to(self.place / "kept")
        self.kept("more", config=config)

    @unittest.skipUnless(can_mount(), "no mounts here")
    def test_a_mount_is_not_entered(self):
        """As a bind mount of the same file system, which has the same device number."""
        config, before = self.written("megatron-torch")
        other = self.place / "other"
        shutil.copytree(self.target / "release", other)
        run = [runner.program("mgr-upcycle"), "--force", config]
        for place in (self.target / "release", self.target):
            source = other if place != self.target else self.target
            script = MOUNT % (source, place, " ".join(map(str, run)))
            result = runner.run(["unshare", "--mount", "sh", "-c", script])
            self.assertEqual(result.status, runner.CANNOT_CREATE, str(result))
            self.assertRegex(result.err, "'%s' is a mount" % place)
        self.assertEqual(runner.hashes(self.target, skip=()), before)
        self.assertEqual(len(runner.hashes(other)), 1)


if __name__ == "__main__":
    unittest.main()
