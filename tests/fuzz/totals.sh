#!/bin/sh
# What was run over each parser so far, from log.tsv: malformed inputs, and what they found.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
awk -F '\t' '
    NR > 1 { inputs[$3] += $4; found[$3] += $5; all += $4; bad += $5 }
    END {
        for (name in inputs)
            printf "%-12s %12d inputs %4d findings\n", name, inputs[name], found[name] | "sort"
        close("sort")
        printf "%-12s %12d inputs %4d findings\n", "all", all, bad
    }' "$here/log.tsv"
