"""The project, built with Open MPI beside the MPI that the machine's builds take."""

import os
import pathlib
import shutil
import subprocess

TOOLS = ("mpicc.openmpi", "h5pcc.openmpi", "mpiexec.openmpi", "cmake", "ninja")


def missing():
    lacking = [name for name in TOOLS if not shutil.which(name)]
    return "no %s (openmpi-bin libopenmpi-dev libhdf5-openmpi-dev)" % lacking[0] if lacking else ""


def options():
    """What CMake is told."""
    return [
        "-DMPI_C_COMPILER=" + shutil.which("mpicc.openmpi"),
        "-DMPIEXEC_EXECUTABLE=" + shutil.which("mpiexec.openmpi"),
        "-DHDF5_C_COMPILER_EXECUTABLE=" + shutil.which("h5pcc.openmpi"),
    ]


def build(source, folder):
    """The folder of mgr-upcycle."""
    for argv in (
        ["cmake", "-S", source, "-B", folder, "-G", "Ninja", *options()],
        ["cmake", "--build", folder, "--parallel", "2", "--target", "mgr-upcycle"],
    ):
        done = subprocess.run([str(word) for word in argv], stdin=subprocess.DEVNULL, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder / "bin"


def programs(folder):
    """Those that MGR_BIN_OPENMPI names, or built anew below `folder`, from the checkout that this is in."""
    built = os.environ.get("MGR_BIN_OPENMPI")
    return pathlib.Path(built) if built else build(pathlib.Path(__file__).resolve().parents[2], folder / "openmpi")
