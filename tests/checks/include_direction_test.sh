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

# Lines that include something matching the pattern, in sources under the folders.
includes() {
  local pattern="$1"
  shift
  grep -rnE "^[[:space:]]*#[[:space:]]*include[[:space:]]*[<\"]($pattern)" "$@" \
    --include='*.hpp' --include='*.cpp' --include='*.h' --include='*.cu' --include='*.cuh' || true
}

report "compute knows no other room" "$(includes '(app|comm|io)/' compute)"
report "comm includes only compute" "$(includes '(app|io)/' comm)"
report "io includes only compute" "$(includes '(app|comm)/' io)"
report "rooms include no tests" "$(includes '(tests|perf)/' app comm compute io)"
report "mpi.h belongs in comm, and in io for parallel files" \
  "$(includes 'mpi(-ext)?\.h|mpi\.hpp' app compute)"
report "hdf5.h belongs in io" "$(includes 'H5[A-Za-z]*\.h|hdf5(_hl)?\.h' app comm compute)"
report "CUDA headers belong in compute/cuda" \
  "$(includes 'cuda|cublas|nvtx3?/|nccl' app comm compute io | grep -v '^compute/cuda/' || true)"
report "the CUDA backend does not stand on the CPU's" \
  "$(includes 'compute/cpu/' compute/cuda)"
report "oneDNN belongs in compute" "$(includes '(oneapi/dnnl/)?dnnl' app comm io)"
if [[ -d app/plan ]]; then
  report "app/plan stays pure, so that it runs on a login node" \
    "$(includes 'comm/(communicator|lane|watchdog)|io/' app/plan)"
fi
report "include from the repository's root, not relatively" \
  "$(includes '\.\.?/' app comm compute io tests perf)"

sources() {
  find app comm compute io tests perf jobs -type f \
    \( -name '*.hpp' -o -name '*.cpp' -o -name '*.cu' -o -name '*.sh' -o -name '*.py' \)
}
while IFS= read -r file; do
  lines=$(wc -l <"$file")
  ((lines <= 500)) || report "no file above 500 lines" "$file:$lines lines"
  case "$file" in
    *.hpp)
      grep -q '^#pragma once' "$file" || report "headers start with #pragma once" "$file:1"
      ;;
  esac
done < <(sources)

# Nothing may lead to one person's machine.
report "no paths of one machine" "$(grep -rnE '(^|[^[:alnum:]_.])/(home|root|work|Users)/[[:alnum:]_.]' \
  app comm compute io tests perf jobs README.md CMakeLists.txt CMakePresets.json \
  --include='*.hpp' --include='*.cpp' --include='*.sh' --include='*.py' --include='*.txt' \
  --include='*.json' --include='*.md' | grep -v 'include_direction_test' || true)"

((breaches == 0)) || {
  printf '%d breaches\n' "$breaches"
  exit 1
}
printf 'include directions hold in %d files\n' "$(sources | wc -l)"
