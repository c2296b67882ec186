#!/usr/bin/env bash
# mgr-upcycle under Slurm. Edit the three lines marked EDIT, then: sbatch configs/jobs/slurm.sh
#
# How many ranks: reading and writing decide, not arithmetic. 4 to 8 ranks per node fill most
# network file systems; each takes memory_per_rank (default 2 GiB). No GPU is used.
#SBATCH --job-name=mgr-upcycle
#SBATCH --output=%x-%j.log
#SBATCH --time=02:00:00
# EDIT 1 and 2: nodes, and ranks per node.
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
# Warn every rank 5 minutes before the time limit: the run then stops in order, with exit status 75.
# Submit the same job again and it goes on where it stopped (--resume).
#SBATCH --signal=TERM@300
# Many sites also want a partition and an account:
##SBATCH --partition=cpu --account=mygroup
set -euo pipefail

# EDIT 3: where mgr-upcycle was built, and the configuration file with your source and target.
bin=$HOME/mgr-upcycle/build/release/bin config=$HOME/mgr-upcycle/configs/drop-8x1.5b.yaml

# The MPI and the HDF5 that mgr-upcycle was built with, if your site keeps them in modules:
# module load mpich hdf5-parallel

# On Lustre, stripe the folder that the target goes into once, before the first run: one large file
# then uses many servers.
# lfs setstripe -c -1 -S 16M /scratch/llm

[ -x "$bin/mgr-upcycle" ] || { echo "no program '$bin/mgr-upcycle': edit bin in this script" >&2; exit 66; }
[ -r "$config" ] || { echo "no file '$config': edit config in this script" >&2; exit 66; }

# MPICH speaks PMI2; --mpi=list shows what your Slurm offers (pmix for Open MPI, cray_shasta on Cray).
run=(srun --mpi=pmi2 "$bin/mgr-upcycle" --resume --progress 30 "$config")

echo "nodes ${SLURM_JOB_NUM_NODES:-?}, ranks ${SLURM_NTASKS:-?}: ${run[*]}"
exec "${run[@]}"
