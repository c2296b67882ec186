"""Bad input from outside: the right exit code, one message, no hang, nothing left behind. Each
case runs with one rank and with three, where the ranks must agree."""

import os
import pathlib
import re
import shutil
import struct
import subprocess
import tempfile
import unittest

import damage
import runner

# What makes the file system look full: the fault hook of builds with tests (src/io/fault.h).
FULL_DISK = {"MGR_FAULT": "space:1"}

RANKS = (1, 3)
TP, PP = 2, 2


class BadInput(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(tempfile.mkdtemp(prefix="mgr-cli-"))
        cls.addClassCleanup(shutil.rmtree, cls.folder, ignore_errors=True)
        cls.good = runner.synth(cls.folder / "good", tp=TP, pp=PP)

    def setUp(self):
        self.place = pathlib.Path(tempfile.mkdtemp(dir=self.folder))
        self.addCleanup(shutil.rmtree, self.place, ignore_errors=True)
        self.source = self.place / "dense"
        shutil.copytree(self.good, self.source)
        self.outputs = self.place / "out"  # nothing but the target may ever appear here
        self.outputs.mkdir()
        self.target = self.outputs / "Mixtral"

    def file(self, t=0, p=0):
        (found,) = self.source.glob("iter_*/mp_rank_%02d_%03d/model_optim_rng.pt" % (t, p))
        return found

    def file_path(self, t, p):
        return self.source / "iter_0000001" / ("mp_rank_%02d_%03d" % (t, p)) / "model_optim_rng.pt"

    def restore(self, t, p):
        path = self.file(t, p)
        shutil.copy(self.good / path.relative_to(self.source), path)

    def archive(self, t=0, p=0):
        return damage.Archive(self.file(t, p))

    def config(self, **changes):
        return runner.write_config(self.place / "run.yaml", self.source, self.target, **changes)

    def refused(self, status, *words, config=None, options=(), env=None, left=()):
        """Run with one and three ranks; both must end with `status` and one error message that
        holds every one of `words` (a str, or a pattern), and leave only `left` in the outputs."""
        config = config or self.config()
        before = runner.hashes(self.source, skip=())
        for np in RANKS:
            with self.subTest(ranks=np):
                result = runner.upcycle(config, np=np, options=options, env=env, timeout=30)
                told = str(result)
                self.assertEqual(result.status, status, told)
                self.assertEqual(len(result.errors()), 1, told)
                hints = [line for line in result.err.splitlines() if "hint:" in line]
                self.assertLessEqual(len(hints), 1, told)
                message = "\n".join(result.errors() + hints)
                for word in words:
                    found = word.search(message) if isinstance(word, re.Pattern) else str(word) in message
                    self.assertTrue(found, "%r is not in the message\n%s" % (word, told))
                self.assertEqual(sorted(os.listdir(self.outputs)), sorted(left), told)
        self.assertEqual(runner.hashes(self.source, skip=()), before, "the source was touched")

    def accepted(self, config=None, options=(), env=None, np=2):
        result = runner.upcycle(config or self.config(), np=np, options=options, env=env, timeout=60)
        self.assertEqual(result.status, 0, str(result))
        self.assertEqual(result.errors(), [], str(result))
        self.assertEqual(os.listdir(self.outputs), [] if "--dry-run" in options else [self.target.name])
        return result


class Checkpoint(BadInput):
    # ---- nothing is wrong: the ground on which the others stand

    def test_undamaged(self):
        self.accepted()
        self.assertTrue((self.target / "model.safetensors.index.json").is_file())

    def test_rewritten_by_another_zip_writer(self):
        self.accepted()
        expected = runner.hashes(self.target)
        shutil.rmtree(self.target)
        for t in range(TP):
            for p in range(PP):
                self.archive(t, p).write()
        self.accepted()
        self.assertEqual(runner.hashes(self.target), expected)

    # ---- missing

    def test_missing_shard(self):
        shutil.rmtree(self.file(1, 1).parent)
        self.refused(runner.NO_INPUT, "mp_rank_01_001")

    def test_missing_file_in_shard(self):
        self.file(1, 0).unlink()
        self.refused(runner.NO_INPUT, "mp_rank_01_000")

    def test_missing_tracker(self):
        (self.source / "latest_checkpointed_iteration.txt").unlink()
        self.refused(runner.NO_INPUT, "latest_checkpointed_iteration.txt")

    def test_missing_source(self):
        self.refused(runner.NO_INPUT, "nowhere", config=self.config(source__path=str(self.place / "nowhere")))

    def test_missing_iteration(self):
        self.refused(runner.NO_INPUT, "4711", config=self.config(source__iteration=4711))

    # ---- not a file, or not to be taken for one

    def test_fifo(self):
        """Nobody writes into it: opening it must not wait."""
        for path in (self.file(1, 0), self.source / "latest_checkpointed_iteration.txt"):
            with self.subTest(file=path.name):
                content = path.read_bytes()
                path.unlink()
                os.mkfifo(path)
                try:
                    self.refused(runner.DATA, path, "not a regular file")
                finally:
                    path.unlink()
                    path.write_bytes(content)
        os.mkfifo(self.source / "tokenizer.json")
        self.refused(runner.DATA, "tokenizer.json", "not a regular file")

    def test_directory_in_place_of_a_file(self):
        path = self.file(1, 0)
        path.unlink()
        path.mkdir()
        self.refused(runner.DATA, "mp_rank_01_000", "not a regular file")

    def test_links_within_the_source_are_followed(self):
        path = self.file(1, 0)
        path.rename(self.source / "shard.pt")
        path.symlink_to(self.source / "shard.pt")
        self.accepted()
        (self.source / "shard.pt").unlink()
        self.refused(runner.NO_INPUT, "mp_rank_01_000", left=["Mixtral"], options=["--force"])

    def test_a_link_out_of_the_source(self):
        path = self.file(1, 0)
        path.rename(self.place / "shard.pt")
        path.symlink_to(self.place / "shard.pt")
        self.refused(runner.DATA, "is a link to a place outside", "hint:")

    def test_tracker_that_is_no_word(self):
        for text in ("rel", "", "released", "-1", "1 2", "0x1"):
            with self.subTest(tracker=text):
                (self.source / "latest_checkpointed_iteration.txt").write_text(text)
                self.refused(runner.DATA, "latest_checkpointed_iteration.txt")

    # ---- the zip container

    def test_truncated_zip(self):
        raw = self.file(1, 0).read_bytes()
        for length in (len(raw) // 2, len(raw) - 7, 3, 0):
            with self.subTest(length=length):
                self.file(1, 0).write_bytes(raw[:length])
                self.refused(runner.DATA, "mp_rank_01_000")

    def test_no_zip_at_all(self):
        self.file(0, 1).write_bytes(b"\x80\x02}q\x00." + bytes(4096))
        self.refused(runner.DATA, "mp_rank_00_001")

    def test_wrong_crc_of_a_data_record(self):
        damage.wrong_crc(self.file(1, 1), lambda name: "/data/" in name)
        self.refused(runner.DATA, "mp_rank_01_001", re.compile("crc", re.I))

    def test_wrong_crc_of_the_pickle(self):
        damage.wrong_crc(self.file(0, 1), lambda name: name.endswith("/data.pkl"))
        self.refused(runner.DATA, "mp_rank_00_001", re.compile("crc", re.I))

    def test_deflated_member(self):
        archive = self.archive(1, 0)
        archive.write(deflated=[next(name for name in archive.members if "/data/" in name)])
        self.refused(runner.DATA, "mp_rank_01_000", re.compile("deflate|compress", re.I))

    def test_deflated_pickle(self):
        archive = self.archive(1, 0)
        archive.write(deflated=[archive.pickle_name])
        self.refused(runner.DATA, "mp_rank_01_000")

    def test_missing_record(self):
        archive = self.archive(0, 0)
        member = archive.tensors()["decoder.layers.0.mlp.linear_fc2.weight"][0]
        del archive.members[member]
        archive.write()
        self.refused(runner.DATA, "mp_rank_00_000")

    def test_short_record(self):
        archive = self.archive(0, 0)
        member = archive.tensors()["decoder.layers.0.mlp.linear_fc2.weight"][0]
        archive.members[member] = archive.members[member][:-64]
        archive.write()
        self.refused(runner.DATA, "mp_rank_00_000")

    # ---- the pickle

    def test_unknown_global_that_would_run_code(self):
        canary = self.place / "canary"
        archive = self.archive(1, 1)
        call = b"cposix\nsystem\n(" + damage.text_op("touch '%s'" % canary) + b"tR0"
        archive.pickle = archive.pickle[:2] + call + archive.pickle[2:]
        archive.write()
        self.refused(runner.DATA, "mp_rank_01_001", "posix", "system")
        self.assertFalse(canary.exists())

    def test_unknown_global_in_place_of_a_known_one(self):
        archive = self.archive(0, 1)
        archive.pickle = archive.pickle.replace(
            b"c" + b"torch._utils\n_rebuild_tensor_v2\n", b"c" + b"builtins\neval\n"
        )
        archive.write()
        self.refused(runner.DATA, "mp_rank_00_001", "builtins", "eval")

    def test_truncated_pickle(self):
        archive = self.archive(0, 0)
        archive.pickle = archive.pickle[: len(archive.pickle) // 2]
        archive.write()
        self.refused(runner.DATA, "mp_rank_00_000")

    # ---- what the tensors say

    def test_shape_that_contradicts_args(self):
        for name, value in (
            ("hidden_size", 72),
            ("ffn_hidden_size", 88),
            ("num_layers", 6),
            ("num_query_groups", 1),
        ):
            with self.subTest(arg=name):
                for t in range(TP):
                    for p in range(PP):
                        self.restore(t, p)
                        archive = self.archive(t, p)
                        damage.set_int_arg(archive, name, value)
                        archive.write()
                self.refused(runner.DATA)

    def test_absurd_args(self):
        for name in ("num_layers", "hidden_size", "num_attention_heads", "kv_channels"):
            for value in (0, -1, 1000000000, 2**31 - 1, -(2**31)):
                with self.subTest(arg=name, value=value):
                    for t in range(TP):
                        for p in range(PP):
                            self.restore(t, p)
                            archive = self.archive(t, p)
                            damage.set_int_arg(archive, name, value)
                            archive.write()
                    self.refused(runner.DATA)

    def test_args_that_are_no_numbers(self):
        for value in (float("nan"), float("inf"), -1.0, 1e300):
            with self.subTest(norm_epsilon=value):
                for t in range(TP):
                    for p in range(PP):
                        self.restore(t, p)
                        archive = self.archive(t, p)
                        at = archive.pickle.index(b"G", archive.pickle.index(b"norm_epsilon")) + 1
                        real = struct.pack(">d", value)
                        archive.pickle = archive.pickle[:at] + real + archive.pickle[at + 8 :]
                        archive.write()
                self.refused(runner.DATA, "norm_epsilon")

    def test_a_name_alone_makes_no_million_layers(self):
        for t in range(TP):
            for p in range(PP):
                archive = self.archive(t, p)
                damage.rename_tensor(
                    archive,
                    "decoder.layers.0.mlp.linear_fc2.weight",
                    "decoder.layers.999999.mlp.linear_fc2.weight",
                )
                archive.write()
        self.refused(runner.DATA, "layers")

    def test_sizes_in_the_config_that_contradict_args(self):
        self.refused(runner.CONFIG, "hidden_size", config=self.config(model__hidden_size=128))

    def test_a_replicated_tensor_that_differs_between_tp_ranks(self):
        """Found wherever it differs; the message names the tensor, the file and the byte."""
        attention_norm = "decoder.layers.0.self_attention.linear_qkv.layer_norm_weight"  # layer 1 of 2
        for name, words, at in (
            (attention_norm, "layer 1 attention norm", 0),
            (attention_norm, "layer 1 attention norm", 127),  # the last byte of 64 bf16 values
            ("decoder.final_layernorm.weight", "final norm", 64),
        ):
            with self.subTest(tensor=name, byte=at):
                self.restore(1, 1)
                archive = self.archive(1, 1)
                damage.flip_tensor_byte(archive, name, at)
                archive.write()
                place = damage.tensor_place(self.file(1, 1), name, at) - at % 2  # of the element
                self.refused(runner.DATA, words, "mp_rank_01_001", "at byte %d " % place)

    def test_unknown_tensor(self):
        archive = self.archive(0, 1)
        damage.add_tensor_after(
            archive, "decoder.layers.0.mlp.linear_fc1.weight", "decoder.layers.0.mlp.linear_fc9.weight"
        )
        archive.write()
        self.refused(runner.DATA, "decoder.layers.0.mlp.linear_fc9.weight")

    def test_unknown_bias(self):
        archive = self.archive(0, 0)
        damage.add_tensor_after(
            archive, "decoder.layers.0.mlp.linear_fc1.weight", "decoder.layers.0.mlp.linear_fc1.bias"
        )
        archive.write()
        self.refused(runner.DATA, "decoder.layers.0.mlp.linear_fc1.bias")

    def test_missing_tensor(self):
        archive = self.archive(1, 0)
        damage.rename_tensor(
            archive, "decoder.layers.0.mlp.linear_fc2.weight", "decoder.layers.7.mlp.linear_fc2.weight"
        )
        archive.write()
        self.refused(runner.DATA, re.compile(r"linear_fc2|layers\.7|layer"))

    def test_a_stage_twice(self):
        shutil.copy(self.file(0, 0), self.file(0, 1))
        shutil.copy(self.file(1, 0), self.file(1, 1))
        self.refused(runner.DATA)


class Config(BadInput):
    def at(self, line, column, path=None):
        """The message begins with the place."""
        return re.compile(
            r"^(?:mgr-upcycle: error: )?%s:%d:%d: "
            % (re.escape(str(path or self.place / "run.yaml")), line, column)
        )

    def refused_text(self, old, new, line, column, *words):
        config = self.config()
        text = config.read_text()
        self.assertEqual(text.count(old), 1, text)
        config.write_text(text.replace(old, new))
        self.assertEqual(len(re.findall(r"\n", text[: text.index(old)])) + 1, line, text)
        self.refused(runner.CONFIG, self.at(line, column), *words, config=config)

    # A wrong value is reported at its key. Lines of the file: 1 mode, 2 source: 3 path, 4 upcycle:
    # 5 method 6 experts 7 top_k 8 ratio 9 seed, 10 target: 11 path 12 format.

    def test_threads_that_write(self):
        for said in ("17", "-1", "1.5", "many", "2 "):
            self.refused_text("mode: upcycle", "io_threads: '%s'" % said, 1, 1, "'io_threads' is '%s'" % said)

    def test_unknown_key_has_its_place_and_the_nearest_key(self):
        self.refused_text("  ratio: 0.5", "  ratoi: 0.5", 8, 3, "ratoi", re.compile("ratio"))

    def test_unknown_section(self):
        self.refused_text("target:", "targte:", 10, 1, "targte", "target")

    def test_duplicate_key(self):
        config = self.config()
        config.write_text(config.read_text().replace("  seed: 1234", "  seed: 1234\n  ratio: 0.5"))
        self.refused(runner.CONFIG, self.at(10, 3), "ratio", config=config)

    def test_wrong_type(self):
        self.refused_text("  experts: 4", "  experts: four", 6, 3, "experts")

    def test_ratio_outside_of_zero_to_one(self):
        for value in ("1.5", "-0.1", ".nan", "1e999"):
            with self.subTest(ratio=value):
                self.refused_text("  ratio: 0.5", "  ratio: " + value, 8, 3, "ratio")

    def test_ratio_on_the_command_line(self):
        self.refused(runner.USAGE, "ratio", options=["--set", "upcycle.ratio=1.01"])

    def test_ratio_that_selects_no_neuron(self):
        self.refused(runner.CONFIG, "ratio", config=self.config(upcycle__ratio=0.01))  # 0.96 of 96

    def test_unknown_method_and_router(self):
        self.refused_text("  method: drop", "  method: dorp", 5, 3, "dorp")
        self.refused(runner.CONFIG, "gauss", config=self.config(upcycle__router="gauss"))

    def test_experts_not_divisible_by_expert_parallel(self):
        self.refused(
            runner.CONFIG,
            re.compile("expert.parallel"),
            config=self.config(upcycle__experts=6, target__expert_parallel=4),
        )

    def test_more_chosen_than_there_are(self):
        self.refused(runner.CONFIG, "top_k", config=self.config(upcycle__top_k=5))

    def test_required_key_is_absent(self):
        self.refused(runner.CONFIG, "target.path", config=self.config(target__path=None))

    def test_not_yaml(self):
        config = self.config()
        config.write_text("mode: [upcycle\nsource: }\n")
        self.refused(runner.CONFIG, re.compile(r"run\.yaml:\d+:\d+: "), config=config)

    def test_anchors_and_aliases(self):
        self.refused_text("  seed: 1234", "  seed: &x 1234", 9, 9)

    def test_empty_file(self):
        config = self.config()
        config.write_text("")
        self.refused(runner.CONFIG, config=config)

    def test_config_is_absent(self):
        self.refused(runner.NO_INPUT, "absent.yaml", config=self.place / "absent.yaml")

    def test_vocabulary_larger_than_the_file(self):
        self.refused(runner.CONFIG, "vocab_size", config=self.config(model__vocab_size=1 << 20))


class Target(BadInput):
    def test_exists(self):
        self.target.mkdir()
        (self.target / "keep").write_text("me")
        self.refused(runner.CANNOT_CREATE, self.target, left=["Mixtral"])
        self.assertEqual([p.name for p in self.target.iterdir()], ["keep"])

    def test_exists_as_a_file(self):
        self.target.write_text("me")
        self.refused(runner.CANNOT_CREATE, self.target, left=["Mixtral"])
        self.assertEqual(self.target.read_text(), "me")

    def test_force_keeps_the_old_output_when_the_run_fails(self):
        self.accepted()
        before = runner.hashes(self.target, skip=())
        self.file(1, 1).unlink()
        self.refused(runner.NO_INPUT, options=["--force"], left=["Mixtral"])
        self.assertEqual(runner.hashes(self.target, skip=()), before)

    def test_below_a_regular_file(self):
        (self.place / "file").write_text("")
        self.refused(
            runner.CANNOT_CREATE, config=self.config(target__path=str(self.place / "file" / "Mixtral"))
        )

    def test_where_nothing_can_be_created(self):
        self.refused(runner.CANNOT_CREATE, config=self.config(target__path="/proc/Mixtral"))

    def test_full_disk(self):
        self.refused(runner.CANNOT_CREATE, re.compile("free|space"), env=FULL_DISK)

    def test_dry_run_writes_nothing(self):
        result = self.accepted(options=["--dry-run"])
        self.assertTrue(result.out.strip(), str(result))

    def test_holds_the_source(self):
        """Not even --force removes what is being read."""
        outside = self.source.rename(self.place / "elsewhere")
        self.target.mkdir()
        self.source = self.target / "dense"
        outside.rename(self.source)
        for target in (self.source, self.source / "iter_0000001", self.target, self.file(1, 1).parent):
            for options in ([], ["--force"], ["--force", "--dry-run"]):
                with self.subTest(target=target, options=options):
                    self.refused(
                        runner.CANNOT_CREATE,
                        "holds the source",
                        config=self.config(target__path=target),
                        options=options,
                        left=["Mixtral"],
                    )

    def test_holds_a_shard_behind_a_link(self):
        self.target.mkdir()
        self.file(0, 1).rename(self.target / "shard.pt")
        self.file_path(0, 1).symlink_to(self.target / "shard.pt")
        self.refused(runner.DATA, "is a link to a place outside", options=["--force"], left=["Mixtral"])

    def test_force_replaces_a_link_and_not_what_it_points_to(self):
        kept = self.place / "kept"
        kept.mkdir()
        (kept / "file").write_text("me")
        self.target.symlink_to(kept)
        self.refused(runner.CANNOT_CREATE, "exists", left=["Mixtral"])
        self.accepted(options=["--force"])
        self.assertFalse(self.target.is_symlink())
        self.assertEqual((kept / "file").read_text(), "me")

    def test_inside_the_source(self):
        """The source is opened for reading only; a target in it is the user's choice or refused,
        and never changes a file that was there."""
        before = runner.hashes(self.source)
        runner.upcycle(self.config(target__path=str(self.source / "Mixtral")), timeout=30)
        after = {k: v for k, v in runner.hashes(self.source).items() if not k.startswith("Mixtral")}
        self.assertEqual(after, before)


class CommandLine(BadInput):
    def alone(self, name, *words, timeout=20):
        """Without mpiexec."""
        return runner.run([runner.program(name), *words], timeout, cwd=self.place)

    def test_help_and_version_without_mpiexec(self):
        for name in ("mgr-upcycle", "mgr-inspect", "mgr-synth"):
            for option in ("--help", "--version"):
                with self.subTest(program=name, option=option):
                    result = self.alone(name, option)
                    self.assertEqual(result.status, 0, str(result))
                    self.assertEqual(result.err, "", str(result))
                    self.assertIn(name, result.out)
        self.assertRegex(self.alone("mgr-upcycle", "--version").out, r"\d+\.\d+\.\d+")
        text = self.alone("mgr-upcycle", "--help").out
        for option in ("--dry-run", "--force", "--set", "--progress", "--help", "--version", "-q", "-v"):
            self.assertIn(option, text)

    def test_get_prints_a_key_for_scripts(self):
        config = self.config(target__path="/scratch/a b/Mixtral")
        for key, value in (("target.path", "/scratch/a b/Mixtral"), ("upcycle.experts", "4"), ("mode", "upcycle")):
            result = self.alone("mgr-upcycle", "--get", key, config)
            self.assertEqual((result.status, result.out, result.err), (0, value + "\n", ""), str(result))
        for key in ("target.pat", "upcycle", "target.tensor_parallel"):
            result = self.alone("mgr-upcycle", "--get", key, config)
            self.assertEqual(result.status, runner.USAGE, str(result))
            self.assertIn("this configuration has no such key", result.err)
        self.assertEqual(self.alone("mgr-upcycle", "--get", "mode", "absent.yaml").status, runner.NO_INPUT)

    @unittest.skipIf(runner.SANITIZED, "sanitizers use more memory than this")
    def test_the_peak_of_memory_is_not_of_what_started_it(self):
        """getrusage's, which outlives exec, is."""
        ballast = bytearray(b"x") * (400 << 20)
        argv = [runner.program("mgr-upcycle"), self.config()]  # directly, as mpiexec would start it
        told = subprocess.run(argv, capture_output=True, text=True, timeout=120).stdout
        del ballast
        (peak,) = re.findall(r"memory +([\d.]+) MiB +peak of the largest rank", told)
        self.assertLess(float(peak), 200, told)

    def test_usage_errors(self):
        config = self.config()
        for words in (
            [],
            [config, config],
            ["--no-such-option", config],
            ["--set"],
            ["--set", "ratio", config],
            ["--progress", "soon", config],
            ["--progress", "-1", config],
        ):
            with self.subTest(words=words):
                result = self.alone("mgr-upcycle", *words)
                self.assertEqual(result.status, runner.USAGE, str(result))
                self.assertEqual(len(result.errors()), 1, str(result))
        for np in RANKS:
            result = runner.upcycle(config, np=np, options=["--no-such-option"], timeout=30)
            self.assertEqual((result.status, len(result.errors())), (runner.USAGE, 1), str(result))

    def test_set_of_an_unknown_key(self):
        self.refused(runner.USAGE, "upcycle.ratoi", "upcycle.ratio", options=["--set", "upcycle.ratoi=0.5"])

    def test_set_wins_over_the_file(self):
        self.accepted(config=self.config(upcycle__experts=2), options=["--set", "upcycle.experts=3", "-q"])
        self.assertIn('"num_local_experts": 3', (self.target / "config.json").read_text())

    def test_warns_when_moe_recipes_would_not_know_the_model(self):
        """It picks the model's class by a word in the path."""
        self.assertNotIn("warning", self.accepted().err)
        self.target = self.outputs / "8x1.5B"
        shutil.rmtree(self.outputs / "Mixtral")
        self.assertRegex(self.accepted().err, r"warning: .*Mixtral")
        shutil.rmtree(self.target)
        self.target = self.outputs / "Llama-to-Mixtral"  # the first word counts
        self.assertRegex(self.accepted().err, r"(?s)warning: .*another model.*word Llama")

    def test_alone_it_is_one_rank(self):
        result = self.alone("mgr-upcycle", self.config(), timeout=60)
        self.assertEqual(result.status, 0, str(result))

    def test_other_programs_usage_errors(self):
        for words in (
            ["mgr-inspect"],
            ["mgr-inspect", "--no-such-option"],
            ["mgr-synth"],
            ["mgr-synth", self.place / "x", "--layers", "none"],
        ):
            result = self.alone(*words)
            self.assertEqual((result.status, len(result.errors())), (runner.USAGE, 1), str(result))
        self.assertFalse((self.place / "x").exists())

    def test_inspect(self):
        result = self.alone("mgr-inspect", self.source)
        self.assertEqual(result.status, 0, str(result))
        for word in ("linear_fc1", "bf16|bfloat16|BF16"):
            self.assertRegex(result.out, word)
        self.accepted()
        result = self.alone("mgr-inspect", self.target)
        self.assertEqual(result.status, 0, str(result))
        self.assertIn("model.layers.1.block_sparse_moe.experts.3.w2.weight", result.out)

    def test_inspect_of_nothing_and_of_damage(self):
        self.assertEqual(self.alone("mgr-inspect", self.place / "nowhere").status, runner.NO_INPUT)
        raw = self.file().read_bytes()
        self.file().write_bytes(raw[: len(raw) // 2])
        result = self.alone("mgr-inspect", self.source)
        self.assertEqual((result.status, len(result.errors())), (runner.DATA, 1), str(result))

    def test_synth_is_deterministic_and_refuses_an_existing_folder(self):
        again = runner.synth(self.place / "again", tp=TP, pp=PP)
        self.assertEqual(runner.hashes(again), runner.hashes(self.good))
        result = self.alone(
            "mgr-synth",
            again,
            "--layers",
            2,
            "--hidden",
            64,
            "--ffn",
            96,
            "--heads",
            4,
            "--kv-heads",
            2,
            "--vocab",
            128,
        )
        self.assertEqual(result.status, runner.CANNOT_CREATE, str(result))


if __name__ == "__main__":
    unittest.main()
