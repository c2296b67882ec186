"""mgr-inspect: what it shows, and two checkpoints compared whatever their formats and splits."""

import json
import pathlib
import shutil
import tempfile
import unittest

import runner


class Inspect(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(tempfile.mkdtemp(prefix="mgr-inspect-"))
        cls.addClassCleanup(shutil.rmtree, cls.folder, ignore_errors=True)
        cls.one = runner.synth(cls.folder / "one")
        cls.split = runner.synth(cls.folder / "split", tp=2, pp=2, names="local")
        cls.moe = cls.folder / "Mixtral"
        result = runner.upcycle(runner.write_config(cls.folder / "run.yaml", cls.one, cls.moe))
        assert result.status == 0, str(result)

    def look(self, *words, status=0):
        result = runner.run([runner.program("mgr-inspect"), *words])
        self.assertEqual(result.status, status, str(result))
        return result

    def test_a_megatron_checkpoint(self):
        out = self.look(self.split).out
        self.assertIn("megatron-torch, 4 files: tensor parallel 2 x pipeline parallel 2, local names", out)
        self.assertIn("2 layers, hidden 64, ffn 96, 4 heads in 2 groups of 16, vocabulary 128", out)
        self.assertRegex(out, r"model\.decoder\.layers\.0\.mlp\.linear_fc1\.weight +bfloat16 +\[96, 64\]")

    def test_an_output_as_json(self):
        view = json.loads(self.look("--json", self.moe).out)
        tensors = {t["name"]: t for f in view["files"] for t in f["tensors"]}
        self.assertEqual(tensors["lm_head.weight"]["shape"], [128, 64])
        self.assertEqual(len(tensors), 2 * (6 + 1 + 3 * 4) + 3)

    def test_one_file(self):
        file = next(self.split.glob("*/mp_rank_00_000/*.pt"))
        self.assertIn("[64, 32]", self.look(file).out)
        self.assertIn("safetensors", self.look(next(self.moe.glob("*.safetensors"))).out)

    def test_equal_models_in_other_splits(self):
        self.assertIn("21 logical tensors compared, 0 differ", self.look(self.one, self.split).out)

    def test_another_seed_and_another_size(self):
        other = runner.synth(self.folder / "other", seed=8)
        out = self.look(self.one, other, status=1).out
        self.assertIn("21 logical tensors compared, 21 differ", out)
        self.assertIn("and 1 more", out)
        deeper = runner.synth(self.folder / "deeper", layers=3)
        out = self.look(self.one, deeper, status=1).out
        self.assertIn("only in 2 layer 2 gate", out)
        self.assertIn("21 logical tensors compared, 9 differ", out)
        self.assertRegex(out, r"\nlayer 2 +9 of 9 tensors differ\n")

    def test_one_byte(self):
        changed = self.folder / "changed"
        shutil.copytree(self.moe, changed)
        file = sorted(changed.glob("*.safetensors"))[-1]
        content = bytearray(file.read_bytes())
        content[-1] ^= 0x40
        file.write_bytes(content)
        out = self.look(self.moe, changed, status=1).out
        self.assertRegex(out, r"differs +layer 1 expert \d .*: 1 of 6144 elements, first at \[\d+, \d+\]: ")
        self.assertIn("41 logical tensors compared, 1 differ", out)
        self.assertRegex(out, r"\nlayer 1 +1 of \d+ tensors differ, at most \S+ apart \(\S+ of the value\)\n")
        self.assertNotIn("layer 0 ", out)
        self.look(self.moe, self.moe)

    def test_nothing_there(self):
        self.look(self.folder / "nothing", status=runner.NO_INPUT)
        self.look(self.one, self.folder / "nothing", status=runner.NO_INPUT)
        self.look(status=64)

    def test_names_cannot_steer_the_terminal(self):
        """Escape sequences, C1, bytes in another order, broken UTF-8: as numbers, everywhere."""
        name = "\x1b]0;title\x07\x1b[31m\u009b2J\u202e\nall verified"
        header = {name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
        text = json.dumps(header, ensure_ascii=False).encode()
        path = pathlib.Path(tempfile.mkdtemp(prefix="mgr-inspect-")) / "a.safetensors"
        self.addCleanup(shutil.rmtree, path.parent, ignore_errors=True)
        path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
        for options in ([path], ["--json", path], [path, path]):
            result = runner.run([runner.program("mgr-inspect"), *options])
            self.assertEqual(result.status, 0, str(result))
            self.assertNotRegex(result.out + result.err, "[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]")
            self.assertNotRegex(result.out + result.err, "(?m)^all verified")
        wild = path.parent / "no\x1b[31mthing"
        result = runner.run([runner.program("mgr-inspect"), wild])
        self.assertNotIn("\x1b", result.err)
        self.assertIn("\\u001b[31m", result.err)


if __name__ == "__main__":
    unittest.main()
