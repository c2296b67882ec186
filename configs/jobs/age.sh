#!/bin/bash
# mgr-upcycle under Altair Grid Engine as TSUBAME 4 has it (other Grid Engines: a parallel
# environment instead of node types). Edit the three lines marked EDIT, then:
#   qsub -g mygroup configs/jobs/age.sh
#
# No Grid Engine was at hand when this was written: its grammar is checked, a queue never saw it.
#$ -cwd
#$ -j y
#$ -N mgr-upcycle
# The walltime, and nowhere else: 5 minutes before its end the run is told to stop in order, with
# exit status 75, and Grid Engine's 99 puts the job back into the queue, where it continues, 10 times
# at most.
#$ -l h_rt=02:00:00
#$ -r y
# EDIT 1: node type and number of nodes.
#$ -l cpu_80=4
set -uo pipefail

# EDIT 2: ranks per node. 4 to 8 fill most network file systems; each takes memory_per_rank
# (default 2 GiB). No GPU is used.
per_node=8
# EDIT 3: where mgr-upcycle was built, and the configuration file with your source and target.
bin=$HOME/mgr-upcycle/build/release/bin config=$HOME/mgr-upcycle/configs/drop-8x1.5b.yaml

# The MPI and the HDF5 that mgr-upcycle was built with, if your site keeps them in modules:
# module load mpich hdf5-parallel

[ -x "$bin/mgr-upcycle" ] || { echo "no program '$bin/mgr-upcycle': edit bin in this script" >&2; exit 66; }
[ -r "$config" ] || { echo "no file '$config': edit config in this script" >&2; exit 66; }
[ -r "${PE_HOSTFILE:-}" ] || { echo "no PE_HOSTFILE: submit this script with qsub" >&2; exit 64; }

# How often this job has begun: it keeps its number in the queue.
cd "${SGE_O_WORKDIR:-.}" || exit
starts=mgr-upcycle.starts.${JOB_ID:-0}
start=$(cat "$starts" 2>/dev/null || echo 0)

wall=$(sed -n 's/^#\$ -l h_rt=//p' "$0")
IFS=: read -r hours minutes seconds <<<"$wall"
limit=$((10#$hours * 3600 + 10#$minutes * 60 + 10#$seconds - 300))
[ $limit -gt 0 ] || { echo "h_rt $wall leaves no time before the 5 minutes to stop in" >&2; exit 64; }

hosts=$(mktemp) || exit
trap 'rm -f "$hosts"' EXIT
separator=: option=-f signal=TERM # the signal that a stop begins with
case $(mpiexec --version 2>&1) in
    *"Open MPI"* | *OpenRTE*) separator=' slots=' option=--hostfile signal=USR1 ;;
esac
awk -v s="$separator" -v n="$per_node" '{ print $1 s n }' "$PE_HOSTFILE" >"$hosts"
ranks=$(($(wc -l <"$hosts") * per_node))
launch=(mpiexec -n "$ranks" "$option" "$hosts")

echo "nodes $(wc -l <"$hosts"), ranks $ranks, start $start: ${launch[*]} $bin/mgr-upcycle $config"
status=0
timeout --preserve-status --signal="$signal" "$limit" "${launch[@]}" \
    "$bin/mgr-upcycle" --resume --progress 30 "$config" || status=$?

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
if [ $status = 75 ] && [ "$start" -lt 10 ]; then
    echo $((start + 1)) >"$starts" && exit 99
fi
rm -f "$starts"
exit $status
