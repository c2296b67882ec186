#!/usr/bin/env python3
"""The law of the house (src/README.md), checked over src/: usage: layers.py [ROOT].

Prints one line per violation, "path:line: rule", and exits 1 if there is any."""
import pathlib
import re
import sys

# Which rooms a room may include from; itself always, and public headers "mgr/*.h" but for PUBLIC.
LAW = {
    "core": [],
    "rng": ["core"],
    "io": ["core"],
    "kern": ["core", "rng"],
    "fmt": ["core", "io"],
    "model": ["core"],
    "plan": ["core", "model"],
    "cfg": ["core"],
    "par": ["core"],
    "form": ["core", "io", "fmt", "model", "cfg", "par"],
    "engine": ["core", "rng", "io", "kern", "fmt", "model", "plan", "par", "form"],
    "look": ["core", "io", "kern", "fmt", "model", "cfg", "par", "form"],
    "run": ["core", "rng", "io", "kern", "fmt", "model", "plan", "cfg", "par", "form", "engine",
            "look"],
    "lib": ["core", "kern", "model", "par", "form", "engine", "look", "run"],
    "cli": ["core", "rng", "io", "kern", "fmt", "model", "plan", "cfg", "par", "form", "engine",
            "look", "run"],
}

# Rooms whose headers are not public.
PRIVATE = ("form/", "engine/", "look/", "run/", "lib/", "cli/")

# Public headers of what is declared there and made in a room: for those above it.
PUBLIC = {"mgr/model.h": "model", "mgr/layout.h": "model", "mgr/plan.h": "plan"}

# System headers that only some files may include (prefixes of paths below src/).
HEADERS = {
    "mpi.h": ("par/", "cli/", "fmt/h5"),
    "hdf5.h": ("fmt/h5",),
    "jansson.h": ("fmt/", "form/", "look/", "run/", "cli/"),
    "yaml.h": ("cfg/",),
}

# Calls that only some files may make, and why.
CALLS = [
    (r"(open|openat|creat|close|read|write|p(read|write)v?2?|(read|write)v|lseek|f(data)?sync|mmap"
     r"|f?truncate(64)?|(posix_)?fallocate|rename(at2?)?|(un)?link(at)?|symlink(at)?|mk(dir|stemp)"
     r"|rmdir|f(open|dopen|read))", ("io/",), "file descriptors belong to io"),
    (r"(_?exit|_Exit|quick_exit|setenv|signal|sigaction)", ("cli/",), "belongs to cli"),
    (r"(secure_)?getenv", ("cli/", "io/fault."), "belongs to cli (and to io's fault hook)"),
    (r"(set|new|use|free)locale", ("lib/locale.",), "numbers have a point: lib/locale.h"),
    (r"(m|c|re)alloc|free|str(n?)dup|posix_memalign|aligned_alloc", ("core/mem.",),
     "memory goes through core/mem.h"),
    (r"v?f?printf|f?puts|f?putc|putchar|perror",
     ("cli/", "core/say", "engine/progress."),
     "printing belongs to core/say.h, which escapes, to cli and to progress lines"),
]
CALLS = [(re.compile(r"(?<![\w.>])(?:%s)\s*\(" % names), may, why) for names, may, why in CALLS]
NOISE = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', re.S)
INCLUDE = re.compile(r'^\s*#\s*include\s*(["<])([^">]+)[">]')


def check_include(path, bracket, target):
    room = path.split("/")[0]
    if target in HEADERS and not path.startswith(HEADERS[target]):
        yield f"<{target}> is only for {' '.join(HEADERS[target])}"
    if target in PUBLIC and PUBLIC[target] not in [room, *LAW[room]]:
        yield f'{room} may not include "{target}": it is of {PUBLIC[target]}'
    if bracket == "<" or target.startswith("mgr/"):
        return
    if "/" not in target:
        yield f'"{target}": include by path from src/'
    elif target.split("/")[0] not in [room, *LAW[room]]:
        yield f'{room} may not include "{target}"; it may use {", ".join(LAW[room]) or "nothing"}'


def check_file(root, path):
    text = (root / "src" / path).read_text()
    includes = [(number, *match.groups()) for number, line in enumerate(text.split("\n"), 1)
                if (match := INCLUDE.match(line))]
    for number, bracket, target in includes:
        for rule in check_include(path, bracket, target):
            yield number, rule
    if path.endswith(".c"):
        own = path[:-1] + "h"
        if not (root / "src" / own).exists() and not path.startswith(PRIVATE):
            own = "mgr/" + own.split("/")[1]
        if ((root / "src" / own).exists() or (root / "include" / own).exists()) and (
                not includes or includes[0][2] != own):
            yield includes[0][0] if includes else 1, f'the first include is its own header "{own}"'
    code = NOISE.sub(lambda m: re.sub(r"[^\n]", " ", m.group()), text)
    for number, line in enumerate(code.split("\n"), 1):
        for call, may, why in CALLS:
            if not path.startswith(may) and (match := call.search(line)):
                yield number, f"{match.group().rstrip('( ')}: {why}"


def check(root):
    seen = {}
    for folder in ("include", "src", "tests", "tools"):
        for file in sorted(p for p in root.glob(folder + "/**/*.[ch]") if p.is_file()):
            name = file.relative_to(root).as_posix()
            if file.name in seen:
                yield f"{name}:1: the name is taken by {seen[file.name]}"
            seen.setdefault(file.name, name)
            if folder != "src":
                continue
            path = name.split("/", 1)[1]
            if path.split("/")[0] not in LAW:
                yield f"{name}:1: not in a room of the house"
            else:
                yield from (f"{name}:{number}: {rule}" for number, rule in check_file(root, path))


def main():
    root = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).parents[2]
    violations = list(check(root))
    print("\n".join(violations) or f"{root / 'src'}: the layers hold")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
