#!/bin/sh
# deb.sh FOLDER: mgr-upcycle_VERSION_ARCH.deb in FOLDER, for the system that this runs on.
#
# The programs, libmgr.so with its headers, manual pages, completion, configurations and job scripts.
# Needs what tools/install-deps.sh asks for, and dpkg-dev, file and scdoc.
set -eu
if [ $# -ne 1 ]; then
    echo "usage: tools/packaging/deb.sh FOLDER" >&2
    exit 64
fi
root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
mkdir -p "$1"
out=$(CDPATH='' cd -- "$1" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cmake -S "$root" -B "$work/build" -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo \
    -DCMAKE_INSTALL_PREFIX=/usr -DMGR_TESTS=OFF
cmake --build "$work/build"
cd "$work/build"
cpack -G DEB -D CPACK_PACKAGE_DIRECTORY="$work/out" -D CPACK_STRIP_FILES=ON
mv "$work/out"/*.deb "$out"
