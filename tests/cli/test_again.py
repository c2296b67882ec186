"""mgr-upcycle --verify: every weight is made again and compared with what lies there. MGR_FLIPS is how many bits are
flipped in each format, one at a time."""

import json
import os
import pathlib
import random
import shutil
import tempfile
import unittest

import damage
import runner
import test_verify

FLIPS = int(os.environ.get("MGR_FLIPS", 2))
DIFFERENT = 1
TARGETS = {
    **test_verify.FORMATS,
    "megatron-torch": {**test_verify.FORMATS["megatron-torch"], "target__make_vocab_size_divisible_by": 128},
    "resharded": {"mode": "reshard", "target__format": "megatron-torch", "target__pipeline_parallel": 2},
    "shuffled": {"upcycle__shuffle": "true", "target__format": "mixtral", "target__max_shard_size": "1MiB"},
}


class Again(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(tempfile.mkdtemp(prefix="mgr-again-"))
        cls.addClassCleanup(shutil.rmtree, cls.folder, ignore_errors=True)
        # a vocabulary that is padded; matrices large enough to be packed in pieces
        source = runner.synth(cls.folder / "dense", tp=2, ffn=192, hidden=192, vocab=250)
        cls.configs = {}
        for name, changes in TARGETS.items():
            settings = {"target__format": name, **changes}
            config = runner.write_config(
                cls.folder / (name + ".yaml"), source, cls.folder / ("Mixtral-" + name), **settings
            )
            result = runner.upcycle(config, np=1)
            assert result.status == 0, str(result)
            cls.configs[name] = config

    def out(self, name):
        return self.folder / ("Mixtral-" + name)

    def weights(self, name):
        """[(file, tensor, bytes)] by the manifest."""
        files = json.loads((self.out(name) / runner.MANIFEST).read_text())["target"]["files"]
        return [(f["path"], tensor, t["bytes"]) for f in files for tensor, t in f["tensors"].items()]

    def verify(self, name, *options, np=1):
        return runner.upcycle(self.configs[name], np=np, options=["--verify", *options])

    def found(self, name, *options, np=1):
        result = self.verify(name, "--json", *options, np=np)
        self.assertEqual((result.status, result.err), (DIFFERENT, ""), str(result))
        report = json.loads(result.out)
        self.assertFalse(report["good"])
        return report["differences"]

    def test_what_was_written_passes_and_is_left_alone(self):
        for name in self.configs:
            before = runner.hashes(self.folder, skip=())
            result = self.verify(name, np=1 + len(name) % 3)
            self.assertEqual((result.status, result.err), (0, ""), str(result))
            self.assertIn("verified  all weights", result.out)
            self.assertEqual(runner.hashes(self.folder, skip=()), before)

    def test_every_changed_weight_is_found(self):
        """The byte that was changed is the one that is named, where a tensor lies in its file as it is."""
        choose = random.Random(20241127)
        for name in self.configs:
            for k in range(FLIPS):
                places = list(places_of(self.out(name), self.weights(name)))
                path, tensor, start, size = choose.choice(places)
                at = start + choose.randrange(size)
                with flipped(path, at, 1 << choose.randrange(8)):
                    (difference,) = self.found(name, np=1 + k % 2)
                self.assertEqual(difference["file"], str(path.relative_to(self.out(name))))
                self.assertEqual((difference["tensor"], difference["byte"]), (tensor, at), difference)
                self.assertIn("1 of ", difference["what"])
        print("%d changed weights of outputs in %d formats were found" % (FLIPS * len(TARGETS), len(TARGETS)))

    def test_a_changed_weight_in_packed_pieces_is_found(self):
        """Outputs of a source that differs in one weight, held against the true source."""
        other = self.folder / "other"
        shutil.copytree(self.folder / "dense", other)
        path = next(p for p in other.rglob("*.pt") if "mp_rank_00" in p.parent.name)
        archive = damage.Archive(path)
        damage.flip_tensor_byte(archive, "decoder.layers.1.self_attention.linear_proj.weight", 101)
        archive.write()
        out = self.folder / "Mixtral-other"
        sets = ["--set", "source.path=%s" % other, "--set", "target.path=%s" % out]
        result = runner.upcycle(self.configs["deflate"], options=sets)
        self.assertEqual(result.status, 0, str(result))
        for np in (1, 2):
            (difference,) = self.found("deflate", *sets[2:], np=np)
            self.assertEqual(difference["tensor"], "model.layers.1.self_attn.o_proj.weight")
            self.assertIsNone(difference["byte"])
            self.assertIn("1 of 36864 weights", difference["what"])
            self.assertIn("the first at byte 101 of what is packed", difference["what"])

    def test_a_broken_piece_is_an_error_or_a_difference(self):
        placed = {(path, tensor) for path, tensor, _, _ in places_of(self.out("deflate"), self.weights("deflate"))}
        packed = [w for w in self.weights("deflate") if (self.out("deflate") / w[0], w[1]) not in placed]
        self.assertGreater(len(packed), 10)
        path = self.out("deflate") / packed[-1][0]
        with flipped(path, path.stat().st_size // 2, 1):
            result = self.verify("deflate", np=2)
        self.assertIn(result.status, (DIFFERENT, runner.DATA), str(result))

    def test_another_seed_is_refused_with_both_values(self):
        result = self.verify("hdf5", "--set", "upcycle.seed=3", np=2)
        self.assertEqual((result.status, len(result.errors())), (runner.CONFIG, 1), str(result))
        self.assertIn("'upcycle.seed: 1234', the configuration says '3'", result.err)

    def test_without_a_manifest_another_seed_is_found_in_all_that_is_drawn(self):
        for name in ("fused", "megatron-dist"):
            manifest = self.out(name) / runner.MANIFEST
            manifest.rename(self.folder / "away")
            try:
                self.assertEqual(self.verify(name).status, 0)
                differences = self.found(name, "--set", "upcycle.seed=3", np=2)
            finally:
                (self.folder / "away").rename(manifest)
            self.assertTrue(all("byte" in d for d in differences))
            kinds = {d["tensor"].split("layers.")[-1].lstrip("0123456789.") for d in differences}
            self.assertGreater(len(kinds), 2, kinds)
            self.assertFalse([k for k in kinds if "attn" in k or "attention" in k or "norm" in k], kinds)

    def test_a_target_elsewhere_and_a_source_in_another_format(self):
        """Where they lie is of no matter, nor how the source was split."""
        moved = self.folder / "moved"
        self.out("megatron-torch").rename(moved)
        other = self.folder / "as-hf"
        config = runner.write_config(self.folder / "hf.yaml", self.folder / "dense", other, mode="reshard",
                                     target__format="huggingface")  # fmt: skip
        try:
            result = runner.upcycle(config)
            self.assertEqual(result.status, 0, str(result))
            sets = ["--set", "target.path=%s" % moved, "--set", "source.path=%s" % other]
            result = self.verify("megatron-torch", *sets)
            self.assertEqual((result.status, result.err), (0, ""), str(result))
        finally:
            moved.rename(self.out("megatron-torch"))

    def test_another_model_and_what_is_not_there(self):
        result = self.verify("hdf5", "--set", "target.path=%s" % (self.folder / "nowhere"), np=2)
        self.assertEqual((result.status, len(result.errors())), (runner.NO_INPUT, 1), str(result))
        sets = ["--set", "target.path=%s" % self.out("shuffled")]
        result = self.verify("moe-recipes", *sets)  # of the same model, with other settings
        self.assertEqual(result.status, runner.CONFIG, str(result))
        index = next(self.out("moe-recipes").glob("*.safetensors"))
        index.rename(self.folder / "away")
        try:
            self.assertEqual(len(self.found("moe-recipes")), 1)
        finally:
            (self.folder / "away").rename(index)

    def test_it_goes_with_nothing_that_writes(self):
        for option in ("--force", "--resume", "--dry-run", "--discard"):
            result = self.verify("hdf5", option)
            self.assertEqual(result.status, runner.USAGE, str(result))
        result = runner.upcycle(self.configs["hdf5"], options=["--json"])
        self.assertEqual(result.status, runner.USAGE, str(result))


class flipped:
    """One byte of a file with other bits, and back."""

    def __init__(self, path, at, bits):
        self.path, self.at, self.bits = path, at, bits

    def turn(self):
        with open(self.path, "r+b") as file:
            file.seek(self.at)
            byte = file.read(1)[0]
            file.seek(self.at)
            file.write(bytes([byte ^ self.bits]))

    def __enter__(self):
        self.turn()

    def __exit__(self, *_):
        self.turn()


def places_of(out, weights):
    """(path, tensor, first byte, bytes) of each tensor that mgr-inspect finds at a place in its file."""
    listing = runner.run([runner.program("mgr-inspect"), "--json", out])
    assert listing.status == 0, str(listing)
    known = {(path, tensor): size for path, tensor, size in weights}
    for file in json.loads(listing.out)["files"]:
        path = pathlib.Path(file["path"])
        for t in file["tensors"]:
            size = known[(str(path.relative_to(out)), t["name"])]
            if t["offset"] + size <= file["bytes"]:
                yield path, t["name"], t["offset"], size


if __name__ == "__main__":
    unittest.main()
