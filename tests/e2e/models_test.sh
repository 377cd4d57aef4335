#!/usr/bin/env bash
# Model files: what import makes of one model told in several ways, of other architectures, what init
# writes on any number of ranks, and that inspect and HDF5's own tool can read it all.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

make_model() { python3 "$ATOLL_SOURCE/tests/e2e/make_model.py" "$1" "$sample" "$work/$1"; }

# contains WHAT FILE WORD...: every word is somewhere in the file.
contains() {
  local what="$1" file="$2" word
  shift 2
  for word in "$@"; do
    if grep -qF -- "$word" "$file"; then
      passed
    else
      failed "$what does not mention '$word'"
      show_output
    fi
  done
}

# --- import
import_sample "$work/model.h5"
for kind in sharded-with-index sharded-without-index widened-to-f32 norms-in-f16; do
  make_model "$kind"
  capture "$ATOLL" import "$work/$kind" --output "$work/$kind.h5"
  succeeds "import, $kind" || continue
  same "import, $kind" "$work/model.h5" "$work/$kind.h5"
  rm -rf "${work:?}/$kind" "$work/$kind.h5"
done

capture "$ATOLL" inspect "$work/model.h5"
succeeds "inspect"
contains "inspect" "$work/stdout" hidden_size 192 num_experts 16 /model/layers/7/mlp/experts/down_proj/weight \
  /lm_head/weight

# HDF5's own tool shows BF16 as numbers, and they are the safetensors file's.
h5dump -y -w 1 -m %.8g -d /model/norm/weight -o "$work/norm.txt" "$work/model.h5" >"$work/stdout"
if python3 - "$sample/model.safetensors" "$work/norm.txt" >"$work/check" 2>&1 <<'EOF'; then
import json, struct, sys

with open(sys.argv[1], "rb") as file:
    (size,) = struct.unpack("<Q", file.read(8))
    entry = json.loads(file.read(size))["model.norm.weight"]
    file.seek(8 + size + entry["data_offsets"][0])
    content = file.read(2 * entry["shape"][0])
expected = [struct.unpack("<f", b"\0\0" + content[i : i + 2])[0] for i in range(0, len(content), 2)]
shown = [float(word) for word in open(sys.argv[2]).read().replace(",", " ").split()]
assert len(shown) == len(expected) == 192, len(shown)
assert all(abs(a - b) <= 1e-6 * abs(b) for a, b in zip(shown, expected)), shown[:4]
EOF
  passed
else
  failed "h5dump: $(tail -n 1 "$work/check")"
fi

printf '%s\n' '{"id": "a", "tokens": [1, 2, 3, 250], "max_tokens": 8}' \
  '{"id": "b", "prompt": "Hello", "max_tokens": 8, "temperature": 0.9, "seed": 3}' >"$work/requests.jsonl"

# on_ranks NAME MODEL RANKS...: runs, and gives the same results on all numbers of ranks.
on_ranks() {
  local name="$1" model="$2" ranks expected=""
  shift 2
  for ranks in "$@"; do
    atoll_on "$ranks" run --model "$model" --input "$work/requests.jsonl" --output "$work/$name.$ranks"
    succeeds "$name on $ranks ranks" || continue
    [[ -z "$expected" ]] || same "$name on $ranks ranks" "$expected" "$work/$name.$ranks"
    expected="${expected:-$work/$name.$ranks}"
  done
}

for kind in mixtral olmoe; do
  make_model "$kind"
  capture "$ATOLL" import "$work/$kind" --output "$work/$kind.h5"
  succeeds "import, $kind" || continue
  on_ranks "$kind" "$work/$kind.h5" 1 3 4
done

# --- init
for preset in moe-61l-tiny moe-16l-tiny moe-4l-tiny; do
  capture "$ATOLL" init --preset "$preset" --seed 5 --output "$work/$preset.h5"
  succeeds "init of $preset alone" || continue
  for ranks in 3 8; do
    atoll_on "$ranks" init --preset "$preset" --seed 5 --output "$work/other.h5"
    succeeds "init of $preset on $ranks ranks" || continue
    same "init of $preset on $ranks ranks" "$work/$preset.h5" "$work/other.h5"
  done
  capture "$ATOLL" inspect "$work/$preset.h5"
  succeeds "inspect of $preset"
done
on_ranks moe-61l-tiny "$work/moe-61l-tiny.h5" 5 16
on_ranks moe-16l-tiny "$work/moe-16l-tiny.h5" 2 16
on_ranks moe-4l-tiny "$work/moe-4l-tiny.h5" 1 7

capture "$ATOLL" init --preset moe-4l-tiny --seed 6 --output "$work/other.h5"
succeeds "init with another seed"
if cmp -s "$work/moe-4l-tiny.h5" "$work/other.h5"; then
  failed "another seed gives the same model"
else
  passed
fi
finish
