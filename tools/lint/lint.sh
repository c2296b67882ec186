#!/usr/bin/env bash
# One lint of the tree: usage: tools/lint/lint.sh CHECK [BUILD]
#
#   format     clang-format, dry run over src include tests
#   tidy       clang-tidy over src, with the compile commands of the build folder BUILD
#   tidy_deep  the same, and its analyzer takes all the time it wants
#   cppcheck   cppcheck over src, with the same
#   clang      clang's warnings over src, with the same: the compiler of the build is gcc
#   headers    each header compiles alone, twice, as C11; public ones also as C++
#   spelling   codespell
#   shell      shellcheck over every shell script
#   yaml       yamllint over configs
#   man        the man pages build
#   options    man pages know every option of BUILD/bin/*'s --help, and every key
#   text       no paths of one machine, no unfinished marks
#
# Exit: 0 clean; 1 not; 77 (skipped) where a tool is missing, unless CI=true, where that fails.
set -euo pipefail
cd "$(dirname "$0")/../.."
check=${1:?usage: tools/lint/lint.sh CHECK [BUILD]}
build=$(realpath -m "${2:-build/release}") # cppcheck filters by whole paths

absent() {
    echo "lint $check: $1"
    [ "${CI:-}" = true ] && exit 1
    exit 77
}
need() {
    local tool
    for tool; do
        command -v "$tool" >/dev/null || absent "'$tool' is not installed (tools/install-deps.sh test)"
    done
}

# The project's files that match any of the patterns: what git knows or would add; where there is
# no git, what lies here.
files() {
    if git rev-parse --is-inside-work-tree >/dev/null 2>&1; then
        git ls-files --cached --others --exclude-standard -- "$@" | while read -r file; do
            [ ! -f "$file" ] || printf '%s\n' "$file"
        done
    else
        find . -name .git -prune -o -path ./build -prune -o -path ./.venv -prune -o -type f -print |
            sed 's,^\./,,' | while read -r file; do
            for pattern; do
                # shellcheck disable=SC2053  # a pattern is meant
                [[ $file != $pattern && $file != "$pattern"/* ]] || { printf '%s\n' "$file"; break; }
            done
        done
    fi | sort -u
}

commands() {
    [ -f "$build/compile_commands.json" ] || absent "'$build/compile_commands.json' is not there"
}

lint_format() {
    need clang-format
    files 'src/*.[ch]' 'include/*.h' 'tests/*.[ch]' | xargs -r clang-format --dry-run -Werror
}

# Arguments: words for the compiler that the analyzer is.
tidy() {
    need clang-tidy
    commands
    # One file per process: with several, version 14 takes every va_list for uninitialized. Large
    # files first, so that the cores finish together. err.c defines what analyzer.h redefines.
    local model=--extra-arg=-include$PWD/tools/lint/analyzer.h
    files 'src/*.c' | xargs -r ls -S |
        while read -r file; do
            case $file in
                src/core/err.c) printf '%s\n%s\n' "$file" --extra-arg=-Wall ;;
                *) printf '%s\n%s\n' "$file" "$model" ;;
            esac
        done | xargs -r -d '\n' -P "$(nproc)" -n 2 \
        clang-tidy --quiet --extra-arg=-UNDEBUG --extra-arg=-Wno-unknown-warning-option -p "$build" \
        "${@/#/--extra-arg=}" 2>/dev/null
}

# A quarter of the paths of each function that the analyzer follows by default takes a fifth of the time.
lint_tidy() {
    tidy -Xclang -analyzer-config -Xclang max-nodes=50000
}

lint_tidy_deep() {
    tidy
}

lint_cppcheck() {
    need cppcheck
    commands
    # Uninitialized variables are clang-tidy's: cppcheck takes a failing call for one that returns.
    cppcheck --quiet -j "$(nproc)" --project="$build/compile_commands.json" \
        --file-filter="$PWD/src/*" --enable=warning,performance,portability --inline-suppr \
        --suppress=missingIncludeSystem --suppress=unknownMacro --suppress=uninitvar --suppress='*:/usr/*' \
        --error-exitcode=1
}

lint_clang() {
    need clang
    commands
    sed -n 's/^ *"command": "\(.*\)",*$/\1/p' "$build/compile_commands.json" |
        grep -- " -c $PWD/src/" |
        sed -E 's,^(\S*ccache )?\S+ ,clang -fsyntax-only -Werror -Wno-unknown-warning-option ,
            s, -o \S+| -M[TF] \S+| -MD,,g' | sort -u |
        xargs -r -d '\n' -P "$(nproc)" -I{} sh -c '{}'
}

# Headers from stdin, each alone and twice. Arguments: compiler, language, flags.
compile_headers() {
    local compiler=$1 language=$2
    shift 2
    export HEADER_COMMAND="$compiler -fsyntax-only -Wall -Wextra -Wpedantic -Werror -x $language $*"
    # shellcheck disable=SC2016  # for the inner shell
    xargs -r -P "$(nproc)" -I{} sh -c \
        'printf "#include \"%s\"\n#include \"%s\"\ntypedef int unit;\n" "{}" "{}" | $HEADER_COMMAND -'
}

lint_headers() {
    need cc clang++ mpicc h5pcc
    local include mpi
    include="-Iinclude -Isrc -D_GNU_SOURCE"
    mpi=$({ mpicc -show && h5pcc -show; } | tr ' ' '\n' | sed -n 's/^-I/-isystem /p' | tr '\n' ' ')
    # A *_body.h is a template for several paths, a simd_*.h belongs to one CPU: neither stands alone.
    # shellcheck disable=SC2086  # words are meant
    files 'src/*.h' | grep -vE '(_body|/simd_[a-z0-9]+)\.h$' | sed 's,^src/,,' |
        compile_headers cc c -std=c11 $include $mpi
    # shellcheck disable=SC2086
    files 'include/*.h' | sed 's,^include/,,' | compile_headers cc c -std=c11 $include
    # shellcheck disable=SC2086
    files 'include/*.h' | sed 's,^include/,,' | compile_headers clang++ c++ -std=c++11 $include
}

lint_spelling() {
    need codespell
    files '*.[ch]' '*.md' '*.py' '*.sh' '*.yaml' '*.cmake' '*.scd' '*CMakeLists.txt' |
        grep -v '^tests/data/' | xargs -r codespell --ignore-words tools/lint/words.txt
}

lint_shell() {
    need shellcheck
    files '*.sh' .ci/run tools/completion | grep -v '\.md$' | xargs -r shellcheck
}

lint_yaml() {
    need yamllint
    yamllint --strict -c tools/lint/yamllint.yaml configs
}

lint_man() {
    need scdoc
    local page
    for page in tools/man/*.scd; do
        scdoc <"$page" >/dev/null || { echo "$page: scdoc refuses it"; return 1; }
    done
}

lint_options() {
    local tool option failed=0 seen=0
    for tool in mgr-upcycle mgr-inspect mgr-verify mgr-synth mgr-bench mgr-card; do
        [ -x "$build/bin/$tool" ] || continue
        seen=1
        for option in $("$build/bin/$tool" --help | grep -oE -- '--[a-z][a-z-]*' | sort -u); do
            grep -qE -- "(^|[^a-z-])$option([^a-z-]|\$)" "tools/man/$tool.1.scd" ||
                { echo "tools/man/$tool.1.scd: no '$option', which $tool --help names"; failed=1; }
        done
    done
    [ $seen = 1 ] || absent "no tools in '$build/bin'"
    # shellcheck disable=SC2016  # the backquotes are markdown's
    diff <("$build/bin/mgr-upcycle" --keys markdown | sed -n 's/^- `\(.*\)`$/\1/p' | sort) \
        <(sed -n '/^# CONFIGURATION/,/^# EXIT/p' tools/man/mgr-upcycle.1.scd | grep '^\*' | grep -oE '\*[a-z0-9_.]+\*' | tr -d '*' | grep -vx sources |
            sort) || { echo "tools/man/mgr-upcycle.1.scd: other keys than mgr-upcycle has"; failed=1; }
    return $failed
}

# The brackets keep the patterns from finding themselves.
lint_text() {
    local paths marks
    paths=$(files '*' | xargs -r grep -nIE '[/](work|farm|root|home/[a-z]+)/' || true)
    marks=$(files src include tools tests configs |
        xargs -r grep -nIiE 'T[O]DO|F[I]XME|\bX[X]X\b|not[ ]implemented|place[h]older' || true)
    [ -z "$paths" ] || printf 'paths of one machine:\n%s\n' "$paths"
    [ -z "$marks" ] || printf 'unfinished marks:\n%s\n' "$marks"
    [ -z "$paths$marks" ]
}

case $check in
    format | tidy | tidy_deep | cppcheck | clang | headers | spelling | shell | yaml | man | options | text) "lint_$check" ;;
    *) echo "lint.sh: unknown check '$check'" >&2; exit 64 ;;
esac
