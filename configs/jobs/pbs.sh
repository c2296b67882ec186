#!/usr/bin/env bash
# mgr-upcycle under OpenPBS or PBS Professional (also with PALS, as on HPE Cray EX). Edit the three
# lines marked EDIT, then: qsub configs/jobs/pbs.sh
#
# No PBS and no PALS were at hand when this was written: its grammar is checked, and it runs under the
# variables that PBS sets; a queue never saw it.
#
# How many ranks: reading and writing decide, not arithmetic. 4 to 8 ranks per node fill most
# network file systems. No GPU is used. Many sites also want a queue and a project:
##PBS -q workq -P mygroup
#PBS -N mgr-upcycle
#PBS -j oe
#PBS -r y
# The walltime, and nowhere else: 5 minutes before its end the run is told to stop in order, with
# exit status 75; the script then submits itself again and the run continues, 10 times at most.
#PBS -l walltime=02:00:00
# EDIT 1: nodes (select) and ranks per node (mpiprocs; ncpus at least as many; mem: for each rank
# memory_per_rank, 2 GiB by default, and 1 GiB for MPI).
#PBS -l select=4:ncpus=8:mpiprocs=8:mem=24gb
set -uo pipefail

# EDIT 2: where mgr-upcycle was built.
bin=$HOME/mgr-upcycle/build/release/bin
# EDIT 3: the configuration file with your source and target.
config=$HOME/mgr-upcycle/configs/drop-8x1.5b.yaml

# The MPI and the HDF5 that mgr-upcycle was built with, if your site keeps them in modules:
# module load mpich hdf5-parallel

# On Lustre, stripe the folder that the target goes into once, before the first run: one large file
# then uses many servers. How many, mgr-upcycle --dry-run says; for shards of 5 GB:
# lfs setstripe -c 5 -S 16M /scratch/llm

cd "${PBS_O_WORKDIR:-.}" || exit
[ -x "$bin/mgr-upcycle" ] || { echo "no program '$bin/mgr-upcycle': edit bin in this script" >&2; exit 66; }
[ -r "$config" ] || { echo "no file '$config': edit config in this script" >&2; exit 66; }
[ -r "${PBS_NODEFILE:-}" ] || { echo "no PBS_NODEFILE: submit this script with qsub" >&2; exit 64; }

# What the job was given (qsub -l walltime=... may have changed it), or else what this script asks.
wall=$(qstat -f "${PBS_JOBID:-}" 2>/dev/null | sed -n 's/.*Resource_List.walltime = //p')
[ -n "$wall" ] || wall=$(sed -n 's/^#PBS -l walltime=//p' "$0")
IFS=: read -r hours minutes seconds <<<"$wall"
limit=$((10#$hours * 3600 + 10#$minutes * 60 + 10#$seconds - 300))
[ $limit -gt 0 ] || { echo "walltime $wall leaves no time before the 5 minutes to stop in" >&2; exit 64; }

# One line per rank in the node file. PALS and Cray read it themselves; Open MPI calls it otherwise, and kills its
# processes a second after SIGTERM, but hands SIGUSR1 on to them.
signal=TERM
ranks=$(wc -l <"$PBS_NODEFILE")
launch=(mpiexec -n "$ranks" -f "$PBS_NODEFILE")
case $(mpiexec --version 2>&1) in
    *PALS*) launch=(mpiexec -n "$ranks") ;;
    *"Open MPI"* | *OpenRTE*) launch=(mpiexec -n "$ranks" --hostfile "$PBS_NODEFILE") signal=USR1 ;;
esac
run=(timeout --preserve-status --signal="$signal" "$limit" "${launch[@]}"
    "$bin/mgr-upcycle" --resume --progress 30 "$config")

echo "nodes $(sort -u "$PBS_NODEFILE" | wc -l), ranks $ranks, start ${MGR_START:-0}: ${run[*]}"
status=0
"${run[@]}" || status=$?

# Launchers have been seen to lose an exit status, either way: what counts is that the target is there, and whole.
complete() { "$bin/mgr-upcycle" --dry-run --ranks 1 --resume "$config" 2>/dev/null | grep -q '^already complete'; }
target=$("$bin/mgr-upcycle" --get target.path "$config") || exit
case $status in
    0) [ -e "$target" ] || status=75 ;; # ended by the signal before it had begun
    6[4-9] | 7[0-8]) ;; # the program's own word
    *) if complete; then status=0; elif [ $SECONDS -ge "$limit" ]; then status=75; fi ;;
esac
# Also within what is left of the walltime.
if [ $status = 0 ]; then
    left=$((limit > SECONDS ? limit - SECONDS : 1))
    timeout --preserve-status --signal="$signal" $left "${launch[@]}" "$bin/mgr-verify" "$target" || status=$?
    if [ $status -gt 1 ] && [ $SECONDS -ge "$limit" ]; then status=75; fi
    # Every weight made again from source and seed, and compared:
    # "${launch[@]}" "$bin/mgr-upcycle" --verify "$config" || status=$?
fi
if [ $status = 75 ] && [ "${MGR_START:-0}" -lt 10 ]; then
    qsub -v MGR_START=$((${MGR_START:-0} + 1)) "$0"
fi
exit $status
