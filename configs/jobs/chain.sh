#!/usr/bin/env bash
# Upcycle, verify, train: two Slurm jobs, the second one only where the first ended well.
# Edit the line marked EDIT, then: configs/jobs/chain.sh
#
# The first is slurm.sh beside this file, with its own three lines edited; it may go through the
# queue several times. The second is your training script, train.sh beside this file or one like it; it
# finds the checkpoint in MGR_TARGET, and in MGR_MANIFEST the manifest, which keeps the trainer's
# options that the summary of the run printed.
set -euo pipefail

# EDIT: your training script.
train=$HOME/train.sh

here=$(cd "$(dirname "$0")" && pwd)
[ -r "$train" ] || { echo "no file '$train': edit train in this script" >&2; exit 66; }
first=$(sbatch --parsable "$here/slurm.sh")
bin=$(sed -n 's/^bin=\([^ ]*\) .*/\1/p' "$here/slurm.sh")
config=$(sed -n 's/^bin=.* config=//p' "$here/slurm.sh")
eval "bin=$bin config=$config" # they may begin with $HOME
target=$("$bin/mgr-upcycle" --get target.path "$config")
second=$(sbatch --parsable --dependency=afterok:"$first" --kill-on-invalid-dep=yes \
    --export="ALL,MGR_TARGET=$target,MGR_MANIFEST=$target/mgr-manifest.json" "$train")
echo "job $first upcycles and verifies, job $second trains from $target"
