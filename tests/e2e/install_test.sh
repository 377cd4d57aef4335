#!/usr/bin/env bash
# An installation by itself: it may be moved, and program, man page, completion, modulefile and job scripts work
# without the sources. Packages for others are looked at as far as their tools are here.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
build="$(cd "$(dirname "$ATOLL")/.." && pwd)"
jobs="$ATOLL_SOURCE/jobs"
[[ -f "$build/jobs/package/description/atoll.1" ]] || {
  printf 'skipped: no man page in %s (target atoll_description is not built)\n' "$build"
  exit 77
}

capture cmake --install "$build" --prefix "$work/first"
succeeds "cmake --install" || finish
if [[ -z "$(find "$work/first" -name '*.h' -o -name '*.hpp' -o -name '*.a')" ]]; then passed; else failed "headers or libraries"; fi
mv "$work/first" "$work/moved"
prefix="$work/moved"
# What is called from here on knows nothing of sources and build.
clean=(env -i PATH="$prefix/bin:/usr/bin:/bin" HOME="$work" MANPATH="$prefix/share/man" LANG=C.UTF-8
  OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1)
cd "$work"

capture "${clean[@]}" atoll --version
succeeds "atoll --version" || true
for word in '^atoll [0-9.]*$' '^commit: ' '^built: .*[0-9]' '^MPI: .*lib.*so' '^HDF5: *[0-9]' '^oneDNN: *[0-9]' '^CUDA: ' '^this CPU: '; do
  if grep -q "$word" "$work/stdout"; then passed; else failed "--version has no line '$word'"; fi
done

capture "${clean[@]}" atoll import "$sample" --output model.h5
succeeds "import" || true
capture "${clean[@]}" mpirun "${mpirun_flags[@]}" -n 2 atoll run --model model.h5 \
  --input "$prefix/share/atoll/jobs/sample-prompts.jsonl" --output results.jsonl --max-tokens 3
succeeds "run" || true
if (($(wc -l <results.jsonl) == 24)); then passed; else failed "results"; fi

# Each command is in the man page with all its options, and completed.
if command -v groff >/dev/null; then
  groff -man -Tutf8 -ww "$prefix/share/man/man1/atoll.1" 2>"$work/warnings" |
    sed -e 's/\x1b\[[0-9;]*m//g' -e 's/.\x08//g' >"$work/page" # without bold
  if [[ -s "$work/warnings" ]]; then failed "the man page: $(head -n 3 "$work/warnings")"; else passed; fi
  for word in ATOLL --checkpoint-every detokenize 'EXIT STATUS'; do
    if grep -q -- "$word" "$work/page"; then passed; else failed "the man page has no '$word'"; fi
  done
else
  printf 'left out: how the man page looks (no groff)\n'
fi
# completed WORDS...: what the completion offers for the last word.
completed() {
  # shellcheck disable=SC2016  # for that shell
  "${clean[@]}" bash -c 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _atoll; echo "${COMPREPLY[*]}"' \
    bash "$prefix/share/bash-completion/completions/atoll" "$@"
}
offers() { # EXPECTED WORDS...
  local expected="$1" offered
  shift
  offered="$(completed "$@")"
  if [[ " $offered " == *" $expected "* ]]; then passed; else failed "completion of '$*' offers '$offered'"; fi
}
offers check atoll c
offers --checkpoint-dir atoll run --check
offers score atoll run --mode s
offers --folder atoll check --

# The job script as it is installed, with a stand-in for Slurm.
mkdir bin
# shellcheck disable=SC2016  # for another shell
printf '#!/bin/sh\ncase "$1 $2" in "show hostnames") echo localhost ;; *) echo "JobId=$3" ;; esac\n' >bin/scontrol
chmod +x bin/scontrol
capture "${clean[@]}" PATH="$work/bin:$prefix/bin:/usr/bin:/bin" SLURM_JOB_ID=1 SLURM_NTASKS=2 SLURM_JOB_NODELIST=localhost \
  ATOLL_MPIRUN="${mpirun_flags[*]}" ATOLL_JOB_FOLDER="$work/job" ATOLL_CHECK=warn \
  bash "$prefix/share/atoll/jobs/atoll.sbatch" model.h5 "$prefix/share/atoll/jobs/sample-prompts.jsonl" by-job.jsonl \
  --max-tokens 3
succeeds "the job script" || tail -n 5 "$work/job/log"
same "the job script" results.jsonl by-job.jsonl
if grep -q "^commit: " "$work/job/commit.txt" && [[ -s "$work/job/check.json" ]]; then passed; else failed "the job's folder: $(ls "$work/job")"; fi

# modulefile: what it sets, read as Tcl would.
modulefile="$(echo "$prefix"/share/atoll/modulefiles/atoll/*)"
if command -v tclsh >/dev/null; then
  # shellcheck disable=SC2016  # Tcl's variables
  printf '%s\n' 'set ModulesCurrentModulefile [lindex $argv 0]' \
    'proc module-whatis {text} {}' 'proc conflict {name} {}' \
    'proc prepend-path {name value} { puts "$name=$value" }' 'proc setenv {name value} { puts "$name=$value" }' \
    'source $ModulesCurrentModulefile' >"$work/module.tcl"
  capture tclsh "$work/module.tcl" "$modulefile"
  succeeds "modulefile" || true
  if grep -qx "PATH=$prefix/bin" "$work/stdout" && grep -qx "ATOLL=$prefix/bin/atoll" "$work/stdout"; then passed; else failed "modulefile: $(cat "$work/stdout")"; fi
else
  printf 'left out: what the modulefile sets (no tclsh); it begins "%s"\n' "$(head -n 1 "$modulefile")"
fi

# Recipes for others. What is not here to build them is said; their syntax and the versions they name are looked at.
version="$(sed -n 's/^project(atoll VERSION \([0-9.]*\).*/\1/p' "$ATOLL_SOURCE/CMakeLists.txt")"
capture python3 -c 'import ast, sys; [ast.parse(open(path).read(), path) for path in sys.argv[1:]]' \
  "$jobs/spack/packages/atoll/package.py" "$jobs"/easybuild/*.eb
succeeds "syntax of the recipes of Spack and EasyBuild" || true
for file in "$jobs/spack/packages/atoll/package.py" "$jobs/easybuild/Atoll-$version-foss-2023a.eb" \
  "$ATOLL_SOURCE/CITATION.cff" "$ATOLL_SOURCE/CHANGELOG.md"; do
  if grep -qF "$version" "$file"; then passed; else failed "${file##*/} does not name version $version"; fi
done
# Every library that the build asks for is in each recipe.
while read -r library; do
  for file in "$jobs/spack/packages/atoll/package.py" "$jobs/spack.yaml" "$jobs/easybuild/Atoll-$version-foss-2023a.eb"; do
    if grep -qi "${library//[^A-Za-z0-9]/[-_]?}" "$file" || grep -qiE "${library//[^A-Za-z0-9]/.?}" "$file"; then passed; else failed "${file##*/} lacks $library"; fi
  done
done < <(sed -nE 's/^ *atoll_need\("([^"]*)".*/\1/p' "$ATOLL_SOURCE/CMakeLists.txt" | tr -d '{}')
for section in Bootstrap %files %post %test %runscript; do
  if grep -q "^$section" "$jobs/apptainer/atoll.def"; then passed; else failed "atoll.def lacks $section"; fi
done
command -v spack >/dev/null || printf 'left out: building the Spack package (no spack)\n'
if command -v eb >/dev/null; then # building takes a cluster's night; its own check of style does not
  capture eb --check-style "$jobs"/easybuild/*.eb
  succeeds "the style of the easyconfigs" || true
else
  printf 'left out: the style of the easyconfigs (no eb)\n'
fi
command -v apptainer >/dev/null || printf 'left out: building the container (no apptainer)\n'
if command -v spack >/dev/null; then
  capture spack --config "repos:[$jobs/spack]" spec atoll
  succeeds "spack spec atoll" || true
fi
finish
