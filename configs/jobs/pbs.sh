#!/usr/bin/env bash
# mgr-upcycle under PBS. Edit the three lines marked EDIT, then: qsub configs/jobs/pbs.sh
#
# How many ranks: reading and writing decide, not arithmetic. 4 to 8 ranks per node fill most
# network file systems; each takes memory_per_rank (default 2 GiB). No GPU is used.
#PBS -N mgr-upcycle
#PBS -j oe
#PBS -l walltime=02:00:00
# EDIT 1: nodes (select) and ranks per node (mpiprocs; ncpus at least as many).
#PBS -l select=4:ncpus=8:mpiprocs=8
# Many sites also want a queue and a project:
##PBS -q workq -P mygroup
set -euo pipefail

# EDIT 2: where mgr-upcycle was built.
bin=$HOME/mgr-upcycle/build/release/bin
# EDIT 3: the configuration file with your source and target.
config=$HOME/mgr-upcycle/configs/drop-8x1.5b.yaml

# The MPI and the HDF5 that mgr-upcycle was built with, if your site keeps them in modules:
# module load mpich hdf5-parallel

# On Lustre, stripe the folder that the target goes into once, before the first run: one large file
# then uses many servers.
# lfs setstripe -c -1 -S 16M /scratch/llm

cd "${PBS_O_WORKDIR:-.}"
[ -x "$bin/mgr-upcycle" ] || { echo "no program '$bin/mgr-upcycle': edit bin in this script" >&2; exit 66; }
[ -r "$config" ] || { echo "no file '$config': edit config in this script" >&2; exit 66; }
[ -r "${PBS_NODEFILE:-}" ] || { echo "no PBS_NODEFILE: submit this script with qsub" >&2; exit 64; }

# One line per rank in the node file. 5 minutes before the walltime above, SIGTERM: the run then
# stops cleanly, with exit status 75. Open MPI and Cray call the launcher and its options otherwise:
# mpirun --hostfile, aprun -n.
ranks=$(wc -l <"$PBS_NODEFILE")
run=(timeout --preserve-status --signal=TERM 6900 mpiexec -n "$ranks" -f "$PBS_NODEFILE"
    "$bin/mgr-upcycle" --resume --progress 30 "$config")

echo "nodes $(sort -u "$PBS_NODEFILE" | wc -l), ranks $ranks: ${run[*]}"
exec "${run[@]}"
