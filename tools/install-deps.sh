#!/usr/bin/env bash
# Install the Debian packages that are missing: usage: tools/install-deps.sh [build|test]
#
#   build   what compiling and running needs (the default)
#   test    that, and what the tests and lints need
#
# Nothing is done, and no rights are needed, where all are there. Exit: 0 ready; 3 something is
# missing and cannot be installed by this user here; 64 usage.
set -euo pipefail

packages=(gcc libc6-dev make cmake ninja-build pkg-config mpich libmpich-dev libhdf5-mpich-dev
    zlib1g-dev libyaml-dev libjansson-dev libdeflate-dev librandom123-dev libxxhash-dev libssl-dev)
case ${1:-build} in
    build) ;;
    test)
        packages+=(clang clang-tidy clang-format libclang-rt-14-dev cppcheck shellcheck codespell
            yamllint scdoc unzip python3 python3-venv time hdf5-tools strace chromium)
        ;;
    *)
        echo "usage: tools/install-deps.sh [build|test]" >&2
        exit 64
        ;;
esac

if ! command -v dpkg-query >/dev/null; then
    echo "tools/install-deps.sh: this is no Debian system; see that these are there:" >&2
    echo "  ${packages[*]}" >&2
    exit 3
fi

missing=()
for package in "${packages[@]}"; do
    # shellcheck disable=SC2016  # the format is dpkg's
    state=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$state" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

as_root=()
if [ "$(id -u)" != 0 ]; then
    as_root=(sudo)
    [ -t 0 ] || as_root+=(-n) # nobody is there to type a password
    if ! command -v sudo >/dev/null || ! "${as_root[@]}" true; then
        echo "tools/install-deps.sh: missing packages, and no rights to install them; as root run:" >&2
        echo "  apt-get install ${missing[*]}" >&2
        exit 3
    fi
fi

echo "tools/install-deps.sh: installing ${missing[*]}"
apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -o Dpkg::Use-Pty=0)
if ! "${apt[@]}" update >/dev/null ||
    ! "${apt[@]}" install -y --no-install-recommends "${missing[@]}" >/dev/null; then
    echo "tools/install-deps.sh: apt-get could not install ${missing[*]}" >&2
    exit 3
fi
