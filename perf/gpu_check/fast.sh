# shellcheck shell=bash
# shellcheck disable=SC2154,SC2034  # variables that gpu_check.sh and its parts set and read
# Part "fast" of perf/gpu_check.sh: where does the time go?
set -euo pipefail

# bench NAME LIMIT FILTER [VARIABLE=VALUE...]: benchmarks, whose JSON is complete where the step is.
bench() {
  local name="$1" limit="$2" filter="$3"
  shift 3
  on_device "$name" "$limit" "${ours[@]}" "$@" "$programs/gpu_bench" "${tiny[@]}" \
    --benchmark_filter="$filter" --benchmark_out="$logs/${name//\//-}.json"
}

bench attention 70 '^attention/'
bench experts 75 '^experts/'
bench moe_layer 50 '^moe_layer/'
bench prefill 60 '^prefill/'
bench decode 90 '^decode/'
bench rows 20 '^(rows|sample)/'

# ---- hardware counters; clocks stay as they are ----
# counters NAME LIMIT LAUNCHES KERNELS FILTER [OPTION OF NCU...]: of so many launches of the kernels.
counters() {
  local name="$1" limit="$2" launches="$3" kernels="$4" filter="$5" metrics
  shift 5
  metrics=gpu__time_duration.sum,dram__bytes_read.sum,dram__bytes_write.sum
  metrics+=,sm__inst_executed_pipe_tensor.sum,sm__warps_active.avg.pct_of_peak_sustained_active
  metrics+=,l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum,launch__registers_per_thread
  metrics+=,launch__shared_mem_per_block
  if $is_emulated; then
    not_run "counters/$name" "emulated device"
  elif ! PATH="$tools_path" command -v ncu >/dev/null; then
    not_run "counters/$name" "no ncu here"
  else
    on_device "counters/$name" "$limit" "${ours[@]}" "PATH=$tools_path" ncu --clock-control none \
      --metrics "$metrics" --csv --log-file "$logs/counters-$name.csv" --kernel-name "regex:$kernels" \
      --launch-count "$launches" "$@" "$programs/gpu_bench" --benchmark_filter="$filter"
    [[ ! -f "$logs/counters-$name.csv" ]] || step "counters/$name/table" 10 \
      python3 "$folder/counters.py" "$logs/counters-$name.csv"
  fi
}
counters attention-16l-prefill 40 2 'attention|merge_kernel' '^attention/moe-16l/prefill/10000'
counters attention-4l-prefill 40 2 'attention|merge_kernel' '^attention/moe-4l/prefill/10000'
counters attention-16l-decode 40 2 'attention|merge_kernel' '^attention/moe-16l/decode/10000'
# Of cuBLASLt's kernels the names too: those that run inside a step of the driver's.
counters experts-16l 40 4 '.' '^moe_layer/moe-16l' --nvtx --nvtx-include "L0 c0 experts/"
counters rows 40 12 'route|slot|pack|merge|activation|norm' '^rows/moe-16l'

# ---- PyTorch on the same device, same shapes ----
if [[ -n "$no_device" ]]; then
  not_run peers "$no_device"
else
  step peers 70 python3 "$repository/perf/peers/gpu_peers.py" "${tiny[@]}"
fi

bench gemm 110 '^gemm/'

# ---- what can be switched off for comparison, on the layer it concerns ----
while read -r variable filter; do
  [[ -n "$variable" && "$variable" != \#* ]] || continue
  variant="$variable"
  bench "switch/$variable" 40 "$filter" "$variable"
  variant=""
done <"$folder/switches.txt"
