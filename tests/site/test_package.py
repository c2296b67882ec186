"""The Debian package: built as tools/packaging/deb.sh does it, unpacked into a folder, and used there."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "cli"))
import runner  # noqa: E402

TOOLS = ("dpkg-deb", "dpkg-shlibdeps", "scdoc", "man", "file")
PROGRAMS = ("mgr-upcycle", "mgr-inspect", "mgr-verify", "mgr-synth", "mgr-bench")
SCRIPTS = ("mgr-card",)


def output(words, **more):
    return subprocess.run(
        [str(word) for word in words], check=True, stdout=subprocess.PIPE, text=True, timeout=900, **more
    ).stdout


class Recipes(unittest.TestCase):
    """As far as they can be looked at without Spack, Docker's daemon and Apptainer."""

    PACKAGING = runner.ROOT / "tools" / "packaging"

    def test_what_they_call_is_there(self):
        for name in ("Dockerfile", "apptainer.def"):
            called = set(re.findall(r"/src/(\S+?\.sh)", (self.PACKAGING / name).read_text()))
            self.assertEqual(called, {"tools/install-deps.sh", "tools/packaging/deb.sh"})
            for script in called:
                self.assertTrue(os.access(runner.ROOT / script, os.X_OK), script)

    def test_spack_asks_for_what_cmake_does(self):
        text = (self.PACKAGING / "spack" / "packages" / "mgr-upcycle" / "package.py").read_text()
        compile(text, "package.py", "exec")
        asked = set(re.findall(r'depends_on\("([a-z0-9-]+)', text))
        wants = (runner.ROOT / "CMakeLists.txt").read_text()
        names = {"MPI": "mpi", "ZLIB": "zlib-api", "HDF5": "hdf5", "PkgConfig": "pkgconfig", "YAML": "libyaml",
                 "JANSSON": "jansson", "DEFLATE": "libdeflate", "CRYPTO": "openssl"}
        found = re.findall(r"^(?:find_package|pkg_check_modules)\((\w+)", wants, re.M)
        self.assertEqual({names[name] for name in found} - asked, set())
        self.assertLessEqual({"random123", "xxhash", "c", "cmake"}, asked)

    def test_a_dockerfile_is_one(self):
        """By its grammar: building wants a daemon."""
        text = (self.PACKAGING / "Dockerfile").read_text()
        words = [line.split()[0] for line in re.sub(r"\\\n", "", text).splitlines() if line and line[0] != "#"]
        self.assertLessEqual(set(words), {"FROM", "COPY", "RUN", "CMD"})


class Package(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        missing = [tool for tool in TOOLS if not shutil.which(tool)]
        if missing:
            raise unittest.SkipTest("not installed: " + ", ".join(missing))
        cls.folder = pathlib.Path(tempfile.mkdtemp(prefix="mgr-package-"))
        cls.addClassCleanup(shutil.rmtree, cls.folder, ignore_errors=True)
        output([runner.ROOT / "tools" / "packaging" / "deb.sh", cls.folder])
        (cls.deb,) = cls.folder.glob("mgr-upcycle_*.deb")
        cls.root = cls.folder / "root"
        output(["dpkg-deb", "-x", cls.deb, cls.root])
        cls.usr = cls.root / "usr"

    def test_what_it_asks_for(self):
        depends = output(["dpkg-deb", "-f", self.deb, "Depends"])
        for name in ("mpich", "libmpich12", "libhdf5-mpich", "libyaml-0-2", "libjansson4", "zlib1g", "libc6"):
            self.assertIn(name, depends)

    def test_programs_and_pages(self):
        for name in (*PROGRAMS, *SCRIPTS):
            self.assertIn(name, output([self.usr / "bin" / name, "--version"]))
            page = output(["man", "-l", self.usr / "share" / "man" / "man1" / (name + ".1")],
                          env={**os.environ, "MANWIDTH": "80", "LC_ALL": "C.UTF-8"})
            self.assertIn("SYNOPSIS", page)
        for name in PROGRAMS:
            self.assertTrue((self.usr / "share" / "bash-completion" / "completions" / name).is_file())

    def test_completion_completes(self):
        script = self.usr / "share" / "bash-completion" / "completions" / "mgr-upcycle"
        ask = '. "$1"; f=$(complete -p mgr-upcycle); f=${f#*-F }; f=${f%% *}; COMP_WORDS=(mgr-upcycle --dis); COMP_CWORD=1; "$f" mgr-upcycle --dis mgr-upcycle; echo "${COMPREPLY[@]}"'
        self.assertEqual(output(["bash", "-c", ask, "bash", script]).strip(), "--discard")

    def test_a_run_with_what_is_in_it(self):
        out = self.folder / "made"
        output([self.usr / "bin" / "mgr-synth", "-q", "--layers", 1, "--hidden", 64, "--ffn", 128, "--vocab", 64, out])
        config = runner.write_config(self.folder / "c.yaml", out, self.folder / "Mixtral-new")
        output([*runner.launcher(2), self.usr / "bin" / "mgr-upcycle", "-q", config])
        output([self.usr / "bin" / "mgr-verify", self.folder / "Mixtral-new"])
        output([self.usr / "bin" / "mgr-card", self.folder / "Mixtral-new", "--check"])
        self.assertIn("read once more", (self.folder / "Mixtral-new.cards" / "VERIFICATION.md").read_text())
        for name in ("configs/quickstart.yaml", "configs/jobs/slurm.sh", "report/__main__.py"):
            self.assertTrue((self.usr / "share" / "mgr-upcycle" / name).is_file(), name)
        site = self.folder / "site"
        docs = self.usr / "share" / "doc" / "mgr-upcycle" / "docs"
        output([sys.executable, docs / "build.py", site, "--program", self.usr / "bin" / "mgr-upcycle"])
        self.assertTrue((site / "keys.html").is_file())

    def compile(self, name):
        library, program = self.library(), self.folder / name
        source = self.usr / "share" / "doc" / "mgr-upcycle" / "examples" / (name + ".c")
        output(["cc", source, "-I", self.usr / "include", "-L", library.parent, "-lmgr",
                "-Wl,-rpath,%s" % library.parent, "-o", program])
        return program

    def library(self):
        (library,) = self.usr.glob("lib/**/libmgr.so")
        return library

    def test_examples_and_the_wheel_against_it(self):
        dense = self.folder / "dense"
        output([self.usr / "bin" / "mgr-synth", "-q", "--layers", 1, "--hidden", 64, "--ffn", 128, "--vocab", 64, dense])
        self.assertIn("model.embed_tokens.weight bfloat16 64x64\n", output([self.compile("print_tensor"), dense]))
        output([self.compile("write_copy"), dense, self.folder / "copy", "{format: huggingface}"])
        output([self.compile("write_experts"), dense, self.folder / "experts", "{experts: 2}"])
        for name in ("copy", "experts"):
            output([self.usr / "bin" / "mgr-verify", self.folder / name])
        output([self.usr / "bin" / "mgr-inspect", dense, self.folder / "copy"])
        self.wheel(dense)

    def wheel(self, dense):
        """With .venv's Python, where there is one: of the package's library, beside nothing else of the project."""
        python = runner.ROOT / ".venv" / "bin" / "python"
        if not python.exists():
            self.skipTest("no .venv: the wheel was not tried")
        output([runner.ROOT / "tools" / "python" / "wheel.sh", self.library(), self.folder / "dist", python])
        (wheel,) = (self.folder / "dist").glob("*.whl")
        output([python, "-m", "pip", "install", "--quiet", "--no-deps", "--target", self.folder / "python", wheel])
        text = (
            "import mgr, numpy, sys\n"
            "dense, copy = mgr.open(sys.argv[1]), mgr.open(sys.argv[2])\n"
            "assert mgr.__file__.startswith(sys.argv[3]) and len(dense) == len(copy) == 12, len(dense)\n"
            "assert all(numpy.array_equal(t[:], copy[name][:]) for name, t in dense.items())\n"
            "print(dense.format, copy.format)\n"
        )
        said = output([python, "-c", text, dense, self.folder / "copy", self.folder / "python"],
                      env={"PYTHONPATH": str(self.folder / "python")})
        self.assertEqual(said, "megatron-torch huggingface\n")


if __name__ == "__main__":
    unittest.main()
