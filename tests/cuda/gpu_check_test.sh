#!/usr/bin/env bash
# perf/gpu_check.sh rehearsed on the emulated device: what perf/gpu_bundle.py packs is unpacked and run from
# an empty environment. Every step runs or says what it lacks, and what leaves the machine is small.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../e2e/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../e2e/common.sh"

need_emulated_bench() {
  build="$(cd "$(dirname "$ATOLL")/../.." && pwd)"
  [[ -x "$build/perf/emulated_gpu_bench" ]] || {
    printf 'skipped: no %s (benchmarks are not built)\n' "$build/perf/emulated_gpu_bench"
    exit 77
  }
}
need_emulated_bench
check="$ATOLL_SOURCE/perf/gpu_check.sh"
bundle="$work/bundle.tar.xz"
command_limit=580

# Tests and the benchmark of one process need neither MPI nor HDF5.
for program in "$build"/tests/cuda/emulated_* "$build/perf/emulated_gpu_bench"; do
  [[ -f "$program" && -x "$program" ]] || continue
  if ldd "$program" | grep -E 'libmpi|libopen-rte|libhdf5' >"$work/linked"; then
    failed "$(basename "$program") links $(tr '\n' ' ' <"$work/linked")"
  else
    passed
  fi
done

capture "$ATOLL_SOURCE/perf/gpu_bundle.py" --emulated --build "$build" --preset 0 "$bundle"
succeeds "packing" || finish

# run_part PART [VARIABLE=VALUE...] [-- OPTION...]: from an empty environment.
run_part() {
  local part="$1" variables=()
  shift
  while (($# > 0)) && [[ "$1" != -- ]]; do variables+=("$1") && shift; done
  shift $(($# > 0))
  rm -rf "$work/out"
  capture env -i "${variables[@]}" bash "$check" --bundle "$bundle" --output "$work/out" "$@" "$part"
}

# lines PART PATTERN...: the table has a line for each.
lines() {
  local part="$1" pattern
  shift
  for pattern in "$@"; do
    if grep -qE -- "$pattern" "$work/out/$part.txt"; then passed; else failed "$part: no line '$pattern'"; fi
  done
}

# few_and_small PART: at most 8 files of at most 16 MiB, among them archives that can be read.
few_and_small() {
  if (($(find "$work/out" -type f | wc -l) > 8)); then failed "$1: more than 8 files"; else passed; fi
  if [[ -n "$(find "$work/out" -type f -size +16384k)" ]]; then failed "$1: a file is too large"; else passed; fi
  if tar -tf "$work/out/$1-1.tar" | grep '^ceilings.log.gz$' >"$work/member"; then passed; else failed "$1: no logs"; fi
}

run_part right
succeeds "right" || cat "$work/out/right.txt"
lines right '^PASSED .* tests/gpu_attention ' '^PASSED .* tests/gpu_backend ' \
  '^PASSED .* exact/moe-4l .* off CPU' '^PASSED .* ranks-2-staged to ranks-1, bytes .* same' \
  '^NOT RUN .* racecheck/gpu_router .* emulated device'
few_and_small right

run_part fast
succeeds "fast" || cat "$work/out/fast.txt"
lines fast '^PASSED .* attention/moe-4l/decode/[0-9]+ .* ms .* ms +[0-9.]+' \
  '^PASSED .* experts/moe-61l/ep16/chunks:2 .* ms .* ms' '^PASSED .* gemm/moe-16l/up/8 .* fastest proposed' \
  '^PASSED .* decode/moe-61l/[0-9]+ ' '^NOT RUN .* counters/rows .* emulated device' '(PASSED|NOT RUN) .* peers'
few_and_small fast

run_part together
succeeds "together" || cat "$work/out/together.txt"
lines together '^PASSED .* exchange/pairwise-staged/bytes:65536 ' '^PASSED .* ranks-5 to ranks-1, bytes .* same' \
  '^PASSED .* wide-2 .* tokens/s' 'exchange-direct|exchange/pairwise/'
few_and_small together

# Without a device every step says so, and nothing has failed.
run_part right ATL_EMULATED_DEVICES=0
if ((code == 77)); then passed; else failed "no device: exit code $code"; fi
lines right '^NOT RUN .* exact .* no CUDA device' '^NOT RUN .* tests/gpu_router .* no CUDA device' \
  '^NOT RUN .* ranks-2-staged .* no CUDA device'

# When the time is over, what was not begun is said to be.
run_part fast -- --minutes 0.1
lines fast '^NOT RUN .* gemm .* minutes were over'

# A failure is one, and the table has the program's own words.
run_part right ATL_EMULATED_FAIL=kernel:20:700
if ((code == 1)); then passed; else failed "a kernel that fails: exit code $code"; fi
lines right '^FAILED .* tests/gpu_router .*exit code'

for arguments in "" "left" "right fast" "--minutes x right" "--bundle $work/none right"; do
  # shellcheck disable=SC2086  # a list of words
  capture bash "$check" --output "$work/out" $arguments
  if ((code == 1)) && grep -q '^gpu_check.sh: ' "$work/stderr"; then passed; else failed "'$arguments': exit code $code"; fi
done
finish
