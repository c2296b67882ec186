"""Sources that say what their bytes are: a manifest of ours, and Megatron's integrity.json."""

import json
import pathlib
import random
import shutil
import tempfile
import unittest

import runner
import test_again

SIZES = "--layers 2 --hidden 64 --ffn 96 --heads 4 --kv-heads 2 --vocab 128 --seed 7 -q".split()
FORMATS = ("megatron-torch", "megatron-dist", "huggingface", "hdf5", "deepspeed")


class Sums(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(tempfile.mkdtemp(prefix="mgr-sums-"))
        cls.addClassCleanup(shutil.rmtree, cls.folder, ignore_errors=True)
        for name in FORMATS:
            made = runner.run([runner.program("mgr-synth"), cls.folder / name, *SIZES, "--format", name])
            assert made.status == 0, str(made)

    def reshard(self, name, status, np=2, **changes):
        """To the end, or to one error and nothing published."""
        target = self.folder / "out"
        shutil.rmtree(target, ignore_errors=True)
        config = runner.write_config(
            self.folder / "run.yaml", self.folder / name, target, mode="reshard", target__format="hdf5", **changes
        )
        result = runner.upcycle(config, np=np)
        self.assertEqual(result.status, status, str(result))
        self.assertEqual(target.exists(), status == 0, str(result))
        self.assertEqual(len(result.errors()), status != 0, str(result))
        return result

    def weights(self, name):
        files = json.loads((self.folder / name / runner.MANIFEST).read_text())["target"]["files"]
        return [(f["path"], tensor, t["bytes"]) for f in files for tensor, t in f["tensors"].items()]

    def test_every_tensor_is_checked(self):
        for name in FORMATS:
            weights = self.weights(name)
            result = self.reshard(name, 0, np=1 + len(name) % 3)
            self.assertIn("checked   %d of %d source records" % (len(weights), len(weights)), result.out)
            self.assertNotIn("is not the one", result.out)

    def test_a_changed_bit_of_a_weights_file_is_found(self):
        choose = random.Random(5)
        for name in FORMATS:
            places = list(test_again.places_of(self.folder / name, self.weights(name)))
            path, _, start, size = choose.choice(places)
            with test_again.flipped(path, start + choose.randrange(size), 4):
                result = self.reshard(name, runner.DATA)
            self.assertIn("'%s' is " % path, result.err)
            with test_again.flipped(path, min(start for file, _, start, _ in places if file == path) - 1, 4):
                result = self.reshard(name, runner.DATA)  # of the header, or what stands for one
            self.assertIn(path.name, result.err)

    def test_what_the_manifest_is_for(self):
        """Only with it is a flip in safetensors seen, and who means the change removes it."""
        name = "huggingface"
        path, _, start, _ = next(test_again.places_of(self.folder / name, self.weights(name)))
        manifest = self.folder / name / runner.MANIFEST
        with test_again.flipped(path, start, 1):
            result = self.reshard(name, runner.DATA)
            self.assertRegex(result.err, "its mgr-manifest.json says(.|\\n)*hint: .*remove mgr-manifest.json")
            whole = manifest.read_bytes()
            try:
                manifest.write_bytes(whole.replace(b"crc32", b"CRC32", 1))
                self.assertIn("is damaged", self.reshard(name, 0).out.replace("\n          ", " "))
                manifest.unlink()
                self.assertIn("checked   0 of 0", self.reshard(name, 0).out)
            finally:
                manifest.write_bytes(whole)

    def test_a_cut_file_and_a_changed_setting(self):
        config = self.folder / "huggingface" / "config.json"
        before = config.read_bytes()
        config.write_bytes(before.replace(b'"use_cache": true', b'"use_cache": false'))
        self.assertNotEqual(config.read_bytes(), before)
        result = self.reshard("huggingface", 0)
        config.write_bytes(before)
        self.assertIn("the source's config.json is not the one", result.out.replace("\n          ", " "))

    def test_integrity(self):
        source = self.folder / "hashed"
        config = runner.write_config(
            self.folder / "hash.yaml",
            self.folder / "megatron-torch",
            source,
            mode="reshard",
            target__format="megatron-dist",
            target__sha256=True,
        )
        self.assertEqual(runner.upcycle(config).status, 0)
        (source / runner.MANIFEST).unlink()
        self.reshard("hashed", 0, np=3, source__sha256=True)
        chunk = next(source.rglob("*.distcp"))
        integrity = chunk.parent / "integrity.json"
        for path in (chunk, chunk.parent / "common.pt"):
            with test_again.flipped(path, path.stat().st_size - 1, 1):  # behind all that is read
                result = self.reshard("hashed", runner.DATA, source__sha256=True)
            self.assertRegex(result.err, path.name)
        text = integrity.read_text()
        for other, status in (
            (text.replace("common.pt", "../common.pt"), runner.DATA),
            (text.replace("sha256", "crc32"), runner.DATA),
            (text.replace(chunk.name, "__9_9.distcp"), runner.DATA),
            ("[]", runner.DATA),
        ):
            integrity.write_text(other)
            self.reshard("hashed", status, source__sha256=True)
        integrity.unlink()
        result = self.reshard("hashed", runner.NO_INPUT, source__sha256=True)
        self.assertIn("no 'integrity.json'", result.err)
        self.reshard("hashed", 0)


if __name__ == "__main__":
    unittest.main()
