#!/usr/bin/env bash
# Everything that needs a GPU, in one go and under nine minutes on an H100: the gpu tests, the
# benchmarks, 1, 4 and 16 ranks that share the GPU, and compute-sanitizer on the small tests.
#
#   perf/gpu_check.sh [--output FOLDER] [--build FOLDER] [--minutes N]
#
#   --output FOLDER   where the results go (default: build/gpu-check)
#   --build FOLDER    a build of preset cuda (default: build/cuda, built first where cmake is found)
#   --minutes N       what has not begun by then is left out (default: 9)
#
# The folder gets summary.txt (one line a check: PASSED, FAILED or NOT RUN with the reason),
# environment.txt (commit, device, driver, toolkit), one log per check, the benchmarks' bench.json,
# and reports and traces of the runs. Exit code 1 when a check failed, 77 when no GPU is visible.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../jobs/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../jobs/common.sh"

output="$repository/build/gpu-check"
build=""
minutes=9
while (($# > 0)); do
  case "$1" in
    --output | --build | --minutes)
      (($# > 1)) || die "$1 needs a value"
      case "$1" in
        --output) output="$2" ;;
        --build) build="$2" ;;
        --minutes) minutes="$2" ;;
      esac
      shift 2
      ;;
    -h | --help)
      print_head_comment "${BASH_SOURCE[0]}"
      exit 0
      ;;
    *) die "unknown option $1 (see --help)" ;;
  esac
done
[[ "$minutes" =~ ^[1-9][0-9]*$ ]] || die "--minutes takes a whole number above 0, not '$minutes'"

if ! command -v nvidia-smi >/dev/null || ! nvidia-smi -L >/dev/null 2>&1; then
  printf 'skipped: no GPU is visible here (nvidia-smi finds none)\n'
  exit 77
fi
mkdir -p "$output"
output="$(cd "$output" && pwd)"
summary="$output/summary.txt"
: >"$summary"

num_failed=0
note() { # VERDICT WHAT [WHY]
  printf '%-8s %s%s\n' "$1" "$2" "${3:+: $3}" | tee -a "$summary"
  [[ "$1" != FAILED ]] || num_failed=$((num_failed + 1))
}

# check NAME LIMIT COMMAND...: runs it under LIMIT seconds, or what is left of the time.
check() {
  local name="$1" limit="$2" left code=0 begin=$SECONDS
  shift 2
  left=$((minutes * 60 - SECONDS))
  if ((left < 10)); then
    note "NOT RUN" "$name" "the $minutes minutes are over"
    return 0
  fi
  ((limit <= left)) || limit=$left
  timeout --kill-after=5 "$limit" "$@" >"$output/$name.log" 2>&1 </dev/null || code=$?
  if ((code == 0)) && grep -q 'SKIPPED: ' "$output/$name.log"; then
    note "NOT RUN" "$name" "$(grep -m1 -o 'SKIPPED: .*' "$output/$name.log")"
  elif ((code == 0)); then
    note PASSED "$name" "$((SECONDS - begin)) s"
  elif ((code == 124 || code == 137)) && ((limit == left)); then
    note "NOT RUN" "$name" "stopped when the $minutes minutes were over"
  else
    note FAILED "$name" "exit code $code after $((SECONDS - begin)) s; the end of $name.log is"
    tail -n 5 "$output/$name.log" | sed 's/^/    /'
  fi
}

if [[ -z "$build" ]]; then
  build="$repository/build/cuda"
  if command -v cmake >/dev/null; then
    build_preset cuda >"$output/build.log" 2>&1 || die "the build failed (see $output/build.log)"
  fi
fi
[[ -x "$build/app/atoll" ]] ||
  die "no executable at $build/app/atoll: build preset cuda, or name a build with --build"

{
  printf 'date     %s\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)"
  printf 'commit   %s\n' "$(git -C "$repository" describe --always --dirty 2>/dev/null || echo unknown)"
  printf 'host     %s cores, %s\n' "$(nproc)" "$(grep -m1 '^model name' /proc/cpuinfo | cut -d: -f2-)"
  nvidia-smi --query-gpu=name,uuid,driver_version,memory.total,clocks.max.sm,power.limit \
    --format=csv || true
  nvcc --version 2>/dev/null | tail -n 2 || true
  mpirun --version 2>/dev/null | head -n 1 || true
} >"$output/environment.txt"
cat "$output/environment.txt"

# ---- tests ----
gpu_tests=()
for program in "$build"/tests/cuda/gpu_*; do
  [[ -x "$program" && -f "$program" ]] || continue
  gpu_tests+=("$program")
  check "test-$(basename "$program")" 120 "$program"
done
((${#gpu_tests[@]} > 0)) || note "NOT RUN" "tests" "$build/tests/cuda holds none"

# ---- benchmarks ----
if [[ -x "$build/perf/gpu_bench" ]]; then
  check bench 240 "$build/perf/gpu_bench" --benchmark_out="$output/bench.json" \
    --benchmark_out_format=json
  cat "$output/bench.log" 2>/dev/null || true
else
  note "NOT RUN" bench "no executable at $build/perf/gpu_bench"
fi

# ---- ranks that share the GPU ----
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
atoll="$build/app/atoll"
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1  # containers have no other user

# run NAME RANKS BACKEND: scores the held-out texts with the sample model.
run_ranks() {
  local name="$1" ranks="$2" backend="$3"
  check "$name" 90 mpirun --oversubscribe --bind-to none --mca mpi_yield_when_idle 1 -n "$ranks" \
    "$atoll" run --model "$work/model.h5" --input "$work/score.jsonl" --output "$work/$name" \
    --mode score --backend "$backend" --report "$output/$name.json" \
    --trace "$output/$name-trace.json"
}

# Bytes equal between numbers of ranks; log-probabilities near the CPU backend's.
cat >"$work/compare.py" <<'EOF'
import json, sys

work, output, *names = sys.argv[1:]
def read(name):
    return [json.loads(line) for line in open(f"{work}/{name}", encoding="utf-8")]
expected, failed = read(names[0]), False
for name in names[1:]:
    results = read(name)
    pairs = [(a, b) for r, s in zip(expected, results)
             for a, b in zip(r["prompt_logprobs"], s["prompt_logprobs"]) if a is not None]
    mean = sum(abs(a - b) for a, b in pairs) / len(pairs)
    # Rounding of activations to BF16, in another order of sums.
    ok = len(results) == len(expected) and mean < 0.02
    failed |= not ok
    with open(f"{output}/{name}.json", encoding="utf-8") as file:
        report = json.load(file)
    overlap = {key: phase.get("overlap_efficiency") for key, phase in report.get("phases", {}).items()
               if isinstance(phase, dict)}
    print(f"{name}: {len(pairs)} log-probabilities, mean difference from {names[0]} {mean:.5f}"
          f"{'' if ok else ' (too large)'}, same bytes as {names[1]}: "
          f"{open(f'{work}/{name}', 'rb').read() == open(f'{work}/{names[1]}', 'rb').read()}; "
          f"{report.get('backend')}; transport {report.get('transport')}; overlap {overlap}")
sys.exit(failed)
EOF

if ! command -v mpirun >/dev/null; then
  note "NOT RUN" ranks "no mpirun here"
elif ! command -v python3 >/dev/null; then
  note "NOT RUN" ranks "no python3 here"
else
  check import 60 "$atoll" import "$repository/tests/data/sample-model" --output "$work/model.h5"
  head -n 24 "$repository/tests/data/heldout.jsonl" >"$work/score.jsonl"
  run_ranks ranks-cpu 1 cpu
  finished=(ranks-cpu)
  for ranks in 1 4 16; do
    run_ranks "ranks-$ranks" "$ranks" cuda
    [[ ! -s "$work/ranks-$ranks" ]] || finished+=("ranks-$ranks")
  done
  if ((${#finished[@]} > 1)); then
    check ranks-agree 60 python3 "$work/compare.py" "$work" "$output" "${finished[@]}"
    cat "$output/ranks-agree.log"
  else
    note "NOT RUN" ranks-agree "no run on the GPU ended well"
  fi
fi

# ---- compute-sanitizer, last: it takes what time is left ----
if ! command -v compute-sanitizer >/dev/null; then
  note "NOT RUN" compute-sanitizer "it is not installed here"
else
  for tool in memcheck racecheck; do
    for program in "${gpu_tests[@]}"; do
      check "$tool-$(basename "$program")" 90 compute-sanitizer --tool "$tool" --error-exitcode 1 \
        "$program"
    done
  done
fi

printf 'results in %s after %d s: %d passed, %d failed, %d not run\n' "$output" "$SECONDS" \
  "$(grep -c '^PASSED' "$summary" || true)" "$num_failed" "$(grep -c '^NOT RUN' "$summary" || true)"
((num_failed == 0))
