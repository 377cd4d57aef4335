#!/usr/bin/env bash
# A run on a machine of stated rates gives the program's results, byte for byte, and takes as long as
# the rates say.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

paced="${ATOLL_PACED_RUN:-$(dirname "$ATOLL")/../perf/paced_run}"
model="$work/model.h5"
import_sample "$model"
head -n 6 "$ATOLL_SOURCE/jobs/sample-prompts.jsonl" >"$work/input.jsonl"
options=(--model "$model" --input "$work/input.jsonl" --max-tokens 8)

atoll_on 1 run "${options[@]}" --output "$work/expected"
succeeds "one rank"

paced_on() { # RANKS FLOPS BYTES OPTIONS...
  local rates=("$2" "$3") ranks="$1"
  shift 3
  if [[ "${1:-}" == slow=* ]]; then
    rates+=("$1")
    shift
  fi
  capture mpirun "${mpirun_flags[@]}" -n "$ranks" "$paced" "${rates[@]}" "${options[@]}" "$@" \
    --output "$work/results" --report "$work/report.json"
  succeeds "paced: $ranks ranks, $*"
  same "paced: $ranks ranks, $*" "$work/expected" "$work/results"
  rm -f "$work/results"
}
paced_on 2 1e12 1e12 --chunks 2
paced_on 4 1e12 1e12 --pp 2 --replicas 2

# 2 million weights of two bytes; decoding reads those of all experts that are chosen, and attention's.
paced_on 1 1e15 2e7 --chunks 1
json_check "reading weights takes its time" "$work/report.json" <<'EOF'
decode = lines[0]["phases"]["decode"]
shape = lines[0]["model"]["config"]
hidden, heads, kv = shape["hidden_size"], shape["num_attention_heads"], shape["num_key_value_heads"]
attention = 2 * hidden * (heads + kv) * shape["head_dim"]
layers = shape["num_hidden_layers"]
dense = 3 * hidden * shape["intermediate_size"]
expert = 3 * hidden * shape["moe_intermediate_size"]
head = hidden * shape["vocab_size"]
least = 2 * (layers * (attention + 2 * expert) + head) / 2e7
most = 2 * (layers * (attention + max(dense, 17 * expert)) + head) / 2e7
pass_s = decode["compute_s_per_rank"] / decode["steps"]
assert least <= pass_s <= 1.5 * most, (least, pass_s, most)
EOF

atoll_on 1 run "${options[@]}" --max-tokens 60 --output "$work/expected"
succeeds "one rank, 60 tokens"
# One rank of four takes eight times as long: where another has its experts, those get its rows.
paced_on 4 2e8 1e12 slow=1:8 --slots 8 --chunks 1 --max-tokens 60 --balance replicate --balance-above 1000000
json_check "a slow rank's rows go elsewhere" "$work/report.json" <<'PY'
balance = lines[0]["balance"]
assert [share["rank"] for share in balance["shares_of_slow_ranks"]] == [1], balance
assert balance["shares_of_slow_ranks"][0]["share"] <= 0.25, balance
assert balance["moved"]["experts_moved"] == 0, balance
PY

capture mpirun "${mpirun_flags[@]}" -n 1 "$paced" fast 1e9 "${options[@]}" --output "$work/results"
if ((code == 1)) && grep -q "fast is no rate" "$work/stderr"; then
  passed
else
  failed "rates that are none: exit code $code"
  show_output
fi
finish
