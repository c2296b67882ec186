"""What the programs say on a terminal and in a log: the page of a dry run, its agreement with the run, widths.

The rule of widths: no line has more than 80 columns, but for one that a single word fills that has no blank to break at, as
a long path. The exception is an error in a log or a pipe, which is one line there, for grep, and its hint another. The
captures are made with short paths, so that in them nothing is wider on a terminal."""

import contextlib
import json
import os
import pathlib
import re
import subprocess
import tempfile
import unittest
import zipfile

import runner

WIDTH = 80
GOLDEN = pathlib.Path(__file__).parents[1] / "data" / "golden" / "terminal.txt"
# Lines that are about a format's fields, which have tests of their own.
OTHERS = ("set", "note", "next", "carried", "altered", "dropped", "unknown")
# What a machine and a clock decide.
MASKS = (
    (r"mgr-upcycle \d+\.\d+\.\d+", "mgr-upcycle VERSION"),
    (r"[\d.]+ [KMGT]iB free", "N free"),
    (r"^quota .*", "quota     N"),
    (r"[\d.]+ GiB/s", "N GiB/s"),
    (r"^memory +[\d.]+ [MG]iB on", "memory    N on"),
    (r"with [\d.]+ MiB of", "with N of"),
    (r"^memory +[\d.]+ MiB +peak", "memory    N   peak"),
    (r"^seconds .*", "seconds N"),
    (r"[\d.]+ % more", "N % more"),
)
ERRORS = {  # name: text of the configuration, options; SOURCE and OUT are paths
    "unknown key": ("source: {path: SOURCE}\ntarget: {path: OUT}\nupcycle:\n  ratoi: 1\n", ()),
    "foreign key": ("source: {path: SOURCE}\ntarget:\n  compression: deflate\n  path: OUT\n", ()),
    "key of a mode": ("mode: reshard\nsource: {path: SOURCE}\ntarget: {path: OUT}\nupcycle: {seed: 1}\n", ()),
    "unknown format": ("source: {path: SOURCE}\ntarget:\n  format: mixtrall\n  path: OUT\n", ()),
    "tab": ("source:\n\tpath: SOURCE\n", ()),
    "two meanings": ("memory_per_rank: 2G\nsource: {path: SOURCE}\ntarget: {path: OUT}\n", ()),
    "home": ("source: {path: ~/x}\ntarget: {path: OUT}\n", ()),
    "hub": ("source: {path: nobody/no-model}\ntarget: {path: OUT}\n", ()),
    "dense": ("mode: reshard\nsource: {path: SOURCE}\ntarget: {path: OUT}\n", ()),
    "ranks": ("source: {path: SOURCE}\ntarget: {path: OUT}\n", ("--ranks", 2)),
    "experts": ("source: {path: SOURCE}\ntarget:\n  expert_parallel: 3\n  path: OUT\n", ("--dry-run",)),
}


class Terminal(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.place = pathlib.Path(folder.name)
        cls.source = runner.synth(cls.place / "dense", tp=2, pp=2)

    def config(self, name, **changes):
        self.target = self.place / ("Mixtral-" + name)
        return runner.write_config(self.place / (name + ".yaml"), self.source, self.target, **changes)

    def alone(self, *words):
        """Without mpiexec, and without MPI's own way to be told of one."""
        return runner.run([runner.program("mgr-upcycle"), *words], 60)

    def fits(self, text):
        """No line is too long, but for one whose last word is a path that began where lines begin."""
        for line in text.splitlines():
            *before, last = line.split() or [""]
            alone = len(line) - len(last) <= len("mgr-upcycle: error: ") and str(self.place) in last
            self.assertTrue(len(line) <= WIDTH or alone, line)

    @staticmethod
    def masked(text):
        kept, skip = [], False
        for line in text.splitlines():
            skip = line.split(" ")[0] in OTHERS or (skip and line.startswith("   "))
            for pattern, word in MASKS:
                line = re.sub(pattern, word, line)
            kept += [] if skip else [line]
        return "\n".join(kept) + "\n"

    @staticmethod
    def shapes(lines):
        """Each form of a line once, without its numbers."""
        masked = (re.sub(r"[\d:]+ left", "TIME left", re.sub(r"^\d\d [\d:]{8}", "DD HH:MM:SS", x)) for x in lines)
        masked = (re.sub(r"[\d.]+ ([KM]iB|B|GiB/s|%)", r"N \1", re.sub(r" +", " ", line)) for line in masked)
        masked = (re.sub(r"N (KiB|B) of", "N KiB of", line) for line in masked)
        steady = (line for line in masked if re.search(r"\b(write|publish)\b", line))  # others may be too short to say
        return "\n".join(dict.fromkeys(steady)) + "\n"

    def capture(self):
        """{title: what is said}, from the folder of source and target, so that paths are short."""
        options = self.alone("--help").out.split("CONFIG is YAML")[0]
        page, log, terminal = (self.short("golden" + name, target__expert_parallel=2) for name in ("", "-log", "-tty"))
        said = {"options": options}
        said["dry run"] = self.here("-n", "--ranks", 64, page).out
        said["details of a dry run"] = "details " + self.here("-n", "--ranks", 64, "-v", page).out.split("\ndetails ")[1].split("\n\n")[0]
        said["run"] = self.here(page, np=2).out
        said["progress in a log"] = self.shapes(self.here("-p", "0.000001", log, np=2).err.splitlines())
        lines = self.on_a_terminal("-p", "0.000001", terminal, cwd=self.place)[1].decode().split("\r")
        said["progress on a terminal"] = self.shapes(line.strip() for line in lines)
        for title, (text, words) in ERRORS.items():
            (self.place / "run.yaml").write_text(text.replace("SOURCE", "dense").replace("OUT", "Mixtral-x"))
            status, lines = self.on_a_terminal(*words, "run.yaml", cwd=self.place)
            said["error: " + title] = "exit status %d\n%s" % (status, lines.decode().replace("\r\n", "\n"))
        return {title: self.masked(text) for title, text in said.items()}

    def short(self, name, **changes):
        """A configuration without a folder in any path."""
        return runner.write_config(self.place / (name + ".yaml"), "dense", "Mixtral-" + name, **changes).name

    def here(self, *words, np=0):
        launch = runner.launcher(np) if np else []
        return runner.run([*launch, runner.program("mgr-upcycle"), *words], 60, cwd=self.place)

    def test_what_is_said(self):
        """tests/data/golden/terminal.txt; MGR_WRITE_GOLDEN=1 writes it anew."""
        text = "".join("==== %s ====\n%s\n" % item for item in self.capture().items())
        if os.environ.get("MGR_WRITE_GOLDEN"):
            GOLDEN.write_text(text)
        self.maxDiff = None
        self.assertEqual([line for line in text.splitlines() if len(line) > WIDTH], [])
        self.assertEqual(text, GOLDEN.read_text())

    def test_log_json(self):
        """One object a line, and nothing else: phases in their order, progress, summary; or the error."""
        config = self.config("json", upcycle__ratio=0.25)
        result = runner.upcycle(config, np=2, options=("--log-json", "--progress", "0.000001"))
        self.assertEqual((result.status, result.err), (0, ""), str(result))
        events = [json.loads(line) for line in result.out.splitlines()]
        phases = [e["phase"] for e in events if e["event"] == "phase"]
        self.assertEqual(phases, ["headers", "plan", "make files", "weights", "sync", "settle", "ledger", "seal",
                                  "checksums", "verify", "publish"])
        (plan,), (done,) = ([e for e in events if e["event"] == name] for name in ("plan", "summary"))
        self.assertEqual((plan["ranks"], plan["target"], done["what"]), (2, str(self.target), "done"))
        self.assertEqual(plan["written"], done["written"])
        progress = [e for e in events if e["event"] == "progress" and "written" in e]
        others = [e for e in events if e["event"] == "progress" and "written" not in e]
        self.assertTrue(others and all(0 < e["done"] <= e["done_of"] for e in others), others)
        self.assertTrue(progress and all(e["written"] <= e["written_of"] == plan["written"] for e in progress))
        self.assertEqual([e["time"] for e in events], sorted(e["time"] for e in events))
        result = runner.upcycle(config, np=2, options=("--log-json",))
        last = json.loads(result.out.splitlines()[-1])
        self.assertEqual((last["event"], last["status"]), ("error", result.status), str(result))
        self.assertIn(last["message"], result.err)

    def test_help_fits(self):
        for name in ("mgr-upcycle", "mgr-synth", "mgr-inspect", "mgr-bench"):
            result = runner.run([runner.program(name), "--help"], 30)
            self.assertEqual(result.status, 0, str(result))
            self.fits(result.out)

    def test_help_is_said_once(self):
        for option, word in (("--help", "usage:"), ("--version", "mgr-upcycle")):
            result = runner.run(runner.launcher(3) + [runner.program("mgr-upcycle"), option], 60)
            self.assertEqual((result.status, result.out.count(word)), (0, 1), str(result))

    def test_the_page_is_what_the_run_does(self):
        """Files with their sizes, bytes, memory and calls, for the ranks that will run."""
        for name, np, changes in (
            ("hugging", 1, {"target__expert_parallel": 2}),
            ("torch", 2, {"target__format": "megatron-torch", "target__tensor_parallel": 2}),
            ("dist", 3, {"target__format": "megatron-dist", "upcycle__method": "noise"}),
            ("hdf5", 2, {"target__format": "hdf5", "upcycle__shuffle": True, "target__dtype": "float32"}),
        ):
            with self.subTest(name):
                config = self.config(name, **changes)
                page = self.alone("--dry-run", "-v", "--ranks", np, "--unit-bytes", 4096, config)
                self.assertEqual((page.status, self.target.exists()), (0, False), str(page))
                done = runner.upcycle(config, np=np, options=["-v", "--unit-bytes", 4096])
                self.assertEqual(done.status, 0, str(done))
                self.same(page.out, done.out, np)
                self.assertEqual(self.calls(page.out), self.calls(done.out))

    def test_nodes_share_files(self):
        """Stated, or those that run; ranks that go round nodes get the work of those that are numbered node by node."""
        config = self.config("nodes", target__expert_parallel=4)
        nodes = lambda text: re.search(r"(?m)^nodes +(\d+); a file once on each: (\d+) opened by all, at most (\d+)", text)
        of = {}
        for ranks in ("6", "3x2", "1x6", "6x1"):
            page = self.alone("--dry-run", "-v", "--ranks", ranks, "--unit-bytes", 4096, config)
            self.assertEqual(page.status, 0, str(page))
            self.assertIn(" 6 ranks read ", page.out)
            found = nodes(page.out)
            of[ranks] = found and tuple(map(int, found.groups()))
            times, most = map(int, re.search(r"(?m)^opened .* (\d+) times by all ranks, at most (\d+) by", page.out).groups())
        self.assertIsNone(of["6"])
        self.assertEqual((of["1x6"][0], of["6x1"]), (1, (6, times, most)))
        self.assertTrue(of["1x6"][1] < of["3x2"][1] < of["6x1"][1], of)
        round_them = {"MGR_FAULT": "nodes:3"}
        page = runner.upcycle(config, np=6, options=["--dry-run", "-v", "--unit-bytes", 4096], env=round_them)
        self.assertEqual(tuple(map(int, nodes(page.out).groups())), of["3x2"])
        for wrong in ("3x0", "x3", "3x", "3x2x1", "1024x2048"):
            self.assertEqual(self.alone("--dry-run", "--ranks", wrong, config).status, runner.USAGE, wrong)

    @unittest.skipIf(runner.SANITIZED, "what is preloaded comes before the sanitizer")
    def test_metadata_are_what_the_run_does(self):
        """Each file of weights is synced as often as the page says, but for the journal's every 20 s."""
        config, log = self.config("synced", target__expert_parallel=4), self.place / "fsync.log"
        page = self.alone("--dry-run", "-v", "--ranks", 3, "--unit-bytes", 4096, config)
        said = re.search(r"(?m)^metadata +at least (\d+) creates, (\d+) opens, (\d+) fsyncs, 2 renames", page.out)
        env = {"LD_PRELOAD": os.environ["MGR_LOG_FSYNC"], "LOG_FSYNC": str(log)}
        done = runner.upcycle(config, np=3, options=["--unit-bytes", 4096], env=env)
        self.assertEqual(done.status, 0, str(done))
        synced = [line for line in log.read_text().splitlines() if re.search(r"/(model-\S+\.safetensors|rank-\d+)$", line)]
        self.assertEqual((len(set(synced)), len(synced)), (int(said[1]), int(said[3])), page.out)

    def test_a_page_of_what_would_not_fit(self):
        """Headers alone, with the right checksums, are enough for a plan; it says what there is no room for, and that."""
        sparse, full = self.place / "sparse", {"MGR_FAULT": "space:1"}
        for words in (["--hidden", 64], ["--hidden", 8192, "--ffn", 28672, "--tp", 4, "--pp", 3, "--layers", 12]):
            made = runner.run([runner.program("mgr-synth"), sparse, "--sparse", "-f", *words])
            self.assertEqual(made.status, 0, str(made))
            files = sorted(sparse.rglob("*.pt"))
            with zipfile.ZipFile(files[0]) as archive:
                self.assertTrue(len(files) > 1 or archive.testzip() is None)  # the judge of CRC-32s
        self.assertEqual(len(files), 12)
        self.assertLess(sum(p.stat().st_blocks for p in files) * 512, sum(p.stat().st_size for p in files) / 1000)
        config = runner.write_config(self.place / "sparse.yaml", sparse, self.place / "Mixtral-big")
        for ranks in (64, 1):
            words = ["--dry-run", "-v", "--ranks", ranks, config]
            page = runner.run([runner.program("mgr-upcycle"), *words], 60, env=full)
            self.assertEqual((page.status, len(page.errors())), (73, 1), str(page))
            self.assertRegex(page.err, r"has 0 B free, the plan writes \d+\.\d\d GiB")
            self.assertRegex(page.out, r"(?m)^space +\d+\.\d\d GiB needed")
            self.assertNotIn("writable", page.out)
            said = re.search(r"(?m)^opened +(\d+) \+ (\d+) files, (\d+) times by all ranks, at most (\d+) by one", page.out)
            read, written, times, most = map(int, said.groups())
            self.assertEqual(read, 12)
            self.assertTrue(times == most == read + written if ranks == 1 else most < times / 10, page.out)
            (more,) = re.findall(r"the rank that has most has +([\d.]+) %", re.sub(r"\n +", " ", page.out))
            self.assertLess(float(more), 5)

    def test_stripes_are_said_where_there_are_some(self):
        config, lustre = self.config("striped"), {"MGR_FAULT": "lustre:1"}
        self.assertNotIn("lustre", self.alone("--dry-run", config).out)
        sparse = self.place / "striped"
        words = ["--hidden", 8192, "--ffn", 28672, "--layers", 12, "--tp", 4]
        made = runner.run([runner.program("mgr-synth"), sparse, "--sparse", "-q", *words])
        self.assertEqual(made.status, 0, str(made))
        large = runner.write_config(self.place / "large.yaml", sparse, self.place / "Mixtral-large")
        for of, stripes in ((config, 1), (large, 5)):  # 5 GB each
            page = runner.run([runner.program("mgr-upcycle"), "--dry-run", of], 60, env=lustre)
            self.fits(page.out.split("\nnext ")[0])
            said = re.sub(r"\n +", " ", page.out)
            self.assertIn("lfs setstripe -c %d -S 16M %s\n" % (stripes, self.place), said)

    @staticmethod
    def calls(text):
        (line,) = re.findall(r"(?m)^calls +(\d+ reads and \d+ writes of weights, \d+ collective)$", text)
        return line

    @unittest.skipIf(runner.SANITIZED, "a sanitizer has memory of its own")
    def test_the_memory_is_what_the_run_takes(self):
        """Never more than stated, and stated is no more than 2.5 times what is taken; the kernel's VmHWM."""
        source = runner.synth(self.place / "wide", layers=6, hidden=384, ffn=1056, vocab=4000, tp=2)
        target = self.place / "Mixtral-wide"
        for np, changes in (
            (1, {}),
            (2, {"target__format": "megatron-torch", "target__tensor_parallel": 2}),
            (3, {"target__format": "megatron-dist", "upcycle__method": "naive"}),
            (2, {"target__format": "hdf5", "target__compression": "deflate"}),
            (2, {"memory_per_rank": runner.LITTLE_MEMORY}),
        ):
            config = runner.write_config(self.place / "wide.yaml", source, target, **changes)
            page = self.alone("--dry-run", "--ranks", np, "--force", config)
            done = runner.upcycle(config, np=np, options=["--force"])
            self.assertEqual((page.status, done.status), (0, 0), str(page) + str(done))
            self.takes(page.out, done.out)

    def takes(self, page, done):
        (stated,) = re.findall(r"(?m)^memory +([\d.]+) MiB on each", page)
        (taken,) = re.findall(r"(?m)^memory +([\d.]+) MiB +peak of the largest rank", done)
        print("memory stated %s MiB, taken %s MiB" % (stated, taken))
        if runner.SANITIZED:  # keeps what was freed, for a while
            self.assertLess(float(taken), 2048)
            return
        self.assertLessEqual(float(taken), float(stated))
        self.assertLessEqual(float(stated), 2.5 * float(taken))

    def same(self, page, done, np):
        for text in (page, done):
            self.fits(text.split("\nnext ")[0])  # what follows is for a shell, a line a command
        files = re.findall(r"^(?:files)? +([\d.]+) (\w+)  (\S*\.\S+)$", page, re.M)
        self.assertTrue(files)
        unit = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20}
        for size, name, path in files:
            real = (self.target / path).stat().st_size
            near = 0.006 * unit[name] if not path.endswith(".h5") else 64 << 10  # where the library puts its own
            self.assertLess(abs(float(size) * unit[name] - real), near, path)
        (plan,) = re.findall(r"^plan .*$", page, re.M)
        self.assertIn(plan, done)
        self.assertIn("%d rank" % np, plan)
        read, written = re.search(r"read (\S+ \S+) and write (\S+ \S+)$", plan).groups()
        self.assertRegex(done, r"(?m)^written +%s +" % re.escape(written))
        (taken,) = re.findall(r"^read +([\d.]+) KiB", done, re.M)
        self.assertLess(float(taken) - float(read.split()[0]), 2 * np)  # nothing is read twice, but for headers
        kept, anew, routers = re.search(
            r"(?m)^weights +(\S+ \S+) kept from the source, (\S+ \S+) (?:drawn|with) [a-z ]+,\s+(\S+\s+\S+)\s+of\s",
            page,
        ).groups()
        parts = [float(n) * unit[name] for n, name in (text.split() for text in (kept, anew, routers))]
        whole = float(written.split()[0]) * unit[written.split()[1]]
        if self.target.name != "Mixtral-torch":  # which stores some for each rank
            self.assertLess(abs(sum(parts) - whole), 40, page)
        self.assertRegex(page, r"(?m)^memory +\S+ [MG]iB on %d ranks? together, at most\s%d\.00\sGiB$" % (np, 2 * np))
        self.takes(page, done)

    def test_what_is_drawn_anew(self):
        """The page's bytes are those that differ from copies; a draw may hit the number that was there."""
        config = self.config("anew")
        page = self.alone("--dry-run", config)
        self.assertEqual((page.status, runner.upcycle(config).status), (0, 0), str(page))
        drawn = self.target
        copies = self.config("copied", upcycle__method="naive")
        self.assertIn(" 0 B drawn anew", self.alone("--dry-run", copies).out)
        self.assertEqual(runner.upcycle(copies).status, 0)
        differ = 0
        for path in sorted(drawn.glob("*.safetensors")):
            a, b = path.read_bytes(), (self.target / path.name).read_bytes()
            start = 8 + int.from_bytes(a[:8], "little")
            differ += sum(a[i : i + 2] != b[i : i + 2] for i in range(start, len(a), 2))
        planned = float(re.search(r"([\d.]+) KiB drawn anew", page.out)[1]) * 512
        self.assertTrue(0.97 * planned < differ <= planned, (differ, planned))

    def test_threads_that_write_elsewhere(self):
        """Asked for they are in the plan; how many cores ranks have elsewhere is not known here."""
        config, buffers = self.config("threads"), {}
        for threads in ("auto", "0", "3"):
            page = self.alone("-n", "-v", "--ranks", 8, "--set", "io_threads=" + threads, config)
            self.assertEqual(page.status, 0, str(page))
            self.assertRegex(page.out, "\nio_threads: \"?%s\"?\n" % threads)
            buffers[threads] = re.search(r"with\s([\d.]+\s\S+)\sof\sbuffers", page.out)[1]
        self.assertEqual(buffers["auto"], buffers["0"])
        self.assertNotEqual(buffers["3"], buffers["0"])

    @unittest.skipUnless(os.environ.get("MGR_MANY_RANKS"), "a run of 64 ranks takes a while: cli.Terminal_many")
    def test_64_ranks_do_what_their_page_says(self):
        config = self.config("many", target__expert_parallel=4)
        page = self.alone("--dry-run", "-v", "--ranks", 64, "--unit-bytes", 4096, config)
        done = runner.upcycle(config, np=64, timeout=300, options=["-v", "--unit-bytes", 4096])
        self.assertEqual((page.status, done.status), (0, 0), str(done))
        self.same(page.out, done.out, 64)
        self.assertEqual(self.calls(page.out), self.calls(done.out))

    def test_the_time(self):
        """From what is stated, or measured; nothing stays behind."""
        config = self.config("time")
        said = [self.alone("-n", "--bandwidth", speed, config) for speed in ("10KiB", "2GiB", "measure")]
        self.assertEqual([r.status for r in said], [0, 0, 0], str(said[-1]))
        for result, text in zip(said, ("52 s at 10.00 KiB a second", "1 s at 2.00 GiB a second", "1 s if all ranks")):
            self.assertIn("\ntime      " + text, result.out)
            self.fits(result.out.split("\nnext ")[0])
        self.assertRegex(said[-1].out, r"writes\s[\d.]+\s[MG]iB\sa\ssecond")
        self.assertEqual([p.name for p in self.place.iterdir() if p.name.startswith("Mixtral-time")], [])
        for words in (("--bandwidth", "2GiB"), ("-n", "--bandwidth", "quick")):
            self.assertEqual(self.alone(*words, config).status, runner.USAGE)

    def test_a_plan_for_64_ranks_needs_no_mpi(self):
        config = self.config("wide")
        page = self.alone("--dry-run", "--ranks", 64, config)
        self.assertEqual(page.status, 0, str(page))
        self.assertIn("64 ranks read", page.out)
        self.assertRegex(page.out, r"size +78.14 thousand parameters become 189.2 thousand, of which 115.5\s")
        for word in ("unit", "group of", "busiest", "extent", "collective"):
            self.assertNotIn(word, page.out)
        verbose = self.alone("--dry-run", "--ranks", 64, "-v", config)
        self.assertIn("pieces of work", verbose.out)
        launched = runner.run(
            runner.launcher(3) + [runner.program("mgr-upcycle"), "-n", "--ranks", 64, config], 60
        )
        self.assertEqual(launched.status, 0, str(launched))
        self.assertEqual(launched.out.count("64 ranks read"), 1)  # one of them speaks
        wrong = self.alone("--ranks", 64, config)
        self.assertEqual(wrong.status, runner.USAGE, str(wrong))

    def test_verbose_shows_what_was_found(self):
        """Keys that nobody wrote, with the source's values and not as 'auto' or 0; the configuration that it prints is one."""
        config = self.config("found")
        page = self.alone("--dry-run", "--ranks", 2, "-v", config)
        self.assertEqual(page.status, 0, str(page))
        text = page.out[page.out.index("\nmode: ") + 1 :].split("\nsize ")[0]
        for line in ("  format: megatron-torch", "  num_layers: 2", "  hidden_size: 64", "  ffn_hidden_size: 96",
                     "  num_attention_heads: 4", "  num_query_groups: 2", "  kv_channels: 16", "  vocab_size: 128"):
            self.assertIn("\n" + line + "\n", text)
        config.write_text(text)
        again = self.alone("--dry-run", "--ranks", 2, "-v", config)
        self.assertEqual((again.status, text in again.out), (0, True), str(again))

    def test_progress_in_a_log(self):
        result = runner.upcycle(self.config("log"), np=2, options=["--progress", "0.000001"])
        self.assertEqual(result.status, 0, str(result))
        lines = result.err.splitlines()
        self.assertTrue(lines, str(result))
        share = r"(\d+ of \d+ (files|layers)|[\d.]+ \w+ of [\d.]+ \w+  [\d.]+ GiB/s)"
        form = r"\d\d \d\d:\d\d:\d\d [a-z ]+ +[\d.]+ %  " + share + "  [\d:]+ left"
        phase = r"\d\d \d\d:\d\d:\d\d [a-z ]+"
        for line in lines:
            self.assertRegex(line, "^(%s|%s)$" % (form, phase))
        for some in (" write +[0-9.]+ %.*GiB/s", " ledger +[0-9.]+ %.*layers", " verify +[0-9.]+ %.*files"):
            self.assertTrue([line for line in lines if re.search(some, line)], str(result))
        self.assertRegex(lines[-1], " publish$")
        self.fits(result.err)

    def on_a_terminal(self, *words, cwd=None):
        """Exit status, and what a terminal of 80 columns is told on stderr."""
        ours, theirs = os.openpty()
        words = [str(word) for word in (runner.program("mgr-upcycle"), *words)]
        done = subprocess.run(words, stdout=subprocess.DEVNULL, stderr=theirs, timeout=300, cwd=cwd)
        os.close(theirs)
        text = b""
        with contextlib.suppress(OSError):  # the other end is closed
            while piece := os.read(ours, 1 << 16):
                text += piece
        os.close(ours)
        return done.returncode, text

    def test_errors_fit_a_terminal(self):
        """Broken between words, and the same words as the one line of a log."""
        path = self.place / "run.yaml"
        for title, (text, words) in ERRORS.items():
            path.write_text(text.replace("SOURCE", str(self.source)).replace("OUT", str(self.place / "Mixtral-x")))
            log = self.alone(*words, path).err
            status, said = self.on_a_terminal(*words, path)
            said = said.decode().replace("\r\n", "\n")
            self.assertNotIn(status, (0, None), title)
            self.fits(said)
            self.assertEqual(said.split(), log.split(), title)
            self.assertEqual(len(log.splitlines()), 1 + ("hint: " in log), title)

    def test_progress_on_a_terminal(self):
        """One line, written over again."""
        status, text = self.on_a_terminal("--progress", "0.000001", self.config("tty"))
        self.assertEqual(status, 0, text)
        self.assertEqual((text.count(b"\n"), text[-1:]), (1, b"\r"), text)
        self.assertIn(b"\rpublish ", text)
        self.assertNotIn(b"\x1b", text)  # no colours, with or without NO_COLOR
        for line in text.decode().strip().split("\r"):
            self.assertLess(len(line), WIDTH, line)
            self.assertTrue(not line.strip() or re.search("left$|^[a-z ]+$", line.strip()), line)

    def test_an_error_of_a_plan_is_one_line(self):
        config = self.config("bad", source__path=self.place / "nowhere")
        result = self.alone("--dry-run", "--ranks", 8, config)
        self.assertEqual((result.status, len(result.errors())), (runner.NO_INPUT, 1), str(result))
        self.assertNotIn("rank", result.err)


if __name__ == "__main__":
    unittest.main()
