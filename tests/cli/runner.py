"""Run the programs under test and judge how they end. Standard library only.

Environment: MGR_BIN, the folder of the programs (default build/release/bin of this checkout);
MPIEXEC, the launcher with its flags (default mpiexec); MGR_SANITIZE, set when the programs were
built with sanitizers (they are slower and larger then).
"""

import hashlib
import json
import os
import pathlib
import re
import shlex
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(os.environ.get("MGR_BIN") or ROOT / "build" / "release" / "bin")
SANITIZED = bool(os.environ.get("MGR_SANITIZE"))
LITTLE_MEMORY = "256MiB" if SANITIZED else "64MiB"  # a sanitizer has much of its own
MANIFEST = "mgr-manifest.json"
LEDGER = "provenance.h5"  # its timeline differs from run to run

# Exit codes of the programs, after sysexits(3).
OK, USAGE, DATA, NO_INPUT, INTERNAL, OS_ERROR = 0, 64, 65, 66, 70, 71
CANNOT_CREATE, IO_ERROR, INTERRUPTED, CONFIG = 73, 74, 75, 78


class Result:
    def __init__(self, argv, status, out, err):
        self.argv, self.status, self.out, self.err = argv, status, out, err

    def __str__(self):
        return "%s\nexit status %d\n--- stdout\n%s--- stderr\n%s---" % (
            " ".join(map(str, self.argv)),
            self.status,
            self.out[-4000:],
            self.err[-4000:],
        )

    def errors(self):
        """The lines that report an error, of any rank."""
        return [line for line in (self.out + self.err).splitlines() if re.search(r"\berror:", line)]


def run(argv, timeout=60, env=None, cwd=None):
    """Run to the end. coreutils' timeout stops mpiexec in a way that leaves no spinning ranks."""
    limit = timeout * 6 if SANITIZED else timeout
    argv = ["timeout", "--kill-after=10", str(limit)] + [str(word) for word in argv]
    done = subprocess.run(
        argv, capture_output=True, env=dict(os.environ, **(env or {})), cwd=cwd, stdin=subprocess.DEVNULL
    )
    result = Result(
        argv[3:], done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    )
    assert result.status not in (124, 137, -9), "did not end within %d s\n%s" % (limit, result)
    assert not re.search(r"Sanitizer|runtime error:", result.out + result.err), str(result)
    return result


def program(name):
    return BIN / name


def launcher(np):
    return shlex.split(os.environ.get("MPIEXEC") or "mpiexec") + ["-n", str(np)]


def upcycle(config, np=2, options=(), timeout=60, env=None, wrapper=()):
    """mpiexec -n NP [WRAPPER] mgr-upcycle [OPTIONS] CONFIG. With MGR_UNIT_BYTES in the environment
    units and buffers are as small as that, so that little data is cut as much is."""
    if os.environ.get("MGR_UNIT_BYTES"):
        options = ["--unit-bytes", os.environ["MGR_UNIT_BYTES"], *options]
    return run(launcher(np) + list(wrapper) + [program("mgr-upcycle")] + list(options) + [config], timeout, env)


def synth(
    out,
    layers=2,
    hidden=64,
    ffn=96,
    heads=4,
    kv_heads=2,
    vocab=128,
    tp=1,
    pp=1,
    seed=7,
    dtype="bf16",
    names="te",
    timeout=60,
):
    """A deterministic dense checkpoint by mgr-synth, without its manifest, as others save one; returns its root."""
    result = run(
        [
            program("mgr-synth"),
            out,
            "--layers",
            layers,
            "--hidden",
            hidden,
            "--ffn",
            ffn,
            "--heads",
            heads,
            "--kv-heads",
            kv_heads,
            "--vocab",
            vocab,
            "--tp",
            tp,
            "--pp",
            pp,
            "--seed",
            seed,
            "--dtype",
            dtype,
            "--names",
            names,
        ],
        timeout,
    )
    assert result.status == 0, str(result)
    (pathlib.Path(out) / MANIFEST).unlink()
    return pathlib.Path(out)


def synth_folder(out, *words):
    """A small Hugging Face folder by mgr-synth, a Mixtral's where `words` ask for experts; without a manifest."""
    sizes = dict(layers=2, hidden=64, ffn=96, heads=4, kv_heads=2, vocab=128, seed=7)
    words = [str(word) for word in words]
    options = ["--format", "moe-recipes" if "--experts" in words else "huggingface"]
    for name, size in sizes.items():
        option = "--" + name.replace("_", "-")
        options += [] if option in words else [option, size]
    result = run([program("mgr-synth"), out] + options + words)
    assert result.status == 0, str(result)
    (pathlib.Path(out) / MANIFEST).unlink()
    return pathlib.Path(out)


def yaml_lines(tree, indent=0):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield "%s%s:" % (" " * indent, key)
            yield from yaml_lines(value, indent + 2)
        else:
            text = (
                value
                if isinstance(value, str) and re.fullmatch(r"[A-Za-z][\w.-]*|\d\w*", value)
                else json.dumps(str(value) if isinstance(value, os.PathLike) else value)
            )
            yield "%s%s: %s" % (" " * indent, key, text)


def write_config(path, source, target, **changes):
    """A configuration file. `changes` are "section.key" (spelt section__key) = value; None
    leaves the key out. Keys that the mode or the method does not have are not there by default."""
    tree = {
        "mode": "upcycle",
        "source": {"path": source},
        "upcycle": {"method": "drop", "experts": 4, "top_k": 2, "ratio": 0.5, "seed": 1234},
        "target": {"path": target, "format": "moe-recipes"},
    }
    if changes.get("upcycle__method") == "naive":
        tree["upcycle"].pop("ratio")
    if changes.get("mode") == "reshard":
        tree.pop("upcycle")
    for name, value in changes.items():
        *sections, key = name.split("__")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        if value is None:
            place.pop(key, None)
        else:
            place[key] = value
    tree = {key: value for key, value in tree.items() if value != {}}
    path = pathlib.Path(path)
    path.write_text("\n".join(yaml_lines(tree)) + "\n")
    return path


def hashes(folder, skip=(MANIFEST, LEDGER)):
    """{relative path: sha256} of every file below `folder`, but those named in `skip`."""
    found = {}
    for path in sorted(pathlib.Path(folder).rglob("*")):
        if path.is_file() and path.name not in skip:
            digest = hashlib.sha256()
            with open(path, "rb") as file:
                while chunk := file.read(1 << 22):
                    digest.update(chunk)
            found[str(path.relative_to(folder))] = digest.hexdigest()
    return found


def tensor_sums(folder):
    """{(file, tensor): (bytes, CRC-32)} of an output's weights, as its manifest has them."""
    files = json.loads((pathlib.Path(folder) / MANIFEST).read_text())["target"]["files"]
    sums = {(f["path"], name): (t["bytes"], t["crc32"]) for f in files for name, t in f.get("tensors", {}).items()}
    assert sums, folder
    return sums
