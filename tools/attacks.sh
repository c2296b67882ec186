#!/bin/sh
# attacks.sh: what parsers, outputs and the paths of failing calls were put through, in figures. Hours; both builds
# (cmake --preset release, --preset asan) must be there. With a word, what of it: faults, zoo, bits, hdf5 or fuzz.
set -eu
cd "$(dirname "$0")/.."
what=${1:-all}

# run BUILD REGEX PATTERN: the lines of ctest that hold figures; its status.
run() {
    log=$(mktemp)
    ctest --test-dir "build/$1" -R "$2" --no-tests=error -V >"$log" 2>&1 || { tail -n 20 "$log" && exit 1; }
    sed -n "s/^ *[0-9]*: *\($3\)/\1/p" "$log"
    rm -f "$log"
}

is() { [ "$what" = all ] || [ "$what" = "$1" ]; }

is faults && echo "faults of calls below the program" && run release '^faults\.many$' '.* ended right'
is zoo && echo "malformed inputs, under sanitizers" && run asan '^zoo\.' '.*corpus.*inputs\|malformed inputs: .*'
is bits && echo "flipped bits" && run release '^cli\.(Verify|Again)_many$' '.* found'
is hdf5 && echo "spoiled HDF5 sources" && run release '^interop\.hdf5_mutants$' '.* mutants: .*'
is fuzz && echo "inputs that fuzzers and the zoo made so far" && tests/fuzz/totals.sh
exit 0
