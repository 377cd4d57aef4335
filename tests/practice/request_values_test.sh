#!/usr/bin/env bash
# Values as clients write them: null where nothing was set, 6.0 for 6; and what is no such number.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

model="$work/model.h5"
import_sample "$model"

# pairs NAME: reads "LINE | the same, plainly" from stdin; both must give the same results.
pairs() {
  local wanted
  cat >"$work/both"
  sed 's/ *|.*//' "$work/both" >"$work/written.jsonl"
  sed 's/.*| *//' "$work/both" >"$work/plain.jsonl"
  for wanted in written plain; do
    run_one --model "$model" --input "$work/$wanted.jsonl" --output "$work/$wanted.out.jsonl" \
      --max-tokens 5
    succeeds "$1, $wanted"
    if grep -q '"error"' "$work/$wanted.out.jsonl"; then
      failed "$1, $wanted: $(grep -m 1 '"error"' "$work/$wanted.out.jsonl")"
    fi
  done
  same "$1" "$work/plain.out.jsonl" "$work/written.out.jsonl"
}

pairs "null is not given" <<'J'
{"id":"a","prompt":"Ge1:1 In","max_tokens":null} | {"id":"a","prompt":"Ge1:1 In"}
{"id":"b","prompt":"Ge1:1 In","temperature":null,"top_p":null,"seed":null} | {"id":"b","prompt":"Ge1:1 In"}
{"id":"c","prompt":"Ge1:1 In","stop_token_ids":null,"tokens":null} | {"id":"c","prompt":"Ge1:1 In"}
{"id":"d","prompt":null,"tokens":[71,101,49]} | {"id":"d","tokens":[71,101,49]}
{"id":"e","prompt":"Ge1:1 In","stop":null,"user":null,"n":null} | {"id":"e","prompt":"Ge1:1 In"}
{"id":"f","prompt":"Ge1:1 In","temperature":1,"seed":null} | {"id":"f","prompt":"Ge1:1 In","temperature":1}
{"body":null,"id":"g","prompt":"Ge1:1 In"} | {"id":"g","prompt":"Ge1:1 In"}
J
pairs "whole numbers with a point or an exponent" <<'J'
{"id":"a","prompt":"Ge1:1 In","max_tokens":6.0} | {"id":"a","prompt":"Ge1:1 In","max_tokens":6}
{"id":"b","prompt":"Ge1:1 In","max_tokens":0.6e1} | {"id":"b","prompt":"Ge1:1 In","max_tokens":6}
{"id":"c","prompt":"Ge1:1 In","max_tokens":1e2} | {"id":"c","prompt":"Ge1:1 In","max_tokens":100}
{"id":"d","tokens":[71.0,1.01e2,49],"stop_token_ids":[1e1,-0.0]} | {"id":"d","tokens":[71,101,49],"stop_token_ids":[10,0]}
{"id":"e","prompt":"Ge1:1 In","temperature":1,"seed":7.0} | {"id":"e","prompt":"Ge1:1 In","temperature":1.0,"seed":7}
{"id":"f","prompt":"Ge1:1 In","temperature":1,"seed":-0.0} | {"id":"f","prompt":"Ge1:1 In","temperature":1,"seed":0}
{"id":"g","prompt":"Ge1:1 In","temperature":1,"seed":9007199254740991.0} | {"id":"g","prompt":"Ge1:1 In","temperature":1,"seed":9007199254740991}
{"id":"h","prompt":"Ge1:1 In","temperature":-0.0,"top_p":1} | {"id":"h","prompt":"Ge1:1 In","temperature":0}
J

# --- what is none: refused by name, with the line's id, and the line beside it served
cat >"$work/bad.jsonl" <<'J'
{"id":"good","prompt":"Ge1:1 In","max_tokens":3}
{"id":"max_tokens","prompt":"a","max_tokens":6.5}
{"id":"max_tokens ","prompt":"a","max_tokens":1e300}
{"id":"max_tokens  ","prompt":"a","max_tokens":true}
{"id":"max_tokens   ","prompt":"a","max_tokens":"6"}
{"id":"max_tokens    ","prompt":"a","max_tokens":-0.0}
{"id":"tokens","tokens":[71,6.5]}
{"id":"tokens ","tokens":[null]}
{"id":"tokens  ","tokens":[true]}
{"id":"tokens   ","tokens":[1e300]}
{"id":"stop_token_ids","prompt":"a","stop_token_ids":[0.5]}
{"id":"stop_token_ids ","prompt":"a","stop_token_ids":[null]}
{"id":"seed","prompt":"a","seed":0.5}
{"id":"seed ","prompt":"a","seed":9007199254740993.0}
{"id":"seed  ","prompt":"a","seed":18446744073709551616}
{"id":"seed   ","prompt":"a","seed":false}
{"id":"temperature","prompt":"a","temperature":true}
{"id":"temperature ","prompt":"a","temperature":"1"}
{"id":"top_p","prompt":"a","top_p":1e300}
{"id":"prompt","prompt":null}
{"id":"1e400","prompt":"a","temperature":1e400}
{"temperature":-1e999,"id":"-1e999","prompt":"a"}
{"prompt":"a","temperature":NaN,"id":"not valid JSON"}
{"id":"not valid JSON ","prompt":"cut
{"id":"not valid JSON  ","prompt":"a",}
J
printf '%s\n' '{"id":"more than 64 deep","prompt":'"$(printf '[%.0s' {1..80})}" \
  '{"id":2,"prompt":"a"}' '{"id":2.0,"prompt":"a"}' '{"id":null,"prompt":"a"}' 'null' >>"$work/bad.jsonl"
run_one --model "$model" --input "$work/bad.jsonl" --output "$work/bad.out.jsonl"
succeeds "values that are none"
json_check "values that are none" "$work/bad.out.jsonl" <<'PY'
(results,) = lines
assert "tokens" in results[0]
for number, result in enumerate(results[1:-4], start=2):
    assert result["line"] == number and result["id"].strip() in result["error"], result
for number, result in enumerate(results[-4:], start=len(results) - 3):
    assert result["line"] == number and "id" not in result, result
assert 'write "2"' in results[-4]["error"] and 'no "id"' in results[-2]["error"], results[-4:]
PY
check "how many failed is said" grep -qE "29 of 30 requests failed, the first in line 2: \"max_tokens\" is 6.5" \
  "$work/stderr"
# Advice has no digits that nobody wrote, and says how seeds beyond 2^53 are taken.
printf '%s\n' '{"id":18446744073709551616,"prompt":"a"}' \
  '{"id":"a","prompt":"a","seed":9007199254740992.0}' \
  '{"id":"b","prompt":"Ge1:1 In","max_tokens":2,"seed":9007199254740992}' >"$work/large.jsonl"
run_one --model "$model" --input "$work/large.jsonl" --output "$work/large.out.jsonl"
json_check "large numbers" "$work/large.out.jsonl" <<'PY'
number, seed, whole = lines[0]
assert "e+19" not in number["error"] and "write it in quotes" in number["error"], number
assert "without a point or an exponent from 2^53 on" in seed["error"] and "tokens" in whole, seed
PY
# An id of a broken line is not taken from the whole line that has it too.
printf '{"id":"a","prompt":"Ge\n{"id":"a","prompt":"Ge1:1 In","max_tokens":2}\n' >"$work/again.jsonl"
run_one --model "$model" --input "$work/again.jsonl" --output "$work/again.out.jsonl"
json_check "a line written again after a cut one" "$work/again.out.jsonl" <<'PY'
cut, whole = lines[0]
assert cut["id"] == whole["id"] == "a" and "error" in cut and "tokens" in whole
PY
finish
