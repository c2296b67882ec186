#!/bin/sh
# wheel.sh LIBRARY FOLDER [PYTHON]: a wheel of the Python module with libmgr.so in it.
#
#   cmake --build --preset release && tools/python/wheel.sh build/release/src/libmgr.so dist
#
# PYTHON (default python3) needs pip and setuptools. libmgr.so asks for libz, libyaml, libjansson,
# libdeflate and libcrypto of the system that the wheel is used on.
set -eu
if [ $# -lt 2 ] || [ ! -e "$1" ]; then
    echo "usage: tools/python/wheel.sh LIBRARY FOLDER [PYTHON]" >&2
    exit 64
fi
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -R "$here/pyproject.toml" "$here/setup.py" "$here/mgr" "$work"
cp -L "$1" "$work/mgr/libmgr.so.1"
"${3:-python3}" -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$2" "$work"
