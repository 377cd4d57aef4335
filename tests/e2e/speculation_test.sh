#!/usr/bin/env bash
# Guessed tokens change no byte: greedy and drawn, in layouts, interrupted and resumed, with latents; a text
# that repeats itself takes fewer passes, and where guesses have no place none are made, and the report says so.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

python3 - "$ATOLL_SOURCE/tests/data/heldout.jsonl" "$work" <<'EOF'
import json, sys

heldout = [json.loads(line) for line in open(sys.argv[1], encoding="utf-8")]
draws = [{}, {"temperature": 0.7, "seed": 3}, {"temperature": 0.4, "top_p": 0.9}]
with open(f"{sys.argv[2]}/requests.jsonl", "w", encoding="utf-8") as file:
    for i, text in enumerate(heldout):
        request = {"id": text["id"], "prompt": (text["prompt"][:40] + " ") * 3, "max_tokens": 30 + i, **draws[i % 3]}
        if i % 5 == 0:
            request["stop_token_ids"] = [46]
        file.write(json.dumps(request) + "\n")
EOF
model="$work/model.h5"
run() { # OUTPUT RANKS OPTIONS...
  atoll_on "$2" run --model "$model" --input "$work/requests.jsonl" --output "$1" --report "$1-report.json" "${@:3}"
}
import_sample "$model"
run "$work/alone" 1
succeeds "without guesses"
json_check "none by default" "$work/alone-report.json" <<'EOF'
speculation = lines[0]["speculation"]
assert speculation == {"at_once": 0, "not_used_for": None, "proposed": 0, "accepted": 0, "tokens_per_pass": 1.0}, speculation
EOF

check_layout() { # RANKS OPTIONS...
  run "$work/guessed" "$@"
  succeeds "$*" || return 0
  same "$*" "$work/alone" "$work/guessed"
  json_check "$*" "$work/guessed-report.json" <<'EOF'
speculation = lines[0]["speculation"]
assert 0 < speculation["accepted"] <= speculation["proposed"] and speculation["tokens_per_pass"] > 1, speculation
EOF
}
check_layout 1 --speculate 4
check_layout 3 --speculate 7 --chunks 3 --min-chunk-tokens 1 --step-tokens 64
check_layout 2 --speculate 3 --tp 2
check_layout 4 --speculate 8 --pp 2 --tp 2
# Experts' tokens are those of a run without guesses, wrong ones left out.
run "$work/plain" 1 --share-prefixes off
succeeds "without guesses or shared beginnings" || true
for cut in "1 --speculate 6" "2 --speculate 4 --tp 2" "4 --speculate 5 --pp 2 --tp 2"; do
  # shellcheck disable=SC2086  # several words
  run "$work/guessed" $cut --share-prefixes off
  succeeds "experts' tokens, $cut" || continue
  json_check "experts' tokens, $cut" "$work/plain-report.json" "$work/guessed-report.json" <<'EOF'
plain, guessed = lines
assert guessed["speculation"]["accepted"] < guessed["speculation"]["proposed"], guessed["speculation"]
assert guessed["tokens_per_expert"] == plain["tokens_per_expert"], (guessed["tokens_per_expert"], plain["tokens_per_expert"])
EOF
done
if ((all_sweeps)); then
  check_layout 2 --speculate 64 --pp 2
  check_layout 4 --speculate 5 --replicas 2 --tp 2
fi

# --- no place for guesses
for option in "--record-routing $work/routing.h5" "--balance replicate"; do
  # shellcheck disable=SC2086  # an option and its value
  run "$work/not" 1 --speculate 4 $option
  succeeds "with $option"
  same "with $option" "$work/alone" "$work/not"
  json_check "with $option" "$work/not-report.json" <<EOF
speculation = lines[0]["speculation"]
assert speculation["proposed"] == 0 and "$option".startswith(speculation["not_used_for"]), speculation
EOF
done
run "$work/wrong" 1 --speculate 65
refused "too many guesses" "1|2" "speculate"

# --- interrupted in the middle of it
options=(--speculate 5 --checkpoint-dir "$work/points" --checkpoint-every 4)
capture mpirun "${mpirun_flags[@]}" -n 2 -x LD_PRELOAD="$fault_library" -x ATOLL_FAULT="1 MPI_Iallgather 46 usr1" \
  "$ATOLL" run --model "$model" --input "$work/requests.jsonl" --output "$work/resumed" "${options[@]}"
if ((code == 75)); then passed; else failed "not stopped, exit code $code"; fi
run "$work/resumed" 3 "${options[@]}" --resume
succeeds "resumed" || true
if grep -qE "step [0-9]+, [1-9][0-9]* requests under way" "$work/stderr"; then passed; else failed "nothing was under way"; fi
same "resumed" "$work/alone" "$work/resumed"

# --- latents, of which several generated tokens of a sequence are in one pass
capture "$ATOLL" import "$ATOLL_SOURCE/tests/data/families/deepseek_v3" --output "$model"
succeeds "import of deepseek_v3"
run "$work/alone" 1
succeeds "latents, without guesses"
check_layout 1 --speculate 6
check_layout 2 --speculate 6 --tp 2

finish
