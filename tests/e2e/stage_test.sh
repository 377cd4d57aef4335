#!/usr/bin/env bash
# --stage: each host of a cluster of namespaces gets its own copy of the model, once; results are those of the
# file itself. A copy that is not of the file as it is now is made anew.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
model="$work/model.h5" input="$ATOLL_SOURCE/jobs/sample-prompts.jsonl"
import_sample "$model"
atoll_on 2 run --model "$model" --input "$input" --output "$work/expected.jsonl" --backend cpu --max-tokens 4
succeeds "without a copy" || true

# staged WHAT COPIES-THAT-WERE-THERE
staged() {
  atoll_on 2 run --model "$model" --input "$input" --output "$work/results.jsonl" --backend cpu --max-tokens 4 \
    --stage "$work/near"
  succeeds "$1" || return 0
  same "$1" "$work/expected.jsonl" "$work/results.jsonl"
  if grep -q -- "^--stage: .* on 1 node, $2 of them there already" "$work/stderr"; then
    passed
  else
    failed "$1: $(grep -- --stage "$work/stderr")"
  fi
  copy="$(find "$work/near" -name model.h5 -size "$(stat -c %s "$model")c" | head -n 1)"
  same "$1: the copy" "$model" "$copy"
}
staged "the first time" 0
staged "again" 1
touch "$model"
staged "after the file was written again" 0
printf x | dd of="$copy" bs=1 seek=3000 conv=notrunc 2>/dev/null
staged "after the copy was altered" 0
truncate -s -1 "$copy"
staged "after the copy was cut" 0
# Another model of the same name has a copy of its own, and takes nobody's place.
mkdir "$work/second"
capture "$ATOLL" init --preset moe-4l-tiny --seed 7 --output "$work/second/model.h5"
succeeds "another model" || true
for there in 0 1; do
  capture "$ATOLL" run --model "$work/second/model.h5" --input "$input" --output "$work/second.jsonl" --max-tokens 4 \
    --backend cpu --stage "$work/near"
  succeeds "another model of that name" || true
  if grep -q -- "^--stage: .* on 1 node, $there of them there already" "$work/stderr"; then passed; else failed "another model: $(grep -- --stage "$work/stderr")"; fi
  staged "beside another model of that name" 1
done
if [[ -z "$(find "$work/near" -name '*.partial.*')" ]]; then passed; else failed "left over: $(ls "$work/near")"; fi
capture "$ATOLL" run --model "$model" --input "$input" --output "$work/results.jsonl" --stage /proc/none
refused "a folder that cannot be" 1 'check --stage'

others="$work/others/$(basename "$(dirname "$copy")")"
mkdir -p "$others"
echo precious >"$others/model.h5"
cp "$others/model.h5" "$work/before"
capture "$ATOLL" run --model "$model" --input "$input" --output "$work/results.jsonl" --stage "$work/others"
refused "somebody's file in place of a copy" 1 'model.h5 is there already'
same "somebody's file in place of a copy" "$work/before" "$others/model.h5"
capture "$ATOLL" run --model "$model" --input "$input" --output "$work/results.jsonl" --stage "$work"
refused "the folder of the model" 1 'is where the model is'
capture "$ATOLL" run --model "$model" --input "$input" --output "$work/results.jsonl" --stage ""
refused "no folder" 2 '--stage'

cluster="$ATOLL_SOURCE/jobs/cluster/cluster"
export TMPDIR="$work" ATOLL_CLUSTER="stage-$$"
if ! reason="$("$cluster" probe --no-slurm)"; then
  printf 'left out: several hosts (%s)\n' "$reason"
  finish
  exit
fi
trap '"$cluster" down || true; rm -rf "$work"' EXIT
cd "$work"
capture "$cluster" up 2 --no-slurm
succeeds "up" || finish
for there in 0 2; do # each host's /dev/shm is its own
  capture "$cluster" run -n 4 "$ATOLL" run --model "$model" --input "$input" --output "$work/two.jsonl" --max-tokens 4 \
    --backend cpu --progress none --stage /dev/shm/near
  succeeds "two hosts" || true
  same "two hosts" "$work/expected.jsonl" "$work/two.jsonl"
  if grep -q -- "on 2 nodes, $there of them there already" "$work/stderr"; then passed; else failed "two hosts: $(grep -- --stage "$work/stderr")"; fi
done
capture "$cluster" down
succeeds "down" || true
finish
