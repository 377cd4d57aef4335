#!/usr/bin/env bash
# Models that cannot be used: a clear message, exit code 1, no crash, no hang, no half-written file.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
command_limit=60

model="$work/model.h5"
import_sample "$model"
printf '{"id": "a", "prompt": "Ge1:1", "max_tokens": 3}\n' >"$work/requests.jsonl"
run_options=(run --input "$work/requests.jsonl" --output "$work/results.jsonl")

# --- import
# KIND of make_model.py | what the message must name (an extended regular expression, any case)
faults=(
  "fault-header-beyond-file|header"
  "fault-header-length-huge|header"
  "fault-header-not-json|header|json"
  "fault-header-list|header"
  "fault-header-deep|header|nest|json"
  "fault-file-empty|header|short|truncated|bytes"
  "fault-file-short|header|short|truncated|bytes"
  "fault-truncated|truncated|beyond|range|end|bytes"
  "fault-offsets-out-of-range|model.norm.weight"
  "fault-offsets-overlap|overlap"
  "fault-offsets-reversed|model.norm.weight"
  "fault-offsets-negative|model.norm.weight"
  "fault-offsets-overflow|model.norm.weight"
  "fault-shape-overflow|model.norm.weight"
  "fault-shape-negative|model.norm.weight"
  "fault-size-of-entry|model.norm.weight"
  "fault-dtype|I64"
  "fault-missing-tensor|model.layers.3.mlp.experts.7.up_proj.weight"
  "fault-wrong-shape|model.layers.2.self_attn.q_proj.weight"
  "fault-index-names-missing-file|model-00002-of-00003.safetensors"
  "fault-index-not-json|index"
  "fault-architecture|LlamaForCausalLM"
  "fault-top-k|num_experts_per_tok"
  "fault-top-k-zero|num_experts_per_tok"
  "fault-hidden-negative|hidden_size"
  "fault-hidden-huge|hidden_size"
  "fault-hidden-beyond-int64|hidden_size"
  "fault-hidden-text|hidden_size"
  "fault-layers-huge|num_hidden_layers"
  "fault-experts-zero|num_experts"
  "fault-heads|num_attention_heads|num_key_value_heads"
  "fault-activation|hidden_act"
  "fault-eps|rms_norm_eps"
  "fault-no-config|config.json"
  "fault-config-not-json|config.json|configuration"
  "fault-config-deep|nested"
  "fault-no-weights|safetensors"
)
for fault in "${faults[@]}"; do
  kind="${fault%%|*}"
  python3 "$ATOLL_SOURCE/tests/e2e/make_model.py" "$kind" "$sample" "$work/$kind"
  capture "$ATOLL" import "$work/$kind" --output "$work/bad.h5"
  refused "import, $kind" 1 "${fault#*|}"
  if compgen -G "$work/bad.h5*" >/dev/null; then
    failed "import, $kind: left $(compgen -G "$work/bad.h5*")"
    rm -f "$work"/bad.h5*
  else
    passed
  fi
  rm -rf "${work:?}/$kind"
done
capture "$ATOLL" import "$work/nowhere" --output "$work/bad.h5"
refused "import of a missing folder" 1 "nowhere"
capture "$ATOLL" import "$sample" --output "$work/nowhere/bad.h5"
refused "import into a missing folder" 1 "nowhere"
capture "$ATOLL" import "$sample" --output "$work"
refused "import onto a folder" 1 "cannot write"
capture "$ATOLL" init --preset moe-4l-tiny --output /dev/full
refused "init onto a device" 1 "/dev/full"

# --- files that are no model file
refuse_model() { # WHAT FILE PATTERN: by run, on one rank and on three, and by inspect
  capture "$ATOLL" "${run_options[@]}" --model "$2"
  refused "run, $1" 1 "$3"
  atoll_on 3 "${run_options[@]}" --model "$2"
  refused "run on 3 ranks, $1" 1 "$3"
  capture "$ATOLL" inspect "$2"
  refused "inspect, $1" 1 "$3"
}
refuse_model "missing" "$work/nowhere.h5" "nowhere.h5"
refuse_model "a folder" "$work" "cannot read"
: >"$work/empty.h5"
refuse_model "empty file" "$work/empty.h5" "empty.h5"
refuse_model "safetensors instead" "$sample/model.safetensors" "not|HDF5"
h5copy -i "$model" -o "$work/foreign.h5" -s /model/norm/weight -d /weight
refuse_model "HDF5 of another kind" "$work/foreign.h5" "format|not"

# --- truncated
size=$(stat -c %s "$model")
for length in 7 100 2000 $((size / 2)) $((size - 1)); do
  head -c "$length" "$model" >"$work/cut.h5"
  capture "$ATOLL" "${run_options[@]}" --model "$work/cut.h5"
  refused "run, cut to $length bytes" 1 "cut.h5"
  capture "$ATOLL" inspect "$work/cut.h5"
  refused "inspect, cut to $length bytes" 1 "cut.h5"
done
atoll_on 16 "${run_options[@]}" --model "$work/cut.h5"
refused "run on 16 ranks, truncated" 1 "cut.h5"

# --- one flipped bit
flip() { # OFFSET: $model with bit 4 of the byte there flipped -> $work/flipped.h5
  cp "$model" "$work/flipped.h5"
  python3 - "$work/flipped.h5" "$1" <<'EOF'
import sys

with open(sys.argv[1], "r+b") as file:
    file.seek(int(sys.argv[2]))
    byte = file.read(1)[0]
    file.seek(int(sys.argv[2]))
    file.write(bytes([byte ^ 16]))
EOF
}
offset_of() { h5dump -p -H -d "$1" "$model" | sed -n 's/.*OFFSET \([0-9]*\).*/\1/p'; }

for tensor in /model/norm/weight /model/layers/5/mlp/experts/up_proj/weight /lm_head/weight; do
  flip $(($(offset_of "$tensor") + 101))
  refuse_model "bit flipped in $tensor" "$work/flipped.h5" "checksum"
  if grep -qF "$tensor" "$work/stderr"; then passed; else failed "the message names no $tensor"; fi
done
# An expert that one rank of 16 alone reads: all ranks end.
slab=$((192 * 128 * 2))
flip $(($(offset_of /model/layers/2/mlp/experts/down_proj/weight) + 13 * slab + 77))
atoll_on 16 "${run_options[@]}" --model "$work/flipped.h5"
refused "run on 16 ranks, bit flipped in one expert" 1 "checksum"

# Anywhere else: refused, or harmless (unused bytes), but no crash and no hang.
for offset in $(python3 -c "
import random
random.seed(1)
print(*range(0, 96, 8), *(random.randrange(96, 20000) for _ in range(20)), *(random.randrange($size) for _ in range(8)))"); do
  flip "$offset"
  capture "$ATOLL" inspect "$work/flipped.h5"
  if ((code == 0)); then
    passed
  else
    refused "inspect, bit flipped at $offset" 1 "flipped.h5"
  fi
done
finish
