# shellcheck shell=bash
# shellcheck disable=SC2154,SC2034  # variables that gpu_check.sh and its parts set and read
# Runs of the whole program with the sample model, for the parts of perf/gpu_check.sh: the same bytes on
# all numbers of ranks, and near the CPU backend. Sourced, never run.
set -euo pipefail

with=()     # variables for the ranks of the next runs
finished=() # runs with results

import_model() {
  if [[ -n "$no_device" ]]; then return 0; fi
  step import 60 "${ours[@]}" "$programs/atoll" import "$repository/tests/data/sample-model" \
    --output "$work/model.h5"
  local texts=24 length=100000
  ! $is_emulated || texts=3 length=40
  python3 - "$repository/tests/data/heldout.jsonl" "$texts" "$length" >"$work/score.jsonl" <<'PY'
import json, sys

path, texts, length = sys.argv[1], *map(int, sys.argv[2:])
with open(path, encoding="utf-8") as file:
    for line in list(file)[:texts]:
        text = json.loads(line)
        print(json.dumps(text | {"prompt": text["prompt"][:length]}))
PY
}

# score NAME RANKS BACKEND [OPTION...]: scores the held-out texts.
score() {
  local name="$1" number="$2" backend="$3" limit=60
  shift 3
  ((number < 16)) || limit=150 # each chooses its GEMM algorithms, on one GPU
  [[ ! -x "$programs/atoll" || -n "$no_device" || -s "$work/model.h5" ]] || {
    not_run "$name" "there is no model"
    return 0
  }
  ranks "$name" "$limit" "$number" "${with[@]}" "$programs/atoll" run --model "$work/model.h5" \
    --input "$work/score.jsonl" --output "$work/$name.jsonl" --mode score --backend "$backend" \
    --report "$logs/$name-report.json" --trace "$logs/$name-trace.json" "$@"
  [[ ! -s "$work/$name.jsonl" ]] || finished+=("$name")
}

# compare_runs: of all that finished, the first is the CPU's, the second what the others must equal.
compare_runs() {
  if [[ -n "$no_device" ]]; then
    not_run same-bytes "$no_device"
  elif ((${#finished[@]} < 2)); then
    not_run same-bytes "fewer than two runs came to an end"
  else
    step same-bytes 30 python3 "$folder/compare.py" "$work" "$logs" "${finished[@]}"
  fi
}
