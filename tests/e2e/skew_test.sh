#!/usr/bin/env bash
# Uneven loads: all tokens to one expert, experts with none, ranks without sequences, prompts from one
# token to 4,000 in one file. The results are those of one rank, and nothing hangs.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

model="$work/model.h5"
import_sample "$model"

# A router of zeros gives every expert the same probability, and ties go to the lower index: all
# tokens to experts 0 and 1 (top-2), or all to expert 0 (top-1).
for kind in zero-router zero-router-top1; do
  python3 "$ATOLL_SOURCE/tests/e2e/make_model.py" "$kind" "$sample" "$work/$kind"
  capture "$ATOLL" import "$work/$kind" --output "$work/$kind.h5"
  succeeds "import of $kind"
done

python3 - "$work" <<'EOF'
import json, sys

text = ("Ge1:1 In the beginning God created the heaven and the earth. " * 70)[:4000]
def write(name, lengths, max_tokens):
    with open(f"{sys.argv[1]}/{name}.jsonl", "w") as file:
        for number, length in enumerate(lengths):
            request = {"id": str(number), "prompt": text[:length], "max_tokens": max_tokens}
            file.write(json.dumps(request) + "\n")
write("one", [30], 12)
write("few", [9, 1, 200], 8)
write("mixed", [1, 4000, 2, 17, 1000, 3, 255, 256, 257, 1], 4)
EOF

# check NAME MODEL INPUT MODE RANKS...: the same results on all numbers of ranks as on one.
check() {
  local name="$1" model="$2" input="$3" mode="$4" ranks
  shift 4
  atoll_on 1 run --model "$model" --input "$work/$input.jsonl" --mode "$mode" --chunks 1 \
    --output "$work/$name.expected" --report "$work/$name.1.json"
  succeeds "$name on 1 rank" || return 0
  for ranks in "$@"; do
    atoll_on "$ranks" run --model "$model" --input "$work/$input.jsonl" --mode "$mode" --chunks 2 \
      --output "$work/$name.results" --report "$work/$name.$ranks.json"
    succeeds "$name on $ranks ranks" || continue
    same "$name on $ranks ranks" "$work/$name.expected" "$work/$name.results"
  done
}

check one "$model" one generate 3 16
check few "$model" few generate 5 16
check top1 "$work/zero-router-top1.h5" few generate 3 16
check top2 "$work/zero-router.h5" mixed score 5
if ((all_sweeps)); then
  check mixed "$model" mixed generate 3 16
  check mixed_score "$model" mixed score 5 16
  check top2 "$work/zero-router.h5" mixed score 16
else
  check mixed "$model" mixed generate 3
  check mixed_score "$model" mixed score 16
fi
finish
