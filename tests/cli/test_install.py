"""What is installed: it works from another place, and cannot be told to fail as the tests' programs can;
the library is what its headers say, and examples compile against it."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest

import runner

EXAMPLES = pathlib.Path(__file__).resolve().parents[2] / "tools" / "examples"
HEADERS = ("checkpoint", "dtype", "err")

# What programs have compiled in, one a line: "mgr_fail MGR_1" for a function and the version that brought it,
# "sizeof(mgr_err) 856", "MGR_ERR_IO 70", "offsetof(mgr_err, msg) 16". Whoever takes away or changes a line raises
# MGR_CHECKPOINT_ABI; whoever adds some, MGR_CHECKPOINT_VERSION.
RECORD = runner.ROOT / "tests" / "data" / "abi-1.txt"


def output(words, **more):
    return subprocess.run(
        [str(word) for word in words], check=True, capture_output=True, text=True, **more
    ).stdout


class Install(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(tempfile.mkdtemp(prefix="mgr-install-"))
        cls.addClassCleanup(shutil.rmtree, cls.folder, ignore_errors=True)
        cls.prefix = cls.folder / "prefix"
        built = runner.BIN.parent
        done = runner.run([os.environ.get("CMAKE", "cmake"), "--install", built, "--prefix", cls.prefix])
        assert done.status == 0, str(done)

    def test_no_fault_can_be_planted(self):
        for place, status in ((runner.BIN, runner.IO_ERROR), (self.prefix / "bin", 0)):
            out = self.folder / place.name
            result = runner.run([place / "mgr-synth", "-q", out], env={"MGR_FAULT": "pwrite:1"})
            self.assertEqual(result.status, status, str(result))
            shutil.rmtree(out, ignore_errors=True)

    def test_programs(self):
        for name in ("mgr-upcycle", "mgr-inspect", "mgr-synth", "mgr-bench"):
            result = runner.run([self.prefix / "bin" / name, "--version"])
            self.assertEqual((result.status, result.err), (0, ""), str(result))

    def test_what_version_says(self):
        said = dict(line.split(None, 1) for line in output([self.prefix / "bin" / "mgr-upcycle", "--version"]).splitlines())
        self.assertEqual(list(said), ["mgr-upcycle", "commit", "MPI", "HDF5", "CPU"])
        self.assertRegex(said["MPI"], r"^(MPICH|Open MPI|\w+ MPI).*\d")
        self.assertRegex(said["HDF5"], r"^\d+\.\d+\.\d+$")
        self.assertRegex(said["CPU"], r"^scalar.*\(used\)")

    def complete(self, name, *words):
        """What bash offers for the last of the words."""
        script = self.prefix / "share" / "bash-completion" / "completions" / name
        text = 'source "$1"; shift; f=$(complete -p "$1"); f=${f#*-F }; ${f%% *} "$1" "${@: -1}" "${@: -2:1}"; printf "%s\\n" "${COMPREPLY[@]}"'
        return output(["bash", "-c", text, "x", script, name, *words]).split()

    def test_completion(self):
        """Every option of --help, every key, and an option's words; in each shell that is here."""
        for name in ("mgr-upcycle", "mgr-inspect", "mgr-verify", "mgr-synth", "mgr-bench"):
            options = set(re.findall(r"^ .*?(--[a-z-]+)", output([self.prefix / "bin" / name, "--help"]), re.M))
            self.assertEqual(set(self.complete(name, "--")), options)
            for shell, path in (("zsh", "zsh/site-functions/_" + name), ("fish", "fish/vendor_completions.d/%s.fish" % name)):
                script = self.prefix / "share" / path
                text = script.read_text()
                for option in options:
                    self.assertIn(option if shell == "zsh" else "-l %s " % option[2:], text)
                if shutil.which(shell):
                    output([shell, "-n", script])
        keys = output([self.prefix / "bin" / "mgr-upcycle", "--keys", "markdown"])
        keys = re.findall(r"^- `(.*)`$", keys, re.M)
        self.assertGreater(len(keys), 50)
        self.assertEqual(sorted(self.complete("mgr-upcycle", "--set", "")), sorted(key + "=" for key in keys))
        self.assertEqual(self.complete("mgr-upcycle", "-s", "upcycle.see"), ["upcycle.seed="])
        self.assertEqual(self.complete("mgr-upcycle", "--get", "upcycle.see"), ["upcycle.seed"])
        self.assertEqual(self.complete("mgr-synth", "--format", "megatron-d"), ["megatron-dist"])
        schema = json.loads(output([self.prefix / "bin" / "mgr-upcycle", "--schema"]))["properties"]
        known = [n for n, of in schema.items() if "properties" not in of and n != "sources"]  # a list of sections
        known += ["%s.%s" % (n, key) for n, of in schema.items() for key in of.get("properties", ())]
        self.assertEqual(sorted(known), sorted(keys))

    def test_uninstall(self):
        """All files of an installation, and the folders that were its own."""
        there, cmake = self.folder / "away", os.environ.get("CMAKE", "cmake")
        shared = there / "share" / "mgr-upcycle"
        done = runner.run([cmake, "--install", runner.BIN.parent, "--prefix", there])
        self.assertEqual(done.status, 0, str(done))
        self.assertTrue((shared / "configs").is_dir())
        (there / "bin" / "other").write_text("stays")
        listed = self.folder / "list"
        shutil.copy(runner.BIN.parent / "install_manifest.txt", listed)
        output([cmake, "-DLIST=%s" % listed, "-P", runner.ROOT / "tools" / "cmake" / "uninstall.cmake"])
        self.assertEqual([p.name for p in there.rglob("*") if not p.is_dir()], ["other"])
        self.assertFalse(shared.exists() or listed.exists())

    def library(self):
        found = sorted(self.prefix.glob("lib*/**/libmgr.so"))
        self.assertEqual(len(found), 1, found)
        return found[0]

    def test_examples(self):
        source = runner.synth(self.folder / "dense", layers=2, hidden=64, ffn=64, vocab=64, tp=2)
        examples = self.by_cmake()
        for program in (self.by_pkg_config(), examples / "print_tensor"):
            listed = output([program, source])
            self.assertIn("model.layers.0.mlp.up_proj.weight bfloat16 64x64\n", listed)
            values = output([program, source, "model.layers.0.mlp.up_proj.weight"]).split()
            self.assertEqual(len(values), 8)
            self.assertGreater(len({float(value) for value in values}), 4)
            missing = runner.run([program, self.folder / "nothing"])
            self.assertEqual((missing.status, missing.out), (66, ""), str(missing))
            self.assertIn("does not exist", missing.err)
        self.copies(examples / "write_copy", source)
        self.experts(examples / "write_experts", source)

    def run_of(self, source, name, **changes):
        config = runner.write_config(self.folder / (name + ".yaml"), source, self.folder / name, **changes)
        result = runner.upcycle(config)
        self.assertEqual(result.status, 0, str(result))
        return runner.hashes(self.folder / name)

    def copies(self, program, source):
        """The example's output is a run's, byte for byte; what is refused leaves nothing."""
        out, there = self.folder / "copy", "{format: megatron-torch, pipeline_parallel: 2}"
        output([program, source, out, there])
        made = self.run_of(source, "moved", mode="reshard", target__format="megatron-torch", target__pipeline_parallel=2)
        self.assertEqual(runner.hashes(out), made)
        again = runner.run([program, source, out, there])
        self.assertEqual(again.status, 73, str(again))
        refused = runner.run([program, source, self.folder / "no", "{format: hdf5}"])
        self.assertEqual(refused.status, 78, str(refused))
        self.assertIn("settings:1:", refused.err)
        config = runner.write_config(self.folder / "c.yaml", source, self.folder / "no", target__format="none")
        known = [re.search("known are: (.*)", text)[1].split(", ") for text in (refused.err, runner.upcycle(config).err)]
        self.assertEqual(set(known[1]) - set(known[0]), {"hdf5"})
        self.assertFalse((self.folder / "no").exists())

    def experts(self, program, source):
        out = self.folder / "experts"
        output([program, source, out, "{experts: 4, ratio: 0.5, seed: 1234}"])
        self.assertEqual(runner.hashes(out), self.run_of(source, "Mixtral"))

    def by_pkg_config(self):
        library = self.library()
        found = {**os.environ, "PKG_CONFIG_PATH": str(library.parent / "pkgconfig")}
        flags = output(["pkg-config", "--cflags", "--libs", "mgr"], env=found).split()
        program = self.folder / "print_tensor"
        output(["cc", "-Wall", "-Werror", EXAMPLES / "print_tensor.c", *flags,
                "-Wl,-rpath,%s" % library.parent, "-o", program])
        return program

    def by_cmake(self):
        build, cmake = self.folder / "build", os.environ.get("CMAKE", "cmake")
        output([cmake, "-S", EXAMPLES, "-B", build, "-DCMAKE_PREFIX_PATH=%s" % self.prefix, "-DCMAKE_C_FLAGS=-Wall -Wextra"])
        output([cmake, "--build", build])
        return build

    def headers(self):
        """The text of the installed headers, without comments and what is compiled into programs."""
        include = self.prefix / "include" / "mgr"
        self.assertEqual(sorted(path.stem for path in include.iterdir()), sorted((*HEADERS, "version")))
        text = "".join((include / (name + ".h")).read_text() for name in HEADERS)
        text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
        return re.sub(r"static inline.*?\n}\n", "", text, flags=re.S)

    def test_a_program_may_have_its_locale(self):
        """Each function that can fail puts it aside, since it reads or writes numbers (src/lib/locale.h)."""
        declared = set(re.findall(r"(mgr_\w+)\([^)]*mgr_err \*err\) MGR_NODISCARD", self.headers()))
        self.assertGreaterEqual(len(declared), 9)
        text = "".join(path.read_text() for path in sorted((runner.ROOT / "src" / "lib").glob("*.c")))
        for name in declared:
            body = re.search(r"^int %s\([^)]*\)\n\{\n(.*?)^\}" % name, text, re.M | re.S)[1]
            self.assertRegex(body, r"MGR_ASIDE\(|mgr_aside_begin\(|return mgr_checkpoint_open_with\(", name)

    def numbers(self, text):
        """Sizes and places of all that is laid out in the headers, and all their numbers, by a compiler."""
        asked = ["MGR_CHECKPOINT_ABI", "MGR_CHECKPOINT_AXES"]
        for body, name in re.findall(r"typedef struct \w+ \{(.*?)\} (\w+);", text, re.S):
            asked.append("sizeof(%s)" % name)
            asked += ["offsetof(%s, %s)" % (name, field) for field in re.findall(r"(\w+)(?:\[\w+\])?;", body)]
        for body in re.findall(r"typedef enum \w+ \{(.*?)\} \w+;", text, re.S):
            asked += re.findall(r"\bMGR_\w+", body)
        lines = ["#include <mgr/checkpoint.h>", "#include <stdio.h>", "int main(void)", "{"]
        lines += ['printf("%%s %%d\\n", "%s", (int)(%s));' % (what, what) for what in asked]
        program = self.folder / "abi"
        (self.folder / "abi.c").write_text("\n".join([*lines, "return 0;", "}", ""]))
        output(["cc", "-I", self.prefix / "include", self.folder / "abi.c", "-o", program])
        return set(output([program]).splitlines())

    def test_nothing_changes_without_the_version(self):
        text = self.headers()
        declared = set(re.findall(r"^(?!typedef)(?:const )?\w[\w ]*[ *](mgr_\w+)\(", text, flags=re.M))
        symbols = [line.split()[-1] for line in output(["nm", "-D", "--defined-only", self.library()]).splitlines()]
        given = dict(symbol.split("@@") for symbol in symbols if symbol.startswith("mgr_"))
        self.assertEqual(declared, set(given))
        recorded = set(RECORD.read_text().splitlines())
        found = {" ".join(item) for item in given.items()} | self.numbers(text)
        self.assertGreater(len(found), 80)
        self.assertEqual(found, recorded)
        newest = max(int(version.split("_")[1]) for version in given.values())
        version = re.search(r"#define MGR_CHECKPOINT_VERSION (\d+)", text)
        self.assertEqual(newest, int(version[1]))
        needed = output(["readelf", "-d", self.library()])
        self.assertNotRegex(needed, "NEEDED.*(mpi|hdf5)")


if __name__ == "__main__":
    unittest.main()
