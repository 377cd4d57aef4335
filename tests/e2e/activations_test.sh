#!/usr/bin/env bash
# Activations at layer boundaries: the same bytes for every number of ranks and chunks, in both
# modes; atoll diff finds the first layer that differs, and the request.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

model="$work/model.h5"
import_sample "$model"
requests="$work/requests.jsonl"
{
  head -n 6 "$ATOLL_SOURCE/jobs/sample-prompts.jsonl"
  printf '{"id": "refused", "prompt": ""}\n{"id": "one", "prompt": "a", "max_tokens": 1}\n'
} >"$requests"

# dump RANKS NAME OPTION...: a run of the requests with its activations in NAME.h5.
dump() {
  local ranks="$1" name="$2"
  shift 2
  atoll_on "$ranks" run --model "$model" --input "$requests" --output "$work/results.jsonl" \
    --activations "$work/$name.h5" "$@"
  succeeds "activations, $name"
}
for mode in generate score; do
  dump 1 "$mode" --dump-activations all --mode "$mode"
  dump 2 "$mode-2" --dump-activations all --mode "$mode" --chunks 4 --min-chunk-tokens 2
  dump 3 "$mode-3" --dump-activations all --mode "$mode" --step-tokens 40 --no-overlap
  # Attention, layers and experts over ranks, and several networks: who writes which rows differs.
  number=0
  for layout in "2 --tp 2" "3 --pp 3" "4 --expert-tp 2 --replicas 2" "6 --tp 3 --pp 2 --tp-output rows --step-tokens 40" \
    "8 --layout pp2-tp2" "8 --tp 2 --pp 2 --expert-tp 4 --no-overlap" "4 --tp 2 --route nodes --node-ranks 2"; do
    # Scoring writes the same rows, so that a part of the layouts is enough for every change.
    ((all_sweeps || number++ % 3 == 0)) || [[ "$mode" == generate ]] || continue
    read -r ranks more <<<"$layout"
    # shellcheck disable=SC2086  # `more` is a list of words
    dump "$ranks" layout --dump-activations all --mode "$mode" $more
    same "activations with $layout, $mode" "$work/$mode.h5" "$work/layout.h5"
  done
  same "activations on 1 and 2 ranks, $mode" "$work/$mode.h5" "$work/$mode-2.h5"
  same "activations on 1 and 3 ranks, $mode" "$work/$mode.h5" "$work/$mode-3.h5"
done

capture "$ATOLL" inspect "$work/generate.h5"
succeeds "inspect"
for text in "8 layers" "192] float32" "of 8 requests"; do
  if grep -qF "$text" "$work/stdout"; then passed; else failed "inspect says nothing of '$text'"; fi
done
if command -v h5dump >/dev/null; then
  capture h5dump -d /layers/7 -s 0,0 -c 1,4 "$work/generate.h5"
  succeeds "h5dump"
  if grep -qE '\(0,0\): -?[0-9]+(\.[0-9]+)?(e-?[0-9]+)?, ' "$work/stdout"; then
    passed
  else
    failed "h5dump shows no numbers"
    show_output
  fi
fi

# first_difference WHAT CODE PATTERN A B OPTION...
first_difference() {
  local what="$1" expected="$2" pattern="$3"
  shift 3
  capture "$ATOLL" diff "$work/$1.h5" "$work/$2.h5" "${@:3}"
  if ((code == expected)) && cat "$work/stdout" "$work/stderr" | grep -qE -- "$pattern"; then
    passed
  else
    failed "$what: exit code $code, expected $expected and '$pattern'"
    show_output
  fi
}
# The tokens of a prompt are the same in both modes, and so is their way through the layers.
first_difference "generating against scoring" 0 "^ +7 +0 +0 " generate score
dump 2 float32 --dump-activations 0,3,7 --mode score --dtype float32
first_difference "bfloat16 against float32" 1 "from layer 0 on" score float32
# Rounding to 8 bits moves values of about 10 by less than that; a wrong row would by more.
first_difference "bfloat16 against float32, with a tolerance" 0 "^ +7 " score float32 --tolerance 10
first_difference "only common layers are compared" 0 "^ +3 " score float32 --tolerance 10
if [[ "$(grep -cE '^ +[0-9]+ ' "$work/stdout")" == 3 ]]; then passed; else failed "not three layers"; fi

# One weight of layer 5 altered: layers 0 to 4 stay the same.
cp -r "$sample" "$work/altered"
python3 - "$work/altered/model.safetensors" <<'EOF'
import json, struct, sys

with open(sys.argv[1], "r+b") as file:
    (length,) = struct.unpack("<Q", file.read(8))
    header = json.loads(file.read(length))
    begin, _ = header["model.layers.5.input_layernorm.weight"]["data_offsets"]
    file.seek(8 + length + begin)
    file.write(struct.pack("<H", 0x4000))  # 2.0 in bfloat16
EOF
original="$model"
model="$work/altered-model.h5"
capture "$ATOLL" import "$work/altered" --output "$model"
succeeds "import of the altered model"
dump 2 altered --dump-activations all --mode score
first_difference "one altered weight" 1 "from layer 5 on .*request \"[a-z0-9-]+\" at position [0-9]+" \
  score altered
if grep -qE '^ +4 +0 +0 ' "$work/stdout"; then passed; else failed "layer 4 differs too"; fi
model="$original"

# What cannot be.
atoll_on 2 run --model "$model" --input "$requests" --output "$work/results.jsonl" \
  --dump-activations 8 --activations "$work/x.h5"
refused "a layer the model has not" 2 "no layer of this model"
capture "$ATOLL" run --model "$model" --input "$requests" --output "$work/results.jsonl" \
  --dump-activations all
refused "activations without a file" 2 "activations"
capture "$ATOLL" run --model "$model" --input "$requests" --output "$work/results.jsonl" \
  --dump-activations all --activations "$model"
refused "activations over the model" 2 "same file"
atoll_on 2 run --model "$model" --input "$requests" --output "$work/results.jsonl" \
  --dump-activations all --activations "$work/nowhere/x.h5"
refused "activations in no folder" 1 "cannot write"
capture "$ATOLL" diff "$work/score.h5" "$model"
refused "a model is no activations file" 1 "not .*activations|format"
printf '{"id": "other", "prompt": "b"}\n' >"$requests"
dump 1 other --dump-activations 1 --mode score
capture "$ATOLL" diff "$work/score.h5" "$work/other.h5"
refused "nothing in common" 1 "no id is in both"
head -c 100000 "$work/score.h5" >"$work/cut.h5"
capture "$ATOLL" diff "$work/score.h5" "$work/cut.h5"
refused "a truncated file" 1 "truncated|damaged"
finish
