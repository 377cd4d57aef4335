#!/usr/bin/env bash
# Many samples of one prompt: requests without a seed draw independently of one another, and still the
# same in every layout, in a part of the file and after an interruption.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

model="$work/model.h5"
import_sample "$model"
requests="$work/requests.jsonl"
python3 - "$requests" <<'PY'
import json, sys
with open(sys.argv[1], "w") as file:
    for number in range(12):
        print(json.dumps({"id": f"s{number}", "prompt": "Ge1:1 In the", "max_tokens": 16, "temperature": 1.0}), file=file)
PY
first="$work/first.jsonl"
run_one --model "$model" --input "$requests" --output "$first"
succeeds "twelve samples of one prompt"
json_check "samples differ" "$first" <<'PY'
texts = {line["text"] for line in lines[0]}
assert len(texts) >= 11, texts
PY

# --- the same bytes in every layout
other="$work/other.jsonl"
for options in "--chunks 1 --threads 1" "--no-overlap --max-sequences 2" "--seed 0" "--step-tokens 16"; do
  # shellcheck disable=SC2086  # several words
  run_one --model "$model" --input "$requests" --output "$other" $options
  succeeds "samples with $options"
  same "samples with $options" "$first" "$other"
done
for ranks in 2 5; do
  atoll_on "$ranks" run --model "$model" --input "$requests" --output "$other" --progress none
  succeeds "samples on $ranks ranks"
  same "samples on $ranks ranks" "$first" "$other"
done

# --- a part of the file, and its lines in another order
awk 'NR % 3 == 2 { print } NR % 3 != 2 { print "" }' "$requests" >"$work/part.jsonl"
tac "$requests" >"$work/turned.jsonl"
for name in part turned; do
  run_one --model "$model" --input "$work/$name.jsonl" --output "$work/$name.out.jsonl"
  succeeds "samples, $name"
done
json_check "a sample depends on its own id alone" "$first" "$work/part.out.jsonl" "$work/turned.out.jsonl" <<'PY'
whole, part, turned = lines
by_id = {line["id"]: line for line in whole}
assert len(part) == 4 and all(by_id[line["id"]] == line for line in part)
assert turned == whole[::-1]
PY

# --- another seed of the job, other samples; seeds in the file and greedy requests do not mind
run_one --model "$model" --input "$requests" --output "$other" --seed 18446744073709551615
succeeds "another seed"
json_check "another seed, other samples" "$first" "$other" <<'PY'
assert sum(a["text"] != b["text"] for a, b in zip(*lines)) >= 11
PY
printf '{"id": "%s", "prompt": "Ge1:1 In the", "max_tokens": 16, %s}\n' a '"temperature": 1, "seed": 7' \
  b '"temperature": 1, "seed": 7' zero '"temperature": 1, "seed": 0' greedy '"temperature": 0' \
  greedier '"top_p": 0.5' >"$work/own.jsonl"
for seed in 0 5; do
  run_one --model "$model" --input "$work/own.jsonl" --output "$work/own.$seed" --seed "$seed"
  succeeds "seeds of requests' own, --seed $seed"
done
same "seeds of requests' own" "$work/own.0" "$work/own.5"
mv "$work/own.0" "$work/own.0.jsonl"
json_check "equal seeds, equal texts" "$work/own.0.jsonl" <<'PY'
text = {line["id"]: line["text"] for line in lines[0]}
assert text["a"] == text["b"] != text["zero"] and text["greedy"] == text["greedier"]
# What these seeds have given since there have been seeds.
assert [text["a"], text["zero"]] == [" priests by Chri", " righteous after"], text
PY
capture "$ATOLL" run --model "$model" --input "$requests" --output "$other" --seed -1
refused "a seed below 0" 2 "seed"

# --- resumed: the journal of a run that failed at its end, cut after three results
interrupt() { # REQUESTS
  rm -f "$other" "$other.journal"
  ln -sf /dev/full "$work/full"
  run_one --model "$model" --input "$1" --output "$other" --report "$work/full"
  refused "a report on a full disk" 1 "space"
  head -n 4 "$other.journal" >"$work/cut"
  mv "$work/cut" "$other.journal"
}
interrupt "$requests"
run_one --model "$model" --input "$requests" --output "$other" --resume --seed 1
refused "resuming with another seed" 1 "seed was 0 and is 1"
atoll_on 3 run --model "$model" --input "$requests" --output "$other" --resume --progress none
succeeds "resuming on other ranks"
same "resuming on other ranks" "$first" "$other"
interrupt "$work/own.jsonl"
run_one --model "$model" --input "$work/own.jsonl" --output "$other" --resume --seed 1
succeeds "resuming with another seed where none draws from it"
same "resuming with another seed where none draws from it" "$work/own.0.jsonl" "$other"
finish
