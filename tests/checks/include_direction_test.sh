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
posix='unistd|dlfcn|fcntl|sched|signal|poll|pthread|strings|time|link|ifaddrs|cpuid'
everywhere="[a-z_]+|(sys|net|netinet)/[a-z]+\\.h|($posix)\\.h|fmt/[a-z]+\\.h"
own='[a-z_0-9]+\.hpp'
rooms="app             (app|app/model|app/plan|app/run|comm|comm/transports|compute|io)/$own|compute/cpu/(isa|probe)\\.hpp|CLI/CLI\\.hpp
app/model       (app/model|comm|compute|io)/$own|nlohmann/json\\.hpp
app/plan        (app/plan|compute)/$own|comm/row_move\\.hpp
app/run         (app|app/model|app/plan|app/run|comm|comm/transports|compute|io)/$own|nlohmann/json\\.hpp|compute/cpu/(isa|probe)\\.hpp|compute/cuda/backend\\.hpp
comm            (comm|comm/transports|compute)/$own|mpi\\.h
comm/transports (comm|comm/transports|compute)/$own|mpi\\.h
io              (io|io/tokenizer|compute)/$own|mpi\\.h|hdf5\\.h|nlohmann/json(_fwd)?\\.hpp|xxhash\\.h
io/tokenizer    (io|io/tokenizer|compute)/$own|nlohmann/json(_fwd)?\\.hpp|xxhash\\.h|pcre2\\.h|utf8proc\\.h
compute         compute/$own|compute/cpu/(isa|kernels)\\.hpp
compute/cpu     (compute|compute/cpu)/$own|dnnl\\.hpp|omp\\.h
compute/cpu/kernels  compute/cpu/(kernels/)?$own|immintrin\\.h
compute/cuda    (compute|compute/cuda|compute/cuda/plan)/$own|cublasLt\\.h|cuda_runtime_api\\.h|nvtx3/nvToolsExt\\.h
compute/cuda/plan  (compute|compute/cuda/plan)/$own
compute/cuda/kernels  (compute|compute/cuda|compute/cuda/plan)/$own|compute/cuda/kernels/[a-z_]+\\.cuh|cuda_(bf16|fp16|runtime)\\.h|(wg)?mma\\.h"

breaches_of_list="$(grep -rnE '^[[:space:]]*#[[:space:]]*include' app comm compute io \
  --include='*.hpp' --include='*.cpp' --include='*.h' --include='*.cu' --include='*.cuh' |
  awk -v rooms="$rooms" -v everywhere="$everywhere" '
    BEGIN {
      for (n = split(rooms, lines, "\n"); n > 0; --n) {
        split(lines[n], words, " ")
        allowed[words[1]] = "^(" everywhere "|" words[2] ")$"
      }
    }
    {
      folder = $0
      sub(/:.*/, "", folder)
      sub(/\/[^\/]*$/, "", folder)
      name = $0
      sub(/.*include[[:space:]]*[<"]/, "", name)
      sub(/[>"].*/, "", name)
      if (!(folder in allowed)) print $0 "   (nobody has thought about this folder)"
      else if (name !~ allowed[folder]) print
    }')"
report "includes that the list in tests/checks/${BASH_SOURCE[0]##*/} does not have" "$breaches_of_list"

report "include from the repository's root, not relatively" \
  "$(grep -rnE '^[[:space:]]*#[[:space:]]*include[[:space:]]*"\.\.?/' perf tests || true)"

sources() {
  find app comm compute io tests perf jobs -type f \
    \( -name '*.hpp' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' \
    -o -name '*.sh' -o -name '*.py' \)
}
report "no file above 500 lines" \
  "$(sources | xargs wc -l | awk '$2 != "total" && $1 > 500 { print $2 ": " $1 " lines" }')"
report "headers start with #pragma once" \
  "$(sources | grep -E '\.(hpp|cuh)$' | xargs grep -L '^#pragma once' || true)"

# The virtual cluster sets up Open MPI for its hosts, and one script builds it.
report "what only comm/mpi_library.* and jobs/launcher.sh are to know of MPI libraries and launchers" \
  "$(grep -rnE 'OMPI_MCA_|MPIX_|mpi-ext|MPIR_CVAR|--mca |--oversubscribe' app comm compute io jobs \
    CMakeLists.txt tests/CMakeLists.txt perf/CMakeLists.txt \
    --include='*.hpp' --include='*.cpp' --include='*.sh' --include='*.sbatch' --include=CMakeLists.txt |
    grep -vE '^(comm/mpi_library\.|jobs/(launcher|build-openmpi-cuda)\.sh:|jobs/cluster/)' || true)"

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
