"""Mistakes of this program that nothing but a test would notice: each test here was seen to fail on the
mistake that it is for, planted once."""

import os
import pathlib
import re
import shutil
import tempfile
import unittest
import zipfile

import damage
import runner

EXPERTS = 4


class Noticed(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="mgr-noticed-"))
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)

    def synth(self, *options):
        shape = "--layers 2 --hidden 64 --ffn 96 --heads 4 --kv-heads 2 --vocab 128 --seed 7 -q".split()
        source = self.folder / "dense"
        result = runner.run([runner.program("mgr-synth"), source, *shape, *options])
        self.assertEqual(result.status, 0, str(result))
        return source

    def convert(self, source, name="Mixtral", options=(), env=None, status=0, np=2, **changes):
        """Only where it is said to may a run fail, and then with one message and nothing published."""
        target = self.folder / name
        config = runner.write_config(self.folder / (name + ".yaml"), source, target, **changes)
        result = runner.upcycle(config, np=np, options=options, env=env)
        self.assertEqual(result.status, status, str(result))
        self.assertEqual(len(result.errors()), 1 if status else 0, str(result))
        self.assertEqual(target.exists(), status == 0, str(result))
        return target if status == 0 else result

    def tensors(self, path):
        """{name: bytes} of the model in a torch file."""
        archive = damage.Archive(path)
        return {
            name: archive.members[member][at : at + n] for name, (member, at, n) in archive.tensors().items()
        }

    # ---- reading

    def test_units_that_end_within_a_tensor_are_read_whole(self):
        source = self.synth("--tp", "2", "--pp", "2")
        for target in ("moe-recipes", "megatron-torch"):
            whole = runner.hashes(self.convert(source, "Mixtral-whole-" + target, target__format=target))
            cut = self.convert(
                source, "Mixtral-cut-" + target, ["--unit-bytes", "1024"], target__format=target
            )
            self.assertEqual(runner.hashes(cut), whole)

    def test_a_flipped_bit_is_not_what_the_archive_says(self):
        """The archive's two checksums agree, so that only the sum over what was read can tell."""
        path = next(self.synth().rglob("*.pt"))
        with zipfile.ZipFile(path) as archive:
            largest = max(archive.infolist(), key=lambda info: info.file_size)
        content = bytearray(path.read_bytes())
        names = int.from_bytes(content[largest.header_offset + 26 : largest.header_offset + 28], "little")
        extra = int.from_bytes(content[largest.header_offset + 28 : largest.header_offset + 30], "little")
        content[largest.header_offset + 30 + names + extra + largest.file_size // 2] ^= 1
        path.write_bytes(content)
        result = self.convert(self.folder / "dense", status=runner.DATA)
        self.assertRegex(result.errors()[0], "is damaged: CRC-32 of .*%s" % re.escape(largest.filename))

    # ---- making

    def rows(self, matrix, n):
        return [matrix[i * len(matrix) // n : (i + 1) * len(matrix) // n] for i in range(n)]

    def test_biases_go_where_shuffle_sends_their_neurons(self):
        source = self.synth("--bias", "--activation", "gelu", "--norm", "layernorm")
        dense = self.tensors(next(source.rglob("*.pt")))
        target = self.convert(
            source, target__format="megatron-torch", upcycle__shuffle=True, upcycle__experts=EXPERTS
        )
        moe = self.tensors(next(target.rglob("*.pt")))
        moved = 0
        for layer in range(2):
            mlp = "decoder.layers.%d.mlp." % layer
            neurons = self.rows(dense[mlp + "linear_fc1.weight"], 96)
            biases = self.rows(dense[mlp + "linear_fc1.bias"], 96)
            self.assertGreater(len(set(biases)), 80)  # so that one tells where it came from
            for e in range(EXPERTS):
                expert = mlp + "experts.local_experts.%d.linear_fc1." % e
                to = self.rows(moe[expert + "bias"], 96)
                self.assertEqual(sorted(to), sorted(biases))
                for i, neuron in enumerate(self.rows(moe[expert + "weight"], 96)):
                    if neuron in neurons:  # one that was kept
                        self.assertEqual(to[i], biases[neurons.index(neuron)], (layer, e, i))
                        moved += neurons.index(neuron) != i
        self.assertGreater(moved, 96)

    def test_the_bias_of_a_router_starts_at_zero(self):
        source = self.synth("--bias")
        target = self.convert(source, target__format="megatron-torch", upcycle__experts=EXPERTS)
        moe = self.tensors(next(target.rglob("*.pt")))
        for layer in range(2):
            bias = moe["decoder.layers.%d.mlp.router.bias" % layer]
            self.assertEqual(bias, bytes(len(bias)))
            self.assertIn(len(bias), (2 * EXPERTS, 4 * EXPERTS))

    # ---- writing and publishing

    def test_all_that_is_published_was_made_durable(self):
        source = self.synth()
        for target in ("moe-recipes", "megatron-torch", "megatron-dist", "hdf5"):
            log = self.folder / ("fsync-" + target)
            env = {
                "LD_PRELOAD": os.environ["MGR_LOG_FSYNC"],
                "LOG_FSYNC": str(log),
                "ASAN_OPTIONS": "verify_asan_link_order=0",
            }
            out = self.convert(source, "Mixtral-" + target, env=env, target__format=target)
            synced = {re.sub(r"\.partial-[^/]*", "", line) for line in log.read_text().splitlines()}
            wanted = {str(path) for path in [self.folder, out, *out.rglob("*")]}
            self.assertEqual(wanted - synced, set(), target)

    def test_a_misspelt_key_is_not_published(self):
        """Megatron's loader falls back to loading what names it finds. Most misspellings leave no model;
        one that does ("key": the plan has another name than the file) is for the comparison of keys."""
        source = self.synth()
        for fault in ("name:1", "name:9", "key:1", "key:9"):
            result = self.convert(
                source,
                env={"MGR_FAULT": fault},
                status=runner.INTERNAL,
                target__format="megatron-torch",
            )
            self.assertRegex(result.errors()[0], "self-check of the output: tensor '")

    def test_a_source_that_changed_its_time_is_not_resumed(self):
        """A safetensors file has no checksums of its own: size and time are all there is."""
        shape = "--format huggingface --layers 2 --hidden 64 --ffn 96 --heads 4 --vocab 128 -q".split()
        source, target = self.folder / "hf", self.folder / "Mixtral"
        self.assertEqual(runner.run([runner.program("mgr-synth"), source, *shape]).status, 0)
        config = runner.write_config(self.folder / "run.yaml", source, target)
        fault = {"MGR_FAULT": "rank:1,pwrite:8:kill"}
        self.assertNotEqual(runner.upcycle(config, options=["--journal", "0"], env=fault).status, 0)
        weights = next(source.glob("*.safetensors"))
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
        result = runner.upcycle(config, options=["--resume"])
        self.assertNotEqual(result.status, 0, str(result))
        self.assertIn("source", result.errors()[0])
        self.assertFalse(target.exists())


if __name__ == "__main__":
    unittest.main()
