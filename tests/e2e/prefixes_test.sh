#!/usr/bin/env bash
# What prompts have in common at their beginning is computed once by each owner, and no byte of a result
# changes: in layouts, with little room, beside what keeps rows apart, interrupted and resumed.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# Prompts that branch: 300 tokens in common, then 70 of three kinds, then their own; the same prompt
# several times; and one that has nothing in common with others.
python3 - "$work" <<'EOF'
import json, random, sys

random.seed(3)
def tokens(count):
    return [random.randrange(250) for _ in range(count)]
trunk = tokens(300)
branches = [tokens(70) for _ in range(3)]
draws = [{}, {"temperature": 0.9, "seed": 5}, {"temperature": 1.1, "top_p": 0.9}]
requests = []
for i in range(18):
    prompt = trunk + branches[i % 3] + tokens(1 + i % 5)
    requests.append({"id": f"b{i}", "tokens": prompt, "max_tokens": 3 + i % 4, **draws[i % 3]})
for i in range(4):
    requests.append({"id": f"same{i}", "tokens": trunk, "max_tokens": 4, "temperature": 1.0, "seed": i})
requests.insert(7, {"id": "other", "tokens": tokens(150), "max_tokens": 5})
with open(f"{sys.argv[1]}/requests.jsonl", "w") as file:
    file.writelines(json.dumps(request) + "\n" for request in requests)
EOF

model="$work/model.h5"
# run OUTPUT RANKS MORE...: with a report beside the output.
run() {
  atoll_on "$2" run --model "$model" --input "$work/requests.jsonl" --output "$1" --report "$1-report.json" "${@:3}"
}
import_sample "$model"

# --- how often each token is computed: the trunk and the branches once; of the same prompts the last token each;
# in scoring the last common token too, whose log-probability is of another token.
for mode in generate score; do
  run "$work/$mode.alone" 1 --mode "$mode" --share-prefixes off
  succeeds "$mode, nothing shared"
  run "$work/$mode.shared" 1 --mode "$mode"
  succeeds "$mode, shared"
  same "$mode, shared" "$work/$mode.alone" "$work/$mode.shared"
  json_check "$mode: what is computed" "$work/requests.jsonl" "$work/$mode.alone-report.json" \
    "$work/$mode.shared-report.json" <<EOF
requests, alone, shared = lines
prompts = [request["tokens"] for request in requests]
scoring = "$mode" == "score"
first, computed = [], 0
for prompt in prompts:  # what the longest beginning of one before leaves
    common = 0
    for other in first:
        n = 0
        while n < min(len(prompt), len(other)) and prompt[n] == other[n]:
            n += 1
        common = max(common, n)
    rows = min(common - scoring, len(prompt) - 1)
    computed += len(prompt) - (rows if rows >= 16 else 0)
    first.append(prompt)
total = sum(len(prompt) for prompt in prompts)
assert alone["prefixes"]["not_shared_for"] == "--share-prefixes off" and not alone["prefixes"]["shared"]
assert alone["prefixes"]["tokens_computed"] == total and alone["prefixes"]["tokens_saved"] == 0, alone["prefixes"]
assert shared["prefixes"]["tokens_computed"] == computed, (shared["prefixes"], computed)
assert shared["prefixes"]["tokens_saved"] == total - computed, shared["prefixes"]
assert shared["phases"]["prefill"]["prompt_tokens"] == computed, shared["phases"]["prefill"]
EOF
done

# --- layouts; prompts that are cut while others wait for them; and so little room that beginnings are dropped.
check_layout() { # MODE RANKS OPTIONS...
  run "$work/$1.other" "$2" --mode "$1" "${@:3}"
  succeeds "$*" || return 0
  same "$*" "$work/$1.alone" "$work/$1.other"
  json_check "$*: each owner for itself" "$work/$1.other-report.json" <<'EOF'
prefixes = lines[0]["prefixes"]
assert prefixes["shared"] and prefixes["tokens_saved"] > 2000, prefixes
assert sum(owner["tokens_computed"] for owner in prefixes["owners"]) == prefixes["tokens_computed"], prefixes
EOF
}
check_layout generate 3 --chunks 3 --min-chunk-tokens 1 --step-tokens 70
check_layout generate 2 --tp 2 --max-sequences 5
check_layout generate 4 --pp 2 --tp 2 --step-tokens 200
check_layout generate 1 --kv-tokens 768 --max-sequences 4
check_layout score 2 --pp 2 --max-sequences 6
check_layout score 1 --step-tokens 90 --kv-tokens 640
if ((all_sweeps)); then
  check_layout score 4 --pp 2 --tp 2
  check_layout generate 4 --replicas 2 --pp 2
  check_layout generate 2 --no-overlap --chunks 1
fi

# --- with files that have a place for each token of each request nothing is shared, and the report says why.
run "$work/recorded" 1 --record-routing "$work/routing.h5"
succeeds "with a record"
same "with a record" "$work/generate.alone" "$work/recorded"
json_check "with a record" "$work/recorded-report.json" <<'EOF'
assert lines[0]["prefixes"]["not_shared_for"] == "--record-routing", lines[0]["prefixes"]
EOF
run "$work/wrong" 1 --share-prefixes never
refused "an unknown choice" "1|2" "share-prefixes"

# --- interrupted, with sequences that share pages and others that wait for theirs; resumed on other ranks.
for mode in generate score; do
  out="$work/$mode.resumed"
  options=(--mode "$mode" --step-tokens 64 --checkpoint-dir "$work/points-$mode" --checkpoint-every 4)
  capture mpirun "${mpirun_flags[@]}" -n 2 -x LD_PRELOAD="$fault_library" -x ATOLL_FAULT="1 MPI_Iallgather 46 usr1" \
    "$ATOLL" run --model "$model" --input "$work/requests.jsonl" --output "$out" "${options[@]}"
  if ((code == 75)); then passed; else failed "$mode: not stopped, exit code $code"; fi
  run "$out" 3 "${options[@]}" --resume
  succeeds "$mode, resumed" || true
  if grep -qE "step [0-9]+, [1-9][0-9]* requests under way" "$work/stderr"; then
    passed
  else
    failed "$mode: nothing was under way"
  fi
  same "$mode, resumed" "$work/$mode.alone" "$out"
done

# --- latents, whose prompts are computed in another way than what is generated; windows and sinks.
for family in deepseek_v3 gpt_oss; do
  capture "$ATOLL" import "$ATOLL_SOURCE/tests/data/families/$family" --output "$model"
  succeeds "import of $family"
  python3 - "$work" <<'EOF'
import json, random, sys

random.seed(9)
trunk = [random.randrange(100) for _ in range(90)]
with open(f"{sys.argv[1]}/requests.jsonl", "w") as file:
    for i in range(8):
        own = [random.randrange(100) for _ in range(1 + i)]
        file.write(json.dumps({"id": str(i), "tokens": trunk + own, "max_tokens": 5}) + "\n")
EOF
  for mode in generate score; do
    run "$work/alone" 1 --mode "$mode" --share-prefixes off
    succeeds "$family, $mode, nothing shared"
    run "$work/shared" 2 --mode "$mode"
    succeeds "$family, $mode, shared"
    same "$family, $mode" "$work/alone" "$work/shared"
  done
done

finish
