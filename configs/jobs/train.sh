#!/usr/bin/env bash
# Train from an upcycled checkpoint with the options that its run printed: the second job of chain.sh,
# which sets MGR_TARGET and MGR_MANIFEST. Edit the two lines marked EDIT, and what your Slurm wants.
# Megatron-LM and moe-recipes; for transformers the manifest has lines of Python.
#SBATCH --job-name=train
#SBATCH --output=%x-%j.log
#SBATCH --time=24:00:00
set -uo pipefail

# EDIT 1: how the trainer is started: srun, its python or torchrun, and its script.
trainer=(srun torchrun --nproc-per-node=8 "$HOME/Megatron-LM/pretrain_gpt.py")
# EDIT 2: your data, schedule and where to save; the checkpoint says the model's shape.
data=(--data-path "$HOME/data/corpus_text_document" --train-iters 1000 --save "$HOME/trained")

[ -r "${MGR_MANIFEST:-}" ] || { echo "no MGR_MANIFEST: start this by chain.sh, or set it to mgr-manifest.json" >&2; exit 64; }

# The lines of `remarks.next` that are options, quoted for a shell as the summary showed them.
printed=$(sed -n 's/^ *"now": " *\(--.*\)"$/\1/p' "$MGR_MANIFEST" | sed -e 's/\\\\$//' -e 's/\\\(["\\]\)/\1/g')
[ -n "$printed" ] || { echo "no options in '$MGR_MANIFEST'" >&2; exit 65; }
options=()
eval "options=($(tr '\n' ' ' <<<"$printed"))"

echo "train from ${MGR_TARGET:-}: ${#options[@]} words of options"
exec "${trainer[@]}" "${options[@]}" "${data[@]}"
