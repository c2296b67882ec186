#!/bin/sh
# Make .venv in the checkout, with the packages of tools/requirements-interop.txt, -report.txt and
# -wheel.txt, and in it megatron-core-VERSION for each line of
# tools/requirements-megatron.txt, transformers-VERSION for each of tools/requirements-transformers.txt and
# deepspeed-VERSION for that of tools/requirements-deepspeed.txt.
#
#   tools/venv.sh            quick and silent when .venv is up to date
#   tools/venv.sh --check    only say whether it is (exit 0 or 3)
#
# Exit: 0 ready; 3 no such packages can be had here (one line on stderr says why); 64 usage.
# PYTHON=/path/to/python3 chooses the interpreter. pip's own settings (PIP_*) apply.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
wanted="$root/tools/requirements-interop.txt"
report="$root/tools/requirements-report.txt"
releases="$root/tools/requirements-megatron.txt"
transformers="$root/tools/requirements-transformers.txt"
deepspeed="$root/tools/requirements-deepspeed.txt"
wheel="$root/tools/requirements-wheel.txt"
venv="$root/.venv"
stamp="$venv/requirements.sha256"

give_up() {
    echo "tools/venv.sh: no Python packages for the interop tests: $1" >&2
    exit 3
}

# has PACKAGE FILE: a folder PACKAGE-VERSION says itself what is in it.
has() {
    while read -r version beside; do
        case "$version" in '' | '#'*) continue ;; esac
        [ "$(cat "$venv/$1-$version/installed.txt" 2>/dev/null)" = "$beside" ] || return 1
    done < "$2"
}

# has_all FILE: each PACKAGE==VERSION of it is in .venv.
has_all() {
    while read -r package; do
        case "$package" in '' | '#'*) continue ;; esac
        found=no
        for info in "$venv"/lib/*/site-packages/"${package%%==*}-${package##*==}.dist-info"; do
            [ ! -d "$info" ] || found=yes
        done
        [ $found = yes ] || return 1
    done < "$1"
}

# The interpreter is run, not only looked for: it may be one that this user cannot execute.
is_ready() {
    [ -r "$stamp" ] && [ "$(cat "$stamp")" = "$hash" ] && has transformers "$transformers" &&
        has deepspeed "$deepspeed" && has_all "$wheel" &&
        "$venv/bin/python" -c '' 2>/dev/null
}

check_only=no
case "${1-}" in
    '') ;;
    --check) check_only=yes ;;
    *) echo "usage: tools/venv.sh [--check]" >&2; exit 64 ;;
esac

hash=$(cat "$wanted" "$report" "$releases" | sha256sum | cut -d' ' -f1)
is_ready && exit 0
[ "$check_only" = no ] || give_up "'$venv' is absent or outdated; run tools/venv.sh"

# The system's interpreter first: other users of this checkout can run it too.
python=${PYTHON-}
if [ -z "$python" ]; then
    for candidate in /usr/bin/python3 python3; do
        if "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
            python=$candidate
            break
        fi
    done
fi
[ -n "$python" ] || give_up "no python3 with venv (Debian: apt-get install python3-venv)"
[ -w "$root" ] || give_up "'$root' is not writable"

# pip resolves everything before it touches an installation, so an outdated .venv is brought up to
# date in place; one that does not run is replaced.
"$venv/bin/python" -m pip --version >/dev/null 2>&1 || rm -rf "$venv"
rm -f "$stamp"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
fresh=no
if [ ! -d "$venv" ]; then
    fresh=yes
    if ! "$python" -m venv "$venv" >"$log" 2>&1; then
        rm -rf "$venv"
        give_up "'$python -m venv' failed: $(tail -n 1 "$log")"
    fi
fi
echo "tools/venv.sh: installing the packages of the interop tests into .venv (once, a few minutes)"
if ! "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        -r "$wanted" -r "$report" -r "$wheel" >"$log" 2>&1; then
    [ "$fresh" = no ] || rm -rf "$venv"
    give_up "pip install failed: $(grep -i '^error' "$log" | tail -n 1)"
fi

# folder NAME PIP-ARGUMENT...: packages without what they depend on in $venv/NAME. A folder under its
# final name is complete.
folder() {
    name=$1
    shift
    rm -rf "$venv/$name.partial"
    if ! DS_BUILD_OPS=0 "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps \
            --target "$venv/$name.partial" "$@" >"$log" 2>&1 </dev/null; then
        give_up "pip install for $name failed: $(grep -i '^error' "$log" | tail -n 1)"
    fi
    rm -rf "${venv:?}/$name"
}

while read -r version wheel_python; do
    case "$version" in '' | '#'*) continue ;; esac
    [ ! -d "$venv/megatron-core-$version" ] || continue
    folder "megatron-core-$version" --only-binary :all: --python-version "$wheel_python" --ignore-requires-python \
        "megatron-core==$version"
    mv "$venv/$name.partial" "$venv/$name"
done < "$releases"
while read -r version beside; do
    case "$version" in '' | '#'*) continue ;; esac
    [ "$(cat "$venv/transformers-$version/installed.txt" 2>/dev/null)" != "$beside" ] || continue
    # shellcheck disable=SC2086  # a list of packages
    folder "transformers-$version" --only-binary :all: "transformers==$version" $beside
    printf '%s\n' "$beside" >"$venv/$name.partial/installed.txt"
    mv "$venv/$name.partial" "$venv/$name"
done < "$transformers"
while read -r version beside; do
    case "$version" in '' | '#'*) continue ;; esac
    [ "$(cat "$venv/deepspeed-$version/installed.txt" 2>/dev/null)" != "$beside" ] || continue
    # shellcheck disable=SC2086  # a list of packages
    folder "deepspeed-$version" --no-build-isolation "deepspeed==$version" $beside
    printf '%s\n' "$beside" >"$venv/$name.partial/installed.txt"
    mv "$venv/$name.partial" "$venv/$name"
done < "$deepspeed"
echo "$hash" > "$stamp"
