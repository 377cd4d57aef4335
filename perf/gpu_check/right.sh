# shellcheck shell=bash
# shellcheck disable=SC2154,SC2034  # variables that gpu_check.sh and its parts set and read
# Part "right" of perf/gpu_check.sh: are the results right?
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=model_runs.sh
source "$folder/model_runs.sh"

# tests NAME LIMIT [OPTION...]: a test program, on the emulated device a part of it that is short.
tests() {
  local name="$1" limit="$2" filter=""
  shift 2
  if $is_emulated; then
    case "$name" in
      gpu_attention) filter='*LargeScores*' ;;
      gpu_backend) filter='CudaBackend.AnEmptyChunk*' ;;
      gpu_routes) filter='*AnyPlacementAndReplicas/bfloat16' ;;
      gpu_sample) filter='*ChangedLogits*:*EqualLogits*' ;;
      gpu_forward) filter='*NoRows*:*PacksForwardsAndFolds/bfloat16' ;;
      gpu_shared_attention) filter='*KeptHeads*gqa_per_head*' ;;
      gpu_shared_experts) filter='*Planned*' ;;
    esac
    [[ -z "$filter" ]] || set -- "$@" "--gtest_filter=$filter"
  fi
  # Without a device they say so themselves.
  if [[ -x "$programs/$name" ]]; then
    step "tests/$name" "$limit" "${ours[@]}" "$programs/$name" --gtest_brief=1 "$@"
  else
    not_run "tests/$name" "no $name among the programs"
  fi
}

# Twice each: what is right once and wrong once is a race.
for name in gpu_attention_plan gpu_router gpu_kernels gpu_forward gpu_sample gpu_attention; do
  tests "$name" 40 --gtest_repeat=2
done
# The same on tensor cores of older cards.
step tests/gpu_attention-mma 40 "${ours[@]}" ATOLL_ATTENTION=mma "$programs/gpu_attention" \
  --gtest_brief=1 --gtest_filter='*LargeScores*:*WideAndNarrow*'

on_device exact 130 "${ours[@]}" "$programs/gpu_bench" "${tiny[@]}" --benchmark_filter='^exact/' \
  --benchmark_out="$logs/exact.json"
tests gpu_backend 90

# ---- ranks that share the GPU, with the sample model ----
import_model
score ranks-cpu 1 cpu
score ranks-1 1 cuda
score ranks-2-staged 2 cuda --transport pairwise-staged
if device_pointers; then
  for transport in pairwise ialltoallv auto; do
    with=("${direct[@]}")
    score "ranks-2-$transport" 2 cuda --transport "$transport"
  done
  with=()
else
  not_run ranks-2-pairwise "the MPI library moves no device memory (CUDA-aware: $mpi_is_cuda_aware)"
fi
compare_runs

# ---- compute-sanitizer: small programs, our own kernels ----
sanitize() { # TOOL NAME FILTER
  local tool="$1" name="$2"
  local command=(compute-sanitizer --tool "$tool" --error-exitcode 1)
  if $is_emulated; then
    not_run "$tool/$name" "emulated device"
  elif ! PATH="$tools_path" command -v compute-sanitizer >/dev/null; then
    not_run "$tool/$name" "no compute-sanitizer here"
  else
    # cuBLASLt's kernels are not ours to check; `atl` is the namespace of ours.
    [[ "$(PATH="$tools_path" compute-sanitizer --help 2>&1)" != *--kernel-name* ]] ||
      command+=(--kernel-name kernel_substring=atl)
    on_device "$tool/$name" 45 "${ours[@]}" "PATH=$tools_path" "${command[@]}" "$programs/$name" \
      --gtest_brief=1 --gtest_filter="$3"
  fi
}
for tool in racecheck memcheck synccheck initcheck; do
  sanitize "$tool" gpu_attention '*AllHeadDims/bfloat16:*WideAndNarrow*/bfloat16'
  sanitize "$tool" gpu_router '*'
  sanitize "$tool" gpu_kernels '*/bfloat16'
done
sanitize memcheck gpu_backend '*SameBitsWhateverThePieces/gqa_swiglu_top2'

# ---- what is long ----
for name in gpu_shared_experts gpu_routes gpu_shared_attention; do
  tests "$name" 90
done
