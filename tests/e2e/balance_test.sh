#!/usr/bin/env bash
# Experts that change their ranks while a run goes on change no byte, in any layout; what was moved is
# in the report, and below the threshold nothing is.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

model="$work/model.h5"
import_sample "$model"
python3 - "$ATOLL_SOURCE/tests/data/heldout.jsonl" "$work/requests.jsonl" <<'EOF'
import json, sys

heldout = [json.loads(line) for line in open(sys.argv[1], encoding="utf-8")]
with open(sys.argv[2], "w", encoding="utf-8") as file:
    for number, text in enumerate(heldout[:12]):
        request = {"id": text["id"], "prompt": text["prompt"][:[40, 90, 7][number % 3]],
                   "max_tokens": [14, 9, 20][number % 3], "temperature": 0.8 * (number % 2), "seed": number}
        file.write(json.dumps(request) + "\n")
EOF

run() { # OUTPUT RANKS OPTIONS...
  local output="$1" ranks="$2"
  shift 2
  atoll_on "$ranks" run --model "$model" --input "$work/requests.jsonl" --output "$output" \
    --report "$work/report.json" --min-chunk-tokens 1 --step-tokens 64 --max-sequences 4 --deadline 40 "$@"
}
# As often as can be, at any price.
always=(--balance replicate --balance-above 1 --balance-every 1 --balance-pays-in 1000000000000)

run "$work/expected" 1 --chunks 1
succeeds "one rank"

layouts=(
  "3 --chunks 2"
  "4 --slots 6 --chunks 2"
  "6 --slots 4 --node-ranks 2 --route nodes --chunks 2"
  "24 --node-ranks 8 --route nodes"
  "5 --slots 5 --node-ranks 3,2 --route flat --chunks 3 --no-overlap"
  "4 --tp 2 --slots 6 --chunks 2"
  "4 --pp 2 --slots 9"
  "8 --replicas 2 --slots 6"
  "4 --expert-tp 2 --slots 9"
)
for layout in "${layouts[@]}"; do
  # shellcheck disable=SC2086  # a list of words
  run "$work/results" $layout "${always[@]}"
  succeeds "balanced on $layout" || continue
  same "balanced on $layout" "$work/expected" "$work/results"
  json_check "what was moved on $layout" "$work/report.json" <<'EOF'
report = lines[0]
moved = report["balance"]["moved"]
assert moved["looks"] > 0 and moved["experts_moved"] > 0 and moved["bytes_moved"] > 0, moved
assert moved["changes_that_would_not_pay"] == 0, moved
for layer in report["placement"]["layers"]:
    holders = layer["ranks_of_expert"]
    assert all(ranks and ranks == sorted(set(ranks)) for ranks in holders), holders
EOF
done

run "$work/results" 4 --slots 6 --balance replicate --balance-above 1000 --balance-every 1
succeeds "loads below the threshold"
same "loads below the threshold" "$work/expected" "$work/results"
json_check "loads below the threshold" "$work/report.json" <<'EOF'
moved = lines[0]["balance"]["moved"]
assert moved["looks"] > 0 and moved["experts_moved"] == 0, moved
EOF

capture "$ATOLL" run --model "$model" --input "$work/requests.jsonl" --output "$work/results" \
  --balance-above 2
refused "a threshold without balancing" 2 "balance"
capture "$ATOLL" run --model "$model" --input "$work/requests.jsonl" --output "$work/results" \
  --balance bias --control "$work"
refused "a bias of the gates while weights change" 2 "--control and --balance bias"
finish
