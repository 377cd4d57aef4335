#!/usr/bin/env bash
# Everything that needs a GPU, in one go and under nine minutes on an H100: the gpu tests, the
# benchmarks, 1, 4 and 16 ranks that share the GPU, and compute-sanitizer on our kernels.
#
#   perf/gpu_check.sh [--output FOLDER] [--build FOLDER] [--minutes N] [--only PARTS]
#
#   --output FOLDER   where the results go (default: build/gpu-check)
#   --build FOLDER    a build of preset cuda (default: build/cuda, built first where cmake is found)
#   --minutes N       what has not begun by then is left out (default: 9)
#   --only PARTS      some of tests,bench,ranks,sanitizer, so that several calls split the work
#
# The folder gets summary.txt (summary-PARTS.txt with --only; one line a check: PASSED, FAILED or NOT
# RUN with the reason), environment.txt (commit, device, driver, toolkit), one log per check, the
# benchmarks' bench.json, reports and traces of the runs, and all that as gpu-check.tar.gz. Exit code
# 1 when a check failed, 77 when no GPU is visible. With --build, neither cmake nor nvcc is needed;
# what lacks MPI or another library is NOT RUN.
#
# Where a CUDA-aware Open MPI was built with a UCX that knows no CUDA, call this with
# OMPI_MCA_pml=ob1 OMPI_MCA_btl=self,smcuda in the environment. Of the benchmarks, moe_layer/moe-61l
# cannot come to 0.75 of the best GEMM: 4096 tokens over 64 experts on one rank are bound by reading
# the experts' weights, and roofline_of_best_gemm beside of_best_gemm says what is possible.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../jobs/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../jobs/common.sh"

output="$repository/build/gpu-check"
build=""
minutes=9
only=""
while (($# > 0)); do
  case "$1" in
    --output | --build | --minutes | --only)
      (($# > 1)) || die "$1 needs a value"
      case "$1" in
        --output) output="$2" ;;
        --build) build="$2" ;;
        --minutes) minutes="$2" ;;
        --only) only="$2" ;;
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
for part in ${only//,/ }; do
  [[ " tests bench ranks sanitizer " == *" $part "* ]] ||
    die "--only takes some of tests,bench,ranks,sanitizer, not '$part'"
done
wants() { [[ -z "$only" || ",$only," == *",$1,"* ]]; }

if ! command -v nvidia-smi >/dev/null || ! nvidia-smi -L >/dev/null 2>&1; then
  printf 'skipped: no GPU is visible here (nvidia-smi finds none)\n'
  exit 77
fi
mkdir -p "$output"
output="$(cd "$output" && pwd)"
summary="$output/summary${only:+-${only//,/-}}.txt"
: >"$summary"

num_failed=0
note() { # VERDICT WHAT [WHY]
  printf '%-8s %s%s\n' "$1" "$2" "${3:+: $3}" | tee -a "$summary"
  [[ "$1" != FAILED ]] || num_failed=$((num_failed + 1))
}

# starts NAME PROGRAM: whether it is there with all its libraries; notes it where not.
starts() {
  local missing
  if [[ ! -x "$2" ]]; then
    note "NOT RUN" "$1" "no executable at $2"
    return 1
  fi
  missing="$(ldd "$2" 2>/dev/null | sed -n 's/^[[:space:]]*\(.*\) => not found/\1/p' | sort -u)"
  [[ -n "$missing" ]] || return 0
  note "NOT RUN" "$1" "libraries not found: ${missing//$'\n'/, }"
  return 1
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
  elif ((code == 124 || code == 137)) && [[ "$name" == memcheck-* ]]; then  # slow, not wrong
    note "NOT RUN" "$name" "stopped after $limit s"
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
[[ -d "$build" ]] || die "no build in $build: build preset cuda, or name a build with --build"
build="$(cd "$build" && pwd)"

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
# Small ones first: the sanitizer takes them in this order too.
gpu_tests=()
if wants tests || wants sanitizer; then
  named=("$build"/tests/cuda/gpu_{kernels,router,attention,backend})
  for program in "$build"/tests/cuda/gpu_*; do
    [[ " ${named[*]} " == *" $program "* || ! -f "$program" || ! -x "$program" ]] ||
      named=("$program" "${named[@]}")
  done
  for program in "${named[@]}"; do
    ! starts "$(basename "$program")" "$program" || gpu_tests+=("$program")
  done
fi
if wants tests; then
  for program in "${gpu_tests[@]}"; do
    check "test-$(basename "$program")" 120 "$program"
  done
fi

# ---- benchmarks ----
if wants bench && starts bench "$build/perf/gpu_bench"; then
  check bench 240 "$build/perf/gpu_bench" --benchmark_out="$output/bench.json" \
    --benchmark_out_format=json
  cat "$output/bench.log" 2>/dev/null || true
fi

# ---- ranks that share the GPU ----
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
atoll="$build/app/atoll"
allow_root
shared_machine_options mpirun

# run NAME RANKS BACKEND: scores the held-out texts with the sample model.
run_ranks() {
  local name="$1" ranks="$2" backend="$3" limit=90
  ((ranks < 16)) || limit=180  # each chooses its GEMM algorithms, on one GPU
  check "$name" "$limit" mpirun "${launcher_options[@]}" -n "$ranks" \
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
    overlap = {key: phase.get("overlapped_share") for key, phase in report.get("phases", {}).items()
               if isinstance(phase, dict)}
    print(f"{name}: {len(pairs)} log-probabilities, mean difference from {names[0]} {mean:.5f}"
          f"{'' if ok else ' (too large)'}, same bytes as {names[1]}: "
          f"{open(f'{work}/{name}', 'rb').read() == open(f'{work}/{names[1]}', 'rb').read()}; "
          f"{report.get('backend')}; transport {report.get('transport')}; overlap {overlap}")
sys.exit(failed)
EOF

if ! wants ranks; then
  :
elif ! command -v mpirun >/dev/null; then
  note "NOT RUN" ranks "no mpirun here"
elif ! command -v python3 >/dev/null; then
  note "NOT RUN" ranks "no python3 here"
elif starts ranks "$atoll"; then
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
    cat "$output/ranks-agree.log" 2>/dev/null || true
  else
    note "NOT RUN" ranks-agree "no run on the GPU ended well"
  fi
fi

# ---- compute-sanitizer, last: it takes what time is left ----
if ! wants sanitizer; then
  :
elif ! command -v compute-sanitizer >/dev/null; then
  note "NOT RUN" compute-sanitizer "it is not installed here"
else
  memcheck=(compute-sanitizer --tool memcheck --error-exitcode 1)
  # Our kernels only, cuBLASLt's are not ours to check; `atl` is their namespace.
  sanitizer_help="$(compute-sanitizer --help 2>&1 || true)"
  if [[ "$sanitizer_help" == *--kernel-name* ]]; then
    memcheck+=(--kernel-name kernel_substring=atl)
  fi
  for program in "${gpu_tests[@]}"; do
    check "memcheck-$(basename "$program")" 180 "${memcheck[@]}" "$program"
  done
fi

archive="$(mktemp --suffix=.tar.gz)"
tar -C "$output" --exclude=./gpu-check.tar.gz -czf "$archive" . &&
  mv "$archive" "$output/gpu-check.tar.gz"
printf 'results in %s after %d s: %d passed, %d failed, %d not run\n' "$output" "$SECONDS" \
  "$(grep -c '^PASSED' "$summary" || true)" "$num_failed" "$(grep -c '^NOT RUN' "$summary" || true)"
((num_failed == 0))
