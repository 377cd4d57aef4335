#!/usr/bin/env bash
# Offsets on the routers' choice: the same results in every layout and when resumed, hot experts get
# fewer tokens, and the report has what that cost; the first two blocks are as without.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

model="$work/model.h5"
import_sample "$model"
python3 - "$ATOLL_SOURCE/tests/data/heldout.jsonl" "$work" <<'EOF'
import json, sys

text = "\n".join(json.loads(line)["prompt"] for line in open(sys.argv[1], encoding="utf-8"))
with open(f"{sys.argv[2]}/generate.jsonl", "w", encoding="utf-8") as file:
    for number in range(48):
        at = 97 * number % (len(text) - 200)
        request = {"id": f"r{number}", "prompt": text[at:at + [60, 120, 20][number % 3]],
                   "max_tokens": [6, 3, 9][number % 3], "temperature": 0.8 * (number % 2), "seed": number}
        file.write(json.dumps(request) + "\n")
        if number == 20:
            file.write("no request at all\n")
with open(f"{sys.argv[2]}/score.jsonl", "w", encoding="utf-8") as file:
    for number in range(40):
        at = 131 * number % (len(text) - 300)
        file.write(json.dumps({"id": f"s{number}", "prompt": text[at:at + 150]}) + "\n")
EOF

bias=(--balance bias --balance-above 1 --bias-block 4 --max-bias 0.3 --max-drift 5 --bias-sample 3)
launcher=()
run() { # MODE OUTPUT RANKS OPTIONS...
  local mode="$1" output="$2" ranks="$3"
  shift 3
  capture mpirun "${mpirun_flags[@]}" -n "$ranks" "${launcher[@]}" "$ATOLL" run --model "$model" \
    --input "$work/$mode.jsonl" --mode "$mode" --output "$output" --report "$work/report.json" \
    --min-chunk-tokens 1 --step-tokens 64 --max-sequences 3 --deadline 40 "$@"
}

for mode in generate score; do
  run "$mode" "$work/$mode.plain" 1 --chunks 1
  succeeds "$mode without bias"
  run "$mode" "$work/$mode.expected" 1 --chunks 1 "${bias[@]}"
  succeeds "$mode on one rank"
  json_check "$mode: what it cost" "$work/report.json" <<'EOF'
bias = lines[0]["balance"]["bias"]
assert bias["blocks"] >= 8, bias
assert 0 < bias["largest_offset"] <= 0.3 and not bias["held_by_max_drift"], bias
assert 0 < bias["choices_changed"] < 1 and 0 < bias["router_mass_given_up"] < 0.3, bias
both = bias["computed_both_ways"]
assert both["requests"] >= 13 and both["tokens"] > 50, both
assert both["mean_absolute_logprob_change"] > 0 and both["perplexity_ratio"] > 0, both
busiest = bias["busiest_expert_over_mean_by_block"]
assert sum(busiest[-4:]) < sum(busiest[:2]) * 2, busiest
EOF
  head -n 8 "$work/$mode.plain" >"$work/plain.first"
  head -n 8 "$work/$mode.expected" >"$work/expected.first"
  same "$mode: the first two blocks have no offsets" "$work/plain.first" "$work/expected.first"
  if cmp -s "$work/$mode.plain" "$work/$mode.expected"; then failed "$mode: nothing changed"; else passed; fi
done

layouts=("3 --chunks 2" "6 --slots 4 --node-ranks 2 --route nodes --chunks 2" "4 --tp 2 --chunks 2"
  "4 --pp 2" "4 --replicas 2 --chunks 1" "5 --node-ranks 3,2 --route flat --chunks 3 --no-overlap")
for layout in "${layouts[@]}"; do
  # shellcheck disable=SC2086  # a list of words
  run generate "$work/results" $layout "${bias[@]}"
  succeeds "bias on $layout" || continue
  same "bias on $layout" "$work/generate.expected" "$work/results"
done
run score "$work/results" 4 --chunks 2 "${bias[@]}"
succeeds "score with bias on 4 ranks"
same "score with bias on 4 ranks" "$work/score.expected" "$work/results"
if [[ -e "$work/results.blocks" ]]; then failed "the file of blocks is left"; else passed; fi

# Stopped between two passes, once some blocks are done, and resumed on other ranks.
launcher=(-x LD_PRELOAD="$fault_library" -x ATOLL_FAULT="0 MPI_Iallgather 60 usr1")
run generate "$work/stopped" 2 --checkpoint-dir "$work/checkpoints" --checkpoint-every 3steps "${bias[@]}"
launcher=()
if ((code == 75)); then
  passed
else
  failed "stopped: exit code $code"
  show_output
fi
if [[ -s "$work/stopped.blocks" ]]; then passed; else failed "stopped: no block was done"; fi
run generate "$work/stopped" 3 --resume --checkpoint-dir "$work/checkpoints" "${bias[@]}"
succeeds "resumed"
same "resumed" "$work/generate.expected" "$work/stopped"

run generate "$work/held" 2 --balance bias --balance-above 1 --bias-block 4 --max-bias 0.3 \
  --max-drift 0.0001 --bias-sample 1
succeeds "held by drift"
json_check "held by drift" "$work/report.json" <<'EOF'
bias = lines[0]["balance"]["bias"]
assert bias["held_by_max_drift"] and bias["largest_offset"] < 0.1, bias
EOF

capture "$ATOLL" run --model "$model" --input "$work/score.jsonl" --output "$work/results" --max-bias 0.1
refused "a bound without bias" 2 "max-bias"
capture "$ATOLL" run --model "$model" --input "$work/score.jsonl" --output "$work/results" \
  --balance bias --shard 0/2
refused "a shard with bias" 2 "shard"
finish
