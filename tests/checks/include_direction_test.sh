#!/usr/bin/env bash
# The rooms and who may include whom: compute <- comm, io <- app. Each breach is printed as
# file:line. Argument: the repository (default: the one this script is in).
set -euo pipefail
cd "${1:-$(dirname "${BASH_SOURCE[0]}")/../..}"

breaches=0
# report WHY LINE...: counts and prints the lines found.
report() {
  local why="$1" found="$2"
  [[ -n "$found" ]] || return 0
  printf '%s:\n%s\n' "$why" "$found"
  breaches=$((breaches + $(wc -l <<<"$found")))
}

# What the sources of a folder may include, as a pattern of the whole name: all else is a breach.
# Standard headers, POSIX's and {fmt} may be included everywhere.
posix='unistd|fcntl|sched|signal|poll|pthread|strings|time|link|ifaddrs|cpuid'
everywhere="[a-z_]+|(sys|net|netinet)/[a-z]+\\.h|($posix)\\.h|fmt/[a-z]+\\.h"
own='[a-z_0-9]+\.hpp'
rooms="app             (app|app/model|app/plan|app/run|comm|comm/transports|compute|io)/$own|compute/cpu/isa\\.hpp|CLI/CLI\\.hpp
app/model       (app/model|comm|compute|io)/$own|nlohmann/json\\.hpp
app/plan        (app/plan|compute)/$own|comm/row_move\\.hpp
app/run         (app|app/model|app/plan|app/run|comm|comm/transports|compute|io)/$own|nlohmann/json\\.hpp|compute/cpu/isa\\.hpp|compute/cuda/backend\\.hpp
comm            (comm|comm/transports|compute)/$own|mpi\\.h
comm/transports (comm|comm/transports|compute)/$own|mpi\\.h|mpi-ext\\.h
io              (io|compute)/$own|mpi\\.h|hdf5\\.h|nlohmann/json(_fwd)?\\.hpp|xxhash\\.h
compute         compute/$own|compute/cpu/(isa|kernels)\\.hpp
compute/cpu     (compute|compute/cpu)/$own|dnnl\\.hpp|omp\\.h
compute/cpu/kernels  compute/cpu/(kernels/)?$own|immintrin\\.h
compute/cuda    (compute|compute/cuda)/$own|cublasLt\\.h|cuda_runtime_api\\.h|nvtx3/nvToolsExt\\.h
compute/cuda/kernels  (compute|compute/cuda)/$own|compute/cuda/kernels/[a-z_]+\\.cuh|cuda_(bf16|fp16|runtime)\\.h|mma\\.h"

while IFS= read -r file; do
  folder="$(dirname "$file")"
  allowed="$(awk -v folder="$folder" '$1 == folder { print $2 }' <<<"$rooms")"
  if [[ -z "$allowed" ]]; then
    report "a folder whose includes nobody has thought about (tests/checks/${BASH_SOURCE[0]##*/})" "$file"
    continue
  fi
  report "$folder may include other things only (tests/checks/${BASH_SOURCE[0]##*/})" "$(
    { grep -nE '^[[:space:]]*#[[:space:]]*include' "$file" || true; } |
      sed -E 's/[[:space:]]*#[[:space:]]*include[[:space:]]*[<"]([^>"]*)[>"].*/ \1/' |
      { grep -vE ":[[:space:]]*($everywhere|$allowed)\$" || true; } | sed "s#^#$file:#"
  )"
done < <(find app comm compute io -type f \
  \( -name '*.hpp' -o -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' \))

report "include from the repository's root, not relatively" \
  "$(grep -rnE '^[[:space:]]*#[[:space:]]*include[[:space:]]*"\.\.?/' perf tests || true)"

sources() {
  find app comm compute io tests perf jobs -type f \
    \( -name '*.hpp' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' \
    -o -name '*.sh' -o -name '*.py' \)
}
while IFS= read -r file; do
  lines=$(wc -l <"$file")
  ((lines <= 500)) || report "no file above 500 lines" "$file:$lines lines"
  case "$file" in
    *.hpp | *.cuh)
      grep -q '^#pragma once' "$file" || report "headers start with #pragma once" "$file:1"
      ;;
  esac
done < <(sources)

# Nothing may lead to one person's machine.
report "no paths of one machine" "$(grep -rnE '(^|[^[:alnum:]_.])/(home|root|work|Users)/[[:alnum:]_.]' \
  app comm compute io tests perf jobs README.md CMakeLists.txt CMakePresets.json \
  --include='*.hpp' --include='*.cpp' --include='*.cu*' --include='*.sh' --include='*.py' --include='*.txt' \
  --include='*.json' --include='*.md' | grep -v 'include_direction_test' || true)"

((breaches == 0)) || {
  printf '%d breaches\n' "$breaches"
  exit 1
}
printf 'include directions hold in %d files\n' "$(sources | wc -l)"
