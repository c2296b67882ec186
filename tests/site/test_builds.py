"""Other systems, MPIs, compilers and processors: it builds there with every warning an error, asks for nothing but
what tools/install-deps.sh names, and writes the bytes that the build under test writes.

Each needs the network (packages) and minutes. MGR_ROOTS names a folder in which the systems are kept for the next
time; without it they are made anew."""

import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "cli"))
import openmpi  # noqa: E402
import runner  # noqa: E402

FORMATS = ("moe-recipes", "megatron-torch", "megatron-dist", "hdf5")
JOBS = "2"
SKIPPED = (runner.MANIFEST, runner.LEDGER, "model.h5")  # they quote paths and times
ARM = "aarch64-linux-gnu"

# A stand-in for the wrapper of a parallel HDF5 of another processor: what FindHDF5 asks it for.
H5PCC = """#!/bin/sh
flags="-I/usr/include/hdf5/mpich -I{lib}/mpich/include -L{lib}/hdf5/mpich -lhdf5"
case $1 in
-showconfig) printf 'HDF5 Version: 1.10.8\\nParallel HDF5: yes\\n' ;;
-show) echo "{cc} $flags" ;;
-shlib) shift && exec {cc} "$@" $flags -lmpich ;;
*) exec {cc} "$@" $flags -lmpich ;;
esac
"""


def shell(command, log, timeout=1500):
    """A command of the set-up; its output is kept in `log` and shown if it fails."""
    with open(log, "a") as file:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, timeout=timeout)
    tail = "\n".join(pathlib.Path(log).read_text(errors="replace").splitlines()[-25:])
    assert done.returncode == 0, "%s: %d\n%s" % (shlex.join(map(str, command)), done.returncode, tail)


def mirror():
    """Where this machine itself gets Debian's packages from."""
    targets = ["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages"]
    sites = subprocess.run(targets, capture_output=True, text=True, check=True).stdout.split()
    return next(site for site in sites if site.rstrip("/").endswith("/debian"))


def copy_source(to):
    """What git knows of the checkout."""
    to.mkdir(parents=True, exist_ok=True)
    names = subprocess.run(["git", "-C", runner.ROOT, "ls-files", "-z"], capture_output=True, check=True).stdout
    for name in filter(None, names.decode().split("\0")):
        if (runner.ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(runner.ROOT / name, to / name)


class Builds(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(tempfile.mkdtemp(prefix="mgr-builds-"))
        cls.addClassCleanup(shutil.rmtree, cls.folder, ignore_errors=True)
        cls.log = cls.folder / "log"
        cls.expected = cls.outputs([], runner.BIN, cls.folder / "job", cls.folder / "job")
        assert sorted(cls.expected) == sorted(FORMATS)

    @classmethod
    def outputs(cls, wrapper, programs, inside, outside, launcher=()):
        """{format: hashes}: a small model by mgr-synth, upcycled. `inside` is what the programs call the folder
        that is `outside` here."""
        shutil.rmtree(outside, ignore_errors=True)
        outside.mkdir(parents=True)
        programs, inside = pathlib.Path(programs), pathlib.Path(inside)
        made = runner.run([*wrapper, programs / "mgr-synth", "-q", "--format", "huggingface", inside / "dense"], 300)
        assert made.status == 0, str(made)
        found = {}
        for format in FORMATS:
            runner.write_config(
                outside / (format + ".yaml"), inside / "dense", inside / ("Mixtral-" + format),
                target__format=format, target__expert_parallel=2,
            )
            done = runner.run([*wrapper, *launcher, programs / "mgr-upcycle", "-q", inside / (format + ".yaml")], 600)
            assert done.status == 0, str(done)
            found[format] = runner.hashes(outside / ("Mixtral-" + format), skip=SKIPPED)
        return found

    def same_bytes(self, *how, **more):
        for format, hashes in self.outputs(*how, **more).items():
            self.assertEqual(hashes, self.expected[format], format)

    def configured(self, source, build, *options, wrapper=()):
        shell([*wrapper, "cmake", "--fresh", "-S", source, "-B", build, "-G", "Ninja", "-DMGR_WERROR=ON", *options], self.log)
        shell([*wrapper, "cmake", "--build", build, "--parallel", JOBS], self.log)
        return pathlib.Path(build) / "bin"


@unittest.skipUnless(os.geteuid() == 0 and shutil.which("debootstrap"), "needs root and debootstrap")
class Systems(Builds):
    """Debian with nothing but base packages: what is needed is installed by the project's own script."""

    def root(self, suite, name=None):
        kept = os.environ.get("MGR_ROOTS")
        root = pathlib.Path(kept or self.folder) / (name or suite)
        if not (root / "etc" / "debian_version").exists():
            root.mkdir(parents=True, exist_ok=True)
            shell(["debootstrap", "--variant=minbase", suite, root, mirror()], self.log)
        shutil.copy("/etc/resolv.conf", root / "etc" / "resolv.conf")
        for old in ("src", "build", "build-arm"):
            shutil.rmtree(root / old, ignore_errors=True)
        copy_source(root / "src")
        return root

    def inside(self, root):
        """In namespaces of its own, so that nothing stays mounted, and without what a user's builds are told."""
        enter = 'mount -t proc proc "$0/proc" && unset ${!CMAKE_*} CC CFLAGS LDFLAGS && exec chroot "$0" "$@"'
        return ["unshare", "--mount", "--pid", "--fork", "--", "bash", "-c", enter, root]

    def build(self, suite):
        root = self.root(suite)
        wrapper = self.inside(root)
        shell([*wrapper, "/src/tools/install-deps.sh", "build"], self.log)
        self.configured("/src", "/build", wrapper=wrapper)
        self.same_bytes(wrapper, "/build/bin", "/job", root / "job", launcher=["mpiexec", "-n", "2"])
        return root, wrapper

    def test_debian_12_and_its_quickstart(self):
        root, wrapper = self.build("bookworm")
        self.assertFalse((root / "usr/bin/python3").exists(), "the root is not minimal")
        shell([*wrapper, "/src/tools/quickstart.sh"], self.log)

    def test_debian_13(self):
        """HDF5 1.14, gcc 14, CMake 3.31."""
        self.build("trixie")

    def test_aarch64_by_cross_compiler_and_emulator(self):
        root = self.root("bookworm", "bookworm-arm64")
        wrapper = self.inside(root)
        lib = "/usr/lib/" + ARM
        # The -dev packages of MPI want a compiler of that processor: they are only unpacked.
        install = (
            "dpkg --add-architecture arm64 && apt-get -q update && "
            "apt-get -q install -y --no-install-recommends cmake ninja-build pkg-config gcc-aarch64-linux-gnu "
            "libc6-dev-arm64-cross qemu-user librandom123-dev libxxhash-dev libmpich12:arm64 "
            "libhdf5-mpich-103-1:arm64 zlib1g-dev:arm64 libyaml-dev:arm64 libjansson-dev:arm64 "
            "libdeflate-dev:arm64 libssl-dev:arm64 && cd /tmp && "
            "apt-get -q download libmpich-dev:arm64 libhdf5-mpich-dev:arm64 && "
            "for package in *_arm64.deb; do dpkg -x $package / || exit 1; done"
        )
        shell([*wrapper, "env", "DEBIAN_FRONTEND=noninteractive", "sh", "-c", install], self.log)
        (root / "h5pcc-arm").write_text(H5PCC.format(cc=ARM + "-gcc", lib=lib))
        (root / "h5pcc-arm").chmod(0o755)
        programs = self.configured(
            "/src", "/build-arm",
            "-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", "-DCMAKE_C_COMPILER=%s-gcc" % ARM,
            "-DCMAKE_LIBRARY_ARCHITECTURE=" + ARM, "-DPKG_CONFIG_EXECUTABLE=/usr/bin/pkg-config",
            "-DMPI_C_SKIP_MPICXX=ON", "-DMPI_SKIP_COMPILER_WRAPPER=ON", "-DMPI_SKIP_GUESSING=ON",
            "-DMPI_C_LIB_NAMES=mpich", "-DMPI_mpich_LIBRARY=%s/libmpich.so" % lib,
            "-DMPI_C_HEADER_DIR=%s/mpich/include" % lib, "-DMPI_C_ADDITIONAL_INCLUDE_VARS=",
            "-DHDF5_C_COMPILER_EXECUTABLE=/h5pcc-arm",
            wrapper=[*wrapper, "env", "PKG_CONFIG_LIBDIR=%s/pkgconfig:/usr/share/pkgconfig" % lib],
        )  # fmt: skip
        self.same_bytes([*wrapper, "qemu-aarch64"], programs, "/job", root / "job")


class Toolchains(Builds):
    """Beside what the machine has."""

    def test_clang(self):
        if not shutil.which("clang"):
            self.skipTest("no clang")
        programs = self.configured(runner.ROOT, self.folder / "clang", "-DCMAKE_C_COMPILER=clang")
        self.same_bytes([], programs, self.folder / "out", self.folder / "out")

    def test_cmake_4(self):
        """The newest; the oldest, 3.25, is Debian 12's."""
        venv = self.folder / "venv"
        shell([sys.executable, "-m", "venv", venv], self.log)
        shell([venv / "bin" / "pip", "install", "-q", "cmake>=4"], self.log)
        build = self.folder / "cmake4"
        shell([venv / "bin" / "cmake", "-S", runner.ROOT, "-B", build, "-G", "Ninja", "-DMGR_WERROR=ON"], self.log)
        shell([venv / "bin" / "cmake", "--build", build, "--parallel", JOBS], self.log)
        shell([venv / "bin" / "cmake", "--install", build, "--prefix", self.folder / "prefix"], self.log)
        self.same_bytes([], self.folder / "prefix" / "bin", self.folder / "out4", self.folder / "out4")

    @unittest.skipIf(openmpi.missing(), openmpi.missing())
    def test_open_mpi(self):
        programs = self.configured(runner.ROOT, self.folder / "openmpi", *openmpi.options())
        linked = subprocess.run(["ldd", programs / "mgr-upcycle"], capture_output=True, text=True, check=True).stdout
        self.assertIn("libmpi.so", linked)
        self.assertNotIn("mpich", linked)
        settings = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
                    "OMPI_MCA_rmaps_base_oversubscribe": "1", "OMPI_MCA_btl_vader_single_copy_mechanism": "none"}
        wrapper = ["env", *("%s=%s" % setting for setting in settings.items())]
        for ranks in ("1", "2", "4"):
            self.same_bytes(wrapper, programs, self.folder / "mpi", self.folder / "mpi",
                            launcher=["mpiexec.openmpi", "-n", ranks])


if __name__ == "__main__":
    unittest.main()
