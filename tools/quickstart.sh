#!/usr/bin/env bash
# From a fresh checkout to a first result: install what is missing, build, make a small dense
# checkpoint, upcycle it on 4 ranks, look at the result. Can be run again and from anywhere.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=build/release/bin
out=build/quickstart/Mixtral-8x5M

step() {
    printf '\n== %s\n' "$*"
}

step "packages"
tools/install-deps.sh build

step "build"
cmake --preset release
cmake --build --preset release --parallel "$(nproc)"

step "a dense Megatron checkpoint: 4 layers, tensor parallel 2, pipeline parallel 2"
mkdir -p build/quickstart
$bin/mgr-synth build/quickstart/dense --layers 4 --hidden 256 --ffn 704 --heads 8 --kv-heads 4 \
    --vocab 4096 --tp 2 --pp 2 --seed 1 --dtype bf16 --names te --force

step "mpiexec -n 4 mgr-upcycle configs/quickstart.yaml"
"${MPIEXEC:-mpiexec}" -n 4 $bin/mgr-upcycle --force configs/quickstart.yaml

step "mgr-inspect $out"
$bin/mgr-inspect $out | sed -n '1,24p;24s/.*/.../p'
ls -l $out

printf '\n%s\n' "Next: copy configs/drop-8x1.5b.yaml, edit its two paths, and look at the plan with --dry-run."
echo "On a cluster: edit three lines of configs/jobs/slurm.sh or pbs.sh and submit it."
