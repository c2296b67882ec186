#!/usr/bin/env bash
# mgr-upcycle under Slurm. Edit the three lines marked EDIT, then: sbatch configs/jobs/slurm.sh
#
# How many ranks: reading and writing decide, not arithmetic. 4 to 8 ranks per node fill most
# network file systems. No GPU is used. Many sites also want a partition and an account:
##SBATCH --partition=cpu --account=mygroup
#SBATCH --job-name=mgr-upcycle
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
# memory_per_rank (default 2 GiB), and what MPI takes beside it:
#SBATCH --mem-per-cpu=3G
# The walltime, and nowhere else: 5 minutes before its end every rank gets SIGTERM and stops in
# order with exit status 75; the job then goes back into the queue and continues, 10 times at most.
#SBATCH --time=02:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
# EDIT 1 and 2: nodes, and ranks per node.
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
set -uo pipefail

# EDIT 3: where mgr-upcycle was built, and the configuration file with your source and target.
bin=$HOME/mgr-upcycle/build/release/bin config=$HOME/mgr-upcycle/configs/drop-8x1.5b.yaml

# The MPI and the HDF5 that mgr-upcycle was built with, if your site keeps them in modules:
# module load mpich hdf5-parallel

# On Lustre, stripe the folder that the target goes into once, before the first run: one large file
# then uses many servers. How many, mgr-upcycle --dry-run says; for shards of 5 GB:
# lfs setstripe -c 5 -S 16M /scratch/llm

[ -x "$bin/mgr-upcycle" ] || { echo "no program '$bin/mgr-upcycle': edit bin in this script" >&2; exit 66; }
[ -r "$config" ] || { echo "no file '$config': edit config in this script" >&2; exit 66; }

# MPICH speaks PMI2, Open MPI PMIx, Cray's MPI its own; `srun --mpi=list` shows what your Slurm has.
run=(srun --mpi=pmi2 "$bin/mgr-upcycle" --resume --progress 30 "$config")
case $(ldd "$bin/mgr-upcycle") in
    *libmpi_cray* | *libmpi_gnu_*) run[1]=--mpi=cray_shasta ;; # as on HPE Cray EX; no test had one
    *libmpi.so.40*) run[1]=--mpi=pmix ;;
esac

echo "nodes ${SLURM_JOB_NUM_NODES:-?}, ranks ${SLURM_NTASKS:-?}, start ${SLURM_RESTART_COUNT:-0}: ${run[*]}"
status=0
"${run[@]}" || status=$?

# Launchers have been seen to lose an exit status, either way: what counts is that the target is there, and whole.
complete() { "$bin/mgr-upcycle" --dry-run --ranks 1 --resume "$config" 2>/dev/null | grep -q '^already complete'; }
target=$("$bin/mgr-upcycle" --get target.path "$config") || exit
case $status in
    0) [ -e "$target" ] || status=75 ;; # ended by the signal before it had begun
    6[4-9] | 7[0-8]) ;; # the program's own word
    *) if complete; then status=0; fi ;;
esac
if [ $status = 0 ]; then # the signal may come here, too
    srun "${run[1]}" "$bin/mgr-verify" "$target" || status=$?
    # Every weight made again from source and seed, and compared:
    # srun "${run[1]}" "$bin/mgr-upcycle" --verify "$config" || status=$?
fi
if [ $status = 75 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 10 ]; then
    scontrol requeue "$SLURM_JOB_ID" || true # where the site forbids it: submit the script again
fi
exit $status
