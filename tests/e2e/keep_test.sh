#!/usr/bin/env bash
# Models whose weights stay FP8, MXFP4 or INT4 (atoll import --weights keep): results have the bytes of
# the model with the same weights unpacked, in every layout, type and instruction set.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
families="$ATOLL_SOURCE/tests/data/families"

# requests_of FAMILY: its expected cases as requests.
requests_of() {
  python3 - "$families/$1/expected.json" >"$work/requests.jsonl" <<'EOP'
import json, sys

for i, case in enumerate(json.load(open(sys.argv[1]))["cases"]):
    print(json.dumps({"id": str(i), "tokens": case["tokens"], "max_tokens": len(case["greedy"])}))
EOP
}

# run_of MODEL RANKS OPTIONS...: its results in $work/MODEL.jsonl.
run_of() {
  local model="$1" ranks="$2"
  shift 2
  local start=()
  ((ranks == 1)) || start=(mpirun "${mpirun_flags[@]}" -n "$ranks")
  capture "${start[@]}" "$ATOLL" run --backend cpu --model "$work/$model.h5" \
    --input "$work/requests.jsonl" --output "$work/$model.jsonl" "$@"
  succeeds "$model, $ranks ranks, $*" || true
}

# as_unpacked WHAT OPTIONS...: one rank's results of both models have the same bytes.
as_unpacked() {
  local what="$1"
  shift
  run_of plain 1 "$@"
  run_of kept 1 "$@"
  same "$what" "$work/plain.jsonl" "$work/kept.jsonl"
}

# in_layout WHAT RANKS OPTIONS...: the kept model's results there are those of plain.jsonl.
in_layout() {
  run_of kept "${@:2}"
  same "$1" "$work/plain.jsonl" "$work/kept.jsonl"
}

# damaged_scale KIND VALUE: both models with a scale, the first of experts, that is NaN or too large, which
# import, inspect and run say; what is asked for then is another import, not another type.
damaged_scale() {
  local kind="$1" value="$2" what="$1, a scale of $2"
  cp "$work/coded/model.safetensors" "$work/whole"
  python3 - "$work/coded/model.safetensors" "$value" <<'EOP'
import json, struct, sys

with open(sys.argv[1], "r+b") as file:
    size = struct.unpack("<Q", file.read(8))[0]
    header = json.loads(file.read(size))
    name = next(n for n in header if "experts" in n and n.endswith(("_scale_inv", "_scales")))
    file.seek(8 + size + header[name]["data_offsets"][0])
    value = float(sys.argv[2])
    exponent = bytes([255 if value != value else 253])  # 6 x 2^126
    file.write(exponent if header[name]["dtype"] == "U8" else struct.pack("<f", value))
EOP
  capture "$ATOLL" import "$work/coded" --output "$work/damaged.h5" --weights keep
  mv "$work/whole" "$work/coded/model.safetensors"
  succeeds "$what: import" || true
  if grep -q "experts.*not finite" "$work/stderr"; then passed; else failed "$what: import does not say it"; fi
  local place="scales: [0-9]* values* .*not finite ([0-9]* $3)"
  capture "$ATOLL" inspect "$work/damaged.h5"
  succeeds "$what: inspect" || true
  if grep -q "$place" "$work/stdout"; then passed; else failed "$what: inspect does not name it"; fi
  capture "$ATOLL" run --backend cpu --model "$work/damaged.h5" --input "$work/requests.jsonl" \
    --output "$work/damaged.jsonl"
  if grep -q "$place" "$work/stderr"; then passed; else failed "$what: run does not name it"; fi
  if grep -q "were not finite in .*make the file again" "$work/stderr"; then passed; else
    failed "$what: run does not ask for another import"
  fi
}

isas=(avx2)
for isa in avx512 avx512_bf16; do
  flag="${isa/#avx512/avx512f}"
  [[ "$isa" == avx512 ]] || flag="$isa"
  if grep -qw "$flag" /proc/cpuinfo; then isas+=("$isa"); else printf 'no %s on this CPU\n' "$isa"; fi
done

for kind in "fp8 deepseek_v3" "int4 deepseek_v3" "mxfp4 gpt_oss" "fp8 qwen3_moe"; do
  read -r method family <<<"$kind"
  if [[ "$family" == qwen3_moe ]]; then # a configuration that version 1 describes
    python3 "$ATOLL_SOURCE/tests/e2e/quantise_model.py" --make-qwen "$work/qwen"
    folder="$work/qwen"
    requests_of deepseek_v3
  else
    folder="$families/$family"
    requests_of "$family"
  fi
  python3 "$ATOLL_SOURCE/tests/e2e/quantise_model.py" "$method" "$folder" "$work/coded" "$work/decoded"
  capture "$ATOLL" import "$work/decoded" --output "$work/plain.h5"
  succeeds "$kind: import, decoded" || true
  capture "$ATOLL" import "$work/coded" --output "$work/kept.h5" --weights keep
  succeeds "$kind: import, kept" || true
  capture "$ATOLL" inspect "$work/kept.h5"
  succeeds "$kind: inspect" || true
  if grep -q "scales .*" "$work/stdout" && grep -q "checksums: all good" "$work/stdout"; then passed; else
    failed "$kind: no scales, or checksums"
  fi
  if (($(stat -c %s "$work/kept.h5") < $(stat -c %s "$work/plain.h5"))); then passed; else
    failed "$kind: the kept model is no smaller"
  fi
  for isa in "${isas[@]}"; do as_unpacked "$kind, $isa" --isa "$isa"; done
  as_unpacked "$kind, scores in float32" --mode score --dtype float32
  as_unpacked "$kind, float16" --dtype float16
  as_unpacked "$kind"
  in_layout "$kind, cut prompts, threads" 1 --step-tokens 5 --threads 2
  in_layout "$kind, 3 ranks" 3 --chunks 2 --min-chunk-tokens 1 --step-tokens 40
  in_layout "$kind, --tp 2 --expert-tp 2" 4 --tp 2 --expert-tp 2 --tp-output columns
  case "$kind" in
    "fp8 deepseek_v3") damaged_scale "$kind" 2e38 infinite ;;
    mxfp4*) damaged_scale "$kind" nan NaN ;;
  esac
  ((all_sweeps)) || continue
  in_layout "$kind, --tp 2, either" 2 --tp 2 --step-tokens 33
  in_layout "$kind, --tp 4 --pp 3" 12 --tp 4 --pp 3 --tp-output rows
  in_layout "$kind, experts that move" 4 --slots 3 --balance replicate --balance-every 2 --balance-above 1
done

# Several ranks import what one does.
atoll_on 3 import "$work/coded" --output "$work/together.h5" --weights keep
succeeds "import on three ranks" || true
same "import on three ranks" "$work/kept.h5" "$work/together.h5"

# NaN among the codes is named, and a model without codes has nothing to keep.
python3 - "$work/coded/model.safetensors" <<'EOP'
import json, struct, sys

with open(sys.argv[1], "r+b") as file:
    size = struct.unpack("<Q", file.read(8))[0]
    header = json.loads(file.read(size))
    name = next(n for n, t in header.items() if n != "__metadata__" and t["dtype"] == "F8_E4M3" and "experts" in n)
    file.seek(8 + size + header[name]["data_offsets"][0] + 3)
    file.write(b"\x7f")
EOP
capture "$ATOLL" import "$work/coded" --output "$work/kept.h5" --weights keep
succeeds "import with NaN" || true
if grep -q "experts.*1 NaN" "$work/stderr"; then passed; else failed "NaN is not named"; fi
capture "$ATOLL" inspect "$work/kept.h5"
if grep -q "1 NaN" "$work/stdout"; then passed; else failed "inspect does not name NaN"; fi
capture "$ATOLL" import "$work/decoded" --output "$work/plain.h5" --weights keep
succeeds "nothing to keep" || true
if grep -q "nothing to keep" "$work/stderr"; then passed; else failed "nothing is said where nothing is kept"; fi
capture "$ATOLL" import "$work/coded" --output "$work/kept.h5" --weights some
refused "another word" 2 "some not in"

finish
