"""mgr-verify: whatever is changed of an output, it says so and where. MGR_FLIPS is how many bits are flipped, one at
a time, over all files of outputs in every format."""

import json
import os
import pathlib
import random
import shutil
import tempfile
import unittest

import runner

FLIPS = int(os.environ.get("MGR_FLIPS", 50))
DIFFERENT = 1
FORMATS = {
    "moe-recipes": {},
    "fused": {"target__format": "moe-recipes", "target__names": "fused"},
    "megatron-torch": {"target__tensor_parallel": 2, "target__expert_parallel": 2},
    "megatron-dist": {},
    "hdf5": {},
    "deflate": {"target__format": "hdf5", "target__compression": "deflate"},
    "deepspeed": {"target__data_parallel": 2},
}


def verify(path, *options, np=1):
    launcher = runner.launcher(np) if np > 1 else []
    return runner.run([*launcher, runner.program("mgr-verify"), *options, path])


class Verify(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(tempfile.mkdtemp(prefix="mgr-verify-"))
        cls.addClassCleanup(shutil.rmtree, cls.folder, ignore_errors=True)
        source = runner.synth(cls.folder / "dense", tp=2, ffn=128)
        (source / "tokenizer.json").write_text('{"a": 1}\n' * 100)
        cls.outputs = []
        for name, changes in FORMATS.items():
            out = cls.folder / ("Mixtral-" + name)
            settings = {"target__format": name, "upcycle__seed": len(cls.outputs), **changes}
            config = runner.write_config(cls.folder / "run.yaml", source, out, **settings)
            result = runner.upcycle(config)
            assert result.status == 0, str(result)
            cls.outputs.append(out)

    def files(self, out):
        return sorted(path for path in out.rglob("*") if path.is_file())

    def changed(self, path, content, out):
        """What is said with another content of a file, which is put back."""
        before = path.read_bytes()
        try:
            path.write_bytes(content)
            result = verify(out, "--json")
            self.assertEqual(result.status, DIFFERENT, "%s\n%s" % (path, result))
            return json.loads(result.out)["differences"][0]
        finally:
            path.write_bytes(before)

    def test_whole_outputs_pass_on_any_number_of_ranks(self):
        for out in self.outputs:
            for np in (1, 3):
                result = verify(out, np=np)
                self.assertEqual((result.status, result.err), (0, ""), str(result))
                self.assertIn("%d files" % (len(self.files(out)) - 1), result.out)
                self.assertIn("no two alike", result.out)

    def test_every_flipped_bit_is_found(self):
        choose = random.Random(20241126)
        for k in range(FLIPS):
            out = self.outputs[k % len(self.outputs)]
            path = choose.choice(self.files(out))
            content = bytearray(path.read_bytes())
            byte = choose.randrange(len(content))
            content[byte] ^= 1 << choose.randrange(8)
            found = self.changed(path, content, out)
            self.assertEqual(found["file"], str(path.relative_to(out)))
            if path.name != runner.MANIFEST:
                self.assertEqual((found["byte"], path), (byte, path), found)
        print("%d of %d flipped bits of outputs in %d formats were found" % (FLIPS, FLIPS, len(FORMATS)))

    def test_a_weight_is_named(self):
        for out in self.outputs[:3]:
            for path in self.files(out):
                if path.suffix not in (".safetensors", ".pt"):
                    continue
                content = bytearray(path.read_bytes())
                content[len(content) // 2 : len(content) // 2 + 2] = b"\x12\x34"
                found = self.changed(path, content, out)
                self.assertRegex(found["tensor"], r"\.weight$|_proj$")
                self.assertLessEqual(found["byte"], len(content) // 2)

    def test_other_changes(self):
        out = self.outputs[0]
        for path in self.files(out):
            content = path.read_bytes()
            for other in (content[:-1], content + b"\0", b""):
                self.assertEqual(self.changed(path, other, out)["file"], path.name)
            path.rename(self.folder / "away")
            result = verify(out)
            missing = runner.NO_INPUT if path.name == runner.MANIFEST else DIFFERENT
            self.assertEqual(result.status, missing, str(result))
            path.symlink_to(self.folder / "away")
            self.assertEqual(verify(out).status, 0 if path.name == runner.MANIFEST else DIFFERENT)
            path.unlink()
            (self.folder / "away").rename(path)
        (out / "notes.txt").write_text("mine")
        result = verify(out)
        (out / "notes.txt").unlink()
        self.assertEqual(result.status, 0, str(result))
        self.assertIn("1 files that are not in the manifest", result.out)

    def test_what_cannot_be_verified(self):
        for path in (self.folder / "dense" / "nowhere", self.folder):
            result = verify(path, np=2)
            self.assertEqual((result.status, len(result.errors())), (runner.NO_INPUT, 1), str(result))
        self.assertEqual(runner.run([runner.program("mgr-verify")]).status, runner.USAGE)


if __name__ == "__main__":
    unittest.main()
