# spack repo add tools/packaging/spack && spack install mgr-upcycle
#
# No Spack was at hand when this was written: Python compiles it, and a test reads it; Spack never saw it.
import os

from spack.package import *


class MgrUpcycle(CMakePackage):
    """Rewrite Megatron and Hugging Face checkpoints in parallel, and upcycle dense models to mixtures of experts."""

    # from the checkout that this file lies in; a site may set `git` to where it keeps the project
    git = "file://" + os.path.abspath(os.path.join(os.path.dirname(__file__), *[os.pardir] * 5))
    license("Apache-2.0")
    version("main", branch="main")

    variant("man", default=True, description="build the manual")

    depends_on("c", type="build")
    depends_on("cmake@3.25:", type="build")
    depends_on("pkgconfig", type="build")
    depends_on("scdoc", type="build", when="+man")
    depends_on("random123", type="build")
    depends_on("xxhash")
    depends_on("mpi@3.1:")
    depends_on("hdf5@1.10:1.14+mpi")
    depends_on("zlib-api")
    depends_on("libyaml")
    depends_on("jansson")
    depends_on("libdeflate")
    depends_on("openssl")

    def cmake_args(self):
        return [
            self.define("MGR_TESTS", False),
            self.define("CMAKE_C_COMPILER", self.spec["mpi"].mpicc),
        ]

    @run_after("install")
    @on_package_attributes(run_tests=True)
    def check_install(self):
        program = Executable(join_path(self.prefix.bin, "mgr-upcycle"))
        assert "mgr-upcycle" in program("--version", output=str)
