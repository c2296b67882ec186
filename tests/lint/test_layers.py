#!/usr/bin/env python3
"""tools/lint/layers.py finds each planted violation, and nothing in a tree that keeps the law."""
import graphlib
import pathlib
import subprocess
import sys
import tempfile

LINT = pathlib.Path(__file__).parents[2] / "tools" / "lint" / "layers.py"
CLEAN = {
    "include/mgr/err.h": "#include <stdint.h>\n",
    "src/core/err.c": '#include "mgr/err.h"\n\n#include <string.h>\n',
    "src/core/say.h": "#include <stdio.h>\n",
    "src/core/say.c": '#include "core/say.h"\nvoid f(void) { fprintf(stderr, "x"); }\n',
    "src/io/reader.h": '#include "mgr/err.h"\n',
    "src/io/reader.c": '#include "io/reader.h"\nint f(void) { return open("x", 0); }\n',
    "src/fmt/zip.c": '#include "io/reader.h"\n/* open(x) */\nint f(void) { return ops->open(1); }\n',
    "src/fmt/h5.c": "#include <hdf5.h>\n#include <mpi.h>\n",
    "src/cli/main.c": '#include "io/reader.h"\n#include <mpi.h>\nint main(void) { exit(0); }\n',
}
PLANTED = [  # path, text, words of the report
    ("src/core/x.c", '#include "io/reader.h"\n', "core may not include"),
    ("src/io/x.c", '#include "fmt/zip.h"\n', "io may not include"),
    ("src/model/x.c", '#include "fmt/zip.h"\n', "model may not include"),
    ("src/fmt/x.c", '#include "mgr/model.h"\n', "fmt may not include"),
    ("src/plan/x.c", '#include "par/agree.h"\n', "plan may not include"),
    ("src/run/x.c", '#include "cli/cli.h"\n', "run may not include"),
    ("src/run/x.c", "#include <mpi.h>\n", "<mpi.h> is only for"),
    ("src/fmt/zip_x.c", "  #  include <hdf5.h>\n", "<hdf5.h> is only for"),
    ("src/cfg/x.c", "#include <jansson.h>\n", "<jansson.h> is only for"),
    ("src/core/x.c", "#include <yaml.h>\n", "<yaml.h> is only for"),
    ("src/fmt/x.c", "int f(int d) { return fsync (d); }\n", "fsync: file descriptors"),
    ("src/run/x.c", "int f(void) { return rename(a, b); }\n", "rename: file descriptors"),
    ("src/par/x.c", "void f(void) { exit(1); }\n", "exit: belongs to cli"),
    ("src/run/x.c", 'char *f(void) { return getenv("X"); }\n', "getenv: belongs to cli"),
    ("src/run/x.c", "void f(void) { signal(2, g); }\n", "signal: belongs to cli"),
    ("src/kern/x.c", "void *f(void) { return malloc(8); }\n", "malloc: memory"),
    ("src/fmt/x.c", 'void f(void) { printf("x"); }\n', "printf: printing"),
    ("src/run/report.c", 'void f(void) { printf("x"); }\n', "printf: printing"),
    ("src/io/reader.c", '#include <stdio.h>\n#include "io/reader.h"\n', "its own header"),
    ("src/core/err.c", '#include <stdio.h>\n#include "mgr/err.h"\n', "its own header"),
    ("src/core/x.c", '#include "log.h"\n', "by path from src/"),
    ("src/run/reader.h", "\n", "the name is taken by"),
    ("src/misc/x.c", "\n", "not in a room"),
]


def lint(files):
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            path = pathlib.Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        done = subprocess.run([sys.executable, LINT, folder], capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr


def main():
    failed = 0
    status, output = lint(CLEAN)
    if status != 0:
        print(f"a clean tree is refused:\n{output}")
        failed += 1
    for path, text, words in PLANTED:
        status, output = lint({**CLEAN, path: text})
        if status != 1 or output.count("\n") != 1 or not output.startswith(path + ":") or words not in output:
            print(f"{path} with {text!r}: expected '{words}', got status {status}:\n{output}")
            failed += 1
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(LINT.parent))
    import layers
    list(graphlib.TopologicalSorter(layers.LAW).static_order())  # raises on a cycle of rooms
    print(f"{len(PLANTED) + 1} trees, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
