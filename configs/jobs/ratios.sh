#!/usr/bin/env bash
# How far from the file system's best is a run? IOR, dcp and mgr-upcycle in one job, on the same ranks, three ratios.
# Edit the three lines marked EDIT, then: sbatch configs/jobs/ratios.sh. (Its grammar is checked; no site has run it yet.)
#
# IOR (github.com/hpc/ior) writes the run's bytes in 8 MiB pieces, a file for each rank, with fsync; dcp (mpifileutils)
# copies what the run wrote. Each is done ROUNDS times in turn; medians are printed, and removed what was made.
#SBATCH --job-name=mgr-ratios
#SBATCH --output=%x-%j.log
#SBATCH --mem-per-cpu=3G
#SBATCH --time=01:00:00
# EDIT 1: nodes, and ranks per node.
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
set -euo pipefail

# EDIT 2: where mgr-upcycle was built, and the configuration file with your source.
bin=$HOME/mgr-upcycle/build/release/bin config=$HOME/mgr-upcycle/configs/drop-8x1.5b.yaml
# EDIT 3: an empty folder on the file system to measure; on Lustre striped before (lfs setstripe -c -1 -S 16M).
scratch=/scratch/llm/ratios
rounds=${ROUNDS:-5}

for tool in ior dcp; do
    command -v "$tool" >/dev/null || { echo "no '$tool': load its module, or build it" >&2; exit 66; }
done
[ -x "$bin/mgr-upcycle" ] || { echo "no program '$bin/mgr-upcycle': edit bin in this script" >&2; exit 66; }
[ -d "$scratch" ] || { echo "no folder '$scratch': edit scratch in this script" >&2; exit 66; }

ranks=${SLURM_NTASKS:?submit this script with sbatch}
launch=(srun --mpi=pmi2)
case $(ldd "$bin/mgr-upcycle") in
    *libmpi_cray* | *libmpi_gnu_*) launch=(srun --mpi=cray_shasta) ;;
    *libmpi.so.40*) launch=(srun --mpi=pmix) ;;
esac
target=$scratch/Mixtral-ratios copy=$scratch/copy
ours=("${launch[@]}" "$bin/mgr-upcycle" -q --force -s "target.path=$target" "$config")

seconds() { # of a command, to the standard output
    local start end
    start=$(date +%s.%N)
    "$@" >&2
    end=$(date +%s.%N)
    awk "BEGIN { printf \"%.3f\\n\", $end - $start }"
}
median() { sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }

"${ours[@]}" # warms up, and tells how much there is to write
bytes=$(du -sb --apparent-size "$target" | cut -f1)
pieces=$(((bytes / ranks + (8 << 20) - 1) / (8 << 20))) # of a rank, 8 MiB each
run=() floor=() copies=()
for ((i = 0; i < rounds; i++)); do
    floor+=("$(seconds "${launch[@]}" ior -a POSIX -w -e -F -C -t 8m -b "$((8 * pieces))m" -o "$scratch/ior" -k)")
    rm -f "$scratch"/ior.*
    run+=("$(seconds "${ours[@]}")")
    copies+=("$(seconds "${launch[@]}" dcp "$target" "$copy")")
    rm -rf "$copy"
done
rm -rf "$target"

f=$(printf '%s\n' "${floor[@]}" | median) r=$(printf '%s\n' "${run[@]}" | median) c=$(printf '%s\n' "${copies[@]}" | median)
echo "$ranks ranks on ${SLURM_JOB_NUM_NODES:-?} nodes, $bytes bytes; seconds: IOR $f, mgr-upcycle $r, dcp $c"
awk "BEGIN { printf \"mgr-upcycle by IOR %.2f, mgr-upcycle by dcp %.2f, dcp by IOR %.2f\\n\", $r / $f, $r / $c, $c / $f }"
