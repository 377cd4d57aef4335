#!/usr/bin/env bash
# Wrong use, requests that cannot be served, outputs that cannot be written, ranks started
# differently: the right exit code, one clear message, no hang.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
command_limit=60

model="$work/model.h5"
import_sample "$model"
requests="$work/requests.jsonl"
results="$work/results.jsonl"
printf '{"id": "a", "prompt": "Ge1:1 In the", "max_tokens": 5}\n{"id": "b", "tokens": [68, 105, 101], "max_tokens": 4}\n' \
  >"$requests"
run_options=(run --model "$model" --input "$requests" --output "$results")

# --- wrong use
usage() { # PATTERN ARGUMENTS...
  local pattern="$1"
  shift
  capture "$ATOLL" "$@"
  refused "atoll $*" 2 "$pattern"
}
usage "command|subcommand|required"
usage "teleport" teleport
usage "model" run --input "$requests" --output "$results"
usage "input" run --model "$model" --output "$results"
usage "output" run --model "$model" --input "$requests"
usage "wings" "${run_options[@]}" --wings
for wrong in "chunks 0" "chunks 9" "chunks two" "chunks 99999999999999999999" "mode guess" "threads -1" \
  "max-tokens 0" "max-tokens -5" "max-tokens 1e9" "transport pigeon" "backend abacus" "dtype int8" "deadline -1"; do
  read -r option value <<<"$wrong"
  usage "$option" "${run_options[@]}" "--$option" "$value"
done
usage "dump-activations.*resume" "${run_options[@]}" --resume --dump-activations 0 \
  --activations "$work/x.h5"
usage "preset|moe-16l" init --output "$work/x.h5"
usage "moe-16l" init --preset nonsense --output "$work/x.h5"
usage "seed" init --preset moe-4l-tiny --seed -1 --output "$work/x.h5"
usage "folder" import --output "$work/x.h5"
usage "output" import "$sample"
usage "file" inspect
capture "$ATOLL" "${run_options[@]}" --backend cuda
refused "a backend that is not built" "1|2" "cuda"

for command in "" run init import inspect; do
  # shellcheck disable=SC2086  # no command is no word
  capture "$ATOLL" $command --help
  succeeds "atoll $command --help" && { [[ -s "$work/stdout" ]] || failed "atoll $command --help is empty"; }
done

# --- options from a file; the command line wins
printf 'mode = "score"\nmax-tokens = 3\n' >"$work/options.toml"
capture "$ATOLL" "${run_options[@]}" --config "$work/options.toml"
succeeds "options from a file"
if grep -q prompt_logprobs "$results"; then passed; else failed "the mode in the options file is not used"; fi
capture "$ATOLL" "${run_options[@]}" --config "$work/options.toml" --mode generate
succeeds "options from a file and the command line"
if grep -q finish_reason "$results"; then passed; else failed "the command line does not win over the options file"; fi
printf 'wings = 2\n' >"$work/options.toml"
usage "wings" "${run_options[@]}" --config "$work/options.toml"
usage "nowhere.toml" "${run_options[@]}" --config "$work/nowhere.toml"

# --- layouts: every way in which ranks or the model (6 heads, hidden 192, 128 inner columns, 8 layers)
# do not divide
layout() { # RANKS CODE PATTERN OPTIONS...
  atoll_on "$1" "${run_options[@]}" "${@:4}"
  refused "${*:4} on $1 ranks" "$2" "$3"
}
layout 3 1 "replicas 2 does not divide 3 ranks; try 1, 3" --replicas 2
layout 4 1 "pp 3 does not divide the 4 ranks of a network; try 1, 2, 4" --pp 3
layout 3 1 "tp 2 does not divide the 3 ranks of a stage; try 1, 3" --tp 2
layout 6 1 "tp 3 does not divide the 2 ranks of a stage; try 1, 2" --tp 3 --pp 3
layout 4 1 "tp 4 does not divide the model's 6 heads; try 1, 2, 3, 6" --tp 4
layout 3 1 "expert-tp 2 does not divide the 3 ranks of a stage" --expert-tp 2
layout 3 1 "expert-tp 3 does not divide hidden size 192 and the 128 inner columns .*try 1, 2, 4" --expert-tp 3
layout 9 1 "pp 9 gives some stage none of the model's 8 layers" --pp 9
layout 4 1 "16 experts do not fit into 2 ranks with --slots 2 .*use --slots 8" --replicas 2 --slots 2
layout 4 2 "ep3 is of 3 ranks, or any multiple of 3, and there are 4" --layout ep3
layout 4 2 "dp2-ep3 is of 6 ranks, and there are 4" --layout dp2-ep3
layout 2 2 "is of [0-9]+ ranks.* and there are 2" --layout pp65536-ep65536-etp65536
layout 2 2 "is of [0-9]+ ranks.* and there are 2" --layout dp65536-pp65536-ep65536-etp65536
for nonsense in bogus tp tp2- -tp2 2tp tp0 tp-2 tp2-tp2 "tp2 " TP2 tp2,pp2 tp99999999999999999999; do
  layout 2 2 "layout.*is no part of a layout; give some of" "--layout=$nonsense"
done
layout 2 2 "tp excludes --layout" --layout tp2 --tp 2
layout 2 2 "replicas excludes --layout" --layout tp2 --replicas 1
layout 2 2 "tp-output: diagonal not in" --tp 2 --tp-output diagonal

for wrong in "tp 0" "pp -1" "replicas x" "expert-tp 65537" "expert-tp 1.5"; do
  read -r option value <<<"$wrong"
  usage "$option" "${run_options[@]}" "--$option" "$value"
done
of_model=(layout --model "$model")
usage "of which model.*preset.*config.*model" layout --ranks 4
usage "ranks is required" "${of_model[@]}"
for ranks in 0 -1 65537 many; do usage "--ranks" "${of_model[@]}" --ranks "$ranks"; done
usage "excludes" "${of_model[@]}" --preset moe-4l --ranks 2
usage "excludes" "${of_model[@]}" --config "$work/x.json" --ranks 2
usage "excludes" layout --preset moe-4l --config "$work/x.json" --ranks 2
usage "excludes --layout" "${of_model[@]}" --ranks 2 --layout tp2 --pp 2
usage "preset" layout --preset nonsense --ranks 2
usage "node-ranks 3 does not make 4 ranks" "${of_model[@]}" --ranks 4 --node-ranks 3
usage "memory-gb" "${of_model[@]}" --ranks 2 --memory-gb -1
usage "tp4-pp5 is of 20 ranks" layout --preset moe-61l --ranks 16 --layout tp4-pp5
shown() { # PATTERN OPTIONS...
  capture "$ATOLL" layout "${@:2}"
  refused "atoll layout ${*:2}" 1 "$1"
}
shown "nowhere.h5: No such file" --model "$work/nowhere.h5" --ranks 4
shown "not an HDF5 file" --model "$requests" --ranks 4
shown "not valid JSON" --config "$requests" --ranks 4
shown "tp 4 does not divide the model's 6 heads" --model "$model" --ranks 4 --tp 4
shown "pp 2 does not divide the 5 ranks" --model "$model" --ranks 5 --pp 2
shown "use --slots 2" --model "$model" --ranks 8 --slots 1
shown "nowhere.json is no file" --model "$model" --ranks 2 --placement "$work/nowhere.json"

# --- placements
atoll_on 3 "${run_options[@]}" --slots 5
refused "15 places for 16 experts" 1 "no place.*slots 6"
atoll_on 2 "${run_options[@]}" --slots 17
refused "an expert twice on a rank" 1 "twice"
for nodes in "0" "2,x" "2,2" ""; do
  atoll_on 3 "${run_options[@]}" --node-ranks="$nodes" --route nodes
  if [[ -n "$nodes" ]]; then refused "--node-ranks $nodes on 3 ranks" 2 "node-ranks"; fi
done
placement() { # PATTERN JSON
  printf '%s' "$2" >"$work/placement.json"
  atoll_on 2 "${run_options[@]}" --placement "$work/placement.json"
  refused "placement ${2:0:60}" 1 "placement.json.*$1"
}
all="$(printf '[0],%.0s' {1..15})"
head='{"format": "atoll-placement", "layers": {'
placement "not a placement" 'not JSON'
placement "not a placement" '{"layers": {}}'
placement "no MoE layer" "$head\"0\": [${all}[1]]}}"
placement "no MoE layer" "$head\"8\": [${all}[1]]}}"
placement "no MoE layer" "$head\"one\": [${all}[1]]}}"
placement "15 experts, the model has 16" "$head\"1\": [${all%,}]}}"
placement "expert 15 of layer 2 no place" "$head\"2\": [${all}[]]}}"
placement "expert 15 of layer 2 on rank 2.*ranks 0 to 1" "$head\"2\": [${all}[2]]}}"
placement "twice on rank 1" "$head\"2\": [${all}[1,1]]}}"
placement "no rank" "$head\"2\": [${all}[1.5]]}}"
placement "no list of ranks" "$head\"2\": [$all 1]}}"
placement "no rank" "$head\"2\": [${all}[18446744073709551615]]}}"
placement "no MoE layer" "$head\"01\": [${all}[1]]}}"
placement "laers" '{"format": "atoll-placement", "layers": {}, "laers": {}}'
# Of 4 ranks, and there are 2; or as many, of which 2 exchange rows.
of_four="$(printf '[%d],' 0 1 2 3 0 1 2 3 0 1 2 3 0 1 2 3)"
placement "expert 2 of layer 1 on rank 2.*ranks 0 to 1" "$head\"1\": [${of_four%,}]}}"
for division in "--pp 2" "--replicas 2" "--expert-tp 2" "--layout pp2-ep2"; do
  # shellcheck disable=SC2086  # an option and its value
  layout 4 1 "placement.json.*expert 2 of layer 1 on rank 2.*ranks 0 to 1" $division --placement "$work/placement.json"
done
layout 3 1 "placement.json.*expert 3 of layer 1 on rank 3.*ranks 0 to 2" --placement "$work/placement.json"
capture "$ATOLL" layout --model "$model" --ranks 2 --placement "$work/placement.json"
refused "atoll layout with a placement of 4 ranks" 1 "expert 2 of layer 1 on rank 2"
atoll_on 2 "${run_options[@]}" --placement "$work"
refused "a folder as a placement" 1 "is no file; check --placement"
atoll_on 2 "${run_options[@]}" --placement "$work/nowhere.json"
refused "a placement that is not there" 1 "nowhere.json"
usage "placement" "${run_options[@]}" --placement "$work/placement.json" --slots 3

# --- input
usage_input() { # PATTERN FILE
  capture "$ATOLL" run --model "$model" --input "$2" --output "$results"
  refused "input $(basename "$2")" 1 "$1"
}
usage_input "nowhere.jsonl" "$work/nowhere.jsonl"
usage_input "cannot read|folder|directory" "$work"
: >"$work/empty.jsonl"
usage_input "no request|empty" "$work/empty.jsonl"
printf '\n  \n\n' >"$work/blank.jsonl"
usage_input "no request|empty" "$work/blank.jsonl"
atoll_on 16 run --model "$model" --input "$work/empty.jsonl" --output "$results"
refused "empty input on 16 ranks" 1 "no request|empty"

# --- outputs over inputs, also under another name
cp "$requests" "$work/kept.jsonl"
ln "$work/kept.jsonl" "$work/link.jsonl"
for paths in "output ./kept.jsonl" "report link.jsonl" "trace $model"; do
  read -r option path <<<"$paths"
  (cd "$work" && cp "$model" kept.h5 && capture "$ATOLL" run --model "$model" --input kept.jsonl \
    --output "$results" "--$option" "$path" && echo "$code" >code)
  code="$(cat "$work/code")"
  refused "--$option over an input" 2 "same file"
  same "--$option over an input" "$requests" "$work/kept.jsonl"
  same "--$option over an input" "$model" "$work/kept.h5"
done
capture "$ATOLL" "${run_options[@]}" --report "$results"
refused "one file for results and report" 2 "same file"

for suffix in journal partial; do
  cp "$requests" "$results.$suffix"
  capture "$ATOLL" run --model "$model" --input "$results.$suffix" --output "$results"
  refused "requests where the .$suffix would be" 2 "same file"
  same "requests where the .$suffix would be" "$requests" "$results.$suffix"
  rm "$results.$suffix"
done
cp "$requests" "$results.journal"
capture "$ATOLL" "${run_options[@]}"
refused "somebody's file where the journal would be" 1 "does not begin as"
same "somebody's file where the journal would be" "$requests" "$results.journal"
rm "$results.journal"

# --- outputs that are links, or standard output
"$ATOLL" "${run_options[@]}" >/dev/null 2>&1
ln -s real.jsonl "$work/symbolic.jsonl"
capture "$ATOLL" run --model "$model" --input "$requests" --output "$work/symbolic.jsonl"
succeeds "an output that is a link"
same "an output that is a link" "$results" "$work/real.jsonl"
if [[ -L "$work/symbolic.jsonl" ]]; then passed; else failed "a link was replaced by the output"; fi
"$ATOLL" run --model "$model" --input "$requests" --output /dev/stdout >"$work/alone" 2>"$work/table"
same "results on standard output, a file, and nothing else there" "$results" "$work/alone"
"$ATOLL" run --model "$model" --input "$requests" --output /dev/stdout 2>>"$work/table" | cat >"$work/alone"
same "results on standard output, a pipe, and nothing else there" "$results" "$work/alone"
if [[ "$(grep -c tokens/s "$work/table")" -ge 2 ]]; then passed; else
  failed "the table of speeds is lost where results go to standard output: $(cat "$work/table")"
fi

# --- lines that cannot be served, between ones that can
"$ATOLL" "${run_options[@]}" >/dev/null 2>&1
mv "$results" "$work/good.jsonl"
python3 - "$requests" "$work/lines.jsonl" <<'EOF'
import json, sys

good = open(sys.argv[1], "rb").read().splitlines()
bad = [
    b'{"id": "cut", "prompt": "abc',
    b"[1, 2, 3]",
    b'"text"',
    b"null",
    b"no json at all",
    b"[" * 100000,
    b'{"id": ' + b"[" * 100000 + b"]" * 100000 + b"}",
    b'{"id": "no prompt"}',
    b'{"prompt": "no id", "id": 7}',
    b'{"id": "empty", "prompt": ""}',
    b'{"id": "none", "tokens": []}',
    b'{"id": "number", "prompt": 5}',
    b'{"id": "both", "prompt": "a", "tokens": [1]}',
    b'{"id": "high", "tokens": [256]}',
    b'{"id": "low", "tokens": [-1]}',
    b'{"id": "huge", "tokens": [4294967296]}',
    b'{"id": "beyond", "tokens": [18446744073709551616]}',
    b'{"id": "fraction", "tokens": [1.5]}',
    b'{"id": "words", "tokens": ["a"]}',
    b'{"id": "negative", "prompt": "a", "max_tokens": -5}',
    b'{"id": "zero", "prompt": "a", "max_tokens": 0}',
    b'{"id": "half", "prompt": "a", "max_tokens": 2.5}',
    b'{"id": "cold", "prompt": "a", "temperature": -1}',
    b'{"id": "hot", "prompt": "a", "temperature": 1e400}',
    b'{"id": "top", "prompt": "a", "top_p": 1.5}',
    b'{"id": "top0", "prompt": "a", "top_p": 0}',
    b'{"id": "seed", "prompt": "a", "seed": -1}',
    b'{"id": "stop", "prompt": "a", "stop_token_ids": [300]}',
    b'{"id": "stops", "prompt": "a", "stop_token_ids": "."}',
    b'{"id": "utf", "prompt": "\xff\xfe"}',
    json.dumps({"id": "long", "prompt": "x" * 16385, "max_tokens": 1}).encode(),
]
with open(sys.argv[2], "wb") as file:
    file.write(good[0] + b"\n" + b"".join(line + b"\n" for line in bad) + b"\n" + good[1] + b"\r\n")
EOF
for ranks in 1 3; do
  atoll_on "$ranks" run --model "$model" --input "$work/lines.jsonl" --output "$results"
  succeeds "bad lines on $ranks ranks" || continue
  json_check "bad lines on $ranks ranks" "$results" "$work/good.jsonl" <<'EOF'
results, good = lines
assert len(results) == 33, len(results)
assert [results[0], results[-1]] == good, "requests beside bad ones have other results"
for number, result in enumerate(results[1:-1], start=2):
    assert result.get("line") == number and result.get("error"), (number, result)
    assert "tokens" not in result, result
assert results[1 + 9]["id"] == "empty" and results[1 + 13]["id"] == "high"
EOF
done
sed -n '2,6p' "$work/lines.jsonl" >"$work/all_bad.jsonl"
atoll_on 5 run --model "$model" --input "$work/all_bad.jsonl" --output "$results"
refused "nothing but bad lines" 65 "no request could be served \\(5 of 5 failed, the first in line 1: "
if [[ "$(grep -c '"error"' "$results")" == 5 ]]; then passed; else failed "nothing but bad lines: results missing"; fi

# --- a prompt as long as the model allows, and a request that would grow beyond
python3 -c "
import json
print(json.dumps({'id': 'beyond', 'prompt': 'ab ' * 5461, 'max_tokens': 8}))" >"$work/beyond.jsonl"
capture "$ATOLL" run --model "$model" --input "$work/beyond.jsonl" --output "$results"
refused "a request that would grow beyond max_position_embeddings" 65 "exceed the model's 16384 positions"
json_check "a request that would grow beyond max_position_embeddings" "$results" <<'EOF'
(result,) = lines[0]
assert "error" in result, result
EOF

# --- outputs
for path in "$work/nowhere/x" "$work" "$requests/x"; do
  capture "$ATOLL" "${run_options[@]}" --status "$path"
  refused "--status ${path#"$work"}" 1 "cannot write"
done
for option in output report trace; do
  for path in "$work/nowhere/x" "$work" "$requests/x"; do
    capture "$ATOLL" "${run_options[@]}" "--$option" "$path"
    refused "--$option ${path#"$work"}" "1|2" "cannot write|writ"
  done
  # A device that is always full; through a link, so that no test can replace the device itself.
  ln -sf /dev/full "$work/full"
  atoll_on 2 "${run_options[@]}" "--$option" "$work/full"
  refused "--$option on a full disk" 1 "full|space"
  [[ "$option" != output ]] || continue # its results went nowhere
  capture "$ATOLL" "${run_options[@]}" --resume
  succeeds "resume after --$option on a full disk"
  if grep -q "2 of 2 requests are finished" "$work/stderr"; then
    passed
  else
    failed "--$option on a full disk: what was finished is computed again"
  fi
done

# --- ranks started differently
two() { # WHAT PATTERN OPTIONS_OF_RANK_0 OPTIONS_OF_THE_OTHERS, as words
  local what="$1" pattern="$2" first others
  read -ra first <<<"$3"
  read -ra others <<<"$4"
  capture mpirun "${mpirun_flags[@]}" -n 1 "$ATOLL" "${run_options[@]}" "${first[@]}" \
    : -n 2 "$ATOLL" "${run_options[@]}" "${others[@]}"
  refused "$what" "1|2" "$pattern"
}
two "different chunks" "chunks" "--chunks 1" "--chunks 2"
two "different modes" "mode" "--mode score" "--mode generate"
two "different overlap" "overlap" "--no-overlap" ""
two "different dtypes" "dtype" "--dtype float32" "--dtype bfloat16"
two "a wrong option on some ranks" "wings" "" "--wings"
two "a wrong option on the first rank" "wings" "--wings" ""
"$ATOLL" init --preset moe-16l-tiny --seed 1 --output "$work/one.h5" >/dev/null
"$ATOLL" init --preset moe-16l-tiny --seed 2 --output "$work/two.h5" >/dev/null
two "different models" "model" "--model $work/one.h5" "--model $work/two.h5"
two "a model missing on some ranks" "model|nowhere" "" "--model $work/nowhere.h5"
# The same path on every rank, but another file behind it on some (as on a node with a stale copy).
mkdir "$work/a" "$work/b"
ln "$work/one.h5" "$work/a/m.h5"
ln "$work/two.h5" "$work/b/m.h5"
same_words=(run --model m.h5 --input "$requests" --output "$results")
capture mpirun "${mpirun_flags[@]}" -n 2 -wdir "$work/a" "$ATOLL" "${same_words[@]}" \
  : -n 1 -wdir "$work/b" "$ATOLL" "${same_words[@]}"
refused "another model file behind the same path" 1 "contents|differ"
mv "$work/b/m.h5" "$work/b/gone.h5"
capture mpirun "${mpirun_flags[@]}" -n 2 -wdir "$work/a" "$ATOLL" "${same_words[@]}" \
  : -n 1 -wdir "$work/b" "$ATOLL" "${same_words[@]}"
refused "the model file missing on one rank" 1 "m.h5"

# --- a rank that dies takes the job with it
python3 -c "
import json
for number in range(40):
    print(json.dumps({'id': str(number), 'prompt': 'Ge1:1 ' * 50, 'max_tokens': 4000}))" >"$work/much.jsonl"
mpirun "${mpirun_flags[@]}" -n 3 "$ATOLL" run --model "$model" --input "$work/much.jsonl" \
  --output "$results" >"$work/stdout" 2>"$work/stderr" </dev/null &
job=$!
victim=""
for _ in {1..100}; do
  sleep 0.1
  victim="$(pgrep -P "$job" | tail -n 1 || true)"
  [[ -z "$victim" ]] || break
done
sleep 2
if [[ -n "$victim" ]] && kill -KILL "$victim"; then
  for _ in {1..150}; do
    kill -0 "$job" 2>/dev/null || break
    sleep 0.1
  done
  if kill -0 "$job" 2>/dev/null; then
    failed "the job outlives a killed rank by 15 s"
    kill "$job"
  elif wait "$job"; then
    failed "a job with a killed rank ends with exit code 0"
  else
    passed
  fi
else
  failed "no rank to kill"
fi
finish
