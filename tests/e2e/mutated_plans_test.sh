#!/usr/bin/env bash
# A plan that is wrong on one rank does not hang and gives no results: the run ends with a message that
# names the rank or the step. What the planner says of such plans is in tests/app/plan_checks_test.cpp.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

mutated_run="${ATOLL_MUTATED_RUN:-$ATOLL_SOURCE/build/cpu/tests/mutated_run}"
model="$work/model.h5"
import_sample "$model"
requests="$work/requests.jsonl"
python3 -c "
import json
for number in range(16):
    print(json.dumps({'id': str(number), 'prompt': 'Ge1:1 In the beginning ' * 4, 'max_tokens': 4}))" >"$requests"

# mutated NAME MUTATION OPTION...: 4 ranks, the plan of rank 1 changed.
declare -A running=()
mutated() {
  local name="$1" mutation="$2"
  shift 2
  folder="$work/$name"
  mkdir "$folder"
  {
    work="$folder" capture mpirun "${mpirun_flags[@]}" -n 4 "$mutated_run" 1 "$mutation" --model "$model" \
      --input "$requests" --output "$folder/output" --progress none --chunks 2 --min-chunk-tokens 1 \
      --deadline 4 "$@"
    printf '%s\n' "$code" >"$folder/code"
  } &
  running[$name]=$!
}

# ends NAME WHAT PATTERN...: with one message that matches all patterns, an exit code that is not a
# time-out's, and no result.
ends() {
  local name="$1" what="$2" pattern message code
  shift 2
  wait "${running[$name]}"
  code="$(cat "$work/$name/code")"
  message="$(grep '^atoll: ' "$work/$name/stderr" | grep -v 'ranks wait too$' || true)"
  if ((code == 0 || code == 124 || code == 137)); then
    failed "$what: exit code $code"
    cat "$work/$name/stderr"
  elif [[ -s "$work/$name/output" ]]; then
    failed "$what: there are results"
  else
    passed
  fi
  for pattern in "$@"; do
    if grep -qE -- "$pattern" <<<"$message"; then passed; else failed "$what: no '$pattern' in: $message"; fi
  done
}

# Two at a time: the others wait for their deadline meanwhile.
mutated swapped swapped --no-overlap
mutated dropped dropped
ends swapped "two exchanges in the other order" "rank [0-3] has waited for other ranks" "dispatch"
ends dropped "an exchange that a rank leaves out" "rank [0-3] has waited for other ranks" "combine"
mutated back_edge back-edge
mutated early early
ends back_edge "a step that waits for a later one" "rank 1: .*steps of this pass wait for one another, .*route"
ends early "rows before their counts" "."
finish
