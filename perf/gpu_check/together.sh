# shellcheck shell=bash
# shellcheck disable=SC2154,SC2034  # variables that gpu_check.sh and its parts set and read
# Part "together" of perf/gpu_check.sh: ranks that share the GPU.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=model_runs.sh
source "$folder/model_runs.sh"

# ---- messages from device memory ----
exchange() { # NAME LIMIT [VARIABLE=VALUE...]
  local name="$1" limit="$2"
  shift 2
  ranks "$name" "$limit" 2 "$@" "$programs/gpu_exchange_bench" "${tiny[@]}"
}
exchange exchange-staged 60
if device_pointers; then
  exchange exchange-direct 90 "${direct[@]}"
else
  not_run exchange-direct "the MPI library moves no device memory (CUDA-aware: $mpi_is_cuda_aware)"
fi

# ---- the sample model: the same bytes on 1, 2, 4 and 16 ranks ----
most=16
! $is_emulated || most=5
import_model
score ranks-cpu 1 cpu
score ranks-1 1 cuda
score ranks-2 2 cuda
score ranks-4 4 cuda
# ---- layers as wide as moe-16l's, four experts a rank: what overlaps, by the traces ----
wide=("--config" "$work/wide.json")
if [[ -n "$no_device" ]]; then
  not_run wide "$no_device"
else
  python3 "$folder/wide_model.py" "$work" "${tiny[@]}"
  ranks wide-model 90 4 "$programs/atoll" init "${wide[@]}" --output "$work/wide.h5"
  numbers=(1 2 4)
  ! $is_emulated || numbers=(2)
  for chunks in "${numbers[@]}"; do
    for overlap in "" --no-overlap; do
      [[ -s "$work/wide.h5" ]] || break
      ranks "wide-$chunks-chunks$overlap" 45 4 "$programs/atoll" run --model "$work/wide.h5" \
        --input "$work/wide.jsonl" --output "$work/wide-$chunks$overlap.jsonl" --mode score \
        --backend cuda --chunks "$chunks" ${overlap:+"$overlap"} \
        --report "$logs/wide-$chunks$overlap-report.json" --trace "$logs/wide-$chunks$overlap-trace.json"
    done
  done
  step wide-table 20 python3 "$folder/wide_table.py" "$work" "$logs"
fi

score "ranks-$most" "$most" cuda
compare_runs
