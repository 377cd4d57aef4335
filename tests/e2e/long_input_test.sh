#!/usr/bin/env bash
# Requests that are not held in memory but read again when their turn comes (--hold-requests 0): the same bytes, with
# samples, errors, shared beginnings, shards, interrupted and resumed; the status counts them all.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
model="$work/model.h5" results="$work/results.jsonl"
import_sample "$model"
python3 - "$ATOLL_SOURCE/tests/data/heldout.jsonl" "$work/requests.jsonl" <<'PY'
import json, sys

prompts = [json.loads(line)["prompt"][:60] for line in open(sys.argv[1], encoding="utf-8")]
with open(sys.argv[2], "w", encoding="utf-8") as file:
    for i in range(120):
        line = {"id": f"r{i}", "prompt": prompts[i % 6] + str(i), "max_tokens": 2 + i % 5}
        line |= [{}, {"temperature": 0.8}, {"n": 3, "temperature": 1, "seed": i}, {"stop": ["e"]}][i % 4]
        text = json.dumps(line)
        file.write({17: "{broken", 40: text.replace("r40", "r39"), 60: ""}.get(i, text) + "\n")
PY
input="$work/requests.jsonl"
atoll_on 1 run --model "$model" --input "$input" --output "$work/expected.jsonl" --kv-tokens 4096
succeeds "held" || finish
run() { # RANKS OPTIONS...
  atoll_on "$1" run --model "$model" --input "$input" --output "$results" --kv-tokens 4096 --hold-requests 0 "${@:2}"
}
for cut in "1 " "3 --max-sequences 2" "2 --share-prefixes off --speculate 3" "4 --tp 2 --pp 2"; do
  # shellcheck disable=SC2086  # several words
  run $cut --status "$work/status.json"
  succeeds "not held, on $cut"
  same "not held, on $cut" "$work/expected.jsonl" "$results"
  json_check "the status, on $cut" "$work/status.json" <<'PY'
assert lines[0]["requests"] == {"read": 179, "finished": 177, "waiting": 0}, lines[0]["requests"]
PY
done

# --- interrupted, and resumed by other ranks
capture mpirun "${mpirun_flags[@]}" -n 2 -x LD_PRELOAD="$fault_library" -x ATOLL_FAULT="1 MPI_Iallgather 40 usr1" \
  "$ATOLL" run --model "$model" --input "$input" --output "$results" --kv-tokens 4096 --hold-requests 0 --max-sequences 4 \
  --checkpoint-dir "$work/points"
if ((code == 75)); then passed; else failed "not stopped, exit code $code"; fi
run 3 --checkpoint-dir "$work/points" --resume
succeeds "resumed" || true
if grep -qE "[1-9][0-9]* requests under way" "$work/stderr"; then passed; else failed "nothing was under way"; fi
same "resumed" "$work/expected.jsonl" "$results"

# --- shards
for shard in 0 1 2; do
  run 2 --shard "$shard/3"
  succeeds "shard $shard" || true
done
capture "$ATOLL" join --output "$results"
succeeds "join" || true
same "shards" "$work/expected.jsonl" "$results"

# --- none can be served: the reasons are those of a run that holds all
sed 's/"id": "r/"wings": 1, "id": "r/' "$input" >"$work/none.jsonl"
for hold in 64 0; do
  atoll_on 2 run --model "$model" --input "$work/none.jsonl" --output "$work/none.$hold" --hold-requests "$hold"
  refused "no request can be served" 65 "no request could be served"
done
same "no request can be served" "$work/none.64" "$work/none.0"
finish
