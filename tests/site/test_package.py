"""The Debian package: built as tools/packaging/deb.sh does it, installed in a throw-away root, and used there."""

import os
import pathlib
import pty
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "cli"))
import runner  # noqa: E402
import test_builds  # noqa: E402

TOOLS = ("dpkg", "dpkg-deb", "dpkg-shlibdeps", "scdoc", "man", "file")
PROGRAMS = ("mgr-upcycle", "mgr-inspect", "mgr-verify", "mgr-synth", "mgr-bench")
SCRIPTS = ("mgr-card",)


def output(words, **more):
    return subprocess.run(
        [str(word) for word in words], check=True, stdout=subprocess.PIPE, text=True, timeout=900, **more
    ).stdout


def typed(text, wanted, env):
    """What an interactive bash shows when a person types `text`, until `wanted` is there."""
    child, terminal = pty.fork()
    if child == 0:
        os.execvpe("bash", ["bash", "--noprofile", "--norc", "-i"], env)
    shown, end = "", time.monotonic() + 60
    os.write(terminal, text.encode())
    while wanted not in shown and time.monotonic() < end:
        if select.select([terminal], [], [], 1)[0]:
            shown += os.read(terminal, 4096).decode(errors="replace")
    os.write(terminal, b"\x15exit\n")
    os.close(terminal)
    os.waitpid(child, 0)
    return shown


class Recipes(unittest.TestCase):
    """As far as they can be looked at without Spack and Apptainer; the Dockerfile is built below."""

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
        found = set(re.findall(r"^(?:find_package|pkg_check_modules)\((\w+)", wants, re.M)) - {"Threads"}  # the C library's
        self.assertEqual({names[name] for name in found} - asked, set())
        self.assertLessEqual({"random123", "xxhash", "c", "cmake"}, asked)

    def test_the_apptainer_file_says_what_the_dockerfile_does(self):
        """The same stages from the same systems, with the same packages asked for."""
        docker, apptainer = ((self.PACKAGING / name).read_text() for name in ("Dockerfile", "apptainer.def"))
        systems = re.findall(r"^FROM (\S+)", docker, re.M)
        self.assertEqual(systems, re.findall(r"^From: (\S+)", apptainer, re.M))
        asked = [re.findall(r"apt-get install (.+?)(?: && |$)", text, re.M) for text in (docker, apptainer)]
        self.assertEqual([line.replace("/tmp/", "/out/") for line in asked[0]], asked[1])


@unittest.skipUnless(
    os.geteuid() == 0 and shutil.which("debootstrap") and shutil.which("buildah"), "needs root, debootstrap and buildah"
)
class Image(unittest.TestCase):
    """The Dockerfile, built without a daemon on a Debian made here under the name that it asks for."""

    def test_it_builds_and_runs(self):
        folder = pathlib.Path(tempfile.mkdtemp(prefix="mgr-image-"))
        self.addCleanup(shutil.rmtree, folder, ignore_errors=True)
        log, base = folder / "log", folder / "base"
        buildah = ["buildah", "--root", folder / "store", "--runroot", folder / "run", "--storage-driver", "vfs"]
        test_builds.shell(["debootstrap", "--variant=minbase", "bookworm", base, test_builds.mirror()], log)
        made = output([*buildah, "from", "scratch"]).strip()
        test_builds.shell([*buildah, "add", "-q", made, base, "/"], log)
        test_builds.shell([*buildah, "commit", "-q", made, "docker.io/library/debian:12"], log)
        test_builds.shell([*buildah, "tag", "docker.io/library/debian:12", "docker.io/library/debian:12-slim"], log)
        test_builds.copy_source(folder / "src")
        build = [*buildah, "bud", "--isolation", "chroot", "--pull-never", "-t", "mgr-upcycle"]
        test_builds.shell([*build, "-f", folder / "src" / "tools" / "packaging" / "Dockerfile", folder / "src"], log)
        made = output([*buildah, "from", "--pull-never", "mgr-upcycle"]).strip()
        inside = [*buildah, "run", "--isolation", "chroot", made, "--"]
        self.assertIn("mgr-upcycle", output([*inside, "mgr-upcycle", "--version"]))
        output([*inside, "mgr-synth", "-q", "/tmp/dense"])
        words = ["/usr/share/mgr-upcycle/configs/quickstart.yaml", "-s", "source.path=/tmp/dense", "-s", "target.path=/tmp/moe"]
        output([*inside, "mpiexec", "-n", "2", "mgr-upcycle", "-q", *words])
        output([*inside, "mgr-verify", "/tmp/moe"])


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
        for folder in ("info", "updates"):
            (cls.root / "var" / "lib" / "dpkg" / folder).mkdir(parents=True)
        (cls.root / "var" / "lib" / "dpkg" / "status").touch()
        as_user = [] if os.geteuid() == 0 else ["--force-not-root"]
        output(["dpkg", "--root=%s" % cls.root, "--force-depends", *as_user, "-i", cls.deb], stderr=subprocess.STDOUT)
        cls.usr = cls.root / "usr"

    def test_what_it_asks_for(self):
        depends = output(["dpkg-deb", "-f", self.deb, "Depends"])
        for name in ("mpich", "libmpich12", "libhdf5-mpich", "libyaml-0-2", "libjansson4", "zlib1g", "libc6"):
            self.assertIn(name, depends)

    def test_programs_and_pages(self):
        for name in (*PROGRAMS, *SCRIPTS):
            self.assertIn(name, output([self.usr / "bin" / name, "--version"]))
        pages = sorted(path.name for path in (self.usr / "share" / "man").glob("man*/*"))
        self.assertEqual(pages, sorted([name + ".1" for name in (*PROGRAMS, *SCRIPTS)] + ["mgr-upcycle.5"]))
        for page in pages:  # as a person asks for them
            name, section = page.split(".")
            text = output(["man", "-M", self.usr / "share" / "man", section, name],
                          env={**os.environ, "MANWIDTH": "80", "LC_ALL": "C.UTF-8"})
            self.assertIn(name, text.lower())
            self.assertIn("SYNOPSIS" if section == "1" else "upcycle.ratio", text)
            self.assertNotRegex(text, r"^\.[A-Za-z]{1,2}\b")
        for name in PROGRAMS:
            self.assertTrue((self.usr / "share" / "bash-completion" / "completions" / name).is_file())

    def test_completion_completes(self):
        """Typed at a terminal, with the tabulator."""
        script = self.usr / "share" / "bash-completion" / "completions" / "mgr-upcycle"
        env = {"PATH": "%s:%s" % (self.usr / "bin", os.environ["PATH"]), "TERM": "dumb", "PS1": "$ "}
        for typing, wanted in (("mgr-upcycle --dis\t", "mgr-upcycle --discard "),
                               ("mgr-upcycle -s upcycle.see\t", "mgr-upcycle -s upcycle.seed=")):
            shown = typed(". %s\n%s" % (script, typing), wanted, env)
            self.assertIn(wanted, shown)

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

    def test_examples_against_it(self):
        dense = self.folder / "dense"
        output([self.usr / "bin" / "mgr-synth", "-q", "--layers", 1, "--hidden", 64, "--ffn", 128, "--vocab", 64, dense])
        self.assertIn("model.embed_tokens.weight bfloat16 64x64\n", output([self.compile("print_tensor"), dense]))
        output([self.compile("write_copy"), dense, self.folder / "copy", "{format: huggingface}"])
        output([self.compile("write_experts"), dense, self.folder / "experts", "{experts: 2}"])
        for name in ("copy", "experts"):
            output([self.usr / "bin" / "mgr-verify", self.folder / name])
        output([self.usr / "bin" / "mgr-inspect", dense, self.folder / "copy"])

    def test_the_wheel_against_it(self):
        """All of tests/interop/test_python.py, with the package's library and programs: each format that
        mgr.formats() has, as real torch, transformers and h5py write and read it."""
        if not (runner.ROOT / ".venv" / "bin" / "python").exists():
            self.skipTest("no .venv: the wheel was not tried")
        done = subprocess.run(
            [runner.ROOT / "tests" / "interop" / "run.sh", "test_python.py"], stdout=subprocess.PIPE, text=True, timeout=900,
            env={**os.environ, "MGR_BIN": str(self.usr / "bin"), "MGR_LIBRARY_OF_WHEEL": str(self.library())},
        )  # fmt: skip
        self.assertEqual(done.returncode, 0, done.stdout[-4000:])
        self.assertRegex(done.stdout, r"(?m)^\d+ passed in ")


if __name__ == "__main__":
    unittest.main()
