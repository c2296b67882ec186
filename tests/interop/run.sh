#!/bin/sh
# run.sh TEST.py ...: pytest on the files, with the Python of .venv.
# Without .venv: skipped (77), in one line that says why; under CI=true that is a failure.
set -u
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
root=$(CDPATH='' cd -- "$here/../.." && pwd)
if ! why=$("$root/tools/venv.sh" --check 2>&1); then
    if [ "${CI-}" = true ]; then
        echo "FAILED, not skipped, because CI=true: $why"
        exit 1
    fi
    echo "skipped: $why"
    exit 77
fi
cd "$here" || exit 1
export PYTHONDONTWRITEBYTECODE=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
exec "$root/.venv/bin/python" -m pytest -q -rs -p no:cacheprovider --tb=short "$@"
