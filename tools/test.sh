#!/usr/bin/env bash
# Everything that checks this tree: install what the tests need, build, run them through ctest.
#
# usage: tools/test.sh [--quick]
#   --quick   the release build only; without it the suite first runs under the address and
#             undefined-behaviour sanitizers, and the summary at the end is the release build's
#
#   ASAN_SKIP   labels left out of the sanitizer run, a regular expression (default: slow|site|lint)
#   CI=true     a missing tool or Python package fails instead of skipping what needs it
set -euo pipefail
cd "$(dirname "$0")/.."

quick=no
case ${1:-} in
    '') ;;
    --quick) quick=yes ;;
    *)
        echo "usage: tools/test.sh [--quick]" >&2
        exit 64
        ;;
esac

tools/install-deps.sh build
if ! tools/install-deps.sh test; then
    [ "${CI:-}" != true ] || exit 1
    echo "tools/test.sh: going on; tests whose tools are missing are skipped"
fi

status=0
tools/venv.sh || status=$?
if [ $status = 3 ] && [ "${CI:-}" != true ]; then
    echo "tools/test.sh: the interop tests are skipped: no Python packages (see the line above)"
elif [ $status != 0 ]; then
    exit $status
fi

build() {
    printf '\n== %s\n' "$1"
    cmake --preset "$1"
    cmake --build --preset "$1" --parallel "$(nproc)"
}

# Reports end the run with a stack; leaks count too.
export ASAN_OPTIONS=${ASAN_OPTIONS:-detect_leaks=1:strict_string_checks=1:detect_stack_use_after_return=1}
# Plug-ins of hwloc, which MPI loads where they are installed, leak what they allocate.
export HWLOC_PLUGINS_PATH=${HWLOC_PLUGINS_PATH:-/nonexistent}
export UBSAN_OPTIONS=${UBSAN_OPTIONS:-print_stacktrace=1}

asan=0
if [ $quick = no ]; then
    build asan
    # Not by the preset: ctest would skip only tests with both its label and ours.
    ctest --test-dir build/asan --output-on-failure --no-tests=error --timeout 600 --parallel 2 \
        --label-exclude "${ASAN_SKIP:-slow|site|lint}" || asan=$?
fi

build release
release=0
ctest --preset release || release=$?
[ $asan = 0 ] || echo "tools/test.sh: the run under sanitizers failed, see above" >&2
exit $((asan != 0 || release != 0))
